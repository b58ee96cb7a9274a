//! The few byte splices that a same-dialect request or answer may undergo. Everything outside the
//! named value stays byte for byte. Called by buyer (usage, cost) and seller (model).

use std::borrow::Cow;
use std::ops::Range;
use std::sync::LazyLock;

use bytes::Bytes;
use memchr::memmem::Finder;

use super::json::{Blind, Cursor, JSON_DEPTH_MAX, find_in, quoted, splice};
use super::request::member_once;
use super::sse::payloads;
use super::{Dialect, RequestView};
use crate::types::{MicroUsd, Usage};

static MODEL_KEY: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"model\""));
static USAGE_KEY: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"usage\""));

/// Where the answer's model stands, by dialect of chunk: chat and whole answers, `message_start`,
/// Responses events.
const ANSWER_MODEL_PATHS: [&[&str]; 3] =
    [&["model"], &["message", "model"], &["response", "model"]];
/// Where usage stands in an event or a whole answer.
pub(crate) const USAGE_PATHS: [&[&str]; 3] =
    [&["usage"], &["message", "usage"], &["response", "usage"]];

/// Replaces the request's model. `body` must be the bytes that `view` was parsed from.
#[must_use]
pub fn rewrite_model(body: &Bytes, view: &RequestView, new: &str) -> Bytes {
    if view.model == new {
        return body.clone();
    }
    let with = quoted(new);
    splice(body, &[(view.model_span.clone(), with.as_bytes())])
}

/// Chat only: makes a streamed request ask for the usage chunk. Other dialects, whole answers and
/// requests that already ask come back unchanged.
#[must_use]
pub fn inject_include_usage(body: &Bytes, view: &RequestView) -> Bytes {
    if view.dialect != Dialect::Chat || !view.stream || view.include_usage {
        return body.clone();
    }
    let Some(span) = &view.stream_options_span else {
        let with = br#""stream_options":{"include_usage":true},"#;
        return splice(body, &[(view.insert_at..view.insert_at, with)]);
    };
    let options = body.get(span.clone()).unwrap_or_default();
    if options.first() != Some(&b'{') {
        return splice(body, &[(span.clone(), br#"{"include_usage":true}"#)]);
    }
    if let Ok(Some(value)) = member_once(body, span.start, b"include_usage") {
        return splice(body, &[(value, b"true")]);
    }
    let at = span.start + 1;
    let empty = is_empty_object(options);
    let with: &[u8] = if empty {
        br#""include_usage":true"#
    } else {
        br#""include_usage":true,"#
    };
    splice(body, &[(at..at, with)])
}

/// Takes top-level members out of a request. The others stay as they are written, in their order.
#[must_use]
pub fn remove_members(body: &Bytes, names: &[&str]) -> Bytes {
    let mut cursor = Cursor::new(body, 0);
    let mut members: Vec<(Range<usize>, bool)> = Vec::new();
    let mut walk = || {
        cursor.expect(b'{').ok()?;
        let mut first = true;
        while let Some(key) = cursor.next_key(&mut first).ok()? {
            let is_named = names.iter().any(|n| n.as_bytes() == cursor.slice(&key));
            let value = cursor.value(JSON_DEPTH_MAX, &mut Blind).ok()?;
            members.push((key.start.saturating_sub(1)..value.end, !is_named));
        }
        Some(())
    };
    let (Some(()), Some(start), Some(end)) = (
        walk(),
        members.first().map(|(m, _)| m.start),
        members.last().map(|(m, _)| m.end),
    ) else {
        return body.clone();
    };
    let kept: Vec<&[u8]> = members
        .iter()
        .filter(|(_, is_kept)| *is_kept)
        .filter_map(|(member, _)| body.get(member.clone()))
        .collect();
    splice(body, &[(start..end, &kept.join(&b',')[..])])
}

fn is_empty_object(raw: &[u8]) -> bool {
    let inner = raw.strip_prefix(b"{").and_then(|r| r.strip_suffix(b"}"));
    inner.is_some_and(|i| i.iter().all(u8::is_ascii_whitespace))
}

/// Replaces the model named in an answer: a whole JSON answer, one event, or any run of complete
/// events (one allocation for all). Only the answer's own `model`, never one inside content.
#[must_use]
pub fn rewrite_answer_model(events: &Bytes, to: &str) -> Bytes {
    if MODEL_KEY.find(events).is_none() {
        return events.clone();
    }
    let with = quoted(to);
    let mut edits: Vec<(Range<usize>, &[u8])> = Vec::new();
    for payload in payloads(events) {
        let line = events.get(payload.clone()).unwrap_or_default();
        let Some(near) = MODEL_KEY.find(line) else {
            continue;
        };
        let span = shallow_model(events, &payload, near)
            .or_else(|| {
                ANSWER_MODEL_PATHS
                    .iter()
                    .find_map(|p| find_in(events, payload.start, p))
            })
            .filter(|s| {
                let raw = events.get(s.clone()).unwrap_or_default();
                raw.first() == Some(&b'"') && raw != with.as_bytes()
            });
        if let Some(span) = span {
            edits.push((span, with.as_bytes()));
        }
    }
    splice(events, &edits)
}

/// The value of a `"model"` that stands at the top level for sure: only one bracket comes before it,
/// so nothing can be nested around it (brackets in strings only make this say no).
fn shallow_model(events: &[u8], payload: &Range<usize>, near: usize) -> Option<Range<usize>> {
    let at = payload.start + near;
    let head = events.get(payload.start..at)?;
    if head.first() != Some(&b'{') || memchr::memchr2_iter(b'{', b'[', head).count() != 1 {
        return None;
    }
    let mut cursor = Cursor::new(events, at + MODEL_KEY.needle().len());
    cursor.expect(b':').ok()?;
    let text = cursor.string().ok()?;
    (text.end < payload.end).then(|| text.start - 1..text.end + 1)
}

/// Puts `"cost":0.000123` (USD) into the usage object of an event or a whole answer; a `cost` that
/// an upstream wrote is replaced. Bytes without a usage object come back unchanged.
#[must_use]
pub fn splice_cost(event_or_body: &Bytes, cost: MicroUsd) -> Bytes {
    let Some((span, _)) = usage_object(event_or_body) else {
        return event_or_body.clone();
    };
    let number = cost.to_json_number();
    if let Some(old) = find_in(event_or_body, span.start, &["cost"]) {
        return splice(event_or_body, &[(old, number.as_bytes())]);
    }
    let object = event_or_body.get(span.clone()).unwrap_or_default();
    let comma = if is_empty_object(object) { "" } else { "," };
    let at = span.end.saturating_sub(1);
    let with = format!("{comma}\"cost\":{number}");
    splice(event_or_body, &[(at..at, with.as_bytes())])
}

/// The last usage object in the bytes, and its payload.
pub(crate) fn usage_object(bytes: &[u8]) -> Option<(Range<usize>, Range<usize>)> {
    USAGE_KEY.find(bytes)?;
    let mut last = None;
    for payload in payloads(bytes) {
        let line = bytes.get(payload.clone()).unwrap_or_default();
        if USAGE_KEY.find(line).is_none() {
            continue;
        }
        let hit = USAGE_PATHS
            .iter()
            .filter_map(|p| find_in(bytes, payload.start, p))
            .find(|s| bytes.get(s.start) == Some(&b'{'));
        if let Some(span) = hit {
            last = Some((span, payload));
        }
    }
    last
}

/// Gives an answer (whole, or a stream's last content event such as `message_delta`) the usage that
/// its upstream left out, with its cost. An answer that has a usage object only gets the cost.
#[must_use]
pub fn insert_usage(
    event_or_body: &Bytes,
    dialect: Dialect,
    usage: &Usage,
    cost: Option<MicroUsd>,
) -> Bytes {
    if usage_object(event_or_body).is_some() {
        return cost.map_or_else(
            || event_or_body.clone(),
            |cost| splice_cost(event_or_body, cost),
        );
    }
    let with = super::usage::to_json(dialect, usage, cost);
    let Some(payload) = payloads(event_or_body).last() else {
        return event_or_body.clone();
    };
    // Events of Responses hold the answer's object within.
    let object = find_in(event_or_body, payload.start, &["response"])
        .filter(|_| dialect == Dialect::Responses)
        .or_else(|| find_in(event_or_body, payload.start, &[]));
    let Some(object) = object else {
        return event_or_body.clone();
    };
    if let Some(null) = find_in(event_or_body, object.start, &["usage"]) {
        return splice(event_or_body, &[(null, with.as_bytes())]);
    }
    let raw = event_or_body.get(object.clone()).unwrap_or_default();
    if raw.first() != Some(&b'{') {
        return event_or_body.clone();
    }
    let comma = if is_empty_object(raw) { "" } else { "," };
    let at = object.end.saturating_sub(1);
    let with = Cow::from(format!("{comma}\"usage\":{with}"));
    splice(event_or_body, &[(at..at, with.as_bytes())])
}

#[cfg(test)]
#[path = "splice_tests.rs"]
mod tests;
