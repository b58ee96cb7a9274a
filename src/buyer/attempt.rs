//! One attempt at one seller: session, signed head, answer, books.
//!
//! Up to the dialect's first event a failure costs nothing and the next seller is tried; after it
//! the client gets the dialect's error event and pays for what was delivered.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::Shared;
use super::asked::Asked;
use super::books::Books;
use super::refusal::{AttemptFailure, FailureKind};
use super::relay;
use super::route::Candidate;
use super::sink::ClientSink;
use super::trial::Trial;
use super::wire::{OrderWire, Silence};
use crate::ledger::{OpenRow, Role, Row};
use crate::network::Protocol;
use crate::payment::PaymentError;
use crate::payment::payer::Pair;
use crate::protocol::{
    CancelReason, FrameKind, PeerError, PeerErrorCode, Progress, RequestHead, ResponseHead,
    SignedHead, WIRE_VERSION,
};
use crate::types::{Hash32, MicroUsd, PeerId};

/// A head lives this long; the seller's clock decides.
const HEAD_LIFE_MS: u64 = 55_000;

/// How an attempt ended, for the flow above.
pub(super) enum Attempted {
    /// The client has its answer (or has gone); nothing more to do.
    Done,
    /// The next seller, please.
    Failed(AttemptFailure),
}

/// What the first phase found.
enum Opened {
    Head(Box<ResponseHead>),
    /// A kept stream was dead: once more, on a fresh one.
    Stale,
    Again(PeerErrorCode),
    Failed(FailureKind, String),
    ClientGone,
}

/// Tries one seller; once more when it says that only the head was stale or the voucher late.
pub(super) async fn run(
    shared: &Arc<Shared>,
    asked: &Arc<Asked>,
    candidate: &Candidate,
    number: u32,
    trial: &Trial,
    deadline: Instant,
    sink: &mut ClientSink,
) -> Attempted {
    let seller = candidate.offer.offer.seller;
    for round in 0..2 {
        match once(shared, asked, candidate, number, trial, deadline, sink).await {
            Ok(done) => return done,
            Err(code) if round == 0 => {
                tracing::debug!(%seller, code = code.as_str(), "same seller once more");
            }
            Err(code) => {
                return fail(seller, FailureKind::Broken, code.as_str());
            }
        }
    }
    fail(seller, FailureKind::Broken, "refused twice")
}

async fn once(
    shared: &Arc<Shared>,
    asked: &Arc<Asked>,
    candidate: &Candidate,
    number: u32,
    trial: &Trial,
    deadline: Instant,
    sink: &mut ClientSink,
) -> Result<Attempted, PeerErrorCode> {
    let seller = candidate.offer.offer.seller;
    let connect = tokio::time::timeout_at(deadline, shared.payer.pair(&seller));
    let pair = match sink.while_alive(connect).await {
        Err(_gone) => return Ok(Attempted::Done),
        Ok(Ok(Ok(pair))) => pair,
        Ok(Ok(Err(error))) => {
            let reason = error.to_string();
            let kind = match error {
                // Not the seller's fault: it stays where it is in the order.
                PaymentError::InsufficientFunds { .. } if shared.payer.is_broke() => {
                    FailureKind::Funds
                }
                PaymentError::InsufficientFunds { .. } | PaymentError::ChainUnknown => {
                    FailureKind::Busy
                }
                _ => {
                    set_aside(shared, &seller, &reason);
                    FailureKind::Broken
                }
            };
            return Ok(fail(seller, kind, &reason));
        }
        Ok(Err(_)) => {
            let reason = "no session in time";
            set_aside(shared, &seller, reason);
            return Ok(fail(seller, FailureKind::Timeout, reason));
        }
    };
    let (head, open, window) = match order(shared, asked, candidate, number, &pair) {
        Some(order) => order,
        None => return Ok(fail(seller, FailureKind::Broken, "no channel")),
    };
    if let Err(PaymentError::CreditExhausted) = pair.begin(&open, window) {
        // On a chain the deposit is being raised, or the channel changes for another: soon again.
        let (kind, reason) = if shared.payer.pays_on_chain() {
            (FailureKind::Busy, "deposit_used_up")
        } else {
            (FailureKind::Credit, "credit_exhausted")
        };
        return Ok(fail(seller, kind, reason));
    }
    let books = Books::begin(shared, asked, candidate, &pair, &open, trial);
    if let Err(error) = shared.ledger.submit(vec![Row::Open(open)]).await {
        books.void(&error.to_string(), 0);
        return Ok(fail(seller, FailureKind::Broken, "ledger"));
    }
    pair.opened(&books.attempt);
    crate::failpoint::hit("buyer_open_row");
    serve(shared, asked, seller, &pair, head, books, deadline, sink).await
}

/// Opens the stream, waits for RESP_HEAD, relays.
#[allow(
    clippy::too_many_arguments,
    reason = "one flow, split only for its length"
)]
async fn serve(
    shared: &Arc<Shared>,
    asked: &Arc<Asked>,
    seller: PeerId,
    pair: &Arc<Pair>,
    head: SignedHead,
    books: Books,
    deadline: Instant,
    sink: &mut ClientSink,
) -> Result<Attempted, PeerErrorCode> {
    let mut called = false;
    let mut kept = shared.streams.take(&seller);
    let (mut wire, answer) = loop {
        let ordering = send_order(shared, asked, &seller, &head, kept.take());
        let ordering = tokio::time::timeout(shared.settings.timeouts.open, ordering);
        let mut wire = match sink.while_alive(ordering).await {
            Err(_gone) => {
                books.void("client_gone", 499);
                return Ok(Attempted::Done);
            }
            Ok(Ok(Ok(wire))) => wire,
            Ok(failed) => {
                let reason = match failed {
                    Ok(Err(reason)) => reason,
                    _ => "no stream in time".to_owned(),
                };
                books.void(&reason, 502);
                set_aside(shared, &seller, &reason);
                return Ok(fail(seller, FailureKind::Broken, &reason));
            }
        };
        crate::failpoint::hit("buyer_after_head");
        match first_answer(shared, asked, pair, &mut wire, deadline, &mut called, sink).await {
            // The others were kept as long.
            Opened::Stale => shared.streams.forget(&seller),
            answer => break (wire, answer),
        }
    };
    match answer {
        Opened::Head(response) => {
            shared.book.mark_alive(&seller);
            crate::failpoint::hit("buyer_resp_head");
            Ok(relay::answer(
                shared, asked, seller, wire, *response, books, deadline, sink,
            )
            .await)
        }
        Opened::Again(code) => {
            books.void(code.as_str(), 0);
            Err(code)
        }
        Opened::Failed(kind, reason) => {
            if kind == FailureKind::Timeout {
                set_aside(shared, &seller, &reason);
                let _ = wire.cancel(CancelReason::Timeout, |_| {}).await;
                // The connection may be a dead process's; the next request dials anew.
                shared.network.disconnect(&seller).await;
            }
            books.void(&reason, 502);
            Ok(fail(seller, kind, &reason))
        }
        Opened::ClientGone => {
            let nothing = books.count_whole(&[]);
            books.client_gone(wire, called, nothing).await;
            Ok(Attempted::Done)
        }
        // Only a kept stream is stale, and the loop above takes one at most.
        Opened::Stale => {
            books.void("stale_stream", 502);
            Ok(fail(seller, FailureKind::Broken, "the stream was closed"))
        }
    }
}

/// Sends the order on a kept stream, or on a fresh one where there is none or it is dead.
async fn send_order(
    shared: &Shared,
    asked: &Asked,
    seller: &PeerId,
    head: &SignedHead,
    kept: Option<OrderWire>,
) -> Result<OrderWire, String> {
    if let Some(mut wire) = kept
        && wire.order(head, &asked.body).await.is_ok()
    {
        return Ok(wire);
    }
    let stream = shared.network.open(seller, Protocol::Infer).await;
    let mut wire = OrderWire::new(stream.map_err(|e| e.to_string())?);
    wire.order(head, &asked.body)
        .await
        .map_err(|e| e.to_string())?;
    Ok(wire)
}

/// The seller does not answer: others come first for a while, and its streams are not used again.
fn set_aside(shared: &Shared, seller: &PeerId, reason: &str) {
    tracing::warn!(%seller, reason, "seller set aside");
    shared.streams.forget(seller);
    shared.book.mark_dead(seller);
}

/// Waits for RESP_HEAD: a first frame within `open`, then signs of life until the deadline.
async fn first_answer(
    shared: &Shared,
    asked: &Asked,
    pair: &Pair,
    wire: &mut OrderWire,
    deadline: Instant,
    called: &mut bool,
    sink: &mut ClientSink,
) -> Opened {
    let mut limit = deadline.min(Instant::now() + shared.settings.timeouts.open);
    let mut may_be_stale = wire.is_kept;
    loop {
        let frame = match sink.while_alive(wire.frame(limit)).await {
            Err(_gone) => return Opened::ClientGone,
            Ok(Ok(frame)) => frame,
            Ok(Err(Silence::Late)) => {
                return Opened::Failed(FailureKind::Timeout, "no answer in time".into());
            }
            Ok(Err(Silence::Broken(_))) if may_be_stale => return Opened::Stale,
            Ok(Err(Silence::Broken(reason))) => return Opened::Failed(FailureKind::Broken, reason),
        };
        may_be_stale = false;
        limit = deadline;
        match frame.kind {
            FrameKind::Nop => {
                let progress = Progress::decode(&frame.payload);
                *called |= progress.is_ok_and(|p| p.upstream_called);
            }
            FrameKind::Need => pair.urge(),
            FrameKind::RespHead => {
                return match ResponseHead::decode(&frame.payload) {
                    Ok(head) if StatusCode::from_u16(head.status).is_ok() => {
                        Opened::Head(Box::new(head))
                    }
                    _ => Opened::Failed(FailureKind::Broken, "malformed answer".into()),
                };
            }
            FrameKind::Error => return refused(shared, asked, pair, &frame.payload),
            _ => return Opened::Failed(FailureKind::Broken, "answer out of order".into()),
        }
    }
}

fn refused(shared: &Shared, asked: &Asked, pair: &Pair, payload: &[u8]) -> Opened {
    let Ok(error) = PeerError::decode(payload) else {
        return Opened::Failed(FailureKind::Broken, "malformed refusal".into());
    };
    tracing::debug!(request = %asked.id, code = error.code.as_str(), "seller refused");
    match error.code {
        PeerErrorCode::Stale | PeerErrorCode::ClockSkew => {
            pair.learn_clock(error.now_ms, shared.clock.now_ms());
            Opened::Again(error.code)
        }
        PeerErrorCode::VoucherLate => Opened::Again(error.code),
        PeerErrorCode::CreditExhausted if !shared.payer.pays_on_chain() => {
            Opened::Failed(FailureKind::Credit, error.code.as_str().into())
        }
        PeerErrorCode::CreditExhausted => {
            Opened::Failed(FailureKind::Busy, error.code.as_str().into())
        }
        PeerErrorCode::Overloaded | PeerErrorCode::Draining => {
            Opened::Failed(FailureKind::Busy, error.code.as_str().into())
        }
        PeerErrorCode::UpstreamFailed => Opened::Failed(
            FailureKind::Broken,
            format!("upstream failed: {}", error.message),
        ),
        code => Opened::Failed(FailureKind::Broken, code.as_str().into()),
    }
}

/// The signed head and the open row of this attempt.
fn order(
    shared: &Shared,
    asked: &Asked,
    candidate: &Candidate,
    number: u32,
    pair: &Pair,
) -> Option<(SignedHead, OpenRow, MicroUsd)> {
    let offer = &candidate.offer.offer;
    let channel = pair.channel()?;
    let window = if offer.price.is_free() {
        MicroUsd::ZERO
    } else {
        shared.settings.windows.stream(&offer.price)
    };
    let (signed, required) = pair.quote(candidate.prefill, window);
    let now_ms = shared.clock.now_ms();
    let iat_ms = pair.seller_time(now_ms);
    let head = RequestHead {
        version: WIRE_VERSION,
        network: shared.settings.network.clone(),
        request_id: asked.id,
        attempt: number,
        seller: offer.seller,
        buyer: shared.keys.identity.peer_id(),
        path: asked.endpoint.path().to_owned(),
        model: offer.model.to_string(),
        stream: asked.stream,
        headers: asked.headers.clone(),
        body_sha256: Hash32(Sha256::digest(&asked.body).into()),
        body_len: u64::try_from(asked.body.len()).unwrap_or(u64::MAX),
        offer_hash: candidate.offer.hash,
        max_cost: candidate.max_cost,
        channel,
        cumulative_required: required,
        nonce: shared.nonces.next(),
        iat_ms,
        exp_ms: iat_ms.saturating_add(HEAD_LIFE_MS),
        delegation: shared.settings.delegation.clone(),
    };
    let head = SignedHead::sign(head, &shared.keys.identity);
    let open = OpenRow {
        at_ms: now_ms,
        attempt_id: head.attempt_id(),
        request_id: asked.id,
        attempt: number,
        role: Role::Buy,
        peer: offer.seller,
        client: asked.client.clone(),
        model_asked: asked.view.model.clone(),
        model: offer.model.clone(),
        offer_hash: candidate.offer.hash,
        price: offer.price,
        channel,
        max_cost: candidate.max_cost,
        prefill: candidate.prefill,
        voucher_before: signed,
        signed_head: head.bytes.to_vec(),
    };
    Some((head, open, window))
}

pub(super) fn fail(seller: PeerId, kind: FailureKind, reason: &str) -> Attempted {
    Attempted::Failed(AttemptFailure {
        seller,
        kind,
        reason: reason.to_owned(),
        retry_after_s: None,
    })
}

/// The share of the time left that one attempt gets while another candidate exists.
pub(super) fn attempt_deadline(all: Instant, more_candidates: bool) -> Instant {
    let left = all.saturating_duration_since(Instant::now());
    let share = if more_candidates { left / 2 } else { left };
    Instant::now() + share.max(Duration::from_secs(1))
}
