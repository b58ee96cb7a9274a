//! Why a pipeline did not compute what it was asked.

use super::engine::EngineError;

/// What a caller of the pipeline is told. Cheap to clone: one failed batch fails many callers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PipelineError {
    /// Other sessions hold the memory; ask again later, or elsewhere.
    #[error("no room: {wanted} positions are wanted and {free} are free; try again later")]
    Full {
        /// Positions asked for.
        wanted: usize,
        /// Positions left.
        free: usize,
    },
    /// More positions than there will ever be; shorten the prompt or the answer.
    #[error("{wanted} positions are wanted and the most is {most}")]
    TooLong {
        /// Positions asked for.
        wanted: usize,
        /// The bound, positions.
        most: usize,
    },
    /// Rows before these are missing; send them first.
    #[error("rows from position {pos} on, but only {length} are remembered; send those before")]
    Gap {
        /// Where the rows begin.
        pos: usize,
        /// Positions remembered.
        length: usize,
    },
    /// The call itself is wrong; the same again would fail again.
    #[error("{0}")]
    Invalid(String),
    /// The arithmetic failed, or the files did; rows from the failed position on are forgotten.
    #[error("{0}")]
    Failed(String),
    /// A stage is lost and none was found in its place.
    #[error("a stage is lost: {0}")]
    Lost(String),
    /// A spending limit does not allow it; ask for less, or when it is reset.
    #[error("{0}")]
    Budget(String),
    /// The thread that computes has ended; start the node again.
    #[error("the engine has stopped")]
    Stopped,
}

impl From<EngineError> for PipelineError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Full { wanted, free } => Self::Full { wanted, free },
            EngineError::TooLong { wanted, most } => Self::TooLong { wanted, most },
            EngineError::Gap { pos, length } => Self::Gap { pos, length },
            EngineError::NoSlot(_) | EngineError::Shape(_) => Self::Invalid(error.to_string()),
            other => Self::Failed(other.to_string()),
        }
    }
}
