//! Rows about the chain: intended, signed and finished transactions, events of the hub, and how far
//! they are read. Plain data, like the other rows; an adapter in `payment` fills them.

use crate::types::{
    ChannelId, EvmAddress, Hash32, IntentId, MicroUsd, Purpose, Stage, Step, UnixMs,
};

/// A transaction is to be made. Its nonce is its own for ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IntentRow {
    /// When it was decided.
    pub at_ms: UnixMs,
    /// Names it.
    pub intent: IntentId,
    /// The chain.
    pub chain_id: u64,
    /// Who sends it.
    pub sender: EvmAddress,
    /// The sender's count.
    pub nonce: u64,
    /// The contract; none makes one.
    pub target: Option<EvmAddress>,
    /// Wei.
    pub value: u64,
    /// Function and arguments.
    pub calldata: Vec<u8>,
    /// keccak-256 of it.
    pub calldata_hash: Hash32,
    /// Most gas it may use.
    pub gas_limit: u64,
    /// What for.
    pub purpose: Purpose,
    /// The channel it changes, if it is one.
    pub channel: Option<ChannelId>,
    /// What it gains.
    pub gain: MicroUsd,
}

/// A signed form of an intent, before it is broadcast.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentRow {
    /// When it was signed.
    pub at_ms: UnixMs,
    /// The intent.
    pub intent: IntentId,
    /// The transaction's id.
    pub tx: Hash32,
    /// Most wei per gas.
    pub max_fee: u64,
    /// Most of it that goes to the block's maker.
    pub max_priority_fee: u64,
    /// As it is broadcast.
    pub raw: Vec<u8>,
}

/// What became of an intent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutcomeRow {
    /// When it was seen.
    pub at_ms: UnixMs,
    /// The intent.
    pub intent: IntentId,
    /// Which step.
    pub step: Step,
    /// The transaction it is about; none when displaced.
    pub tx: Option<Hash32>,
    /// Height and hash of its block; none when displaced.
    pub block: Option<(u64, Hash32)>,
    /// Whether it did what it should.
    pub succeeded: bool,
    /// Wei paid for gas.
    pub fee: u64,
}

/// An event of the hub and how far it is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRow {
    /// When it was learned.
    pub at_ms: UnixMs,
    /// The chain.
    pub chain_id: u64,
    /// The hub.
    pub hub: EvmAddress,
    /// How far it is believed.
    pub stage: Stage,
    /// What happened.
    pub kind: String,
    /// The channel it is about.
    pub channel: Option<ChannelId>,
    /// The sum it is about.
    pub amount: MicroUsd,
    /// Height and hash of its block.
    pub block: (u64, Hash32),
    /// The transaction that caused it.
    pub tx: Hash32,
    /// Place among the block's logs.
    pub log_index: u64,
    /// Event signature and indexed fields.
    pub topics: Vec<Hash32>,
    /// The other fields.
    pub data: Vec<u8>,
}

/// A restarted watcher reads on above this block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CursorRow {
    /// When it was written.
    pub at_ms: UnixMs,
    /// The chain.
    pub chain_id: u64,
    /// The hub.
    pub hub: EvmAddress,
    /// Height and hash of the block.
    pub block: (u64, Hash32),
}

/// An intent as a restarted node finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IntentState {
    /// The intent.
    pub intent: IntentRow,
    /// Its signed forms, oldest first.
    pub sent: Vec<SentRow>,
    /// The newest outcome.
    pub last: Option<OutcomeRow>,
}
