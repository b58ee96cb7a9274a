//! Sums over a stretch of the chain: what `rollup` and `balance` rows hold, and what the rows after
//! the last checkpoint add to them.
//!
//! The writer calls it to make a checkpoint, readers to answer without scanning the whole history,
//! the audit recomputes the same sums row by row without SQL.

use std::collections::BTreeMap;

use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, SqliteConnection};

use super::rows::Role;
use super::table::{Encoded, Table, Value};
use crate::types::{ChannelId, UnixMs};

/// Width of a rollup's bucket. Every time zone is a multiple of it from UTC, so local days and
/// months are whole buckets.
pub(super) const BUCKET_MS: u64 = 15 * 60 * 1000;

/// Rounds down to a bucket's start.
pub(super) const fn bucket_of(at_ms: UnixMs) -> UnixMs {
    at_ms - at_ms % BUCKET_MS
}

/// A part of the chain: `after < seq <= upto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) after: i64,
    pub(super) upto: i64,
}

/// What a rollup row counts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RollupKey {
    pub(super) bucket_ms: i64,
    pub(super) role: Role,
    pub(super) model: String,
    pub(super) peer: Vec<u8>,
    pub(super) client: String,
}

/// The counts of a rollup row, in column order from `accepted` on.
pub(super) const COUNTS: usize = 13;
/// Index of `accepted`.
pub(super) const ACCEPTED: usize = 0;
/// Index of `failed`.
pub(super) const FAILED: usize = 1;
/// Index of `written_off`.
pub(super) const WRITTEN_OFF: usize = 2;
/// Index of `reported`.
pub(super) const REPORTED: usize = 3;
/// Index of `input`; cache read, cache write, output and reasoning follow.
pub(super) const INPUT: usize = 4;
/// Index of `billed`.
pub(super) const BILLED: usize = 9;
/// Index of `lost`.
pub(super) const LOST: usize = 10;
/// Index of `authorised`.
pub(super) const AUTHORISED: usize = 11;
/// Index of `disputed`.
pub(super) const DISPUTED: usize = 12;

/// Counts of one key.
pub(super) type Counts = [i64; COUNTS];

/// Adds `more` to `counts`.
pub(super) fn add(counts: &mut Counts, more: &Counts) {
    for (sum, part) in counts.iter_mut().zip(more) {
        *sum = sum.saturating_add(*part);
    }
}

/// Sums per quarter hour, role, model, peer and client.
pub(super) type Rollups = BTreeMap<RollupKey, Counts>;

/// Sums of one channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Balance {
    /// Highest cumulative.
    pub(super) voucher: i64,
    /// Σ billed of accepted attempts.
    pub(super) accepted: i64,
    /// Σ billed of attempts written off.
    pub(super) lost: i64,
    /// Σ settlements.
    pub(super) settled: i64,
}

/// Sums per channel.
pub(super) type Balances = BTreeMap<(Role, ChannelId), Balance>;

/// The last checkpoint, or the start of the chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CheckpointMark {
    /// Its own place; 0 before the first.
    pub(super) seq: i64,
    /// Last row its sums count.
    pub(super) covers: i64,
    /// Open rows that had no final.
    pub(super) unfinished: Vec<i64>,
}

const FINALS: &str = "
    select f.at_ms / 900000 * 900000 as bucket_ms, o.role, o.model, o.peer, o.client,
           sum(f.outcome = 'accepted'), sum(f.outcome = 'failed'), sum(f.outcome = 'written_off'),
           count(f.usage_input),
           coalesce(sum(f.usage_input), 0), coalesce(sum(f.usage_cache_read), 0),
           coalesce(sum(f.usage_cache_write), 0), coalesce(sum(f.usage_output), 0),
           coalesce(sum(f.usage_reasoning), 0),
           sum(case f.outcome when 'accepted' then f.billed else 0 end),
           sum(case f.outcome when 'written_off' then f.billed else 0 end),
           0, sum(f.disputed)
    from attempt_final f join attempt_open o on o.seq = f.open_seq
    where f.seq > ?1 and f.seq <= ?2
    group by 1, 2, 3, 4, 5";

const VOUCHERS: &str = "
    select v.at_ms / 900000 * 900000 as bucket_ms, v.role, coalesce(o.model, ''),
           coalesce(o.peer, (select c.peer from channel c
                             where c.channel = v.channel and c.role = v.role and c.seq < v.seq
                             order by c.seq limit 1), x''),
           coalesce(o.client, ''), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, sum(v.step), 0
    from voucher v left join attempt_open o on o.attempt_id = v.attempt and o.seq < v.seq
    where v.seq > ?1 and v.seq <= ?2
    group by 1, 2, 3, 4, 5";

/// Sums per quarter hour over `stretch`.
pub(super) async fn rollups(
    conn: &mut SqliteConnection,
    stretch: Stretch,
) -> Result<Rollups, sqlx::Error> {
    let mut all = Rollups::new();
    for sql in [FINALS, VOUCHERS] {
        let rows = sqlx::query(sql)
            .bind(stretch.after)
            .bind(stretch.upto)
            .fetch_all(&mut *conn)
            .await?;
        for row in rows {
            let (key, counts) = rollup_row(&row)?;
            add(all.entry(key).or_insert([0; COUNTS]), &counts);
        }
    }
    Ok(all)
}

fn rollup_row(row: &SqliteRow) -> Result<(RollupKey, Counts), sqlx::Error> {
    let key = RollupKey {
        bucket_ms: row.try_get_unchecked(0)?,
        role: role_at(row, 1)?,
        model: row.try_get_unchecked(2)?,
        peer: row.try_get_unchecked(3)?,
        client: row.try_get_unchecked(4)?,
    };
    Ok((key, counts_at(row, 5)?))
}

/// Reads the thirteen counts from column `first` on.
pub(super) fn counts_at(row: &SqliteRow, first: usize) -> Result<Counts, sqlx::Error> {
    let mut counts = [0; COUNTS];
    for (index, count) in counts.iter_mut().enumerate() {
        *count = row.try_get_unchecked(first + index)?;
    }
    Ok(counts)
}

/// Reads a role.
pub(super) fn role_at(row: &SqliteRow, index: usize) -> Result<Role, sqlx::Error> {
    let word: &str = row.try_get_unchecked(index)?;
    Role::from_word(word).ok_or_else(|| sqlx::Error::Decode("unknown role".into()))
}

fn channel_at(row: &SqliteRow, index: usize) -> Result<ChannelId, sqlx::Error> {
    let bytes: &[u8] = row.try_get_unchecked(index)?;
    ChannelId::from_slice(bytes).ok_or_else(|| sqlx::Error::Decode("not a channel id".into()))
}

/// What `stretch` adds to each channel's balance.
pub(super) async fn balances(
    conn: &mut SqliteConnection,
    stretch: Stretch,
) -> Result<Balances, sqlx::Error> {
    let rows = sqlx::query(
        "select o.role, o.channel, 0,
                sum(case f.outcome when 'accepted' then f.billed else 0 end),
                sum(case f.outcome when 'written_off' then f.billed else 0 end), 0
         from attempt_final f join attempt_open o on o.seq = f.open_seq
         where f.seq > ?1 and f.seq <= ?2 group by 1, 2
         union all
         select role, channel, max(cumulative), 0, 0, 0
         from voucher where seq > ?1 and seq <= ?2 group by 1, 2
         union all
         select role, channel, 0, 0, 0, sum(amount)
         from settlement where seq > ?1 and seq <= ?2 group by 1, 2",
    )
    .bind(stretch.after)
    .bind(stretch.upto)
    .fetch_all(conn)
    .await?;
    let mut all = Balances::new();
    for row in rows {
        let key = (role_at(&row, 0)?, channel_at(&row, 1)?);
        let sum: &mut Balance = all.entry(key).or_default();
        sum.voucher = sum.voucher.max(row.try_get_unchecked(2)?);
        sum.accepted += row.try_get_unchecked::<i64, _>(3)?;
        sum.lost += row.try_get_unchecked::<i64, _>(4)?;
        sum.settled += row.try_get_unchecked::<i64, _>(5)?;
    }
    Ok(all)
}

/// The channel's sums as of the last checkpoint that touched it.
pub(super) async fn balance_before(
    conn: &mut SqliteConnection,
    role: Role,
    channel: &ChannelId,
) -> Result<Balance, sqlx::Error> {
    let row: Option<(i64, i64, i64, i64)> = sqlx::query_as(
        "select voucher, accepted, lost, settled from balance
         where channel = ?1 and role = ?2 order by seq desc limit 1",
    )
    .bind(channel.as_bytes().as_slice())
    .bind(role.as_str())
    .fetch_optional(conn)
    .await?;
    Ok(
        row.map_or_else(Balance::default, |(voucher, accepted, lost, settled)| {
            Balance {
                voucher,
                accepted,
                lost,
                settled,
            }
        }),
    )
}

impl Balance {
    /// This balance with what happened after it.
    pub(super) fn plus(self, more: Self) -> Self {
        Self {
            voucher: self.voucher.max(more.voucher),
            accepted: self.accepted.saturating_add(more.accepted),
            lost: self.lost.saturating_add(more.lost),
            settled: self.settled.saturating_add(more.settled),
        }
    }
}

/// The last checkpoint.
pub(super) async fn last_checkpoint(
    conn: &mut SqliteConnection,
) -> Result<CheckpointMark, sqlx::Error> {
    let row: Option<(i64, i64, Vec<u8>)> =
        sqlx::query_as("select seq, covers, unfinished from checkpoint order by seq desc limit 1")
            .fetch_optional(conn)
            .await?;
    Ok(
        row.map_or_else(CheckpointMark::default, |(seq, covers, list)| {
            CheckpointMark {
                seq,
                covers,
                unfinished: seqs_from_bytes(&list),
            }
        }),
    )
}

/// Open rows without a final: those of the mark that still have none, and newer ones.
pub(super) async fn unfinished(
    conn: &mut SqliteConnection,
    mark: &CheckpointMark,
) -> Result<Vec<i64>, sqlx::Error> {
    let old = serde_json::to_string(&mark.unfinished).unwrap_or_default();
    sqlx::query_scalar(
        "select o.seq from attempt_open o
         where o.seq in (select value from json_each(?1))
           and not exists (select 1 from attempt_final f where f.open_seq = o.seq)
         union all
         select o.seq from attempt_open o
         where o.seq > ?2
           and not exists (select 1 from attempt_final f where f.open_seq = o.seq)
         order by 1",
    )
    .bind(old)
    .bind(mark.covers)
    .fetch_all(conn)
    .await
}

/// 8 bytes big endian each.
pub(super) fn seqs_to_bytes(seqs: &[i64]) -> Vec<u8> {
    seqs.iter().flat_map(|seq| seq.to_be_bytes()).collect()
}

fn seqs_from_bytes(bytes: &[u8]) -> Vec<i64> {
    let (whole, _) = bytes.as_chunks::<8>();
    whole
        .iter()
        .map(|eight| i64::from_be_bytes(*eight))
        .collect()
}

/// A rollup row.
pub(super) fn encode_rollup(key: RollupKey, counts: &Counts) -> Encoded {
    let mut values = vec![
        Value::Int(key.bucket_ms),
        Value::Text(key.role.as_str().to_owned()),
        Value::Text(key.model),
        Value::Blob(key.peer),
        Value::Text(key.client),
    ];
    values.extend(counts.iter().map(|count| Value::Int(*count)));
    Encoded {
        table: Table::Rollup,
        values,
    }
}

/// A balance row.
pub(super) fn encode_balance(role: Role, channel: &ChannelId, balance: Balance) -> Encoded {
    Encoded {
        table: Table::Balance,
        values: vec![
            Value::Text(role.as_str().to_owned()),
            Value::Blob(channel.as_bytes().to_vec()),
            Value::Int(balance.voucher),
            Value::Int(balance.accepted),
            Value::Int(balance.lost),
            Value::Int(balance.settled),
        ],
    }
}
