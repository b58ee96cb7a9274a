//! L3: who may owe whom how much, and how both books come to the same sum.
//!
//! [`channel`] is the pure state machine, [`window`] its constants. Around it, one hub per role:
//!
//! - [`payer`] (buyer): opens the session stream, keeps one pair per seller, signs vouchers as the
//!   meter runs, books each attempt's cost and says so with ACCEPT;
//! - [`payee`] (seller): answers sessions, credits vouchers once they are durable, holds streams
//!   that ran ahead of them, and repeats receipts until they are accepted.
//!
//! Each hub keeps its decisions in a pure state ([`payer::PayerState`], [`payee::PayeeState`]), and
//! around it the locks, rows and sockets; a seeded simulator runs two of them over a lossy wire.
//!
//! [`onchain`] is what both need of a chain: what is signed, what the chain shows, when to go there.
//!
//! Persist before send, by type: only the ledger makes a `Persisted<VoucherRow>`, and only that is
//! sent. After a crash both sides reload their rows and SYNC repairs what differs: the maximum
//! voucher stands, every attempt in doubt is settled by the rules in [`payer::doubt`].

pub mod channel;
pub mod evidence;
pub mod journal;
pub mod onchain;
pub mod payee;
pub mod payer;
pub mod running;
pub mod window;

pub use channel::Hold;
pub use running::RunningMeter;
pub use window::WindowSettings;

use crate::types::MicroUsd;

/// Why money could not be arranged with a peer.
#[derive(Debug, thiserror::Error)]
pub enum PaymentError {
    /// No stream to the peer.
    #[error("cannot reach the peer: {0}")]
    Unreachable(String),
    /// The session broke or the peer refused it.
    #[error("payment session failed: {0}")]
    Session(String),
    /// The peer broke a rule of the session.
    #[error("payment session refused: {0}")]
    Refused(String),
    /// The credit with this peer is used up.
    #[error("credit with this seller is used up; pay it and book it with `node ledger settle`")]
    CreditExhausted,
    /// The chain has not said yet what the wallet holds.
    #[error("the chain has not answered yet; `node status` says why, or try again soon")]
    ChainUnknown,
    /// Neither vault nor wallet hold enough for a channel.
    #[error(
        "{free} USD are free in vault and wallet, a channel needs {least} USD; \
         `node wallet deposit` adds some, `node channel close` frees some"
    )]
    InsufficientFunds {
        /// What is left.
        free: MicroUsd,
        /// What it takes.
        least: MicroUsd,
    },
    /// This channel is closed on the chain: a new one may be opened.
    #[error("the channel is over")]
    ChannelOver,
    /// The ledger cannot be written; the node stops.
    #[error(transparent)]
    Ledger(#[from] crate::ledger::LedgerError),
}
