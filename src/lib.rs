//! Souk: a peer-to-peer market for LLM inference.
pub mod network;
pub mod protocol;
pub mod types;
