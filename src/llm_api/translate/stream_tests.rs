//! Streams, both ways; every one is fed in several chunkings, one byte at a time among them.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::testing::{USAGE, chat_stream, events, messages_stream, stream, way};
use crate::llm_api::Dialect::{Chat, Messages, Responses};
use crate::llm_api::usage;

fn to_messages(deltas: &[Value], finish: &str) -> Vec<Value> {
    events(&stream(&way(Chat, Messages), &chat_stream(deltas, finish)))
}

fn to_chat(inner: &[Value], stop: &str) -> Vec<Value> {
    let mut all = vec![
        json!({"type": "message_start", "message": {"id": "msg_1", "model": "m",
        "role": "assistant", "content": [], "usage": {"input_tokens": 1, "output_tokens": 1}}}),
    ];
    all.extend_from_slice(inner);
    all.push(
        json!({"type": "message_delta", "delta": {"stop_reason": stop, "stop_sequence": null},
        "usage": {"output_tokens": 5}}),
    );
    all.push(json!({"type": "message_stop"}));
    events(&stream(&way(Messages, Chat), &messages_stream(&all)))
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().map(|e| e["type"].as_str().unwrap()).collect()
}

/// The blocks that an SDK makes of Messages events; checks that they never interleave.
fn blocks(events: &[Value]) -> Vec<Value> {
    let mut blocks: Vec<Value> = Vec::new();
    let mut open = None;
    for event in events {
        let index = event["index"].as_u64();
        match event["type"].as_str().unwrap() {
            "content_block_start" => {
                assert_eq!(open.replace(index), None, "one block at a time");
                assert_eq!(index, u64::try_from(blocks.len()).ok());
                blocks.push(event["content_block"].clone());
                if let Some(block) = blocks.last_mut().filter(|b| b["type"] == "tool_use") {
                    assert_eq!(block["input"], json!({}), "edge 9: input begins empty");
                    block["json"] = json!("");
                }
            }
            "content_block_delta" => {
                assert_eq!(open, Some(index));
                let (block, delta) = (blocks.last_mut().unwrap(), &event["delta"]);
                let (to, from) = match delta["type"].as_str().unwrap() {
                    "text_delta" => ("text", "text"),
                    "thinking_delta" => ("thinking", "thinking"),
                    "signature_delta" => ("signature", "signature"),
                    _ => ("json", "partial_json"),
                };
                let grown = format!(
                    "{}{}",
                    block[to].as_str().unwrap(),
                    delta[from].as_str().unwrap()
                );
                block[to] = grown.into();
            }
            "content_block_stop" => assert_eq!(open.take(), Some(index)),
            _ => {}
        }
    }
    assert_eq!(open, None);
    blocks
}

#[test]
fn edge_01_a_chat_stream_becomes_messages_whatever_the_chunks() {
    let deltas = [
        json!({"role": "assistant", "content": ""}),
        json!({"content": "na\u{ef}ve "}),
        json!({"content": "\u{1f980}\n\"x\""}),
    ];
    let got = to_messages(&deltas, "stop");
    assert_eq!(
        kinds(&got),
        [
            "message_start",
            "content_block_start",
            "content_block_delta",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop"
        ]
    );
    assert_eq!(blocks(&got)[0]["text"], "na\u{ef}ve \u{1f980}\n\"x\"");
    assert_eq!(got[5]["delta"]["stop_reason"], "end_turn");
    assert_eq!(
        usage::extract(Messages, got[5].to_string().as_bytes()),
        Some(USAGE)
    );
    assert_eq!(got[0]["message"]["usage"]["input_tokens"], 0);
    let text = chat_stream(&deltas, "stop")
        .replace('\n', "\r\n")
        .replace("\\r\\n", "\\n");
    let crlf = events(&stream(
        &way(Chat, Messages),
        &format!(": note\r\n\r\n{text}"),
    ));
    assert_eq!(crlf, got);
}

#[test]
fn a_messages_stream_becomes_chat() {
    let got = to_chat(
        &[
            json!({"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}}),
            json!({"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}}),
            json!({"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "s"}}),
            json!({"type": "content_block_stop", "index": 0}),
            json!({"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}}),
            json!({"type": "ping"}),
            json!({"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "caf\u{e9}"}}),
            json!({"type": "content_block_stop", "index": 1}),
        ],
        "end_turn",
    );
    let deltas: Vec<_> = got
        .iter()
        .map(|c| c["choices"][0]["delta"].clone())
        .collect();
    assert_eq!(
        deltas[..3],
        [
            json!({"role": "assistant", "content": ""}),
            json!({"reasoning_content": "hm"}),
            json!({"content": "caf\u{e9}"})
        ]
    );
    assert_eq!(got[3]["choices"][0]["finish_reason"], "stop");
    assert_eq!(got[4]["choices"], json!([]));
    assert_eq!(got[4]["usage"]["cost"], 0.000_007);
    assert_eq!(got.len(), 5);
    assert!(
        got.iter()
            .all(|c| c["id"] == "msg_1" && c["model"] == "m" && c["created"] == 1_700_000_000)
    );
}

#[test]
fn edge_02_a_call_makes_a_tool_turn_whatever_the_upstream_says_but_for_length() {
    let call = [
        json!({"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}}]}),
    ];
    let stop_of = |finish| {
        to_messages(&call, finish)
            .iter()
            .find(|e| e["type"] == "message_delta")
            .unwrap()["delta"]["stop_reason"]
            .clone()
    };
    assert_eq!(stop_of("stop"), "tool_use");
    assert_eq!(stop_of("length"), "max_tokens");
    let block = [
        json!({"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": "t", "name": "f", "input": {}}}),
    ];
    let finish_of = |stop| {
        to_chat(&block, stop)
            .iter()
            .rev()
            .find_map(|c| c["choices"][0]["finish_reason"].as_str().map(str::to_owned))
    };
    assert_eq!(finish_of("end_turn").as_deref(), Some("tool_calls"));
    assert_eq!(finish_of("max_tokens").as_deref(), Some("length"));
}

#[test]
fn edge_03_edge_04_usage_everywhere_and_two_finishes_give_one_end() {
    let chunk = |choices: &str| {
        format!(
            "data: {{\"id\":\"c1\",\"model\":\"m\",\"choices\":{choices},\"usage\":{{\"prompt_tokens\":1,\"completion_tokens\":1}}}}\n\n"
        )
    };
    let finish = chunk(r#"[{"index":0,"delta":{},"finish_reason":"length"}]"#);
    let input = [
        chunk(r#"[{"index":0,"delta":{"content":"a"}}]"#),
        chunk("[]"),
        chunk(r#"[{"index":0,"delta":{"content":"b"}}]"#),
        finish.clone(),
        finish,
        chunk("[]"),
        "data: {\"id\":\"c1\",\"usage\":{\"prompt_tokens\":1}}\n\n".to_owned(),
        "data: [DONE]\n\n".to_owned(),
    ]
    .concat();
    let got = events(&stream(&way(Chat, Messages), &input));
    assert_eq!(blocks(&got)[0]["text"], "ab");
    assert_eq!(
        kinds(&got)
            .iter()
            .filter(|k| **k == "message_delta")
            .count(),
        1
    );
    assert_eq!(got[got.len() - 2]["delta"]["stop_reason"], "max_tokens");
}

#[test]
fn edge_05_a_missing_finish_reason_is_made() {
    let input =
        "data: {\"id\":\"c\",\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: [DONE]\n\n";
    let got = events(&stream(&way(Chat, Messages), input));
    assert_eq!(got[got.len() - 2]["delta"]["stop_reason"], "end_turn");
}

#[test]
fn edge_08_edge_09_parallel_calls_that_interleave_become_blocks_one_after_another() {
    let piece = |index: u64, arguments: &str| json!({"tool_calls": [{"index": index, "function": {"arguments": arguments}}]});
    let start = |index: u64, id: &str| json!({"tool_calls": [{"index": index, "id": id, "type": "function", "function": {"name": "read", "arguments": ""}}]});
    let got = to_messages(
        &[
            json!({"role": "assistant", "content": "I look."}),
            start(0, "a"),
            piece(0, "{\"p\":"),
            start(1, "b"),
            piece(1, "{\"q\":"),
            piece(0, "1}"),
            piece(1, "2}"),
            json!({"content": "late"}),
        ],
        "tool_calls",
    );
    let blocks = blocks(&got);
    let kinds: Vec<_> = blocks.iter().map(|b| &b["type"]).collect();
    assert_eq!(kinds, ["text", "tool_use", "tool_use", "text"]);
    assert_eq!(
        (&blocks[1]["id"], &blocks[1]["json"]),
        (&json!("a"), &json!("{\"p\":1}"))
    );
    assert_eq!(
        (&blocks[2]["id"], &blocks[2]["json"]),
        (&json!("b"), &json!("{\"q\":2}"))
    );
    assert_eq!(blocks[3]["text"], "late");
}

#[test]
fn calls_without_an_index_or_with_a_late_name_are_told_apart() {
    let got = to_messages(
        &[
            json!({"tool_calls": [{"id": "a", "function": {"arguments": "{\"x\""}}]}),
            json!({"tool_calls": [{"id": "a", "function": {"name": "f", "arguments": ":1}"}}]}),
            json!({"tool_calls": [{"id": "b", "function": {"name": "g", "arguments": "{}"}}]}),
        ],
        "tool_calls",
    );
    let blocks = blocks(&got);
    assert_eq!(
        (&blocks[0]["name"], &blocks[0]["json"]),
        (&json!("f"), &json!("{\"x\":1}"))
    );
    assert_eq!(
        (&blocks[1]["name"], &blocks[1]["id"]),
        (&json!("g"), &json!("b"))
    );
}

#[test]
fn edge_10_a_call_without_arguments_gives_an_empty_object() {
    let start = |index: u64| json!({"type": "content_block_start", "index": index, "content_block": {"type": "tool_use", "id": format!("t{index}"), "name": "f", "input": {}}});
    let got = to_chat(
        &[
            start(1),
            json!({"type": "content_block_stop", "index": 1}),
            start(2),
            json!({"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": "{\"a\":"}}),
            json!({"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": "1}"}}),
        ],
        "tool_use",
    );
    let mut arguments = [String::new(), String::new()];
    for chunk in &got {
        for call in chunk["choices"][0]["delta"]["tool_calls"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let index = usize::try_from(call["index"].as_u64().unwrap()).unwrap();
            arguments[index].push_str(call["function"]["arguments"].as_str().unwrap());
        }
    }
    assert_eq!(arguments, ["{}", "{\"a\":1}"]);
}

#[test]
fn a_client_that_did_not_ask_sees_neither_thinking_nor_the_usage_chunk() {
    let deltas = [json!({"reasoning_content": "hm"}), json!({"content": "a"})];
    let mut quiet = way(Chat, Messages);
    quiet.thinking = false;
    let got = events(&stream(&quiet, &chat_stream(&deltas, "stop")));
    assert_eq!(blocks(&got).len(), 1);
    let mut quiet = way(Messages, Chat);
    quiet.include_usage = false;
    let input = messages_stream(&[
        json!({"type": "message_start", "message": {"id": "x", "model": "m"}}),
        json!({"type": "message_delta", "delta": {"stop_reason": "stop_sequence", "stop_sequence": "X"}}),
        json!({"type": "message_stop"}),
    ]);
    let out = stream(&quiet, &input);
    assert!(events(&out).iter().all(|c| c.get("usage").is_none()));
}

#[test]
fn a_broken_or_hostile_event_never_panics() {
    for event in [
        "data: {\"choices\":[{\"delta\":\n\n",
        "data: nonsense\n\n",
        "data: []\n\n",
        "data: {\"choices\":{\"a\":1}}\n\n",
        "data: {\"choices\":[1,{\"delta\":3}]}\n\n",
        "data: {\"type\":\"content_block_delta\",\"delta\":[]}\n\n",
        "event: x\n\n",
    ] {
        for way in [way(Chat, Messages), way(Messages, Chat)] {
            let mut translator = super::StreamTranslator::new(way);
            let mut out = Vec::new();
            let _ = translator.push(event.as_bytes(), &mut out);
        }
    }
}

/// Events that are half right: the names are known, what stands in them is anything.
fn any_event() -> impl Strategy<Value = Value> {
    let kinds = prop::sample::select(vec![
        "message_start",
        "content_block_start",
        "content_block_delta",
        "message_delta",
        "response.created",
        "response.output_item.added",
        "response.output_text.delta",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.completed",
    ]);
    let words = prop::sample::select(vec![
        "tool_use",
        "function_call",
        "text_delta",
        "input_json_delta",
        "thinking_delta",
    ]);
    let any = || super::request_tests::any_json();
    (kinds, words, any(), any(), 0u64..3, "\\PC{0,9}").prop_map(
        |(kind, word, inner, calls, index, text)| {
            let call = json!({"index": index, "id": text, "function": {"name": word, "arguments": text}});
            json!({"type": kind, "index": index, "output_index": index, "id": "x", "model": "m",
                "delta": if index == 0 { json!(text) } else { json!({"type": word, "text": text, "partial_json": text, "stop_reason": word}) },
                "content_block": {"type": word, "id": text, "name": word, "input": inner},
                "item": {"type": word, "call_id": text, "name": word, "arguments": text, "content": inner},
                "response": {"id": "r", "output": calls},
                "choices": [{"delta": {"content": text, "tool_calls": [call, calls]}, "finish_reason": word}]})
        },
    )
}

proptest! {
    #[test]
    fn any_stream_gives_the_same_well_formed_events_in_any_chunks(all in prop::collection::vec(any_event(), 1..6)) {
        let input = messages_stream(&all);
        for (from, to) in [(Chat, Messages), (Chat, Responses), (Messages, Chat),
            (Messages, Responses), (Responses, Chat), (Responses, Messages)] {
            let got = events(&stream(&way(from, to), &input));
            if to == Messages {
                let _ = blocks(&got);
            }
            if to == Responses {
                prop_assert!(got.iter().enumerate().all(|(n, e)| e["sequence_number"] == n));
            }
        }
    }
}
