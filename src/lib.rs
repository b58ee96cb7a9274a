//! Souk: a peer-to-peer market for LLM inference.
pub mod cli;
pub mod keys;
pub mod protocol;
pub mod types;
