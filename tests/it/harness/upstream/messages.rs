//! Anthropic Messages as the scripted upstream writes it: whole answers, streams, errors.

use bytes::Bytes;
use serde_json::{Value, json};

use super::ask::{Ask, Counts, Reply, pieces};
use super::chat::halves;
use super::script::Stop;

/// Returns the body of a `stream:false` answer.
pub fn whole(ask: &Ask, number: u64) -> Bytes {
    let (mut blocks, stop) = match &ask.reply {
        Reply::Text(text) => (vec![json!({"type": "text", "text": text})], "end_turn"),
        Reply::Tool { name, arguments } => {
            let input: Value = serde_json::from_str(arguments).unwrap();
            let call = |i| {
                json!({"type": "tool_use", "id": tool_id(number, i), "name": name,
                "input": input})
            };
            ((0..ask.calls).map(call).collect(), "tool_use")
        }
    };
    if let Some(thoughts) = &ask.thinking {
        blocks.insert(
            0,
            json!({"type": "thinking", "thinking": thoughts, "signature": "sig"}),
        );
    }
    let mut body = json!({
        "id": id(number), "type": "message", "role": "assistant", "model": ask.model,
        "content": blocks, "stop_reason": stop_reason(ask, stop), "stop_sequence": null,
    });
    if let (Some(counts), Some(body)) = (ask.counts, body.as_object_mut()) {
        body.insert("usage".into(), usage(counts, counts.output));
    }
    Bytes::from(body.to_string())
}

/// Returns the events of a stream, each with its blank line. Usage is cumulative, as Anthropic's.
pub fn events(ask: &Ask, number: u64) -> Vec<Bytes> {
    let mut message = json!({
        "id": id(number), "type": "message", "role": "assistant", "model": ask.model,
        "content": [], "stop_reason": null, "stop_sequence": null,
    });
    if let (Some(counts), Some(message)) = (ask.counts, message.as_object_mut()) {
        message.insert("usage".into(), usage(counts, 1));
    }
    let mut events = vec![event("message_start", json!({"message": message}))];
    let delta =
        |at: u64, delta: Value| event("content_block_delta", json!({"index": at, "delta": delta}));
    let block = |at: u64, block: Value| {
        event(
            "content_block_start",
            json!({"index": at, "content_block": block}),
        )
    };
    let end = |at: u64| event("content_block_stop", json!({"index": at}));
    let mut at = 0;
    if let Some(thoughts) = &ask.thinking {
        events.push(block(
            at,
            json!({"type": "thinking", "thinking": "", "signature": ""}),
        ));
        events.push(delta(
            at,
            json!({"type": "thinking_delta", "thinking": thoughts}),
        ));
        events.push(delta(
            at,
            json!({"type": "signature_delta", "signature": "sig"}),
        ));
        events.push(end(at));
        at += 1;
    }
    let stop = match &ask.reply {
        Reply::Text(text) => {
            events.push(block(at, json!({"type": "text", "text": ""})));
            events.push(event("ping", json!({})));
            for piece in pieces(text) {
                events.push(delta(at, json!({"type": "text_delta", "text": piece})));
            }
            events.push(end(at));
            "end_turn"
        }
        Reply::Tool { name, arguments } => {
            for i in 0..ask.calls {
                let id = tool_id(number, i);
                let call = json!({"type": "tool_use", "id": id, "name": name, "input": {}});
                events.push(block(at + i, call));
                events.push(event("ping", json!({})));
                let (head, tail) = halves(arguments);
                for part in [head, tail] {
                    let part = json!({"type": "input_json_delta", "partial_json": part});
                    events.push(delta(at + i, part));
                }
                events.push(end(at + i));
            }
            "tool_use"
        }
    };
    let stop = stop_reason(ask, stop);
    let mut end = json!({"delta": {"stop_reason": stop, "stop_sequence": null}});
    if let (Some(counts), Some(end)) = (ask.counts, end.as_object_mut()) {
        end.insert("usage".into(), json!({"output_tokens": counts.output}));
    }
    events.push(event("message_delta", end));
    events.push(event("message_stop", json!({})));
    events
}

/// Returns an error body.
pub fn error(status: u16, message: &str) -> Bytes {
    let kind = match status {
        400 => "invalid_request_error",
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        529 => "overloaded_error",
        _ => "api_error",
    };
    let body = json!({"type": "error", "error": {"type": kind, "message": message},
        "request_id": "req_scripted"});
    Bytes::from(body.to_string())
}

/// Returns an event that opens well and is broken JSON inside.
pub fn malformed_event() -> Bytes {
    Bytes::from_static(b"event: message_start\ndata: {\"type\":\"message_start\",\"mess\n\n")
}

/// Anthropic's input excludes what came from a cache.
fn usage(counts: Counts, output: u64) -> Value {
    json!({
        "input_tokens": counts.input - counts.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": counts.cached,
        "output_tokens": output,
        "service_tier": "standard",
    })
}

fn event(name: &str, fields: Value) -> Bytes {
    let mut body = json!({"type": name});
    if let (Some(body), Value::Object(fields)) = (body.as_object_mut(), fields) {
        body.extend(fields);
    }
    Bytes::from(format!("event: {name}\ndata: {body}\n\n"))
}

fn id(number: u64) -> String {
    format!("msg_{number:08}")
}

fn tool_id(number: u64, index: u64) -> String {
    match index {
        0 => format!("toolu_{number:08}"),
        _ => format!("toolu_{number:08}_{index}"),
    }
}

fn stop_reason<'a>(ask: &Ask, natural: &'a str) -> &'a str {
    match ask.stop {
        Stop::Natural => natural,
        Stop::Length => "max_tokens",
        Stop::Refusal => "refusal",
    }
}
