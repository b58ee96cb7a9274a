//! A chain that fails: the RPC node is gone for a while, blocks are taken back, a seller dies between
//! signing a transaction and handing it over. Open channels keep serving, everything settles once.

use serde_json::json;
use souk::types::MicroUsd;
use tokio::time::Instant;

use super::{CHAIN_DEADLINE, PATIENT, PAUSE, World, books};
use crate::harness::proxy::{Mode, Proxy};

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
    world.end_channels().await;
    world
        .wait_on_chain(&channel, "closed", |state| state.is_closed)
        .await;
    let path = world.buyer.home().path().join("ledger.db");
    let reader = souk::ledger::Reader::open(&path).await.unwrap();
    let rows = reader.load(souk::ledger::Role::Buy).await.unwrap();
    let on_chain = rows.iter().filter(|one| one.row.mode == "channel").count();
    assert_eq!(on_chain, 1, "{what}: one channel");
    let settled = world.on_chain(&channel).await.settled;
    assert_eq!(settled, total.saturating_add(FEE), "{what}");
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
    let world = World::start_behind(MicroUsd::from_usd(5), PATIENT).await;
    world.ask_first("The first.", true).await;
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
    let world = World::start(MicroUsd::from_usd(5), PATIENT).await;
    let anvil = &world.chain.world.anvil;
    let started = std::time::Instant::now();
    world.ask_first("The first.", true).await;
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
    let mut world = World::start(MicroUsd::from_usd(5), PATIENT).await;
    world.seller.node.keep_ports();
    world.seller.node.restart_to_die_at("chain-signed");
    // The buyer may hold on to the connection of the seller's first life for a while, and the request
    // that reaches the second one may die with it.
    let end = Instant::now() + CHAIN_DEADLINE;
    while world.seller.node.is_running() {
        assert!(Instant::now() < end, "the seller does not die");
        let _ = world.ask("Hello?", false).await;
        tokio::time::sleep(PAUSE).await;
    }
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
