//! The bookkeeper of a pair: one task that makes finals and vouchers durable, then sends them.
//!
//! A single task per pair is what keeps vouchers rising and in order. It lingers a moment for
//! ACCEPTs, so that a burst of small requests costs one commit and one signature; a due voucher
//! never lingers.

use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use super::pair::Pair;
use crate::ledger::{FinalRow, Role, Row, VoucherRow};
use crate::payment::PaymentError;
use crate::protocol::limits::ATTEMPTS_PER_MESSAGE_MAX;
use crate::protocol::session::Accept;
use crate::protocol::{EvmSignature, SessionMessage, Voucher};
use crate::types::{AttemptId, MicroUsd};

/// How long ACCEPTs wait for company: short against any client's patience, long against a commit.
const ACCEPT_LINGER: Duration = Duration::from_millis(4);

/// Runs until shutdown; then makes durable what is queued.
pub(super) async fn keep(shared: Arc<Shared>, pair: Arc<Pair>) -> Result<(), PaymentError> {
    let cancelled = shared.tasks.cancelled();
    loop {
        tokio::select! {
            biased;
            () = pair.changed.notified() => {}
            () = cancelled.cancelled() => return turn(&shared, &pair).await,
        }
        let urgent = std::mem::take(&mut pair.state.lock().urgent);
        if !urgent {
            tokio::select! {
                () = tokio::time::sleep(ACCEPT_LINGER) => {}
                () = pair.changed.notified() => {
                    if !pair.state.lock().urgent {
                        tokio::time::sleep(ACCEPT_LINGER).await;
                    }
                }
            }
        }
        turn(&shared, &pair).await?;
    }
}

/// One turn: everything queued, one voucher at most, one flush.
async fn turn(shared: &Shared, pair: &Pair) -> Result<(), PaymentError> {
    let finals = pair.state.lock().take_finals();
    let accepts: Vec<(AttemptId, MicroUsd)> = finals
        .iter()
        .filter(|(_, accept)| *accept)
        .map(|(row, _)| (row.attempt_id, row.billed))
        .collect();
    let rows: Vec<FinalRow> = finals.into_iter().map(|(row, _)| row).collect();
    make_durable(shared, pair, rows).await?;
    let (accepts, voucher) = {
        let mut state = pair.state.lock();
        state.booking.clear();
        for (attempt, cost) in accepts {
            state.accept(attempt, cost);
        }
        // Before SYNC nothing may be said; what waits is said right after it.
        if state.up {
            (
                std::mem::take(&mut state.to_accept),
                state.unshown_voucher(),
            )
        } else {
            (Vec::new(), None)
        }
    };
    let accepts_sent = !accepts.is_empty();
    if accepts_sent {
        crate::failpoint::hit("buyer_before_accept");
    }
    let mut messages = Vec::new();
    for batch in accepts.chunks(ATTEMPTS_PER_MESSAGE_MAX) {
        let accept = Accept::sign(batch.to_vec(), &shared.keys.identity);
        messages.push(SessionMessage::Accept(accept));
    }
    messages.extend(voucher);
    super::session::send(pair, &messages).await;
    if accepts_sent {
        crate::failpoint::hit("buyer_after_accept");
    }
    Ok(())
}

/// Commits finals and, when one is due, the next voucher.
async fn make_durable(
    shared: &Shared,
    pair: &Pair,
    finals: Vec<FinalRow>,
) -> Result<(), PaymentError> {
    let (due, channel, newest) = {
        let state = pair.state.lock();
        (state.machine.wanted(), state.channel, state.newest)
    };
    let rows: Vec<Row> = finals.into_iter().map(Row::Final).collect();
    let (Some(cumulative), Some(channel)) = (due, channel) else {
        if !rows.is_empty() {
            shared.ledger.commit(rows).await?;
        }
        return Ok(());
    };
    if !rows.is_empty() {
        shared.ledger.submit(rows).await?;
    }
    let signature = Voucher {
        channel,
        cumulative,
    }
    .sign(&shared.keys.voucher);
    let row = VoucherRow {
        at_ms: shared.clock.now_ms(),
        role: Role::Buy,
        channel,
        cumulative,
        signature: signature.0,
        attempt: newest,
    };
    let durable = shared.ledger.persist_voucher(row).await?;
    let signature = EvmSignature(durable.signature);
    let mut state = pair.state.lock();
    state.machine.signed_up_to(durable.cumulative);
    state.last_voucher = Some((durable.cumulative, signature));
    drop(state);
    crate::failpoint::hit("buyer_voucher_durable");
    Ok(())
}
