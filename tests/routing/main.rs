//! Prints what the router and simpler rules make of the same markets: `cargo run --release --example
//! routing [SEEDS]`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::as_conversions
)]

#[allow(dead_code, reason = "the test uses the rest")]
mod rivals;
#[allow(dead_code, reason = "the test uses the rest")]
mod run;
#[allow(dead_code, reason = "the test uses the rest")]
mod world;

use rivals::{Cheapest, Rule, Souk, Thompson, TwoChoices, Weights};
use souk::router::Prefer;
use world::Seller;

fn rules(seed: u64) -> Vec<Box<dyn Rule>> {
    vec![
        Box::new(Souk::new(Prefer::Balanced, seed)),
        Box::new(Souk::new(Prefer::Cheap, seed)),
        Box::new(Cheapest::new(seed)),
        Box::new(Weights::new(seed)),
        Box::new(Thompson::new(seed)),
        Box::new(TwoChoices::new(seed)),
    ]
}

fn main() {
    let seeds = std::env::args()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .unwrap_or(3);
    for (name, days, sellers) in scenes() {
        println!("\n{name}, {days} days, {seeds} seeds\n{}", run::HEAD);
        for rule in 0..rules(0).len() {
            let mut total = run::Account::default();
            let mut label = "";
            for seed in 0..seeds {
                let mut rules = rules(seed);
                let rule = rules[rule].as_mut();
                let requests = world::requests(days, seed);
                let account = run::run(rule, &mut sellers(), &requests, seed);
                total = add(&total, &account);
                label = rule.name();
            }
            println!("{}", total.row(label));
        }
    }
}

fn add(a: &run::Account, b: &run::Account) -> run::Account {
    run::Account {
        requests: a.requests + b.requests,
        good: a.good + b.good,
        unanswered: a.unanswered + b.unanswered,
        spent: a.spent + b.spent,
        lost: a.lost + b.lost,
        cheapest: a.cheapest + b.cheapest,
        for_good: a.for_good + b.for_good,
        seconds: a.seconds + b.seconds,
        keys: a.keys + b.keys,
    }
}

type Scene = (&'static str, u64, fn() -> Vec<Seller>);

fn scenes() -> Vec<Scene> {
    vec![
        ("Eight honest sellers", 7, world::honest),
        (
            "The same and six with rubbish, half of it noticed",
            3,
            || world::with_junk(0.5),
        ),
        ("The same, 2 % noticed", 3, || world::with_junk(0.02)),
        (
            "Honest, flaky, slow, over-billing, rubbish, shocks, outages",
            7,
            world::mixed,
        ),
    ]
}
