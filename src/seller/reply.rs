//! Relays an upstream's answer, metering it, never further ahead than the buyer's vouchers.
//!
//! Everything ready from the upstream is gathered and flushed once. What is worth more than the
//! free window is sent in pieces, cut at any byte; while a voucher is awaited the buyer is asked
//! with NEED, and after [`VOUCHER_PATIENCE`] the upstream is dropped.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use tokio::time::Instant;

use super::account::{self, Delivered};
use super::upstream::UpstreamError;
use super::wire::{InferWire, Stopped};
use super::{Finish, Job, Shared};
use crate::llm_api::{self, AnswerMeter, EventSplitter, RequestView, UsageTracker, headers, usage};
use crate::network::framed::FLUSH_BYTES;
use crate::payment::running::slice_worth;
use crate::payment::{Hold, RunningMeter};
use crate::protocol::infer::WholeAnswer;
use crate::protocol::limits::{BODY_BYTES_MAX, HEADERS_MAX};
use crate::protocol::{Ending, FrameKind, ResponseHead};
use crate::types::{MicroUsd, Usage};

/// A stream without a voucher for this long ends.
const VOUCHER_PATIENCE: Duration = Duration::from_secs(10);
/// The buyer hears from us within a second of its head, then every five.
const FIRST_NOP: Duration = Duration::from_millis(500);
const NOP_INTERVAL: Duration = Duration::from_secs(5);
/// Slice in which an expensive whole answer is released at least.
const SLICE_BYTES_MIN: usize = 1;

/// Calls the upstream and relays what it says, to the receipt.
pub(super) async fn answer(shared: &Shared, wire: &mut InferWire, job: Job) {
    let mut delivered = Delivered::new();
    let called = tokio::select! {
        biased;
        called = call(shared, &job) => Ok(called),
        stopped = watch(wire, &mut delivered) => Err(stopped),
    };
    let finish = match called {
        Err(stopped) => stopped_finish(shared, stopped),
        Ok(Err(error)) => {
            tracing::warn!(%error, "upstream call failed");
            job.pair.drop_attempt(&job.attempt);
            fail_before_head(shared, wire, job, delivered).await;
            return;
        }
        Ok(Ok(response)) => {
            let is_stream = is_event_stream(&response) && response.status().is_success();
            delivered.status = response.status().as_u16();
            if is_stream {
                stream(shared, wire, &job, response, &mut delivered).await
            } else {
                whole(shared, wire, &job, response, &mut delivered).await
            }
        }
    };
    account::close(shared, wire, job, delivered, finish).await;
}

async fn call(shared: &Shared, job: &Job) -> Result<reqwest::Response, UpstreamError> {
    let head = &job.order.signed.head;
    let allowed: Vec<(String, String)> = head
        .headers
        .iter()
        .filter(|(name, _)| headers::request_header_allowed(name))
        .cloned()
        .collect();
    crate::failpoint::hit("seller_before_upstream");
    shared
        .upstream
        .call(&head.path, &allowed, job.body.clone())
        .await
}

/// Says NOP while the upstream thinks; resolves when the buyer stops.
async fn watch(wire: &mut InferWire, delivered: &mut Delivered) -> Stopped {
    let mut next = Instant::now() + FIRST_NOP;
    loop {
        tokio::select! {
            stopped = wire.stopped() => return stopped,
            () = tokio::time::sleep_until(next) => {
                if wire.alive(true).await.is_err() {
                    return Stopped::Gone;
                }
                delivered.committed = true;
                next = Instant::now() + NOP_INTERVAL;
            }
        }
    }
}

fn stopped_finish(shared: &Shared, stopped: Stopped) -> Finish {
    shared
        .stats
        .cancelled
        .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let ending = match stopped {
        Stopped::Cancelled(reason) if !reason.owes_input() => Ending::SellerFailed,
        Stopped::Cancelled(_) | Stopped::Gone => Ending::BuyerStopped,
    };
    Finish {
        ending,
        error: None,
    }
}

/// The upstream never answered: nothing is owed, the buyer tries the next seller.
async fn fail_before_head(shared: &Shared, wire: &mut InferWire, job: Job, delivered: Delivered) {
    let finish = Finish {
        ending: Ending::SellerFailed,
        error: Some("upstream_unreachable"),
    };
    account::close(
        shared,
        wire,
        job,
        Delivered {
            status: 502,
            ..delivered
        },
        finish,
    )
    .await;
}

fn is_event_stream(response: &reqwest::Response) -> bool {
    response
        .headers()
        .get(reqwest::header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|kind| kind.starts_with("text/event-stream"))
}

fn response_head(
    job: &Job,
    response: &reqwest::Response,
    whole: Option<WholeAnswer>,
) -> ResponseHead {
    let passed = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        let value = value.to_str().ok()?;
        headers::answer_header_allowed(name.as_str())
            .then(|| (name.as_str().to_owned(), value.to_owned()))
    };
    ResponseHead {
        status: response.status().as_u16(),
        headers: response
            .headers()
            .iter()
            .filter_map(passed)
            .take(HEADERS_MAX)
            .collect(),
        model_served: job.order.sold.upstream_id.clone(),
        whole,
    }
}

// ---- streamed answers -------------------------------------------------------------------------

/// What a streamed answer needs while it passes.
struct Passing<'a> {
    job: &'a Job,
    meter: RunningMeter,
    splitter: EventSplitter,
    usage: UsageTracker,
    text: AnswerMeter,
    rename: bool,
}

async fn stream(
    shared: &Shared,
    wire: &mut InferWire,
    job: &Job,
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
        usage: UsageTracker::new(job.dialect),
        text: AnswerMeter::with_text(job.dialect),
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
    wire.writer
        .flush()
        .await
        .map_err(|_| stopped_finish(shared, Stopped::Gone))?;
    loop {
        tokio::select! {
            biased;
            stopped = wire.stopped() => return Err(stopped_finish(shared, stopped)),
            chunk = response.chunk() => return chunk.map_err(|_| upstream_cut("upstream_cut")),
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

const fn upstream_cut(error: &'static str) -> Finish {
    Finish {
        ending: Ending::SellerFailed,
        error: Some(error),
    }
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
            next = match response.chunk().now_or_never() {
                Some(Ok(Some(chunk))) => Some(chunk),
                // The end or an error shows again at the next await.
                Some(Ok(None) | Err(_)) | None => None,
            };
        }
        wire.writer
            .flush()
            .await
            .map_err(|_| stopped_finish(shared, Stopped::Gone))
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
async fn await_voucher(
    shared: &Shared,
    wire: &mut InferWire,
    job: &Job,
    hold: Hold,
) -> Result<(), Finish> {
    let gone = |_| stopped_finish(shared, Stopped::Gone);
    let Hold::NeedVoucher(cumulative) = hold else {
        wire.writer.flush().await.map_err(gone)?;
        return Err(Finish {
            ending: Ending::BuyerStopped,
            error: Some("credit_exhausted"),
        });
    };
    let arrived = job.pair.next_voucher();
    tokio::pin!(arrived);
    arrived.as_mut().enable();
    if job.pair.held() >= cumulative {
        return Ok(());
    }
    wire.need(cumulative).await.map_err(gone)?;
    tokio::select! {
        () = arrived => Ok(()),
        stopped = wire.stopped() => Err(stopped_finish(shared, stopped)),
        () = tokio::time::sleep(VOUCHER_PATIENCE) => {
            Err(Finish { ending: Ending::BuyerStopped, error: Some("voucher_missing") })
        }
    }
}

// ---- whole answers ----------------------------------------------------------------------------

async fn whole(
    shared: &Shared,
    wire: &mut InferWire,
    job: &Job,
    mut response: reqwest::Response,
    delivered: &mut Delivered,
) -> Finish {
    let body = tokio::select! {
        biased;
        body = collect(shared, &mut response) => body,
        stopped = watch(wire, delivered) => return stopped_finish(shared, stopped),
    };
    let Some(body) = body else {
        delivered.status = 502;
        return upstream_cut("upstream_cut");
    };
    let ok = response.status().is_success();
    if ok && !llm_api::is_json_object(&body) {
        delivered.status = 502;
        return upstream_cut("upstream_malformed");
    }
    delivered
        .model_served
        .clone_from(&job.order.sold.upstream_id);
    delivered.ttft_ms = Some(job.elapsed_ms());
    let body = if ok && job.order.sold.upstream_id != job.order.signed.head.model {
        llm_api::rewrite_answer_model(&body, &job.order.signed.head.model)
    } else {
        body
    };
    let cost = if ok {
        price(shared, job, &body, delivered)
    } else {
        MicroUsd::ZERO
    };
    if cost > job.order.signed.head.max_cost {
        delivered.status = 502;
        return upstream_cut("above_max_cost");
    }
    let length = u64::try_from(body.len()).unwrap_or(u64::MAX);
    let head = response_head(job, &response, Some(WholeAnswer { length, cost }));
    wire.writer.put(FrameKind::RespHead, &head.encode());
    delivered.committed = true;
    delivered.head_sent = true;
    job.pair.start(&job.attempt, MicroUsd::ZERO);
    crate::failpoint::hit("seller_resp_head");
    release(shared, wire, job, &body, cost, delivered).await
}

/// The complete body, or `None` when it broke or grew beyond the limit.
async fn collect(shared: &Shared, response: &mut reqwest::Response) -> Option<Bytes> {
    let mut body = BytesMut::new();
    loop {
        match tokio::time::timeout(shared.settings.idle_timeout, response.chunk()).await {
            Ok(Ok(Some(chunk))) if body.len() + chunk.len() <= BODY_BYTES_MAX => {
                body.extend_from_slice(&chunk);
            }
            Ok(Ok(None)) => return Some(body.freeze()),
            _ => return None,
        }
    }
}

/// Usage of a complete body; the cost that RESP_HEAD names.
fn price(shared: &Shared, job: &Job, body: &Bytes, delivered: &mut Delivered) -> MicroUsd {
    let model = job.order.sold.offer.model.as_str();
    let output = shared.counter.count_whole_answer(model, body);
    delivered.output = Some(output);
    let used = usage::extract(job.dialect, body).unwrap_or_else(|| {
        let input = RequestView::parse(&job.body, job.dialect).map_or(0, |view| {
            shared.counter.count_request(model, &job.body, &view).tokens
        });
        Usage {
            input,
            output: output.tokens,
            ..Usage::default()
        }
    });
    delivered.reported = Some(used);
    if used.output == 0 {
        MicroUsd::ZERO
    } else {
        job.order.sold.offer.price.cost(&used)
    }
}

/// Releases slices as the window allows; a slice is worth cost × bytes ÷ length.
async fn release(
    shared: &Shared,
    wire: &mut InferWire,
    job: &Job,
    body: &Bytes,
    cost: MicroUsd,
    delivered: &mut Delivered,
) -> Finish {
    let length = u64::try_from(body.len()).unwrap_or(u64::MAX);
    let mut rest: &[u8] = body;
    while !rest.is_empty() {
        let mut len = rest.len();
        let held = loop {
            let after = delivered
                .sent
                .saturating_add(u64::try_from(len).unwrap_or(0));
            match job
                .pair
                .deliver(&job.attempt, slice_worth(cost, after, length))
            {
                Ok(()) => break Ok(len),
                Err(hold) if len <= SLICE_BYTES_MIN => break Err(hold),
                Err(_) => len /= 2,
            }
        };
        match held {
            Ok(len) => {
                let (piece, tail) = rest.split_at(len.min(rest.len()));
                wire.writer.put(FrameKind::Body, piece);
                delivered.record(piece);
                rest = tail;
                if wire.writer.pending() >= FLUSH_BYTES && wire.writer.flush().await.is_err() {
                    return stopped_finish(shared, Stopped::Gone);
                }
                crate::failpoint::hit("seller_half_body");
            }
            Err(hold) => {
                if let Err(finish) = await_voucher(shared, wire, job, hold).await {
                    return finish;
                }
            }
        }
    }
    Finish {
        ending: Ending::Complete,
        error: None,
    }
}
