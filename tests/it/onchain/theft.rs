//! A seller that is paid on one channel and shows the same vouchers again on the next: what a voucher
//! promises, it promises once.

use souk::chain::hub::calls;
use souk::payment::onchain::paper;
use souk::protocol::terms::ChainTerms;
use souk::types::{ChannelId, MicroUsd};
use tokio::time::Instant;

use super::{CHAIN_DEADLINE, CONFIRMATIONS, Chain, PAUSE, config};
use crate::harness::cheat::{Cheat, OPEN_FEE};
use crate::harness::http::{self, Response};
use crate::harness::market::{self, Dialect, Hold};
use crate::harness::node::{Home, Node};

/// Answers on the first channel: they cost more than the bound on what the next one may lose.
const FIRST_ANSWERS: usize = 16;
/// And on the next.
const NEXT_ANSWERS: usize = 4;
/// What vouchers may be ahead on one stream at the prices of the cheat, and the most by which a buyer
/// grants each answer more than it counts itself.
const BOUND: MicroUsd = MicroUsd(2_048 + 1_000);

async fn ask(buyer: &Node, prompt: &str) -> Response {
    http::send(buyer.http(), &Dialect::Chat.request(prompt, true)).await
}

/// Asks until an answer comes.
async fn served(buyer: &Node, prompt: &str) {
    let end = Instant::now() + CHAIN_DEADLINE;
    loop {
        let answer = ask(buyer, prompt).await;
        if answer.status == 200 {
            return;
        }
        let tail = buyer.stderr_tail();
        assert!(Instant::now() < end, "{}\n{tail}", answer.text());
        tokio::time::sleep(PAUSE).await;
    }
}

/// What the buyer says that it has signed on a channel.
async fn signed(buyer: &Node, channel: &ChannelId) -> MicroUsd {
    let id = channel.to_string();
    let list = super::channels(buyer).await;
    let one = list.iter().find(|one| one["channel"] == id.as_str());
    let sum = one.and_then(|one| one["signed_micro_usd"].as_u64());
    MicroUsd(sum.unwrap_or_else(|| panic!("no {id} in {list:#?}")))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seller_that_shows_the_vouchers_of_an_earlier_channel_on_the_next_gets_nothing_for_them()
{
    let _hold = Hold::shared().await;
    let chain = Chain::start().await;
    let home = Home::new();
    chain.mint(&home, MicroUsd::from_usd(5)).await;
    chain.world.anvil.mine(CONFIRMATIONS);
    let terms = ChainTerms {
        domain: chain.hub,
        token: chain.token,
        operator: chain.world.seller.address(),
        challenge_period_s: 86_400,
        deposit_min: MicroUsd(500_000),
        unconfirmed_max: MicroUsd(50_000),
    };
    let cheat = Cheat::start_on_chain(&"An answer of some length. ".repeat(60), terms);
    let bootstrap = cheat.peer.listen().await;
    let file = config(&chain, &home, "[payment]\nidle_close = \"1h\"\n");
    let args = [
        "buy",
        "--port",
        "0",
        "--bootstrap",
        &bootstrap,
        "--config",
        &file,
    ];
    let buyer = Node::start_at(home, &args);
    market::wait_for_sellers(&buyer, 1).await;
    for n in 0..FIRST_ANSWERS {
        served(&buyer, &format!("Number {n}.")).await;
    }

    // The cheat is paid by what it has on the first channel, and that ends it.
    let first = *cheat.loot().channels.last().unwrap();
    let taken = cheat.loot().of.remove(&first).unwrap();
    let kept = taken.channel.unwrap();
    let (earlier, _) = taken.voucher.unwrap();
    let (sender, hub) = (chain.world.sender(), chain.hub.hub);
    let open = paper::open_call(&kept);
    chain.world.send(&sender, Some(hub), open).await;
    let claim = paper::claim(&kept.descriptor, taken.voucher);
    chain
        .world
        .send(&sender, Some(hub), calls::close(&claim))
        .await;
    chain.world.anvil.mine(CONFIRMATIONS);
    assert_eq!(chain.on_chain(&first).await.settled, earlier);

    let end = Instant::now() + CHAIN_DEADLINE;
    while cheat.loot().channels.len() < 2 {
        assert!(Instant::now() < end, "no other channel is opened");
        let _ = ask(&buyer, "And now?").await;
        tokio::time::sleep(PAUSE).await;
    }
    for n in 0..NEXT_ANSWERS {
        served(&buyer, &format!("Number {n} again.")).await;
    }
    let loot = cheat.loot();
    let next = *loot.channels.last().unwrap();
    let taken = &loot.of[&next];
    let held = taken.voucher.map_or(MicroUsd::ZERO, |(sum, _)| sum);
    let promised = signed(&buyer, &next).await.max(held);
    let fair = taken.fair.saturating_add(OPEN_FEE);
    let stolen = promised.saturating_sub(fair);
    println!(
        "vouchers over {earlier} USD of an earlier channel shown {} times: {promised} USD signed on the next one, \
         {fair} USD served there with the fee, {stolen} USD taken; the bound is {BOUND} USD",
        loot.shown_again
    );
    assert!(loot.shown_again >= 2, "it tried both ways");
    assert!(
        earlier > fair.saturating_add(BOUND),
        "it would have been noticed"
    );
    assert!(stolen <= BOUND, "{stolen}");
}
