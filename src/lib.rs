//! Souk: a peer-to-peer market for LLM inference.
pub mod ledger;
pub mod types;
