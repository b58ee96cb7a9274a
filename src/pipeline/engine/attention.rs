//! What a row hears of the rows before it in its slot.
//!
//! Scores of sixteen positions at once, softmax, and the values weighted by them. Several query heads
//! share one head of keys and values (grouped-query attention, Ainslie et al. 2023) and read it
//! together, because reading takes the time. Each row is computed by itself, whatever came with it,
//! so a row that is replayed gives the same bits.

#[cfg(test)]
mod tests;

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
