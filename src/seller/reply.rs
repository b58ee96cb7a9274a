//! Calls the upstream and relays what it says: a stream or a whole answer, to the receipt.
//!
//! The buyer hears from us while the upstream thinks. Streams are in [`super::stream`], whole
//! answers in [`super::whole`]; here is what both need. Called by the flow of [`super`].

use std::time::Duration;

use tokio::time::Instant;

use super::account::{self, Delivered};
use super::upstream::{Upstream, UpstreamError};
use super::wire::{InferWire, Stopped};
use super::{Finish, Job, Shared, Work, stage, stream, whole};
use crate::llm_api::headers;
use crate::protocol::infer::WholeAnswer;
use crate::protocol::limits::HEADERS_MAX;
use crate::protocol::{Ending, ResponseHead};

/// The buyer hears from us within a second of its head, then every five.
const FIRST_NOP: Duration = Duration::from_millis(500);
/// How often a silent upstream is covered by a NOP.
pub(super) const NOP_INTERVAL: Duration = Duration::from_secs(5);

/// Calls the upstream and relays what it says, to the receipt. True when the stream may carry
/// another request.
pub(super) async fn answer(shared: &Shared, wire: &mut InferWire, job: Job, work: Work) -> bool {
    let mut delivered = Delivered::new();
    let (upstream, endpoint) = match work {
        Work::Upstream(upstream, endpoint) => (upstream, endpoint),
        Work::Stage(session) => {
            let finish = stage::serve(shared, wire, &job, session, &mut delivered).await;
            return account::close(shared, wire, job, delivered, finish).await;
        }
    };
    let called = tokio::select! {
        biased;
        called = call(&upstream, &job) => Ok(called),
        stopped = watch(wire, &mut delivered) => Err(stopped),
    };
    let finish = match called {
        Err(stopped) => stopped_finish(shared, stopped),
        Ok(Err(error)) => {
            tracing::warn!(%error, "upstream call failed");
            job.pair.drop_attempt(&job.attempt);
            return fail_before_head(shared, wire, job, delivered).await;
        }
        Ok(Ok(response)) => {
            let is_stream = is_event_stream(&response) && response.status().is_success();
            delivered.status = response.status().as_u16();
            if is_stream {
                stream::relay(shared, wire, (&job, endpoint), response, &mut delivered).await
            } else {
                whole::relay(shared, wire, (&job, endpoint), response, &mut delivered).await
            }
        }
    };
    account::close(shared, wire, job, delivered, finish).await
}

async fn call(upstream: &Upstream, job: &Job) -> Result<reqwest::Response, UpstreamError> {
    let head = &job.order.signed.head;
    let allowed: Vec<(String, String)> = head
        .headers
        .iter()
        .filter(|(name, _)| headers::request_header_allowed(name))
        .cloned()
        .collect();
    crate::failpoint::hit("seller_before_upstream");
    upstream.call(&head.path, &allowed, job.body.clone()).await
}

/// Says NOP while the upstream thinks; resolves when the buyer stops.
pub(super) async fn watch(wire: &mut InferWire, delivered: &mut Delivered) -> Stopped {
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

pub(super) fn stopped_finish(shared: &Shared, stopped: Stopped) -> Finish {
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
async fn fail_before_head(
    shared: &Shared,
    wire: &mut InferWire,
    job: Job,
    delivered: Delivered,
) -> bool {
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
    .await
}

fn is_event_stream(response: &reqwest::Response) -> bool {
    response
        .headers()
        .get(reqwest::header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|kind| kind.starts_with("text/event-stream"))
}

pub(super) fn response_head(
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

/// The upstream broke off, for the reason `error`.
pub(super) const fn upstream_cut(error: &'static str) -> Finish {
    Finish {
        ending: Ending::SellerFailed,
        error: Some(error),
    }
}
