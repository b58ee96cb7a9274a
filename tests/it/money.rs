//! Money is exact: both ledgers of a pair agree to the micro-USD, and errors cost nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use crate::harness::http;
use crate::harness::market::{Dialect, Market, PATIENCE, UPSTREAM_KEY, until};
use crate::harness::node::Home;
use crate::harness::upstream::{Exchange, Fault, Script, UsageReport};

/// One attempt as a ledger shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    buyer: String,
    seller: String,
    status: u64,
    pub(crate) billed_micro_usd: Option<u64>,
}

/// Reads a node's attempts by their id; entries that belong to no attempt are not counted.
fn rows(home: &Home) -> BTreeMap<String, Row> {
    let value = home.ledger(&["requests", "--json", "--limit", "10000"]);
    let all = value.as_array().expect("an array of rows");
    all.iter()
        .filter(|row| row["attempt_id"].is_string())
        .map(|row| {
            let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
            let parsed = Row {
                buyer: text("buyer"),
                seller: text("seller"),
                status: row["status"].as_u64().unwrap_or(0),
                billed_micro_usd: row["billed_micro_usd"].as_u64(),
            };
            (text("attempt_id"), parsed)
        })
        .collect()
}

/// Waits until both ends know `least` attempts or more and all are booked, and returns both views.
/// Rows are written behind the answers, so a quick reader may find none yet.
pub(crate) async fn booked(
    market: &Market,
    least: usize,
) -> (BTreeMap<String, Row>, BTreeMap<String, Row>) {
    // Receipts are accepted in the background.
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        let bought = rows(market.buyer.home());
        let mut sold = BTreeMap::new();
        for seller in &market.sellers {
            sold.extend(rows(seller.node.home()));
        }
        let open = |rows: &BTreeMap<String, Row>| {
            rows.iter()
                .filter(|(_, r)| r.billed_micro_usd.is_none())
                .count()
        };
        let known = bought.len().min(sold.len());
        if known >= least && open(&bought) + open(&sold) == 0 {
            return (bought, sold);
        }
        let now = tokio::time::Instant::now();
        assert!(now < end, "still open or missing: {bought:#?}\n{sold:#?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Sums what was billed per (buyer, seller).
fn per_pair(rows: &BTreeMap<String, Row>) -> BTreeMap<(String, String), u64> {
    let mut sums = BTreeMap::new();
    for row in rows.values() {
        let billed = row.billed_micro_usd.unwrap();
        *sums
            .entry((row.buyer.clone(), row.seller.clone()))
            .or_insert(0) += billed;
    }
    sums.retain(|_, sum| *sum > 0);
    sums
}

pub(crate) fn assert_agree(bought: &BTreeMap<String, Row>, sold: &BTreeMap<String, Row>) {
    assert_eq!(per_pair(bought), per_pair(sold), "{bought:#?}\n{sold:#?}");
    for (attempt, row) in sold {
        let ours = bought
            .get(attempt)
            .unwrap_or_else(|| panic!("{attempt} is unknown here"));
        assert_eq!(ours.billed_micro_usd, row.billed_micro_usd, "{attempt}");
    }
}

pub(crate) fn assert_verifies(market: &Market) {
    let homes = market
        .sellers
        .iter()
        .map(|s| s.node.home())
        .chain([market.buyer.home()]);
    for home in homes {
        let output = home.run(&["ledger", "verify"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.success(),
            "{}: {text}\n{errors}",
            home.peer_id
        );
    }
}

/// Requests of [`mixed_run`]; each reaches the first seller.
const MIXED_RUN_REQUESTS: usize = 12;

async fn mixed_run(market: &Market) {
    let first = &market.sellers[0].upstream;
    let script = |script: Script| first.set(script.key(UPSTREAM_KEY));
    let peer = market.sellers[0].node.peer_id();
    let request = |stream| {
        market
            .dialect
            .request("Say something.", stream)
            .header("x-souk-seller", peer)
    };
    for stream in [false, true, false, true] {
        script(Script::default());
        assert_eq!(market.send(&request(stream)).await.status, 200);
    }
    script(Script::default().usage(UsageReport::None));
    assert_eq!(market.send(&request(true)).await.status, 200);
    for status in [400, 422, 500, 503] {
        script(Script::failing(Fault::Status(status)));
        market.send(&request(false)).await;
    }
    script(Script::failing(Fault::CutAfter(10)));
    market.send(&request(true)).await;
    script(Script::default().paced(20.0));
    let mut answer = http::open(market.buyer.http(), &request(true))
        .await
        .unwrap();
    answer.until("größerer").await;
    drop(answer);
    script(Script::default());
    assert_eq!(market.send(&request(true)).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_mixed_run_both_ledgers_of_every_pair_agree_to_the_micro_usd() {
    for dialect in Dialect::ALL {
        let market = Market::start(dialect, vec![Script::default(), Script::default()]).await;
        mixed_run(&market).await;
        let (bought, sold) = booked(&market, MIXED_RUN_REQUESTS).await;
        assert_agree(&bought, &sold);
        assert!(
            per_pair(&bought).values().sum::<u64>() > 0,
            "something was paid: {bought:#?}"
        );
        for row in bought.values().chain(sold.values()) {
            // 499 and 502 deliver something before they end; every other error delivers nothing.
            if row.status >= 400 && ![499, 502].contains(&row.status) {
                assert_eq!(row.billed_micro_usd, Some(0), "an error is free: {row:?}");
            }
        }
        assert_verifies(&market);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_minus_nine_of_both_ends_loses_and_doubles_nothing() {
    let mut market = Market::start(Dialect::Chat, vec![Script::default()]).await;
    for round in 0..3 {
        // A restarted seller has to be found first.
        until("an answer", async || {
            market.ask("Say something.", false).await.status == 200
        })
        .await;
        let address = market.buyer.http();
        let paced = Script::default().paced(100.0).key(UPSTREAM_KEY);
        market.sellers[0].upstream.set(paced);
        let asking: Vec<_> = (0..4)
            .map(|_| {
                let request = Dialect::Chat.request("Say something.", true);
                tokio::spawn(async move {
                    if let Ok(answer) = http::open(address, &request).await {
                        answer.finish().await;
                    }
                })
            })
            .collect();
        // One of the four at the least is in its middle, if the machine is quick enough.
        let upstream = &market.sellers[0].upstream;
        let is_running = |seen: &[Exchange]| seen.iter().any(|e| e.pieces.len() > 3);
        upstream.wait_for("a stream", PATIENCE, is_running).await;
        upstream.forget();
        if round % 2 == 0 {
            market.sellers[0].node.restart();
        } else {
            market.buyer.restart();
        }
        for one in asking {
            one.await.unwrap();
        }
    }
    market.sellers[0]
        .upstream
        .set(Script::default().key(UPSTREAM_KEY));
    until("the last answer", async || {
        market.ask("Say something.", false).await.status == 200
    })
    .await;
    let (bought, sold) = booked(&market, 1).await;
    assert_agree(&bought, &sold);
    assert_verifies(&market);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_reports_ten_times_the_usage_is_paid_by_the_buyers_own_count() {
    let script = Script::default().usage(UsageReport::Times(10));
    let market = Market::start(Dialect::Chat, vec![script]).await;
    for stream in [false, true] {
        let response = market.ask("Say something.", stream).await;
        assert_eq!(response.status, 200, "{}", response.text());
    }
    let (bought, sold) = booked(&market, 2).await;
    assert_agree(&bought, &sold);
    let claimed: u64 = market.sellers[0]
        .upstream
        .exchanges()
        .iter()
        .map(|e| claimed(&e.sent))
        .sum();
    let paid = per_pair(&bought).values().sum::<u64>();
    assert!(
        paid > 0 && paid * 3 < claimed,
        "paid {paid} of {claimed} claimed micro-USD"
    );
}

/// What the usage in an answer costs at the cheapest seller's prices, in micro-USD.
fn claimed(sent: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(sent);
    let json = text
        .lines()
        .map(|l| l.strip_prefix("data: ").unwrap_or(l))
        .filter_map(|l| serde_json::from_str::<Value>(l).ok())
        .find(|v| v["usage"].is_object())
        .expect("a usage");
    let count = |name: &str| json["usage"][name].as_u64().unwrap();
    (count("prompt_tokens") * 100_000 + count("completion_tokens") * 400_000).div_ceil(1_000_000)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cost_shown_to_the_client_is_the_cost_in_the_ledger() {
    let market = Market::start(Dialect::Chat, vec![Script::default()]).await;
    let response = market.ask("Say something.", false).await;
    let shown = response.json()["usage"]["cost"].as_f64().unwrap();
    let (bought, _) = booked(&market, 1).await;
    let billed = per_pair(&bought).values().sum::<u64>();
    assert_eq!((shown * 1e6).round() as u64, billed);
}
