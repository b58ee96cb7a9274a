//! Rows go through a model's layers exactly once, whatever is lost on the way: pure machines, one
//! for a stage and one for the head. No I/O, no clock, no engine.
//!
//! # How rows travel
//! The head gives rows to the first stage; each stage computes them and gives its results to the
//! next ([`StageMachine`]); the last gives the newest row back to the head ([`Chain`]), which makes
//! a token of it. Every sender keeps what it sent in a [`Log`], one row per position, so whoever
//! takes a lost stage's place can be given everything again.
//!
//! # Rules
//! - R1 A step with the next `seq` and `pos` at most what is remembered: what is behind `pos` is
//!   forgotten, the rows are computed, and billed once.
//! - R2 An old `seq`: the results are sent again, nothing is computed or billed.
//! - R3 A later `seq`, or a `pos` beyond what is remembered: GAP; the head routes anew.
//! - R4 Another epoch: old ones are dropped, newer ones wait for their ROUTE.
//! - R5 `pos` is explicit: a lower one takes rows back. There is no message for that alone.
//!
//! # A loss
//! One way for all of them. The head raises the epoch and halts everyone left; each answers how many
//! positions it remembers, after which nothing older can come from it. New stages join. When the
//! layers are complete again the head tells everyone its next and how much that one holds, and each
//! sender, the head too, gives from its log what its next lacks. Survivors get only what they miss.
//! A stage that cannot reach its next is believed the second time: a stage that goes down says so of
//! a next that lives.
//!
//! # Money
//! A stage bills rows that it computed, and says so ([`Done`](crate::protocol::stage::Done)) before
//! results leave. The head counts for itself what it caused each stage to compute ([`Tally`]): a
//! DONE for anything else ends the session. So replay costs the head the new stage's rows once, and
//! no stage is paid twice for the same rows.
//!
//! # What a stage has said
//! A DONE names the rows that came and the results that leave by their digests. The head keeps them
//! ([`Promises`]): what it is shown later must be what was sent.

mod chain;
mod hop;
mod log;
mod promises;
mod stage;
mod tally;
#[cfg(test)]
mod tests;

pub use chain::Chain;
pub use hop::{ChainEffect, Hop, HopId, Loss, Shape};
pub use log::Log;
pub use promises::{Piece, Promises};
pub use stage::{StageEffect, StageMachine, StageRefusal, StageVerdict, Work};
pub use tally::{Rows, Tally};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::protocol::stage::RowsDigest;

pub use crate::protocol::limits::STAGE_CHUNK_ROWS_MAX as CHUNK_ROWS_MAX;

/// The digest of rows as they travel.
#[must_use]
pub fn digest_of(rows: &Bytes) -> RowsDigest {
    let hash: [u8; 32] = Sha256::digest(rows).into();
    RowsDigest(hash.first_chunk::<16>().copied().unwrap_or_default())
}

/// Rows of `row_bytes` that one message carries.
fn chunk_rows(row_bytes: usize) -> u32 {
    message_rows(row_bytes).min(CHUNK_ROWS_MAX)
}

/// Rows of `row_bytes` that one message could carry.
fn message_rows(row_bytes: usize) -> u32 {
    let most = crate::protocol::limits::STAGE_ROWS_BYTES_MAX / row_bytes.max(1);
    u32::try_from(most).unwrap_or(u32::MAX).max(1)
}

/// A count of positions as an index.
#[must_use]
pub fn index(positions: u32) -> usize {
    usize::try_from(positions).unwrap_or(usize::MAX)
}
