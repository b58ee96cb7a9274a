//! One seller and the money between us: [`PayerState`] behind a lock, with what wakes its
//! bookkeeper and what spending limits hear. Every method is short and takes the lock once; nothing
//! here awaits a socket.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::doubt::Shown;
use super::state::{PayerState, Verdict};
use crate::ledger::{ChannelState, DeliveredRow, FinalRow, OpenRow};
use crate::network::Carrier;
use crate::payment::PaymentError;
use crate::payment::onchain::{ChannelView, Level, OnChannel};
use crate::payment::window::WindowSettings;
use crate::protocol::{SignedReceipt, Terms};
use crate::types::{AttemptId, ChannelId, MicroUsd, PeerId, UnixMs};

/// Hears of every cost when it is booked or falls into doubt, so that spending limits hold over
/// answers whose receipt is still missing.
pub trait Spending: Send + Sync {
    /// An attempt of an earlier life may still cost `amount`.
    fn inherited(&self, open: &OpenRow, amount: MicroUsd);
    /// An attempt ended without a receipt: it may still cost `amount`.
    fn parked(&self, attempt: &AttemptId, amount: MicroUsd);
    /// An attempt cost `amount`, and no more will follow.
    fn spent(&self, attempt: &AttemptId, amount: MicroUsd);
}

/// One seller and the money between us.
pub struct Pair {
    seller: PeerId,
    spending: Arc<dyn Spending>,
    pub(super) state: Mutex<PayerState>,
    pub(super) changed: Notify,
    pub(super) connecting: tokio::sync::Mutex<()>,
    pub(super) session: tokio::sync::Mutex<Option<super::session::SessionWriter>>,
    /// The connection that carries the session.
    pub(super) carrier: Mutex<Option<Carrier>>,
}

impl Pair {
    pub(super) fn new(
        seller: PeerId,
        windows: WindowSettings,
        spending: Arc<dyn Spending>,
    ) -> Self {
        Self {
            seller,
            spending,
            state: Mutex::new(PayerState::new(windows)),
            changed: Notify::new(),
            connecting: tokio::sync::Mutex::new(()),
            session: tokio::sync::Mutex::new(None),
            carrier: Mutex::new(None),
        }
    }

    /// Takes up what an earlier life left in the ledger.
    pub(super) fn adopt(&self, channel: ChannelState, on_chain: Option<OnChannel>, now_ms: UnixMs) {
        let left = opened(&channel);
        self.state.lock().adopt(channel, on_chain, now_ms);
        self.inherit(&left);
    }
    /// Takes up the attempts of a channel that pays no more.
    pub(super) fn adopt_rest(&self, channel: ChannelState, is_on_chain: bool) {
        let left = opened(&channel);
        self.state.lock().adopt_rest(channel, is_on_chain);
        self.inherit(&left);
    }
    fn inherit(&self, left: &[OpenRow]) {
        let state = self.state.lock();
        for open in left {
            let amount = state.may_cost(&open.attempt_id);
            self.spending.inherited(open, amount);
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
        self.state.lock().channel()
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
    /// True while orders may go over it; a session over a channel that is over carries none.
    #[must_use]
    pub fn takes_orders(&self) -> bool {
        self.state.lock().takes_orders()
    }
    /// True when something waits for a session: attempts in doubt, unacknowledged accepts, a SYNC.
    #[must_use]
    pub fn in_doubt(&self) -> bool {
        self.state.lock().in_doubt()
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
        let on_chain = state.on_chain.as_ref();
        let is_closed = on_chain.is_some_and(|on| on.view.closed > Level::No);
        if state.ending || state.settles || is_closed {
            // Soon another is opened.
            return None;
        }
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
            live: state.live_count(),
            in_doubt: state.doubtful_count(),
            up: state.up,
            ending: state.ending,
            on_chain: state.on_chain.as_ref().map(|on| on.view),
        }
    }
    /// The cumulative voucher signed so far, and what a request with this prefill would need.
    #[must_use]
    pub fn quote(&self, prefill: MicroUsd, window: MicroUsd) -> (MicroUsd, MicroUsd) {
        self.state.lock().quote(prefill, window)
    }

    /// Begins an attempt: its prefill counts as pending. [`Self::opened`] must follow.
    ///
    /// # Errors
    /// When the credit with this seller does not cover it.
    pub fn begin(&self, open: &OpenRow, window: MicroUsd) -> Result<(), PaymentError> {
        let begun = self.state.lock().begin(open, window);
        begun.map_err(|_| PaymentError::CreditExhausted)
    }
    /// The attempt's open row is with the ledger: from now on a voucher may name it, and one is
    /// signed if it is due.
    pub fn opened(&self, attempt: &AttemptId) {
        let mut state = self.state.lock();
        state.opened(attempt);
        self.wake_if_due(&mut state);
    }
    /// RESP_HEAD: the meter stands at `running`.
    pub fn start(&self, attempt: &AttemptId, running: MicroUsd) {
        let mut state = self.state.lock();
        state.start(attempt, running);
        self.wake_if_due(&mut state);
    }
    /// Received and metered up to `running`.
    pub fn receive(&self, attempt: &AttemptId, running: MicroUsd) {
        let mut state = self.state.lock();
        state.receive(attempt, running);
        self.wake_if_due(&mut state);
    }
    /// The seller asked for a voucher: sign what is due at once, and show the highest one again, for
    /// what was sent into a session that broke just then is lost.
    pub fn urge(&self) {
        let mut state = self.state.lock();
        state.urgent = true;
        state.show_again();
        self.changed.notify_one();
    }
    /// Books the cost of an attempt. `accept` says that the seller waits for an ACCEPT: it showed a
    /// receipt above 0, even when 0 is what the buyer books.
    pub fn finish(&self, row: FinalRow, accept: bool) {
        self.spending.spent(&row.attempt_id, row.billed);
        self.book(row, accept);
    }
    /// As [`Self::finish`], for an attempt whose cost is counted already.
    pub(super) fn book(&self, row: FinalRow, accept: bool) {
        self.state.lock().book(row, accept);
        self.changed.notify_one();
    }
    /// The attempt ended without a receipt: SYNC or a repeated RECEIPT settles it later.
    pub fn park(&self, row: &DeliveredRow, model: &str) {
        if self.state.lock().park(row, model) {
            self.spending.parked(&row.attempt_id, row.cost);
        }
    }

    /// Judges an attempt that the seller shows; spending limits hear what a settled one costs.
    pub(super) fn judge(
        &self,
        attempt: &AttemptId,
        shown: Shown,
        receipt: Option<SignedReceipt>,
        now_ms: UnixMs,
    ) -> Verdict {
        let verdict = self.state.lock().judge(attempt, shown, receipt, now_ms);
        if let Verdict::Settled(row) = &verdict {
            self.spending.spent(attempt, row.billed);
        }
        verdict
    }

    /// Sends an ACCEPT (again); remembered until the seller acknowledges it.
    pub(super) fn queue_accept(&self, attempt: AttemptId, cost: MicroUsd) {
        self.state.lock().accept(attempt, cost);
        self.changed.notify_one();
    }

    fn wake_if_due(&self, state: &mut PayerState) {
        if state.machine.wanted().is_some() {
            state.urgent |= state.machine.is_pressed();
            self.changed.notify_one();
        }
    }
}

/// What began in a channel and has no end.
fn opened(channel: &ChannelState) -> Vec<OpenRow> {
    let unfinished = channel.unfinished.iter();
    unfinished.map(|attempt| attempt.open.clone()).collect()
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
    /// Its end was asked for.
    pub ending: bool,
    /// What the chain shows; none in credit mode.
    pub on_chain: Option<ChannelView>,
}

impl PairSnapshot {
    /// Every word of [`Self::state`].
    pub const STATES: [&str; 5] = ["open", "disconnected", "opening", "closing", "closed"];

    /// One word for people: what the chain shows, or whether the session stands.
    #[must_use]
    pub fn state(&self) -> &'static str {
        let view = self.on_chain.unwrap_or_default();
        if self.on_chain.is_none() {
            return if self.up { "open" } else { "disconnected" };
        }
        if view.closed > Level::No {
            "closed"
        } else if self.ending || view.closing > Level::No {
            "closing"
        } else if view.opened == Level::No {
            "opening"
        } else {
            "open"
        }
    }
}

#[cfg(test)]
#[path = "pair_tests.rs"]
mod tests;
