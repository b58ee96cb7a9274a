//! What a request costs over calling the upstream directly: `make bench`.
//!
//! One run starts a fast upstream in a process of its own, drives it directly, then drives a whole
//! market (bootstrap node, seller, buyer; signed, metered and booked) with the same requests, cell
//! by cell in turn, so that both see the same machine. Every figure is meant as a difference or a
//! ratio within one run; figures of different machines say nothing about each other.
//!
//! `cargo bench --bench market -- [--node PATH] [--seconds S] [--json]`
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::as_conversions
)]

mod load;
mod nodes;
mod report;
mod upstream;

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use load::Kind;
use nodes::{Child, Market};
use report::{Cell, Report};

/// Requests in flight.
const CONCURRENCY: [usize; 3] = [1, 16, 128];

/// Time for caches, connections and the router before a cell is measured.
const WARM_UP: Duration = Duration::from_millis(500);

#[derive(Parser)]
struct Args {
    /// The node's release binary; only the direct column when it is missing.
    #[arg(long, default_value = "target/release/node")]
    node: PathBuf,
    /// Seconds a cell.
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// One JSON value instead of the table.
    #[arg(long)]
    json: bool,
    /// Only this many in flight (repeatable).
    #[arg(short, long = "concurrency")]
    concurrency: Vec<usize>,
    /// Serve as the fast upstream (used by the benchmark itself).
    #[arg(long, hide = true)]
    serve_upstream: bool,
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let args = Args::parse();
    if args.serve_upstream {
        return upstream::serve();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let report = runtime.block_on(run(&args));
    if args.json {
        println!("{}", report.json());
    } else {
        print!("{}", report.table());
    }
    if report.failures() > 0 {
        eprintln!("{} requests failed", report.failures());
        std::process::exit(1);
    }
}

async fn run(args: &Args) -> Report {
    let own = std::env::current_exe().unwrap();
    let upstream = Child::start(
        "upstream",
        std::process::Command::new(own).arg("--serve-upstream"),
    );
    let direct = upstream.http();
    let market = if args.node.exists() {
        Some(Market::start(&args.node, direct).await)
    } else {
        eprintln!(
            "{} does not exist: only direct calls are measured",
            args.node.display()
        );
        None
    };
    let seconds = Duration::from_secs_f64(args.seconds);
    let counts = if args.concurrency.is_empty() {
        &CONCURRENCY[..]
    } else {
        &args.concurrency
    };
    let mut report = Report::default();
    for kind in [Kind::Whole, Kind::Burst] {
        for count in counts {
            let count = *count;
            eprintln!("{kind:?}, {count} in flight …");
            load::drive(direct, kind, count, WARM_UP).await;
            let mut cell = Cell::new(kind, count, load::drive(direct, kind, count, seconds).await);
            if let Some(market) = &market {
                load::drive(market.buyer.http(), kind, count, WARM_UP).await;
                let before = market.cpu();
                let through = load::drive(market.buyer.http(), kind, count, seconds).await;
                cell.through(through, before, market.cpu());
            }
            report.cells.push(cell);
        }
    }
    if let Some(market) = &market {
        report.memory = Some((market.buyer.rss_mib(), market.seller.rss_mib()));
    }
    report
}
