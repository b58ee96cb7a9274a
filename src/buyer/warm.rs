//! Connections to the best sellers of the models used lately, so that the first request after a pause
//! and a failover dial nobody.
//!
//! Bounded: [`MODELS_MAX`] models, for each as many sellers as the config says. Only connections:
//! nothing is signed and nothing is owed. Run by `node` for as long as the buyer.

use std::num::NonZeroUsize;
use std::time::Duration;

use futures::future::join_all;
use lru::LruCache;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::{Buyer, Shared, explain};
use crate::types::{ModelId, PeerId, UnixMs};

/// A model is kept warm this long after its last request, ms.
const USED_MS: u64 = 30 * 60 * 1_000;
/// Models kept warm, those used last.
const MODELS_MAX: usize = 8;
/// How often connections are looked at; a lost one is missed for so long at most.
const INTERVAL: Duration = Duration::from_secs(5);

/// The models that were asked for, and when last.
pub(super) struct Used {
    models: Mutex<LruCache<ModelId, UnixMs>>,
}

impl Default for Used {
    fn default() -> Self {
        let most = NonZeroUsize::new(MODELS_MAX).unwrap_or(NonZeroUsize::MIN);
        Self {
            models: Mutex::new(LruCache::new(most)),
        }
    }
}

impl Used {
    /// A model is asked for.
    pub fn note(&self, model: &ModelId, now_ms: UnixMs) {
        self.models.lock().put(model.clone(), now_ms);
    }
    /// The models asked for within the last half hour.
    pub fn lately(&self, now_ms: UnixMs) -> Vec<ModelId> {
        let models = self.models.lock();
        let fresh = |at_ms: UnixMs| now_ms.saturating_sub(at_ms) < USED_MS;
        let lately = models.iter().filter(|(_, at_ms)| fresh(**at_ms));
        lately.map(|(model, _)| model.clone()).collect()
    }
}

impl Buyer {
    /// Keeps connections up to the `sellers` best of each model used lately, until `stop`.
    pub async fn keep_warm(self, sellers: usize, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = stop.cancelled() => return,
            }
            let shared = &*self.shared;
            let models = shared.used.lately(shared.clock.now_ms());
            let wanted = models.iter().flat_map(|model| best(shared, model, sellers));
            let cold: Vec<PeerId> = wanted
                .filter(|seller| !shared.network.is_connected(seller))
                .collect();
            let dials = join_all(cold.iter().map(|seller| shared.network.connect(seller)));
            tokio::select! {
                dialled = dials => tracing::debug!(count = dialled.len(), "kept warm"),
                () = stop.cancelled() => return,
            }
        }
    }
}

/// The sellers that a request for `model` would be given to first.
fn best(shared: &Shared, model: &ModelId, sellers: usize) -> Vec<PeerId> {
    let Some((asked, route)) = explain::ordinary(shared, model.as_str()) else {
        return Vec::new();
    };
    let scored = explain::score(shared, &asked, &route);
    let mut scores: Vec<_> = scored
        .into_iter()
        .filter_map(|(_, score)| score.ok())
        .collect();
    scores.sort_by(|a, b| a.total.total_cmp(&b.total));
    let best = scores.iter().map(|score| score.seller);
    best.take(sellers).collect()
}
