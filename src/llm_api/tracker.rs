//! What an answer's stream has said so far: usage, stop reason, terminator, tool calls, errors.
//!
//! Fed with runs of complete events; it searches for key words and parses only a line that holds
//! one, each line once, so a hostile event costs no more than its length. Callers: buyer and seller.

use std::ops::Range;
use std::sync::LazyLock;

use memchr::memmem::Finder;
use memchr::{memchr, memrchr};

use super::json::{find, unescape};
use super::usage::{PartialUsage, partial};
use super::{AnswerMeter, Dialect, sse};
use crate::types::Usage;

/// Longest stop reason, id or model that is kept.
const NAME_BYTES_MAX: usize = 128;

static USAGE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"usage\""));
static FINISH: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"finish_reason\""));
static STOP: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"stop_reason\""));
static TOOLS: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"tool_calls\""));
static TOOL_USE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"tool_use\""));
static CALL: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"_call\""));
static ERROR: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"error"));
static DONE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"[DONE]"));
static MESSAGE_STOP: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"message_stop"));
static RESPONSE_END: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"response."));

/// What the chunks of a stream call themselves, for chunks that we add.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamIdentity {
    /// The answer's id.
    pub id: String,
    /// The model named in the answer.
    pub model: String,
    /// Chat's `created`, in seconds.
    pub created_s: u64,
}

/// Watches a stream, or a whole answer pushed at once.
#[derive(Clone, Debug)]
pub struct UsageTracker {
    dialect: Dialect,
    usage: Option<PartialUsage>,
    finish: Option<String>,
    terminator: bool,
    error: bool,
    tool_call: bool,
    identity: Option<StreamIdentity>,
}

impl UsageTracker {
    /// For a stream of `dialect`.
    #[must_use]
    pub const fn new(dialect: Dialect) -> Self {
        Self {
            dialect,
            usage: None,
            finish: None,
            terminator: false,
            error: false,
            tool_call: false,
            identity: None,
        }
    }
    /// The stream's dialect.
    #[must_use]
    pub const fn dialect(&self) -> Dialect {
        self.dialect
    }
    /// Usage so far: the maximum of each field over all reports; `None` when there was none.
    #[must_use]
    pub fn usage(&self) -> Option<Usage> {
        self.usage.as_ref().map(|u| u.to_usage(self.dialect))
    }
    /// The stop reason, in the dialect's words.
    #[must_use]
    pub fn finish_reason(&self) -> Option<&str> {
        self.finish.as_deref()
    }
    /// True after `[DONE]`, `message_stop`, `response.completed` and its kin.
    #[must_use]
    pub const fn terminator_seen(&self) -> bool {
        self.terminator
    }
    /// True after an error event.
    #[must_use]
    pub const fn error_seen(&self) -> bool {
        self.error
    }
    /// True when a tool call was delivered.
    #[must_use]
    pub const fn tool_call_seen(&self) -> bool {
        self.tool_call
    }
    /// True when the stream may end here: no error, and a stop reason or the terminator came.
    #[must_use]
    pub const fn ended_well(&self) -> bool {
        !self.error && (self.terminator || self.finish.is_some())
    }
    /// True when the client got something worth paying for: text or a tool call.
    #[must_use]
    pub const fn delivered(&self, meter: &AnswerMeter) -> bool {
        meter.text_bytes() > 0 || self.tool_call
    }
    /// Id, model and time of the stream's chunks, once one was seen.
    #[must_use]
    pub const fn identity(&self) -> Option<&StreamIdentity> {
        self.identity.as_ref()
    }

    /// Takes a run of complete events, or a whole JSON answer.
    pub fn push(&mut self, events: &[u8]) {
        if self.identity.is_none() {
            self.identity = identity(events);
        }
        let dialect = self.dialect;
        let mut usage = self.usage;
        each_line(&USAGE, events, |line, after| {
            if after != Some(b'{') {
                return false;
            }
            if let Some(part) = payload(line).and_then(|p| partial(dialect, p)) {
                usage.get_or_insert_default().merge(&part);
            }
            true
        });
        self.usage = usage;
        match dialect {
            Dialect::Chat => self.push_chat(events),
            Dialect::Messages => self.push_messages(events),
            Dialect::Responses => self.push_responses(events),
        }
        let mut error = false;
        each_line(&ERROR, events, |line, _| {
            error |= sse::is_error(line);
            true
        });
        self.error |= error;
    }

    fn push_chat(&mut self, events: &[u8]) {
        self.take_finish(&FINISH, events);
        if !self.tool_call {
            for at in TOOLS.find_iter(events) {
                let value = after_colon(events, at + TOOLS.needle().len());
                let list = value.and_then(|v| v.strip_prefix(b"["));
                self.tool_call |= list.is_some_and(|l| l.trim_ascii_start().first() == Some(&b'{'));
            }
        }
        let mut done = false;
        each_line(&DONE, events, |line, _| {
            done |= payload(line) == Some(b"[DONE]");
            true
        });
        self.terminator |= done;
    }

    fn push_messages(&mut self, events: &[u8]) {
        self.take_finish(&STOP, events);
        self.tool_call |= TOOL_USE.find(events).is_some();
        let mut stop = false;
        each_line(&MESSAGE_STOP, events, |line, _| {
            stop |= payload(line).is_some_and(|p| has_type(p, &["message_stop"]));
            true
        });
        self.terminator |= stop;
    }

    fn push_responses(&mut self, events: &[u8]) {
        self.tool_call |= CALL.find(events).is_some();
        let (mut end, mut finish) = (false, None);
        each_line(&RESPONSE_END, events, |line, _| {
            let Some(json) = payload(line) else {
                return true;
            };
            for (name, reason) in [
                ("response.completed", "completed"),
                ("response.incomplete", "incomplete"),
                ("response.failed", "failed"),
            ] {
                if has_type(json, &[name]) {
                    end = true;
                    finish = Some(reason.to_owned());
                }
            }
            true
        });
        self.terminator |= end;
        self.finish = finish.or(self.finish.take());
    }

    /// The last stop reason that is a string; `null` says nothing.
    fn take_finish(&mut self, finder: &Finder<'_>, events: &[u8]) {
        for at in finder.find_iter(events) {
            let Some(value) = after_colon(events, at + finder.needle().len()) else {
                continue;
            };
            if let Some(text) = value.strip_prefix(b"\"")
                && let Some(end) = memchr(b'"', text)
            {
                let raw = text.get(..end.min(NAME_BYTES_MAX)).unwrap_or_default();
                self.finish = Some(unescape(raw).into_owned());
            }
        }
    }
}

/// Calls `f` with each line that holds the word and the first byte of the value after it, until
/// `f` says the line is done.
fn each_line(finder: &Finder<'_>, events: &[u8], mut f: impl FnMut(&[u8], Option<u8>) -> bool) {
    let mut done_to = 0;
    for at in finder.find_iter(events) {
        if at < done_to {
            continue;
        }
        let after =
            after_colon(events, at + finder.needle().len()).and_then(|v| v.first().copied());
        let line = line_around(events, at);
        if f(events.get(line.clone()).unwrap_or_default(), after) {
            done_to = line.end;
        }
    }
}

/// The line of a stream that holds `at`; all of the bytes when they are one JSON text.
fn line_around(events: &[u8], at: usize) -> Range<usize> {
    if matches!(events.trim_ascii_start().first(), Some(b'{' | b'[')) {
        return 0..events.len();
    }
    let head = events.get(..at).unwrap_or_default();
    let start = memrchr(b'\n', head).map_or(0, |n| n + 1);
    let tail = events.get(at..).unwrap_or_default();
    start..memchr(b'\n', tail).map_or(events.len(), |n| at + n)
}

fn payload(line: &[u8]) -> Option<&[u8]> {
    let span = sse::payloads(line).next()?;
    line.get(span)
}

/// What follows a colon after position `at`, white space skipped.
fn after_colon(bytes: &[u8], at: usize) -> Option<&[u8]> {
    let rest = bytes.get(at..)?.trim_ascii_start();
    Some(rest.strip_prefix(b":")?.trim_ascii_start())
}

fn has_type(json: &[u8], names: &[&str]) -> bool {
    text_at(json, &["type"]).is_some_and(|t| names.contains(&t.as_str()))
}

fn text_at(json: &[u8], path: &[&str]) -> Option<String> {
    let raw = json.get(find(json, path)?)?;
    let raw = raw.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    (raw.len() <= NAME_BYTES_MAX).then(|| unescape(raw).into_owned())
}

fn identity(events: &[u8]) -> Option<StreamIdentity> {
    let json = sse::payloads(events)
        .filter_map(|s| events.get(s))
        .find(|p| p.first() == Some(&b'{'))?;
    let of = |name: &str| {
        [&[name][..], &["message", name], &["response", name]]
            .iter()
            .find_map(|path| text_at(json, path))
    };
    let created = find(json, &["created"]).and_then(|s| json.get(s));
    Some(StreamIdentity {
        id: of("id").unwrap_or_default(),
        model: of("model").unwrap_or_default(),
        created_s: created
            .and_then(|raw| std::str::from_utf8(raw).ok()?.parse().ok())
            .unwrap_or(0),
    })
}

#[cfg(test)]
#[path = "tracker_tests.rs"]
mod tests;
