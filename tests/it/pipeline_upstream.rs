//! A seller that is its own upstream: the model's layers in its process, sold like any other model.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use souk::pipeline::engine::{Engine as _, Head, Load, Precision, Sampler, Span, Stage, sampling};
use souk::pipeline::rows;
use souk::pipeline::tokens::Tokens;
use souk::protocol::stage::WireFormat;
use tempfile::TempDir;

use crate::harness::books;
use crate::harness::http::{self, Request};
use crate::harness::market::{Hold, start_buyer, wait_for_model};
use crate::harness::node::{Home, Node};
use crate::tiny_model::TinyModel;

const NAME: &str = "tiny/random";
/// The books of both sides agree within this on a loaded machine.
pub const BOOKS_DEADLINE: Duration = Duration::from_secs(60);

struct Three {
    _bootstrap: Node,
    seller: Node,
    buyer: Node,
    files: TempDir,
    _hold: Hold,
}

async fn three() -> Three {
    let hold = Hold::shared().await;
    let files = tempfile::tempdir().unwrap();
    TinyModel::default().write(files.path());
    let bootstrap = Node::start(&["bootstrap"]);
    let model = format!("{NAME}={}", files.path().display());
    let seller = Node::start(&[
        "sell",
        "--upstream",
        "pipeline",
        "--model",
        &model,
        "--price-in",
        "1",
        "--price-out",
        "4",
        "--http-port",
        "0",
        "--bootstrap",
        bootstrap.listen(),
    ]);
    let buyer = start_buyer(bootstrap.listen(), &[]);
    wait_for_model(&buyer, NAME).await;
    Three {
        _bootstrap: bootstrap,
        seller,
        buyer,
        files,
        _hold: hold,
    }
}

/// The greedy answer, by engines alone: its text and its number of tokens. Between ranges rows are
/// as they are on the wire; one range has no wire.
pub fn direct(
    path: &Path,
    ranges: &[std::ops::Range<usize>],
    content: &str,
    count: usize,
) -> (String, u64) {
    direct_by(WireFormat::F16, path, ranges, content, count)
}

/// The same where rows travel in this form.
pub fn direct_by(
    wire: WireFormat,
    path: &Path,
    ranges: &[std::ops::Range<usize>],
    content: &str,
    count: usize,
) -> (String, u64) {
    let head = Head::load(path, Precision::Q8).unwrap();
    let positions = head.config().context;
    let engines = ranges.iter().map(|layers| {
        let load = Load {
            path: path.to_owned(),
            layers: layers.clone(),
            precision: Precision::Q8,
            positions_max: positions,
        };
        let mut stage = Stage::load(&load, &mut |_| {}).unwrap();
        let slot = stage.open(positions).unwrap();
        (stage, slot)
    });
    let mut engines: Vec<_> = engines.collect();
    let hidden = head.config().hidden;
    let is_split = ranges.len() > 1;
    let wired = |numbers: Vec<f32>| {
        if !is_split {
            return numbers;
        }
        let bytes = rows::to_bytes(&numbers, hidden, wire);
        rows::from_bytes(&bytes, hidden, wire).unwrap()
    };
    let tokens = Tokens::load(path).unwrap();
    let mut sampler = Sampler::new(sampling::Settings {
        temperature: 0.0,
        top_k: None,
        top_p: 1.0,
        seed: 0,
    });
    let messages = [json!({"role": "user", "content": content})];
    let mut next = tokens.prompt(&messages, None).unwrap();
    let mut text = tokens.detokenizer();
    let (mut pos, mut all, mut chosen) = (0, String::new(), 0);
    while chosen < count {
        let rows = next.len();
        let mut numbers = wired(head.embed(&next).unwrap());
        for (stage, slot) in &mut engines {
            let span = Span {
                slot: *slot,
                pos,
                rows,
            };
            numbers = wired(stage.forward(&[span], numbers).unwrap());
        }
        pos += rows;
        let token = sampler.next(&head.logits(&numbers).unwrap()).unwrap();
        if tokens.is_end(token) {
            break;
        }
        chosen += 1;
        all.push_str(&text.push(token));
        next = vec![token];
    }
    all.push_str(&text.finish());
    (all, chosen as u64)
}

fn ask(content: &str, is_stream: bool) -> Request {
    let body = json!({
        "model": NAME, "messages": [{"role": "user", "content": content}], "max_tokens": 24,
        "temperature": 0, "stream": is_stream, "stream_options": {"include_usage": true},
    });
    Request::post("/v1/chat/completions", &body)
}

/// The text of a stream's events.
pub fn streamed(events: &[String]) -> String {
    let events = events.iter().filter(|event| *event != "[DONE]");
    let values = events.map(|event| serde_json::from_str::<Value>(event).unwrap());
    values
        .filter_map(|value| {
            let text = &value["choices"][0]["delta"]["content"];
            text.as_str().map(str::to_owned)
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_buyer_reads_what_the_model_says_and_both_books_agree() {
    let market = three().await;
    let content = "Why is the sky blue?";
    let (expected, count) = direct(
        market.files.path(),
        std::slice::from_ref(&(0..6)),
        content,
        24,
    );
    let whole = http::send(market.buyer.http(), &ask(content, false)).await;
    assert_eq!(whole.status, 200, "{}", whole.text());
    let body = whole.json();
    assert_eq!(body["choices"][0]["message"]["content"], expected);
    assert_eq!(body["usage"]["completion_tokens"], count);
    // Four streams at once share the engine's batches, and read the same.
    let requests = [content; 4].map(|content| {
        let request = ask(content, true);
        let address = market.buyer.http();
        async move { http::send(address, &request).await }
    });
    for answer in futures::future::join_all(requests).await {
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(answer.complete);
        assert_eq!(streamed(&answer.data()), expected);
    }
    let (buyer, seller) = (market.buyer.home(), market.seller.home());
    let books = books::agreed(&[buyer], &[seller], BOOKS_DEADLINE).await;
    let (bought, sold) = books.unwrap();
    assert_eq!(bought.len(), 5);
    assert_eq!(books::billed(&bought), books::billed(&sold));
    assert!(books::billed(&bought) > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_dialects_and_refusals_reach_the_buyer() {
    let market = three().await;
    let (expected, _) = direct(market.files.path(), std::slice::from_ref(&(0..6)), "Hi", 24);
    let body = json!({
        "model": NAME, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 24,
        "temperature": 0,
    });
    let request = Request::post("/v1/messages", &body);
    let answer = http::send(market.buyer.http(), &request).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["content"][0]["text"], expected);
    let long = json!({
        "model": NAME, "messages": [{"role": "user", "content": "x".repeat(600)}], "max_tokens": 24,
    });
    let answer = http::send(
        market.buyer.http(),
        &Request::post("/v1/chat/completions", &long),
    )
    .await;
    assert_eq!(answer.status, 400, "{}", answer.text());
}

#[test]
fn what_is_no_model_is_told_before_anything_is_sold() {
    let nothing = tempfile::tempdir().unwrap();
    let home = Home::new();
    let path = nothing.path().to_str().unwrap().to_owned();
    let sell = |model: &[&str]| {
        let args = [
            &[
                "sell",
                "--upstream",
                "pipeline",
                "--free",
                "--http-port",
                "0",
            ],
            model,
        ]
        .concat();
        let output = home.run(&args);
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (code, text) = sell(&["--model", &path]);
    assert!(code != Some(0) && text.contains("config.json"), "{text}");
    let (code, text) = sell(&[]);
    assert!(code != Some(0) && text.contains("[ID=]PATH"), "{text}");
}

/// A head that sells the model `name=path` at these prices, USD per million tokens, and orders its
/// layers; `more` has the bootstrap node.
pub fn split_head(
    home: Home,
    (name, path): (&str, &Path),
    prices: (&str, &str),
    more: &[&str],
    env: &[(&str, &str)],
) -> Node {
    let model = format!("{name}={}", path.display());
    let mut args = vec!["sell", "--upstream", "pipeline", "--split"];
    args.extend(["--model", &model, "--http-port", "0"]);
    args.extend(["--price-in", prices.0, "--price-out", prices.1]);
    args.extend(more);
    Node::start_with(home, &args, env)
}

/// A stage at prices in and out, USD per million block-tokens.
pub fn contribute(
    path: &Path,
    range: &std::ops::Range<usize>,
    bootstrap: &Node,
    prices: (&str, &str),
) -> Node {
    let layers = format!("{}..{}", range.start, range.end);
    let path = path.to_str().unwrap();
    let mut args = vec!["contribute", "--model", path, "--layers", &layers];
    args.extend(["--price-in", prices.0, "--price-out", prices.1]);
    args.extend(["--http-port", "0", "--bootstrap", bootstrap.listen()]);
    Node::start(&args)
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_of_three_others_answer_and_everybody_is_paid() {
    let _hold = Hold::shared().await;
    let files = tempfile::tempdir().unwrap();
    TinyModel::default().write(files.path());
    let bootstrap = Node::start(&["bootstrap"]);
    let ranges = [0..2, 2..4, 4..6];
    let stages = ranges
        .clone()
        .map(|range| contribute(files.path(), &range, &bootstrap, ("1", "2")));
    let known = ["--bootstrap", bootstrap.listen()];
    let model = (NAME, files.path());
    let head = split_head(Home::new(), model, ("10", "40"), &known, &[]);
    let buyer = start_buyer(bootstrap.listen(), &[]);
    wait_for_model(&buyer, NAME).await;
    let listed = http::send(buyer.http(), &Request::get(&format!("/v1/models/{NAME}"))).await;
    assert_eq!(listed.json()["split"], true, "buyers are told");
    let content = "Why is the sky blue?";
    let (expected, count) = direct(files.path(), &ranges, content, 24);
    let answer = http::send(buyer.http(), &ask(content, false)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let body = answer.json();
    assert_eq!(body["choices"][0]["message"]["content"], expected);
    assert_eq!(body["usage"]["completion_tokens"], count);
    let answer = http::send(buyer.http(), &ask(content, true)).await;
    assert!(answer.complete);
    assert_eq!(streamed(&answer.data()), expected);
    // Whoever bought and whoever sold say the same of each attempt; the head is both.
    let bought = [buyer.home(), head.home()];
    let mut sold = vec![head.home()];
    sold.extend(stages.iter().map(Node::home));
    let books = books::agreed(&bought, &sold, BOOKS_DEADLINE).await;
    let (bought, _) = books.unwrap();
    let paid = |home: &Home| {
        let rows = bought.values();
        let earned = rows.filter(|row| row.seller == home.peer_id);
        earned.filter_map(|row| row.billed).sum::<u64>()
    };
    assert!(paid(head.home()) > 0);
    for stage in &stages {
        assert!(paid(stage.home()) > 0, "{bought:#?}");
    }
}
