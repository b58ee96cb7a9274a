//! 8-bit matrices laid out for several rows at once, where the processor has instructions for it.
//!
//! One row is as fast as memory gives the weights. Eight rows should cost little more, and do when
//! each weight that was loaded multiplies all of them before the next one is: that is how streams
//! which a stage serves together share its reading. candle multiplies at most four rows a pass, and
//! keeps their sums in memory; here they stay in registers.
//!
//! - A *tile* is sixteen outputs of a matrix: one vector holds four inputs of each.
//! - Rows are quantised as weights are, a scale per 32 numbers, once for all matrices they meet.
//! - A row's sums are added up in the same order in every group, so its result does not depend on
//!   which rows it came with.
//!
//! `avx512` has the instructions (x86 with AVX-512 and VNNI: servers since Ice Lake and Zen 4); other
//! processors get no tiles, and candle computes (see `weights`).

#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(test)]
mod tests;

use std::sync::OnceLock;

use candle_core::Result;

use super::parallel;

#[cfg(target_arch = "x86_64")]
use avx512::Instructions;
#[cfg(not(target_arch = "x86_64"))]
use none::Instructions;

/// Numbers that share a scale.
const GROUP: usize = 32;
/// Bytes of a group as files have it: a half-precision scale, then the numbers.
const GROUP_BYTES: usize = 2 + GROUP;
/// Outputs of a tile.
const TILE: usize = 16;
/// Inputs of an output that lie together in a vector.
const TOGETHER: usize = 4;
/// Vectors of a tile's group.
const VECTORS: usize = GROUP / TOGETHER;

/// A vector of weights, at an address where loading it touches one line of the cache.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Vector([u8; TILE * TOGETHER]);

/// What a tile has of one group of inputs.
type Scales = [u16; TILE];

/// A matrix of 8-bit weights.
pub(super) struct Tiles {
    instructions: Instructions,
    outputs: usize,
    inputs: usize,
    /// By tile, group of inputs and four inputs; each number is 128 more than it is.
    weights: Vec<[Vector; VECTORS]>,
    /// By tile and group, half precision.
    scales: Vec<Scales>,
}

impl Tiles {
    /// Lays out what `Q8_0` blocks hold, or nothing where the processor or the shape does not fit.
    pub(super) fn new(blocks: &[u8], outputs: usize, inputs: usize) -> Option<Self> {
        static FOUND: OnceLock<Option<Instructions>> = OnceLock::new();
        let instructions = (*FOUND.get_or_init(Instructions::find))?;
        let (tiles, groups) = (outputs / TILE, inputs / GROUP);
        let fits = outputs.is_multiple_of(TILE) && inputs.is_multiple_of(GROUP);
        if !fits || groups == 0 || blocks.len() != outputs * groups * GROUP_BYTES {
            return None;
        }
        let mut weights = vec![[Vector([0; TILE * TOGETHER]); VECTORS]; tiles * groups];
        let mut scales = vec![[0; TILE]; tiles * groups];
        let of_tiles = blocks.chunks_exact(TILE * groups * GROUP_BYTES);
        let tiles = weights.chunks_exact_mut(groups);
        for (blocks, (weights, scales)) in of_tiles.zip(tiles.zip(scales.chunks_exact_mut(groups)))
        {
            let of_outputs = blocks.chunks_exact(groups * GROUP_BYTES);
            for (output, blocks) in of_outputs.enumerate() {
                let places = weights.iter_mut().zip(scales.iter_mut());
                for (block, (vectors, scales)) in blocks.chunks_exact(GROUP_BYTES).zip(places) {
                    put(block, output, vectors, scales);
                }
            }
        }
        Some(Self {
            instructions,
            outputs,
            inputs,
            weights,
            scales,
        })
    }
}

/// Puts a group of one output where it belongs.
fn put(block: &[u8], output: usize, vectors: &mut [Vector; VECTORS], scales: &mut Scales) {
    let Some((&[low, high], numbers)) = block.split_first_chunk::<2>() else {
        return;
    };
    if let Some(scale) = scales.get_mut(output) {
        *scale = u16::from_le_bytes([low, high]);
    }
    let (fours, _) = numbers.as_chunks::<TOGETHER>();
    for (four, vector) in fours.iter().zip(vectors) {
        let (places, _) = vector.0.as_chunks_mut::<TOGETHER>();
        if let Some(place) = places.get_mut(output) {
            // From -128..128 to 0..256.
            *place = four.map(|number| number ^ 0x80);
        }
    }
}

/// Rows of one pass at most: their sums and totals fill half of the registers.
const BATCH: usize = 8;

/// Rows that are multiplied in one pass, by first row and count: eight, then what is left by halves.
fn split(count: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let size = match count - at {
            0 => return None,
            BATCH.. => BATCH,
            4.. => 4,
            2.. => 2,
            _ => 1,
        };
        at += size;
        Some((at - size, size))
    })
}

/// Rows of one pass: what each has of a group lies together.
struct Batch {
    at: usize,
    count: usize,
    /// By group, four inputs and row: four numbers.
    words: Vec<i32>,
    /// By group and row: what the weights' shift by 128 adds, to be taken away.
    shifts: Vec<i32>,
    /// By group and row.
    scales: Vec<f32>,
}

impl Batch {
    fn all(instructions: Instructions, rows: &[f32], inputs: usize) -> Vec<Self> {
        let quantise = |(at, count)| {
            let mut batch = Self::new(at, count, inputs);
            let rows = rows.chunks_exact(inputs).skip(at).take(count);
            for (row, numbers) in rows.enumerate() {
                instructions.quantise(numbers, row, &mut batch);
            }
            batch
        };
        split(rows.len() / inputs).map(quantise).collect()
    }

    fn new(at: usize, count: usize, inputs: usize) -> Self {
        Self {
            at,
            count,
            words: vec![0; inputs / TOGETHER * count],
            shifts: vec![0; inputs / GROUP * count],
            scales: vec![0.0; inputs / GROUP * count],
        }
    }
}

/// Weights that a thread multiplies at once: much longer than handing them out takes, and little enough
/// that threads end together.
const PIECE_BYTES: usize = 128 << 10;

/// Every matrix times the same rows: for each matrix its outputs, row after row.
///
/// # Errors
/// When the rows are not as long as each matrix has inputs.
pub(super) fn product(matrices: &[&Tiles], rows: &[f32], inputs: usize) -> Result<Vec<Vec<f32>>> {
    let Some(first) = matrices.first() else {
        return Ok(vec![]);
    };
    let count = rows.len().checked_div(inputs).unwrap_or(0);
    let fits = matrices.iter().all(|matrix| matrix.inputs == inputs);
    if !fits || count == 0 || count * inputs != rows.len() {
        candle_core::bail!("{} numbers for rows of {inputs}", rows.len());
    }
    let batches = Batch::all(first.instructions, rows, inputs);
    let empty = |matrix: &&Tiles| vec![0.0; matrix.outputs * count];
    let mut products: Vec<Vec<f32>> = matrices.iter().map(empty).collect();
    let cut = (PIECE_BYTES / inputs).next_multiple_of(TILE).max(TILE);
    let mut pieces: Vec<Piece<'_>> = vec![];
    for (matrix, product) in matrices.iter().zip(&mut products) {
        let first = pieces.len();
        pieces.extend((0..matrix.outputs).step_by(cut).map(|output| Piece {
            matrix,
            tile: output / TILE,
            rows: vec![],
        }));
        for row in product.chunks_exact_mut(matrix.outputs) {
            for (piece, part) in pieces.iter_mut().skip(first).zip(row.chunks_mut(cut)) {
                piece.rows.push(part);
            }
        }
    }
    parallel::each(pieces, |piece| piece.multiply(&batches));
    Ok(products)
}

/// Some tiles of a matrix, and where their outputs go.
struct Piece<'a> {
    matrix: &'a Tiles,
    /// The first.
    tile: usize,
    /// By row.
    rows: Vec<&'a mut [f32]>,
}

impl Piece<'_> {
    fn multiply(&mut self, batches: &[Batch]) {
        let (matrix, groups) = (self.matrix, self.matrix.inputs / GROUP);
        let outputs = self.rows.first().map_or(0, |row| row.len());
        for tile in 0..outputs / TILE {
            let at = (self.tile + tile) * groups;
            let own = at..at + groups;
            let (Some(weights), Some(scales)) =
                (matrix.weights.get(own.clone()), matrix.scales.get(own))
            else {
                return;
            };
            for batch in batches {
                let mut totals = [[0.0; TILE]; BATCH];
                let instructions = matrix.instructions;
                instructions.multiply(weights, scales, batch, &mut totals);
                let rows = self.rows.iter_mut().skip(batch.at).take(batch.count);
                for (row, totals) in rows.zip(&totals) {
                    if let Some(place) = row.as_chunks_mut().0.get_mut(tile) {
                        *place = *totals;
                    }
                }
            }
        }
    }
}

/// Processors without such instructions.
#[cfg(not(target_arch = "x86_64"))]
mod none {
    use super::{Batch, Scales, TILE, VECTORS, Vector};

    /// There are none.
    #[derive(Clone, Copy)]
    pub(super) enum Instructions {}

    impl Instructions {
        pub(super) const fn find() -> Option<Self> {
            None
        }
        pub(super) fn quantise(self, _: &[f32], _: usize, _: &mut Batch) {
            match self {}
        }
        pub(super) fn multiply(
            self,
            _: &[[Vector; VECTORS]],
            _: &[Scales],
            _: &Batch,
            _: &mut [[f32; TILE]],
        ) {
            match self {}
        }
    }
}
