//! What a slot's layers remember: keys and values by position.
//!
//! Positions are explicit, so forgetting is setting a length; what lies beyond is overwritten later.
//! Memory grows with what is used, up to what was reserved.

use fearless_simd::prelude::*;
use fearless_simd::{f32x16, i16x32};

use super::Precision;
use super::vectors::{self, LANES};

/// Positions that memory begins with.
const FIRST: usize = 128;

/// What one head of one layer remembers.
pub(super) enum Memory {
    /// With [`Precision::Q8`]: 16 bits a number and a scale for each key and value, which is half as
    /// much to read and far more exact than what was multiplied to get them.
    Short(Numbers<i16>),
    /// With [`Precision::F32`].
    Exact(Numbers<f32>),
}

/// Keys and values.
#[derive(Default)]
pub(super) struct Numbers<T> {
    /// By sixteen positions, number and position: a vector has one number of sixteen keys, and sixteen
    /// products with a query add up at once.
    pub(super) keys: Vec<[T; LANES]>,
    /// By position and number.
    pub(super) values: Vec<T>,
    /// By position: what numbers are to be multiplied by.
    pub(super) key_scales: Vec<[f32; LANES]>,
    /// By position.
    pub(super) value_scales: Vec<[f32; LANES]>,
}

/// How a number is remembered.
pub(super) trait Number: Copy + Default + Send + Sync {
    /// Keeps numbers, and says what each is to be multiplied by.
    fn keep(numbers: &[f32], place: &mut [Self]) -> f32;
    /// Two vectors of them.
    fn widen<S: Simd>(simd: S, numbers: &[Self]) -> [f32x16<S>; 2];
    /// One of them.
    fn single(self) -> f32;
}

impl Number for i16 {
    fn keep(numbers: &[f32], place: &mut [Self]) -> f32 {
        vectors::quantise(numbers, place)
    }
    #[inline(always)]
    fn widen<S: Simd>(simd: S, numbers: &[Self]) -> [f32x16<S>; 2] {
        let (low, high) = simd.widen_i16x32(i16x32::from_slice(simd, numbers));
        [low, high].map(|whole| simd.cvt_f32_i32x16(whole))
    }
    #[inline(always)]
    fn single(self) -> f32 {
        f32::from(self)
    }
}

impl Number for f32 {
    fn keep(numbers: &[f32], place: &mut [Self]) -> f32 {
        place.copy_from_slice(numbers);
        1.0
    }
    #[inline(always)]
    fn widen<S: Simd>(simd: S, numbers: &[Self]) -> [f32x16<S>; 2] {
        let (low, high) = numbers.split_at(LANES);
        [low, high].map(|numbers| f32x16::from_slice(simd, numbers))
    }
    #[inline(always)]
    fn single(self) -> f32 {
        self
    }
}

/// One slot's memory of a range of layers.
pub(super) struct Kv {
    /// By layer and head.
    memories: Vec<Memory>,
    heads: usize,
    numbers: usize,
    /// Positions there is room for now.
    room: usize,
    /// Positions there will ever be.
    pub(super) reserved: usize,
    /// Positions remembered.
    pub(super) length: usize,
}

impl Kv {
    /// For so many positions and layers, of so many heads of so many numbers.
    pub(super) fn new(
        reserved: usize,
        layers: usize,
        (heads, numbers): (usize, usize),
        precision: Precision,
    ) -> Self {
        let empty = || match precision {
            Precision::Q8 => Memory::Short(Numbers::default()),
            Precision::F32 => Memory::Exact(Numbers::default()),
        };
        let memories = std::iter::repeat_with(empty).take(layers * heads);
        Self {
            memories: memories.collect(),
            heads,
            numbers,
            room: 0,
            reserved,
            length: 0,
        }
    }

    /// Makes room for `positions`, which are at most what was reserved.
    pub(super) fn reach(&mut self, positions: usize) {
        if positions <= self.room {
            return;
        }
        self.room = positions.max(2 * self.room).max(FIRST).min(self.reserved);
        for memory in &mut self.memories {
            match memory {
                Memory::Short(memory) => memory.reach(self.room, self.numbers),
                Memory::Exact(memory) => memory.reach(self.room, self.numbers),
            }
        }
    }

    /// Writes a layer's rows at `pos`, each all heads' numbers, and gives its heads.
    pub(super) fn write(
        &mut self,
        layer: usize,
        pos: usize,
        keys: &[f32],
        values: &[f32],
    ) -> &[Memory] {
        let (heads, numbers) = (self.heads, self.numbers);
        let own = layer * heads..(layer + 1) * heads;
        let Some(memories) = self.memories.get_mut(own) else {
            return &[];
        };
        let rows = |all| <[f32]>::chunks_exact(all, heads * numbers);
        for (at, (keys, values)) in rows(keys).zip(rows(values)).enumerate() {
            let heads = keys.chunks_exact(numbers).zip(values.chunks_exact(numbers));
            for (memory, (key, value)) in memories.iter_mut().zip(heads) {
                match memory {
                    Memory::Short(memory) => memory.put(pos + at, key, value),
                    Memory::Exact(memory) => memory.put(pos + at, key, value),
                }
            }
        }
        memories
    }
}

impl<T: Number> Numbers<T> {
    fn reach(&mut self, room: usize, numbers: usize) {
        let sixteens = room.div_ceil(LANES);
        grow(&mut self.keys, sixteens * numbers);
        grow(&mut self.values, room * numbers);
        grow(&mut self.key_scales, sixteens);
        grow(&mut self.value_scales, sixteens);
    }

    fn put(&mut self, pos: usize, key: &[f32], value: &[f32]) {
        let (sixteen, place, numbers) = (pos / LANES, pos % LANES, key.len());
        let keys = self.keys.chunks_exact_mut(numbers).nth(sixteen);
        let mut kept = vec![T::default(); numbers];
        let scale = T::keep(key, &mut kept);
        for (keys, number) in keys.into_iter().flatten().zip(&kept) {
            set(keys.get_mut(place), *number);
        }
        set(at(&mut self.key_scales, sixteen, place), scale);
        if let Some(value_place) = self.values.chunks_exact_mut(numbers).nth(pos) {
            let scale = T::keep(value, value_place);
            set(at(&mut self.value_scales, sixteen, place), scale);
        }
    }
}

fn at<T>(sixteens: &mut [[T; LANES]], sixteen: usize, place: usize) -> Option<&mut T> {
    sixteens.get_mut(sixteen)?.get_mut(place)
}

fn set<T>(place: Option<&mut T>, value: T) {
    if let Some(place) = place {
        *place = value;
    }
}

/// To exactly so many: what is doubled elsewhere is not doubled here again.
fn grow<T: Copy + Default>(numbers: &mut Vec<T>, count: usize) {
    numbers.reserve_exact(count.saturating_sub(numbers.len()));
    numbers.resize(count, T::default());
}
