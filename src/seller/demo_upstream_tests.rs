//! Tests of the demo upstream, over real sockets and our own upstream client.

use super::*;
use crate::llm_api::{AnswerMeter, EventSplitter, UsageTracker, price_list, usage};
use crate::seller::upstream::{Upstream, UpstreamSettings};
use serde_json::{Value, json};

fn quick() -> DemoSettings {
    DemoSettings {
        ttft: Duration::ZERO,
        tokens_per_second: 0,
        ..DemoSettings::default()
    }
}

async fn client(settings: DemoSettings, dialect: Dialect, tasks: &Tasks) -> Upstream {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let address = start(settings, tasks).await.unwrap();
    assert!(address.ip().is_loopback());
    Upstream::new(UpstreamSettings {
        base_url: format!("http://{address}/v1"),
        dialect,
        completions: false,
        key: None,
    })
    .unwrap()
}

fn ask(stream: bool) -> Bytes {
    let body = json!({
        "model": "demo/echo-small", "stream": stream, "stream_options": {"include_usage": true},
        "max_tokens": 1_000, "messages": [{"role": "user", "content": "Are you real?"}],
    });
    Bytes::from(body.to_string())
}

async fn post(upstream: &Upstream, path: &str, body: Bytes) -> (u16, Bytes) {
    let response = upstream.call(path, &[], body).await.unwrap();
    (response.status().as_u16(), response.bytes().await.unwrap())
}

#[tokio::test]
async fn both_dialects_stream_a_whole_answer_with_the_usage_of_its_text() {
    for dialect in [Dialect::Chat, Dialect::Messages] {
        let tasks = Tasks::new();
        let upstream = client(quick(), dialect, &tasks).await;
        let (status, body) = post(&upstream, dialect.path(), ask(true)).await;
        assert_eq!(status, 200);
        let mut splitter = EventSplitter::new();
        let mut tracker = UsageTracker::new(dialect);
        for event in splitter.push(body.clone()) {
            tracker.push(&event.unwrap());
        }
        assert!(tracker.terminator_seen() && tracker.ended_well());
        let mut meter = AnswerMeter::with_text(dialect);
        meter.push(&body);
        assert!(meter.text().contains("You said: \"Are you real?\""));
        let usage = tracker.usage().unwrap();
        let counted = TokenCounter::new().count_answer("demo/echo-small", &meter);
        assert_eq!(usage.output, counted.tokens);
        assert!(usage.input > 0);

        let (status, whole) = post(&upstream, dialect.path(), ask(false)).await;
        assert_eq!(status, 200);
        assert_eq!(
            usage::extract(dialect, &whole).unwrap().output,
            usage.output
        );
        tasks.shutdown(Duration::from_secs(60)).await.unwrap();
    }
}

#[tokio::test]
async fn the_list_has_prices_and_every_listed_model_answers() {
    let tasks = Tasks::new();
    let upstream = client(quick(), Dialect::Chat, &tasks).await;
    let listed = price_list::parse(&upstream.list_models().await.unwrap()).unwrap();
    assert_eq!(listed.len(), 3);
    for model in listed {
        assert!(model.price.is_some());
        let body = json!({"model": model.id, "messages": []}).to_string();
        let (status, _) = post(&upstream, "/v1/chat/completions", body.into()).await;
        assert_eq!(status, 200);
    }
}

#[tokio::test]
async fn what_it_does_not_know_gets_an_error_in_the_callers_shape() {
    let tasks = Tasks::new();
    let upstream = client(quick(), Dialect::Messages, &tasks).await;
    let (status, body) = post(&upstream, "/v1/messages", "{".into()).await;
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &body["type"]), (400, &json!("error")));
    let (status, _) = post(&upstream, "/v1/responses", ask(false)).await;
    assert_eq!(status, 404);
    let (status, _) = post(&upstream, "/v1/models", ask(false)).await;
    assert_eq!(status, 405);
}

#[tokio::test]
async fn words_come_at_the_speed_that_was_set() {
    let tasks = Tasks::new();
    let settings = DemoSettings {
        ttft: Duration::from_millis(150),
        tokens_per_second: 200,
        ..quick()
    };
    let upstream = client(settings, Dialect::Chat, &tasks).await;
    let started = Instant::now();
    let mut response = upstream
        .call("/v1/chat/completions", &[], ask(true))
        .await
        .unwrap();
    let mut chunks = 0;
    let mut first = None;
    while response.chunk().await.unwrap().is_some() {
        first.get_or_insert(started.elapsed());
        chunks += 1;
    }
    assert!(first.unwrap() >= Duration::from_millis(150));
    // Some 60 tokens at 200 a second.
    assert!(started.elapsed() >= Duration::from_millis(350));
    assert!(chunks >= 5, "{chunks} chunks");
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_nothing_running() {
    let tasks = Tasks::new();
    let slow = DemoSettings {
        tokens_per_second: 1,
        ..quick()
    };
    let upstream = client(slow, Dialect::Chat, &tasks).await;
    let mut response = upstream
        .call("/v1/chat/completions", &[], ask(true))
        .await
        .unwrap();
    assert!(response.chunk().await.unwrap().is_some());
    drop((response, upstream));
    let gone = async {
        while tasks
            .running()
            .iter()
            .any(|(name, _)| *name == "demo-connection")
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone)
        .await
        .unwrap();
}

#[tokio::test]
async fn idle_connections_do_not_hold_up_a_shutdown() {
    let tasks = Tasks::new();
    let upstream = client(quick(), Dialect::Chat, &tasks).await;
    upstream.list_models().await.unwrap();
    tasks.shutdown(Duration::from_secs(60)).await.unwrap();
}

#[test]
fn no_setting_overflows_the_pace() {
    let first = Instant::now();
    for tokens_per_second in [0, 1, u32::MAX] {
        let pace = Pace {
            first,
            tokens_per_second,
        };
        assert!(pace.due(u64::MAX) >= first && pace.due(0) == first);
    }
}
