//! Sellers that bill more than they delivered, before a real buyer over libp2p: the most that each
//! way of cheating takes, in micro-USD, against the bound of the buyer's own count.

use std::collections::BTreeMap;
use std::time::Duration;

use souk::types::{MicroUsd, Usage};

use crate::harness::cheat::{Bill, Cheat, PRICE};
use crate::harness::http::{self, Request};
use crate::harness::market::{Dialect, Hold, start_buyer, wait_for_sellers};
use crate::harness::node::Node;

/// What a buyer grants above its own count: 3 % and 16 tokens of output, 5 % and 32 tokens and 16 a
/// message of input; the constants together at most $0.001.
fn granted(fair: u64) -> u64 {
    fair * 5 / 100 + 1_000
}

/// ACCEPTs are sent within this.
const ACCEPTED_DEADLINE: Duration = Duration::from_secs(120);

/// The window of one stream at the prices of the cheat: what vouchers may be ahead.
const STREAM_WINDOW: u64 = 2_048;

struct Stage {
    cheat: Cheat,
    buyer: Node,
    _hold: Hold,
}

impl Stage {
    async fn start(unasked: bool) -> Self {
        let hold = Hold::shared().await;
        let cheat = Cheat::start(&"An answer of some length. ".repeat(60), unasked);
        let bootstrap = cheat.peer.listen().await;
        let buyer = start_buyer(&bootstrap, &[]);
        wait_for_sellers(&buyer, 1).await;
        Self {
            cheat,
            buyer,
            _hold: hold,
        }
    }

    fn request() -> Request {
        Dialect::Chat.request("Say something of some length.", true)
    }

    /// Billed cost per attempt in the buyer's ledger; none while it is open.
    fn billed(&self) -> BTreeMap<String, Option<u64>> {
        let rows = self
            .buyer
            .home()
            .ledger(&["requests", "--json", "--limit", "1000"]);
        let rows = rows.as_array().expect("an array of rows").clone();
        let row = |row: &serde_json::Value| {
            let id = row["attempt_id"].as_str().unwrap_or_default().to_owned();
            (id, row["billed_micro_usd"].as_u64())
        };
        rows.iter().map(row).collect()
    }

    /// Asks under this bill, and gives what was paid beyond what was fair.
    async fn stolen(&self, bill: Bill) -> (u64, u64) {
        let before = self.billed().len();
        let known: Vec<_> = self.cheat.loot().fair.into_keys().collect();
        self.cheat.bill(bill);
        let answer = http::send(self.buyer.http(), &Self::request()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let end = tokio::time::Instant::now() + ACCEPTED_DEADLINE;
        loop {
            let billed = self.billed();
            let loot = self.cheat.loot();
            let (attempt, fair) = loot
                .fair
                .iter()
                .find(|(attempt, _)| !known.contains(attempt))
                .expect("the cheat served it");
            let booked = billed.get(&attempt.to_string()).copied().flatten();
            if let Some(paid) = booked.filter(|_| billed.len() > before) {
                return (paid.saturating_sub(*fair), *fair);
            }
            let now = tokio::time::Instant::now();
            assert!(now < end, "not booked: {billed:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// What vouchers promise beyond what was booked.
    fn ahead(&self) -> u64 {
        let paid: u64 = self.billed().values().flatten().sum();
        self.cheat.loot().voucher.saturating_sub(paid)
    }
}

/// Tokens are multiplied in tenths.
fn times(usage: Usage, tenths: u64) -> Usage {
    Usage {
        input: usage.input * tenths / 10,
        output: usage.output * tenths / 10,
        ..usage
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seller_that_bills_too_much_gets_what_the_buyer_counts_and_a_margin() {
    let stage = Stage::start(false).await;
    let honest = Bill::honest();
    let (extra, fair) = stage.stolen(honest.clone()).await;
    assert!(
        fair > 1_000 && extra < fair / 20,
        "an honest bill is paid: {extra} above {fair}"
    );
    let cases = [
        (
            "usage x1.1",
            Bill {
                usage: |u| times(u, 11),
                ..honest.clone()
            },
        ),
        (
            "usage x10",
            Bill {
                usage: |u| times(u, 100),
                ..honest.clone()
            },
        ),
        (
            "receipt x1.1",
            Bill {
                cost: |u| PRICE.cost(&times(*u, 11)),
                ..honest.clone()
            },
        ),
        (
            "receipt x10",
            Bill {
                cost: |u| PRICE.cost(&times(*u, 100)),
                ..honest.clone()
            },
        ),
        (
            "another price",
            Bill {
                cost: |u| MicroUsd(PRICE.cost(u).0 * 3),
                ..honest.clone()
            },
        ),
        (
            "input billed as written to a cache",
            Bill {
                usage: |u| Usage {
                    input: 0,
                    cache_write: u.input * 50,
                    ..u
                },
                ..honest.clone()
            },
        ),
        (
            "a cache that was never read",
            Bill {
                usage: |u| Usage {
                    cache_read: 100_000,
                    ..u
                },
                ..honest.clone()
            },
        ),
        (
            "hidden reasoning that was not declared",
            Bill {
                usage: |u| Usage {
                    output: u.output + 5_000,
                    reasoning: 5_000,
                    ..u
                },
                ..honest.clone()
            },
        ),
    ];
    for (case, bill) in cases {
        let (stolen, fair) = stage.stolen(bill).await;
        let bound = granted(fair);
        println!("stolen: case={case:?} micro_usd={stolen} fair={fair} bound={bound}");
        assert!(
            stolen <= bound,
            "{case}: {stolen} beyond {fair}, granted {bound}"
        );
    }
    let ahead = stage.ahead();
    println!("stolen: case=\"vouchers ahead\" micro_usd={ahead} bound={STREAM_WINDOW}");
    assert!(ahead <= STREAM_WINDOW, "vouchers are {ahead} ahead");
    let verified = stage.buyer.home().run(&["ledger", "verify"]);
    assert!(verified.status.success(), "{verified:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_answer_a_repeated_receipt_and_a_demand_bring_a_seller_nothing() {
    let stage = Stage::start(true).await;
    let honest = Bill::honest();
    let cut = Bill {
        cut_after: Some(40),
        ..honest.clone()
    };
    let (stolen, fair) = stage.stolen(cut).await;
    let bound = granted(fair);
    println!(
        "stolen: case=\"billed whole after a cut\" micro_usd={stolen} fair={fair} bound={bound}"
    );
    assert!(stolen <= bound, "{stolen} beyond {fair}");

    let demand = Bill {
        demand: Some(MicroUsd(4_000_000)),
        ..honest.clone()
    };
    stage.stolen(demand).await;
    let ahead = stage.ahead();
    println!("stolen: case=\"demands a voucher of 4 USD\" micro_usd={ahead} bound={STREAM_WINDOW}");
    assert!(ahead <= STREAM_WINDOW, "vouchers are {ahead} ahead");

    // The first receipt again and again: it names another attempt, so there is none for these.
    let repeat = Bill {
        repeat_first: true,
        ..honest
    };
    stage.stolen(repeat.clone()).await;
    stage.cheat.bill(repeat);
    for _ in 0..3 {
        let answer = http::send(stage.buyer.http(), &Stage::request()).await;
        assert_eq!(answer.status, 200);
    }
    // Receipts are answered a moment after they come.
    let end = tokio::time::Instant::now() + ACCEPTED_DEADLINE;
    let loot = loop {
        let loot = stage.cheat.loot();
        if loot.accepted.keys().any(|a| !loot.fair.contains_key(a)) {
            break loot;
        }
        let now = tokio::time::Instant::now();
        assert!(now < end, "they were not answered");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let strangers: u64 = loot
        .accepted
        .iter()
        .filter(|(attempt, _)| !loot.fair.contains_key(attempt))
        .map(|(_, cost)| cost)
        .sum();
    println!("stolen: case=\"40 receipts for nothing\" micro_usd={strangers} bound=0");
    assert_eq!(strangers, 0, "they were answered with 0");
    for (attempt, paid) in &loot.accepted {
        let fair = loot.fair.get(attempt).copied().unwrap_or(0);
        assert!(
            *paid <= fair + granted(fair),
            "{attempt}: {paid} for {fair}"
        );
    }
}
