//! Responses clients before sellers of the other dialects.

use serde_json::{Value, json};

use super::testing::{
    USAGE, answer, chat_stream, events, messages_stream, request, stream, try_request, way,
};
use crate::llm_api::Dialect::{Chat, Messages, Responses};
use crate::llm_api::usage;

fn conversation() -> Value {
    json!({"model": "m", "stream": true, "store": false, "max_output_tokens": 9,
        "instructions": "Be brief.", "parallel_tool_calls": false, "tool_choice": "auto",
        "include": ["reasoning.encrypted_content"], "prompt_cache_key": null,
        "reasoning": {"effort": "low", "summary": "auto"},
        "tools": [
            {"type": "function", "name": "read", "description": "d", "strict": true, "parameters": {"type": "object"}},
            {"type": "custom", "name": "apply_patch", "description": "patches"},
            {"type": "web_search"}],
        "input": [
            {"role": "user", "content": "hi"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
            {"type": "function_call", "call_id": "c1", "name": "read", "arguments": "{\"p\":1}"},
            {"type": "custom_tool_call", "call_id": "c2", "name": "apply_patch", "input": "*** \"x\"\n"},
            {"type": "function_call_output", "call_id": "c1", "output": "one"},
            {"type": "custom_tool_call_output", "call_id": "c2", "output": "two"},
            {"type": "message", "role": "user", "content": [
                {"type": "input_text", "text": "and this?"},
                {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo="}]}]})
}

#[test]
fn edge_17_a_responses_conversation_goes_to_chat_and_messages() {
    let (got, dropped) = request(Responses, Chat, &conversation());
    assert_eq!(dropped, ["tools.web_search", "reasoning"]);
    let messages = got["messages"].as_array().unwrap();
    assert_eq!(
        messages[0],
        json!({"role": "system", "content": "Be brief."})
    );
    assert_eq!(messages[2]["content"], "I look.");
    let calls = messages[2]["tool_calls"].as_array().unwrap();
    assert_eq!(
        calls[0]["function"],
        json!({"name": "read", "arguments": "{\"p\":1}"})
    );
    let patch: Value =
        serde_json::from_str(calls[1]["function"]["arguments"].as_str().unwrap()).unwrap();
    assert_eq!(patch, json!({"input": "*** \"x\"\n"}));
    assert_eq!(
        (&messages[3]["tool_call_id"], &messages[4]["content"]),
        (&json!("c1"), &json!("two"))
    );
    assert_eq!(messages[5]["content"][1]["type"], "image_url");
    assert_eq!(
        (&got["max_tokens"], &got["reasoning_effort"]),
        (&json!(9), &json!("low"))
    );
    assert_eq!(
        got["tools"][1]["function"]["parameters"]["required"],
        json!(["input"])
    );

    let (got, dropped) = request(Responses, Messages, &conversation());
    assert!(dropped.contains(&"reasoning_effort".to_owned()));
    assert_eq!(got["system"][0]["text"], "Be brief.");
    let messages = got["messages"].as_array().unwrap();
    assert_eq!(messages.len(), 3);
    assert_eq!(
        messages[1]["content"][2]["input"],
        json!({"input": "*** \"x\"\n"})
    );
    assert_eq!(messages[2]["content"][3]["type"], "image");
}

#[test]
fn edge_16_what_points_to_a_stored_answer_is_refused_clearly() {
    for (key, value) in [
        ("previous_response_id", json!("resp_1")),
        ("conversation", json!("conv_1")),
        ("background", json!(true)),
        ("prompt", json!({"id": "p"})),
    ] {
        let mut body = json!({"model": "m", "input": "hi"});
        body[key] = value;
        let error = try_request(Responses, Chat, &body).unwrap_err().to_string();
        assert!(
            error.contains(key) && error.contains("nothing is stored"),
            "{error}"
        );
        body[key] = Value::Null;
        assert!(try_request(Responses, Chat, &body).is_ok());
    }
    let body = json!({"model": "m", "input": [{"type": "item_reference", "id": "msg_1"}]});
    assert!(
        try_request(Responses, Messages, &body)
            .unwrap_err()
            .to_string()
            .contains("item_reference")
    );
}

#[test]
fn a_format_and_a_plain_input_are_carried() {
    let schema = json!({"type": "object"});
    let body = json!({"model": "m", "input": "hi", "text": {"format":
        {"type": "json_schema", "name": "n", "schema": schema, "strict": true}}});
    let (got, _) = request(Responses, Chat, &body);
    assert_eq!(got["messages"], json!([{"role": "user", "content": "hi"}]));
    assert_eq!(
        got["response_format"]["json_schema"],
        json!({"name": "n", "strict": true, "schema": schema})
    );
    let body = json!({"model": "m", "input": "hi", "text": {"format": {"type": "json_object"}}});
    assert_eq!(
        request(Responses, Chat, &body).0["response_format"]["type"],
        "json_object"
    );
    assert_eq!(request(Responses, Messages, &body).1, ["response_format"]);
}

#[test]
fn whole_answers_are_response_objects() {
    let body = json!({"id": "c1", "model": "m", "choices": [{"finish_reason": "tool_calls", "message": {
        "reasoning_content": "hm", "content": "text", "tool_calls": [
            {"id": "a", "function": {"name": "read", "arguments": "{}"}}]}}]});
    let got = answer(Chat, Responses, &body);
    assert_eq!(
        (&got["status"], &got["store"]),
        (&json!("completed"), &json!(false))
    );
    let kinds: Vec<_> = got["output"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| &i["type"])
        .collect();
    assert_eq!(kinds, ["reasoning", "message", "function_call"]);
    assert_eq!(got["output"][2]["call_id"], "a");
    assert_eq!(
        usage::extract(Responses, got.to_string().as_bytes()),
        Some(USAGE)
    );
    let cut = json!({"id": "m1", "model": "m", "stop_reason": "max_tokens", "content": [{"type": "text", "text": "a"}]});
    let got = answer(Messages, Responses, &cut);
    assert_eq!(got["incomplete_details"]["reason"], "max_output_tokens");
    assert_eq!(got["status"], "incomplete");
}

/// Checks the numbers and that every item is opened, filled and closed alike.
fn check(got: &[Value]) -> Vec<Value> {
    for (number, event) in got.iter().enumerate() {
        assert_eq!(event["sequence_number"], number, "{event}");
    }
    let end = got.last().unwrap();
    let output = end["response"]["output"].as_array().unwrap().clone();
    for (index, item) in output.iter().enumerate() {
        let of = |kind: &str| -> Vec<&Value> {
            got.iter()
                .filter(|e| e["type"] == kind && e["output_index"] == index)
                .collect()
        };
        assert_eq!(of("response.output_item.added").len(), 1);
        assert_eq!(
            of("response.output_item.added")[0]["item"]["id"],
            item["id"]
        );
        assert_eq!(&of("response.output_item.done")[0]["item"], item);
        let (delta, done, key) = match item["type"].as_str().unwrap() {
            "message" => (
                "response.output_text.delta",
                "response.output_text.done",
                "text",
            ),
            "reasoning" => (
                "response.reasoning_summary_text.delta",
                "response.reasoning_summary_text.done",
                "text",
            ),
            "custom_tool_call" => (
                "response.custom_tool_call_input.delta",
                "response.custom_tool_call_input.done",
                "input",
            ),
            _ => (
                "response.function_call_arguments.delta",
                "response.function_call_arguments.done",
                "arguments",
            ),
        };
        let said: String = of(delta)
            .iter()
            .map(|e| e["delta"].as_str().unwrap())
            .collect();
        assert_eq!(of(done)[0][key], json!(said));
        assert!(got.iter().all(|e| e["output_index"] != index
            || e["item_id"].is_null()
            || e["item_id"] == item["id"]));
    }
    output
}

#[test]
fn edge_17_a_chat_stream_becomes_the_full_sequence_with_numbers() {
    let call = |index: u64, id: &str, arguments: &str| json!({"tool_calls": [{"index": index, "id": id, "function": {"name": "read", "arguments": arguments}}]});
    let piece = |index: u64, arguments: &str| json!({"tool_calls": [{"index": index, "function": {"arguments": arguments}}]});
    let deltas = [
        json!({"reasoning_content": "hm"}),
        json!({"content": "caf\u{e9} "}),
        json!({"content": "x"}),
        call(0, "a", ""),
        piece(0, "{\"p\":"),
        call(1, "b", "{\"q\":"),
        piece(0, "1}"),
        piece(1, "2}"),
    ];
    let got = events(&stream(
        &way(Chat, Responses),
        &chat_stream(&deltas, "tool_calls"),
    ));
    let output = check(&got);
    let kinds: Vec<_> = output.iter().map(|i| i["type"].as_str().unwrap()).collect();
    assert_eq!(
        kinds,
        ["reasoning", "message", "function_call", "function_call"]
    );
    assert_eq!(output[1]["content"][0]["text"], "caf\u{e9} x");
    assert_eq!(
        (&output[2]["arguments"], &output[3]["arguments"]),
        (&json!("{\"p\":1}"), &json!("{\"q\":2}"))
    );
    let names: Vec<_> = got
        .iter()
        .take(3)
        .map(|e| e["type"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added"
        ]
    );
    let end = got.last().unwrap();
    assert_eq!(
        (&end["type"], &end["response"]["status"]),
        (&json!("response.completed"), &json!("completed"))
    );
    assert_eq!(
        usage::extract(Responses, end.to_string().as_bytes()),
        Some(USAGE)
    );
}

#[test]
fn a_messages_stream_becomes_responses_with_a_custom_call_and_a_cut() {
    let (there, _) = request(Responses, Messages, &conversation());
    assert_eq!(there["tools"][1]["name"], "apply_patch");
    let made = try_request(Responses, Messages, &conversation()).unwrap();
    let events_in = [
        json!({"type": "message_start", "message": {"id": "msg_1", "model": "m"}}),
        json!({"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": "t", "name": "apply_patch", "input": {}}}),
        json!({"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": "{\"input\":\"*** a\\n"}}),
        json!({"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": "\\\"b\\\"\"}"}}),
        json!({"type": "message_delta", "delta": {"stop_reason": "max_tokens"}}),
        json!({"type": "message_stop"}),
    ];
    let got = events(&stream(&made.way_back, &messages_stream(&events_in)));
    let output = check(&got);
    assert_eq!(output[0]["type"], "custom_tool_call");
    assert_eq!(output[0]["input"], "*** a\n\"b\"");
    assert_eq!(got.last().unwrap()["type"], "response.incomplete");
}
