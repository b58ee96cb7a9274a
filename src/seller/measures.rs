//! What `/metrics` counts of a seller as it happens: answers, tokens, cost and times.
//! What stands still between two looks is read by [`super::control`].
//!
//! Invariant: every label comes from a fixed set, never from a model or a buyer.

use std::time::Duration;

use metrics::{counter, histogram};

use crate::protocol::Ending;
use crate::protocol::receipt::Receipt;
use crate::telemetry::Measure;

/// Everything that a seller measures, with what it means.
pub(super) const MEASURES: [Measure; 16] = [
    Measure::counter(
        "souk_seller_served_total",
        "Requests that went to the upstream",
    ),
    Measure::counter(
        "souk_seller_refused_total",
        "Requests refused before the upstream was called",
    ),
    Measure::counter("souk_seller_refusals_total", "The same, by code"),
    Measure::counter(
        "souk_seller_cancelled_total",
        "Answers that their buyer cut short",
    ),
    Measure::counter(
        "souk_seller_answers_total",
        "Answers that ended, by outcome",
    ),
    Measure::histogram(
        "souk_seller_ttft_seconds",
        "From an admitted request to the upstream's first byte",
    ),
    Measure::histogram(
        "souk_seller_answer_seconds",
        "From an admitted request to the end of its answer",
    ),
    Measure::counter("souk_seller_tokens_total", "Tokens on receipts, by kind"),
    Measure::counter(
        "souk_seller_cost_micro_usd_total",
        "Cost on receipts, millionths of a USD",
    ),
    Measure::gauge("souk_seller_offers", "Models on sale"),
    Measure::gauge(
        "souk_seller_requests_in_flight",
        "Requests at the upstream now",
    ),
    Measure::gauge(
        "souk_seller_slots",
        "Requests that the upstream is given at once, at most",
    ),
    Measure::gauge(
        "souk_seller_receipts_unaccepted",
        "Answers whose cost their buyer has not accepted yet",
    ),
    Measure::gauge("souk_seller_owed_usd", "Delivered and not paid yet"),
    Measure::gauge(
        "souk_seller_vouchers_usd",
        "Vouchers held of all buyers together",
    ),
    Measure::gauge("souk_seller_channels", "Accounts of buyers"),
];

/// An answer is over.
pub(super) fn answered(receipt: &Receipt, ttft_ms: Option<u64>, total_ms: u64) {
    let outcome = match receipt.ending {
        Ending::Complete if receipt.status < 400 => "complete",
        Ending::Complete => "upstream_error",
        Ending::BuyerStopped => "buyer_stopped",
        Ending::SellerFailed => "failed",
    };
    counter!("souk_seller_answers_total", "outcome" => outcome).increment(1);
    counter!("souk_seller_cost_micro_usd_total").increment(receipt.cost.0);
    if let Some(ttft_ms) = ttft_ms {
        histogram!("souk_seller_ttft_seconds").record(Duration::from_millis(ttft_ms));
    }
    histogram!("souk_seller_answer_seconds").record(Duration::from_millis(total_ms));
    let usage = &receipt.usage;
    for (kind, tokens) in [
        ("input", usage.input),
        ("cached", usage.cache_read),
        ("cache_write", usage.cache_write),
        ("output", usage.output),
        ("reasoning", usage.reasoning),
    ] {
        counter!("souk_seller_tokens_total", "kind" => kind).increment(tokens);
    }
}
