//! `node ledger verify`: reads every row once, in order, and recomputes everything.
//!
//! The hash chain, each balance and rollup, I2 (vouchers never decrease, never above the deposit),
//! I4 (an attempt opens once and is booked once), I5 (Σ accepted cost against vouchers and
//! deposit), I6 and I7 (intents, transactions and events follow each other as they may), receipts
//! of what was paid, and, through [`SignatureCheck`], every signature. Any
//! difference is reported by row; one changed byte in any row is one.

mod books;
mod onchain;
mod rules;

use std::sync::Arc;

use sqlx::SqliteConnection;

use self::books::Books;
use super::batch::ChainEnd;
use super::chain::{self, PAGE_ROWS, Walker};
use super::error::{Doing as _, LedgerError};
use super::onchain::{IntentRow, SentRow};
use super::reader::Reader;
use super::rows::{ChannelRow, FinalRow, OfferRow, OpenRow, VoucherRow};
use super::table::genesis;
use crate::types::MicroUsd;

const WHAT: &str = "verify the ledger";
/// Differences that are listed; all are counted.
const DIFFERENCES_MAX: usize = 1000;
/// The most two honest sides let a channel run ahead of its vouchers: the upper clamp of S.
const EXPOSURE_MICRO_USD_MAX: MicroUsd = MicroUsd(250_000);

/// Checks signatures, which the ledger itself does not understand. `Err` says what is wrong.
pub trait SignatureCheck: Send + Sync {
    /// The buyer's identity over the channel id, and the id over the descriptor.
    ///
    /// # Errors
    /// When the signature does not verify.
    fn channel(&self, _row: &ChannelRow) -> Result<(), String> {
        Ok(())
    }
    /// The voucher signer's EIP-712 signature.
    ///
    /// # Errors
    /// When the signature does not verify.
    fn voucher(&self, _channel: &ChannelRow, _voucher: &VoucherRow) -> Result<(), String> {
        Ok(())
    }
    /// The buyer's signed head of an attempt; the attempt id is its hash.
    ///
    /// # Errors
    /// When the signature does not verify.
    fn head(&self, _open: &OpenRow) -> Result<(), String> {
        Ok(())
    }
    /// The seller's receipt for what was booked.
    ///
    /// # Errors
    /// When the signature does not verify or the receipt is for something else.
    fn receipt(&self, _open: &OpenRow, _booked: &FinalRow, _receipt: &[u8]) -> Result<(), String> {
        Ok(())
    }
    /// The seller's signed offer.
    ///
    /// # Errors
    /// When the signature does not verify.
    fn offer(&self, _row: &OfferRow) -> Result<(), String> {
        Ok(())
    }
    /// The hash of an intent's calldata.
    ///
    /// # Errors
    /// When it is the hash of something else.
    fn intent(&self, _row: &IntentRow) -> Result<(), String> {
        Ok(())
    }
    /// The sender's signature over a transaction that does what the intent says.
    ///
    /// # Errors
    /// When it is another transaction or another's signature.
    fn transaction(&self, _intent: &IntentRow, _sent: &SentRow) -> Result<(), String> {
        Ok(())
    }
    /// This node's signature over a checkpoint's message.
    ///
    /// # Errors
    /// When the signature does not verify.
    fn checkpoint(&self, _message: &[u8], _signature: &[u8; 64]) -> Result<(), String> {
        Ok(())
    }
}

/// Checks no signature.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSignatureCheck;

impl SignatureCheck for NoSignatureCheck {}

/// Told how many of how many rows are done.
pub type Tell = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// How strictly to verify.
#[derive(Clone)]
pub struct AuditOptions {
    /// How far accepted cost may be above the vouchers of a channel.
    pub exposure_max: MicroUsd,
    /// Checks signatures.
    pub signatures: Arc<dyn SignatureCheck>,
    /// Called after each row.
    pub tell: Tell,
}

impl Default for AuditOptions {
    fn default() -> Self {
        Self {
            exposure_max: EXPOSURE_MICRO_USD_MAX,
            signatures: Arc::new(NoSignatureCheck),
            tell: Arc::new(|_, _| {}),
        }
    }
}

/// Something that is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Difference {
    /// The row, if it is one row's.
    pub seq: Option<i64>,
    /// What is wrong.
    pub what: String,
}

/// What an audit found.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct AuditReport {
    /// Rows read.
    pub rows: u64,
    /// Channels seen.
    pub channels: u64,
    /// Attempts opened.
    pub attempts: u64,
    /// Attempts without a final; no difference, a restart finishes them.
    pub unfinished: u64,
    /// Vouchers read.
    pub vouchers: u64,
    /// Transactions intended.
    pub transactions: u64,
    /// Rows about events of the hub.
    pub chain_events: u64,
    /// Signatures handed to the check.
    pub signatures: u64,
    /// Requests with more than one charged attempt: output delivered before a failover was paid.
    pub requests_charged_twice: u64,
    /// All differences, also those not listed.
    pub difference_count: u64,
    /// The first differences.
    pub differences: Vec<Difference>,
}

impl AuditReport {
    /// True when nothing is wrong.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.difference_count == 0
    }
    fn differ(&mut self, seq: Option<i64>, what: String) {
        self.difference_count += 1;
        if self.differences.len() < DIFFERENCES_MAX {
            self.differences.push(Difference { seq, what });
        }
    }
}

/// Verifies the whole ledger.
///
/// # Errors
/// When the database cannot be read at all; what can be read and is wrong is in the report.
pub async fn verify(reader: &Reader, options: &AuditOptions) -> Result<AuditReport, LedgerError> {
    let mut report = AuditReport::default();
    let mut tx = reader.pool.begin().await.doing(WHAT)?;
    let (last, _) = match chain::last(&mut tx).await {
        Ok(last) => last,
        Err(error) => {
            report.differ(None, format!("the rows cannot be read: {error}"));
            return Ok(report);
        }
    };
    check_file(&mut tx, &mut report).await;
    let mut walker = Walker::new(ChainEnd {
        seq: 0,
        hash: genesis(),
    });
    let mut books = Books::new(options);
    let mut from = 0;
    while from < last {
        let upto = from.saturating_add(PAGE_ROWS);
        let rows = match chain::page(&mut tx, from, upto).await {
            Ok(rows) => rows,
            Err(error) => {
                let what = format!("rows from {} on cannot be read: {error}", from + 1);
                report.differ(Some(from + 1), what);
                break;
            }
        };
        for row in &rows {
            report.rows += 1;
            if let Err(what) = walker.step(row) {
                report.differ(Some(row.seq), what);
            }
            books.enter(row, &walker.end, &mut report);
            (options.tell)(report.rows, u64::try_from(last).unwrap_or(0));
        }
        from = upto;
    }
    books.close(&mut report);
    Ok(report)
}

/// Lets SQLite check pages, indexes and references; `load` trusts the indexes.
async fn check_file(conn: &mut SqliteConnection, report: &mut AuditReport) {
    let health: Result<Vec<String>, _> = sqlx::query_scalar("pragma integrity_check(10)")
        .fetch_all(&mut *conn)
        .await;
    match health {
        Ok(lines) => {
            for line in lines.iter().filter(|line| *line != "ok") {
                report.differ(None, format!("the file is damaged: {line}"));
            }
        }
        Err(error) => report.differ(None, format!("the file is damaged: {error}")),
    }
    match sqlx::query("pragma foreign_key_check")
        .fetch_all(conn)
        .await
    {
        Ok(rows) if rows.is_empty() => {}
        Ok(rows) => {
            let what = format!(
                "{} rows belong to an attempt that was never opened",
                rows.len()
            );
            report.differ(None, what);
        }
        Err(error) => report.differ(None, format!("the file is damaged: {error}")),
    }
}

#[cfg(test)]
mod tests;
