//! What the client is told when no seller could answer: the table of the README, one place.

use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::budget::Exceeded;
use super::sink::ClientSink;
use crate::llm_api::{self, Dialect};
use crate::types::{ModelId, PeerId};

/// Back-off told to clients when sellers are busy or gone, seconds.
const RETRY_SOON_S: &str = "5";
/// Back-off when the credit is used up, seconds: above a minute clients take their fallback model.
const RETRY_CREDIT_S: &str = "300";
/// Least back-off at a spending limit, seconds: up to a minute clients wait instead of falling back.
const RETRY_BUDGET_S_MIN: u64 = 61;
/// Names listed when a model is unknown.
const NEAREST_MAX: usize = 3;
/// Longest upstream error body passed to a client, bytes.
pub(super) const ERROR_BODY_BYTES_MAX: usize = 256 * 1024;

/// Why one attempt failed; the next seller is tried.
#[derive(Clone, Debug)]
pub(super) struct AttemptFailure {
    pub seller: PeerId,
    pub kind: FailureKind,
    /// Short, for the ledger and the client.
    pub reason: String,
    /// When the upstream said to come back, seconds.
    pub retry_after_s: Option<u64>,
}

/// What a failure says about the final status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FailureKind {
    /// The upstream is rate limited.
    RateLimited,
    /// Too slow.
    Timeout,
    /// Full or shutting down.
    Busy,
    /// The credit there is used up.
    Credit,
    /// The wallet is empty.
    Funds,
    /// The seller does not want this buyer, or nobody now: no fault of its.
    Declined,
    /// Everything else.
    Broken,
}

/// An answer without a seller.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub status: StatusCode,
    pub code: &'static str,
    pub message: String,
    retry_after: Option<String>,
}

impl Refusal {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            retry_after: None,
        }
    }
    fn retry(mut self, seconds: &str) -> Self {
        self.retry_after = Some(seconds.to_owned());
        self
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", message)
    }
    pub fn no_seller(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "no_seller", message).retry(RETRY_SOON_S)
    }
    pub fn credit_exhausted() -> Self {
        let message = "no seller of this model gives this buyer credit, or it is used up; pay a seller and \
                       book it there with `node ledger settle --peer PEER --amount USD`";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "credit_exhausted", message)
            .retry(RETRY_CREDIT_S)
    }
    /// The one answer with status 402: clients take it as final.
    pub fn insufficient_funds(why: &str) -> Self {
        let message = format!("the wallet is empty: {why}");
        Self::new(StatusCode::PAYMENT_REQUIRED, "insufficient_funds", message)
    }
    pub fn budget_exceeded(exceeded: &Exceeded) -> Self {
        Self::over_budget(exceeded.to_string(), exceeded.seconds)
    }
    /// A spending limit, in words, that is reset in so many seconds.
    pub fn over_budget(message: String, seconds: u64) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "budget_exceeded", message)
            .retry(&seconds.max(RETRY_BUDGET_S_MIN).to_string())
    }
    /// The answer that a seller had would cost more than it may: by a limit, or by the request's own.
    pub fn too_dear(exceeded: Option<&Exceeded>) -> Self {
        exceeded.map_or_else(
            || {
                Self::no_seller(
                    "the answer costs more than this request may; raise x-souk-max-cost-usd or \
                     [buy.budget] request, or lower max_tokens",
                )
            },
            Self::budget_exceeded,
        )
    }
    pub fn context_too_long(tokens: u64) -> Self {
        let message = format!(
            "input token count exceeds the maximum number of tokens allowed by every seller \
             (about {tokens} tokens)"
        );
        Self::new(StatusCode::BAD_REQUEST, "context_length_exceeded", message)
    }
    pub fn unknown_model(model: &ModelId, known: &[ModelId]) -> Self {
        let near = nearest(model.as_str(), known);
        let hint = if near.is_empty() {
            "nothing is on offer yet".to_owned()
        } else {
            format!("did you mean {}? GET /v1/models lists all", near.join(", "))
        };
        let message = format!("no seller offers the model `{model}`; {hint}");
        Self::new(StatusCode::NOT_FOUND, "model_not_found", message)
    }

    /// The end of a request whose attempts all failed.
    pub fn exhausted(failures: &[AttemptFailure]) -> Self {
        let tried: Vec<String> = failures
            .iter()
            .map(|f| {
                format!(
                    "{}: {}",
                    short(&f.seller),
                    llm_api::error::strip_billing_words(&f.reason)
                )
            })
            .collect();
        let all = |kind| !failures.is_empty() && failures.iter().all(|f| f.kind == kind);
        let message = format!("no seller could answer ({})", tried.join("; "));
        if all(FailureKind::Credit) {
            return Self::credit_exhausted();
        }
        if let Some(first) = failures.first().filter(|_| all(FailureKind::Funds)) {
            return Self::insufficient_funds(&first.reason);
        }
        if failures.iter().any(|f| f.kind == FailureKind::RateLimited) {
            // The first seller that is free again is enough.
            let soonest = failures.iter().filter_map(|f| f.retry_after_s).min();
            let seconds = soonest.map_or_else(|| RETRY_SOON_S.to_owned(), |s| s.to_string());
            return Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", message)
                .retry(&seconds);
        }
        let is_busy =
            |f: &AttemptFailure| matches!(f.kind, FailureKind::Busy | FailureKind::Declined);
        if failures.iter().all(is_busy) {
            return Self::no_seller(message);
        }
        let timeout = failures.iter().any(|f| f.kind == FailureKind::Timeout);
        let status = if timeout {
            StatusCode::GATEWAY_TIMEOUT
        } else {
            StatusCode::BAD_GATEWAY
        };
        Self::new(status, "sellers_failed", message)
    }

    /// Sends it: as a response, or as the dialect's error event when the stream has begun.
    pub async fn send(self, sink: &mut ClientSink, dialect: Dialect) {
        super::measures::refused(self.code);
        if sink.committed() {
            let _ = sink
                .send(llm_api::error::error_event(
                    dialect,
                    self.status.as_u16(),
                    self.code,
                    &self.message,
                ))
                .await;
            sink.finish(None).await;
            return;
        }
        let mut headers = json_headers();
        if let Some(seconds) = &self.retry_after
            && let Ok(value) = HeaderValue::from_str(seconds)
        {
            headers.insert(header::RETRY_AFTER, value);
        }
        let body =
            llm_api::error::envelope(dialect, self.status.as_u16(), self.code, &self.message);
        sink.respond(self.status, headers, body);
    }
}

pub(super) fn json_headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers
}

/// A peer id short enough to read.
pub(super) fn short(peer: &PeerId) -> String {
    let text = peer.to_string();
    let tail = text.len().saturating_sub(8);
    format!("…{}", text.get(tail..).unwrap_or(&text))
}

/// The models whose names are closest.
fn nearest<'a>(wanted: &str, known: &'a [ModelId]) -> Vec<&'a str> {
    let mut ranked: Vec<(usize, &str)> = known
        .iter()
        .map(|model| (strsim::osa_distance(wanted, model.as_str()), model.as_str()))
        .collect();
    ranked.sort_unstable();
    ranked
        .into_iter()
        .take(NEAREST_MAX)
        .map(|(_, name)| name)
        .collect()
}
