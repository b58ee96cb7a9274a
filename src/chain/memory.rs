//! A journal in memory: what a ledger remembers, and failures on demand. For tests, and for
//! commands that leave nothing to remember (a deployment).

use std::collections::BTreeMap;

use futures::future::BoxFuture;
use parking_lot::Mutex;

use super::journal::{Journal, JournalError, OpenIntent, Record, Stage, WatchState};
use super::watcher::Kept;
use crate::types::{EvmAddress, IntentId};

/// Records in the order in which they were stored.
#[derive(Default)]
pub struct MemoryJournal {
    records: Mutex<Vec<Record>>,
    is_failing: Mutex<bool>,
}

impl MemoryJournal {
    /// Everything stored so far.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        self.records.lock().clone()
    }

    /// Lets every store fail from now on, or work again.
    pub fn set_failing(&self, failing: bool) {
        *self.is_failing.lock() = failing;
    }
}

impl Journal for MemoryJournal {
    fn store(&self, records: Vec<Record>) -> BoxFuture<'_, Result<(), JournalError>> {
        let result = if *self.is_failing.lock() {
            Err(JournalError("failing as asked".to_owned()))
        } else {
            self.records.lock().extend(records);
            Ok(())
        };
        Box::pin(std::future::ready(result))
    }

    fn open_intents(
        &self,
        chain_id: u64,
        sender: EvmAddress,
    ) -> BoxFuture<'_, Result<Vec<OpenIntent>, JournalError>> {
        let mut open: BTreeMap<IntentId, OpenIntent> = BTreeMap::new();
        for record in self.records() {
            match record {
                Record::Intent(intent) => {
                    let one = OpenIntent {
                        intent,
                        sent: vec![],
                        last: None,
                    };
                    open.insert(one.intent.id, one);
                }
                Record::Sent(sent) => {
                    if let Some(one) = open.get_mut(&sent.intent) {
                        one.sent.push(sent);
                    }
                }
                Record::Outcome(outcome) if outcome.step.is_last() => {
                    open.remove(&outcome.intent);
                }
                Record::Outcome(outcome) => {
                    if let Some(one) = open.get_mut(&outcome.intent) {
                        one.last = Some(outcome);
                    }
                }
                Record::Event(_) | Record::Cursor(_) => {}
            }
        }
        let ours =
            |one: &OpenIntent| one.intent.chain_id == chain_id && one.intent.sender == sender;
        let open = open.into_values().filter(ours).collect();
        Box::pin(std::future::ready(Ok(open)))
    }

    fn watch_state(
        &self,
        chain_id: u64,
        hub: EvmAddress,
    ) -> BoxFuture<'_, Result<WatchState, JournalError>> {
        let mut base = None;
        let mut seen: Vec<Kept> = vec![];
        let mut channels = vec![];
        for record in self.records() {
            match record {
                Record::Event(event) if event.chain_id == chain_id && event.hub == hub => {
                    let log = event.log;
                    channels.extend(log.event.channel());
                    match event.stage {
                        Stage::Seen => seen.push(Kept {
                            log,
                            is_confirmed: false,
                        }),
                        Stage::Confirmed => {
                            let known = seen.iter_mut().find(|kept| kept.log == log);
                            if let Some(kept) = known {
                                kept.is_confirmed = true;
                            }
                        }
                        Stage::Removed => seen.retain(|kept| kept.log != log),
                    }
                }
                Record::Cursor(cursor) if cursor.chain_id == chain_id && cursor.hub == hub => {
                    base = Some(cursor.block);
                }
                _ => {}
            }
        }
        if let Some(base) = base {
            seen.retain(|kept| kept.log.raw.block.number > base.number);
        }
        let state = WatchState {
            base,
            seen,
            channels,
        };
        Box::pin(std::future::ready(Ok(state)))
    }
}
