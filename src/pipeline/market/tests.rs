//! Coverage, placement, moves and routes over made-up stages.
use std::ops::Range;

use proptest::prelude::*;

use super::moves::{DRAIN_MAX, MOVE_PAUSE};
use super::*;
use crate::protocol::offer::Wires;

const PAUSE_MS: u64 = MOVE_PAUSE.as_secs() * 1_000;
const DRAIN_MS: u64 = DRAIN_MAX.as_secs() * 1_000;

/// An id made of a number, without computing a key.
pub(in crate::pipeline) fn peer(n: u16) -> PeerId {
    let mut bytes = vec![0, 36, 8, 1, 18, 32];
    bytes.extend_from_slice(&[7; 30]);
    bytes.extend_from_slice(&n.to_be_bytes());
    PeerId::from_bytes(&bytes).unwrap()
}

pub(in crate::pipeline) fn stage(
    n: u16,
    layers: u16,
    range: Range<u16>,
    rows_per_s: u32,
) -> Offered {
    Offered {
        peer: peer(n),
        offer: Hash32([0; 32]),
        terms: StageTerms {
            manifest: Hash32([1; 32]),
            first: range.start,
            end: range.end,
            layers,
            free_positions: 4_096,
            rows_per_s,
            wires: Wires::F16,
        },
        price: PriceTable::default(),
        rows_per_s,
        link_us: 1_000,
    }
}

fn joiner<'a>(peer: &'a PeerId, layers_max: u16) -> Joiner<'a> {
    Joiner {
        peer,
        layers_max,
        on_disk: &[],
    }
}

/// A way of any number of stages.
fn way(layers: u16, offered: &[Offered]) -> Option<Route> {
    let ask = Ask {
        hops_max: usize::from(layers),
        ..Ask::whole(layers, 1, 500)
    };
    route::best(offered, &ask)
}

/// Lets joiners of these sizes come until there is a way, at most so many.
fn join(layers: u16, offered: &mut Vec<Offered>, widths: &[u16], most: usize) -> usize {
    for (n, width) in widths.iter().cycle().take(most).enumerate() {
        let coverage = Coverage::of(layers, offered.iter());
        if coverage.is_whole() {
            return n;
        }
        let id = 100 + u16::try_from(offered.len()).unwrap();
        let place = place(&coverage, &joiner(&peer(id), *width)).unwrap();
        assert!(place.len() <= usize::from(*width) && place.end <= layers);
        offered.push(stage(id, layers, place, 10));
    }
    assert!(
        Coverage::of(layers, offered.iter()).is_whole(),
        "no way after {most} joiners: {:?}",
        offered.iter().map(|o| o.terms.range()).collect::<Vec<_>>()
    );
    most
}

#[test]
fn rows_get_as_far_as_one_end_is_the_next_beginning() {
    let mut offered = vec![stage(1, 30, 0..10, 5), stage(2, 30, 10..22, 7)];
    let coverage = Coverage::of(30, &offered);
    assert!(!coverage.is_whole() && coverage.covered() == 22);
    // Every layer is computed somewhere, but nobody begins where the second ends.
    offered.push(stage(3, 30, 21..30, 7));
    let coverage = Coverage::of(30, &offered);
    assert!(!coverage.is_whole() && coverage.covered() == 30);
    assert_eq!(way(30, &offered), None);
    offered.push(stage(4, 30, 10..21, 1));
    let coverage = Coverage::of(30, &offered);
    assert!(coverage.is_whole());
    assert_eq!(way(30, &offered).unwrap().hops, [0, 3, 2]);
    assert_eq!(coverage.work(&(0..10)), 50);
    // Nobody believes the first any more: no way.
    offered[0].rows_per_s = 0;
    assert!(!Coverage::of(30, &offered).is_whole());
}

#[test]
fn a_joiner_takes_what_is_missing_then_what_least_is_done_for() {
    let me = peer(9);
    let mut offered = vec![stage(1, 32, 0..12, 10), stage(2, 32, 20..32, 10)];
    let look = |offered: &[Offered], most: u16| {
        place(&Coverage::of(32, offered), &joiner(&me, most)).unwrap()
    };
    assert_eq!(look(&offered, 8), 12..20);
    // With more memory it takes a neighbour's layers as well: one hop less.
    assert!([0..20, 12..32].contains(&look(&offered, 20)));
    assert_eq!(look(&offered, 32), 0..32);
    // Too small for the piece that is missing: half of it, from one of its ends.
    assert!([12..16, 16..20].contains(&look(&offered, 5)));
    offered.push(stage(3, 32, 12..20, 4));
    assert_eq!(look(&offered, 8), 12..20);
    // 10, 4, 10 rows: with 5 per cent between them the first two would be alike.
    offered[2].rows_per_s = 96;
    offered[0].rows_per_s = 100;
    offered[1].rows_per_s = 102;
    let twelve = look(&offered, 12);
    assert!(
        [0..12, 12..20].contains(&twelve) && twelve == (0..12),
        "the longer of those alike"
    );
}

#[test]
fn layers_on_disk_are_taken_where_they_are_of_use() {
    let me = peer(9);
    let offered = [stage(1, 32, 0..8, 10), stage(2, 32, 24..32, 10)];
    let coverage = Coverage::of(32, &offered);
    let with = |on_disk: Range<u16>| {
        let joiner = Joiner {
            on_disk: std::slice::from_ref(&on_disk),
            ..joiner(&me, 8)
        };
        place(&coverage, &joiner).unwrap()
    };
    assert_eq!(with(16..32), 16..24);
    assert_eq!(with(0..16), 8..16);
    assert!(
        [8..16, 16..24].contains(&with(0..9)),
        "of no use: to be fetched"
    );
}

#[test]
fn joiners_that_come_together_do_not_all_take_the_same() {
    let coverage = Coverage::of(32, &[]);
    let firsts: Vec<u16> = (0..40)
        .map(|n| place(&coverage, &joiner(&peer(n), 16)).unwrap().start)
        .collect();
    let left = firsts.iter().filter(|first| **first == 0).count();
    assert!((8..=32).contains(&left), "{left} of 40 at the beginning");
    assert!(place(&coverage, &joiner(&peer(1), 0)).is_none());
}

#[test]
fn a_lost_stage_is_replaced_by_another_or_by_two_shorter_ones() {
    let mut offered = vec![
        stage(1, 30, 0..10, 10),
        stage(2, 30, 10..20, 10),
        stage(3, 30, 20..30, 10),
        stage(4, 30, 10..14, 10),
        stage(5, 30, 14..20, 10),
    ];
    let lost = [peer(2)];
    let around = |offered: &[Offered]| {
        let ask = Ask {
            layers: 10..20,
            hops_max: 4,
            without: &lost,
            ..Ask::whole(30, 100, 500)
        };
        route::best(offered, &ask).map(|route| route.hops)
    };
    assert_eq!(around(&offered), Some(vec![3, 4]));
    offered.push(stage(6, 30, 10..20, 10));
    assert_eq!(around(&offered), Some(vec![5]));
    offered[5].terms.free_positions = 99;
    assert_eq!(around(&offered), Some(vec![3, 4]), "no room there");
    offered[3].terms.wires = Wires::F32;
    assert_eq!(around(&offered), None, "it does not speak f16");
}

#[test]
fn time_and_price_decide_by_what_a_second_is_worth() {
    let mut quick = stage(1, 10, 0..10, 100);
    quick.price.output = 10_000_000;
    let cheap = stage(2, 10, 0..10, 10);
    let offered = [quick, cheap];
    let first = |second_worth| route::best(&offered, &Ask::whole(10, 1, second_worth)).unwrap();
    assert_eq!(first(100).hops, [1]);
    assert_eq!(first(100_000_000).hops, [0]);
    let route = first(100);
    assert_eq!((route.row_us, route.row_price), (101_000, 0));
    assert_eq!(route.milli_rows_per_s(), 9_900);
    assert_eq!(first(100_000_000).row_price, 100_000_000);
}

#[test]
fn a_stage_moves_seldom_after_draining_and_never_leaves_a_hole() {
    let me = peer(1);
    let (joiner, mine) = (joiner(&me, 10), 0..10);
    let lone = [stage(1, 20, 0..10, 10), stage(2, 20, 10..20, 1)];
    let mut mover = Mover::new(0, Pace::default());
    let late = 10 * PAUSE_MS;
    let step = |mover: &mut Mover, now, offered: &[Offered], sessions| {
        let seen = Seen {
            joiner: &joiner,
            mine: &mine,
            layers: 20,
            offered,
            sessions,
        };
        mover.step(now, &seen)
    };
    assert_eq!(
        step(&mut mover, late, &lone, 0),
        Step::Stay,
        "nobody else is there"
    );
    let mut offered = lone.to_vec();
    offered.push(stage(3, 20, 0..10, 10));
    assert_eq!(
        step(&mut mover, PAUSE_MS - 1, &offered, 0),
        Step::Stay,
        "too early"
    );
    // One of the two moves first; which one, the hour decides.
    let turn = |mover: &Mover, now| {
        let mut tried = mover.clone();
        step(&mut tried, now, &offered, 3) != Step::Stay
    };
    let now = (1..40)
        .map(|n| n * PAUSE_MS)
        .find(|now| turn(&mover, *now))
        .unwrap();
    assert_eq!(step(&mut mover, now, &offered, 3), Step::Drain(10..20));
    assert_eq!(step(&mut mover, now + 1, &offered, 1), Step::Drain(10..20));
    let mut waits = mover.clone();
    let end = now + DRAIN_MS;
    assert_eq!(
        step(&mut waits, end, &offered, 1),
        Step::Move(10..20),
        "long enough"
    );
    let mut alone = mover.clone();
    assert_eq!(
        step(&mut alone, now + 2, &lone, 0),
        Step::Stay,
        "the other one has left"
    );
    assert_eq!(step(&mut mover, now + 2, &offered, 0), Step::Move(10..20));
    assert_eq!(
        step(&mut mover, now + 3, &offered, 0),
        Step::Stay,
        "not twice in half an hour"
    );
}

#[test]
fn a_crowd_spreads_over_the_model_one_by_one() {
    let layers = 40;
    let mut offered: Vec<Offered> = (0..12).map(|n| stage(n, layers, 0..10, 10)).collect();
    offered.extend((12..15).map(|n| {
        let first = (n - 11) * 10;
        stage(n, layers, first..first + 10, 10)
    }));
    let mut movers: Vec<Mover> = offered
        .iter()
        .map(|_| Mover::new(0, Pace::default()))
        .collect();
    let mut moves = 0;
    for minute in 0..1_000u64 {
        for at in 0..offered.len() {
            let (me, mine) = (offered[at].peer, offered[at].terms.range());
            let joiner = joiner(&me, 10);
            let now = minute * 60_000;
            let seen = Seen {
                joiner: &joiner,
                mine: &mine,
                layers,
                offered: &offered,
                sessions: 0,
            };
            if let Step::Move(to) = movers[at].step(now, &seen) {
                (offered[at].terms.first, offered[at].terms.end) = (to.start, to.end);
                moves += 1;
                assert!(Coverage::of(layers, &offered).is_whole());
            }
        }
    }
    let at = |first: u16| offered.iter().filter(|o| o.terms.first == first).count();
    let counts = [at(0), at(10), at(20), at(30)];
    assert_eq!(counts.iter().sum::<usize>(), 15, "{counts:?}");
    assert!(counts.iter().all(|count| *count >= 2), "{counts:?}");
    assert!((4..=15).contains(&moves), "{moves} moves");
}

#[test]
fn those_that_stay_fill_the_place_of_one_that_left_for_good() {
    let layers = 30;
    // Three at the beginning, of which the first never moves; nobody at the end any more.
    let mut offered: Vec<Offered> = (0..3).map(|n| stage(n, layers, 0..10, 10)).collect();
    offered.push(stage(3, layers, 10..20, 10));
    let mut movers: Vec<Mover> = offered
        .iter()
        .map(|_| Mover::new(0, Pace::default()))
        .collect();
    let mut moved = Vec::new();
    for minute in 0..60u64 {
        for at in 1..offered.len() {
            let (me, mine) = (offered[at].peer, offered[at].terms.range());
            let seen = Seen {
                joiner: &joiner(&me, 10),
                mine: &mine,
                layers,
                offered: &offered,
                sessions: 0,
            };
            if let Step::Move(to) = movers[at].step(minute * 60_000, &seen) {
                (offered[at].terms.first, offered[at].terms.end) = (to.start, to.end);
                moved.push((at, minute));
                assert_eq!(to, 20..30);
            }
        }
    }
    assert!(Coverage::of(layers, &offered).is_whole());
    // One of the two that could, soon after the pause; the only one at its place stays.
    let [(at, minute)] = moved[..] else {
        panic!("{moved:?}")
    };
    assert!(at < 3 && (30..59).contains(&minute), "{moved:?}");
}

#[test]
fn nobody_moves_when_the_one_that_left_comes_back_during_the_drain() {
    let (me, mine) = (peer(1), 0..10);
    let joiner = joiner(&me, 10);
    let mut offered = vec![stage(1, 20, 0..10, 10), stage(2, 20, 0..10, 10)];
    let look = |mover: &mut Mover, now, offered: &[Offered], sessions| {
        let seen = Seen {
            joiner: &joiner,
            mine: &mine,
            layers: 20,
            offered,
            sessions,
        };
        mover.step(now, &seen)
    };
    let mut mover = Mover::new(0, Pace::default());
    let drained = (0..60).find(|n| {
        let now = PAUSE_MS + n * 60_000;
        look(&mut mover, now, &offered, 1) == Step::Drain(10..20)
    });
    let now = PAUSE_MS + drained.unwrap() * 60_000;
    // Somebody else has taken the place, and we are all there is at ours.
    offered[1].terms.first = 10;
    offered[1].terms.end = 20;
    assert_eq!(look(&mut mover, now + 1, &offered, 0), Step::Stay);
}

/// Every way of at most [`HOPS_MAX`] stages, the plain way.
fn all_ways(
    offered: &[Offered],
    at: u16,
    end: u16,
    hops: &mut Vec<usize>,
    found: &mut Vec<Vec<usize>>,
) {
    if at == end && !hops.is_empty() {
        found.push(hops.clone());
    }
    if hops.len() == HOPS_MAX || at == end {
        return;
    }
    for (index, one) in offered.iter().enumerate() {
        if one.terms.first == at {
            hops.push(index);
            all_ways(offered, one.terms.end, end, hops, found);
            hops.pop();
        }
    }
}

fn some_stages(layers: u16) -> impl Strategy<Value = Vec<Offered>> {
    let one = (
        0..layers,
        1..=layers,
        1u32..50,
        0u64..50_000,
        0u64..1_000_000,
    );
    proptest::collection::vec(one, 1..14).prop_map(move |all| {
        let made = all
            .into_iter()
            .enumerate()
            .map(|(n, (first, length, rows, link, price))| {
                let end = (first + length).min(layers);
                let mut one = stage(u16::try_from(n).unwrap(), layers, first..end, rows);
                one.link_us = link;
                one.price.output = price;
                one
            });
        made.collect()
    })
}

proptest! {
    #[test]
    fn the_best_way_is_the_best_of_all_ways(offered in some_stages(9), second_worth in 0u64..5_000) {
        let ask = Ask::whole(9, 1, second_worth);
        let score = |hops: &[usize]| -> u128 {
            let sum = |of: fn(&Offered) -> u64| -> u128 {
                hops.iter().map(|hop| u128::from(of(&offered[*hop]))).sum()
            };
            sum(Offered::row_us) * u128::from(second_worth) + sum(Offered::row_price)
        };
        let mut all = Vec::new();
        all_ways(&offered, 0, 9, &mut Vec::new(), &mut all);
        let best = route::best(&offered, &ask);
        let least = all.iter().map(|hops| score(hops)).min();
        prop_assert_eq!(best.as_ref().map(|route| score(&route.hops)), least);
        if let Some(route) = best {
            prop_assert!(route.hops.len() <= HOPS_MAX);
            let mut at = 0;
            for hop in &route.hops {
                prop_assert_eq!(offered[*hop].terms.first, at);
                at = offered[*hop].terms.end;
            }
            prop_assert_eq!(at, 9);
        }
        let any = way(9, &offered).is_some();
        prop_assert_eq!(Coverage::of(9, &offered).is_whole(), any);
    }

    #[test]
    fn joiners_of_any_size_make_a_way(
        layers in 1u16..90,
        widths in proptest::collection::vec(1u16..40, 1..6),
    ) {
        let mut offered = Vec::new();
        let joined = join(layers, &mut offered, &widths, usize::from(layers));
        prop_assert!(way(layers, &offered).is_some());
        let least = *widths.iter().min().unwrap();
        prop_assert!(joined <= usize::from(layers.div_ceil(least)), "{} joined", joined);
    }

    #[test]
    fn joiners_mend_what_others_leave(
        layers in 2u16..60,
        width in 2u16..20,
        gone in proptest::collection::vec(any::<prop::sample::Index>(), 1..8),
    ) {
        let mut offered = Vec::new();
        join(layers, &mut offered, &[width, width / 2 + 1], usize::from(layers));
        for one in gone {
            if !offered.is_empty() {
                offered.remove(one.index(offered.len()));
            }
        }
        join(layers, &mut offered, &[width], usize::from(layers));
        prop_assert!(way(layers, &offered).is_some());
    }

    #[test]
    fn a_stage_more_never_takes_a_way_away(offered in some_stages(12), width in 1u16..13) {
        let before = Coverage::of(12, &offered);
        let me = peer(500);
        let range = place(&before, &joiner(&me, width)).unwrap();
        prop_assert!(!range.is_empty() && range.len() <= usize::from(width));
        let mut with = offered.clone();
        with.push(stage(500, 12, range.clone(), 10));
        let after = Coverage::of(12, &with);
        prop_assert!(after.is_whole() || !before.is_whole());
        // What it takes is reached from an end of the model, so rows do come there.
        prop_assert!(after.work(&range) >= 10 * u64::try_from(range.len()).unwrap());
    }
}
