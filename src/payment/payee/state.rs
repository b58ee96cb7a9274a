//! What the payee knows of one buyer, as a pure state: no lock, no socket, no clock.
//!
//! The channel machine, running attempts, and receipts that wait for their ACCEPT.
//! [`super::PayeePair`] puts it behind a lock, `session` carries its messages; the seeded simulator
//! drives it over a lossy wire with crashes.

use std::collections::{HashMap, HashSet};

use super::on_chain::Hubbed;
use super::write_offs::WriteOffs;
use crate::ledger::{AttemptState, ChannelState, FinalRow, Outcome};
use crate::payment::channel::{Hold, Payee, VoucherError};
use crate::payment::window::WindowSettings;
use crate::protocol::limits::ATTEMPTS_PER_MESSAGE_MAX;
use crate::protocol::session::{SyncAttempt, SyncSeller};
use crate::protocol::{EvmSignature, SignedHead};
use crate::types::{AttemptId, ChannelId, MicroUsd, UnixMs, Usage};

/// Receipts that may wait for one buyer's ACCEPT: a buyer that never accepts costs us this much
/// memory (about 1 KiB each) and no more.
const UNACCEPTED_MAX: usize = 4_096;

/// One buyer as the payee sees it.
pub struct PayeeState {
    pub(super) machine: Payee,
    pub(super) settlements: MicroUsd,
    pub(super) last_voucher: Option<(MicroUsd, EvmSignature)>,
    pub(super) running: HashSet<AttemptId>,
    pub(super) ended: HashMap<AttemptId, Ended>,
    /// The channel as it is on a chain; none in credit mode.
    pub(super) on_chain: Option<Hubbed>,
    /// Claimed by receipts and not accepted, on this channel and on the buyer's earlier ones.
    pub(super) write_offs: WriteOffs,
}

/// An attempt that ended here and whose cost the buyer has not accepted yet.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The signed head (`SignedHead::bytes`).
    pub signed_head: Vec<u8>,
    /// The receipt (`SignedReceipt::bytes`); `None` after a crash before there was one.
    pub receipt: Option<Vec<u8>>,
    /// The receipt's cost, or what is known to be delivered.
    pub cost: MicroUsd,
    /// The upstream's HTTP status.
    pub status: u16,
    /// Token parts of the receipt.
    pub usage: Option<Usage>,
    /// Own count of the input.
    pub own_input: Option<u64>,
    /// Own count of the output.
    pub own_output: Option<u64>,
    /// The model as the upstream named it.
    pub model_served: String,
    /// Upstream's time to first token, ms.
    pub ttft_ms: Option<u64>,
    /// From admission to the end, ms.
    pub total_ms: u64,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

impl Ended {
    /// An attempt that an earlier life left without an ACCEPT.
    fn of_earlier_life(attempt: AttemptState) -> Self {
        let delivered = attempt.delivered;
        let row = delivered.as_ref();
        Self {
            signed_head: attempt.open.signed_head,
            cost: row.map_or(MicroUsd::ZERO, |d| d.cost),
            status: row.map_or(0, |d| d.status),
            usage: row.and_then(|d| d.usage),
            own_input: row.and_then(|d| d.own_input),
            own_output: row.and_then(|d| d.own_output),
            receipt: delivered.and_then(|d| d.receipt),
            model_served: attempt.open.model.to_string(),
            ttft_ms: None,
            total_ms: 0,
            error: Some("settled_after_interruption".to_owned()),
        }
    }

    /// The most that an ACCEPT can book: the receipt's cost, or after a crash without one what the
    /// buyer's order allowed.
    #[must_use]
    pub fn most(&self) -> MicroUsd {
        if self.receipt.is_some() {
            return self.cost;
        }
        let head = SignedHead::decode(&self.signed_head.clone().into());
        head.map_or(self.cost, |signed| signed.head.max_cost)
    }

    /// The final row once `billed` is agreed.
    #[must_use]
    pub fn into_final(self, attempt: AttemptId, billed: MicroUsd, at_ms: UnixMs) -> FinalRow {
        FinalRow {
            at_ms,
            attempt_id: attempt,
            outcome: if billed == MicroUsd::ZERO {
                Outcome::Failed
            } else {
                Outcome::Accepted
            },
            status: self.status,
            billed,
            model_served: self.model_served,
            usage: self.usage,
            own_input: self.own_input,
            own_output: self.own_output,
            ttft_ms: self.ttft_ms,
            total_ms: self.total_ms,
            disputed: billed < self.cost,
            receipt: self.receipt,
            error: self.error,
        }
    }
}

/// Why a request is not admitted now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAdmitted {
    /// Too many receipts wait for this buyer's ACCEPT.
    Unaccepted,
    /// This buyer refuses to accept more than honest counting differs.
    WrittenOff,
    /// The channel ends.
    Ending,
    /// The credit is used up, or a voucher or a confirmation must come first.
    Held(Hold),
}

/// What an ACCEPT changed, for the credit that all buyers share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The claim that no longer waits.
    pub claim: MicroUsd,
    /// What is owed for it from now on.
    pub owed: MicroUsd,
}

impl PayeeState {
    /// A buyer that has just opened its channel.
    #[must_use]
    pub fn new(windows: WindowSettings, deposit: MicroUsd) -> Self {
        let zero = MicroUsd::ZERO;
        Self {
            machine: Payee::new(windows, deposit, zero, zero),
            settlements: zero,
            last_voucher: None,
            running: HashSet::new(),
            ended: HashMap::new(),
            on_chain: None,
            write_offs: WriteOffs::default(),
        }
    }

    /// What an earlier life left in the ledger.
    #[must_use]
    pub fn restore(windows: WindowSettings, deposit: MicroUsd, channel: ChannelState) -> Self {
        let voucher = channel.voucher.as_ref();
        let held = voucher.map_or(MicroUsd::ZERO, |v| v.cumulative);
        let mut state = Self {
            machine: Payee::new(windows, deposit, held, channel.accepted_sum),
            settlements: channel.settlements_sum,
            last_voucher: voucher.map(|v| (v.cumulative, EvmSignature(v.signature))),
            ..Self::new(windows, deposit)
        };
        for attempt in channel.unfinished {
            let id = attempt.open.attempt_id;
            let ended = Ended::of_earlier_life(attempt);
            state.machine.restore_attempt(id, ended.cost);
            state.ended.insert(id, ended);
        }
        state
    }

    /// The channel machine.
    #[must_use]
    pub const fn machine(&self) -> &Payee {
        &self.machine
    }
    /// Attempts whose ACCEPT is missing.
    #[must_use]
    pub fn ended_count(&self) -> usize {
        self.ended.len()
    }
    /// True while the ACCEPT for an ended attempt is missing.
    #[must_use]
    pub fn awaits(&self, attempt: &AttemptId) -> bool {
        self.ended.contains_key(attempt)
    }
    /// Σ claims that wait for an ACCEPT.
    pub(super) fn claims(&self) -> MicroUsd {
        self.ended.values().map(|ended| ended.cost).sum()
    }
    /// True while the attempt runs here or waits for its ACCEPT.
    #[must_use]
    pub fn knows(&self, attempt: &AttemptId) -> bool {
        self.running.contains(attempt) || self.ended.contains_key(attempt)
    }

    /// True once this buyer left more unaccepted than honest counting differs.
    #[must_use]
    pub fn refuses(&self, now_ms: UnixMs) -> bool {
        self.write_offs.now(now_ms) > self.machine.write_off_limit()
    }

    /// Admits an attempt.
    ///
    /// # Errors
    /// Why not now; nothing has changed then.
    pub fn admit(
        &mut self,
        attempt: AttemptId,
        prefill: MicroUsd,
        window: MicroUsd,
        now_ms: UnixMs,
    ) -> Result<(), NotAdmitted> {
        if self.on_chain.as_ref().is_some_and(|one| one.ending) {
            return Err(NotAdmitted::Ending);
        }
        if self.ended.len() >= UNACCEPTED_MAX {
            return Err(NotAdmitted::Unaccepted);
        }
        if self.refuses(now_ms) {
            return Err(NotAdmitted::WrittenOff);
        }
        self.machine
            .admit(attempt, prefill, window)
            .map_err(NotAdmitted::Held)?;
        self.running.insert(attempt);
        if let Some(on_chain) = &mut self.on_chain {
            on_chain.used_ms = now_ms;
        }
        Ok(())
    }
    /// RESP_HEAD goes out with the meter at `running`.
    pub fn start(&mut self, attempt: &AttemptId, running: MicroUsd) {
        self.machine.start(attempt, running);
    }
    /// Delivers up to meter `running` if the window allows.
    ///
    /// # Errors
    /// The voucher it takes, or that none would do.
    pub fn deliver(&mut self, attempt: &AttemptId, running: MicroUsd) -> Result<(), Hold> {
        self.machine.deliver(attempt, running)
    }
    /// Whether a voucher is worth storing: above the highest one. A new one must be within the
    /// deposit; one that SYNC shows may be of a time when the deposit was higher, and refusing the
    /// session for it would leave both sides without a way to agree.
    ///
    /// # Errors
    /// When it is new and above the deposit.
    pub fn wants(&self, cumulative: MicroUsd, shown_by_sync: bool) -> Result<bool, VoucherError> {
        let deposit = self.machine.deposit();
        let is_higher = cumulative > self.machine.promised();
        if is_higher && cumulative > deposit && !shown_by_sync {
            return Err(VoucherError::AboveDeposit(cumulative, deposit));
        }
        Ok(is_higher)
    }
    /// A durable voucher raises A, as far as the deposit covers it. Says whether it is the highest.
    pub fn credit(&mut self, cumulative: MicroUsd, signature: EvmSignature) -> bool {
        let rose = self.machine.credit_earlier(cumulative);
        if rose {
            self.last_voucher = Some((cumulative, signature));
        }
        if let Some(on_chain) = &mut self.on_chain {
            on_chain.keep(cumulative, signature);
        }
        if let Some(on_chain) = &mut self.on_chain
            && cumulative > on_chain.on.view.settled
        {
            on_chain.dirty_since_ms.get_or_insert(on_chain.used_ms);
        }
        rose
    }
    /// The attempt failed and costs nothing.
    pub fn drop_attempt(&mut self, attempt: &AttemptId) {
        self.running.remove(attempt);
        self.machine.settle(attempt, MicroUsd::ZERO);
    }
    /// The attempt ended with a receipt; it is repeated until it is accepted. Until then the claim
    /// counts as delivered where it is above the meter (hidden reasoning), or a buyer that never
    /// accepts would get that for nothing, request after request.
    pub fn end(&mut self, attempt: AttemptId, ended: Ended) {
        self.running.remove(&attempt);
        self.machine.start(&attempt, ended.cost);
        self.ended.insert(attempt, ended);
    }

    /// The final rows of accepted costs; what does not wait for an ACCEPT is only acknowledged.
    #[must_use]
    pub fn finals_of(&self, items: &[(AttemptId, MicroUsd)], now_ms: UnixMs) -> Vec<FinalRow> {
        let mut seen = HashSet::new();
        let waiting = items
            .iter()
            .filter(|(attempt, _)| seen.insert(*attempt))
            .filter_map(|(attempt, cost)| {
                let ended = self.ended.get(attempt)?.clone();
                let billed = ended.most().min(*cost);
                Some(ended.into_final(*attempt, billed, now_ms))
            });
        waiting.collect()
    }
    /// The final row of an ACCEPT is durable.
    pub fn accepted(&mut self, attempt: &AttemptId, billed: MicroUsd, now_ms: UnixMs) -> Accepted {
        let zero = MicroUsd::ZERO;
        let claim = self.ended.remove(attempt).map_or(zero, |ended| ended.cost);
        let refused = claim.saturating_sub(billed);
        self.write_offs.add(refused, now_ms);
        let was_live = self.machine.settle(attempt, billed);
        let owed = if was_live { billed } else { zero };
        Accepted { claim, owed }
    }

    /// What waits for an ACCEPT, as SYNC lists it.
    #[must_use]
    pub fn waiting(&self) -> Vec<SyncAttempt> {
        let list = self.ended.iter().map(|(attempt, ended)| SyncAttempt {
            attempt: *attempt,
            receipt: ended.receipt.clone(),
            signed_head: Vec::new(),
        });
        list.collect()
    }
    /// What is shown again from time to time: receipts, and attempts that a crash left without one.
    #[must_use]
    pub fn repeats(&self) -> (Vec<Vec<u8>>, Vec<SyncAttempt>) {
        let mut lost = self.waiting();
        lost.truncate(ATTEMPTS_PER_MESSAGE_MAX);
        let receipts = lost.iter_mut().filter_map(|item| item.receipt.take());
        let receipts = receipts.collect();
        lost.retain(|item| {
            let ended = self.ended.get(&item.attempt);
            ended.is_some_and(|ended| ended.receipt.is_none())
        });
        (receipts, lost)
    }
    /// SYNC with these attempts.
    #[must_use]
    pub fn sync(
        &self,
        channel: ChannelId,
        open: Vec<SyncAttempt>,
        unknown: Vec<AttemptId>,
    ) -> SyncSeller {
        SyncSeller {
            channel,
            deposit: self.machine.deposit(),
            settled: self.settlements,
            voucher: self.last_voucher,
            accepted: {
                let book = self.machine.book();
                book.base().saturating_add(book.settled())
            },
            open,
            unknown,
        }
    }
    /// A payment was booked; gives the deposit that follows.
    pub fn add_settlement(&mut self, amount: MicroUsd) -> MicroUsd {
        self.settlements = self.settlements.saturating_add(amount);
        let deposit = self.machine.deposit().saturating_add(amount);
        self.machine.set_deposit(deposit);
        deposit
    }
}

/// True when nothing is owed for an attempt that the buyer asks about and [`PayeeState`] does not
/// know: no ledger row says that it cost anything.
#[must_use]
pub fn is_unknown(booked: Option<&AttemptState>) -> bool {
    let billed = booked
        .and_then(|attempt| attempt.final_row.as_ref())
        .map_or(MicroUsd::ZERO, |row| row.billed);
    billed == MicroUsd::ZERO
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regression_a_claim_above_the_meter_counts_until_it_is_accepted() {
        let mut state = PayeeState::new(WindowSettings::default(), MicroUsd(1_000_000));
        let (first, second) = (AttemptId([1; 16]), AttemptId([2; 16]));
        let window = MicroUsd(500);
        state.admit(first, MicroUsd(10), window, 1).unwrap();
        state.start(&first, MicroUsd(10));
        let ended = Ended {
            signed_head: Vec::new(),
            receipt: Some(Vec::new()),
            cost: MicroUsd(20_000),
            status: 200,
            usage: None,
            own_input: None,
            own_output: None,
            model_served: String::new(),
            ttft_ms: None,
            total_ms: 0,
            error: None,
        };
        state.end(first, ended);
        let held = state.admit(second, MicroUsd(10), window, 1);
        assert!(
            matches!(held, Err(NotAdmitted::Held(Hold::NeedVoucher(_)))),
            "{held:?}"
        );
        state.accepted(&first, MicroUsd(100), 1);
        assert_eq!(state.admit(second, MicroUsd(10), window, 1), Ok(()));
    }

    #[test]
    fn regression_a_voucher_of_an_earlier_higher_deposit_ends_no_session() {
        let mut state = PayeeState::new(WindowSettings::default(), MicroUsd(500));
        let (voucher, signature) = (MicroUsd(800), EvmSignature([0; 65]));
        assert!(state.wants(voucher, false).is_err(), "a new one is refused");
        assert_eq!(state.wants(voucher, true), Ok(true), "SYNC may show it");
        assert!(state.credit(voucher, signature));
        assert_eq!(
            state.machine().held(),
            MicroUsd(500),
            "it counts as far as the deposit"
        );
        assert_eq!(state.wants(voucher, true), Ok(false), "it is kept once");
        state.add_settlement(MicroUsd(1_000));
        assert_eq!(
            state.machine().held(),
            voucher,
            "it counts in full under a higher one"
        );
    }
}
