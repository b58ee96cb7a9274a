//! A seller that keeps failing is left alone for a while, then asked once.
//!
//! Closed until [`Settings::breaker_in_a_row`] failures in a row, or more than half of the last ten.
//! Open for 30 s, doubling each time up to a quarter of an hour, ±20 % so that buyers do not come
//! back together. Then half open: one request decides.

use serde::{Deserialize, Serialize};

use super::settings::Settings;
use crate::types::UnixMs;

/// Outcomes remembered.
const LAST: u32 = 10;
/// Failures among them that open it: more than half.
const LAST_FAILED_MAX: u32 = LAST / 2;
/// Spread of a pause around its length, per cent.
const SPREAD_PERCENT: u64 = 20;

/// One seller's breaker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Breaker {
    /// A bit per outcome, the newest lowest; 1 = failed.
    last: u16,
    seen: u32,
    in_a_row: u32,
    /// Pauses since it last closed.
    trips: u32,
    /// End of the pause; 0 = closed.
    until_ms: UnixMs,
    /// When the one request of the half-open state went out; 0 = none is under way.
    #[serde(skip)]
    probe_ms: UnixMs,
}

/// Whether a seller may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// As often as one likes.
    Closed,
    /// Once.
    HalfOpen,
    /// Not before this time.
    Open(UnixMs),
}

/// A probe that has not come back for this long is forgotten, ms.
const PROBE_LIFE_MS: u64 = 120_000;

impl Breaker {
    /// Whether the seller may be asked now.
    #[must_use]
    pub const fn gate(&self, now_ms: UnixMs) -> Gate {
        if self.until_ms == 0 {
            return Gate::Closed;
        }
        if now_ms < self.until_ms {
            return Gate::Open(self.until_ms);
        }
        let probe_ends = self.probe_ms.saturating_add(PROBE_LIFE_MS);
        if self.probe_ms != 0 && now_ms < probe_ends {
            return Gate::Open(probe_ends);
        }
        Gate::HalfOpen
    }

    /// A request goes out; in the half-open state it is the one.
    pub fn ask(&mut self, now_ms: UnixMs) {
        if self.gate(now_ms) == Gate::HalfOpen {
            self.probe_ms = now_ms;
        }
    }

    /// The request ended in a way that says nothing about the seller: the probe may go out again.
    pub const fn forget(&mut self) {
        self.probe_ms = 0;
    }

    /// It answered: closed, and what was held against it is forgotten.
    pub fn succeed(&mut self) {
        if self.until_ms != 0 {
            *self = Self::default();
        }
        self.in_a_row = 0;
        self.push(0);
    }

    /// It failed. `spread` is a random number.
    pub fn fail(&mut self, now_ms: UnixMs, spread: u64, settings: &Settings) {
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.push(1);
        let was_probe = self.until_ms != 0 && now_ms >= self.until_ms;
        let failed = (self.last & Self::mask()).count_ones();
        let mostly = self.seen >= LAST && failed > LAST_FAILED_MAX;
        let trips = self.in_a_row >= settings.breaker_in_a_row || mostly;
        let is_open = self.until_ms != 0 && now_ms < self.until_ms;
        if was_probe || (trips && !is_open) {
            let doubled = settings
                .breaker_pause_ms
                .saturating_mul(1_u64.checked_shl(self.trips.min(32)).unwrap_or(u64::MAX))
                .min(settings.breaker_pause_max_ms);
            let percent = 100 - SPREAD_PERCENT + spread % (2 * SPREAD_PERCENT + 1);
            self.until_ms = now_ms.saturating_add(doubled.saturating_mul(percent) / 100);
            self.trips = self.trips.saturating_add(1);
            self.probe_ms = 0;
        }
    }

    fn push(&mut self, bit: u16) {
        self.last = (self.last << 1 | bit) & Self::mask();
        self.seen = self.seen.saturating_add(1).min(LAST);
    }
    const fn mask() -> u16 {
        (1 << LAST) - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_failures_in_a_row_open_it_and_one_request_closes_it() {
        let settings = Settings::default();
        let mut breaker = Breaker::default();
        breaker.fail(1_000, 20, &settings);
        breaker.fail(1_000, 20, &settings);
        assert_eq!(breaker.gate(1_000), Gate::Closed);
        breaker.fail(1_000, 20, &settings);
        assert_eq!(breaker.gate(1_000), Gate::Open(31_000));
        // Others that were under way prolong nothing.
        breaker.fail(2_000, 20, &settings);
        assert_eq!(breaker.gate(2_000), Gate::Open(31_000));
        assert_eq!(breaker.gate(31_000), Gate::HalfOpen);
        breaker.ask(31_000);
        assert!(matches!(breaker.gate(31_001), Gate::Open(_)));
        breaker.succeed();
        assert_eq!(breaker.gate(31_001), Gate::Closed);
    }

    #[test]
    fn the_pause_doubles_to_its_limit_with_a_spread() {
        let settings = Settings::default();
        let mut breaker = Breaker::default();
        let mut now_ms = 1;
        let mut pauses = Vec::new();
        for _ in 0..3 {
            breaker.fail(now_ms, 20, &settings);
        }
        for _ in 0..7 {
            let Gate::Open(until) = breaker.gate(now_ms) else {
                panic!("closed");
            };
            pauses.push((until - now_ms) / 1_000);
            now_ms = until;
            breaker.ask(now_ms);
            breaker.fail(now_ms, 20, &settings);
        }
        assert_eq!(pauses, [30, 60, 120, 240, 480, 900, 900]);
        let mut early = Breaker::default();
        let mut late = Breaker::default();
        for _ in 0..3 {
            early.fail(0, 0, &settings);
            late.fail(0, 40, &settings);
        }
        assert_eq!(early.gate(0), Gate::Open(24_000));
        assert_eq!(late.gate(0), Gate::Open(36_000));
    }

    #[test]
    fn six_of_ten_open_it_without_three_in_a_row() {
        let settings = Settings::default();
        let mut breaker = Breaker::default();
        for failed in [true, true, false, true, true, false, true, false, false] {
            if failed {
                breaker.fail(1, 20, &settings);
            } else {
                breaker.succeed();
            }
            assert_eq!(breaker.gate(1), Gate::Closed);
        }
        breaker.fail(1, 20, &settings);
        assert!(matches!(breaker.gate(1), Gate::Open(_)));
    }

    #[test]
    fn a_probe_that_never_comes_back_is_forgotten() {
        let settings = Settings::default();
        let mut breaker = Breaker::default();
        for _ in 0..3 {
            breaker.fail(1, 20, &settings);
        }
        breaker.ask(40_000);
        assert!(matches!(breaker.gate(40_001), Gate::Open(_)));
        assert_eq!(breaker.gate(40_000 + PROBE_LIFE_MS), Gate::HalfOpen);
        breaker.ask(40_000 + PROBE_LIFE_MS);
        breaker.forget();
        assert_eq!(breaker.gate(40_001 + PROBE_LIFE_MS), Gate::HalfOpen);
    }
}
