//! What the offer of a pipeline's stage says besides its price: which layers of which model.
//!
//! A stage's offer has a model name of its own kind ([`stage_model`]), so that it lies under DHT keys
//! of its own and nobody takes it for a model that answers questions. Its prices are micro-USD per
//! million *block-tokens* (one row through one layer): `input` for prefill, `output` for decode.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::types::{Hash32, ModelId};

/// The path of the orders that a stage's offer is for.
pub const STAGE_PATH: &str = "/souk/stage";
/// Most layers of a model: several times what any has.
pub const LAYERS_MAX: u16 = 1_024;
/// What the name of a stage's model begins with.
const PREFIX: &str = "stage/";
/// Hex digits of the manifest's hash in that name: 128 bits, so that nobody finds a second manifest.
const NAME_DIGITS: usize = 32;

/// In which forms a stage takes and gives rows, as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Wires(pub u8);

bits!(Wires);

impl Wires {
    /// Half precision, 2 bytes a number: what everybody speaks.
    pub const F16: Self = Self(1);
    /// Single precision, 4 bytes a number: as computed.
    pub const F32: Self = Self(1 << 1);
    /// One byte a number and a scale per row.
    pub const INT8: Self = Self(1 << 2);
    /// All that have a meaning.
    const ALL: Self = Self(0b111);
}

/// Which layers a stage computes, and how well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StageTerms {
    /// Root hash over the model's tensors, shape and tokenizer: what must be equal to fit together.
    pub manifest: Hash32,
    /// First layer, from 0.
    pub first: u16,
    /// The layer after the last.
    pub end: u16,
    /// Layers of the whole model.
    pub layers: u16,
    /// Positions that new sessions can still reserve here, all together.
    pub free_positions: u32,
    /// Decode rows per second through the whole range, as measured on this machine.
    pub rows_per_s: u32,
    /// Forms of rows.
    pub wires: Wires,
}

impl StageTerms {
    /// The layers, from 0.
    #[must_use]
    pub const fn range(&self) -> Range<u16> {
        self.first..self.end
    }
    /// Number of layers here.
    #[must_use]
    pub const fn width(&self) -> u16 {
        self.end.saturating_sub(self.first)
    }
    /// True when these are layers of that model and the forms are known and include f16.
    pub(super) const fn is_possible(&self) -> bool {
        self.first < self.end
            && self.end <= self.layers
            && self.layers <= LAYERS_MAX
            && self.wires.contains(Wires::F16)
            && Wires::ALL.contains(self.wires)
    }
}

/// The name under which stages of the model with this manifest are offered.
#[must_use]
pub fn stage_model(manifest: &Hash32) -> ModelId {
    let mut name = PREFIX.to_owned();
    name.extend(hex::encode(manifest.as_bytes()).chars().take(NAME_DIGITS));
    ModelId::new(&name)
}

/// True for a name that only stages have.
#[must_use]
pub fn is_stage_model(model: &ModelId) -> bool {
    let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    model
        .as_str()
        .strip_prefix(PREFIX)
        .is_some_and(|rest| rest.len() == NAME_DIGITS && rest.bytes().all(digit))
}
