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
    for name in ["response.created", "response.in_progress"] {
        add(name, json!({"response": object(ask, number, None)}));
    }
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
        // The names of an item's events, what they carry, and of the part within when it has one.
        let (name, key, part, text) = match item["type"].as_str().unwrap() {
            "message" => (
                "output_text",
                "text",
                Some(("content", "content_index", &item["content"][0])),
                text_of(&item["content"]),
            ),
            "reasoning" => (
                "reasoning_summary_text",
                "text",
                Some(("reasoning_summary", "summary_index", &item["summary"][0])),
                text_of(&item["summary"]),
            ),
            _ => (
                "function_call_arguments",
                "arguments",
                None,
                item["arguments"].as_str().unwrap(),
            ),
        };
        let place = |mut fields: Value| {
            fields["output_index"] = json!(index);
            fields["item_id"] = item["id"].clone();
            if let Some((_, index, _)) = part {
                fields[index] = json!(0);
            }
            fields
        };
        if let Some((name, _, whole)) = part {
            let mut empty = whole.clone();
            empty["text"] = json!("");
            add(
                &format!("response.{name}_part.added"),
                place(json!({"part": empty})),
            );
        }
        let cut = match part {
            None => <[&str; 2]>::from(halves(text)).to_vec(),
            Some(_) => pieces(text),
        };
        for delta in cut {
            add(
                &format!("response.{name}.delta"),
                place(json!({"delta": delta})),
            );
        }
        add(&format!("response.{name}.done"), place(json!({key: text})));
        if let Some((name, _, whole)) = part {
            add(
                &format!("response.{name}_part.done"),
                place(json!({"part": whole})),
            );
        }
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
