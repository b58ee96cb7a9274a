//! What `/metrics` counts of a buyer as it happens: requests, attempts, failovers, refusals, tokens,
//! cost and times. What stands still between two looks is read by [`super::control`].
//!
//! Invariant: every label comes from a fixed set (an outcome, a code, a part of the usage), never
//! from a model, a peer or a client, so strangers cannot make the list grow.

use std::time::Duration;

use metrics::{counter, gauge, histogram};

use super::books::Tally;
use super::refusal::FailureKind;
use crate::telemetry::Measure;
use crate::types::{MicroUsd, Usage};

/// Everything that a buyer measures, with what it means.
pub(super) const MEASURES: [Measure; 20] = [
    Measure::counter("souk_buyer_requests_total", "Model requests of clients"),
    Measure::gauge(
        "souk_buyer_requests_in_flight",
        "Model requests being answered now",
    ),
    Measure::counter(
        "souk_buyer_refusals_total",
        "Requests answered with an error of this node, by its code",
    ),
    Measure::counter(
        "souk_buyer_attempts_total",
        "Attempts at sellers that ended, by outcome",
    ),
    Measure::counter(
        "souk_buyer_failovers_total",
        "Attempts that failed before the first byte, by reason",
    ),
    Measure::histogram(
        "souk_buyer_ttft_seconds",
        "From asking a seller to its first event",
    ),
    Measure::histogram(
        "souk_buyer_answer_seconds",
        "From asking a seller to the end of its answer",
    ),
    Measure::counter(
        "souk_buyer_tokens_total",
        "Tokens of answered requests, by kind",
    ),
    Measure::counter(
        "souk_buyer_cost_micro_usd_total",
        "Accepted cost, millionths of a USD",
    ),
    Measure::counter(
        "souk_buyer_disputed_total",
        "Answers paid by the own count instead of the receipt",
    ),
    Measure::gauge("souk_offers", "Offers of sellers at hand"),
    Measure::gauge(
        "souk_buyer_attempts_in_flight",
        "Attempts that sellers work on now",
    ),
    Measure::gauge(
        "souk_buyer_attempts_in_doubt",
        "Attempts whose cost both sides have not agreed on yet",
    ),
    Measure::gauge("souk_buyer_spent_today_usd", "Spent since local midnight"),
    Measure::gauge(
        "souk_buyer_reserved_usd",
        "Held back for attempts that run, out of the budget",
    ),
    Measure::gauge(
        "souk_buyer_owed_usd",
        "Received and not paid outside (credit mode)",
    ),
    Measure::gauge(
        "souk_buyer_credit_usd",
        "What can still be ordered from all sellers together",
    ),
    Measure::gauge(
        "souk_buyer_deposits_usd",
        "Deposits in channels with all sellers together",
    ),
    Measure::gauge("souk_buyer_channels", "Accounts with sellers, by state"),
    Measure::gauge("souk_buyer_sellers_up", "Sellers with a standing session"),
];

/// A client's request, from its body's end to its answer's.
pub(super) struct InFlight;

impl InFlight {
    pub fn begin() -> Self {
        counter!("souk_buyer_requests_total").increment(1);
        gauge!("souk_buyer_requests_in_flight").increment(1);
        Self
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        gauge!("souk_buyer_requests_in_flight").decrement(1);
    }
}

/// This node answered with an error of its own.
pub(super) fn refused(code: &'static str) {
    counter!("souk_buyer_refusals_total", "code" => code).increment(1);
}

/// An attempt failed where another may follow.
pub(super) fn failed_over(kind: FailureKind) {
    let reason = match kind {
        FailureKind::RateLimited => "rate_limited",
        FailureKind::Timeout => "timeout",
        FailureKind::Busy => "busy",
        FailureKind::Credit => "credit",
        FailureKind::Funds => "funds",
        FailureKind::Broken => "broken",
        FailureKind::Declined => "declined",
    };
    counter!("souk_buyer_failovers_total", "reason" => reason).increment(1);
}

/// An attempt ended; `billed` is none while its cost is in doubt.
pub(super) fn attempt_ended(
    tally: &Tally,
    billed: Option<MicroUsd>,
    ttft_ms: Option<u64>,
    total_ms: u64,
) {
    let outcome = match (tally.status, &tally.error) {
        (499, _) => "client_gone",
        (200..400, None) => "answered",
        _ => "failed",
    };
    counter!("souk_buyer_attempts_total", "outcome" => outcome).increment(1);
    if let Some(billed) = billed {
        counter!("souk_buyer_cost_micro_usd_total").increment(billed.0);
    }
    if tally.disputed {
        counter!("souk_buyer_disputed_total").increment(1);
    }
    if outcome != "answered" {
        return;
    }
    if let Some(ttft_ms) = ttft_ms {
        histogram!("souk_buyer_ttft_seconds").record(Duration::from_millis(ttft_ms));
    }
    histogram!("souk_buyer_answer_seconds").record(Duration::from_millis(total_ms));
    for (kind, tokens) in parts(&tally.usage.unwrap_or_default()) {
        counter!("souk_buyer_tokens_total", "kind" => kind).increment(tokens);
    }
}

/// The parts of a usage that do not overlap, but for reasoning, which is part of the output.
const fn parts(usage: &Usage) -> [(&'static str, u64); 5] {
    [
        ("input", usage.input),
        ("cached", usage.cache_read),
        ("cache_write", usage.cache_write),
        ("output", usage.output),
        ("reasoning", usage.reasoning),
    ]
}
