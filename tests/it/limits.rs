//! What a seller lets itself be asked, by whom, and how it leaves the market.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::books;
use crate::harness::clock;
use crate::harness::http::{self, Request, Response};
use crate::harness::market::{self, Dialect, Hold, PATIENCE, PRICES, Seller, UPSTREAM_KEY};
use crate::harness::node::{Home, Node};
use crate::harness::peer::{Peer, chat_body};
use crate::harness::upstream::script::Gate;
use crate::harness::upstream::{ListShape, ModelEntry, Script, Upstream};

/// Sellers with configs of their own, cheapest first, and a buyer that prefers cheap ones.
struct Market {
    _bootstrap: Node,
    sellers: Vec<Seller>,
    buyer: Node,
    _hold: Hold,
}

impl Market {
    async fn start(configs: &[&dyn Fn(&Home) -> String], script: Script) -> Self {
        let hold = Hold::shared().await;
        let bootstrap = Node::start(&["bootstrap"]);
        let buyer = Home::new();
        let mut sellers = vec![];
        for (config, prices) in configs.iter().zip(PRICES) {
            let home = Home::new();
            let file = home.path().join("config.toml");
            std::fs::write(&file, config(&buyer)).unwrap();
            let upstream = Upstream::start(script.clone().key(UPSTREAM_KEY)).await;
            let more = ["--config".to_owned(), file.to_str().unwrap().to_owned()];
            let more: Vec<&str> = more.iter().map(String::as_str).collect();
            let node = Seller::node_at(home, bootstrap.listen(), &upstream, prices, &more);
            sellers.push(Seller { node, upstream });
        }
        let args = ["buy", "--port", "0", "--prefer", "cheap", "--bootstrap"];
        let args = [args.as_slice(), &[bootstrap.listen()]].concat();
        let buyer = market::start_patient(buyer, &args);
        market::wait_for_sellers(&buyer, sellers.len()).await;
        Self {
            _bootstrap: bootstrap,
            sellers,
            buyer,
            _hold: hold,
        }
    }

    async fn ask(&self, prompt: &str) -> Response {
        let request = Dialect::Chat.request(prompt, false);
        http::send(self.buyer.http(), &request).await
    }

    fn of(&self, answer: &Response) -> usize {
        let peer = answer.header("x-souk-seller").unwrap();
        let mut sellers = self.sellers.iter();
        sellers.position(|s| s.node.peer_id() == peer).unwrap()
    }
}

async fn status(node: &Node) -> Value {
    http::send(node.http(), &Request::get("/api/status"))
        .await
        .json()
}

fn nothing(_: &Home) -> String {
    String::new()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_sends_buyers_elsewhere_and_then_says_when_to_come_back() {
    let limited = |_: &Home| "[sell.limits]\nbuyer_requests_per_minute = 3\n".to_owned();
    // Three at once, and one more every twenty seconds: a slow machine is given these too.
    let most = |begun: Instant| 3 + begun.elapsed().as_secs() / 20;
    let market = Market::start(&[&limited, &nothing], Script::default()).await;
    let begun = Instant::now();
    let mut served = [0, 0];
    for n in 0..8 {
        let answer = market.ask(&format!("{n}")).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        served[market.of(&answer)] += 1;
    }
    let most_served = most(begun);
    assert!(served[0] <= most_served, "{served:?} of {most_served}");
    drop(market);

    let market = Market::start(&[&limited], Script::default()).await;
    let begun = Instant::now();
    let mut served = 0;
    let last = loop {
        let answer = market.ask(&format!("{served}")).await;
        if answer.status != 200 {
            break answer;
        }
        served += 1;
        let most_served = most(begun);
        assert!(served <= most_served, "{served} of {most_served}");
    };
    assert!(served >= 3, "{served}");
    assert_eq!(last.status, 429, "{}", last.text());
    assert_eq!(last.json()["error"]["code"], "rate_limited");
    let wait: u64 = last.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=20).contains(&wait), "{wait}");
    let status = status(&market.sellers[0].node).await;
    assert!(
        status["refused_by"]["rate_limited"].as_u64().unwrap() >= 1,
        "{status}"
    );
    assert_eq!(status["served"], served, "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_buyer_is_served_by_others_and_no_fault_is_found() {
    let denies = |buyer: &Home| format!("[sell]\ndeny = [\"{}\"]\n", buyer.peer_id);
    let market = Market::start(&[&denies, &nothing], Script::default()).await;
    for n in 0..4 {
        let answer = market.ask(&format!("{n}")).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(market.of(&answer), 1);
    }
    assert!(market.sellers[0].upstream.exchanges().is_empty());
    let refused = &status(&market.sellers[0].node).await["refused_by"];
    assert!(refused["not_allowed"].as_u64().unwrap() >= 1, "{refused}");
    let sellers = http::send(market.buyer.http(), &Request::get("/api/sellers"))
        .await
        .json();
    for seller in sellers["sellers"].as_array().unwrap() {
        assert!(seller["quality"].as_f64().unwrap_or(1.0) > 0.5, "{seller}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daily_quota_outlives_the_sellers_restart() {
    clock::day_lasts().await;
    let quota = |_: &Home| "[sell.limits]\nbuyer_tokens_daily = 60\n".to_owned();
    let mut market = Market::start(&[&quota], Script::default()).await;
    let mut good = 0;
    for n in 0..12 {
        good += usize::from(market.ask(&format!("{n}")).await.status == 200);
    }
    assert!((1..12).contains(&good), "{good}");
    let refused = &status(&market.sellers[0].node).await["refused_by"];
    assert!(refused["quota_used_up"].as_u64().unwrap() >= 1, "{refused}");
    let seller = &mut market.sellers[0].node;
    seller.keep_ports();
    seller.terminate();
    seller.restart();
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        let answer = market.ask("again").await;
        assert_ne!(answer.status, 200, "{}", answer.text());
        let refused = status(&market.sellers[0].node).await;
        if refused["refused_by"]["quota_used_up"].as_u64() >= Some(1) {
            break;
        }
        assert!(tokio::time::Instant::now() < end, "{refused}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seller_that_drains_finishes_what_runs_and_ends_while_others_serve() {
    let gate = Gate::default();
    let long = Script::saying(&"word ".repeat(100)).held_after(50, &gate);
    let mut market = Market::start(&[&nothing, &nothing], long).await;
    let stream = Dialect::Chat.request("A long one.", true);
    let stream = stream.header("x-souk-seller", market.sellers[0].node.peer_id());
    let mut running = http::open(market.buyer.http(), &stream).await.unwrap();
    running.until("word").await;

    let run = std::fs::read(market.sellers[0].node.home().path().join("run.json")).unwrap();
    let run: Value = serde_json::from_slice(&run).unwrap();
    let seller = &market.sellers[0].node;
    let drain = Request::post("/api/drain", &json!({}));
    assert_eq!(http::send(seller.http(), &drain).await.status, 401);
    let token = format!("Bearer {}", run["token"].as_str().unwrap());
    let drain = drain.header("authorization", &token);
    let said = http::send(seller.http(), &drain).await;
    assert_eq!(said.status, 200, "{}", said.text());
    assert_eq!(said.json()["in_flight"], 1);
    let status = status(seller).await;
    assert_eq!(status["state"], "draining", "{status}");

    market.sellers[1]
        .upstream
        .set(Script::default().key(UPSTREAM_KEY));
    let fresh = Dialect::Chat.request("Next.", false);
    let fresh = fresh.header("x-souk-seller", market.sellers[0].node.peer_id());
    let answer = http::send(market.buyer.http(), &fresh).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(market.of(&answer), 1);

    gate.open();
    let answer = running.finish().await;
    assert!(answer.text().contains("data: [DONE]"), "{}", answer.text());
    assert!(!answer.text().contains("\"error\""), "{}", answer.text());
    let end = tokio::time::Instant::now() + PATIENCE;
    while market.sellers[0].node.is_running() {
        assert!(tokio::time::Instant::now() < end, "it never ended");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(market.sellers[0].node.exit_code(), Some(0));
    let end = tokio::time::Instant::now() + PATIENCE;
    while market::seller_count(&market.buyer).await != 1 {
        assert!(tokio::time::Instant::now() < end, "its offers never went");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A seller at its upstream's list price plus 10 %, which reads the list every second.
fn reseller(bootstrap: &str, upstream: &Upstream) -> Node {
    let home = Home::new();
    let file = home.path().join("config.toml");
    std::fs::write(&file, "[sell]\nprice_refresh = \"1s\"\nmarkup = \"10%\"\n").unwrap();
    let key = home.path().join("upstream-key");
    std::fs::write(&key, UPSTREAM_KEY).unwrap();
    let (file, key) = (
        file.to_str().unwrap().to_owned(),
        key.to_str().unwrap().to_owned(),
    );
    let url = upstream.openai_url();
    let mut args = vec!["sell", "--upstream", &url, "--api", "openai-chat"];
    args.extend([
        "--api-key-file",
        &key,
        "--config",
        &file,
        "--http-port",
        "0",
    ]);
    args.extend(["--bootstrap", bootstrap]);
    Node::start_at(home, &args)
}

#[tokio::test(flavor = "multi_thread")]
async fn prices_follow_the_upstreams_list_and_what_runs_keeps_its_own() {
    let _hold = Hold::shared().await;
    let gate = Gate::default();
    let listed = |price: &str| {
        let models = vec![ModelEntry::new("vendor/m", price, price)];
        Script::saying(&"word ".repeat(80))
            .held_after(40, &gate)
            .models(ListShape::OpenRouter, models)
            .key(UPSTREAM_KEY)
    };
    let bootstrap = Node::start(&["bootstrap"]);
    let upstream = Upstream::start(listed("10")).await;
    let seller = reseller(bootstrap.listen(), &upstream);
    let buyer = market::start_buyer(bootstrap.listen(), &[]);
    market::wait_for_model(&buyer, "vendor/m").await;
    let price = async |buyer: &Node| {
        let model = http::send(buyer.http(), &Request::get("/v1/models/vendor/m")).await;
        let model = model.json();
        model["pricing"]["completion"].as_str().unwrap().to_owned()
    };
    assert_eq!(price(&buyer).await, "0.000011");
    let ask = |stream: bool| {
        let mut body = Dialect::Chat.body("Go.", stream);
        body["model"] = json!("vendor/m");
        Request::post(Dialect::Chat.path(), &body)
    };
    // A buyer that keeps what it has heard: what `node buy` knows by now depends on when it looks.
    let peer = Peer::start();
    let to = peer.dial(seller.listen()).await;
    let heard = peer.offer_of(&to).await;
    let mut running = http::open(buyer.http(), &ask(true)).await.unwrap();
    running.until("word").await;
    upstream.set(listed("50"));
    let end = tokio::time::Instant::now() + Duration::from_secs(240);
    let mut risen = peer.offer_of(&to).await;
    while risen.offer.price.output == heard.offer.price.output {
        assert!(tokio::time::Instant::now() < end, "the price never rose");
        tokio::time::sleep(Duration::from_millis(100)).await;
        risen = peer.offer_of(&to).await;
    }
    // Those who still hear the old one stay: the dead would hold up the new one's way to others.
    let mut early = vec![];
    let newcomer = loop {
        let newcomer = market::start_buyer(bootstrap.listen(), &[]);
        market::wait_for_model(&newcomer, "vendor/m").await;
        if price(&newcomer).await == "0.000055" {
            break newcomer;
        }
        assert!(tokio::time::Instant::now() < end, "the price never spread");
        early.push(newcomer);
        tokio::time::sleep(Duration::from_secs(3)).await;
    };
    gate.open();
    let before = running.finish().await;
    assert!(before.text().contains("data: [DONE]"), "{}", before.text());
    let answer = http::send(newcomer.http(), &ask(false)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    // Micro-USD a token, with a few tokens of input.
    let each = async |buyer: &Node| -> Vec<u64> {
        let rows = books::paid(buyer.home(), 1).await;
        let each = |row: &Value| {
            let of = |name: &str| row[name].as_u64().unwrap();
            of("billed_micro_usd") / of("output_tokens")
        };
        rows.iter().map(each).collect()
    };
    let (old, new) = (each(&buyer).await, each(&newcomer).await);
    assert!(old.len() == 1 && (11..13).contains(&old[0]), "{old:?}");
    assert!(new.len() == 1 && (55..60).contains(&new[0]), "{new:?}");

    // Who knew the old offer may use it for an hour.
    let session = peer.session(&to, None).await;
    let body = chat_body("Go.");
    for (offer, a_token) in [(&heard, 11..13), (&risen, 55..60)] {
        let head = peer.sign(peer.head(offer, session.channel, &body));
        let answer = peer.ask(&to, &head.bytes, &body).await;
        let receipt = &answer.receipt.as_ref().expect("a receipt").receipt;
        let each = receipt.cost.0 / receipt.usage.output;
        assert!(a_token.contains(&each), "{receipt:?}");
    }
}
