//! What a slot's layers remember: keys and values by position.
//!
//! Positions are explicit, so forgetting is setting a length; what lies beyond is overwritten later.
//! Memory grows with what is used, up to what was reserved.

use super::vectors::LANES;

/// Positions that memory begins with.
const FIRST: usize = 128;

/// What one head of one layer remembers.
#[derive(Clone, Default)]
pub(super) struct Memory {
    /// By sixteen positions, number and position: a vector has one number of sixteen keys, and sixteen
    /// products with a query add up at once.
    pub(super) keys: Vec<[f32; LANES]>,
    /// By position and number.
    pub(super) values: Vec<f32>,
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
    pub(super) fn new(reserved: usize, layers: usize, (heads, numbers): (usize, usize)) -> Self {
        Self {
            memories: vec![Memory::default(); layers * heads],
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
            let keys = self.room.div_ceil(LANES) * self.numbers;
            grow(&mut memory.keys, keys, [0.0; LANES]);
            grow(&mut memory.values, self.room * self.numbers, 0.0);
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
                memory.put(pos + at, key, value);
            }
        }
        memories
    }
}

impl Memory {
    fn put(&mut self, pos: usize, key: &[f32], value: &[f32]) {
        let numbers = key.len();
        let sixteen = pos / LANES * numbers;
        if let Some(keys) = self.keys.get_mut(sixteen..sixteen + numbers) {
            for (places, number) in keys.iter_mut().zip(key) {
                if let Some(place) = places.get_mut(pos % LANES) {
                    *place = *number;
                }
            }
        }
        if let Some(place) = self.values.get_mut(pos * numbers..(pos + 1) * numbers) {
            place.copy_from_slice(value);
        }
    }
}

/// To exactly so many: what is doubled elsewhere is not doubled here again.
fn grow<T: Clone>(numbers: &mut Vec<T>, count: usize, zero: T) {
    numbers.reserve_exact(count.saturating_sub(numbers.len()));
    numbers.resize(count, zero);
}
