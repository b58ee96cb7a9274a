//! The running meter: how much text an answer holds so far, as one integer over its BODY bytes.
//!
//! This is money. Buyer and seller run it over the same bytes in different chunks and must hold the
//! same number at every position, so it is defined on bytes alone:
//! - A body whose first byte after white space is `{` or `[` is one JSON text. Any other is a stream
//!   of lines, of which only the rest of `data:` lines is JSON; a blank line starts a fresh text.
//! - What counts is each byte (escapes as written, without the quotes) of a JSON string that is the
//!   direct value of a key `content`, `text`, `thinking`, `reasoning…`, `arguments`, `partial_json`
//!   or `delta`. Strings in arrays, keys, and other values count nothing. Keys are compared as
//!   written, without decoding escapes.
//! - A raw newline ends a string (JSON allows none), so damage cannot outlive a line.
//!
//! Anything else than JSON in `data:` is metered by the same automaton and is as deterministic. What
//! the integer says of odd input matters little: the receipt's cost replaces it at the end.
//!
//! A byte costs about a nanosecond: strings are skipped with `memchr`, nothing is allocated. Callers:
//! buyer and seller, on every BODY frame.

use memchr::memchr;

use super::Dialect;
use super::json::{len64, string_stop, unescape};
use crate::types::{MicroUsd, PriceTable};

/// Most raw text a collecting meter keeps; beyond it text is estimated by its length.
pub const COLLECTED_TEXT_BYTES_MAX: usize = 8 << 20;
/// Bytes of text that count as one output token while an answer runs.
const BYTES_PER_TOKEN: u64 = 4;
/// Longest key that matters (`partial_json`); longer ones are only seen to begin with `reasoning`.
const KEY_BYTES_MAX: usize = 12;
/// The field name of lines that carry JSON.
const DATA_FIELD: &[u8] = b"data:";

/// What a key says of its string value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Other,
    /// `content`, `arguments`, `partial_json`: text that appears once.
    Plain,
    /// `text`, which some upstreams use to repeat reasoning.
    Text,
    /// `thinking`, `reasoning…`.
    Reasoning,
    /// `delta`.
    Delta,
}

impl Class {
    fn of(key: &[u8]) -> Self {
        match key {
            b"content" | b"arguments" | b"partial_json" => Self::Plain,
            b"text" => Self::Text,
            b"thinking" => Self::Reasoning,
            b"delta" => Self::Delta,
            _ if key.starts_with(b"reasoning") => Self::Reasoning,
            _ => Self::Other,
        }
    }
}

/// Where in the bytes the automaton stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before the first byte that is not white space.
    Start,
    /// In the field name of a line, that many bytes of `data:` matched.
    Field(usize),
    /// In a line without JSON.
    Skip,
    /// In JSON, outside strings.
    Out,
    /// In a string that may turn out to be a key.
    Key,
    KeyEscape,
    /// In a string value that counts nothing.
    Value,
    ValueEscape,
    /// In a string value that counts.
    Text,
    TextEscape,
}

/// What stood last outside strings, white space aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Nothing,
    /// A string, perhaps a key.
    Name(Class),
    /// A key and its colon.
    Colon(Class),
}

/// The incremental meter. [`text_bytes`](Self::text_bytes) is exact after every byte.
#[derive(Clone, Debug)]
pub struct AnswerMeter {
    state: State,
    before: Before,
    class: Class,
    lines: bool,
    key: [u8; KEY_BYTES_MAX],
    key_len: usize,
    text_bytes: u64,
    body_bytes: u64,
    /// The stream says its text in `delta` strings, as Responses does: what it says again of whole
    /// parts and items is the same text.
    says_deltas: bool,
    collector: Option<Box<Collector>>,
}

impl Default for AnswerMeter {
    fn default() -> Self {
        Self::new()
    }
}

impl AnswerMeter {
    /// A meter that only counts.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            state: State::Start,
            before: Before::Nothing,
            class: Class::Other,
            lines: true,
            key: [0; KEY_BYTES_MAX],
            key_len: 0,
            text_bytes: 0,
            body_bytes: 0,
            says_deltas: false,
            collector: None,
        }
    }
    /// A meter that also keeps the text for an own token count, at most 8 MiB of it. Text that an
    /// upstream sends twice in one event (`reasoning` and `reasoning_details`) is kept once; of a
    /// Responses stream only the deltas are kept.
    #[must_use]
    pub fn with_text(dialect: Dialect) -> Self {
        Self {
            collector: Some(Box::new(Collector::new(dialect))),
            ..Self::new()
        }
    }
    /// Text bytes so far: the integer both sides agree on.
    #[must_use]
    pub const fn text_bytes(&self) -> u64 {
        self.text_bytes
    }
    /// All bytes so far.
    #[must_use]
    pub const fn body_bytes(&self) -> u64 {
        self.body_bytes
    }
    /// `⌈text bytes ÷ 4⌉`.
    #[must_use]
    pub const fn estimated_tokens(&self) -> u64 {
        self.text_bytes.div_ceil(BYTES_PER_TOKEN)
    }
    /// What a stream is worth so far: prefill at the input price plus the estimate at the output
    /// price, rounded up once.
    #[must_use]
    pub fn running_cost(&self, prefill_tokens: u64, price: &PriceTable) -> MicroUsd {
        price.cost_in_out(prefill_tokens, self.estimated_tokens())
    }
    /// The collected text, decoded; empty without [`with_text`](Self::with_text).
    #[must_use]
    pub fn text(&self) -> String {
        self.collector
            .as_ref()
            .map_or_else(String::new, |c| unescape(&c.raw).into_owned())
    }
    /// Text bytes that did not fit into the collected text (add `⌈n ÷ 4⌉` tokens for them).
    #[must_use]
    pub fn uncollected_bytes(&self) -> u64 {
        self.collector.as_ref().map_or(0, |c| c.dropped)
    }

    /// Takes the next bytes of the BODY, cut anywhere.
    pub fn push(&mut self, bytes: &[u8]) {
        self.body_bytes = self.body_bytes.saturating_add(len64(bytes.len()));
        let mut rest = bytes;
        while !rest.is_empty() {
            rest = match self.state {
                State::Out => self.outside(rest),
                State::Key => self.key_string(rest),
                State::Value => self.value_string(rest),
                State::Text => self.text_string(rest),
                State::KeyEscape | State::ValueEscape | State::TextEscape => self.escaped(rest),
                State::Skip => match memchr(b'\n', rest) {
                    Some(at) => {
                        self.end_line();
                        rest.get(at + 1..).unwrap_or_default()
                    }
                    None => &[],
                },
                State::Field(matched) => self.field(rest, matched),
                State::Start => self.start(rest),
            };
        }
    }

    /// Decides by the first byte whether this is one JSON text or a stream of lines.
    fn start<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let rest = bytes.trim_ascii_start();
        match rest.first() {
            None => {}
            Some(b'{' | b'[') => {
                self.lines = false;
                self.state = State::Out;
            }
            Some(_) => self.state = State::Field(0),
        }
        rest
    }

    fn field<'a>(&mut self, bytes: &'a [u8], matched: usize) -> &'a [u8] {
        let Some((&b, rest)) = bytes.split_first() else {
            return bytes;
        };
        if matched == 0 && b == b'\n' {
            // A blank line ends the event, and with it whatever JSON was open.
            self.before = Before::Nothing;
            if let Some(c) = &mut self.collector {
                c.event_end();
            }
        } else if matched == 0 && b == b'\r' {
            // Part of a blank line's `\r\n`.
        } else if DATA_FIELD.get(matched) == Some(&b) {
            self.state = if matched + 1 == DATA_FIELD.len() {
                State::Out
            } else {
                State::Field(matched + 1)
            };
        } else if b == b'\n' {
            self.end_line();
        } else {
            self.state = State::Skip;
        }
        rest
    }

    fn end_line(&mut self) {
        self.state = if self.lines {
            State::Field(0)
        } else {
            State::Out
        };
    }

    /// JSON outside strings: up to the next quote or line end.
    fn outside<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let mut before = self.before;
        let mut rest = bytes;
        while let Some((&b, tail)) = rest.split_first() {
            rest = tail;
            match b {
                b'"' => {
                    // Keys and plain values that end in these bytes need no state of their own.
                    let text = matches!(before, Before::Colon(class) if class != Class::Other);
                    if !text && let (run, Some(b'"'), tail) = cut(rest) {
                        before = match before {
                            Before::Colon(_) => Before::Nothing,
                            _ => Before::Name(Class::of(run)),
                        };
                        rest = tail;
                        continue;
                    }
                    self.open_string(before);
                    return rest;
                }
                b':' => {
                    before = match before {
                        Before::Name(class) => Before::Colon(class),
                        _ => Before::Nothing,
                    };
                }
                b'\n' if self.lines => {
                    self.before = before;
                    self.end_line();
                    return rest;
                }
                b' ' | b'\t' | b'\r' | b'\n' => {}
                _ => before = Before::Nothing,
            }
        }
        self.before = before;
        rest
    }

    fn open_string(&mut self, before: Before) {
        self.before = Before::Nothing;
        match before {
            Before::Colon(Class::Other) => self.state = State::Value,
            Before::Colon(class) => {
                self.class = class;
                self.state = State::Text;
                self.says_deltas |= self.lines && class == Class::Delta;
                if let Some(c) = &mut self.collector {
                    c.open(class, self.lines);
                }
            }
            _ => {
                self.key_len = 0;
                self.state = State::Key;
            }
        }
    }

    fn key_string<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (run, hit, rest) = cut(bytes);
        if hit == Some(b'"') && self.key_len == 0 {
            self.before = Before::Name(Class::of(run));
            self.state = State::Out;
            return rest;
        }
        self.keep_key(run);
        match hit {
            Some(b'"') => {
                let key = self.key.get(..self.key_len.min(KEY_BYTES_MAX));
                let mut class = Class::of(key.unwrap_or_default());
                if self.key_len > KEY_BYTES_MAX && class != Class::Reasoning {
                    class = Class::Other;
                }
                self.before = Before::Name(class);
                self.state = State::Out;
            }
            Some(b'\\') => {
                self.keep_key(b"\\");
                self.state = State::KeyEscape;
            }
            Some(_) => self.end_line(),
            None => {}
        }
        rest
    }

    fn keep_key(&mut self, run: &[u8]) {
        let free = self.key.get_mut(self.key_len..).unwrap_or_default();
        for (slot, b) in free.iter_mut().zip(run) {
            *slot = *b;
        }
        self.key_len = self.key_len.saturating_add(run.len());
    }

    fn value_string<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (_, hit, rest) = cut(bytes);
        match hit {
            Some(b'"') => self.state = State::Out,
            Some(b'\\') => self.state = State::ValueEscape,
            Some(_) => self.end_line(),
            None => {}
        }
        rest
    }

    fn text_string<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (run, hit, rest) = cut(bytes);
        self.count(run);
        match hit {
            Some(b'"') => self.close_text(State::Out),
            Some(b'\\') => {
                self.count(b"\\");
                self.state = State::TextEscape;
            }
            Some(_) => {
                self.close_text(State::Out);
                self.end_line();
            }
            None => {}
        }
        rest
    }

    /// The byte after a backslash, which ends no string (but a newline always does).
    fn escaped<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (head, rest) = bytes.split_at_checked(1).unwrap_or((bytes, &[]));
        let newline = head == b"\n";
        match self.state {
            State::TextEscape if newline => self.close_text(State::Out),
            State::TextEscape => {
                self.count(head);
                self.state = State::Text;
            }
            State::KeyEscape => {
                self.keep_key(head);
                self.state = State::Key;
            }
            _ => self.state = State::Value,
        }
        if newline {
            self.end_line();
        }
        rest
    }

    fn count(&mut self, run: &[u8]) {
        if !self.says_deltas || self.class == Class::Delta {
            self.text_bytes = self.text_bytes.saturating_add(len64(run.len()));
        }
        if let Some(c) = &mut self.collector {
            c.take(run);
        }
    }

    fn close_text(&mut self, next: State) {
        self.state = next;
        if let Some(c) = &mut self.collector {
            c.close(self.class);
        }
    }
}

/// The bytes before the next quote, backslash or newline; which it is; and what follows it.
#[inline]
fn cut(bytes: &[u8]) -> (&[u8], Option<u8>, &[u8]) {
    let Some(at) = string_stop(bytes) else {
        return (bytes, None, &[]);
    };
    let (run, rest) = bytes.split_at(at);
    match rest.split_first() {
        Some((&hit, rest)) => (run, Some(hit), rest),
        None => (run, None, rest),
    }
}

/// Keeps raw text, bounded, each piece once.
#[derive(Clone, Debug)]
struct Collector {
    responses: bool,
    raw: Vec<u8>,
    dropped: u64,
    /// The open string is one to keep.
    keeping: bool,
    open_at: usize,
    /// The last piece of this event that may be said twice.
    last: Option<(Class, usize, usize)>,
}

impl Collector {
    fn new(dialect: Dialect) -> Self {
        Self {
            responses: dialect == Dialect::Responses,
            raw: Vec::new(),
            dropped: 0,
            keeping: true,
            open_at: 0,
            last: None,
        }
    }
    fn open(&mut self, class: Class, stream: bool) {
        self.keeping = !(self.responses && stream) || class == Class::Delta;
        self.open_at = self.raw.len();
    }
    fn take(&mut self, run: &[u8]) {
        if !self.keeping {
            return;
        }
        let room = COLLECTED_TEXT_BYTES_MAX.saturating_sub(self.raw.len());
        let (kept, over) = run.split_at_checked(room).unwrap_or((run, &[]));
        self.raw.extend_from_slice(kept);
        self.dropped = self.dropped.saturating_add(len64(over.len()));
    }
    fn close(&mut self, class: Class) {
        if !self.keeping || !matches!(class, Class::Text | Class::Reasoning) {
            return;
        }
        let (start, end) = (self.open_at, self.raw.len());
        if let Some((other, from, to)) = self.last
            && (other == Class::Reasoning || class == Class::Reasoning)
            && start < end
            && self.raw.get(from..to) == self.raw.get(start..end)
        {
            self.raw.truncate(start);
            return;
        }
        self.last = Some((class, start, end));
    }
    fn event_end(&mut self) {
        self.last = None;
    }
}

#[cfg(test)]
#[path = "meter_tests.rs"]
mod tests;
