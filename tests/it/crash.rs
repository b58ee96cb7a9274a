//! A node that dies at any step of a request: after its restart both ledgers agree, nothing is
//! charged twice, and nothing stays open.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::Instant;

use crate::harness::books::{self, Rows, rows};
use crate::harness::http::{self, Request, Response};
use crate::harness::market::{Dialect, Hold, Seller, UPSTREAM_KEY, start_buyer, wait_for_sellers};
use crate::harness::node::{Home, Node};
use crate::harness::upstream::Script;

/// A dead peer is given up after 12 s, a request may try two of them, and the machine may be busy.
const ANSWERED_DEADLINE: Duration = Duration::from_secs(240);

/// Receipts are shown again every 5 s, a lost session is restored within 5 s, twice that when the
/// first try fails, and a busy machine has many of them to restore.
const BOOKED_DEADLINE: Duration = Duration::from_secs(180);

/// A node reaches its failpoint within this. How many requests that takes depends on the machine's
/// load: a point may need an answer in time, an ACCEPT without a voucher, a seller with a free place.
const DEATH_DEADLINE: Duration = Duration::from_secs(300);
/// Between two requests that failed at once: the node may just be dying.
const PAUSE: Duration = Duration::from_millis(50);

/// USD per million tokens: enough that vouchers are due every few requests.
const PRICES: (&str, &str) = ("2.00", "8.00");

/// The price of the seller that nobody kills.
const CHEAP: (&str, &str) = ("1.00", "4.00");

/// Where a buyer dies, in the order of a request; what is per request waits for the second one.
const BUYER_POINTS: [&str; 10] = [
    "buyer_open_row:2",
    "buyer_voucher_durable",
    "buyer_after_head:2",
    "buyer_resp_head:2",
    "buyer_half_body:2",
    "buyer_usage:2",
    "buyer_before_accept",
    "buyer_before_accept:2",
    "buyer_after_accept",
    "buyer_after_accept:2",
];

/// Where a seller dies, in the order of a request.
const SELLER_POINTS: [&str; 10] = [
    "seller_open_row",
    "seller_open_row:2",
    "seller_voucher_durable",
    "seller_before_upstream:2",
    "seller_resp_head:2",
    "seller_half_body:2",
    "seller_before_usage:2",
    "seller_after_usage",
    "seller_after_usage:2",
    "seller_accept_durable",
];

/// Both ledgers once they agree, each request charged once.
async fn agreed(buyers: &[&Home], sellers: &[&Home]) -> (Rows, Rows) {
    let agreed = books::agreed(buyers, sellers, BOOKED_DEADLINE).await;
    let (bought, sold) = agreed.unwrap_or_else(|differences| panic!("{differences}"));
    assert!(books::billed(&bought) > 0, "something was paid");
    let twice = books::charged_twice(&bought);
    assert!(twice.is_empty(), "charged twice: {twice:?}");
    (bought, sold)
}

fn assert_verifies(home: &Home) {
    books::verify(home).unwrap_or_else(|differences| panic!("{differences}"));
}

fn paced() -> Script {
    Script::default().paced(100.0).key(UPSTREAM_KEY)
}

fn ask_of(seller: &Node, stream: bool) -> Request {
    Dialect::Chat
        .request("Say something.", stream)
        .header("x-souk-seller", seller.peer_id())
}

/// Asks, and takes what comes: the answer, or nothing when the buyer died.
async fn try_ask(buyer: SocketAddr, request: &Request) -> Option<Response> {
    Some(http::open(buyer, request).await.ok()?.finish().await)
}

/// Asks until this very seller answers completely.
async fn answered_by(buyer: &Node, seller: &Node) {
    let end = Instant::now() + ANSWERED_DEADLINE;
    loop {
        let response = http::send(buyer.http(), &ask_of(seller, false)).await;
        if response.status == 200 && response.header("x-souk-seller") == Some(seller.peer_id()) {
            return;
        }
        assert!(
            Instant::now() < end,
            "{} does not answer: {} {}",
            seller.peer_id(),
            response.status,
            response.text()
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Shows what became of the attempts of the node that died at `point`.
fn print_outcome(point: &str, stream: bool, peer: &str, [bought, sold]: [&Rows; 2]) {
    let kind = if stream { "stream" } else { "whole" };
    let attempts: BTreeSet<_> = [bought, sold]
        .into_iter()
        .flatten()
        .filter(|(_, row)| row.buyer == peer || row.seller == peer)
        .map(|(attempt, _)| attempt)
        .collect();
    let show = |rows: &Rows, attempt: &String| {
        rows.get(attempt).map_or("unknown".to_owned(), |row| {
            format!("{} {}", row.outcome, row.billed.unwrap_or(0))
        })
    };
    for attempt in attempts {
        let (here, there) = (show(bought, attempt), show(sold, attempt));
        println!("{point:26} {kind:6} bought: {here:14} sold: {there}");
    }
}

/// Asks through `buyer` until `victim` has died at its failpoint.
async fn ask_until_dead(victim: &mut Node, buyer: SocketAddr, request: &Request, point: &str) {
    let end = Instant::now() + DEATH_DEADLINE;
    // A dying process closes its sockets before it can be waited for, so an answer that broke off
    // does not yet say that it is gone.
    while victim.is_running() {
        let in_time = Instant::now() < end;
        assert!(
            in_time,
            "{point} was never reached: {}",
            victim.stderr_tail()
        );
        let answer = try_ask(buyer, request).await;
        if answer.is_none_or(|answer| answer.status != 200) {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// One buyer per failpoint, all at one seller: a seller takes a few connections of one peer, and a
/// killed node's last connection counts until it is given up.
async fn buyers_die(stream: bool) {
    let _hold = Hold::shared().await;
    let bootstrap = Node::start(&["bootstrap"]);
    let sellers = [Seller::start(bootstrap.listen(), Dialect::Chat, PRICES, paced()).await];
    let mut buyers = vec![];
    for point in BUYER_POINTS {
        let mut buyer = start_buyer(bootstrap.listen(), &[]);
        buyer.restart_to_die_at(point);
        buyers.push(buyer);
    }
    for buyer in &buyers {
        wait_for_sellers(buyer, 1).await;
    }
    let request = ask_of(&sellers[0].node, stream);
    let dying = buyers.iter_mut().zip(BUYER_POINTS).map(|(buyer, point)| {
        let (address, request) = (buyer.http(), &request);
        async move { ask_until_dead(buyer, address, request, point).await }
    });
    join_all(dying).await;
    for buyer in &mut buyers {
        buyer.restart();
    }
    for buyer in &buyers {
        wait_for_sellers(buyer, 1).await;
        answered_by(buyer, &sellers[0].node).await;
    }
    let homes: Vec<_> = buyers.iter().map(Node::home).collect();
    let (bought, sold) = agreed(&homes, &[sellers[0].node.home()]).await;
    for (buyer, point) in buyers.iter().zip(BUYER_POINTS) {
        print_outcome(point, stream, buyer.peer_id(), [&bought, &sold]);
    }
    for home in homes.into_iter().chain([sellers[0].node.home()]) {
        assert_verifies(home);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buyer_killed_at_any_step_of_a_stream_owes_what_both_ledgers_say() {
    buyers_die(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buyer_killed_at_any_step_of_a_whole_answer_owes_what_both_ledgers_say() {
    buyers_die(false).await;
}

/// One seller per failpoint and one that lives; all die in one market, because a dead seller is
/// waited for.
async fn sellers_die(stream: bool) {
    let _hold = Hold::shared().await;
    let bootstrap = Node::start(&["bootstrap"]);
    let mut sellers = vec![];
    for point in SELLER_POINTS {
        let mut seller = Seller::start(bootstrap.listen(), Dialect::Chat, PRICES, paced()).await;
        seller.node.restart_to_die_at(point);
        sellers.push(seller);
    }
    sellers.push(Seller::start(bootstrap.listen(), Dialect::Chat, CHEAP, paced()).await);
    let buyer = start_buyer(bootstrap.listen(), &[]);
    wait_for_sellers(&buyer, sellers.len()).await;

    let dying = sellers
        .iter_mut()
        .zip(SELLER_POINTS)
        .map(|(seller, point)| {
            let request = ask_of(&seller.node, stream);
            let (address, node) = (buyer.http(), &mut seller.node);
            async move { ask_until_dead(node, address, &request, point).await }
        });
    join_all(dying).await;
    for seller in &mut sellers[..SELLER_POINTS.len()] {
        seller.node.restart();
    }
    // What the buyer holds in doubt is settled without a request.
    let end = Instant::now() + BOOKED_DEADLINE;
    while rows(buyer.home()).values().any(|row| row.billed.is_none()) {
        assert!(Instant::now() < end, "{:#?}", rows(buyer.home()));
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    for seller in &sellers {
        answered_by(&buyer, &seller.node).await;
    }
    let homes: Vec<_> = sellers.iter().map(|s| s.node.home()).collect();
    let (bought, sold) = agreed(&[buyer.home()], &homes).await;
    for (seller, point) in sellers.iter().zip(SELLER_POINTS) {
        print_outcome(point, stream, seller.node.peer_id(), [&bought, &sold]);
    }
    for home in homes.into_iter().chain([buyer.home()]) {
        assert_verifies(home);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seller_killed_at_any_step_of_a_stream_is_owed_what_both_ledgers_say() {
    sellers_die(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seller_killed_at_any_step_of_a_whole_answer_is_owed_what_both_ledgers_say() {
    sellers_die(false).await;
}
