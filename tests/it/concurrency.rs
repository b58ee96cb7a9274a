//! Many at once: one pair of nodes carries a burst of requests, none refused, none stalled.

use std::time::{Duration, Instant};

use futures::future::join_all;

use crate::harness::http;
use crate::harness::market::{Dialect, Market, PATIENCE};
use crate::harness::upstream::{Exchange, Script};

/// Requests in flight at once over one pair.
const AT_ONCE: usize = 128;

/// A debug build on two busy cores needs seconds; a stall needs its time-out of minutes.
const BURST_MAX: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_over_one_pair_is_neither_refused_nor_stalled() {
    for dialect in Dialect::ALL {
        let market = Market::start_alone(dialect, vec![Script::default()]).await;
        for stream in [false, true] {
            let begun = Instant::now();
            let asking = (0..AT_ONCE).map(|i| {
                let request = dialect.request(&format!("Say something {i}."), stream);
                let address = market.buyer.http();
                async move { http::send(address, &request).await }
            });
            for response in join_all(asking).await {
                assert_eq!(response.status, 200, "{}", response.text());
                assert!(response.complete);
                let text = response.text();
                assert!(!stream || text.contains(dialect.terminator()), "{text}");
            }
            assert!(begun.elapsed() < BURST_MAX, "took {:?}", begun.elapsed());
        }
        assert_eq!(
            market.upstream_requests(),
            2 * AT_ONCE,
            "each was forwarded once"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_streams_run_side_by_side() {
    // 128 streams that wait half a second each and then talk: one after the other takes minutes.
    let script = Script::default()
        .first_byte_after(Duration::from_millis(500))
        .paced(50.0);
    let market = Market::start_alone(Dialect::Chat, vec![script]).await;
    let asking: Vec<_> = (0..AT_ONCE)
        .map(|_| {
            let (address, request) = (
                market.buyer.http(),
                Dialect::Chat.request("Say something.", true),
            );
            tokio::spawn(async move { http::send(address, &request).await })
        })
        .collect();
    let all = |seen: &[Exchange]| seen.len() == AT_ONCE;
    let upstream = &market.sellers[0].upstream;
    upstream
        .wait_for("all streams at once", PATIENCE, all)
        .await;
    for answer in join_all(asking).await {
        let response = answer.unwrap();
        assert_eq!(response.status, 200, "{}", response.text());
        assert!(response.text().contains("data: [DONE]"));
    }
}
