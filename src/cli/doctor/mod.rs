//! `node doctor`: looks at everything that a node stands on, says what is wrong and what to do.
//!
//! `config → place (directory, disk, keys, names) → ports → reach (peers, chain, money, upstream,
//! clock) → OpenClaw`. Each look is one [`Check`]; none changes anything, and one that cannot be
//! made (no upstream is configured) is skipped with the reason. Exit code 0 unless a check failed.

mod check;
mod place;
mod ports;
mod reach;

use serde_json::json;

use super::output::{self, Output};
use super::{CliError, FailureKind, GlobalArgs};
use crate::config::Config;
use crate::data_dir::DataDir;
pub use check::Check;
use check::Verdict;

/// What the checks are made on.
struct Patient {
    config: Config,
    dir: DataDir,
}

/// Makes every check and prints them.
///
/// # Errors
/// When one of them failed.
pub async fn run(global: &GlobalArgs, out: &Output) -> anyhow::Result<()> {
    let (config, mut checks) = config(global);
    let given = global.data_dir.clone().or(config.node.data_dir.clone());
    match DataDir::resolve(given.as_deref()) {
        Err(error) => checks.push(Check::fail(
            "data directory",
            error.to_string(),
            "name one with --data-dir",
        )),
        Ok(dir) => examine(global, Patient { config, dir }, &mut checks).await,
    }
    let failed = checks.iter().filter(|c| c.verdict == Verdict::Fail).count();
    if out.json {
        output::json(&json!({ "ok": failed == 0, "checks": checks }));
    } else {
        for check in &checks {
            output::text(&check.line(out));
        }
    }
    if failed == 0 {
        return Ok(());
    }
    let message = format!("{failed} of {} checks failed", checks.len());
    Err(CliError::new(FailureKind::Failure, message).into())
}

/// The configuration, or the defaults with what is wrong.
fn config(global: &GlobalArgs) -> (Config, Vec<Check>) {
    match global.load(Vec::new()) {
        Ok(loaded) => {
            let said = match &loaded.file {
                Some(file) => format!("{} is right", file.display()),
                None => "no config file; the defaults are used".to_owned(),
            };
            (loaded.config, vec![Check::pass("config", said)])
        }
        Err(error) => {
            let wrong = error.0.iter().map(|problem| {
                let fix = "correct it; `node config show --origin` lists where values come from";
                Check::fail("config", problem.to_string(), fix)
            });
            (global.defaults(), wrong.collect())
        }
    }
}

async fn examine(global: &GlobalArgs, patient: Patient, checks: &mut Vec<Check>) {
    let Patient { config, dir } = &patient;
    checks.push(place::directory(dir));
    checks.push(place::disk(dir));
    let keys = place::keys(config, dir);
    let has_keys = keys.verdict == Verdict::Pass;
    checks.push(keys);
    checks.push(place::name());
    checks.extend(ports::all(config, dir));
    checks.push(reach::peers(global, config, dir).await);
    let chain = reach::chain(config).await;
    let chain_works = chain.verdict == Verdict::Pass;
    checks.push(chain);
    if chain_works && has_keys {
        checks.push(reach::money(config, dir).await);
    }
    checks.push(reach::upstream(config).await);
    checks.extend(place::layers(config));
    checks.push(reach::clock(config).await);
    checks.push(super::openclaw::check(config).await);
}
