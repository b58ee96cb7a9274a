//! Souk: a peer-to-peer market for LLM inference.
pub mod cli {
    //! The command line; only what this area adds.
    pub mod ledger;
    mod ledger_view;
}
pub mod ledger;
pub mod types;
