//! Exports: every attempt as CSV or JSON lines, accepted cost and settlements as beancount.

use std::collections::BTreeSet;
use std::io::Write;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::Value as Json;

use super::requests::{Order, Pages, RequestRecord};
use super::{Filter, Summary, safe_text};
use crate::ledger::error::{Doing as _, LedgerError};
use crate::ledger::reader::Reader;
use crate::ledger::rows::{Role, SettlementRow};
use crate::types::{MicroUsd, PeerId, UnixMs};

const WHAT: &str = "export the ledger";
/// Records read at once; bounds memory.
const PAGE: u32 = 1000;

/// What an export looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportFormat {
    /// Comma separated, one line per attempt.
    Csv,
    /// One JSON object per line and attempt.
    Jsonl,
    /// Plain text accounting.
    Beancount,
}

/// Writes every attempt that `filter` selects, oldest first; `tell` hears how many are written.
///
/// # Errors
/// When the database cannot be read or `out` cannot be written.
pub async fn export(
    reader: &Reader,
    filter: &Filter,
    local: Option<PeerId>,
    format: ExportFormat,
    zone: &TimeZone,
    out: &mut (dyn Write + Send),
    tell: &(dyn Fn(u64) + Send + Sync),
) -> Result<(), LedgerError> {
    let mut written = 0;
    let mut tx = reader.pool.begin().await.doing(WHAT)?;
    let mut pages = Pages::new(filter, local, Order::OldestFirst);
    let mut book = Beancount::default();
    let mut header = true;
    loop {
        let records = pages.next(&mut tx, PAGE).await.doing(WHAT)?;
        if records.is_empty() {
            break;
        }
        written += u64::try_from(records.len()).unwrap_or(0);
        match format {
            ExportFormat::Csv => write_csv(out, &records, std::mem::take(&mut header))?,
            ExportFormat::Jsonl => {
                for record in &records {
                    let line = serde_json::to_string(record).unwrap_or_default();
                    writeln!(out, "{line}").map_err(|e| LedgerError::io(WHAT, &e))?;
                }
            }
            ExportFormat::Beancount => {
                for record in &records {
                    book.request(out, record, zone)?;
                }
            }
        }
        tell(written);
    }
    drop(tx);
    if format == ExportFormat::Beancount {
        for role in [Role::Buy, Role::Sell] {
            for row in reader.settlements(role).await? {
                if wanted(filter, &row) {
                    book.settlement(out, &row, zone)?;
                }
            }
        }
    }
    out.flush().map_err(|e| LedgerError::io(WHAT, &e))
}

fn wanted(filter: &Filter, row: &SettlementRow) -> bool {
    filter.model.is_none()
        && filter.role.is_none_or(|role| role == row.role)
        && filter.peer.is_none_or(|peer| peer == row.peer)
        && filter.since_ms.is_none_or(|since| row.at_ms >= since)
        && filter.until_ms.is_none_or(|until| row.at_ms < until)
}

fn write_csv(
    out: &mut (dyn Write + Send),
    records: &[RequestRecord],
    header: bool,
) -> Result<(), LedgerError> {
    let rows = records.iter().map(serde_json::to_value);
    write_objects(out, rows.filter_map(Result::ok), header)
}

/// Writes a summary as CSV, totals last.
///
/// # Errors
/// When `out` cannot be written.
pub fn csv_summary(summary: &Summary, out: &mut (dyn Write + Send)) -> Result<(), LedgerError> {
    let rows = summary.rows.iter().chain(&summary.totals);
    let rows = rows.map(serde_json::to_value).filter_map(Result::ok);
    write_objects(out, rows, true)
}

/// One line per object; null is an empty field.
fn write_objects(
    out: &mut (dyn Write + Send),
    objects: impl Iterator<Item = Json>,
    mut header: bool,
) -> Result<(), LedgerError> {
    let failed = |error: csv::Error| LedgerError::Database {
        what: WHAT,
        reason: error.to_string().into(),
    };
    let mut csv = csv::Writer::from_writer(out);
    for object in objects {
        let Json::Object(fields) = object else {
            continue;
        };
        if std::mem::take(&mut header) {
            csv.write_record(fields.keys()).map_err(failed)?;
        }
        csv.write_record(fields.values().map(field))
            .map_err(failed)?;
    }
    csv.flush().map_err(|e| LedgerError::io(WHAT, &e))
}

fn field(value: &Json) -> String {
    match value {
        Json::Null => String::new(),
        Json::String(text) => safe_text(text),
        other => other.to_string(),
    }
}

/// Writes beancount entries and opens each account on its first day.
#[derive(Default)]
struct Beancount {
    opened: BTreeSet<String>,
}

impl Beancount {
    fn request(
        &mut self,
        out: &mut (dyn Write + Send),
        record: &RequestRecord,
        zone: &TimeZone,
    ) -> Result<(), LedgerError> {
        let Some(billed) = record.billed_micro_usd.filter(|billed| *billed > 0) else {
            return Ok(());
        };
        let model = account_part(&record.model);
        let spent = record.direction != "earned";
        let peer = if spent { &record.seller } else { &record.buyer };
        let peer = account_part(peer.as_deref().unwrap_or("unknown"));
        let (what, whom) = if spent {
            (
                format!("Expenses:Souk:{model}"),
                format!("Liabilities:Souk:{peer}"),
            )
        } else {
            (
                format!("Assets:Souk:{peer}"),
                format!("Income:Souk:{model}"),
            )
        };
        let at: Timestamp = record.time.parse().unwrap_or_default();
        let note = format!(
            "\"{}\" \"request {}\"",
            quoted(&record.model),
            record.request_id
        );
        self.entry(out, at, zone, &note, [&what, &whom], MicroUsd(billed))
    }

    fn settlement(
        &mut self,
        out: &mut (dyn Write + Send),
        row: &SettlementRow,
        zone: &TimeZone,
    ) -> Result<(), LedgerError> {
        let peer = account_part(&row.peer.to_base58());
        let (to, from) = match row.role {
            Role::Buy => (
                format!("Liabilities:Souk:{peer}"),
                "Assets:Souk:Outside".to_owned(),
            ),
            Role::Sell => (
                "Assets:Souk:Outside".to_owned(),
                format!("Assets:Souk:{peer}"),
            ),
        };
        let note = format!("\"settlement\" \"{}\"", quoted(&row.note));
        let at = to_timestamp(row.at_ms);
        self.entry(out, at, zone, &note, [&to, &from], row.amount)
    }

    fn entry(
        &mut self,
        out: &mut (dyn Write + Send),
        at: Timestamp,
        zone: &TimeZone,
        note: &str,
        accounts: [&str; 2],
        amount: MicroUsd,
    ) -> Result<(), LedgerError> {
        let date = at.to_zoned(zone.clone()).date();
        let mut text = String::new();
        for account in accounts {
            if self.opened.insert(account.to_owned()) {
                // Before anything that may be booked: settlements are written after requests.
                text.push_str(&format!("1970-01-01 open {account} USD\n"));
            }
        }
        let [to, from] = accounts;
        text.push_str(&format!(
            "{date} * {note}\n  {to}  {amount} USD\n  {from}  -{amount} USD\n\n"
        ));
        out.write_all(text.as_bytes())
            .map_err(|e| LedgerError::io(WHAT, &e))
    }
}

fn to_timestamp(at_ms: UnixMs) -> Timestamp {
    let ms = i64::try_from(at_ms).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(ms).unwrap_or_default()
}

/// Account names are letters, digits and dashes, and begin with a capital or a digit.
fn account_part(text: &str) -> String {
    let dashed: String = text
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let trimmed = dashed.trim_matches('-');
    let mut chars = trimmed.chars();
    match chars.next() {
        Some(first) => first.to_ascii_uppercase().to_string() + chars.as_str(),
        None => "Unknown".to_owned(),
    }
}

fn quoted(text: &str) -> String {
    let clean: String = text.chars().filter(|c| !c.is_control()).collect();
    clean.replace('\\', "\\\\").replace('"', "\\\"")
}
