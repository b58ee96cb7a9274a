//! The drivers of watcher and outbox against the chain in memory.
#![allow(clippy::as_conversions, reason = "small numbers of a test")]

use std::sync::Arc;
use std::time::Duration;

use super::digest::HubDomain;
use super::fake::{Effect, FakeChain};
use super::journal::{Outcome, Purpose, Record, Step};
use super::memory::MemoryJournal;
use super::outbox::{Busy, Request, Sender, Settings, SubmitError};
use super::transaction::keccak;
use super::watcher::{self, ChainEvent, Watcher};
use super::{ChainError, Fees};
use crate::keys::PaymentKey;
use crate::types::{ChannelId, EvmAddress, Hash32, ManualClock, MicroUsd};

const HUB: EvmAddress = EvmAddress([5; 20]);
/// Whose deposits the scripted contract tells of.
const OWNER: EvmAddress = EvmAddress([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);

struct World {
    chain: Arc<FakeChain>,
    journal: Arc<MemoryJournal>,
    clock: ManualClock,
}

impl World {
    fn new() -> Self {
        let settle = |_, tx: &super::transaction::Unsigned| Effect {
            reverts: tx.data == b"reverts",
            logs: vec![deposited(tx.data.len() as u8)],
        };
        Self {
            chain: Arc::new(FakeChain::new(7, 4, Box::new(settle))),
            journal: Arc::new(MemoryJournal::default()),
            clock: ManualClock::new(1_000_000),
        }
    }
    fn sender(&self) -> Sender {
        let key = PaymentKey::from_bytes(&[3; 32]).unwrap();
        let settings = Settings::new(7, MicroUsd::from_usd(2500));
        let clock = Arc::new(self.clock.clone());
        Sender::new(
            self.chain.clone(),
            self.journal.clone(),
            clock,
            key,
            settings,
        )
    }
    fn watcher(&self) -> Watcher {
        let settings = watcher::Settings {
            domain: HubDomain {
                chain_id: 7,
                hub: HUB,
            },
            account: OWNER,
            start_block: 0,
            confirmations: None,
            range_blocks_max: 10,
            poll_every: Duration::from_secs(1),
        };
        let clock = Arc::new(self.clock.clone());
        Watcher::new(self.chain.clone(), self.journal.clone(), clock, settings)
    }
}

/// A `Deposited` log of `amount`.
fn deposited(amount: u8) -> (Vec<Hash32>, Vec<u8>) {
    let word = |byte: u8| {
        let mut word = [0; 32];
        word[31] = byte;
        Hash32(word)
    };
    let topic = keccak(b"Deposited(address,address,uint256)");
    (vec![topic, word(1), word(2)], word(amount).0.to_vec())
}

fn request(channel: u8, data: &[u8], gain: u64) -> Request {
    Request {
        to: Some(HUB),
        data: data.to_vec(),
        purpose: Purpose::Settle,
        channel: Some(ChannelId([channel; 32])),
        gain: MicroUsd(gain),
        deadline_ms: None,
    }
}

fn steps(outcomes: &[Outcome]) -> Vec<Step> {
    outcomes.iter().map(|outcome| outcome.step).collect()
}

#[tokio::test]
async fn a_settlement_is_durable_sent_mined_and_final() {
    let world = World::new();
    let sender = world.sender();
    sender.submit(request(1, b"x", 1_000_000)).await.unwrap();
    assert!(matches!(
        &world.journal.records()[..],
        [Record::Intent(_), Record::Sent(_)]
    ));
    let again = sender.submit(request(1, b"y", 1_000_000)).await;
    assert!(matches!(again, Err(SubmitError::Busy(Busy::Channel(_)))));
    world.chain.mine(1);
    assert_eq!(steps(&sender.poll().await.unwrap()), [Step::Mined]);
    world.chain.mine(4);
    assert_eq!(steps(&sender.poll().await.unwrap()), [Step::Confirmed]);
    sender.submit(request(1, b"y", 1_000_000)).await.unwrap();
}

#[tokio::test]
async fn a_node_without_old_states_is_enough() {
    let world = World::new();
    world.chain.prune();
    let sender = world.sender();
    sender.submit(request(1, b"x", 1_000_000)).await.unwrap();
    world.chain.mine(1);
    assert_eq!(steps(&sender.poll().await.unwrap()), [Step::Mined]);
    world.chain.mine(4);
    assert_eq!(steps(&sender.poll().await.unwrap()), [Step::Confirmed]);
}

#[tokio::test]
async fn a_reorg_brings_a_mined_transaction_back_into_the_queue() {
    let world = World::new();
    let sender = world.sender();
    sender.submit(request(1, b"x", 1_000_000)).await.unwrap();
    world.chain.mine(1);
    sender.poll().await.unwrap();
    world.chain.reorg(1, false);
    assert_eq!(steps(&sender.poll().await.unwrap()), [Step::Reorged]);
    world.chain.mine(1);
    assert_eq!(steps(&sender.poll().await.unwrap()), [Step::Mined]);
}

#[tokio::test]
async fn what_is_not_worth_its_gas_is_not_sent_and_leaves_nothing() {
    let world = World::new();
    let sender = world.sender();
    // 50 000 gas at 20 gwei and $2 500 are $2.50.
    world.chain.set_fees(Fees {
        base: 20_000_000_000,
        priority: 0,
    });
    let refused = sender.submit(request(1, b"x", 10_000_000)).await;
    assert!(matches!(
        refused,
        Err(SubmitError::TooDear {
            cost: MicroUsd(2_500_000),
            ..
        })
    ));
    let reverts = sender.submit(request(1, b"reverts", u64::MAX)).await;
    assert!(matches!(
        reverts,
        Err(SubmitError::Chain(ChainError::Reverted(_)))
    ));
    world.chain.set_balance(1);
    let poor = sender.submit(request(1, b"x", u64::MAX)).await;
    assert!(matches!(poor, Err(SubmitError::NoGas { has_wei: 1, .. })));
    assert_eq!(world.journal.records(), vec![]);
}

#[tokio::test]
async fn a_restarted_sender_sends_the_same_bytes_again() {
    let world = World::new();
    world
        .sender()
        .submit(request(1, b"x", 1_000_000))
        .await
        .unwrap();
    world.chain.forget_waiting();
    let sender = world.sender();
    sender.poll().await.unwrap();
    world.chain.mine(1);
    assert_eq!(steps(&sender.poll().await.unwrap()), [Step::Mined]);
    let signed = world.journal.records();
    let signed = signed
        .iter()
        .filter(|record| matches!(record, Record::Sent(_)));
    assert_eq!(signed.count(), 1);
}

#[tokio::test]
async fn nothing_is_broadcast_that_could_not_be_stored() {
    let world = World::new();
    let sender = world.sender();
    world.journal.set_failing(true);
    let failed = sender.submit(request(1, b"x", 1_000_000)).await;
    assert!(matches!(
        failed,
        Err(SubmitError::Chain(ChainError::Journal(_)))
    ));
    world.chain.mine(1);
    world.journal.set_failing(false);
    assert_eq!(sender.poll().await.unwrap(), vec![]);
    sender.submit(request(1, b"x", 1_000_000)).await.unwrap();
}

#[tokio::test]
async fn events_are_seen_then_final_and_a_restart_repeats_none() {
    let world = World::new();
    let (topics, data) = deposited(9);
    world.chain.log(HUB, topics, data);
    world.chain.mine(1);
    let mut watcher = world.watcher();
    assert!(matches!(
        &watcher.poll().await.unwrap()[..],
        [ChainEvent::Seen(_)]
    ));
    let mut watcher = world.watcher();
    assert_eq!(
        watcher.poll().await.unwrap(),
        vec![],
        "a restart sees it once"
    );
    world.chain.mine(4);
    assert!(matches!(
        &watcher.poll().await.unwrap()[..],
        [ChainEvent::Confirmed(_)]
    ));
    let mut watcher = world.watcher();
    assert_eq!(watcher.poll().await.unwrap(), vec![]);
}

#[tokio::test]
async fn a_failing_node_or_a_long_past_loses_no_event() {
    let world = World::new();
    let total = 40u64;
    for _ in 0..total {
        let (topics, data) = deposited(1);
        world.chain.log(HUB, topics, data);
        world.chain.mine(10);
    }
    let mut watcher = world.watcher();
    let (mut seen, mut polls) = (0, 0);
    loop {
        let broken = ChainError::Node {
            url: "u".to_owned(),
            reason: "cut".to_owned(),
        };
        if polls % 3 == 1 {
            world.chain.fail_next([broken]);
        }
        polls += 1;
        if polls % 5 == 0 {
            watcher = world.watcher();
        }
        match watcher.poll().await {
            Ok(events) => {
                let is_seen = |event: &&ChainEvent| matches!(event, ChainEvent::Seen(_));
                seen += events.iter().filter(is_seen).count() as u64;
                if watcher.is_caught_up() {
                    break;
                }
            }
            Err(error) => assert!(matches!(error, ChainError::Node { .. })),
        }
        assert!(polls < 50);
    }
    assert_eq!(seen, total);
    assert!(polls > 3, "it came in pieces");
}
