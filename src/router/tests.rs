//! The rules of a choice, one by one.

use std::sync::Arc;

use super::*;
use crate::types::ManualClock;

const NOW: UnixMs = 1_800_000_000_000;
const DAY: u64 = 24 * 3_600_000;

struct World {
    router: Router,
    clock: ManualClock,
    model: ModelId,
}

fn world() -> World {
    let clock = ManualClock::new(NOW);
    let router = Router::new(Settings::default(), Arc::new(clock.clone()), 1);
    World {
        router,
        clock,
        model: ModelId::new("m"),
    }
}

fn entry(seller: PeerId, price: u64) -> Entry {
    let price = PriceTable {
        input: price,
        cache_read: price / 10,
        cache_write: price,
        output: price * 4,
    };
    Entry {
        prefill: MicroUsd(10),
        ..Entry::plain(seller, price)
    }
}

fn good() -> Answered {
    Answered {
        ttft_s: Some(0.5),
        writing_s: 4.0,
        input_tokens: 1_000,
        cached_tokens: 0,
        output_tokens: 200,
        cost: MicroUsd(3_000),
        billed: MicroUsd(3_000),
        own: MicroUsd(3_000),
        exact: true,
    }
}

impl World {
    fn ask(&self) -> Ask<'_> {
        Ask {
            model: &self.model,
            client: "c",
            input_tokens: 1_000,
            output_max: 4_096,
            exact: true,
            prefer: Prefer::Balanced,
            deadline_s: 60.0,
            conversation: None,
            pinned: None,
        }
    }
    fn end(&self, seller: PeerId, outcome: Outcome) {
        self.end_in(seller, outcome, None);
    }
    fn end_in(&self, seller: PeerId, outcome: Outcome, conversation: Option<ConversationKey>) {
        self.router.begin(&seller, MicroUsd(10));
        self.router.observe(&Observation {
            seller,
            model: &self.model,
            client: "c",
            conversation,
            exposure: MicroUsd(10),
            outcome,
        });
    }
    /// A seller with a day of good answers.
    fn proven(&self) -> PeerId {
        let seller = PeerId::random();
        self.router.meet([&seller]);
        self.clock.advance(DAY);
        for _ in 0..30 {
            self.end(seller, Outcome::Good(good()));
        }
        assert!(self.is_proven(&seller));
        seller
    }
    fn is_proven(&self, seller: &PeerId) -> bool {
        let record = self.router.record(seller).unwrap();
        record.is_proven(self.clock.now_ms(), self.router.settings())
    }
    /// How often each entry is chosen in 1 000 choices.
    fn shares(&self, ask: &Ask<'_>, entries: &[Entry]) -> Vec<u32> {
        let mut shares = vec![0; entries.len()];
        for _ in 0..1_000 {
            let choice = self.router.choose(ask, entries, &[]).unwrap();
            shares[choice.index] += 1;
        }
        shares
    }
}

#[test]
fn while_nobody_is_known_the_cheapest_is_asked() {
    let world = world();
    let entries = [300, 100, 200].map(|price| entry(PeerId::random(), price * 1_000));
    let choice = world.router.choose(&world.ask(), &entries, &[]).unwrap();
    assert_eq!(choice.index, 1);
    let tried = [entries[1].seller];
    let choice = world.router.choose(&world.ask(), &entries, &tried).unwrap();
    assert_eq!(choice.index, 2);
    assert!(world.router.choose(&world.ask(), &[], &[]).is_none());
}

#[test]
fn among_proven_sellers_the_clearly_cheaper_one_gets_most_of_it() {
    let world = world();
    let entries = [
        entry(world.proven(), 4_000_000),
        entry(world.proven(), 1_000_000),
    ];
    let shares = world.shares(&world.ask(), &entries);
    assert!(shares[1] > 950, "{shares:?}");
}

#[test]
fn who_answers_faster_may_cost_more_when_speed_matters() {
    let world = world();
    let (quick, slow) = (world.proven(), world.proven());
    for _ in 0..40 {
        let late = Answered {
            ttft_s: Some(2.0),
            writing_s: 8.0,
            ..good()
        };
        world.end(slow, Outcome::Good(late));
        world.end(quick, Outcome::Good(good()));
    }
    let entries = [entry(quick, 2_000_000), entry(slow, 1_000_000)];
    let share = |prefer| {
        let ask = Ask {
            prefer,
            ..world.ask()
        };
        world.shares(&ask, &entries)[0]
    };
    let (fast, cheap) = (share(Prefer::Fast), share(Prefer::Cheap));
    assert!(fast > 900 && cheap < 100, "{fast} {cheap}");
}

#[test]
fn a_newcomer_gains_nothing_by_undercutting() {
    let world = world();
    let (known, new) = (world.proven(), PeerId::random());
    world.router.meet([&new]);
    // The known one was a newcomer itself today.
    world.clock.advance(DAY);
    let share = |price| {
        let entries = [entry(known, 1_000_000), entry(new, price)];
        world.shares(&world.ask(), &entries)[1]
    };
    let (fair, junk) = (share(1_000_000), share(1_000));
    assert!(fair > 0, "a newcomer is tried now and then");
    assert!(junk < 2 * fair + 50 && junk < 300, "{fair} {junk}");
}

#[test]
fn newcomers_are_left_out_when_their_day_is_spent_and_come_back() {
    let world = world();
    let (known, new) = (world.proven(), PeerId::random());
    let entries = [entry(known, 3_000_000), entry(new, 1_000_000)];
    for _ in 0..30 {
        let dear = Answered {
            cost: MicroUsd(3_000),
            ..good()
        };
        world.end(new, Outcome::Good(dear));
    }
    assert!(!world.is_proven(&new), "too young");
    assert_eq!(world.shares(&world.ask(), &entries)[1], 0);
    assert!(
        world
            .router
            .choose(&world.ask(), &entries[1..], &[])
            .is_some()
    );
    world.clock.advance(DAY);
    assert!(world.is_proven(&new));
    assert!(world.shares(&world.ask(), &entries)[1] > 900);
}

#[test]
fn a_seller_that_keeps_failing_is_left_alone_and_asked_once_more_later() {
    let world = world();
    let (a, b) = (world.proven(), world.proven());
    let entries = [entry(a, 1_000_000), entry(b, 2_000_000)];
    let failed = || Outcome::Failed {
        expected: MicroUsd(3_000),
        lost: MicroUsd::ZERO,
    };
    for _ in 0..3 {
        world.end(a, failed());
    }
    assert_eq!(world.shares(&world.ask(), &entries), [0, 1_000]);
    let skip = world.router.explain(&world.ask(), &entries);
    assert!(matches!(skip[0], Err(Skip::Breaker(_))) && skip[1].is_ok());
    // With nobody else it is asked all the same.
    let only = &entries[..1];
    assert!(world.router.choose(&world.ask(), only, &[]).is_some());
    world.clock.advance(40_000);
    assert!(world.router.explain(&world.ask(), &entries)[0].is_ok());
}

#[test]
fn what_says_nothing_about_a_seller_changes_nothing() {
    let world = world();
    let seller = world.proven();
    let before = world.router.model_record(&seller, &world.model);
    let record = world.router.record(&seller).unwrap();
    for _ in 0..20 {
        world.end(seller, Outcome::Excused);
    }
    assert_eq!(world.router.model_record(&seller, &world.model), before);
    let after = world.router.record(&seller).unwrap();
    assert_eq!(
        (after.breaker, after.exposure),
        (record.breaker, MicroUsd::ZERO)
    );
}

#[test]
fn a_full_seller_is_asked_for_less_and_not_blamed() {
    let world = world();
    let (a, b) = (world.proven(), world.proven());
    let entries = [entry(a, 1_000_000), entry(b, 3_000_000)];
    let before = world.router.model_record(&a, &world.model);
    for _ in 0..4 {
        world.router.begin(&a, MicroUsd(10));
    }
    world.end(a, Outcome::Full);
    assert_eq!(world.router.model_record(&a, &world.model), before);
    assert_eq!(world.shares(&world.ask(), &entries), [0, 1_000]);
    let skip = world.router.explain(&world.ask(), &entries);
    assert_eq!(skip[0], Err(Skip::Full));
}

#[test]
fn a_seller_that_bills_more_than_it_delivers_is_set_aside() {
    let world = world();
    let (honest, greedy) = (world.proven(), PeerId::random());
    let over = Answered {
        billed: MicroUsd(4_000),
        ..good()
    };
    for _ in 0..9 {
        world.end(greedy, Outcome::Good(over));
    }
    let record = |seller| world.router.record(seller).unwrap();
    assert!(!record(&greedy).is_quarantined(world.clock.now_ms()));
    world.end(greedy, Outcome::Good(over));
    assert!(record(&greedy).is_quarantined(world.clock.now_ms()));
    assert!(record(&greedy).quarantine_reason.contains("1.33"));
    assert!(!record(&honest).is_quarantined(world.clock.now_ms()));
    let only = [entry(greedy, 1)];
    assert!(world.router.choose(&world.ask(), &only, &[]).is_none());
}

#[test]
fn a_conversation_stays_where_its_cache_is_while_that_is_cheaper() {
    let world = world();
    let (a, b) = (world.proven(), world.proven());
    let entries = [entry(a, 1_100_000), entry(b, 1_000_000)];
    let key = ConversationKey(1);
    let long = Answered {
        input_tokens: 50_000,
        ..good()
    };
    world.end_in(a, Outcome::Good(long), Some(key));
    let ask = Ask {
        input_tokens: 51_000,
        conversation: Some(key),
        ..world.ask()
    };
    assert!(world.shares(&ask, &entries)[0] > 950);
    let mut dear = entries;
    dear[0].price.cache_read = dear[0].price.input;
    dear[0].price.input *= 3;
    assert!(world.shares(&ask, &dear)[0] < 50);
    world
        .clock
        .advance(world.router.settings().cache_life_ms + 1);
    assert!(world.shares(&ask, &entries)[0] < 500);
}

#[test]
fn a_pinned_seller_comes_first_while_it_may_be_asked() {
    let world = world();
    let (a, b) = (world.proven(), world.proven());
    let entries = [entry(a, 9_000_000), entry(b, 1_000_000)];
    let ask = Ask {
        pinned: Some(a),
        ..world.ask()
    };
    assert_eq!(world.shares(&ask, &entries), [1_000, 0]);
    assert_eq!(world.router.choose(&ask, &entries, &[a]).unwrap().index, 1);
}

#[test]
fn a_translation_has_nothing_for_itself_but_its_price() {
    let world = world();
    let mut entries = [1_000_000, 1_000_000].map(|price| entry(world.proven(), price));
    entries[0].is_translated = true;
    assert_eq!(world.shares(&world.ask(), &entries), [0, 1_000]);
    entries[1].price.output *= 4;
    assert!(world.shares(&world.ask(), &entries)[0] > 800);
}

#[test]
fn lossy_ways_are_taken_only_when_there_is_no_other() {
    let world = world();
    let mut entries = [1_000_000, 9_000_000].map(|price| entry(world.proven(), price));
    entries[0].is_lossy = true;
    assert_eq!(world.shares(&world.ask(), &entries), [0, 1_000]);
    let choice = world.router.choose(&world.ask(), &entries[..1], &[]);
    assert!(choice.is_some());
}

#[test]
fn more_than_a_newcomers_credit_is_never_at_stake() {
    let world = world();
    let new = PeerId::random();
    let mut offer = entry(new, 1_000_000);
    offer.prefill = MicroUsd(30_000);
    assert!(world.router.choose(&world.ask(), &[offer], &[]).is_some());
    world.router.begin(&new, MicroUsd(30_000));
    assert!(world.router.choose(&world.ask(), &[offer], &[]).is_none());
    let explained = world.router.explain(&world.ask(), &[offer]);
    assert_eq!(explained, [Err(Skip::Exposure)]);
    // Beside proven sellers it is not prepaid beyond its credit at all.
    let mut dear = entry(PeerId::random(), 1_000_000);
    dear.prefill = MicroUsd(60_000);
    let mut known = entry(world.proven(), 5_000_000);
    known.prefill = MicroUsd(60_000);
    assert_eq!(world.shares(&world.ask(), &[dear, known]), [0, 1_000]);
}

#[test]
fn what_is_known_survives_a_restart() {
    let world = world();
    let (a, b) = (world.proven(), world.proven());
    for _ in 0..3 {
        let lost = MicroUsd::ZERO;
        let expected = MicroUsd(1);
        world.end(b, Outcome::Failed { expected, lost });
    }
    let snapshot = world.router.snapshot();
    let clock = Arc::new(world.clock.clone());
    let again = Router::new(Settings::default(), clock, 2);
    again.restore(&snapshot);
    assert_eq!(again.record(&a), world.router.record(&a));
    assert_eq!(
        again.model_record(&b, &world.model),
        world.router.model_record(&b, &world.model)
    );
    let entries = [entry(a, 9_000_000), entry(b, 1)];
    assert_eq!(again.choose(&world.ask(), &entries, &[]).unwrap().index, 0);
    again.restore(&Snapshot {
        whole: b"x".to_vec(),
        sellers: vec![(a, b"{".to_vec())],
    });
    assert_eq!(again.record(&a), world.router.record(&a));
}

#[test]
fn ten_thousand_newcomers_crowd_nobody_out_of_a_shortlist() {
    let world = world();
    let known: Vec<Entry> = (1..4)
        .map(|n| entry(world.proven(), n * 1_000_000))
        .collect();
    let mut entries: Vec<Entry> = (0..10_000).map(|_| entry(PeerId::random(), 1)).collect();
    entries.extend(&known);
    let list = world.router.shortlist(&world.ask(), 0, &entries);
    assert_eq!(list.proven, [10_000, 10_001, 10_002]);
    assert_eq!(list.newcomers.len(), 10_000);
    let found = list.fitting(|at| (at != 10_001).then_some(at));
    assert_eq!(found.len(), 2 + shortlist::NEWCOMERS_MAX);
    assert_eq!(found[..2], [10_000, 10_002]);
    let again = world.router.shortlist(&world.ask(), 0, &entries);
    assert_ne!(again.newcomers[..4], list.newcomers[..4]);
}
