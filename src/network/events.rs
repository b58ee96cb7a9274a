//! What the runner does when the swarm reports something.

use libp2p::kad::{InboundRequest, KBucketKey};
use libp2p::request_response::{self, Message};
use libp2p::swarm::{DialError, SwarmEvent};
use libp2p::{Multiaddr, PeerId, identify, kad, mdns};

use super::address::{group_of, is_loopback, is_private};
use super::behaviour::{BehaviourEvent, Blob, CatalogueAnswer, CatalogueRequest, KAD_PROTOCOL};
use super::handle::NetworkEvent;
use super::limits::{ADDRESSES_PER_PEER_MAX, CATALOGUE_BYTES_MAX, CONNECTIONS_PER_PEER_MAX};
use super::runner::Runner;
use crate::protocol::offer::{SetHeader, decode_set, encode_set};
use crate::types::UnixMs;

/// Peers of one public /24 in one bucket of the routing table.
const PEERS_PER_GROUP_AND_BUCKET: usize = 2;
/// Offers in one PUT; more are not even looked at.
const PUT_OFFERS_MAX: usize = 64;
/// A store larger than this answers pulls from a copy of the last second.
const CATALOGUE_FRESH_OFFERS_MAX: usize = 2_000;
const CATALOGUE_AGE_MS_MAX: u64 = 1_000;

/// The last catalogue answer.
#[derive(Default)]
pub(super) struct CatalogueCache {
    made: UnixMs,
    set: Vec<u8>,
}

impl Runner {
    pub(super) fn event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.behaviour_event(event),
            SwarmEvent::ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                num_established,
                ..
            } => {
                let remote = endpoint.get_remote_address().clone();
                if endpoint.is_dialer() {
                    self.shared.book.learn(&peer_id, [remote.clone()]);
                }
                self.remotes.insert(connection_id, remote);
                self.anchor_ended(connection_id, Some(peer_id));
                self.shared.failed.lock().pop(&peer_id);
                let now = self.clock.now_ms();
                self.shared.book.connected(&peer_id, now);
                if num_established.get() == 1 {
                    self.shared.publish(NetworkEvent::Connected(peer_id));
                }
                // After the event, so that whoever waited for the dial does not hear of it later.
                self.dial_done(&peer_id, &Ok(()));
                if self.is_anchor(&peer_id) {
                    self.shared.control.keep_warm(&peer_id, true);
                }
                if num_established.get() > CONNECTIONS_PER_PEER_MAX
                    && let Some(oldest) = self.shared.control.oldest(&peer_id)
                {
                    self.swarm.close_connection(oldest);
                }
            }
            SwarmEvent::ConnectionClosed {
                peer_id,
                connection_id,
                num_established,
                cause,
                ..
            } => {
                self.remotes.remove(&connection_id);
                if num_established == 0 {
                    tracing::debug!(%peer_id, ?cause, "disconnected");
                    self.shared.publish(NetworkEvent::Disconnected(peer_id));
                }
            }
            SwarmEvent::OutgoingConnectionError {
                connection_id,
                peer_id,
                error,
            } => self.dial_error(connection_id, peer_id, &error),
            SwarmEvent::NewListenAddr {
                listener_id,
                address,
            } => {
                tracing::info!(%address, "listening");
                self.shared
                    .publish(NetworkEvent::Listening(address.to_string()));
                self.listeners.entry(listener_id).or_default().push(address);
                self.answer_listener_waiters();
            }
            SwarmEvent::ExpiredListenAddr {
                listener_id,
                address,
            } => {
                if let Some(list) = self.listeners.get_mut(&listener_id) {
                    list.retain(|a| *a != address);
                }
            }
            SwarmEvent::ListenerClosed { listener_id, .. } => {
                self.listeners.remove(&listener_id);
                self.answer_listener_waiters();
            }
            _ => {}
        }
    }
    fn dial_error(
        &mut self,
        id: libp2p::swarm::ConnectionId,
        peer: Option<PeerId>,
        error: &DialError,
    ) {
        match error {
            DialError::LocalPeerId { .. } => self.anchor_ended(id, Some(self.shared.local)),
            DialError::WrongPeerId { obtained, address } => {
                tracing::warn!(%address, %obtained, "the node at this address has another identity");
                self.anchor_ended(id, None);
            }
            _ => self.anchor_ended(id, None),
        }
        let Some(peer) = peer else {
            return;
        };
        tracing::debug!(%peer, %error, "dial failed");
        if !self.swarm.is_connected(&peer) && matches!(error, DialError::Transport(_)) {
            // A missed scan removes nobody; failure does.
            self.swarm.behaviour_mut().kad.remove_peer(&peer);
        }
        self.dial_ended(id, &peer);
    }
    fn behaviour_event(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Kad(event) => self.kad_event(event),
            BehaviourEvent::Identify(identify::Event::Received {
                peer_id,
                info,
                connection_id,
            }) => self.identified(peer_id, info, connection_id),
            BehaviourEvent::Ping(ping) => {
                if let Err(error) = ping.result {
                    tracing::debug!(peer = %ping.peer, %error, "no ping answer");
                    self.swarm.close_connection(ping.connection);
                }
            }
            BehaviourEvent::Catalogue(event) => self.catalogue_event(event),
            BehaviourEvent::Mdns(mdns::Event::Discovered(found)) => {
                for (peer, address) in found {
                    self.policy.trust(&address);
                    self.shared.book.learn(&peer, [address]);
                    self.dial_peer(peer, None);
                }
            }
            _ => {}
        }
    }
    fn kad_event(&mut self, event: kad::Event) {
        match event {
            kad::Event::InboundRequest {
                request:
                    InboundRequest::PutRecord {
                        source,
                        connection,
                        record: Some(record),
                    },
            } => {
                let Some(set) = decode_set(&record.value) else {
                    return;
                };
                let cost = u64::try_from(set.offers.len()).unwrap_or(u64::MAX).max(1);
                let now = self.clock.now_ms();
                // The rate comes before the signatures, which are what costs.
                if set.offers.len() > PUT_OFFERS_MAX || !self.put_rate.take(&source, cost, now) {
                    tracing::debug!(%source, "too many offers from one peer");
                    return;
                }
                let group = self.remotes.get(&connection).and_then(group_of);
                let store = self.swarm.behaviour_mut().kad.store_mut();
                store.merge_set(record.key.as_ref(), &record.value, group);
            }
            kad::Event::OutboundQueryProgressed {
                id, result, step, ..
            } => {
                let kad = &mut self.swarm.behaviour_mut().kad;
                let resolved = self.questions.progressed(kad, id, result, step.last);
                if let Some((peer, addresses)) = resolved {
                    if addresses.is_empty() {
                        self.dial_failed(&peer);
                    } else {
                        self.shared.book.learn(&peer, addresses);
                        self.dial_now(peer, false);
                    }
                }
            }
            _ => {}
        }
    }
    fn identified(
        &mut self,
        peer: PeerId,
        info: identify::Info,
        connection: libp2p::swarm::ConnectionId,
    ) {
        let remote = self.remotes.get(&connection).cloned();
        let addresses: Vec<Multiaddr> = info
            .listen_addrs
            .into_iter()
            .filter(|a| self.counts(a, remote.as_ref()))
            .take(ADDRESSES_PER_PEER_MAX)
            .collect();
        self.shared.book.learn(&peer, addresses.clone());
        let is_server = info.protocols.contains(&KAD_PROTOCOL);
        if !is_server {
            self.swarm.behaviour_mut().kad.remove_peer(&peer);
            return;
        }
        for address in addresses {
            if self.has_room_in_bucket(&peer, &address) {
                self.swarm.behaviour_mut().kad.add_address(&peer, address);
            }
        }
        self.shared.publish(NetworkEvent::Server(peer));
    }
    /// Private addresses of a peer count when we are connected to it over one of the same kind.
    fn counts(&self, address: &Multiaddr, remote: Option<&Multiaddr>) -> bool {
        if self.policy.allows(address) {
            return true;
        }
        let near = is_private(address)
            && remote.is_some_and(|r| is_private(r) && is_loopback(r) == is_loopback(address));
        if near {
            self.policy.trust(address);
        }
        near && self.policy.allows(address)
    }
    /// At most two peers of a public /24 per bucket, so that one network cannot surround us.
    fn has_room_in_bucket(&mut self, peer: &PeerId, address: &Multiaddr) -> bool {
        let Some(group) = group_of(address) else {
            return true;
        };
        let kad = &mut self.swarm.behaviour_mut().kad;
        let Some(bucket) = kad.kbucket(*peer) else {
            return false;
        };
        let own = KBucketKey::from(*peer);
        let same = bucket
            .iter()
            .filter(|entry| *entry.node.key != own)
            .filter(|entry| entry.node.value.iter().any(|a| group_of(a) == Some(group)))
            .count();
        same < PEERS_PER_GROUP_AND_BUCKET
    }
    fn catalogue_event(
        &mut self,
        event: request_response::Event<CatalogueRequest, CatalogueAnswer>,
    ) {
        match event {
            request_response::Event::Message {
                peer,
                message:
                    Message::Request {
                        request, channel, ..
                    },
                ..
            } => {
                let now = self.clock.now_ms();
                if !self.pull_rate.take(&peer, 1, now) {
                    return;
                }
                let asked = usize::try_from(request.bytes_max).unwrap_or(usize::MAX);
                let set = self.catalogue_set(asked.min(CATALOGUE_BYTES_MAX), now);
                let answer = CatalogueAnswer { set: Blob(set) };
                let _ = self
                    .swarm
                    .behaviour_mut()
                    .catalogue
                    .send_response(channel, answer);
            }
            request_response::Event::Message {
                message:
                    Message::Response {
                        request_id,
                        response,
                    },
                ..
            } => {
                if let Some(reply) = self.questions.pulls.remove(&request_id) {
                    let _ = reply.send(decode_set(&response.set.0));
                }
            }
            request_response::Event::OutboundFailure {
                request_id,
                error,
                peer,
                ..
            } => {
                tracing::debug!(%peer, %error, "no catalogue");
                self.questions.pulls.remove(&request_id);
            }
            _ => {}
        }
    }
    fn catalogue_set(&mut self, bytes_max: usize, now: UnixMs) -> Vec<u8> {
        let store = self.swarm.behaviour_mut().kad.store_mut();
        let (held, _) = store.usage();
        let fresh = now.saturating_sub(self.catalogue.made) < CATALOGUE_AGE_MS_MAX;
        if held > CATALOGUE_FRESH_OFFERS_MAX && fresh && bytes_max == CATALOGUE_BYTES_MAX {
            return self.catalogue.set.clone();
        }
        let own = self.shared.offers.read().clone();
        let others = store.catalogue(bytes_max);
        let header = SetHeader {
            count: u32::try_from(own.len() + others.len()).unwrap_or(u32::MAX),
            ..SetHeader::default()
        };
        let set = encode_set(header, own.iter().chain(&others), bytes_max);
        if bytes_max == CATALOGUE_BYTES_MAX {
            self.catalogue = CatalogueCache {
                made: now,
                set: set.clone(),
            };
        }
        set
    }
}
