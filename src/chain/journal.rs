//! What the watcher and the outbox must remember durably, and who remembers it: the ledger, through
//! an adapter above this layer; a vector in tests.

use futures::future::BoxFuture;

use super::BlockRef;
use super::hub::HubLog;
use super::watcher::Kept;
use crate::types::{ChannelId, EvmAddress, Hash32, IntentId, MicroUsd, UnixMs};
pub use crate::types::{Purpose, Stage, Step};

/// A transaction that is to be made, whatever fees it takes. Its nonce is its own for ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// When it was decided.
    pub at_ms: UnixMs,
    /// Names it.
    pub id: IntentId,
    /// The chain.
    pub chain_id: u64,
    /// Who sends it.
    pub sender: EvmAddress,
    /// The sender's count.
    pub nonce: u64,
    /// The contract; none makes one.
    pub to: Option<EvmAddress>,
    /// Function and arguments.
    pub data: Vec<u8>,
    /// Wei.
    pub value: u128,
    /// Most gas it may use.
    pub gas_limit: u64,
    /// What for.
    pub purpose: Purpose,
    /// The channel it changes, if it is one.
    pub channel: Option<ChannelId>,
    /// What it gains.
    pub gain: MicroUsd,
}

/// A signed form of an intent; each bump of the fees makes another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// When it was signed.
    pub at_ms: UnixMs,
    /// The intent.
    pub intent: IntentId,
    /// The transaction's id.
    pub tx: Hash32,
    /// Most wei per gas.
    pub max_fee: u128,
    /// Most of it that goes to the block's maker.
    pub max_priority_fee: u128,
    /// As it is broadcast.
    pub raw: Vec<u8>,
}

/// What became of an intent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// When it was seen.
    pub at_ms: UnixMs,
    /// The intent.
    pub intent: IntentId,
    /// Which step.
    pub step: Step,
    /// The transaction it is about; none when displaced.
    pub tx: Option<Hash32>,
    /// The block it is about; none when displaced.
    pub block: Option<BlockRef>,
    /// Whether it did what it should; false when it reverted or was displaced.
    pub succeeded: bool,
    /// Wei paid for gas.
    pub fee: u128,
}

/// An event of the hub that counts for money.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRecord {
    /// When it was learned.
    pub at_ms: UnixMs,
    /// The chain.
    pub chain_id: u64,
    /// The hub.
    pub hub: EvmAddress,
    /// How far it is believed.
    pub stage: Stage,
    /// The log.
    pub log: HubLog,
}

/// From where a hub's events are read again after a restart: everything up to here is final.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CursorRecord {
    /// When.
    pub at_ms: UnixMs,
    /// The chain.
    pub chain_id: u64,
    /// The hub.
    pub hub: EvmAddress,
    /// The last block.
    pub block: BlockRef,
}

/// One thing to remember.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A transaction is to be made.
    Intent(Intent),
    /// It was signed.
    Sent(Sent),
    /// Something became of it.
    Outcome(Outcome),
    /// The hub said something.
    Event(EventRecord),
    /// Everything up to here is handled.
    Cursor(CursorRecord),
}

/// An intent as a restarted node finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenIntent {
    /// The intent.
    pub intent: Intent,
    /// Its signed forms, oldest first.
    pub sent: Vec<Sent>,
    /// The newest outcome.
    pub last: Option<Outcome>,
}

/// What a restarted watcher continues from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchState {
    /// The newest cursor; none before the first.
    pub base: Option<BlockRef>,
    /// Logs above it that were seen and not removed.
    pub seen: Vec<Kept>,
    /// Every channel that had an event, ever.
    pub channels: Vec<ChannelId>,
}

/// Why something could not be remembered or recalled.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct JournalError(pub String);

/// The durable memory.
pub trait Journal: Send + Sync + 'static {
    /// Stores `records` together or not at all; returns when they are durable.
    fn store(&self, records: Vec<Record>) -> BoxFuture<'_, Result<(), JournalError>>;
    /// Intents of this sender on this chain without a last step, by nonce.
    fn open_intents(
        &self,
        chain_id: u64,
        sender: EvmAddress,
    ) -> BoxFuture<'_, Result<Vec<OpenIntent>, JournalError>>;
    /// The newest cursor of a hub, and its events above it that were seen and not removed.
    fn watch_state(
        &self,
        chain_id: u64,
        hub: EvmAddress,
    ) -> BoxFuture<'_, Result<WatchState, JournalError>>;
}
