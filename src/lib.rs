//! Souk: a peer-to-peer market for LLM inference.
pub mod discovery;
pub mod network;
pub mod protocol;
pub mod types;
