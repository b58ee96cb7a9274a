//! The seeded simulator over a few hundred histories in both modes, and the faults it must find.

use crate::sim::{self, Mode, Plant};

/// Histories of every test run; the soak runs many more.
const SEEDS: u64 = 500;

/// On a chain a history is three times as long.
const SEEDS_ON_CHAIN: u64 = 300;

/// A planted fault that this many histories do not show would not be found.
const SEEDS_TO_FIND: u64 = 200;

#[test]
fn over_hundreds_of_histories_with_faults_both_sides_keep_every_invariant() {
    let figures = sim::run_many(Mode::Credit, 0..SEEDS, None);
    let figures = figures.unwrap_or_else(|breach| panic!("{breach}"));
    println!("{figures}");
    assert_eq!(figures.seeds, SEEDS);
    assert!(figures.charged > SEEDS, "something was paid: {figures}");
    assert!(
        figures.crashes > SEEDS / 2 && figures.lost > 0 && figures.cuts > 0,
        "{figures}"
    );
}

#[test]
fn over_hundreds_of_histories_on_a_chain_every_channel_closes_and_pays_what_was_owed() {
    let figures = sim::run_many(Mode::Channel, 0..SEEDS_ON_CHAIN, None);
    let figures = figures.unwrap_or_else(|breach| panic!("{breach}"));
    println!("{figures}");
    assert_eq!(figures.seeds, SEEDS_ON_CHAIN);
    let least = SEEDS_ON_CHAIN;
    assert!(figures.charged > least, "something was paid: {figures}");
    assert!(
        figures.channels > least && figures.reorgs > least / 4 && figures.crashes > least / 2,
        "{figures}"
    );
}

#[test]
fn a_seed_is_a_history() {
    for mode in [Mode::Credit, Mode::Channel] {
        for seed in 0..20 {
            let [first, second] = [(); 2].map(|()| sim::run(mode, seed, None).unwrap().to_string());
            assert_eq!(first, second);
        }
    }
}

/// Runs with a planted fault until the rule it breaks is reported.
fn assert_found(mode: Mode, plant: Plant, rule: &str) {
    let breach = sim::run_many(mode, 0..SEEDS_TO_FIND, Some(plant)).expect_err("a breach");
    let first = breach.lines().next().unwrap_or_default();
    println!("{plant:?}: {first}");
    assert!(first.contains(rule), "{plant:?} breaks {rule}: {breach}");
    assert!(!first.contains("not found again"), "{breach}");
}

fn assert_found_in_both(plant: Plant, rule: &str) {
    assert_found(Mode::Credit, plant, rule);
    assert_found(Mode::Channel, plant, rule);
}

#[test]
fn the_simulator_finds_a_buyer_that_signs_above_its_deposit() {
    assert_found_in_both(Plant::NoDepositCap, "I2");
}

#[test]
fn the_simulator_finds_a_voucher_that_leaves_before_it_is_durable() {
    assert_found_in_both(Plant::SentBeforePersist, "I2");
}

#[test]
fn the_simulator_finds_a_double_charge_after_a_restart() {
    assert_found_in_both(Plant::DoubleChargeAfterRestart, "I4");
}

#[test]
fn the_simulator_finds_a_voucher_that_is_credited_before_it_is_durable() {
    assert_found_in_both(Plant::CreditedBeforePersist, "I3");
}

#[test]
fn the_simulator_finds_a_seller_that_sends_beyond_the_window() {
    assert_found_in_both(Plant::NoWindow, "I1");
}

#[test]
fn the_simulator_finds_a_seller_that_trusts_blocks_that_are_not_final() {
    assert_found(Mode::Channel, Plant::TrustsFreshBlocks, "I7");
}

#[test]
fn the_simulator_finds_a_transaction_that_leaves_before_its_intent_is_durable() {
    assert_found(Mode::Channel, Plant::SentBeforeIntent, "I6");
}

#[test]
fn the_simulator_finds_a_buyer_that_forgets_the_fee_of_the_opening() {
    assert_found(Mode::Channel, Plant::ForgetsOpenFee, "I5");
}

#[test]
fn the_simulator_finds_a_seller_that_claims_prepayment() {
    assert_found(Mode::Channel, Plant::ClaimsPrepayment, "prepayment claimed");
}
