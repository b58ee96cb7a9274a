//! The tables as data: names, columns, values, and the canonical bytes that the hash chain covers.
//!
//! One generic shape serves the writer (inserts), the audit (hashes) and the typed readers, so a
//! column cannot be written without being hashed. The encoding is injective: every value carries a
//! tag and, where its size varies, its length.

use sha2::{Digest, Sha256};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, TypeInfo as _, ValueRef as _};

/// One value as SQLite stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// Absent.
    Null,
    /// 64-bit integer.
    Int(i64),
    /// UTF-8 text.
    Text(String),
    /// Bytes.
    Blob(Vec<u8>),
}

/// A row ready to be hashed and inserted: everything but `seq` and `hash`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Encoded {
    /// Where it goes.
    pub(super) table: Table,
    /// Its columns in declared order.
    pub(super) values: Vec<Value>,
}

/// The tables, parents before children: the order of inserts within a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Table {
    /// Channels and their deposits.
    Channel,
    /// Signed offers.
    Offer,
    /// Admissions.
    Open,
    /// Ends of answers.
    Delivered,
    /// Bookings.
    Final,
    /// Vouchers.
    Voucher,
    /// Settlements booked outside.
    Settlement,
    /// Spending limits.
    Budget,
    /// Spending limits of one client.
    ClientBudget,
    /// Transactions that are to be made.
    TxIntent,
    /// Their signed forms.
    TxSent,
    /// What became of them.
    TxOutcome,
    /// Events of the hub.
    ChainEvent,
    /// From where the hub's events are read on.
    ChainCursor,
    /// Sums per quarter hour.
    Rollup,
    /// Sums per channel.
    Balance,
    /// Ends of checked stretches.
    Checkpoint,
}

impl Table {
    /// All tables, in insert order.
    pub(super) const ALL: [Self; 17] = [
        Self::Channel,
        Self::Offer,
        Self::Open,
        Self::Delivered,
        Self::Final,
        Self::Voucher,
        Self::Settlement,
        Self::Budget,
        Self::ClientBudget,
        Self::TxIntent,
        Self::TxSent,
        Self::TxOutcome,
        Self::ChainEvent,
        Self::ChainCursor,
        Self::Rollup,
        Self::Balance,
        Self::Checkpoint,
    ];

    /// The table's name in SQL and in the hash.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Channel => "channel",
            Self::Offer => "offer",
            Self::Open => "attempt_open",
            Self::Delivered => "attempt_delivered",
            Self::Final => "attempt_final",
            Self::Voucher => "voucher",
            Self::Settlement => "settlement",
            Self::Budget => "budget",
            Self::ClientBudget => "client_budget",
            Self::TxIntent => "tx_intent",
            Self::TxSent => "tx_sent",
            Self::TxOutcome => "tx_outcome",
            Self::ChainEvent => "chain_event",
            Self::ChainCursor => "chain_cursor",
            Self::Rollup => "rollup",
            Self::Balance => "balance",
            Self::Checkpoint => "checkpoint",
        }
    }

    /// Every column but `seq` and `hash`, in declared order.
    pub(super) const fn columns(self) -> &'static [&'static str] {
        match self {
            Self::Channel => &CHANNEL,
            Self::Offer => &["at_ms", "offer_hash", "model", "not_after", "bytes"],
            Self::Open => &OPEN,
            Self::Delivered => &DELIVERED,
            Self::Final => &FINAL,
            Self::Voucher => &VOUCHER,
            Self::Settlement => &["at_ms", "role", "channel", "peer", "amount", "note"],
            Self::Budget => &["at_ms", "model", "daily", "monthly"],
            Self::ClientBudget => &["at_ms", "client", "model", "daily", "monthly"],
            Self::TxIntent => &TX_INTENT,
            Self::TxSent => &[
                "at_ms",
                "intent",
                "tx_hash",
                "max_fee",
                "max_priority_fee",
                "raw",
            ],
            Self::TxOutcome => &TX_OUTCOME,
            Self::ChainEvent => &CHAIN_EVENT,
            Self::ChainCursor => &["at_ms", "chain_id", "hub", "block_number", "block_hash"],
            Self::Rollup => &ROLLUP,
            Self::Balance => &["role", "channel", "voucher", "accepted", "lost", "settled"],
            Self::Checkpoint => &["at_ms", "covers", "unfinished", "signature"],
        }
    }

    /// True for rows that the ledger itself derives from others.
    pub(super) const fn is_derived(self) -> bool {
        matches!(self, Self::Rollup | Self::Balance | Self::Checkpoint)
    }

    /// `select seq, hash, <columns> from <table>` with `rest` appended.
    pub(super) fn select(self, rest: &str) -> String {
        let columns = self.columns().join(", ");
        format!("select seq, hash, {columns} from {} {rest}", self.name())
    }

    /// An insert of `rows` rows. A broken rule rolls the whole transaction back, which spares
    /// SQLite a journal per statement.
    pub(super) fn insert(self, rows: usize) -> String {
        self.insert_or("rollback", rows)
    }

    /// An insert of one row; a broken rule leaves the transaction as it was.
    pub(super) fn insert_one(self) -> String {
        self.insert_or("abort", 1)
    }

    fn insert_or(self, otherwise: &str, rows: usize) -> String {
        let columns = self.columns();
        let one = format!("(?{})", ", ?".repeat(columns.len() + 1));
        let all = vec![one; rows].join(", ");
        let list = columns.join(", ");
        format!(
            "insert or {otherwise} into {} (seq, hash, {list}) values {all}",
            self.name()
        )
    }
}

const CHANNEL: [&str; 9] = [
    "at_ms",
    "role",
    "channel",
    "peer",
    "mode",
    "descriptor",
    "epoch",
    "deposit",
    "open_signature",
];
const OPEN: [&str; 19] = [
    "at_ms",
    "attempt_id",
    "request_id",
    "attempt",
    "role",
    "peer",
    "client",
    "model_asked",
    "model",
    "offer_hash",
    "price_input",
    "price_cache_read",
    "price_cache_write",
    "price_output",
    "channel",
    "max_cost",
    "prefill",
    "voucher_before",
    "signed_head",
];
const DELIVERED: [&str; 12] = [
    "at_ms",
    "open_seq",
    "status",
    "usage_input",
    "usage_cache_read",
    "usage_cache_write",
    "usage_output",
    "usage_reasoning",
    "own_input",
    "own_output",
    "cost",
    "receipt",
];
const FINAL: [&str; 18] = [
    "at_ms",
    "open_seq",
    "outcome",
    "status",
    "billed",
    "model_served",
    "usage_input",
    "usage_cache_read",
    "usage_cache_write",
    "usage_output",
    "usage_reasoning",
    "own_input",
    "own_output",
    "ttft_ms",
    "total_ms",
    "disputed",
    "receipt",
    "error",
];
const VOUCHER: [&str; 7] = [
    "at_ms",
    "role",
    "channel",
    "cumulative",
    "step",
    "signature",
    "attempt",
];
const TX_INTENT: [&str; 13] = [
    "at_ms",
    "intent",
    "chain_id",
    "sender",
    "nonce",
    "target",
    "value",
    "calldata",
    "calldata_hash",
    "gas_limit",
    "purpose",
    "channel",
    "gain",
];
const TX_OUTCOME: [&str; 8] = [
    "at_ms",
    "intent",
    "step",
    "tx_hash",
    "block_number",
    "block_hash",
    "succeeded",
    "fee",
];
const CHAIN_EVENT: [&str; 13] = [
    "at_ms",
    "chain_id",
    "hub",
    "stage",
    "kind",
    "channel",
    "amount",
    "block_number",
    "block_hash",
    "tx_hash",
    "log_index",
    "topics",
    "data",
];
const ROLLUP: [&str; 18] = [
    "bucket_ms",
    "role",
    "model",
    "peer",
    "client",
    "accepted",
    "failed",
    "written_off",
    "reported",
    "input",
    "cache_read",
    "cache_write",
    "output",
    "reasoning",
    "billed",
    "lost",
    "authorised",
    "disputed",
];

/// A link of the hash chain.
pub(super) type ChainHash = [u8; 32];

/// What the first row is chained to.
pub(super) fn genesis() -> ChainHash {
    Sha256::digest(b"souk/ledger/v1").into()
}

/// The hash of the row `seq` of `table`, whose predecessor's hash is `prev`. A `patch` puts a number
/// in the place of a column; `scratch` is reused between rows.
pub(super) fn chain_hash(
    prev: &ChainHash,
    table: Table,
    seq: i64,
    values: &[Value],
    patch: Option<(usize, i64)>,
    scratch: &mut Vec<u8>,
) -> ChainHash {
    scratch.clear();
    scratch.extend_from_slice(prev);
    put_sized(scratch, 2, table.name().as_bytes());
    put_int(scratch, seq);
    for (index, value) in values.iter().enumerate() {
        if let Some((column, number)) = patch
            && column == index
        {
            put_int(scratch, number);
            continue;
        }
        match value {
            Value::Null => scratch.push(0),
            Value::Int(number) => put_int(scratch, *number),
            Value::Text(text) => put_sized(scratch, 2, text.as_bytes()),
            Value::Blob(bytes) => put_sized(scratch, 3, bytes),
        }
    }
    Sha256::digest(scratch.as_slice()).into()
}

fn put_int(out: &mut Vec<u8>, number: i64) {
    out.push(1);
    out.extend_from_slice(&number.to_be_bytes());
}

fn put_sized(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(bytes);
}

/// A row as it lies in the database.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    /// Its place in the chain.
    pub(super) seq: i64,
    /// The hash it claims.
    pub(super) hash: Vec<u8>,
    /// Its table.
    pub(super) table: Table,
    /// Its columns.
    pub(super) values: Vec<Value>,
}

/// Reads a row of [`Table::select`] with every value exactly as stored.
pub(super) fn stored(table: Table, row: &SqliteRow) -> Result<Stored, sqlx::Error> {
    let mut values = Vec::with_capacity(table.columns().len());
    for index in 0..table.columns().len() {
        values.push(value_at(row, index + 2)?);
    }
    Ok(Stored {
        seq: row.try_get_unchecked(0)?,
        hash: row.try_get_unchecked(1)?,
        table,
        values,
    })
}

fn value_at(row: &SqliteRow, index: usize) -> Result<Value, sqlx::Error> {
    let raw = row.try_get_raw(index)?;
    if raw.is_null() {
        return Ok(Value::Null);
    }
    let kind = raw.type_info();
    Ok(match kind.name() {
        "INTEGER" => Value::Int(row.try_get_unchecked(index)?),
        "TEXT" => Value::Text(row.try_get_unchecked(index)?),
        _ => Value::Blob(row.try_get_unchecked(index)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_hash_tells_apart_rows_that_look_alike() {
        let prev = genesis();
        let mut scratch = Vec::new();
        let mut hash = |table, seq, values: &[Value]| {
            chain_hash(&prev, table, seq, values, None, &mut scratch)
        };
        let text = |t: &str| Value::Text(t.to_owned());
        let base = hash(Table::Offer, 1, &[text("ab"), text("c")]);
        assert_ne!(base, hash(Table::Offer, 1, &[text("a"), text("bc")]));
        assert_ne!(base, hash(Table::Offer, 2, &[text("ab"), text("c")]));
        assert_ne!(base, hash(Table::Open, 1, &[text("ab"), text("c")]));
        assert_ne!(
            base,
            hash(Table::Offer, 1, &[Value::Blob(b"ab".to_vec()), text("c")])
        );
        assert_ne!(
            hash(Table::Offer, 1, &[Value::Null]),
            hash(Table::Offer, 1, &[Value::Int(0)])
        );
    }
}
