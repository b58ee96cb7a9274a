//! One background look-up of a model, a catalogue pull, and a walk over the catalogue keys.
//!
//! Replies are used as they arrive; a dead holder delays only the end of a walk. Called by the offer book's runner.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;

use super::offer_book::{Absorbed, Inner};
use crate::protocol::offer::{OfferKey, SHARDS_EXTRA, catalogue_keys, model_key};
use crate::types::{ModelId, PeerId};

/// New verified offers after which a walk of one key stops.
const WALK_WANT: usize = 1_024;
/// Keys walked at a time.
const WALKS_AT_A_TIME: usize = 4;
/// A look-up waits so long for the first DHT server before it asks an empty routing table.
const SERVER_WAIT: Duration = Duration::from_secs(1);
/// Offers in one answer that no honest holder would show, before the rest is ignored.
const FORGERIES_MAX: usize = 4;
/// Signatures checked before other tasks get a turn.
const VERIFY_BATCH: usize = 16;

impl Inner {
    /// Verifies and takes the raw offers of one answer; returns how many were new. An honest holder checks what it
    /// stores, so after a few forgeries the rest of its answer is not worth a signature check.
    pub(super) async fn absorb(&self, offers: &[Bytes]) -> usize {
        let (mut new, mut forged) = (0, 0);
        for batch in offers.chunks(VERIFY_BATCH) {
            for raw in batch {
                match self.absorb_one(raw) {
                    Absorbed::New => new += 1,
                    Absorbed::Forged => forged += 1,
                    Absorbed::Known | Absorbed::Outdated => {}
                }
            }
            if forged > FORGERIES_MAX {
                break;
            }
            tokio::task::yield_now().await;
        }
        if new > 0 {
            self.progressed();
        }
        new
    }
    /// Walks one key; returns true when a holder said that it is full.
    async fn walk(&self, key: OfferKey) -> bool {
        let mut replies = self.handle.walk_offers(key).await;
        let (mut full, mut new) = (false, 0);
        while let Some(reply) = replies.recv().await {
            full |= reply.set.header.is_full();
            new += self.absorb(&reply.set.offers).await;
            if new >= WALK_WANT {
                break;
            }
        }
        full
    }
    async fn walk_all(&self, keys: impl Iterator<Item = OfferKey>) {
        futures::stream::iter(keys)
            .map(|key| self.walk(key))
            .buffer_unordered(WALKS_AT_A_TIME)
            .collect::<Vec<bool>>()
            .await;
    }
    /// Looks a model up: shard 0, and the others when it is full.
    pub(super) async fn look_up(&self, model: &ModelId) {
        let mut server = self.server.subscribe();
        let seen = tokio::time::timeout(SERVER_WAIT, server.wait_for(|seen| *seen))
            .await
            .is_ok();
        if self.walk(model_key(&self.network, model, 0)).await {
            let shards = (1..=SHARDS_EXTRA).map(|shard| model_key(&self.network, model, shard));
            self.walk_all(shards).await;
        }
        // An answer of an empty routing table counts only when somebody told us its whole catalogue.
        self.looked_up(model, seen || *self.ready.borrow());
    }
    /// Pulls what one connected peer makes and holds.
    pub(super) async fn pull(&self, peer: PeerId) {
        let Some(offers) = self.handle.pull_catalogue(&peer).await else {
            return;
        };
        let new = self.absorb(&offers).await;
        tracing::debug!(%peer, offers = offers.len(), new, "catalogue pulled");
        self.ready.send_replace(true);
        self.progressed();
    }
    /// Walks all catalogue keys.
    pub(super) async fn walk_catalogue(&self) {
        let keys: Vec<_> = catalogue_keys(&self.network).collect();
        self.walk_all(keys.into_iter()).await;
    }
}
