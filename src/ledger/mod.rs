//! The durable truth about money: an append-only, hash-chained SQLite database, and everything that
//! reads it. All SQL of the crate is here. Called by `payment`, `buyer`, `seller`, `node` and `cli`.
//!
//! # Layout
//! - [`Ledger`] hands rows to the single [`Writer`] task, which commits them in groups: WAL,
//!   `synchronous = full`, one transaction per batch. `commit` returns after the fsync, `submit`
//!   after queueing.
//! - [`Reader`] reads beside it: `load` after a restart, attempts, budgets, offers.
//! - [`report`] is what `node ledger` shows, [`audit`] is `node ledger verify`.
//! - [`Cache`] is another file, cache.db: what can be learned again from the network.
//!
//! # The chain
//! All tables share one counter, `seq`, without gaps; each row's `hash` is sha256 over the previous
//! row's hash, the table's name, `seq` and every other column. So no byte of a row can change
//! unseen. (Rows cut off the end are seen only against the other side's ledger or a signed
//! checkpoint.) `rollup`, `balance` and `checkpoint` rows are sums the writer derives every few
//! thousand rows; `verify` recomputes them.
//!
//! # Invariants
//! - I1 delivered cost ≤ accepted voucher + credit, per channel, at every instant.
//! - I2 signed cumulative ≤ deposit and ≤ budget, never decreases, durable before bytes leave.
//! - I3 a voucher raises credit only after it is durable.
//! - I4 one request id → at most one charge. Here: an attempt opens once and is booked once.
//! - I5 Σ request cost = paid + exposure, per channel, to the micro-USD.
//! - I6 a settlement's intent is durable before broadcast, at most one pending per channel.
//! - I7 chain state counts only when confirmed; a reorg rolls it back.
//! - I8 a buyer never pays more than quote × its own count + tolerance.
//! - I9 nothing from a peer allocates more than the LIMITS table.
//! - I10 no prompt, completion or key in logs, ledger or peer-visible errors.

pub mod audit;
mod batch;
mod cache;
mod chain;
mod decode;
mod encode;
mod error;
mod handle;
mod manual;
mod onchain;
mod onchain_reader;
mod reader;
mod refused;
pub mod report;
mod rows;
mod schema;
mod sums;
mod table;
mod writer;

pub use cache::{Cache, CachedOffer, CachedPeer};
pub use error::LedgerError;
pub use handle::{Ledger, Persisted};
pub use manual::{LedgerWrite, apply};
pub use onchain::{CursorRow, EventRow, IntentRow, IntentState, OutcomeRow, SentRow};
pub use reader::Reader;
pub use rows::{
    AttemptState, BudgetRow, ChannelRow, ChannelState, DeliveredRow, FinalRow, OfferRow, OpenRow,
    Outcome, PROBE_CLIENT, Role, Row, SettlementRow, VoucherRow,
};
pub use writer::{CheckpointSigner, Settings, Writer};

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod onchain_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
