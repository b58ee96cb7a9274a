//! The hub's events: seen, final, taken back by reorgs and put on again, found after a restart.

use serde_json::json;
use souk::chain::hub::HubEvent;
use souk::chain::watcher::ChainEvent;
use souk::types::MicroUsd;

use super::{CONFIRMATIONS, CUMULATIVE, Market};

fn kinds(events: &[ChainEvent]) -> Vec<String> {
    let word = |event: &ChainEvent| match event {
        ChainEvent::Seen(log) => format!("seen {}", log.event.as_str()),
        ChainEvent::Confirmed(log) => format!("confirmed {}", log.event.as_str()),
        ChainEvent::Removed { log, .. } => format!("removed {}", log.event.as_str()),
    };
    events.iter().map(word).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channels_life_is_seen_and_becomes_final() {
    let market = Market::start().await;
    let (sender, mut watcher) = (market.world.sender(), market.world.watcher(market.hub));
    market.world.mined(&sender, market.open(1)).await;
    let events = watcher.poll().await.unwrap();
    assert_eq!(kinds(&events), ["seen deposited", "seen opened"]);
    let ChainEvent::Seen(opened) = &events[1] else {
        panic!()
    };
    let expected = HubEvent::Opened {
        channel: market.id(1),
        descriptor: market.descriptor(1),
        deposit: MicroUsd::from_usd(5),
        open_fee: MicroUsd(2_000),
        expiry_s: super::LATE_S,
    };
    assert_eq!(opened.event, expected);

    market.world.anvil.mine(CONFIRMATIONS);
    sender.poll().await.unwrap();
    market.world.mined(&sender, market.settle(1)).await;
    let events = watcher.poll().await.unwrap();
    assert_eq!(
        kinds(&events),
        ["confirmed deposited", "confirmed opened", "seen settled"]
    );
    let settled = |event: &ChainEvent| match event {
        ChainEvent::Seen(log) => log.event.clone(),
        other => panic!("{other:?}"),
    };
    let paid = MicroUsd(CUMULATIVE.0 - 2_000);
    let expected = HubEvent::Settled {
        channel: market.id(1),
        settled: CUMULATIVE,
        paid,
    };
    assert_eq!(settled(&events[2]), expected);

    // A watcher that starts anew sees nothing twice and misses nothing.
    let mut watcher = market.world.watcher(market.hub);
    assert_eq!(watcher.poll().await.unwrap(), vec![]);
    market.world.anvil.mine(CONFIRMATIONS);
    assert_eq!(kinds(&watcher.poll().await.unwrap()), ["confirmed settled"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn reorgs_of_1_to_64_blocks_take_events_back() {
    let market = Market::start().await;
    let (sender, mut watcher) = (market.world.sender(), market.world.watcher(market.hub));
    market.world.anvil.mine(80);
    watcher.poll().await.unwrap();
    market.world.mined(&sender, market.open(1)).await;
    market.world.anvil.rpc("anvil_setAutomine", json!([false]));
    for depth in [1, 2, 7, 31, 64] {
        let seen = watcher.poll().await.unwrap();
        // The transaction comes back by itself or by the outbox, in the newest block.
        assert_eq!(
            kinds(&seen)
                .iter()
                .filter(|k| k.starts_with("seen"))
                .count(),
            2,
            "{depth}"
        );
        market.world.anvil.mine(depth - 1);
        watcher.poll().await.unwrap();
        sender.poll().await.unwrap();
        market.world.anvil.rpc("anvil_reorg", json!([depth, []]));
        market
            .world
            .anvil
            .rpc("anvil_dropAllTransactions", json!([]));
        let events = watcher.poll().await.unwrap();
        assert_eq!(
            kinds(&events),
            ["removed opened", "removed deposited"],
            "{depth} deep"
        );
        let was_final = depth > CONFIRMATIONS;
        for event in &events {
            let ChainEvent::Removed { was_confirmed, .. } = event else {
                panic!()
            };
            assert_eq!(*was_confirmed, was_final);
        }
        sender.poll().await.unwrap();
        // What was final and is gone is not sent by itself: its intent has ended.
        if was_final {
            sender.submit(market.open(1)).await.unwrap();
            // Its nonce stays its own, so that it cannot happen twice: the gap is filled.
            sender.poll().await.unwrap();
            market.world.clock.advance(121_000);
            sender.poll().await.unwrap();
            sender.poll().await.unwrap();
        }
        market.world.anvil.mine(1);
        sender.poll().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_that_was_set_back_is_noticed_although_it_is_shorter() {
    let market = Market::start().await;
    let (sender, mut watcher) = (market.world.sender(), market.world.watcher(market.hub));
    watcher.poll().await.unwrap();
    let snapshot = market.world.anvil.rpc("evm_snapshot", json!([]));
    market.world.mined(&sender, market.open(1)).await;
    assert_eq!(watcher.poll().await.unwrap().len(), 2);
    market.world.anvil.rpc("evm_revert", json!([snapshot]));
    let mut events = vec![];
    for _ in 0..6 {
        events.extend(watcher.poll().await.unwrap());
    }
    assert_eq!(kinds(&events), ["removed opened", "removed deposited"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_own_events_are_kept_near_the_head_and_from_far_behind() {
    let market = Market::start().await;
    let world = &market.world;
    let (buyer, seller) = (world.buyer.address(), world.seller.address());
    let stranger = souk::keys::PaymentKey::generate().address();
    let new = |account| {
        let journal = std::sync::Arc::new(souk::chain::memory::MemoryJournal::default());
        world.watcher_of(market.hub, account, journal)
    };
    let sender = world.sender();
    let mut near = [buyer, seller, stranger].map(new);
    for watcher in &mut near {
        watcher.poll().await.unwrap();
    }
    world.mined(&sender, market.open(1)).await;
    world.anvil.mine(CONFIRMATIONS);
    sender.poll().await.unwrap();
    world.mined(&sender, market.settle(1)).await;
    let seen = |events: &[ChainEvent]| -> Vec<String> {
        let kinds = kinds(events).into_iter();
        kinds.filter(|kind| kind.starts_with("seen")).collect()
    };
    let expected: [&[&str]; 3] = [
        &["seen deposited", "seen opened", "seen settled"],
        &["seen opened", "seen settled"],
        &[],
    ];
    for (watcher, expected) in near.iter_mut().zip(expected) {
        assert_eq!(seen(&watcher.poll().await.unwrap()), expected);
    }
    // Far behind, the same is found by topics.
    world.anvil.mine(200);
    for (account, expected) in [buyer, seller, stranger].into_iter().zip(expected) {
        assert_eq!(seen(&new(account).poll().await.unwrap()), expected);
    }
}
