//! R1: kill -9 of either node at random moments under load. After its restart and SYNC no micro-USD
//! is lost or doubled, and both ledgers verify.
//!
//! The load goes on over the kills; every few rounds it rests until both ledgers agree. A final row
//! never changes, so what a round breaks is still broken then.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::harness::books;
use crate::harness::http;
use crate::harness::market::{Dialect, Seller, UPSTREAM_KEY, start_buyer, wait_for_sellers};
use crate::harness::node::Node;
use crate::harness::upstream::Script;
use crate::sim::rng::Rng;

/// USD per million tokens: a voucher is due every few requests.
const PRICES: (&str, &str) = ("20.00", "80.00");
/// Clients that ask one request after another.
const CLIENTS: usize = 4;
/// Events a second of a stream: an answer takes about half a second, so most kills hit some.
const PACE: f64 = 120.0;
/// A node lives between two kills from and up to, ms.
const LIFE_MS: (u64, u64) = (50, 600);
/// Rounds between two looks at the ledgers.
const ROUNDS_PER_CHECK: u64 = 25;
/// A dead peer is noticed within 12 s, receipts repeat every 5 s, and the machine is busy.
const AGREED_DEADLINE: Duration = Duration::from_secs(90);
/// Credit that lasts for the whole run.
const CREDIT: [&str; 4] = ["--credit-limit", "1000", "--credit-total", "2000"];

struct Load {
    buyer: SocketAddr,
    rests: AtomicBool,
    ends: AtomicBool,
    asked: AtomicU64,
    answered: AtomicU64,
}

/// Asks again and again; failures are what the experiment is about.
async fn client(load: Arc<Load>, number: usize) {
    let mut count = number;
    while !load.ends.load(Ordering::Relaxed) {
        if load.rests.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        }
        count += 1;
        load.asked.fetch_add(1, Ordering::Relaxed);
        let request = Dialect::Chat.request("Say something.", count.is_multiple_of(2));
        let Ok(answer) = http::open(load.buyer, &request).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let answer = answer.finish().await;
        if answer.status == 200 && answer.complete {
            load.answered.fetch_add(1, Ordering::Relaxed);
        } else {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

struct Market {
    _bootstrap: Node,
    seller: Seller,
    buyer: Node,
}

impl Market {
    async fn start() -> Self {
        let bootstrap = Node::start(&["bootstrap"]);
        let script = Script::default().paced(PACE).key(UPSTREAM_KEY);
        let upstream = crate::harness::upstream::Upstream::start(script).await;
        let node = Seller::node(
            bootstrap.listen(),
            Dialect::Chat,
            PRICES,
            &upstream,
            &CREDIT,
        );
        let mut seller = Seller { node, upstream };
        let mut buyer = start_buyer(bootstrap.listen(), &[]);
        seller.node.keep_ports();
        buyer.keep_ports();
        wait_for_sellers(&buyer, 1).await;
        Self {
            _bootstrap: bootstrap,
            seller,
            buyer,
        }
    }

    /// Both ledgers agree, nothing is charged twice, and all verifies.
    async fn check(&self) -> Result<(u64, usize), String> {
        let (buyer, seller) = (self.buyer.home(), self.seller.node.home());
        let (bought, sold) = books::agreed(&[buyer], &[seller], AGREED_DEADLINE).await?;
        let twice = books::charged_twice(&bought);
        if !twice.is_empty() {
            return Err(format!("charged twice: {twice:?}"));
        }
        if books::billed(&bought) != books::billed(&sold) {
            return Err("the sums differ".to_owned());
        }
        books::verify(buyer)?;
        books::verify(seller)?;
        let charged = bought.values().filter(|row| row.billed > Some(0)).count();
        Ok((books::billed(&bought), charged))
    }
}

/// Runs the experiment; gives its line of figures.
pub async fn run(rounds: u64, seed: u64) -> Result<String, String> {
    let began = Instant::now();
    let mut rng = Rng::new(seed);
    let mut market = Market::start().await;
    let load = Arc::new(Load {
        buyer: market.buyer.http(),
        rests: AtomicBool::new(false),
        ends: AtomicBool::new(false),
        asked: AtomicU64::new(0),
        answered: AtomicU64::new(0),
    });
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| tokio::spawn(client(Arc::clone(&load), number)))
        .collect();
    let (mut restarts, mut sums) = (Vec::new(), (0, 0));
    let mut killed = [0u64; 2];
    for round in 1..=rounds {
        tokio::time::sleep(Duration::from_millis(rng.between(LIFE_MS.0, LIFE_MS.1))).await;
        let hits_buyer = rng.chance(500);
        killed[usize::from(hits_buyer)] += 1;
        let node = if hits_buyer {
            &mut market.buyer
        } else {
            &mut market.seller.node
        };
        node.kill();
        let restart = Instant::now();
        node.restart();
        restarts.push(restart.elapsed().as_millis());
        if round % ROUNDS_PER_CHECK == 0 || round == rounds {
            load.rests.store(true, Ordering::Relaxed);
            sums = market
                .check()
                .await
                .map_err(|what| format!("round {round}: {what}"))?;
            load.rests.store(false, Ordering::Relaxed);
        }
    }
    load.ends.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    restarts.sort_unstable();
    let at = |percent: usize| restarts[(restarts.len() - 1) * percent / 100];
    let (billed, charged) = sums;
    if charged == 0 {
        return Err("nothing was paid: the load never ran".to_owned());
    }
    Ok(format!(
        "kill: rounds={rounds} buyer={} seller={} asked={} answered={} charged={charged} \
         micro_usd={billed} lost=0 doubled=0 restart_p50_ms={} restart_p99_ms={} s={}",
        killed[1],
        killed[0],
        load.asked.load(Ordering::Relaxed),
        load.answered.load(Ordering::Relaxed),
        at(50),
        at(99),
        began.elapsed().as_secs(),
    ))
}
