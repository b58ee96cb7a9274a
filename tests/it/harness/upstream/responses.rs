//! OpenAI Responses as the scripted upstream writes it: whole answers and streams.

use bytes::Bytes;
use serde_json::{Value, json};

use super::ask::{Ask, Counts, Reply, pieces};
use super::chat::halves;
use super::script::Stop;

/// Makes `messages` and nested tools of `input` and flat ones, so that one reader serves both.
pub fn as_chat(request: &mut Value) -> Option<()> {
    let input = match request.get("input")? {
        Value::String(text) => vec![json!({"role": "user", "content": text})],
        Value::Array(items) => items.iter().filter_map(message).collect(),
        _ => return None,
    };
    let tools: Option<Vec<Value>> = request.get("tools").and_then(Value::as_array).map(|tools| {
        let nest = |tool: &Value| json!({"type": "function", "function": tool});
        tools.iter().map(nest).collect()
    });
    let fields = request.as_object_mut()?;
    fields.insert("messages".into(), json!(input));
    if let Some(tools) = tools {
        fields.insert("tools".into(), json!(tools));
    }
    Some(())
}

fn message(item: &Value) -> Option<Value> {
    match item["type"].as_str().unwrap_or("message") {
        "message" => Some(json!({"role": item["role"], "content": item["content"]})),
        "function_call" => Some(json!({"role": "assistant", "content": item["arguments"]})),
        "function_call_output" => Some(json!({"role": "tool", "content": item["output"]})),
        _ => None,
    }
}

/// Returns the body of a `stream:false` answer.
pub fn whole(ask: &Ask, number: u64) -> Bytes {
    Bytes::from(object(ask, number, Some(items(ask, number))).to_string())
}

/// Returns the events of a stream, each with its blank line.
pub fn events(ask: &Ask, number: u64) -> Vec<Bytes> {
    let mut events: Vec<Bytes> = vec![];
    let mut add = |name: &str, mut fields: Value| {
        fields["type"] = json!(name);
        fields["sequence_number"] = json!(events.len());
        events.push(Bytes::from(format!("event: {name}\ndata: {fields}\n\n")));
    };
    add(
        "response.created",
        json!({"response": object(ask, number, None)}),
    );
    for (index, item) in items(ask, number).iter().enumerate() {
        let mut empty = item.clone();
        for (key, value) in [
            ("content", json!([])),
            ("summary", json!([])),
            ("arguments", json!("")),
        ] {
            if item.get(key).is_some() {
                empty[key] = value;
            }
        }
        add(
            "response.output_item.added",
            json!({"output_index": index, "item": empty}),
        );
        let said = |kind: &str, key: &str, text: &str| {
            let mut fields = json!({"output_index": index, "item_id": item["id"], key: text});
            fields["content_index"] = json!(0);
            (kind.to_owned(), fields)
        };
        let (name, text) = match item["type"].as_str().unwrap() {
            "message" => ("response.output_text", text_of(&item["content"])),
            "reasoning" => ("response.reasoning_summary_text", text_of(&item["summary"])),
            _ => (
                "response.function_call_arguments",
                item["arguments"].as_str().unwrap(),
            ),
        };
        let parts = match item["type"].as_str().unwrap() {
            "function_call" => <[&str; 2]>::from(halves(text)).to_vec(),
            _ => pieces(text),
        };
        let key = if name.ends_with("arguments") {
            "arguments"
        } else {
            "text"
        };
        for part in parts {
            let (name, fields) = said(&format!("{name}.delta"), "delta", part);
            add(&name, fields);
        }
        let (name, fields) = said(&format!("{name}.done"), key, text);
        add(&name, fields);
        add(
            "response.output_item.done",
            json!({"output_index": index, "item": item}),
        );
    }
    let response = object(ask, number, Some(items(ask, number)));
    let end = format!("response.{}", response["status"].as_str().unwrap());
    add(&end, json!({"response": response}));
    events
}

fn text_of(parts: &Value) -> &str {
    parts[0]["text"].as_str().unwrap()
}

fn items(ask: &Ask, number: u64) -> Vec<Value> {
    let mut items = vec![];
    if let Some(thoughts) = &ask.thinking {
        items.push(json!({"id": format!("rs_{number}"), "type": "reasoning",
            "summary": [{"type": "summary_text", "text": thoughts}]}));
    }
    match &ask.reply {
        Reply::Text(text) => items.push(json!({"id": format!("msg_{number}"), "type": "message",
            "status": "completed", "role": "assistant",
            "content": [{"type": "output_text", "annotations": [], "text": text}]})),
        Reply::Tool { name, arguments } => items.extend((0..ask.calls).map(|i| {
            json!({"id": format!("fc_{number}_{i}"), "type": "function_call",
                "status": "completed", "call_id": format!("call_{number}_{i}"), "name": name,
                "arguments": arguments})
        })),
    }
    items
}

fn object(ask: &Ask, number: u64, output: Option<Vec<Value>>) -> Value {
    let why = match ask.stop {
        Stop::Natural => None,
        Stop::Length => Some("max_output_tokens"),
        Stop::Refusal => Some("content_filter"),
    };
    let status = match (&output, why) {
        (None, _) => "in_progress",
        (_, None) => "completed",
        (_, Some(_)) => "incomplete",
    };
    let usage = ask.counts.filter(|_| output.is_some()).map(usage);
    json!({"id": format!("resp_{number}"), "object": "response", "created_at": 1_700_000_000,
        "status": status, "model": ask.model, "output": output.unwrap_or_default(),
        "incomplete_details": why.map(|reason| json!({"reason": reason})), "usage": usage})
}

fn usage(counts: Counts) -> Value {
    json!({
        "input_tokens": counts.input,
        "input_tokens_details": {"cached_tokens": counts.cached},
        "output_tokens": counts.output,
        "output_tokens_details": {"reasoning_tokens": counts.reasoning},
        "total_tokens": counts.input + counts.output,
    })
}
