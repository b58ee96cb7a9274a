//! The daily spending limit: accepted cost plus live reservations, local midnight to midnight.
//!
//! A reservation belongs to an attempt and is given back when it ends; what was really spent stays.
//! Exact under concurrency: both live behind one lock.

use std::sync::Arc;

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use parking_lot::Mutex;

use crate::types::{Clock, MicroUsd, UnixMs};

/// The buyer's budget. Cheap to clone.
#[derive(Clone)]
pub struct Budget {
    inner: Arc<Inner>,
}

struct Inner {
    daily: Option<MicroUsd>,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    spent: MicroUsd,
    reserved: MicroUsd,
    day_ends_ms: UnixMs,
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
        let day_ends_ms = next_midnight(clock.now_ms());
        let state = State {
            spent: spent_today,
            reserved: MicroUsd::ZERO,
            day_ends_ms,
        };
        Self {
            inner: Arc::new(Inner {
                daily,
                clock,
                state: Mutex::new(state),
            }),
        }
    }

    /// Sets `amount` aside, or `None` when the day's limit does not allow it.
    #[must_use]
    pub fn reserve(&self, amount: MicroUsd) -> Option<Reservation> {
        let mut state = self.inner.today();
        let after = state
            .spent
            .saturating_add(state.reserved)
            .saturating_add(amount);
        if self.inner.daily.is_some_and(|daily| after > daily) {
            return None;
        }
        state.reserved = state.reserved.saturating_add(amount);
        drop(state);
        Some(Reservation {
            inner: Arc::clone(&self.inner),
            amount,
        })
    }

    /// Books accepted cost.
    pub fn spent(&self, amount: MicroUsd) {
        let mut state = self.inner.today();
        state.spent = state.spent.saturating_add(amount);
    }

    /// Spent today and set aside now.
    #[must_use]
    pub fn totals(&self) -> (MicroUsd, MicroUsd) {
        let state = self.inner.today();
        (state.spent, state.reserved)
    }

    /// When the day ends: as text in local time, and in seconds from now.
    #[must_use]
    pub fn reset(&self) -> (String, u64) {
        let ends_ms = self.inner.today().day_ends_ms;
        let seconds = ends_ms.saturating_sub(self.inner.clock.now_ms()) / 1_000;
        let at = zoned(ends_ms).strftime("%Y-%m-%d %H:%M %Z").to_string();
        (at, seconds)
    }
}

impl Inner {
    fn today(&self) -> parking_lot::MutexGuard<'_, State> {
        let mut state = self.state.lock();
        let now_ms = self.clock.now_ms();
        if now_ms >= state.day_ends_ms {
            state.spent = MicroUsd::ZERO;
            state.day_ends_ms = next_midnight(now_ms);
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

/// The beginning of the local day that `now_ms` is in.
#[must_use]
pub fn midnight_before(now_ms: UnixMs) -> UnixMs {
    zoned(now_ms)
        .start_of_day()
        .ok()
        .and_then(|day| to_ms(&day))
        .unwrap_or(0)
}

fn next_midnight(now_ms: UnixMs) -> UnixMs {
    let next = zoned(now_ms).tomorrow().and_then(|day| day.start_of_day());
    next.ok().and_then(|day| to_ms(&day)).unwrap_or(UnixMs::MAX)
}

fn zoned(ms: UnixMs) -> Zoned {
    let stamp = i64::try_from(ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok());
    stamp.unwrap_or_default().to_zoned(TimeZone::system())
}

fn to_ms(day: &Zoned) -> Option<UnixMs> {
    u64::try_from(day.timestamp().as_millisecond()).ok()
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
}
