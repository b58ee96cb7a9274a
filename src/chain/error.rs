//! What can go wrong with a chain, by what the caller can do about it.

use crate::types::EvmAddress;

/// What to do after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The same call later: the network or all nodes are at fault.
    Later,
    /// The same call at another RPC URL: this one is at fault.
    NextUrl,
    /// Never the same call: it is at fault itself.
    Never,
}

/// Why a node did not take a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendRefusal {
    /// The account's nonce is above this one: a transaction with it is mined.
    NonceTooLow,
    /// Another transaction with this nonce waits and pays too much to be replaced.
    Underpriced,
    /// The node has exactly this transaction.
    AlreadyKnown,
    /// The account cannot pay the gas.
    InsufficientFunds,
    /// Below the base fee or the node's floor.
    FeeTooLow,
}

/// Why a call to the chain failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ChainError {
    /// No RPC URL answered.
    #[error("no RPC node answers: {0}")]
    Unreachable(String),
    /// One RPC URL did not answer in time, or not as it should.
    #[error("RPC node {url}: {reason}")]
    Node {
        /// The URL without its query and user part.
        url: String,
        /// What it did.
        reason: String,
    },
    /// The node is on another chain.
    #[error("RPC node {url} serves chain {found}, not {expected}; correct `rpc` or `chain_id`")]
    WrongChain {
        /// The URL.
        url: String,
        /// The chain that is configured.
        expected: u64,
        /// The chain it serves.
        found: u64,
    },
    /// The node's range limit for logs: ask for fewer blocks.
    #[error("the RPC node wants a smaller range of blocks: {0}")]
    RangeTooWide(String),
    /// The contract refused.
    #[error("the contract refuses: {0}")]
    Reverted(String),
    /// The transaction was not taken.
    #[error("the transaction was not taken: {message}")]
    NotTaken {
        /// Why.
        why: SendRefusal,
        /// The node's words.
        message: String,
    },
    /// The node refuses the call itself.
    #[error("the RPC node refuses the call: {0}")]
    Refused(String),
    /// Other code than the hub's lies at the address.
    #[error("the contract at 0x{address} is not the one this program knows ({found})")]
    OtherContract {
        /// The address.
        address: EvmAddress,
        /// What lies there.
        found: String,
    },
    /// The token cannot be paid with.
    #[error("the token at 0x{address} cannot be used: {reason}; correct `token`")]
    BadToken {
        /// The address.
        address: EvmAddress,
        /// Why not.
        reason: String,
    },
    /// The chain contradicts what was final.
    #[error("block {0} was final and is gone; the chain reorganised deeper than is tracked")]
    TooDeep(u64),
    /// An answer that does not decode.
    #[error("the chain answered something else than it should: {0}")]
    Malformed(String),
    /// What must be durable first could not be stored.
    #[error("the chain's journal failed: {0}")]
    Journal(String),
}

impl ChainError {
    /// What to do about it.
    #[must_use]
    pub const fn retry(&self) -> Retry {
        match self {
            Self::Unreachable(_) | Self::RangeTooWide(_) => Retry::Later,
            Self::Node { .. } | Self::WrongChain { .. } | Self::Malformed(_) => Retry::NextUrl,
            Self::Reverted(_)
            | Self::NotTaken { .. }
            | Self::Refused(_)
            | Self::OtherContract { .. }
            | Self::BadToken { .. }
            | Self::TooDeep(_)
            | Self::Journal(_) => Retry::Never,
        }
    }
}
