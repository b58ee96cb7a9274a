//! What is in doubt when a channel ends: a buyer that died before its ACCEPT comes back to a channel
//! that is closed. It settles over that channel, without paying for another, and with nothing left in
//! its wallet.

use serde_json::Value;
use souk::types::{ChannelId, MicroUsd};
use tokio::time::Instant;

use super::{CHAIN_DEADLINE, PATIENT, PAUSE, World, channels, config};
use crate::harness::http;
use crate::harness::market::{Dialect, wait_for_sellers};

/// How the seller closes once its buyer is dead.
const EAGER: &str = "[payment]\nsettle_min = \"5\"\nidle_close = \"12s\"\n";
/// Somebody else's account.
const ELSEWHERE: &str = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed";

/// A channel that was used and that its seller closed while the buyer was dead, with an answer that
/// the buyer has not accepted.
async fn closed_in_doubt(tokens: MicroUsd) -> (World, ChannelId) {
    let mut world = World::start(tokens, PATIENT).await;
    world.ask_until_served().await;
    let channel = world.opened().await;
    world.buyer.restart_to_die_at("buyer_resp_head");
    wait_for_sellers(&world.buyer, 1).await;
    // It dies with the first bytes of an answer.
    let request = Dialect::Chat.request("Are you there?", true);
    let end = Instant::now() + CHAIN_DEADLINE;
    while world.buyer.is_running() {
        assert!(Instant::now() < end, "the buyer does not die");
        if let Ok(answer) = http::open(world.buyer.http(), &request).await {
            drop(answer.finish().await);
        }
        tokio::time::sleep(PAUSE).await;
    }
    let end = Instant::now() + CHAIN_DEADLINE;
    while in_doubt(&channels(&world.seller.node).await) != Some(1) {
        assert!(Instant::now() < end, "the seller does not note the end");
        tokio::time::sleep(PAUSE).await;
    }
    config(&world.chain, world.seller.node.home(), EAGER);
    world.seller.node.keep_ports();
    world.seller.node.terminate();
    world.seller.node.restart();
    world
        .wait_on_chain(&channel, "closed without the buyer", |state| {
            state.is_closed
        })
        .await;
    let open = in_doubt(&channels(&world.seller.node).await);
    assert_eq!(open, Some(1), "the seller waits for one ACCEPT");
    (world, channel)
}

fn in_doubt(channels: &[Value]) -> Option<u64> {
    channels.first().and_then(|one| one["in_doubt"].as_u64())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buyer_back_after_a_close_settles_its_doubts_and_pays_for_no_new_channel() {
    let (mut world, channel) = closed_in_doubt(MicroUsd::from_usd(5)).await;
    world.buyer.restart();
    let (bought, _) = world.booked().await;
    assert!(
        bought.values().all(|row| row.billed.is_some()),
        "{bought:#?}"
    );
    // Long enough for a session more, which must not open one either.
    tokio::time::sleep(std::time::Duration::from_secs(6)).await;
    let held = world.held();
    assert_eq!(held.len(), 1, "no other channel was opened: {held:#?}");
    let settled = world.on_chain(&channel).await.settled;
    let buyer = world.buyer.home();
    let back = world
        .chain
        .vault(buyer)
        .await
        .saturating_add(world.chain.wallet(buyer).await);
    assert_eq!(back.saturating_add(settled), MicroUsd::from_usd(5));
    println!(
        "back after a close: {} attempts booked on both sides over the closed channel, no fee paid",
        bought.len()
    );
    // An order is another matter.
    world.ask_until_served().await;
    let end = Instant::now() + CHAIN_DEADLINE;
    while world.held().len() < 2 {
        assert!(Instant::now() < end, "the next order opens a channel");
        tokio::time::sleep(PAUSE).await;
    }
    world.booked().await;
    world.verify();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buyer_with_nothing_left_settles_its_doubts_and_is_told_that_its_wallet_is_empty() {
    // A deposit and a cent.
    let (mut world, _) = closed_in_doubt(MicroUsd(510_000)).await;
    let buyer = world.buyer.home().clone();
    world.chain.world.anvil.fund(&buyer.evm_address);
    let file = buyer.path().join("config.toml");
    let file = file.to_str().unwrap();
    let done = buyer.run(&[
        "wallet", "withdraw", "--all", "--to", ELSEWHERE, "--config", file,
    ]);
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    world.buyer.restart();
    wait_for_sellers(&world.buyer, 1).await;
    let end = Instant::now() + CHAIN_DEADLINE;
    let refused = loop {
        let refused = world.ask("Anything for a poor node?", false).await;
        if refused.status == 402 {
            break refused;
        }
        // What the wallet holds is read a moment after the start.
        assert!(Instant::now() < end, "{}", refused.text());
        tokio::time::sleep(PAUSE).await;
    };
    assert_eq!(refused.json()["error"]["code"], "insufficient_funds");
    world.booked().await;
    assert_eq!(world.held().len(), 1);
    assert_eq!(world.ask("And now?", false).await.status, 402);
    world.verify();
}

impl World {
    /// The buyer's channels as its wallet lists them.
    fn held(&self) -> Vec<Value> {
        let list = self.buyer.home().json(&["channel", "list", "--json"]);
        list.as_array().cloned().unwrap_or_default()
    }
}
