//! The outbox against a model chain that reorganises, forgets its waiting transactions, takes
//! foreign ones and outlives crashes of the node at every step.
#![allow(clippy::as_conversions, reason = "small numbers of a test")]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::machine::{Action, Outbox, Rules, View, Wanted};
use crate::chain::journal::{Intent, OpenIntent, Outcome, Purpose, Record, Sent, Step};
use crate::chain::transaction::Signed;
use crate::chain::{BlockRef, Fees, Receipt, SendRefusal};
use crate::types::{ChannelId, EvmAddress, Hash32, IntentId, MicroUsd};

/// Blocks that count as final below the head.
const CONFIRMATIONS: u64 = 5;
const FEES: Fees = Fees {
    base: 100,
    priority: 10,
};

fn rules() -> Rules {
    Rules {
        chain_id: 1,
        sender: EvmAddress([1; 20]),
        fee_cap: 100_000,
        bump_after_ms: 60_000,
        gap_patience_ms: 120_000,
        pending_max: 8,
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Tx {
    nonce: u64,
    /// None: somebody else's with the same key.
    intent: Option<IntentId>,
    hash: Hash32,
    max_fee: u128,
}

/// A chain with one account.
#[derive(Default)]
struct Model {
    blocks: Vec<(BlockRef, Vec<Tx>)>,
    waiting: Vec<Tx>,
    made: u64,
}

impl Model {
    fn mined(&self, upto: u64) -> u64 {
        let below = self.blocks.iter().filter(|(at, _)| at.number <= upto);
        below.map(|(_, txs)| txs.len() as u64).sum()
    }
    fn mine(&mut self, which: usize) {
        self.made += 1;
        let mut hash = [9; 32];
        hash[..8].copy_from_slice(&self.made.to_be_bytes());
        let at = BlockRef {
            number: self.blocks.len() as u64,
            hash: Hash32(hash),
        };
        let nonce = self.mined(u64::MAX);
        let fits: Vec<Tx> = self
            .waiting
            .iter()
            .filter(|tx| tx.nonce == nonce)
            .cloned()
            .collect();
        let txs: Vec<Tx> = fits
            .get(which % fits.len().max(1))
            .cloned()
            .into_iter()
            .collect();
        self.waiting
            .retain(|tx| txs.iter().all(|mined| mined.nonce != tx.nonce));
        self.blocks.push((at, txs));
    }
    fn take(&mut self, tx: Tx) -> Result<(), SendRefusal> {
        if tx.nonce < self.mined(u64::MAX) {
            return Err(SendRefusal::NonceTooLow);
        }
        if self.waiting.contains(&tx) {
            return Err(SendRefusal::AlreadyKnown);
        }
        if let Some(old) = self.waiting.iter().position(|old| old.nonce == tx.nonce) {
            if tx.max_fee * 10 < self.waiting[old].max_fee * 11 {
                return Err(SendRefusal::Underpriced);
            }
            self.waiting.remove(old);
        }
        self.waiting.push(tx);
        Ok(())
    }
    fn pending_nonce(&self) -> u64 {
        let mut nonce = self.mined(u64::MAX);
        while self.waiting.iter().any(|tx| tx.nonce == nonce) {
            nonce += 1;
        }
        nonce
    }
    fn view(&self, wanted: &[Hash32]) -> View {
        let head = self.blocks.len() as u64 - 1;
        let final_block = head.saturating_sub(CONFIRMATIONS);
        let receipt = |hash: &Hash32| {
            let mut found = self
                .blocks
                .iter()
                .filter(|(_, txs)| txs.iter().any(|t| t.hash == *hash));
            found.next().map(|(at, _)| Receipt {
                block: *at,
                succeeded: hash.0[31].is_multiple_of(4),
                gas_used: 1,
                gas_price: 100,
                created: None,
            })
        };
        View {
            mined_nonce: self.mined(u64::MAX),
            final_nonce: self.mined(final_block),
            pending_nonce: self.pending_nonce(),
            final_block,
            fees: FEES,
            receipts: wanted.iter().map(|hash| (*hash, receipt(hash))).collect(),
        }
    }
}

/// The durable part, the running part and the chain.
struct World {
    model: Model,
    journal: Vec<Record>,
    outbox: Outbox,
    /// Of each transaction that was ever signed.
    signed: BTreeMap<Vec<u8>, Tx>,
    now_ms: u64,
    next_id: u64,
}

impl World {
    fn new() -> Self {
        let mut model = Model::default();
        model.mine(0);
        let outbox = Outbox::restore(rules(), vec![]);
        Self {
            model,
            journal: vec![],
            outbox,
            signed: BTreeMap::new(),
            now_ms: 1,
            next_id: 0,
        }
    }

    fn open_intents(&self) -> Vec<OpenIntent> {
        let mut open: BTreeMap<IntentId, OpenIntent> = BTreeMap::new();
        for record in &self.journal {
            match record {
                Record::Intent(intent) => {
                    let one = OpenIntent {
                        intent: intent.clone(),
                        sent: vec![],
                        last: None,
                    };
                    assert!(open.insert(intent.id, one).is_none(), "an id twice");
                }
                Record::Sent(sent) => open.get_mut(&sent.intent).unwrap().sent.push(sent.clone()),
                Record::Outcome(outcome) => {
                    let one = open
                        .get_mut(&outcome.intent)
                        .expect("nothing follows a last step");
                    one.last = Some(outcome.clone());
                    if outcome.step.is_last() {
                        open.remove(&outcome.intent);
                    }
                }
                Record::Event(_) | Record::Cursor(_) => {}
            }
        }
        open.into_values().collect()
    }

    /// Kills the node and starts it again.
    fn crash(&mut self) {
        self.outbox = Outbox::restore(rules(), self.open_intents());
    }

    fn begin(&mut self, channel: u8) {
        self.next_id += 1;
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.next_id.to_be_bytes());
        let wanted = Wanted {
            id: IntentId(id),
            to: Some(EvmAddress([2; 20])),
            data: vec![channel],
            value: 0,
            gas_limit: 100,
            purpose: Purpose::Settle,
            channel: Some(ChannelId([channel; 32])),
            gain: MicroUsd(1),
        };
        if let Ok(intent) = self
            .outbox
            .begin(wanted, self.model.pending_nonce(), self.now_ms)
        {
            self.journal.push(Record::Intent(intent.clone()));
            self.outbox.admit(intent);
        }
    }

    /// One poll; the node dies before the action `dies_at`, or within it before the broadcast.
    fn poll(&mut self, dies_at: Option<usize>) {
        let mut view = self.model.view(&self.outbox.wanted_receipts());
        if !self.outbox.has_doubts(view.mined_nonce, &view.receipts) {
            view.final_nonce = 0;
        }
        for (index, action) in self.outbox.step(&view, self.now_ms).into_iter().enumerate() {
            let dies = dies_at == Some(index);
            if dies && index % 2 == 0 {
                return self.crash();
            }
            match action {
                Action::Store(outcome) => self.journal.push(Record::Outcome(outcome)),
                Action::Fill(intent) => {
                    self.journal.push(Record::Intent(intent.clone()));
                    self.outbox.admit(intent);
                }
                Action::Sign { nonce, offer } => {
                    let unsigned = self.outbox.unsigned(nonce, offer).unwrap();
                    let raw = format!("{unsigned:?}").into_bytes();
                    let hash = crate::chain::transaction::keccak(&raw);
                    let signed = Signed {
                        hash,
                        raw: raw.clone(),
                    };
                    let sent = self
                        .outbox
                        .signed(nonce, offer, signed, self.now_ms)
                        .unwrap();
                    let tx = Tx {
                        nonce,
                        intent: Some(sent.intent),
                        hash,
                        max_fee: offer.max_fee,
                    };
                    self.signed.insert(raw.clone(), tx);
                    self.journal.push(Record::Sent(sent));
                    if dies {
                        return self.crash();
                    }
                    self.broadcast(nonce, &raw);
                }
                Action::Broadcast { nonce, raw } => self.broadcast(nonce, &raw),
            }
        }
    }

    fn broadcast(&mut self, nonce: u64, raw: &[u8]) {
        let durable = |sent: &Sent| sent.raw == raw;
        let is_durable = self
            .journal
            .iter()
            .any(|r| matches!(r, Record::Sent(s) if durable(s)));
        assert!(is_durable, "broadcast before it was durable");
        let taken = self.model.take(self.signed[raw].clone());
        self.outbox.broadcast(nonce, taken, self.now_ms);
    }

    fn foreign(&mut self) {
        self.next_id += 1;
        let mut hash = [0xee; 32];
        hash[..8].copy_from_slice(&self.next_id.to_be_bytes());
        let nonce = self.model.mined(u64::MAX);
        let tx = Tx {
            nonce,
            intent: None,
            hash: Hash32(hash),
            max_fee: 1 << 60,
        };
        self.model.waiting.retain(|other| other.nonce != nonce);
        self.model.waiting.push(tx);
    }

    fn check(&self) {
        let mut nonces = BTreeSet::new();
        let mut last: BTreeMap<IntentId, Step> = BTreeMap::new();
        let mut intents: BTreeMap<IntentId, Intent> = BTreeMap::new();
        for record in &self.journal {
            match record {
                Record::Intent(intent) => {
                    let is_new = nonces.insert(intent.nonce);
                    assert!(is_new, "nonce {} given twice", intent.nonce);
                    intents.insert(intent.id, intent.clone());
                }
                Record::Outcome(Outcome { intent, step, .. }) => {
                    let before = last.insert(*intent, *step);
                    assert!(
                        !before.is_some_and(Step::is_last),
                        "{step:?} after the last step"
                    );
                    let was_mined = matches!(before, Some(Step::Mined | Step::Reverted));
                    let needs_mined = matches!(step, Step::Reorged | Step::Confirmed);
                    assert_eq!(needs_mined, was_mined, "{step:?} after {before:?}");
                }
                _ => {}
            }
        }
        let channels = self
            .open_intents()
            .into_iter()
            .filter_map(|one| one.intent.channel);
        let channels: Vec<ChannelId> = channels.collect();
        let distinct: BTreeSet<&ChannelId> = channels.iter().collect();
        assert_eq!(
            distinct.len(),
            channels.len(),
            "two pending for one channel"
        );
        let mut executed = BTreeSet::new();
        for tx in self.model.blocks.iter().flat_map(|(_, txs)| txs) {
            let Some(intent) = tx.intent else { continue };
            assert!(executed.insert(intent), "executed twice");
        }
        for (intent, step) in last {
            match step {
                Step::Confirmed => assert!(executed.contains(&intent), "confirmed, not executed"),
                Step::Displaced => assert!(!executed.contains(&intent), "displaced, executed"),
                _ => {}
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Happens {
    Begin(u8),
    Poll,
    DiesIn(usize),
    Crash,
    Mine(usize),
    Reorg { depth: u64, back: bool },
    Forget,
    Foreign,
    Time(u64),
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        4 => (0u8..5).prop_map(Happens::Begin),
        8 => Just(Happens::Poll),
        2 => (0usize..6).prop_map(Happens::DiesIn),
        1 => Just(Happens::Crash),
        6 => (0usize..3).prop_map(Happens::Mine),
        2 => (1u64..CONFIRMATIONS, any::<bool>())
            .prop_map(|(depth, back)| Happens::Reorg { depth, back }),
        1 => Just(Happens::Forget),
        1 => Just(Happens::Foreign),
        3 => (1u64..200_000).prop_map(Happens::Time),
    ]
}

fn run(history: Vec<Happens>) {
    let mut world = World::new();
    for one in history {
        match one {
            Happens::Begin(channel) => world.begin(channel),
            Happens::Poll => world.poll(None),
            Happens::DiesIn(at) => world.poll(Some(at)),
            Happens::Crash => world.crash(),
            Happens::Mine(which) => world.model.mine(which),
            Happens::Reorg { depth, back } => {
                let keep = world
                    .model
                    .blocks
                    .len()
                    .saturating_sub(depth as usize)
                    .max(1);
                let gone = world.model.blocks.split_off(keep);
                let txs = gone.iter().flat_map(|(_, txs)| txs.clone());
                if back {
                    world.model.waiting.extend(txs);
                }
                for _ in 0..gone.len() {
                    world.model.made += 1;
                    let mut hash = [8; 32];
                    hash[..8].copy_from_slice(&world.model.made.to_be_bytes());
                    let number = world.model.blocks.len() as u64;
                    world.model.blocks.push((
                        BlockRef {
                            number,
                            hash: Hash32(hash),
                        },
                        vec![],
                    ));
                }
            }
            Happens::Forget => world.model.waiting.clear(),
            Happens::Foreign => world.foreign(),
            Happens::Time(ms) => world.now_ms += ms,
        }
        world.check();
    }
    // Left in peace, everything comes to an end.
    for _ in 0..400 {
        world.now_ms += 60_000;
        world.poll(None);
        world.model.mine(0);
        world.check();
        if world.outbox.is_empty() {
            break;
        }
    }
    assert!(world.outbox.is_empty(), "left: {:?}", world.open_intents());
    assert_eq!(world.open_intents(), vec![]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]
    #[test]
    fn every_intent_is_executed_at_most_once_and_comes_to_an_end(
        history in prop::collection::vec(happens(), 1..60),
    ) {
        run(history);
    }
}

#[test]
fn a_restart_between_signing_and_broadcasting_sends_the_same_bytes() {
    let mut world = World::new();
    world.begin(1);
    // The first action signs; a node that dies in an odd action dies after it was stored.
    world.begin(2);
    world.poll(Some(1));
    assert_eq!(world.model.waiting.len(), 1, "the second was not broadcast");
    let signed = world.signed.len();
    world.poll(None);
    assert_eq!((world.model.waiting.len(), world.signed.len()), (2, signed));
}

#[test]
fn a_waiting_transaction_is_replaced_with_higher_fees_up_to_the_cap() {
    let mut world = World::new();
    world.begin(1);
    for _ in 0..200 {
        world.poll(None);
        world.now_ms += 60_000;
    }
    let fees: Vec<u128> = world.signed.values().map(|tx| tx.max_fee).collect();
    assert!(fees.len() > 30 && fees.iter().all(|fee| *fee <= rules().fee_cap));
    assert_eq!(world.model.waiting.len(), 1, "replaced, not doubled");
}
