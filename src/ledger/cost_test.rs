//! What a row costs: run alone in an optimised build to read the figures,
//! `CARGO_PROFILE_TEST_OPT_LEVEL=3 cargo test --lib ledger::cost -- --nocapture`.

use std::time::{Duration, Instant};

use super::testing::*;
use super::*;

const T0: u64 = 1_700_000_000_000;

/// CPU time of this process, all threads.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 = after
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    Duration::from_millis(ticks * 10)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(clippy::disallowed_methods, reason = "tests have no task tracker")]
async fn a_row_costs_little_cpu() {
    let requests: u64 = std::env::var("SOUK_COST_REQUESTS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(400);
    for concurrency in [1u64, 16, 128]
        .into_iter()
        .filter(|c| std::env::var("SOUK_COST_C").map_or(true, |only| only == c.to_string()))
    {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.db");
        let running = start(&path).await;
        for chan in 0..u8::try_from(concurrency).unwrap() {
            let row = Row::Channel(channel(Role::Buy, chan, T0));
            running.ledger.commit(vec![row]).await.unwrap();
        }
        let (began, cpu_began) = (Instant::now(), cpu());
        let mut tasks = Vec::new();
        for task in 0..concurrency {
            let ledger = running.ledger.clone();
            tasks.push(tokio::spawn(async move {
                let chan = u8::try_from(task).unwrap();
                for n in 0..requests / concurrency {
                    let id = task * 1_000_000 + n;
                    let mut rows = request(Role::Buy, id, chan, T0 + n, n * 5000).into_iter();
                    ledger
                        .submit(rows.by_ref().take(1).collect())
                        .await
                        .unwrap();
                    ledger
                        .commit(rows.by_ref().take(1).collect())
                        .await
                        .unwrap();
                    ledger
                        .submit(rows.by_ref().take(1).collect())
                        .await
                        .unwrap();
                    ledger.submit(rows.collect()).await.unwrap();
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        running.stop().await;
        let done = requests / concurrency * concurrency;
        let (wall, cpu) = (began.elapsed(), cpu().saturating_sub(cpu_began));
        eprintln!(
            "c={concurrency}: {done} requests of 4 rows, {} requests/s, {} us CPU per row",
            u128::from(done) * 1_000_000 / wall.as_micros().max(1),
            cpu.as_micros() / u128::from(done * 4),
        );
        let reader = Reader::open(&path).await.unwrap();
        let began = Instant::now();
        let states = reader.load(Role::Buy).await.unwrap();
        eprintln!("  load: {:?}", began.elapsed());
        let (began, zone) = (Instant::now(), jiff::tz::TimeZone::UTC);
        let all = report::Filter::default();
        let by = report::GroupBy::Model;
        report::summary(&reader, by, &all, &zone).await.unwrap();
        eprintln!("  report: {:?}", began.elapsed());
        let began = Instant::now();
        start(&path).await.stop().await;
        eprintln!("  open: {:?}", began.elapsed());
        let began = Instant::now();
        let found = audit::verify(&reader, &audit::AuditOptions::default()).await;
        assert_eq!(found.unwrap().differences, []);
        eprintln!("  verify: {:?}", began.elapsed());
        let booked: u64 = states.iter().map(|s| s.accepted_sum.0).sum();
        assert_eq!(booked, done * 5000);
    }
}
