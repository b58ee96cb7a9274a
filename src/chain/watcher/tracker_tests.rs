//! The tracker against a model chain that reorganises at random, also while it is being read.
#![allow(clippy::as_conversions, reason = "small numbers of a test")]

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::tracker::{Ask, ChainEvent, Kept, Tracker};
use crate::chain::hub::{HubEvent, HubLog};
use crate::chain::{BlockRef, ChainError, RawLog};
use crate::types::{EvmAddress, Hash32, MicroUsd};

/// Blocks that the tests count as final below the head.
const CONFIRMATIONS: u64 = 12;

/// A chain of blocks, each with some logs.
struct Model {
    blocks: Vec<(BlockRef, Vec<HubLog>)>,
    made: u64,
}

impl Model {
    fn new(len: u64) -> Self {
        let mut model = Self {
            blocks: vec![],
            made: 0,
        };
        for _ in 0..len {
            model.mine(0);
        }
        model
    }
    fn head(&self) -> u64 {
        self.blocks.len() as u64 - 1
    }
    fn mine(&mut self, logs: u64) {
        self.made += 1;
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&self.made.to_be_bytes());
        let at = BlockRef {
            number: self.blocks.len() as u64,
            hash: Hash32(hash),
        };
        let logs = (0..logs).map(|index| log(at, index)).collect();
        self.blocks.push((at, logs));
    }
    fn reorg(&mut self, depth: u64, grow: u64, logs: u64) {
        let keep = self.blocks.len() - depth as usize;
        self.blocks.truncate(keep);
        for _ in 0..depth + grow {
            self.mine(logs);
        }
    }
    fn block(&self, number: u64) -> Option<BlockRef> {
        self.blocks.get(number as usize).map(|(at, _)| *at)
    }
    fn logs(&self, from: u64, to: u64) -> Vec<HubLog> {
        let range = from as usize..=to as usize;
        self.blocks[range]
            .iter()
            .flat_map(|(_, logs)| logs.clone())
            .collect()
    }
}

fn log(block: BlockRef, index: u64) -> HubLog {
    let raw = RawLog {
        block,
        tx: Hash32([1; 32]),
        index,
        topics: vec![],
        data: vec![],
    };
    let event = HubEvent::Deposited {
        token: EvmAddress([1; 20]),
        account: EvmAddress([2; 20]),
        amount: MicroUsd(index),
    };
    HubLog { raw, event }
}

/// What somebody believes who enters each event.
#[derive(Default)]
struct View {
    seen: Vec<HubLog>,
    confirmed: Vec<HubLog>,
}

impl View {
    fn enter(&mut self, events: Vec<ChainEvent>) {
        for event in events {
            match event {
                ChainEvent::Seen(log) => {
                    assert!(!self.seen.contains(&log), "seen twice");
                    self.seen.push(log);
                }
                ChainEvent::Confirmed(log) => {
                    assert!(self.seen.contains(&log), "confirmed before seen");
                    assert!(!self.confirmed.contains(&log), "confirmed twice");
                    self.confirmed.push(log);
                }
                ChainEvent::Removed { log, was_confirmed } => {
                    assert!(self.seen.contains(&log), "removed before seen");
                    assert_eq!(self.confirmed.contains(&log), was_confirmed);
                    self.seen.retain(|one| *one != log);
                    self.confirmed.retain(|one| *one != log);
                }
            }
        }
    }
}

fn key(logs: &[HubLog]) -> BTreeSet<(BlockRef, u64)> {
    logs.iter()
        .map(|log| (log.raw.block, log.raw.index))
        .collect()
}

/// One poll; `disturb` may change the chain before the n-th answer.
fn poll(
    model: &mut Model,
    tracker: &mut Tracker,
    mut disturb: impl FnMut(&mut Model, u32),
) -> Result<(), ChainError> {
    let head = model.head();
    tracker.begin(head, head.saturating_sub(CONFIRMATIONS));
    let mut asked = 0;
    loop {
        disturb(model, asked);
        asked += 1;
        assert!(asked < 10_000, "the poll never ends");
        match tracker.ask() {
            Ask::Nothing => return Ok(()),
            Ask::Header(number) => tracker.header(model.block(number))?,
            Ask::Logs { from, to } => {
                let Some(last) = model.block(to) else {
                    return Ok(());
                };
                tracker.logs(last, model.logs(from, to));
            }
        }
    }
}

fn assert_view(model: &Model, view: &View) {
    let head = model.head();
    assert!(key(&view.seen) == key(&model.logs(1, head)), "another view");
    let safe = head.saturating_sub(CONFIRMATIONS);
    let final_logs = if safe > 0 {
        model.logs(1, safe)
    } else {
        vec![]
    };
    // A shorter chain after a reorg does not unmake what was final on the part that stayed.
    assert!(
        key(&view.confirmed).is_superset(&key(&final_logs)),
        "not all confirmed"
    );
    assert!(key(&view.confirmed).is_subset(&key(&view.seen)));
}

#[derive(Clone, Debug)]
enum Happens {
    Mine(u64),
    Reorg {
        depth: u64,
        grow: u64,
        logs: u64,
    },
    Poll,
    /// A poll during which the chain reorganises before the n-th answer.
    Torn {
        at: u32,
        depth: u64,
    },
    Restart,
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        4 => (0u64..3).prop_map(Happens::Mine),
        3 => (1u64..=64, 0u64..3, 0u64..2)
            .prop_map(|(depth, grow, logs)| Happens::Reorg { depth, grow, logs }),
        5 => Just(Happens::Poll),
        2 => (0u32..8, 1u64..10).prop_map(|(at, depth)| Happens::Torn { at, depth }),
        1 => Just(Happens::Restart),
    ]
}

fn run(history: Vec<Happens>, range: u64) {
    let mut model = Model::new(1);
    let start = model.block(0).unwrap();
    for _ in 0..100 {
        model.mine(u64::from(model.made.is_multiple_of(5)));
    }
    let mut tracker = Tracker::new(start, vec![], range);
    let mut view = View::default();
    poll(&mut model, &mut tracker, |_, _| ()).unwrap();
    view.enter(tracker.take_events());
    for one in history {
        match one {
            Happens::Mine(logs) => model.mine(logs),
            Happens::Reorg { depth, grow, logs } => model.reorg(depth, grow, logs),
            Happens::Poll => {
                poll(&mut model, &mut tracker, |_, _| ()).unwrap();
                view.enter(tracker.take_events());
                assert_view(&model, &view);
            }
            Happens::Torn { at, depth } => {
                let tear = |model: &mut Model, asked: u32| {
                    if asked == at {
                        model.reorg(depth, 1, 1);
                    }
                };
                poll(&mut model, &mut tracker, tear).unwrap();
                view.enter(tracker.take_events());
            }
            Happens::Restart => {
                // What is durable: the base, and what was seen and not removed above it.
                let base = tracker.base();
                let seen = view
                    .seen
                    .iter()
                    .filter(|log| log.raw.block.number > base.number);
                let kept = seen.map(|log| Kept {
                    log: log.clone(),
                    is_confirmed: view.confirmed.contains(log),
                });
                tracker = Tracker::new(base, kept.collect(), range);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]
    #[test]
    fn the_view_equals_the_chain_after_every_poll(
        history in prop::collection::vec(happens(), 1..40),
        range in prop_oneof![Just(1u64), Just(7), Just(2000)],
    ) {
        run(history, range);
    }
}

#[test]
fn every_depth_from_1_to_64_is_taken_back() {
    for depth in 1..=64 {
        let mut model = Model::new(1);
        let mut tracker = Tracker::new(model.block(0).unwrap(), vec![], 2000);
        let mut view = View::default();
        for _ in 0..200 {
            model.mine(1);
        }
        poll(&mut model, &mut tracker, |_, _| ()).unwrap();
        view.enter(tracker.take_events());
        model.reorg(depth, 1, 0);
        poll(&mut model, &mut tracker, |_, _| ()).unwrap();
        let events = tracker.take_events();
        let removed = events
            .iter()
            .filter(|e| matches!(e, ChainEvent::Removed { .. }))
            .count();
        assert_eq!(removed as u64, depth);
        view.enter(events);
        assert_view(&model, &view);
    }
}

#[test]
fn another_chain_altogether_is_refused_and_nothing_changes() {
    let mut model = Model::new(1000);
    let mut tracker = Tracker::new(model.block(0).unwrap(), vec![], 2000);
    poll(&mut model, &mut tracker, |_, _| ()).unwrap();
    let cursor = tracker.cursor();
    model.reorg(1000, 1, 1);
    let refused = poll(&mut model, &mut tracker, |_, _| ());
    assert!(matches!(refused, Err(ChainError::TooDeep(_))));
    assert_eq!((tracker.cursor(), tracker.take_events()), (cursor, vec![]));
}

#[test]
fn a_log_that_the_first_reading_missed_is_found_by_the_second() {
    let mut model = Model::new(20);
    let mut tracker = Tracker::new(model.block(0).unwrap(), vec![], 2000);
    model.mine(1);
    // The node behind the balancer does not know the newest block's logs yet.
    tracker.begin(20, 8);
    while tracker.ask() != Ask::Nothing {
        match tracker.ask() {
            Ask::Header(number) => tracker.header(model.block(number)).unwrap(),
            Ask::Logs { to, .. } => tracker.logs(model.block(to).unwrap(), vec![]),
            Ask::Nothing => {}
        }
    }
    assert_eq!(tracker.take_events(), vec![]);
    for _ in 0..12 {
        model.mine(0);
    }
    poll(&mut model, &mut tracker, |_, _| ()).unwrap();
    let missed = model.logs(20, 20)[0].clone();
    let expected = vec![
        ChainEvent::Seen(missed.clone()),
        ChainEvent::Confirmed(missed),
    ];
    assert_eq!(tracker.take_events(), expected);
}

#[test]
fn a_halved_range_grows_again_after_a_while_without_complaints() {
    let at = |number: u64| BlockRef {
        number,
        hash: Hash32([u8::try_from(number % 251).unwrap(); 32]),
    };
    let mut tracker = Tracker::new(at(0), vec![], 100);
    tracker.begin(100_000, 100_000);
    let mut widths = vec![];
    while widths.len() < 40 {
        match tracker.ask() {
            Ask::Header(number) => tracker.header(Some(at(number))).unwrap(),
            Ask::Logs { from, to } => {
                widths.push(to - from + 1);
                if widths.len() == 1 {
                    assert!(tracker.shrink_range() && tracker.shrink_range());
                } else {
                    tracker.logs(at(to), vec![]);
                }
            }
            Ask::Nothing => panic!("there is more to read"),
        }
    }
    assert_eq!(widths[0], 100);
    assert_eq!(widths[1], 25);
    let largest = widths.iter().max().unwrap();
    assert_eq!((*largest, widths[39]), (100, 100), "{widths:?}");
}
