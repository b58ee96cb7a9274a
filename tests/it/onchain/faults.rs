//! A chain that fails: the RPC node is gone for a while, blocks are taken back, a seller dies between
//! signing a transaction and handing it over. Open channels keep serving, everything settles once.

use serde_json::json;
use souk::types::MicroUsd;

use super::{World, books};
use crate::harness::proxy::{Mode, Proxy};

/// A restarted node and its peer find each other well before the channel counts as idle.
const EAGER: &str = "[payment]\nsettle_min = \"0.05\"\nidle_close = \"20s\"\n";
/// The fee of the opening.
const FEE: MicroUsd = MicroUsd(10_000);

async fn ask_all(world: &World, count: usize) {
    for n in 0..count {
        let answer = world.ask(&format!("The {n}th."), n % 2 == 0).await;
        let seller = world.seller.node.stderr_tail();
        assert_eq!(answer.status, 200, "{n}: {}\n{seller}", answer.text());
    }
}

/// The end of every story: closed, and the chain names the same sum as both ledgers.
async fn assert_settled_once(world: &World, what: &str) {
    let channel = world.channel().await;
    let (bought, sold) = world.booked().await;
    let total = MicroUsd(books::billed(&bought));
    assert_eq!(total, MicroUsd(books::billed(&sold)));
    world
        .wait_on_chain(&channel, "closed when idle", |state| state.is_closed)
        .await;
    // A seller that was away long enough may have seen an idle channel end and another begin.
    let path = world.buyer.home().path().join("ledger.db");
    let reader = souk::ledger::Reader::open(&path).await.unwrap();
    let rows = reader.load(souk::ledger::Role::Buy).await.unwrap();
    let (mut settled, mut fees) = (MicroUsd::ZERO, MicroUsd::ZERO);
    for row in rows.iter().filter(|one| one.row.mode == "channel") {
        let state = world.on_chain(&row.row.channel).await;
        settled = settled.saturating_add(state.settled);
        fees = fees.saturating_add(FEE);
    }
    assert_eq!(settled, total.saturating_add(fees), "{what}");
    let seller = world.chain.vault(world.seller.node.home()).await;
    assert_eq!(seller, settled, "{what}: settled once");
    world.verify();
    println!(
        "{what}: {total} USD billed on both sides, {} USD on the chain with the fee",
        settled
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn open_channels_keep_serving_while_the_rpc_node_is_down_and_settle_once_afterwards() {
    let world = World::start_behind(MicroUsd::from_usd(5), EAGER).await;
    ask_all(&world, 1).await;
    let channel = world.opened().await;
    world.rpc().set(Mode::Down);
    ask_all(&world, 12).await;
    let open = world.on_chain(&channel).await;
    assert!(!open.is_closed);
    world.rpc().set(Mode::Pass);
    assert_settled_once(&world, "RPC node down").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_opening_that_a_reorg_removes_is_brought_again_and_the_channel_goes_on() {
    let world = World::start(MicroUsd::from_usd(5), EAGER).await;
    let anvil = &world.chain.world.anvil;
    let started = std::time::Instant::now();
    ask_all(&world, 1).await;
    let channel = world.channel().await;
    world.wait_for_a_transaction().await;
    anvil.mine(1);
    world
        .wait_on_chain(&channel, "opened", |state| state.expiry_s > 0)
        .await;
    anvil.rpc("anvil_rollback", json!([1]));
    assert_eq!(
        world.on_chain(&channel).await.expiry_s,
        0,
        "the block is gone"
    );
    ask_all(&world, 2).await;
    world.chain.let_blocks_come();
    world
        .wait_on_chain(&channel, "opened again", |state| state.expiry_s > 0)
        .await;
    println!("opened again after {:?}", started.elapsed());
    ask_all(&world, 10).await;
    assert_settled_once(&world, "reorg of the opening").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seller_killed_between_signing_and_broadcasting_opens_the_channel_once_after_its_restart()
{
    let mut world = World::start(MicroUsd::from_usd(5), EAGER).await;
    world.seller.node.keep_ports();
    world.seller.node.restart_to_die_at("chain-signed");
    super::market::wait_for_sellers(&world.buyer, 1).await;
    // The first request may die with the seller.
    let _ = world.ask("Hello?", false).await;
    world.wait_for_the_seller_s_death().await;
    world.chain.let_blocks_come();
    world.seller.node.restart();
    world.ask_until_served().await;
    let channel = world.channel().await;
    world
        .wait_on_chain(&channel, "opened", |state| state.expiry_s > 0)
        .await;
    ask_all(&world, 10).await;
    assert_settled_once(&world, "killed between signing and broadcasting").await;
}

impl World {
    fn rpc(&self) -> &Proxy {
        self.proxy.as_ref().unwrap()
    }
}
