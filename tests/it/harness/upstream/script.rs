//! What one scripted upstream does: its models, its text, its pace, and its fault.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;

use super::models::{ListShape, ModelEntry};

/// The answer when a script names no other: long enough for 40 events, with characters of one to
/// four bytes, so that splits inside a character happen.
pub const DEFAULT_TEXT: &str = "Souk works. Ein größerer Markt – naïve café, 東京の市場, \
     souq السوق, and a 🦀 that counts: one two three four five six seven eight nine ten, every \
     token on its own line of the wire, from the upstream through the seller and the buyer.";

/// Everything that a scripted upstream decides; one per instance.
#[derive(Clone, Debug)]
pub struct Script {
    /// The models in its list; any model id is answered.
    pub models: Vec<ModelEntry>,
    /// The shape of `/v1/models`.
    pub list: ListShape,
    /// The text of an answer (tool turns aside).
    pub text: String,
    /// Time before the status line is sent.
    pub first_byte_after: Duration,
    /// Events a second of a stream, one token each; none = all at once.
    pub tokens_per_second: Option<f64>,
    /// What goes wrong.
    pub fault: Fault,
    /// What the usage says.
    pub usage: UsageReport,
    /// Input tokens reported as read from a cache, in percent of the input.
    pub cached_percent: u64,
    /// Remembers conversations: what it has read before is reported as cached, instead.
    pub memory: Option<Memory>,
    /// Knows what a sum is when it is asked for one.
    pub adds: bool,
    /// Hidden reasoning tokens, reported as a part of the output.
    pub reasoning_tokens: u64,
    /// Thoughts shown before the answer.
    pub thinking: Option<String>,
    /// How many calls a tool turn makes.
    pub calls: u64,
    /// Why answers end.
    pub stop: Stop,
    /// The end of a model's name says what it does, see [`Script::for_model`].
    pub by_model: bool,
    /// Requests that a vendor would refuse for their shape are refused.
    pub strict: bool,
    /// The only key that is accepted; none = any.
    pub key: Option<String>,
    /// Streams wait here after this many events.
    pub gate: Option<(usize, Gate)>,
}

/// Where streams wait in their middle until the test lets them go on.
#[derive(Clone, Debug)]
pub struct Gate(watch::Sender<bool>);

impl Default for Gate {
    fn default() -> Self {
        Self(watch::Sender::new(false))
    }
}

impl Gate {
    /// Lets all that wait and all that come go on.
    pub fn open(&self) {
        self.0.send_replace(true);
    }

    /// Returns once it is open.
    pub(super) async fn pass(&self) {
        let _ = self.0.subscribe().wait_for(|is_open| *is_open).await;
    }
}

/// The conversations that one upstream has read: tokens by their text.
#[derive(Clone, Debug, Default)]
pub struct Memory(Arc<Mutex<HashMap<String, u64>>>);

impl Memory {
    /// Reads a conversation whose beginnings are `texts`, the whole last; gives how many of its
    /// tokens were read before.
    pub fn read(&self, texts: &[String], tokens: u64) -> u64 {
        let mut known = self.0.lock().unwrap();
        let before = texts.iter().rev().find_map(|text| known.get(text).copied());
        if let Some(whole) = texts.last() {
            known.insert(whole.clone(), tokens);
        }
        before.unwrap_or(0).min(tokens)
    }
}

/// Why an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It is over.
    Natural,
    /// The limit is reached.
    Length,
    /// The model will not.
    Refusal,
}

/// One thing that an upstream does wrong. Counts are SSE events, or 64-byte pieces of a whole
/// answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It behaves.
    None,
    /// It takes the request and never answers.
    StallBeforeFirstByte,
    /// It sends the status line, this many events, and nothing more; the socket stays open.
    StallAfter(usize),
    /// It sends this many events and closes the socket.
    CutAfter(usize),
    /// It answers with an error status in the dialect's shape.
    Status(u16),
    /// It answers this share of requests with a 500, in percent, at random.
    Flaky { percent: u32 },
    /// It answers 429 and says when to come back.
    RateLimited { retry_after_s: u64 },
    /// It answers 200 with JSON that ends in the middle.
    MalformedJson,
    /// It answers 200 with a web page.
    Html,
    /// It streams text without end, as fast as the socket takes it.
    Flood,
}

/// How honest the reported usage is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsageReport {
    /// What was used, by the o200k vocabulary.
    Honest,
    /// No usage at all.
    None,
    /// Every count this many times too high.
    Times(u64),
}

impl Default for Script {
    fn default() -> Self {
        Self {
            models: vec![ModelEntry::new("gpt-4o-mini", "0.15", "0.60")],
            list: ListShape::Plain,
            text: DEFAULT_TEXT.to_owned(),
            first_byte_after: Duration::ZERO,
            tokens_per_second: None,
            fault: Fault::None,
            usage: UsageReport::Honest,
            cached_percent: 25,
            memory: None,
            adds: true,
            reasoning_tokens: 0,
            thinking: None,
            calls: 1,
            stop: Stop::Natural,
            by_model: false,
            strict: false,
            key: None,
            gate: None,
        }
    }
}

impl Script {
    /// Returns a script that behaves, and answers with `text`.
    pub fn saying(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            ..Self::default()
        }
    }

    /// Returns a script with one fault.
    pub fn failing(fault: Fault) -> Self {
        Self {
            fault,
            ..Self::default()
        }
    }

    /// Sets the time before the first byte.
    pub fn first_byte_after(mut self, delay: Duration) -> Self {
        self.first_byte_after = delay;
        self
    }

    /// Sets the pace of streams.
    pub fn paced(mut self, tokens_per_second: f64) -> Self {
        self.tokens_per_second = Some(tokens_per_second);
        self
    }

    /// Streams stop after `events` until `gate` is opened.
    pub fn held_after(mut self, events: usize, gate: &Gate) -> Self {
        self.gate = Some((events, gate.clone()));
        self
    }

    /// Sets what goes wrong.
    pub fn fault(mut self, fault: Fault) -> Self {
        self.fault = fault;
        self
    }

    /// Sets how usage is reported.
    pub fn usage(mut self, usage: UsageReport) -> Self {
        self.usage = usage;
        self
    }

    /// Sets the thoughts shown before the answer.
    pub fn thinking(mut self, thoughts: &str) -> Self {
        self.thinking = Some(thoughts.to_owned());
        self
    }

    /// Sets how many calls a tool turn makes.
    pub fn calls(mut self, calls: u64) -> Self {
        self.calls = calls;
        self
    }

    /// Sets why answers end.
    pub fn stop(mut self, stop: Stop) -> Self {
        self.stop = stop;
        self
    }

    /// The script of one model: where names speak, `…-thinking` shows its thoughts, `…-parallel`
    /// makes three calls, `…-long` reaches the limit and `…-refusing` will not.
    pub fn for_model(&self, model: &str) -> Self {
        let mut script = self.clone();
        match model.rsplit('-').next() {
            Some("thinking") if self.by_model => script.thinking = Some("Let me see.".to_owned()),
            Some("parallel") if self.by_model => script.calls = 3,
            Some("long") if self.by_model => script.stop = Stop::Length,
            Some("refusing") if self.by_model => script.stop = Stop::Refusal,
            _ => {}
        }
        script
    }

    /// Refuses requests that a vendor would refuse for their shape.
    pub fn strict(mut self) -> Self {
        self.strict = true;
        self
    }

    /// Sets the only key that is accepted.
    pub fn key(mut self, key: &str) -> Self {
        self.key = Some(key.to_owned());
        self
    }

    /// Sets the models of the list.
    pub fn models(mut self, list: ListShape, models: Vec<ModelEntry>) -> Self {
        self.list = list;
        self.models = models;
        self
    }
}
