//! The spending limits: accepted cost plus live reservations, by local day and local month.
//!
//! A reservation belongs to an attempt and is given back when it ends; what was really spent stays,
//! and what is in doubt counts as spent until the seller shows that less is owed.
//! Exact under concurrency: all of it lives behind one lock.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::payment::payer::Spending;
pub use crate::types::day::midnight_before;
use crate::types::day::{local_text, midnight_after, month_after};
use crate::types::{Clock, MicroUsd, UnixMs};

/// The buyer's budget. Cheap to clone.
#[derive(Clone)]
pub struct Budget {
    inner: Arc<Inner>,
}

struct Inner {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

/// The most that may be spent; `None`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// In a local day.
    pub daily: Option<MicroUsd>,
    /// In a local month.
    pub monthly: Option<MicroUsd>,
}

/// When a limit is reset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reset {
    /// `daily` or `monthly`.
    pub period: &'static str,
    /// When, in local time.
    pub at: String,
    /// The same in seconds from now.
    pub seconds: u64,
}

#[derive(Debug)]
struct State {
    limits: Limits,
    reserved: MicroUsd,
    spent_today: MicroUsd,
    day_ends_ms: UnixMs,
    spent_this_month: MicroUsd,
    month_ends_ms: UnixMs,
}

/// Money set aside for one attempt; dropped when it ends.
pub struct Reservation {
    inner: Arc<Inner>,
    amount: MicroUsd,
}

impl Budget {
    /// A budget of `daily` (`None`: no limit), of which `spent_today` is gone.
    #[must_use]
    pub fn new(daily: Option<MicroUsd>, spent_today: MicroUsd, clock: Arc<dyn Clock>) -> Self {
        let now_ms = clock.now_ms();
        let state = State {
            limits: Limits {
                daily,
                monthly: None,
            },
            reserved: MicroUsd::ZERO,
            spent_today,
            day_ends_ms: midnight_after(now_ms),
            spent_this_month: spent_today,
            month_ends_ms: month_after(now_ms),
        };
        Self {
            inner: Arc::new(Inner {
                clock,
                state: Mutex::new(state),
            }),
        }
    }

    /// Replaces the limits. `spent_this_month` is what the ledger has booked in this month; what
    /// was counted here in the meantime stays when it is more.
    pub fn set_limits(&self, limits: Limits, spent_this_month: MicroUsd) {
        let mut state = self.inner.now();
        state.limits = limits;
        state.spent_this_month = state.spent_this_month.max(spent_this_month);
    }

    /// The limits in force.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.inner.now().limits
    }

    /// Sets `amount` aside, or `None` when a limit does not allow it.
    #[must_use]
    pub fn reserve(&self, amount: MicroUsd) -> Option<Reservation> {
        let mut state = self.inner.now();
        if state.left().is_some_and(|(left, _)| amount > left) {
            return None;
        }
        state.reserved = state.reserved.saturating_add(amount);
        drop(state);
        Some(Reservation {
            inner: Arc::clone(&self.inner),
            amount,
        })
    }

    /// Spent today and set aside now.
    #[must_use]
    pub fn totals(&self) -> (MicroUsd, MicroUsd) {
        let state = self.inner.now();
        (state.spent_today, state.reserved)
    }

    /// When the tightest limit is reset.
    #[must_use]
    pub fn reset(&self) -> Reset {
        let state = self.inner.now();
        let ends_ms = state.left().map_or(state.day_ends_ms, |(_, ends)| ends);
        let is_day = ends_ms == state.day_ends_ms;
        drop(state);
        Reset {
            period: if is_day { "daily" } else { "monthly" },
            at: local_text(ends_ms),
            seconds: ends_ms.saturating_sub(self.inner.clock.now_ms()) / 1_000,
        }
    }
}

impl Spending for Budget {
    fn spent(&self, amount: MicroUsd) {
        let mut state = self.inner.now();
        state.spent_today = state.spent_today.saturating_add(amount);
        state.spent_this_month = state.spent_this_month.saturating_add(amount);
    }
    fn returned(&self, amount: MicroUsd) {
        let mut state = self.inner.now();
        state.spent_today = state.spent_today.saturating_sub(amount);
        state.spent_this_month = state.spent_this_month.saturating_sub(amount);
    }
}

impl State {
    /// What the tightest limit still allows, and when it is reset.
    fn left(&self) -> Option<(MicroUsd, UnixMs)> {
        let of = |limit: Option<MicroUsd>, spent: MicroUsd, ends: UnixMs| {
            let used = spent.saturating_add(self.reserved);
            limit.map(|limit| (limit.saturating_sub(used), ends))
        };
        let day = of(self.limits.daily, self.spent_today, self.day_ends_ms);
        let month = of(
            self.limits.monthly,
            self.spent_this_month,
            self.month_ends_ms,
        );
        // Of two that are used up the later end counts: only then may be spent again.
        let tightness = |(left, ends): &(MicroUsd, UnixMs)| (*left, std::cmp::Reverse(*ends));
        day.into_iter().chain(month).min_by_key(tightness)
    }
}

impl Inner {
    /// The state, of the current day and month.
    fn now(&self) -> parking_lot::MutexGuard<'_, State> {
        let mut state = self.state.lock();
        let now_ms = self.clock.now_ms();
        if now_ms >= state.day_ends_ms {
            state.spent_today = MicroUsd::ZERO;
            state.day_ends_ms = midnight_after(now_ms);
        }
        if now_ms >= state.month_ends_ms {
            state.spent_this_month = MicroUsd::ZERO;
            state.month_ends_ms = month_after(now_ms);
        }
        state
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut state = self.inner.state.lock();
        state.reserved = state.reserved.saturating_sub(self.amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ManualClock;

    #[test]
    fn spent_and_reserved_never_exceed_the_limit_and_the_day_ends() {
        let clock = ManualClock::new(1_700_000_000_000);
        let budget = Budget::new(Some(MicroUsd(100)), MicroUsd(40), Arc::new(clock.clone()));
        let first = budget.reserve(MicroUsd(50)).unwrap();
        assert!(budget.reserve(MicroUsd(11)).is_none());
        budget.spent(MicroUsd(20));
        drop(first);
        assert_eq!(budget.totals(), (MicroUsd(60), MicroUsd::ZERO));
        assert!(budget.reserve(MicroUsd(41)).is_none());
        clock.advance(24 * 3_600 * 1_000);
        assert!(budget.reserve(MicroUsd(100)).is_some());
    }

    #[test]
    fn a_monthly_limit_outlasts_the_day_and_names_its_own_end() {
        let now_ms = crate::types::day::month_before(1_700_000_000_000);
        let clock = ManualClock::new(now_ms);
        let budget = Budget::new(Some(MicroUsd(50)), MicroUsd::ZERO, Arc::new(clock.clone()));
        let monthly = Some(MicroUsd(60));
        let limits = Limits {
            monthly,
            ..budget.limits()
        };
        budget.set_limits(limits, MicroUsd(20));
        budget.spent(MicroUsd(35));
        clock.advance(25 * 3_600 * 1_000);
        assert_eq!(budget.totals().0, MicroUsd::ZERO);
        assert!(budget.reserve(MicroUsd(6)).is_none());
        let reset = budget.reset();
        assert!(reset.period == "monthly" && reset.seconds > 20 * 24 * 3_600);
        assert!(budget.reserve(MicroUsd(5)).is_some());
        clock.advance(31 * 24 * 3_600 * 1_000);
        assert!(budget.reserve(MicroUsd(50)).is_some());
    }
}
