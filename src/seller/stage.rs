//! Orders of layers instead of answers: a session of a pipeline's stage, metered by block-tokens.
//!
//! Whoever pays sends an ordinary order with the path [`crate::protocol::offer::STAGE_PATH`] for an offer that has
//! [`StageTerms`]; a [`StageService`] opens it before anything is admitted. After RESP_HEAD both sides
//! send BODY frames whose contents only the service understands, until END or CANCEL. Before results
//! leave, the service states what was computed in all ([`StageOutput::state`]) and waits for the
//! voucher that it takes; the receipt bills the last sum stated. The rest (limits, credit, rows of the
//! ledger, ACCEPT) is any order's. Rows from other stages come on streams of their own
//! ([`StageService::rows`]). Called by the flow of [`super`]; `pipeline` implements the service.

use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::io::{ReadHalf, WriteHalf};
use tokio::sync::futures::OwnedNotified;

use super::account::Delivered;
use super::reply::upstream_cut;
use super::wire::InferWire;
use super::{Finish, Job, Shared};
use crate::network::Stream;
use crate::network::framed::{FrameReader, FrameWriter};
use crate::payment::Hold;
use crate::protocol::infer::Need;
use crate::protocol::limits::FRAME_PAYLOAD_BYTES_MAX;
use crate::protocol::offer::StageTerms;
use crate::protocol::{Ending, FrameKind, PeerErrorCode, ResponseHead};
use crate::types::{AttemptId, MicroUsd, PeerId, PriceTable, Usage};

/// The body of an order that opens a session, bytes: names and numbers, no rows.
pub const STAGE_OPEN_BYTES_MAX: usize = 4 * 1024;
/// A payer that takes nothing for this long has gone.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(30);
/// Results wait this long for the voucher that they take.
pub const VOUCHER_PATIENCE: Duration = Duration::from_secs(10);

/// Computes layers for pipelines.
pub trait StageService: Send + Sync {
    /// Looks at an order and reserves what it needs. Dropping the session gives that back.
    fn open(&self, order: StageOrder)
    -> BoxFuture<'_, Result<Box<dyn StageSession>, StageRefused>>;
    /// Takes a stream of rows that the stage before this one opened; resolves when it is over.
    fn rows(&self, from: PeerId, stream: Stream) -> BoxFuture<'static, ()>;
}

/// One opened session.
pub trait StageSession: Send {
    /// Serves the session to its end. What `input` and `output` give as an error is the end to return;
    /// both may be used at once. Dropping the future ends the session.
    fn run<'a>(
        self: Box<Self>,
        input: StageInput<'a>,
        output: StageOutput<'a>,
    ) -> BoxFuture<'a, StageEnd>;
}

/// An order whose head is in order; its money is looked at next.
#[derive(Clone, Debug)]
pub struct StageOrder {
    /// Who asks, and pays.
    pub payer: PeerId,
    /// Names the session in both ledgers.
    pub attempt: AttemptId,
    /// The layers that were offered.
    pub terms: StageTerms,
    /// What a million block-tokens cost: `input` prefill, `output` decode.
    pub price: PriceTable,
    /// The most that this session may cost.
    pub max_cost: MicroUsd,
    /// What to open, at most [`STAGE_OPEN_BYTES_MAX`] bytes.
    pub body: Bytes,
}

/// Why no session was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageRefused {
    /// `Overloaded` when there is no room now, `Malformed` when the order makes no sense.
    pub code: PeerErrorCode,
    /// When to ask again, ms; 0 = unknown.
    pub retry_after_ms: u64,
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageEnd {
    /// The payer said END.
    Closed,
    /// The payer cancelled, vanished or broke the framing.
    Left,
    /// The payer's money does not reach; the code says how.
    Unpaid(&'static str),
    /// This side failed; the code says how.
    Failed(&'static str),
}

/// What the payer sends.
pub struct StageInput<'a> {
    reader: &'a mut FrameReader<ReadHalf<Stream>>,
}

impl StageInput<'_> {
    /// The next BODY frame's payload (at most 64 KiB). Cancel safe.
    ///
    /// # Errors
    /// How the session ended, when it did.
    pub async fn read(&mut self) -> Result<Bytes, StageEnd> {
        loop {
            return match self.reader.read().await {
                Ok(Some(frame)) => match frame.kind {
                    FrameKind::Body => Ok(frame.payload),
                    FrameKind::Nop => continue,
                    FrameKind::End => Err(StageEnd::Closed),
                    _ => Err(StageEnd::Left),
                },
                _ => Err(StageEnd::Left),
            };
        }
    }
}

/// What the payer is sent, and what it owes.
pub struct StageOutput<'a> {
    writer: &'a mut FrameWriter<WriteHalf<Stream>>,
    job: &'a Job,
    delivered: &'a mut Delivered,
    /// The voucher that was asked for last.
    asked: MicroUsd,
}

impl StageOutput<'_> {
    /// Gathers bytes as BODY frames of at most 64 KiB; nothing is sent before [`Self::flush`].
    pub fn put(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(FRAME_PAYLOAD_BYTES_MAX) {
            self.writer.put(FrameKind::Body, piece);
            self.delivered.record(piece);
        }
    }

    /// Sends what is gathered. Not cancel safe: part may be sent.
    ///
    /// # Errors
    /// When the payer has gone, or took nothing for 30 s.
    pub async fn flush(&mut self) -> Result<(), StageEnd> {
        match tokio::time::timeout(FLUSH_TIMEOUT, self.writer.flush()).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(StageEnd::Left),
        }
    }

    /// States all block-tokens computed so far for this session: `input` prefill, `output` decode,
    /// never less than before. Says whether results that make up this sum may leave; if not, the
    /// payer is asked for the voucher by the next [`Self::flush`].
    ///
    /// # Errors
    /// [`StageEnd::Unpaid`] when no voucher would do.
    pub fn state(&mut self, usage: Usage) -> Result<Cover, StageEnd> {
        let order = &self.job.order;
        let running = order.sold.offer.price.cost(&usage);
        if running > order.signed.head.max_cost {
            return Err(StageEnd::Unpaid("above_max_cost"));
        }
        let mut arrived = Box::pin(self.job.pair.next_voucher_owned());
        // Before the look, so that no voucher comes in between.
        arrived.as_mut().enable();
        let missing = match self.job.pair.deliver(&self.job.attempt, running) {
            Ok(()) => {
                self.delivered.reported = Some(usage);
                return Ok(Cover::Paid);
            }
            Err(Hold::CreditExhausted) => return Err(StageEnd::Unpaid("credit_exhausted")),
            Err(Hold::NeedVoucher(cumulative)) => {
                if cumulative > self.asked {
                    self.asked = cumulative;
                    let need = Need { cumulative }.encode();
                    self.writer.put(FrameKind::Need, &need);
                }
                "voucher_missing"
            }
            Err(Hold::Unconfirmed(_)) => "deposit_unconfirmed",
        };
        Ok(Cover::Awaited { arrived, missing })
    }

    /// As [`Self::state`], and returns when it is covered.
    ///
    /// # Errors
    /// [`StageEnd::Unpaid`] when no voucher comes within [`VOUCHER_PATIENCE`] or none would do.
    pub async fn deliver(&mut self, usage: Usage) -> Result<(), StageEnd> {
        while let Cover::Awaited { arrived, missing } = self.state(usage)? {
            self.flush().await?;
            let arrived = tokio::time::timeout(VOUCHER_PATIENCE, arrived).await;
            arrived.map_err(|_| StageEnd::Unpaid(missing))?;
        }
        Ok(())
    }
}

/// Whether what was computed is covered.
pub enum Cover {
    /// Results may leave.
    Paid,
    /// Not before more money is here.
    Awaited {
        /// Resolves when some came: state it again.
        arrived: std::pin::Pin<Box<OwnedNotified>>,
        /// What is missing, as a code for [`StageEnd::Unpaid`].
        missing: &'static str,
    },
}

/// Serves an admitted session: RESP_HEAD, then whatever the service and the payer have to say.
pub(super) async fn serve(
    shared: &Shared,
    wire: &mut InferWire,
    job: &Job,
    session: Box<dyn StageSession>,
    delivered: &mut Delivered,
) -> Finish {
    let head = ResponseHead {
        status: 200,
        headers: Vec::new(),
        model_served: job.order.sold.upstream_id.clone(),
        whole: None,
    };
    delivered.status = head.status;
    delivered.model_served.clone_from(&head.model_served);
    delivered.committed = true;
    delivered.head_sent = true;
    delivered.ttft_ms = Some(job.elapsed_ms());
    job.pair.start(&job.attempt, MicroUsd::ZERO);
    wire.writer.put(FrameKind::RespHead, &head.encode());
    let (reader, writer) = wire.halves();
    let mut output = StageOutput {
        writer,
        job,
        delivered,
        asked: MicroUsd::ZERO,
    };
    let end = match output.flush().await {
        Err(end) => end,
        Ok(()) => tokio::select! {
            end = session.run(StageInput { reader }, output) => end,
            () = shared.drained() => return upstream_cut("draining"),
        },
    };
    finish_of(end)
}

const fn finish_of(end: StageEnd) -> Finish {
    let (ending, error) = match end {
        StageEnd::Closed => (Ending::Complete, None),
        StageEnd::Left => (Ending::BuyerStopped, None),
        StageEnd::Unpaid(code) => (Ending::BuyerStopped, Some(code)),
        StageEnd::Failed(code) => (Ending::SellerFailed, Some(code)),
    };
    Finish { ending, error }
}
