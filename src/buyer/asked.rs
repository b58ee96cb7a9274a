//! What a client asks for: the parsed request, independent of who will serve it.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Uri};
use parking_lot::Mutex;

use super::names::Names;
use crate::http::guard::ClientName;
use crate::ledger::PROBE_CLIENT;
use crate::llm_api::translate::{self, TranslateError, WayBack};
use crate::llm_api::{self, Dialect, Endpoint, RequestError, RequestView, headers};
use crate::protocol::limits::{HEADER_BYTES_MAX, HEADERS_MAX};
use crate::protocol::offer::Capabilities;
use crate::router::Prefer;
use crate::types::{MicroUsd, ModelId, PeerId, RequestId, UnixMs};

/// Longest label of a client kept in the ledger, characters.
const CLIENT_CHARS_MAX: usize = 40;
/// The version of Messages that translated requests are written for.
const ANTHROPIC_VERSION: (&str, &str) = ("anthropic-version", "2023-06-01");

/// One client request, in the dialect of whoever is to serve it.
pub(super) struct Asked {
    pub id: RequestId,
    /// The path at the seller.
    pub endpoint: Endpoint,
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
    /// For the ledger: the client's name by its token, else a short name of its program.
    pub client: String,
    pub max_cost: Option<MicroUsd>,
    /// A preferred seller.
    pub seller: Option<PeerId>,
    /// What this request looks for.
    pub prefer: Option<Prefer>,
    at_ms: UnixMs,
    translations: Mutex<Vec<Translation>>,
}

/// How long an answer may be at a seller of another dialect, tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OutputLimit {
    /// Written where the dialect must have a limit.
    pub required: u64,
    /// The longest that the seller gives, when it says so; a higher limit is cut to it.
    pub most: Option<u64>,
}

/// The same request for sellers of another dialect; made once, whatever the number of sellers.
struct Translation {
    to: Dialect,
    limit: OutputLimit,
    made: Result<Arc<Asked>, TranslateError>,
}

impl Asked {
    /// Parses a request to `endpoint`.
    ///
    /// # Errors
    /// When the body or a `x-souk-*` header is malformed; the text tells the client what to fix.
    pub fn parse(
        endpoint: Endpoint,
        client_headers: &HeaderMap,
        body: Bytes,
        now_ms: UnixMs,
    ) -> Result<Self, RequestError> {
        let dialect = endpoint.dialect();
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
        let prefer = souk_header(client_headers, "x-souk-prefer")?;
        Ok(Self {
            id: RequestId::generate(now_ms),
            endpoint,
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
            prefer,
            body,
            view,
            at_ms: now_ms,
            translations: Mutex::default(),
        })
    }

    /// The same, of the client whose token the request carried.
    pub fn of_client(mut self, name: Option<&ClientName>) -> Self {
        if let Some(ClientName(name)) = name {
            self.client = name.to_string();
        }
        self
    }

    /// The same, as a question of our own.
    pub fn of_probe(mut self) -> Self {
        PROBE_CLIENT.clone_into(&mut self.client);
        self
    }

    /// The same, for the model that the client means, of those for which `is_offered` holds.
    pub fn meaning(mut self, names: &Names, is_offered: impl Fn(&ModelId) -> bool) -> Self {
        let meaning = names.resolve(&self.model, is_offered);
        self.model = meaning.model;
        self.prefer = self.prefer.or(meaning.prefer);
        self
    }

    /// The dialect in which the client is answered.
    pub fn client_dialect(&self) -> Dialect {
        self.way_back.as_ref().map_or(self.dialect, |way| way.to)
    }

    /// This request for a seller of another dialect.
    ///
    /// # Errors
    /// When it cannot be carried over without changing what it means.
    pub fn translated(&self, to: Dialect, limit: OutputLimit) -> Result<Arc<Self>, TranslateError> {
        let mut known = self.translations.lock();
        let found = known.iter().find(|t| t.to == to && t.limit == limit);
        if let Some(found) = found {
            return found.made.clone();
        }
        let made = self.translate(to, limit).map(Arc::new);
        known.push(Translation {
            to,
            limit,
            made: made.clone(),
        });
        made
    }

    fn translate(&self, to: Dialect, limit: OutputLimit) -> Result<Self, TranslateError> {
        let created_s = self.at_ms / 1_000;
        let mut view = self.view.clone();
        view.max_tokens = cut(view.max_tokens, limit.most);
        let mut made = translate::request(&self.body, &view, to, limit.required, created_s)?;
        if view.max_tokens != self.view.max_tokens {
            made.dropped.push("max_tokens".to_owned());
        }
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
            endpoint: Endpoint::Dialect(to),
            dialect: to,
            way_back: Some(made.way_back),
            dropped: made.dropped,
            body: made.body,
            view,
            headers,
            ..self.copy()
        })
    }

    /// This request without the parameters that an upstream is known not to take; `None` when it
    /// takes them all.
    pub fn filtered(&self, caps: Capabilities) -> Option<Self> {
        let all = self.view.parameters.iter().map(String::as_str);
        let unwanted: Vec<&str> = all.filter(|name| !caps.takes_parameter(name)).collect();
        if unwanted.is_empty() {
            return None;
        }
        let body = llm_api::remove_members(&self.body, &unwanted);
        let view = RequestView::parse(&body, self.dialect).ok()?;
        let left_out = unwanted.iter().map(|name| (*name).to_owned());
        let dropped = self.dropped.iter().cloned().chain(left_out).collect();
        Some(Self {
            dropped,
            body,
            view,
            ..self.copy()
        })
    }

    fn copy(&self) -> Self {
        Self {
            id: self.id,
            endpoint: self.endpoint,
            dialect: self.dialect,
            way_back: self.way_back.clone(),
            dropped: self.dropped.clone(),
            body: self.body.clone(),
            view: self.view.clone(),
            model: self.model.clone(),
            stream: self.stream,
            wants_usage: self.wants_usage,
            headers: self.headers.clone(),
            client: self.client.clone(),
            max_cost: self.max_cost,
            seller: self.seller,
            prefer: self.prefer,
            at_ms: self.at_ms,
            translations: Mutex::default(),
        }
    }

    /// Input tokens that a seller with these terms counts as known before the work.
    pub fn prefill_tokens(&self, tokens_per_kib: u16, image_tokens: u32) -> u64 {
        llm_api::prefill_tokens(&self.view, self.body.len(), tokens_per_kib, image_tokens)
    }
}

fn cut(asked: Option<u64>, most: Option<u64>) -> Option<u64> {
    asked.map(|asked| most.map_or(asked, |most| asked.min(most)))
}

/// What a proxied path asks for; the query string does not matter.
pub(super) fn endpoint_of(uri: &Uri) -> Option<Endpoint> {
    Endpoint::from_path(uri.path().trim_end_matches('/'))
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
    let label = word.chars().filter(|c| !c.is_control());
    let label: String = label.take(CLIENT_CHARS_MAX).collect();
    // That name is our own.
    if label == PROBE_CLIENT {
        String::new()
    } else {
        label
    }
}
