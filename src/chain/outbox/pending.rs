//! One pending intent: in which block it is, whether anything can follow, what to hand over next.

use super::fees::{Offer, first_offer, next_offer};
use super::machine::{Action, Rules, View};
use crate::chain::journal::{Intent, Outcome, Sent, Step};
use crate::chain::{BlockRef, Receipt};
use crate::types::{Hash32, UnixMs};

/// Polls in a row that must show a foreign transaction in the place of ours before it is believed:
/// one node behind a balancer may know the count and not yet the receipt.
const DISPLACED_POLLS: u32 = 3;
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mined {
    pub(super) tx: Hash32,
    pub(super) block: BlockRef,
    pub(super) succeeded: bool,
    pub(super) fee: u128,
}

#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) intent: Intent,
    pub(super) sent: Vec<Sent>,
    pub(super) mined: Option<Mined>,
    /// When the newest form was last handed over; none: at once.
    pub(super) broadcast_ms: Option<UnixMs>,
    /// The newest form was refused as too cheap.
    pub(super) must_bump: bool,
    pub(super) displaced_polls: u32,
}

pub(super) fn mined_of(outcome: &Outcome) -> Option<Mined> {
    match (outcome.step, outcome.tx, outcome.block) {
        (Step::Mined | Step::Reverted, Some(tx), Some(block)) => Some(Mined {
            tx,
            block,
            succeeded: outcome.succeeded,
            fee: outcome.fee,
        }),
        _ => None,
    }
}

impl Pending {
    fn outcome(&self, step: Step, about: Option<Mined>, now_ms: UnixMs) -> Action {
        Action::Store(Outcome {
            at_ms: now_ms,
            intent: self.intent.id,
            step,
            tx: about.map(|mined| mined.tx),
            block: about.map(|mined| mined.block),
            succeeded: about.is_some_and(|mined| mined.succeeded),
            fee: about.map_or(0, |mined| mined.fee),
        })
    }

    /// Notes in which block it is now.
    pub(super) fn look(&mut self, view: &View, now_ms: UnixMs, actions: &mut Vec<Action>) {
        let answers = self
            .sent
            .iter()
            .map(|sent| (sent.tx, view.receipts.get(&sent.tx)));
        let mut now = None;
        let mut all_answered = true;
        for (tx, answer) in answers {
            match answer {
                Some(Some(receipt)) => now = Some(mined_in(tx, receipt)),
                Some(None) => {}
                None => all_answered = false,
            }
        }
        if now == self.mined || (now.is_none() && !all_answered) {
            return;
        }
        if self.mined.is_some() {
            actions.push(self.outcome(Step::Reorged, self.mined, now_ms));
            self.broadcast_ms = None;
        }
        if let Some(mined) = now {
            let step = if mined.succeeded {
                Step::Mined
            } else {
                Step::Reverted
            };
            actions.push(self.outcome(step, now, now_ms));
        }
        self.mined = now;
    }

    /// Whether nothing can follow: its block is final, or its nonce went to somebody else for good.
    pub(super) fn is_finished(
        &mut self,
        view: &View,
        now_ms: UnixMs,
        actions: &mut Vec<Action>,
    ) -> bool {
        if let Some(mined) = self.mined {
            self.displaced_polls = 0;
            if mined.block.number <= view.final_block && view.receipts.contains_key(&mined.tx) {
                actions.push(self.outcome(Step::Confirmed, self.mined, now_ms));
                return true;
            }
            return false;
        }
        let is_answered = |sent: &Sent| view.receipts.get(&sent.tx) == Some(&None);
        if self.intent.nonce < view.final_nonce && self.sent.iter().all(is_answered) {
            self.displaced_polls += 1;
        } else {
            self.displaced_polls = 0;
        }
        if self.displaced_polls >= DISPLACED_POLLS {
            actions.push(self.outcome(Step::Displaced, None, now_ms));
            return true;
        }
        false
    }

    /// What to hand over now, if anything.
    pub(super) fn send(
        &self,
        nonce: u64,
        view: &View,
        rules: &Rules,
        now_ms: UnixMs,
    ) -> Option<Action> {
        let Some(newest) = self.sent.last() else {
            let offer = first_offer(view.fees, rules.fee_cap)?;
            return Some(Action::Sign { nonce, offer });
        };
        let again = Action::Broadcast {
            nonce,
            raw: newest.raw.clone(),
        };
        let Some(since) = self.broadcast_ms else {
            return Some(again);
        };
        let is_late = now_ms.saturating_sub(since) >= rules.bump_after_ms;
        // Only the first in line is held up by its own fees.
        if self.must_bump || (is_late && nonce == view.mined_nonce) {
            let old = Offer {
                max_fee: newest.max_fee,
                max_priority_fee: newest.max_priority_fee,
            };
            if let Some(offer) = next_offer(old, view.fees, rules.fee_cap) {
                return Some(Action::Sign { nonce, offer });
            }
        }
        is_late.then_some(again)
    }
}

fn mined_in(tx: Hash32, receipt: &Receipt) -> Mined {
    Mined {
        tx,
        block: receipt.block,
        succeeded: receipt.succeeded,
        fee: u128::from(receipt.gas_used).saturating_mul(receipt.gas_price),
    }
}
