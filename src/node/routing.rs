//! The buyer's router: opened with what an earlier run learned, refreshed and saved as it goes.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;

use super::base::Base;
use crate::config::Prefer;
use crate::discovery::OfferBook;
use crate::ledger::Cache;
use crate::router::{self, Router, Snapshot};
use crate::types::Clock;

/// How often the medians of the market are computed.
const REFRESH: Duration = Duration::from_secs(5);
/// How often what was learned is saved; a crash loses this much of it, and no money.
const SAVE: Duration = Duration::from_secs(60);
/// The cache's name for what concerns all sellers.
const WHOLE: &str = "router";

/// A router with its tasks.
pub(super) async fn open(base: &Base, book: &OfferBook) -> Router {
    let seed = rand::rng().random();
    let settings = base
        .config
        .buy
        .routing
        .settings(base.config.payment.bootstrap_loss_max);
    let router = Router::new(settings, Arc::clone(&base.clock), seed);
    router.restore(&Snapshot {
        whole: whole(&base.cache).await,
        sellers: base.cache.scores().await.unwrap_or_default(),
    });
    let (kept, cache, clock) = (router.clone(), base.cache.clone(), Arc::clone(&base.clock));
    let book = book.clone();
    let stop = base.base.cancelled();
    base.base.spawn("router", async move {
        let mut refresh = tokio::time::interval(REFRESH);
        let mut keep = tokio::time::interval(SAVE);
        loop {
            tokio::select! {
                _ = refresh.tick() => {
                    kept.meet(book.live().iter().map(|signed| &signed.offer.seller));
                    kept.refresh();
                }
                _ = keep.tick() => save(&kept, &cache, &*clock).await,
                () = stop.cancelled() => return save(&kept, &cache, &*clock).await,
            }
        }
    });
    router
}

async fn whole(cache: &Cache) -> Vec<u8> {
    let kept = cache.get(WHOLE).await.ok().flatten();
    kept.map(String::into_bytes).unwrap_or_default()
}

async fn save(router: &Router, cache: &Cache, clock: &dyn Clock) {
    let snapshot = router.snapshot();
    let whole = String::from_utf8(snapshot.whole).unwrap_or_default();
    let saved = async {
        cache.set(WHOLE, &whole).await?;
        cache.put_scores(&snapshot.sellers, clock.now_ms()).await
    };
    if let Err(error) = saved.await {
        tracing::debug!(%error, "scores not saved");
    }
}

/// The config's word for the router's.
pub(super) const fn prefer(prefer: Prefer) -> router::Prefer {
    match prefer {
        Prefer::Cheap => router::Prefer::Cheap,
        Prefer::Balanced => router::Prefer::Balanced,
        Prefer::Fast => router::Prefer::Fast,
    }
}
