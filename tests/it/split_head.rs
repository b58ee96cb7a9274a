//! A head that sells a model and buys its layers: from whom, for how much, in which form.

use std::ops::Range;
use std::path::Path;

use serde_json::{Value, json};
use souk::protocol::stage::WireFormat;

use crate::harness::books;
use crate::harness::http::{self, Request, Response};
use crate::harness::market::{Dialect, Hold, MODEL, PRICES, Seller, start_buyer, wait_for_model};
use crate::harness::node::{Home, Node};
use crate::harness::upstream::Script;
use crate::own_head::noon;
use crate::pipeline_upstream::{BOOKS_DEADLINE, contribute, direct_by, split_head, streamed};
use crate::tiny_model::TinyModel;

const NAME: &str = "tiny/split";
const RANGES: [Range<usize>; 2] = [0..3, 3..6];
const CONTENT: &str = "Why is the sky blue?";
/// Exact: what is sold does not depend on how rows are rounded.
const EXACT: (&str, &str) = ("SOUK_HEAD_WIRE", "f32");

struct Scene {
    files: tempfile::TempDir,
    bootstrap: Node,
    _hold: Hold,
}

impl Scene {
    async fn start() -> Self {
        Self::of(TinyModel::default()).await
    }

    async fn of(model: TinyModel) -> Self {
        let hold = Hold::shared().await;
        let files = tempfile::tempdir().unwrap();
        model.write(files.path());
        Self {
            files,
            bootstrap: Node::start(&["bootstrap"]),
            _hold: hold,
        }
    }

    fn path(&self) -> &Path {
        self.files.path()
    }

    fn stages(&self, prices: (&str, &str)) -> Vec<Node> {
        let start = |range| contribute(self.path(), &range, &self.bootstrap, prices);
        RANGES.map(start).into()
    }

    /// A head at these prices, USD per million tokens.
    fn head(&self, home: Home, prices: (&str, &str), more: &[&str], env: &[(&str, &str)]) -> Node {
        let more = [&["--bootstrap", self.bootstrap.listen()], more].concat();
        split_head(home, (NAME, self.path()), prices, &more, env)
    }

    async fn buyer(&self, head: &Node) -> Node {
        let flags = ["--seller", head.peer_id(), "--allow", head.peer_id()];
        let buyer = start_buyer(self.bootstrap.listen(), &flags);
        wait_for_model(&buyer, NAME).await;
        buyer
    }
}

async fn ask(buyer: &Node) -> Response {
    ask_for(buyer, CONTENT).await
}

async fn ask_for(buyer: &Node, content: &str) -> Response {
    let body = json!({
        "model": NAME, "messages": [{"role": "user", "content": content}], "max_tokens": 24,
        "temperature": 0,
    });
    // The tiny model has a token for each byte: a longer body lets its price be estimated high enough.
    let body = format!("{body:#}{}", " ".repeat(200)).into_bytes();
    let request = Request::post_bytes("/v1/chat/completions", body);
    let end = tokio::time::Instant::now() + BOOKS_DEADLINE;
    loop {
        let answer = http::send(buyer.http(), &request).await;
        // Other heads sell the model too, and this buyer's may not be heard of yet.
        let is_early = answer.status == 503 && answer.text().contains("not allowed");
        if !is_early || tokio::time::Instant::now() > end {
            return answer;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

fn text(answer: &Response) -> Value {
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["choices"][0]["message"]["content"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_pays_no_more_than_it_sells_for_unless_it_is_told() {
    let scene = Scene::start().await;
    // Six layers: $6 in and $12 out per million tokens.
    let stages = scene.stages(("1", "2"));
    let cheap = scene.head(Home::new(), ("7", "11"), &[], &[EXACT]);
    let buyer = scene.buyer(&cheap).await;
    let refused = ask(&buyer).await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(
        refused.text().contains("what the model is sold for"),
        "{}",
        refused.text()
    );
    let homes: Vec<&Home> = stages.iter().map(Node::home).collect();
    for home in &homes {
        assert_eq!(books::billed(&books::rows(home)), 0);
    }
    let even = scene.head(Home::new(), ("6", "12"), &[], &[EXACT]);
    let (expected, _) = direct_by(WireFormat::F32, scene.path(), &RANGES, CONTENT, 24);
    assert_eq!(text(&ask(&scene.buyer(&even).await).await), expected);
    let told = ("SOUK_HEAD_AT_A_LOSS", "true");
    let told = scene.head(Home::new(), ("1", "1"), &[], &[EXACT, told]);
    assert_eq!(text(&ask(&scene.buyer(&told).await).await), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daily_limit_ends_what_it_pays_for_layers() {
    const DAILY: u64 = 3_000;
    let scene = Scene::start().await;
    let stages = scene.stages(("1", "2"));
    let limit = ("SOUK_HEAD_DAILY", "0.003");
    let env = [EXACT, limit, ("TZ", &noon())];
    let head = scene.head(Home::new(), ("20", "40"), &[], &env);
    let buyer = scene.buyer(&head).await;
    let mut answered = 0;
    let refused = loop {
        let answer = ask(&buyer).await;
        if answer.status != 200 {
            break answer;
        }
        answered += 1;
        assert!(answered < 40, "never refused");
    };
    assert!(answered > 0, "{}", refused.text());
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(
        refused.text().contains("spending limit"),
        "{}",
        refused.text()
    );
    let homes: Vec<&Home> = stages.iter().map(Node::home).collect();
    let all = [&homes[..], &[head.home()]].concat();
    let books = books::agreed(&[head.home(), buyer.home()], &all, BOOKS_DEADLINE).await;
    let (bought, _) = books.unwrap();
    let rows = bought
        .values()
        .filter(|row| row.buyer == head.home().peer_id);
    let paid: u64 = rows.filter_map(|row| row.billed).sum();
    assert!(0 < paid && paid <= DAILY, "{paid}");
}

#[tokio::test(flavor = "multi_thread")]
async fn among_friends_a_cheaper_stranger_is_not_used() {
    let scene = Scene::start().await;
    let home = Home::new();
    let path = scene.path().to_str().unwrap();
    let friends = RANGES.map(|range| {
        let layers = format!("{}..{}", range.start, range.end);
        let mut args = vec!["contribute", "--model", path, "--layers", &layers];
        // Free for the head, and for nobody else.
        args.extend(["--free", "--allow", &home.peer_id]);
        args.extend(["--http-port", "0", "--bootstrap", scene.bootstrap.listen()]);
        Node::start(&args)
    });
    // One hop instead of two, and free as well.
    let mut args = vec!["contribute", "--model", path, "--layers", "0..6", "--free"];
    args.extend(["--http-port", "0", "--bootstrap", scene.bootstrap.listen()]);
    let stranger = Node::start(&args);
    let allowed = friends.each_ref().map(|one| one.peer_id().to_owned());
    let more = ["--stage", &allowed[0], "--stage", &allowed[1]];
    let head = scene.head(home, ("1", "1"), &more, &[EXACT]);
    let buyer = scene.buyer(&head).await;
    let (expected, _) = direct_by(WireFormat::F32, scene.path(), &RANGES, CONTENT, 24);
    assert_eq!(text(&ask(&buyer).await), expected);
    assert!(books::rows(stranger.home()).is_empty());
    for friend in &friends {
        let rows = books::rows(friend.home());
        assert!(!rows.is_empty());
        assert_eq!(books::billed(&rows), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_travel_as_eight_bits_when_they_are_asked_for() {
    // A buyer refuses broken characters, whatever numbers they come of.
    let legible = TinyModel {
        is_legible: true,
        ..TinyModel::default()
    };
    let scene = Scene::of(legible).await;
    let _stages = scene.stages(("1", "2"));
    let head = scene.head(Home::new(), ("20", "40"), &["--wire", "int8"], &[]);
    let buyer = scene.buyer(&head).await;
    // One of these says something else where rows are rounded otherwise.
    let say = |wire, content| direct_by(wire, scene.path(), &RANGES, content, 24).0;
    let contents = [
        "Why?", "How?", "When?", "Where?", "Who?", "What?", "Which?", "Whose?",
    ];
    let telling = contents.into_iter().find_map(|content| {
        let (eight, sixteen) = (WireFormat::Int8, WireFormat::F16);
        let said = say(eight, content);
        (said != say(sixteen, content)).then_some((content, said))
    });
    let (content, said) = telling.expect("a sentence that tells the forms apart");
    assert_eq!(text(&ask_for(&buyer, content).await), said);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process_sells_a_split_model_and_buys_elsewhere() {
    let scene = Scene::start().await;
    let stages = scene.stages(("1", "2"));
    let bootstrap = scene.bootstrap.listen();
    let other = Seller::start(bootstrap, Dialect::Chat, PRICES[0], Script::default()).await;
    let model = format!("{NAME}={}", scene.path().display());
    let own = format!("tiny/mine={}", scene.path().display());
    let mut args = vec![
        "run",
        "--sell",
        "--buy",
        "--upstream",
        "pipeline",
        "--split",
    ];
    args.extend(["--model", &model, "--price-in", "20", "--price-out", "40"]);
    args.extend(["--pipeline", &own, "--port", "0", "--http-port", "0"]);
    args.extend(["--bootstrap", bootstrap]);
    let both = Node::start_with(Home::new(), &args, &[EXACT]);
    let (expected, _) = direct_by(WireFormat::F32, scene.path(), &RANGES, CONTENT, 24);
    // It sells,
    let buyer = scene.buyer(&both).await;
    assert_eq!(text(&ask(&buyer).await), expected);
    // buys an ordinary answer,
    wait_for_model(&both, MODEL).await;
    let bought = http::send(both.http(), &Dialect::Chat.request("Hi", false)).await;
    assert_eq!(bought.status, 200, "{}", bought.text());
    // and layers for itself, over the channels that it pays its stages by.
    let body = json!({
        "model": "tiny/mine", "messages": [{"role": "user", "content": CONTENT}],
        "max_tokens": 24, "temperature": 0,
    });
    let request = Request::post("/v1/chat/completions", &body);
    assert_eq!(text(&http::send(both.http(), &request).await), expected);
    let payers = [buyer.home(), both.home()];
    let mut sellers = vec![both.home(), other.node.home()];
    sellers.extend(stages.iter().map(Node::home));
    let books = books::agreed(&payers, &sellers, BOOKS_DEADLINE).await;
    let (bought, sold) = books.unwrap();
    assert_eq!(books::billed(&bought), books::billed(&sold));
    for seller in sellers {
        let rows = bought.values().filter(|row| row.seller == seller.peer_id);
        assert!(rows.filter_map(|row| row.billed).sum::<u64>() > 0);
    }
    books::verify(both.home()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_stage_is_replaced_at_its_price_where_nothing_is_left_to_spare() {
    const LONG: usize = 300;
    let scene = Scene::start().await;
    let mut stages = scene.stages(("1", "2"));
    stages.push(contribute(
        scene.path(),
        &RANGES[1],
        &scene.bootstrap,
        ("1", "2"),
    ));
    // Exactly what the six layers cost: two stages for one place would be too dear.
    let head = scene.head(Home::new(), ("6", "12"), &[], &[EXACT]);
    let buyer = scene.buyer(&head).await;
    let mut contents = ["Why?", "How?", "When?", "Where?", "Who?", "What?"].into_iter();
    let long = contents.find_map(|content| {
        let (text, count) = direct_by(WireFormat::F32, scene.path(), &RANGES, content, LONG);
        (count > 200).then_some((content, text))
    });
    let (content, expected) = long.expect("a long sentence");
    let body = json!({
        "model": NAME, "messages": [{"role": "user", "content": content}], "max_tokens": LONG,
        "temperature": 0, "stream": true,
    });
    let body = format!("{body:#}{}", " ".repeat(200)).into_bytes();
    let request = Request::post_bytes("/v1/chat/completions", body);
    let end = tokio::time::Instant::now() + BOOKS_DEADLINE;
    let (running, serving) = loop {
        let mut running = http::open(buyer.http(), &request).await.unwrap();
        running.until("\"content\":\"").await;
        if let Some(serving) = serving(&stages[1..]).await {
            break (running, serving + 1);
        }
        // It was over before anybody looked.
        running.finish().await;
        assert!(tokio::time::Instant::now() < end, "nobody is seen to serve");
    };
    stages[serving].kill();
    let answer = running.finish().await;
    assert!(answer.complete, "{}", answer.text());
    assert_eq!(streamed(&answer.data()), expected, "{}", head.stderr_tail());
}

/// Which of these has a session, once just one has: the other may be under its check. None when none has.
async fn serving(stages: &[Node]) -> Option<usize> {
    loop {
        let mut busy = vec![];
        for (at, stage) in stages.iter().enumerate() {
            let status = http::send(stage.http(), &Request::get("/api/status")).await;
            if status.json()["layers"]["sessions"].as_u64() > Some(0) {
                busy.push(at);
            }
        }
        match busy.as_slice() {
            [] => return None,
            [one] => return Some(*one),
            _ => {}
        }
    }
}
