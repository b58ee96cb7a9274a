//! [`Ledger`]: what the rest of the node holds. Cheap to clone; hands rows to the writer.

use std::ops::Deref;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use tokio::sync::{mpsc, oneshot};

use super::batch::BatchWriter;
use super::chain;
use super::encode::encode;
use super::error::{Doing as _, LedgerError};
use super::reader::Reader;
use super::rows::{Row, VoucherRow};
use super::schema;
use super::sums;
use super::table::Encoded;
use super::writer::{QUEUE_SUBMISSIONS_MAX, Settings, StopReason, Submission, Writer};
use crate::types::Clock;

/// Something that is on disk: an fsync has returned. Only the ledger can make one, so what must be
/// durable before it is sent can ask for it by type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Persisted<T>(T);

impl<T> Deref for Persisted<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

/// The durable truth. Derefs to [`Reader`] for everything that only reads (committed rows only).
#[derive(Clone)]
pub struct Ledger {
    queue: mpsc::Sender<Submission>,
    reader: Reader,
    stop_reason: StopReason,
}

impl Deref for Ledger {
    type Target = Reader;
    fn deref(&self) -> &Reader {
        &self.reader
    }
}

impl Ledger {
    /// Opens (or makes) the ledger at `path` and checks the rows after its last checkpoint. Nothing
    /// is written until [`Writer::run`] runs.
    ///
    /// # Errors
    /// A damaged, newer, foreign or locked file is refused with the reason.
    pub async fn open(
        path: &Path,
        clock: Arc<dyn Clock>,
        settings: Settings,
    ) -> Result<(Self, Writer), LedgerError> {
        let mut opened = schema::open_writer(path).await?;
        let mark = sums::last_checkpoint(&mut opened.conn)
            .await
            .doing("read the last checkpoint")?;
        let end = chain::check_tail(path, &mut opened.conn, &mark).await?;
        let reader = Reader::open(path).await?;
        let (sender, queue) = mpsc::channel(QUEUE_SUBMISSIONS_MAX);
        let stop_reason: StopReason = Arc::new(OnceLock::new());
        let writer = Writer {
            batches: BatchWriter::new(opened.conn, end),
            queue,
            stop_reason: stop_reason.clone(),
            settings,
            clock,
            mark,
            path: path.to_owned(),
            lock: opened.lock,
        };
        let ledger = Self {
            queue: sender,
            reader,
            stop_reason,
        };
        Ok((ledger, writer))
    }

    /// Writes `rows` together or not at all, and returns when they are durable.
    ///
    /// A final or delivered row that repeats what is written (same outcome and amount), an offer
    /// already kept, and a voucher at or below the channel's highest are covered: nothing is
    /// written for them and that is no error.
    ///
    /// # Errors
    /// A refusal ([`LedgerError::is_refusal`]) concerns these rows only; anything else means that
    /// the ledger has stopped.
    ///
    /// Cancel safety: dropped while waiting, the rows are still written.
    pub async fn commit(&self, rows: Vec<Row>) -> Result<(), LedgerError> {
        self.durably(rows, true).await
    }

    /// As [`Self::commit`], but joins the next group commit instead of asking for one: durable
    /// within 10 ms. For rows whose answer holds up no client.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub async fn commit_soon(&self, rows: Vec<Row>) -> Result<(), LedgerError> {
        self.durably(rows, false).await
    }

    async fn durably(&self, rows: Vec<Row>, is_urgent: bool) -> Result<(), LedgerError> {
        let rows = encode_all(rows)?;
        let (done, wait) = oneshot::channel();
        self.send(rows, is_urgent, Some(done)).await?;
        wait.await.map_err(|_| self.stopped())?
    }

    /// Queues `rows`; they become durable within 10 ms or with the next commit. A refusal is logged.
    ///
    /// # Errors
    /// When a row cannot be stored at all, or the ledger has stopped.
    pub async fn submit(&self, rows: Vec<Row>) -> Result<(), LedgerError> {
        let rows = encode_all(rows)?;
        self.send(rows, false, None).await
    }

    /// Makes a voucher durable. A voucher at or below the channel's highest is covered by that.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub async fn persist_voucher(
        &self,
        voucher: VoucherRow,
    ) -> Result<Persisted<VoucherRow>, LedgerError> {
        self.commit(vec![Row::Voucher(voucher.clone())]).await?;
        Ok(Persisted(voucher))
    }

    /// The reading half alone.
    #[must_use]
    pub const fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Why the ledger stopped writing, once it has.
    #[must_use]
    pub fn stop_reason(&self) -> Option<Arc<str>> {
        self.stop_reason.get().cloned()
    }

    async fn send(
        &self,
        rows: Vec<Encoded>,
        is_urgent: bool,
        done: Option<oneshot::Sender<Result<(), LedgerError>>>,
    ) -> Result<(), LedgerError> {
        let submission = Submission {
            rows,
            is_urgent,
            done,
        };
        self.queue
            .send(submission)
            .await
            .map_err(|_| self.stopped())
    }

    fn stopped(&self) -> LedgerError {
        let reason = self.stop_reason();
        LedgerError::Stopped(reason.unwrap_or_else(|| "its writer is gone".into()))
    }
}

fn encode_all(rows: Vec<Row>) -> Result<Vec<Encoded>, LedgerError> {
    rows.into_iter().map(encode).collect()
}
