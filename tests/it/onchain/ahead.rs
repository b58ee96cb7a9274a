//! Channels opened ahead: when the first seller goes, the next one's channel is there and final.

use std::time::Duration;

use serde_json::Value;
use souk::types::MicroUsd;
use tokio::time::Instant;

use super::{CHAIN_DEADLINE, PATIENT, PAUSE, World, start_seller};
use crate::harness::market::wait_for_sellers;
use crate::harness::upstream::Script;

/// Longer than the buyer's interval between two looks.
const A_LOOK: Duration = Duration::from_secs(16);

async fn with_two_sellers(tokens: MicroUsd) -> (World, super::Seller) {
    let world = World::start(tokens, PATIENT).await;
    world.chain.let_blocks_come();
    let url = world.chain.world.anvil.url();
    let entry = world.bootstrap.listen();
    let other = start_seller(&world.chain, &url, entry, PATIENT, Script::default()).await;
    wait_for_sellers(&world.buyer, 2).await;
    (world, other)
}

fn is_final(one: &Value) -> bool {
    one["confirmed"] == true
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_finds_the_next_sellers_channel_open_and_final() {
    let (mut world, mut other) = with_two_sellers(MicroUsd::from_usd(20)).await;
    world.ask_until_served().await;
    let end = Instant::now() + CHAIN_DEADLINE;
    let used = |one: &&Value| one["accepted_micro_usd"].as_u64() > Some(0);
    let list = loop {
        let list = world.channels().await;
        if list.len() == 2 && list.iter().all(is_final) && list.iter().any(|one| used(&one)) {
            break list;
        }
        assert!(
            Instant::now() < end,
            "{list:#?}\n{}",
            world.buyer.stderr_tail()
        );
        tokio::time::sleep(PAUSE).await;
    };
    // The one that did not serve is the one that was opened ahead.
    assert_eq!(list.iter().filter(used).count(), 1, "{list:#?}");
    let first = list.iter().find(used).unwrap()["seller"].as_str().unwrap();
    if first == world.seller.node.peer_id() {
        world.seller.node.kill();
    } else {
        other.node.kill();
    }
    let started = Instant::now();
    let answer = world.ask("Who is left?", false).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let list = world.channels().await;
    assert_eq!(list.len(), 2, "no channel was opened for it: {list:#?}");
    assert!(list.iter().all(is_final));
    println!(
        "failover to a channel opened ahead: {} ms",
        started.elapsed().as_millis()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_opened_ahead_from_a_small_wallet() {
    let (world, _other) = with_two_sellers(MicroUsd(2_400_000)).await;
    world.ask_until_served().await;
    tokio::time::sleep(A_LOOK).await;
    world.ask_until_served().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let list = world.channels().await;
    assert_eq!(list.len(), 1, "{list:#?}");
}
