//! The swarm's behaviours in one struct: limits first, so that a refused connection costs nothing else.
//!
//! Relay client, dcutr and autonat have no place yet: NAT traversal comes later and the relay client changes the
//! transport. mdns and upnp are toggles.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use libp2p::identity::Keypair;
use libp2p::kad::{self, Caching, StoreInserts};
use libp2p::request_response::{self, ProtocolSupport, cbor};
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{
    StreamProtocol, connection_limits, identify, mdns, memory_connection_limits, ping, upnp,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::limits::{self, Groups};
use super::offer_store::OfferStore;
use super::request_stream;
use super::{NetworkError, Settings};
use crate::types::Clock;

/// Wire name of our DHT: with lazy negotiation a stock name would collect peers that do not speak it.
pub(super) const KAD_PROTOCOL: StreamProtocol = StreamProtocol::new("/souk/kad/1");
/// Wire name of the catalogue pull.
const CATALOGUE_PROTOCOL: StreamProtocol = StreamProtocol::new("/souk/catalogue/1");
/// What identify says about us.
const IDENTIFY_PROTOCOL: &str = "/souk/1";
/// A DHT query ends after this with what it found.
const QUERY_TIMEOUT: Duration = Duration::from_secs(15);
/// One DHT answer takes no longer.
const QUERY_STEP_TIMEOUT: Duration = Duration::from_secs(4);
/// DHT peers asked at a time.
const QUERY_PARALLELISM: usize = 5;
/// A catalogue pull takes no longer.
const CATALOGUE_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes that CBOR writes as bytes instead of a list of numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Blob(pub(super) Vec<u8>);

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl serde::de::Visitor<'_> for Bytes {
            type Value = Blob;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Blob, E> {
                Ok(Blob(bytes.to_vec()))
            }
            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Blob, E> {
                Ok(Blob(bytes))
            }
        }
        from.deserialize_bytes(Bytes)
    }
}

/// "Send me offers, at most so many bytes."
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct CatalogueRequest {
    pub(super) bytes_max: u32,
}

/// A set of offers, framed as in the DHT.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct CatalogueAnswer {
    pub(super) set: Blob,
}

/// All behaviours; the order is the order in which they may refuse a connection.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    pub(super) limits: connection_limits::Behaviour,
    pub(super) memory: memory_connection_limits::Behaviour,
    pub(super) groups: Groups,
    pub(super) streams: request_stream::Behaviour,
    pub(super) kad: kad::Behaviour<OfferStore>,
    pub(super) identify: identify::Behaviour,
    pub(super) ping: ping::Behaviour,
    pub(super) catalogue: cbor::Behaviour<CatalogueRequest, CatalogueAnswer>,
    pub(super) mdns: Toggle<mdns::tokio::Behaviour>,
    pub(super) upnp: Toggle<upnp::tokio::Behaviour>,
}

impl Behaviour {
    pub(super) fn new(
        keypair: &Keypair,
        settings: &Settings,
        streams: request_stream::Behaviour,
        clock: Arc<dyn Clock>,
        use_mdns: bool,
    ) -> Result<Self, NetworkError> {
        let local = keypair.public().to_peer_id();
        let store = OfferStore::new(&settings.network, local, clock, settings.store);
        let mdns = if use_mdns {
            let behaviour = mdns::tokio::Behaviour::new(mdns::Config::default(), local)
                .inspect_err(|e| tracing::warn!("no peer search on the local network: {e}"));
            behaviour.ok()
        } else {
            None
        };
        Ok(Self {
            limits: limits::connection_limits(),
            memory: memory_connection_limits::Behaviour::with_max_percentage(
                limits::MEMORY_SHARE_MAX,
            ),
            groups: Groups::default(),
            streams,
            kad: kad::Behaviour::with_config(local, store, kad_config()),
            identify: identify::Behaviour::new(
                identify::Config::new(IDENTIFY_PROTOCOL.to_owned(), keypair.public())
                    .with_agent_version(format!("souk/{}", env!("CARGO_PKG_VERSION")))
                    .with_push_listen_addr_updates(true)
                    .with_cache_size(0),
            ),
            ping: ping::Behaviour::new(
                ping::Config::new()
                    .with_interval(limits::PING_INTERVAL)
                    .with_timeout(limits::PING_TIMEOUT),
            ),
            catalogue: catalogue(),
            mdns: mdns.into(),
            upnp: settings.upnp.then(upnp::tokio::Behaviour::default).into(),
        })
    }
}

fn kad_config() -> kad::Config {
    let mut config = kad::Config::new(KAD_PROTOCOL);
    config
        .set_query_timeout(QUERY_TIMEOUT)
        .set_substreams_timeout(QUERY_STEP_TIMEOUT)
        .set_record_filtering(StoreInserts::FilterBoth)
        .set_kbucket_inserts(kad::BucketInserts::Manual)
        .set_caching(Caching::Disabled)
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_provider_publication_interval(None)
        .set_max_packet_size(limits::KAD_PACKET_BYTES_MAX);
    if let Some(parallelism) = NonZeroUsize::new(QUERY_PARALLELISM) {
        config.set_parallelism(parallelism);
    }
    config
}

fn catalogue() -> cbor::Behaviour<CatalogueRequest, CatalogueAnswer> {
    let answer_max = u64::try_from(limits::CATALOGUE_BYTES_MAX + 1_024).unwrap_or(u64::MAX);
    let codec = cbor::codec::Codec::default()
        .set_request_size_maximum(limits::CATALOGUE_REQUEST_BYTES_MAX)
        .set_response_size_maximum(answer_max);
    request_response::Behaviour::with_codec(
        codec,
        [(CATALOGUE_PROTOCOL, ProtocolSupport::Full)],
        request_response::Config::default().with_request_timeout(CATALOGUE_TIMEOUT),
    )
}
