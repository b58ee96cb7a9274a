//! The market works: a buyer that knows one address finds sellers, and answers are the upstream's.

use std::time::Duration;

use regex::Regex;
use serde_json::{Value, json};

use crate::harness::http::{Request, Response};
use crate::harness::market::{Dialect, MODEL, Market, UPSTREAM_MODEL};
use crate::harness::upstream::{Exchange, Script};

/// An event may be this much later at the client than at the upstream; two hops of a debug build
/// on a busy machine stay far below, a buffered answer stays far above.
const EVENT_DELAY_MAX: Duration = Duration::from_millis(250);

/// Streams of which one must keep that for each of its events: a stall of the machine delays some of
/// one stream, a node that holds back some of all.
const STREAMS: usize = 5;

/// The upstream's bytes as a client may see them: with the model's name in the market.
fn expected(exchange: &Exchange) -> String {
    String::from_utf8(exchange.sent.clone())
        .unwrap()
        .replace(UPSTREAM_MODEL, MODEL)
}

/// The client's bytes without the one thing that a buyer adds.
fn without_cost(text: &str) -> String {
    Regex::new(r#","cost":[0-9.]+"#)
        .unwrap()
        .replace_all(text, "")
        .into_owned()
}

/// The cost that a chat answer shows, in whole micro-USD.
fn shown_micro_usd(text: &str) -> u64 {
    let shown = Regex::new(r#""cost":([0-9]+)(?:\.([0-9]+))?"#).unwrap();
    let all: Vec<_> = shown.captures_iter(text).collect();
    assert_eq!(all.len(), 1, "the cost is shown once: {text}");
    let part = all[0].get(2).map_or("", |m| m.as_str());
    assert!(part.len() <= 6, "a cost is whole micro-USD: {text}");
    format!("{}{part:0<6}", &all[0][1]).parse().unwrap()
}

/// What the cheapest seller's prices ($0.10 and $0.40 per million) make of a chat usage.
fn list_cost_micro_usd(usage: &Value) -> u64 {
    let count = |name: &str| usage[name].as_u64().unwrap();
    (count("prompt_tokens") * 100_000 + count("completion_tokens") * 400_000).div_ceil(1_000_000)
}

async fn two_sellers(dialect: Dialect, script: Script) -> Market {
    Market::start(dialect, vec![script.clone(), script]).await
}

fn assert_same_bytes(market: &Market, response: &Response) {
    assert_eq!(response.status, 200, "{}", response.text());
    assert!(response.complete, "the body ends as its framing says");
    let seller = market.seller_of(response);
    assert_eq!(seller, 0, "the cheaper seller is used");
    let sent = market.sellers[seller].upstream.exchanges();
    let text = response.text();
    assert_eq!(without_cost(&text), expected(sent.last().unwrap()));
    if market.dialect == Dialect::Messages {
        assert!(!text.contains("\"cost\""), "only chat usage carries a cost");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whole_answers_are_the_upstreams_bytes_in_both_dialects() {
    for dialect in Dialect::ALL {
        let market = two_sellers(dialect, Script::default()).await;
        let response = market.ask("Say something.", false).await;
        assert_same_bytes(&market, &response);
        assert_eq!(response.header("x-souk-attempts"), Some("1"));
        assert!(response.header("x-souk-request-id").is_some());
        if dialect == Dialect::Chat {
            let micro_usd = list_cost_micro_usd(&response.json()["usage"]);
            assert_eq!(shown_micro_usd(&response.text()), micro_usd);
            let header = response.header("x-souk-cost-usd").unwrap();
            assert_eq!(header.parse::<f64>().unwrap(), micro_usd as f64 / 1e6);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_the_upstreams_bytes_in_both_dialects() {
    for dialect in Dialect::ALL {
        let market = two_sellers(dialect, Script::default()).await;
        let response = market.ask("Say something.", true).await;
        assert_same_bytes(&market, &response);
        assert!(response.text().contains(dialect.terminator()));
        if dialect == Dialect::Chat {
            let data = response.data();
            let usage: Value = serde_json::from_str(&data[data.len() - 2]).unwrap();
            let micro_usd = list_cost_micro_usd(&usage["usage"]);
            assert_eq!(shown_micro_usd(&response.text()), micro_usd);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_did_not_ask_for_usage_sees_no_usage_chunk() {
    let market = two_sellers(Dialect::Chat, Script::default()).await;
    let mut body = Dialect::Chat.body("Say something.", true);
    body.as_object_mut().unwrap().remove("stream_options");
    let response = market
        .send(&Request::post("/v1/chat/completions", &body))
        .await;
    assert_eq!(response.status, 200, "{}", response.text());
    let sent = market.sellers[0].upstream.exchanges();
    assert_eq!(
        sent[0].json()["stream_options"]["include_usage"],
        json!(true)
    );
    let visible: String = expected(&sent[0])
        .split_inclusive("\n\n")
        .filter(|event| !event.contains(r#""choices":[]"#))
        .collect();
    assert_eq!(response.text(), visible);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_upstream_gets_the_clients_bytes_with_its_own_model_id() {
    let market = two_sellers(Dialect::Chat, Script::default()).await;
    // Odd spacing, key order, unknown fields and escapes must all survive.
    let body = format!(
        "{{ \"zeta\" : [1,2.50,1e3], \"model\":\"{MODEL}\",\n \"messages\":[{{\"role\":\"user\",\
         \"content\":\"caf\\u00e9 {MODEL}\"}}],\"unknown\":{{\"deep\":[null]}},\"top_p\":1.0}}"
    );
    let request = Request::post_bytes("/v1/chat/completions?beta=true", body.clone().into_bytes());
    let response = market.send(&request).await;
    assert_eq!(response.status, 200, "{}", response.text());
    let seen = market.sellers[0].upstream.exchanges();
    let want = body.replacen(MODEL, UPSTREAM_MODEL, 1);
    assert_eq!(String::from_utf8_lossy(&seen[0].body), want);
}

#[tokio::test(flavor = "multi_thread")]
async fn tool_calls_pass_in_both_dialects_streaming_and_whole() {
    let schema = json!({"type": "object", "properties": {"path": {"type": "string"}}});
    for dialect in Dialect::ALL {
        let market = two_sellers(dialect, Script::default()).await;
        for stream in [false, true] {
            let mut body = dialect.body("read hello.txt and tell me the secret word", stream);
            let (tool, sign) = match dialect {
                Dialect::Chat => (
                    json!({"type": "function", "function": {"name": "read", "parameters": schema}}),
                    "\"finish_reason\":\"tool_calls\"",
                ),
                Dialect::Messages => (
                    json!({"name": "read", "input_schema": schema}),
                    "\"stop_reason\":\"tool_use\"",
                ),
            };
            body["tools"] = json!([tool]);
            let response = market.send(&Request::post(dialect.path(), &body)).await;
            assert_same_bytes(&market, &response);
            assert!(response.text().contains(sign), "{}", response.text());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_arrive_as_they_are_produced() {
    for dialect in Dialect::ALL {
        let market = Market::start_alone(dialect, vec![Script::default().paced(40.0); 2]).await;
        let mut latest = vec![];
        while latest.last().is_none_or(|late| *late >= EVENT_DELAY_MAX) {
            assert!(latest.len() < STREAMS, "after it was produced: {latest:?}");
            let response = market.ask("Say something.", true).await;
            assert_same_bytes(&market, &response);
            let sent = market.sellers[0].upstream.exchanges();
            let produced = &sent.last().unwrap().pieces;
            let arrived = response.event_times();
            assert_eq!(produced.len(), arrived.len(), "as many events as were sent");
            let late = produced
                .iter()
                .zip(&arrived)
                .map(|((produced, _), arrived)| {
                    (response.sent_at + *arrived).saturating_duration_since(*produced)
                });
            latest.extend(late.max());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_model_list_shows_what_the_market_sells() {
    let market = two_sellers(Dialect::Chat, Script::default()).await;
    let list = market.send(&Request::get("/v1/models")).await;
    assert_eq!(list.status, 200);
    let list = list.json();
    assert_eq!(list["object"], "list");
    let model = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .find(|m| m["id"] == MODEL)
        .unwrap();
    assert_eq!(model["sellers"], 2);
    assert_eq!(model["pricing"]["prompt"], "0.0000001");
    assert_eq!(model["pricing"]["completion"], "0.0000004");
    let one = market
        .send(&Request::get(&format!("/v1/models/{MODEL}")))
        .await;
    assert_eq!((one.status, &one.json()["id"]), (200, &json!(MODEL)));
    let request = Request::get("/v1/models").header("anthropic-version", "2023-06-01");
    let list = market.send(&request).await.json();
    assert_eq!(list["data"][0]["type"], "model");
    assert_eq!(list["has_more"], false);
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_work_with_and_without_their_version() {
    let market = two_sellers(Dialect::Chat, Script::default()).await;
    let body = Dialect::Chat.body("Say something.", false);
    for path in ["/chat/completions", "/v1/chat/completions"] {
        let request = Request::post(path, &body).header("authorization", "Bearer anything");
        assert_eq!(market.send(&request).await.status, 200, "{path}");
    }
    assert_eq!(market.send(&Request::get("/models")).await.status, 200);
}
