//! What a row hears of the rows before it in its slot.
//!
//! Scores of sixteen positions at once, softmax, and the values weighted by them; several query heads
//! share one head of keys and values (grouped-query attention, Ainslie et al. 2023). Each row is
//! computed by itself, whatever came with it, so a row that is replayed gives the same bits.

use fearless_simd::prelude::*;
use fearless_simd::{Level, dispatch, f32x16};

use super::kv::Memory;
use super::parallel;
use super::vectors::{LANES, exp};

/// How many heads, and of what.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    /// What products of queries and keys are multiplied by.
    pub(super) scale: f32,
}

/// The rows of one slot in a batch.
pub(super) struct Rows<'a> {
    /// Position of the first.
    pub(super) pos: usize,
    /// All heads of each row.
    pub(super) queries: &'a [f32],
    /// By head; they reach to the last row's position at least.
    pub(super) memories: &'a [Memory],
}

/// One head of keys and values, and the rows of a slot that look at it.
struct Piece<'a> {
    memory: &'a Memory,
    rows: Vec<Row<'a>>,
}

struct Row<'a> {
    /// Positions it sees.
    positions: usize,
    /// Of the query heads that share these keys.
    queries: &'a [f32],
    heard: &'a mut [f32],
}

/// Rows as long as `queries` of all slots, one after the other.
pub(super) fn attend(shape: Shape, slots: &[Rows<'_>]) -> Vec<f32> {
    let Shape {
        heads, head_dim, ..
    } = shape;
    let shared = (heads / shape.kv_heads.max(1) * head_dim).max(1);
    let mut heard = vec![0.0; slots.iter().map(|rows| rows.queries.len()).sum()];
    let mut pieces: Vec<Piece<'_>> = vec![];
    let mut rest = heard.as_mut_slice();
    for slot in slots {
        let first = pieces.len();
        pieces.extend(slot.memories.iter().map(|memory| Piece {
            memory,
            rows: vec![],
        }));
        let (own, others) = rest.split_at_mut(slot.queries.len());
        rest = others;
        let rows = slot.queries.chunks_exact(heads * head_dim);
        for (at, (queries, heard)) in rows.zip(own.chunks_exact_mut(heads * head_dim)).enumerate() {
            let heads = queries
                .chunks_exact(shared)
                .zip(heard.chunks_exact_mut(shared));
            for (piece, (queries, heard)) in pieces.iter_mut().skip(first).zip(heads) {
                piece.rows.push(Row {
                    positions: slot.pos + at + 1,
                    queries,
                    heard,
                });
            }
        }
    }
    parallel::each(pieces, |piece| {
        let mut scores = vec![];
        dispatch!(Level::new(), simd => for row in &mut piece.rows {
            row.hear(simd, shape, piece.memory, &mut scores);
        });
    });
    heard
}

impl Row<'_> {
    #[inline(always)]
    fn hear<S: Simd>(
        &mut self,
        simd: S,
        Shape {
            head_dim, scale, ..
        }: Shape,
        memory: &Memory,
        scores: &mut Vec<[f32; LANES]>,
    ) {
        let queries = self.queries.chunks_exact(head_dim);
        for (query, heard) in queries.zip(self.heard.chunks_exact_mut(head_dim)) {
            score(simd, query, memory, self.positions, scale, scores);
            let total = weigh(simd, scores);
            let weights = scores.as_flattened();
            let seen = weights.get(..self.positions).unwrap_or(weights);
            listen(simd, seen, memory, heard);
            for number in heard {
                *number /= total;
            }
        }
    }
}

/// A query times every key that it sees; what lies beyond in the last sixteen weighs nothing.
#[inline(always)]
fn score<S: Simd>(
    simd: S,
    query: &[f32],
    memory: &Memory,
    positions: usize,
    scale: f32,
    scores: &mut Vec<[f32; LANES]>,
) {
    scores.clear();
    let sixteens = memory.keys.chunks_exact(query.len());
    for keys in sixteens.take(positions.div_ceil(LANES)) {
        // Two sums, because one would wait for itself.
        let mut sums = [f32x16::splat(simd, 0.0); 2];
        for (numbers, keys) in query.chunks(2).zip(keys.chunks(2)) {
            for (sum, (number, keys)) in sums.iter_mut().zip(numbers.iter().zip(keys)) {
                let keys = f32x16::from_slice(simd, keys);
                *sum = keys.mul_add(f32x16::splat(simd, *number), *sum);
            }
        }
        let [even, odd] = sums;
        scores.push(((even + odd) * scale).into());
    }
    let beyond = scores.as_flattened_mut().iter_mut().skip(positions);
    for score in beyond {
        *score = UNSEEN;
    }
}

/// A score so low that its weight changes no sum.
const UNSEEN: f32 = -1e30;

/// Scores become weights, not yet divided by their sum, which is returned.
#[inline(always)]
fn weigh<S: Simd>(simd: S, scores: &mut [[f32; LANES]]) -> f32 {
    let mut most = f32x16::splat(simd, f32::NEG_INFINITY);
    for scores in &*scores {
        most = most.max(f32x16::from_slice(simd, scores));
    }
    let most = most.reduce_max();
    let mut total = f32x16::splat(simd, 0.0);
    for scores in scores {
        let weights = exp(simd, f32x16::from_slice(simd, scores) - most);
        total += weights;
        *scores = weights.into();
    }
    total.reduce_sum()
}

/// The values, each as often as its weight says.
#[inline(always)]
fn listen<S: Simd>(simd: S, weights: &[f32], memory: &Memory, heard: &mut [f32]) {
    let of = heard.len();
    let values = memory.values.as_slice();
    let (wide, rest) = heard.as_chunks_mut::<{ WIDE * LANES }>();
    let mut at = 0;
    for wide in wide {
        let sums = listen_to::<S, WIDE>(simd, weights, values, of, at);
        wide.copy_from_slice(sums.as_flattened());
        at += WIDE * LANES;
    }
    let (narrow, rest) = rest.as_chunks_mut::<LANES>();
    for narrow in narrow {
        let sums = listen_to::<S, 1>(simd, weights, values, of, at);
        narrow.copy_from_slice(sums.as_flattened());
        at += LANES;
    }
    for number in rest {
        let numbers = values.iter().skip(at).step_by(of);
        *number = numbers.zip(weights).map(|(v, weight)| v * weight).sum();
        at += 1;
    }
}

/// Vectors of a value that are added up in one pass: as many sums as hide how long one takes.
const WIDE: usize = 4;

/// The numbers from `at` of values that have `of`.
#[inline(always)]
fn listen_to<S: Simd, const N: usize>(
    simd: S,
    weights: &[f32],
    values: &[f32],
    of: usize,
    at: usize,
) -> [[f32; LANES]; N] {
    let mut sums = [f32x16::splat(simd, 0.0); N];
    for (weight, value) in weights.iter().zip(values.chunks_exact(of)) {
        let weight = f32x16::splat(simd, *weight);
        let (parts, _) = value.get(at..).unwrap_or_default().as_chunks::<LANES>();
        for (sum, part) in sums.iter_mut().zip(parts) {
            *sum = f32x16::from_slice(simd, part).mul_add(weight, *sum);
        }
    }
    sums.map(Into::into)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::kv::Kv;
    use super::super::vectors::single;
    use super::*;

    /// Numbers between -1 and 1.
    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        let number = |at: usize| single((at + seed) * 7_919 % 1_013) / 506.5 - 1.0;
        (0..count).map(number).collect()
    }

    /// By the formula, in double precision.
    fn plain(shape: Shape, queries: &[f32], keys: &[f32], values: &[f32], pos: usize) -> Vec<f64> {
        let (dim, wide) = (shape.head_dim, shape.kv_heads * shape.head_dim);
        let mut heard = vec![];
        for (at, row) in queries.chunks_exact(shape.heads * dim).enumerate() {
            for (head, query) in row.chunks_exact(dim).enumerate() {
                let first = head / (shape.heads / shape.kv_heads) * dim;
                let score = |position: usize| -> f64 {
                    let key = &keys[position * wide + first..][..dim];
                    let products = query.iter().zip(key);
                    let sum: f64 = products.map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
                    (sum * f64::from(shape.scale)).exp()
                };
                let scores: Vec<f64> = (0..=pos + at).map(score).collect();
                let total: f64 = scores.iter().sum();
                for number in 0..dim {
                    let value =
                        |position: usize| f64::from(values[position * wide + first + number]);
                    let all = scores.iter().enumerate();
                    heard.push(all.map(|(at, s)| s * value(at)).sum::<f64>() / total);
                }
            }
        }
        heard
    }

    fn written(shape: Shape, positions: usize, keys: &[f32], values: &[f32]) -> Kv {
        let mut kv = Kv::new(positions, 2, (shape.kv_heads, shape.head_dim));
        kv.reach(positions);
        kv.write(1, 0, keys, values);
        kv
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_row_hears_what_the_formula_says_and_the_same_in_any_company(
            (kv_heads, shared) in (1..4_usize, 1..4_usize),
            dim in prop::sample::select(vec![4_usize, 16, 24, 64, 80]),
            before in 0..40_usize, rows in 1..20_usize, seed in 0..999_usize,
        ) {
            let heads = kv_heads * shared;
            let shape = Shape { heads, kv_heads, head_dim: dim, scale: 0.3 };
            let positions = before + rows;
            let (keys, values) = (
                numbers(positions * kv_heads * dim, seed),
                numbers(positions * kv_heads * dim, seed + 1),
            );
            let queries = numbers(rows * heads * dim, seed + 2);
            let mut kv = written(shape, positions, &keys, &values);
            let mut other = written(shape, positions, &values, &keys);
            let slot = |pos, queries, kv| Rows { pos, queries, memories: Kv::write(kv, 1, 0, &[], &[]) };
            let both = attend(shape, &[slot(before, &queries, &mut kv), slot(before, &queries, &mut other)]);
            let (own, others) = both.split_at(queries.len());
            prop_assert_ne!(own, others);
            let exact = plain(shape, &queries, &keys, &values, before);
            prop_assert_eq!(own.len(), exact.len());
            for (number, exact) in own.iter().zip(exact) {
                prop_assert!((f64::from(*number) - exact).abs() < 1e-5, "{number} {exact}");
            }
            // Row by row, and before those after it were written.
            let mut alone = Kv::new(positions, 2, (kv_heads, dim));
            alone.reach(1);
            let wide = kv_heads * dim;
            for at in 0..positions {
                alone.reach(at + 1);
                let own = at * wide..(at + 1) * wide;
                let memories = alone.write(1, at, &keys[own.clone()], &values[own]);
                if let Some(row) = at.checked_sub(before) {
                    let own_row = row * heads * dim..(row + 1) * heads * dim;
                    let rows = Rows { pos: at, queries: &queries[own_row.clone()], memories };
                    prop_assert_eq!(&attend(shape, &[rows]), &own_of(&both, own_row));
                }
            }
        }
    }

    fn own_of(all: &[f32], range: std::ops::Range<usize>) -> Vec<f32> {
        all[range].to_vec()
    }

    #[test]
    fn what_is_no_number_is_heard_as_none() {
        let shape = Shape {
            heads: 1,
            kv_heads: 1,
            head_dim: 16,
            scale: 1.0,
        };
        let mut keys = numbers(48, 1);
        keys[20] = f32::NAN;
        let mut kv = written(shape, 3, &keys, &numbers(48, 2));
        let queries = numbers(48, 3);
        let rows = Rows {
            pos: 0,
            queries: &queries,
            memories: kv.write(1, 0, &[], &[]),
        };
        let heard = attend(shape, &[rows]);
        assert!(heard[..16].iter().all(|number| number.is_finite()));
        assert!(heard[16..].iter().all(|number| number.is_nan()));
    }
}
