//! An answer of the upstream that is an error: the request's fault passes, the rest fails over.
//!
//! Nothing is owed for it. Called by [`super::relay`].

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use tokio::time::Instant;

use super::asked::Asked;
use super::attempt::Attempted;
use super::books::Books;
use super::refusal::{self, AttemptFailure, FailureKind};
use super::relay::client_headers;
use super::sink::ClientSink;
use super::wire::OrderWire;
use crate::llm_api;
use crate::protocol::{FrameKind, ResponseHead};
use crate::types::PeerId;

/// 400, 413 and 422 are the request's fault and pass; everything else is this seller's failure.
pub(super) async fn relay(
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
        let body = in_clients_shape(asked, status, body);
        sink.respond(status, client_headers(head), body);
        return Attempted::Done;
    }
    if passes {
        let message = format!("the upstream refused the request with {}", status.as_u16());
        let _ = sink
            .send(llm_api::error::error_event(
                asked.client_dialect(),
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
    Attempted::Failed(AttemptFailure {
        seller,
        kind,
        reason: reason(status, &body),
        retry_after_s: retry_after_s(head),
    })
}

/// What the client is told. One that cannot serve now may say why: a pipeline that lacks a stage, or
/// pays no more for one.
fn reason(status: StatusCode, body: &[u8]) -> String {
    let status = status.as_u16();
    let said = llm_api::error::message_of(body).filter(|_| status == 503);
    said.map_or_else(
        || format!("upstream answered {status}"),
        |said| format!("upstream answered {status}: {said}"),
    )
}

/// The upstream's `retry-after` in seconds; a date says too little of a stranger's clock.
fn retry_after_s(head: &ResponseHead) -> Option<u64> {
    let is_it = |name: &str| name.eq_ignore_ascii_case("retry-after");
    let (_, value) = head.headers.iter().find(|(name, _)| is_it(name))?;
    value.trim().parse().ok()
}

/// The upstream's error as it is, or in the client's dialect when that is another.
fn in_clients_shape(asked: &Asked, status: StatusCode, body: Bytes) -> Bytes {
    if asked.way_back.is_none() {
        return body;
    }
    let message = llm_api::error::message_of(&body);
    let message = message
        .as_deref()
        .unwrap_or("the upstream refused the request");
    let (dialect, code) = (asked.client_dialect(), "upstream_refused");
    llm_api::error::envelope(dialect, status.as_u16(), code, message)
}
