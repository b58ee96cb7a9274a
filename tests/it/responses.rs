//! Responses: its clients before sellers of every dialect, the other clients before sellers that speak
//! only Responses. And tokens that are counted without a seller.

use serde_json::{Value, json};

use crate::dialects;
use crate::harness::http::{Request, Response};
use crate::harness::market::{Dialect, MODEL, Market, PRICES, Seller, UPSTREAM_KEY};
use crate::harness::upstream::script::Stop;
use crate::harness::upstream::{Fault, Script};
use crate::money::{assert_agree, booked};

const PATH: &str = "/v1/responses";

/// The response object of an answer; of a stream the last event's, with its numbers checked.
fn read(stream: bool, response: &Response) -> Value {
    assert_eq!(response.status, 200, "{}", response.text());
    assert!(response.complete, "the body ends as its framing says");
    if !stream {
        return response.json();
    }
    let events: Vec<Value> = response
        .data()
        .iter()
        .map(|d| serde_json::from_str(d).unwrap())
        .collect();
    for (number, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], number);
    }
    assert_eq!(events[0]["type"], "response.created");
    let end = events.last().unwrap();
    let said: String = events
        .iter()
        .filter(|e| e["type"] == "response.output_text.delta")
        .map(|e| e["delta"].as_str().unwrap())
        .collect();
    assert_eq!(said, output_text(&end["response"]));
    assert_eq!(
        end["type"],
        format!("response.{}", end["response"]["status"].as_str().unwrap())
    );
    end["response"].clone()
}

fn items(response: &Value, kind: &str) -> Vec<Value> {
    let output = response["output"].as_array().unwrap();
    output
        .iter()
        .filter(|item| item["type"] == kind)
        .cloned()
        .collect()
}

fn output_text(response: &Value) -> String {
    items(response, "message")
        .iter()
        .map(|m| m["content"][0]["text"].as_str().unwrap())
        .collect()
}

async fn ask(market: &Market, body: &Value) -> Value {
    let response = market.send(&Request::post(PATH, body)).await;
    let got = read(body["stream"] == json!(true), &response);
    assert_eq!(
        (&got["model"], &got["store"]),
        (&json!(MODEL), &json!(false))
    );
    let usage = &got["usage"];
    assert!(usage["input_tokens"].as_u64().unwrap() > 0, "{usage}");
    assert!(usage["output_tokens"].as_u64().unwrap() > 0, "{usage}");
    got
}

#[tokio::test(flavor = "multi_thread")]
async fn a_responses_client_is_served_by_both_other_dialects() {
    let schema = json!({"type": "object", "properties": {"path": {"type": "string"}}});
    for seller in Dialect::ALL {
        let market = Market::start(seller, vec![Script::default()]).await;
        let upstream = &market.sellers[0].upstream;
        for stream in [false, true] {
            let body = json!({"model": MODEL, "input": "Say something.", "stream": stream});
            upstream.set(Script::default().key(UPSTREAM_KEY));
            let got = ask(&market, &body).await;
            assert_eq!(output_text(&got), Script::default().text);
            assert_eq!(got["status"], "completed");

            let mut body = json!({"model": MODEL, "stream": stream,
                "tools": [{"type": "function", "name": "read", "parameters": schema}],
                "input": [{"role": "user", "content": "read hello.txt and tell me"}]});
            upstream.set(Script::default().calls(2).key(UPSTREAM_KEY));
            let calls = items(&ask(&market, &body).await, "function_call");
            assert_eq!(calls.len(), 2);
            assert_eq!(calls[1]["arguments"], r#"{"path":"hello.txt"}"#);
            let input = body["input"].as_array_mut().unwrap();
            input.extend(calls.clone());
            input.extend(calls.iter().map(|c| {
                json!({"type": "function_call_output",
                "call_id": c["call_id"], "output": "PLUMBUS"})
            }));
            let got = ask(&market, &body).await;
            assert_eq!(output_text(&got), "I read the file. It says: PLUMBUS");

            let body = json!({"model": MODEL, "input": "Say something.", "stream": stream,
                "reasoning": {"summary": "auto"}});
            upstream.set(
                Script::default()
                    .thinking("Let me see.")
                    .stop(Stop::Length)
                    .key(UPSTREAM_KEY),
            );
            let got = ask(&market, &body).await;
            assert_eq!(
                items(&got, "reasoning")[0]["summary"][0]["text"],
                "Let me see."
            );
            assert_eq!(got["incomplete_details"]["reason"], "max_output_tokens");
        }
        let (bought, sold) = booked(&market, 8).await;
        assert_eq!(bought.len(), 8);
        assert_agree(&bought, &sold);

        upstream.set(Script::failing(Fault::CutAfter(9)).key(UPSTREAM_KEY));
        let body = json!({"model": MODEL, "input": "Say something.", "stream": true});
        let text = market.send(&Request::post(PATH, &body)).await.text();
        assert!(
            text.contains("event: error") && !text.contains("response.completed"),
            "{text}"
        );

        let body = json!({"model": MODEL, "input": "on", "previous_response_id": "resp_1"});
        let refused = market.send(&Request::post(PATH, &body)).await;
        assert_eq!(refused.status, 400, "{}", refused.text());
        assert!(
            refused.text().contains("previous_response_id"),
            "{}",
            refused.text()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn edge_27_tokens_are_counted_here_without_a_seller() {
    let market = Market::start(Dialect::Chat, vec![Script::default()]).await;
    let path = "/v1/messages/count_tokens?beta=true";
    let count = async |prompt: &str| {
        let body = json!({"model": MODEL, "messages": [{"role": "user", "content": prompt}]});
        let response = market.send(&Request::post(path, &body)).await;
        assert_eq!(response.status, 200, "{}", response.text());
        response.json()["input_tokens"].as_u64().unwrap()
    };
    let (short, long) = (
        count("one two three").await,
        count(&"one two three ".repeat(1_000)).await,
    );
    assert!((3..20).contains(&short), "{short}");
    assert!((3_000..3_200).contains(&long), "{long}");
    let bad = market
        .send(&Request::post(path, &json!({"messages": []})))
        .await;
    assert_eq!((bad.status, &bad.json()["type"]), (400, &json!("error")));
    assert_eq!(market.upstream_requests(), 0);
}

/// A market whose only seller has an upstream that speaks Responses.
pub(crate) async fn responses_seller() -> Market {
    let mut market = Market::start(Dialect::Chat, vec![]).await;
    let listen = market.bootstrap.listen();
    let seller = Seller::start_responses(listen, PRICES[0], Script::default()).await;
    market.sellers.push(seller);
    market.wait_for_sellers(1).await;
    market
}

#[tokio::test(flavor = "multi_thread")]
async fn chat_and_messages_clients_are_served_by_an_upstream_of_responses() {
    for client in Dialect::ALL {
        let market = responses_seller().await;
        let upstream = &market.sellers[0].upstream;
        for stream in [false, true] {
            upstream.set(Script::default().thinking("Let me see.").key(UPSTREAM_KEY));
            let mut body = client.body("Say something.", stream);
            if client == Dialect::Messages {
                body["thinking"] = json!({"type": "enabled", "budget_tokens": 1024});
            }
            let got = dialects::ask(&market, client, &body).await;
            assert_eq!(
                (got.text, got.thinking.as_str()),
                (Script::default().text, "Let me see.")
            );
            assert_eq!(got.stop, dialects::stop(client, "stop", "end_turn"));
            assert!(got.usage.1 > 0 && got.usage.2 > 30, "{:?}", got.usage);

            upstream.set(Script::default().calls(2).key(UPSTREAM_KEY));
            let body = dialects::with_tool(client, "read hello.txt and tell me", stream);
            let got = dialects::ask(&market, client, &body).await;
            assert_eq!(got.stop, dialects::stop(client, "tool_calls", "tool_use"));
            assert_eq!(got.calls.len(), 2);
            assert_eq!(got.calls[1].2, json!({"path": "hello.txt"}));
            let body = dialects::with_results(client, body, &got.calls);
            let got = dialects::ask(&market, client, &body).await;
            assert_eq!(got.text, "I read the file. It says: PLUMBUS");

            for (why, chat, messages) in [
                (Stop::Length, "length", "max_tokens"),
                (Stop::Refusal, "content_filter", "refusal"),
            ] {
                upstream.set(Script::default().stop(why).key(UPSTREAM_KEY));
                let got = dialects::ask(&market, client, &client.body("Go on.", stream)).await;
                assert_eq!(got.stop, dialects::stop(client, chat, messages));
            }
        }
        let sent = upstream.exchanges();
        assert!(
            sent.iter()
                .all(|e| e.path == PATH && e.json()["store"] == json!(false))
        );
        let (bought, sold) = booked(&market, sent.len()).await;
        assert_agree(&bought, &sold);
        upstream.set(Script::failing(Fault::CutAfter(9)).key(UPSTREAM_KEY));
        let text = market
            .send(&client.request("Say something.", true))
            .await
            .text();
        assert!(
            client.has_error_event(&text) && !text.contains(client.terminator()),
            "{text}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_responses_client_and_upstream_pass_the_bytes() {
    let market = responses_seller().await;
    for stream in [false, true] {
        let body = json!({"model": MODEL, "input": "Say something.", "stream": stream});
        let response = market.send(&Request::post(PATH, &body)).await;
        let got = read(stream, &response);
        assert_eq!(output_text(&got), Script::default().text);
        assert_eq!(response.header("x-souk-dropped"), None);
    }
    let (bought, sold) = booked(&market, 2).await;
    assert_agree(&bought, &sold);
}
