//! What the tests of the translations share: requests, answers and streams as JSON values.

use bytes::Bytes;
use serde_json::Value;

use super::{StreamTranslator, TranslateError, Translated, WayBack};
use crate::llm_api::{Dialect, RequestView, UsageTracker, sse};
use crate::types::{MicroUsd, Usage};

/// The limit given to targets that must have one.
pub(super) const MAX_TOKENS: u64 = 777;

pub(super) const USAGE: Usage = Usage {
    input: 10,
    cache_read: 3,
    cache_write: 0,
    output: 5,
    reasoning: 0,
};

pub(super) fn try_request(
    from: Dialect,
    to: Dialect,
    body: &Value,
) -> Result<Translated, TranslateError> {
    let bytes = body.to_string().into_bytes();
    let view = RequestView::parse(&bytes, from).unwrap();
    super::request(&bytes, &view, to, MAX_TOKENS, 1_700_000_000)
}

pub(super) fn request(from: Dialect, to: Dialect, body: &Value) -> (Value, Vec<String>) {
    let made = try_request(from, to, body).unwrap();
    RequestView::parse(&made.body, to).unwrap();
    (serde_json::from_slice(&made.body).unwrap(), made.dropped)
}

pub(super) fn way(from: Dialect, to: Dialect) -> WayBack {
    WayBack {
        from,
        to,
        names: std::sync::Arc::default(),
        thinking: true,
        include_usage: true,
        created_s: 1_700_000_000,
    }
}

pub(super) fn answer(from: Dialect, to: Dialect, body: &Value) -> Value {
    let body = body.to_string();
    let out = super::answer(body.as_bytes(), &way(from, to), &USAGE, MicroUsd(7)).unwrap();
    serde_json::from_slice(&out).unwrap()
}

/// Translates a stream, checks that one byte at a time gives the same, and gives its bytes.
pub(super) fn stream(way: &WayBack, input: &str) -> Vec<u8> {
    let run = |chunk: usize| {
        let mut translator = StreamTranslator::new(way.clone());
        let mut out = Vec::new();
        for piece in input.as_bytes().chunks(chunk) {
            translator
                .push_chunk(Bytes::copy_from_slice(piece), &mut out)
                .unwrap();
        }
        translator.finish(&USAGE, MicroUsd(7), &mut out);
        translator.finish(&USAGE, MicroUsd(7), &mut out);
        out
    };
    let whole = run(input.len());
    for chunk in [1, 2, 7, 61] {
        assert_eq!(run(chunk), whole, "chunks of {chunk} bytes");
    }
    let mut tracker = UsageTracker::new(way.to);
    tracker.push(&whole);
    assert!(tracker.ended_well() && tracker.terminator_seen());
    whole
}

/// The JSON of every event; `[DONE]` is left out.
pub(super) fn events(stream: &[u8]) -> Vec<Value> {
    sse::payloads(stream)
        .map(|span| &stream[span])
        .filter(|data| *data != b"[DONE]")
        .map(|data| serde_json::from_slice(data).unwrap())
        .collect()
}

/// Writes chat chunks with these deltas, a finish reason and `[DONE]`.
pub(super) fn chat_stream(deltas: &[Value], finish: &str) -> String {
    let chunk = |delta: &Value, finish: Value| {
        let choice = serde_json::json!({"index": 0, "delta": delta, "finish_reason": finish});
        let chunk = serde_json::json!({"id": "c1", "object": "chat.completion.chunk",
            "created": 1, "model": "m", "choices": [choice]});
        format!("data: {chunk}\n\n")
    };
    let mut all: String = deltas.iter().map(|d| chunk(d, Value::Null)).collect();
    all.push_str(&chunk(&serde_json::json!({}), finish.into()));
    all + "data: [DONE]\n\n"
}

/// Writes Messages events with their names.
pub(super) fn messages_stream(events: &[Value]) -> String {
    events
        .iter()
        .map(|e| format!("event: {}\ndata: {e}\n\n", e["type"].as_str().unwrap()))
        .collect()
}
