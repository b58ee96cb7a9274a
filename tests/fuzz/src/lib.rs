//! The modules under test, compiled here alone, and what the targets share.
#![allow(dead_code, reason = "the targets call a part of each module")]

#[path = "../../../src/llm_api/mod.rs"]
pub mod llm_api;
#[path = "../../../src/types/mod.rs"]
pub mod types;

pub mod pipeline;
pub mod protocol;

use bytes::Bytes;
use llm_api::Dialect;
use types::Usage;

/// The three dialects.
pub const DIALECTS: [Dialect; 3] = [Dialect::Chat, Dialect::Messages, Dialect::Responses];

/// Some usage; the writers only copy it.
pub const USAGE: Usage = Usage {
    input: 10,
    cache_read: 3,
    cache_write: 2,
    output: 5,
    reasoning: 1,
};

/// Takes the first byte of the input as a choice among `0..n`, and gives the rest.
pub fn choose(data: &[u8], n: u8) -> Option<(usize, &[u8])> {
    let (first, rest) = data.split_first()?;
    Some((usize::from(first % n), rest))
}

/// The bytes cut at places that the bytes themselves choose; no piece is empty.
pub fn pieces(data: &[u8], seed: u8) -> Vec<Bytes> {
    let mut rest = Bytes::copy_from_slice(data);
    let (mut all, mut state) = (Vec::new(), usize::from(seed) | 1);
    while !rest.is_empty() {
        state = state.wrapping_mul(0x5DEE_CE66D).wrapping_add(11);
        let len = 1 + (state >> 16) % 23;
        all.push(rest.split_to(len.min(rest.len())));
    }
    all
}

/// True for a text that a strict parser takes.
pub fn is_json(bytes: &[u8]) -> bool {
    serde_json::from_slice::<&serde_json::value::RawValue>(bytes).is_ok()
}
