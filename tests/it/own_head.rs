//! A buyer that has a model's two ends: it answers by itself and pays stages for the layers.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use souk::protocol::stage::WireFormat;

use crate::harness::books;
use crate::harness::http::{self, Request, Response};
use crate::harness::market::Hold;
use crate::harness::node::{Home, Node};
use crate::harness::peer::now_ms;
use crate::pipeline_upstream::{BOOKS_DEADLINE, contribute, direct_by, streamed};
use crate::tiny_model::TinyModel;

const NAME: &str = "tiny/own";
const RANGES: [std::ops::Range<usize>; 3] = [0..2, 2..4, 4..6];
const CONTENT: &str = "Why is the sky blue?";

/// Three stages, and a buyer with the model's files.
struct Scene {
    files: tempfile::TempDir,
    buyer: Node,
    stages: Vec<Node>,
    _bootstrap: Node,
    _hold: Hold,
}

impl Scene {
    async fn start(more: &[&str]) -> Self {
        let hold = Hold::shared().await;
        let files = tempfile::tempdir().unwrap();
        TinyModel::default().write(files.path());
        let bootstrap = Node::start(&["bootstrap"]);
        let stages = RANGES.map(|range| contribute(files.path(), &range, &bootstrap, ("1", "2")));
        let model = format!("{NAME}={}", files.path().display());
        let mut args = vec!["buy", "--port", "0", "--pipeline", &model];
        args.extend(["--bootstrap", bootstrap.listen()]);
        args.extend(more);
        let env = [("SOUK_HEAD_WIRE", "f32"), ("TZ", &noon())];
        let buyer = Node::start_with(Home::new(), &args, &env);
        let scene = Self {
            files,
            buyer,
            stages: stages.into(),
            _bootstrap: bootstrap,
            _hold: hold,
        };
        scene.whole().await;
        scene
    }

    /// The model as it is listed, once the buyer has heard of a stage for each of its layers.
    async fn whole(&self) -> Value {
        let end = tokio::time::Instant::now() + BOOKS_DEADLINE;
        let request = Request::get(&format!("/v1/models/{NAME}"));
        loop {
            let listed = self.send(&request).await.json();
            if listed["pricing"]["completion"] == "0.000012" {
                return listed;
            }
            let now = tokio::time::Instant::now();
            assert!(now < end, "not whole: {listed}");
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    }

    async fn send(&self, request: &Request) -> Response {
        http::send(self.buyer.http(), request).await
    }

    fn homes(&self) -> Vec<&Home> {
        self.stages.iter().map(Node::home).collect()
    }
}

/// A time zone in which it is noon: the day of a spending limit does not end while a test spends.
pub fn noon() -> String {
    const HOUR_MS: u64 = 3_600_000;
    let hour = i64::try_from(now_ms() / HOUR_MS % 24).unwrap();
    format!("NOON{}", hour - 12)
}

fn chat(is_stream: bool) -> Request {
    let body = json!({
        "model": NAME, "messages": [{"role": "user", "content": CONTENT}], "max_tokens": 24,
        "temperature": 0, "stream": is_stream, "stream_options": {"include_usage": true},
    });
    Request::post("/v1/chat/completions", &body)
}

/// What the answer says that it cost, micro-USD.
fn cost(usage: &Value) -> u64 {
    let usd = usage["cost"]
        .as_f64()
        .unwrap_or_else(|| panic!("no cost in {usage}"));
    (usd * 1e6).round() as u64
}

/// What a request's layers cost by the buyer's ledger.
fn booked(rows: &books::Rows, answer: &Response) -> u64 {
    let request = answer.header("x-souk-request-id").unwrap();
    let rows = rows.values().filter(|row| row.request == request);
    rows.filter_map(|row| row.billed).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_says_what_the_engines_say_and_the_stages_are_paid_once() {
    let scene = Scene::start(&[]).await;
    let listed = scene.whole().await;
    assert_eq!(
        (&listed["own"], &listed["split"]),
        (&json!(true), &json!(true)),
        "{listed}"
    );
    // Six layers at $1 in and $2 out per million rows.
    assert_eq!(listed["pricing"]["prompt"], "0.000006");
    let all = scene.send(&Request::get("/v1/models")).await.json();
    assert_eq!(all["data"].as_array().unwrap().len(), 1, "{all}");

    let (expected, count) = direct_by(WireFormat::F32, scene.files.path(), &RANGES, CONTENT, 24);
    let whole = scene.send(&chat(false)).await;
    assert_eq!(whole.status, 200, "{}", whole.text());
    let body = whole.json();
    assert_eq!(body["choices"][0]["message"]["content"], expected);
    assert_eq!(body["usage"]["completion_tokens"], count);
    let stream = scene.send(&chat(true)).await;
    assert!(stream.complete, "{}", stream.text());
    assert_eq!(streamed(&stream.data()), expected);
    let last = stream
        .data()
        .iter()
        .rev()
        .find(|data| data.contains("\"usage\""))
        .cloned();
    let last: Value = serde_json::from_str(&last.unwrap()).unwrap();

    let messages = json!({
        "model": NAME, "messages": [{"role": "user", "content": CONTENT}], "max_tokens": 24,
        "temperature": 0,
    });
    let spoken = scene.send(&Request::post("/v1/messages", &messages)).await;
    assert_eq!(spoken.status, 200, "{}", spoken.text());
    assert_eq!(spoken.json()["content"][0]["text"], expected);
    let responses = json!({
        "model": NAME, "input": CONTENT, "max_output_tokens": 24, "temperature": 0,
    });
    let responded = scene
        .send(&Request::post("/v1/responses", &responses))
        .await;
    assert_eq!(responded.status, 200, "{}", responded.text());
    assert_eq!(
        responded.json()["output"][0]["content"][0]["text"],
        expected
    );

    // Nobody sold anything but layers, and each micro-USD stands once in each ledger.
    let buyer = scene.buyer.home();
    let books = books::agreed(&[buyer], &scene.homes(), BOOKS_DEADLINE).await;
    let (bought, sold) = books.unwrap();
    assert_eq!(books::billed(&bought), books::billed(&sold));
    for (answer, usage) in [(&whole, &body["usage"]), (&stream, &last["usage"])] {
        assert_eq!(cost(usage), booked(&bought, answer), "{bought:#?}");
        assert!(cost(usage) > 0);
    }
    let shown = buyer.ledger(&["requests", "--json", "--limit", "1000"]);
    let asked = shown.as_array().unwrap().iter();
    let asked = asked.filter(|row| row["model_asked"] == NAME);
    // Four requests through three stages; the checks of the stages are nobody's. A stage that a loaded
    // machine kept from answering a ping may serve the same request twice.
    let asked = asked.map(|row| (row["request_id"].to_string(), row["seller"].to_string()));
    let asked: BTreeSet<_> = asked.collect();
    assert_eq!(asked.len(), 12, "{shown:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_stops_it() {
    const DAILY: u64 = 6_000;
    let scene = Scene::start(&["--budget-daily", "0.006"]).await;
    let mut answered = 0;
    let refused = loop {
        let answer = scene.send(&chat(false)).await;
        if answer.status != 200 {
            break answer;
        }
        answered += 1;
        assert!(answered < 40, "never refused");
    };
    assert!(answered > 0, "{}", refused.text());
    assert_eq!(refused.status, 429, "{}", refused.text());
    let error = refused.json()["error"].clone();
    assert_eq!(error["code"], "budget_exceeded");
    let said = error["message"].as_str().unwrap();
    assert!(said.contains("daily spending limit reached"), "{said}");
    assert!(refused.header("retry-after").is_some());
    let books = books::agreed(&[scene.buyer.home()], &scene.homes(), BOOKS_DEADLINE).await;
    let (bought, _) = books.unwrap();
    assert!(
        books::billed(&bought) <= DAILY,
        "{}",
        books::billed(&bought)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_answered_is_refused_in_words() {
    let mut scene = Scene::start(&[]).await;
    let embed = Request::post("/v1/embeddings", &json!({"model": NAME, "input": "x"}));
    let answer = scene.send(&embed).await;
    assert_eq!(answer.status, 400, "{}", answer.text());
    let long = json!({
        "model": NAME, "max_tokens": 24, "messages": [{"role": "user", "content": "x".repeat(600)}],
    });
    let answer = scene
        .send(&Request::post("/v1/chat/completions", &long))
        .await;
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert_eq!(answer.json()["error"]["code"], "context_length_exceeded");
    // A word of its own for the request's most: 23 rows of a prompt cost more than this.
    let capped = chat(false).header("x-souk-max-cost-usd", "0.00001");
    let answer = scene.send(&capped).await;
    assert_eq!(answer.status, 429, "{}", answer.text());
    assert!(
        answer.text().contains("x-souk-max-cost-usd"),
        "{}",
        answer.text()
    );
    scene.stages.truncate(2);
    let end = tokio::time::Instant::now() + std::time::Duration::from_secs(90);
    loop {
        let answer = scene.send(&chat(false)).await;
        if answer.status == 503 {
            assert!(answer.text().contains("layers from 4 on") || answer.text().contains("stage"));
            break;
        }
        assert!(tokio::time::Instant::now() < end, "{}", answer.text());
    }
}
