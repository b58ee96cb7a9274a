//! Edge cases of the dialects that only a whole market shows: failures in mid-stream, silence,
//! back-off, headers. The others are beside the code that they are about.

use std::time::Duration;

use serde_json::{Value, json};

use crate::dialects::other;
use crate::harness::http::{self, Request, Response};
use crate::harness::market::{Dialect, MODEL, Market, PATIENCE, UPSTREAM_KEY};
use crate::harness::upstream::{Fault, Script, UsageReport};
use crate::responses::responses_seller;

const RESPONSES: &str = "/v1/responses";

fn body(path: &str, stream: bool) -> Value {
    match path {
        RESPONSES => json!({"model": MODEL, "input": "Say something.", "stream": stream}),
        "/v1/messages" => Dialect::Messages.body("Say something.", stream),
        _ => Dialect::Chat.body("Say something.", stream),
    }
}

const PATHS: [&str; 3] = ["/v1/chat/completions", "/v1/messages", RESPONSES];

async fn markets() -> [Market; 3] {
    [
        Market::start(Dialect::Chat, vec![Script::default()]).await,
        Market::start(Dialect::Messages, vec![Script::default()]).await,
        responses_seller().await,
    ]
}

async fn ask(market: &Market, path: &str, stream: bool) -> Response {
    market.send(&Request::post(path, &body(path, stream))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn edge_06_a_failure_in_mid_stream_is_the_dialects_error_event() {
    for market in markets().await {
        let upstream = &market.sellers[0].upstream;
        upstream.set(Script::failing(Fault::CutAfter(5)).key(UPSTREAM_KEY));
        for path in PATHS {
            let response = ask(&market, path, true).await;
            let text = response.text();
            let ends = ["[DONE]", "message_stop", "response.completed"];
            assert!(!ends.iter().any(|end| text.contains(end)), "{path}: {text}");
            let data = response.data();
            let last: Value = serde_json::from_str(data.last().unwrap()).unwrap();
            match path {
                RESPONSES => {
                    assert_eq!(last["type"], "error");
                    assert_eq!(
                        last["sequence_number"].as_u64(),
                        u64::try_from(data.len() - 1).ok(),
                        "the error has the next number: {text}"
                    );
                }
                "/v1/messages" => assert_eq!(last["type"], "error", "{text}"),
                _ => assert!(last["error"]["message"].is_string(), "{text}"),
            }
            // Not streamed, the same cut never becomes a well-formed answer.
            let whole = ask(&market, path, false).await;
            assert_eq!(whole.status, 502, "{}", whole.text());
            assert!(whole.json()["error"]["message"].is_string());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn edge_07_the_status_waits_for_the_first_event() {
    let wait = Duration::from_millis(700);
    for market in markets().await {
        let upstream = &market.sellers[0].upstream;
        for path in PATHS {
            let slow = Script::default().first_byte_after(wait).key(UPSTREAM_KEY);
            upstream.set(slow);
            let response = ask(&market, path, true).await;
            assert_eq!(response.status, 200);
            assert!(response.head_at >= wait, "{:?}", response.head_at);

            // A real status in the caller's own envelope, though a stream was asked for.
            upstream.set(Script::failing(Fault::Status(422)).key(UPSTREAM_KEY));
            let response = ask(&market, path, true).await;
            assert_eq!(response.status, 422, "{}", response.text());
            let error = response.json();
            let is_messages = error["type"] == "error";
            assert_eq!(is_messages, path == "/v1/messages", "{error}");
            assert!(error["error"]["message"].is_string(), "{error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn edge_21_a_silent_upstream_is_covered_by_comments() {
    // The first comment comes after ten seconds, and another every ten until the first event: this
    // one is as far from the second comment as from a third.
    let silence = Duration::from_secs(25);
    let mut market = Market::start(Dialect::Chat, vec![Script::default()]).await;
    market.sellers[0].upstream.set(
        Script::default()
            .first_byte_after(silence)
            .key(UPSTREAM_KEY),
    );
    let market = &mut market;
    let asks = PATHS.map(|path| ask(market, path, true));
    let answers = futures::future::join_all(asks).await;
    for (path, response) in PATHS.into_iter().zip(answers) {
        let text = response.text();
        let beat = if path == "/v1/messages" {
            "event: ping\n"
        } else {
            ": waiting\n"
        };
        assert_eq!(text.matches(beat).count(), 2, "{path}: {text}");
        let (first, answer) = (text.find(beat).unwrap(), text.find("works. "));
        assert_eq!(first, 0, "{path}");
        assert!(answer.is_some(), "{path}: {text}");
        let at = response.head_at.as_secs();
        // With the first comment, not with the second.
        assert!((10..20).contains(&at), "{path}: the head came after {at} s");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn edge_22_usage_is_asked_for_and_hidden_from_who_did_not() {
    for seller in Dialect::ALL {
        let market = Market::start(seller, vec![Script::default()]).await;
        for asked in [false, true] {
            let mut body = Dialect::Chat.body("Say something.", true);
            if !asked {
                body.as_object_mut().unwrap().remove("stream_options");
            }
            let response = market.send(&Request::post(PATHS[0], &body)).await;
            let usage = |data: &&String| data.contains("\"usage\":{");
            let chunks = response.data();
            let count = chunks.iter().filter(usage).count();
            assert_eq!(count, usize::from(asked), "{}", response.text());
            let sent = market.sellers[0].upstream.exchanges();
            let sent = sent.last().unwrap().json();
            let injected = sent.pointer("/stream_options/include_usage");
            assert_eq!(injected.is_some(), seller == Dialect::Chat, "{sent}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn edge_23_back_off_and_rate_limits_reach_the_client_and_another_seller_is_tried() {
    for dialect in Dialect::ALL {
        let market = Market::start(dialect, vec![Script::default(), Script::default()]).await;
        for client in Dialect::ALL {
            let set = |first: Fault, second: Fault| {
                for (seller, fault) in market.sellers.iter().zip([first, second]) {
                    seller.upstream.forget();
                    seller
                        .upstream
                        .set(Script::failing(fault).key(UPSTREAM_KEY));
                }
            };
            let first = market.sellers[0].node.peer_id();
            let request = client.request("Say something.", true);
            let request = request.header("x-souk-seller", first);
            for fault in [Fault::Status(529), Fault::RateLimited { retry_after_s: 7 }] {
                set(fault, Fault::None);
                let response = market.send(&request).await;
                assert_eq!(response.status, 200, "{}", response.text());
                assert_eq!(market.seller_of(&response), 1, "not the same one again");
                assert_eq!(market.upstream_requests(), 2, "each was asked once");
                let left = response.header("x-ratelimit-remaining-requests");
                assert_eq!(left, Some("99"));
            }
            let limited = |retry_after_s| Fault::RateLimited { retry_after_s };
            set(limited(90), limited(7));
            let response = market.send(&request).await;
            assert_eq!(response.status, 429, "{}", response.text());
            assert_eq!(response.header("retry-after"), Some("7"), "the soonest");
            set(Fault::Status(529), Fault::Status(529));
            let response = market.send(&request).await;
            assert_eq!(response.status, 503, "{}", response.text());
            assert_eq!(response.header("retry-after"), Some("5"));
            let kind = response.json()["error"]["type"].clone();
            match client {
                Dialect::Messages => assert_eq!(kind, "overloaded_error"),
                Dialect::Chat => assert_eq!(kind, "server_error"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn edge_24_no_encoding_upstream_and_lengths_are_those_of_what_is_sent() {
    for market in markets().await {
        for (path, stream) in PATHS.into_iter().flat_map(|p| [(p, false), (p, true)]) {
            let request = Request::post(path, &body(path, stream))
                .header("accept-encoding", "gzip, br, zstd")
                .header("te", "trailers, deflate");
            let response = market.send(&request).await;
            assert_eq!(response.status, 200, "{}", response.text());
            assert!(response.complete, "{path}: the framing holds");
            assert_eq!(response.header("content-encoding"), None);
            match response.header("content-length") {
                Some(length) => assert_eq!(length, response.body().len().to_string()),
                None => assert!(stream, "{path}: a whole answer says its length"),
            }
            let sent = market.sellers[0].upstream.exchanges();
            let sent = sent.last().unwrap();
            assert_eq!(sent.header("accept-encoding"), Some("identity"));
            assert_eq!(sent.header("te"), None);
            let length = sent.header("content-length").unwrap();
            assert_eq!(length, sent.body.len().to_string());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_without_usage_blanks_it_in_no_dialect() {
    for market in markets().await {
        let upstream = &market.sellers[0].upstream;
        upstream.set(Script::default().usage(UsageReport::None).key(UPSTREAM_KEY));
        for (path, stream) in PATHS.into_iter().flat_map(|p| [(p, false), (p, true)]) {
            let response = ask(&market, path, stream).await;
            assert_eq!(response.status, 200, "{}", response.text());
            let objects: Vec<Value> = if stream {
                let data = response.data();
                let json = |d: &String| serde_json::from_str(d).ok();
                data.iter().filter_map(json).collect()
            } else {
                vec![response.json()]
            };
            let count = |o: &Value| {
                let names = ["completion_tokens", "output_tokens"];
                let paths = ["/usage", "/response/usage"];
                let found = paths
                    .iter()
                    .find_map(|p| o.pointer(p).filter(|u| u.is_object()));
                names.iter().find_map(|n| found?.get(n)?.as_u64())
            };
            let output = objects.iter().filter_map(count).max();
            assert!(output > Some(30), "{path}: {}", response.text());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_cut_by_its_client_in_another_dialect_stops_the_upstream() {
    for client in Dialect::ALL {
        // Half a minute long: it runs for as long as nobody hangs up.
        let market = Market::start(other(client), vec![Script::default().paced(2.0)]).await;
        let upstream = &market.sellers[0].upstream;
        let request = client.request("Say something.", true);
        let mut answer = http::open(market.buyer.http(), &request).await.unwrap();
        answer.until("works").await;
        drop(answer);
        let gone = upstream
            .wait_for("the hang-up", PATIENCE, |seen| {
                seen.iter().any(|e| e.abandoned.is_some())
            })
            .await;
        assert_eq!(gone.len(), 1);
    }
}

#[test]
fn every_edge_case_has_a_test_of_its_name() {
    fn sources(folder: &std::path::Path, all: &mut String) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, all);
            } else if path.extension().is_some_and(|e| e == "rs") {
                all.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = String::new();
    sources(&root.join("src"), &mut all);
    sources(&root.join("tests/it"), &mut all);
    let names: Vec<&str> = all
        .lines()
        .filter_map(|line| line.split_once("fn ").map(|(_, rest)| rest))
        .filter(|name| name.starts_with("edge_"))
        .collect();
    for number in 1..=27 {
        let mark = format!("edge_{number:02}_");
        assert!(
            names.iter().any(|name| name.contains(&mark)),
            "no test is called {mark}…"
        );
    }
}
