//! What a node that lost its memory, or slept too long, finds again: the chain and the other side
//! know enough.

use souk::types::{ChannelId, MicroUsd};

use super::{Home, PATIENT, World, address, books, start_seller};
use crate::harness::node::Node;
use crate::harness::upstream::Script;

/// The shortest challenge period that the contract takes, and the shortest life.
const SHORT: &str = "[payment]\nsettle_min = \"5\"\nidle_close = \"100h\"\n\
                     challenge_period = \"1h\"\nlifetime = \"2h\"\n";
/// The fee of the opening.
const FEE: MicroUsd = MicroUsd(10_000);
/// What all streams of a pair share: the most that is signed and not used.
const WINDOW: MicroUsd = MicroUsd(50_000);

fn forget(home: &Home) {
    for name in ["ledger.db", "ledger.db-wal", "ledger.db-shm"] {
        let path = home.path().join(name);
        if path.exists() {
            std::fs::remove_file(path).unwrap();
        }
    }
}

async fn used(more: &str) -> (World, ChannelId) {
    let world = World::start(MicroUsd::from_usd(5), more).await;
    world.ask_until_served().await;
    let channel = world.opened().await;
    for n in 0..6 {
        let answer = world.ask(&format!("The {n}th."), n % 2 == 0).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    world.booked().await;
    (world, channel)
}

/// Takes a killed node's ledger away and starts it again.
fn lose_ledger(node: &mut Node) {
    node.kill();
    forget(node.home());
    node.restart();
}

/// One side lost its ledger; `kept` did not. The channel goes on, the seller gets all that it earned,
/// and no more than a window of prepayment on top.
async fn assert_goes_on(world: &World, channel: ChannelId, kept: &Home, who: &str) {
    let before = MicroUsd(books::billed(&books::rows(kept)));
    world.ask_until_served().await;
    assert_eq!(world.channel().await, channel, "the same channel again");
    world.end_channels().await;
    world
        .wait_on_chain(&channel, "closed", |state| state.is_closed)
        .await;
    let all = MicroUsd(books::billed(&books::rows(kept)));
    let settled = world.on_chain(&channel).await.settled;
    let more = settled.saturating_sub(all.saturating_add(FEE));
    println!(
        "{who} without ledger: {before} USD billed before, {all} USD in all, {settled} USD settled with \
         the fee, {more} USD of prepayment lost; the bound is {WINDOW} USD"
    );
    assert!(
        settled >= all.saturating_add(FEE),
        "the seller gets all it earned"
    );
    assert!(more <= WINDOW);
    world.verify();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buyer_without_its_ledger_goes_on_with_its_channel_and_pays_nothing_twice() {
    let (mut world, channel) = used(PATIENT).await;
    lose_ledger(&mut world.buyer);
    assert_goes_on(&world, channel, world.seller.node.home(), "buyer").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seller_without_its_ledger_gets_what_the_buyer_signed_and_serves_nothing_twice() {
    let (mut world, channel) = used(PATIENT).await;
    world.seller.node.keep_ports();
    lose_ledger(&mut world.seller.node);
    assert_goes_on(&world, channel, world.buyer.home(), "seller").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn abandoned_channels_pay_out_when_both_nodes_wake_up_after_the_expiry() {
    let (mut world, channel) = used(SHORT).await;
    let sold = MicroUsd(books::billed(&books::rows(world.seller.node.home())));
    world.buyer.kill();
    world.seller.node.kill();
    world.chain.travel(3 * 3_600);
    world.seller.node.restart();
    world.buyer.restart();
    world
        .wait_on_chain(&channel, "closed", |state| state.is_closed)
        .await;
    let settled = world.on_chain(&channel).await.settled;
    let buyer = world.buyer.home();
    let back = world
        .chain
        .vault(buyer)
        .await
        .saturating_add(world.chain.wallet(buyer).await);
    println!(
        "abandoned for 3 h: {sold} USD earned, {settled} USD settled with the fee, {back} USD of 5 back with \
         the buyer, no command typed"
    );
    assert!(settled >= sold.saturating_add(FEE));
    assert!(settled <= sold.saturating_add(FEE).saturating_add(WINDOW));
    assert_eq!(back.saturating_add(settled), MicroUsd::from_usd(5));
    assert_eq!(world.chain.vault(world.seller.node.home()).await, settled);
    assert_eq!(world.wei(buyer), "0x0");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_seller_gone_another_one_carries_the_reclaim_and_the_buyer_needs_no_gas() {
    let (mut world, channel) = used(SHORT).await;
    world.seller.node.kill();
    let url = world.chain.world.anvil.url();
    let other = start_seller(
        &world.chain,
        &url,
        world.bootstrap.listen(),
        SHORT,
        Script::default(),
    );
    let other = other.await;
    world.chain.travel(3 * 3_600);
    world
        .wait_on_chain(&channel, "reclaimed", |state| state.is_closed)
        .await;
    let settled = world.on_chain(&channel).await.settled;
    let buyer = world.buyer.home();
    let back = world
        .chain
        .vault(buyer)
        .await
        .saturating_add(world.chain.wallet(buyer).await);
    let relayed = world.chain.vault(other.node.home()).await;
    println!(
        "seller gone: {back} USD of 5 back with the buyer, {settled} USD was settled before, the relayer \
         took {relayed} USD, no command typed"
    );
    assert_eq!(
        back.saturating_add(settled).saturating_add(relayed),
        MicroUsd::from_usd(5)
    );
    assert_eq!(world.wei(buyer), "0x0");
    assert_ne!(address(buyer), address(other.node.home()));
}
