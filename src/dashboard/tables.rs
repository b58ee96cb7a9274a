//! Tables that both roles' pages show: sums of the ledger, requests, money over time.

use serde_json::Value;

use super::html::{Cell, table};
use super::plot::{self, Bar};
use super::values::{clock, list, millis, number, short, text, usd};

/// What the colours of a channel's bar mean.
pub(super) const MONEY_LEGEND: &str = "<ul class=\"legend\"><li class=\"fee\">fee of the opening</li>\
    <li class=\"accepted\">accepted: paid for</li>\
    <li class=\"received\">received, not agreed yet</li>\
    <li class=\"signed\">signed ahead</li><li class=\"free\">free</li></ul>";

/// Requests that are shown at once; the rest is folded.
const REQUESTS_OPEN: usize = 15;

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
        "<div><h3>{}</h3>{}<details id=\"by-{}\"><summary>Figures</summary>{figures}</details></div>",
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
    // Vouchers belong to no model and no client: their line has no request.
    let has_requests = |row: &&Value| row.get("requests").is_none_or(|count| *count != 0);
    let rows = list(summary, "rows").iter().filter(has_requests);
    let rows = rows.take(SUMS_MAX);
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

/// The newest requests, older ones behind a fold.
pub(super) fn last_requests(peer: &str, rows: &[&Value]) -> String {
    let caption = "Last requests";
    let Some((newest, older)) = rows.split_at_checked(REQUESTS_OPEN) else {
        return requests(caption, peer, rows, "No request yet.");
    };
    let open = requests(caption, peer, newest, "No request yet.");
    if older.is_empty() {
        return open;
    }
    format!(
        "{open}<details id=\"older\"><summary>{} older ones</summary>{}</details>",
        older.len(),
        requests("Older requests", peer, older, ""),
    )
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
