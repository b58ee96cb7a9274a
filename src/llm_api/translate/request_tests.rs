//! Requests, both ways.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::TranslateError;
use super::testing::{MAX_TOKENS, USAGE, request, try_request};
use crate::llm_api::Dialect::{Chat, Messages};

pub(super) fn chat(messages: Value) -> Value {
    json!({"model": "m", "messages": messages})
}

#[test]
fn a_conversation_with_tools_goes_to_messages_whole() {
    let body = json!({"model": "a/b", "stream": true, "max_completion_tokens": 9,
        "temperature": 0.5, "stop": "END", "parallel_tool_calls": false,
        "tool_choice": "required",
        "tools": [{"type": "function", "function": {"name": "read", "description": "reads \"it\"",
            "parameters": {"type": "object", "properties": {"p": {"type": "string"}}}}}],
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": [{"type": "text", "text": "And kind."}]},
            {"role": "user", "content": "caf\u{e9}\n\"quoted\""},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "read", "arguments": "{\"p\":\"a\\\"b\"}"}},
                {"id": "call_2", "type": "function", "function": {"name": "read", "arguments": ""}}]},
            {"role": "tool", "tool_call_id": "call_1", "content": "one"},
            {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "two"}]},
            {"role": "user", "content": "go on"}]});
    let (got, dropped) = request(Chat, Messages, &body);
    assert_eq!(dropped, Vec::<String>::new());
    let want = json!({"model": "a/b", "stream": true, "max_tokens": MAX_TOKENS,
        "system": [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "And kind."}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "caf\u{e9}\n\"quoted\""}]},
            {"role": "assistant", "content": [
                {"type": "tool_use", "id": "call_1", "name": "read", "input": {"p": "a\"b"}},
                {"type": "tool_use", "id": "call_2", "name": "read", "input": {}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "call_1", "content": [{"type": "text", "text": "one"}]},
                {"type": "tool_result", "tool_use_id": "call_2", "content": [{"type": "text", "text": "two"}]},
                {"type": "text", "text": "go on"}]}],
        "tools": [{"name": "read", "description": "reads \"it\"",
            "input_schema": {"type": "object", "properties": {"p": {"type": "string"}}}}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": true},
        "temperature": 0.5, "stop_sequences": ["END"]});
    assert_eq!(got, want);
}

#[test]
fn a_conversation_with_tools_goes_to_chat_whole() {
    let body = json!({"model": "m", "max_tokens": 50, "stream": true, "stop_sequences": ["X"],
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=1; cch=ab12;"},
            {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "And kind."}],
        "tools": [{"name": "read", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "tool", "name": "read"},
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "I read."},
                {"type": "tool_use", "id": "toolu_1", "name": "read", "input": {"p": "a\"b"}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": "one"},
                {"type": "text", "text": "go on"}]}]});
    let (got, dropped) = request(Messages, Chat, &body);
    assert_eq!(dropped, ["cache_control", "thinking"]);
    let want = json!({"model": "m", "stream": true, "stream_options": {"include_usage": true},
        "max_tokens": 50, "messages": [
            {"role": "system", "content": "Be brief.\nAnd kind."},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "I read.", "tool_calls": [
                {"id": "toolu_1", "type": "function",
                 "function": {"name": "read", "arguments": "{\"p\":\"a\\\"b\"}"}}]},
            {"role": "tool", "tool_call_id": "toolu_1", "content": "one"},
            {"role": "user", "content": "go on"}],
        "tools": [{"type": "function", "function": {"name": "read", "parameters": {"type": "object"}}}],
        "tool_choice": {"type": "function", "function": {"name": "read"}},
        "stop": ["X"]});
    assert_eq!(got, want);
}

#[test]
fn edge_11_tool_ids_and_names_fit_the_target_and_come_back() {
    let body = json!({"model": "m", "max_tokens": 5,
        "tools": [{"name": "mcp.files/read", "input_schema": {"type": "object"}}],
        "messages": [
            {"role": "assistant", "content": [
                {"type": "tool_use", "id": "id.1", "name": "mcp.files/read", "input": {}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "id.1", "content": "x"}]}]});
    let made = try_request(Messages, Chat, &body).unwrap();
    let sent: Value = serde_json::from_slice(&made.body).unwrap();
    let name = sent["tools"][0]["function"]["name"].as_str().unwrap();
    assert!(
        name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'),
        "{name}"
    );
    assert_eq!(
        sent["messages"][0]["tool_calls"][0]["function"]["name"],
        name
    );
    assert_eq!(
        sent["messages"][0]["tool_calls"][0]["id"],
        sent["messages"][1]["tool_call_id"]
    );
    let called = json!({"id": "c", "model": "m", "choices": [{"finish_reason": "stop", "message": {
        "tool_calls": [{"id": "x", "function": {"name": name, "arguments": "{}"}}]}}]});
    let back = super::answer(
        called.to_string().as_bytes(),
        &made.way_back,
        &USAGE,
        crate::types::MicroUsd(0),
    );
    let back: Value = serde_json::from_slice(&back.unwrap()).unwrap();
    assert_eq!(back["content"][0]["name"], "mcp.files/read");
}

#[test]
fn edge_12_results_follow_their_call_and_consecutive_ones_merge() {
    let body = chat(json!([
        {"role": "user", "content": "a"}, {"role": "user", "content": "b"},
        {"role": "assistant", "tool_calls": [
            {"id": "1", "function": {"name": "f", "arguments": "{}"}},
            {"id": "2", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "x"},
        {"role": "tool", "tool_call_id": "2", "content": "y"}]));
    let (got, _) = request(Chat, Messages, &body);
    let roles: Vec<_> = got["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| &m["role"])
        .collect();
    assert_eq!(roles, ["user", "assistant", "user"]);
    assert_eq!(got["messages"][2]["content"].as_array().unwrap().len(), 2);
}

#[test]
fn edge_13_images_survive_also_in_tool_results() {
    let png = "iVBORw0KGgo=";
    let url = format!("data:image/png;base64,{png}");
    let body = chat(json!([{"role": "user", "content": [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]}]));
    let (got, _) = request(Chat, Messages, &body);
    let parts = &got["messages"][0]["content"];
    let source = json!({"type": "base64", "media_type": "image/png", "data": png});
    assert_eq!(parts[1], json!({"type": "image", "source": source}));
    assert_eq!(
        parts[2]["source"],
        json!({"type": "url", "url": "https://example.com/a.png"})
    );
    let (again, _) = request(Messages, Chat, &got);
    assert_eq!(again["messages"][0]["content"][1]["image_url"]["url"], url);

    let shown = json!({"model": "m", "max_tokens": 5, "messages": [
        {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": [
            {"type": "text", "text": "a shot"}, {"type": "image", "source": source}]}]}]});
    let (got, _) = request(Messages, Chat, &shown);
    assert_eq!(
        got["messages"][1],
        json!({"role": "tool", "tool_call_id": "1", "content": "a shot"})
    );
    assert_eq!(got["messages"][2]["content"][0]["image_url"]["url"], url);
}

#[test]
fn regression_a_media_type_cannot_end_its_string() {
    let url = "data:image/\\\",\"x\":\"png;base64,AAAA";
    let body = chat(json!([{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": url}}]}]));
    let (got, _) = request(Chat, Messages, &body);
    let source = &got["messages"][0]["content"][0]["source"];
    assert_eq!(source, &json!({"type": "url", "url": url}));
}

#[test]
fn edge_14_edge_15_thinking_is_left_out_and_named() {
    let body = chat(json!([{"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "reasoning_content": "hm"}]));
    let (got, dropped) = request(Chat, Messages, &body);
    assert_eq!(dropped, ["reasoning"]);
    assert_eq!(
        got["messages"][1]["content"],
        json!([{"type": "text", "text": "b"}])
    );
    let only = json!({"model": "m", "max_tokens": 9, "thinking": {"type": "enabled", "budget_tokens": 5},
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "t", "signature": "s"},
            {"type": "redacted_thinking", "data": "x"}]}]});
    let (got, dropped) = request(Messages, Chat, &only);
    assert_eq!(dropped, ["thinking"]);
    assert_eq!(got["messages"].as_array().unwrap().len(), 1);
}

#[test]
fn edge_19_the_line_that_differs_in_every_request_is_left_out() {
    let with = |cch: &str| {
        let line = format!("x-anthropic-billing-header: cc_entrypoint=cli; cch={cch};");
        json!({"model": "m", "max_tokens": 5, "system": [{"type": "text", "text": line},
            {"type": "text", "text": "You."}], "messages": [{"role": "user", "content": "a"}]})
    };
    let one = request(Messages, Chat, &with("1")).0;
    assert_eq!(one, request(Messages, Chat, &with("2")).0);
    assert_eq!(one["messages"][0]["content"], "You.");
}

#[test]
fn edge_25_a_system_turn_keeps_its_place() {
    let body = json!({"model": "m", "max_tokens": 5, "messages": [
        {"role": "user", "content": "a"}, {"role": "system", "content": "now French"},
        {"role": "user", "content": "b"}]});
    let (got, _) = request(Messages, Chat, &body);
    assert_eq!(
        got["messages"][1],
        json!({"role": "system", "content": "now French"})
    );
    let (got, _) = request(Chat, Messages, &got);
    let texts: Vec<_> = got["messages"][0]["content"]
        .as_array()
        .unwrap()
        .iter()
        .map(|b| &b["text"])
        .collect();
    assert_eq!(texts, ["a", "<system>now French</system>", "b"]);
}

#[test]
fn edge_26_parameters_without_a_namesake_are_dropped_and_named() {
    let mut body = chat(json!([{"role": "user", "content": "a"}]));
    for (key, value) in [
        ("seed", json!(5)),
        ("frequency_penalty", json!(0)),
        ("logprobs", json!(false)),
        ("user", json!("me")),
        ("reasoning_effort", json!("high")),
        ("temperature", json!(1.5)),
        ("metadata", json!({})),
        ("store", json!(false)),
    ] {
        body[key] = value;
    }
    let (got, dropped) = request(Chat, Messages, &body);
    assert_eq!(
        dropped,
        ["seed", "user", "temperature above 1", "reasoning_effort"]
    );
    assert_eq!(got["temperature"], 1);
    let body = json!({"model": "m", "max_tokens": 5, "top_k": 3, "metadata": {"user_id": "u"},
        "tools": [{"type": "web_search_20250305", "name": "web_search"}],
        "messages": [{"role": "user", "content": "a"}]});
    let (got, dropped) = request(Messages, Chat, &body);
    assert_eq!(dropped, ["top_k", "metadata", "tools.web_search"]);
    assert!(got.get("tools").is_none());
}

#[test]
fn limits_and_sampling_are_said_as_the_model_takes_them() {
    let of = |model: &str| {
        let body = json!({"model": model, "max_tokens": 5, "top_p": 0.5, "messages": [
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1",
                "is_error": true, "content": "no"}]}]});
        request(Messages, Chat, &body)
    };
    let (got, dropped) = of("openai/gpt-5-mini");
    assert_eq!(
        (&got["max_completion_tokens"], &got["max_tokens"]),
        (&json!(5), &Value::Null)
    );
    assert_eq!(dropped, ["is_error"]);
    assert_eq!(of("meta/llama-3").0["max_tokens"], 5);
    let mut body = chat(json!([{"role": "user", "content": "a"}]));
    body["top_p"] = json!(0.5);
    assert_eq!(request(Chat, Messages, &body).0["top_p"], 0.5);
    body["temperature"] = json!(0.1);
    let (got, dropped) = request(Chat, Messages, &body);
    assert_eq!(
        (&got["top_p"], dropped),
        (&Value::Null, vec!["top_p".to_owned()])
    );
}

#[test]
fn what_changes_the_meaning_is_refused_by_name() {
    let base = chat(json!([{"role": "user", "content": "a"}]));
    for (key, value, word) in [
        ("n", json!(2), "`n`"),
        ("modalities", json!(["text", "audio"]), "audio"),
        ("functions", json!([{"name": "f"}]), "functions"),
        (
            "tool_choice",
            json!({"type": "allowed_tools"}),
            "tool_choice",
        ),
        (
            "tools",
            json!([{"type": "custom", "custom": {"name": "f"}}]),
            "tool",
        ),
        (
            "messages",
            json!([{"role": "user", "content": [{"type": "input_audio"}]}]),
            "input_audio",
        ),
    ] {
        let mut body = base.clone();
        body[key] = value;
        let error = try_request(Chat, Messages, &body).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
    }
    let odd = json!({"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": [
        {"type": "search_result", "content": []}]}]});
    let error = try_request(Messages, Chat, &odd).unwrap_err();
    assert!(matches!(error, TranslateError::NotCarried(what) if what.contains("search_result")));
}

#[test]
fn a_schema_of_the_answer_is_carried() {
    let mut body = chat(json!([{"role": "user", "content": "a"}]));
    let schema = json!({"type": "object", "properties": {"x": {"type": "string"}}});
    body["response_format"] = json!({"type": "json_schema",
        "json_schema": {"name": "n", "strict": true, "schema": schema}});
    let (got, _) = request(Chat, Messages, &body);
    assert_eq!(
        got["output_config"]["format"],
        json!({"type": "json_schema", "schema": schema})
    );
    let (back, _) = request(Messages, Chat, &got);
    assert_eq!(back["response_format"]["json_schema"]["schema"], schema);
}

pub(super) fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i32>().prop_map(Into::into),
        ".{0,12}".prop_map(Into::into),
        prop::sample::select(vec![
            "text",
            "tool_use",
            "tool",
            "user",
            "assistant",
            "image",
            "function",
            "auto"
        ])
        .prop_map(Into::into),
    ];
    let keys = prop::sample::select(vec![
        "role",
        "content",
        "type",
        "text",
        "tool_calls",
        "id",
        "function",
        "name",
        "arguments",
        "input",
        "source",
        "data",
        "url",
        "image_url",
        "tool_use_id",
    ]);
    leaf.prop_recursive(4, 48, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
            prop::collection::vec((keys.clone(), inner), 0..6).prop_map(|m| Value::Object(
                m.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
            )),
        ]
    })
}

proptest! {
    #[test]
    fn any_request_is_translated_to_json_or_refused(messages in prop::collection::vec(any_json(), 0..4), tools in any_json(), choice in any_json()) {
        let body = json!({"model": "m", "max_tokens": 5, "messages": messages, "tools": tools, "tool_choice": choice});
        for (from, to) in [(Chat, Messages), (Messages, Chat)] {
            if let Ok(made) = try_request(from, to, &body) {
                prop_assert!(serde_json::from_slice::<Value>(&made.body).is_ok());
            }
        }
    }
}
