//! The harness itself: the scripted upstream does what its script says, and the raw client sees it.
//! A fault of the scaffolding must not look like a fault of the market.

use std::time::{Duration, Instant};

use crate::harness::http::{self, Request};
use crate::harness::market::Dialect;
use crate::harness::upstream::{Exchange, Fault, ListShape, ModelEntry, Script, Upstream};

const SOON: Duration = Duration::from_secs(60);

/// Hang-ups of each kind: a loaded machine may be late to show one of them.
const HANG_UPS: usize = 30;

#[tokio::test(flavor = "multi_thread")]
async fn the_client_reads_exactly_what_the_upstream_recorded() {
    let upstream = Upstream::start(Script::default()).await;
    for dialect in Dialect::ALL {
        for stream in [false, true] {
            upstream.forget();
            let request = dialect.request("Say something.", stream);
            let response = http::send(upstream.address(), &request).await;
            assert_eq!((response.status, response.complete), (200, true));
            let seen = upstream
                .wait_for("its end", SOON, |s| s[0].finished.is_some())
                .await;
            assert_eq!(response.body(), seen[0].sent);
            assert_eq!(seen[0].body, request.body);
            assert!(!stream || response.text().contains(dialect.terminator()));
            assert_eq!(
                response.event_times().len(),
                if stream { seen[0].pieces.len() } else { 0 }
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_is_seen_as_a_cut_after_exactly_so_many_events() {
    let upstream = Upstream::start(Script::failing(Fault::CutAfter(4))).await;
    let request = Dialect::Chat.request("Say something.", true);
    let response = http::send(upstream.address(), &request).await;
    assert_eq!(
        (response.complete, response.event_times().len()),
        (false, 4)
    );
    assert_eq!(upstream.exchanges()[0].pieces.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hang_up_is_noticed_within_milliseconds() {
    let paced = Script::saying(&"word ".repeat(400)).paced(20.0);
    let scripts = [
        paced,
        Script::failing(Fault::StallAfter(2)),
        Script::failing(Fault::StallBeforeFirstByte),
    ];
    for script in scripts {
        let mut soonest = Duration::MAX;
        for _ in 0..HANG_UPS {
            soonest = soonest.min(noticed_after(&script).await);
            if soonest < Duration::from_millis(100) {
                break;
            }
        }
        assert!(
            soonest < Duration::from_millis(100),
            "{:?}: {soonest:?}",
            script.fault
        );
    }
}

/// How long after a client's hang-up in the middle of an answer an upstream notes it.
async fn noticed_after(script: &Script) -> Duration {
    let upstream = Upstream::start(script.clone()).await;
    let request = Dialect::Messages.request("Say something.", true);
    let socket = http::write(upstream.address(), &request).await.unwrap();
    upstream.wait_for("it", SOON, |s| s.len() == 1).await;
    assert_eq!(upstream.open_connections(), 1);
    let at = Instant::now();
    drop(socket);
    let gone = |s: &[Exchange]| s[0].abandoned.is_some();
    let seen = upstream.wait_for("the hang-up", SOON, gone).await;
    // The answer is dropped a moment before its socket.
    while upstream.open_connections() > 0 {
        assert!(at.elapsed() < SOON, "the socket stays open");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    seen[0].abandoned.unwrap().saturating_duration_since(at)
}

#[tokio::test(flavor = "multi_thread")]
async fn statuses_pace_keys_and_lists_are_as_scripted() {
    let upstream = Upstream::start(Script::failing(Fault::RateLimited { retry_after_s: 9 })).await;
    let ask = || Dialect::Chat.request("Say something.", true);
    let response = http::send(upstream.address(), &ask()).await;
    assert_eq!(
        (response.status, response.header("retry-after")),
        (429, Some("9"))
    );

    upstream.set(Script::default().key("k"));
    assert_eq!(http::send(upstream.address(), &ask()).await.status, 401);
    let right = ask().header("authorization", "Bearer k");
    assert_eq!(http::send(upstream.address(), &right).await.status, 200);

    upstream.set(Script::saying("one two three").paced(20.0));
    let response = http::send(upstream.address(), &ask()).await;
    assert!(
        response.end_at > Duration::from_millis(200),
        "took {:?}",
        response.end_at
    );

    let priced = vec![ModelEntry::new("vendor/m", "2.50", "10")];
    upstream.set(Script::default().models(ListShape::OpenRouter, priced));
    let list = http::send(upstream.address(), &Request::get("/v1/models"))
        .await
        .json();
    assert_eq!(list["data"][0]["pricing"]["prompt"], "0.0000025");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_goes_on_until_the_client_leaves() {
    let upstream = Upstream::start(Script::failing(Fault::Flood)).await;
    let request = Dialect::Chat.request("Say something.", true);
    let mut answer = http::open(upstream.address(), &request).await.unwrap();
    let mut bytes = 0;
    while bytes < 1_000_000 {
        bytes += answer.next().await.expect("a flood has no end").bytes.len();
    }
    drop(answer);
    upstream
        .wait_for("the hang-up", SOON, |s| s[0].abandoned.is_some())
        .await;
}
