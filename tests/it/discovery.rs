//! Sellers are found: many of them, after restarts, and their absence is said in time.

use std::time::{Duration, Instant};

use crate::harness::http::{self, Request};
use crate::harness::market::{
    Dialect, Hold, Market, PATIENCE, Seller, start_buyer, start_patient, until, wait_for_sellers,
};
use crate::harness::node::{Home, Node};
use crate::harness::upstream::{Script, Upstream};

/// "No reachable seller: 503 within 5 s", and room for a busy machine.
const NO_SELLER_MAX: Duration = Duration::from_secs(8);

/// Tries of which one must be quick: a stall of the machine lengthens some, a node that waits all.
const TRIES: usize = 5;

/// Fails when `one` takes `max` or more each time.
async fn quick(what: &str, max: Duration, mut one: impl AsyncFnMut()) {
    let mut took = vec![];
    for _ in 0..TRIES {
        let begun = Instant::now();
        one().await;
        took.push(begun.elapsed());
        if begun.elapsed() < max {
            return;
        }
    }
    panic!("{what} took {took:?}");
}

/// A first answer after a start, where nothing is looked up first.
const FROM_CACHE_MAX: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn a_buyer_finds_thirty_sellers_of_one_model() {
    let _hold = Hold::alone().await;
    let bootstrap = Node::start(&["bootstrap"]);
    let upstream = Upstream::start(Script::default()).await;
    let sellers: Vec<_> = (0..30)
        .map(|i| {
            let price = format!("0.{:02}", 10 + i);
            let prices = (price.as_str(), price.as_str());
            Seller::node(bootstrap.listen(), Dialect::Chat, prices, &upstream, &[])
        })
        .collect();
    let args = ["buy", "--port", "0", "--bootstrap", bootstrap.listen()];
    let args = [args.as_slice(), &["--prefer", "cheap"]].concat();
    let buyer = start_patient(Home::new(), &args);
    let begun = Instant::now();
    wait_for_sellers(&buyer, sellers.len()).await;
    println!("found after {:?}", begun.elapsed());
    let request = Dialect::Chat.request("Say something.", false);
    let response = http::send(buyer.http(), &request).await;
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(
        response.header("x-souk-seller"),
        Some(sellers[0].peer_id()),
        "the cheapest"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buyer_that_came_before_the_first_seller_sees_it_soon() {
    let _hold = Hold::shared().await;
    let bootstrap = Node::start(&["bootstrap"]);
    let buyer = start_buyer(bootstrap.listen(), &[]);
    until("the bootstrap node", async || {
        let status = http::send(buyer.http(), &Request::get("/api/status")).await;
        status.json()["peers"].as_u64() >= Some(1)
    })
    .await;
    // It has asked what is sold: nothing. Nobody asks it for a model, which would be looked up.
    let _seller = Seller::start(
        bootstrap.listen(),
        Dialect::Chat,
        ("0.10", "0.40"),
        Script::default(),
    )
    .await;
    wait_for_sellers(&buyer, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_any_peer_a_request_gets_503_in_time_and_the_model_list_an_empty_list() {
    let _hold = Hold::shared().await;
    // A port that nobody listens on, with a peer id that nobody has.
    let stranger = Home::new();
    let dead = format!("/ip4/127.0.0.1/udp/9/quic-v1/p2p/{}", stranger.peer_id);
    let buyer = start_buyer(&dead, &[]);
    quick("an empty list", Duration::from_secs(1), async || {
        let list = http::send(buyer.http(), &Request::get("/v1/models")).await;
        assert_eq!(list.status, 200);
        assert_eq!(list.json()["data"], serde_json::json!([]));
    })
    .await;
    for dialect in Dialect::ALL {
        quick("a refusal", NO_SELLER_MAX, async || {
            let response = http::send(buyer.http(), &dialect.request("Anybody?", true)).await;
            assert_eq!(response.status, 503, "{}", response.text());
            assert_eq!(response.header("retry-after"), Some("5"));
            assert!(response.json()["error"]["message"].is_string());
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_nobody_sells_is_404_with_the_nearest_names() {
    let market = Market::start(Dialect::Chat, vec![Script::default()]).await;
    let mut body = Dialect::Chat.body("Say something.", false);
    body["model"] = "market/gpt-4o-mimi".into();
    let response = market
        .send(&Request::post("/v1/chat/completions", &body))
        .await;
    assert_eq!(response.status, 404, "{}", response.text());
    let message = response.json()["error"]["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(message.contains("market/gpt-4o-mini"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_sellers_are_skipped_and_a_restarted_one_is_used_again() {
    let mut market = Market::start(Dialect::Chat, vec![Script::default(), Script::default()]).await;
    assert_eq!(market.ask("Say something.", false).await.status, 200);
    market.sellers[0].node.kill();
    let response = market.ask("Say something.", false).await;
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(market.seller_of(&response), 1);
    market.sellers[1].node.kill();
    let response = market.ask("Say something.", false).await;
    assert!(
        [502, 503, 504].contains(&response.status),
        "{}",
        response.status
    );
    market.sellers[0].node.restart();
    let end = Instant::now() + PATIENCE;
    while market.ask("Say something.", false).await.status != 200 {
        assert!(
            Instant::now() < end,
            "the restarted seller is never used again"
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_buyer_serves_from_its_cache_without_any_bootstrap_node() {
    let mut market = Market::start_alone(Dialect::Chat, vec![Script::default()]).await;
    assert_eq!(market.ask("Say something.", false).await.status, 200);
    market.bootstrap.kill();
    let mut took = vec![];
    for _ in 0..TRIES {
        // Offers and peers are cached in the background; an orderly end keeps them.
        assert!(market.buyer.terminate().success());
        market.buyer.restart();
        let begun = Instant::now();
        let response = market.ask("Say something.", false).await;
        assert_eq!(response.status, 200, "{}", response.text());
        took.push(begun.elapsed());
        if took.last() < Some(&FROM_CACHE_MAX) {
            return;
        }
    }
    panic!("the first answers took {took:?}");
}
