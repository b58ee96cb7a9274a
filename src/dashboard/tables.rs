//! Tables that both roles' pages show: sums of the ledger, requests, money over time.

use serde_json::Value;

use super::html::{Cell, table};
use super::plot::{self, Bar};
use super::values::{clock, list, millis, number, short, text, usd};

/// Lines of a table of sums; the rest is in `node ledger`.
const SUMS_MAX: usize = 12;

/// Money of a summary by time, as a plot and the same as a table behind it.
pub(super) fn over_time(title: &str, unit: &str, times: &[String], summary: &Value) -> String {
    let rows = list(summary, "rows");
    let of = |time: &String| {
        let row = rows
            .iter()
            .find(|row| row.get("key") == Some(&Value::from(time.as_str())));
        row.and_then(|row| row.get("billed_micro_usd")?.as_u64())
    };
    let bars: Vec<Bar> = times
        .iter()
        .map(|time| Bar {
            label: label(time),
            micro_usd: of(time).unwrap_or(0),
        })
        .collect();
    let lines = rows
        .iter()
        .rev()
        .map(|row| {
            vec![
                Cell::Text(text(row.get("key"))),
                Cell::Figure(number(row.get("requests"))),
                Cell::Figure(usd(row.get("billed_micro_usd"))),
            ]
        })
        .collect();
    let figures = table(title, &[unit, "Requests", "USD"], lines, "Nothing yet.");
    format!(
        "<h3>{}</h3>{}<details id=\"by-{}\"><summary>Figures</summary>{figures}</details>",
        super::html::escape(title),
        plot::bars(title, &bars),
        super::html::escape(&unit.to_lowercase()),
    )
}

/// The part of a time that stands under a bar.
fn label(time: &str) -> String {
    match time.split_once('T') {
        Some((_, hour)) => hour.to_owned(),
        None => time.get(5..).unwrap_or(time).to_owned(),
    }
}

/// A summary by model, peer or client.
pub(super) fn sums(title: &str, what: &str, summary: &Value, is_peer: bool) -> String {
    let rows = list(summary, "rows").iter().take(SUMS_MAX);
    let lines = rows
        .map(|row| {
            let key = if is_peer {
                short(row.get("key"))
            } else {
                text(row.get("key"))
            };
            let key = if key.is_empty() {
                "(unnamed)".to_owned()
            } else {
                key
            };
            vec![
                Cell::Text(key),
                Cell::Figure(number(row.get("requests"))),
                Cell::Figure(number(row.get("failed"))),
                Cell::Figure(number(row.get("input_tokens"))),
                Cell::Figure(number(row.get("output_tokens"))),
                Cell::Figure(usd(row.get("billed_micro_usd"))),
            ]
        })
        .collect();
    let header = [what, "Requests", "Failed", "Tokens in", "Tokens out", "USD"];
    table(title, &header, lines, "Nothing yet.")
}

/// Requests; `peer` is the field that names the other side.
pub(super) fn requests(caption: &str, peer: &str, rows: &[&Value], when_empty: &str) -> String {
    let lines = rows
        .iter()
        .map(|row| {
            vec![
                Cell::Text(clock(row.get("time"))),
                Cell::Text(text(row.get("model"))),
                Cell::Text(short(row.get(peer))),
                Cell::Figure(status(row)),
                Cell::Figure(number(row.get("input_tokens"))),
                Cell::Figure(number(row.get("output_tokens"))),
                Cell::Figure(millis(row.get("ttft_ms"))),
                Cell::Figure(millis(row.get("total_ms"))),
                Cell::Figure(usd(row.get("billed_micro_usd"))),
            ]
        })
        .collect();
    let who = if peer == "seller" { "Seller" } else { "Buyer" };
    let header = [
        "UTC",
        "Model",
        who,
        "Status",
        "In",
        "Out",
        "First token",
        "Total",
        "USD",
    ];
    table(caption, &header, lines, when_empty)
}

fn status(row: &Value) -> String {
    match row.get("status").and_then(Value::as_u64) {
        None => "running".to_owned(),
        Some(status) => match row.get("error").and_then(Value::as_str) {
            Some(error) if !error.is_empty() => format!("{status} {error}"),
            _ => status.to_string(),
        },
    }
}

/// Those that run, and those that are over.
pub(super) fn split(all: &[Value]) -> (Vec<&Value>, Vec<&Value>) {
    let is_over = |row: &&Value| row.get("status").is_some_and(Value::is_u64);
    let (over, live): (Vec<&Value>, Vec<&Value>) = all.iter().partition(is_over);
    (live, over)
}
