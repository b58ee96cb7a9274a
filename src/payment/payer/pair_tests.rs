//! What spending limits hear of answers in doubt.

use super::*;
use crate::ledger::Row;
use crate::types::{Hash32, ModelId, PriceTable, RequestId, Usage};

fn settle(pair: &Pair, attempt: &OpenRow, shown: Shown) {
    let accept = shown != Shown::Unknown;
    let Verdict::Settled(row) = pair.judge(&attempt.attempt_id, shown, None, 3) else {
        panic!("{shown:?} settles what is in doubt");
    };
    pair.book(*row, accept);
}

/// Held and spent, by attempt.
#[derive(Default)]
struct Purse(Mutex<std::collections::HashMap<AttemptId, u64>>);

impl Purse {
    fn counted(&self) -> u64 {
        self.0.lock().values().sum()
    }
}

impl Spending for Purse {
    fn inherited(&self, open: &OpenRow, amount: MicroUsd) {
        self.0.lock().insert(open.attempt_id, amount.0);
    }
    fn parked(&self, attempt: &AttemptId, amount: MicroUsd) {
        self.0.lock().insert(*attempt, amount.0);
    }
    fn spent(&self, attempt: &AttemptId, amount: MicroUsd) {
        self.0.lock().insert(*attempt, amount.0);
    }
}

fn open(attempt: u8) -> OpenRow {
    OpenRow {
        at_ms: 1,
        attempt_id: AttemptId::from_slice(&[attempt; 16]).unwrap(),
        request_id: RequestId([attempt; 16]),
        attempt: 1,
        role: crate::ledger::Role::Buy,
        peer: PeerId::random(),
        client: String::new(),
        model_asked: "m".to_owned(),
        model: ModelId::new("m"),
        offer_hash: Hash32::default(),
        price: PriceTable::default(),
        channel: ChannelId([0; 32]),
        max_cost: MicroUsd(1_000),
        prefill: MicroUsd(10),
        voucher_before: MicroUsd::ZERO,
        signed_head: Vec::new(),
    }
}

fn delivered(attempt: &OpenRow, cost: u64) -> DeliveredRow {
    DeliveredRow {
        at_ms: 2,
        attempt_id: attempt.attempt_id,
        status: 200,
        usage: Some(Usage::default()),
        own_input: None,
        own_output: None,
        cost: MicroUsd(cost),
        receipt: None,
    }
}

/// A pair with 1 USD of credit, and what its limits have counted.
fn pair() -> (Pair, Arc<Purse>) {
    let purse = Arc::new(Purse::default());
    let pair = Pair::new(PeerId::random(), WindowSettings::default(), purse.clone());
    pair.state.lock().machine.set_deposit(MicroUsd(1_000_000));
    (pair, purse)
}

#[test]
fn regression_an_answer_in_doubt_counts_as_spent_until_less_is_owed() {
    let (pair, purse) = pair();
    let (first, second) = (open(1), open(2));
    for attempt in [&first, &second] {
        pair.begin(attempt, MicroUsd(500)).unwrap();
        pair.park(&delivered(attempt, 300), "m");
    }
    assert_eq!(purse.counted(), 600);
    // The seller never heard of the first; of the second it lost the receipt.
    settle(&pair, &first, Shown::Unknown);
    assert_eq!(purse.counted(), 300);
    settle(&pair, &second, Shown::Lost);
    assert_eq!(purse.counted(), 300);
    assert_eq!(pair.snapshot().settled, MicroUsd(300));
}

#[test]
fn regression_credit_that_a_seller_raises_is_booked_before_a_voucher_uses_it() {
    let channel = ChannelId([1; 32]);
    let mut state = PayerState::new(WindowSettings::default());
    let row = crate::ledger::ChannelRow {
        at_ms: 1,
        role: crate::ledger::Role::Buy,
        channel,
        peer: PeerId::random(),
        mode: "credit".to_owned(),
        descriptor: Vec::new(),
        epoch: 0,
        deposit: MicroUsd(1_000),
        open_signature: [0; 64],
    };
    state.pay_by(row, None);
    state.hear_deposit(MicroUsd(5_000));
    assert_eq!(state.machine().deposit(), MicroUsd(1_000));
    let sync = crate::protocol::session::SyncSeller {
        channel,
        deposit: MicroUsd(5_000),
        settled: MicroUsd(300),
        voucher: None,
        accepted: MicroUsd::ZERO,
        open: Vec::new(),
        unknown: Vec::new(),
    };
    let rows = state.deposit_rows(&sync, 2);
    let [Row::Settlement(paid), Row::Channel(raised)] = &rows[..] else {
        panic!("a payment and a new deposit, not {rows:?}");
    };
    assert_eq!((paid.amount, raised.deposit), (MicroUsd(300), sync.deposit));
    assert!(
        state.deposit_rows(&sync, 3).is_empty(),
        "they are booked once"
    );
    state.learn_deposit(sync.deposit);
    assert_eq!(state.machine().deposit(), sync.deposit);
}

#[test]
fn what_an_earlier_life_left_in_doubt_is_counted_at_once() {
    let (pair, purse) = pair();
    let attempt = open(3);
    let state = ChannelState {
        row: crate::ledger::ChannelRow {
            at_ms: 1,
            role: crate::ledger::Role::Buy,
            channel: ChannelId([1; 32]),
            peer: *pair.seller(),
            mode: "credit".to_owned(),
            descriptor: Vec::new(),
            epoch: 0,
            deposit: MicroUsd(1_000_000),
            open_signature: [0; 64],
        },
        voucher: None,
        accepted_sum: MicroUsd::ZERO,
        written_off_sum: MicroUsd::ZERO,
        settlements_sum: MicroUsd::ZERO,
        limit: MicroUsd(1_000_000),
        unfinished: vec![crate::ledger::AttemptState {
            delivered: Some(delivered(&attempt, 70)),
            final_row: None,
            open: attempt.clone(),
        }],
    };
    pair.adopt(state, None, 10);
    assert_eq!(purse.counted(), 70);
    settle(&pair, &attempt, Shown::Lost);
    assert_eq!(purse.counted(), 70);
}
