//! The HTTP dialects of LLM providers, as pure functions over bytes. No I/O, no clock, no tasks.
//!
//! The story of one request. The buyer (or the seller) has a body and knows its [`Dialect`] from
//! the path. [`RequestView::parse`] walks the JSON once, shallow, and notes what routing and
//! metering need (model, stream, limits, sizes) with the byte spans of the few values that may be
//! replaced; [`rewrite_model`] and [`inject_include_usage`] then splice bytes and leave everything
//! else as the client wrote it. [`prefill_tokens`] is the integer both sides derive from the body
//! before the work; [`headers`] says which headers travel with it.
//!
//! The story of one answer. Bytes come back in any chunking. [`AnswerMeter`] counts text over the
//! raw bytes: it is money, buyer and seller run it over the same bytes and hold the same integer at
//! every position. [`EventSplitter`] cuts the stream at event ends, [`UsageTracker`] looks for
//! usage, the stop reason and the terminator without parsing events that hold none,
//! [`rewrite_answer_model`] and [`splice_cost`] change two values in place, and [`stream_end`]
//! writes the closing chunks that an upstream left out. Failures become the dialect's own shape in
//! [`error`].
//!
//! The story of the bill. [`tokens`] recounts what was really sent and received (crate-embedded
//! vocabularies `o200k_base` and `cl100k_base`, a calibrated slope elsewhere) and
//! [`bounds`] turns that into the most a buyer pays. [`price_list`] reads an upstream's models.
//!
//! Invariants: the same dialect in and out means the same bytes but for the named splices; nothing
//! here panics on any input; everything a peer can grow is bounded (JSON depth 64, event 1 MiB,
//! collected text 8 MiB, caches by entry count). All three dialects
//! are read and written by [`translate`], through which a client of one is served by a seller of another;
//! OpenAI's older two paths ([`Endpoint`]) pass as they are, with chat's usage and errors.
//!
//! Callers: `buyer`, `seller`, and `discovery`'s price refresh by way of `seller`.

pub mod bounds;
mod dialect;
pub mod error;
#[cfg(test)]
mod growth;
pub mod headers;
mod json;
mod meter;
pub mod price_list;
mod request;
mod splice;
pub mod sse;
pub mod stream_end;
pub mod tokens;
mod tracker;
pub mod translate;
pub mod usage;
mod vocabulary;

pub use dialect::{Dialect, Endpoint};
pub use json::{JSON_DEPTH_MAX, JsonError};
pub use meter::{AnswerMeter, COLLECTED_TEXT_BYTES_MAX};
pub use request::{RequestError, RequestView, conversation_key, prefill_tokens};
pub use splice::{
    inject_include_usage, insert_usage, remove_members, rewrite_answer_model, rewrite_model,
    splice_cost,
};
pub use sse::{EVENT_BYTES_MAX, EventSplitter, SseError};
pub use tokens::{Margin, TokenCount, TokenCounter};
pub use tracker::{StreamIdentity, UsageTracker};

/// True when `bytes` are exactly one JSON object (white space around it allowed).
#[must_use]
pub fn is_json_object(bytes: &[u8]) -> bool {
    bytes.trim_ascii_start().first() == Some(&b'{')
        && serde_json::from_slice::<&serde_json::value::RawValue>(bytes).is_ok()
}
