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
use super::allowance::Allowance;
use super::asked::Asked;
use super::books::Books;
use super::budget::Exceeded;
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
use crate::types::{Hash32, PeerId};

/// A head lives this long; the seller's clock decides.
const HEAD_LIFE_MS: u64 = 55_000;

/// How an attempt ended, for the flow above.
pub(super) enum Attempted {
    /// The client has its answer (or has gone); nothing more to do.
    Done,
    /// The next seller, please.
    Failed(AttemptFailure),
    /// It would cost more than it may; this is the spending limit, unless it is the request's own.
    TooDear(Option<Exceeded>),
}

/// What the first phase found.
enum Opened {
    Head(Box<ResponseHead>),
    /// A kept stream was dead: once more, on a fresh one.
    Stale,
    Again(PeerErrorCode),
    /// The answer costs more than the seller was told it may.
    TooDear,
    Failed(FailureKind, String),
    /// More in a minute than the seller serves; when it may be asked again, s.
    RateLimited(u64),
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
    let window = shared.window(candidate);
    let allowance = match Allowance::take(shared, asked, candidate, window) {
        Ok(allowance) => allowance,
        Err(exceeded) => return Ok(Attempted::TooDear(Some(exceeded))),
    };
    let Some((head, open)) = order(shared, asked, candidate, number, &pair, &allowance) else {
        return Ok(fail(seller, FailureKind::Broken, "no channel"));
    };
    allowance.name(open.attempt_id);
    if let Err(PaymentError::CreditExhausted) = pair.begin(&open, window) {
        // On a chain the deposit is being raised, or the channel changes for another: soon again.
        let (kind, reason) = if shared.payer.pays_on_chain() {
            (FailureKind::Busy, "deposit_used_up")
        } else {
            (FailureKind::Credit, "credit_exhausted")
        };
        return Ok(fail(seller, kind, reason));
    }
    let reached = allowance.reached();
    let books = Books::begin(shared, asked, candidate, &pair, allowance, &open, trial);
    if let Err(error) = shared.ledger.submit(vec![Row::Open(open)]).await {
        books.void(&error.to_string(), 0);
        return Ok(fail(seller, FailureKind::Broken, "ledger"));
    }
    pair.opened(&books.attempt);
    crate::failpoint::hit("buyer_open_row");
    let served = serve(shared, asked, seller, &pair, head, books, deadline, sink).await?;
    Ok(match served {
        // The spending limit that stood in the way; else the request's own.
        Attempted::TooDear(None) => Attempted::TooDear(reached.lock().take()),
        served => served,
    })
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
    // One over an older connection may end at a process that is gone.
    let mut kept = shared.streams.take(&seller);
    kept = kept.filter(|wire| shared.network.goes_by(&seller, wire.carrier));
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
        Opened::TooDear if books.is_capped() => {
            books.void("above_max_cost", 0);
            Ok(Attempted::TooDear(None))
        }
        Opened::TooDear => {
            books.void("above_max_cost", 502);
            Ok(fail(seller, FailureKind::Broken, "answer above max_cost"))
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
            let declined = kind == FailureKind::Declined;
            if declined {
                set_aside(shared, &seller, &reason);
            }
            // No answer of the seller's is held against it where it only declined.
            books.void(&reason, if declined { 0 } else { 502 });
            Ok(fail(seller, kind, &reason))
        }
        Opened::RateLimited(retry_after_s) => {
            let reason = PeerErrorCode::RateLimited.as_str().to_owned();
            books.void(&reason, 429);
            Ok(Attempted::Failed(AttemptFailure {
                seller,
                kind: FailureKind::RateLimited,
                reason,
                retry_after_s: Some(retry_after_s),
            }))
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
        PeerErrorCode::AboveMaxCost => Opened::TooDear,
        PeerErrorCode::CreditExhausted if !shared.payer.pays_on_chain() => {
            Opened::Failed(FailureKind::Credit, error.code.as_str().into())
        }
        PeerErrorCode::CreditExhausted => {
            Opened::Failed(FailureKind::Busy, error.code.as_str().into())
        }
        PeerErrorCode::Overloaded => Opened::Failed(FailureKind::Busy, error.code.as_str().into()),
        PeerErrorCode::RateLimited => {
            Opened::RateLimited(u64::from(error.retry_after_ms).div_ceil(1_000))
        }
        PeerErrorCode::Draining | PeerErrorCode::NotAllowed | PeerErrorCode::QuotaUsedUp => {
            Opened::Failed(FailureKind::Declined, error.code.as_str().into())
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
    allowance: &Allowance,
) -> Option<(SignedHead, OpenRow)> {
    let offer = &candidate.offer.offer;
    let channel = pair.channel()?;
    let (signed, required) = pair.quote(candidate.prefill, shared.window(candidate));
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
        max_cost: allowance.max_cost,
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
        max_cost: allowance.max_cost,
        prefill: candidate.prefill,
        voucher_before: signed,
        signed_head: head.bytes.to_vec(),
    };
    Some((head, open))
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
