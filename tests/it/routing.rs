//! The router against bad sellers, in virtual time: what it loses, and what honesty costs.

#[path = "../routing/rivals.rs"]
mod rivals;
#[path = "../routing/run.rs"]
mod run;
#[path = "../routing/world.rs"]
mod world;

use rivals::{Cheapest, Rule, Souk, Thompson, TwoChoices, Weights};
use run::Account;
use souk::router::Prefer;
use world::{DAY_MS, HOUR_MS, Seller};

const SEEDS: u64 = 3;

/// All seeds of one market, one after the other.
fn spend(days: u64, sellers: fn() -> Vec<Seller>, rule: fn(u64) -> Box<dyn Rule>) -> Vec<Account> {
    let one = |seed| {
        let requests = world::requests(days, seed);
        run::run(rule(seed).as_mut(), &mut sellers(), &requests, seed)
    };
    (0..SEEDS).map(one).collect()
}

fn balanced(seed: u64) -> Box<dyn Rule> {
    Box::new(Souk::new(Prefer::Balanced, seed))
}

#[test]
fn six_sellers_of_rubbish_under_ever_new_keys_get_two_per_cent_at_most() {
    let sellers = || world::with_junk(0.5);
    println!("{}", run::HEAD);
    let (mut good, mut requests) = (0, 0);
    for account in spend(3, sellers, balanced) {
        println!("{}", account.row("souk"));
        assert!(account.lost_share() <= 0.02, "{account:?}");
        (good, requests) = (good + account.good, requests + account.requests);
    }
    assert!(
        good as f64 / requests as f64 >= 0.99,
        "{good} of {requests}"
    );
    // The market is hard: rules without these safeguards lose several times that.
    let rivals: [fn(u64) -> Box<dyn Rule>; 4] = [
        |seed| Box::new(Cheapest::new(seed)),
        |seed| Box::new(Weights::new(seed)),
        |seed| Box::new(Thompson::new(seed)),
        |seed| Box::new(TwoChoices::new(seed)),
    ];
    for rule in rivals {
        let account = &spend(1, sellers, rule)[0];
        println!("{}", account.row(rule(0).name()));
        assert!(account.lost_share() > 0.04, "{account:?}");
    }
}

#[test]
fn among_honest_sellers_the_cheapest_gets_nearly_all() {
    for account in spend(7, world::honest, balanced) {
        assert!(account.above_cheapest() <= 0.03, "{account:?}");
        assert_eq!(account.lost, 0);
        assert!(account.good_share() >= 0.999, "{account:?}");
    }
}

#[test]
fn flaky_slow_greedy_and_absent_sellers_cost_little() {
    for account in spend(7, world::mixed, balanced) {
        assert!(account.lost_share() <= 0.02, "{account:?}");
        assert!(account.good_share() >= 0.98, "{account:?}");
    }
}

#[test]
fn a_new_honest_seller_is_tried_within_its_first_hour_and_earns_its_share() {
    for seed in 0..SEEDS {
        let mut sellers = world::honest();
        let since_ms = 3 * DAY_MS;
        sellers.push(Seller {
            since_ms,
            ..Seller::new(0.85)
        });
        let requests = world::requests(6, seed);
        let mut rule = Souk::new(Prefer::Balanced, seed);
        run::run(&mut rule, &mut sellers, &requests, seed);
        let new = sellers.last().unwrap();
        let after = new.first_served_ms.unwrap() - since_ms;
        assert!(after <= HOUR_MS, "first asked after {after} ms");
        let late = requests.iter().filter(|r| r.at_ms > since_ms).count();
        let share = new.served as f64 / late as f64;
        assert!(
            share > 0.4,
            "the cheapest of all has {share} of the traffic"
        );
    }
}
