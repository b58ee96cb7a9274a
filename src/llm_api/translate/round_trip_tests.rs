//! Properties over all three dialects: what goes there and back is what it was, whatever it says;
//! every golden stream gives the same in any chunks.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::request_tests::any_json;
use super::testing::{USAGE, answer, chat_stream, events, messages_stream, request, stream, way};
use crate::llm_api::Dialect::{self, Chat, Messages, Responses};
use crate::llm_api::usage;

/// The ways of a chat request through one other dialect, or both.
const WAYS: [&[Dialect]; 4] = [
    &[Messages],
    &[Responses],
    &[Messages, Responses],
    &[Responses, Messages],
];

/// A chat request there and back.
fn there_and_back(way: &[Dialect], body: &Value) -> Value {
    let (mut at, mut body) = (Chat, body.clone());
    for next in way.iter().copied().chain([Chat]) {
        body = request(at, next, &body).0;
        at = next;
    }
    body
}

/// A whole chat answer there and back.
fn answer_there_and_back(way: &[Dialect], body: &Value) -> Value {
    let (mut at, mut body) = (Chat, body.clone());
    for next in way.iter().copied().chain([Chat]) {
        body = answer(at, next, &body);
        at = next;
    }
    body
}

/// Text with whatever needs an escape.
fn any_text() -> impl Strategy<Value = String> {
    "\\PC{1,40}|[\"\\\\\n\t\u{1}\u{7f}é🦀]{1,9}"
}

fn call(id: &str, name: &str, arguments: &str) -> Value {
    json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
}

proptest! {
    #[test]
    fn texts_calls_and_results_survive_there_and_back(
        system in any_text(), said in any_text(), result in any_text(),
        input in any_json(), key in any_text(), more in prop::collection::vec(any_text(), 0..4),
    ) {
        let first = json!({ key: input }).to_string();
        let mut messages = vec![
            json!({"role": "system", "content": system}),
            json!({"role": "user", "content": said}),
            json!({"role": "assistant", "content": null,
                "tool_calls": [call("a", "f", &first), call("b", "g", "{}")]}),
            json!({"role": "tool", "tool_call_id": "a", "content": result}),
            json!({"role": "tool", "tool_call_id": "b", "content": "ok"}),
        ];
        for (i, text) in more.iter().enumerate() {
            let role = if i % 2 == 0 { "assistant" } else { "user" };
            messages.push(json!({"role": role, "content": text}));
        }
        let body = json!({"model": "m", "messages": messages});
        for way in WAYS {
            let back = there_and_back(way, &body);
            prop_assert_eq!(&back["messages"], &body["messages"], "{:?}", way);
        }
    }

    #[test]
    fn tools_choices_images_and_schemas_survive_there_and_back(
        name in "[a-zA-Z0-9_-]{1,64}", description in any_text(), parameter in any_text(),
        data in "[A-Za-z0-9+/]{4,40}", choice in 0usize..4, parallel in any::<bool>(),
    ) {
        let schema = json!({"type": "object", "properties": { parameter: {"type": "string"} }});
        let choice = [json!("auto"), json!("required"), json!("none"),
            json!({"type": "function", "function": {"name": name}})][choice].clone();
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": [
            {"type": "text", "text": "look"},
            {"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{data}")}},
            {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]}],
            "tools": [{"type": "function", "function": {
                "name": name, "description": description, "parameters": schema}}],
            "tool_choice": choice,
            "response_format": {"type": "json_schema",
                "json_schema": {"name": "answer", "strict": true, "schema": schema}}});
        // Messages says nothing of parallel calls where none are wanted.
        if !parallel && body["tool_choice"] != "none" {
            body["parallel_tool_calls"] = json!(false);
        }
        for way in WAYS {
            let mut back = there_and_back(way, &body);
            back.as_object_mut().unwrap().remove("max_tokens");
            prop_assert_eq!(&back, &body, "{:?}", way);
        }
    }

    #[test]
    fn whole_answers_survive_there_and_back(
        text in any_text(), thought in any_text(), input in any_json(), stop in 0usize..4,
    ) {
        let stop = ["stop", "length", "content_filter", "tool_calls"][stop];
        let mut message = json!({"role": "assistant", "content": text, "refusal": null,
            "reasoning_content": thought});
        if stop == "tool_calls" {
            message["tool_calls"] = json!([call("a", "f", &json!({ "x": input }).to_string())]);
        }
        let body = json!({"id": "c", "model": "m",
            "choices": [{"index": 0, "message": message, "logprobs": null, "finish_reason": stop}]});
        for way in WAYS {
            let back = answer_there_and_back(way, &body);
            prop_assert_eq!(&back["choices"], &body["choices"], "{:?}", way);
            prop_assert_eq!(usage::extract(Chat, back.to_string().as_bytes()), Some(USAGE));
        }
    }
}

/// One stream of each dialect that holds everything, with characters of one to four bytes.
fn golden() -> [(Dialect, String); 3] {
    let piece = |text: &str| json!({"tool_calls": [{"index": 1, "function": {"arguments": text}}]});
    let chat = chat_stream(
        &[
            json!({"role": "assistant", "content": ""}),
            json!({"reasoning_content": "hm é"}),
            json!({"content": "naïve 東京 🦀\n\"q\""}),
            json!({"tool_calls": [{"index": 0, "id": "a", "type": "function",
                "function": {"name": "f", "arguments": "{\"p\":1}"}}]}),
            json!({"tool_calls": [{"index": 1, "id": "b", "type": "function",
                "function": {"name": "g", "arguments": ""}}]}),
            piece("{\"q\":"),
            piece("\"é\"}"),
        ],
        "tool_calls",
    );
    let block = |index: u64, block: Value| json!({"type": "content_block_start", "index": index, "content_block": block});
    let delta = |index: u64, delta: Value| json!({"type": "content_block_delta", "index": index, "delta": delta});
    let end = |index: u64| json!({"type": "content_block_stop", "index": index});
    let call = |index: u64, id: &str, name: &str| {
        block(
            index,
            json!({"type": "tool_use", "id": id, "name": name, "input": {}}),
        )
    };
    let json_delta = |index: u64, text: &str| {
        delta(
            index,
            json!({"type": "input_json_delta", "partial_json": text}),
        )
    };
    let messages = messages_stream(&[
        json!({"type": "message_start", "message": {"id": "c1", "model": "m", "content": []}}),
        block(
            0,
            json!({"type": "thinking", "thinking": "", "signature": ""}),
        ),
        delta(0, json!({"type": "thinking_delta", "thinking": "hm é"})),
        end(0),
        json!({"type": "ping"}),
        block(1, json!({"type": "text", "text": ""})),
        delta(
            1,
            json!({"type": "text_delta", "text": "naïve 東京 🦀\n\"q\""}),
        ),
        end(1),
        call(2, "a", "f"),
        json_delta(2, "{\"p\":1}"),
        end(2),
        call(3, "b", "g"),
        json_delta(3, "{\"q\":"),
        json_delta(3, "\"é\"}"),
        end(3),
        json!({"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": null}}),
        json!({"type": "message_stop"}),
    ]);
    let item = |index: u64, item: Value| json!({"type": "response.output_item.added", "output_index": index, "item": item});
    let said = |kind: &str, index: u64, text: &str| json!({"type": kind, "output_index": index, "delta": text});
    let arguments = "response.function_call_arguments.delta";
    let call = |index: u64, id: &str, name: &str| {
        item(
            index,
            json!({"type": "function_call", "call_id": id, "name": name, "arguments": ""}),
        )
    };
    let responses = messages_stream(&[
        json!({"type": "response.created", "response": {"id": "c1", "model": "m", "output": []}}),
        item(0, json!({"type": "reasoning", "summary": []})),
        said("response.reasoning_summary_text.delta", 0, "hm é"),
        item(1, json!({"type": "message", "content": []})),
        said("response.output_text.delta", 1, "naïve 東京 🦀\n\"q\""),
        call(2, "a", "f"),
        said(arguments, 2, "{\"p\":1}"),
        call(3, "b", "g"),
        said(arguments, 3, "{\"q\":"),
        said(arguments, 3, "\"é\"}"),
        json!({"type": "response.completed", "response": {"status": "completed", "output": []}}),
    ]);
    [(Chat, chat), (Messages, messages), (Responses, responses)]
}

/// What a stream says, in one small form: thoughts, text, calls (id, name, arguments), end.
fn heard(dialect: Dialect, stream: &[u8]) -> (String, String, Vec<[String; 3]>, String) {
    let (mut thought, mut text, mut end) = (String::new(), String::new(), String::new());
    let mut calls: Vec<[String; 3]> = Vec::new();
    let of = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    for e in events(stream) {
        match dialect {
            Chat => {
                let choice = &e["choices"][0];
                thought += &of(&choice["delta"]["reasoning_content"]);
                text += &of(&choice["delta"]["content"]);
                end += &of(&choice["finish_reason"]);
                for c in choice["delta"]["tool_calls"]
                    .as_array()
                    .into_iter()
                    .flatten()
                {
                    let (at, f) = (
                        usize::try_from(c["index"].as_u64().unwrap()).unwrap(),
                        &c["function"],
                    );
                    if at == calls.len() {
                        calls.push([of(&c["id"]), of(&f["name"]), String::new()]);
                    }
                    calls[at][2] += &of(&f["arguments"]);
                }
            }
            Messages => {
                let (block, delta) = (&e["content_block"], &e["delta"]);
                if block["type"] == "tool_use" {
                    calls.push([of(&block["id"]), of(&block["name"]), String::new()]);
                }
                thought += &of(&delta["thinking"]);
                text += &of(&delta["text"]);
                end += &of(&delta["stop_reason"]);
                if let Some(call) = calls.last_mut() {
                    call[2] += &of(&delta["partial_json"]);
                }
            }
            Responses => match e["type"].as_str().unwrap() {
                "response.reasoning_summary_text.delta" => thought += &of(&e["delta"]),
                "response.output_text.delta" => text += &of(&e["delta"]),
                "response.output_item.done" if e["item"]["type"] == "function_call" => {
                    let item = &e["item"];
                    calls.push([
                        of(&item["call_id"]),
                        of(&item["name"]),
                        of(&item["arguments"]),
                    ]);
                }
                "response.completed" => end = "tool_calls".to_owned(),
                _ => {}
            },
        }
    }
    (thought, text, calls, end.replace("tool_use", "tool_calls"))
}

#[test]
fn every_golden_stream_says_the_same_in_every_dialect_and_in_any_chunks() {
    let call = |id: &str, name: &str, arguments: &str| [id, name, arguments].map(str::to_owned);
    let want = (
        "hm é".to_owned(),
        "naïve 東京 🦀\n\"q\"".to_owned(),
        vec![call("a", "f", "{\"p\":1}"), call("b", "g", "{\"q\":\"é\"}")],
        "tool_calls".to_owned(),
    );
    for (from, input) in golden() {
        for to in [Chat, Messages, Responses] {
            if to != from {
                // `stream` feeds it whole and in chunks of 1, 2, 7 and 61 bytes, and compares.
                let out = stream(&way(from, to), &input);
                assert_eq!(heard(to, &out), want, "{from} to {to}");
                // And back again: the writer's own stream is read as well as an upstream's.
                let back = stream(&way(to, from), std::str::from_utf8(&out).unwrap());
                assert_eq!(heard(from, &back), want, "{from} to {to} and back");
            }
        }
    }
}
