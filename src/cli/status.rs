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
        let channels = match api.info().role.as_str() {
            "bootstrap" => Value::Null,
            _ => api.get("/api/channels").await?,
        };
        if out.json {
            let (sellers, channels) = (sellers.get("sellers"), channels.get("channels"));
            output::json(&json!({
                "status": status, "sellers": sellers, "channels": channels,
            }));
        } else {
            let clear = if args.watch && out.color { CLEAR } else { "" };
            let head = format!("{} (pid {})", api.info().url, api.info().pid);
            output::text(&format!(
                "{clear}{}",
                screen(out, &head, &status, &sellers, &channels)
            ));
        }
        if !args.watch {
            return Ok(());
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

fn screen(out: &Output, head: &str, status: &Value, sellers: &Value, channels: &Value) -> String {
    let mut lines = Vec::new();
    let role = text_of(status, "role").unwrap_or_else(|| "node".to_owned());
    lines.push(format!("{} {head}", out.bold(&role)));
    let mut line = |label: &str, text: Option<String>| {
        lines.extend(text.map(|text| format!("{label:<9}{text}")));
    };
    line("peer", text_of(status, "peer"));
    line("evm", text_of(status, "evm_address"));
    line("payment", text_of(status, "mode"));
    line("waits", text_of(status, "chain_waits"));
    line("state", text_of(status, "state"));
    line("layers", layers_line(status.get("layers")));
    line("peers", status.get("peers").map(count));
    line("running", running(status));
    line("refused", refused(status));
    line("money", money_line(status.get("money")));
    line("limits", limits(status));
    for (title, table) in [
        ("Sellers", sellers_table(sellers)),
        ("Channels", channels_table(channels)),
        ("Last requests", requests_table(status)),
    ] {
        lines.extend(table.map(|table| format!("\n{}\n{table}", out.bold(title))));
    }
    lines.join("\n")
}

/// What runs; of a seller also how much it takes and how it went since its start.
fn running(status: &Value) -> Option<String> {
    let of = |key: &str| status.get(key).and_then(Value::as_u64);
    let mut text = of("in_flight")?.to_string();
    if let Some(slots) = of("slots") {
        text.push_str(&format!(" of {slots}"));
    }
    for (key, word) in [
        ("in_doubt", "in doubt"),
        ("served", "served"),
        ("refused", "refused"),
        ("cancelled", "cut short"),
    ] {
        // None in doubt is the rule.
        if let Some(number) = of(key).filter(|number| *number > 0 || key != "in_doubt") {
            text.push_str(&format!(", {number} {word}"));
        }
    }
    Some(text)
}

/// Why requests were refused, most frequent first.
fn refused(status: &Value) -> Option<String> {
    let reasons = status.get("refused_by")?.as_object()?;
    let mut reasons: Vec<(&String, u64)> = reasons
        .iter()
        .filter_map(|(reason, count)| Some((reason, count.as_u64()?)))
        .collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let words: Vec<String> = reasons
        .iter()
        .map(|(reason, count)| format!("{} {count}", printable(reason)))
        .collect();
    (!words.is_empty()).then(|| words.join(", "))
}

/// Spending limits in force, one a line: what is spent of what.
fn limits(status: &Value) -> Option<String> {
    let standing = |one: &Value| {
        let mut words: Vec<String> = ["model", "client"]
            .iter()
            .filter_map(|key| Some(format!("{key} {}:", text_of(one, key)?)))
            .collect();
        for (limit, spent, when) in [
            ("daily_micro_usd", "spent_today_micro_usd", "today"),
            (
                "monthly_micro_usd",
                "spent_this_month_micro_usd",
                "this month",
            ),
        ] {
            let (limit, spent) = (usd(one.get(limit)?), usd(one.get(spent)?));
            if let (Some(limit), Some(spent)) = (limit, spent) {
                words.push(format!("${spent} of ${limit} {when}"));
            }
        }
        Some(words.join(" "))
    };
    let list = status.get("limits")?.as_array()?;
    let lines: Vec<String> = list.iter().filter_map(standing).collect();
    (!lines.is_empty()).then(|| lines.join("\n         "))
}

/// Each account with a peer, and where its money is.
fn channels_table(channels: &Value) -> Option<String> {
    let list = channels.get("channels")?.as_array()?;
    let row = |channel: &Value| {
        let text = |key| text_of(channel, key);
        let money = |key: &str| channel.get(key).and_then(usd);
        // The buyer calls it signed, the seller holds it.
        let signed = money("signed_micro_usd").or_else(|| money("voucher_micro_usd"));
        let state = text("state").map_or_else(String::new, |state| format!(", {state}"));
        let or_none = |cell: Option<String>| cell.unwrap_or_else(|| "-".to_owned());
        vec![
            short(&or_none(text("peer"))),
            format!("{}{state}", or_none(text("mode"))),
            or_none(money("deposit_micro_usd")),
            or_none(signed),
            or_none(money("accepted_micro_usd")),
            or_none(money("onchain_settled_micro_usd")),
            or_none(money("owed_micro_usd")),
        ]
    };
    let rows: Vec<Vec<String>> = list.iter().map(row).collect();
    let header = [
        "WITH",
        "STATE",
        "DEPOSIT $",
        "SIGNED $",
        "ACCEPTED $",
        "SETTLED $",
        "OWED $",
    ];
    (!rows.is_empty()).then(|| output::table(&header, &[2, 3, 4, 5, 6], rows))
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
    let is = |key: &str| layers.get(key).and_then(Value::as_bool).unwrap_or(false);
    let state = match (is("draining"), is("paused")) {
        (true, _) => " / draining, other layers come next",
        (_, true) => " / paused, other programs use the machine",
        _ => "",
    };
    Some(format!(
        "{}..{} of {} / {} rows per second / {} positions free / {} sessions{state}",
        figure("first"),
        figure("end"),
        figure("of"),
        figure("rows_per_second"),
        figure("free_positions"),
        figure("sessions"),
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
                match seller.get("proven").and_then(Value::as_bool) {
                    Some(true) => "yes".to_owned(),
                    Some(false) => "not yet".to_owned(),
                    None => "-".to_owned(),
                },
                number(seller.get("ttft_ms")),
                number(seller.get("tokens_per_second")),
                money("credit_micro_usd"),
                text("state"),
                text_of(seller, "reason").unwrap_or_default(),
            ]
        })
        .collect();
    let header = [
        "PEER", "MODELS", "IN $/M", "OUT $/M", "QUALITY", "PROVEN", "TTFT MS", "TOK/S", "CREDIT $",
        "STATE", "WHY",
    ];
    (!rows.is_empty()).then(|| output::table(&header, &[1, 2, 3, 4, 6, 7, 8], rows))
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
        let text = screen(
            &out,
            "http://127.0.0.1:5005 (pid 1)",
            &status,
            &sellers,
            &Value::Null,
        );
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
        let text = screen(&out, "url", &Value::Null, &Value::Null, &Value::Null);
        assert_eq!(text, "node url");
    }

    #[test]
    fn limits_load_refusals_and_channels_have_their_lines() {
        let out = Output::new(false, Color::Never, true);
        let status = json!({
            "role": "sell", "in_flight": 2, "slots": 256, "served": 48, "refused": 3,
            "cancelled": 1, "in_doubt": 0, "refused_by": {"overloaded": 1, "rate_limited": 2},
            "limits": [
                {"model": null, "client": null, "daily_micro_usd": 5_000_000,
                 "monthly_micro_usd": null, "spent_today_micro_usd": 250_000,
                 "spent_this_month_micro_usd": 250_000},
                {"model": "a/b", "client": null, "daily_micro_usd": null,
                 "monthly_micro_usd": 1_000_000, "spent_today_micro_usd": 0,
                 "spent_this_month_micro_usd": 7},
            ],
        });
        let channels = json!({"channels": [{"peer": "12D3KooWabcdefgh", "mode": "channel",
            "deposit_micro_usd": 500_000, "voucher_micro_usd": 20_000, "owed_micro_usd": 0}]});
        let text = screen(&out, "url", &status, &Value::Null, &channels);
        for line in [
            "running  2 of 256, 48 served, 3 refused, 1 cut short",
            "refused  rate_limited 2, overloaded 1",
            "limits   $0.250000 of $5.000000 today",
            "         model a/b: $0.000007 of $1.000000 this month",
        ] {
            assert!(text.lines().any(|one| one == line), "{line}: {text}");
        }
        let row = text.lines().last().unwrap();
        assert!(row.starts_with("…abcdefgh  channel"), "{row}");
        assert!(
            row.contains(" 0.500000") && row.ends_with("-  0.000000"),
            "{row}"
        );
    }
}
