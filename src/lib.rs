//! Souk: a peer-to-peer market for LLM inference.
pub mod llm_api;
pub mod types;
