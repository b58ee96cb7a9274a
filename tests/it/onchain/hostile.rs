//! Buyers that cheat on a chain, and how much each could take: the figure is printed beside the bound
//! that PAYMENTS gives.

use std::time::Duration;

use souk::chain::hub::{Hub, calls};
use souk::keys::NodeKeys;
use souk::payment::onchain::paper;
use souk::protocol::voucher::HubChannel;
use souk::types::MicroUsd;
use tokio::time::Instant;

use super::{CHAIN_DEADLINE, PATIENT, PAUSE, World, address, books};
use crate::harness::http;
use crate::harness::market::Dialect;
use crate::harness::node::Node;
use crate::harness::upstream::Script;

/// The fee of the opening.
const FEE: MicroUsd = MicroUsd(10_000);
/// What all streams of a pair share, and one request's known-before part (a cent at these prices).
const BOUND: MicroUsd = MicroUsd(50_000 + 10_000);

fn keys(node: &Node) -> NodeKeys {
    NodeKeys::load(&node.home().path().join("key.json"), None, 0).unwrap()
}

/// The channel as the buyer's ledger keeps it.
async fn kept(node: &Node) -> HubChannel {
    let path = node.home().path().join("ledger.db");
    let reader = souk::ledger::Reader::open(&path).await.unwrap();
    let all = reader.load(souk::ledger::Role::Buy).await.unwrap();
    let mut on_chain = all.iter().filter(|one| one.row.mode == "channel");
    HubChannel::from_bytes(&on_chain.next_back().unwrap().row.descriptor).unwrap()
}

/// The highest voucher that the seller's ledger keeps.
async fn held(node: &Node) -> MicroUsd {
    let path = node.home().path().join("ledger.db");
    let reader = souk::ledger::Reader::open(&path).await.unwrap();
    let all = reader.load(souk::ledger::Role::Sell).await.unwrap();
    let highest = all
        .iter()
        .filter_map(|one| Some(one.voucher.as_ref()?.cumulative))
        .max();
    highest.unwrap_or_default()
}

/// What the seller's ledger says was delivered: accepted, and claimed by receipts.
async fn claimed(node: &Node) -> MicroUsd {
    let path = node.home().path().join("ledger.db");
    let reader = souk::ledger::Reader::open(&path).await.unwrap();
    let all = reader.load(souk::ledger::Role::Sell).await.unwrap();
    let of = |one: &souk::ledger::ChannelState| {
        let open = one
            .unfinished
            .iter()
            .filter_map(|attempt| attempt.delivered.as_ref());
        one.accepted_sum
            .saturating_add(open.map(|row| row.cost).sum())
    };
    all.iter().map(of).sum()
}

/// An answer that is not over before the chain has made the blocks of a test: 20 words a second.
fn slow() -> Script {
    Script::saying(&"word ".repeat(200)).paced(20.0)
}

/// Waits until the chain has the channel for good, so that nothing is served on trust any more.
async fn opened(world: &World) -> souk::types::ChannelId {
    world.ask_first("Hello.", false).await;
    let channel = world.channel().await;
    world.chain.let_blocks_come();
    world
        .wait_on_chain(&channel, "opened", |state| state.expiry_s > 0)
        .await;
    channel
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buyer_that_asks_for_the_close_on_the_chain_in_the_middle_of_an_answer_takes_a_window_at_most()
 {
    let world = World::start_with(MicroUsd::from_usd(5), PATIENT, PATIENT, slow()).await;
    let channel = opened(&world).await;
    let request = Dialect::Chat.request("Speak slowly.", true);
    let mut answer = http::open(world.buyer.http(), &request).await.unwrap();
    answer.until("word").await;
    // The buyer's own key asks for the end behind its node's back; anybody may bring that.
    let keys = keys(&world.buyer);
    let kept = kept(&world.buyer).await;
    let call = paper::request_close_call(&kept, u64::from(u32::MAX), &keys.voucher);
    let sender = world.chain.world.sender();
    let hub = world.chain.hub.hub;
    world.chain.world.send(&sender, Some(hub), call).await;
    let answer = answer.finish().await;
    let (_, sold) = world.booked().await;
    let earned = MicroUsd(books::billed(&sold)).saturating_add(FEE);
    world
        .wait_on_chain(&channel, "closed by the seller", |state| state.is_closed)
        .await;
    let got = world.on_chain(&channel).await.settled;
    let lost = earned.saturating_sub(got);
    println!(
        "close asked for on the chain in the middle of an answer ({}): earned {earned} USD, got {got} USD, \
         the buyer took {lost} USD; the bound is {BOUND} USD",
        answer.status
    );
    assert!(lost <= BOUND, "{lost}");
    world.ask_until_served().await;
    assert_ne!(world.channel().await, channel);
}

/// What is delivered stops at what is served on trust. The answer that was cut there claims its input in
/// full (up to ten tokens) and its last token whole, where the meter counted both by the bytes sent.
const CUT: MicroUsd = MicroUsd(10 * 20 + 80);

/// Markets that are started until a buyer signs for tokens that are gone.
const WORLDS_MAX: usize = 8;

#[tokio::test(flavor = "multi_thread")]
async fn a_buyer_whose_wallet_is_emptied_before_the_opening_is_mined_takes_what_is_served_on_trust()
{
    // The tokens leave after the node has counted them and before it signs for them; a node that
    // has looked again in between says that its wallet is empty, and the next one is tried.
    let mut world = World::start(MicroUsd::from_usd(5), PATIENT).await;
    let mut channel = None;
    for _ in 0..WORLDS_MAX {
        world.chain.burn(address(world.buyer.home())).await;
        let first = world.ask("Hello.", false).await;
        if first.status == 200 {
            channel = Some(world.channel().await);
            break;
        }
        assert_eq!(first.status, 402, "{}", first.text());
        world = World::start(MicroUsd::from_usd(5), PATIENT).await;
    }
    let channel = channel.expect("no node was slow enough to sign for tokens that were gone");
    let end = Instant::now() + CHAIN_DEADLINE;
    loop {
        let answer = world.ask("More, please.", false).await;
        if answer.status != 200 || Instant::now() > end {
            break;
        }
    }
    // The buyer cannot pay a session any more, so what it has not accepted stays a claim.
    let served = claimed(&world.seller.node).await;
    let state = world.on_chain(&channel).await;
    let bound = MicroUsd(50_000).saturating_add(CUT);
    println!(
        "empty wallet: {served} USD served on trust, {} USD settled; the bound is {bound} USD",
        state.settled
    );
    assert!(served <= bound, "{served}");
    assert_eq!(state.expiry_s, 0, "never opened");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buyer_that_stops_paying_in_the_middle_of_an_answer_takes_a_window_at_most() {
    // Longer than a slow machine is between two requests.
    let patient = "[payment]\nsettle_min = \"5\"\nidle_close = \"20s\"\n";
    let mut world = World::start_with(MicroUsd::from_usd(5), patient, PATIENT, slow()).await;
    let channel = opened(&world).await;
    let mut answers = Vec::new();
    for n in 0..4 {
        let request = Dialect::Chat.request(&format!("Speak slowly, {n}."), true);
        answers.push(http::open(world.buyer.http(), &request).await.unwrap());
    }
    for answer in &mut answers {
        answer.until("word").await;
    }
    world.buyer.kill();
    drop(answers);
    world
        .wait_on_chain(&channel, "closed by the seller", |state| state.is_closed)
        .await;
    let claimed = claimed(&world.seller.node).await;
    let got = world.on_chain(&channel).await.settled;
    let lost = claimed.saturating_add(FEE).saturating_sub(got);
    println!(
        "a buyer dies in the middle of four answers: delivered {claimed} USD, got {got} USD with the fee, \
         taken {lost} USD; the bound is {BOUND} USD"
    );
    assert!(claimed > MicroUsd::ZERO && lost <= BOUND, "{lost}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_devices_with_the_same_keys_on_one_channel_take_a_window_at_most() {
    let world = World::start(MicroUsd::from_usd(5), PATIENT).await;
    let channel = opened(&world).await;
    // The same keys and the same books on a second machine.
    let copy = world.copy_of_buyer();
    market_ready(&copy).await;
    let mut served = 0u32;
    for n in 0..12 {
        for node in [&world.buyer, &copy] {
            let request = Dialect::Chat.request(&format!("Number {n}."), n % 2 == 0);
            let answer = http::send(node.http(), &request).await;
            served += u32::from(answer.status == 200);
        }
    }
    tokio::time::sleep(Duration::from_secs(6)).await;
    let sold = books::rows(world.seller.node.home());
    let earned = MicroUsd(books::billed(&sold)).saturating_add(FEE);
    let held = held(&world.seller.node).await;
    let lost = earned.saturating_sub(held);
    println!(
        "two devices on channel {channel}: {served} of 24 served, earned {earned} USD, vouchers {held} USD, \
         taken {lost} USD; the bound is {BOUND} USD"
    );
    assert!(lost <= BOUND, "{lost}");
}

async fn market_ready(node: &Node) {
    crate::harness::market::wait_for_sellers(node, 1).await;
}

impl super::Chain {
    /// The buyer's tokens go elsewhere: with anvil's help, for the node's keys sign nothing else.
    async fn burn(&self, account: souk::types::EvmAddress) {
        let anvil = &self.world.anvil;
        let text = souk::keys::to_checksum(&account);
        anvil.fund(&text);
        anvil.rpc("anvil_impersonateAccount", serde_json::json!([text]));
        let all = calls::approve(self.hub.hub, MicroUsd::MAX);
        let tx = serde_json::json!([{"from": text, "to": souk::keys::to_checksum(&self.token),
            "data": format!("0x{}", hex::encode(&all))}]);
        anvil.rpc("eth_sendTransaction", tx);
        let elsewhere = souk::types::EvmAddress([0x77; 20]);
        let wallet =
            souk::chain::hub::token_balance(self.world.chain.as_ref(), self.token, account);
        let pay = calls::deposit(self.token, elsewhere, wallet.await.unwrap());
        let tx = serde_json::json!([{"from": text, "to": souk::keys::to_checksum(&self.hub.hub),
            "data": format!("0x{}", hex::encode(&pay)), "gas": "0x100000"}]);
        anvil.rpc("eth_sendTransaction", tx);
        anvil.mine(1);
        let left = souk::chain::hub::token_balance(self.world.chain.as_ref(), self.token, account);
        assert_eq!(left.await.unwrap(), MicroUsd::ZERO);
        let hub = Hub::check(self.world.chain.as_ref(), self.hub)
            .await
            .unwrap();
        assert_eq!(
            hub.vault(self.token, account).await.unwrap(),
            MicroUsd::ZERO
        );
        tokio::time::sleep(PAUSE).await;
    }
}

impl World {
    /// A second machine with the buyer's keys and books.
    fn copy_of_buyer(&self) -> Node {
        let home = self.buyer.home().copied();
        let file = super::config(&self.chain, &home, PATIENT);
        let bootstrap = self.bootstrap.listen();
        let args = [
            "buy",
            "--port",
            "0",
            "--bootstrap",
            bootstrap,
            "--config",
            &file,
        ];
        Node::start_at(home, &args)
    }
}
