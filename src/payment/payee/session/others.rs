//! A buyer's other channels: its earlier ones have no session of their own, so what waits on them goes
//! over the one that stands.

use super::{book_accepts, send, sync};
use crate::payment::PaymentError;
use crate::payment::payee::Shared;
use crate::payment::payee::pair::PayeePair;
use crate::protocol::SessionMessage;
use crate::protocol::limits::ATTEMPTS_PER_MESSAGE_MAX;
use crate::types::{AttemptId, MicroUsd};

/// ACCEPTs for attempts of this buyer's other channels, which have no session of their own.
pub(super) async fn book_left_behind(
    shared: &Shared,
    pair: &PayeePair,
    items: &[(AttemptId, MicroUsd)],
) -> Result<(), PaymentError> {
    for earlier in shared.others_of(pair) {
        let awaited = |item: &&(AttemptId, MicroUsd)| earlier.state.lock().awaits(&item.0);
        let theirs: Vec<_> = items.iter().filter(awaited).copied().collect();
        if !theirs.is_empty() {
            book_accepts(shared, &earlier, theirs, false).await?;
        }
    }
    Ok(())
}

/// Shows again what waits for an ACCEPT, on this channel and on earlier ones: receipts, and attempts
/// that a crash left without one.
pub(super) async fn repeat_ended(shared: &Shared, pair: &PayeePair) {
    let (mut receipts, mut lost) = pair.state.lock().repeats();
    for earlier in shared.others_of(pair) {
        let (more, more_lost) = earlier.state.lock().repeats();
        receipts.extend(more);
        lost.extend(more_lost);
    }
    lost.truncate(ATTEMPTS_PER_MESSAGE_MAX);
    let mut messages: Vec<_> = receipts.into_iter().map(SessionMessage::Receipt).collect();
    if !lost.is_empty() {
        messages.push(SessionMessage::SyncSeller(sync(pair, lost, Vec::new())));
    }
    send(pair, &messages).await;
}
