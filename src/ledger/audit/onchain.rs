//! The audit's books about the chain: no intent without its own nonce, at most one under way per
//! channel, nothing signed that was not intended, nothing mined that was not signed (I6); an event
//! is seen, then confirmed or removed, and what was confirmed stays (I7).

use std::collections::{BTreeMap, BTreeSet};

use super::super::decode::{to_cursor, to_event, to_intent, to_outcome, to_sent};
use super::super::onchain::IntentRow;
use super::super::table::Stored;
use super::books::Check;
use super::{AuditReport, SignatureCheck};
use crate::types::{ChannelId, EvmAddress, Hash32, IntentId, Stage, Step};

struct Intended {
    row: IntentRow,
    sent: BTreeSet<Hash32>,
    last: Option<Step>,
}

/// Hub, block and log: what names an event.
type EventKey = (u64, EvmAddress, Hash32, u64);

/// The books about the chain.
#[derive(Default)]
pub(super) struct Onchain {
    open: BTreeMap<IntentId, Intended>,
    finished: BTreeSet<IntentId>,
    channels: BTreeMap<ChannelId, IntentId>,
    nonces: BTreeSet<(u64, EvmAddress, u64)>,
    events: BTreeMap<EventKey, (Stage, [u8; 32])>,
}

impl Onchain {
    /// Enters a `tx_intent` row.
    pub(super) fn intent(
        &mut self,
        row: &Stored,
        signatures: &dyn SignatureCheck,
        report: &mut AuditReport,
    ) -> Check {
        report.transactions += 1;
        let row = to_intent(&row.values)?;
        let id = row.intent;
        let hashed = signatures.intent(&row);
        let is_new_nonce = self.nonces.insert((row.chain_id, row.sender, row.nonce));
        let other = row
            .channel
            .and_then(|channel| self.channels.insert(channel, id));
        let nonce = row.nonce;
        let intended = Intended {
            row,
            sent: BTreeSet::new(),
            last: None,
        };
        if self.finished.contains(&id) || self.open.insert(id, intended).is_some() {
            return Err(format!("transaction {id} is intended twice (I6)"));
        }
        if !is_new_nonce {
            return Err(format!("nonce {nonce} has two intents (I6)"));
        }
        if let Some(other) = other {
            return Err(format!(
                "its channel has transaction {other} under way (I6)"
            ));
        }
        hashed
    }

    /// Enters a `tx_sent` row.
    pub(super) fn sent(
        &mut self,
        row: &Stored,
        signatures: &dyn SignatureCheck,
        report: &mut AuditReport,
    ) -> Check {
        let sent = to_sent(&row.values)?;
        let id = sent.intent;
        let Some(intended) = self.open.get_mut(&id) else {
            return Err(format!(
                "transaction {id} was signed and is not intended (I6)"
            ));
        };
        intended.sent.insert(sent.tx);
        report.signatures += 1;
        signatures.transaction(&intended.row, &sent)
    }

    /// Enters a `tx_outcome` row.
    pub(super) fn outcome(&mut self, row: &Stored) -> Check {
        let outcome = to_outcome(&row.values)?;
        let id = outcome.intent;
        let Some(intended) = self.open.get_mut(&id) else {
            return Err(format!("transaction {id} is not under way (I6)"));
        };
        let before = intended.last.replace(outcome.step);
        let is_known = outcome.tx.is_none_or(|tx| intended.sent.contains(&tx));
        let channel = intended.row.channel;
        if outcome.step.is_last() {
            self.open.remove(&id);
            self.finished.insert(id);
            if let Some(channel) = channel
                && self.channels.get(&channel) == Some(&id)
            {
                self.channels.remove(&channel);
            }
        }
        let was_mined = matches!(before, Some(Step::Mined | Step::Reverted));
        let needs_mined = matches!(outcome.step, Step::Reorged | Step::Confirmed);
        if was_mined != needs_mined {
            let step = outcome.step.as_str();
            return Err(format!("transaction {id} cannot be {step} now (I7)"));
        }
        if !is_known {
            return Err(format!(
                "transaction {id} was mined in a form never signed (I6)"
            ));
        }
        Ok(())
    }

    /// Enters a `chain_event` row.
    pub(super) fn event(&mut self, row: &Stored, report: &mut AuditReport) -> Check {
        report.chain_events += 1;
        let event = to_event(&row.values)?;
        let key = (event.chain_id, event.hub, event.block.1, event.log_index);
        let what = digest(&event.topics, &event.data);
        let before = self.events.get(&key).copied();
        match event.stage {
            Stage::Removed => self.events.remove(&key),
            stage => self.events.insert(key, (stage, what)),
        };
        let name = format!("event {} of block {}", event.log_index, event.block.0);
        if before.is_some_and(|(_, said)| said != what) {
            return Err(format!("{name} says something else than before (I7)"));
        }
        match (before.map(|(stage, _)| stage), event.stage) {
            (None, Stage::Seen) | (Some(Stage::Seen), Stage::Confirmed | Stage::Removed) => Ok(()),
            (Some(Stage::Confirmed), Stage::Removed) => {
                Err(format!("{name} was confirmed, and a reorg removed it (I7)"))
            }
            (_, stage) => Err(format!("{name} cannot be {} now (I7)", stage.as_str())),
        }
    }

    /// Enters a `chain_cursor` row.
    #[allow(clippy::unused_self, reason = "one face for all tables")]
    pub(super) fn cursor(&self, row: &Stored) -> Check {
        to_cursor(&row.values).map(|_| ()).map_err(String::from)
    }
}

fn digest(topics: &[Hash32], data: &[u8]) -> [u8; 32] {
    use sha2::{Digest as _, Sha256};
    let mut hash = Sha256::new();
    for topic in topics {
        hash.update(topic.as_bytes());
    }
    hash.update(data);
    hash.finalize().into()
}
