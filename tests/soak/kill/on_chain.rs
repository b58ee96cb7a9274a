//! The end of a run on a chain: every channel closes by itself, and chain and both ledgers name the
//! same sums.

use std::collections::BTreeMap;
use std::time::Duration;

use souk::ledger::{Reader, Role};
use souk::types::{ChannelId, MicroUsd};
use tokio::time::Instant;

use super::market::{Market, tokens};
use crate::harness::chain::Market as Chain;
use crate::harness::node::Home;

/// Idle channels are closed after 12 s, a few blocks later all is final; the machine is busy.
const CLOSED_DEADLINE: Duration = Duration::from_secs(240);
/// How often the chain is asked.
const PAUSE: Duration = Duration::from_millis(500);
/// What the seller takes for an opening, the default.
const FEE: MicroUsd = MicroUsd(10_000);
/// What all streams of a pair share: the most that is signed ahead of what arrives, and the most that
/// is delivered ahead of what is signed. A whole answer that a kill breaks off was signed for as it came
/// and is not paid; that stays in the channel as credit, for an honest seller brings on the way only what
/// accepted costs have earned, and at the end the lowest voucher that pays what it delivered.
const WINDOW: MicroUsd = MicroUsd(50_000);

/// What came of all channels, micro-USD.
#[derive(Default)]
pub struct Closed {
    channels: u64,
    settled: MicroUsd,
    fees: MicroUsd,
    /// Paid for a voucher that was signed and not used up: nobody was there to sign an exact one.
    over: MicroUsd,
    /// The most of it in one channel.
    over_most: MicroUsd,
    short_most: MicroUsd,
    /// Delivered and not signed for, because the other side was dead when the channel closed.
    short: MicroUsd,
}

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "channels={} settled={} fees={} over={} (at most {}) short={} (at most {}) conserved=yes",
            self.channels,
            self.settled.0,
            self.fees.0,
            self.over.0,
            self.over_most.0,
            self.short.0,
            self.short_most.0
        )
    }
}

/// Waits until every channel is closed, then compares.
pub async fn settle_all(market: &Market, chain: &Chain) -> Result<Closed, String> {
    let (buyer, seller) = (market.buyer.home(), market.seller.node.home());
    let end = Instant::now() + CLOSED_DEADLINE;
    let bought = loop {
        let bought = accepted(buyer, Role::Buy).await?;
        if all_closed(chain, bought.keys()).await {
            break bought;
        }
        if Instant::now() > end {
            let words = market.last_words();
            return Err(format!("not closed after {CLOSED_DEADLINE:?}\n{words}"));
        }
        tokio::time::sleep(PAUSE).await;
    };
    let sold = accepted(seller, Role::Sell).await?;
    let mut sum = Closed::default();
    for (id, here) in &bought {
        let there = sold.get(id).copied().unwrap_or_default();
        if *here != there {
            return Err(format!("{id}: {here} USD bought, {there} USD sold"));
        }
        sum.add(id, *here, chain).await?;
    }
    let left = chain
        .vault(buyer)
        .await
        .saturating_add(chain.wallet(buyer).await);
    let earned = chain.vault(seller).await;
    if earned != sum.settled || left.saturating_add(earned) != tokens() {
        return Err(format!(
            "the buyer has {left} USD and the seller {earned} USD of {} USD; {} USD were settled",
            tokens(),
            sum.settled
        ));
    }
    Ok(sum)
}

impl Closed {
    async fn add(&mut self, id: &ChannelId, billed: MicroUsd, chain: &Chain) -> Result<(), String> {
        let state = chain.on_chain(id).await;
        if state.expiry_s == 0 {
            // Signed and never brought to the chain: nobody may have used it.
            let is_unused = billed == MicroUsd::ZERO;
            return is_unused.then_some(()).ok_or_else(|| {
                format!("{id}: {billed} USD billed on a channel that never opened")
            });
        }
        let due = billed.saturating_add(FEE);
        let (over, short) = (
            state.settled.saturating_sub(due),
            due.saturating_sub(state.settled),
        );
        if over > WINDOW || short > WINDOW {
            let settled = state.settled;
            return Err(format!("{id}: {due} USD due, {settled} USD settled"));
        }
        self.channels += 1;
        self.settled = self.settled.saturating_add(state.settled);
        self.fees = self.fees.saturating_add(FEE);
        self.over = self.over.saturating_add(over);
        self.over_most = self.over_most.max(over);
        self.short_most = self.short_most.max(short);
        self.short = self.short.saturating_add(short);
        Ok(())
    }
}

/// Accepted cost by channel.
async fn accepted(home: &Home, role: Role) -> Result<BTreeMap<ChannelId, MicroUsd>, String> {
    let path = home.path().join("ledger.db");
    let reader = Reader::open(&path).await.map_err(|e| e.to_string())?;
    let states = reader.load(role).await.map_err(|e| e.to_string())?;
    let on_chain = states.iter().filter(|state| state.row.mode == "channel");
    Ok(on_chain
        .map(|state| (state.row.channel, state.accepted_sum))
        .collect())
}

async fn all_closed(chain: &Chain, ids: impl Iterator<Item = &ChannelId>) -> bool {
    for id in ids {
        let state = chain.on_chain(id).await;
        if state.expiry_s > 0 && !state.is_closed {
            return false;
        }
    }
    true
}
