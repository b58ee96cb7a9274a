//! What a row hears of the rows before it in its slot.
//!
//! Scores of sixteen positions at once, softmax, and the values weighted by them. Several query heads
//! share one head of keys and values (grouped-query attention, Ainslie et al. 2023) and read it
//! together, because reading takes the time. Each row is
//! computed by itself, whatever came with it, so a row that is replayed gives the same bits.

use fearless_simd::prelude::*;
use fearless_simd::{Level, dispatch, f32x16};

use super::kv::{Memory, Number, Numbers};
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
        dispatch!(Level::new(), simd => piece.hear(simd, shape));
    });
    heard
}

impl Piece<'_> {
    #[inline(always)]
    fn hear<S: Simd>(&mut self, simd: S, shape: Shape) {
        let memory = self.memory;
        for row in &mut self.rows {
            match memory {
                Memory::Short(numbers) => row.hear(simd, shape, numbers),
                Memory::Exact(numbers) => row.hear(simd, shape, numbers),
            }
        }
    }
}

impl Row<'_> {
    /// Heads that share keys look at them together, four, two or one at a time.
    #[inline(always)]
    fn hear<S: Simd, T: Number>(&mut self, simd: S, shape: Shape, memory: &Numbers<T>) {
        let (dim, scale) = (shape.head_dim, shape.scale);
        let seen = Seen {
            memory,
            positions: self.positions,
            dim,
        };
        let (mut queries, mut heard) = (self.queries, &mut *self.heard);
        while !queries.is_empty() {
            let together = match queries.len() / dim {
                4.. => 4,
                2.. => 2,
                _ => 1,
            };
            let (some, others) = queries.split_at(together * dim);
            let (place, places) = heard.split_at_mut(together * dim);
            match together {
                4 => seen.hear::<S, 4>(simd, some, scale, place),
                2 => seen.hear::<S, 2>(simd, some, scale, place),
                _ => seen.hear::<S, 1>(simd, some, scale, place),
            }
            (queries, heard) = (others, places);
        }
    }
}

/// What a row sees of a head's memory.
struct Seen<'a, T> {
    memory: &'a Numbers<T>,
    positions: usize,
    /// Numbers of a key, and of a value.
    dim: usize,
}

/// Of sixteen positions, for `N` queries.
type Scores<const N: usize> = [[f32; LANES]; N];
/// A score so low that its weight changes no sum.
const UNSEEN: f32 = -1e30;
/// 16-bit numbers that are read at once.
const WIDE: usize = 2 * LANES;

impl<T: Number> Seen<'_, T> {
    #[inline(always)]
    fn hear<S: Simd, const N: usize>(
        &self,
        simd: S,
        queries: &[f32],
        scale: f32,
        heard: &mut [f32],
    ) {
        let mut scores = self.score::<S, N>(simd, queries, scale);
        let totals = self.weigh(simd, &mut scores);
        self.listen(simd, &scores, heard);
        for (heard, total) in heard.chunks_exact_mut(self.dim).zip(totals) {
            for number in heard {
                *number /= total;
            }
        }
    }

    /// Queries times every key; what lies beyond in the last sixteen weighs nothing.
    #[inline(always)]
    fn score<S: Simd, const N: usize>(
        &self,
        simd: S,
        queries: &[f32],
        scale: f32,
    ) -> Vec<Scores<N>> {
        let zero = f32x16::splat(simd, 0.0);
        let mut each = queries.chunks_exact(self.dim);
        let queries: [&[f32]; N] = std::array::from_fn(|_| each.next().unwrap_or_default());
        let keys = self.memory.keys.chunks_exact(self.dim);
        let keys = keys.zip(&self.memory.key_scales);
        let mut scores: Vec<Scores<N>> = Vec::with_capacity(self.positions.div_ceil(LANES));
        for (keys, scales) in keys.take(self.positions.div_ceil(LANES)) {
            // Two sums a query, because one would wait for itself.
            let mut sums = [[zero; 2]; N];
            for (at, pair) in keys.as_chunks::<2>().0.iter().enumerate() {
                let pair = T::widen(simd, pair.as_flattened());
                for (sums, query) in sums.iter_mut().zip(queries) {
                    let numbers = query.get(2 * at..2 * at + 2).unwrap_or_default();
                    for ((sum, key), number) in sums.iter_mut().zip(pair).zip(numbers) {
                        *sum = key.mul_add(f32x16::splat(simd, *number), *sum);
                    }
                }
            }
            let scales = f32x16::from_slice(simd, scales) * scale;
            scores.push(sums.map(|[even, odd]| ((even + odd) * scales).into()));
        }
        let seen = self.positions % LANES;
        if let Some(last) = scores.last_mut().filter(|_| seen > 0) {
            for score in last
                .iter_mut()
                .flat_map(|scores| scores.iter_mut().skip(seen))
            {
                *score = UNSEEN;
            }
        }
        scores
    }

    /// Scores become weights of 16-bit values, not yet divided by their sums, which are returned.
    #[inline(always)]
    fn weigh<S: Simd, const N: usize>(&self, simd: S, scores: &mut [Scores<N>]) -> [f32; N] {
        let mut most = [f32x16::splat(simd, UNSEEN); N];
        for scores in &*scores {
            for (most, scores) in most.iter_mut().zip(scores) {
                *most = most.max(f32x16::from_slice(simd, scores));
            }
        }
        let most = most.map(|most| most.reduce_max());
        let mut totals = [f32x16::splat(simd, 0.0); N];
        for (scores, scales) in scores.iter_mut().zip(&self.memory.value_scales) {
            let scales = f32x16::from_slice(simd, scales);
            for ((scores, total), most) in scores.iter_mut().zip(&mut totals).zip(most) {
                let weights = exp(simd, f32x16::from_slice(simd, scores) - most);
                *total += weights;
                *scores = (weights * scales).into();
            }
        }
        totals.map(|total| total.reduce_sum())
    }

    /// The values, each as often as its weights say.
    #[inline(always)]
    fn listen<S: Simd, const N: usize>(&self, simd: S, weights: &[Scores<N>], heard: &mut [f32]) {
        let (wide, zero) = (self.dim / WIDE, f32x16::splat(simd, 0.0));
        for part in 0..wide {
            let mut sums = [[zero; 2]; N];
            self.each(weights, |value, weights| {
                let (parts, _) = value.as_chunks::<WIDE>();
                let numbers = parts
                    .get(part)
                    .map_or([zero; 2], |part| T::widen(simd, part));
                for (sums, weight) in sums.iter_mut().zip(weights) {
                    for (sum, number) in sums.iter_mut().zip(numbers) {
                        *sum = number.mul_add(f32x16::splat(simd, weight), *sum);
                    }
                }
            });
            for (heard, sums) in heard.chunks_exact_mut(self.dim).zip(sums) {
                if let Some(place) = heard.as_chunks_mut::<WIDE>().0.get_mut(part) {
                    let (low, high) = place.split_at_mut(LANES);
                    let [first, second] = sums;
                    first.store_slice(low);
                    second.store_slice(high);
                }
            }
        }
        for at in wide * WIDE..self.dim {
            let mut sums = [0.0; N];
            self.each(weights, |value, weights| {
                let number = value.get(at).map_or(0.0, |number| number.single());
                for (sum, weight) in sums.iter_mut().zip(weights) {
                    *sum += number * weight;
                }
            });
            for (heard, sum) in heard.chunks_exact_mut(self.dim).zip(sums) {
                if let Some(place) = heard.get_mut(at) {
                    *place = sum;
                }
            }
        }
    }

    /// Every value that is seen, with its weights.
    #[inline(always)]
    fn each<const N: usize>(&self, weights: &[Scores<N>], mut listen: impl FnMut(&[T], [f32; N])) {
        let mut values = self
            .memory
            .values
            .chunks_exact(self.dim)
            .take(self.positions);
        for sixteen in weights {
            for (lane, value) in values.by_ref().take(LANES).enumerate() {
                listen(
                    value,
                    sixteen.map(|lanes| lanes.get(lane).copied().unwrap_or(0.0)),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Precision;
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

    fn written(
        precision: Precision,
        shape: Shape,
        positions: usize,
        keys: &[f32],
        values: &[f32],
    ) -> Kv {
        let heads = (shape.kv_heads, shape.head_dim);
        let mut kv = Kv::new(positions, 2, heads, precision);
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
            (precision, most) in prop::sample::select(vec![(Precision::Q8, 1e-4), (Precision::F32, 1e-5)]),
        ) {
            let heads = kv_heads * shared;
            let shape = Shape { heads, kv_heads, head_dim: dim, scale: 0.3 };
            let positions = before + rows;
            let (keys, values) = (
                numbers(positions * kv_heads * dim, seed),
                numbers(positions * kv_heads * dim, seed + 1),
            );
            let queries = numbers(rows * heads * dim, seed + 2);
            let mut kv = written(precision, shape, positions, &keys, &values);
            let mut other = written(precision, shape, positions, &values, &keys);
            let slot = |pos, queries, kv| Rows { pos, queries, memories: Kv::write(kv, 1, 0, &[], &[]) };
            let both = attend(shape, &[slot(before, &queries, &mut kv), slot(before, &queries, &mut other)]);
            let (own, others) = both.split_at(queries.len());
            prop_assert_ne!(own, others);
            let exact = plain(shape, &queries, &keys, &values, before);
            prop_assert_eq!(own.len(), exact.len());
            for (number, exact) in own.iter().zip(exact) {
                prop_assert!((f64::from(*number) - exact).abs() < most, "{number} {exact}");
            }
            // Row by row, and before those after it were written.
            let mut alone = Kv::new(positions, 2, (kv_heads, dim), precision);
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
        let mut kv = written(Precision::Q8, shape, 3, &keys, &numbers(48, 2));
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
