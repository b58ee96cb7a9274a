//! Sums by day, month, model, seller, buyer or client.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use sqlx::{AssertSqlSafe, Row as _, SqliteConnection};

use super::{Filter, direction};
use crate::ledger::error::{Doing as _, LedgerError};
use crate::ledger::reader::Reader;
use crate::ledger::rows::{Role, SettlementRow};
use crate::ledger::sums::{
    self, ACCEPTED, AUTHORISED, BILLED, COUNTS, Counts, DISPUTED, FAILED, INPUT, LOST, REPORTED,
    RollupKey, Rollups, Stretch, WRITTEN_OFF, bucket_of,
};
use crate::types::{MicroUsd, PeerId, Purpose};

const WHAT: &str = "sum up the ledger";

/// What one line of a summary stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum GroupBy {
    /// A quarter of an hour: the finest that sums are kept for.
    Quarter,
    /// A local hour.
    Hour,
    /// A local day.
    Day,
    /// A local month.
    Month,
    /// A model.
    Model,
    /// A seller we bought from.
    Seller,
    /// A buyer we sold to.
    Buyer,
    /// A local client.
    Client,
}

impl GroupBy {
    /// The word on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Quarter => "quarter",
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Month => "month",
            Self::Model => "model",
            Self::Seller => "seller",
            Self::Buyer => "buyer",
            Self::Client => "client",
        }
    }
    /// Whether the lines are parts of time.
    const fn is_time(self) -> bool {
        matches!(self, Self::Quarter | Self::Hour | Self::Day | Self::Month)
    }
    /// The side that this grouping is about, if only one.
    const fn role(self) -> Option<Role> {
        match self {
            Self::Seller => Some(Role::Buy),
            Self::Buyer => Some(Role::Sell),
            _ => None,
        }
    }
}

/// One line of a summary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SummaryRow {
    /// The day, month, model, peer or client.
    pub key: String,
    /// `spent` or `earned`.
    pub direction: &'static str,
    /// Attempts that ended.
    pub requests: u64,
    /// Of them accepted.
    pub accepted: u64,
    /// Of them failed.
    pub failed: u64,
    /// Of them written off.
    pub written_off: u64,
    /// Of them paid by the own bound.
    pub disputed: u64,
    /// Fresh input tokens; null when no usage was reported, as below.
    pub input_tokens: Option<u64>,
    /// Input tokens read from a cache.
    pub cached_tokens: Option<u64>,
    /// Input tokens written to a cache.
    pub cache_write_tokens: Option<u64>,
    /// Output tokens, reasoning included.
    pub output_tokens: Option<u64>,
    /// Reasoning tokens.
    pub reasoning_tokens: Option<u64>,
    /// Accepted cost.
    pub billed_micro_usd: u64,
    /// Cost written off.
    pub written_off_micro_usd: u64,
    /// What vouchers were signed for.
    pub authorised_micro_usd: u64,
    /// What was settled; null where a settlement belongs to no line (models, clients).
    pub settled_micro_usd: Option<u64>,
    /// Authorised and not yet settled; null where that has no meaning (parts of time, models).
    pub pending_micro_usd: Option<u64>,
    /// Wei paid for gas; null where it belongs to no line (models, peers, clients).
    pub gas_wei: Option<u64>,
}

/// A summary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// What the lines stand for.
    pub by: GroupBy,
    /// The lines; days and months in order, others by cost, dearest first.
    pub rows: Vec<SummaryRow>,
    /// One line per direction.
    pub totals: Vec<SummaryRow>,
}

#[derive(Clone, Copy, Default)]
struct Sums {
    counts: Counts,
    settled: i64,
    gas_wei: u64,
}

type Groups = BTreeMap<(String, Role), Sums>;

/// Sums up what `filter` selects, in lines of `by`, with days of `zone`.
///
/// # Errors
/// When the database cannot be read.
pub async fn summary(
    reader: &Reader,
    by: GroupBy,
    filter: &Filter,
    zone: &TimeZone,
) -> Result<Summary, LedgerError> {
    summary_with(reader, by, filter, zone, &[]).await
}

/// The same with settlements that the ledger's tables do not name: those of a chain, whose events
/// only a layer above can read.
///
/// # Errors
/// As [`summary`].
pub async fn summary_with(
    reader: &Reader,
    by: GroupBy,
    filter: &Filter,
    zone: &TimeZone,
    on_chain: &[SettlementRow],
) -> Result<Summary, LedgerError> {
    let mut filter = filter.clone();
    filter.role = filter.role.or(by.role());
    filter.since_ms = filter.since_ms.map(bucket_of);
    filter.until_ms = filter.until_ms.map(bucket_of);
    let mut tx = reader.pool.begin().await.doing(WHAT)?;
    let mut groups = Groups::new();
    for (key, counts) in counted(&mut tx, by, &filter).await? {
        let label = label(by, &key, zone);
        let group = groups.entry((label, key.role)).or_default();
        sums::add(&mut group.counts, &counts);
    }
    drop(tx);
    let settlements = settlements(reader, &filter, on_chain).await?;
    let gas = gas(reader, &filter).await?;
    for paid in &gas {
        if by.is_time() {
            let label = date_label(by, paid.at_ms, zone);
            let group = groups.entry((label, paid.role)).or_default();
            group.gas_wei = group.gas_wei.saturating_add(paid.wei);
        }
    }
    for row in &settlements {
        if let Some(label) = settlement_label(by, row, zone) {
            let group = groups.entry((label, row.role)).or_default();
            group.settled = group.settled.saturating_add(row.amount.to_i64());
        }
    }
    Ok(lay_out(by, &filter, groups, &settlements, &gas))
}

/// Rollups plus the rows after the last checkpoint, both already filtered.
async fn counted(
    conn: &mut SqliteConnection,
    by: GroupBy,
    filter: &Filter,
) -> Result<Rollups, LedgerError> {
    let mut all = rolled_up(conn, by, filter).await.doing(WHAT)?;
    let mark = sums::last_checkpoint(conn).await.doing(WHAT)?;
    let tail = Stretch {
        after: mark.covers,
        upto: i64::MAX,
    };
    for (key, counts) in sums::rollups(conn, tail).await.doing(WHAT)? {
        if matches(filter, &key) {
            sums::add(all.entry(key).or_insert([0; COUNTS]), &counts);
        }
    }
    Ok(all)
}

async fn rolled_up(
    conn: &mut SqliteConnection,
    by: GroupBy,
    filter: &Filter,
) -> Result<Rollups, sqlx::Error> {
    // Only the grouped column is kept apart, so that a million rows come back as a few.
    let columns = match by {
        GroupBy::Quarter | GroupBy::Hour | GroupBy::Day | GroupBy::Month => {
            "bucket_ms, role, '', x'', ''"
        }
        GroupBy::Model => "0, role, model, x'', ''",
        GroupBy::Seller | GroupBy::Buyer => "0, role, '', peer, ''",
        GroupBy::Client => "0, role, '', x'', client",
    };
    let sql = format!(
        "select {columns}, sum(accepted), sum(failed), sum(written_off), sum(reported),
                sum(input), sum(cache_read), sum(cache_write), sum(output), sum(reasoning),
                sum(billed), sum(lost), sum(authorised), sum(disputed)
         from rollup
         where (?1 is null or bucket_ms >= ?1) and (?2 is null or bucket_ms < ?2)
           and (?3 is null or role = ?3) and (?4 is null or model = ?4)
           and (?5 is null or peer = ?5)
         group by 1, 2, 3, 4, 5"
    );
    let rows = sqlx::query(AssertSqlSafe(sql))
        .bind(filter.since_ms.map(to_i64))
        .bind(filter.until_ms.map(to_i64))
        .bind(filter.role.map(Role::as_str))
        .bind(filter.model.as_ref().map(|m| m.as_str().to_owned()))
        .bind(filter.peer.map(|p| p.to_bytes()))
        .fetch_all(conn)
        .await?;
    let mut all = Rollups::new();
    for row in rows {
        let key = RollupKey {
            bucket_ms: row.try_get_unchecked(0)?,
            role: sums::role_at(&row, 1)?,
            model: row.try_get_unchecked(2)?,
            peer: row.try_get_unchecked(3)?,
            client: row.try_get_unchecked(4)?,
        };
        all.insert(key, sums::counts_at(&row, 5)?);
    }
    Ok(all)
}

fn matches(filter: &Filter, key: &RollupKey) -> bool {
    let at = from_i64(key.bucket_ms);
    in_time(filter, at)
        && filter.role.is_none_or(|role| role == key.role)
        && filter
            .model
            .as_ref()
            .is_none_or(|m| m.as_str() == key.model)
        && filter.peer.is_none_or(|peer| peer.to_bytes() == key.peer)
}

fn in_time(filter: &Filter, at_ms: u64) -> bool {
    filter.since_ms.is_none_or(|since| at_ms >= since)
        && filter.until_ms.is_none_or(|until| at_ms < until)
}

async fn settlements(
    reader: &Reader,
    filter: &Filter,
    on_chain: &[SettlementRow],
) -> Result<Vec<SettlementRow>, LedgerError> {
    if filter.model.is_some() {
        return Ok(Vec::new());
    }
    let mut all = on_chain.to_vec();
    all.retain(|row| filter.role.is_none_or(|wanted| wanted == row.role));
    for role in [Role::Buy, Role::Sell] {
        if filter.role.is_none_or(|wanted| wanted == role) {
            all.extend(reader.settlements(role).await?);
        }
    }
    all.retain(|row| in_time(filter, row.at_ms) && filter.peer.is_none_or(|peer| peer == row.peer));
    Ok(all)
}

/// What a transaction cost.
struct Gas {
    at_ms: i64,
    role: Role,
    wei: u64,
}

/// Gas of every transaction that is in a block now. It belongs to no model and no peer.
async fn gas(reader: &Reader, filter: &Filter) -> Result<Vec<Gas>, LedgerError> {
    if filter.model.is_some() || filter.peer.is_some() {
        return Ok(Vec::new());
    }
    let mut conn = reader.pool.acquire().await.doing(WHAT)?;
    let rows = sqlx::query(
        "select o.at_ms, i.purpose, o.fee from tx_outcome o
         join tx_intent i on i.intent = o.intent
         where o.step in ('mined', 'reverted', 'confirmed')
           and o.seq = (select max(seq) from tx_outcome n where n.intent = o.intent)",
    )
    .fetch_all(&mut *conn)
    .await
    .doing(WHAT)?;
    let mut all = Vec::new();
    for row in rows {
        let at_ms: i64 = row.try_get_unchecked(0).doing(WHAT)?;
        let purpose: String = row.try_get_unchecked(1).doing(WHAT)?;
        let paid = Gas {
            at_ms,
            role: gas_role(Purpose::from_word(&purpose)),
            wei: from_i64(row.try_get_unchecked(2).doing(WHAT)?),
        };
        let is_wanted = filter.role.is_none_or(|role| role == paid.role);
        if is_wanted && in_time(filter, from_i64(at_ms)) {
            all.push(paid);
        }
    }
    Ok(all)
}

/// Whose business a transaction is: the seller opens, settles and relays; the vault's owner moves
/// its own money.
const fn gas_role(purpose: Purpose) -> Role {
    match purpose {
        Purpose::Open | Purpose::TopUp | Purpose::Settle | Purpose::Close | Purpose::Relay => {
            Role::Sell
        }
        _ => Role::Buy,
    }
}

fn settlement_label(by: GroupBy, row: &SettlementRow, zone: &TimeZone) -> Option<String> {
    match by {
        GroupBy::Quarter | GroupBy::Hour | GroupBy::Day | GroupBy::Month => {
            Some(date_label(by, to_i64(row.at_ms), zone))
        }
        GroupBy::Seller | GroupBy::Buyer => Some(row.peer.to_base58()),
        GroupBy::Model | GroupBy::Client => None,
    }
}

fn label(by: GroupBy, key: &RollupKey, zone: &TimeZone) -> String {
    match by {
        GroupBy::Quarter | GroupBy::Hour | GroupBy::Day | GroupBy::Month => {
            date_label(by, key.bucket_ms, zone)
        }
        GroupBy::Model => key.model.clone(),
        GroupBy::Client => key.client.clone(),
        GroupBy::Seller | GroupBy::Buyer => {
            PeerId::from_bytes(&key.peer).map_or_else(|_| hex::encode(&key.peer), |p| p.to_base58())
        }
    }
}

/// The key of the hour, day or month that a time lies in.
pub(super) fn date_label(by: GroupBy, at_ms: i64, zone: &TimeZone) -> String {
    let at = Timestamp::from_millisecond(at_ms).unwrap_or_default();
    let at = at.to_zoned(zone.clone());
    let date = at.date();
    match by {
        // Sums are kept by quarters, so each key is the start of one.
        GroupBy::Quarter => at.strftime("%Y-%m-%dT%H:%M").to_string(),
        GroupBy::Hour => at.strftime("%Y-%m-%dT%H:00").to_string(),
        GroupBy::Month => date.strftime("%Y-%m").to_string(),
        _ => date.to_string(),
    }
}

fn lay_out(
    by: GroupBy,
    filter: &Filter,
    groups: Groups,
    settlements: &[SettlementRow],
    gas: &[Gas],
) -> Summary {
    let mut totals: BTreeMap<Role, Sums> = BTreeMap::new();
    for ((_, role), sums) in &groups {
        sums::add(&mut totals.entry(*role).or_default().counts, &sums.counts);
    }
    for row in settlements {
        let total = totals.entry(row.role).or_default();
        total.settled = total.settled.saturating_add(row.amount.to_i64());
    }
    for paid in gas {
        let total = totals.entry(paid.role).or_default();
        total.gas_wei = total.gas_wei.saturating_add(paid.wei);
    }
    let by_time = by.is_time();
    let has_gas = filter.model.is_none() && filter.peer.is_none();
    let whole = filter.since_ms.is_none() && filter.until_ms.is_none() && filter.model.is_none();
    let by_peer = matches!(by, GroupBy::Seller | GroupBy::Buyer);
    let by_part = matches!(by, GroupBy::Model | GroupBy::Client);
    let mut rows: Vec<SummaryRow> = groups
        .into_iter()
        .map(|((key, role), sums)| {
            let settled = !by_part && filter.model.is_none();
            let mut row = summary_row(key, role, &sums, settled, whole && by_peer);
            row.gas_wei = (by_time && has_gas).then_some(sums.gas_wei);
            row
        })
        .collect();
    if !by_time {
        rows.sort_by_key(|row| std::cmp::Reverse(row.billed_micro_usd));
    }
    let totals = totals
        .into_iter()
        .map(|(role, sums)| {
            let settled = filter.model.is_none();
            let mut row = summary_row("total".to_owned(), role, &sums, settled, whole);
            row.gas_wei = has_gas.then_some(sums.gas_wei);
            row
        })
        .collect();
    Summary { by, rows, totals }
}

fn summary_row(
    key: String,
    role: Role,
    sums: &Sums,
    with_settled: bool,
    with_pending: bool,
) -> SummaryRow {
    let count = |at: usize| sums.counts.get(at).copied().map_or(0, from_i64);
    let reported = count(REPORTED) > 0;
    let tokens = |at: usize| reported.then(|| count(INPUT + at));
    let settled = MicroUsd::from_i64(sums.settled);
    let authorised = MicroUsd(count(AUTHORISED));
    SummaryRow {
        key,
        direction: direction(role),
        requests: count(ACCEPTED) + count(FAILED) + count(WRITTEN_OFF),
        accepted: count(ACCEPTED),
        failed: count(FAILED),
        written_off: count(WRITTEN_OFF),
        disputed: count(DISPUTED),
        input_tokens: tokens(0),
        cached_tokens: tokens(1),
        cache_write_tokens: tokens(2),
        output_tokens: tokens(3),
        reasoning_tokens: tokens(4),
        billed_micro_usd: count(BILLED),
        written_off_micro_usd: count(LOST),
        authorised_micro_usd: authorised.0,
        settled_micro_usd: with_settled.then_some(settled.0),
        pending_micro_usd: with_pending.then(|| authorised.saturating_sub(settled).0),
        gas_wei: None,
    }
}

fn to_i64(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn from_i64(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
