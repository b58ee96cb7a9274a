//! The next token from its logits: greedy, or by chance within the usual limits.
//!
//! The same seed and the same logits give the same tokens. Order of the limits, as everywhere:
//! temperature, then the `top_k` likeliest, then the fewest that reach `top_p`.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// How tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// 0 is greedy; 1 as the model says.
    pub temperature: f32,
    /// Only this many of the likeliest; none is all.
    pub top_k: Option<usize>,
    /// Only the likeliest that reach this probability together; 1 is all.
    pub top_p: f32,
    /// Repeats a choice.
    pub seed: u64,
}

/// Chooses tokens of one answer.
pub struct Sampler {
    settings: Settings,
    chance: StdRng,
}

impl Sampler {
    /// Begins an answer.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            chance: StdRng::seed_from_u64(settings.seed),
        }
    }

    /// The next token; none when there are no logits, or only such as are no numbers.
    pub fn next(&mut self, logits: &[f32]) -> Option<u32> {
        let numbered = (0u32..).zip(logits.iter().copied());
        let mut likely: Vec<(u32, f32)> = numbered.filter(|(_, l)| !l.is_nan()).collect();
        if self.settings.temperature <= 0.0 {
            // Of equals the first, as argmax has it everywhere.
            let best = |a: (u32, f32), b: (u32, f32)| if b.1 > a.1 { b } else { a };
            return likely.into_iter().reduce(best).map(|(token, _)| token);
        }
        let keep = self.settings.top_k.unwrap_or(likely.len()).max(1);
        let falling = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if keep < likely.len() {
            likely.select_nth_unstable_by(keep - 1, falling);
            likely.truncate(keep);
        }
        likely.sort_unstable_by(falling);
        let top = likely.first()?.1;
        let weight = |logit: f32| f64::from((logit - top) / self.settings.temperature).exp();
        let mut weights: Vec<f64> = likely.iter().map(|(_, logit)| weight(*logit)).collect();
        let all: f64 = weights.iter().sum();
        let mut reached = 0.0;
        let enough = f64::from(self.settings.top_p) * all;
        let fewest = weights.iter().position(|weight| {
            reached += weight;
            reached >= enough
        });
        weights.truncate(fewest.map_or(weights.len(), |last| last + 1));
        let mut left = self.chance.random::<f64>() * weights.iter().sum::<f64>();
        let chosen = weights.iter().position(|weight| {
            left -= weight;
            left < 0.0
        });
        let index = chosen.unwrap_or(weights.len() - 1);
        likely.get(index).map(|(token, _)| *token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(temperature: f32, top_k: Option<usize>, top_p: f32, seed: u64) -> Sampler {
        Sampler::new(Settings {
            temperature,
            top_k,
            top_p,
            seed,
        })
    }

    fn counts(mut sampler: Sampler, logits: &[f32]) -> Vec<u32> {
        let mut counts = vec![0; logits.len()];
        for _ in 0..20_000 {
            counts[usize::try_from(sampler.next(logits).unwrap()).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_first_of_the_likeliest() {
        let mut greedy = sampler(0.0, None, 1.0, 1);
        assert_eq!(greedy.next(&[1.0, 3.0, f32::NAN, 3.0]), Some(1));
        assert_eq!(greedy.next(&[]), None);
        assert_eq!(sampler(1.0, None, 1.0, 1).next(&[f32::NAN]), None);
    }

    #[test]
    fn tokens_come_as_often_as_the_model_says() {
        // Probabilities 1/2, 1/4, 1/8, 1/8.
        let logits = [4.0f32.ln(), 2.0f32.ln(), 0.0, 0.0];
        let counts = counts(sampler(1.0, None, 1.0, 7), &logits);
        for (count, expected) in counts.iter().zip([10_000.0, 5_000.0, 2_500.0, 2_500.0]) {
            assert!((f64::from(*count) - expected).abs() < 300.0, "{counts:?}");
        }
    }

    #[test]
    fn limits_leave_the_likeliest_only() {
        let logits = [4.0f32.ln(), 2.0f32.ln(), 0.0, 0.0];
        assert_eq!(counts(sampler(1.0, Some(2), 1.0, 7), &logits)[2..], [0, 0]);
        assert_eq!(counts(sampler(1.0, None, 0.6, 7), &logits)[2..], [0, 0]);
        assert_eq!(counts(sampler(1.0, None, 0.5, 7), &logits)[1..], [0, 0, 0]);
        let cold = counts(sampler(0.01, None, 1.0, 7), &logits);
        assert_eq!(cold[0], 20_000);
    }

    #[test]
    fn a_seed_repeats_an_answer() {
        let logits: Vec<f32> = (0..100u8).map(|one| f32::from(one % 7)).collect();
        let answer = |seed| {
            let mut sampler = sampler(0.8, Some(40), 0.9, seed);
            (0..50).map(|_| sampler.next(&logits)).collect::<Vec<_>>()
        };
        assert_eq!(answer(3), answer(3));
        assert_ne!(answer(3), answer(4));
    }
}
