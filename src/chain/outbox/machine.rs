//! The outbox's rules without I/O: what to sign, send again, bump, and what became of it.
//!
//! # Invariants
//! - A nonce belongs to one intent for ever; every signed form of it carries that nonce, so an
//!   intent is executed at most once, whatever is sent how often.
//! - At most one pending intent per channel.
//! - Nothing is dropped before its block, or that of the transaction that took its nonce, is final.
//! - Whoever drives it stores what [`Action::Store`] and [`Outbox::signed`] give before it broadcasts.
//!
//! The caller is the driver beside this file, and the property tests.

use std::collections::BTreeMap;

use super::fees::Offer;
use super::pending::{Mined, Pending, mined_of};
use crate::chain::journal::{Intent, OpenIntent, Outcome, Purpose, Sent};
use crate::chain::transaction::{Signed, Unsigned};
use crate::chain::{Fees, Receipt, SendRefusal};
use crate::types::{ChannelId, EvmAddress, Hash32, IntentId, MicroUsd, UnixMs};

/// Gas of a transfer of nothing.
const TRANSFER_GAS: u64 = 21_000;

/// How an outbox works.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// The chain.
    pub chain_id: u64,
    /// Whose transactions.
    pub sender: EvmAddress,
    /// Most wei per gas ever offered.
    pub fee_cap: u128,
    /// How long the first in line waits before its fees are raised.
    pub bump_after_ms: u64,
    /// How long a missing nonce may come from somebody else before it is filled.
    pub gap_patience_ms: u64,
    /// Pending intents at most.
    pub pending_max: usize,
}

/// What is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Names it.
    pub id: IntentId,
    /// The contract; none makes one.
    pub to: Option<EvmAddress>,
    /// Function and arguments.
    pub data: Vec<u8>,
    /// Wei.
    pub value: u128,
    /// Most gas it may use.
    pub gas_limit: u64,
    /// What for.
    pub purpose: Purpose,
    /// The channel it changes, if it is one.
    pub channel: Option<ChannelId>,
    /// What it gains.
    pub gain: MicroUsd,
}

/// Why nothing more is sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Busy {
    /// The channel has a pending intent; wait for its outcome.
    #[error("a transaction for this channel is under way")]
    Channel(IntentId),
    /// Too many are pending.
    #[error("{0} transactions are under way, no more before one is final")]
    Full(usize),
}

/// What the chain shows at one moment.
#[derive(Clone, Debug)]
pub struct View {
    /// Transactions of the sender in blocks.
    pub mined_nonce: u64,
    /// The same up to the final block.
    pub final_nonce: u64,
    /// The same and what waits.
    pub pending_nonce: u64,
    /// The final block's height.
    pub final_block: u64,
    /// What is to be offered.
    pub fees: Fees,
    /// Answers to [`Outbox::wanted_receipts`].
    pub receipts: BTreeMap<Hash32, Option<Receipt>>,
}

/// What to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Remember it.
    Store(Outcome),
    /// Sign the transaction, give it to [`Outbox::signed`], remember that, then broadcast.
    Sign {
        /// Whose.
        nonce: u64,
        /// At which fees.
        offer: Offer,
    },
    /// Hand it to the chain, and tell [`Outbox::broadcast`] how it went.
    Broadcast {
        /// Whose.
        nonce: u64,
        /// The bytes.
        raw: Vec<u8>,
    },
    /// The account's next nonce is missing: remember this intent, then [`Outbox::admit`] it.
    Fill(Intent),
}

/// The pending intents of one sender on one chain.
#[derive(Debug)]
pub struct Outbox {
    rules: Rules,
    pending: BTreeMap<u64, Pending>,
    /// No nonce below this is used again, whatever a late node says.
    nonce_least: u64,
    gap: Option<(u64, UnixMs)>,
}

impl Outbox {
    /// Takes up what a process before left; everything is handed over again.
    #[must_use]
    pub fn restore(rules: Rules, open: Vec<OpenIntent>) -> Self {
        let mut outbox = Self {
            rules,
            pending: BTreeMap::new(),
            nonce_least: 0,
            gap: None,
        };
        for one in open {
            let mined = one.last.as_ref().and_then(mined_of);
            outbox.insert(one.intent, one.sent, mined);
        }
        outbox
    }

    /// The number of intents under way.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// True when nothing is under way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Whether another intent may begin.
    ///
    /// # Errors
    /// When the channel has one under way, or too many are.
    pub fn may_begin(&self, channel: Option<ChannelId>) -> Result<(), Busy> {
        let same = |one: &&Pending| channel.is_some() && one.intent.channel == channel;
        if let Some(other) = self.pending.values().find(same) {
            return Err(Busy::Channel(other.intent.id));
        }
        if self.pending.len() >= self.rules.pending_max {
            return Err(Busy::Full(self.pending.len()));
        }
        Ok(())
    }

    /// Gives `wanted` a nonce. Store the intent, then [`Self::admit`] it.
    ///
    /// # Errors
    /// As [`Self::may_begin`].
    pub fn begin(
        &self,
        wanted: Wanted,
        pending_nonce: u64,
        now_ms: UnixMs,
    ) -> Result<Intent, Busy> {
        self.may_begin(wanted.channel)?;
        let after_ours = self
            .pending
            .last_key_value()
            .map_or(0, |(nonce, _)| nonce + 1);
        let nonce = pending_nonce.max(after_ours).max(self.nonce_least);
        Ok(Intent {
            at_ms: now_ms,
            id: wanted.id,
            chain_id: self.rules.chain_id,
            sender: self.rules.sender,
            nonce,
            to: wanted.to,
            data: wanted.data,
            value: wanted.value,
            gas_limit: wanted.gas_limit,
            purpose: wanted.purpose,
            channel: wanted.channel,
            gain: wanted.gain,
        })
    }

    /// Takes a stored intent.
    pub fn admit(&mut self, intent: Intent) {
        self.insert(intent, vec![], None);
    }

    fn insert(&mut self, intent: Intent, sent: Vec<Sent>, mined: Option<Mined>) {
        self.nonce_least = self.nonce_least.max(intent.nonce + 1);
        let one = Pending {
            sent,
            mined,
            broadcast_ms: None,
            must_bump: false,
            displaced_polls: 0,
            intent,
        };
        self.pending.insert(one.intent.nonce, one);
    }

    /// The transactions whose receipts the next view must answer.
    #[must_use]
    pub fn wanted_receipts(&self) -> Vec<Hash32> {
        let sent = self.pending.values().flat_map(|one| &one.sent);
        sent.map(|sent| sent.tx).collect()
    }

    /// True when the chain counts a transaction of which none of ours has a receipt: then
    /// [`View::final_nonce`] decides, else it is not looked at.
    #[must_use]
    pub fn has_doubts(
        &self,
        mined_nonce: u64,
        receipts: &BTreeMap<Hash32, Option<Receipt>>,
    ) -> bool {
        let is_mined = |sent: &Sent| matches!(receipts.get(&sent.tx), Some(Some(_)));
        let mut counted = self.pending.range(..mined_nonce);
        counted.any(|(_, one)| !one.sent.iter().any(is_mined))
    }

    /// The fields to sign for `nonce` at `offer`.
    #[must_use]
    pub fn unsigned(&self, nonce: u64, offer: Offer) -> Option<Unsigned> {
        let intent = &self.pending.get(&nonce)?.intent;
        Some(Unsigned {
            chain_id: intent.chain_id,
            nonce,
            to: intent.to,
            value: intent.value,
            data: intent.data.clone(),
            gas_limit: intent.gas_limit,
            max_fee: offer.max_fee,
            max_priority_fee: offer.max_priority_fee,
        })
    }

    /// Notes a signed form. Store what is returned before it is broadcast.
    pub fn signed(
        &mut self,
        nonce: u64,
        offer: Offer,
        signed: Signed,
        now_ms: UnixMs,
    ) -> Option<Sent> {
        let one = self.pending.get_mut(&nonce)?;
        let sent = Sent {
            at_ms: now_ms,
            intent: one.intent.id,
            tx: signed.hash,
            max_fee: offer.max_fee,
            max_priority_fee: offer.max_priority_fee,
            raw: signed.raw,
        };
        one.sent.push(sent.clone());
        one.broadcast_ms = None;
        one.must_bump = false;
        Some(sent)
    }

    /// Notes how handing it over went; errors of the network are not told, so it is tried again.
    pub fn broadcast(&mut self, nonce: u64, result: Result<(), SendRefusal>, now_ms: UnixMs) {
        let Some(one) = self.pending.get_mut(&nonce) else {
            return;
        };
        one.broadcast_ms = Some(now_ms);
        one.must_bump = match result {
            Err(SendRefusal::Underpriced | SendRefusal::FeeTooLow) => true,
            // What is to be known of these shows in receipts and counts; funds may come.
            Ok(())
            | Err(
                SendRefusal::NonceTooLow
                | SendRefusal::AlreadyKnown
                | SendRefusal::InsufficientFunds,
            ) => false,
        };
    }

    /// Compares what is pending with what the chain shows.
    pub fn step(&mut self, view: &View, now_ms: UnixMs) -> Vec<Action> {
        let mut actions = vec![];
        let rules = self.rules;
        let mut finished = vec![];
        for (nonce, one) in &mut self.pending {
            one.look(view, now_ms, &mut actions);
            if one.is_finished(view, now_ms, &mut actions) {
                finished.push(*nonce);
            } else if one.mined.is_none() && *nonce >= view.mined_nonce {
                actions.extend(one.send(*nonce, view, &rules, now_ms));
            }
        }
        for nonce in finished {
            self.pending.remove(&nonce);
        }
        actions.extend(self.fill(view, now_ms));
        actions
    }

    /// Finds a missing nonce: ours wait behind it and nobody else's does.
    fn fill(&mut self, view: &View, now_ms: UnixMs) -> Option<Action> {
        let missing = view.mined_nonce;
        let waits = self
            .pending
            .iter()
            .any(|(nonce, one)| *nonce > missing && one.mined.is_none());
        if !waits || self.pending.contains_key(&missing) || view.pending_nonce > missing {
            self.gap = None;
            return None;
        }
        match self.gap {
            Some((nonce, since)) if nonce == missing => {
                if now_ms.saturating_sub(since) < self.rules.gap_patience_ms {
                    return None;
                }
            }
            _ => {
                self.gap = Some((missing, now_ms));
                return None;
            }
        }
        self.gap = None;
        let rules = &self.rules;
        Some(Action::Fill(Intent {
            at_ms: now_ms,
            id: fill_id(rules.sender, missing, now_ms),
            chain_id: rules.chain_id,
            sender: rules.sender,
            nonce: missing,
            to: Some(rules.sender),
            data: vec![],
            value: 0,
            gas_limit: TRANSFER_GAS,
            purpose: Purpose::FillGap,
            channel: None,
            gain: MicroUsd::ZERO,
        }))
    }
}

/// A name for a filling intent, without chance: the same gap at the same moment is the same intent.
fn fill_id(sender: EvmAddress, nonce: u64, now_ms: UnixMs) -> IntentId {
    let mut bytes = b"souk/fill/v1".to_vec();
    bytes.extend_from_slice(sender.as_bytes());
    bytes.extend_from_slice(&nonce.to_be_bytes());
    bytes.extend_from_slice(&now_ms.to_be_bytes());
    let hash = crate::chain::transaction::keccak(&bytes);
    let first = hash.0.first_chunk::<16>();
    first.map_or_else(IntentId::default, |first| IntentId(*first))
}
