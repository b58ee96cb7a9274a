//! Any history of rows, with restarts, against a model that only counts.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::testing::*;
use super::*;
use crate::types::{AttemptId, MicroUsd};

const T0: u64 = 1_700_000_000_000;

#[derive(Clone, Debug)]
enum Act {
    Open(u8),
    Deliver(u8),
    Book(u8, u16, u8),
    Sign(u8, u16),
    Settle(u8, u16),
    Restart,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => any::<u8>().prop_map(Act::Open),
        3 => any::<u8>().prop_map(Act::Deliver),
        5 => (any::<u8>(), any::<u16>(), 0..3u8).prop_map(|(n, m, o)| Act::Book(n, m, o)),
        4 => (0..3u8, any::<u16>()).prop_map(|(c, m)| Act::Sign(c, m)),
        1 => (0..3u8, any::<u16>()).prop_map(|(c, m)| Act::Settle(c, m)),
        1 => Just(Act::Restart),
    ]
}

#[derive(Default)]
struct Model {
    open: BTreeMap<u8, (bool, Option<(Outcome, u64)>)>,
    voucher: [Option<u64>; 3],
    settled: [u64; 3],
}

impl Model {
    fn sum(&self, chan: u8, outcome: Outcome) -> u64 {
        let of = self.open.iter().filter(|(n, _)| *n % 3 == chan);
        of.filter_map(|(_, (_, done))| *done)
            .filter(|(o, _)| *o == outcome)
            .map(|(_, billed)| billed)
            .sum()
    }
}

async fn play(ledger: &Ledger, model: &mut Model, act: &Act) {
    match *act {
        Act::Open(n) => {
            let row = Row::Open(open(Role::Buy, n.into(), n % 3, T0));
            let result = ledger.commit(vec![row]).await;
            assert_eq!(result.is_ok(), !model.open.contains_key(&n));
            model.open.entry(n).or_default();
        }
        Act::Deliver(n) => {
            let row = Row::Delivered(delivered(n.into(), T0, 9));
            let result = ledger.commit(vec![row]).await;
            assert_eq!(result.is_ok(), model.open.contains_key(&n));
            if let Some(attempt) = model.open.get_mut(&n) {
                attempt.0 = true;
            }
        }
        Act::Book(n, billed, outcome) => {
            let outcome =
                [Outcome::Accepted, Outcome::WrittenOff, Outcome::Failed][usize::from(outcome)];
            let billed = if outcome == Outcome::Failed {
                0
            } else {
                u64::from(billed)
            };
            let mut row = accepted(n.into(), T0, billed);
            row.outcome = outcome;
            let result = ledger.commit(vec![Row::Final(row)]).await;
            match model.open.get_mut(&n) {
                None => assert!(result.is_err()),
                Some((_, done @ None)) => {
                    result.unwrap();
                    *done = Some((outcome, billed));
                }
                Some((_, Some(done))) => assert_eq!(result.is_ok(), *done == (outcome, billed)),
            }
        }
        Act::Sign(chan, cumulative) => {
            let row = voucher(Role::Buy, chan, cumulative.into(), None);
            ledger.persist_voucher(row).await.unwrap();
            let head = &mut model.voucher[usize::from(chan)];
            *head = Some(head.unwrap_or(0).max(cumulative.into()));
        }
        Act::Settle(chan, amount) => {
            let row = SettlementRow {
                at_ms: T0,
                role: Role::Buy,
                channel: channel_id(chan),
                peer: peer(chan),
                amount: MicroUsd(amount.into()),
                note: String::new(),
            };
            ledger.commit(vec![Row::Settlement(row)]).await.unwrap();
            model.settled[usize::from(chan)] += u64::from(amount);
        }
        Act::Restart => {}
    }
}

async fn compare(ledger: &Ledger, model: &Model) {
    let states = ledger.load(Role::Buy).await.unwrap();
    assert_eq!(states.len(), 3);
    for (chan, state) in (0u8..).zip(&states) {
        let at = usize::from(chan);
        assert_eq!(state.row, channel(Role::Buy, chan, T0));
        assert_eq!(state.accepted_sum.0, model.sum(chan, Outcome::Accepted));
        assert_eq!(
            state.written_off_sum.0,
            model.sum(chan, Outcome::WrittenOff)
        );
        assert_eq!(state.settlements_sum.0, model.settled[at]);
        assert_eq!(
            state.voucher.as_ref().map(|v| v.cumulative.0),
            model.voucher[at]
        );
        let mut open: Vec<(AttemptId, bool)> = state
            .unfinished
            .iter()
            .map(|a| (a.open.attempt_id, a.delivered.is_some()))
            .collect();
        open.sort();
        let mut expected: Vec<(AttemptId, bool)> = model
            .open
            .iter()
            .filter(|(n, (_, done))| *n % 3 == chan && done.is_none())
            .map(|(n, (delivered, _))| (AttemptId(id16((*n).into())), *delivered))
            .collect();
        expected.sort();
        assert_eq!(open, expected);
    }
}

async fn history(acts: Vec<Act>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    let mut running = start_with(&path, 7).await;
    for chan in 0..3 {
        let row = Row::Channel(channel(Role::Buy, chan, T0));
        running.ledger.commit(vec![row]).await.unwrap();
    }
    let mut model = Model::default();
    for act in &acts {
        if matches!(act, Act::Restart) {
            running.kill().await;
            running = start_with(&path, 7).await;
        }
        play(&running.ledger, &mut model, act).await;
    }
    compare(&running.ledger, &model).await;
    running.kill().await;
    let running = start(&path).await;
    compare(&running.ledger, &model).await;
    let options = audit::AuditOptions {
        exposure_max: MicroUsd::from_usd(1000),
        ..audit::AuditOptions::default()
    };
    let report = audit::verify(&running.ledger, &options).await.unwrap();
    let rules = |d: &&audit::Difference| !d.what.contains("usage costs");
    assert_eq!(report.differences.iter().find(rules), None);
    running.stop().await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn load_after_any_history_equals_the_model(acts in prop::collection::vec(act(), 0..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(history(acts));
    }
}
