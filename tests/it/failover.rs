//! Things break: before the first byte another seller answers, after it the client is told.

use std::time::{Duration, Instant};

use crate::harness::http::{self, Request};
use crate::harness::market::{Dialect, Market, PATIENCE, UPSTREAM_KEY, until};
use crate::harness::upstream::{ConnectionRecord, Exchange, Fault, Script, Upstream};

/// From a client's hang-up to the upstream's socket closing, through both nodes, where the machine
/// does not stall.
const HANG_UP_MAX: Duration = Duration::from_millis(200);

/// Tries of which one must be that quick.
const HANG_UPS: usize = 5;

/// However the machine stalls, a hang-up is no node's next timer: the first is a sign of life every
/// five seconds.
const TIMER_MIN: Duration = Duration::from_secs(5);

/// A killed node says no goodbye; it is given up after 12 s without a frame, and more on a busy
/// machine.
const DEAD_PEER_MAX: Duration = Duration::from_secs(50);

/// Events with which "größerer" has come.
const EVENTS: usize = 25;

/// Stops in its middle for as long as a test needs.
fn halting() -> Script {
    Script::failing(Fault::StallAfter(EVENTS))
}

/// A request that tries the first seller first, whatever the router thinks of it by now.
fn to_first(market: &Market, stream: bool) -> Request {
    let peer = market.sellers[0].node.peer_id();
    market
        .dialect
        .request("Say something.", stream)
        .header("x-souk-seller", peer)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seller_killed_before_its_first_byte_is_replaced_unseen() {
    for dialect in Dialect::ALL {
        let stalled = Script::failing(Fault::StallBeforeFirstByte);
        let mut market = Market::start(dialect, vec![stalled, Script::default()]).await;
        let (address, request) = (market.buyer.http(), to_first(&market, true));
        let asking = tokio::spawn(async move { http::send(address, &request).await });
        let one = |seen: &[Exchange]| seen.len() == 1;
        market.sellers[0]
            .upstream
            .wait_for("the first attempt", PATIENCE, one)
            .await;
        market.sellers[0].node.kill();
        let killed = Instant::now();
        let response = asking.await.unwrap();
        assert!(
            killed.elapsed() < DEAD_PEER_MAX,
            "took {:?}",
            killed.elapsed()
        );
        assert_eq!(response.status, 200, "{}", response.text());
        assert!(
            response.text().contains(dialect.terminator()),
            "{}",
            response.text()
        );
        assert!(!dialect.has_error_event(&response.text()));
        // By then the head, without a seller's name, may have gone out with a sign of life.
        let asked = market.sellers.iter().map(|s| s.upstream.exchanges().len());
        assert_eq!(asked.collect::<Vec<_>>(), [1, 1]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seller_killed_in_mid_stream_ends_in_the_dialects_error_event() {
    for dialect in Dialect::ALL {
        let mut market = Market::start(dialect, vec![halting(), halting()]).await;
        let mut answer = http::open(market.buyer.http(), &to_first(&market, true))
            .await
            .unwrap();
        answer.until("größerer").await;
        market.sellers[0].node.kill();
        let killed = Instant::now();
        let response = answer.finish().await;
        assert!(
            killed.elapsed() < DEAD_PEER_MAX,
            "took {:?}",
            killed.elapsed()
        );
        let text = response.text();
        assert!(dialect.has_error_event(&text), "the client is told: {text}");
        assert!(
            !text.contains(dialect.terminator()),
            "never a well-formed half answer: {text}"
        );
        assert!(response.complete, "the HTTP body itself ends well");
        assert!(
            market.sellers[1].upstream.exchanges().is_empty(),
            "no second charge"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_cut_in_mid_stream_ends_in_the_dialects_error_event() {
    for dialect in Dialect::ALL {
        let cut = Script::failing(Fault::CutAfter(8));
        let market = Market::start(dialect, vec![cut, Script::default()]).await;
        let response = market.send(&to_first(&market, true)).await;
        assert!(
            dialect.has_error_event(&response.text()),
            "{}",
            response.text()
        );
        assert!(response.complete);
        assert!(market.sellers[1].upstream.exchanges().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_upstream_is_its_sellers_failure_and_another_answers() {
    for dialect in Dialect::ALL {
        let market = Market::start(dialect, vec![Script::default(), Script::default()]).await;
        let statuses = [401, 402, 403, 404, 408, 429, 500, 502, 503, 529].map(Fault::Status);
        let others = [
            Fault::RateLimited { retry_after_s: 7 },
            Fault::Html,
            Fault::CutAfter(0),
            Fault::MalformedJson,
        ];
        for fault in statuses.into_iter().chain(others) {
            let script = Script::failing(fault.clone());
            market.sellers[0].upstream.set(script.key(UPSTREAM_KEY));
            let response = market.send(&to_first(&market, false)).await;
            assert_eq!(
                response.status,
                200,
                "{dialect:?} {fault:?}: {}",
                response.text()
            );
            assert_eq!(market.seller_of(&response), 1, "{dialect:?} {fault:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_requests_own_fault_is_passed_on_and_tried_once() {
    for dialect in Dialect::ALL {
        for status in [400, 413, 422] {
            let scripts = vec![Script::failing(Fault::Status(status)), Script::default()];
            let market = Market::start(dialect, scripts).await;
            let response = market.send(&to_first(&market, false)).await;
            assert_eq!(response.status, status);
            let sent = market.sellers[0].upstream.exchanges();
            assert_eq!(response.body(), sent[0].sent, "the upstream's own words");
            assert!(market.sellers[1].upstream.exchanges().is_empty());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn edge_20_a_client_that_hangs_up_stops_the_upstream_at_once() {
    for dialect in Dialect::ALL {
        // In the middle of a stream, and while nothing has come yet.
        let market = Market::start_alone(dialect, vec![Script::default()]).await;
        let upstream = &market.sellers[0].upstream;
        let at_once = |took: &[Duration]| took.iter().any(|took| *took < HANG_UP_MAX);
        let mut took = vec![];
        while !at_once(&took) {
            assert!(took.len() < HANG_UPS, "the upstream worked on for {took:?}");
            upstream.forget();
            // Half a minute of events.
            upstream.set(Script::default().paced(2.0).key(UPSTREAM_KEY));
            let mut answer = http::open(market.buyer.http(), &to_first(&market, true))
                .await
                .unwrap();
            answer.until("works").await;
            took.push(hang_up(upstream, || drop(answer)).await);
        }
        let mut took = vec![];
        while !at_once(&took) {
            assert!(took.len() < HANG_UPS, "the upstream worked on for {took:?}");
            upstream.forget();
            upstream.set(Script::failing(Fault::StallBeforeFirstByte).key(UPSTREAM_KEY));
            let request = to_first(&market, true);
            let socket = http::write(market.buyer.http(), &request).await.unwrap();
            upstream
                .wait_for("the request", PATIENCE, |seen| seen.len() == 1)
                .await;
            took.push(hang_up(upstream, || drop(socket)).await);
        }
    }
}

/// Closes the client's socket; how long the upstream worked on.
async fn hang_up(upstream: &Upstream, close: impl FnOnce()) -> Duration {
    let at = Instant::now();
    close();
    let gone = |seen: &[Exchange]| seen.iter().any(|e| e.abandoned.is_some());
    let seen = upstream.wait_for("the hang-up", PATIENCE, gone).await;
    let after = seen
        .last()
        .unwrap()
        .abandoned
        .unwrap()
        .saturating_duration_since(at);
    assert!(after < TIMER_MIN, "the upstream worked on for {after:?}");
    let used = seen.last().unwrap().connection;
    // The seller may keep idle connections; the one in use has to be closed.
    let closed = |c: &ConnectionRecord| c.id != used || c.closed.is_some();
    until("the socket's end", async || {
        upstream.connections().iter().all(closed)
    })
    .await;
    after
}

#[tokio::test(flavor = "multi_thread")]
async fn when_every_seller_fails_the_answer_names_the_attempts() {
    let failing = || Script::failing(Fault::Status(500));
    for dialect in Dialect::ALL {
        let market = Market::start(dialect, vec![failing(), failing(), failing()]).await;
        let response = market.ask("Say something.", false).await;
        assert!(
            [502, 503, 504].contains(&response.status),
            "{}",
            response.status
        );
        let body = response.json();
        let message = body.pointer("/error/message").and_then(|m| m.as_str());
        assert!(message.is_some_and(|m| !m.is_empty()), "{body}");
        assert_eq!(
            body.get("type").is_some(),
            dialect == Dialect::Messages,
            "{body}"
        );
        assert!(market.upstream_requests() <= 4, "at most four attempts");
    }
}
