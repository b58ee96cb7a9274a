//! The angles that positions turn queries and keys by.
//!
//! Formulas: rotary embedding (Su et al. 2021); Llama 3.1's stretching as in its published
//! `rope_scaling`. Angles are worked out in double precision, because a position of 100 000 times a
//! single's error is visible.

use std::f64::consts::TAU;

use candle_core::{DType, Device, Result, Tensor, WithDType};

use super::config::{ModelConfig, Scaling};

/// Positions whose angles are worked out at once; more when a session gets there.
const GROW: usize = 1_024;

/// Cosines and sines by position, grown as far as sessions come.
pub(super) struct Rope {
    /// Turn per position, of each pair.
    speeds: Vec<f64>,
    /// GGUF files of llama-like models store pairs beside each other, others in halves.
    is_interleaved: bool,
    /// Positions in the tables.
    known: usize,
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    /// `divisors` are a file's own, one per pair, and replace the configuration's stretching.
    pub(super) fn new(
        config: &ModelConfig,
        divisors: Option<Vec<f32>>,
        is_interleaved: bool,
    ) -> Result<Self> {
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
        let empty = Tensor::zeros((0, speeds.len()), DType::F32, &Device::Cpu)?;
        Ok(Self {
            speeds,
            is_interleaved,
            known: 0,
            cos: empty.clone(),
            sin: empty,
        })
    }

    /// Works out the tables up to `positions`.
    pub(super) fn reach(&mut self, positions: usize) -> Result<()> {
        if positions <= self.known {
            return Ok(());
        }
        let known = positions.max(2 * self.known).next_multiple_of(GROW);
        let angles = (0..known).flat_map(|position| {
            let position = count(position);
            self.speeds.iter().map(move |speed| position * speed)
        });
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles
            .map(|angle| (f32::from_f64(angle.cos()), f32::from_f64(angle.sin())))
            .unzip();
        let shape = (known, self.speeds.len());
        self.cos = Tensor::from_vec(cos, shape, &Device::Cpu)?;
        self.sin = Tensor::from_vec(sin, shape, &Device::Cpu)?;
        self.known = known;
        Ok(())
    }

    /// Turns `x` (1, rows, heads, numbers), whose first row is at `pos`.
    pub(super) fn turn(&self, x: &Tensor, pos: usize) -> Result<Tensor> {
        let rows = x.dim(1)?;
        let cos = self.cos.narrow(0, pos, rows)?;
        let sin = self.sin.narrow(0, pos, rows)?;
        let x = x.contiguous()?;
        if self.is_interleaved {
            let x = x.transpose(1, 2)?.contiguous()?;
            let turned = candle_nn::rotary_emb::rope_i(&x, &cos, &sin)?;
            return turned.transpose(1, 2)?.contiguous();
        }
        candle_nn::rotary_emb::rope_thd(&x, &cos, &sin)
    }
}

fn speeds(config: &ModelConfig) -> Vec<f64> {
    let numbers = count(config.head_dim);
    let pairs = (0..config.head_dim).step_by(2);
    pairs
        .map(|pair| config.rope_theta.powf(-count(pair) / numbers))
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

/// A small count as a number; exact below 2^32, far above any context.
fn count(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
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
