//! Arithmetic on rows of numbers, with whatever vectors the processor has.
//!
//! A row's result depends on nothing but the row. Sixteen numbers go together everywhere, so that sums
//! are added up in the same order on every machine.

use candle_core::WithDType as _;
use fearless_simd::prelude::*;
use fearless_simd::{Level, dispatch, f32x16, i32x16};

/// Numbers that go together.
pub(super) const LANES: usize = 16;

/// Divides each row of as many numbers as `weight` has by the root of its mean square, and multiplies
/// it with `weight`.
pub(super) fn normalise(rows: &mut [f32], weight: &[f32], epsilon: f32) {
    dispatch!(Level::new(), simd => for row in rows.chunks_exact_mut(weight.len().max(1)) {
        normalise_one(simd, row, weight, epsilon);
    });
}

#[inline(always)]
fn normalise_one<S: Simd>(simd: S, row: &mut [f32], weight: &[f32], epsilon: f32) {
    let factor = 1.0 / (sum_of_squares(simd, row) / single(row.len()) + epsilon).sqrt();
    for (number, weight) in row.iter_mut().zip(weight) {
        *number *= factor * weight;
    }
}

#[inline(always)]
fn sum_of_squares<S: Simd>(simd: S, row: &[f32]) -> f32 {
    let (whole, rest) = row.as_chunks::<LANES>();
    let mut sum = f32x16::splat(simd, 0.0);
    for numbers in whole {
        let numbers = f32x16::from_slice(simd, numbers);
        sum = numbers.mul_add(numbers, sum);
    }
    sum.reduce_sum() + rest.iter().map(|number| number * number).sum::<f32>()
}

/// `gate` becomes gate · sigmoid(gate) · up.
pub(super) fn gated(gate: &mut [f32], up: &[f32]) {
    dispatch!(Level::new(), simd => gated_all(simd, gate, up));
}

#[inline(always)]
fn gated_all<S: Simd>(simd: S, gate: &mut [f32], up: &[f32]) {
    let (whole, rest) = gate.as_chunks_mut::<LANES>();
    let (whole_up, rest_up) = up.as_chunks::<LANES>();
    for (gate, up) in whole.iter_mut().zip(whole_up) {
        *gate = gated_one(simd, gate, up);
    }
    let (mut last, mut last_up) = ([0.0; LANES], [0.0; LANES]);
    copy(rest, &mut last);
    copy(rest_up, &mut last_up);
    copy(&gated_one(simd, &last, &last_up), rest);
}

#[inline(always)]
fn gated_one<S: Simd>(simd: S, gate: &[f32; LANES], up: &[f32; LANES]) -> [f32; LANES] {
    let (gate, up) = (f32x16::from_slice(simd, gate), f32x16::from_slice(simd, up));
    let one = f32x16::splat(simd, 1.0);
    (gate * up / (one + exp(simd, -gate))).into()
}

/// As many as both have.
#[inline(always)]
fn copy<T: Copy>(from: &[T], to: &mut [T]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
}

/// Adds `more` to `rows`.
pub(super) fn add(rows: &mut [f32], more: &[f32]) {
    dispatch!(Level::new(), _ => for (number, more) in rows.iter_mut().zip(more) {
        *number += more;
    });
}

/// Adds `bias` to each row.
pub(super) fn add_each(rows: &mut [f32], bias: &[f32]) {
    for row in rows.chunks_exact_mut(bias.len().max(1)) {
        add(row, bias);
    }
}

/// Numbers as whole ones of 16 bits, and what each is to be multiplied by. What is no number makes that
/// none.
pub(super) fn quantise(numbers: &[f32], whole: &mut [i16]) -> f32 {
    dispatch!(Level::new(), simd => quantise_all(simd, numbers, whole))
}

#[inline(always)]
fn quantise_all<S: Simd>(simd: S, numbers: &[f32], whole: &mut [i16]) -> f32 {
    // As bits, positive numbers are in order, infinity after all and what is none at the end.
    let bits = numbers.iter().map(|number| number.abs().to_bits());
    let most = f32::from_bits(bits.max().unwrap_or(0));
    let factor = if most == 0.0 {
        0.0
    } else {
        MOST_16_BITS / most
    };
    let zero = i32x16::splat(simd, 0);
    for (numbers, whole) in numbers.chunks(LANES).zip(whole.chunks_mut(LANES)) {
        let mut lanes = [0.0; LANES];
        copy(numbers, &mut lanes);
        let rounded = (f32x16::from_slice(simd, &lanes) * factor).round_ties_even();
        let rounded = simd.cvt_i32_f32x16(rounded);
        let narrow: [i16; 2 * LANES] = simd.saturating_narrow_i32x16(rounded, zero).into();
        copy(&narrow, whole);
    }
    most / MOST_16_BITS
}

const MOST_16_BITS: f32 = 32_767.0;

/// e^x with an error of 2 in the last place (polynomial of Cephes' `expf`); what is no number stays so.
/// Far below 0 it gives e^-87 (10^-38), and nothing is added to it that would notice.
#[inline(always)]
pub(super) fn exp<S: Simd>(simd: S, x: f32x16<S>) -> f32x16<S> {
    let splat = |number| f32x16::splat(simd, number);
    let bounded = x.max(splat(LEAST)).min(splat(MOST));
    let twos = (bounded * splat(std::f32::consts::LOG2_E)).round_ties_even();
    let rest = twos.mul_add(splat(-LN_2_HIGH), bounded);
    let rest = twos.mul_add(splat(-LN_2_LOW), rest);
    let mut sum = splat(1.987_569_1e-4);
    for factor in [
        1.398_2e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ] {
        sum = sum.mul_add(rest, splat(factor));
    }
    let sum = sum.mul_add(rest * rest, rest) + splat(1.0);
    let exponent = simd.cvt_i32_f32x16(twos) + EXPONENT_OF_ONE;
    let power: f32x16<S> = simd.shl_i32x16(exponent, MANTISSA_BITS).bitcast();
    x.mul_add(splat(0.0), sum * power)
}

/// ln 2 in two parts: the first has few bits, so that its products are exact.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;
/// Between these a power of e is a normal number.
const LEAST: f32 = -87.0;
const MOST: f32 = 88.0;
/// How a single-precision number has its power of two.
const EXPONENT_OF_ONE: i32 = 127;
const MANTISSA_BITS: u32 = 23;

/// A count as a number, rounded as any number is; exact below 2^24.
pub(super) fn single(count: usize) -> f32 {
    f32::from_f64(double(count))
}

/// A count as a number; exact below 2^32, far above any context.
pub(super) fn double(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exps(x: [f32; LANES]) -> [f32; LANES] {
        dispatch!(Level::new(), simd => exp(simd, f32x16::from_slice(simd, &x)).into())
    }

    #[test]
    fn powers_of_e_are_exact_to_the_last_places() {
        for step in -870..=880 {
            let x = f32::from(i16::try_from(step).unwrap()) / 10.0;
            let exact = f64::from(x).exp();
            let differ = (f64::from(exps([x; LANES])[3]) / exact - 1.0).abs();
            assert!(differ < 3e-7, "{x}: {differ}");
        }
        assert_eq!(exps([0.0; LANES]), [1.0; LANES]);
        assert!(exps([-1e9; LANES])[0] < 1e-37);
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(!exps([odd; LANES])[0].is_finite(), "{odd}");
        }
    }

    #[test]
    fn whole_numbers_are_exact_to_one_part_in_65_000_of_the_largest() {
        for width in [3_u16, 16, 40] {
            let numbers: Vec<f32> = (0..width).map(|at| f32::from(at) * 0.37 - 3.0).collect();
            let mut whole = vec![0; numbers.len()];
            let scale = quantise(&numbers, &mut whole);
            let most = numbers.iter().fold(0f32, |most, x| most.max(x.abs()));
            for (number, whole) in numbers.iter().zip(&whole) {
                assert!((f32::from(*whole) * scale - number).abs() < most / 65_000.0);
            }
            assert!(whole.contains(&-32_767) || whole.contains(&32_767));
        }
        let mut whole = [1; 2];
        assert_eq!(quantise(&[0.0, 0.0], &mut whole), 0.0);
        assert_eq!(whole, [0; 2]);
        for odd in [f32::NAN, -f32::NAN, f32::INFINITY] {
            assert!(!quantise(&[1.0, odd], &mut whole).is_finite());
        }
    }

    /// Lengths that fill no vector as well.
    #[test]
    fn rows_are_normalised_and_gated_as_their_formulas_say() {
        for width in [5_u16, 16, 40] {
            let row: Vec<f32> = (0..width).map(|at| f32::from(at) - 7.5).collect();
            let weight: Vec<f32> = (0..width).map(|at| f32::from(at) / 9.0).collect();
            let mut rows = [row.clone(), row.clone()].concat();
            normalise(&mut rows, &weight, 1e-5);
            let mean = row.iter().map(|x| x * x).sum::<f32>() / f32::from(width);
            let mut gate = row.clone();
            gated(&mut gate, &weight);
            for (at, (x, weight)) in row.iter().zip(&weight).enumerate() {
                let exact = x / (mean + 1e-5).sqrt() * weight;
                assert!((rows[at] - exact).abs() < 1e-5);
                assert_eq!(rows[at], rows[at + row.len()]);
                let exact = x / (1.0 + (-x).exp()) * weight;
                assert!((gate[at] - exact).abs() < 1e-5 * exact.abs().max(1.0));
            }
        }
    }
}
