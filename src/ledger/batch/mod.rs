//! One batch of rows as one transaction: stamps rows with place and hash, inserts them with few
//! statements, and finds the culprit when a row breaks a rule.
//!
//! The fast way inserts everything at once. Only when SQLite reports a broken constraint is the
//! batch rolled back and written again submission by submission, each under a savepoint, so that
//! one bad row never takes others with it. Any other error is fatal to the writer.

mod plan;

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use sqlx::sqlite::SqliteArguments;
use sqlx::{Arguments as _, AssertSqlSafe, SqliteConnection};

use self::plan::{Plan, attempt_of};
use super::error::{Doing as _, LedgerError, SQLITE_CONSTRAINT, SQLITE_MISMATCH, sqlite_code};
use super::table::{ChainHash, Encoded, Table, Value, chain_hash};
use crate::types::AttemptId;

/// Channels whose highest voucher is remembered; others are looked up.
const HEADS_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);
/// Offers known to be stored; others are looked up.
const OFFERS_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);
/// Attempts whose open row is remembered; more than are ever in flight. Others are looked up.
const ATTEMPTS_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(16_383);
/// Batch shapes whose SQL text is kept; cleared when full.
const SCRIPTS_MAX: usize = 128;
/// Rows of one insert: any number up to 8, then few, so that few statements serve all batches.
const INSERT_ROWS: [usize; 10] = [32, 16, 8, 7, 6, 5, 4, 3, 2, 1];
/// Batches of at most this many rows go to SQLite's thread as one script: one hop, not one per
/// insert. Larger batches have too many shapes to keep a script for each.
const SCRIPT_ROWS_MAX: usize = 8;

const WHAT: &str = "write the ledger";

/// A row with its place in the chain.
#[derive(Debug)]
struct Stamped<'a> {
    seq: i64,
    hash: ChainHash,
    values: &'a [Value],
    /// A column that only the writer knows.
    patch: Option<Patch>,
}

/// A column that only the writer knows: the step of a voucher, the open row of an attempt.
#[derive(Clone, Copy, Debug)]
struct Patch {
    column: usize,
    value: i64,
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
    attempts: LruCache<AttemptId, i64>,
    scripts: HashMap<Vec<(Table, usize)>, Arc<str>>,
    inserts: HashMap<(Table, usize, Place), Arc<str>>,
    scratch: Vec<u8>,
}

/// Where an insert stands in its transaction: the first opens it, the last commits it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Place {
    first: bool,
    last: bool,
}

/// What became of one submission.
pub(super) type Verdict = Result<(), LedgerError>;

impl BatchWriter {
    /// Continues the chain at `end`.
    pub(super) fn new(conn: SqliteConnection, end: ChainEnd) -> Self {
        Self {
            conn,
            end,
            heads: LruCache::new(HEADS_MAX),
            offers: LruCache::new(OFFERS_MAX),
            attempts: LruCache::new(ATTEMPTS_MAX),
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
            Ok(true) => Ok(submissions.iter().map(|_| Ok(())).collect()),
            Ok(false) => {
                self.forget();
                self.write_one_by_one(submissions).await
            }
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

    /// Drops what was remembered from rows that were not written after all.
    fn forget(&mut self) {
        self.heads.clear();
        self.offers.clear();
        self.attempts.clear();
    }

    async fn roll_back(&mut self) -> Result<(), LedgerError> {
        self.forget();
        match sqlx::query("rollback").execute(&mut self.conn).await {
            Err(error) if sqlite_code(&error) != Some(1) => {
                Err(LedgerError::database(WHAT, &error))
            }
            _ => Ok(()), // SQLITE_ERROR: the failed statement ended the transaction by itself
        }
    }

    /// `false` when a row is refused before anything is written.
    async fn write_at_once(&mut self, submissions: &[Vec<Encoded>]) -> Result<bool, sqlx::Error> {
        let mut end = self.end.clone();
        let mut groups: BTreeMap<Table, Vec<Stamped<'_>>> = BTreeMap::new();
        for row in submissions.iter().flatten() {
            let patch = match self.plan(row).await? {
                Plan::Write(patch) => patch,
                Plan::Skip => continue,
                Plan::Refuse(_) => return Ok(false),
            };
            let stamped = self.stamp(&mut end, row, patch);
            groups.entry(row.table).or_default().push(stamped);
        }
        if groups.is_empty() {
            return Ok(true);
        }
        self.insert_all(groups).await?;
        self.end = end;
        Ok(true)
    }

    fn stamp<'a>(
        &mut self,
        end: &mut ChainEnd,
        row: &'a Encoded,
        patch: Option<Patch>,
    ) -> Stamped<'a> {
        let seq = end.seq + 1;
        if row.table == Table::Open
            && let Some(attempt) = attempt_of(row)
        {
            // A second opening fails below, and then everything remembered is dropped.
            self.attempts.put(attempt, seq);
        }
        let patch_at = patch.map(|patch| (patch.column, patch.value));
        let scratch = &mut self.scratch;
        let hash = chain_hash(&end.hash, row.table, seq, &row.values, patch_at, scratch);
        *end = ChainEnd { seq, hash };
        Stamped {
            seq,
            hash,
            values: &row.values,
            patch,
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
                let size = insert_size(left);
                shape.push((*table, size));
                left -= size;
            }
        }
        let count: usize = groups.values().map(Vec::len).sum();
        let mut rows = groups.into_values().flatten();
        if count <= SCRIPT_ROWS_MAX {
            let mut arguments = SqliteArguments::default();
            for stamped in rows {
                bind(&mut arguments, &stamped)?;
            }
            let script = self.script(shape);
            return run(&mut self.conn, script, arguments).await;
        }
        let last = shape.len().saturating_sub(1);
        for (index, (table, size)) in shape.into_iter().enumerate() {
            let mut arguments = SqliteArguments::default();
            for stamped in rows.by_ref().take(size) {
                bind(&mut arguments, &stamped)?;
            }
            let place = Place {
                first: index == 0,
                last: index == last,
            };
            let insert = self.insert(table, size, place);
            run(&mut self.conn, insert, arguments).await?;
        }
        Ok(())
    }

    fn insert(&mut self, table: Table, size: usize, place: Place) -> Arc<str> {
        let text = || {
            let begin = if place.first { "begin immediate; " } else { "" };
            let commit = if place.last { "; commit" } else { "" };
            format!("{begin}{}{commit}", table.insert(size)).into()
        };
        self.inserts
            .entry((table, size, place))
            .or_insert_with(text)
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
                    self.forget();
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
            let patch = match self.plan(row).await.doing(WHAT)? {
                Plan::Write(patch) => patch,
                Plan::Skip => continue,
                Plan::Refuse(refusal) => return Ok(Err(refusal)),
            };
            let before = end.clone();
            let stamped = self.stamp(end, row, patch);
            let mut arguments = SqliteArguments::default();
            bind(&mut arguments, &stamped).doing(WHAT)?;
            let insert = row.table.insert_one().into();
            match run(&mut self.conn, insert, arguments).await {
                Ok(()) => {}
                Err(error) if is_row_error(&error) => {
                    *end = before;
                    self.attempts.clear();
                    if let Err(refusal) = self.judge(row, &error).await? {
                        return Ok(Err(refusal));
                    }
                }
                Err(error) => return Err(LedgerError::database(WHAT, &error)),
            }
        }
        Ok(Ok(()))
    }

    async fn plain(&mut self, sql: &'static str) -> Result<(), LedgerError> {
        sqlx::query(sql)
            .execute(&mut self.conn)
            .await
            .map(|_| ())
            .doing(WHAT)
    }
}

/// A row broke a rule; a clash of `seq` is no such case: somebody else wrote to the file.
fn is_row_error(error: &sqlx::Error) -> bool {
    matches!(
        sqlite_code(error),
        Some(SQLITE_CONSTRAINT | SQLITE_MISMATCH)
    ) && !error.to_string().contains(".seq")
}

/// The largest size of an insert that `rows` (at least 1) fill.
fn insert_size(rows: usize) -> usize {
    let fits = INSERT_ROWS.iter().find(|size| **size <= rows);
    fits.copied().unwrap_or(1)
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
            match (value, row.patch) {
                (_, Some(patch)) if index == patch.column => arguments.add(patch.value)?,
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
