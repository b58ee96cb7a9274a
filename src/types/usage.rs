//! Token usage with parts that never overlap, so that no dialect's habit can count a token twice.
//!
//! OpenAI's `prompt_tokens` includes cached tokens, Anthropic's `input_tokens` excludes them; both
//! are converted once, in `llm_api::usage`.

use serde::{Deserialize, Serialize};

/// Tokens of one request. The four billed parts are disjoint; `reasoning` is a part of `output`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Input tokens processed afresh (neither read from nor written to a cache).
    pub input: u64,
    /// Input tokens read from the upstream's prompt cache.
    pub cache_read: u64,
    /// Input tokens written to the upstream's prompt cache.
    pub cache_write: u64,
    /// Output tokens, reasoning included.
    pub output: u64,
    /// The part of `output` that was hidden or visible reasoning.
    pub reasoning: u64,
}

/// More tokens than any request has; larger claims are cut, so that sums and stores stay sound.
pub const TOKENS_MAX: u64 = 1 << 40;

impl Usage {
    /// The same with every part at most `TOKENS_MAX`: what anybody else reports is cut to it.
    #[must_use]
    pub fn clamped(self) -> Self {
        Self {
            input: self.input.min(TOKENS_MAX),
            cache_read: self.cache_read.min(TOKENS_MAX),
            cache_write: self.cache_write.min(TOKENS_MAX),
            output: self.output.min(TOKENS_MAX),
            reasoning: self.reasoning.min(TOKENS_MAX),
        }
    }
    /// All input tokens: fresh, cache read and cache write.
    #[must_use]
    pub const fn input_total(&self) -> u64 {
        self.input
            .saturating_add(self.cache_read)
            .saturating_add(self.cache_write)
    }
    /// True when nothing was counted at all.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }
}
