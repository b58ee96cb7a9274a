//! A channel's life: opened by a first request that does not wait for the chain, used, settled,
//! closed by the nodes themselves. At the end the chain and both ledgers name the same sums.

use std::time::{Duration, Instant};

use souk::types::MicroUsd;

use super::{Chain, World, books};

/// Requests after the first.
const REQUESTS: usize = 30;

/// Where the buyer's money goes in the end.
const ELSEWHERE: &str = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed";

/// Settles often, and closes when no request came for longer than a slow machine is between two.
const EAGER: &str = "[payment]\nsettle_min = \"0.05\"\nidle_close = \"20s\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_buyer_without_gas_pays_and_every_micro_usd_is_accounted_for() {
    let world = World::start(MicroUsd::from_usd(20), EAGER).await;
    let started = Instant::now();
    world.ask_first("Say something.", true).await;
    let first_ms = started.elapsed().as_millis();
    let channel = world.channel().await;
    let before = world.on_chain(&channel).await;
    assert_eq!(
        before.expiry_s, 0,
        "no block was made, so the chain knows of no channel"
    );

    world.chain.let_blocks_come();
    world
        .wait_on_chain(&channel, "opened", |state| state.expiry_s > 0)
        .await;
    let deposit = world.on_chain(&channel).await.deposit;
    for n in 0..REQUESTS {
        let answer = world
            .ask(&format!("Say something for the {n}th time."), n % 2 == 0)
            .await;
        assert_eq!(
            answer.status,
            200,
            "{n}: {}\n{}",
            answer.text(),
            world.seller.node.stderr_tail()
        );
    }
    let (bought, sold) = world.booked().await;
    let total = MicroUsd(books::billed(&bought));
    assert_eq!(total, MicroUsd(books::billed(&sold)));

    world
        .wait_on_chain(&channel, "closed when idle", |state| state.is_closed)
        .await;
    let end = world.on_chain(&channel).await;
    let fee = MicroUsd(10_000);
    assert_eq!(
        end.settled,
        total.saturating_add(fee),
        "what was billed, and the fee of the opening"
    );
    let (buyer, seller) = (world.buyer.home(), world.seller.node.home());
    let (vault, wallet) = (
        world.chain.vault(buyer).await,
        world.chain.wallet(buyer).await,
    );
    assert_eq!(
        vault.saturating_add(wallet).saturating_add(end.settled),
        MicroUsd::from_usd(20),
        "all that was not billed is the buyer's again"
    );
    assert_eq!(world.chain.vault(seller).await, end.settled);

    // What is left goes where its owner wants it; the seller carries it for a fee.
    let done = buyer.json(&["wallet", "withdraw", "--all", "--to", ELSEWHERE, "--json"]);
    assert_eq!(
        done["transactions"][0]["progress"]["state"], "confirmed",
        "{done}"
    );
    let out = world.chain.tokens_of(ELSEWHERE).await;
    let relayed = world.chain.vault(seller).await.saturating_sub(end.settled);
    assert_eq!(
        MicroUsd(done["plan"]["fee_micro_usd"].as_u64().unwrap()),
        relayed
    );
    assert_eq!(world.chain.vault(buyer).await, MicroUsd::ZERO);
    assert_eq!(
        out.saturating_add(relayed)
            .saturating_add(world.chain.wallet(buyer).await)
            .saturating_add(end.settled),
        MicroUsd::from_usd(20),
        "every micro-USD is somewhere"
    );
    assert_eq!(world.wei(buyer), "0x0", "the buyer never had a wei");
    world.verify();
    println!(
        "withdrawn: {out} USD, {relayed} USD for carrying it; wallet {} USD",
        world.chain.wallet(buyer).await
    );
    println!(
        "first request {first_ms} ms before any block; {} requests, {total} USD billed on both sides, \
         {} USD settled on chain with the fee of {fee}, deposit {deposit}, buyer's wei 0",
        REQUESTS + 1,
        end.settled,
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deposit_is_raised_under_load_and_no_request_waits_for_it() {
    let more = "[payment]\nsettle_min = \"5\"\nidle_close = \"1h\"\ndeposit_min = \"0.3\"\n\
                deposit_share = \"1%\"\n";
    let world = World::start(MicroUsd::from_usd(20), more).await;
    world.ask_until_served().await;
    let channel = world.channel().await;
    world.chain.let_blocks_come();
    world
        .wait_on_chain(&channel, "opened", |state| state.expiry_s > 0)
        .await;
    world.wait_confirmed().await;
    let first = world.on_chain(&channel).await.deposit;
    let mut slowest = Duration::ZERO;
    for n in 0..80 {
        let started = Instant::now();
        let answer = world.ask(&format!("The {n}th."), n % 2 == 0).await;
        slowest = slowest.max(started.elapsed());
        let seller = world.seller.node.stderr_tail();
        assert_eq!(answer.status, 200, "{n}: {}\n{seller}", answer.text());
        tokio::time::sleep(pause(&world).await).await;
    }
    let raised = world.on_chain(&channel).await.deposit;
    let (bought, _) = world.booked().await;
    let total = MicroUsd(books::billed(&bought));
    println!(
        "deposit {first} USD raised to {raised} USD over 80 requests of {total} USD in all; the slowest \
         took {slowest:?}"
    );
    assert!(raised > first && total > first, "{first} {raised} {total}");
    world.end_channels().await;
    world
        .wait_on_chain(&channel, "closed", |state| state.is_closed)
        .await;
    let settled = world.on_chain(&channel).await.settled;
    assert_eq!(settled, total.saturating_add(MicroUsd(10_000)));
    world.verify();
}

/// A rollup's confirmation takes a few seconds, a deposit lasts longer than that. So that a slow machine
/// is like that too, requests come more slowly while a higher deposit is on its way.
async fn pause(world: &World) -> Duration {
    let list = world.channels().await;
    let sum = |name: &str| list[0][name].as_u64();
    let is_on_its_way = sum("deposit_micro_usd") > sum("onchain_deposit_micro_usd");
    Duration::from_millis(if is_on_its_way { 1_000 } else { 250 })
}

impl Chain {
    async fn tokens_of(&self, account: &str) -> MicroUsd {
        let account = souk::keys::parse_checksummed(account).unwrap();
        let chain = self.world.chain.as_ref();
        let balance = souk::chain::hub::token_balance(chain, self.token, account);
        balance.await.unwrap()
    }
}
