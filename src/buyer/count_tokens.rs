//! `POST /v1/messages/count_tokens`, answered here: no seller is asked and nothing is paid.
//!
//! The count is the one that bills are checked against. An image counts as what the largest costs
//! at Anthropic, because a client that budgets its context must not be told too little.

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;

use super::refusal::json_headers;
use crate::http::body::Body;
use crate::http::request_body;
use crate::llm_api::{self, Dialect, RequestView, TokenCounter};
use crate::tasks::off_thread_if;

/// Tokens of role and separators around each message.
const TOKENS_PER_MESSAGE: u64 = 4;
/// Tokens of an image at its largest.
const TOKENS_PER_IMAGE: u64 = 1_600;
/// Bodies up to this are counted in place; larger ones on the blocking pool.
const INLINE_BODY_BYTES: usize = 4 * 1024;

/// True for the path, with or without `/v1`.
pub(super) fn is_asked(path: &str) -> bool {
    let path = path.strip_suffix('/').unwrap_or(path);
    path.strip_prefix("/v1").unwrap_or(path) == "/messages/count_tokens"
}

/// Counts a request's tokens.
pub(super) async fn answer(counter: TokenCounter, request: Request<Incoming>) -> Response<Body> {
    let (parts, incoming) = request.into_parts();
    let body = match request_body::read_body(incoming).await {
        Ok(body) => body,
        Err(refusal) => return refusal.response(parts.uri.path()),
    };
    let view = match RequestView::parse(&body, Dialect::Messages) {
        Ok(view) => view,
        Err(error) => {
            let (status, text) = (StatusCode::BAD_REQUEST, error.to_string());
            let code = "invalid_request";
            let body = llm_api::error::envelope(Dialect::Messages, status.as_u16(), code, &text);
            return respond(status, body);
        }
    };
    let large = body.len() > INLINE_BODY_BYTES;
    let count = move || {
        let text = counter.count_request(&view.model, &body, &view).tokens;
        text.saturating_add(view.message_count.saturating_mul(TOKENS_PER_MESSAGE))
            .saturating_add(view.image_count.saturating_mul(TOKENS_PER_IMAGE))
    };
    let tokens = off_thread_if(large, count).await;
    let answer = format!("{{\"input_tokens\":{tokens}}}");
    respond(StatusCode::OK, answer.into())
}

fn respond(status: StatusCode, body: bytes::Bytes) -> Response<Body> {
    let mut response = Response::new(Body::full(body));
    *response.status_mut() = status;
    *response.headers_mut() = json_headers();
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_known_in_all_its_forms() {
        for path in [
            "/v1/messages/count_tokens",
            "/messages/count_tokens",
            "/v1/messages/count_tokens/",
        ] {
            assert!(is_asked(path), "{path}");
        }
        assert!(!is_asked("/v1/messages") && !is_asked("/v1/count_tokens"));
    }
}
