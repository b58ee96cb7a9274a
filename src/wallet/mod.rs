//! L3: where this node's money is on its chain, and moving it when its owner asks.
//!
//! One [`Order`] is one wish: deposit, withdraw, close, reclaim. The flow is the same for each:
//!
//! 1. `order` turns it into steps, each with two forms of the same call: one that this account
//!    sends itself, one that it signs and anyone may send;
//! 2. `way` decides: the account's own transactions when it can pay their gas, else a relayer's;
//! 3. [`Wallet::plan`] stops here and shows what would be sent and what it costs;
//! 4. [`Wallet::send`] hands own transactions to the outbox (durable before they are broadcast) or
//!    signed calls to a relayer, and gives a [`Ticket`] for each;
//! 5. [`Wallet::progress`] says what became of tickets.
//!
//! [`balance`] and [`channels`] show what is there, [`verify`] compares the ledger with the chain,
//! [`relay`] is `/souk/relay-tx/1`, both its sides. Made by `node`, called by the control APIs of
//! buyer and seller and, where no role runs, by the command line.

mod api;
pub mod balance;
pub mod channels;
mod order;
mod pay;
pub mod relay;
pub mod verify;
mod way;

use std::sync::Arc;

pub use balance::Balance;
pub use channels::Held;
pub use order::Order;
pub use pay::{Progress, Sent, Ticket};
pub use way::{Plan, Way};

use crate::chain::hub::{Claim, Hub};
use crate::chain::link::Link;
use crate::chain::outbox::SubmitError;
use crate::chain::{ChainError, coins};
use crate::keys::{PaymentKey, to_checksum};
use crate::ledger::{LedgerError, Reader};
use crate::types::{ChannelId, Clock, EvmAddress, MicroUsd};

/// What a wallet may do.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// What a relayer may take for one transaction.
    pub relay_fee_max: MicroUsd,
}

/// What a wallet is made of.
pub struct Parts {
    /// The chain.
    pub link: Link,
    /// Owns the vault.
    pub key: PaymentKey,
    /// What is known of the chain, and the vouchers held.
    pub reader: Reader,
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// Who may send what this account signs; none outside of a running node.
    pub relayers: Option<relay::Asker>,
    /// The running role, which can end channels with the other side; none outside of one.
    pub agreement: Option<Arc<dyn Agreement>>,
    /// Limits.
    pub settings: Settings,
}

/// Ends channels as both sides agree: no challenge period, no gas of the buyer's.
pub trait Agreement: Send + Sync {
    /// True when this role holds the channel and can reach whoever must take part.
    fn can_end(&self, channel: &ChannelId) -> bool;
    /// Begins to end it; false when it is not there any more.
    fn end(&self, channel: &ChannelId) -> bool;
    /// A seller's fair last claim on it; none where this role does not sell on it.
    fn last_claim(&self, channel: &ChannelId) -> Option<Claim>;
}

/// A node's money on its chain. Cheap to clone.
#[derive(Clone)]
pub struct Wallet(Arc<Parts>);

/// Why money was not moved.
#[derive(Debug, thiserror::Error)]
pub enum WalletError {
    /// There is less than was asked for.
    #[error("{place} holds {has} USD, not {wanted}")]
    Funds {
        /// Where it was to come from.
        place: &'static str,
        /// What is there.
        has: MicroUsd,
        /// What was asked for.
        wanted: MicroUsd,
    },
    /// Nobody pays the gas.
    #[error("{} has {} ETH and needs {} ETH for gas; {why}", to_checksum(address), coins(*has_wei),
        coins(*needed_wei))]
    Gas {
        /// This account.
        address: EvmAddress,
        /// What it has.
        has_wei: u128,
        /// What the transactions would need.
        needed_wei: u128,
        /// Why no relayer sends it.
        why: String,
    },
    /// The order makes no sense.
    #[error("{0}")]
    Bad(String),
    /// The outbox does not take it now.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// The chain.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl WalletError {
    /// True when money is missing, here or for gas.
    #[must_use]
    pub const fn is_about_money(&self) -> bool {
        matches!(
            self,
            Self::Funds { .. } | Self::Gas { .. } | Self::Submit(SubmitError::NoGas { .. })
        )
    }
    /// True when the same order may work later.
    #[must_use]
    pub const fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Submit(SubmitError::Busy(_) | SubmitError::AboveCap)
                | Self::Chain(ChainError::Unreachable(_) | ChainError::Node { .. })
                | Self::Submit(SubmitError::Chain(ChainError::Unreachable(_)))
        )
    }
}

impl Wallet {
    /// Puts a wallet together; nothing is asked.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }
    /// The account.
    #[must_use]
    pub fn address(&self) -> EvmAddress {
        self.0.key.address()
    }
    /// The chain.
    #[must_use]
    pub fn link(&self) -> &Link {
        &self.0.link
    }

    fn hub(&self) -> Result<Hub<'_>, WalletError> {
        let link = &self.0.link;
        if link.token_domain().is_none() {
            let why = "the chain was not checked yet; no RPC node has answered".to_owned();
            return Err(ChainError::Unreachable(why).into());
        }
        Ok(Hub::checked(&**link.chain(), link.domain()))
    }
}
