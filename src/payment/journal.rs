//! The ledger as the chain's journal: records to rows and back. Neither side knows the other; this
//! is where both meet. Made by `node` and handed to the watcher and the outbox.

use futures::future::BoxFuture;

use crate::chain::hub::HubLog;
use crate::chain::journal::{
    CursorRecord, EventRecord, Intent, Journal, JournalError, OpenIntent, Outcome, Record, Sent,
    Stage, WatchState,
};
use crate::chain::transaction::keccak;
use crate::chain::watcher::Kept;
use crate::chain::{BlockRef, RawLog};
use crate::ledger::{
    CursorRow, EventRow, IntentRow, IntentState, Ledger, LedgerError, OutcomeRow, Row, SentRow,
};
use crate::types::{EvmAddress, Hash32};

/// A ledger that remembers for the chain.
#[derive(Clone)]
pub struct LedgerJournal(pub Ledger);

impl From<LedgerError> for JournalError {
    fn from(error: LedgerError) -> Self {
        Self(error.to_string())
    }
}

impl Journal for LedgerJournal {
    fn store(&self, records: Vec<Record>) -> BoxFuture<'_, Result<(), JournalError>> {
        Box::pin(async move {
            let rows: Result<Vec<Row>, JournalError> = records.into_iter().map(to_row).collect();
            Ok(self.0.commit(rows?).await?)
        })
    }

    fn open_intents(
        &self,
        chain_id: u64,
        sender: EvmAddress,
    ) -> BoxFuture<'_, Result<Vec<OpenIntent>, JournalError>> {
        Box::pin(async move {
            let states = self.0.open_intents(chain_id, &sender).await?;
            Ok(states.into_iter().map(from_state).collect())
        })
    }

    fn watch_state(
        &self,
        chain_id: u64,
        hub: EvmAddress,
    ) -> BoxFuture<'_, Result<WatchState, JournalError>> {
        Box::pin(async move {
            let cursor = self.0.chain_cursor(chain_id, &hub).await?;
            let base = cursor.map(|row| block(row.block));
            let rows = match base {
                Some(base) => self.0.events_above(chain_id, &hub, base.number).await?,
                // The hub's own deployment has no events, so block 0 loses none.
                None => self.0.events_above(chain_id, &hub, 0).await?,
            };
            let seen: Result<Vec<Kept>, JournalError> = rows.into_iter().map(kept_event).collect();
            Ok(WatchState {
                base,
                seen: seen?,
                channels: self.0.channels_of_hub(chain_id, &hub).await?,
            })
        })
    }
}

fn block((number, hash): (u64, Hash32)) -> BlockRef {
    BlockRef { number, hash }
}

/// Wei as the ledger keeps it; sums above 2^63 (9.2 coins) are no gas and no fee of ours.
fn wei(name: &str, sum: u128) -> Result<u64, JournalError> {
    u64::try_from(sum).map_err(|_| JournalError(format!("{name} of {sum} wei is too large")))
}

fn to_row(record: Record) -> Result<Row, JournalError> {
    Ok(match record {
        Record::Intent(one) => Row::Intent(intent_row(one)?),
        Record::Sent(one) => Row::Sent(SentRow {
            at_ms: one.at_ms,
            intent: one.intent,
            tx: one.tx,
            max_fee: wei("a fee", one.max_fee)?,
            max_priority_fee: wei("a tip", one.max_priority_fee)?,
            raw: one.raw,
        }),
        Record::Outcome(one) => Row::Outcome(OutcomeRow {
            at_ms: one.at_ms,
            intent: one.intent,
            step: one.step,
            tx: one.tx,
            block: one.block.map(|at| (at.number, at.hash)),
            succeeded: one.succeeded,
            // What was paid is a fact: better a sum that is too small than a node that stops.
            fee: u64::try_from(one.fee).unwrap_or(u64::MAX >> 1),
        }),
        Record::Event(one) => Row::Event(event_row(one)),
        Record::Cursor(CursorRecord {
            at_ms,
            chain_id,
            hub,
            block,
        }) => Row::Cursor(CursorRow {
            at_ms,
            chain_id,
            hub,
            block: (block.number, block.hash),
        }),
    })
}

fn intent_row(one: Intent) -> Result<IntentRow, JournalError> {
    Ok(IntentRow {
        at_ms: one.at_ms,
        intent: one.id,
        chain_id: one.chain_id,
        sender: one.sender,
        nonce: one.nonce,
        target: one.to,
        value: wei("a value", one.value)?,
        calldata_hash: keccak(&one.data),
        calldata: one.data,
        gas_limit: one.gas_limit,
        purpose: one.purpose,
        channel: one.channel,
        gain: one.gain,
    })
}

fn event_row(one: EventRecord) -> EventRow {
    EventRow {
        at_ms: one.at_ms,
        chain_id: one.chain_id,
        hub: one.hub,
        stage: one.stage,
        kind: one.log.event.as_str().to_owned(),
        channel: one.log.event.channel(),
        amount: one.log.event.amount(),
        block: (one.log.raw.block.number, one.log.raw.block.hash),
        tx: one.log.raw.tx,
        log_index: one.log.raw.index,
        topics: one.log.raw.topics,
        data: one.log.raw.data,
    }
}

pub(super) fn kept_event(row: EventRow) -> Result<Kept, JournalError> {
    let is_confirmed = row.stage == Stage::Confirmed;
    let raw = RawLog {
        block: block(row.block),
        tx: row.tx,
        index: row.log_index,
        topics: row.topics,
        data: row.data,
    };
    let log = HubLog::decode(raw);
    let log =
        log.ok_or_else(|| JournalError("a stored event is no event of the hub".to_owned()))?;
    Ok(Kept { log, is_confirmed })
}

fn from_state(state: IntentState) -> OpenIntent {
    let IntentState { intent, sent, last } = state;
    let sent = sent.into_iter().map(|row| Sent {
        at_ms: row.at_ms,
        intent: row.intent,
        tx: row.tx,
        max_fee: row.max_fee.into(),
        max_priority_fee: row.max_priority_fee.into(),
        raw: row.raw,
    });
    let last = last.map(|row| Outcome {
        at_ms: row.at_ms,
        intent: row.intent,
        step: row.step,
        tx: row.tx,
        block: row.block.map(block),
        succeeded: row.succeeded,
        fee: row.fee.into(),
    });
    OpenIntent {
        intent: Intent {
            at_ms: intent.at_ms,
            id: intent.intent,
            chain_id: intent.chain_id,
            sender: intent.sender,
            nonce: intent.nonce,
            to: intent.target,
            data: intent.calldata,
            value: intent.value.into(),
            gas_limit: intent.gas_limit,
            purpose: intent.purpose,
            channel: intent.channel,
            gain: intent.gain,
        },
        sent: sent.collect(),
        last,
    }
}
