//! Limits on connections, and the behaviour that keeps one network from taking all of them.
//!
//! libp2p's own limits (pending, established) and the memory limit come first in the swarm; this one
//! counts established connections per public /24 (IPv6: /48). Private and loopback addresses are exempt, or a
//! laptop's own test network and a home behind one router could not connect. Called by `network::behaviour`.

use std::collections::HashMap;
use std::convert::Infallible;
use std::task::{Context, Poll};
use std::time::Duration;

use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
    THandlerOutEvent, ToSwarm, dummy,
};
use libp2p::{Multiaddr, PeerId};

use super::address::{Group, group_of};

/// Connections of one peer: both sides may dial at once, over two transports. One more closes the
/// oldest: a peer that was killed and restarted leaves dead ones behind for [`QUIC_IDLE`].
pub const CONNECTIONS_PER_PEER_MAX: u32 = 4;
/// Connections from one public /24.
pub const CONNECTIONS_PER_GROUP_MAX: usize = 64;
/// Established connections of a node: 10 000 peers and room to reconnect.
pub const CONNECTIONS_MAX: u32 = 12_000;
/// Handshakes in progress from outside: each costs a signature.
pub const PENDING_INCOMING_MAX: u32 = 512;
/// Dials in progress.
pub const PENDING_OUTGOING_MAX: u32 = 256;
/// Share of the machine's memory beyond which no new connection is taken.
pub const MEMORY_SHARE_MAX: f64 = 0.75;
/// Streams of ours open on one connection: twice what a seller serves one buyer.
pub const STREAMS_OPENED_MAX: usize = 512;
/// Streams of a peer's held on one connection. Three times what it may open: a stream that its
/// opener has dropped is held here until its task has noticed, and must not cost the next one.
pub const STREAMS_ACCEPTED_MAX: usize = YAMUX_STREAMS_MAX - STREAMS_OPENED_MAX;
/// Streams a yamux connection carries, both directions: one too many closes it with all of them.
/// Above 4 096 libp2p panics.
pub const YAMUX_STREAMS_MAX: usize = 2_048;
/// Incoming request streams of a node.
pub const STREAMS_MAX: usize = 10_000;
/// Accepted streams waiting to be taken by the seller.
pub const ACCEPT_QUEUE_MAX: usize = 1_024;
/// Inbound streams in negotiation per connection.
pub const NEGOTIATING_STREAMS_MAX: usize = 512;
/// Unread bytes a peer may send on one QUIC stream (libp2p's default is 10 MB).
pub const QUIC_STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// Unread bytes a peer may send on one QUIC connection.
pub const QUIC_CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// Silence after which a QUIC connection is dead (kill -9 sends no close).
pub const QUIC_IDLE: Duration = Duration::from_secs(12);
/// A sign of life on a silent QUIC connection, below a third of [`QUIC_IDLE`].
pub const QUIC_KEEP_ALIVE: Duration = Duration::from_millis(3_500);
/// A connection without streams is closed after this.
pub const CONNECTION_IDLE: Duration = Duration::from_secs(240);
/// Pause between pings on a connection.
pub const PING_INTERVAL: Duration = Duration::from_secs(15);
/// A ping without an answer for this long means a dead peer.
pub const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for a connection.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for a stream on a connection.
pub const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest kad packet: a reply of 48 KiB and the closer peers.
pub const KAD_PACKET_BYTES_MAX: usize = 64 * 1024;
/// Commands waiting for the runner.
pub const COMMANDS_MAX: usize = 1_024;
/// Callers waiting for one dial.
pub const DIAL_WAITERS_MAX: usize = 4_096;
/// Peers whose addresses are remembered.
pub const PEERS_REMEMBERED_MAX: usize = 4_096;
/// Addresses remembered per peer.
pub const ADDRESSES_PER_PEER_MAX: usize = 8;
/// Longest catalogue answer.
pub const CATALOGUE_BYTES_MAX: usize = 256 * 1024;
/// Longest catalogue request.
pub const CATALOGUE_REQUEST_BYTES_MAX: u64 = 1_024;
/// Peers whose rate is remembered.
pub const SOURCES_REMEMBERED_MAX: usize = 4_096;

/// libp2p's own connection limits, from the table above; the runner keeps the limit per peer.
pub(super) fn connection_limits() -> connection_limits::Behaviour {
    connection_limits::Behaviour::new(
        ConnectionLimits::default()
            .with_max_pending_incoming(Some(PENDING_INCOMING_MAX))
            .with_max_pending_outgoing(Some(PENDING_OUTGOING_MAX))
            .with_max_established(Some(CONNECTIONS_MAX)),
    )
}

/// Too many connections from one public network.
#[derive(Debug, thiserror::Error)]
#[error("too many connections from one network (more than {CONNECTIONS_PER_GROUP_MAX})")]
struct TooManyFromOneNetwork;

/// Counts established connections per public /24.
#[derive(Default)]
pub(super) struct Groups {
    counts: HashMap<Group, usize>,
    connections: HashMap<ConnectionId, Group>,
}

impl Groups {
    fn admit(&mut self, id: ConnectionId, address: &Multiaddr) -> Result<(), ConnectionDenied> {
        let Some(group) = group_of(address) else {
            return Ok(());
        };
        let count = self.counts.entry(group).or_default();
        if *count >= CONNECTIONS_PER_GROUP_MAX {
            return Err(ConnectionDenied::new(TooManyFromOneNetwork));
        }
        *count += 1;
        self.connections.insert(id, group);
        Ok(())
    }
    fn release(&mut self, id: ConnectionId) {
        let Some(group) = self.connections.remove(&id) else {
            return;
        };
        if let Some(count) = self.counts.get_mut(&group) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.counts.remove(&group);
            }
        }
    }
}

impl NetworkBehaviour for Groups {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.admit(id, remote).map(|()| dummy::ConnectionHandler)
    }
    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        _: PeerId,
        remote: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.admit(id, remote).map(|()| dummy::ConnectionHandler)
    }
    fn on_swarm_event(&mut self, event: FromSwarm) {
        match event {
            FromSwarm::ConnectionClosed(closed) => self.release(closed.connection_id),
            // Another behaviour refused the connection after we had counted it.
            FromSwarm::ListenFailure(failure) => self.release(failure.connection_id),
            FromSwarm::DialFailure(failure) => self.release(failure.connection_id),
            _ => {}
        }
    }
    fn on_connection_handler_event(
        &mut self,
        _: PeerId,
        _: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {}
    }
    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_public_network_gets_its_share_and_private_ones_are_exempt() {
        let mut groups = Groups::default();
        let public: Multiaddr = "/ip4/8.8.8.9/tcp/1".parse().unwrap();
        let near: Multiaddr = "/ip4/8.8.8.200/udp/1/quic-v1".parse().unwrap();
        for i in 0..CONNECTIONS_PER_GROUP_MAX {
            groups
                .admit(ConnectionId::new_unchecked(i), &public)
                .unwrap();
        }
        assert!(
            groups
                .admit(ConnectionId::new_unchecked(900), &near)
                .is_err()
        );
        groups.release(ConnectionId::new_unchecked(3));
        assert!(
            groups
                .admit(ConnectionId::new_unchecked(900), &near)
                .is_ok()
        );
        let private: Multiaddr = "/ip4/192.168.1.4/tcp/1".parse().unwrap();
        for i in 1_000..2_000 {
            groups
                .admit(ConnectionId::new_unchecked(i), &private)
                .unwrap();
        }
    }
}
