//! Channels opened before they are needed: after an answer, off any request's way, with the likeliest
//! sellers of the same model. So a failover finds a channel whose deposit is final already, instead
//! of one that is served on trust.
//!
//! An opening costs its fee, so this waits for a first answer: before it nobody knows which model,
//! and so which seller, will be wanted. The payer decides whether there is money for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Shared;
use crate::router::score::Score;
use crate::router::{Ask, Entry};
use crate::types::{PeerId, UnixMs};

/// Time between two looks, ms: the order of sellers changes slowly, and scores cost time.
const LOOK_EVERY_MS: u64 = 15_000;

/// When that was last looked at.
#[derive(Default)]
pub(super) struct Ahead {
    looked_ms: AtomicU64,
}

impl Ahead {
    /// True for one caller per interval.
    fn is_due(&self, now_ms: UnixMs) -> bool {
        let look = |last: UnixMs| {
            let is_due = last == 0 || now_ms.saturating_sub(last) >= LOOK_EVERY_MS;
            is_due.then_some(now_ms)
        };
        let (order, failed) = (Ordering::Relaxed, Ordering::Relaxed);
        self.looked_ms.fetch_update(order, failed, look).is_ok()
    }
}

/// Opens channels with the likeliest sellers of what was just answered, in the background.
pub(super) fn open(shared: &Arc<Shared>, ask: &Ask<'_>, entries: &[Entry]) {
    let most = shared.payer.opens_ahead();
    if most == 0 || !shared.ahead.is_due(shared.clock.now_ms()) {
        return;
    }
    let scores = shared.router.explain(ask, entries).into_iter();
    let sellers = likeliest(scores.flatten().collect(), entries, most);
    if sellers.is_empty() {
        return;
    }
    let payer = shared.payer.clone();
    shared.tasks.spawn("open-ahead", async move {
        for seller in sellers {
            match payer.open_ahead(&seller).await {
                Ok(true) => tracing::info!(%seller, "a channel is opened ahead"),
                Ok(false) => {}
                Err(error) => tracing::debug!(%seller, %error, "no channel is opened ahead"),
            }
        }
    });
}

/// Of the `most` best sellers those that are paid and have no channel.
fn likeliest(mut scores: Vec<Score>, entries: &[Entry], most: usize) -> Vec<PeerId> {
    scores.sort_by(|one, other| one.total.total_cmp(&other.total));
    let best = scores.into_iter().take(most).map(|score| score.seller);
    let needs_one = |seller: &PeerId| {
        let mut found = entries.iter().filter(|entry| entry.seller == *seller);
        found.any(|entry| !entry.has_channel && !entry.price.is_free())
    };
    best.filter(needs_one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_is_due_once_per_interval() {
        let ahead = Ahead::default();
        assert!(ahead.is_due(1_000));
        assert!(!ahead.is_due(1_000) && !ahead.is_due(LOOK_EVERY_MS));
        assert!(ahead.is_due(1_000 + LOOK_EVERY_MS));
    }
}
