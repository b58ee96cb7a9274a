//! A client of one dialect, a seller of the other: the answer is whole, in the client's words, and
//! both books agree.

use serde_json::{Value, json};

use crate::harness::http::{Request, Response};
use crate::harness::market::{Dialect, MODEL, Market, PRICES, UPSTREAM_KEY, UPSTREAM_MODEL};
use crate::harness::upstream::script::Stop;
use crate::harness::upstream::{Fault, Script, UsageReport};
use crate::money::{assert_agree, assert_verifies, booked};

/// A client's dialect before sellers of the other.
async fn crossed(client: Dialect, scripts: Vec<Script>) -> Market {
    Market::start(other(client), scripts).await
}

pub(crate) fn other(dialect: Dialect) -> Dialect {
    match dialect {
        Dialect::Chat => Dialect::Messages,
        Dialect::Messages => Dialect::Chat,
    }
}

/// What a client's SDK makes of an answer.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Read {
    pub(crate) text: String,
    pub(crate) thinking: String,
    /// Id, name and arguments of each call.
    pub(crate) calls: Vec<(String, String, Value)>,
    pub(crate) stop: String,
    /// Input (all of it), of that cached, output.
    pub(crate) usage: (u64, u64, u64),
}

pub(crate) fn read(client: Dialect, stream: bool, response: &Response) -> Read {
    assert_eq!(response.status, 200, "{}", response.text());
    assert!(response.complete, "the body ends as its framing says");
    match (client, stream) {
        (Dialect::Chat, false) => read_chat(&response.json()),
        (Dialect::Messages, false) => read_message(&response.json()),
        (Dialect::Chat, true) => read_chat_stream(response),
        (Dialect::Messages, true) => read_messages_stream(response),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn chat_usage(usage: &Value) -> (u64, u64, u64) {
    assert!(usage["cost"].as_f64().unwrap() > 0.0, "{usage}");
    let count = |path: &str| usage.pointer(path).and_then(Value::as_u64).unwrap();
    (
        count("/prompt_tokens"),
        count("/prompt_tokens_details/cached_tokens"),
        count("/completion_tokens"),
    )
}

fn messages_usage(usage: &Value) -> (u64, u64, u64) {
    let count = |name: &str| usage[name].as_u64().unwrap();
    let cached = count("cache_read_input_tokens");
    (
        count("input_tokens") + cached,
        cached,
        count("output_tokens"),
    )
}

fn read_chat(body: &Value) -> Read {
    let message = &body["choices"][0]["message"];
    let call = |c: &Value| {
        let arguments = text(&c["function"]["arguments"]);
        let arguments = serde_json::from_str(&arguments).unwrap();
        (text(&c["id"]), text(&c["function"]["name"]), arguments)
    };
    Read {
        text: text(&message["content"]),
        thinking: text(&message["reasoning_content"]),
        calls: message["tool_calls"]
            .as_array()
            .map_or_else(Vec::new, |c| c.iter().map(call).collect()),
        stop: text(&body["choices"][0]["finish_reason"]),
        usage: chat_usage(&body["usage"]),
    }
}

fn read_message(body: &Value) -> Read {
    let mut read = Read {
        stop: text(&body["stop_reason"]),
        usage: messages_usage(&body["usage"]),
        ..Read::default()
    };
    for block in body["content"].as_array().unwrap() {
        match block["type"].as_str().unwrap() {
            "text" => read.text += block["text"].as_str().unwrap(),
            "thinking" => read.thinking += block["thinking"].as_str().unwrap(),
            _ => read.calls.push((
                text(&block["id"]),
                text(&block["name"]),
                block["input"].clone(),
            )),
        }
    }
    read
}

fn read_chat_stream(response: &Response) -> Read {
    let data = response.data();
    assert_eq!(data.last().unwrap(), "[DONE]");
    let mut read = Read::default();
    let mut calls: Vec<(String, String, String)> = vec![];
    for chunk in &data[..data.len() - 1] {
        let chunk: Value = serde_json::from_str(chunk).unwrap();
        assert_eq!(chunk["model"], MODEL);
        if chunk["usage"].is_object() {
            read.usage = chat_usage(&chunk["usage"]);
            continue;
        }
        let choice = &chunk["choices"][0];
        read.text += &text(&choice["delta"]["content"]);
        read.thinking += &text(&choice["delta"]["reasoning_content"]);
        read.stop += &text(&choice["finish_reason"]);
        for call in choice["delta"]["tool_calls"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let index = usize::try_from(call["index"].as_u64().unwrap()).unwrap();
            if index == calls.len() {
                calls.push((
                    text(&call["id"]),
                    text(&call["function"]["name"]),
                    String::new(),
                ));
            }
            calls[index].2 += &text(&call["function"]["arguments"]);
        }
    }
    read.calls = calls
        .into_iter()
        .map(|(i, n, a)| (i, n, serde_json::from_str(&a).unwrap()))
        .collect();
    read
}

fn read_messages_stream(response: &Response) -> Read {
    let mut message = Value::Null;
    let mut json = String::new();
    for data in response.data() {
        let event: Value = serde_json::from_str(&data).unwrap();
        match event["type"].as_str().unwrap() {
            "message_start" => message = event["message"].clone(),
            "content_block_start" => {
                let blocks = message["content"].as_array_mut().unwrap();
                assert_eq!(event["index"].as_u64(), u64::try_from(blocks.len()).ok());
                blocks.push(event["content_block"].clone());
                json.clear();
            }
            "content_block_delta" => {
                let block = message["content"]
                    .as_array_mut()
                    .unwrap()
                    .last_mut()
                    .unwrap();
                let delta = &event["delta"];
                for key in ["text", "thinking"] {
                    if let Some(more) = delta[key].as_str() {
                        block[key] = format!("{}{more}", block[key].as_str().unwrap()).into();
                    }
                }
                json += delta["partial_json"].as_str().unwrap_or_default();
            }
            "content_block_stop" => {
                let block = message["content"]
                    .as_array_mut()
                    .unwrap()
                    .last_mut()
                    .unwrap();
                if !json.is_empty() {
                    block["input"] = serde_json::from_str(&json).unwrap();
                }
            }
            "message_delta" => {
                message["stop_reason"] = event["delta"]["stop_reason"].clone();
                message["usage"] = event["usage"].clone();
            }
            _ => {}
        }
    }
    assert!(
        response
            .text()
            .trim_end()
            .ends_with(r#"{"type":"message_stop"}"#)
    );
    assert_eq!(message["model"], MODEL);
    read_message(&message)
}

/// The client's body with a tool that reads files.
pub(crate) fn with_tool(client: Dialect, prompt: &str, stream: bool) -> Value {
    let schema = json!({"type": "object", "properties": {"path": {"type": "string"}}});
    let mut body = client.body(prompt, stream);
    body["tools"] = match client {
        Dialect::Chat => {
            json!([{"type": "function", "function": {"name": "read", "parameters": schema}}])
        }
        Dialect::Messages => json!([{"name": "read", "input_schema": schema}]),
    };
    body
}

/// The conversation after the calls, with a result for each.
pub(crate) fn with_results(
    client: Dialect,
    mut body: Value,
    calls: &[(String, String, Value)],
) -> Value {
    let more = match client {
        Dialect::Chat => {
            let call = |(id, name, input): &(String, String, Value)| {
                json!({"id": id, "type": "function",
                "function": {"name": name, "arguments": input.to_string()}})
            };
            let calls_said: Vec<_> = calls.iter().map(call).collect();
            let mut more =
                vec![json!({"role": "assistant", "content": null, "tool_calls": calls_said})];
            more.extend(
                calls.iter().map(
                    |(id, ..)| json!({"role": "tool", "tool_call_id": id, "content": "PLUMBUS"}),
                ),
            );
            more
        }
        Dialect::Messages => {
            let call = |(id, name, input): &(String, String, Value)| {
                json!({"type": "tool_use",
                "id": id, "name": name, "input": input})
            };
            let result = |(id, ..): &(String, String, Value)| {
                json!({"type": "tool_result",
                "tool_use_id": id, "content": "PLUMBUS"})
            };
            vec![
                json!({"role": "assistant", "content": calls.iter().map(call).collect::<Vec<_>>()}),
                json!({"role": "user", "content": calls.iter().map(result).collect::<Vec<_>>()}),
            ]
        }
    };
    body["messages"].as_array_mut().unwrap().extend(more);
    body
}

pub(crate) async fn ask(market: &Market, client: Dialect, body: &Value) -> Read {
    let stream = body["stream"] == json!(true);
    let response = market.send(&Request::post(client.path(), body)).await;
    read(client, stream, &response)
}

pub(crate) fn stop(client: Dialect, chat: &'static str, messages: &'static str) -> &'static str {
    match client {
        Dialect::Chat => chat,
        Dialect::Messages => messages,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn text_crosses_the_dialects_and_both_books_agree() {
    for client in Dialect::ALL {
        let market = crossed(client, vec![Script::default()]).await;
        for stream in [false, true] {
            let got = ask(&market, client, &client.body("Say something.", stream)).await;
            assert_eq!(got.text, Script::default().text);
            assert_eq!(got.stop, stop(client, "stop", "end_turn"));
            assert!(
                got.usage.0 > 0 && got.usage.1 > 0 && got.usage.2 > 30,
                "{:?}",
                got.usage
            );
        }
        let sent = market.sellers[0].upstream.exchanges();
        assert!(sent.iter().all(|e| e.path == other(client).path()));
        assert!(sent.iter().all(|e| e.json()["model"] == UPSTREAM_MODEL));
        let version = sent[0].header("anthropic-version");
        assert_eq!(version.is_some(), other(client) == Dialect::Messages);
        let (bought, sold) = booked(&market, 2).await;
        assert_eq!(bought.len(), 2);
        assert_agree(&bought, &sold);
        assert_verifies(&market);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tool_turns_cross_the_dialects_one_call_or_three() {
    for client in Dialect::ALL {
        let market = crossed(client, vec![Script::default()]).await;
        for (calls, stream) in [(1, false), (1, true), (3, false), (3, true)] {
            let script = Script::default().calls(calls).key(UPSTREAM_KEY);
            market.sellers[0].upstream.set(script);
            let body = with_tool(client, "read hello.txt and tell me", stream);
            let got = ask(&market, client, &body).await;
            assert_eq!(got.stop, stop(client, "tool_calls", "tool_use"));
            assert_eq!(got.calls.len(), usize::try_from(calls).unwrap());
            for (id, name, input) in &got.calls {
                assert_eq!(
                    (name.as_str(), input),
                    ("read", &json!({"path": "hello.txt"}))
                );
                assert_eq!(
                    got.calls.iter().filter(|c| c.0 == *id).count(),
                    1,
                    "ids differ"
                );
            }
            let answered = with_results(client, body, &got.calls);
            let got = ask(&market, client, &answered).await;
            assert_eq!(got.text, "I read the file. It says: PLUMBUS");
        }
        let (bought, sold) = booked(&market, market.sellers[0].upstream.exchanges().len()).await;
        assert_agree(&bought, &sold);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_thinking_and_stop_reasons_cross_the_dialects() {
    let png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
    for client in Dialect::ALL {
        let market = crossed(client, vec![Script::default()]).await;
        let upstream = &market.sellers[0].upstream;
        for stream in [false, true] {
            let mut body = client.body("", stream);
            let (image, words) = match client {
                Dialect::Chat => (
                    json!({"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{png}")}}),
                    "text",
                ),
                Dialect::Messages => (
                    json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": png}}),
                    "text",
                ),
            };
            body["messages"][0]["content"] = json!([{"type": words, "text": "What is it?"}, image]);
            upstream.set(Script::default().key(UPSTREAM_KEY));
            ask(&market, client, &body).await;
            let sent = upstream.exchanges().last().unwrap().json();
            let seen = sent["messages"][0]["content"][1].to_string();
            assert!(seen.contains(png), "{seen}");

            let mut body = client.body("Say something.", stream);
            if client == Dialect::Messages {
                body["thinking"] = json!({"type": "enabled", "budget_tokens": 1024});
            }
            upstream.set(Script::default().thinking("Let me see.").key(UPSTREAM_KEY));
            let got = ask(&market, client, &body).await;
            assert_eq!(
                (got.thinking.as_str(), got.text),
                ("Let me see.", Script::default().text)
            );

            for (why, chat, messages) in [
                (Stop::Length, "length", "max_tokens"),
                (Stop::Refusal, "content_filter", "refusal"),
            ] {
                upstream.set(Script::default().stop(why).key(UPSTREAM_KEY));
                let got = ask(&market, client, &client.body("Say something.", stream)).await;
                assert_eq!(got.stop, stop(client, chat, messages));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_without_usage_never_blanks_it_and_is_paid() {
    for client in Dialect::ALL {
        let market = crossed(client, vec![Script::default().usage(UsageReport::None)]).await;
        for stream in [false, true] {
            let got = ask(&market, client, &client.body("Say something.", stream)).await;
            assert!(got.usage.0 > 0 && got.usage.2 > 30, "{:?}", got.usage);
        }
        let (bought, sold) = booked(&market, 2).await;
        assert!(bought.values().all(|row| row.billed_micro_usd > Some(0)));
        assert_agree(&bought, &sold);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_in_mid_stream_is_the_clients_own_error_event_and_only_what_came_is_paid() {
    for client in Dialect::ALL {
        for fault in [Fault::CutAfter(9), Fault::MalformedJson] {
            let market = crossed(
                client,
                vec![Script::failing(fault.clone()), Script::default()],
            )
            .await;
            let response = market.send(&client.request("Say something.", true)).await;
            if fault == Fault::MalformedJson {
                // The first event was broken already: the second seller answers.
                let got = read(client, true, &response);
                assert_eq!(got.text, Script::default().text);
                assert_eq!(market.seller_of(&response), 1);
                continue;
            }
            let text = response.text();
            assert!(client.has_error_event(&text), "{text}");
            assert!(!text.contains(client.terminator()), "{text}");
            let (bought, sold) = booked(&market, 1).await;
            assert_agree(&bought, &sold);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_and_drops_are_said_in_the_clients_dialect() {
    for client in Dialect::ALL {
        let market = crossed(client, vec![Script::failing(Fault::Status(400))]).await;
        for stream in [false, true] {
            let response = market.send(&client.request("Say something.", stream)).await;
            assert_eq!(response.status, 400, "{}", response.text());
            let error = response.json();
            assert!(error["error"]["message"].is_string(), "{error}");
            assert_eq!(
                error["type"] == "error",
                client == Dialect::Messages,
                "{error}"
            );
        }
        let before = market.upstream_requests();
        let mut body = client.body("Say something.", false);
        match client {
            Dialect::Chat => body["n"] = json!(2),
            Dialect::Messages => body["container"] = json!("c"),
        }
        let response = market.send(&Request::post(client.path(), &body)).await;
        assert_eq!(response.status, 400, "{}", response.text());
        assert!(
            response.text().contains("another dialect"),
            "{}",
            response.text()
        );
        assert_eq!(market.upstream_requests(), before);

        market.sellers[0]
            .upstream
            .set(Script::default().key(UPSTREAM_KEY));
        let mut body = client.body("Say something.", false);
        body["service_tier"] = json!("flex");
        let response = market.send(&Request::post(client.path(), &body)).await;
        assert_eq!(response.header("x-souk-dropped"), Some("service_tier"));
        let plain = market.send(&client.request("Say something.", false)).await;
        assert_eq!(plain.header("x-souk-dropped"), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_native_seller_comes_first_at_the_same_price() {
    use crate::harness::market::Seller;
    for client in Dialect::ALL {
        let mut market = crossed(client, vec![Script::default()]).await;
        let native = Seller::start(
            market.bootstrap.listen(),
            client,
            PRICES[0],
            Script::default(),
        )
        .await;
        market.sellers.push(native);
        market.wait_for_sellers(2).await;
        for stream in [false, true] {
            let response = market.send(&client.request("Say something.", stream)).await;
            assert_eq!(response.status, 200, "{}", response.text());
            assert_eq!(market.seller_of(&response), 1);
        }
        // And when it fails, the other dialect stands in.
        market.sellers[1]
            .upstream
            .set(Script::failing(Fault::Status(500)).key(UPSTREAM_KEY));
        let response = market.send(&client.request("Say something.", true)).await;
        assert_eq!(read(client, true, &response).text, Script::default().text);
        assert_eq!(market.seller_of(&response), 0);
    }
}
