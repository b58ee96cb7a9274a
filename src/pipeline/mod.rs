//! L4: one model's layers on several peers: a *stage* computes a range of layers, a *head* turns
//! tokens to rows and rows to tokens, rows travel from stage to stage.
//!
//! # Layout
//! - [`engine`]: computes both on this machine's processor; synchronous;
//! - [`processor`]: the threads it computes on; [`worker`] and [`ends`]: the threads that drive it,
//!   for many sessions together;
//! - [`tokens`]: text to tokens and back;
//! - [`generate`]: an answer, token by token; [`serve`]: the same as an HTTP service on loopback;
//! - [`layers`]: the seam above them: rows through all layers, wherever those are;
//! - [`market`]: which stages there are, where another is worth most, the best way through them;
//!   [`routed`]: that way for a head that orders; [`patron`]: for whom, and for how much;
//! - [`session`]: the pure rules by which rows go through stages exactly once, and are billed once;
//! - [`trust`]: what a head makes sure of about those it pays;
//! - [`service`]: a stage that others pay; [`chain`]: the layers that others have, ordered and paid;
//!   [`rows`]: rows as bytes.
//!
//! # Invariants
//! - A model cut into ranges gives the same bits as the whole.
//! - Whatever is lost can be computed again from the rows that a stage was sent: positions are
//!   explicit, and writing at a position forgets what came after it.

pub mod chain;
pub mod ends;
pub mod engine;
pub mod error;
pub mod generate;
pub mod layers;
pub mod market;
pub mod patron;
pub mod processor;
pub mod routed;
pub mod rows;
pub mod serve;
pub mod service;
pub mod session;
#[cfg(test)]
#[path = "../../tests/tiny_model/mod.rs"]
mod tiny_model;
pub mod tokens;
pub mod trust;
pub mod worker;

pub use error::PipelineError;
pub use layers::{Layers, Run, StepKind};
pub use patron::Patron;
