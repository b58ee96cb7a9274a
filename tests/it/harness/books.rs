//! Both ledgers of a market as `node ledger` shows them, and whether they agree.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::node::Home;

/// How often both ledgers are read until they agree.
const PAUSE: Duration = Duration::from_millis(300);
/// How long rows may take to be written on a busy machine.
const PAID_DEADLINE: Duration = Duration::from_secs(120);

/// One attempt as a ledger shows it.
#[derive(Clone, Debug)]
pub struct Row {
    pub request: String,
    pub buyer: String,
    pub seller: String,
    pub outcome: String,
    pub billed: Option<u64>,
}

/// Attempts by their id.
pub type Rows = BTreeMap<String, Row>;

/// The attempts of one node; entries that belong to no attempt are not counted.
pub fn rows(home: &Home) -> Rows {
    let value = home.ledger(&["requests", "--json", "--limit", "1000000"]);
    let all = value.as_array().expect("an array of rows");
    all.iter()
        .filter(|row| row["attempt_id"].is_string())
        .map(|row| {
            let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
            let parsed = Row {
                request: text("request_id"),
                buyer: text("buyer"),
                seller: text("seller"),
                outcome: text("outcome"),
                billed: row["billed_micro_usd"].as_u64(),
            };
            (text("attempt_id"), parsed)
        })
        .collect()
}

/// What `node ledger requests` shows, once so many rows are paid for: rows that nobody waits for are
/// written a moment after their answers.
pub async fn paid(home: &Home, count: usize) -> Vec<Value> {
    let end = Instant::now() + PAID_DEADLINE;
    loop {
        let shown = home.ledger(&["requests", "--json", "--limit", "100000"]);
        let rows = shown.as_array().expect("an array of rows").clone();
        let paid = |row: &&Value| row["billed_micro_usd"].as_u64() > Some(0);
        if rows.iter().filter(paid).count() >= count {
            return rows;
        }
        assert!(Instant::now() < end, "not {count} paid rows: {rows:#?}");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits until every attempt is booked, with the same cost in both ledgers; a final row never
/// changes, so this holds from then on. Gives what the buyers and what the sellers have.
///
/// # Errors
/// What still differs at the deadline.
pub async fn agreed(
    buyers: &[&Home],
    sellers: &[&Home],
    deadline: Duration,
) -> Result<(Rows, Rows), String> {
    let all = |homes: &[&Home]| -> Rows { homes.iter().flat_map(|home| rows(home)).collect() };
    let end = Instant::now() + deadline;
    loop {
        let (bought, sold) = (all(buyers), all(sellers));
        let differences = differences(&bought, &sold);
        if differences.is_empty() {
            return Ok((bought, sold));
        }
        if Instant::now() > end {
            return Err(format!("after {deadline:?}: {differences:#?}"));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What is open, or booked differently; an attempt that only one side knows must cost nothing.
fn differences(bought: &Rows, sold: &Rows) -> Vec<String> {
    let attempts: BTreeSet<&String> = bought.keys().chain(sold.keys()).collect();
    attempts
        .into_iter()
        .filter_map(|attempt| {
            let (here, there) = (bought.get(attempt), sold.get(attempt));
            let cost = |row: Option<&Row>| row.map_or(Some(0), |row| row.billed);
            let same = cost(here).is_some() && cost(here) == cost(there);
            (!same).then(|| format!("{attempt}: {here:?} bought, {there:?} sold"))
        })
        .collect()
}

/// Requests that were charged more than once, and how often.
pub fn charged_twice(bought: &Rows) -> BTreeMap<&str, u32> {
    let mut charged: BTreeMap<&str, u32> = BTreeMap::new();
    for row in bought.values().filter(|row| row.billed > Some(0)) {
        *charged.entry(&row.request).or_default() += 1;
    }
    charged.retain(|_, count| *count > 1);
    charged
}

/// Σ billed.
pub fn billed(rows: &Rows) -> u64 {
    rows.values().filter_map(|row| row.billed).sum()
}

/// Runs `node ledger verify`.
///
/// # Errors
/// What it says when something does not add up.
pub fn verify(home: &Home) -> Result<(), String> {
    let output = home.run(&["ledger", "verify"]);
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(format!("{}: {text}\n{errors}", home.peer_id))
}
