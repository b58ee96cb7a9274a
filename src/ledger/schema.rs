//! Opens ledger.db: connections, schema versions, and the refusal of damaged or newer files.
//!
//! Opening checks only the rows after the last checkpoint, so that a restart stays below a second;
//! `node ledger verify` checks everything.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, SqliteConnection};

use super::error::{Doing as _, LedgerError, SQLITE_CORRUPT, SQLITE_NOTADB, sqlite_code};

/// Marks the file as ours (`pragma application_id`): "SOUK".
const APPLICATION_ID: i64 = 0x534f_554b;
/// Migrations in order; the file's `user_version` says how many it has.
const MIGRATIONS: [&str; 3] = [
    include_str!("../../migrations/0001_ledger.sql"),
    include_str!("../../migrations/0002_chain.sql"),
    include_str!("../../migrations/0003_client_budget.sql"),
];
/// How long a lock of another process (a backup, a report) is waited for before it is fatal. Twice
/// the 30 s of the busy experiment.
const BUSY_TIMEOUT_S: u64 = 60;
/// Prepared statements kept per connection: every batch shape in use.
const STATEMENT_CACHE_MAX: usize = 512;
/// Connections for readers; each is a thread and 2 MiB of cache.
const READERS_MAX: u32 = 4;
/// Pages in the WAL before SQLite copies them back: 16 MiB, fewer of the expensive syncs.
const WAL_PAGES: &str = "4000";
/// The WAL file is cut back to this size after a checkpoint.
const WAL_BYTES_MAX: &str = "67108864";
/// Page cache of the writer: 8 MiB holds the inner pages of the attempt indexes.
const WRITER_CACHE_KIB: &str = "-8192";
/// Rows a reader connection hands over at once; fewer thread switches in long scans.
const ROW_BUFFER: usize = 512;

/// The writer's connection and the lock that keeps a second writer out.
pub(super) struct WriterConnection {
    pub(super) conn: SqliteConnection,
    pub(super) lock: File,
}

/// Opens the ledger for writing; makes the file and its tables if needed.
pub(super) async fn open_writer(path: &Path) -> Result<WriterConnection, LedgerError> {
    let lock = lock(path)?;
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        // The writer itself finds the open row of each attempt; `verify` checks the references.
        .foreign_keys(false)
        .busy_timeout(Duration::from_secs(BUSY_TIMEOUT_S))
        .statement_cache_capacity(STATEMENT_CACHE_MAX)
        .pragma("wal_autocheckpoint", WAL_PAGES)
        .pragma("journal_size_limit", WAL_BYTES_MAX)
        .pragma("cache_size", WRITER_CACHE_KIB)
        .disable_statement_logging();
    let mut conn = options
        .connect()
        .await
        .map_err(|error| explain(path, "open the ledger", &error))?;
    migrate(path, &mut conn).await?;
    Ok(WriterConnection { conn, lock })
}

/// Opens the ledger for reading; works while a node writes it and while none runs.
pub(super) async fn open_readers(path: &Path) -> Result<SqlitePool, LedgerError> {
    if !path.exists() {
        return Err(LedgerError::Missing(path.to_owned()));
    }
    let options = SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        .busy_timeout(Duration::from_secs(BUSY_TIMEOUT_S))
        .row_buffer_size(ROW_BUFFER)
        .disable_statement_logging();
    let pool = SqlitePoolOptions::new()
        .max_connections(READERS_MAX)
        .connect_lazy_with(options);
    let mut conn = pool
        .acquire()
        .await
        .map_err(|error| explain(path, "open the ledger", &error))?;
    let version = version(path, &mut conn).await?;
    if version < known_version() {
        return Err(LedgerError::Corrupt {
            path: path.to_owned(),
            reason: "its tables are of an older version; start the node once".to_owned(),
        });
    }
    Ok(pool)
}

fn lock(path: &Path) -> Result<File, LedgerError> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(lock_path(path))
        .map_err(|error| LedgerError::io("open the ledger's lock file", &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(LedgerError::InUse(path.to_owned())),
        Err(TryLockError::Error(error)) => Err(LedgerError::io("lock the ledger", &error)),
    }
}

fn lock_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    PathBuf::from(name)
}

fn known_version() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}

async fn version(path: &Path, conn: &mut SqliteConnection) -> Result<i64, LedgerError> {
    let read = "read the ledger's version";
    let (version, application, tables): (i64, i64, i64) = sqlx::query_as(
        "select (select user_version from pragma_user_version),
                (select application_id from pragma_application_id),
                (select count(*) from sqlite_schema)",
    )
    .fetch_one(conn)
    .await
    .map_err(|error| explain(path, read, &error))?;
    if tables > 0 && application != APPLICATION_ID {
        return Err(LedgerError::Corrupt {
            path: path.to_owned(),
            reason: "it is some other program's database".to_owned(),
        });
    }
    if version > known_version() {
        return Err(LedgerError::TooNew {
            path: path.to_owned(),
            found: version,
            known: known_version(),
        });
    }
    Ok(version)
}

async fn migrate(path: &Path, conn: &mut SqliteConnection) -> Result<(), LedgerError> {
    let have = version(path, conn).await?;
    let done = usize::try_from(have).unwrap_or(0);
    for (index, migration) in MIGRATIONS.iter().enumerate().skip(done) {
        let what = "bring the ledger's tables up to date";
        let mut tx = conn.begin().await.doing(what)?;
        sqlx::raw_sql(*migration)
            .execute(&mut *tx)
            .await
            .doing(what)?;
        let marks = format!(
            "pragma user_version = {}; pragma application_id = {APPLICATION_ID};",
            index + 1
        );
        sqlx::raw_sql(AssertSqlSafe(marks))
            .execute(&mut *tx)
            .await
            .doing(what)?;
        tx.commit().await.doing(what)?;
    }
    Ok(())
}

/// Says whether a database error means a damaged file.
pub(super) fn explain(path: &Path, what: &'static str, error: &sqlx::Error) -> LedgerError {
    match sqlite_code(error) {
        Some(SQLITE_CORRUPT | SQLITE_NOTADB) => LedgerError::Corrupt {
            path: path.to_owned(),
            reason: error.to_string(),
        },
        _ => LedgerError::database(what, error),
    }
}
