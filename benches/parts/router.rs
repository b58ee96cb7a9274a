//! What a choice costs among ten thousand sellers, and what knowing them takes.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use souk::router::{Answered, Ask, Entry, Observation, Outcome, Prefer, Router, Settings};
use souk::types::{ManualClock, MicroUsd, ModelId, PeerId, PriceTable};

const SELLERS: usize = 10_000;
const CHOICES: usize = 20_000;
const DAY_MS: u64 = 24 * 3_600_000;

pub fn choices() {
    let before = resident_kib();
    let clock = ManualClock::new(1_800_000_000_000);
    let router = Router::new(Settings::default(), Arc::new(clock.clone()), 1);
    let model = ModelId::new("m");
    let entries: Vec<Entry> = (0..SELLERS).map(|n| entry(n as u64)).collect();
    router.meet(entries.iter().map(|entry| &entry.seller));
    clock.advance(2 * DAY_MS);
    // Half of them are proven.
    for entry in entries.iter().step_by(2) {
        for _ in 0..20 {
            observe(&router, &model, entry.seller);
        }
    }
    router.refresh();
    let known = resident_kib().saturating_sub(before);
    let ask = ask(&model);
    let begun = Instant::now();
    let shelf = router.shortlist(&ask, 0, &entries);
    let ordering = begun.elapsed();
    let mut times: Vec<u64> = (0..CHOICES)
        .map(|_| {
            let begun = Instant::now();
            let fit = shelf.fitting(|at| entries.get(at).copied());
            black_box(router.choose(&ask, &fit, &[]));
            begun.elapsed().as_nanos() as u64
        })
        .collect();
    times.sort_unstable();
    let at = |permille: usize| times[times.len() * permille / 1_000] as f64 / 1_000.0;
    println!("\nrouter, {SELLERS} sellers of one model, half of them proven");
    println!(
        "  choice, µs: p50 {:.1}, p99 {:.1}, p99.9 {:.1}",
        at(500),
        at(990),
        at(999)
    );
    println!(
        "  order of the shelf, every 5 s in the background: {:.1} ms",
        ordering.as_secs_f64() * 1e3
    );
    println!("  state and offers: {:.1} MiB", known as f64 / 1024.0);
}

fn entry(n: u64) -> Entry {
    let price = 100_000 + n * 37 % 900_000;
    let price = PriceTable {
        input: price,
        cache_read: price / 10,
        cache_write: price,
        output: price * 4,
    };
    Entry {
        prefill: MicroUsd(500),
        ..Entry::plain(PeerId::random(), price)
    }
}

fn ask(model: &ModelId) -> Ask<'_> {
    Ask {
        model,
        client: "bench",
        input_tokens: 2_000,
        output_max: 4_096,
        exact: true,
        prefer: Prefer::Balanced,
        deadline_s: 100.0,
        conversation: None,
        pinned: None,
    }
}

fn observe(router: &Router, model: &ModelId, seller: PeerId) {
    router.begin(&seller, MicroUsd(500));
    let cost = MicroUsd(3_000);
    router.observe(&Observation {
        seller,
        model,
        client: "bench",
        conversation: None,
        exposure: MicroUsd(500),
        outcome: Outcome::Good(Answered {
            ttft_s: Some(0.4),
            writing_s: 3.0,
            input_tokens: 2_000,
            cached_tokens: 0,
            output_tokens: 200,
            cost,
            billed: cost,
            own: cost,
            exact: true,
        }),
    });
}

/// Resident memory of this process.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number.and_then(|n| n.parse().ok()).unwrap_or(0)
}
