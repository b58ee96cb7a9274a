//! How a relayed stream ends: well, cut by its seller, or left by its client; and what is owed then.
//!
//! Called by [`super::relay`].

use super::attempt::{Attempted, fail};
use super::books::{BUDGET, Tally};
use super::check::Said;
use super::refusal::FailureKind;
use super::relay::Relay;
use super::sink::ClientSink;
use super::wire::OrderWire;
use crate::llm_api::translate::StreamTranslator;
use crate::llm_api::{self, Dialect, stream_end};
use crate::protocol::{CancelReason, FrameKind};
use crate::types::{MicroUsd, Usage};

use bytes::Bytes;

impl Relay<'_> {
    pub(super) async fn ended(mut self, mut wire: OrderWire, sink: &mut ClientSink) -> Attempted {
        if !self.tracker.ended_well() {
            return self
                .seller_failed(wire, sink, "the answer was cut".to_owned())
                .await;
        }
        self.end_translation().await;
        // A client that has gone is noticed by what follows.
        let _ = self.flush(sink).await;
        if self.shown.is_none() {
            let usage = self.usage().await;
            self.show(usage).await;
        }
        let (usage, cost, disputed) = self.shown.unwrap_or_default();
        sink.finish(Some(cost.to_json_number())).await;
        let receipt = wire
            .receipt_soon()
            .await
            .and_then(|bytes| self.books.verify(&bytes));
        crate::failpoint::hit("buyer_usage");
        if receipt.is_some() {
            self.books.keep(wire);
        }
        let own_output = self.books.count_stream(&self.text).tokens;
        let tally = Tally {
            status: self.head.status,
            model_served: self.head.model_served.clone(),
            usage: Some(usage),
            own_output: Some(own_output),
            cost,
            disputed,
            error: None,
            said: self.said(),
        };
        self.books.settle(tally, receipt).await;
        Attempted::Done
    }

    /// What the stream said, for the checks.
    fn said(&self) -> Said {
        let identity = self.tracker.identity();
        Said {
            has_call: self.tracker.tool_call_seen(),
            finish: self.tracker.finish_reason().map(str::to_owned),
            model: identity.map(|identity| identity.model.clone()),
            ..Said::new(&self.text.text())
        }
    }

    /// Before the first event: the next seller. After it: the dialect's error event, and only what
    /// was delivered is owed.
    pub(super) async fn seller_failed(
        mut self,
        mut wire: OrderWire,
        sink: &mut ClientSink,
        reason: String,
    ) -> Attempted {
        if self.begun {
            let text = llm_api::error::strip_billing_words(&reason);
            let number = self
                .translator
                .as_ref()
                .map_or(self.passed, StreamTranslator::next_number);
            let event = llm_api::error::error_event_numbered(
                self.asked.client_dialect(),
                502,
                "seller_failed",
                &text,
                number,
            );
            let _ = sink.send(event).await;
            sink.finish(None).await;
        }
        let receipt = match self.receipt.take() {
            Some(receipt) => Some(receipt),
            None => wire
                .receipt_soon()
                .await
                .and_then(|bytes| self.books.verify(&bytes)),
        };
        let _ = self.books.receive(self.meter.running());
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

    /// Cancels, and meters what was on its way; gives the receipt's bytes.
    pub(super) async fn stop(
        &mut self,
        wire: &mut OrderWire,
        reason: CancelReason,
    ) -> Option<Bytes> {
        let Self {
            meter,
            splitter,
            text,
            tracker,
            ..
        } = self;
        let receipt = wire.cancel(reason, |frame| {
            if frame.kind == FrameKind::Body {
                meter.push(&frame.payload);
                for event in splitter.push(frame.payload.clone()).flatten() {
                    text.push(&event);
                    tracker.push(&event);
                }
            }
        });
        let receipt = receipt.await;
        // Above a limit nothing is promised; the end says what is paid.
        let _ = self.books.receive(self.meter.running());
        if let Some(bytes) = &receipt {
            self.receipt = self.books.verify(bytes);
        }
        receipt
    }

    /// A spending limit is reached: the upstream stops, and the client's answer ends as one that ran
    /// into its own limit does.
    pub(super) async fn out_of_budget(
        mut self,
        mut wire: OrderWire,
        sink: &mut ClientSink,
    ) -> Attempted {
        // What comes after the cancel is owed but not passed on.
        let seen = self.tracker.clone();
        self.stop(&mut wire, CancelReason::Budget).await;
        let receipt = self.receipt.take();
        let output = self.books.count_stream(&self.text);
        let usage = match &receipt {
            Some(signed) => signed.receipt.usage,
            None => self.books.own_usage(output).await,
        };
        let priced = self.books.price(&usage, output).await;
        let cost = priced.cost;
        if let Some(mut translator) = self.translator.take() {
            let mut text = Vec::new();
            translator.cut_short();
            translator.finish(&usage, cost, &mut text);
            self.out.extend_from_slice(&text);
        } else {
            let open_block = self.open_block;
            let usage = (self.asked.dialect != Dialect::Chat || self.asked.wants_usage)
                .then_some((&usage, cost));
            let end = stream_end::cut_short(&seen, usage, open_block, self.passed);
            self.out.extend_from_slice(&end);
        }
        self.only_heartbeats = false;
        let _ = self.flush(sink).await;
        sink.finish(Some(cost.to_json_number())).await;
        let tally = Tally {
            status: self.head.status,
            model_served: self.head.model_served.clone(),
            usage: Some(usage),
            own_output: Some(priced.own_output),
            cost,
            disputed: priced.disputed,
            error: Some(BUDGET.to_owned()),
            ..Tally::default()
        };
        self.books.settle(tally, receipt).await;
        Attempted::Done
    }

    /// The client hung up: the upstream stops, input and what arrived are owed.
    pub(super) async fn client_gone(mut self, mut wire: OrderWire) -> Attempted {
        let receipt = self.stop(&mut wire, CancelReason::ClientGone).await;
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
            ..Tally::default()
        };
        self.books.settle(tally, receipt).await;
        Attempted::Done
    }
}
