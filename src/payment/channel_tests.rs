//! Two channel machines over a slow, reordering wire, with crashes: the bounds hold at every step.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const W: MicroUsd = MicroUsd(500);

fn id(n: u8) -> AttemptId {
    AttemptId([n; 16])
}

fn pair(deposit: u64) -> (Payer, Payee) {
    let settings = WindowSettings::default();
    let zero = MicroUsd::ZERO;
    (
        Payer::new(settings, MicroUsd(deposit), zero, zero),
        Payee::new(settings, MicroUsd(deposit), zero, zero),
    )
}

#[test]
fn small_requests_in_a_row_need_a_voucher_only_once_a_window() {
    let (mut payer, mut payee) = pair(1_000_000);
    let mut vouchers = 0;
    for n in 0..100u8 {
        payer.begin(id(n), MicroUsd(10), W).unwrap();
        if let Some(v) = payer.wanted() {
            payer.signed_up_to(v);
            payee.credit(v).unwrap();
            vouchers += 1;
        }
        payee.admit(id(n), MicroUsd(10), W).unwrap();
        payee.start(&id(n), MicroUsd(10));
        payee.deliver(&id(n), MicroUsd(20)).unwrap();
        payer.start(&id(n), MicroUsd(10));
        payer.receive(&id(n), MicroUsd(20));
        assert!(payer.settle(&id(n), MicroUsd(15)));
        assert!(payee.settle(&id(n), MicroUsd(15)));
    }
    assert_eq!(payer.book().settled(), MicroUsd(1_500));
    assert_eq!(payee.book().settled(), MicroUsd(1_500));
    assert!(vouchers <= 16, "{vouchers} vouchers for 100 small requests");
}

#[test]
fn a_prefill_above_the_window_is_prepaid() {
    let (mut payer, mut payee) = pair(1_000_000);
    let required = payer.begin(id(1), MicroUsd(24_000), W).unwrap();
    assert_eq!(required, MicroUsd(23_500));
    assert_eq!(
        payee.admit(id(1), MicroUsd(24_000), W),
        Err(Hold::NeedVoucher(MicroUsd(23_500)))
    );
    let v = payer.wanted().unwrap();
    assert!(v >= required && v <= MicroUsd(24_000));
    payee.credit(v).unwrap();
    assert!(payee.admit(id(1), MicroUsd(24_000), W).is_ok());
}

#[test]
fn nothing_is_signed_or_delivered_above_the_deposit() {
    let (mut payer, mut payee) = pair(1_000);
    payer.begin(id(1), MicroUsd(900), W).unwrap();
    assert_eq!(
        payer.begin(id(2), MicroUsd(200), W),
        Err(Hold::CreditExhausted)
    );
    payer.start(&id(1), MicroUsd(5_000));
    assert_eq!(payer.wanted(), Some(MicroUsd(1_000)));
    assert!(payee.credit(MicroUsd(1_001)).is_err());
    assert_eq!(
        payee.admit(id(3), MicroUsd(1_100), W),
        Err(Hold::CreditExhausted)
    );
}

#[test]
fn the_fee_of_the_opening_counts_as_consumed_and_as_paid_on_both_sides() {
    let (payer, payee) = pair(500_000);
    let fee = MicroUsd(10_000);
    let (mut payer, mut payee) = (payer.on_chain(fee), payee.on_chain(fee, MicroUsd::MAX));
    assert_eq!((payer.signed(), payer.book().total()), (fee, fee));
    assert_eq!((payee.held(), payee.book().total()), (fee, fee));
    assert_eq!(payer.wanted(), None, "nothing is owed yet");
    payer.begin(id(1), MicroUsd(0), W).unwrap();
    payee.admit(id(1), MicroUsd(0), W).unwrap();
    let first = payer.wanted().unwrap();
    assert_eq!(first, MicroUsd(10_500), "a voucher holds the fee too");
    payee.credit(first).unwrap();
    payee.start(&id(1), MicroUsd(0));
    assert_eq!(payee.room(), MicroUsd(1_000));
    assert_eq!(payee.exposure(), MicroUsd(0));
}

#[test]
fn nothing_is_delivered_above_what_the_chain_has_confirmed() {
    let (_, payee) = pair(500_000);
    let mut payee = payee.on_chain(MicroUsd(10_000), MicroUsd(60_000));
    payee.credit(MicroUsd(300_000)).unwrap();
    assert_eq!(
        payee.admit(id(1), MicroUsd(50_001), W),
        Err(Hold::Unconfirmed(MicroUsd(60_001)))
    );
    payee.admit(id(1), MicroUsd(40_000), W).unwrap();
    payee.start(&id(1), MicroUsd(40_000));
    assert_eq!(payee.deliver(&id(1), MicroUsd(50_000)), Ok(()));
    assert_eq!(
        payee.deliver(&id(1), MicroUsd(50_001)),
        Err(Hold::Unconfirmed(MicroUsd(60_001)))
    );
    payee.set_ceiling(MicroUsd(500_000));
    assert_eq!(payee.deliver(&id(1), MicroUsd(50_001)), Ok(()));
    payee.set_ceiling(MicroUsd(60_000));
    assert_eq!(
        payee.room(),
        MicroUsd::ZERO,
        "a reorg took the deposit back"
    );
}

#[test]
fn a_seller_without_its_ledger_gives_nothing_a_second_time() {
    let (_, payee) = pair(500_000);
    let mut payee = payee.on_chain(MicroUsd(10_000), MicroUsd::MAX);
    payee.credit(MicroUsd(200_000)).unwrap();
    payee.adopt_lost(MicroUsd(200_000));
    assert_eq!(payee.held(), MicroUsd(200_000));
    assert_eq!(payee.book().total(), MicroUsd(200_000));
}

#[test]
fn a_deposit_runs_low_at_three_quarters() {
    let (payer, _) = pair(1_000);
    let mut payer = payer.on_chain(MicroUsd(10));
    payer.signed_up_to(MicroUsd(749));
    assert!(!payer.runs_low());
    payer.signed_up_to(MicroUsd(750));
    assert!(payer.runs_low());
    payer.set_deposit(MicroUsd(2_000));
    assert!(!payer.runs_low());
    payer.begin(id(1), MicroUsd(1_500), W).unwrap();
    assert!(payer.runs_low(), "what is under way counts");
}

#[test]
fn an_attempt_is_settled_once() {
    let (mut payer, _) = pair(1_000_000);
    payer.begin(id(1), MicroUsd(5), W).unwrap();
    assert!(payer.settle(&id(1), MicroUsd(7)));
    assert!(!payer.settle(&id(1), MicroUsd(7)));
    assert_eq!(payer.book().total(), MicroUsd(7));
}

#[derive(Clone, Debug)]
enum Op {
    Begin(u8, u64),
    Answer(u8),
    Bytes(u8, u64),
    End(u8, u64),
    DeliverVouchers(usize),
    DeliverBytes,
    CrashPayer,
    CrashPayee,
    /// The chain confirms this much more, or a reorg takes it back.
    Chain(bool, u64),
    /// The deposit is raised by signature.
    TopUp(u64),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        (0u8..12, 0u64..3_000).prop_map(|(n, p)| Op::Begin(n, p)),
        (0u8..12).prop_map(Op::Answer),
        (0u8..12, 1u64..2_000).prop_map(|(n, b)| Op::Bytes(n, b)),
        (0u8..12, 0u64..100).prop_map(|(n, d)| Op::End(n, d)),
        (0usize..4).prop_map(Op::DeliverVouchers),
        Just(Op::DeliverBytes),
        Just(Op::DeliverBytes),
        Just(Op::CrashPayer),
        Just(Op::CrashPayee),
        (any::<bool>(), 0u64..100_000).prop_map(|(up, by)| Op::Chain(up, by)),
        (0u64..20_000).prop_map(Op::TopUp),
    ];
    proptest::collection::vec(op, 1..200)
}

/// A world of two nodes: what is in memory, what is durable, and what is on the wire.
struct World {
    payer: Payer,
    payee: Payee,
    vouchers: VecDeque<MicroUsd>,
    bytes: VecDeque<(AttemptId, MicroUsd)>,
    durable_signed: MicroUsd,
    durable_held: MicroUsd,
    charged: std::collections::HashMap<AttemptId, MicroUsd>,
    deposit: MicroUsd,
    /// Consumed at the opening, and what the chain covers; none in credit mode.
    chain: Option<(MicroUsd, MicroUsd)>,
}

impl World {
    fn payer(&self, signed: MicroUsd, settled: MicroUsd) -> Payer {
        let payer = Payer::new(WindowSettings::default(), self.deposit, signed, settled);
        match self.chain {
            Some((base, _)) => payer.on_chain(base),
            None => payer,
        }
    }
    fn payee(&self, held: MicroUsd, settled: MicroUsd) -> Payee {
        let payee = Payee::new(WindowSettings::default(), self.deposit, held, settled);
        match self.chain {
            Some((base, ceiling)) => payee.on_chain(base, ceiling),
            None => payee,
        }
    }
    fn pump(&mut self) {
        if let Some(v) = self.payer.wanted() {
            let limit = self
                .payer
                .book()
                .total()
                .saturating_add(self.payer.book().window().max(self.payer.book().pending()));
            assert!(v <= limit && v <= self.deposit, "signed beyond the window");
            assert!(v > self.payer.signed(), "a voucher never decreases");
            self.durable_signed = v;
            self.payer.signed_up_to(v);
            self.vouchers.push_back(v);
        }
    }
    fn check(&self) {
        let (d, a) = (self.payee.book().total(), self.payee.held());
        let cap = WindowSettings::default().pair_max;
        assert!(
            d <= a.saturating_add(cap),
            "I1: delivered {d} on vouchers of {a}"
        );
        let base = self.chain.map_or(MicroUsd::ZERO, |(base, _)| base);
        assert!(
            a <= self.durable_signed.max(base),
            "credited what nobody signed"
        );
        assert!(self.payer.signed() <= self.deposit);
        let sum: MicroUsd = self.charged.values().copied().sum();
        assert_eq!(self.payer.book().settled(), sum, "I5");
        assert_eq!(self.payee.book().settled(), sum, "I5");
    }
    fn settle(&mut self, attempt: AttemptId, cost: MicroUsd) {
        assert!(!self.charged.contains_key(&attempt), "I4: charged twice");
        self.charged.insert(attempt, cost);
        self.payer.settle(&attempt, cost);
        if !self.payee.settle(&attempt, cost) {
            self.payee.restore_attempt(attempt, MicroUsd::ZERO);
            self.payee.settle(&attempt, cost);
        }
    }
    /// SYNC after a crash: the maximum voucher stands on both sides; live attempts are closed at
    /// what the payer had received.
    fn sync(&mut self, attempts: &[AttemptId]) {
        self.vouchers.clear();
        self.bytes.clear();
        for attempt in attempts {
            if self.payee.book().is_live(attempt) || self.payer.book().is_live(attempt) {
                let cost = self.payer.book().running_of(attempt);
                if !self.payer.book().is_live(attempt) {
                    let _ = self.payer.begin(*attempt, MicroUsd::ZERO, MicroUsd::ZERO);
                }
                self.settle(*attempt, cost);
            }
        }
        let best = self.durable_signed.max(self.durable_held);
        self.payer.signed_up_to(best);
        self.payee.credit(best).unwrap();
        self.durable_held = best;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn bounds_hold_over_any_history(
        ops in ops(), deposit in 1_000u64..200_000,
        chain in proptest::option::of((0u64..900, 0u64..60_000)),
    ) {
        let (payer, payee) = pair(deposit);
        let deposit = MicroUsd(deposit);
        let mut world = World { payer, payee, vouchers: VecDeque::new(), bytes: VecDeque::new(),
            durable_signed: MicroUsd::ZERO, durable_held: MicroUsd::ZERO,
            charged: std::collections::HashMap::new(), deposit,
            chain: chain.map(|(base, more)| (MicroUsd(base), MicroUsd(base + more))) };
        world.payer = world.payer(MicroUsd::ZERO, MicroUsd::ZERO);
        world.payee = world.payee(MicroUsd::ZERO, MicroUsd::ZERO);
        // An id is used once, as a hash of a signed head is.
        let mut life = [0u8; 12];
        let key = |n: u8, life: &[u8; 12]| { let mut b = [n; 16]; b[0] = life[usize::from(n)]; AttemptId(b) };
        for op in ops {
            match op {
                Op::Begin(n, prefill) => {
                    let a = key(n, &life);
                    if !world.payer.book().is_live(&a) && !world.charged.contains_key(&a)
                        && world.payer.begin(a, MicroUsd(prefill), W).is_ok() {
                        world.pump();
                        if world.payee.admit(a, MicroUsd(prefill), W).is_err() {
                            // Refused or not yet paid: nothing was delivered, nothing is owed.
                            world.payer.settle(&a, MicroUsd::ZERO);
                            life[usize::from(n)] = life[usize::from(n)].wrapping_add(1);
                        }
                    }
                }
                Op::Answer(n) => {
                    let a = key(n, &life);
                    if world.payee.book().is_live(&a) {
                        world.payee.start(&a, MicroUsd::ZERO);
                        world.payer.start(&a, MicroUsd::ZERO);
                    }
                }
                Op::Bytes(n, more) => {
                    let a = key(n, &life);
                    let next = world.payee.book().running_of(&a).saturating_add(MicroUsd(more));
                    if world.payee.book().is_live(&a) && world.payee.deliver(&a, next).is_ok() {
                        let total = world.payee.book().total();
                        prop_assert!(total <= world.payee.ceiling(), "I7: {total} on an unconfirmed deposit");
                        world.bytes.push_back((a, next));
                    }
                }
                Op::DeliverBytes => {
                    if let Some((a, running)) = world.bytes.pop_front() { world.payer.receive(&a, running); }
                }
                Op::DeliverVouchers(at) => {
                    // Any order, as after a reconnect; duplicates change nothing.
                    if let Some(&v) = world.vouchers.get(at) {
                        world.durable_held = world.durable_held.max(v);
                        world.payee.credit(v).unwrap();
                        world.payee.credit(v).unwrap();
                        world.vouchers.remove(at);
                    }
                }
                Op::End(n, discount) => {
                    let a = key(n, &life);
                    if world.payer.book().is_live(&a) && world.payee.book().is_live(&a) {
                        while let Some((b, running)) = world.bytes.pop_front() { world.payer.receive(&b, running); }
                        let cost = world.payer.book().running_of(&a).saturating_sub(MicroUsd(discount));
                        world.settle(a, cost);
                        life[usize::from(n)] = life[usize::from(n)].wrapping_add(1);
                    }
                }
                Op::CrashPayer => {
                    let all: Vec<_> = (0..12).map(|n| key(n, &life)).collect();
                    let settled = world.payer.book().settled();
                    world.payer = world.payer(world.durable_signed, settled);
                    world.sync(&all);
                    for slot in &mut life { *slot = slot.wrapping_add(1); }
                }
                Op::CrashPayee => {
                    let all: Vec<_> = (0..12).map(|n| key(n, &life)).collect();
                    let settled = world.payee.book().settled();
                    world.payee = world.payee(world.durable_held, settled);
                    world.sync(&all);
                    for slot in &mut life { *slot = slot.wrapping_add(1); }
                }
                Op::Chain(up, by) => if let Some((base, ceiling)) = &mut world.chain {
                    let by = MicroUsd(by);
                    *ceiling = if up { ceiling.saturating_add(by) } else { ceiling.saturating_sub(by).max(*base) };
                    world.payee.set_ceiling(*ceiling);
                }
                Op::TopUp(by) => if world.chain.is_some() {
                    // The seller's row first: a voucher that uses it may come at once.
                    world.deposit = world.deposit.saturating_add(MicroUsd(by));
                    world.payee.set_deposit(world.deposit);
                    world.payer.set_deposit(world.deposit);
                }
            }
            world.pump();
            world.check();
        }
    }

    #[test]
    fn two_streams_never_stall_while_bytes_and_vouchers_flow(prefill in 0u64..5_000, steps in 1u64..60) {
        let (mut payer, mut payee) = pair(10_000_000);
        for n in [1u8, 2] {
            payer.begin(id(n), MicroUsd(prefill), W).unwrap();
            if let Some(v) = payer.wanted() { payer.signed_up_to(v); payee.credit(v).unwrap(); }
            prop_assert!(payee.admit(id(n), MicroUsd(prefill), W).is_ok());
            payee.start(&id(n), MicroUsd(prefill));
            payer.start(&id(n), MicroUsd(prefill));
        }
        for step in 1..=steps {
            for n in [1u8, 2] {
                let running = MicroUsd(prefill + step * 100);
                if let Some(v) = payer.wanted() { payer.signed_up_to(v); payee.credit(v).unwrap(); }
                prop_assert_eq!(payee.deliver(&id(n), running), Ok(()));
                payer.receive(&id(n), running);
            }
        }
    }
}
