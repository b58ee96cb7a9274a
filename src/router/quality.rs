//! The chance that an attempt succeeds, as a Beta distribution that forgets.
//!
//! Sampled, not averaged (Thompson, 1933): who is little known is tried now and then, who is known
//! to be worse hardly ever.

use rand::Rng;
use rand_distr::{Beta, Distribution};
use serde::{Deserialize, Serialize};

use super::decay::Decaying;
use super::settings::Settings;
use crate::types::UnixMs;

/// Least weight of one observation, in median costs; a cheap request proves little …
const WEIGHT_MIN: f64 = 0.25;
/// … and no single one proves much.
const WEIGHT_MAX: f64 = 4.0;
/// Bounds of a probability that is divided by.
const PROBABILITY_MIN: f64 = 0.01;

/// What is known about a seller's successes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    good: Decaying,
    bad: Decaying,
}

impl Quality {
    /// Takes an attempt in; `weight` is its cost in median costs.
    pub fn observe(&mut self, good: bool, weight: f64, now_ms: UnixMs, settings: &Settings) {
        let half_life = settings.quality_half_life_ms;
        let side = if good { &mut self.good } else { &mut self.bad };
        side.add(weight.clamp(WEIGHT_MIN, WEIGHT_MAX), now_ms, half_life);
        let evidence = self.good.get(now_ms, half_life) + self.bad.get(now_ms, half_life);
        if evidence > settings.quality_evidence_max {
            let factor = settings.quality_evidence_max / evidence;
            self.good.scale(factor);
            self.bad.scale(factor);
        }
    }

    /// The most likely chance, with the prior mean `prior`.
    #[must_use]
    pub fn mean(&self, prior: f64, now_ms: UnixMs, settings: &Settings) -> f64 {
        let (a, b) = self.shape(prior, now_ms, settings);
        a / (a + b)
    }

    /// A chance drawn from what is known.
    pub fn sample(
        &self,
        prior: f64,
        now_ms: UnixMs,
        settings: &Settings,
        rng: &mut impl Rng,
    ) -> f64 {
        let (a, b) = self.shape(prior, now_ms, settings);
        let drawn = Beta::new(a, b).map_or(a / (a + b), |beta| beta.sample(rng));
        drawn.clamp(PROBABILITY_MIN, 1.0)
    }

    fn shape(&self, prior: f64, now_ms: UnixMs, settings: &Settings) -> (f64, f64) {
        let half_life = settings.quality_half_life_ms;
        let prior = prior.clamp(PROBABILITY_MIN, 1.0 - PROBABILITY_MIN);
        let weight = settings.quality_prior_weight;
        (
            weight.mul_add(prior, self.good.get(now_ms, half_life)),
            weight.mul_add(1.0 - prior, self.bad.get(now_ms, half_life)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    const NOW: UnixMs = 1_800_000_000_000;

    #[test]
    fn failures_lower_the_mean_and_time_brings_the_prior_back() {
        let settings = Settings::default();
        let mut quality = Quality::default();
        assert!((quality.mean(0.7, NOW, &settings) - 0.7).abs() < 1e-9);
        for _ in 0..100 {
            quality.observe(true, 1.0, NOW, &settings);
        }
        let good = quality.mean(0.7, NOW, &settings);
        assert!(good > 0.97, "{good}");
        for _ in 0..20 {
            quality.observe(false, 1.0, NOW, &settings);
        }
        let fallen = quality.mean(0.7, NOW, &settings);
        assert!(fallen < 0.85, "{fallen}");
        let later = NOW + 20 * settings.quality_half_life_ms;
        assert!((quality.mean(0.7, later, &settings) - 0.7).abs() < 0.01);
    }

    #[test]
    fn samples_scatter_around_the_mean_and_less_with_evidence() {
        let settings = Settings::default();
        let mut rng = SmallRng::seed_from_u64(1);
        let mut spread = |quality: &Quality| {
            let drawn: Vec<f64> = (0..2_000)
                .map(|_| quality.sample(0.7, NOW, &settings, &mut rng))
                .collect();
            let mean = drawn.iter().sum::<f64>() / 2_000.0;
            let variance = drawn.iter().map(|q| (q - mean).powi(2)).sum::<f64>() / 2_000.0;
            (mean, variance.sqrt())
        };
        let (mean, unknown) = spread(&Quality::default());
        assert!((mean - 0.7).abs() < 0.03, "{mean}");
        let mut known = Quality::default();
        for n in 0..40 {
            known.observe(n % 10 < 7, 1.0, NOW, &settings);
        }
        let (mean, known) = spread(&known);
        assert!((mean - 0.7).abs() < 0.03 && known < unknown / 2.0);
    }
}
