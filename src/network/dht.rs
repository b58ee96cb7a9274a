//! The runner's open questions to the DHT and who waits for the answers.
//!
//! Invariant: every question ends (kad's query timeout) and every waiter gets an answer or a closed channel.

use std::collections::HashMap;

use libp2p::PeerId;
use libp2p::kad::{
    self, GetClosestPeersError, GetRecordOk, PeerInfo, QueryId, QueryResult, Quorum, Record,
    RecordKey,
};
use libp2p::request_response::OutboundRequestId;
use tokio::sync::mpsc;

use super::handle::{Reply, WalkReply};
use super::offer_store::OfferStore;
use crate::protocol::offer::{OfferKey, OfferSet, decode_set};

/// Questions open at a time; more are answered with "no" at once.
const QUESTIONS_MAX: usize = 2_048;
/// Holders a key has (kad's k).
const HOLDERS: usize = 20;

/// Open questions.
#[derive(Default)]
pub(super) struct Questions {
    puts: HashMap<QueryId, Reply<bool>>,
    walks: HashMap<QueryId, mpsc::Sender<WalkReply>>,
    resolving: HashMap<QueryId, PeerId>,
    pub(super) pulls: HashMap<OutboundRequestId, Reply<Option<OfferSet>>>,
}

type Kad = kad::Behaviour<OfferStore>;

impl Questions {
    fn is_full(&self) -> bool {
        self.puts.len() + self.walks.len() + self.resolving.len() + self.pulls.len()
            >= QUESTIONS_MAX
    }
    /// Publishes to the holders closest to the key.
    pub(super) fn put(&mut self, kad: &mut Kad, key: OfferKey, value: Vec<u8>, reply: Reply<bool>) {
        let record = Record::new(RecordKey::new(&key), value);
        if !self.is_full()
            && let Ok(id) = kad.put_record(record, Quorum::One)
        {
            self.puts.insert(id, reply);
        }
    }
    /// Publishes to one holder when it is among the closest.
    pub(super) fn put_to(
        &mut self,
        kad: &mut Kad,
        peer: PeerId,
        key: OfferKey,
        value: Vec<u8>,
        reply: Reply<bool>,
    ) {
        let record = Record::new(RecordKey::new(&key), value);
        let target = kad::KBucketKey::new(record.key.clone());
        let is_close = kad
            .get_closest_local_peers(&target)
            .take(HOLDERS)
            .any(|near| *near.preimage() == peer);
        if !self.is_full() && is_close {
            let id = kad.put_record_to(record, [peer].into_iter(), Quorum::One);
            self.puts.insert(id, reply);
        }
    }
    /// Starts a walk; it ends with the query, or when the reader has heard enough and is gone.
    pub(super) fn walk(&mut self, kad: &mut Kad, key: OfferKey, sink: mpsc::Sender<WalkReply>) {
        if self.is_full() {
            return;
        }
        let id = kad.get_record(RecordKey::new(&key));
        self.walks.insert(id, sink);
    }
    /// Looks for the addresses of a peer.
    pub(super) fn resolve(&mut self, kad: &mut Kad, peer: PeerId) -> bool {
        if self.is_full() || kad.kbuckets().next().is_none() {
            return false;
        }
        let id = kad.get_closest_peers(peer);
        self.resolving.insert(id, peer);
        true
    }
    /// Takes a query's progress; returns a peer whose resolution ended, with what was found.
    pub(super) fn progressed(
        &mut self,
        kad: &mut Kad,
        id: QueryId,
        result: QueryResult,
        last: bool,
    ) -> Option<(PeerId, Vec<libp2p::Multiaddr>)> {
        match result {
            QueryResult::PutRecord(done) => {
                if let Some(reply) = self.puts.remove(&id) {
                    let _ = reply.send(done.is_ok());
                }
            }
            QueryResult::GetRecord(found) => {
                if let Some(sink) = self.walks.get(&id) {
                    if let Ok(GetRecordOk::FoundRecord(found)) = found {
                        pass_on(sink, found.peer, &found.record.value);
                    }
                    let unheard = sink.is_closed();
                    if unheard && let Some(mut query) = kad.query_mut(&id) {
                        query.finish();
                    }
                    if unheard || last {
                        self.walks.remove(&id);
                    }
                }
            }
            QueryResult::GetClosestPeers(found) => {
                let peer = *self.resolving.get(&id)?;
                let near = match found {
                    Ok(ok) => ok.peers,
                    Err(GetClosestPeersError::Timeout { peers, .. }) => peers,
                };
                let addresses = addresses_of(&peer, near);
                if last || !addresses.is_empty() {
                    self.resolving.remove(&id);
                    return Some((peer, addresses));
                }
            }
            _ => {}
        }
        None
    }
}

/// A reader that does not keep up loses replies, not the walk.
fn pass_on(sink: &mpsc::Sender<WalkReply>, holder: Option<PeerId>, value: &[u8]) {
    if let Some(set) = decode_set(value) {
        let _ = sink.try_send(WalkReply { holder, set });
    }
}

fn addresses_of(peer: &PeerId, near: Vec<PeerInfo>) -> Vec<libp2p::Multiaddr> {
    near.into_iter()
        .filter(|info| info.peer_id == *peer)
        .flat_map(|info| info.addrs)
        .collect()
}
