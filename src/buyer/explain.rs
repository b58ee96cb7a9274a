//! `GET /api/explain?model=M`: each seller's score for an ordinary request, or why it is not asked.
//!
//! Nothing is drawn and nobody is asked; a real request may differ by its size, its features and the
//! draw. Called by `node models --explain`.

use bytes::Bytes;
use http::{HeaderMap, Response, Uri};
use serde_json::{Value, json};

use super::Shared;
use super::asked::Asked;
use super::choosing;
use super::market::ok;
use super::route::{Candidate, Route};
use super::sellers::evidence;
use crate::http::body::Body;
use crate::http::control;
use crate::llm_api::{Dialect, Endpoint};
use crate::router::{Entry, Score, Skip};
use crate::types::PeerId;

/// Where it is asked for.
const PATH: &str = "/api/explain";
/// Text of the request that is explained, bytes: some 1 000 tokens.
const TEXT_BYTES: usize = 4_096;

/// The answer, when `uri` asks for one.
pub(super) fn answer(shared: &Shared, uri: &Uri) -> Option<Response<Body>> {
    if uri.path() != PATH {
        return None;
    }
    let model = control::query(uri, "model").unwrap_or_default();
    Some(ok(&explain(shared, model)))
}

/// An ordinary request for `model`, and who may serve it.
pub(super) fn ordinary(shared: &Shared, model: &str) -> Option<(Asked, Route)> {
    let text = "word ".repeat(TEXT_BYTES / 5);
    let body = json!({ "model": model, "messages": [{ "role": "user", "content": text }] });
    let (endpoint, now_ms) = (Endpoint::Dialect(Dialect::Chat), shared.clock.now_ms());
    let body = Bytes::from(body.to_string());
    let asked = Asked::parse(endpoint, &HeaderMap::new(), body, now_ms).ok()?;
    let asked = asked.meaning(&shared.wishes.get().names, |model| shared.has(model));
    let route = shared.route(&asked);
    Some((asked, route))
}

/// What the router thinks of each of them.
pub(super) fn score(
    shared: &Shared,
    asked: &Asked,
    route: &Route,
) -> Vec<(Entry, Result<Score, Skip>)> {
    let ask = choosing::ask(shared, asked, &route.candidates);
    let entries: Vec<Entry> = route.candidates.iter().map(Candidate::entry).collect();
    let explained = shared.router.explain(&ask, &entries);
    entries.into_iter().zip(explained).collect()
}

fn explain(shared: &Shared, model: &str) -> Value {
    let now_ms = shared.clock.now_ms();
    let Some((asked, route)) = ordinary(shared, model) else {
        return json!({ "model": model, "sellers": [] });
    };
    let ask = choosing::ask(shared, &asked, &route.candidates);
    let explained = score(shared, &asked, &route);
    let mut scored: Vec<(f64, Value)> = explained
        .iter()
        .map(|(entry, result)| match result {
            Ok(score) => (score.total, scored(score)),
            Err(skip) => (
                f64::INFINITY,
                json!({ "peer": entry.seller.to_base58(), "why_not": why_not(skip, now_ms) }),
            ),
        })
        .collect();
    scored.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let barred = route
        .barred
        .iter()
        .map(|(seller, barred)| json!({ "peer": seller.to_base58(), "why_not": barred.text() }));
    let mut sellers: Vec<Value> = scored.into_iter().map(|(_, v)| v).chain(barred).collect();
    for seller in &mut sellers {
        let peer = seller.get("peer").and_then(Value::as_str);
        let peer = peer.and_then(|peer| peer.parse::<PeerId>().ok());
        let found = peer.map(|peer| evidence(&shared.router, &peer));
        if let (Some(found), Some(fields)) = (found, seller.as_object_mut()) {
            fields.insert("evidence".to_owned(), json!(found));
        }
    }
    json!({
        "model": asked.model.as_str(),
        "prefer": ask.prefer.as_str(),
        "input_tokens": ask.input_tokens,
        "sellers": sellers,
    })
}

fn scored(score: &Score) -> Value {
    json!({
        "peer": score.seller.to_base58(),
        "score_micro_usd": round(score.total, 1.0),
        "list_cost_micro_usd": round(score.list_cost, 1.0),
        "cost_micro_usd": round(score.cost, 1.0),
        "billing_factor": round(score.billing, 100.0),
        "seconds": round(score.latency_s, 100.0),
        "success": round(score.success, 1_000.0),
        "substituted": round(score.substituted, 1_000.0),
        "proven": score.proven,
        "attempts": score.observed,
        "in_flight": score.in_flight,
    })
}

fn round(value: f64, scale: f64) -> f64 {
    (value * scale).round() / scale
}

fn why_not(skip: &Skip, now_ms: u64) -> String {
    let seconds = |until: u64| until.saturating_sub(now_ms).div_ceil(1_000);
    match skip {
        Skip::Tried => "asked already".to_owned(),
        Skip::Breaker(until) => format!("kept failing; asked again in {} s", seconds(*until)),
        Skip::Quarantined(until, why) => {
            format!(
                "in quarantine: {why}; asked again in {} h",
                seconds(*until).div_ceil(3_600)
            )
        }
        Skip::Full => "full".to_owned(),
        Skip::Exposure => "new, and as much as its credit allows is at stake".to_owned(),
        Skip::Exploration => "new, and today's budget for newcomers is spent".to_owned(),
    }
}
