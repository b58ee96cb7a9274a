//! L4: one model's layers on several peers: a *stage* computes a range of layers, a *head* turns
//! tokens to rows and rows to tokens, rows travel from stage to stage.
//!
//! # Layout
//! - [`engine`]: computes both on this machine's processor; synchronous;
//! - [`processor`]: the threads it computes on; [`worker`] and [`ends`]: the threads that drive it,
//!   for many sessions together;
//! - [`tokens`]: text to tokens and back;
//! - [`generate`]: an answer, token by token; [`serve`]: the same as an HTTP service on loopback;
//! - [`layers`]: the seam above them: rows through all layers, wherever those are.
//!
//! # Invariants
//! - A model cut into ranges gives the same bits as the whole.
//! - Whatever is lost can be computed again from the rows that a stage was sent: positions are
//!   explicit, and writing at a position forgets what came after it.

pub mod ends;
pub mod engine;
pub mod error;
pub mod generate;
pub mod layers;
pub mod processor;
pub mod serve;
#[cfg(test)]
#[path = "../../tests/tiny_model/mod.rs"]
mod tiny_model;
pub mod tokens;
pub mod worker;

pub use error::PipelineError;
pub use layers::{Layers, Run, StepKind};
