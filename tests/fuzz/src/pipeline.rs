//! The rules of stage sessions.

#[path = "../../../src/pipeline/session/mod.rs"]
pub mod session;
