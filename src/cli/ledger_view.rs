//! How `node ledger` prints: tables for people, JSON for programs. Money is exact; what is not
//! known prints as `–`, never as 0; texts from peers are cleaned.

use std::fmt::Write as _;

use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{Row, Table};

use crate::chain::coins;
use crate::ledger::BudgetRow;
use crate::ledger::audit::AuditReport;
use crate::ledger::report::{RequestRecord, ShownAttempt, Summary, SummaryRow, safe_text};
use crate::types::{MicroUsd, PeerId};
use crate::wallet::verify::Compared;

/// What is not reported or does not apply.
const NONE: &str = "–";
/// Characters of a peer id that tell peers apart on a screen; JSON has it whole.
const PEER_TAIL: usize = 8;

fn json(value: &impl serde::Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// One thing was done.
pub(super) fn done(as_json: bool, what: &str) -> anyhow::Result<String> {
    if as_json {
        return json(&serde_json::json!({ "ok": true }));
    }
    Ok(format!("{what}\n"))
}

/// A payment that is not booked.
pub(super) fn would_settle(
    as_json: bool,
    peer: &PeerId,
    amount: MicroUsd,
    owed: MicroUsd,
) -> anyhow::Result<String> {
    let left = owed.saturating_sub(amount);
    if as_json {
        return json(&serde_json::json!({
            "dry_run": true,
            "peer": peer.to_base58(),
            "amount_micro_usd": amount,
            "owed_micro_usd": owed,
            "owed_afterwards_micro_usd": left,
        }));
    }
    Ok(format!(
        "would book {amount} USD from {peer}, which owes {owed} USD and {left} USD afterwards\n\
         nothing was booked\n"
    ))
}

/// Sums.
pub(super) fn summary(summary: &Summary, as_json: bool) -> anyhow::Result<String> {
    if as_json {
        return json(summary);
    }
    let mut table = table([
        summary.by.as_str(),
        "direction",
        "requests",
        "failed",
        "in",
        "cached",
        "cache-write",
        "out",
        "reasoning",
        "billed USD",
        "written off",
        "authorised",
        "settled",
        "pending",
        "gas ETH",
    ]);
    for row in summary.rows.iter().chain(&summary.totals) {
        table.add_row(summary_cells(row));
    }
    Ok(format!("{table}\n"))
}

fn summary_cells(row: &SummaryRow) -> [String; 15] {
    [
        if row.key.is_empty() {
            NONE.to_owned()
        } else {
            safe_text(&row.key)
        },
        row.direction.to_owned(),
        row.requests.to_string(),
        row.failed.to_string(),
        count(row.input_tokens),
        count(row.cached_tokens),
        count(row.cache_write_tokens),
        count(row.output_tokens),
        count(row.reasoning_tokens),
        money(Some(row.billed_micro_usd)),
        money(Some(row.written_off_micro_usd)),
        money(Some(row.authorised_micro_usd)),
        money(row.settled_micro_usd),
        money(row.pending_micro_usd),
        row.gas_wei
            .map_or_else(|| NONE.to_owned(), |wei| coins(wei.into())),
    ]
}

/// A listing.
pub(super) fn requests(records: &[RequestRecord], as_json: bool) -> anyhow::Result<String> {
    if as_json {
        return json(&records);
    }
    let mut table = table([
        "time",
        "direction",
        "request",
        "try",
        "model",
        "served",
        "peer",
        "status",
        "in",
        "out",
        "own in",
        "own out",
        "diff",
        "billed USD",
        "ttft ms",
        "total ms",
    ]);
    for record in records {
        table.add_row(request_cells(record));
    }
    let billed: MicroUsd = records
        .iter()
        .filter_map(|record| record.billed_micro_usd.map(MicroUsd))
        .sum();
    Ok(format!("{table}\n{} listed, {billed} USD\n", records.len()))
}

fn request_cells(record: &RequestRecord) -> [String; 16] {
    let spent = record.direction == "spent";
    let peer = if spent { &record.seller } else { &record.buyer };
    [
        record.time.clone(),
        record.direction.to_owned(),
        record.request_id.clone(),
        record.attempt.to_string(),
        safe_text(&record.model),
        record.model_served.as_deref().map_or_else(none, safe_text),
        peer.as_deref().map_or_else(none, tail),
        count(record.status),
        count(record.input_tokens),
        count(record.output_tokens),
        count(record.own_input_tokens),
        count(record.own_output_tokens),
        difference(record),
        money(record.billed_micro_usd),
        count(record.ttft_ms),
        count(record.total_ms),
    ]
}

/// How much more output was reported than counted, in per cent.
fn difference(record: &RequestRecord) -> String {
    let (Some(reported), Some(own)) = (record.output_tokens, record.own_output_tokens) else {
        return none();
    };
    if own == 0 {
        return none();
    }
    let tenths = (i128::from(reported) - i128::from(own)) * 1000 / i128::from(own);
    let sign = if tenths < 0 { "-" } else { "" };
    let size = tenths.unsigned_abs();
    format!("{sign}{}.{}%", size / 10, size % 10)
}

/// A request in full.
pub(super) fn shown(attempts: &[ShownAttempt], as_json: bool) -> anyhow::Result<String> {
    if as_json {
        return json(&attempts);
    }
    let mut text = String::new();
    for attempt in attempts {
        let serde_json::Value::Object(fields) = serde_json::to_value(&attempt.record)? else {
            continue;
        };
        for (name, value) in fields {
            let value = match value {
                serde_json::Value::Null => none(),
                serde_json::Value::String(text) => safe_text(&text),
                serde_json::Value::Number(number) if name.ends_with("_micro_usd") => {
                    money(number.as_u64())
                }
                other => other.to_string(),
            };
            let name = name.replace("_micro_usd", "_usd");
            writeln!(text, "{name:24} {value}")?;
        }
        writeln!(
            text,
            "{:24} {}",
            "max_cost_usd",
            MicroUsd(attempt.max_cost_micro_usd)
        )?;
        writeln!(text, "{:24} {}", "offer_hash", attempt.offer_hash)?;
        writeln!(text, "{:24} {}", "signed_head", attempt.signed_head)?;
        let receipt = attempt.receipt.clone().unwrap_or_else(none);
        writeln!(text, "{:24} {receipt}", "receipt")?;
        for voucher in &attempt.vouchers {
            let cumulative = MicroUsd(voucher.cumulative_micro_usd);
            writeln!(text, "{:24} {cumulative} {}", "voucher", voucher.signature)?;
        }
        for signature in &attempt.signatures {
            let verdict = signature.reason.as_deref().unwrap_or("good");
            writeln!(text, "signature of {:11} {verdict}", signature.what)?;
        }
        text.push('\n');
    }
    Ok(text)
}

/// What verify found; `chain` is the comparison with the chain, or why there was none.
pub(super) fn audit(
    report: &AuditReport,
    chain: Option<&Result<Compared, String>>,
    as_json: bool,
) -> anyhow::Result<String> {
    if as_json {
        let mut all = serde_json::to_value(report)?;
        if let (Some(all), Some(chain)) = (all.as_object_mut(), chain) {
            let value = match chain {
                Ok(compared) => serde_json::to_value(compared)?,
                Err(why) => serde_json::json!({ "not_compared": why }),
            };
            all.insert("chain".to_owned(), value);
        }
        return json(&all);
    }
    let mut text = String::new();
    match chain {
        None => {}
        Some(Err(why)) => writeln!(text, "not compared with the chain: {}", safe_text(why))?,
        Some(Ok(compared)) => {
            for difference in &compared.differences {
                writeln!(text, "{}", safe_text(difference))?;
            }
            let found = match compared.differences.len() {
                0 => "equal".to_owned(),
                count => format!("{count} differences"),
            };
            let channels = compared.channels;
            writeln!(
                text,
                "compared with the chain: vault and {channels} channels {found}"
            )?;
        }
    }
    for difference in &report.differences {
        writeln!(text, "{}", safe_text(&difference.what))?;
    }
    writeln!(
        text,
        "{} rows, {} channels, {} attempts ({} unfinished), {} vouchers, {} transactions, {} chain \
         events, {} signatures: {}",
        report.rows,
        report.channels,
        report.attempts,
        report.unfinished,
        report.vouchers,
        report.transactions,
        report.chain_events,
        report.signatures,
        match report.difference_count {
            0 => "all good".to_owned(),
            count => format!("{count} differences"),
        }
    )?;
    Ok(text)
}

/// The limits in force.
pub(super) fn budgets(rows: &[BudgetRow], as_json: bool) -> anyhow::Result<String> {
    if as_json {
        let rows: Vec<_> = rows
            .iter()
            .map(|row| {
                serde_json::json!({
                    "client": row.client,
                    "model": row.model.as_ref().map(ToString::to_string),
                    "daily_micro_usd": row.daily,
                    "monthly_micro_usd": row.monthly,
                })
            })
            .collect();
        return json(&rows);
    }
    let mut table = table(["client", "model", "daily USD", "monthly USD"]);
    for row in rows {
        let model = row.model.as_ref().map_or("all", |model| model.as_str());
        table.add_row([
            safe_text(row.client.as_deref().unwrap_or("all")),
            safe_text(model),
            money(row.daily.map(|m| m.0)),
            money(row.monthly.map(|m| m.0)),
        ]);
    }
    Ok(format!("{table}\n"))
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY);
    table.set_header(Row::from(header));
    table
}

fn none() -> String {
    NONE.to_owned()
}

fn count(number: Option<u64>) -> String {
    number.map_or_else(none, |number| number.to_string())
}

fn money(micro_usd: Option<u64>) -> String {
    micro_usd.map_or_else(none, |amount| MicroUsd(amount).to_string())
}

fn tail(peer: &str) -> String {
    let skip = peer.chars().count().saturating_sub(PEER_TAIL);
    let end: String = peer.chars().skip(skip).collect();
    format!("…{end}")
}
