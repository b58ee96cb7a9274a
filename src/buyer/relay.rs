//! Passes an answer to the client as it comes, event by event, metering it on the way.
//!
//! The same dialect passes as bytes. Only two things change: the chat usage chunk gets
//! `usage.cost` (or is hidden from a client that did not ask for usage), and an answer that ends
//! without usage gets one counted here. A whole answer is held complete, checked, then sent.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use tokio::time::Instant;

use super::Shared;
use super::asked::Asked;
use super::attempt::{Attempted, fail};
use super::books::{Books, Tally};
use super::refusal::{self, FailureKind, short};
use super::sink::ClientSink;
use super::wire::{OrderWire, Silence};
use crate::llm_api::{
    self, AnswerMeter, Dialect, EventSplitter, StreamIdentity, UsageTracker, headers, sse,
    stream_end,
};
use crate::payment::RunningMeter;
use crate::payment::running::slice_worth;
use crate::protocol::frame::Frame;
use crate::protocol::infer::WholeAnswer;
use crate::protocol::limits::BODY_BYTES_MAX;
use crate::protocol::{CancelReason, FrameKind, PeerError, ResponseHead};
use crate::types::{MicroUsd, PeerId, Usage};

/// Passes the answer on, to its books.
#[allow(
    clippy::too_many_arguments,
    reason = "one flow, split only for its length"
)]
pub(super) async fn answer(
    shared: &Arc<Shared>,
    asked: &Arc<Asked>,
    seller: PeerId,
    wire: OrderWire,
    head: ResponseHead,
    books: Books,
    deadline: Instant,
    sink: &mut ClientSink,
) -> Attempted {
    sink.header("x-souk-seller", &seller.to_string());
    let status = StatusCode::from_u16(head.status).unwrap_or(StatusCode::BAD_GATEWAY);
    if !status.is_success() {
        return error_answer(asked, seller, wire, &head, status, books, sink).await;
    }
    if let Some(whole) = head.whole {
        return whole_answer(asked, seller, wire, &head, whole, books, deadline, sink).await;
    }
    let relay = Relay::new(shared, asked, seller, &head, books);
    relay.run(wire, deadline, sink).await
}

/// Allow-listed headers of the seller's answer.
fn client_headers(head: &ResponseHead) -> HeaderMap {
    let mut out = HeaderMap::new();
    for (name, value) in &head.headers {
        if headers::answer_header_allowed(name)
            && let Ok(name) = HeaderName::try_from(name.as_str())
            && let Ok(value) = HeaderValue::try_from(value.as_str())
        {
            out.append(name, value);
        }
    }
    out
}

// ---- errors of the upstream -------------------------------------------------------------------

/// 400, 413 and 422 are the request's fault and pass; everything else is this seller's failure.
async fn error_answer(
    asked: &Asked,
    seller: PeerId,
    mut wire: OrderWire,
    head: &ResponseHead,
    status: StatusCode,
    books: Books,
    sink: &mut ClientSink,
) -> Attempted {
    let mut body = BytesMut::new();
    let deadline = Instant::now() + std::time::Duration::from_secs(10);
    while let Ok(frame) = wire.frame(deadline).await {
        match frame.kind {
            FrameKind::Body
                if body.len() + frame.payload.len() <= refusal::ERROR_BODY_BYTES_MAX =>
            {
                body.extend_from_slice(&frame.payload);
            }
            FrameKind::Body | FrameKind::Nop | FrameKind::Need | FrameKind::End => {}
            _ => break,
        }
    }
    books.void(&format!("upstream_{}", status.as_u16()), status.as_u16());
    let body = body.freeze();
    let passes = matches!(status.as_u16(), 400 | 413 | 422) && llm_api::is_json_object(&body);
    if passes && !sink.committed() {
        sink.respond(status, client_headers(head), body);
        return Attempted::Done;
    }
    if passes {
        let message = format!("the upstream refused the request with {}", status.as_u16());
        let _ = sink
            .send(llm_api::error::error_event(
                asked.dialect,
                502,
                "upstream_refused",
                &message,
            ))
            .await;
        sink.finish(None).await;
        return Attempted::Done;
    }
    let kind = match status.as_u16() {
        429 => FailureKind::RateLimited,
        408 | 504 => FailureKind::Timeout,
        503 | 529 => FailureKind::Busy,
        _ => FailureKind::Broken,
    };
    fail(
        seller,
        kind,
        &format!("upstream answered {}", status.as_u16()),
    )
}

// ---- whole answers ----------------------------------------------------------------------------

#[allow(
    clippy::too_many_arguments,
    reason = "one flow, split only for its length"
)]
async fn whole_answer(
    asked: &Asked,
    seller: PeerId,
    mut wire: OrderWire,
    head: &ResponseHead,
    whole: WholeAnswer,
    mut books: Books,
    deadline: Instant,
    sink: &mut ClientSink,
) -> Attempted {
    let too_long = usize::try_from(whole.length).map_or(true, |len| len > BODY_BYTES_MAX);
    if whole.cost > books.max_cost || too_long {
        let _ = wire.cancel(CancelReason::Timeout, |_| {}).await;
        books.void("above_max_cost", 502);
        return fail(seller, FailureKind::Broken, "answer above max_cost");
    }
    books.start(MicroUsd::ZERO);
    books.first_event();
    let input_bound = books.prefill;
    let mut body = BytesMut::new();
    loop {
        let frame = match sink.while_alive(wire.frame(deadline)).await {
            Err(_gone) => {
                books.client_gone(wire, true).await;
                return Attempted::Done;
            }
            Ok(Ok(frame)) => frame,
            Ok(Err(_)) => {
                // Cut before it was complete: nothing usable was delivered.
                books.void("cut", 502);
                return fail(seller, FailureKind::Broken, "answer was cut");
            }
        };
        match frame.kind {
            FrameKind::Body if body.len() + frame.payload.len() <= BODY_BYTES_MAX => {
                body.extend_from_slice(&frame.payload);
                let sent = u64::try_from(body.len()).unwrap_or(u64::MAX);
                let text_bound = books.price.cost_in_out(0, (sent * 2).div_ceil(3));
                let bound = input_bound.saturating_add(text_bound);
                books.receive(slice_worth(whole.cost, sent, whole.length).min(bound));
                crate::failpoint::hit("buyer_half_body");
            }
            FrameKind::Need => books.urge(),
            FrameKind::Nop => {}
            FrameKind::End if u64::try_from(body.len()).ok() == Some(whole.length) => break,
            _ => {
                books.void("malformed_answer", 502);
                return fail(seller, FailureKind::Broken, "malformed answer");
            }
        }
    }
    finish_whole(asked, seller, wire, head, body.freeze(), books, sink).await
}

async fn finish_whole(
    asked: &Asked,
    seller: PeerId,
    mut wire: OrderWire,
    head: &ResponseHead,
    body: Bytes,
    books: Books,
    sink: &mut ClientSink,
) -> Attempted {
    if !llm_api::is_json_object(&body) {
        books.void("not_json", 502);
        return fail(
            seller,
            FailureKind::Broken,
            "the upstream's answer is no JSON",
        );
    }
    let output = books.count_whole(&body);
    let reported = llm_api::usage::extract(asked.dialect, &body);
    let usage = match reported {
        Some(usage) => usage,
        None => books.own_usage(output).await,
    };
    let priced = books.price(&usage, output).await;
    let cost = if usage.output == 0 {
        MicroUsd::ZERO
    } else {
        priced.cost
    };
    let sent = match (asked.dialect, reported) {
        (Dialect::Chat, Some(_)) => llm_api::splice_cost(&body, cost),
        (_, Some(_)) => body,
        (dialect, None) => {
            let shown = (dialect == Dialect::Chat).then_some(cost);
            llm_api::insert_usage(&body, dialect, &usage, shown)
        }
    };
    sink.header("x-souk-cost-usd", &cost.to_json_number());
    let status = StatusCode::from_u16(head.status).unwrap_or(StatusCode::OK);
    sink.respond(status, client_headers(head), sent);
    let receipt = wire
        .receipt_soon()
        .await
        .and_then(|bytes| books.verify(&bytes));
    crate::failpoint::hit("buyer_usage");
    let tally = Tally {
        status: head.status,
        model_served: head.model_served.clone(),
        usage: Some(usage),
        own_output: Some(priced.own_output),
        cost,
        disputed: priced.disputed,
        error: None,
    };
    tracing::debug!(seller = %short(&seller), "whole answer relayed");
    books.settle(tally, receipt).await;
    Attempted::Done
}

// ---- streamed answers -------------------------------------------------------------------------

/// A stream on its way to the client.
struct Relay<'a> {
    asked: &'a Asked,
    seller: PeerId,
    books: Books,
    head: &'a ResponseHead,
    idle: std::time::Duration,
    total: Option<Instant>,
    meter: RunningMeter,
    text: AnswerMeter,
    splitter: EventSplitter,
    tracker: UsageTracker,
    /// Events for the client, gathered until the next send.
    out: BytesMut,
    /// The dialect's first event was sent: no failover any more.
    begun: bool,
    /// Nothing but comments came so far.
    only_heartbeats: bool,
    shown: Option<(Usage, MicroUsd, bool)>,
}

/// Why a stream is over.
enum Over {
    Ended,
    SellerFailed(String),
    ClientGone,
}

impl<'a> Relay<'a> {
    fn new(
        shared: &Shared,
        asked: &'a Asked,
        seller: PeerId,
        head: &'a ResponseHead,
        books: Books,
    ) -> Self {
        let timeouts = &shared.settings.timeouts;
        books.start(books.prefill);
        Self {
            asked,
            seller,
            head,
            idle: timeouts.idle,
            total: (!timeouts.total.is_zero()).then(|| Instant::now() + timeouts.total),
            meter: RunningMeter::new(books.price, books.prefill),
            text: AnswerMeter::with_text(asked.dialect),
            splitter: EventSplitter::new(),
            tracker: UsageTracker::new(asked.dialect),
            out: BytesMut::new(),
            begun: false,
            only_heartbeats: true,
            shown: None,
            books,
        }
    }

    async fn run(
        mut self,
        mut wire: OrderWire,
        deadline: Instant,
        sink: &mut ClientSink,
    ) -> Attempted {
        let over = loop {
            let limit = self.limit(deadline);
            let first = match sink.while_alive(wire.frame(limit)).await {
                Err(_gone) => break Over::ClientGone,
                Ok(Ok(frame)) => frame,
                Ok(Err(Silence::Late)) => break Over::SellerFailed("silent for too long".into()),
                Ok(Err(Silence::Broken(reason))) => break Over::SellerFailed(reason),
            };
            match self.burst(first, &mut wire).await {
                Ok(None) => {}
                Ok(Some(over)) => {
                    if self.flush(sink).await.is_err() {
                        break Over::ClientGone;
                    }
                    break over;
                }
                Err(reason) => break Over::SellerFailed(reason),
            }
            if self.flush(sink).await.is_err() {
                break Over::ClientGone;
            }
            crate::failpoint::hit("buyer_half_body");
        };
        match over {
            Over::Ended => self.ended(wire, sink).await,
            Over::SellerFailed(reason) => self.seller_failed(wire, sink, reason).await,
            Over::ClientGone => self.client_gone(wire).await,
        }
    }

    /// Before the first event the attempt's deadline counts, after it the idle time.
    fn limit(&self, deadline: Instant) -> Instant {
        let limit = if self.begun {
            Instant::now() + self.idle
        } else {
            deadline
        };
        self.total.map_or(limit, |total| limit.min(total))
    }

    /// One frame and everything behind it that is here.
    async fn burst(&mut self, first: Frame, wire: &mut OrderWire) -> Result<Option<Over>, String> {
        let mut next = Some(first);
        while let Some(frame) = next {
            match frame.kind {
                FrameKind::Body => self.body(frame.payload).await?,
                FrameKind::Nop => {}
                FrameKind::Need => self.books.urge(),
                FrameKind::End => return Ok(Some(Over::Ended)),
                FrameKind::Error => {
                    let reason = PeerError::decode(&frame.payload).map_or_else(
                        |_| "malformed error".to_owned(),
                        |error| format!("upstream failed: {}", error.message),
                    );
                    return Ok(Some(Over::SellerFailed(reason)));
                }
                _ => return Err("frame out of order".to_owned()),
            }
            next = match wire.buffered() {
                Ok(next) => next,
                Err(Silence::Broken(reason)) => return Err(reason),
                Err(Silence::Late) => None,
            };
        }
        self.books.receive(self.meter.running());
        Ok(None)
    }

    async fn body(&mut self, chunk: Bytes) -> Result<(), String> {
        self.meter.push(&chunk);
        let events: Vec<Bytes> = self
            .splitter
            .push(chunk)
            .collect::<Result<_, _>>()
            .map_err(|error| error.to_string())?;
        for event in events {
            self.text.push(&event);
            self.tracker.push(&event);
            self.event(event).await?;
        }
        Ok(())
    }

    /// Puts one event out, with the cost where the dialect has a place for it.
    async fn event(&mut self, event: Bytes) -> Result<(), String> {
        if !self.begun && sse::is_error(&event) {
            return Err("upstream began with an error".to_owned());
        }
        self.only_heartbeats &= sse::is_heartbeat(&event);
        if self.asked.dialect != Dialect::Chat {
            self.out.extend_from_slice(&event);
            return Ok(());
        }
        if sse::is_done(Dialect::Chat, &event) && self.tracker.usage().is_none() {
            self.missing_usage().await;
        }
        if !sse::has_usage(&event) {
            self.out.extend_from_slice(&event);
            return Ok(());
        }
        let usage = self.tracker.usage().unwrap_or_default();
        let cost = self.show(usage).await;
        if self.asked.wants_usage || !sse::is_usage_only(&event) {
            self.out
                .extend_from_slice(&llm_api::splice_cost(&event, cost));
        }
        Ok(())
    }

    /// The cost of `usage` by our own bound; remembered, because it is what will be accepted.
    async fn show(&mut self, usage: Usage) -> MicroUsd {
        let priced = self
            .books
            .price(&usage, self.books.count_stream(&self.text))
            .await;
        let cost = if usage.output == 0 {
            MicroUsd::ZERO
        } else {
            priced.cost
        };
        self.shown = Some((usage, cost, priced.disputed));
        cost
    }

    /// The upstream reported no usage: ours is shown, never a blank.
    async fn missing_usage(&mut self) {
        let usage = self
            .books
            .own_usage(self.books.count_stream(&self.text))
            .await;
        let cost = self.show(usage).await;
        if self.asked.wants_usage {
            let nameless = StreamIdentity::default();
            let identity = self.tracker.identity().unwrap_or(&nameless);
            let chunk = stream_end::chat_usage_chunk(identity, &usage, Some(cost));
            self.out.extend_from_slice(&chunk);
        }
    }

    /// Sends what is gathered; nothing before the first event that is no comment.
    async fn flush(&mut self, sink: &mut ClientSink) -> Result<(), crate::http::body::ClientGone> {
        if self.out.is_empty() {
            return Ok(());
        }
        if !self.begun {
            if self.only_heartbeats {
                self.out.clear();
                return Ok(());
            }
            self.begun = true;
            self.books.first_event();
            sink.commit(StatusCode::OK, client_headers(self.head));
        }
        let bytes = self.out.split().freeze();
        sink.send(bytes).await
    }

    async fn ended(mut self, mut wire: OrderWire, sink: &mut ClientSink) -> Attempted {
        if !self.tracker.ended_well() {
            return self
                .seller_failed(wire, sink, "the answer was cut".to_owned())
                .await;
        }
        let usage = match (self.shown, self.tracker.usage()) {
            (Some((usage, ..)), _) => usage,
            (None, Some(usage)) => usage,
            (None, None) => {
                self.books
                    .own_usage(self.books.count_stream(&self.text))
                    .await
            }
        };
        if self.shown.is_none() {
            self.show(usage).await;
        }
        let (usage, cost, disputed) = self.shown.unwrap_or((usage, MicroUsd::ZERO, false));
        sink.finish(Some(cost.to_json_number())).await;
        let receipt = wire
            .receipt_soon()
            .await
            .and_then(|bytes| self.books.verify(&bytes));
        crate::failpoint::hit("buyer_usage");
        let own_output = self.books.count_stream(&self.text).tokens;
        let tally = Tally {
            status: self.head.status,
            model_served: self.head.model_served.clone(),
            usage: Some(usage),
            own_output: Some(own_output),
            cost,
            disputed,
            error: None,
        };
        self.books.settle(tally, receipt).await;
        Attempted::Done
    }

    /// Before the first event: the next seller. After it: the dialect's error event, and only what
    /// was delivered is owed.
    async fn seller_failed(
        self,
        mut wire: OrderWire,
        sink: &mut ClientSink,
        reason: String,
    ) -> Attempted {
        if self.begun {
            let text = llm_api::error::strip_billing_words(&reason);
            let event =
                llm_api::error::error_event(self.asked.dialect, 502, "seller_failed", &text);
            let _ = sink.send(event).await;
            sink.finish(None).await;
        }
        let receipt = wire
            .receipt_soon()
            .await
            .and_then(|bytes| self.books.verify(&bytes));
        self.books.receive(self.meter.running());
        let output = self.books.count_stream(&self.text);
        let delivered = Usage {
            output: output.tokens,
            ..Usage::default()
        };
        let claimed = receipt
            .as_ref()
            .map_or(delivered, |signed| signed.receipt.usage);
        let priced = self.books.price(&claimed, output).await;
        let cost = if self.begun {
            priced.cost
        } else {
            MicroUsd::ZERO
        };
        let tally = Tally {
            status: 502,
            own_output: Some(priced.own_output),
            cost,
            disputed: priced.disputed,
            error: Some(crate::protocol::limits::tame_text(&reason)),
            ..Tally::default()
        };
        self.books.settle(tally, receipt).await;
        if self.begun {
            Attempted::Done
        } else {
            fail(self.seller, FailureKind::Broken, &reason)
        }
    }

    /// The client hung up: the upstream stops, input and what arrived are owed.
    async fn client_gone(mut self, mut wire: OrderWire) -> Attempted {
        let mut late = Vec::new();
        let receipt = wire
            .cancel(CancelReason::ClientGone, |frame| {
                if frame.kind == FrameKind::Body {
                    late.push(frame.payload.clone());
                }
            })
            .await;
        for chunk in late {
            self.meter.push(&chunk);
            for event in self.splitter.push(chunk).flatten() {
                self.text.push(&event);
                self.tracker.push(&event);
            }
        }
        self.books.receive(self.meter.running());
        let receipt = receipt.and_then(|bytes| self.books.verify(&bytes));
        let output = self.books.count_stream(&self.text);
        let claimed = match &receipt {
            Some(signed) => signed.receipt.usage,
            None => self.books.own_usage(output).await,
        };
        let priced = self.books.price(&claimed, output).await;
        let tally = Tally {
            status: 499,
            model_served: self.head.model_served.clone(),
            usage: Some(claimed),
            own_output: Some(priced.own_output),
            cost: priced.cost,
            disputed: priced.disputed,
            error: Some("client_gone".to_owned()),
        };
        self.books.settle(tally, receipt).await;
        Attempted::Done
    }
}
