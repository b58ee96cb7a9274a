//! One request in full: every attempt with its receipt, vouchers and checked signatures.

use serde::Serialize;

use super::Filter;
use super::requests::{Order, Pages, RequestRecord};
use crate::ledger::audit::SignatureCheck;
use crate::ledger::error::{Doing as _, LedgerError};
use crate::ledger::reader::Reader;
use crate::ledger::rows::{AttemptState, ChannelRow, VoucherRow};
use crate::types::{AttemptId, PeerId, RequestId};

/// Vouchers shown of one attempt; a long stream signs many.
const VOUCHERS_MAX: u32 = 100;

/// A voucher that was signed for an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShownVoucher {
    /// All that was signed on the channel with it.
    pub cumulative_micro_usd: u64,
    /// r‖s‖v in hex.
    pub signature: String,
}

/// A signature and whether it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShownSignature {
    /// What is signed.
    pub what: &'static str,
    /// Whether it verifies.
    pub good: bool,
    /// Why not.
    pub reason: Option<String>,
}

/// One attempt in full.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShownAttempt {
    /// The attempt as in a listing.
    #[serde(flatten)]
    pub record: RequestRecord,
    /// Offer that the signed head names.
    pub offer_hash: String,
    /// Most the attempt may cost.
    pub max_cost_micro_usd: u64,
    /// The buyer's signed head in hex.
    pub signed_head: String,
    /// The seller's receipt in hex.
    pub receipt: Option<String>,
    /// Vouchers signed for it, newest first.
    pub vouchers: Vec<ShownVoucher>,
    /// Every signature, checked.
    pub signatures: Vec<ShownSignature>,
}

/// Everything about a request, or about one attempt; `id` is either's 16 bytes. Empty when unknown.
///
/// # Errors
/// When the database cannot be read.
pub async fn show(
    reader: &Reader,
    id: [u8; 16],
    local: Option<PeerId>,
    signatures: &dyn SignatureCheck,
) -> Result<Vec<ShownAttempt>, LedgerError> {
    let mut attempts = reader.request(&RequestId(id)).await?;
    if attempts.is_empty() {
        attempts.extend(reader.attempt(&AttemptId(id)).await?);
    }
    let mut shown = Vec::new();
    for attempt in attempts {
        let Some(record) = record(reader, &attempt, local).await? else {
            continue;
        };
        let channels = reader.channels(attempt.open.role).await?;
        let channel = channels
            .into_iter()
            .find(|row| row.channel == attempt.open.channel);
        let id = attempt.open.attempt_id;
        let vouchers = reader
            .vouchers(&attempt.open.channel, Some(&id), VOUCHERS_MAX)
            .await?;
        shown.push(one(
            record,
            &attempt,
            channel.as_ref(),
            &vouchers,
            signatures,
        ));
    }
    Ok(shown)
}

async fn record(
    reader: &Reader,
    attempt: &AttemptState,
    local: Option<PeerId>,
) -> Result<Option<RequestRecord>, LedgerError> {
    let what = "show a request";
    let mut tx = reader.pool.begin().await.doing(what)?;
    let seq: i64 = sqlx::query_scalar("select seq from attempt_open where attempt_id = ?1")
        .bind(attempt.open.attempt_id.as_bytes().as_slice())
        .fetch_one(&mut *tx)
        .await
        .doing(what)?;
    let all = Filter::default();
    let mut pages = Pages::new(&all, local, Order::OldestFirst);
    pages.start_after(seq - 1);
    Ok(pages.next(&mut tx, 1).await.doing(what)?.pop())
}

fn one(
    record: RequestRecord,
    attempt: &AttemptState,
    channel: Option<&ChannelRow>,
    vouchers: &[VoucherRow],
    check: &dyn SignatureCheck,
) -> ShownAttempt {
    let open = &attempt.open;
    let mut signatures = vec![shown("head", check.head(open))];
    if let Some(channel) = channel {
        signatures.push(shown("channel", check.channel(channel)));
        for voucher in vouchers {
            signatures.push(shown("voucher", check.voucher(channel, voucher)));
        }
    }
    let receipt = receipt_of(attempt);
    if let (Some(booked), Some(receipt)) = (&attempt.final_row, receipt) {
        signatures.push(shown("receipt", check.receipt(open, booked, receipt)));
    }
    ShownAttempt {
        record,
        offer_hash: open.offer_hash.to_string(),
        max_cost_micro_usd: open.max_cost.0,
        signed_head: hex::encode(&open.signed_head),
        receipt: receipt.map(hex::encode),
        vouchers: vouchers
            .iter()
            .map(|voucher| ShownVoucher {
                cumulative_micro_usd: voucher.cumulative.0,
                signature: hex::encode(voucher.signature),
            })
            .collect(),
        signatures,
    }
}

fn receipt_of(attempt: &AttemptState) -> Option<&Vec<u8>> {
    let booked = attempt.final_row.as_ref().and_then(|r| r.receipt.as_ref());
    booked.or_else(|| attempt.delivered.as_ref().and_then(|r| r.receipt.as_ref()))
}

fn shown(what: &'static str, checked: Result<(), String>) -> ShownSignature {
    ShownSignature {
        what,
        good: checked.is_ok(),
        reason: checked.err(),
    }
}
