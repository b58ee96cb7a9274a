//! The EVM side: an RPC client over several nodes, the hub contract's calls and events, a watcher
//! of its logs and an outbox for transactions. It knows contracts and no business; `payment`
//! decides what is worth a transaction, `node` puts the parts together.
//!
//! # Layout
//! - [`Chain`] is what the rest asks of a chain; [`rpc`] is the real one, [`fake`] one in memory.
//! - [`hub`] speaks the contract's language, [`digest`] what owners sign for it, [`transaction`]
//!   signs what is sent.
//! - [`watcher`] turns blocks and logs into ordered events and takes them back on a reorg.
//! - [`outbox`] sends transactions: durable first, one per channel, through reorgs and restarts.
//! - [`link`] puts them together as a node uses them: checked, watched, sending.
//! - [`journal`] is the durable memory that both are given: the ledger, through `payment`, or
//!   [`memory`] in tests.
//!
//! # Invariants
//! - I6 an intent is durable before its transaction is broadcast; at most one pending per channel.
//! - I7 an event counts when it is confirmed; what a reorg removes is taken back.
//! - An RPC node is believed about nothing but its chain: the chain id and the hub's code are
//!   compared with what is configured and compiled in, and what is final is read a second time.

pub mod digest;
mod error;
pub mod fake;
pub mod hub;
pub mod journal;
pub mod link;
pub mod memory;
pub mod outbox;
pub mod rpc;
pub mod transaction;
mod view;
pub mod watcher;

#[cfg(test)]
mod digest_tests;
#[cfg(test)]
mod driver_tests;

use futures::future::BoxFuture;

pub use error::{ChainError, Retry, SendRefusal};
pub use view::{
    At, Block, BlockRef, Call, Fees, LogQuery, NonceAt, RawLog, Receipt, Topics, coins,
};

use crate::types::{EvmAddress, Hash32};

/// An answer that is on its way.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, ChainError>>;

/// What the rest of the crate asks of a chain. Every call may fail and may be repeated.
pub trait Chain: Send + Sync + 'static {
    /// The chain's number.
    fn chain_id(&self) -> Answer<'_, u64>;
    /// A block's header; none when there is no such block (yet).
    fn block(&self, at: At) -> Answer<'_, Option<Block>>;
    /// Logs in the order of the chain.
    fn logs(&self, query: LogQuery) -> Answer<'_, Vec<RawLog>>;
    /// The code at an address; empty when there is none.
    fn code(&self, address: EvmAddress) -> Answer<'_, Vec<u8>>;
    /// What a call would return in a block.
    fn call_at(&self, call: Call, at: At) -> Answer<'_, Vec<u8>>;
    /// What a call would return now.
    fn call(&self, call: Call) -> Answer<'_, Vec<u8>> {
        self.call_at(call, At::Latest)
    }
    /// The gas it would take.
    fn estimate_gas(&self, call: Call) -> Answer<'_, u64>;
    /// What a transaction must offer now.
    fn fees(&self) -> Answer<'_, Fees>;
    /// How many transactions an account has sent.
    fn nonce(&self, account: EvmAddress, at: NonceAt) -> Answer<'_, u64>;
    /// An account's wei.
    fn balance(&self, account: EvmAddress) -> Answer<'_, u128>;
    /// Hands over a signed transaction.
    fn send(&self, raw: Vec<u8>) -> Answer<'_, ()>;
    /// What became of a transaction; none while it is in no block.
    fn receipt(&self, tx: Hash32) -> Answer<'_, Option<Receipt>>;
}
