//! Computes: a range of a model's layers, and the two ends of it (tokens to rows, rows to tokens).
//!
//! # Layout
//! - [`config`]: the model's shape, read from `config.json` or GGUF metadata, checked;
//! - `source`: finds tensors by name and reads only those that are asked for;
//! - `weights`: matrices that take memory once; `tiles`: those that many rows meet in one pass;
//! - `vectors`: the arithmetic between them; `parallel`: on several threads;
//! - `block`: one decoder layer, generic over Llama, Mistral, Qwen2 and Qwen3; its `attention`;
//! - `rope`: the angles that positions turn queries and keys by;
//! - [`manifest`]: what a model is, as one hash; [`known`]: those made before;
//! - `kv`: what a session's layers remember, at explicit positions;
//! - [`stage`]: a range of blocks behind [`Engine`]; [`head`]: embedding, last norm, output;
//! - `vocabulary`: what a GGUF file says about text;
//! - [`sampling`]: the next token from logits.
//!
//! # Invariants
//! - A row's result depends on the rows of its own slot at lower positions and on nothing else, so a
//!   model cut into ranges gives the same bits as the whole, and replaying rows restores a lost range.
//! - Position is explicit: writing at `pos` forgets what was remembered from `pos` on.
//!
//! Callers: the stages and heads of `pipeline`, from one thread per engine and never from the
//! runtime's workers, because every call takes milliseconds of all cores.

mod attention;
mod block;
pub mod config;
pub mod head;
pub mod known;
mod kv;
pub mod manifest;
mod parallel;
mod rope;
pub mod sampling;
mod source;
pub mod stage;
#[cfg(test)]
pub(in crate::pipeline) mod tests;
mod tiles;
mod vectors;
mod vocabulary;
mod weights;

use std::ops::Range;
use std::path::{Path, PathBuf};

pub use config::{Family, ModelConfig};
pub use head::Head;
pub use sampling::Sampler;
pub use stage::Stage;
pub use vocabulary::Vocabulary;

/// Reads a model's shape and no weights.
///
/// # Errors
/// When files cannot be read or are no model that is computed here.
pub fn shape(path: &Path) -> Result<ModelConfig, EngineError> {
    source::Source::open(path).map(|(_, config)| config)
}

/// How weights, and what rows leave behind, are kept in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// 8-bit integers with a scale per 32: half of f16's memory, and faster on CPUs than anything
    /// wider. Weights that a GGUF file quantised already stay as they are. Keys and values are 16-bit
    /// integers with a scale each.
    #[default]
    Q8,
    /// As exact as the file: for comparisons.
    F32,
}

/// Which layers, of which model, in which form.
#[derive(Clone, Debug)]
pub struct Load {
    /// A directory with `config.json` and safetensors, or a GGUF file.
    pub path: PathBuf,
    /// Layers, from 0.
    pub layers: Range<usize>,
    /// How weights and rows are kept.
    pub precision: Precision,
    /// Positions of all slots together that may be reserved: the engine's memory bound.
    pub positions_max: usize,
}

/// Names one session inside an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u64);

/// Rows of one slot that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Whose.
    pub slot: Slot,
    /// The first one's position; at most what the slot remembers.
    pub pos: usize,
    /// How many.
    pub rows: usize,
}

/// Runs a range of layers for many slots. One implementation is [`Stage`].
pub trait Engine: Send {
    /// The whole model's shape.
    fn config(&self) -> &ModelConfig;
    /// The layers here.
    fn layers(&self) -> Range<usize>;
    /// Reserves room for `positions_max` positions.
    ///
    /// # Errors
    /// [`EngineError::Full`] when too little is free, [`EngineError::TooLong`] when it never will be.
    fn open(&mut self, positions_max: usize) -> Result<Slot, EngineError>;
    /// Computes rows of one or more slots together. `rows` holds `hidden` numbers per row, span
    /// after span; so does the answer.
    ///
    /// # Errors
    /// [`EngineError::Gap`] when a span begins beyond what its slot remembers; nothing was changed.
    /// After [`EngineError::Compute`] the slots named have forgotten everything from `pos` on.
    fn forward(&mut self, spans: &[Span], rows: Vec<f32>) -> Result<Vec<f32>, EngineError>;
    /// Positions that may still be reserved.
    fn positions_free(&self) -> usize;
    /// Positions that a slot remembers.
    fn length(&self, slot: Slot) -> Option<usize>;
    /// Forgets a slot; what it reserved is free again.
    fn close(&mut self, slot: Slot);
}

/// Why an engine did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no model, or a damaged one.
    #[error("{path}: {why}")]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A model of a kind that is not computed here.
    #[error("this model cannot be run: {0}")]
    Unsupported(String),
    /// Other sessions hold the memory; later again.
    #[error("{wanted} positions are wanted and {free} are free")]
    Full {
        /// Asked for.
        wanted: usize,
        /// Left.
        free: usize,
    },
    /// More positions than the model or this engine ever has.
    #[error("{wanted} positions are wanted and the most is {most}")]
    TooLong {
        /// Asked for.
        wanted: usize,
        /// The bound.
        most: usize,
    },
    /// No such slot.
    #[error("no slot {0:?}")]
    NoSlot(Slot),
    /// Rows before these are missing: send them first.
    #[error("rows from position {pos} on, but only {length} are remembered")]
    Gap {
        /// Where they begin.
        pos: usize,
        /// What is there.
        length: usize,
    },
    /// Rows and spans do not fit together.
    #[error("{0}")]
    Shape(String),
    /// The arithmetic library failed.
    #[error("computing failed: {0}")]
    Compute(#[from] candle_core::Error),
}
