//! Souk: a peer-to-peer market for LLM inference.
pub mod buyer;
pub mod cli;
pub mod config;
pub mod data_dir;
pub mod discovery;
pub mod failure;
pub mod keys;
pub mod launch;
pub mod ledger;
pub mod network;
pub mod payment;
pub mod protocol;
pub mod tasks;
pub mod telemetry;
pub mod types;
