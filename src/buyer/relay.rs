//! Passes an answer to the client as it comes, event by event, metering it on the way.
//!
//! The same dialect passes as bytes; another goes through a translator, event by event, and only
//! what the client sees changes: counts and money stay on the upstream's bytes. Otherwise only two things change: the chat usage chunk gets
//! `usage.cost` (or is hidden from a client that did not ask for usage), and an answer that ends
//! without usage gets one counted here. Whole answers are in [`super::whole`], error answers in
//! [`super::upstream_error`]. Called by [`super::attempt`].

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use tokio::time::Instant;

use super::asked::Asked;
use super::attempt::{Attempted, fail};
use super::books::Books;
use super::refusal::FailureKind;
use super::sink::ClientSink;
use super::wire::{OrderWire, Silence};
use super::{Shared, upstream_error, whole};
use crate::llm_api::translate::StreamTranslator;
use crate::llm_api::{
    self, AnswerMeter, Dialect, EventSplitter, StreamIdentity, UsageTracker, headers, sse,
    stream_end,
};
use crate::payment::RunningMeter;
use crate::protocol::frame::Frame;
use crate::protocol::{CancelReason, FrameKind, PeerError, ResponseHead, SignedReceipt};
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
        return upstream_error::relay(asked, seller, wire, &head, status, books, sink).await;
    }
    if head.whole.is_some() && sink.committed() {
        // The client was promised events; a JSON answer cannot follow a heartbeat.
        let mut wire = wire;
        let _ = wire.cancel(CancelReason::Timeout, |_| {}).await;
        books.void("not_a_stream", 502);
        return fail(seller, FailureKind::Broken, "the upstream did not stream");
    }
    if let Some(promised) = head.whole {
        return whole::relay(asked, seller, wire, &head, promised, books, deadline, sink).await;
    }
    let relay = Relay::new(shared, asked, seller, &head, books);
    relay.run(wire, deadline, sink).await
}

/// Allow-listed headers of the seller's answer.
pub(super) fn client_headers(head: &ResponseHead) -> HeaderMap {
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

/// A stream on its way to the client.
pub(super) struct Relay<'a> {
    pub(super) asked: &'a Asked,
    pub(super) seller: PeerId,
    pub(super) books: Books,
    pub(super) head: &'a ResponseHead,
    pub(super) idle: std::time::Duration,
    pub(super) total: Option<Instant>,
    pub(super) meter: RunningMeter,
    pub(super) text: AnswerMeter,
    pub(super) splitter: EventSplitter,
    pub(super) tracker: UsageTracker,
    /// Turns the upstream's dialect into the client's, when they differ.
    pub(super) translator: Option<StreamTranslator>,
    /// Events for the client, gathered until the next send.
    pub(super) out: BytesMut,
    /// The dialect's first event was sent: no failover any more.
    pub(super) begun: bool,
    /// Events that passed as they are, for the number of one that we add.
    pub(super) passed: u64,
    /// Nothing but comments came so far.
    pub(super) only_heartbeats: bool,
    /// The content block of a Messages answer that the client has seen begin and not end.
    pub(super) open_block: Option<u64>,
    /// A receipt that came with a cancel.
    pub(super) receipt: Option<SignedReceipt>,
    pub(super) shown: Option<(Usage, MicroUsd, bool)>,
}

/// Why a stream is over.
enum Over {
    Ended,
    SellerFailed(String),
    /// Our own patience ended.
    Late,
    ClientGone,
    /// A spending limit is reached.
    Budget,
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
            translator: asked.way_back.clone().map(StreamTranslator::new),
            out: BytesMut::new(),
            begun: false,
            passed: 0,
            only_heartbeats: true,
            open_block: None,
            receipt: None,
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
                Ok(Err(Silence::Late)) => break Over::Late,
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
            Over::Late => {
                self.stop(&mut wire, CancelReason::Timeout).await;
                self.seller_failed(wire, sink, "silent for too long".to_owned())
                    .await
            }
            Over::ClientGone => self.client_gone(wire).await,
            Over::Budget => self.out_of_budget(wire, sink).await,
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
        let is_allowed = self.books.receive(self.meter.running());
        Ok((!is_allowed).then_some(Over::Budget))
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
        if self.translator.is_some() {
            return self.translate(&event).await;
        }
        if self.asked.dialect != Dialect::Chat {
            return self.pass(event).await;
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

    /// An event of Messages or Responses as it is, with our usage when its upstream reported none.
    async fn pass(&mut self, event: Bytes) -> Result<(), String> {
        self.passed += u64::from(!sse::is_heartbeat(&event));
        let dialect = self.asked.dialect;
        if dialect == Dialect::Messages {
            self.open_block = sse::open_block(&event, self.open_block);
        }
        if self.tracker.usage().is_some() || !sse::is_usage_due(dialect, &event) {
            self.out.extend_from_slice(&event);
            return Ok(());
        }
        let usage = self.usage().await;
        self.show(usage).await;
        let event = llm_api::insert_usage(&event, dialect, &usage, None);
        self.out.extend_from_slice(&event);
        Ok(())
    }

    /// Puts out what one event adds in the client's dialect.
    async fn translate(&mut self, event: &Bytes) -> Result<(), String> {
        if sse::is_error(event) {
            let said = sse::data(event).and_then(llm_api::error::message_of);
            return Err(said.unwrap_or_else(|| "the upstream sent an error".to_owned()));
        }
        let mut text = Vec::new();
        if let Some(translator) = &mut self.translator {
            translator
                .push(event, &mut text)
                .map_err(|error| format!("an event is no JSON: {error}"))?;
        }
        self.out.extend_from_slice(&text);
        if sse::is_done(self.asked.dialect, event) {
            self.end_translation().await;
        }
        Ok(())
    }

    /// The end in the client's dialect, with the usage and cost that are booked.
    pub(super) async fn end_translation(&mut self) {
        let Some(mut translator) = self.translator.take_if(|t| !t.is_finished()) else {
            return;
        };
        let usage = self.usage().await;
        let cost = self.show(usage).await;
        let mut text = Vec::new();
        translator.finish(&usage, cost, &mut text);
        self.translator = Some(translator);
        self.out.extend_from_slice(&text);
    }

    /// The usage that the upstream reported, or our own count.
    pub(super) async fn usage(&self) -> Usage {
        match self.tracker.usage() {
            Some(usage) => usage,
            None => {
                let output = self.books.count_stream(&self.text);
                self.books.own_usage(output).await
            }
        }
    }

    /// The cost of `usage` by our own bound; remembered, because it is what will be accepted.
    pub(super) async fn show(&mut self, usage: Usage) -> MicroUsd {
        let priced = self
            .books
            .price(&usage, self.books.count_stream(&self.text))
            .await;
        let cost = if usage.output == 0 && !self.asked.endpoint.owes_without_output() {
            MicroUsd::ZERO
        } else {
            priced.cost
        };
        self.shown = Some((usage, cost, priced.disputed));
        cost
    }

    /// The upstream reported no usage: ours is shown, never a blank.
    async fn missing_usage(&mut self) {
        let usage = self.usage().await;
        let cost = self.show(usage).await;
        if self.asked.wants_usage {
            let nameless = StreamIdentity::default();
            let identity = self.tracker.identity().unwrap_or(&nameless);
            let chunk = stream_end::chat_usage_chunk(identity, &usage, Some(cost));
            self.out.extend_from_slice(&chunk);
        }
    }

    /// Sends what is gathered; nothing before the first event that is no comment.
    pub(super) async fn flush(
        &mut self,
        sink: &mut ClientSink,
    ) -> Result<(), crate::http::body::ClientGone> {
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
}
