//! L4: one model's layers on several peers: a *stage* computes a range of layers, a *head* turns
//! tokens to rows and rows to tokens, rows travel from stage to stage.
//!
//! What is here: [`engine`], which computes both on this machine's processor, and [`session`], the
//! pure rules by which rows go through stages exactly once. Their callers stand above them in this
//! folder.
//!
//! # Invariants
//! - A model cut into ranges gives the same bits as the whole.
//! - Whatever is lost can be computed again from the rows that a stage was sent: positions are
//!   explicit, and writing at a position forgets what came after it.

pub mod engine;
pub mod session;
