//! What can go wrong in the ledger, by what the caller can do about it.

use std::path::PathBuf;
use std::sync::Arc;

use crate::types::{AttemptId, MicroUsd};

/// Why the ledger refused or failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LedgerError {
    /// The attempt was admitted before: a replay. Nothing was written.
    #[error("attempt {0} is already in the ledger; a request can be opened only once")]
    AttemptExists(AttemptId),
    /// The attempt is booked with another result. Nothing was written.
    #[error("attempt {attempt} is already booked with {billed} USD; it is charged only once")]
    AlreadyBooked {
        /// The attempt.
        attempt: AttemptId,
        /// What it was booked with.
        billed: MicroUsd,
    },
    /// No open row for this attempt. Nothing was written.
    #[error("attempt {0} was never opened; write its open row first")]
    NotOpened(AttemptId),
    /// The row breaks a rule of the schema. Nothing was written.
    #[error("the ledger refuses this row: {0}")]
    Invalid(String),
    /// The writer has stopped (a disk failure, or shutdown); the node must stop.
    #[error("the ledger has stopped writing: {0}; free or repair the disk and start again")]
    Stopped(Arc<str>),
    /// The file is damaged or was changed by somebody else.
    #[error("{path} is damaged: {reason}; restore a copy, or move the file away to start empty")]
    Corrupt {
        /// The database.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file was written by a newer program.
    #[error("{path} has schema version {found}, this program knows {known}; use a newer program")]
    TooNew {
        /// The database.
        path: PathBuf,
        /// The file's schema version.
        found: i64,
        /// The newest version known here.
        known: i64,
    },
    /// Another process writes this ledger.
    #[error("{0} is in use by another process; stop it, or use the running node's commands")]
    InUse(PathBuf),
    /// There is no ledger yet.
    #[error("{0} does not exist; run `node buy` or `node sell` first")]
    Missing(PathBuf),
    /// The database could not be read or written.
    #[error("cannot {what}: {reason}")]
    Database {
        /// What was being done.
        what: &'static str,
        /// SQLite's or the system's own words.
        reason: Arc<str>,
    },
}

impl LedgerError {
    /// True when only these rows were refused and the ledger goes on.
    #[must_use]
    pub const fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::AttemptExists(_)
                | Self::AlreadyBooked { .. }
                | Self::NotOpened(_)
                | Self::Invalid(_)
        )
    }
    /// Wraps a database failure.
    pub(super) fn database(what: &'static str, error: &sqlx::Error) -> Self {
        Self::Database {
            what,
            reason: error.to_string().into(),
        }
    }
    /// Wraps a file system failure.
    pub(super) fn io(what: &'static str, error: &std::io::Error) -> Self {
        Self::Database {
            what,
            reason: error.to_string().into(),
        }
    }
}

/// Adds what was being done to a database error.
pub(super) trait Doing<T> {
    /// Maps the error to [`LedgerError::Database`].
    fn doing(self, what: &'static str) -> Result<T, LedgerError>;
}

impl<T> Doing<T> for Result<T, sqlx::Error> {
    fn doing(self, what: &'static str) -> Result<T, LedgerError> {
        self.map_err(|error| LedgerError::database(what, &error))
    }
}

/// SQLite's primary result code of an error, if it has one.
pub(super) fn sqlite_code(error: &sqlx::Error) -> Option<i64> {
    let code = error.as_database_error()?.code()?;
    code.parse::<i64>().ok().map(|extended| extended & 0xff)
}

/// `SQLITE_CONSTRAINT`: a row broke a rule; the database itself is well.
pub(super) const SQLITE_CONSTRAINT: i64 = 19;
/// `SQLITE_MISMATCH`: a value of the wrong type.
pub(super) const SQLITE_MISMATCH: i64 = 20;
/// `SQLITE_CORRUPT`: a damaged file.
pub(super) const SQLITE_CORRUPT: i64 = 11;
/// `SQLITE_NOTADB`: not a database at all.
pub(super) const SQLITE_NOTADB: i64 = 26;
