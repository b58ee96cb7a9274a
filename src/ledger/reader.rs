//! Reading the ledger: what a restarted node needs and what a running one asks. Sees committed rows
//! only; works beside a running writer and without one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sqlx::sqlite::SqlitePool;
use sqlx::{AssertSqlSafe, SqliteConnection};

use super::decode::{
    BadColumn, to_budget, to_channel, to_delivered, to_final, to_offer, to_open, to_settlement,
    to_voucher,
};
use super::error::{Doing as _, LedgerError};
use super::rows::{
    AttemptState, BudgetRow, ChannelRow, ChannelState, OfferRow, OpenRow, Role, SettlementRow,
    VoucherRow,
};
use super::schema;
use super::sums::{self, Balance, CheckpointMark, Stretch, bucket_of};
use super::table::{Stored, Table, stored};
use crate::types::{AttemptId, ChannelId, MicroUsd, ModelId, PeerId, RequestId, UnixMs};

/// Attempts among which the latest admission is looked for: far more than are in flight while a
/// clock is set back, and read in a few ms.
const NEWEST_ADMISSIONS: i64 = 4096;

pub(super) const WHAT: &str = "read the ledger";

/// The reading half of the ledger.
#[derive(Clone)]
pub struct Reader {
    pub(super) pool: SqlitePool,
    pub(super) path: PathBuf,
}

impl Reader {
    /// Opens an existing ledger for reading.
    ///
    /// # Errors
    /// When there is none, or it is damaged or newer than this program.
    pub async fn open(path: &Path) -> Result<Self, LedgerError> {
        Ok(Self {
            pool: schema::open_readers(path).await?,
            path: path.to_owned(),
        })
    }

    /// Every channel of this side as it stands, with its unfinished attempts, oldest channel first.
    ///
    /// # Errors
    /// When the database cannot be read or a row does not hold what it should.
    pub async fn load(&self, role: Role) -> Result<Vec<ChannelState>, LedgerError> {
        let mut tx = self.pool.begin().await.doing(WHAT)?;
        let mark = sums::last_checkpoint(&mut tx).await.doing(WHAT)?;
        let newer = Stretch {
            after: mark.covers,
            upto: i64::MAX,
        };
        let mut news = sums::balances(&mut tx, newer).await.doing(WHAT)?;
        let mut open = self.open_attempts(&mut tx, role, &mark).await?;
        let mut states = Vec::new();
        for row in self.channel_rows(&mut tx, role).await? {
            let before = sums::balance_before(&mut tx, role, &row.channel)
                .await
                .doing(WHAT)?;
            let more = news.remove(&(role, row.channel)).unwrap_or_default();
            let voucher = self.highest_voucher(&mut tx, role, &row.channel).await?;
            let unfinished = open.remove(&row.channel).unwrap_or_default();
            let since = settled_since_row(&mut tx, role, &row.channel).await?;
            let limit = row.deposit.saturating_add(since);
            states.push(state(row, limit, before.plus(more), voucher, unfinished));
        }
        Ok(states)
    }

    /// Attempts without a final, on any channel or none, oldest first.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub async fn unfinished(&self, role: Role) -> Result<Vec<AttemptState>, LedgerError> {
        let mut tx = self.pool.begin().await.doing(WHAT)?;
        let mark = sums::last_checkpoint(&mut tx).await.doing(WHAT)?;
        let open = self.open_attempts(&mut tx, role, &mark).await?;
        let mut all: Vec<AttemptState> = open.into_values().flatten().collect();
        all.sort_by_key(|attempt| (attempt.open.at_ms, attempt.open.attempt_id));
        Ok(all)
    }

    /// Everything about one attempt.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub async fn attempt(&self, id: &AttemptId) -> Result<Option<AttemptState>, LedgerError> {
        let mut tx = self.pool.begin().await.doing(WHAT)?;
        let rest = "where attempt_id = ?1";
        let open = rows(&mut tx, Table::Open, rest, id.as_bytes().as_slice()).await?;
        match open.first() {
            Some(row) => {
                let open = self.typed(to_open(&row.values))?;
                self.complete(&mut tx, row.seq, open).await.map(Some)
            }
            None => Ok(None),
        }
    }

    /// True when the attempt was admitted.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn has_attempt(&self, id: &AttemptId) -> Result<bool, LedgerError> {
        let found: Option<i64> =
            sqlx::query_scalar("select seq from attempt_open where attempt_id = ?1")
                .bind(id.as_bytes().as_slice())
                .fetch_optional(&self.pool)
                .await
                .doing(WHAT)?;
        Ok(found.is_some())
    }

    /// The latest admission among the ledger's newest attempts, bought or sold; none when it has
    /// none. Not only of the newest row: a clock may have been set back between two.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn newest_admission(&self) -> Result<Option<UnixMs>, LedgerError> {
        let newest: Option<i64> = sqlx::query_scalar(
            "select max(at_ms) from (select at_ms from attempt_open order by seq desc limit ?1)",
        )
        .bind(NEWEST_ADMISSIONS)
        .fetch_one(&self.pool)
        .await
        .doing(WHAT)?;
        Ok(newest.and_then(|at_ms| UnixMs::try_from(at_ms).ok()))
    }

    /// All attempts of a request, first attempt first.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub async fn request(&self, id: &RequestId) -> Result<Vec<AttemptState>, LedgerError> {
        let mut tx = self.pool.begin().await.doing(WHAT)?;
        let mut attempts = Vec::new();
        let rest = "where request_id = ?1 order by seq";
        for row in rows(&mut tx, Table::Open, rest, id.as_bytes().as_slice()).await? {
            let open = self.typed(to_open(&row.values))?;
            attempts.push(self.complete(&mut tx, row.seq, open).await?);
        }
        Ok(attempts)
    }

    /// Vouchers of a channel (of one attempt, if given), newest first, at most `limit`.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub async fn vouchers(
        &self,
        channel: &ChannelId,
        attempt: Option<&AttemptId>,
        limit: u32,
    ) -> Result<Vec<VoucherRow>, LedgerError> {
        let sql = Table::Voucher.select(
            "where channel = ?1 and (?2 is null or attempt = ?2) order by seq desc limit ?3",
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(channel.as_bytes().as_slice())
            .bind(attempt.map(|id| id.as_bytes().as_slice()))
            .bind(limit)
            .fetch_all(&self.pool)
            .await
            .doing(WHAT)?;
        rows.iter()
            .map(|row| {
                let row = stored(Table::Voucher, row).doing(WHAT)?;
                Ok(self.typed(to_voucher(&row.values))?.0)
            })
            .collect()
    }

    /// The newest row of every channel of this side, oldest channel first.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub async fn channels(&self, role: Role) -> Result<Vec<ChannelRow>, LedgerError> {
        let mut conn = self.pool.acquire().await.doing(WHAT)?;
        self.channel_rows(&mut conn, role).await
    }

    /// Offers that were used and may still be used at `now_ms`.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub async fn offers_since(&self, now_ms: UnixMs) -> Result<Vec<OfferRow>, LedgerError> {
        let mut conn = self.pool.acquire().await.doing(WHAT)?;
        let least = i64::try_from(now_ms).unwrap_or(i64::MAX);
        let rows = rows(&mut conn, Table::Offer, "where not_after >= ?1", least).await?;
        rows.iter()
            .map(|row| self.typed(to_offer(&row.values)))
            .collect()
    }

    /// All settlements of this side, oldest first.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub async fn settlements(&self, role: Role) -> Result<Vec<SettlementRow>, LedgerError> {
        let mut conn = self.pool.acquire().await.doing(WHAT)?;
        let rows = rows(
            &mut conn,
            Table::Settlement,
            "where seq > ?1 order by seq",
            0,
        )
        .await?;
        let all: Result<Vec<_>, _> = rows
            .iter()
            .map(|row| self.typed(to_settlement(&row.values)))
            .collect();
        Ok(all?.into_iter().filter(|row| row.role == role).collect())
    }

    /// The spending limits in force: the newest row for each client and model, and for all.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub async fn budgets(&self) -> Result<Vec<BudgetRow>, LedgerError> {
        let mut conn = self.pool.acquire().await.doing(WHAT)?;
        let mut newest: BTreeMap<(Option<String>, Option<ModelId>), BudgetRow> = BTreeMap::new();
        for table in [Table::Budget, Table::ClientBudget] {
            let rows = rows(&mut conn, table, "where seq > ?1 order by seq", 0).await?;
            for row in &rows {
                let budget = self.typed(to_budget(table, &row.values))?;
                let about = (budget.client.clone(), budget.model.clone());
                newest.insert(about, budget);
            }
        }
        Ok(newest.into_values().collect())
    }

    /// Accepted cost booked since `since_ms`, which is rounded down to a quarter hour (local
    /// midnights are whole quarter hours).
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn spent_since(&self, since_ms: UnixMs, role: Role) -> Result<MicroUsd, LedgerError> {
        let all = self.spent_by_purpose(since_ms, role).await?;
        Ok(all.into_iter().map(|(_, _, billed)| billed).sum())
    }

    /// As [`Self::spent_since`], for each model and client.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn spent_by_purpose(
        &self,
        since_ms: UnixMs,
        role: Role,
    ) -> Result<Vec<(ModelId, String, MicroUsd)>, LedgerError> {
        let since = i64::try_from(bucket_of(since_ms)).unwrap_or(i64::MAX);
        let sums: Vec<(String, String, i64)> = sqlx::query_as(
            "select model, client, sum(billed) from (
                 select model, client, billed from rollup
                 where bucket_ms >= ?1 and role = ?2
                 union all
                 select o.model, o.client, f.billed
                 from attempt_final f join attempt_open o on o.seq = f.open_seq
                 where f.seq > coalesce((select max(covers) from checkpoint), 0)
                   and f.at_ms >= ?1 and f.outcome = 'accepted' and o.role = ?2)
             group by 1, 2 having sum(billed) > 0 order by 1, 2",
        )
        .bind(since)
        .bind(role.as_str())
        .fetch_all(&self.pool)
        .await
        .doing(WHAT)?;
        let typed = |(model, client, billed): (String, String, i64)| {
            (ModelId::new(&model), client, MicroUsd::from_i64(billed))
        };
        Ok(sums.into_iter().map(typed).collect())
    }

    /// Tokens served and their accepted cost since `since_ms`, for each buyer.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn served_since(
        &self,
        since_ms: UnixMs,
    ) -> Result<Vec<(PeerId, u64, MicroUsd)>, LedgerError> {
        let since = i64::try_from(bucket_of(since_ms)).unwrap_or(i64::MAX);
        let sums: Vec<(Vec<u8>, i64, i64)> = sqlx::query_as(
            "select peer, sum(tokens), sum(billed) from (
                 select peer, billed,
                        input + cache_read + cache_write + output as tokens
                 from rollup where bucket_ms >= ?1 and role = 'sell'
                 union all
                 select o.peer, f.billed, coalesce(f.usage_input, 0)
                        + coalesce(f.usage_cache_read, 0) + coalesce(f.usage_cache_write, 0)
                        + coalesce(f.usage_output, 0)
                 from attempt_final f join attempt_open o on o.seq = f.open_seq
                 where f.seq > coalesce((select max(covers) from checkpoint), 0)
                   and f.at_ms >= ?1 and f.outcome = 'accepted' and o.role = 'sell')
             group by 1",
        )
        .bind(since)
        .fetch_all(&self.pool)
        .await
        .doing(WHAT)?;
        let typed = |(peer, tokens, billed): (Vec<u8>, i64, i64)| {
            let peer = PeerId::from_bytes(&peer).ok()?;
            Some((
                peer,
                u64::try_from(tokens).unwrap_or(0),
                MicroUsd::from_i64(billed),
            ))
        };
        Ok(sums.into_iter().filter_map(typed).collect())
    }

    async fn channel_rows(
        &self,
        conn: &mut SqliteConnection,
        role: Role,
    ) -> Result<Vec<ChannelRow>, LedgerError> {
        let found = rows(
            conn,
            Table::Channel,
            "where role = ?1 order by seq",
            role.as_str(),
        )
        .await?;
        let mut order: Vec<ChannelRow> = Vec::new();
        let mut place: BTreeMap<ChannelId, usize> = BTreeMap::new();
        for row in &found {
            let row = self.typed(to_channel(&row.values))?;
            let slot = place.get(&row.channel).and_then(|at| order.get_mut(*at));
            match slot {
                Some(slot) => *slot = row,
                None => {
                    place.insert(row.channel, order.len());
                    order.push(row);
                }
            }
        }
        Ok(order)
    }

    async fn highest_voucher(
        &self,
        conn: &mut SqliteConnection,
        role: Role,
        channel: &ChannelId,
    ) -> Result<Option<VoucherRow>, LedgerError> {
        let sql =
            Table::Voucher.select("where channel = ?1 and role = ?2 order by seq desc limit 1");
        let row = sqlx::query(AssertSqlSafe(sql))
            .bind(channel.as_bytes().as_slice())
            .bind(role.as_str())
            .fetch_optional(conn)
            .await
            .doing(WHAT)?;
        let Some(row) = row else { return Ok(None) };
        let row = stored(Table::Voucher, &row).doing(WHAT)?;
        Ok(Some(self.typed(to_voucher(&row.values))?.0))
    }

    async fn open_attempts(
        &self,
        conn: &mut SqliteConnection,
        role: Role,
        mark: &CheckpointMark,
    ) -> Result<BTreeMap<ChannelId, Vec<AttemptState>>, LedgerError> {
        let mut all: BTreeMap<ChannelId, Vec<AttemptState>> = BTreeMap::new();
        for seq in sums::unfinished(conn, mark).await.doing(WHAT)? {
            for row in rows(conn, Table::Open, "where seq = ?1", seq).await? {
                let open = self.typed(to_open(&row.values))?;
                if open.role == role {
                    let attempt = self.complete(conn, seq, open).await?;
                    all.entry(attempt.open.channel).or_default().push(attempt);
                }
            }
        }
        Ok(all)
    }

    /// Joins an open row with what came after it.
    pub(super) async fn complete(
        &self,
        conn: &mut SqliteConnection,
        seq: i64,
        open: OpenRow,
    ) -> Result<AttemptState, LedgerError> {
        let id = open.attempt_id;
        let rest = "where open_seq = ?1";
        let delivered = rows(conn, Table::Delivered, rest, seq).await?;
        let delivered = delivered.first().map(|row| to_delivered(id, &row.values));
        let finals = rows(conn, Table::Final, rest, seq).await?;
        let final_row = finals.first().map(|row| to_final(id, &row.values));
        Ok(AttemptState {
            open,
            delivered: self.typed(delivered.transpose())?,
            final_row: self.typed(final_row.transpose())?,
        })
    }

    pub(super) fn typed<T>(&self, result: Result<T, BadColumn>) -> Result<T, LedgerError> {
        result.map_err(|bad| LedgerError::Corrupt {
            path: self.path.clone(),
            reason: bad.to_string(),
        })
    }
}

fn state(
    row: ChannelRow,
    limit: MicroUsd,
    balance: Balance,
    voucher: Option<VoucherRow>,
    unfinished: Vec<AttemptState>,
) -> ChannelState {
    ChannelState {
        row,
        voucher,
        accepted_sum: MicroUsd::from_i64(balance.accepted),
        written_off_sum: MicroUsd::from_i64(balance.lost),
        settlements_sum: MicroUsd::from_i64(balance.settled),
        limit,
        unfinished,
    }
}

/// Σ settlements that are newer than the channel's newest row.
async fn settled_since_row(
    conn: &mut SqliteConnection,
    role: Role,
    channel: &ChannelId,
) -> Result<MicroUsd, LedgerError> {
    let sum: i64 = sqlx::query_scalar(
        "select coalesce(sum(amount), 0) from settlement where role = ?1 and channel = ?2
         and seq > (select max(seq) from channel where role = ?1 and channel = ?2)",
    )
    .bind(role.as_str())
    .bind(channel.as_bytes().as_slice())
    .fetch_one(conn)
    .await
    .doing(WHAT)?;
    Ok(MicroUsd::from_i64(sum))
}

/// A value a query is asked with.
pub(super) enum Key<'a> {
    Int(i64),
    Text(&'a str),
    Blob(&'a [u8]),
}

impl From<i64> for Key<'_> {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}
impl<'a> From<&'a str> for Key<'a> {
    fn from(value: &'a str) -> Self {
        Self::Text(value)
    }
}
impl<'a> From<&'a [u8]> for Key<'a> {
    fn from(value: &'a [u8]) -> Self {
        Self::Blob(value)
    }
}

pub(super) async fn rows<'k>(
    conn: &mut SqliteConnection,
    table: Table,
    rest: &'static str,
    key: impl Into<Key<'k>>,
) -> Result<Vec<Stored>, LedgerError> {
    let query = sqlx::query(AssertSqlSafe(table.select(rest)));
    let query = match key.into() {
        Key::Int(value) => query.bind(value),
        Key::Text(value) => query.bind(value),
        Key::Blob(value) => query.bind(value),
    };
    let found = query.fetch_all(conn).await.doing(WHAT)?;
    found
        .iter()
        .map(|row| stored(table, row).doing(WHAT))
        .collect()
}
