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
//! Persist before send, by type: only the ledger makes a `Persisted<VoucherRow>`, and only that is
//! sent. After a crash both sides reload their rows and SYNC repairs what differs: the maximum
//! voucher stands, every attempt in doubt is settled by the rules in [`payer::doubt`].

pub mod channel;
pub mod evidence;
pub mod journal;
pub mod payee;
pub mod payer;
pub mod running;
pub mod window;

pub use channel::Hold;
pub use running::RunningMeter;
pub use window::WindowSettings;

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
    /// The ledger cannot be written; the node stops.
    #[error(transparent)]
    Ledger(#[from] crate::ledger::LedgerError),
}
