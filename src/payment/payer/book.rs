//! The bookkeeper of a pair: one task that makes finals and vouchers durable, then sends them.
//!
//! A single task per pair is what keeps vouchers rising and in order. It lingers a moment for
//! ACCEPTs, so that a burst of small requests costs one commit and one signature; a due voucher
//! never lingers.

use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use super::pair::Pair;
use crate::ledger::{FinalRow, LedgerError, Role, Row, VoucherRow};
use crate::payment::PaymentError;
use crate::protocol::limits::ATTEMPTS_PER_MESSAGE_MAX;
use crate::protocol::session::Accept;
use crate::protocol::{EvmSignature, SessionMessage, Voucher};
use crate::types::{AttemptId, MicroUsd};

/// How long ACCEPTs wait for company: short against any client's patience, long against a commit.
const ACCEPT_LINGER: Duration = Duration::from_millis(8);

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
    if let Some(funds) = &shared.funds {
        let costs = finals.iter().map(|(row, _)| row.billed);
        costs
            .filter(|cost| *cost > MicroUsd::ZERO)
            .for_each(|cost| funds.learn_cost(cost));
    }
    let rows: Vec<FinalRow> = finals.into_iter().map(|(row, _)| row).collect();
    make_durable(shared, pair, rows).await?;
    pair.state.lock().booked(accepts);
    let mut accepts_sent = false;
    super::session::send_from(pair, || {
        let (accepts, voucher) = pair.state.lock().take_unsaid();
        accepts_sent = !accepts.is_empty();
        if accepts_sent {
            crate::failpoint::hit("buyer_before_accept");
        }
        let mut messages = Vec::new();
        for batch in accepts.chunks(ATTEMPTS_PER_MESSAGE_MAX) {
            let accept = Accept::sign(batch.to_vec(), &shared.keys.identity);
            messages.push(SessionMessage::Accept(accept));
        }
        messages.extend(voucher);
        messages
    })
    .await;
    super::funding::top_up(shared, pair).await?;
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
    let (due, domain) = {
        let state = pair.state.lock();
        (state.due_voucher(), state.domain())
    };
    let rows: Vec<Row> = finals.into_iter().map(Row::Final).collect();
    let Some((channel, cumulative, attempt)) = due else {
        return book_finals(shared, rows).await;
    };
    if !rows.is_empty() {
        // Behind the voucher's commit at the latest.
        refusal_is_no_end(shared.ledger.submit(rows).await)?;
    }
    let signature = Voucher {
        channel,
        cumulative,
    }
    .sign(domain, &shared.keys.voucher);
    let row = VoucherRow {
        at_ms: shared.clock.now_ms(),
        role: Role::Buy,
        channel,
        cumulative,
        signature: signature.0,
        attempt,
    };
    let durable = shared.ledger.persist_voucher(row).await?;
    let signature = EvmSignature(durable.signature);
    pair.state
        .lock()
        .voucher_durable(&channel, durable.cumulative, signature);
    crate::failpoint::hit("buyer_voucher_durable");
    Ok(())
}

/// Makes finals durable, each for itself when one of them is refused: a row that the ledger cannot
/// take must neither stop the node nor lose its neighbours.
async fn book_finals(shared: &Shared, rows: Vec<Row>) -> Result<(), PaymentError> {
    if rows.is_empty() {
        return Ok(());
    }
    match shared.ledger.commit_soon(rows.clone()).await {
        Err(error) if error.is_refusal() && rows.len() > 1 => {
            for row in rows {
                refusal_is_no_end(shared.ledger.commit_soon(vec![row]).await)?;
            }
            Ok(())
        }
        written => refusal_is_no_end(written),
    }
}

fn refusal_is_no_end(written: Result<(), LedgerError>) -> Result<(), PaymentError> {
    match written {
        Err(error) if error.is_refusal() => {
            tracing::error!(%error, "the ledger refused a final row");
            Ok(())
        }
        written => Ok(written?),
    }
}
