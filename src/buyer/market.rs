//! `GET /v1/models`: what the network sells and the models whose ends are here, from memory, in the
//! caller's list shape.

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use super::Shared;
use super::own::Card;
use super::route::dialects;
use crate::discovery::ModelSummary;
use crate::http::body::Body;
use crate::llm_api::{self, Dialect};
use crate::protocol::offer::Capabilities;
use crate::types::{MicroUsd, ModelId, TOKENS_PER_PRICE};

/// Decimal places of a USD price per token: a micro-USD per million tokens is 1e-12.
const PER_TOKEN_SCALE: u32 = 12;

/// Answers `/v1/models` and `/v1/models/{id}` (also without `/v1`); `None` for other paths.
pub(super) fn models(shared: &Shared, path: &str, headers: &HeaderMap) -> Option<Response<Body>> {
    let path = path.strip_prefix("/v1").unwrap_or(path);
    let rest = path.strip_prefix("/models")?;
    let anthropic = headers.contains_key("anthropic-version");
    match rest.strip_prefix('/') {
        None if rest.is_empty() => Some(ok(&list(&all(shared), anthropic))),
        Some("") => Some(ok(&list(&all(shared), anthropic))),
        Some(id) => Some(one(shared, id, anthropic)),
        None => None,
    }
}

/// A model on the list.
struct Listed {
    summary: ModelSummary,
    /// Its ends are here; nobody sells it.
    is_own: bool,
}

/// The own models, then what the network sells under other names.
fn all(shared: &Shared) -> Vec<Listed> {
    let own = shared.own.iter().map(|own| Listed {
        summary: summary(&own.card()),
        is_own: true,
    });
    let mut all: Vec<Listed> = own.collect();
    let sold = shared.book.models().into_iter();
    let sold = sold.filter(|summary| super::own::find(shared, &summary.model).is_none());
    all.extend(sold.map(|summary| Listed {
        summary,
        is_own: false,
    }));
    all
}

fn summary(card: &Card) -> ModelSummary {
    let tools = if card.has_tools {
        Capabilities::TOOLS
    } else {
        Capabilities::default()
    };
    ModelSummary {
        model: card.model.clone(),
        sellers: card.stages,
        price_min: card.price,
        context_max: card.context,
        output_max: 0,
        caps: Capabilities::PIPELINE
            .union(Capabilities::DIALECT_CHAT)
            .union(Capabilities::DIALECT_MESSAGES)
            .union(Capabilities::DIALECT_RESPONSES)
            .union(tools),
    }
}

fn one(shared: &Shared, id: &str, anthropic: bool) -> Response<Body> {
    let wanted = ModelId::new(id);
    let found = all(shared)
        .into_iter()
        .find(|one| one.summary.model == wanted);
    match found {
        Some(listed) => ok(&entry(&listed, anthropic)),
        None => {
            let dialect = if anthropic {
                Dialect::Messages
            } else {
                Dialect::Chat
            };
            let message = format!("no seller offers the model `{wanted}`");
            let body = llm_api::error::envelope(dialect, 404, "model_not_found", &message);
            response(StatusCode::NOT_FOUND, body)
        }
    }
}

fn list(models: &[Listed], anthropic: bool) -> Value {
    let data: Vec<Value> = models
        .iter()
        .map(|listed| entry(listed, anthropic))
        .collect();
    if anthropic {
        let id = |value: Option<&Value>| value.and_then(|v| v.get("id")).cloned();
        json!({
            "first_id": id(data.first()),
            "last_id": id(data.last()),
            "has_more": false,
            "data": data,
        })
    } else {
        json!({ "object": "list", "data": data })
    }
}

fn entry(listed: &Listed, anthropic: bool) -> Value {
    let summary = &listed.summary;
    let id = summary.model.as_str();
    let speaks: Vec<&str> = dialects(summary.caps)
        .into_iter()
        .map(Dialect::as_str)
        .collect();
    let price = &summary.price_min;
    let mut paths = Vec::new();
    if summary.caps.contains(Capabilities::COMPLETIONS) {
        paths.push("completions");
    }
    if summary.caps.contains(Capabilities::EMBEDDINGS) {
        paths.push("embeddings");
    }
    let mut modalities = vec!["text"];
    if summary.caps.contains(Capabilities::VISION) {
        modalities.push("image");
    }
    let mut value = if anthropic {
        json!({ "type": "model", "id": id, "display_name": id, "created_at": "1970-01-01T00:00:00Z" })
    } else {
        json!({ "id": id, "object": "model", "created": 0, "owned_by": "souk" })
    };
    let more = json!({
        "pricing": {
            "prompt": per_token(price.input),
            "completion": per_token(price.output),
            "input_cache_read": per_token(price.cache_read),
            "input_cache_write": per_token(price.cache_write),
        },
        "sellers": summary.sellers,
        "dialects": speaks,
        "other_paths": paths,
        "tools": summary.caps.contains(Capabilities::TOOLS),
        "supported_parameters": summary.caps.parameters(),
        "own": listed.is_own,
        "split": summary.caps.contains(Capabilities::PIPELINE),
        "structured_output": summary.caps.contains(Capabilities::JSON),
        "context_length": summary.context_max,
        "max_output": summary.output_max,
        "input_modalities": modalities,
    });
    if let (Value::Object(value), Value::Object(more)) = (&mut value, more) {
        value.extend(more);
    }
    value
}

/// USD per token as a plain decimal string.
fn per_token(micro_usd_per_million: u64) -> String {
    debug_assert_eq!(TOKENS_PER_PRICE, 1_000_000);
    let scaled = i128::from(MicroUsd(micro_usd_per_million).0);
    rust_decimal::Decimal::from_i128_with_scale(scaled, PER_TOKEN_SCALE)
        .normalize()
        .to_string()
}

pub(super) fn ok(value: &Value) -> Response<Body> {
    response(StatusCode::OK, value.to_string())
}

fn response(status: StatusCode, body: impl Into<bytes::Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::full(body));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}
