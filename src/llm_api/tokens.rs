//! Own token counts: exact with a published vocabulary, calibrated elsewhere.
//!
//! Vocabularies are embedded (`vocabulary`: `o200k_base` and `cl100k_base`), not downloaded.
//! Models whose tokenizer is not public are counted with `o200k_base` times a slope learned from
//! upstreams' reports; until there are enough of those, the bound is wider. Counting is for a
//! blocking pool, beside the upstream call: messages are cached one by one, so a conversation's next
//! request only counts what is new (also after a client dropped or rewrote some). Callers: buyer
//! before ACCEPT, seller when its upstream gives no usage.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::json::{Blind, Cursor, JSON_DEPTH_MAX, Observe, len64, unescape};
use super::request::is_base64_image;
use super::vocabulary::{CL100K, O200K};
use super::{AnswerMeter, RequestView};

/// Most of one text that is tokenised; the rest counts a token for 4 bytes.
const COUNTED_BYTES_MAX: usize = 8 << 20;
/// Messages whose counts are remembered, ~64 bytes each.
const CACHE_ENTRIES_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(16_383);
/// Models whose slopes are remembered.
const SLOPES_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(511);
/// Reports needed before a slope narrows the bound.
const CALIBRATED_AFTER: u32 = 64;
/// Reports below this many tokens say more about templates than about the tokenizer.
const OBSERVED_TOKENS_MIN: u64 = 64;
/// A slope's memory: beyond this many own tokens old reports fade by half.
const SLOPE_WINDOW_TOKENS: u64 = 10_000_000;
/// Slopes stay inside these, in thousandths. 1.22 × the calibrated margin of 1.10 stays below the
/// 1.35 of an unknown tokenizer, so no report can raise what is paid.
const SLOPE_PERMILLE: (u64, u64) = (500, 1_220);
/// Strings shorter than this are not worth a cache entry.
const CACHED_BYTES_MIN: usize = 64;

/// How far a count is to be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Margin {
    /// Published tokenizer: × 1.03 out, × 1.05 in.
    Exact,
    /// Slope from enough reports: × 1.10.
    Calibrated,
    /// Not public: × 1.35.
    Unknown,
}

impl Margin {
    /// The factor on input, in thousandths.
    #[must_use]
    pub const fn input_permille(self) -> u64 {
        match self {
            Self::Exact => 1_050,
            Self::Calibrated => 1_100,
            Self::Unknown => 1_350,
        }
    }
    /// The factor on output, in thousandths.
    #[must_use]
    pub const fn output_permille(self) -> u64 {
        match self {
            Self::Exact => 1_030,
            Self::Calibrated => 1_100,
            Self::Unknown => 1_350,
        }
    }
}

/// An own count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenCount {
    /// Tokens (slope applied).
    pub tokens: u64,
    /// Tokens before the slope: what [`TokenCounter::observe`] learns from.
    pub raw: u64,
    /// True when counted with the model's own published vocabulary.
    pub exact: bool,
    /// The margin it deserves.
    pub margin: Margin,
}

/// Which vocabulary counts a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tokenizer {
    /// OpenAI since gpt-4o.
    O200k,
    /// OpenAI gpt-4 and gpt-3.5, embeddings.
    Cl100k,
    /// Not published, or not with us: `o200k_base` times a slope.
    Slope,
}

impl Tokenizer {
    /// The tokenizer of a model id, vendor prefixes and suffixes ignored (`openai/gpt-4o:free`).
    #[must_use]
    pub fn of(model: &str) -> Self {
        const O200K: [&str; 9] = [
            "gpt-4o",
            "gpt-4.1",
            "gpt-4.5",
            "gpt-5",
            "gpt-oss",
            "chatgpt-4o",
            "o1",
            "o3",
            "o4",
        ];
        const CL100K: [&str; 5] = [
            "gpt-4",
            "gpt-3.5",
            "gpt-35",
            "text-embedding-3",
            "text-embedding-ada",
        ];
        let lower = model.to_ascii_lowercase();
        let name = lower.rsplit('/').next().unwrap_or_default();
        let named = |list: &[&str]| {
            list.iter().any(|p| {
                name.strip_prefix(p)
                    .is_some_and(|r| !r.starts_with(|c: char| c.is_ascii_alphanumeric()))
            })
        };
        if named(&O200K) {
            Self::O200k
        } else if named(&CL100K) {
            Self::Cl100k
        } else {
            Self::Slope
        }
    }
    /// Counts text; special tokens are text like any other.
    #[must_use]
    pub fn count(self, text: &str) -> u64 {
        let vocabulary = match self {
            Self::Cl100k => &*CL100K,
            Self::O200k | Self::Slope => &*O200K,
        };
        let mut end = text.len().min(COUNTED_BYTES_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let counted = vocabulary.count(text.get(..end).unwrap_or_default());
        len64(counted).saturating_add(len64(text.len() - end).div_ceil(4))
    }
}

/// What was learned about a model's tokenizer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slope {
    /// The model.
    pub model: String,
    /// Tokens by our own count.
    pub own: u64,
    /// Tokens by upstreams' reports.
    pub claimed: u64,
    /// Reports.
    pub reports: u32,
}

/// Counts tokens; cheap to clone, one per node.
#[derive(Clone)]
pub struct TokenCounter(Arc<Inner>);

struct Inner {
    hasher: RandomState,
    cache: Mutex<LruCache<u64, u32>>,
    slopes: Mutex<LruCache<String, Slope>>,
}

impl Default for TokenCounter {
    fn default() -> Self {
        Self::new()
    }
}

impl TokenCounter {
    /// An empty counter.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            hasher: RandomState::new(),
            cache: Mutex::new(LruCache::new(CACHE_ENTRIES_MAX)),
            slopes: Mutex::new(LruCache::new(SLOPES_MAX)),
        }))
    }
    /// Loads the vocabulary that nearly every model is counted with, so that the first request does
    /// not. The other one, for a few old models, waits until it is asked for.
    pub fn warm_up(&self) {
        let _ = Tokenizer::O200k.count("a");
    }
    /// Counts a text.
    #[must_use]
    pub fn count_text(&self, model: &str, text: &str) -> TokenCount {
        self.finish(model, Tokenizer::of(model).count(text))
    }
    /// Counts what a collecting meter kept; text that did not fit counts by its length.
    #[must_use]
    pub fn count_answer(&self, model: &str, meter: &AnswerMeter) -> TokenCount {
        let text = Tokenizer::of(model).count(&meter.text());
        let rest = meter.uncollected_bytes().div_ceil(4);
        self.finish(model, text.saturating_add(rest))
    }
    /// Counts a whole JSON answer: its text, and tool inputs that are objects, as JSON text.
    #[must_use]
    pub fn count_whole_answer(&self, model: &str, body: &[u8]) -> TokenCount {
        let tokenizer = Tokenizer::of(model);
        let start = ["choices", "content", "output"]
            .iter()
            .find_map(|key| super::json::find(body, &[key]));
        let tokens = start.map_or(0, |span| count_value(tokenizer, body, span.start, true));
        self.finish(model, tokens)
    }
    /// Counts a request's text: messages, system prompt, tools (as JSON). Images are not text.
    #[must_use]
    pub fn count_request(&self, model: &str, body: &[u8], view: &RequestView) -> TokenCount {
        let tokenizer = Tokenizer::of(model);
        let mut total = 0u64;
        for span in [&view.system_span, &view.tools_span].into_iter().flatten() {
            total = total.saturating_add(self.cached(tokenizer, body, span));
        }
        for span in view.prompt_span.iter().flat_map(|p| items(body, p)) {
            let ids = count_token_ids(body, span.start);
            total = total.saturating_add(self.cached(tokenizer, body, &span).saturating_add(ids));
        }
        for span in view.messages_span.iter().flat_map(|m| items(body, m)) {
            total = total.saturating_add(self.cached(tokenizer, body, &span));
        }
        self.finish(model, total)
    }

    fn cached(&self, tokenizer: Tokenizer, body: &[u8], span: &Range<usize>) -> u64 {
        let raw = body.get(span.clone()).unwrap_or_default();
        let count = || count_value(tokenizer, body, span.start, false);
        if raw.len() < CACHED_BYTES_MIN {
            return count();
        }
        let vocabulary = tokenizer == Tokenizer::Cl100k;
        let key = self.0.hasher.hash_one((vocabulary, raw));
        if let Some(tokens) = self.0.cache.lock().get(&key) {
            return u64::from(*tokens);
        }
        let tokens = count();
        let kept = u32::try_from(tokens).unwrap_or(u32::MAX);
        self.0.cache.lock().put(key, kept);
        tokens
    }

    fn finish(&self, model: &str, raw: u64) -> TokenCount {
        if Tokenizer::of(model) != Tokenizer::Slope {
            return TokenCount {
                tokens: raw,
                raw,
                exact: true,
                margin: Margin::Exact,
            };
        }
        let (permille, margin) = self
            .slope(model)
            .map_or((1_000, Margin::Unknown), |p| (p, Margin::Calibrated));
        let wide = (u128::from(raw) * u128::from(permille)).div_ceil(1_000);
        TokenCount {
            tokens: u64::try_from(wide).unwrap_or(u64::MAX),
            raw,
            exact: false,
            margin,
        }
    }

    /// Learns from an accepted answer: `own` is [`TokenCount::raw`], `claimed` what the upstream
    /// reported for the same text (hidden reasoning left out). Small ones and exact models are
    /// ignored.
    pub fn observe(&self, model: &str, own: u64, claimed: u64) {
        if own < OBSERVED_TOKENS_MIN || Tokenizer::of(model) != Tokenizer::Slope {
            return;
        }
        let own = own.min(SLOPE_WINDOW_TOKENS);
        // One report moves the slope no further than the widest bound.
        let claimed = claimed.clamp(own / 2, own.saturating_add(own / 2));
        let mut slopes = self.0.slopes.lock();
        let slope = slopes.get_or_insert_mut(model.to_owned(), || Slope {
            model: model.to_owned(),
            own: 0,
            claimed: 0,
            reports: 0,
        });
        slope.own = slope.own.saturating_add(own);
        slope.claimed = slope.claimed.saturating_add(claimed);
        slope.reports = slope.reports.saturating_add(1);
        if slope.own > SLOPE_WINDOW_TOKENS {
            slope.own /= 2;
            slope.claimed /= 2;
        }
    }
    /// The slope in thousandths, once enough reports were seen.
    #[must_use]
    pub fn slope(&self, model: &str) -> Option<u64> {
        let slopes = self.0.slopes.lock();
        let slope = slopes.peek(model)?;
        if slope.reports < CALIBRATED_AFTER || slope.own == 0 {
            return None;
        }
        let (low, high) = SLOPE_PERMILLE;
        let wide = u128::from(slope.claimed) * 1_000 / u128::from(slope.own);
        Some(u64::try_from(wide).unwrap_or(high).clamp(low, high))
    }
    /// All slopes, for keeping over a restart.
    #[must_use]
    pub fn slopes(&self) -> Vec<Slope> {
        self.0
            .slopes
            .lock()
            .iter()
            .map(|(_, s)| s.clone())
            .collect()
    }
    /// Takes kept slopes back.
    pub fn restore(&self, kept: Vec<Slope>) {
        let mut slopes = self.0.slopes.lock();
        for slope in kept {
            slopes.put(slope.model.clone(), slope);
        }
    }
}

/// The spans of a list's items; the value itself when it is no list.
fn items(body: &[u8], span: &Range<usize>) -> Vec<Range<usize>> {
    let mut cursor = Cursor::new(body, span.start);
    if cursor.expect(b'[').is_err() {
        return vec![span.clone()];
    }
    let (mut first, mut spans) = (true, Vec::new());
    while let Ok(true) = cursor.next_item(&mut first, b']') {
        match cursor.value(JSON_DEPTH_MAX, &mut Blind) {
            Ok(item) => spans.push(item),
            Err(_) => break,
        }
    }
    spans
}

/// Counts the strings a model reads in the value at `start`. `answer` leaves out the names that
/// only an answer's frame has.
/// Numbers in a value: a prompt may come as the ids of its tokens.
fn count_token_ids(body: &[u8], start: usize) -> u64 {
    struct Numbers(u64);
    impl Observe for Numbers {
        fn value_start(&mut self, _depth: u32, _key: &[u8], first: u8, _at: usize) {
            self.0 += u64::from(first.is_ascii_digit());
        }
    }
    let mut numbers = Numbers(0);
    let _whole = Cursor::new(body, start).value(JSON_DEPTH_MAX, &mut numbers);
    numbers.0
}

fn count_value(tokenizer: Tokenizer, body: &[u8], start: usize, answer: bool) -> u64 {
    let mut reader = TextReader {
        tokenizer,
        body,
        answer,
        tokens: 0,
        object: None,
        hasher: RandomState::new(),
        thought: None,
    };
    let mut cursor = Cursor::new(body, start);
    let _whole = cursor.value(JSON_DEPTH_MAX, &mut reader);
    reader.tokens
}

struct TextReader<'a> {
    tokenizer: Tokenizer,
    body: &'a [u8],
    answer: bool,
    tokens: u64,
    /// Depth and start of an object that is counted as JSON text.
    object: Option<(u32, usize)>,
    hasher: RandomState,
    /// The last reasoning of an answer, hashed.
    thought: Option<u64>,
}

impl TextReader<'_> {
    fn add(&mut self, text: &str) {
        self.tokens = self.tokens.saturating_add(self.tokenizer.count(text));
    }
}

impl Observe for TextReader<'_> {
    fn value_start(&mut self, depth: u32, key: &[u8], first: u8, at: usize) {
        let as_text = matches!(key, b"input" | b"parameters" | b"input_schema");
        if self.object.is_none() && as_text && first == b'{' {
            self.object = Some((depth, at));
        }
    }
    fn value_end(&mut self, depth: u32, at: usize) {
        if let Some((open, from)) = self.object
            && depth == open
        {
            self.object = None;
            let raw = self.body.get(from..at).unwrap_or_default();
            self.add(&String::from_utf8_lossy(raw));
        }
    }
    fn string(&mut self, key: &[u8], raw: &[u8]) {
        let frame = matches!(
            key,
            b"type"
                | b"role"
                | b"id"
                | b"call_id"
                | b"tool_call_id"
                | b"tool_use_id"
                | b"media_type"
                | b"signature"
                | b"encrypted_content"
                | b"data"
                | b"detail"
                | b"finish_reason"
                | b"stop_reason"
                | b"status"
                | b"object"
                | b"format"
        );
        if self.object.is_some() || frame || raw.is_empty() || is_base64_image(raw) {
            return;
        }
        let thought = key.starts_with(b"reasoning") || key == b"thinking";
        if self.answer && (thought || key == b"text") {
            // Some upstreams say reasoning twice, as `reasoning` and in `reasoning_details`.
            let hash = self.hasher.hash_one(raw);
            if self.thought == Some(hash) {
                return;
            }
            if thought {
                self.thought = Some(hash);
            }
        }
        self.add(&unescape(raw));
    }
}

#[cfg(test)]
#[path = "tokens_tests.rs"]
mod tests;
