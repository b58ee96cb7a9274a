//! The angles that positions turn queries and keys by.
//!
//! Formulas: rotary embedding (Su et al. 2021); Llama 3.1's stretching as in its published
//! `rope_scaling`. Angles are worked out in double precision, because a position of 100 000 times a
//! single's error is visible.

use std::f64::consts::TAU;

use candle_core::WithDType as _;

use super::config::{ModelConfig, Scaling};
use super::vectors::double;

/// Positions whose angles are worked out at once; more when a session gets there.
const GROW: usize = 1_024;

/// Turns by position, grown as far as sessions come.
pub(super) struct Rope {
    /// Turn per position, of each pair.
    speeds: Vec<f64>,
    /// GGUF files of llama-like models store pairs beside each other, others in halves.
    is_interleaved: bool,
    /// Positions in the tables.
    known: usize,
    /// By position and pair: cosine and sine.
    turns: Vec<(f32, f32)>,
}

impl Rope {
    /// `divisors` are a file's own, one per pair, and replace the configuration's stretching.
    pub(super) fn new(
        config: &ModelConfig,
        divisors: Option<Vec<f32>>,
        is_interleaved: bool,
    ) -> Self {
        let mut speeds = speeds(config);
        match divisors {
            Some(divisors) => {
                for (speed, divisor) in speeds.iter_mut().zip(divisors) {
                    *speed /= f64::from(divisor);
                }
            }
            None => {
                for speed in &mut speeds {
                    *speed = stretched(*speed, &config.scaling);
                }
            }
        }
        Self {
            speeds,
            is_interleaved,
            known: 0,
            turns: vec![],
        }
    }

    /// Works out the turns up to `positions`.
    pub(super) fn reach(&mut self, positions: usize) {
        if positions <= self.known {
            return;
        }
        let known = positions.max(2 * self.known).next_multiple_of(GROW);
        let angles = (self.known..known).flat_map(|position| {
            let position = double(position);
            self.speeds.iter().map(move |speed| position * speed)
        });
        let turn = |angle: f64| (f32::from_f64(angle.cos()), f32::from_f64(angle.sin()));
        self.turns.extend(angles.map(turn));
        self.known = known;
    }

    /// Turns `heads` of each of `rows`, whose first is at `pos`; they were reached.
    pub(super) fn turn(&self, rows: &mut [f32], heads: usize, pos: usize) {
        let pairs = self.speeds.len();
        let turns = self.turns.chunks_exact(pairs).skip(pos);
        for (row, turns) in rows.chunks_exact_mut(heads * pairs * 2).zip(turns) {
            for head in row.chunks_exact_mut(pairs * 2) {
                self.turn_one(head, turns);
            }
        }
    }

    fn turn_one(&self, head: &mut [f32], turns: &[(f32, f32)]) {
        let turn = |one: &mut f32, other: &mut f32, (cos, sin): (f32, f32)| {
            (*one, *other) = (*one * cos - *other * sin, *one * sin + *other * cos);
        };
        if self.is_interleaved {
            let (pairs, _) = head.as_chunks_mut::<2>();
            for ([one, other], way) in pairs.iter_mut().zip(turns) {
                turn(one, other, *way);
            }
        } else {
            let (ones, others) = head.split_at_mut(turns.len());
            for ((one, other), way) in ones.iter_mut().zip(others).zip(turns) {
                turn(one, other, *way);
            }
        }
    }
}

fn speeds(config: &ModelConfig) -> Vec<f64> {
    let numbers = double(config.head_dim);
    let pairs = (0..config.head_dim).step_by(2);
    pairs
        .map(|pair| config.rope_theta.powf(-double(pair) / numbers))
        .collect()
}

fn stretched(speed: f64, scaling: &Scaling) -> f64 {
    match *scaling {
        Scaling::None => speed,
        Scaling::Linear(factor) => speed / factor,
        Scaling::Llama3 {
            factor,
            low,
            high,
            context,
        } => {
            let turns = context * speed / TAU;
            if turns > high {
                speed
            } else if turns < low {
                speed / factor
            } else {
                let kept = (turns - low) / (high - low);
                kept.mul_add(speed, (1.0 - kept) * speed / factor)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_keeps_fast_angles_divides_slow_ones_and_mixes_between() {
        let scaling = Scaling::Llama3 {
            factor: 8.0,
            low: 1.0,
            high: 4.0,
            context: 8_192.0,
        };
        assert_eq!(stretched(1.0, &scaling), 1.0);
        assert_eq!(stretched(1e-4, &scaling), 1e-4 / 8.0);
        let between = stretched(2.0 * TAU / 8_192.0, &scaling);
        assert!(between > 2.0 * TAU / 8_192.0 / 8.0 && between < 2.0 * TAU / 8_192.0);
        assert_eq!(stretched(0.5, &Scaling::Linear(2.0)), 0.25);
    }
}
