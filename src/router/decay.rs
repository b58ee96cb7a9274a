//! Sums and means that forget: evidence of last week says little of today.

use serde::{Deserialize, Serialize};

use super::number::real;
use crate::types::UnixMs;

/// A sum that halves every half-life. The half-life is the caller's, so that a changed setting
/// applies to what is already known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Decaying {
    value: f64,
    at_ms: UnixMs,
}

impl Decaying {
    /// What is left of it now. A clock that was set back decays nothing.
    #[must_use]
    pub fn get(&self, now_ms: UnixMs, half_life_ms: u64) -> f64 {
        if self.value == 0.0 {
            return 0.0;
        }
        let halvings = real(now_ms.saturating_sub(self.at_ms)) / real(half_life_ms.max(1));
        self.value * (-halvings).exp2()
    }

    /// Adds `amount` at `now_ms`.
    pub fn add(&mut self, amount: f64, now_ms: UnixMs, half_life_ms: u64) {
        self.value = self.get(now_ms, half_life_ms) + amount;
        self.at_ms = self.at_ms.max(now_ms);
    }

    /// Multiplies what there is.
    pub fn scale(&mut self, factor: f64) {
        self.value *= factor;
    }
}

/// A running mean of logarithms, with its spread: times and speeds are skewed, and one slow answer
/// must not count for ten quick ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LogMean {
    mean: f64,
    variance: f64,
    /// Observations, up to where the floor of the step is reached.
    count: u16,
    at_ms: UnixMs,
}

/// 90th percentile of a normal distribution, in standard deviations.
const P90: f64 = 1.2816;

impl LogMean {
    /// Takes `value` (> 0) in. The step is the largest of `1 ÷ (n + 1)`, `1 − e^(−Δt ÷ τ)` and
    /// `step_min`.
    pub fn observe(&mut self, value: f64, now_ms: UnixMs, tau_ms: u64, step_min: f64) {
        let log = value.max(f64::MIN_POSITIVE).ln();
        let age = real(now_ms.saturating_sub(self.at_ms)) / real(tau_ms.max(1));
        let step = (1.0 / (f64::from(self.count) + 1.0))
            .max(1.0 - (-age).exp())
            .max(step_min)
            .min(1.0);
        let off = log - self.mean;
        self.mean += step * off;
        self.variance = (1.0 - step) * (step * off).mul_add(off, self.variance);
        self.count = self.count.saturating_add(1);
        self.at_ms = self.at_ms.max(now_ms);
    }

    /// The typical value; `None` before the first.
    #[must_use]
    pub fn typical(&self) -> Option<f64> {
        (self.count > 0).then(|| self.mean.exp())
    }

    /// Nine of ten are below; `None` before the first.
    #[must_use]
    pub fn p90(&self) -> Option<f64> {
        (self.count > 0).then(|| self.variance.sqrt().mul_add(P90, self.mean).exp())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    #[test]
    fn a_sum_halves_and_a_clock_set_back_changes_nothing() {
        let mut sum = Decaying::default();
        sum.add(8.0, 10 * HOUR, HOUR);
        assert!((sum.get(12 * HOUR, HOUR) - 2.0).abs() < 1e-9);
        assert!((sum.get(0, HOUR) - 8.0).abs() < 1e-9);
        sum.add(1.0, 11 * HOUR, HOUR);
        assert!((sum.get(11 * HOUR, HOUR) - 5.0).abs() < 1e-9);
    }

    #[test]
    fn the_first_value_is_taken_whole_and_an_old_mean_gives_way() {
        let mut mean = LogMean::default();
        assert_eq!(mean.typical(), None);
        mean.observe(2.0, HOUR, HOUR, 0.1);
        assert!((mean.typical().unwrap() - 2.0).abs() < 1e-9);
        for _ in 0..50 {
            mean.observe(2.0, HOUR, HOUR, 0.1);
        }
        mean.observe(20.0, HOUR, HOUR, 0.1);
        let soon = mean.typical().unwrap();
        assert!(soon < 2.6, "{soon}");
        mean.observe(20.0, 20 * HOUR, HOUR, 0.1);
        assert!(mean.typical().unwrap() > 19.0);
    }

    #[test]
    fn the_ninetieth_percentile_lies_above_the_typical_value() {
        let mut mean = LogMean::default();
        for n in 0..100_u32 {
            mean.observe(if n % 10 == 0 { 10.0 } else { 1.0 }, HOUR, HOUR, 0.05);
        }
        let (typical, p90) = (mean.typical().unwrap(), mean.p90().unwrap());
        assert!(typical < 2.0 && p90 > 2.0 && p90 < 10.0, "{typical} {p90}");
    }
}
