//! OpenAI Chat Completions as the scripted upstream writes it: whole answers, streams, errors.

use bytes::Bytes;
use serde_json::{Value, json};

use super::ask::{Ask, Counts, Reply, pieces};
use super::script::Stop;

const CREATED: u64 = 1_700_000_000;

/// Returns the body of a `stream:false` answer.
pub fn whole(ask: &Ask, number: u64) -> Bytes {
    let (mut message, finish) = match &ask.reply {
        Reply::Text(text) => (
            json!({"role": "assistant", "content": text, "refusal": null}),
            "stop",
        ),
        Reply::Tool { name, arguments } => (
            {
                let call = |i| {
                    json!({"id": call_id(number, i), "type": "function",
                    "function": {"name": name, "arguments": arguments}})
                };
                let calls: Vec<_> = (0..ask.calls).map(call).collect();
                json!({"role": "assistant", "content": null, "refusal": null, "tool_calls": calls})
            },
            "tool_calls",
        ),
    };
    if let (Some(thoughts), Some(message)) = (&ask.thinking, message.as_object_mut()) {
        message.insert("reasoning_content".into(), json!(thoughts));
    }
    let finish = finish_reason(ask, finish);
    let mut body = json!({
        "id": id(number), "object": "chat.completion", "created": CREATED, "model": ask.model,
        "choices": [{"index": 0, "message": message, "logprobs": null, "finish_reason": finish}],
    });
    if let (Some(counts), Some(body)) = (ask.counts, body.as_object_mut()) {
        body.insert("usage".into(), usage(counts));
        body.insert("system_fingerprint".into(), json!("fp_scripted"));
    }
    Bytes::from(body.to_string())
}

/// Returns the events of a stream, each with its blank line.
pub fn events(ask: &Ask, number: u64) -> Vec<Bytes> {
    let chunk = |delta: Value, finish: Value| {
        let choice = json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish});
        event(&envelope(ask, number, json!([choice]), Value::Null))
    };
    let mut events = vec![];
    if let Some(thoughts) = &ask.thinking {
        events.push(chunk(
            json!({"role": "assistant", "reasoning_content": thoughts}),
            Value::Null,
        ));
    }
    match &ask.reply {
        Reply::Text(text) => {
            events.push(chunk(
                json!({"role": "assistant", "content": ""}),
                Value::Null,
            ));
            events.extend(
                pieces(text)
                    .iter()
                    .map(|p| chunk(json!({"content": p}), Value::Null)),
            );
            events.push(chunk(json!({}), json!(finish_reason(ask, "stop"))));
        }
        Reply::Tool { name, arguments } => {
            let (head, tail) = halves(arguments);
            for i in 0..ask.calls {
                let first = json!({"index": i, "id": call_id(number, i), "type": "function",
                    "function": {"name": name, "arguments": ""}});
                let start = json!({"role": "assistant", "content": null, "tool_calls": [first]});
                events.push(chunk(start, Value::Null));
                for part in [head, tail] {
                    let call = json!({"index": i, "function": {"arguments": part}});
                    events.push(chunk(json!({"tool_calls": [call]}), Value::Null));
                }
            }
            events.push(chunk(json!({}), json!(finish_reason(ask, "tool_calls"))));
        }
    }
    if let (Some(counts), true) = (ask.counts, ask.include_usage) {
        events.push(event(&envelope(ask, number, json!([]), usage(counts))));
    }
    events.push(Bytes::from_static(b"data: [DONE]\n\n"));
    events
}

/// Returns an error body.
pub fn error(status: u16, message: &str) -> Bytes {
    let kind = if status == 429 {
        "rate_limit_exceeded"
    } else {
        "scripted_error"
    };
    Bytes::from(
        json!({"error": {"message": message, "type": kind, "param": null, "code": status}})
            .to_string(),
    )
}

/// Returns an event that opens well and is broken JSON inside.
pub fn malformed_event() -> Bytes {
    Bytes::from_static(b"data: {\"id\":\"chatcmpl-broken\",\"choices\":[{\"delta\":{\"cont\n\n")
}

fn envelope(ask: &Ask, number: u64, choices: Value, usage: Value) -> Value {
    let mut body = json!({
        "id": id(number), "object": "chat.completion.chunk", "created": CREATED,
        "model": ask.model, "system_fingerprint": "fp_scripted", "choices": choices,
    });
    if ask.include_usage
        && ask.counts.is_some()
        && let Some(body) = body.as_object_mut()
    {
        body.insert("usage".into(), usage);
    }
    body
}

fn usage(counts: Counts) -> Value {
    json!({
        "prompt_tokens": counts.input,
        "completion_tokens": counts.output,
        "total_tokens": counts.input + counts.output,
        "prompt_tokens_details": {"cached_tokens": counts.cached, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": counts.reasoning, "audio_tokens": 0},
    })
}

/// Cuts arguments in two at a character border near the middle.
pub fn halves(text: &str) -> (&str, &str) {
    let mut middle = text.len() / 2;
    while !text.is_char_boundary(middle) {
        middle += 1;
    }
    text.split_at(middle)
}

fn event(value: &Value) -> Bytes {
    Bytes::from(format!("data: {value}\n\n"))
}

fn id(number: u64) -> String {
    format!("chatcmpl-{number:08}")
}

fn call_id(number: u64, index: u64) -> String {
    match index {
        0 => format!("call_{number:08}"),
        _ => format!("call_{number:08}_{index}"),
    }
}

fn finish_reason<'a>(ask: &Ask, natural: &'a str) -> &'a str {
    match ask.stop {
        Stop::Natural => natural,
        Stop::Length => "length",
        Stop::Refusal => "content_filter",
    }
}
