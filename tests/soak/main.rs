//! Long experiments, each one command that prints one line of figures and exits non-zero on a
//! breach: `sim`, the seeded simulator of two channel ends; `kill`, nodes killed under load;
//! `power`, power cuts while a ledger is written; `outage`, a chain that is away for an hour;
//! `stages`, the contributors of a pipeline's layers killed while answers are written; `far`, the
//! same layers a long way from each other; `hops`, what passing rows on costs.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
#![allow(clippy::disallowed_methods, clippy::as_conversions)]

mod far;
#[path = "../it/harness/mod.rs"]
#[allow(unused_imports, reason = "the behaviour tests use more of the harness")]
mod harness;
mod hops;
mod kill;
mod outage;
mod power;
#[path = "../sim/mod.rs"]
mod sim;
mod stages;
#[path = "../tiny_model/mod.rs"]
mod tiny_model;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Long experiments: each prints one line of figures and fails on a breach.
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
    /// kill -9 of the buyer or the seller at random moments under load.
    Kill {
        /// Kills.
        #[arg(long, default_value_t = 1_000)]
        rounds: u64,
        /// Draws the moments.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Pay through channels on a chain (anvil), else by credit.
        #[arg(long)]
        chain: bool,
        /// Let nodes also die at failpoints; debug builds only.
        #[arg(long)]
        failpoints: bool,
    },
    /// Power cuts while a ledger is written; needs root and loop devices.
    Power {
        /// Cuts.
        #[arg(long, default_value_t = 100)]
        cuts: u64,
        /// Draws the moments.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// The RPC node is gone under load, then slow, then back.
    Outage {
        /// How long it is gone; it is slow for a sixth of that.
        #[arg(long, default_value_t = 60)]
        minutes: u64,
    },
    /// kill -9 of the contributors of a model's layers while answers are written.
    Stages {
        /// Kills.
        #[arg(long, default_value_t = 1_000)]
        kills: u64,
        /// Draws the moments and the victims.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Tokens of each prompt.
        #[arg(long, default_value_t = 40)]
        prompt: usize,
        /// Numbers of a row: the model's size.
        #[arg(long, default_value_t = 512)]
        hidden: usize,
    },
    /// Layers of a model in three network namespaces, far from each other; needs root.
    Far {
        /// Every packet's way takes so long.
        #[arg(long, default_value_t = 50)]
        delay_ms: u64,
    },
    /// Rows through three stages that compute nothing.
    Hops {
        /// Numbers of a row, of two bytes each on the wire.
        #[arg(long, default_value_t = 8_192)]
        hidden: usize,
        /// Rows, one after the other.
        #[arg(long, default_value_t = 2_000)]
        rows: usize,
    },
    /// The writer that `power` cuts.
    #[command(hide = true)]
    Write { dir: PathBuf },
    /// What a cut left.
    #[command(hide = true)]
    Inspect { dir: PathBuf },
}

/// All histories by credit, then all on a chain; one line each.
fn simulate(seeds: std::ops::Range<u64>) -> Result<String, String> {
    let credit = sim::run_many(sim::Mode::Credit, seeds.clone(), None)?;
    let channel = sim::run_many(sim::Mode::Channel, seeds, None)?;
    Ok(format!("credit  {credit}\nchannel {channel}"))
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Args::parse().experiment {
        Experiment::Sim { seeds, from } => simulate(from..from + seeds),
        Experiment::Kill {
            rounds,
            seed,
            chain,
            failpoints,
        } => {
            let plan = kill::Plan {
                rounds,
                seed,
                chain,
                failpoints,
            };
            kill::run(plan).await
        }
        Experiment::Power { cuts, seed } => power::experiment(cuts, seed).await,
        Experiment::Outage { minutes } => outage::run(minutes).await,
        Experiment::Stages {
            kills,
            seed,
            prompt,
            hidden,
        } => {
            let plan = stages::Plan {
                kills,
                seed,
                prompt,
                hidden,
            };
            stages::run(plan).await
        }
        Experiment::Far { delay_ms } => far::run(delay_ms).await,
        Experiment::Hops { hidden, rows } => hops::run(hidden, rows).await,
        Experiment::Write { dir } => power::write(&dir).await,
        Experiment::Inspect { dir } => power::inspect(&dir).await,
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
