//! The channel as a pure state machine: no I/O, no clock, no async.
//!
//! Both sides keep a [`Book`]: the cost of settled attempts plus the running meter of live ones.
//! The payee's total is D (delivered), the payer's R (received and checked). The payee holds A, the
//! highest durable voucher; the payer V, the highest it signed. With C = P the window of the
//! streams in flight:
//!
//! - the payee sends iff `D + cost(next) − A ≤ C` ([`Payee::room`]), and admits a request whose
//!   prefill is known before the work iff `A ≥ D + Σ prefill before RESP_HEAD − C`;
//! - the payer signs up to `R + max(P, Σ prefill)`, never above the deposit, never less than
//!   before ([`Payer::wanted`]), and signs `R` when it fell behind it.
//!
//! On a chain both books start at the fee for the opening, and the payee delivers no more in all
//! than its ceiling, which rises with what the chain has confirmed ([`super::onchain`]).
//!
//! So the most a hostile side takes is one window plus one request's known-before part. Callers
//! make a voucher durable before [`Payer::signed_up_to`] counts as sent, and before
//! [`Payee::credit`] raises A (I2, I3). Everything here is O(1) per event.

mod book;

pub use book::Book;

use super::window::WindowSettings;
use crate::types::{AttemptId, MicroUsd};

/// A deposit is raised when this much of it, in percent, is used.
const TOP_UP_PERCENT: u64 = 75;

/// Why a payee does not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// A voucher of at least this cumulative would do.
    NeedVoucher(MicroUsd),
    /// No voucher within the deposit would do.
    CreditExhausted,
    /// The chain must confirm more of the deposit first: a ceiling of at least this would do.
    Unconfirmed(MicroUsd),
}

/// Why a voucher was not credited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VoucherError {
    /// Above what the buyer may owe.
    #[error("voucher of {0} USD is above the deposit of {1} USD")]
    AboveDeposit(MicroUsd, MicroUsd),
}

/// The seller's side.
#[derive(Clone, Debug)]
pub struct Payee {
    book: Book,
    deposit: MicroUsd,
    /// The highest voucher, whatever the deposit has become since.
    promised: MicroUsd,
    /// Most that is delivered in all while the chain has not confirmed the deposit; in credit mode
    /// nothing is ever confirmed, and nothing is held back for that.
    ceiling: MicroUsd,
}

impl Payee {
    /// A channel with what is durable about it: the deposit, the highest voucher, the cost of
    /// accepted attempts.
    #[must_use]
    pub fn new(
        settings: WindowSettings,
        deposit: MicroUsd,
        promised: MicroUsd,
        settled: MicroUsd,
    ) -> Self {
        Self {
            book: Book::new(settings, settled),
            deposit,
            promised,
            ceiling: MicroUsd::MAX,
        }
    }
    /// The same on a chain: `base` counts as consumed and as paid, for the chain pays the fee of the
    /// opening out of the deposit by itself; nothing above `ceiling` is delivered yet.
    #[must_use]
    pub fn on_chain(mut self, base: MicroUsd, ceiling: MicroUsd) -> Self {
        self.book.base = base;
        self.promised = self.promised.max(base);
        self.ceiling = ceiling;
        self
    }
    /// The book: D and the live attempts.
    #[must_use]
    pub const fn book(&self) -> &Book {
        &self.book
    }
    /// A: the highest durable voucher, as far as the deposit covers it.
    #[must_use]
    pub fn held(&self) -> MicroUsd {
        self.promised.min(self.deposit)
    }
    /// The highest durable voucher itself; above the deposit when that was lowered since.
    #[must_use]
    pub const fn promised(&self) -> MicroUsd {
        self.promised
    }
    /// What the buyer may owe in all.
    #[must_use]
    pub const fn deposit(&self) -> MicroUsd {
        self.deposit
    }
    /// A settlement was booked or the limit changed.
    pub fn set_deposit(&mut self, deposit: MicroUsd) {
        self.deposit = deposit;
    }
    /// Most that is delivered in all for what the chain has confirmed.
    #[must_use]
    pub const fn ceiling(&self) -> MicroUsd {
        self.ceiling
    }
    /// The chain confirmed more, or took something back.
    pub fn set_ceiling(&mut self, ceiling: MicroUsd) {
        self.ceiling = ceiling;
    }
    /// A channel that this ledger lost: what the buyer signed by `cumulative` counts as delivered,
    /// or the buyer would get it a second time.
    pub fn adopt_lost(&mut self, cumulative: MicroUsd) {
        self.book.base = self.book.base.max(cumulative);
    }

    /// Admits an attempt, or says which voucher it needs first.
    ///
    /// # Errors
    /// [`Hold`]; nothing has changed then.
    pub fn admit(
        &mut self,
        attempt: AttemptId,
        prefill: MicroUsd,
        window: MicroUsd,
    ) -> Result<(), Hold> {
        let owed = self
            .book
            .total()
            .saturating_add(self.book.pending())
            .saturating_add(prefill);
        let free = self.book.settings.pair_cap(self.book.settled);
        let risk = self.book.windows.saturating_add(window).min(free);
        let paid_for = prefill > MicroUsd::ZERO || window > MicroUsd::ZERO;
        if paid_for && (owed > self.deposit || self.deposit == MicroUsd::ZERO) {
            return Err(Hold::CreditExhausted);
        }
        if paid_for && owed > self.ceiling {
            return Err(Hold::Unconfirmed(owed));
        }
        if owed > self.held().saturating_add(risk) {
            return Err(Hold::NeedVoucher(owed.saturating_sub(risk)));
        }
        self.book.begin(attempt, prefill, window);
        Ok(())
    }
    /// Takes up an attempt of an earlier life, with what it delivered then.
    pub fn restore_attempt(&mut self, attempt: AttemptId, delivered: MicroUsd) {
        self.book.begin(attempt, MicroUsd::ZERO, MicroUsd::ZERO);
        self.book.start(&attempt, delivered);
    }
    /// RESP_HEAD goes out with the meter at `running`.
    pub fn start(&mut self, attempt: &AttemptId, running: MicroUsd) {
        self.book.start(attempt, running);
    }
    /// What may still be delivered before the next voucher or confirmation:
    /// `min(A + C, ceiling) − D`.
    #[must_use]
    pub fn room(&self) -> MicroUsd {
        self.held()
            .saturating_add(self.book.window())
            .min(self.ceiling)
            .saturating_sub(self.book.total())
    }
    /// Delivers up to meter `running`, if the window allows.
    ///
    /// # Errors
    /// [`Hold`] with the voucher it takes; nothing has changed then.
    pub fn deliver(&mut self, attempt: &AttemptId, running: MicroUsd) -> Result<(), Hold> {
        let more = running.saturating_sub(self.book.running_of(attempt));
        if more > self.room() {
            let owed = self.book.total().saturating_add(more);
            let need = owed.saturating_sub(self.book.window());
            return Err(if need > self.deposit {
                Hold::CreditExhausted
            } else if owed > self.ceiling {
                Hold::Unconfirmed(owed)
            } else {
                Hold::NeedVoucher(need)
            });
        }
        self.book.meter(attempt, running);
        Ok(())
    }
    /// A durable voucher arrived; stale ones change nothing. Says whether A rose.
    ///
    /// # Errors
    /// When it is above the deposit.
    pub fn credit(&mut self, cumulative: MicroUsd) -> Result<bool, VoucherError> {
        if cumulative > self.deposit {
            return Err(VoucherError::AboveDeposit(cumulative, self.deposit));
        }
        Ok(self.credit_earlier(cumulative))
    }
    /// A durable voucher that may have been signed under an earlier, higher deposit: it is kept,
    /// and counts as far as the deposit covers it. Says whether it is the highest.
    pub fn credit_earlier(&mut self, cumulative: MicroUsd) -> bool {
        let rose = cumulative > self.promised;
        self.promised = self.promised.max(cumulative);
        rose
    }
    /// The attempt's cost is agreed (0: failed or written off). Says whether it was live.
    pub fn settle(&mut self, attempt: &AttemptId, cost: MicroUsd) -> bool {
        self.book.settle(attempt, cost)
    }
    /// What a buyer may leave unaccepted before new requests are refused: one window and 2 % of
    /// what it accepted.
    #[must_use]
    pub fn write_off_limit(&self) -> MicroUsd {
        let settled = self.book.settled;
        self.book
            .settings
            .pair_cap(settled)
            .saturating_add(settled.mul_div_ceil(2, 100))
    }
    /// What the buyer owes beyond its vouchers.
    #[must_use]
    pub fn exposure(&self) -> MicroUsd {
        self.book.total().saturating_sub(self.held())
    }
}

/// The buyer's side.
#[derive(Clone, Debug)]
pub struct Payer {
    book: Book,
    deposit: MicroUsd,
    signed: MicroUsd,
}

impl Payer {
    /// A channel with what is durable about it.
    #[must_use]
    pub fn new(
        settings: WindowSettings,
        deposit: MicroUsd,
        signed: MicroUsd,
        settled: MicroUsd,
    ) -> Self {
        Self {
            book: Book::new(settings, settled),
            deposit,
            signed,
        }
    }
    /// The same on a chain: `base` counts as consumed and as signed.
    #[must_use]
    pub fn on_chain(mut self, base: MicroUsd) -> Self {
        self.book.base = base;
        self.signed = self.signed.max(base);
        self
    }
    /// The book: R and the live attempts.
    #[must_use]
    pub const fn book(&self) -> &Book {
        &self.book
    }
    /// V: the highest voucher signed.
    #[must_use]
    pub const fn signed(&self) -> MicroUsd {
        self.signed
    }
    /// What this buyer may owe in all.
    #[must_use]
    pub const fn deposit(&self) -> MicroUsd {
        self.deposit
    }
    /// The seller said what the deposit is now.
    pub fn set_deposit(&mut self, deposit: MicroUsd) {
        self.deposit = deposit;
    }
    /// What can still be ordered here.
    #[must_use]
    pub fn headroom(&self) -> MicroUsd {
        self.deposit
            .saturating_sub(self.book.total())
            .saturating_sub(self.book.pending())
    }

    /// Begins an attempt; gives the cumulative that the seller will wait for.
    ///
    /// # Errors
    /// [`Hold::CreditExhausted`] when the prefill does not fit what is left.
    pub fn begin(
        &mut self,
        attempt: AttemptId,
        prefill: MicroUsd,
        window: MicroUsd,
    ) -> Result<MicroUsd, Hold> {
        let paid_for = prefill > MicroUsd::ZERO || window > MicroUsd::ZERO;
        if paid_for && prefill >= self.headroom() {
            return Err(Hold::CreditExhausted);
        }
        self.book.begin(attempt, prefill, window);
        let owed = self.book.total().saturating_add(self.book.pending());
        Ok(owed.saturating_sub(self.book.window()))
    }
    /// RESP_HEAD arrived: the meter stands at `running`.
    pub fn start(&mut self, attempt: &AttemptId, running: MicroUsd) {
        self.book.start(attempt, running);
    }
    /// Received and checked up to meter `running`.
    pub fn receive(&mut self, attempt: &AttemptId, running: MicroUsd) {
        self.book.meter(attempt, running);
    }
    /// The attempt's cost is booked. Says whether it was live.
    pub fn settle(&mut self, attempt: &AttemptId, cost: MicroUsd) -> bool {
        self.book.settle(attempt, cost)
    }
    /// The voucher to sign now, if one is due: at most `R + max(P, Σ prefill)`, within the deposit.
    #[must_use]
    pub fn wanted(&self) -> Option<MicroUsd> {
        let received = self.book.total();
        let window = self.book.window();
        let ahead = window.max(self.book.pending());
        let stride = MicroUsd(window.0 / 4);
        let needed = window.saturating_sub(stride);
        let due = if self.book.pending() > window {
            self.book.pending()
        } else {
            needed
        };
        let target = received.saturating_add(ahead).min(self.deposit);
        let behind = self.signed < received.saturating_add(due) || self.signed < received;
        (behind && target > self.signed).then_some(target)
    }
    /// True when a due voucher must not wait for company: half of the window is used up, or a
    /// prefill waits for it.
    #[must_use]
    pub fn is_pressed(&self) -> bool {
        let window = self.book.window();
        let half = MicroUsd(window.0 / 2);
        self.book.pending() > window || self.signed < self.book.total().saturating_add(half)
    }
    /// The seller showed a voucher of ours that this ledger lost: what of it was `accepted` by the
    /// seller's books counts as received and settled, at most all; the rest is still prepayment.
    pub fn adopt(&mut self, cumulative: MicroUsd, accepted: MicroUsd) {
        self.signed = self.signed.max(cumulative);
        let known = self.book.running.saturating_add(self.book.base);
        let lost = cumulative.min(accepted).saturating_sub(known);
        self.book.settled = self.book.settled.max(lost);
    }
    /// A voucher of `cumulative` is durable and about to be sent; V never decreases.
    pub fn signed_up_to(&mut self, cumulative: MicroUsd) {
        self.signed = self.signed.max(cumulative);
    }
    /// True when the channel runs low: three quarters of the deposit are signed or will be by what
    /// is under way, so that the next deposit is there before this one is used up.
    #[must_use]
    pub fn runs_low(&self) -> bool {
        let book = &self.book;
        let needed = book.total().saturating_add(book.pending());
        let used = self.signed.max(needed);
        used >= self.deposit.mul_div_ceil(TOP_UP_PERCENT, 100)
    }
    /// Signed beyond what was received: what a vanishing seller could keep.
    #[must_use]
    pub fn exposure(&self) -> MicroUsd {
        self.signed.saturating_sub(self.book.total())
    }
}

#[cfg(test)]
#[path = "channel_tests.rs"]
mod tests;
