//! What an attempt taught: the only way anything is learned about a seller.

use super::conversation::ConversationKey;
use crate::types::{MicroUsd, ModelId, PeerId};

/// One attempt that is over.
#[derive(Clone, Debug)]
pub struct Observation<'a> {
    /// Who was asked.
    pub seller: PeerId,
    /// For what.
    pub model: &'a ModelId,
    /// By which local client.
    pub client: &'a str,
    /// In which conversation.
    pub conversation: Option<ConversationKey>,
    /// What was at stake while it was under way, as given to [`super::Router::begin`].
    pub exposure: MicroUsd,
    /// How it ended.
    pub outcome: Outcome,
}

/// How an attempt ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// With an answer that passed the free checks.
    Good(Answered),
    /// With an answer that failed a check: wrong usage, broken tool calls, another model.
    Doubtful {
        /// The answer.
        answered: Answered,
        /// Which check, for people.
        reason: String,
        /// The answer contradicts itself: a newcomer is set aside for it.
        is_grave: bool,
    },
    /// Without a (whole) answer, and it was the seller's fault.
    Failed {
        /// The cost it would have had, micro-USD: what is dear counts more.
        expected: MicroUsd,
        /// Prepaid and lost.
        lost: MicroUsd,
    },
    /// The seller was full: no failure.
    Full,
    /// Nothing was learned: the request was at fault, the client left, our own payment or RPC
    /// failed.
    Excused,
}

/// A whole answer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Answered {
    /// First token after, s; none for an answer that came in one piece.
    pub ttft_s: Option<f64>,
    /// From the first token to the end, s; of an answer in one piece all of it.
    pub writing_s: f64,
    /// Input tokens, all kinds.
    pub input_tokens: u64,
    /// Of these read from the upstream's cache.
    pub cached_tokens: u64,
    /// Output tokens.
    pub output_tokens: u64,
    /// Accepted cost.
    pub cost: MicroUsd,
    /// What the seller billed.
    pub billed: MicroUsd,
    /// The most it could have been by the buyer's own count, allowances included.
    pub own: MicroUsd,
    /// Whether the own count is exact (a public tokenizer).
    pub exact: bool,
}
