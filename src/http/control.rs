//! What the control APIs of buyer and seller share: running a router, errors in the clients'
//! shape, the control token, `/metrics`, amounts in requests.
//!
//! Invariants: a request's body is read (bounded, timed) before the router sees it, so that a
//! client that leaves is noticed; an answer is bounded; nothing changes without the control token.

mod openapi;
pub mod wallet;

use axum::extract::Request as RouterRequest;
use axum::response::{IntoResponse, Response as RouterResponse};
use axum::{Json, Router};
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::Value;
use tower::ServiceExt as _;

use super::body::Body;
use super::guard::{Guard, json_error};
use super::request_body::read_body;
use crate::telemetry::Metrics;
use crate::types::MicroUsd;

pub use openapi::openapi;

/// Longest answer of a control API: ten thousand sellers or requests of 1 KiB each.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The text format that Prometheus asks for.
const METRICS_TYPE: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4");
/// Requests listed when the caller does not say how many.
pub const REQUESTS_LISTED: u32 = 50;
/// Requests listed at most: about 1 KiB each.
pub const REQUESTS_LISTED_MAX: u32 = 10_000;

/// Endpoints of clients, each with its method; `false`: not in this version.
const ENDPOINTS: [(&str, &str, bool); 7] = [
    ("/chat/completions", "POST", true),
    ("/messages", "POST", true),
    ("/models", "GET", true),
    ("/messages/count_tokens", "POST", false),
    ("/responses", "POST", false),
    ("/completions", "POST", false),
    ("/embeddings", "POST", false),
];

/// Hands a request to `router` and its answer back to the server.
pub async fn answer(router: Router, request: Request<Incoming>) -> Response<Body> {
    let (head, incoming) = request.into_parts();
    let path = head.uri.path().to_owned();
    let body = match read_body(incoming).await {
        Ok(body) => body,
        Err(refusal) => return refusal.response(&path),
    };
    let request = RouterRequest::from_parts(head, axum::body::Body::from(body));
    let response = match router.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    let (head, body) = response.into_parts();
    let limited = http_body_util::Limited::new(body, ANSWER_BYTES_MAX);
    match limited.collect().await {
        Ok(bytes) => Response::from_parts(head, Body::full(bytes.to_bytes())),
        Err(_) => {
            let message = "the answer is larger than 16 MiB; ask for less with ?limit=";
            json_error(
                &path,
                StatusCode::INTERNAL_SERVER_ERROR,
                "answer_too_large",
                message,
            )
        }
    }
}

/// Why a control call failed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The request is malformed.
    #[error("{0}")]
    BadRequest(String),
    /// It changes something and has no control token.
    #[error(
        "this changes something and needs the control token of run.json; use the `node` command"
    )]
    Token,
    /// What it names does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The node is not able to now.
    #[error("{0}")]
    Unavailable(String),
    /// Money is missing for it. No 402: that word is the clients'.
    #[error("{0}")]
    Payment(String),
    /// The ledger or another part failed.
    #[error("{0}")]
    Internal(String),
}

impl ControlError {
    const fn parts(&self) -> (StatusCode, &'static str) {
        match self {
            Self::BadRequest(_) => (StatusCode::BAD_REQUEST, "invalid_request"),
            Self::Token => (StatusCode::UNAUTHORIZED, "control_token_required"),
            Self::NotFound(_) => (StatusCode::NOT_FOUND, "not_found"),
            Self::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
            Self::Payment(_) => (StatusCode::CONFLICT, "payment"),
            Self::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        }
    }
}

impl IntoResponse for ControlError {
    fn into_response(self) -> RouterResponse {
        let (status, code) = self.parts();
        error("/api", status, code, &self.to_string())
    }
}

/// What a control call answers.
pub type ControlResult = Result<Json<Value>, ControlError>;

/// Refuses a call that changes something without the control token.
///
/// # Errors
/// [`ControlError::Token`].
pub fn require_control(guard: &Guard, headers: &HeaderMap) -> Result<(), ControlError> {
    if guard.is_control(headers) {
        Ok(())
    } else {
        Err(ControlError::Token)
    }
}

/// Reads an object out of a request's body.
///
/// # Errors
/// [`ControlError::BadRequest`].
pub fn object(body: &[u8]) -> Result<serde_json::Map<String, Value>, ControlError> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(ControlError::BadRequest(
            "the body must be a JSON object".to_owned(),
        )),
        Err(error) => Err(ControlError::BadRequest(format!(
            "the body is not JSON: {error}"
        ))),
    }
}

/// Reads an amount in USD: a decimal string, or a number.
///
/// # Errors
/// [`ControlError::BadRequest`], naming the field.
pub fn amount(name: &str, value: &Value) -> Result<MicroUsd, ControlError> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => {
            let message = format!("`{name}` must be an amount in USD, like \"0.25\"");
            return Err(ControlError::BadRequest(message));
        }
    };
    let amount = text.parse::<MicroUsd>();
    amount.map_err(|error| ControlError::BadRequest(format!("`{name}`: {error}")))
}

/// A field of the query string, as it is written there (nothing here needs escapes).
#[must_use]
pub fn query<'a>(uri: &'a Uri, name: &str) -> Option<&'a str> {
    let pairs = uri
        .query()?
        .split('&')
        .filter_map(|pair| pair.split_once('='));
    pairs
        .filter(|(key, _)| *key == name)
        .map(|(_, value)| value)
        .next()
}

/// The `limit` of a query string, within bounds.
///
/// # Errors
/// [`ControlError::BadRequest`] when it is no number.
pub fn limit(uri: &Uri) -> Result<u32, ControlError> {
    let Some(text) = query(uri, "limit") else {
        return Ok(REQUESTS_LISTED);
    };
    let number: u32 = text.parse().map_err(|_| {
        let message = format!("`limit` must be a number up to {REQUESTS_LISTED_MAX}");
        ControlError::BadRequest(message)
    })?;
    Ok(number.clamp(1, REQUESTS_LISTED_MAX))
}

/// The metrics of the process as Prometheus reads them.
#[must_use]
pub fn metrics_text(metrics: Option<&Metrics>) -> RouterResponse {
    let Some(metrics) = metrics else {
        let message = "metrics are not collected by this process".to_owned();
        return ControlError::Unavailable(message).into_response();
    };
    ([(CONTENT_TYPE, METRICS_TYPE)], metrics.render()).into_response()
}

/// A gauge's value; above 2^32 it stands still.
#[must_use]
pub fn gauge_of(count: impl TryInto<u32>) -> f64 {
    f64::from(count.try_into().unwrap_or(u32::MAX))
}

/// Money as a gauge shows it: USD, rounded as floats are.
#[must_use]
pub fn gauge_usd(amount: MicroUsd) -> f64 {
    use rust_decimal::prelude::ToPrimitive as _;
    amount.to_decimal().to_f64().unwrap_or_default()
}

/// 200 or 503, with one word.
#[must_use]
pub fn probe(is_well: bool, well: &'static str, unwell: &'static str) -> RouterResponse {
    if is_well {
        (StatusCode::OK, well).into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, unwell).into_response()
    }
}

/// What is at `path` when nothing else is: the right method, or where to go instead.
pub async fn fallback(method: Method, uri: Uri) -> RouterResponse {
    let path = uri.path();
    let bare = path.strip_suffix('/').unwrap_or(path);
    let bare = bare.strip_prefix("/v1").unwrap_or(bare);
    let bare = if bare.starts_with("/models/") {
        "/models"
    } else {
        bare
    };
    let known = ENDPOINTS.iter().find(|(end, ..)| *end == bare);
    let Some((end, wanted, served)) = known else {
        let message = format!(
            "nothing is at {path}; models answer at POST /v1/chat/completions and POST \
             /v1/messages, GET /v1/models lists them, GET /api/status shows this node"
        );
        return error(path, StatusCode::NOT_FOUND, "not_found", &message);
    };
    if !served {
        let message = format!(
            "this version does not serve /v1{end}; send the request as {}",
            if end.starts_with("/messages") {
                "POST /v1/messages, whose answer reports its usage"
            } else {
                "POST /v1/chat/completions or POST /v1/messages"
            }
        );
        return error(path, StatusCode::NOT_FOUND, "not_found", &message);
    }
    let mut response = wrong_method(&method, path, wanted);
    let allow = HeaderValue::from_static(wanted);
    response.headers_mut().insert(ALLOW, allow);
    response
}

/// As [`fallback`], on a port that takes no model requests.
pub async fn owner_fallback(uri: Uri) -> RouterResponse {
    let path = uri.path();
    let message = format!(
        "nothing is at {path}; this node sells, its port shows GET /api/status; send model \
         requests to the port of `node buy`"
    );
    error(path, StatusCode::NOT_FOUND, "not_found", &message)
}

/// An own path with another method; axum adds `Allow`.
pub async fn method_not_allowed(method: Method, uri: Uri) -> RouterResponse {
    wrong_method(&method, uri.path(), "another method")
}

fn wrong_method(method: &Method, path: &str, wanted: &str) -> RouterResponse {
    let message = format!("{path} does not take {method}; send {wanted}");
    error(
        path,
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        &message,
    )
}

fn error(path: &str, status: StatusCode, code: &str, message: &str) -> RouterResponse {
    json_error(path, status, code, message).map(axum::body::Body::new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    async fn at(method: &str, path: &str) -> (u16, Value) {
        let response = fallback(method.parse().unwrap(), path.parse().unwrap()).await;
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap())
    }

    #[tokio::test]
    async fn a_wrong_path_is_told_the_right_one_in_its_dialects_shape() {
        let (status, body) = at("POST", "/v1/responses").await;
        assert_eq!(status, 404);
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.contains("/v1/chat/completions"), "{message}");
        let (status, body) = at("POST", "/v1/messages/count_tokens?beta=true").await;
        assert_eq!((status, body["type"].as_str()), (404, Some("error")));
        let (status, body) = at("GET", "/v1/chat/completions").await;
        let code = body["error"]["code"].as_str();
        assert_eq!((status, code), (405, Some("method_not_allowed")));
        assert_eq!(at("POST", "/models/a/b").await.0, 405);
        assert_eq!(at("GET", "/nowhere").await.0, 404);
    }

    #[test]
    fn limits_and_amounts_are_bounded_and_exact() {
        let of = |text: &str| limit(&text.parse().unwrap());
        assert_eq!(of("/api/requests").unwrap(), REQUESTS_LISTED);
        assert_eq!(of("/api/requests?a=b&limit=7").unwrap(), 7);
        assert_eq!(of("/x?limit=4000000000").unwrap(), REQUESTS_LISTED_MAX);
        assert!(of("/x?limit=all").is_err());
        assert_eq!(amount("a", &json!("0.25")).unwrap(), MicroUsd(250_000));
        assert_eq!(amount("a", &json!(0.1)).unwrap(), MicroUsd(100_000));
        assert!(amount("a", &json!(-1)).is_err());
        assert!(amount("a", &json!(null)).is_err());
    }
}
