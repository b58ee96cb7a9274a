//! Transport, connections, request streams and the holder's side of the DHT; the only place that talks libp2p.
//!
//! [`start`] makes three things: a [`Handle`] (cheap to clone; opens streams without a detour over the runner), the
//! queues of [`Incoming`] streams, and a [`Runner`] that owns the swarm and never awaits work. QUIC first, TCP with
//! noise and yamux second. Invariants: everything a peer can grow is bounded by `limits`; private addresses count only
//! in private networks (`address`); only verified offers enter the store (`offer_store`).
//! Called by `node` (start, run), `discovery`, buyer and seller (handle).

mod address;
mod address_book;
mod behaviour;
mod dht;
mod events;
pub mod framed;
mod handle;
pub mod limits;
mod measures;
pub mod offer_store;
mod rate;
mod request_stream;
mod runner;
mod transport;

use std::sync::Arc;
use std::time::Duration;

use libp2p::{Multiaddr, PeerId};
use tokio::sync::mpsc;

use crate::types::{Clock, Secret};

pub use address::Group;
pub use handle::{Handle, NetworkEvent, OpenError, WalkReply};
pub use measures::MEASURES;
pub use offer_store::StoreLimits;
pub use request_stream::{Carrier, Protocol, Stream};
pub use runner::Runner;

/// What the network needs to start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The 32-byte ed25519 seed of this node's identity.
    pub seed: Secret<[u8; 32]>,
    /// Network id; offers of other networks are refused.
    pub network: String,
    /// Multiaddrs to listen on.
    pub listen: Vec<String>,
    /// Multiaddrs of nodes to join by, with or without `/p2p/<peer>`.
    pub bootstrap: Vec<String>,
    /// Peers known from earlier runs, best first.
    pub known_peers: Vec<(PeerId, Vec<String>)>,
    /// Addresses under which this node is reachable from outside, announced to others.
    pub external: Vec<String>,
    /// DHT server mode; `None`: server when the network is private (and we listen) or we have a public address.
    pub server: Option<bool>,
    /// Find peers on the local network (only used without bootstrap addresses and off loopback).
    pub mdns: bool,
    /// Ask the home router for a port.
    pub upnp: bool,
    /// Longest wait for a connection.
    pub dial_timeout: Duration,
    /// Longest wait for a stream on a connection.
    pub open_timeout: Duration,
    /// Caps of the offer store.
    pub store: StoreLimits,
}

impl Settings {
    /// Defaults around an identity: network `souk-1`, nothing to listen on, no peers.
    #[must_use]
    pub fn new(seed: Secret<[u8; 32]>) -> Self {
        Self {
            seed,
            network: "souk-1".to_owned(),
            listen: Vec::new(),
            bootstrap: Vec::new(),
            known_peers: Vec::new(),
            external: Vec::new(),
            server: None,
            mdns: true,
            upnp: false,
            dial_timeout: limits::DIAL_TIMEOUT,
            open_timeout: limits::OPEN_TIMEOUT,
            store: StoreLimits::default(),
        }
    }
}

/// Streams that peers opened.
#[derive(Debug)]
pub struct Incoming {
    /// One per request.
    pub infer: mpsc::Receiver<(PeerId, Stream)>,
    /// One per pair.
    pub session: mpsc::Receiver<(PeerId, Stream)>,
    /// One per transaction that this node is asked to send.
    pub relay: mpsc::Receiver<(PeerId, Stream)>,
}

/// Why the network did not start or stopped.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// An address in the settings is no multiaddr.
    #[error("`{0}` is no multiaddr; write it like /ip4/0.0.0.0/udp/4001/quic-v1")]
    Address(String),
    /// The identity is unusable.
    #[error("the node's key cannot be used for connections: {0}")]
    Identity(String),
    /// Listening failed.
    #[error("cannot listen on {0}: {1}; is another node running or the port taken?")]
    Listen(String, String),
}

/// Starts the network: binds the listeners and prepares the first dials. Must be called inside a tokio runtime;
/// nothing moves until the runner runs.
///
/// # Errors
/// When an address is malformed or cannot be bound.
pub fn start(
    settings: Settings,
    clock: Arc<dyn Clock>,
) -> Result<(Handle, Incoming, Runner), NetworkError> {
    runner::start(&settings, clock)
}

fn parse_all(list: &[String]) -> Result<Vec<Multiaddr>, NetworkError> {
    list.iter()
        .map(|text| {
            text.trim()
                .parse()
                .map_err(|_| NetworkError::Address(text.clone()))
        })
        .collect()
}

#[cfg(test)]
pub(crate) mod tests;
