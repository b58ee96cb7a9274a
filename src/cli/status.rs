//! `node status`: the running node on one screen, from its `/api/status` and `/api/sellers`.
//!
//! Fields that the node does not report are left out or shown as `-`, never as 0.

use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::GlobalArgs;
use super::api::Api;
use super::models::number;
use super::output::{self, Output};
use crate::telemetry::printable;
use crate::types::MicroUsd;

/// A screen that is watched is drawn again this often.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);
/// Requests shown.
const REQUESTS_SHOWN: usize = 10;
/// Clears the terminal and goes to its corner.
const CLEAR: &str = "\u{1b}[2J\u{1b}[H";

/// Flags of `node status`.
#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    /// Draw again every 2 seconds (with --json: one line each)
    #[arg(short, long)]
    pub watch: bool,
}

/// Prints the node's state once, or until interrupted.
pub async fn run(global: &GlobalArgs, out: &Output, args: &StatusArgs) -> anyhow::Result<()> {
    loop {
        let api = Api::find(global)?;
        let status = api.get("/api/status").await?;
        // A node that only sells has no list of sellers.
        let sellers = match api.info().role.as_str() {
            "sell" | "contribute" | "bootstrap" => Value::Null,
            _ => api.get("/api/sellers").await?,
        };
        if out.json {
            let sellers = sellers.get("sellers").cloned();
            output::json(&json!({ "status": status, "sellers": sellers }));
        } else {
            let clear = if args.watch && out.color { CLEAR } else { "" };
            let head = format!("{} (pid {})", api.info().url, api.info().pid);
            output::text(&format!("{clear}{}", screen(out, &head, &status, &sellers)));
        }
        if !args.watch {
            return Ok(());
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

fn screen(out: &Output, head: &str, status: &Value, sellers: &Value) -> String {
    let mut lines = Vec::new();
    let role = text_of(status, "role").unwrap_or_else(|| "node".to_owned());
    lines.push(format!("{} {head}", out.bold(&role)));
    for (label, key) in [
        ("peer", "peer"),
        ("evm", "evm_address"),
        ("payment", "mode"),
        ("waits", "chain_waits"),
        ("state", "state"),
    ] {
        if let Some(text) = text_of(status, key) {
            lines.push(format!("{label:<9}{text}"));
        }
    }
    if let Some(line) = layers_line(status.get("layers")) {
        lines.push(format!("{:<9}{line}", "layers"));
    }
    if let Some(peers) = status.get("peers") {
        lines.push(format!("{:<9}{}", "peers", count(peers)));
    }
    if let Some(line) = money_line(status.get("money")) {
        lines.push(format!("{:<9}{line}", "money"));
    }
    if let Some(table) = sellers_table(sellers) {
        lines.push(format!("\n{}\n{table}", out.bold("Sellers")));
    }
    if let Some(table) = requests_table(status) {
        lines.push(format!("\n{}\n{table}", out.bold("Last requests")));
    }
    lines.join("\n")
}

fn text_of(value: &Value, key: &str) -> Option<String> {
    let text = value.get(key)?.as_str()?;
    Some(printable(text))
}

fn count(value: &Value) -> String {
    match value {
        Value::Array(items) => items.len().to_string(),
        other => number(Some(other)),
    }
}

/// What a stage of pipelines computes.
fn layers_line(layers: Option<&Value>) -> Option<String> {
    let layers = layers.filter(|layers| layers.is_object())?;
    let figure = |key: &str| number(layers.get(key));
    Some(format!(
        "{}..{} of {} / {} rows per second / {} positions free",
        figure("first"),
        figure("end"),
        figure("of"),
        figure("rows_per_second"),
        figure("free_positions"),
    ))
}

/// `wallet / reserved / spent today / owed`, from micro-USD fields.
fn money_line(money: Option<&Value>) -> Option<String> {
    let money = money?;
    let parts: Vec<String> = [
        ("wallet", "wallet_micro_usd"),
        ("reserved", "reserved_micro_usd"),
        ("spent today", "spent_today_micro_usd"),
        ("earned today", "earned_today_micro_usd"),
        ("owed", "owed_micro_usd"),
    ]
    .iter()
    .filter_map(|(label, key)| Some(format!("{label} ${}", usd(money.get(key)?)?)))
    .collect();
    (!parts.is_empty()).then(|| parts.join(" / "))
}

fn usd(value: &Value) -> Option<String> {
    value.as_u64().map(|micro| MicroUsd(micro).to_string())
}

fn sellers_table(sellers: &Value) -> Option<String> {
    let list = sellers.get("sellers")?.as_array()?;
    let rows: Vec<Vec<String>> = list
        .iter()
        .map(|seller| {
            let money = |key| {
                seller
                    .get(key)
                    .and_then(usd)
                    .unwrap_or_else(|| "-".to_owned())
            };
            let text = |key| text_of(seller, key).unwrap_or_else(|| "-".to_owned());
            vec![
                short(&text("peer")),
                seller.get("models").map_or_else(|| "-".to_owned(), count),
                money("price_in_micro_usd"),
                money("price_out_micro_usd"),
                number(seller.get("quality")),
                number(seller.get("ttft_ms")),
                number(seller.get("tokens_per_second")),
                money("credit_micro_usd"),
                text("state"),
                text_of(seller, "reason").unwrap_or_default(),
            ]
        })
        .collect();
    let header = [
        "PEER", "MODELS", "IN $/M", "OUT $/M", "QUALITY", "TTFT MS", "TOK/S", "CREDIT $", "STATE",
        "WHY",
    ];
    (!rows.is_empty()).then(|| output::table(&header, &[1, 2, 3, 4, 5, 6, 7], rows))
}

fn requests_table(status: &Value) -> Option<String> {
    let list = status.get("requests")?.as_array()?;
    let rows: Vec<Vec<String>> = list
        .iter()
        .take(REQUESTS_SHOWN)
        .map(|request| {
            let text = |key| text_of(request, key).unwrap_or_else(|| "-".to_owned());
            vec![
                text("time"),
                text("model"),
                short(&text("seller")),
                number(request.get("status")),
                number(request.get("input_tokens")),
                number(request.get("output_tokens")),
                request
                    .get("billed_micro_usd")
                    .and_then(usd)
                    .unwrap_or_else(|| "-".to_owned()),
                number(request.get("ttft_ms")),
                number(request.get("total_ms")),
            ]
        })
        .collect();
    let header = [
        "TIME", "MODEL", "SELLER", "STATUS", "IN", "OUT", "BILLED $", "TTFT MS", "TOTAL MS",
    ];
    (!rows.is_empty()).then(|| output::table(&header, &[3, 4, 5, 6, 7, 8], rows))
}

/// The end of a peer id tells peers apart; their beginnings are all alike.
fn short(peer: &str) -> String {
    match peer.char_indices().rev().nth(7) {
        Some((at, _)) if at > 0 => format!("…{}", peer.get(at..).unwrap_or(peer)),
        _ => peer.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Color;

    #[test]
    fn the_screen_shows_what_is_reported_and_no_zero_for_what_is_not() {
        let out = Output::new(false, Color::Never, true);
        let status = json!({
            "role": "buy", "peer": "12D3KooWabcdefgh", "peers": 4, "mode": "credit (unsecured)",
            "money": {"reserved_micro_usd": 1_500_000, "spent_today_micro_usd": 7},
            "requests": [{"time": "2026-01-01T00:00:00Z", "model": "m", "seller": "12D3KooWabcdefgh",
                          "status": 200, "billed_micro_usd": null}],
        });
        let sellers = json!({"sellers": [{"peer": "12D3KooWabcdefgh", "state": "open\u{1b}[2J"}]});
        let text = screen(&out, "http://127.0.0.1:5005 (pid 1)", &status, &sellers);
        assert!(
            text.contains("reserved $1.500000 / spent today $0.000007"),
            "{text}"
        );
        assert!(text.contains("peers    4"), "{text}");
        assert!(text.contains("…abcdefgh"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
        let request = text.lines().last().unwrap();
        assert!(request.contains(" - "), "{request}");
    }

    #[test]
    fn a_node_that_reports_nothing_still_prints() {
        let out = Output::new(false, Color::Never, true);
        let text = screen(&out, "url", &Value::Null, &Value::Null);
        assert_eq!(text, "node url");
    }
}
