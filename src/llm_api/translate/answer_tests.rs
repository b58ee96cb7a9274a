//! Whole answers, both ways.

use serde_json::{Value, json};

use super::request_tests::chat;
use super::testing::{USAGE, answer, request};
use crate::llm_api::Dialect::{Chat, Messages};
use crate::llm_api::usage;

#[test]
fn whole_answers_come_in_the_clients_words() {
    let body = json!({"id": "msg_1", "type": "message", "role": "assistant", "model": "m",
        "content": [{"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "text", "text": "a"}, {"type": "text", "text": "b"},
            {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}},
            {"type": "tool_use", "id": "t2", "name": "g", "input": {}}],
        "stop_reason": "end_turn", "usage": {"input_tokens": 1, "output_tokens": 1}});
    let got = answer(Messages, Chat, &body);
    let choice = &got["choices"][0];
    assert_eq!(choice["message"]["content"], "ab");
    assert_eq!(choice["message"]["reasoning_content"], "hm");
    assert_eq!(
        choice["message"]["tool_calls"][0]["function"]["arguments"],
        "{\"x\":1}"
    );
    assert_eq!(choice["message"]["tool_calls"][1]["id"], "t2");
    assert_eq!(
        choice["finish_reason"], "tool_calls",
        "edge 2: a call makes it a tool turn"
    );
    assert_eq!(got["usage"]["prompt_tokens"], 13);
    assert_eq!(got["usage"]["cost"], 0.000_007);
    assert_eq!(
        usage::extract(Chat, got.to_string().as_bytes()),
        Some(USAGE)
    );

    let back = answer(Chat, Messages, &got);
    let kinds: Vec<_> = back["content"]
        .as_array()
        .unwrap()
        .iter()
        .map(|b| &b["type"])
        .collect();
    assert_eq!(kinds, ["thinking", "text", "tool_use", "tool_use"]);
    assert_eq!(back["content"][2]["input"], json!({"x": 1}));
    assert_eq!(back["stop_reason"], "tool_use");
    assert_eq!(
        usage::extract(Messages, back.to_string().as_bytes()),
        Some(USAGE)
    );
    assert!(back["usage"].get("cost").is_none());
}

#[test]
fn edge_10_arguments_that_are_no_json_pass_as_text() {
    let body = json!({"id": "c", "model": "m", "choices": [{"finish_reason": "tool_calls", "message": {
        "tool_calls": [{"id": "x", "function": {"name": "f", "arguments": "{\"a\":"}},
            {"id": "y", "function": {"name": "f", "arguments": " "}}]}}]});
    let got = answer(Chat, Messages, &body);
    assert_eq!(got["content"][0]["input"], "{\"a\":");
    assert_eq!(got["content"][1]["input"], json!({}));
    let history = chat(json!([{"role": "assistant", "tool_calls": [
        {"id": "1", "function": {"name": "f", "arguments": "not json"}}]}]));
    let (got, _) = request(Chat, Messages, &history);
    assert_eq!(
        got["messages"][0]["content"][0]["input"],
        json!({"text": "not json"})
    );
}

#[test]
fn stop_reasons_translate_and_unknown_ones_pass() {
    let chat_of = |reason: &str| {
        let body = json!({"id": "m", "model": "m", "stop_reason": reason,
            "content": [{"type": "text", "text": "a"}]});
        answer(Messages, Chat, &body)["choices"][0]["finish_reason"].clone()
    };
    for (from, to) in [
        ("end_turn", "stop"),
        ("max_tokens", "length"),
        ("refusal", "content_filter"),
        ("stop_sequence", "stop"),
        ("pause_turn", "stop"),
        ("brand_new", "brand_new"),
    ] {
        assert_eq!(chat_of(from), to);
    }
    let messages_of = |reason: Value, refusal: Value| {
        let body = json!({"id": "c", "model": "m", "choices": [{"finish_reason": reason,
            "message": {"content": null, "refusal": refusal}}]});
        answer(Chat, Messages, &body)["stop_reason"].clone()
    };
    for (from, to) in [
        ("stop", "end_turn"),
        ("length", "max_tokens"),
        ("content_filter", "refusal"),
        ("tool_calls", "end_turn"),
        ("brand_new", "brand_new"),
    ] {
        assert_eq!(messages_of(json!(from), Value::Null), to);
    }
    assert_eq!(messages_of(json!("stop"), json!("I won't.")), "refusal");
    assert_eq!(messages_of(Value::Null, Value::Null), "end_turn");
}
