//! The rows other areas hand to the ledger and get back from it, as plain data.
//!
//! One struct per table. Every row carries its own time (the caller's clock), so that a replayed
//! history is the same history. Nothing here holds a prompt, a completion or a key.

use super::onchain::{CursorRow, EventRow, IntentRow, OutcomeRow, SentRow};
use crate::types::{
    AttemptId, ChannelId, Hash32, MicroUsd, ModelId, PeerId, PriceTable, RequestId, UnixMs, Usage,
};

/// This node's side of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// We pay.
    Buy,
    /// We are paid.
    Sell,
}

impl Role {
    /// The word in the database and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Buy => "buy",
            Self::Sell => "sell",
        }
    }
    /// From that word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        match word {
            "buy" => Some(Self::Buy),
            "sell" => Some(Self::Sell),
            _ => None,
        }
    }
}

/// An attempt was admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenRow {
    /// Admission.
    pub at_ms: UnixMs,
    /// The attempt; opens once.
    pub attempt_id: AttemptId,
    /// The client's request.
    pub request_id: RequestId,
    /// Number of the attempt within the request.
    pub attempt: u32,
    /// Bought or sold.
    pub role: Role,
    /// The other side.
    pub peer: PeerId,
    /// Label of the local client.
    pub client: String,
    /// Model named by the client.
    pub model_asked: String,
    /// Model of the offer.
    pub model: ModelId,
    /// Offer that the signed head names.
    pub offer_hash: Hash32,
    /// That offer's prices.
    pub price: PriceTable,
    /// Channel that pays; all zero when free.
    pub channel: ChannelId,
    /// Most the attempt may cost.
    pub max_cost: MicroUsd,
    /// Cost known before the work.
    pub prefill: MicroUsd,
    /// Cumulative signed (buyer) or held (seller) when it began.
    pub voucher_before: MicroUsd,
    /// The head as the buyer signed it.
    pub signed_head: Vec<u8>,
}

/// An attempt's answer ended; not yet accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveredRow {
    /// End of delivery.
    pub at_ms: UnixMs,
    /// The attempt.
    pub attempt_id: AttemptId,
    /// HTTP status.
    pub status: u16,
    /// Usage as reported.
    pub usage: Option<Usage>,
    /// Own count of input tokens.
    pub own_input: Option<u64>,
    /// Own count of output tokens.
    pub own_output: Option<u64>,
    /// Buyer: own bound; seller: the receipt's cost.
    pub cost: MicroUsd,
    /// The receipt as signed.
    pub receipt: Option<Vec<u8>>,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Both sides book `billed`.
    Accepted,
    /// Nothing is owed; `billed` is 0.
    Failed,
    /// The seller gave up on `billed`.
    WrittenOff,
}

impl Outcome {
    /// The word in the database and in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Failed => "failed",
            Self::WrittenOff => "written_off",
        }
    }
    /// From that word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        match word {
            "accepted" => Some(Self::Accepted),
            "failed" => Some(Self::Failed),
            "written_off" => Some(Self::WrittenOff),
            _ => None,
        }
    }
}

/// An attempt is booked. At most one per attempt; the same outcome and amount again is a no-op.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinalRow {
    /// When it was booked.
    pub at_ms: UnixMs,
    /// The attempt.
    pub attempt_id: AttemptId,
    /// How it ended.
    pub outcome: Outcome,
    /// HTTP status; 499 client gone, 502 cut.
    pub status: u16,
    /// Accepted cost, 0 when failed, the loss when written off.
    pub billed: MicroUsd,
    /// Model named in the answer (cut to 200 bytes).
    pub model_served: String,
    /// Usage as reported.
    pub usage: Option<Usage>,
    /// Own count of input tokens.
    pub own_input: Option<u64>,
    /// Own count of output tokens.
    pub own_output: Option<u64>,
    /// Time to the first token.
    pub ttft_ms: Option<u64>,
    /// Admission to the last byte.
    pub total_ms: u64,
    /// The own bound was paid, not the receipt.
    pub disputed: bool,
    /// The receipt as signed.
    pub receipt: Option<Vec<u8>>,
    /// Short code of a failure (cut to 200 bytes). It also excuses an accepted cost without a
    /// receipt, e.g. `seller_died`.
    pub error: Option<String>,
}

/// A voucher was signed (buyer) or received and checked (seller).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VoucherRow {
    /// Signed or received.
    pub at_ms: UnixMs,
    /// Buy: we signed it; sell: we hold it.
    pub role: Role,
    /// Channel it is for.
    pub channel: ChannelId,
    /// All that was ever signed on the channel.
    pub cumulative: MicroUsd,
    /// The voucher signer's signature, r‖s‖v.
    pub signature: [u8; 65],
    /// Attempt it was signed for.
    pub attempt: Option<AttemptId>,
}

/// A channel was opened, or its deposit changed (the newest row counts).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelRow {
    /// When.
    pub at_ms: UnixMs,
    /// This node's side.
    pub role: Role,
    /// The channel.
    pub channel: ChannelId,
    /// The other side.
    pub peer: PeerId,
    /// `channel`, `credit` or `free`.
    pub mode: String,
    /// What the channel id is the digest of.
    pub descriptor: Vec<u8>,
    /// Rises after an agreed close.
    pub epoch: u64,
    /// Most that vouchers may add up to.
    pub deposit: MicroUsd,
    /// The buyer's identity over the channel id.
    pub open_signature: [u8; 64],
}

/// A payment made outside was booked (credit mode).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettlementRow {
    /// When.
    pub at_ms: UnixMs,
    /// Buy: we paid; sell: we were paid.
    pub role: Role,
    /// Channel it pays off.
    pub channel: ChannelId,
    /// The other side.
    pub peer: PeerId,
    /// How much.
    pub amount: MicroUsd,
    /// The user's own words.
    pub note: String,
}

/// A signed offer that an attempt named. Kept once per hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferRow {
    /// When it was first used.
    pub at_ms: UnixMs,
    /// sha256 of `bytes`.
    pub hash: Hash32,
    /// Model that is offered.
    pub model: ModelId,
    /// Last moment it may be used.
    pub not_after: UnixMs,
    /// The signed offer.
    pub bytes: Vec<u8>,
}

/// The client whose requests are questions of this node's own, to find out about a seller; its rows
/// are shown as `probe`.
pub const PROBE_CLIENT: &str = "probe";

/// The user set spending limits; the newest row per client and model counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BudgetRow {
    /// When.
    pub at_ms: UnixMs,
    /// One client; `None` is all together.
    pub client: Option<String>,
    /// One model; `None` is all together.
    pub model: Option<ModelId>,
    /// Most a local day may cost; `None` is no limit.
    pub daily: Option<MicroUsd>,
    /// Most a local month may cost; `None` is no limit.
    pub monthly: Option<MicroUsd>,
}

/// One row for the writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Row {
    /// An attempt was admitted.
    Open(OpenRow),
    /// Its answer ended.
    Delivered(DeliveredRow),
    /// It is booked.
    Final(FinalRow),
    /// A voucher was signed or received.
    Voucher(VoucherRow),
    /// A channel was opened or its deposit changed.
    Channel(ChannelRow),
    /// A payment made outside was booked.
    Settlement(SettlementRow),
    /// A signed offer was used.
    Offer(OfferRow),
    /// The user set spending limits.
    BudgetSet(BudgetRow),
    /// A transaction is to be made.
    Intent(IntentRow),
    /// It was signed.
    Sent(SentRow),
    /// Something became of it.
    Outcome(OutcomeRow),
    /// The hub said something.
    Event(EventRow),
    /// The hub's events are read up to here.
    Cursor(CursorRow),
}

/// Everything the ledger knows about one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptState {
    /// Its admission.
    pub open: OpenRow,
    /// The end of its answer.
    pub delivered: Option<DeliveredRow>,
    /// Its booking.
    pub final_row: Option<FinalRow>,
}

/// A channel as a restarted node finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelState {
    /// The newest channel row.
    pub row: ChannelRow,
    /// The highest voucher, with its signature.
    pub voucher: Option<VoucherRow>,
    /// Σ billed of accepted attempts.
    pub accepted_sum: MicroUsd,
    /// Σ billed of attempts written off.
    pub written_off_sum: MicroUsd,
    /// Σ settlements booked.
    pub settlements_sum: MicroUsd,
    /// What vouchers may add up to by these rows: the newest deposit and what was settled since.
    pub limit: MicroUsd,
    /// Attempts without a final, oldest first.
    pub unfinished: Vec<AttemptState>,
}
