//! A whole answer: held until it is complete, checked, priced, then sent.
//!
//! Nothing reaches the client before the last byte is here, so a cut answer still fails over.
//! Called by [`super::relay`].

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use tokio::time::Instant;

use super::asked::Asked;
use super::attempt::{Attempted, fail};
use super::books::{Books, Tally};
use super::refusal::{FailureKind, short};
use super::relay::client_headers;
use super::sink::ClientSink;
use super::wire::OrderWire;
use crate::llm_api::{self, Dialect, translate};
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
                books.receive(slice_worth(whole.cost, sent, whole.length).min(bound));
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
    };
    tracing::debug!(seller = %short(&seller), "whole answer relayed");
    books.settle(tally, receipt).await;
    Attempted::Done
}
