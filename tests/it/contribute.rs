//! `node contribute`: layers on offer, what others see of them, and who may order them.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use souk::protocol::offer::STAGE_PATH;
use souk::protocol::stage::{StageOpen, StageSession, WireFormat};
use souk::types::PeerId;

use crate::harness::http::{self, Request, Response};
use crate::harness::market::{Hold, start_buyer};
use crate::harness::node::{Home, Node};
use crate::harness::peer::{PATIENCE, Peer};
use crate::pipeline_upstream::direct;
use crate::tiny_model::TinyModel;

/// Layers of the tiny model.
const LAYERS: u64 = 6;

/// A model on disk and a network without sellers.
struct Scene {
    folder: tempfile::TempDir,
    bootstrap: Node,
    _hold: Hold,
}

impl Scene {
    async fn start() -> Self {
        Self::of(&TinyModel::default()).await
    }

    async fn of(model: &TinyModel) -> Self {
        let hold = Hold::shared().await;
        let folder = tempfile::tempdir().unwrap();
        model.write(folder.path());
        Self {
            folder,
            bootstrap: Node::start(&["bootstrap"]),
            _hold: hold,
        }
    }

    fn contribute(&self, layers: &str, more: &[&str]) -> Node {
        self.contribute_with(layers, more, &[])
    }

    fn contribute_with(&self, layers: &str, more: &[&str], env: &[(&str, &str)]) -> Node {
        let path = self.folder.path().to_str().unwrap();
        let mut args = vec!["contribute", "--model", path, "--layers", layers];
        args.extend(["--http-port", "0", "--bootstrap", self.bootstrap.listen()]);
        args.extend(more);
        Node::start_with(Home::new(), &args, env)
    }

    /// One that finds its place by itself, and finds it there. It looks for a while only before it
    /// chooses: on a busy machine it may hear too late of the others, and then comes once more.
    async fn contribute_at(&self, place: Range<u64>, more: &[&str], env: &[(&str, &str)]) -> Node {
        let end = tokio::time::Instant::now() + PATIENCE;
        loop {
            let mut node = self.contribute_with("auto", more, env);
            let (_, found) = layers(&node).await;
            if found == place {
                return node;
            }
            assert!(tokio::time::Instant::now() < end, "{}", node.stderr_tail());
            node.terminate();
        }
    }

    /// A buyer that has the model's ends, as `tiny`, and buys its layers.
    fn head(&self) -> Node {
        let model = format!("tiny={}", self.folder.path().display());
        start_buyer(self.bootstrap.listen(), &["--pipeline", &model])
    }
}

async fn get(node: &Node, path: &str) -> Value {
    http::send(node.http(), &Request::get(path)).await.json()
}

/// What the buyer sees of the one model's stages, once `is_so` holds.
async fn pipeline(buyer: &Node, is_so: impl Fn(&Value) -> bool) -> Value {
    // What is few is asked for again every ten seconds.
    let end = tokio::time::Instant::now() + PATIENCE * 2;
    loop {
        let report = get(buyer, "/api/pipelines").await;
        let one = report["pipelines"][0].clone();
        if is_so(&one) {
            assert!(report["privacy"].as_str().unwrap().contains("rebuilt"));
            assert_eq!(report["pipelines"].as_array().unwrap().len(), 1);
            return one;
        }
        assert!(tokio::time::Instant::now() < end, "{report}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_of_two_peers_make_a_way_that_only_heads_use() {
    let scene = Scene::start().await;
    let first = scene.contribute("0..2", &["--price-in", "0.01", "--price-out", "0.02"]);
    let buyer = start_buyer(scene.bootstrap.listen(), &[]);
    let status = get(&first, "/api/status").await;
    assert_eq!(status["role"], "contribute");
    assert_eq!(
        (&status["layers"]["first"], &status["layers"]["end"]),
        (&0.into(), &2.into())
    );
    assert_eq!(status["layers"]["of"], LAYERS);
    assert!(status["layers"]["rows_per_second"].as_u64().unwrap() > 0);

    let part = pipeline(&buyer, |one| one["covered"] == 2).await;
    assert_eq!(
        (&part["whole"], &part["hops"]),
        (&false.into(), &Value::Null)
    );
    let _second = scene.contribute("2..6", &["--price-in", "0.01", "--price-out", "0.02"]);
    let whole = pipeline(&buyer, |one| one["whole"] == true).await;
    assert_eq!((&whole["hops"], &whole["stages"]), (&2.into(), &2.into()));
    // Six layers at $0.02 a million rows each.
    assert_eq!(whole["price_out_micro_usd"], 120_000);
    assert!(whole["milli_tokens_per_second"].as_u64().unwrap() > 0);

    // Nobody is offered them as a model.
    let listed = get(&buyer, "/v1/models").await;
    assert_eq!(listed["data"].as_array().unwrap().len(), 0, "{listed}");
    let name = whole["stage_model"].as_str().unwrap();
    let body = serde_json::json!({"model": name, "messages": [{"role": "user", "content": "Hi"}]});
    let answer = http::send(buyer.http(), &Request::post("/v1/chat/completions", &body)).await;
    assert_eq!(answer.status, 404, "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_joiner_takes_what_the_others_leave_open() {
    let scene = Scene::start().await;
    let _first = scene.contribute("2..6", &[]);
    let joiner = scene.contribute("auto", &[]);
    let layers = get(&joiner, "/api/status").await["layers"].clone();
    // It has memory for all of them, and one hop is less than two.
    assert_eq!((&layers["first"], &layers["end"]), (&0.into(), &6.into()));
    assert!(
        layers["price_out_micro_usd"].as_u64().unwrap() > 0,
        "{layers}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_stage_refuses_strangers() {
    let scene = Scene::start().await;
    let (friend, stranger) = (Peer::start(), Peer::start());
    let allowed = friend.id().to_string();
    let stage = scene.contribute("0..6", &["--free", "--allow", &allowed]);
    let mut refusals = Vec::new();
    for peer in [&stranger, &friend] {
        let to: PeerId = peer.dial(stage.listen()).await;
        let offer = peer.offer_of(&to).await;
        assert!(offer.offer.price.is_free());
        let standing = peer.session(&to, None).await;
        let mut head = peer.head(&offer, standing.channel, b"no order");
        STAGE_PATH.clone_into(&mut head.path);
        let answer = peer.ask(&to, &peer.sign(head).bytes, b"no order").await;
        refusals.push(answer.error);
    }
    assert_eq!(refusals, [Some("not_allowed"), Some("malformed")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_sessions_are_taken_while_others_use_the_machine() {
    let scene = Scene::start().await;
    // All that others do is too much, and this test does something.
    let busy = ("SOUK_CONTRIBUTE_LOAD_MAX", "0.01%");
    let stage = scene.contribute_with("0..6", &["--free"], &[busy]);
    // What nobody can use is never too much.
    let calm = ("SOUK_CONTRIBUTE_LOAD_MAX", "100%");
    let calm = scene.contribute_with("0..6", &["--free"], &[calm]);
    let is_over = Arc::new(AtomicBool::new(false));
    let spinning = Arc::clone(&is_over);
    let spinner = std::thread::spawn(move || {
        while !spinning.load(Ordering::Relaxed) {
            std::hint::spin_loop();
        }
    });
    let end = tokio::time::Instant::now() + PATIENCE * 4;
    let shown = loop {
        let (layers, _) = layers(&stage).await;
        if layers["paused"] == true {
            break layers;
        }
        assert!(tokio::time::Instant::now() < end, "{layers}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(shown["load_bp"].as_u64() > Some(0), "{shown}");
    let peer = Peer::start();
    let to: PeerId = peer.dial(stage.listen()).await;
    let offer = peer.offer_of(&to).await;
    let terms = offer.offer.stage.unwrap();
    let open = StageOpen {
        session: StageSession([7; 16]),
        manifest: terms.manifest,
        first: terms.first,
        end: terms.end,
        positions_max: 16,
        wire: WireFormat::F16,
    };
    let body = open.to_bytes();
    let standing = peer.session(&to, None).await;
    let mut head = peer.head(&offer, standing.channel, &body);
    STAGE_PATH.clone_into(&mut head.path);
    let answer = peer.ask(&to, &peer.sign(head).bytes, &body).await;
    assert_eq!(answer.error, Some("overloaded"));
    assert_eq!(layers(&calm).await.0["paused"], false);
    is_over.store(true, Ordering::Relaxed);
    spinner.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_contributed_is_said_before_anything_starts() {
    let scene = Scene::start().await;
    let path = scene.folder.path().to_str().unwrap();
    for (model, layers, word) in [
        ("/nonexistent/model", "auto", "/nonexistent/model"),
        (path, "0..99", "the model has 6"),
        (path, "5..5", "no range of layers"),
    ] {
        let args = [
            "contribute",
            "--model",
            model,
            "--layers",
            layers,
            "--http-port",
            "0",
        ];
        let run = Home::new().run(&args);
        let said = String::from_utf8_lossy(&run.stderr);
        assert_eq!(run.status.code(), Some(64), "{said}");
        assert!(said.contains(word), "{said}");
    }
}

/// Takes a node off the market; what runs there goes on, and then it ends.
async fn drain(node: &Node) {
    let run = std::fs::read(node.home().path().join("run.json")).unwrap();
    let run: Value = serde_json::from_slice(&run).unwrap();
    let token = run["token"].as_str().unwrap();
    let request = Request::post("/api/drain", &serde_json::json!({}));
    let request = request.header("authorization", &format!("Bearer {token}"));
    let answer = http::send(node.http(), &request).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// The layers that a node says it has.
async fn layers(node: &Node) -> (Value, Range<u64>) {
    let layers = get(node, "/api/status").await["layers"].clone();
    let number = |name: &str| layers[name].as_u64().unwrap_or_default();
    let range = number("first")..number("end");
    (layers, range)
}

fn sentence(answer: &Response) -> String {
    let events = answer.data();
    let events = events.iter().filter(|event| *event != "[DONE]");
    let values = events.map(|event| serde_json::from_str::<Value>(event).unwrap());
    let texts = values.filter_map(|value| {
        let text = &value["choices"][0]["delta"]["content"];
        text.as_str().map(str::to_owned)
    });
    texts.collect()
}

fn ask(content: &str, count: usize) -> Request {
    let body = serde_json::json!({
        "model": "tiny", "messages": [{"role": "user", "content": content}], "stream": true,
        "max_tokens": count, "temperature": 0,
    });
    Request::post("/v1/chat/completions", &body)
}

#[tokio::test(flavor = "multi_thread")]
async fn those_that_stay_make_the_model_whole_again_when_one_has_left() {
    // Several seconds where nothing else runs: so long this model goes on about anything.
    const LONG: usize = 800;
    let model = TinyModel {
        context: 2_048,
        is_legible: true,
        ..TinyModel::default()
    };
    let scene = Scene::of(&model).await;
    let path = scene.folder.path().to_owned();
    let leaving = scene.contribute("2..6", &["--price-in", "1", "--price-out", "1"]);
    // Two that may move have room for three layers, so one of them alone cannot take the place.
    let moving = [
        ("CONTRIBUTE_LAYERS_MAX", "3"),
        ("CONTRIBUTE_LOOK_EVERY", "50ms"),
    ];
    let moving = moving.map(|(key, value)| (format!("SOUK_{key}"), value));
    let pause = ("SOUK_CONTRIBUTE_MOVE_PAUSE".to_owned(), "1s");
    let env: Vec<(&str, &str)> = moving
        .iter()
        .chain([&pause])
        .map(|(key, value)| (key.as_str(), *value))
        .collect();
    let cheap = ["--price-in", "1", "--price-out", "1"];
    let first = scene.contribute_at(0..2, &cheap, &env).await;
    let moving = [first, scene.contribute_at(0..2, &cheap, &env).await];
    // Dear, and it stays.
    let _staying = scene.contribute("0..2", &["--price-in", "50", "--price-out", "50"]);
    let head = scene.head();
    let content = "Why?";
    let (expected, _) = direct(&path, &[0..2, 2..6], content, LONG);
    let mut running = http::open(head.http(), &ask(content, LONG)).await.unwrap();
    running.until("\"content\":\"").await;
    drain(&leaving).await;
    let drained = tokio::time::Instant::now();
    let watched = async {
        // One of the two has the sentence; it is seen to wait for its end.
        let end = tokio::time::Instant::now() + PATIENCE * 4;
        loop {
            for node in &moving {
                let (layers, range) = layers(node).await;
                if layers["draining"] == true && layers["sessions"].as_u64() > Some(0) {
                    assert_eq!(range, 0..2);
                    println!("seen to drain after {:?}", drained.elapsed());
                    return true;
                }
            }
            if tokio::time::Instant::now() > end {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let (was_seen, answer) = tokio::join!(watched, running.finish());
    println!("the sentence ended after {:?}", drained.elapsed());
    assert!(was_seen, "nobody drained while the sentence ran");
    assert!(answer.complete, "{}", answer.text());
    assert_eq!(sentence(&answer), expected);

    let end = tokio::time::Instant::now() + PATIENCE * 4;
    loop {
        let mut ranges = Vec::new();
        for node in &moving {
            ranges.push(layers(node).await.1);
        }
        ranges.sort_by_key(|range| range.start);
        if ranges == [2..4, 4..6] {
            break;
        }
        assert!(tokio::time::Instant::now() < end, "{ranges:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (expected, _) = direct(&path, &[0..2, 2..4, 4..6], content, 24);
    let end = tokio::time::Instant::now() + PATIENCE * 4;
    loop {
        let answer = http::send(head.http(), &ask(content, 24)).await;
        if answer.status == 200 {
            assert_eq!(sentence(&answer), expected, "{}", head.stderr_tail());
            break;
        }
        assert!(tokio::time::Instant::now() < end, "{}", answer.text());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_that_died_is_made_up_for_as_well() {
    let scene = Scene::start().await;
    let mut dying = scene.contribute("3..6", &[]);
    let env = [
        ("SOUK_CONTRIBUTE_LAYERS_MAX", "3"),
        ("SOUK_CONTRIBUTE_LOOK_EVERY", "200ms"),
        ("SOUK_CONTRIBUTE_MOVE_PAUSE", "1s"),
    ];
    let moving = scene.contribute_at(0..3, &[], &env).await;
    let _staying = scene.contribute("0..3", &[]);
    dying.kill();
    // It says nothing of its end: the others must find out that nobody is there.
    let started = tokio::time::Instant::now();
    let end = started + PATIENCE * 4;
    loop {
        let (shown, range) = layers(&moving).await;
        if range == (3..6) {
            break;
        }
        assert!(tokio::time::Instant::now() < end, "{shown}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("made up for after {:?}", started.elapsed());
    let buyer = start_buyer(scene.bootstrap.listen(), &[]);
    pipeline(&buyer, |one| one["whole"] == true).await;
}
