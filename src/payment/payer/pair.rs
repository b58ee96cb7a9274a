//! One seller as the payer sees it: the channel machine, what is in doubt, and what waits to be
//! booked or sent. Every method is short and takes the lock once; nothing here awaits a socket.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::doubt::{Known, Shown, accepted_cost};
use crate::ledger::{ChannelState, DeliveredRow, FinalRow, OpenRow, Outcome};
use crate::payment::PaymentError;
use crate::payment::channel::Payer;
use crate::payment::window::WindowSettings;
use crate::protocol::limits::ATTEMPTS_PER_MESSAGE_MAX;
use crate::protocol::session::SyncBuyer;
use crate::protocol::{EvmSignature, SessionMessage, SignedReceipt, Terms};
use crate::types::{AttemptId, ChannelId, MicroUsd, PeerId, UnixMs};

/// Accepts remembered until the seller acknowledges them; older ones come back by SYNC.
const UNACKED_MAX: usize = 4_096;

/// After a restart the sellers paid within this time are told what was booked.
const RECENT_MS: u64 = 7 * 24 * 60 * 60 * 1_000;

/// Hears of every cost when it is booked or falls into doubt, so that spending limits hold over
/// answers whose receipt is still missing.
pub trait Spending: Send + Sync {
    /// `amount` counts as spent from now on.
    fn spent(&self, amount: MicroUsd);
    /// `amount` of what was counted turned out not to be owed.
    fn returned(&self, amount: MicroUsd);
}

/// One seller and the money between us.
pub struct Pair {
    seller: PeerId,
    windows: WindowSettings,
    spending: Arc<dyn Spending>,
    pub(super) state: Mutex<State>,
    pub(super) changed: Notify,
    pub(super) connecting: tokio::sync::Mutex<()>,
    pub(super) session: tokio::sync::Mutex<Option<super::session::SessionWriter>>,
}

pub(super) struct State {
    pub machine: Payer,
    pub channel: Option<ChannelId>,
    pub epoch: u64,
    pub terms: Option<Terms>,
    pub settlements: MicroUsd,
    pub up: bool,
    /// Rises with every session, so that an old one's end does not end the next.
    pub generation: u64,
    /// The seller may wait for something since the last session: a SYNC is due.
    pub unsynced: bool,
    /// Seller's clock minus ours, ms.
    pub clock_offset_ms: i64,
    pub last_voucher: Option<(MicroUsd, EvmSignature)>,
    /// The highest voucher that this session has shown.
    pub shown: MicroUsd,
    /// Attempts that run in this process.
    pub live: HashMap<AttemptId, Live>,
    /// Attempts without a final row that no longer run.
    pub doubtful: HashMap<AttemptId, Doubtful>,
    /// Finals to make durable, with whether an ACCEPT follows.
    pub finals: Vec<(FinalRow, bool)>,
    /// Attempts whose finals are on their way to the disk.
    pub booking: HashSet<AttemptId>,
    /// Accepts sent or to be sent again, until acknowledged.
    pub unacked: HashMap<AttemptId, MicroUsd>,
    /// Accepts to send in the next flush.
    pub to_accept: Vec<(AttemptId, MicroUsd)>,
    /// The newest attempt whose open row is queued: the one a voucher is signed for.
    pub newest: Option<AttemptId>,
    /// The seller asked, or a stream started: do not linger.
    pub urgent: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Live {
    pub prefill: MicroUsd,
    pub max_cost: MicroUsd,
    pub voucher_before: MicroUsd,
    pub window: MicroUsd,
}

#[derive(Clone, Debug)]
pub(super) struct Doubtful {
    pub began: Live,
    pub counted: Option<DeliveredRow>,
    pub model: String,
    pub status: u16,
    /// What spending limits count for it already.
    pub charged: MicroUsd,
}

impl State {
    /// Queues an ACCEPT whose final row is durable.
    pub fn accept(&mut self, attempt: AttemptId, cost: MicroUsd) {
        if self.unacked.len() < UNACKED_MAX {
            self.unacked.insert(attempt, cost);
        }
        self.to_accept.push((attempt, cost));
    }

    /// Takes the queued finals; they stay known until [`State::booking`] is cleared.
    pub fn take_finals(&mut self) -> Vec<(FinalRow, bool)> {
        let finals = std::mem::take(&mut self.finals);
        self.booking
            .extend(finals.iter().map(|(row, _)| row.attempt_id));
        finals
    }

    /// True while the attempt runs or its final row is not durable yet.
    pub fn is_under_way(&self, attempt: &AttemptId) -> bool {
        let queued = |(row, _): &(FinalRow, bool)| row.attempt_id == *attempt;
        self.live.contains_key(attempt)
            || self.booking.contains(attempt)
            || self.finals.iter().any(queued)
    }

    /// The highest voucher, unless this session has shown it; it counts as shown then.
    pub fn unshown_voucher(&mut self) -> Option<SessionMessage> {
        let channel = self.channel?;
        let (cumulative, signature) = self.last_voucher.filter(|(v, _)| *v > self.shown)?;
        self.shown = cumulative;
        Some(SessionMessage::Voucher {
            channel,
            cumulative,
            signature,
        })
    }
}

impl Pair {
    pub(super) fn new(
        seller: PeerId,
        windows: WindowSettings,
        spending: Arc<dyn Spending>,
    ) -> Self {
        let zero = MicroUsd::ZERO;
        Self {
            seller,
            windows,
            spending,
            state: Mutex::new(State {
                machine: Payer::new(windows, zero, zero, zero),
                channel: None,
                epoch: 0,
                terms: None,
                settlements: zero,
                up: false,
                generation: 0,
                unsynced: false,
                clock_offset_ms: 0,
                last_voucher: None,
                shown: zero,
                live: HashMap::new(),
                doubtful: HashMap::new(),
                finals: Vec::new(),
                booking: HashSet::new(),
                unacked: HashMap::new(),
                to_accept: Vec::new(),
                newest: None,
                urgent: false,
            }),
            changed: Notify::new(),
            connecting: tokio::sync::Mutex::new(()),
            session: tokio::sync::Mutex::new(None),
        }
    }

    /// Takes up what an earlier life left in the ledger. A seller that was paid lately may still
    /// wait for an ACCEPT of that life, so it gets a SYNC unasked.
    pub(super) fn adopt(&self, channel: ChannelState, now_ms: UnixMs) {
        let state = &mut *self.state.lock();
        state.unsynced = channel
            .voucher
            .as_ref()
            .is_some_and(|v| now_ms.saturating_sub(v.at_ms) < RECENT_MS);
        let signed = channel
            .voucher
            .as_ref()
            .map_or(MicroUsd::ZERO, |v| v.cumulative);
        state.machine = Payer::new(
            self.windows,
            channel.row.deposit,
            signed,
            channel.accepted_sum,
        );
        state.last_voucher = channel
            .voucher
            .as_ref()
            .map(|v| (v.cumulative, EvmSignature(v.signature)));
        state.channel = Some(channel.row.channel);
        state.epoch = channel.row.epoch;
        state.settlements = channel.settlements_sum;
        for attempt in channel.unfinished {
            let counted = attempt
                .delivered
                .as_ref()
                .map_or(MicroUsd::ZERO, |d| d.cost);
            let id = attempt.open.attempt_id;
            let began = Live {
                prefill: attempt.open.prefill,
                max_cost: attempt.open.max_cost,
                voucher_before: attempt.open.voucher_before,
                window: self.windows.stream(&attempt.open.price),
            };
            if state
                .machine
                .begin(id, MicroUsd::ZERO, MicroUsd::ZERO)
                .is_ok()
            {
                state.machine.start(&id, counted);
            }
            let model = attempt.open.model.to_string();
            let status = attempt.delivered.as_ref().map_or(0, |d| d.status);
            let doubtful = Doubtful {
                began,
                counted: attempt.delivered,
                model,
                status,
                charged: MicroUsd::ZERO,
            };
            state.doubtful.insert(id, doubtful);
        }
    }

    /// The seller.
    #[must_use]
    pub const fn seller(&self) -> &PeerId {
        &self.seller
    }
    /// The channel that pays, once a session was up.
    #[must_use]
    pub fn channel(&self) -> Option<ChannelId> {
        self.state.lock().channel
    }
    /// The seller's terms, once a session was up.
    #[must_use]
    pub fn terms(&self) -> Option<Terms> {
        self.state.lock().terms.clone()
    }
    /// True while the session stream stands.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.state.lock().up
    }
    /// True when something waits for a session: attempts in doubt, unacknowledged accepts, a SYNC.
    #[must_use]
    pub fn in_doubt(&self) -> bool {
        let state = self.state.lock();
        let waits = !state.doubtful.is_empty() || !state.unacked.is_empty();
        // A running stream needs vouchers, so it needs a session too.
        state.unsynced || waits || (!state.up && !state.live.is_empty())
    }
    /// What the buyer tells in SYNC: its highest voucher, and the attempts it asks for.
    pub(super) fn sync(&self, channel: ChannelId) -> SyncBuyer {
        let mut state = self.state.lock();
        state.shown = state.last_voucher.map_or(MicroUsd::ZERO, |(v, _)| v);
        let doubtful = state.doubtful.keys();
        SyncBuyer {
            channel,
            voucher: state.last_voucher,
            open: doubtful.take(ATTEMPTS_PER_MESSAGE_MAX).copied().collect(),
        }
    }
    /// A SYNC for attempts that fell into doubt while the session stood.
    pub(super) fn sync_again(&self) -> Option<SyncBuyer> {
        let state = self.state.lock();
        let due = state.up && !state.doubtful.is_empty();
        let channel = state.channel.filter(|_| due)?;
        drop(state);
        Some(self.sync(channel))
    }
    /// `now_ms` on the seller's clock.
    #[must_use]
    pub fn seller_time(&self, now_ms: UnixMs) -> UnixMs {
        now_ms.saturating_add_signed(self.state.lock().clock_offset_ms)
    }
    /// The seller says its clock shows `seller_ms`.
    pub fn learn_clock(&self, seller_ms: UnixMs, now_ms: UnixMs) {
        let offset = i128::from(seller_ms) - i128::from(now_ms);
        self.state.lock().clock_offset_ms = i64::try_from(offset).unwrap_or(0);
    }
    /// What can still be ordered here; `None` until a session told the deposit.
    #[must_use]
    pub fn headroom(&self) -> Option<MicroUsd> {
        let state = self.state.lock();
        state.terms.is_some().then(|| state.machine.headroom())
    }
    /// A snapshot for `status`: deposit, signed, received, settled, live attempts.
    #[must_use]
    pub fn snapshot(&self) -> PairSnapshot {
        let state = self.state.lock();
        PairSnapshot {
            deposit: state.machine.deposit(),
            signed: state.machine.signed(),
            received: state.machine.book().total(),
            settled: state.machine.book().settled(),
            settlements: state.settlements,
            live: state.live.len(),
            in_doubt: state.doubtful.len(),
            up: state.up,
        }
    }
    /// The cumulative voucher signed so far, and what a request with this prefill would need.
    #[must_use]
    pub fn quote(&self, prefill: MicroUsd, window: MicroUsd) -> (MicroUsd, MicroUsd) {
        let state = self.state.lock();
        let book = state.machine.book();
        let owed = book
            .total()
            .saturating_add(book.pending())
            .saturating_add(prefill);
        (
            state.machine.signed(),
            owed.saturating_sub(book.window().saturating_add(window)),
        )
    }

    /// Begins an attempt: its prefill counts as pending. [`Self::opened`] must follow.
    ///
    /// # Errors
    /// When the credit with this seller does not cover it.
    pub fn begin(&self, open: &OpenRow, window: MicroUsd) -> Result<(), PaymentError> {
        let mut state = self.state.lock();
        state
            .machine
            .begin(open.attempt_id, open.prefill, window)
            .map_err(|_| PaymentError::CreditExhausted)?;
        let live = Live {
            prefill: open.prefill,
            max_cost: open.max_cost,
            voucher_before: open.voucher_before,
            window,
        };
        state.live.insert(open.attempt_id, live);
        Ok(())
    }
    /// The attempt's open row is with the ledger: from now on a voucher may name it, and one is
    /// signed if it is due. A voucher's row must never be durable before the row it names.
    pub fn opened(&self, attempt: &AttemptId) {
        let mut state = self.state.lock();
        state.newest = Some(*attempt);
        self.wake_if_due(&mut state);
    }
    /// RESP_HEAD: the meter stands at `running`.
    pub fn start(&self, attempt: &AttemptId, running: MicroUsd) {
        let mut state = self.state.lock();
        state.machine.start(attempt, running);
        self.wake_if_due(&mut state);
    }
    /// Received and metered up to `running`.
    pub fn receive(&self, attempt: &AttemptId, running: MicroUsd) {
        let mut state = self.state.lock();
        state.machine.receive(attempt, running);
        self.wake_if_due(&mut state);
    }
    /// The seller asked for a voucher: sign what is due at once.
    pub fn urge(&self) {
        let mut state = self.state.lock();
        state.urgent = true;
        self.wake_if_due(&mut state);
    }
    /// Books the cost of an attempt. `accept` says that the seller waits for an ACCEPT: it showed a
    /// receipt above 0, even when 0 is what the buyer books.
    pub fn finish(&self, row: FinalRow, accept: bool) {
        self.spending.spent(row.billed);
        self.book(row, accept);
    }
    /// As [`Self::finish`], for an attempt whose cost is counted already.
    pub(super) fn book(&self, row: FinalRow, accept: bool) {
        let mut state = self.state.lock();
        state.live.remove(&row.attempt_id);
        state.doubtful.remove(&row.attempt_id);
        state.machine.settle(&row.attempt_id, row.billed);
        state.finals.push((row, accept));
        self.changed.notify_one();
    }
    /// The attempt ended without a receipt: SYNC or a repeated RECEIPT settles it later.
    pub fn park(&self, row: &DeliveredRow, model: &str) {
        let mut state = self.state.lock();
        state.machine.receive(&row.attempt_id, row.cost);
        if let Some(began) = state.live.remove(&row.attempt_id) {
            let model = model.to_owned();
            let status = row.status;
            let doubtful = Doubtful {
                began,
                counted: Some(row.clone()),
                model,
                status,
                charged: row.cost,
            };
            self.spending.spent(row.cost);
            state.doubtful.insert(row.attempt_id, doubtful);
        }
    }

    /// Settles an attempt in doubt by what the seller shows. Returns its final row for
    /// [`Self::book`], or `None` when it is not in doubt (running, finished, or never known).
    pub(super) fn resolve(
        &self,
        attempt: &AttemptId,
        shown: Shown,
        receipt: Option<SignedReceipt>,
        now_ms: UnixMs,
    ) -> Option<FinalRow> {
        let mut state = self.state.lock();
        let signed = state.machine.signed();
        let Entry::Occupied(entry) = state.doubtful.entry(*attempt) else {
            return None;
        };
        let doubt = entry.remove();
        let known = doubt.counted.as_ref().map_or_else(
            || Known::Begun {
                promised: signed
                    .saturating_sub(doubt.began.voucher_before)
                    .max(doubt.began.prefill),
                window: doubt.began.window,
                max_cost: doubt.began.max_cost,
            },
            |row| Known::Counted(row.cost),
        );
        let billed = accepted_cost(known, shown);
        self.spending.spent(billed.saturating_sub(doubt.charged));
        self.spending.returned(doubt.charged.saturating_sub(billed));
        Some(FinalRow {
            at_ms: now_ms,
            attempt_id: *attempt,
            outcome: if billed == MicroUsd::ZERO {
                Outcome::Failed
            } else {
                Outcome::Accepted
            },
            status: receipt
                .as_ref()
                .map_or(doubt.status, |signed| signed.receipt.status),
            billed,
            model_served: doubt.model,
            usage: receipt.as_ref().map(|signed| signed.receipt.usage),
            own_input: doubt.counted.as_ref().and_then(|row| row.own_input),
            own_output: doubt.counted.as_ref().and_then(|row| row.own_output),
            ttft_ms: None,
            total_ms: 0,
            disputed: matches!(shown, Shown::Receipt(claim) if claim > billed),
            receipt: receipt.map(|signed| signed.bytes.to_vec()),
            error: Some("settled_after_interruption".to_owned()),
        })
    }

    /// Sends an ACCEPT (again); remembered until the seller acknowledges it.
    pub(super) fn queue_accept(&self, attempt: AttemptId, cost: MicroUsd) {
        self.state.lock().accept(attempt, cost);
        self.changed.notify_one();
    }

    fn wake_if_due(&self, state: &mut State) {
        if state.machine.wanted().is_some() {
            state.urgent |= state.machine.is_pressed();
            self.changed.notify_one();
        }
    }
}

/// A pair for `status` and the dashboard.
#[derive(Clone, Copy, Debug)]
pub struct PairSnapshot {
    /// The most that may be owed in all.
    pub deposit: MicroUsd,
    /// V: promised in all.
    pub signed: MicroUsd,
    /// R: received in all.
    pub received: MicroUsd,
    /// Cost of settled attempts.
    pub settled: MicroUsd,
    /// Paid out of band.
    pub settlements: MicroUsd,
    /// Attempts running now.
    pub live: usize,
    /// Attempts to be settled by the next SYNC.
    pub in_doubt: usize,
    /// Session up.
    pub up: bool,
}

#[cfg(test)]
#[path = "pair_tests.rs"]
mod tests;
