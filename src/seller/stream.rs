//! Relays a streamed answer, metering it, never further ahead than the buyer's vouchers.
//!
//! Everything ready from the upstream is gathered and flushed once. What is worth more than the
//! free window is sent in pieces, cut at any byte; while a voucher is awaited the buyer is asked
//! with NEED, and after [`VOUCHER_PATIENCE`] the upstream is dropped. Called by [`super::reply`].

use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use tokio::time::Instant;

use super::account::Delivered;
use super::reply::{NOP_INTERVAL, response_head, stopped_finish, upstream_cut};
use super::wire::{InferWire, Stopped};
use super::{Finish, Job, Shared};
use crate::llm_api::{self, AnswerMeter, Endpoint, EventSplitter, UsageTracker};
use crate::network::framed::FLUSH_BYTES;
use crate::payment::{Hold, RunningMeter};
use crate::protocol::{Ending, FrameKind};
use crate::types::MicroUsd;

/// A stream without a voucher for this long ends.
const VOUCHER_PATIENCE: Duration = Duration::from_secs(10);

/// What a streamed answer needs while it passes.
struct Passing<'a> {
    job: &'a Job,
    meter: RunningMeter,
    splitter: EventSplitter,
    usage: UsageTracker,
    text: AnswerMeter,
    rename: bool,
    /// The stream ends when its meter passes this.
    most: MicroUsd,
}

/// The meter estimates, the receipt counts: a stream may run this much past its `max_cost`.
const METER_SLACK: u64 = 2;

/// Sends the head, then the answer as it comes.
pub(super) async fn relay(
    shared: &Shared,
    wire: &mut InferWire,
    (job, endpoint): (&Job, Endpoint),
    mut response: reqwest::Response,
    delivered: &mut Delivered,
) -> Finish {
    delivered
        .model_served
        .clone_from(&job.order.sold.upstream_id);
    wire.writer.put(
        FrameKind::RespHead,
        &response_head(job, &response, None).encode(),
    );
    delivered.committed = true;
    delivered.head_sent = true;
    job.pair.start(&job.attempt, job.prefill);
    crate::failpoint::hit("seller_resp_head");
    let mut passing = Passing {
        job,
        meter: RunningMeter::new(job.order.sold.offer.price, job.prefill),
        splitter: EventSplitter::new(),
        usage: UsageTracker::new(endpoint.dialect()),
        text: AnswerMeter::with_text(endpoint.dialect()),
        most: job.order.signed.head.max_cost.mul_div_ceil(METER_SLACK, 1),
        rename: job.order.sold.upstream_id != job.order.signed.head.model,
    };
    let finish = loop {
        let first = match next_chunk(shared, wire, &mut response).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => break passing.ended(),
            Err(finish) => break finish,
        };
        delivered.ttft_ms.get_or_insert_with(|| job.elapsed_ms());
        if let Err(finish) = passing
            .burst(shared, wire, first, &mut response, delivered)
            .await
        {
            break finish;
        }
        crate::failpoint::hit("seller_half_body");
    };
    delivered.reported = passing.usage.usage();
    let model = job.order.sold.offer.model.as_str();
    delivered.output = Some(shared.counter.count_answer(model, &passing.text));
    finish
}

/// The upstream's next chunk; NOPs go to the buyer while it is silent.
async fn next_chunk(
    shared: &Shared,
    wire: &mut InferWire,
    response: &mut reqwest::Response,
) -> Result<Option<Bytes>, Finish> {
    let silent_since = Instant::now();
    wire.flush()
        .await
        .map_err(|stopped| stopped_finish(shared, stopped))?;
    loop {
        tokio::select! {
            biased;
            stopped = wire.stopped() => return Err(stopped_finish(shared, stopped)),
            chunk = response.chunk() => return chunk.map_err(|_| upstream_cut("upstream_cut")),
            () = shared.drained() => return Err(upstream_cut("draining")),
            () = tokio::time::sleep(NOP_INTERVAL) => {
                if silent_since.elapsed() >= shared.settings.idle_timeout {
                    return Err(upstream_cut("upstream_idle"));
                }
                let alive = wire.alive(true).await;
                alive.map_err(|_| stopped_finish(shared, Stopped::Gone))?;
            }
        }
    }
}

/// A chunk that is here already. The HTTP client's own task hands chunks over one at a time and
/// runs in between, so it gets one turn: a burst is one packet then, not one for each event.
async fn ready_chunk(response: &mut reqwest::Response) -> Option<Bytes> {
    let mut chunk = response.chunk().now_or_never();
    if chunk.is_none() {
        tokio::task::yield_now().await;
        chunk = response.chunk().now_or_never();
    }
    // The end or an error shows again at the next await.
    chunk.and_then(Result::ok).flatten()
}

impl Passing<'_> {
    /// The upstream closed: complete only if its dialect's terminator came.
    fn ended(&self) -> Finish {
        if self.usage.ended_well() {
            Finish {
                ending: Ending::Complete,
                error: None,
            }
        } else {
            upstream_cut("upstream_cut")
        }
    }

    /// One chunk and everything behind it that is ready, then one flush.
    async fn burst(
        &mut self,
        shared: &Shared,
        wire: &mut InferWire,
        first: Bytes,
        response: &mut reqwest::Response,
        delivered: &mut Delivered,
    ) -> Result<(), Finish> {
        let mut next = Some(first);
        while let Some(chunk) = next {
            let bytes = self.read(chunk)?;
            self.forward(shared, wire, &bytes, delivered).await?;
            if wire.writer.pending() >= FLUSH_BYTES {
                break;
            }
            next = ready_chunk(response).await;
        }
        wire.flush()
            .await
            .map_err(|stopped| stopped_finish(shared, stopped))
    }

    /// Reads usage and text from a chunk; gives the bytes to send (renamed events, if need be).
    fn read(&mut self, chunk: Bytes) -> Result<Bytes, Finish> {
        self.text.push(&chunk);
        let events = self
            .splitter
            .push_run(chunk.clone())
            .map_err(|_| upstream_cut("upstream_malformed"))?;
        if !events.is_empty() {
            self.usage.push(&events);
        }
        // Renamed events pass when they are complete; bytes that keep their name pass at once.
        Ok(if self.rename {
            llm_api::rewrite_answer_model(&events, &self.job.order.signed.head.model)
        } else {
            chunk
        })
    }

    /// Gathers bytes for the buyer, as far as its vouchers reach; waits for more where they end.
    async fn forward(
        &mut self,
        shared: &Shared,
        wire: &mut InferWire,
        bytes: &[u8],
        delivered: &mut Delivered,
    ) -> Result<(), Finish> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.afford(rest) {
                Ok(len) => {
                    let (piece, tail) = rest.split_at(len.min(rest.len()));
                    wire.writer.put(FrameKind::Body, piece);
                    delivered.record(piece);
                    rest = tail;
                }
                Err(hold) => await_voucher(shared, wire, self.job, hold).await?,
            }
        }
        Ok(())
    }

    /// The longest prefix the window allows, found by halving; the meter moves by it.
    fn afford(&mut self, rest: &[u8]) -> Result<usize, Hold> {
        let mut len = rest.len();
        loop {
            let mut tried = self.meter.clone();
            tried.push(rest.get(..len).unwrap_or(rest));
            if tried.running() > self.most {
                return Err(Hold::CreditExhausted);
            }
            match self.job.pair.deliver(&self.job.attempt, tried.running()) {
                Ok(()) => {
                    self.meter = tried;
                    return Ok(len);
                }
                Err(hold) if len <= 1 => return Err(hold),
                Err(_) => len /= 2,
            }
        }
    }
}

/// Flushes, asks, and waits until a voucher comes or patience ends.
pub(super) async fn await_voucher(
    shared: &Shared,
    wire: &mut InferWire,
    job: &Job,
    hold: Hold,
) -> Result<(), Finish> {
    let gone = |_| stopped_finish(shared, Stopped::Gone);
    let hold = match hold {
        Hold::NeedVoucher(_) | Hold::Unconfirmed(_) => hold,
        Hold::CreditExhausted => {
            wire.flush()
                .await
                .map_err(|stopped| stopped_finish(shared, stopped))?;
            return Err(Finish {
                ending: Ending::BuyerStopped,
                error: Some("credit_exhausted"),
            });
        }
    };
    let arrived = job.pair.next_voucher();
    tokio::pin!(arrived);
    arrived.as_mut().enable();
    match hold {
        Hold::NeedVoucher(sum) if job.pair.held() >= sum => return Ok(()),
        Hold::Unconfirmed(sum) if job.pair.ceiling() >= sum => return Ok(()),
        Hold::NeedVoucher(sum) => wire.need(sum).await.map_err(gone)?,
        Hold::Unconfirmed(_) | Hold::CreditExhausted => wire
            .flush()
            .await
            .map_err(|stopped| stopped_finish(shared, stopped))?,
    }
    tokio::select! {
        () = arrived => Ok(()),
        stopped = wire.stopped() => Err(stopped_finish(shared, stopped)),
        () = tokio::time::sleep(VOUCHER_PATIENCE) => {
            let missing = match hold {
                Hold::Unconfirmed(_) => "deposit_unconfirmed",
                _ => "voucher_missing",
            };
            Err(Finish { ending: Ending::BuyerStopped, error: Some(missing) })
        }
    }
}
