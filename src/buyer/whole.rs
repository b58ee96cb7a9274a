//! A whole answer: held until it is complete, checked, priced, then sent.
//!
//! Nothing reaches the client before the last byte is here, so a cut answer still fails over.
//! Called by [`super::relay`].

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use tokio::time::Instant;

use super::asked::Asked;
use super::attempt::{Attempted, fail};
use super::books::{BUDGET, Books, Tally};
use super::check::Said;
use super::refusal::{FailureKind, short};
use super::relay::client_headers;
use super::sink::ClientSink;
use super::wire::OrderWire;
use crate::llm_api::{self, AnswerMeter, Dialect, UsageTracker, translate};
use crate::payment::running::slice_worth;
use crate::protocol::infer::WholeAnswer;
use crate::protocol::limits::BODY_BYTES_MAX;
use crate::protocol::{CancelReason, FrameKind, PeerError, ResponseHead};
use crate::types::{MicroUsd, PeerId};

/// Receives and passes the answer that the head promised.
#[allow(
    clippy::too_many_arguments,
    reason = "one flow, split only for its length"
)]
pub(super) async fn relay(
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
    if whole.cost > books.max_cost() || too_long {
        let _ = wire.cancel(CancelReason::Timeout, |_| {}).await;
        books.void("above_max_cost", 502);
        return fail(seller, FailureKind::Broken, "answer above max_cost");
    }
    if !books.hold(whole.cost) {
        return out_of_budget(wire, head, books).await;
    }
    books.start(MicroUsd::ZERO);
    books.first_event();
    let input_bound = books.prefill;
    let mut body = BytesMut::new();
    loop {
        let frame = match sink.while_alive(wire.frame(deadline)).await {
            Err(_gone) => {
                let delivered = books.count_whole(&body);
                books.client_gone(wire, true, delivered).await;
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
                // All that it can cost is held since it began.
                let _ = books.receive(slice_worth(whole.cost, sent, whole.length).min(bound));
                crate::failpoint::hit("buyer_half_body");
            }
            FrameKind::Need => books.urge(),
            FrameKind::Nop => {}
            FrameKind::Error => {
                let error = PeerError::decode(&frame.payload);
                let reason = error.map_or("malformed_answer", |error| error.code.as_str());
                books.void(reason, 502);
                return fail(seller, FailureKind::Broken, reason);
            }
            FrameKind::End if u64::try_from(body.len()).ok() == Some(whole.length) => break,
            _ => {
                books.void("malformed_answer", 502);
                return fail(seller, FailureKind::Broken, "malformed answer");
            }
        }
    }
    finish(asked, seller, wire, head, body.freeze(), books, sink).await
}

/// The answer is there and a spending limit does not allow it: the input is owed, as for a client that
/// hangs up.
async fn out_of_budget(mut wire: OrderWire, head: &ResponseHead, books: Books) -> Attempted {
    let receipt = wire.cancel(CancelReason::Budget, |_| {}).await;
    let receipt = receipt.and_then(|bytes| books.verify(&bytes));
    let nothing = books.count_whole(&[]);
    let usage = match &receipt {
        Some(signed) => signed.receipt.usage,
        None => books.own_usage(nothing).await,
    };
    let priced = books.price(&usage, nothing).await;
    let tally = Tally {
        status: head.status,
        usage: Some(usage),
        cost: priced.cost,
        disputed: priced.disputed,
        error: Some(BUDGET.to_owned()),
        ..Tally::default()
    };
    books.settle(tally, receipt).await;
    Attempted::TooDear(None)
}

async fn finish(
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
    let said = said(asked.dialect, &body);
    if let Some(what) = books.refuse(&usage, output.tokens, &said) {
        return fail(seller, FailureKind::Broken, what);
    }
    let priced = books.price(&usage, output).await;
    let cost = if usage.output == 0 && !asked.endpoint.owes_without_output() {
        MicroUsd::ZERO
    } else {
        priced.cost
    };
    let sent = match (&asked.way_back, asked.dialect, reported) {
        (Some(way), ..) => match translate::answer(&body, way, &usage, cost) {
            Ok(sent) => sent,
            Err(error) => {
                books.void("untranslatable", 502);
                return fail(seller, FailureKind::Broken, &error.to_string());
            }
        },
        (None, Dialect::Chat, Some(_)) => llm_api::splice_cost(&body, cost),
        (None, _, Some(_)) => body,
        (None, dialect, None) => {
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
    if receipt.is_some() {
        books.keep(wire);
    }
    let tally = Tally {
        status: head.status,
        model_served: head.model_served.clone(),
        usage: Some(usage),
        own_output: Some(priced.own_output),
        cost,
        disputed: priced.disputed,
        error: None,
        said,
    };
    tracing::debug!(seller = %short(&seller), "whole answer relayed");
    books.settle(tally, receipt).await;
    Attempted::Done
}

/// What the body says, for the checks.
fn said(dialect: Dialect, body: &Bytes) -> Said {
    #[derive(serde::Deserialize)]
    struct Named {
        model: Option<String>,
    }
    let mut tracker = UsageTracker::new(dialect);
    tracker.push(body);
    let mut text = AnswerMeter::with_text(dialect);
    text.push(body);
    let named = serde_json::from_slice::<Named>(body).ok();
    Said {
        has_call: tracker.tool_call_seen(),
        finish: tracker.finish_reason().map(str::to_owned),
        model: named.and_then(|named| named.model),
        ..Said::new(&text.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_answer_is_read_for_the_checks() {
        let body = br#"{"id":"c","model":"gpt-4o","choices":[{"index":0,"message":{"role":"assistant",
            "content":"Two rivers.","tool_calls":null},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,
            "completion_tokens":3}}"#;
        let said = said(Dialect::Chat, &Bytes::from_static(body));
        assert_eq!(said.text, "Two rivers.");
        assert_eq!(said.finish.as_deref(), Some("stop"));
        assert_eq!(said.model.as_deref(), Some("gpt-4o"));
        assert!(!said.has_call);
        let body =
            br#"{"model":"m","content":[{"type":"text","text":"Hi."}],"stop_reason":"end_turn"}"#;
        let said = super::said(Dialect::Messages, &Bytes::from_static(body));
        assert_eq!(
            (said.text.as_str(), said.finish.as_deref()),
            ("Hi.", Some("end_turn"))
        );
    }
}
