//! Long experiments, each one command that prints one line of figures and exits non-zero on a
//! breach: `sim`, the seeded simulator of two channel ends.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
#![allow(clippy::disallowed_methods, clippy::as_conversions)]

#[path = "../sim/mod.rs"]
mod sim;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Long experiments on money: each prints one line of figures and fails on a breach.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    experiment: Experiment,
}

#[derive(Subcommand)]
enum Experiment {
    /// The seeded simulator of two channel ends over a lossy wire, with crashes.
    Sim {
        /// Histories to run.
        #[arg(long, default_value_t = 100_000)]
        seeds: u64,
        /// The first seed.
        #[arg(long, default_value_t = 0)]
        from: u64,
    },
}

fn main() -> ExitCode {
    let outcome = match Args::parse().experiment {
        Experiment::Sim { seeds, from } => {
            sim::run_many(from..from + seeds, None).map(|figures| figures.to_string())
        }
    };
    match outcome {
        Ok(figures) => {
            println!("{figures}");
            ExitCode::SUCCESS
        }
        Err(breach) => {
            eprintln!("{breach}");
            ExitCode::FAILURE
        }
    }
}
