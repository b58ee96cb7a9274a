//! The single writer task: takes rows from a bounded queue and commits them in groups.
//!
//! A batch is what waits when the writer is free: at once when somebody waits for durability,
//! after [`LINGER`] otherwise. Refused rows are told to whoever waits for them; a failing disk
//! stops the writer, everybody waiting and everybody after gets that error, and the task's end
//! stops the node. On cancel the queue is closed, drained and committed.

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sqlx::{Connection as _, SqliteConnection};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::batch::BatchWriter;
use super::error::{Doing as _, LedgerError};
use super::sums::{self, CheckpointMark, Stretch};
use super::table::{ChainHash, Encoded, Table, Value};
use crate::types::Clock;

/// How long rows that nobody waits for may wait for company.
pub(super) const LINGER: Duration = Duration::from_millis(10);
/// Submissions that may queue; beyond it callers wait (backpressure, not memory).
pub(super) const QUEUE_SUBMISSIONS_MAX: usize = 1024;
/// Rows of one transaction; bounds the time a waiter spends behind others.
const BATCH_ROWS_MAX: usize = 1024;
/// Rows between checkpoints: about 2 000 requests, a few milliseconds of summing, and as many
/// rows to check again at start.
const CHECKPOINT_ROWS: u32 = 8192;
/// A clean stop makes a checkpoint only for at least this many rows.
const CLOSING_ROWS_MIN: i64 = 256;

/// Signs checkpoints with the node's identity, so that a rewritten history shows.
pub trait CheckpointSigner: Send + Sync + 'static {
    /// An Ed25519 signature over `message`.
    fn sign(&self, message: &[u8]) -> [u8; 64];
}

/// How the ledger works.
#[derive(Clone)]
pub struct Settings {
    /// Rows between checkpoints.
    pub checkpoint_rows: u32,
    /// Signs checkpoints; none leaves them unsigned.
    pub signer: Option<Arc<dyn CheckpointSigner>>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            checkpoint_rows: CHECKPOINT_ROWS,
            signer: None,
        }
    }
}

/// Rows that are written together or not at all.
pub(super) struct Submission {
    pub(super) rows: Vec<Encoded>,
    /// Whether somebody is held up by it: no lingering then.
    pub(super) is_urgent: bool,
    /// Told when the rows are durable; `None`: nobody waits.
    pub(super) done: Option<oneshot::Sender<Result<(), LedgerError>>>,
}

/// Why the writer stopped, once it has.
pub(super) type StopReason = Arc<OnceLock<Arc<str>>>;

/// The task that owns the only writing connection. Run it once, to the end.
pub struct Writer {
    pub(super) batches: BatchWriter,
    pub(super) queue: mpsc::Receiver<Submission>,
    pub(super) stop_reason: StopReason,
    pub(super) settings: Settings,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) mark: CheckpointMark,
    pub(super) path: PathBuf,
    pub(super) lock: File,
}

impl Writer {
    /// Writes until `cancel`, then drains and commits what is queued.
    ///
    /// # Errors
    /// When the disk or the database fails: the node must stop.
    pub async fn run(mut self, cancel: CancellationToken) -> Result<(), LedgerError> {
        let ended = self.work(&cancel).await;
        if let Err(error) = ended {
            tracing::error!(path = %self.path.display(), %error, "the ledger stopped writing");
            self.fail(&error.to_string());
            return Err(error);
        }
        let _ = self.stop_reason.set("the node is shutting down".into());
        let BatchWriter { conn, .. } = self.batches;
        conn.close().await.doing("close the ledger")?;
        drop(self.lock);
        Ok(())
    }

    async fn work(&mut self, cancel: &CancellationToken) -> Result<(), LedgerError> {
        loop {
            let first = tokio::select! {
                biased;
                () = cancel.cancelled(), if !self.queue.is_closed() => {
                    self.queue.close();
                    continue;
                }
                first = self.queue.recv() => first,
            };
            let Some(first) = first else { break };
            let batch = self.collect(first, cancel).await;
            self.write(batch).await?;
            if self.rows_since_checkpoint() >= i64::from(self.settings.checkpoint_rows) {
                self.checkpoint().await?;
            }
        }
        if self.rows_since_checkpoint() >= CLOSING_ROWS_MIN {
            self.checkpoint().await?;
        }
        Ok(())
    }

    /// Gathers what waits; lingers only while nobody waits for durability.
    async fn collect(&mut self, first: Submission, cancel: &CancellationToken) -> Vec<Submission> {
        let mut rows = first.rows.len();
        let mut urgent = first.is_urgent || self.queue.is_closed();
        let mut batch = vec![first];
        let until = Instant::now() + LINGER;
        while rows < BATCH_ROWS_MAX {
            let next = match self.queue.try_recv() {
                Ok(next) => next,
                Err(_) if urgent => break,
                Err(_) => tokio::select! {
                    biased;
                    () = cancel.cancelled() => break,
                    () = tokio::time::sleep_until(until) => break,
                    next = self.queue.recv() => match next {
                        Some(next) => next,
                        None => break,
                    },
                },
            };
            rows += next.rows.len();
            urgent |= next.is_urgent;
            batch.push(next);
        }
        batch
    }

    async fn write(&mut self, batch: Vec<Submission>) -> Result<(), LedgerError> {
        let (rows, waiting): (Vec<_>, Vec<_>) = batch.into_iter().map(|s| (s.rows, s.done)).unzip();
        let verdicts = match self.batches.write(&rows).await {
            Ok(verdicts) => verdicts,
            Err(error) => {
                let stopped = LedgerError::Stopped(error.to_string().into());
                for done in waiting.into_iter().flatten() {
                    let _ = done.send(Err(stopped.clone()));
                }
                return Err(error);
            }
        };
        for (verdict, done) in verdicts.into_iter().zip(waiting) {
            match (verdict, done) {
                (verdict, Some(done)) => {
                    let _ = done.send(verdict);
                }
                (Err(error), None) => tracing::warn!(%error, "the ledger refused queued rows"),
                (Ok(()), None) => {}
            }
        }
        Ok(())
    }

    fn rows_since_checkpoint(&self) -> i64 {
        self.batches.end.seq - self.mark.seq
    }

    fn fail(&mut self, reason: &str) {
        let reason: Arc<str> = reason.into();
        let _ = self.stop_reason.set(reason.clone());
        self.queue.close();
        while let Ok(waiting) = self.queue.try_recv() {
            if let Some(done) = waiting.done {
                let _ = done.send(Err(LedgerError::Stopped(reason.clone())));
            }
        }
    }

    /// Writes the sums since the last checkpoint and the checkpoint row itself.
    async fn checkpoint(&mut self) -> Result<(), LedgerError> {
        let what = "make a checkpoint of the ledger";
        let stretch = Stretch {
            after: self.mark.covers,
            upto: self.batches.end.seq,
        };
        let conn = &mut self.batches.conn;
        let unfinished = sums::unfinished(conn, &self.mark).await.doing(what)?;
        let mut rows = summed_rows(conn, stretch).await.doing(what)?;
        rows.push(self.checkpoint_row(&unfinished));
        // One transaction: a crash leaves all of them or none.
        let verdicts = self.batches.write(&[rows]).await?;
        verdicts.into_iter().collect::<Result<(), _>>()?;
        self.mark = CheckpointMark {
            seq: self.batches.end.seq,
            covers: stretch.upto,
            unfinished,
        };
        Ok(())
    }

    fn checkpoint_row(&self, unfinished: &[i64]) -> Encoded {
        let end = &self.batches.end;
        let signer = self.settings.signer.as_ref();
        let signature = signer.map(|signer| signer.sign(&checkpoint_message(end.seq, &end.hash)));
        Encoded {
            table: Table::Checkpoint,
            values: vec![
                Value::Int(i64::try_from(self.clock.now_ms()).unwrap_or(i64::MAX)),
                Value::Int(end.seq),
                Value::Blob(sums::seqs_to_bytes(unfinished)),
                signature.map_or(Value::Null, |bytes| Value::Blob(bytes.to_vec())),
            ],
        }
    }
}

async fn summed_rows(
    conn: &mut SqliteConnection,
    stretch: Stretch,
) -> Result<Vec<Encoded>, sqlx::Error> {
    let mut rows: Vec<Encoded> = sums::rollups(conn, stretch)
        .await?
        .into_iter()
        .map(|(key, counts)| sums::encode_rollup(key, &counts))
        .collect();
    for ((role, channel), more) in sums::balances(conn, stretch).await? {
        let before = sums::balance_before(conn, role, &channel).await?;
        rows.push(sums::encode_balance(role, &channel, before.plus(more)));
    }
    Ok(rows)
}

/// What a checkpoint's signature covers: the chain up to the last row it counts.
pub(super) fn checkpoint_message(covers: i64, hash: &ChainHash) -> Vec<u8> {
    let mut message = b"souk/checkpoint/v1".to_vec();
    message.extend_from_slice(&covers.to_be_bytes());
    message.extend_from_slice(hash);
    message
}
