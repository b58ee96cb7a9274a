//! Reading the hash chain in order, over all tables, and checking its end at start.

use std::path::Path;

use sqlx::{AssertSqlSafe, Row as _, SqliteConnection};

use super::batch::ChainEnd;
use super::error::{Doing as _, LedgerError};
use super::schema::explain;
use super::sums::CheckpointMark;
use super::table::{ChainHash, Stored, Table, chain_hash, genesis, stored};

const WHAT: &str = "read the ledger's chain";
/// Rows read at once while checking; bounds memory.
pub(super) const PAGE_ROWS: i64 = 4096;

/// All rows with `after < seq <= upto`, in order.
pub(super) async fn page(
    conn: &mut SqliteConnection,
    after: i64,
    upto: i64,
) -> Result<Vec<Stored>, sqlx::Error> {
    let mut all = Vec::new();
    for table in Table::ALL {
        let sql = table.select("where seq > ?1 and seq <= ?2 order by seq");
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(after)
            .bind(upto)
            .fetch_all(&mut *conn)
            .await?;
        for row in &rows {
            all.push(stored(table, row)?);
        }
    }
    all.sort_by_key(|row| row.seq);
    Ok(all)
}

/// Place and claimed hash of the last row.
pub(super) async fn last(conn: &mut SqliteConnection) -> Result<(i64, Vec<u8>), sqlx::Error> {
    let mut last = (0, genesis().to_vec());
    for table in Table::ALL {
        let sql = format!(
            "select seq, hash from {} order by seq desc limit 1",
            table.name()
        );
        let row = sqlx::query(AssertSqlSafe(sql))
            .fetch_optional(&mut *conn)
            .await?;
        if let Some(row) = row {
            let seq: i64 = row.try_get_unchecked(0)?;
            if seq > last.0 {
                last = (seq, row.try_get_unchecked(1)?);
            }
        }
    }
    Ok(last)
}

async fn hash_at(conn: &mut SqliteConnection, seq: i64) -> Result<Option<ChainHash>, sqlx::Error> {
    if seq == 0 {
        return Ok(Some(genesis()));
    }
    for table in Table::ALL {
        let sql = format!("select hash from {} where seq = ?1", table.name());
        let hash: Option<Vec<u8>> = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(seq)
            .fetch_optional(&mut *conn)
            .await?;
        if let Some(hash) = hash {
            return Ok(ChainHash::try_from(hash).ok());
        }
    }
    Ok(None)
}

/// Walks a chain row by row.
pub(super) struct Walker {
    /// The last good row.
    pub(super) end: ChainEnd,
    scratch: Vec<u8>,
}

impl Walker {
    /// Starts after `end`.
    pub(super) const fn new(end: ChainEnd) -> Self {
        Self {
            end,
            scratch: Vec::new(),
        }
    }

    /// Checks the next row; continues from what it should be, so that one change is reported once.
    pub(super) fn step(&mut self, row: &Stored) -> Result<(), String> {
        let expected = self.end.seq + 1;
        let seq = row.seq;
        let table = row.table;
        let hash = chain_hash(
            &self.end.hash,
            table,
            seq,
            &row.values,
            None,
            &mut self.scratch,
        );
        let claimed = ChainHash::try_from(row.hash.as_slice()).ok();
        let follows = claimed == Some(hash);
        self.end = ChainEnd {
            seq,
            hash: claimed.unwrap_or(hash),
        };
        let name = table.name();
        if seq != expected {
            return Err(format!("row {expected} is missing (next is {seq}, {name})"));
        }
        if !follows {
            return Err(format!("row {seq} ({name}) was changed: its hash differs"));
        }
        Ok(())
    }
}

/// Checks the rows that the last checkpoint does not count, and returns the end of the chain.
pub(super) async fn check_tail(
    path: &Path,
    conn: &mut SqliteConnection,
    mark: &CheckpointMark,
) -> Result<ChainEnd, LedgerError> {
    let corrupt = |reason: String| LedgerError::Corrupt {
        path: path.to_owned(),
        reason,
    };
    let found = hash_at(conn, mark.covers)
        .await
        .map_err(|error| explain(path, WHAT, &error))?;
    let Some(hash) = found else {
        return Err(corrupt(format!("row {} is missing", mark.covers)));
    };
    let (last_seq, _) = last(conn).await.doing(WHAT)?;
    let mut walker = Walker::new(ChainEnd {
        seq: mark.covers,
        hash,
    });
    while walker.end.seq < last_seq {
        let from = walker.end.seq;
        let rows = page(conn, from, from + PAGE_ROWS)
            .await
            .map_err(|error| explain(path, WHAT, &error))?;
        for row in &rows {
            walker.step(row).map_err(corrupt)?;
        }
        if walker.end.seq == from {
            return Err(corrupt(format!("row {} is missing", from + 1)));
        }
    }
    Ok(walker.end)
}
