//! What a client asks for: the parsed request, independent of who will serve it.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Uri};
use parking_lot::Mutex;

use crate::llm_api::translate::{self, TranslateError, WayBack};
use crate::llm_api::{self, Dialect, RequestError, RequestView, headers};
use crate::protocol::limits::{HEADER_BYTES_MAX, HEADERS_MAX};
use crate::types::{MicroUsd, ModelId, PeerId, RequestId, UnixMs};

/// Longest label of a client kept in the ledger, characters.
const CLIENT_CHARS_MAX: usize = 40;
/// The version of Messages that translated requests are written for.
const ANTHROPIC_VERSION: (&str, &str) = ("anthropic-version", "2023-06-01");

/// One client request, in the dialect of whoever is to serve it.
pub(super) struct Asked {
    pub id: RequestId,
    /// The dialect of the body, and of the upstream's answer.
    pub dialect: Dialect,
    /// How the answer becomes the client's dialect, when that is another.
    pub way_back: Option<WayBack>,
    /// What the translation left out.
    pub dropped: Vec<String>,
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
    at_ms: UnixMs,
    translations: Mutex<Vec<Translation>>,
}

/// The same request for sellers of another dialect; made once, whatever the number of sellers.
struct Translation {
    to: Dialect,
    max_tokens: u64,
    made: Result<Arc<Asked>, TranslateError>,
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
            way_back: None,
            dropped: Vec::new(),
            model: ModelId::new(&view.model),
            stream: view.stream,
            wants_usage,
            headers: allowed_headers(client_headers),
            client: client_label(client_headers),
            max_cost,
            seller,
            body,
            view,
            at_ms: now_ms,
            translations: Mutex::default(),
        })
    }

    /// The dialect in which the client is answered.
    pub fn client_dialect(&self) -> Dialect {
        self.way_back.as_ref().map_or(self.dialect, |way| way.to)
    }

    /// This request for a seller of another dialect; `max_tokens` where that needs a limit.
    ///
    /// # Errors
    /// When it cannot be carried over without changing what it means.
    pub fn translated(&self, to: Dialect, max_tokens: u64) -> Result<Arc<Self>, TranslateError> {
        let mut known = self.translations.lock();
        let found = known
            .iter()
            .find(|t| t.to == to && t.max_tokens == max_tokens);
        if let Some(found) = found {
            return found.made.clone();
        }
        let made = self.translate(to, max_tokens).map(Arc::new);
        known.push(Translation {
            to,
            max_tokens,
            made: made.clone(),
        });
        made
    }

    fn translate(&self, to: Dialect, max_tokens: u64) -> Result<Self, TranslateError> {
        let created_s = self.at_ms / 1_000;
        let mut made = translate::request(&self.body, &self.view, to, max_tokens, created_s)?;
        made.way_back.include_usage = self.wants_usage;
        let view = RequestView::parse(&made.body, to).map_err(|error| {
            tracing::warn!(request = %self.id, %error, "a translated request does not parse");
            TranslateError::Refused("this request cannot be carried to a seller of another dialect")
        })?;
        let vendor = |name: &str| name.starts_with("anthropic-") || name.starts_with("openai-");
        let mut headers: Vec<_> = self
            .headers
            .iter()
            .filter(|(name, _)| !vendor(name))
            .cloned()
            .collect();
        if to == Dialect::Messages {
            let (name, value) = ANTHROPIC_VERSION;
            headers.truncate(HEADERS_MAX.saturating_sub(1));
            headers.push((name.to_owned(), value.to_owned()));
        }
        Ok(Self {
            id: self.id,
            dialect: to,
            way_back: Some(made.way_back),
            dropped: made.dropped,
            body: made.body,
            view,
            model: self.model.clone(),
            stream: self.stream,
            wants_usage: self.wants_usage,
            headers,
            client: self.client.clone(),
            max_cost: self.max_cost,
            seller: self.seller,
            at_ms: self.at_ms,
            translations: Mutex::default(),
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
