//! Server-sent events as bytes: a splitter that cuts at event ends without copying, and small looks
//! into an event. `\n` and `\r\n`, comments, multi-line `data:`, any split. The running meter
//! ([`AnswerMeter`](super::AnswerMeter)) is in its own file. Callers: buyer and seller streams.

use std::borrow::Cow;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use memchr::{memchr, memmem};

use super::Dialect;
use super::json::find_in;

/// Longest event; a longer one is an upstream's fault, not a reason to grow.
pub const EVENT_BYTES_MAX: usize = 1 << 20;

/// Why a stream was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum SseError {
    /// An event of more than 1 MiB.
    #[error(
        "an event of the stream is larger than {EVENT_BYTES_MAX} bytes; ask for smaller output"
    )]
    EventTooLong,
}

/// What the bytes before a position mean for finding a blank line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Tail {
    /// Inside a line, or before the first line of an event.
    #[default]
    Inside,
    /// Just after a line's `\n`.
    LineEnd,
    /// After a line's `\n` and a `\r`.
    LineEndCr,
}

/// Cuts a byte stream at the blank lines that end events.
///
/// Blank lines that precede an event belong to it. Events that lie whole in a pushed chunk are
/// slices of it; only an event split over chunks is copied.
#[derive(Debug, Default)]
pub struct EventSplitter {
    held: BytesMut,
    tail: Tail,
    has_text: bool,
    pending: Bytes,
    failed: bool,
}

impl EventSplitter {
    /// An empty splitter.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
    /// Takes a chunk and gives the events that are complete now. What the iterator is not asked for
    /// stays for the next call.
    pub fn push(&mut self, chunk: Bytes) -> Events<'_> {
        if self.pending.is_empty() {
            self.pending = chunk;
        } else if !chunk.is_empty() {
            let mut both = BytesMut::with_capacity(self.pending.len() + chunk.len());
            both.extend_from_slice(&self.pending);
            both.extend_from_slice(&chunk);
            self.pending = both.freeze();
        }
        Events(self)
    }
    /// Takes a chunk and gives all complete events as one run of bytes (empty when there is none):
    /// for pass-through, where events need not be told apart.
    pub fn push_run(&mut self, chunk: Bytes) -> Result<Bytes, SseError> {
        self.push(chunk);
        let whole = self.pending.clone();
        let Some(first) = self.next_event()? else {
            return Ok(Bytes::new());
        };
        let mut more = 0;
        while let Some(event) = self.next_event()? {
            more += event.len();
        }
        if more == 0 {
            return Ok(first);
        }
        let end = whole.len().saturating_sub(self.held.len());
        if first.len() + more == end {
            // The first event lies in the chunk too, so the run is one slice of it.
            return Ok(whole.slice(..end));
        }
        let mut run = BytesMut::with_capacity(first.len() + more);
        run.extend_from_slice(&first);
        run.extend_from_slice(whole.get(end - more..end).unwrap_or_default());
        Ok(run.freeze())
    }
    /// The bytes of an unfinished event, empty or white space at a clean end.
    #[must_use]
    pub fn rest(&self) -> Cow<'_, [u8]> {
        if self.pending.is_empty() {
            return Cow::Borrowed(&self.held);
        }
        Cow::Owned([self.held.as_ref(), self.pending.as_ref()].concat())
    }
    /// True when an event was begun and not ended.
    #[must_use]
    pub fn has_partial(&self) -> bool {
        !self.rest().trim_ascii().is_empty()
    }

    fn next_event(&mut self) -> Result<Option<Bytes>, SseError> {
        if self.failed {
            return Err(SseError::EventTooLong);
        }
        if self.pending.is_empty() {
            return Ok(None);
        }
        let end = self.scan();
        let size = self.held.len() + end.unwrap_or(self.pending.len());
        if size > EVENT_BYTES_MAX {
            self.failed = true;
            self.held = BytesMut::new();
            self.pending = Bytes::new();
            return Err(SseError::EventTooLong);
        }
        let Some(end) = end else {
            self.held.extend_from_slice(&self.pending);
            self.pending = Bytes::new();
            return Ok(None);
        };
        self.tail = Tail::Inside;
        self.has_text = false;
        let piece = self.pending.split_to(end);
        if self.held.is_empty() {
            return Ok(Some(piece));
        }
        self.held.extend_from_slice(&piece);
        Ok(Some(std::mem::take(&mut self.held).freeze()))
    }

    /// Where the current event ends in `pending`, if it does.
    fn scan(&mut self) -> Option<usize> {
        let bytes = self.pending.as_ref();
        let mut at = 0;
        while let Some(&b) = bytes.get(at) {
            match (self.tail, b) {
                (Tail::LineEnd | Tail::LineEndCr, b'\n') => return Some(at + 1),
                (Tail::LineEnd, b'\r') => self.tail = Tail::LineEndCr,
                (_, b'\n') => {
                    // A blank first line is white space before the event, not its end.
                    if self.has_text {
                        self.tail = Tail::LineEnd;
                    }
                }
                (_, b'\r') => self.tail = Tail::Inside,
                _ => {
                    self.has_text = true;
                    self.tail = Tail::Inside;
                    at += memchr(b'\n', bytes.get(at..).unwrap_or_default())
                        .unwrap_or(bytes.len() - at);
                    continue;
                }
            }
            at += 1;
        }
        None
    }
}

/// The complete events of a push.
#[derive(Debug)]
pub struct Events<'a>(&'a mut EventSplitter);

impl Iterator for Events<'_> {
    type Item = Result<Bytes, SseError>;
    fn next(&mut self) -> Option<Self::Item> {
        self.0.next_event().transpose()
    }
}

/// The spans of the payloads in some bytes: every `data:` line of a run of events, or the whole of
/// it when it is a JSON answer. White space around a payload is left out.
pub fn payloads(bytes: &[u8]) -> impl Iterator<Item = Range<usize>> + '_ {
    let start = bytes.len() - bytes.trim_ascii_start().len();
    let whole = matches!(bytes.get(start), Some(b'{' | b'['));
    let json = whole.then_some(start..start + bytes.trim_ascii().len());
    let mut at = if whole { bytes.len() } else { 0 };
    let lines = std::iter::from_fn(move || {
        while at < bytes.len() {
            let line_start = at;
            let rest = bytes.get(at..).unwrap_or_default();
            let len = memchr(b'\n', rest).unwrap_or(rest.len());
            at += len + 1;
            let line = rest.get(..len).unwrap_or_default();
            if let Some(data) = line.strip_prefix(b"data:") {
                let lead = data.len() - data.trim_ascii_start().len();
                let begin = line_start + 5 + lead;
                return Some(begin..begin + data.trim_ascii().len());
            }
        }
        None
    });
    json.into_iter().chain(lines)
}

/// The first `data:` payload of an event.
#[must_use]
pub fn data(event: &[u8]) -> Option<&[u8]> {
    payloads(event).next().and_then(|s| event.get(s))
}

/// All `data:` lines of one event joined with `\n`, as the standard says.
#[must_use]
pub fn joined_data(event: &[u8]) -> Cow<'_, [u8]> {
    let mut lines = payloads(event).filter_map(|s| event.get(s));
    let first = lines.next().unwrap_or_default();
    let mut joined = Cow::Borrowed(first);
    for line in lines {
        joined.to_mut().push(b'\n');
        joined.to_mut().extend_from_slice(line);
    }
    joined
}

/// The `event:` name.
#[must_use]
pub fn event_name(event: &[u8]) -> Option<&[u8]> {
    event
        .split(|b| *b == b'\n')
        .find_map(|line| line.strip_prefix(b"event:"))
        .map(<[u8]>::trim_ascii)
}

/// The content block of a Messages stream that is open after `event`, of which `before` was.
#[must_use]
pub fn open_block(event: &[u8], before: Option<u64>) -> Option<u64> {
    #[derive(serde::Deserialize)]
    struct Begun {
        index: u64,
    }
    match event_name(event) {
        Some(b"content_block_start") => {
            let begun = serde_json::from_slice::<Begun>(&joined_data(event));
            begun.map_or(before, |begun| Some(begun.index))
        }
        Some(b"content_block_stop" | b"message_stop") => None,
        _ => before,
    }
}

/// True when an event carries no data at all: only comments, fields without meaning, blank lines.
#[must_use]
pub fn is_comment(event: &[u8]) -> bool {
    payloads(event).next().is_none() && event_name(event).is_none()
}

/// True for a heartbeat: a comment, or Anthropic's `event: ping`. It is no first byte.
#[must_use]
pub fn is_heartbeat(event: &[u8]) -> bool {
    is_comment(event) || event_name(event) == Some(b"ping")
}

/// True for the dialect's terminator: `[DONE]`, `message_stop`, `response.completed` and its kin.
#[must_use]
pub fn is_done(dialect: Dialect, event: &[u8]) -> bool {
    match dialect {
        Dialect::Chat => data(event) == Some(b"[DONE]"),
        Dialect::Messages => has_type(event, &["message_stop"]),
        Dialect::Responses => has_type(
            event,
            &[
                "response.completed",
                "response.incomplete",
                "response.failed",
            ],
        ),
    }
}

/// True for the event in which the dialect's usage is due at the latest, when none came before:
/// `message_delta`, the response's end. Chat has a chunk of its own for it.
#[must_use]
pub fn is_usage_due(dialect: Dialect, event: &[u8]) -> bool {
    match dialect {
        Dialect::Chat => false,
        Dialect::Messages => has_type(event, &["message_delta"]),
        Dialect::Responses => is_done(dialect, event),
    }
}

/// True for an error in place of content: `data:{"error":…}`, `event: error`.
#[must_use]
pub fn is_error(event: &[u8]) -> bool {
    if event_name(event) == Some(b"error") {
        return true;
    }
    if memmem::find(event, b"\"error\"").is_none() {
        return false;
    }
    payloads(event).any(|p| {
        has_payload_type(event, p.start, &["error", "response.failed"])
            || find_in(event, p.start, &["error"])
                .is_some_and(|s| event.get(s.start) != Some(&b'n'))
    })
}

/// True when an event (or whole answer) holds a usage object, not only `"usage":null`.
#[must_use]
pub fn has_usage(event: &[u8]) -> bool {
    super::splice::usage_object(event).is_some()
}

/// True for chat's extra chunk: usage and no choices. It is hidden from a client that did not ask.
#[must_use]
pub fn is_usage_only(event: &[u8]) -> bool {
    let Some((_, payload)) = super::splice::usage_object(event) else {
        return false;
    };
    find_in(event, payload.start, &["choices"])
        .and_then(|s| event.get(s))
        .is_none_or(|c| {
            c == b"null"
                || c.strip_prefix(b"[")
                    .and_then(|c| c.strip_suffix(b"]"))
                    .is_some_and(|c| c.trim_ascii().is_empty())
        })
}

fn has_type(event: &[u8], names: &[&str]) -> bool {
    if let Some(name) = event_name(event) {
        return names.iter().any(|n| n.as_bytes() == name);
    }
    payloads(event).any(|p| has_payload_type(event, p.start, names))
}

fn has_payload_type(event: &[u8], start: usize, names: &[&str]) -> bool {
    find_in(event, start, &["type"])
        .and_then(|s| event.get(s))
        .and_then(|t| t.strip_prefix(b"\"")?.strip_suffix(b"\""))
        .is_some_and(|t| names.iter().any(|n| n.as_bytes() == t))
}

#[cfg(test)]
#[path = "sse_tests.rs"]
mod tests;
