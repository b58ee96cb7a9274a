//! What a client asks for: the parsed request, independent of who will serve it.

use bytes::Bytes;
use http::{HeaderMap, Uri};

use crate::llm_api::{self, Dialect, RequestError, RequestView, headers};
use crate::protocol::limits::{HEADER_BYTES_MAX, HEADERS_MAX};
use crate::types::{MicroUsd, ModelId, PeerId, RequestId, UnixMs};

/// Longest label of a client kept in the ledger, characters.
const CLIENT_CHARS_MAX: usize = 40;

/// One client request.
pub(super) struct Asked {
    pub id: RequestId,
    pub dialect: Dialect,
    /// The body as it is signed: usage injected, otherwise the client's bytes.
    pub body: Bytes,
    pub view: RequestView,
    pub model: ModelId,
    pub stream: bool,
    /// The client asked for the usage chunk itself.
    pub wants_usage: bool,
    pub headers: Vec<(String, String)>,
    /// A short name of the client's program, for the ledger.
    pub client: String,
    pub max_cost: Option<MicroUsd>,
    /// A preferred seller.
    pub seller: Option<PeerId>,
}

impl Asked {
    /// Parses a request in `dialect`.
    ///
    /// # Errors
    /// When the body or a `x-souk-*` header is malformed; the text tells the client what to fix.
    pub fn parse(
        dialect: Dialect,
        client_headers: &HeaderMap,
        body: Bytes,
        now_ms: UnixMs,
    ) -> Result<Self, RequestError> {
        let view = RequestView::parse(&body, dialect)?;
        let wants_usage = view.include_usage;
        let (body, view) = if dialect == Dialect::Chat && view.stream && !wants_usage {
            let body = llm_api::inject_include_usage(&body, &view);
            let view = RequestView::parse(&body, dialect)?;
            (body, view)
        } else {
            (body, view)
        };
        let max_cost = souk_header(client_headers, "x-souk-max-cost-usd")?;
        let seller = souk_header(client_headers, "x-souk-seller")?;
        Ok(Self {
            id: RequestId::generate(now_ms),
            dialect,
            model: ModelId::new(&view.model),
            stream: view.stream,
            wants_usage,
            headers: allowed_headers(client_headers),
            client: client_label(client_headers),
            max_cost,
            seller,
            body,
            view,
        })
    }

    /// Input tokens that a seller with these terms counts as known before the work.
    pub fn prefill_tokens(&self, tokens_per_kib: u16, image_tokens: u32) -> u64 {
        llm_api::prefill_tokens(&self.view, self.body.len(), tokens_per_kib, image_tokens)
    }
}

/// The dialect of a proxied path; the query string does not matter.
pub(super) fn dialect_of(uri: &Uri) -> Option<Dialect> {
    Dialect::from_path(uri.path().trim_end_matches('/'))
}

fn souk_header<T: std::str::FromStr>(
    headers: &HeaderMap,
    name: &'static str,
) -> Result<Option<T>, RequestError> {
    let Some(value) = headers.get(name) else {
        return Ok(None);
    };
    let parsed = value
        .to_str()
        .ok()
        .and_then(|text| text.trim().parse().ok());
    parsed.map(Some).ok_or(RequestError::BadField(
        name,
        "what the README says of this header",
    ))
}

/// Only what the allow-list names reaches a seller.
fn allowed_headers(headers: &HeaderMap) -> Vec<(String, String)> {
    headers
        .iter()
        .filter(|(name, _)| headers::request_header_allowed(name.as_str()))
        .filter_map(|(name, value)| {
            let value = value.to_str().ok()?;
            let fits = name.as_str().len() + value.len() <= HEADER_BYTES_MAX;
            fits.then(|| (name.as_str().to_owned(), value.to_owned()))
        })
        .take(HEADERS_MAX)
        .collect()
}

/// The first word of the user agent (`OpenAI/Python` for the SDK), or empty.
fn client_label(headers: &HeaderMap) -> String {
    let agent = headers
        .get(http::header::USER_AGENT)
        .and_then(|v| v.to_str().ok())
        .unwrap_or("");
    let word = agent.split(' ').next().unwrap_or("");
    word.chars()
        .filter(|c| !c.is_control())
        .take(CLIENT_CHARS_MAX)
        .collect()
}
