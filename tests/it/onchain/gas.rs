//! A seller whose account is empty cannot close: it says so, loses nothing, and closes when it gets
//! coins or when another seller carries the close for a fee.

use serde_json::json;
use souk::types::{ChannelId, MicroUsd};
use tokio::time::Instant;

use super::{CHAIN_DEADLINE, PATIENT, PAUSE, World, books, start_seller};
use crate::harness::http::{self, Request};
use crate::harness::upstream::Script;

/// The fee of the opening.
const FEE: MicroUsd = MicroUsd(10_000);

/// A used channel that is to end, whose seller has lost its coins; and what it earned.
async fn stuck() -> (World, ChannelId, MicroUsd) {
    let world = World::start(MicroUsd::from_usd(5), PATIENT).await;
    world.ask_until_served().await;
    let channel = world.opened().await;
    let seller = &world.seller.node.home().evm_address;
    let anvil = &world.chain.world.anvil;
    anvil.rpc("anvil_setBalance", json!([seller, "0x0"]));
    for n in 0..5 {
        let answer = world.ask(&format!("The {n}th."), n % 2 == 0).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let (bought, _) = world.booked().await;
    let earned = MicroUsd(books::billed(&bought));
    world.end_channels().await;
    (world, channel, earned)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seller_without_gas_says_so_and_closes_once_it_has_some() {
    let (world, channel, earned) = stuck().await;
    let seller = world.seller.node.home();
    let end = Instant::now() + CHAIN_DEADLINE;
    let said = loop {
        let status = http::send(world.seller.node.http(), &Request::get("/api/status")).await;
        if let Some(text) = status.json()["chain_waits"].as_str() {
            break text.to_owned();
        }
        assert!(Instant::now() < end, "{}", world.seller.node.stderr_tail());
        tokio::time::sleep(PAUSE).await;
    };
    assert!(
        said.contains("waits to close") && said.contains("has 0 ETH and needs 0."),
        "{said}"
    );
    let screen = seller.run(&["status"]);
    let screen = String::from_utf8_lossy(&screen.stdout).into_owned();
    assert!(screen.contains("waits to close"), "{screen}");
    assert!(!world.on_chain(&channel).await.is_closed);

    world.chain.world.anvil.fund(&seller.evm_address);
    world
        .wait_on_chain(&channel, "closed with gas", |state| state.is_closed)
        .await;
    let settled = world.on_chain(&channel).await.settled;
    assert_eq!(settled, earned.saturating_add(FEE), "nothing is lost");
    assert_eq!(world.chain.vault(seller).await, settled);
    let end = Instant::now() + CHAIN_DEADLINE;
    loop {
        let status = http::send(world.seller.node.http(), &Request::get("/api/status")).await;
        if status.json()["chain_waits"].is_null() {
            break;
        }
        assert!(Instant::now() < end, "{}", status.text());
        tokio::time::sleep(PAUSE).await;
    }
    world.verify();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_seller_carries_the_close_of_one_without_gas_for_a_fee() {
    let (world, channel, earned) = stuck().await;
    let url = world.chain.world.anvil.url();
    let entry = world.bootstrap.listen();
    let other = start_seller(&world.chain, &url, entry, PATIENT, Script::default()).await;
    world
        .wait_on_chain(&channel, "closed by another", |state| state.is_closed)
        .await;
    let seller = world.seller.node.home();
    let settled = world.on_chain(&channel).await.settled;
    assert_eq!(settled, earned.saturating_add(FEE), "nothing is lost");
    assert_eq!(world.wei(seller), "0x0", "the seller never got a coin");
    let fee = world.chain.vault(other.node.home()).await;
    let kept = world.chain.vault(seller).await;
    println!("closed by another seller: {settled} USD settled, {fee} USD of it to the relayer");
    assert_eq!(kept.saturating_add(fee), settled);
    assert!(fee > MicroUsd::ZERO && fee <= MicroUsd(50_000), "{fee}");
    // Once: it would pay the fee again.
    tokio::time::sleep(std::time::Duration::from_secs(12)).await;
    assert_eq!(world.chain.vault(other.node.home()).await, fee);
    world.verify();
}
