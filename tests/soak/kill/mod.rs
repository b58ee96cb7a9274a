//! R1: kill -9 of either node at random moments under load, and with `--failpoints` also at the steps
//! where a crash is worst. After its restart and SYNC no micro-USD is lost or doubled, and both
//! ledgers verify.
//!
//! The load goes on over the kills; every few rounds it rests until both ledgers agree. A final row
//! never changes, so what a round breaks is still broken then. On a chain the load rests a while in
//! every hundred rounds and the kills go on: channels are closed, and opened again, among them.

mod load;
mod market;
mod on_chain;

use std::time::{Duration, Instant};

use self::load::Running;
use self::market::{Market, Sums};
use crate::sim::rng::Rng;

/// A node lives between two kills from and up to, ms.
const LIFE_MS: (u64, u64) = (50, 600);
/// Rounds between two looks at the ledgers.
const ROUNDS_PER_CHECK: u64 = 25;
/// On a chain, of each hundred rounds this many are without load.
const QUIET_ROUNDS: u64 = 20;
/// One start in so many is to die at a failpoint.
const FAILPOINT_EVERY: u64 = 2;
/// A node that was started to die at a failpoint gets this long to reach it.
const FAILPOINT_LIFE: Duration = Duration::from_secs(3);
/// Where a buyer may die by itself.
const BUYER_POINTS: [&str; 8] = [
    "buyer_open_row",
    "buyer_voucher_durable",
    "buyer_after_head",
    "buyer_resp_head",
    "buyer_half_body",
    "buyer_usage",
    "buyer_before_accept",
    "buyer_after_accept",
];
/// Where a seller may.
const SELLER_POINTS: [&str; 9] = [
    "seller_open_row",
    "seller_voucher_durable",
    "seller_before_upstream",
    "seller_resp_head",
    "seller_half_body",
    "seller_before_usage",
    "seller_after_usage",
    "seller_accept_durable",
    // Between the intent's row and the broadcast: an opening, a settlement, a close.
    "chain-signed",
];

/// What is run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Kills.
    pub rounds: u64,
    /// Draws the moments.
    pub seed: u64,
    /// Pay on a chain, else by credit.
    pub chain: bool,
    /// Half of the starts are to die at a failpoint; debug builds only.
    pub failpoints: bool,
}

/// What the rounds did.
#[derive(Default)]
struct Deaths {
    /// Of the seller, of the buyer.
    killed: [u64; 2],
    at_failpoints: u64,
    restarts_ms: Vec<u128>,
}

/// Runs the experiment; gives its line of figures.
pub async fn run(plan: Plan) -> Result<String, String> {
    if plan.failpoints && !cfg!(debug_assertions) {
        let how = "cargo build --example soak --bin node, then target/debug/examples/soak";
        return Err(format!("a release build has no failpoints: {how}"));
    }
    let began = Instant::now();
    let mut rng = Rng::new(plan.seed);
    let mut market = Market::start(plan.chain).await;
    let load = Running::start(market.buyer.http());
    let mut deaths = Deaths::default();
    let mut sums = None;
    for round in 1..=plan.rounds {
        let is_quiet = plan.chain && round % 100 > 100 - QUIET_ROUNDS;
        load.rest(is_quiet);
        deaths.one(&mut market, &mut rng, plan.failpoints).await;
        if round % ROUNDS_PER_CHECK == 0 || round == plan.rounds {
            load.rest(true);
            sums = Some(check(&market, round).await?);
        }
    }
    let (asked, answered) = load.end().await;
    let end = match &market.chain {
        Some(chain) => format!(" {}", on_chain::settle_all(&market, chain).await?),
        None => String::new(),
    };
    let sums = sums.filter(|sums| sums.charged > 0);
    let sums = sums.ok_or("nothing was paid: the load never ran")?;
    let (p50, p99) = deaths.restarts();
    Ok(format!(
        "kill: mode={} rounds={} buyer={} seller={} at_failpoints={} asked={asked} \
         answered={answered} charged={} micro_usd={} lost=0 doubled=0{end} restart_p50_ms={p50} \
         restart_p99_ms={p99} s={}",
        if plan.chain { "channel" } else { "credit" },
        plan.rounds,
        deaths.killed[1],
        deaths.killed[0],
        deaths.at_failpoints,
        sums.charged,
        sums.billed,
        began.elapsed().as_secs(),
    ))
}

async fn check(market: &Market, round: u64) -> Result<Sums, String> {
    let checked = market.check().await;
    checked.map_err(|what| format!("round {round}: {what}\n{}", market.last_words()))
}

impl Deaths {
    /// One round: a node lives a moment, dies, and is started again.
    async fn one(&mut self, market: &mut Market, rng: &mut Rng, failpoints: bool) {
        let life = Duration::from_millis(rng.between(LIFE_MS.0, LIFE_MS.1));
        tokio::time::sleep(life).await;
        let is_buyer = rng.chance(500);
        let (node, points) = if is_buyer {
            (&mut market.buyer, &BUYER_POINTS[..])
        } else {
            (&mut market.seller.node, &SELLER_POINTS[..])
        };
        self.killed[usize::from(is_buyer)] += 1;
        if failpoints && rng.next().is_multiple_of(FAILPOINT_EVERY) {
            let point = points[rng.next() as usize % points.len()];
            node.restart_to_die_at(point);
            let end = Instant::now() + FAILPOINT_LIFE;
            while node.is_running() && Instant::now() < end {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            self.at_failpoints += u64::from(!node.is_running());
        }
        node.kill();
        let restart = Instant::now();
        node.restart();
        self.restarts_ms.push(restart.elapsed().as_millis());
    }

    fn restarts(&mut self) -> (u128, u128) {
        self.restarts_ms.sort_unstable();
        let at = |percent: usize| self.restarts_ms[(self.restarts_ms.len() - 1) * percent / 100];
        (at(50), at(99))
    }
}
