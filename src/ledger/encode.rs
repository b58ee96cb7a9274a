//! Typed rows to columns; [`super::decode`] is the way back. Only these two know which field is
//! which column.
//!
//! Encoding checks sizes and ranges, so that a row which cannot be stored is refused before it
//! reaches the writer; texts that may come from peers are cut, bytes are never cut.

use super::error::LedgerError;
use super::onchain::{CursorRow, EventRow, IntentRow, OutcomeRow, SentRow};
use super::rows::{
    BudgetRow, ChannelRow, DeliveredRow, FinalRow, OfferRow, OpenRow, Outcome, Role, Row,
    SettlementRow, VoucherRow,
};
use super::table::{Encoded, Table, Value};
use crate::types::{MicroUsd, Usage};

/// Longest text of a row: names of models and clients, error codes. Peers choose some of them.
pub(super) const TEXT_BYTES_MAX: usize = 200;
/// Longest note of a settlement, the user's own words.
const NOTE_BYTES_MAX: usize = 500;
/// Largest signed thing of a row (head, receipt, offer, descriptor); frames are smaller.
const BLOB_BYTES_MAX: usize = 64 * 1024;

/// Turns a row into columns.
pub(super) fn encode(row: Row) -> Result<Encoded, LedgerError> {
    let mut out = Columns(Vec::with_capacity(20));
    let table = match row {
        Row::Open(r) => open(&mut out, r)?,
        Row::Delivered(r) => delivered(&mut out, r)?,
        Row::Final(r) => finished(&mut out, r)?,
        Row::Voucher(r) => voucher(&mut out, r)?,
        Row::Channel(r) => channel(&mut out, r)?,
        Row::Settlement(r) => settlement(&mut out, r)?,
        Row::Offer(r) => offer(&mut out, r)?,
        Row::BudgetSet(r) => budget(&mut out, r)?,
        Row::Intent(r) => intent(&mut out, r)?,
        Row::Sent(r) => sent(&mut out, r)?,
        Row::Outcome(r) => outcome(&mut out, r)?,
        Row::Event(r) => event(&mut out, r)?,
        Row::Cursor(r) => cursor(&mut out, r)?,
    };
    Ok(Encoded {
        table,
        values: out.0,
    })
}

fn open(out: &mut Columns, r: OpenRow) -> Result<Table, LedgerError> {
    out.int("at_ms", r.at_ms)?;
    out.bytes(r.attempt_id.as_bytes());
    out.bytes(r.request_id.as_bytes());
    out.int("attempt", r.attempt.into())?;
    out.role(r.role);
    out.0.push(Value::Blob(r.peer.to_bytes()));
    out.text(r.client);
    out.text(r.model_asked);
    out.text(r.model.as_str().to_owned());
    out.bytes(r.offer_hash.as_bytes());
    out.int("price_input", r.price.input)?;
    out.int("price_cache_read", r.price.cache_read)?;
    out.int("price_cache_write", r.price.cache_write)?;
    out.int("price_output", r.price.output)?;
    out.bytes(r.channel.as_bytes());
    out.limit(r.max_cost);
    out.int("prefill", r.prefill.0)?;
    out.int("voucher_before", r.voucher_before.0)?;
    out.blob("signed_head", r.signed_head)?;
    Ok(Table::Open)
}

fn delivered(out: &mut Columns, r: DeliveredRow) -> Result<Table, LedgerError> {
    out.int("at_ms", r.at_ms)?;
    out.bytes(r.attempt_id.as_bytes()); // open_seq: the writer knows the open row
    out.int("status", r.status.into())?;
    out.usage(r.usage)?;
    out.maybe_int("own_input", r.own_input)?;
    out.maybe_int("own_output", r.own_output)?;
    out.int("cost", r.cost.0)?;
    out.maybe_blob("receipt", r.receipt)?;
    Ok(Table::Delivered)
}

fn finished(out: &mut Columns, r: FinalRow) -> Result<Table, LedgerError> {
    if r.outcome == Outcome::Failed && r.billed != MicroUsd::ZERO {
        let why = "a failed attempt costs nothing; book it as accepted or written off";
        return Err(LedgerError::Invalid(why.to_owned()));
    }
    out.int("at_ms", r.at_ms)?;
    out.bytes(r.attempt_id.as_bytes()); // open_seq: the writer knows the open row
    out.0.push(Value::Text(r.outcome.as_str().to_owned()));
    out.int("status", r.status.into())?;
    out.int("billed", r.billed.0)?;
    out.text(r.model_served);
    out.usage(r.usage)?;
    out.maybe_int("own_input", r.own_input)?;
    out.maybe_int("own_output", r.own_output)?;
    out.maybe_int("ttft_ms", r.ttft_ms)?;
    out.int("total_ms", r.total_ms)?;
    out.int("disputed", r.disputed.into())?;
    out.maybe_blob("receipt", r.receipt)?;
    match r.error {
        Some(error) => out.text(error),
        None => out.0.push(Value::Null),
    }
    Ok(Table::Final)
}

fn voucher(out: &mut Columns, r: VoucherRow) -> Result<Table, LedgerError> {
    out.int("at_ms", r.at_ms)?;
    out.role(r.role);
    out.bytes(r.channel.as_bytes());
    out.int("cumulative", r.cumulative.0)?;
    out.0.push(Value::Int(0)); // step: the writer knows the voucher before
    out.bytes(&r.signature);
    match r.attempt {
        Some(attempt) => out.bytes(attempt.as_bytes()),
        None => out.0.push(Value::Null),
    }
    Ok(Table::Voucher)
}

fn channel(out: &mut Columns, r: ChannelRow) -> Result<Table, LedgerError> {
    out.int("at_ms", r.at_ms)?;
    out.role(r.role);
    out.bytes(r.channel.as_bytes());
    out.0.push(Value::Blob(r.peer.to_bytes()));
    out.text(r.mode);
    out.blob("descriptor", r.descriptor)?;
    out.int("epoch", r.epoch)?;
    out.limit(r.deposit);
    out.bytes(&r.open_signature);
    Ok(Table::Channel)
}

fn settlement(out: &mut Columns, r: SettlementRow) -> Result<Table, LedgerError> {
    out.int("at_ms", r.at_ms)?;
    out.role(r.role);
    out.bytes(r.channel.as_bytes());
    out.0.push(Value::Blob(r.peer.to_bytes()));
    out.int("amount", r.amount.0)?;
    out.0.push(Value::Text(cut(r.note, NOTE_BYTES_MAX)));
    Ok(Table::Settlement)
}

fn offer(out: &mut Columns, r: OfferRow) -> Result<Table, LedgerError> {
    out.int("at_ms", r.at_ms)?;
    out.bytes(r.hash.as_bytes());
    out.text(r.model.as_str().to_owned());
    out.int("not_after", r.not_after)?;
    out.blob("bytes", r.bytes)?;
    Ok(Table::Offer)
}

fn budget(out: &mut Columns, r: BudgetRow) -> Result<Table, LedgerError> {
    out.int("at_ms", r.at_ms)?;
    let table = match r.client {
        Some(client) => {
            out.text(client);
            Table::ClientBudget
        }
        None => Table::Budget,
    };
    match r.model {
        Some(model) => out.text(model.as_str().to_owned()),
        None => out.0.push(Value::Null),
    }
    out.maybe_int("daily", r.daily.map(|m| m.0))?;
    out.maybe_int("monthly", r.monthly.map(|m| m.0))?;
    Ok(table)
}

fn intent(out: &mut Columns, r: IntentRow) -> Result<Table, LedgerError> {
    out.int("at_ms", r.at_ms)?;
    out.bytes(r.intent.as_bytes());
    out.int("chain_id", r.chain_id)?;
    out.bytes(r.sender.as_bytes());
    out.int("nonce", r.nonce)?;
    out.maybe_bytes(r.target.as_ref().map(|target| target.as_bytes().as_slice()));
    out.int("value", r.value)?;
    out.blob("calldata", r.calldata)?;
    out.bytes(r.calldata_hash.as_bytes());
    out.int("gas_limit", r.gas_limit)?;
    out.text(r.purpose.as_str().to_owned());
    out.maybe_bytes(
        r.channel
            .as_ref()
            .map(|channel| channel.as_bytes().as_slice()),
    );
    out.int("gain", r.gain.0)?;
    Ok(Table::TxIntent)
}

fn sent(out: &mut Columns, r: SentRow) -> Result<Table, LedgerError> {
    out.int("at_ms", r.at_ms)?;
    out.bytes(r.intent.as_bytes());
    out.bytes(r.tx.as_bytes());
    out.int("max_fee", r.max_fee)?;
    out.int("max_priority_fee", r.max_priority_fee)?;
    out.blob("raw", r.raw)?;
    Ok(Table::TxSent)
}

fn outcome(out: &mut Columns, r: OutcomeRow) -> Result<Table, LedgerError> {
    out.int("at_ms", r.at_ms)?;
    out.bytes(r.intent.as_bytes());
    out.text(r.step.as_str().to_owned());
    out.maybe_bytes(r.tx.as_ref().map(|tx| tx.as_bytes().as_slice()));
    out.maybe_int("block_number", r.block.map(|(number, _)| number))?;
    out.maybe_bytes(r.block.as_ref().map(|(_, hash)| hash.as_bytes().as_slice()));
    out.int("succeeded", r.succeeded.into())?;
    out.int("fee", r.fee)?;
    Ok(Table::TxOutcome)
}

fn event(out: &mut Columns, r: EventRow) -> Result<Table, LedgerError> {
    out.int("at_ms", r.at_ms)?;
    out.int("chain_id", r.chain_id)?;
    out.bytes(r.hub.as_bytes());
    out.text(r.stage.as_str().to_owned());
    out.text(r.kind);
    out.maybe_bytes(
        r.channel
            .as_ref()
            .map(|channel| channel.as_bytes().as_slice()),
    );
    out.limit(r.amount);
    out.int("block_number", r.block.0)?;
    out.bytes(r.block.1.as_bytes());
    out.bytes(r.tx.as_bytes());
    out.int("log_index", r.log_index)?;
    let topics: Vec<u8> = r
        .topics
        .iter()
        .flat_map(|topic| *topic.as_bytes())
        .collect();
    out.blob("topics", topics)?;
    out.blob("data", r.data)?;
    Ok(Table::ChainEvent)
}

fn cursor(out: &mut Columns, r: CursorRow) -> Result<Table, LedgerError> {
    out.int("at_ms", r.at_ms)?;
    out.int("chain_id", r.chain_id)?;
    out.bytes(r.hub.as_bytes());
    out.int("block_number", r.block.0)?;
    out.bytes(r.block.1.as_bytes());
    Ok(Table::ChainCursor)
}

/// Cuts `text` to at most `max` bytes at a character's border.
pub(super) fn cut(mut text: String, max: usize) -> String {
    if text.len() > max {
        let mut end = max;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    text
}

struct Columns(Vec<Value>);

impl Columns {
    fn int(&mut self, field: &'static str, number: u64) -> Result<(), LedgerError> {
        let number = i64::try_from(number)
            .map_err(|_| LedgerError::Invalid(format!("{field} is above 2^63-1")))?;
        self.0.push(Value::Int(number));
        Ok(())
    }
    fn maybe_int(&mut self, field: &'static str, number: Option<u64>) -> Result<(), LedgerError> {
        match number {
            Some(number) => self.int(field, number),
            None => {
                self.0.push(Value::Null);
                Ok(())
            }
        }
    }
    /// A limit, not a balance: "as much as you like" may saturate.
    fn limit(&mut self, amount: MicroUsd) {
        self.0.push(Value::Int(amount.to_i64()));
    }
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.push(Value::Blob(bytes.to_vec()));
    }
    fn maybe_bytes(&mut self, bytes: Option<&[u8]>) {
        match bytes {
            Some(bytes) => self.bytes(bytes),
            None => self.0.push(Value::Null),
        }
    }
    fn blob(&mut self, field: &'static str, bytes: Vec<u8>) -> Result<(), LedgerError> {
        if bytes.len() > BLOB_BYTES_MAX {
            let why = format!("{field} has more than {BLOB_BYTES_MAX} bytes");
            return Err(LedgerError::Invalid(why));
        }
        self.0.push(Value::Blob(bytes));
        Ok(())
    }
    fn maybe_blob(
        &mut self,
        field: &'static str,
        bytes: Option<Vec<u8>>,
    ) -> Result<(), LedgerError> {
        match bytes {
            Some(bytes) => self.blob(field, bytes),
            None => {
                self.0.push(Value::Null);
                Ok(())
            }
        }
    }
    fn text(&mut self, text: String) {
        self.0.push(Value::Text(cut(text, TEXT_BYTES_MAX)));
    }
    fn role(&mut self, role: Role) {
        self.0.push(Value::Text(role.as_str().to_owned()));
    }
    fn usage(&mut self, usage: Option<Usage>) -> Result<(), LedgerError> {
        let part = |f: fn(&Usage) -> u64| usage.as_ref().map(f);
        self.maybe_int("usage_input", part(|u| u.input))?;
        self.maybe_int("usage_cache_read", part(|u| u.cache_read))?;
        self.maybe_int("usage_cache_write", part(|u| u.cache_write))?;
        self.maybe_int("usage_output", part(|u| u.output))?;
        self.maybe_int("usage_reasoning", part(|u| u.reasoning))
    }
}
