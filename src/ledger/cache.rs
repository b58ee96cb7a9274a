//! cache.db: peers, offers, terms and small values that can be learned again from the network.
//!
//! Never the truth about money. Written without waiting for the disk (`synchronous = normal`); a
//! file that is damaged or of another version is deleted and made anew. Every table is bounded,
//! because peers decide what goes in. Called by `discovery` and `network` through the composition
//! root.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Sqlite, Transaction};

use super::error::{Doing as _, LedgerError};
use crate::types::{Hash32, PeerId, UnixMs};

const SCHEMA: &str = include_str!("../../migrations/cache_0001.sql");
/// Version of the schema; a file with another one is made anew.
const VERSION: i64 = 2;
/// How long another process's lock is waited for.
const BUSY_TIMEOUT_S: u64 = 5;
/// A writer and a reader side by side.
const CONNECTIONS_MAX: u32 = 2;
/// Peers kept; those that answered longest ago go first.
const PEERS_MAX: i64 = 10_000;
/// Offers kept; those that expire first go first.
const OFFERS_MAX: i64 = 50_000;
/// Terms kept; the oldest go first.
const TERMS_MAX: i64 = 2_000;
/// Scores kept; those written longest ago go first.
const SCORES_MAX: i64 = 10_000;
/// Addresses kept per peer.
const ADDRS_MAX: usize = 16;
/// Largest offer, terms or value kept.
const BYTES_MAX: usize = 64 * 1024;

const READ: &str = "read the cache";
const WRITE: &str = "write the cache";

/// What is remembered about a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedPeer {
    /// The peer.
    pub peer: PeerId,
    /// Its multiaddresses.
    pub addrs: Vec<String>,
    /// Last success; 0 = never.
    pub last_ok_ms: UnixMs,
    /// Last failure; 0 = never.
    pub last_fail_ms: UnixMs,
}

/// What is remembered of an offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedOffer {
    /// sha256 of `bytes`.
    pub hash: Hash32,
    /// Last moment it may be used.
    pub not_after: UnixMs,
    /// The signed offer; verify it again before use.
    pub bytes: Vec<u8>,
}

/// The cache. Cheap to clone.
#[derive(Clone)]
pub struct Cache {
    pool: SqlitePool,
}

impl Cache {
    /// Opens the cache at `path`; makes it anew when it is missing, damaged or of another version.
    ///
    /// # Errors
    /// When not even an empty file can be made there.
    pub async fn open(path: &Path) -> Result<Self, LedgerError> {
        match Self::try_open(path).await {
            Ok(cache) => Ok(cache),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "making the cache anew");
                remove(path)?;
                Self::try_open(path).await
            }
        }
    }

    async fn try_open(path: &Path) -> Result<Self, LedgerError> {
        let open = "open the cache";
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(Duration::from_secs(BUSY_TIMEOUT_S))
            .disable_statement_logging();
        let pool = SqlitePoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .connect_with(options)
            .await
            .doing(open)?;
        match prepare(&pool).await {
            Ok(()) => Ok(Self { pool }),
            Err(error) => {
                pool.close().await;
                Err(error)
            }
        }
    }

    /// Remembers peers; newer times win, addresses are replaced.
    ///
    /// # Errors
    /// When the cache cannot be written.
    pub async fn put_peers(&self, peers: &[CachedPeer]) -> Result<(), LedgerError> {
        let mut tx = self.pool.begin().await.doing(WRITE)?;
        for peer in peers {
            let addrs: Vec<&String> = peer.addrs.iter().take(ADDRS_MAX).collect();
            sqlx::query(
                "insert into peer (peer, addrs, last_ok_ms, last_fail_ms) values (?, ?, ?, ?)
                 on conflict (peer) do update set addrs = excluded.addrs,
                   last_ok_ms = max(last_ok_ms, excluded.last_ok_ms),
                   last_fail_ms = max(last_fail_ms, excluded.last_fail_ms)",
            )
            .bind(peer.peer.to_base58())
            .bind(serde_json::to_string(&addrs).unwrap_or_default())
            .bind(to_i64(peer.last_ok_ms))
            .bind(to_i64(peer.last_fail_ms))
            .execute(&mut *tx)
            .await
            .doing(WRITE)?;
        }
        finish(tx, ("peer", "peer", "last_ok_ms"), PEERS_MAX).await
    }

    /// Peers, those that answered last first, at most `limit`.
    ///
    /// # Errors
    /// When the cache cannot be read.
    pub async fn peers(&self, limit: u32) -> Result<Vec<CachedPeer>, LedgerError> {
        let rows: Vec<(String, String, i64, i64)> = sqlx::query_as(
            "select peer, addrs, last_ok_ms, last_fail_ms from peer
             order by last_ok_ms desc limit ?",
        )
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .doing(READ)?;
        let peers = rows.into_iter().filter_map(|(peer, addrs, ok, fail)| {
            Some(CachedPeer {
                peer: peer.parse().ok()?,
                addrs: serde_json::from_str(&addrs).ok()?,
                last_ok_ms: from_i64(ok),
                last_fail_ms: from_i64(fail),
            })
        });
        Ok(peers.collect())
    }

    /// Remembers offers and forgets those that ended before `now_ms`.
    ///
    /// # Errors
    /// When the cache cannot be written.
    pub async fn put_offers(
        &self,
        offers: &[CachedOffer],
        now_ms: UnixMs,
    ) -> Result<(), LedgerError> {
        let mut tx = self.pool.begin().await.doing(WRITE)?;
        for offer in offers.iter().filter(|o| o.bytes.len() <= BYTES_MAX) {
            sqlx::query(
                "insert into offer (offer_hash, not_after, bytes) values (?, ?, ?)
                 on conflict (offer_hash) do nothing",
            )
            .bind(offer.hash.as_bytes().as_slice())
            .bind(to_i64(offer.not_after))
            .bind(offer.bytes.as_slice())
            .execute(&mut *tx)
            .await
            .doing(WRITE)?;
        }
        sqlx::query("delete from offer where not_after < ?")
            .bind(to_i64(now_ms))
            .execute(&mut *tx)
            .await
            .doing(WRITE)?;
        finish(tx, ("offer", "offer_hash", "not_after"), OFFERS_MAX).await
    }

    /// Offers that may still be used at `now_ms`.
    ///
    /// # Errors
    /// When the cache cannot be read.
    pub async fn offers(&self, now_ms: UnixMs) -> Result<Vec<CachedOffer>, LedgerError> {
        let rows: Vec<(Vec<u8>, i64, Vec<u8>)> =
            sqlx::query_as("select offer_hash, not_after, bytes from offer where not_after >= ?")
                .bind(to_i64(now_ms))
                .fetch_all(&self.pool)
                .await
                .doing(READ)?;
        let offers = rows.into_iter().filter_map(|(hash, not_after, bytes)| {
            Some(CachedOffer {
                hash: Hash32::from_slice(&hash)?,
                not_after: from_i64(not_after),
                bytes,
            })
        });
        Ok(offers.collect())
    }

    /// Remembers terms by their hash.
    ///
    /// # Errors
    /// When the cache cannot be written.
    pub async fn put_terms(
        &self,
        hash: Hash32,
        bytes: &[u8],
        now_ms: UnixMs,
    ) -> Result<(), LedgerError> {
        if bytes.len() > BYTES_MAX {
            return Ok(());
        }
        let mut tx = self.pool.begin().await.doing(WRITE)?;
        sqlx::query(
            "insert into terms (terms_hash, at_ms, bytes) values (?, ?, ?)
             on conflict (terms_hash) do nothing",
        )
        .bind(hash.as_bytes().as_slice())
        .bind(to_i64(now_ms))
        .bind(bytes)
        .execute(&mut *tx)
        .await
        .doing(WRITE)?;
        finish(tx, ("terms", "terms_hash", "at_ms"), TERMS_MAX).await
    }

    /// Remembers what the router knows of sellers.
    ///
    /// # Errors
    /// When the cache cannot be written.
    pub async fn put_scores(
        &self,
        scores: &[(PeerId, Vec<u8>)],
        now_ms: UnixMs,
    ) -> Result<(), LedgerError> {
        let mut tx = self.pool.begin().await.doing(WRITE)?;
        for (peer, bytes) in scores.iter().filter(|(_, bytes)| bytes.len() <= BYTES_MAX) {
            sqlx::query(
                "insert into score (peer, at_ms, bytes) values (?, ?, ?)
                 on conflict (peer) do update set at_ms = excluded.at_ms, bytes = excluded.bytes",
            )
            .bind(peer.to_base58())
            .bind(to_i64(now_ms))
            .bind(bytes.as_slice())
            .execute(&mut *tx)
            .await
            .doing(WRITE)?;
        }
        finish(tx, ("score", "peer", "at_ms"), SCORES_MAX).await
    }

    /// What the router knew of sellers.
    ///
    /// # Errors
    /// When the cache cannot be read.
    pub async fn scores(&self) -> Result<Vec<(PeerId, Vec<u8>)>, LedgerError> {
        let rows: Vec<(String, Vec<u8>)> = sqlx::query_as("select peer, bytes from score")
            .fetch_all(&self.pool)
            .await
            .doing(READ)?;
        let scores = rows.into_iter();
        Ok(scores
            .filter_map(|(peer, bytes)| Some((peer.parse().ok()?, bytes)))
            .collect())
    }

    /// Terms by their hash.
    ///
    /// # Errors
    /// When the cache cannot be read.
    pub async fn terms(&self, hash: &Hash32) -> Result<Option<Vec<u8>>, LedgerError> {
        sqlx::query_scalar("select bytes from terms where terms_hash = ?")
            .bind(hash.as_bytes().as_slice())
            .fetch_optional(&self.pool)
            .await
            .doing(READ)
    }

    /// Sets a small value. The keys are the program's own, never a peer's.
    ///
    /// # Errors
    /// When the cache cannot be written.
    pub async fn set(&self, key: &str, value: &str) -> Result<(), LedgerError> {
        sqlx::query(
            "insert into kv (key, value) values (?, ?)
             on conflict (key) do update set value = excluded.value",
        )
        .bind(key)
        .bind(value)
        .execute(&self.pool)
        .await
        .doing(WRITE)?;
        Ok(())
    }

    /// Gets a small value.
    ///
    /// # Errors
    /// When the cache cannot be read.
    pub async fn get(&self, key: &str) -> Result<Option<String>, LedgerError> {
        sqlx::query_scalar("select value from kv where key = ?")
            .bind(key)
            .fetch_optional(&self.pool)
            .await
            .doing(READ)
    }

    /// Closes the file; other clones stop working.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

async fn prepare(pool: &SqlitePool) -> Result<(), LedgerError> {
    let what = "open the cache";
    let health: String = sqlx::query_scalar("pragma quick_check(1)")
        .fetch_one(pool)
        .await
        .doing(what)?;
    if health != "ok" {
        return Err(LedgerError::Invalid(health));
    }
    let version: i64 = sqlx::query_scalar("pragma user_version")
        .fetch_one(pool)
        .await
        .doing(what)?;
    if version == VERSION {
        return Ok(());
    }
    let mut tx = pool.begin().await.doing(what)?;
    sqlx::raw_sql(SCHEMA).execute(&mut *tx).await.doing(what)?;
    let mark = format!("pragma user_version = {VERSION}");
    sqlx::raw_sql(AssertSqlSafe(mark))
        .execute(&mut *tx)
        .await
        .doing(what)?;
    tx.commit().await.doing(what)
}

fn remove(path: &Path) -> Result<(), LedgerError> {
    for suffix in ["", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        match std::fs::remove_file(PathBuf::from(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(LedgerError::io("remove the damaged cache", &error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn to_i64(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn from_i64(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// Forgets all but the `most` newest rows of a table (its name, key and order), and commits.
async fn finish(
    mut tx: Transaction<'_, Sqlite>,
    (table, key, order): (&str, &str, &str),
    most: i64,
) -> Result<(), LedgerError> {
    let sql = format!(
        "delete from {table} where {key} in
           (select {key} from {table} order by {order} desc limit -1 offset ?)"
    );
    sqlx::query(AssertSqlSafe(sql))
        .bind(most)
        .execute(&mut *tx)
        .await
        .doing(WRITE)?;
    tx.commit().await.doing(WRITE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(last_ok_ms: u64) -> CachedPeer {
        CachedPeer {
            peer: PeerId::random(),
            addrs: vec!["/ip4/127.0.0.1/udp/1/quic-v1".to_owned()],
            last_ok_ms,
            last_fail_ms: 0,
        }
    }

    #[tokio::test]
    async fn the_cache_gives_back_what_it_was_given() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(&dir.path().join("cache.db")).await.unwrap();
        let (old, new) = (peer(1), peer(2));
        cache.put_peers(&[old.clone(), new.clone()]).await.unwrap();
        assert_eq!(cache.peers(10).await.unwrap(), [new.clone(), old]);
        assert_eq!(cache.peers(1).await.unwrap(), [new]);

        let offer = |n: u8, not_after| CachedOffer {
            hash: Hash32([n; 32]),
            not_after,
            bytes: vec![n],
        };
        let live = offer(2, 20);
        cache
            .put_offers(&[offer(1, 5), live.clone()], 10)
            .await
            .unwrap();
        assert_eq!(cache.offers(0).await.unwrap(), [live]);

        let hash = Hash32([9; 32]);
        cache.put_terms(hash, b"terms", 1).await.unwrap();
        assert_eq!(cache.terms(&hash).await.unwrap().unwrap(), b"terms");
        cache.set("slopes", "1").await.unwrap();
        cache.set("slopes", "2").await.unwrap();
        assert_eq!(cache.get("slopes").await.unwrap().as_deref(), Some("2"));
        assert_eq!(cache.get("none").await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_damaged_cache_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache.db");
        std::fs::write(&path, vec![7u8; 10_000]).unwrap();
        let cache = Cache::open(&path).await.unwrap();
        cache.set("a", "b").await.unwrap();
        cache.close().await;
        let cache = Cache::open(&path).await.unwrap();
        assert_eq!(cache.get("a").await.unwrap().as_deref(), Some("b"));
        cache.close().await;

        let mut bytes = std::fs::read(&path).unwrap();
        for byte in bytes.iter_mut().skip(4096) {
            *byte = 0x55;
        }
        std::fs::write(&path, bytes).unwrap();
        let cache = Cache::open(&path).await.unwrap();
        assert_eq!(cache.get("a").await.unwrap(), None);
    }
}
