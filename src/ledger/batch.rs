//! One batch of rows as one transaction: stamps rows with place and hash, inserts them with few
//! statements, and finds the culprit when a row breaks a rule.
//!
//! The fast way inserts everything at once. Only when SQLite reports a broken constraint is the
//! batch rolled back and written again submission by submission, each under a savepoint, so that
//! one bad row never takes others with it. Any other error is fatal to the writer.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use sqlx::sqlite::SqliteArguments;
use sqlx::{Arguments as _, AssertSqlSafe, SqliteConnection};

use super::error::{Doing as _, LedgerError, SQLITE_CONSTRAINT, SQLITE_MISMATCH, sqlite_code};
use super::table::{ChainHash, Encoded, Table, Value, chain_hash};
use crate::types::{AttemptId, MicroUsd};

/// Channels whose highest voucher is remembered; others are looked up.
const HEADS_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);
/// Offers known to be stored; others are looked up.
const OFFERS_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);
/// Batch shapes whose SQL text is kept; cleared when full.
const SCRIPTS_MAX: usize = 128;
/// Rows of one insert, at most; sizes are powers of two so that few statements serve all batches.
const INSERT_ROWS_MAX: usize = 32;
/// Batches of at most this many inserts go to SQLite's thread as one script (one hop).
const SCRIPT_INSERTS_MAX: usize = 3;

const WHAT: &str = "write the ledger";

/// A row with its place in the chain.
#[derive(Debug)]
struct Stamped<'a> {
    seq: i64,
    hash: ChainHash,
    values: &'a [Value],
    /// The step of a voucher, which only the writer knows.
    step: Option<i64>,
}

/// The end of the chain.
#[derive(Clone, Debug)]
pub(super) struct ChainEnd {
    /// Place of the last row.
    pub(super) seq: i64,
    /// Its hash.
    pub(super) hash: ChainHash,
}

/// Writes batches on the one connection that may write.
pub(super) struct BatchWriter {
    pub(super) conn: SqliteConnection,
    pub(super) end: ChainEnd,
    heads: LruCache<Vec<u8>, i64>,
    offers: LruCache<Vec<u8>, ()>,
    scripts: HashMap<Vec<(Table, usize)>, Arc<str>>,
    inserts: HashMap<(Table, usize), Arc<str>>,
    scratch: Vec<u8>,
}

/// What became of one submission.
pub(super) type Verdict = Result<(), LedgerError>;

/// What becomes of one row before it is written.
enum Plan {
    Write { step: Option<i64> },
    Skip,
}

impl BatchWriter {
    /// Continues the chain at `end`.
    pub(super) fn new(conn: SqliteConnection, end: ChainEnd) -> Self {
        Self {
            conn,
            end,
            heads: LruCache::new(HEADS_MAX),
            offers: LruCache::new(OFFERS_MAX),
            scripts: HashMap::new(),
            inserts: HashMap::new(),
            scratch: Vec::with_capacity(2048),
        }
    }

    /// Writes all submissions durably, each whole or not at all. The verdicts are in order.
    ///
    /// # Errors
    /// Only when the database itself fails; then nothing of the batch may be relied on.
    pub(super) async fn write(
        &mut self,
        submissions: &[Vec<Encoded>],
    ) -> Result<Vec<Verdict>, LedgerError> {
        match self.write_at_once(submissions).await {
            Ok(()) => Ok(submissions.iter().map(|_| Ok(())).collect()),
            Err(error) if is_row_error(&error) => {
                self.roll_back().await?;
                self.write_one_by_one(submissions).await
            }
            Err(error) => {
                let fatal = LedgerError::database(WHAT, &error);
                let _ = self.roll_back().await;
                Err(fatal)
            }
        }
    }

    async fn roll_back(&mut self) -> Result<(), LedgerError> {
        self.heads.clear();
        self.offers.clear();
        match sqlx::query("rollback").execute(&mut self.conn).await {
            Err(error) if sqlite_code(&error) != Some(1) => {
                Err(LedgerError::database(WHAT, &error))
            }
            _ => Ok(()), // SQLITE_ERROR: the failed statement ended the transaction by itself
        }
    }

    async fn write_at_once(&mut self, submissions: &[Vec<Encoded>]) -> Result<(), sqlx::Error> {
        let mut end = self.end.clone();
        let mut groups: BTreeMap<Table, Vec<Stamped<'_>>> = BTreeMap::new();
        for row in submissions.iter().flatten() {
            let Plan::Write { step } = self.plan(row).await? else {
                continue;
            };
            let stamped = self.stamp(&mut end, row, step);
            groups.entry(row.table).or_default().push(stamped);
        }
        if groups.is_empty() {
            return Ok(());
        }
        self.insert_all(groups).await?;
        self.end = end;
        Ok(())
    }

    /// Decides what is already covered, and looks up what only the writer knows.
    async fn plan(&mut self, row: &Encoded) -> Result<Plan, sqlx::Error> {
        match row.table {
            Table::Voucher => self.plan_voucher(row).await,
            Table::Offer => self.plan_offer(row).await,
            _ => Ok(Plan::Write { step: None }),
        }
    }

    /// A voucher at or below the highest one adds nothing: it is covered.
    async fn plan_voucher(&mut self, row: &Encoded) -> Result<Plan, sqlx::Error> {
        let (Some(Value::Text(role)), Some(Value::Blob(channel)), Some(Value::Int(cumulative))) =
            (row.values.get(1), row.values.get(2), row.values.get(3))
        else {
            return Err(sqlx::Error::Protocol("a voucher row is misshapen".into()));
        };
        let mut key = channel.clone();
        key.extend_from_slice(role.as_bytes());
        let before = match self.heads.get(&key) {
            Some(head) => Some(*head),
            None => {
                sqlx::query_scalar(
                    "select cumulative from voucher where channel = ?1 and role = ?2
                     order by seq desc limit 1",
                )
                .bind(channel.as_slice())
                .bind(role.as_str())
                .fetch_optional(&mut self.conn)
                .await?
            }
        };
        // The first voucher of a channel is kept even at 0: it is a signature worth having.
        let covered = before.is_some_and(|before| *cumulative <= before);
        self.heads.put(key, before.unwrap_or(0).max(*cumulative));
        Ok(if covered {
            Plan::Skip
        } else {
            Plan::Write {
                step: Some(cumulative - before.unwrap_or(0)),
            }
        })
    }

    /// An offer is kept once.
    async fn plan_offer(&mut self, row: &Encoded) -> Result<Plan, sqlx::Error> {
        let Some(Value::Blob(hash)) = row.values.get(1) else {
            return Err(sqlx::Error::Protocol("an offer row is misshapen".into()));
        };
        if self.offers.get(hash).is_some() {
            return Ok(Plan::Skip);
        }
        let known: Option<i64> = sqlx::query_scalar("select seq from offer where offer_hash = ?1")
            .bind(hash.as_slice())
            .fetch_optional(&mut self.conn)
            .await?;
        self.offers.put(hash.clone(), ());
        Ok(match known {
            Some(_) => Plan::Skip,
            None => Plan::Write { step: None },
        })
    }

    fn stamp<'a>(
        &mut self,
        end: &mut ChainEnd,
        row: &'a Encoded,
        step: Option<i64>,
    ) -> Stamped<'a> {
        let seq = end.seq + 1;
        let hash = match step {
            None => chain_hash(&end.hash, row.table, seq, &row.values, &mut self.scratch),
            Some(step) => {
                let mut values = row.values.clone();
                if let Some(slot) = values.get_mut(STEP_COLUMN) {
                    *slot = Value::Int(step);
                }
                chain_hash(&end.hash, row.table, seq, &values, &mut self.scratch)
            }
        };
        *end = ChainEnd { seq, hash };
        Stamped {
            seq,
            hash,
            values: &row.values,
            step,
        }
    }

    async fn insert_all(
        &mut self,
        groups: BTreeMap<Table, Vec<Stamped<'_>>>,
    ) -> Result<(), sqlx::Error> {
        let mut shape = Vec::new();
        for (table, rows) in &groups {
            let mut left = rows.len();
            while left > 0 {
                let size = largest_power_of_two(left.min(INSERT_ROWS_MAX));
                shape.push((*table, size));
                left -= size;
            }
        }
        let mut rows = groups.into_values().flatten();
        if shape.len() <= SCRIPT_INSERTS_MAX {
            let mut arguments = SqliteArguments::default();
            for stamped in rows {
                bind(&mut arguments, &stamped)?;
            }
            let script = self.script(shape);
            return run(&mut self.conn, script, arguments).await;
        }
        run(
            &mut self.conn,
            "begin immediate".into(),
            SqliteArguments::default(),
        )
        .await?;
        for (table, size) in shape {
            let mut arguments = SqliteArguments::default();
            for stamped in rows.by_ref().take(size) {
                bind(&mut arguments, &stamped)?;
            }
            let insert = self.insert(table, size);
            run(&mut self.conn, insert, arguments).await?;
        }
        run(&mut self.conn, "commit".into(), SqliteArguments::default()).await
    }

    fn insert(&mut self, table: Table, size: usize) -> Arc<str> {
        self.inserts
            .entry((table, size))
            .or_insert_with(|| table.insert(size).into())
            .clone()
    }

    fn script(&mut self, shape: Vec<(Table, usize)>) -> Arc<str> {
        if let Some(script) = self.scripts.get(&shape) {
            return script.clone();
        }
        if self.scripts.len() >= SCRIPTS_MAX {
            self.scripts.clear();
        }
        let mut text = "begin immediate".to_owned();
        for (table, size) in &shape {
            text.push_str("; ");
            text.push_str(&table.insert(*size));
        }
        text.push_str("; commit");
        let script: Arc<str> = text.into();
        self.scripts.insert(shape, script.clone());
        script
    }

    async fn write_one_by_one(
        &mut self,
        submissions: &[Vec<Encoded>],
    ) -> Result<Vec<Verdict>, LedgerError> {
        self.plain("begin immediate").await?;
        let mut end = self.end.clone();
        let mut verdicts = Vec::with_capacity(submissions.len());
        for rows in submissions {
            self.plain("savepoint one").await?;
            let mut here = end.clone();
            match self.write_submission(&mut here, rows).await? {
                Ok(()) => end = here,
                Err(refusal) => {
                    self.plain("rollback to one").await?;
                    self.heads.clear();
                    self.offers.clear();
                    verdicts.push(Err(refusal));
                    self.plain("release one").await?;
                    continue;
                }
            }
            self.plain("release one").await?;
            verdicts.push(Ok(()));
        }
        self.plain("commit").await?;
        self.end = end;
        Ok(verdicts)
    }

    async fn write_submission(
        &mut self,
        end: &mut ChainEnd,
        rows: &[Encoded],
    ) -> Result<Verdict, LedgerError> {
        for row in rows {
            let Plan::Write { step } = self.plan(row).await.doing(WHAT)? else {
                continue;
            };
            let before = end.clone();
            let stamped = self.stamp(end, row, step);
            let mut arguments = SqliteArguments::default();
            bind(&mut arguments, &stamped).doing(WHAT)?;
            let insert = self.insert(row.table, 1);
            match run(&mut self.conn, insert, arguments).await {
                Ok(()) => {}
                Err(error) if is_row_error(&error) => {
                    *end = before;
                    if let Err(refusal) = self.judge(row, &error).await? {
                        return Ok(Err(refusal));
                    }
                }
                Err(error) => return Err(LedgerError::database(WHAT, &error)),
            }
        }
        Ok(Ok(()))
    }

    /// Says why a row broke a rule; `Ok` when the very same thing is already written.
    async fn judge(&mut self, row: &Encoded, error: &sqlx::Error) -> Result<Verdict, LedgerError> {
        let invalid = LedgerError::Invalid(error.to_string());
        let Some(attempt) = attempt_of(row) else {
            return Ok(Err(invalid));
        };
        let id = attempt.as_bytes().as_slice();
        let opened: Option<i64> =
            sqlx::query_scalar("select seq from attempt_open where attempt_id = ?1")
                .bind(id)
                .fetch_optional(&mut self.conn)
                .await
                .doing(WHAT)?;
        match (row.table, opened) {
            (Table::Open, Some(_)) => return Ok(Err(LedgerError::AttemptExists(attempt))),
            (Table::Delivered | Table::Final, None) => {
                return Ok(Err(LedgerError::NotOpened(attempt)));
            }
            _ => {}
        }
        if row.table == Table::Delivered {
            let there: Option<(i64, Option<Vec<u8>>)> =
                sqlx::query_as("select cost, receipt from attempt_delivered where attempt_id = ?1")
                    .bind(id)
                    .fetch_optional(&mut self.conn)
                    .await
                    .doing(WHAT)?;
            return Ok(match there {
                Some((cost, receipt)) if same_delivery(row, cost, receipt.as_deref()) => Ok(()),
                Some((cost, _)) => Err(LedgerError::AlreadyBooked {
                    attempt,
                    billed: MicroUsd::from_i64(cost),
                }),
                None => Err(invalid),
            });
        }
        let there: Option<(String, i64)> =
            sqlx::query_as("select outcome, billed from attempt_final where attempt_id = ?1")
                .bind(id)
                .fetch_optional(&mut self.conn)
                .await
                .doing(WHAT)?;
        Ok(match there {
            Some((outcome, billed)) if same_booking(row, &outcome, billed) => Ok(()),
            Some((_, billed)) => Err(LedgerError::AlreadyBooked {
                attempt,
                billed: MicroUsd::from_i64(billed),
            }),
            None => Err(invalid),
        })
    }

    async fn plain(&mut self, sql: &'static str) -> Result<(), LedgerError> {
        sqlx::query(sql)
            .execute(&mut self.conn)
            .await
            .map(|_| ())
            .doing(WHAT)
    }
}

/// Column of `step` in a voucher row.
const STEP_COLUMN: usize = 4;

fn attempt_of(row: &Encoded) -> Option<AttemptId> {
    match (row.table, row.values.get(1)) {
        (Table::Open | Table::Delivered | Table::Final, Some(Value::Blob(id))) => {
            AttemptId::from_slice(id)
        }
        _ => None,
    }
}

fn same_booking(row: &Encoded, outcome: &str, billed: i64) -> bool {
    row.values.get(2) == Some(&Value::Text(outcome.to_owned()))
        && row.values.get(4) == Some(&Value::Int(billed))
}

fn same_delivery(row: &Encoded, cost: i64, receipt: Option<&[u8]>) -> bool {
    let same_receipt = match row.values.get(11) {
        Some(Value::Blob(bytes)) => receipt == Some(bytes.as_slice()),
        _ => receipt.is_none(),
    };
    same_receipt && row.values.get(10) == Some(&Value::Int(cost))
}

/// A row broke a rule; a clash of `seq` is no such case: somebody else wrote to the file.
fn is_row_error(error: &sqlx::Error) -> bool {
    matches!(
        sqlite_code(error),
        Some(SQLITE_CONSTRAINT | SQLITE_MISMATCH)
    ) && !error.to_string().contains(".seq")
}

const fn largest_power_of_two(number: usize) -> usize {
    1 << number.ilog2()
}

async fn run(
    conn: &mut SqliteConnection,
    sql: Arc<str>,
    arguments: SqliteArguments,
) -> Result<(), sqlx::Error> {
    sqlx::query_with(AssertSqlSafe(sql), arguments)
        .execute(conn)
        .await
        .map(|_| ())
}

fn bind(arguments: &mut SqliteArguments, row: &Stamped<'_>) -> Result<(), sqlx::Error> {
    let mut add = || -> Result<(), sqlx::error::BoxDynError> {
        arguments.add(row.seq)?;
        arguments.add(row.hash.as_slice())?;
        for (index, value) in row.values.iter().enumerate() {
            match (value, row.step) {
                (_, Some(step)) if index == STEP_COLUMN => arguments.add(step)?,
                (Value::Null, _) => arguments.add(None::<i64>)?,
                (Value::Int(number), _) => arguments.add(*number)?,
                (Value::Text(text), _) => arguments.add(text.as_str())?,
                (Value::Blob(bytes), _) => arguments.add(bytes.as_slice())?,
            }
        }
        Ok(())
    };
    add().map_err(sqlx::Error::Encode)
}
