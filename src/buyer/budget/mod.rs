//! The spending limits: by local day and local month, over everything, a model, a client.
//!
//! [`book`] is the arithmetic; this is the lock around it, the clock, and the [`Reservation`] that an
//! attempt carries from before its head is signed until its cost is booked. What a seller may be
//! promised is held first ([`Reservation::raise`]), so no voucher and no booked cost is ever above a
//! limit, however many requests run. Exact under concurrency: all of it lives behind one lock.

pub mod book;

use std::sync::Arc;

use parking_lot::Mutex;

pub use book::{Limits, Period, Purpose, Scope, Tight};

use book::{Book, HoldId};

use crate::ledger::OpenRow;
use crate::payment::payer::Spending;
use crate::types::day::{local_text, midnight_after, month_after};
pub use crate::types::day::{midnight_before, month_before};
use crate::types::{AttemptId, Clock, MicroUsd};

/// The buyer's budget. Cheap to clone.
#[derive(Clone)]
pub struct Budget {
    inner: Arc<Inner>,
}

struct Inner {
    clock: Arc<dyn Clock>,
    book: Mutex<Book>,
}

/// The limit that does not allow a request, as people are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exceeded {
    /// `daily` or `monthly`, with the model and client that the limit is about.
    pub limit: String,
    /// When it is reset, in local time.
    pub at: String,
    /// The same in seconds from now.
    pub seconds: u64,
}

impl std::fmt::Display for Exceeded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} reached, resets {}", self.limit, self.at)
    }
}

/// Money held for one attempt. When it is dropped, what was not booked is free again, unless the
/// attempt's cost is in doubt.
pub struct Reservation {
    inner: Arc<Inner>,
    id: HoldId,
}

/// What a scope has spent and holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// What the limits are about.
    pub scope: Scope,
    /// The limits.
    pub limits: Limits,
    /// Spent since midnight.
    pub today: MicroUsd,
    /// Spent in this month.
    pub this_month: MicroUsd,
    /// Held for what runs or is in doubt.
    pub held: MicroUsd,
}

impl Budget {
    /// A budget without limits that has spent nothing.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let now_ms = clock.now_ms();
        let book = Book::new(midnight_after(now_ms), month_after(now_ms));
        Self {
            inner: Arc::new(Inner {
                clock,
                book: Mutex::new(book),
            }),
        }
    }

    /// Counts what the ledger has booked for `purpose`: in this day, and in this month.
    pub fn remember(&self, purpose: &Purpose, today: MicroUsd, this_month: MicroUsd) {
        self.inner.book().spend(purpose, today, this_month);
    }

    /// Limits `scope` from now on.
    pub fn limit(&self, scope: &Scope, limits: Limits) {
        self.inner.book().limit(scope, limits);
    }

    /// The limits of `scope`.
    #[must_use]
    pub fn limits(&self, scope: &Scope) -> Limits {
        let all = self.inner.book().limits();
        let found = all.into_iter().find(|(one, _)| one == scope);
        found.map(|(_, limits)| limits).unwrap_or_default()
    }

    /// Every scope that has limits, everything first.
    #[must_use]
    pub fn standings(&self) -> Vec<Standing> {
        let book = self.inner.book();
        let one = |(scope, limits): (Scope, Limits)| {
            let [today, this_month, held] = book.totals(&scope).unwrap_or_default();
            Standing {
                scope,
                limits,
                today,
                this_month,
                held,
            }
        };
        book.limits().into_iter().map(one).collect()
    }

    /// Spent today and held now, over everything.
    #[must_use]
    pub fn totals(&self) -> (MicroUsd, MicroUsd) {
        let totals = self.inner.book().totals(&Scope::ALL);
        let [today, _, held] = totals.unwrap_or_default();
        (today, held)
    }

    /// Whether `amount` could be held now; costs nothing and promises nothing.
    ///
    /// # Errors
    /// The limit that does not allow it.
    pub fn check(&self, purpose: &Purpose, amount: MicroUsd) -> Result<(), Exceeded> {
        let tight = self.inner.book().tightest(purpose);
        match tight.filter(|tight| tight.left < amount) {
            Some(tight) => Err(self.inner.exceeded(&tight)),
            None => Ok(()),
        }
    }

    /// Holds as much of `most` as is left, at least `least`.
    ///
    /// # Errors
    /// The limit that does not allow `least`.
    pub fn reserve(
        &self,
        purpose: &Purpose,
        least: MicroUsd,
        most: MicroUsd,
    ) -> Result<Reservation, Exceeded> {
        let held = self.inner.book().hold(purpose.clone(), least, most);
        let (id, _) = held.map_err(|tight| self.inner.exceeded(&tight))?;
        Ok(Reservation {
            inner: Arc::clone(&self.inner),
            id,
        })
    }
}

impl Reservation {
    /// The attempt that it is for: its cost ends the hold.
    pub fn name(&self, attempt: AttemptId) {
        self.inner.book().name(self.id, attempt);
    }

    /// Holds `amount` in all from now on, if that is more than before. Must be called before
    /// anything is signed for it.
    ///
    /// # Errors
    /// The limit that does not allow it; nothing has changed.
    pub fn raise(&self, amount: MicroUsd) -> Result<(), Exceeded> {
        let raised = self.inner.book().raise(self.id, amount);
        raised.map_err(|tight| self.inner.exceeded(&tight))
    }

    /// The limit that leaves least for this attempt now; none when nothing limits it.
    #[must_use]
    pub fn tightest(&self) -> Option<Exceeded> {
        let tight = self.inner.book().tightest_for(self.id);
        tight.map(|tight| self.inner.exceeded(&tight))
    }

    /// What of `most` the limits would allow now; nothing is held for it.
    #[must_use]
    pub fn could_be(&self, most: MicroUsd) -> MicroUsd {
        self.inner.book().could_be(self.id, most)
    }

    /// What of `cost` may be paid: all of it, unless a limit is used up.
    #[must_use]
    pub fn cover(&self, cost: MicroUsd) -> MicroUsd {
        self.inner.book().cover(self.id, cost)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.inner.book.lock().release(self.id);
    }
}

impl Spending for Budget {
    fn inherited(&self, open: &OpenRow, amount: MicroUsd) {
        let purpose = Purpose {
            model: open.model.clone(),
            client: open.client.clone(),
        };
        self.inner.book().inherit(open.attempt_id, purpose, amount);
    }
    fn parked(&self, attempt: &AttemptId, amount: MicroUsd) {
        self.inner.book().park(attempt, amount);
    }
    fn spent(&self, attempt: &AttemptId, amount: MicroUsd) {
        self.inner.book().settle(attempt, amount);
    }
}

impl Inner {
    /// The book, of the current day and month.
    fn book(&self) -> parking_lot::MutexGuard<'_, Book> {
        let mut book = self.book.lock();
        let now_ms = self.clock.now_ms();
        let (day_ends_ms, month_ends_ms) = book.ends();
        if now_ms >= day_ends_ms {
            book.new_day(midnight_after(now_ms));
        }
        if now_ms >= month_ends_ms {
            book.new_month(month_after(now_ms));
        }
        book
    }

    fn exceeded(&self, tight: &Tight) -> Exceeded {
        let period = match tight.period {
            Period::Day => "daily",
            Period::Month => "monthly",
        };
        let model = tight.scope.model.as_ref();
        let model = model.map_or_else(String::new, |model| format!(" of `{model}`"));
        let client = tight.scope.client.as_ref();
        let client = client.map_or_else(String::new, |client| format!(" of client `{client}`"));
        Exceeded {
            limit: format!("{period} spending limit{model}{client}"),
            at: local_text(tight.ends_ms),
            seconds: tight.ends_ms.saturating_sub(self.clock.now_ms()) / 1_000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ManualClock, ModelId};

    fn budget(now_ms: u64, daily: u64) -> (ManualClock, Budget) {
        let clock = ManualClock::new(now_ms);
        let budget = Budget::new(Arc::new(clock.clone()));
        let limits = Limits {
            daily: Some(MicroUsd(daily)),
            monthly: None,
        };
        budget.limit(&Scope::ALL, limits);
        (clock, budget)
    }

    fn purpose() -> Purpose {
        Purpose {
            model: ModelId::new("m"),
            client: "c".to_owned(),
        }
    }

    #[test]
    fn the_day_ends_and_the_limit_names_its_end() {
        let (clock, budget) = budget(1_700_000_000_000, 100);
        budget.remember(&purpose(), MicroUsd(40), MicroUsd(40));
        let of = |amount| budget.reserve(&purpose(), MicroUsd(amount), MicroUsd(amount));
        let first = of(50).ok().unwrap();
        let exceeded = of(11).err().unwrap();
        assert_eq!(exceeded.limit, "daily spending limit");
        assert!(exceeded.seconds <= 24 * 3_600);
        let attempt = AttemptId::from_slice(&[1; 16]).unwrap();
        first.name(attempt);
        budget.spent(&attempt, MicroUsd(20));
        drop(first);
        assert_eq!(budget.totals(), (MicroUsd(60), MicroUsd::ZERO));
        assert!(of(41).is_err());
        clock.advance(24 * 3_600 * 1_000);
        assert!(of(100).is_ok());
    }

    #[test]
    fn a_monthly_limit_outlasts_the_day_and_names_its_own_end() {
        let now_ms = month_before(1_700_000_000_000);
        let (clock, budget) = budget(now_ms, 50);
        let limits = Limits {
            monthly: Some(MicroUsd(60)),
            ..budget.limits(&Scope::ALL)
        };
        budget.limit(&Scope::ALL, limits);
        budget.remember(&purpose(), MicroUsd(35), MicroUsd(55));
        clock.advance(25 * 3_600 * 1_000);
        assert_eq!(budget.totals().0, MicroUsd::ZERO);
        let exceeded = budget.check(&purpose(), MicroUsd(6)).unwrap_err();
        assert!(exceeded.limit.starts_with("monthly"));
        assert!(exceeded.seconds > 20 * 24 * 3_600);
        assert!(budget.check(&purpose(), MicroUsd(5)).is_ok());
        clock.advance(31 * 24 * 3_600 * 1_000);
        assert!(budget.check(&purpose(), MicroUsd(50)).is_ok());
    }
}
