//! Any sequence of holds, raises and ends, against the rule that a limit is never passed.

use proptest::prelude::*;

use super::*;

const DAY: UnixMs = 1_000;
const MONTH: UnixMs = 30_000;

fn purpose(model: u8, client: u8) -> Purpose {
    Purpose {
        model: ModelId::new(&format!("m{model}")),
        client: format!("c{client}"),
    }
}

fn scope(model: Option<u8>, client: Option<u8>) -> Scope {
    Scope {
        model: model.map(|n| ModelId::new(&format!("m{n}"))),
        client: client.map(|n| format!("c{n}")),
    }
}

fn attempt(n: u64) -> AttemptId {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&n.to_le_bytes());
    AttemptId::from_slice(&bytes).unwrap()
}

fn daily(limit: u64) -> Limits {
    Limits {
        daily: Some(MicroUsd(limit)),
        monthly: None,
    }
}

fn book(all: u64) -> Book {
    let mut book = Book::new(DAY, MONTH);
    book.limit(&Scope::ALL, daily(all));
    book
}

#[test]
fn a_hold_takes_what_is_left_and_no_less_than_it_needs() {
    let mut book = book(100);
    let hold =
        |book: &mut Book, least, most| book.hold(purpose(0, 0), MicroUsd(least), MicroUsd(most));
    let (first, amount) = hold(&mut book, 10, 70).unwrap();
    assert_eq!(amount, MicroUsd(70));
    let (_, amount) = hold(&mut book, 10, 70).unwrap();
    assert_eq!(amount, MicroUsd(30));
    let tight = hold(&mut book, 1, 1).unwrap_err();
    assert_eq!((tight.period, tight.left), (Period::Day, MicroUsd::ZERO));
    assert!(
        hold(&mut book, 0, 0).is_ok(),
        "what is free needs no budget"
    );
    book.release(first);
    assert!(hold(&mut book, 70, 70).is_ok());
    let ended = book.raise(first, MicroUsd(71)).unwrap_err();
    assert_eq!(
        ended.left,
        MicroUsd::ZERO,
        "nothing is promised after the end"
    );
}

#[test]
fn the_narrowest_limit_is_the_one_that_is_named() {
    let mut book = book(1_000);
    book.limit(&scope(Some(1), None), daily(50));
    book.limit(&scope(None, Some(2)), daily(20));
    book.limit(&scope(Some(1), Some(2)), daily(10));
    let left = |book: &Book, m, c| book.tightest(&purpose(m, c)).unwrap();
    assert_eq!(left(&book, 0, 0).left, MicroUsd(1_000));
    assert_eq!(left(&book, 1, 0).left, MicroUsd(50));
    assert_eq!(left(&book, 0, 2).left, MicroUsd(20));
    assert_eq!(left(&book, 1, 2).scope, scope(Some(1), Some(2)));
    let (id, _) = book.hold(purpose(1, 2), MicroUsd(9), MicroUsd(9)).unwrap();
    assert_eq!(left(&book, 1, 0).left, MicroUsd(41));
    book.name(id, attempt(1));
    book.settle(&attempt(1), MicroUsd(4));
    assert_eq!(left(&book, 1, 0).left, MicroUsd(46));
    assert_eq!(left(&book, 0, 2).left, MicroUsd(16));
    assert_eq!(left(&book, 0, 0).left, MicroUsd(996));
    book.limit(&scope(Some(1), Some(2)), Limits::default());
    assert_eq!(left(&book, 1, 2).left, MicroUsd(16));
}

#[test]
fn a_limit_set_later_knows_what_its_day_has_cost_and_what_is_held() {
    let mut book = Book::new(DAY, MONTH);
    book.spend(&purpose(1, 1), MicroUsd(7), MicroUsd(30));
    book.spend(&purpose(2, 1), MicroUsd(5), MicroUsd(5));
    book.hold(purpose(1, 2), MicroUsd(3), MicroUsd(3)).unwrap();
    book.limit(&scope(Some(1), None), daily(20));
    let totals = book.totals(&scope(Some(1), None)).unwrap();
    assert_eq!(totals, [MicroUsd(7), MicroUsd(30), MicroUsd(3)]);
    book.new_day(2 * DAY);
    let totals = book.totals(&scope(Some(1), None)).unwrap();
    assert_eq!(totals, [MicroUsd(0), MicroUsd(30), MicroUsd(3)]);
    book.new_month(2 * MONTH);
    assert_eq!(book.totals(&Scope::ALL).unwrap()[1], MicroUsd(0));
}

#[test]
fn what_is_in_doubt_stays_held_until_it_is_settled() {
    let mut book = book(100);
    let (id, _) = book
        .hold(purpose(0, 0), MicroUsd(40), MicroUsd(40))
        .unwrap();
    book.name(id, attempt(1));
    book.park(&attempt(1), MicroUsd(30));
    book.release(id);
    let left = |book: &Book| book.tightest(&purpose(0, 0)).unwrap().left;
    assert_eq!(left(&book), MicroUsd(70));
    book.inherit(attempt(2), purpose(0, 0), MicroUsd(500));
    assert_eq!(left(&book), MicroUsd(0));
    book.settle(&attempt(2), MicroUsd(0));
    book.settle(&attempt(1), MicroUsd(25));
    assert_eq!(left(&book), MicroUsd(75));
}

#[test]
fn a_cost_above_all_that_is_left_is_covered_as_far_as_it_goes() {
    let mut book = book(100);
    let (id, _) = book
        .hold(purpose(0, 0), MicroUsd(40), MicroUsd(40))
        .unwrap();
    book.hold(purpose(0, 0), MicroUsd(50), MicroUsd(50))
        .unwrap();
    assert_eq!(book.raise(id, MicroUsd(51)).unwrap_err().left, MicroUsd(10));
    assert!(book.raise(id, MicroUsd(45)).is_ok());
    assert_eq!(book.cover(id, MicroUsd(30)), MicroUsd(30));
    assert_eq!(book.cover(id, MicroUsd(70)), MicroUsd(50));
    assert_eq!(book.totals(&Scope::ALL).unwrap()[2], MicroUsd(100));
}

#[derive(Clone, Debug)]
enum Act {
    Hold(u8, u8, u16, u16),
    Raise(u8, u16),
    Park(u8, u16),
    Settle(u8, u16),
    Release(u8),
    NewDay,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (0..3u8, 0..3u8, 0..300u16, 0..600u16)
            .prop_map(|(m, c, least, more)| Act::Hold(m, c, least, least + more)),
        4 => (any::<u8>(), 0..900u16).prop_map(|(n, a)| Act::Raise(n, a)),
        2 => (any::<u8>(), 0..900u16).prop_map(|(n, a)| Act::Park(n, a)),
        4 => (any::<u8>(), 0..900u16).prop_map(|(n, a)| Act::Settle(n, a)),
        2 => any::<u8>().prop_map(Act::Release),
        1 => Just(Act::NewDay),
    ]
}

const LIMITED: [(Option<u8>, Option<u8>, u64); 4] = [
    (None, None, 2_000),
    (Some(1), None, 900),
    (None, Some(2), 700),
    (Some(1), Some(2), 400),
];

proptest! {
    /// As the buyer uses it: a cost is covered before it is settled or parked.
    #[test]
    fn no_limit_is_ever_passed_and_nothing_stays_held(acts in prop::collection::vec(act(), 1..120)) {
        let mut book = Book::new(DAY, MONTH);
        for (model, client, limit) in LIMITED {
            book.limit(&scope(model, client), daily(limit));
        }
        let mut live: Vec<(HoldId, AttemptId, bool)> = Vec::new();
        let mut count = 0;
        for act in acts {
            let at = |n: u8| usize::from(n) % live.len().max(1);
            match act {
                Act::Hold(m, c, least, most) => {
                    let (least, most) = (MicroUsd(least.into()), MicroUsd(most.into()));
                    if let Ok((id, amount)) = book.hold(purpose(m, c), least, most) {
                        prop_assert!(amount >= least && amount <= most);
                        count += 1;
                        book.name(id, attempt(count));
                        live.push((id, attempt(count), false));
                    }
                }
                Act::Raise(n, amount) if !live.is_empty() => {
                    let _ = book.raise(live[at(n)].0, MicroUsd(amount.into()));
                }
                Act::Park(n, cost) if !live.is_empty() => {
                    let index = at(n);
                    let cost = book.cover(live[index].0, MicroUsd(cost.into()));
                    book.park(&live[index].1, cost);
                    live[index].2 = true;
                }
                Act::Settle(n, cost) if !live.is_empty() => {
                    let (id, attempt, parked) = live.swap_remove(at(n));
                    let cost = MicroUsd(cost.into());
                    let held = book.holds[&id].amount;
                    let cost = if parked { cost.min(held) } else { book.cover(id, cost) };
                    book.settle(&attempt, cost);
                    book.release(id);
                }
                Act::Release(n) if !live.is_empty() && !live[at(n)].2 => {
                    let (id, ..) = live.swap_remove(at(n));
                    book.release(id);
                }
                Act::NewDay => book.new_day(book.ends().0 + DAY),
                _ => {}
            }
            for (model, client, limit) in LIMITED {
                let [day, _, held] = book.totals(&scope(model, client)).unwrap();
                prop_assert!(day.0 + held.0 <= limit, "{day} + {held} > {limit}");
            }
        }
        for (id, attempt, _) in live {
            book.settle(&attempt, MicroUsd(0));
            book.release(id);
        }
        prop_assert_eq!(book.totals(&Scope::ALL).unwrap()[2], MicroUsd(0));
        prop_assert!(book.holds.is_empty() && book.attempts.is_empty());
    }
}
