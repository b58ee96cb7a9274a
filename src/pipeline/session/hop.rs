//! What a chain is made of, and what it says to its caller.

use bytes::Bytes;

use super::Rows;
use crate::protocol::stage::{StageMessage, StageSession};
use crate::types::PeerId;

/// Names one stage of one session; never used again for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HopId(pub u64);

/// One stage of the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Its name here.
    pub id: HopId,
    /// First layer.
    pub first: u16,
    /// The layer after the last.
    pub end: u16,
    /// Who it is.
    pub peer: PeerId,
    /// Its session there.
    pub session: StageSession,
}

/// What the caller does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChainEffect {
    /// Send a message to a stage.
    Send(HopId, StageMessage, Bytes),
    /// The stage is out: pay for these rows, close its session. [`super::Chain::missing`] says which layers
    /// need another.
    Dismiss(HopId, Rows, Loss),
    /// The rows asked for went through; this is the last one's result.
    Answer(Bytes),
}

/// Why a stage is out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// It is gone, busy or out of reach: another time it may serve well.
    Away(&'static str),
    /// It broke the rules of a session, or computed other than its layers.
    Faulty(&'static str),
}

impl Loss {
    /// As it is logged.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Away(why) | Self::Faulty(why) => why,
        }
    }
}

/// How rows get from stage to stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// Each stage pushes to the next.
    #[default]
    Push,
    /// Everything passes through the head: for stages that cannot reach each other.
    Star,
}
