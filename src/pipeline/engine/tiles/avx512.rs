//! Tiles with AVX-512 and its instructions for neural networks: 64 products an instruction.

use std::arch::x86_64::{
    __m256i, __m512i, _mm512_abs_ps, _mm512_add_epi32, _mm512_castps_si512, _mm512_cvtepi32_ps,
    _mm512_cvtph_ps, _mm512_cvtps_epi32, _mm512_cvtsepi32_epi8, _mm512_dpbusd_epi32,
    _mm512_fmadd_ps, _mm512_max_epu32, _mm512_mul_ps, _mm512_reduce_add_epi32,
    _mm512_reduce_max_epu32, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_setzero_si512,
};

use fearless_simd::{Avx512, Level, SimdBase as _, SimdInto as _, f32x16, i8x16, u8x64, u16x16};
use prefetch_index::prefetch_index;

use super::{Batch, GROUP, Scales, TILE, TOGETHER, VECTORS, Vector};

/// The largest 8-bit number.
const MOST: f32 = 127.0;
/// What was added to every weight.
const SHIFT: i32 = 128;

/// Vectors that are asked for before they are needed: memory answers within what 32 groups take.
const AHEAD: usize = 32 * VECTORS;

/// Proof that this processor has them.
#[derive(Clone, Copy)]
pub(super) struct Instructions(Avx512);

impl Instructions {
    pub(super) fn find() -> Option<Self> {
        Level::new().as_avx512().map(Self)
    }

    /// Quantises one row as a batch's `row`th.
    pub(super) fn quantise(self, numbers: &[f32], row: usize, batch: &mut Batch) {
        quantise(self.0, numbers, row, batch);
    }

    /// One tile times a batch.
    pub(super) fn multiply(
        self,
        weights: &[[Vector; VECTORS]],
        scales: &[Scales],
        batch: &Batch,
        outputs: &mut [[f32; TILE]],
    ) {
        match batch.count {
            8 => eight(self.0, weights, scales, batch, outputs),
            4 => four(self.0, weights, scales, batch, outputs),
            2 => two(self.0, weights, scales, batch, outputs),
            _ => one(self.0, weights, scales, batch, outputs),
        }
    }
}

fearless_simd::kernel!(
    fn quantise(simd: Avx512, numbers: &[f32], row: usize, batch: &mut Batch) {
        let count = batch.count;
        let words = batch.words.chunks_exact_mut(count * VECTORS);
        let places = batch.shifts.chunks_exact_mut(count);
        let places = places.zip(batch.scales.chunks_exact_mut(count)).zip(words);
        let (groups, _) = numbers.as_chunks::<GROUP>();
        for (group, ((shifts, scales), words)) in groups.iter().zip(places) {
            let (halves, _) = group.as_chunks::<TILE>();
            // As bits, positive numbers are in order, infinity after all and what is none at the end.
            let mut most = _mm512_setzero_si512();
            for half in halves {
                let half = _mm512_abs_ps(f32x16::from_slice(simd, half).into());
                most = _mm512_max_epu32(most, _mm512_castps_si512(half));
            }
            let most = f32::from_bits(_mm512_reduce_max_epu32(most));
            let factor = if most == 0.0 { 0.0 } else { MOST / most };
            let mut sum = _mm512_setzero_si512();
            let mut words = words.iter_mut().skip(row).step_by(count);
            for half in halves {
                let half = f32x16::from_slice(simd, half).into();
                let whole = _mm512_cvtps_epi32(_mm512_mul_ps(half, _mm512_set1_ps(factor)));
                sum = _mm512_add_epi32(sum, whole);
                let bytes: i8x16<Avx512> = _mm512_cvtsepi32_epi8(whole).simd_into(simd);
                let bytes = <[i8; TILE]>::from(bytes);
                let (fours, _) = bytes.as_chunks::<TOGETHER>();
                for (four, word) in fours.iter().zip(&mut words) {
                    *word = i32::from_le_bytes(four.map(i8::cast_unsigned));
                }
            }
            if let (Some(shift), Some(scale)) = (shifts.get_mut(row), scales.get_mut(row)) {
                *shift = _mm512_reduce_add_epi32(sum).wrapping_mul(-SHIFT);
                *scale = most / MOST;
            }
        }
    }
);

/// For as many rows: their sums stay in registers, and every weight is loaded once.
macro_rules! multiply {
    ($name:ident, $rows:literal) => {
        fearless_simd::kernel!(
            fn $name(
                simd: Avx512,
                weights: &[[Vector; VECTORS]],
                scales: &[Scales],
                batch: &Batch,
                outputs: &mut [[f32; TILE]],
            ) {
                let mut totals = [_mm512_setzero_ps(); $rows];
                let (words, _) = batch.words.as_chunks::<$rows>();
                let (words, _) = words.as_chunks::<VECTORS>();
                let (shifts, _) = batch.shifts.as_chunks::<$rows>();
                let (factors, _) = batch.scales.as_chunks::<$rows>();
                let rows = words.iter().zip(shifts).zip(factors);
                let mut ahead = AHEAD;
                for ((vectors, scale), ((words, shifts), factors)) in
                    weights.iter().zip(scales).zip(rows)
                {
                    let mut sums = shifts.map(|shift| _mm512_set1_epi32(shift));
                    for (vector, words) in vectors.iter().zip(words) {
                        // Beyond these weights the next tile's lie.
                        prefetch_index(weights.as_flattened(), ahead);
                        ahead += 1;
                        let vector: __m512i = u8x64::from_slice(simd, &vector.0).into();
                        for (sum, word) in sums.iter_mut().zip(words) {
                            *sum = _mm512_dpbusd_epi32(*sum, vector, _mm512_set1_epi32(*word));
                        }
                    }
                    let scale: __m256i = u16x16::from_slice(simd, scale).into();
                    let scale = _mm512_cvtph_ps(scale);
                    for ((total, sum), factor) in totals.iter_mut().zip(sums).zip(factors) {
                        let factor = _mm512_mul_ps(scale, _mm512_set1_ps(*factor));
                        *total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), factor, *total);
                    }
                }
                for (output, total) in outputs.iter_mut().zip(totals) {
                    let total: f32x16<Avx512> = total.simd_into(simd);
                    *output = total.into();
                }
            }
        );
    };
}

multiply!(one, 1);
multiply!(two, 2);
multiply!(four, 4);
multiply!(eight, 8);
