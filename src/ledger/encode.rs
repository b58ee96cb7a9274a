//! Typed rows to columns and back. The one place that knows which field is which column.
//!
//! Encoding checks sizes and ranges, so that a row which cannot be stored is refused before it
//! reaches the writer; texts that may come from peers are cut, bytes are never cut.

use super::error::LedgerError;
use super::rows::{
    BudgetRow, ChannelRow, DeliveredRow, FinalRow, OfferRow, OpenRow, Outcome, Role, Row,
    SettlementRow, VoucherRow,
};
use super::table::{Encoded, Table, Value};
use crate::types::{
    AttemptId, ChannelId, Hash32, MicroUsd, ModelId, PeerId, PriceTable, RequestId, Usage,
};

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
    match r.model {
        Some(model) => out.text(model.as_str().to_owned()),
        None => out.0.push(Value::Null),
    }
    out.maybe_int("daily", r.daily.map(|m| m.0))?;
    out.maybe_int("monthly", r.monthly.map(|m| m.0))?;
    Ok(Table::Budget)
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

/// A column does not hold what its table promises: the file was changed or is damaged.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {column} of {table} holds something else than it should")]
pub(super) struct BadColumn {
    table: &'static str,
    column: &'static str,
}

/// Takes columns in declared order.
pub(super) struct Fields<'a> {
    table: Table,
    values: &'a [Value],
    next: usize,
}

impl<'a> Fields<'a> {
    /// Starts at the first column.
    pub(super) const fn new(table: Table, values: &'a [Value]) -> Self {
        Self {
            table,
            values,
            next: 0,
        }
    }
    fn take(&mut self) -> Result<&'a Value, BadColumn> {
        let value = self.values.get(self.next).ok_or_else(|| self.bad())?;
        self.next += 1;
        Ok(value)
    }
    /// The error for the column taken last.
    pub(super) fn bad(&self) -> BadColumn {
        let columns = self.table.columns();
        BadColumn {
            table: self.table.name(),
            column: columns
                .get(self.next.saturating_sub(1))
                .copied()
                .unwrap_or("?"),
        }
    }
    /// An integer, 0 or more.
    pub(super) fn int(&mut self) -> Result<u64, BadColumn> {
        self.maybe_int()?.ok_or_else(|| self.bad())
    }
    /// An integer or null.
    pub(super) fn maybe_int(&mut self) -> Result<Option<u64>, BadColumn> {
        match self.take()? {
            Value::Null => Ok(None),
            Value::Int(number) => u64::try_from(*number).map(Some).map_err(|_| self.bad()),
            Value::Text(_) | Value::Blob(_) => Err(self.bad()),
        }
    }
    /// Money.
    pub(super) fn money(&mut self) -> Result<MicroUsd, BadColumn> {
        self.int().map(MicroUsd)
    }
    /// Bytes.
    pub(super) fn blob(&mut self) -> Result<&'a [u8], BadColumn> {
        self.maybe_blob()?.ok_or_else(|| self.bad())
    }
    /// Bytes or null.
    pub(super) fn maybe_blob(&mut self) -> Result<Option<&'a [u8]>, BadColumn> {
        match self.take()? {
            Value::Null => Ok(None),
            Value::Blob(bytes) => Ok(Some(bytes)),
            Value::Int(_) | Value::Text(_) => Err(self.bad()),
        }
    }
    /// Text.
    pub(super) fn text(&mut self) -> Result<&'a str, BadColumn> {
        self.maybe_text()?.ok_or_else(|| self.bad())
    }
    /// Text or null.
    pub(super) fn maybe_text(&mut self) -> Result<Option<&'a str>, BadColumn> {
        match self.take()? {
            Value::Null => Ok(None),
            Value::Text(text) => Ok(Some(text)),
            Value::Int(_) | Value::Blob(_) => Err(self.bad()),
        }
    }
    /// Exactly `N` bytes.
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], BadColumn> {
        let bytes = self.blob()?;
        <[u8; N]>::try_from(bytes).map_err(|_| self.bad())
    }
    /// A side.
    pub(super) fn role(&mut self) -> Result<Role, BadColumn> {
        let word = self.text()?;
        Role::from_word(word).ok_or_else(|| self.bad())
    }
    /// A peer.
    pub(super) fn peer(&mut self) -> Result<PeerId, BadColumn> {
        let bytes = self.blob()?;
        PeerId::from_bytes(bytes).map_err(|_| self.bad())
    }
    fn usage(&mut self) -> Result<Option<Usage>, BadColumn> {
        let parts = [
            self.maybe_int()?,
            self.maybe_int()?,
            self.maybe_int()?,
            self.maybe_int()?,
            self.maybe_int()?,
        ];
        match parts {
            [None, None, None, None, None] => Ok(None),
            [
                Some(input),
                Some(cache_read),
                Some(cache_write),
                Some(output),
                Some(reasoning),
            ] => Ok(Some(Usage {
                input,
                cache_read,
                cache_write,
                output,
                reasoning,
            })),
            _ => Err(self.bad()),
        }
    }
    /// An integer that fits `T`.
    fn small<T: TryFrom<u64>>(&mut self) -> Result<T, BadColumn> {
        let number = self.int()?;
        T::try_from(number).map_err(|_| self.bad())
    }
}

/// Reads an `attempt_open` row.
pub(super) fn to_open(values: &[Value]) -> Result<OpenRow, BadColumn> {
    let mut f = Fields::new(Table::Open, values);
    Ok(OpenRow {
        at_ms: f.int()?,
        attempt_id: AttemptId(f.array()?),
        request_id: RequestId(f.array()?),
        attempt: f.small()?,
        role: f.role()?,
        peer: f.peer()?,
        client: f.text()?.to_owned(),
        model_asked: f.text()?.to_owned(),
        model: ModelId::new(f.text()?),
        offer_hash: Hash32(f.array()?),
        price: PriceTable {
            input: f.int()?,
            cache_read: f.int()?,
            cache_write: f.int()?,
            output: f.int()?,
        },
        channel: ChannelId(f.array()?),
        max_cost: f.money()?,
        prefill: f.money()?,
        voucher_before: f.money()?,
        signed_head: f.blob()?.to_vec(),
    })
}

/// Reads an `attempt_delivered` row of the attempt `attempt_id`.
pub(super) fn to_delivered(
    attempt_id: AttemptId,
    values: &[Value],
) -> Result<DeliveredRow, BadColumn> {
    let mut f = Fields::new(Table::Delivered, values);
    Ok(DeliveredRow {
        at_ms: f.int()?,
        attempt_id: {
            f.int()?; // open_seq
            attempt_id
        },
        status: f.small()?,
        usage: f.usage()?,
        own_input: f.maybe_int()?,
        own_output: f.maybe_int()?,
        cost: f.money()?,
        receipt: f.maybe_blob()?.map(<[u8]>::to_vec),
    })
}

/// Reads an `attempt_final` row of the attempt `attempt_id`.
pub(super) fn to_final(attempt_id: AttemptId, values: &[Value]) -> Result<FinalRow, BadColumn> {
    let mut f = Fields::new(Table::Final, values);
    Ok(FinalRow {
        at_ms: f.int()?,
        attempt_id: {
            f.int()?; // open_seq
            attempt_id
        },
        outcome: {
            let word = f.text()?;
            Outcome::from_word(word).ok_or_else(|| f.bad())?
        },
        status: f.small()?,
        billed: f.money()?,
        model_served: f.text()?.to_owned(),
        usage: f.usage()?,
        own_input: f.maybe_int()?,
        own_output: f.maybe_int()?,
        ttft_ms: f.maybe_int()?,
        total_ms: f.int()?,
        disputed: f.int()? != 0,
        receipt: f.maybe_blob()?.map(<[u8]>::to_vec),
        error: f.maybe_text()?.map(str::to_owned),
    })
}

/// The open row that a delivered or final row belongs to.
pub(super) fn open_seq(table: Table, values: &[Value]) -> Result<i64, BadColumn> {
    let mut f = Fields::new(table, values);
    f.int()?;
    f.small()
}

/// Reads a `voucher` row and its step.
pub(super) fn to_voucher(values: &[Value]) -> Result<(VoucherRow, MicroUsd), BadColumn> {
    let mut f = Fields::new(Table::Voucher, values);
    let at_ms = f.int()?;
    let role = f.role()?;
    let channel = ChannelId(f.array()?);
    let cumulative = f.money()?;
    let step = f.money()?;
    let signature = f.array()?;
    let attempt = match f.maybe_blob()? {
        Some(bytes) => Some(AttemptId::from_slice(bytes).ok_or_else(|| f.bad())?),
        None => None,
    };
    let row = VoucherRow {
        at_ms,
        role,
        channel,
        cumulative,
        signature,
        attempt,
    };
    Ok((row, step))
}

/// Reads a `channel` row.
pub(super) fn to_channel(values: &[Value]) -> Result<ChannelRow, BadColumn> {
    let mut f = Fields::new(Table::Channel, values);
    Ok(ChannelRow {
        at_ms: f.int()?,
        role: f.role()?,
        channel: ChannelId(f.array()?),
        peer: f.peer()?,
        mode: f.text()?.to_owned(),
        descriptor: f.blob()?.to_vec(),
        epoch: f.int()?,
        deposit: f.money()?,
        open_signature: f.array()?,
    })
}

/// Reads a `settlement` row.
pub(super) fn to_settlement(values: &[Value]) -> Result<SettlementRow, BadColumn> {
    let mut f = Fields::new(Table::Settlement, values);
    Ok(SettlementRow {
        at_ms: f.int()?,
        role: f.role()?,
        channel: ChannelId(f.array()?),
        peer: f.peer()?,
        amount: f.money()?,
        note: f.text()?.to_owned(),
    })
}

/// Reads an `offer` row.
pub(super) fn to_offer(values: &[Value]) -> Result<OfferRow, BadColumn> {
    let mut f = Fields::new(Table::Offer, values);
    Ok(OfferRow {
        at_ms: f.int()?,
        hash: Hash32(f.array()?),
        model: ModelId::new(f.text()?),
        not_after: f.int()?,
        bytes: f.blob()?.to_vec(),
    })
}

/// Reads a `budget` row.
pub(super) fn to_budget(values: &[Value]) -> Result<BudgetRow, BadColumn> {
    let mut f = Fields::new(Table::Budget, values);
    Ok(BudgetRow {
        at_ms: f.int()?,
        model: f.maybe_text()?.map(ModelId::new),
        daily: f.maybe_int()?.map(MicroUsd),
        monthly: f.maybe_int()?.map(MicroUsd),
    })
}
