//! The seeded simulator over a few hundred histories, and the faults it must find.

use crate::sim::{self, Plant};

/// Histories of every test run; the soak runs many more.
const SEEDS: u64 = 500;

/// A planted fault that this many histories do not show would not be found.
const SEEDS_TO_FIND: u64 = 200;

#[test]
fn over_hundreds_of_histories_with_faults_both_sides_keep_every_invariant() {
    let figures = sim::run_many(0..SEEDS, None).unwrap_or_else(|breach| panic!("{breach}"));
    println!("{figures}");
    assert_eq!(figures.seeds, SEEDS);
    assert!(figures.charged > SEEDS, "something was paid: {figures}");
    assert!(
        figures.crashes > SEEDS / 2 && figures.lost > 0 && figures.cuts > 0,
        "{figures}"
    );
}

#[test]
fn a_seed_is_a_history() {
    for seed in 0..20 {
        let [first, second] = [(); 2].map(|()| sim::run(seed, None).unwrap().to_string());
        assert_eq!(first, second);
    }
}

/// Runs with a planted fault until the rule it breaks is reported.
fn assert_found(plant: Plant, rule: &str) {
    let breach = sim::run_many(0..SEEDS_TO_FIND, Some(plant)).expect_err("a breach");
    println!("{plant:?}: {}", breach.lines().next().unwrap_or_default());
    let first = breach.lines().next().unwrap_or_default();
    assert!(first.contains(rule), "{plant:?} breaks {rule}: {breach}");
    assert!(!first.contains("not found again"), "{breach}");
}

#[test]
fn the_simulator_finds_a_buyer_that_signs_above_its_deposit() {
    assert_found(Plant::NoDepositCap, "I2");
}

#[test]
fn the_simulator_finds_a_voucher_that_leaves_before_it_is_durable() {
    assert_found(Plant::SentBeforePersist, "I2");
}

#[test]
fn the_simulator_finds_a_double_charge_after_a_restart() {
    assert_found(Plant::DoubleChargeAfterRestart, "I4");
}

#[test]
fn the_simulator_finds_a_voucher_that_is_credited_before_it_is_durable() {
    assert_found(Plant::CreditedBeforePersist, "I3");
}

#[test]
fn the_simulator_finds_a_seller_that_sends_beyond_the_window() {
    assert_found(Plant::NoWindow, "I1");
}
