//! Decides whether a request may come in at all: the local port is open to every web page that the
//! user visits, so `Host`, `Origin` and the fetch headers are checked before anything is read.
//!
//! Invariants: [`Guard::check`] is pure and takes no decision from anything but the head; tokens
//! are compared in constant time. There are no CORS headers anywhere. SDKs (no `Origin`, JSON) and `curl -d` (no browser headers) pass. Called by
//! [`super::server`] for every request.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use base64::Engine as _;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderName, ORIGIN, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::body::Body;
use super::request_body::{BODY_BYTES_MAX, declared_length};
use crate::llm_api::Dialect;
use crate::llm_api::error::envelope;
use crate::types::Secret;

/// Paths that probes ask without a token.
const OPEN_PATHS: [&str; 2] = ["/healthz", "/readyz"];

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");

/// Who may call.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The address or name the server is bound to.
    pub host: String,
    /// The port that it really has.
    pub port: u16,
    /// More names, `name` (any port) or `name:port`.
    pub hosts: Vec<String>,
    /// What every client must send; `None`, with no named clients either, lets all in.
    pub token: Option<Secret<String>>,
    /// Clients with tokens of their own, by name.
    pub clients: Vec<(String, Secret<String>)>,
    /// Checks the SIGN-IN-WITH-X header of a caller without the token; called with the header's
    /// value and the host it names.
    pub sign_in: Option<SignInCheck>,
    /// What calls that change anything must send (`run.json`); it also lets in.
    pub control: Option<Secret<String>>,
}

/// Says whether a SIGN-IN-WITH-X header (value, host) lets its caller in. It uses nonces up, so it
/// is asked last.
#[derive(Clone)]
pub struct SignInCheck(pub Arc<SignIn>);

/// From the header's value and the host it names to yes or no.
pub type SignIn = dyn Fn(&str, &str) -> bool + Send + Sync;

impl std::fmt::Debug for SignInCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SignInCheck")
    }
}

/// The header in which a wallet signs in.
const SIGN_IN_HEADER: &str = "sign-in-with-x";

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not called by a name of ours: DNS rebinding, or a proxy in front.
    #[error("this Host is not served here; add it to `hosts` in the [buy] section of the config")]
    Host,
    /// Called by a web page of another site.
    #[error("requests from other web pages are refused")]
    Origin,
    /// The body is not called JSON.
    #[error("send Content-Type: application/json")]
    ContentType,
    /// No token, or a wrong one.
    #[error("the proxy's token is missing or wrong; send it as Authorization: Bearer or x-api-key")]
    Token,
    /// The body is above the limit.
    #[error("the request body is larger than 32 MiB")]
    TooLarge,
    /// The body came too slowly.
    #[error("the request body did not arrive in time")]
    Slow,
    /// The body broke off.
    #[error("the request body broke off")]
    Broken,
}

impl Refusal {
    /// The answer's status.
    #[must_use]
    pub const fn status(self) -> StatusCode {
        match self {
            Self::Host | Self::Origin => StatusCode::FORBIDDEN,
            Self::ContentType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Token => StatusCode::UNAUTHORIZED,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Slow => StatusCode::REQUEST_TIMEOUT,
            Self::Broken => StatusCode::BAD_REQUEST,
        }
    }
    /// The error's code.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Host => "host_not_allowed",
            Self::Origin => "origin_not_allowed",
            Self::ContentType => "content_type_not_json",
            Self::Token => "invalid_token",
            Self::TooLarge => "request_too_large",
            Self::Slow => "request_timeout",
            Self::Broken => "request_incomplete",
        }
    }
    /// The answer, in the shape that the path's dialect expects.
    #[must_use]
    pub fn response(self, path: &str) -> Response<Body> {
        let mut response = json_error(path, self.status(), self.code(), &self.to_string());
        if self == Self::Token {
            // Lets a person at a browser type the token in (as the password, any name).
            let ask = HeaderValue::from_static("Basic realm=\"souk\"");
            response.headers_mut().insert(WWW_AUTHENTICATE, ask);
        }
        response
    }
}

/// An error answer in the shape of the dialect that the path belongs to.
#[must_use]
pub fn json_error(path: &str, status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let dialect = if path.split('/').any(|part| part == "messages") {
        Dialect::Messages
    } else {
        Dialect::Chat
    };
    let body = envelope(dialect, status.as_u16(), code, message);
    let mut response = Response::new(Body::full(body));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

/// The checks before a request's body is read.
#[derive(Clone, Debug)]
pub struct Guard {
    names: Vec<Name>,
    any_address: bool,
    port: u16,
    token: Option<[u8; 32]>,
    clients: Vec<(ClientName, [u8; 32])>,
    sign_in: Option<SignInCheck>,
    control: Option<[u8; 32]>,
}

/// The client whose token a request carried, among the request's extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientName(pub Arc<str>);

/// A name that is served, and on which port (`None` = any).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Name {
    host: HostName,
    port: Option<u16>,
}

/// A host as compared: addresses by value, names in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
enum HostName {
    Address(IpAddr),
    Text(String),
}

impl Guard {
    /// Prepares the checks.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        let own = Some(settings.port);
        let name = |host, port| Name { host, port };
        let mut names = vec![
            name(HostName::Address(Ipv4Addr::LOCALHOST.into()), own),
            name(HostName::Address(Ipv6Addr::LOCALHOST.into()), own),
            name(HostName::Text("localhost".to_owned()), own),
        ];
        let bound = parse_host(settings.host.trim_matches(['[', ']']));
        let any_address =
            matches!(&bound, Some(HostName::Address(address)) if address.is_unspecified());
        names.extend(bound.map(|host| name(host, own)));
        names.extend(settings.hosts.iter().filter_map(|text| {
            let (host, port) = split_authority(text)?;
            Some(name(host, port))
        }));
        let digest = |token: &Option<Secret<String>>| {
            let token = token.as_ref()?;
            Some(sha256(token.expose().as_bytes()))
        };
        Self {
            names,
            any_address,
            port: settings.port,
            token: digest(&settings.token),
            clients: settings
                .clients
                .iter()
                .map(|(name, token)| {
                    let name = ClientName(Arc::from(name.as_str()));
                    (name, sha256(token.expose().as_bytes()))
                })
                .collect(),
            sign_in: settings.sign_in.clone(),
            control: digest(&settings.control),
        }
    }

    /// Checks a request's head.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn check(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
        let host = self.check_host(uri, headers)?;
        check_origin(&host, headers)?;
        check_fetch(method, headers)?;
        check_content_type(method, headers)?;
        let allowed = OPEN_PATHS.contains(&uri.path())
            || (self.token.is_none() && self.clients.is_empty())
            || self.has_token(headers, self.token)
            || self.client(headers).is_some()
            || self.is_control(headers)
            || self.signs_in(headers);
        if !allowed {
            return Err(Refusal::Token);
        }
        match declared_length(headers) {
            Some(length) if length > BODY_BYTES_MAX => Err(Refusal::TooLarge),
            _ => Ok(()),
        }
    }

    /// Whether the request carries the control token of `run.json`, which calls that change
    /// anything need.
    #[must_use]
    pub fn is_control(&self, headers: &HeaderMap) -> bool {
        self.control.is_some() && self.has_token(headers, self.control)
    }

    /// The named client whose token the request carries.
    #[must_use]
    pub fn client(&self, headers: &HeaderMap) -> Option<ClientName> {
        let mut clients = self.clients.iter();
        let found = clients.find(|(_, token)| self.has_token(headers, Some(*token)));
        found.map(|(name, _)| name.clone())
    }

    fn signs_in(&self, headers: &HeaderMap) -> bool {
        let text = |name: &HeaderName| single(headers, name).ok().flatten();
        let header = HeaderName::from_static(SIGN_IN_HEADER);
        match (&self.sign_in, text(&header), text(&HOST)) {
            (Some(check), Some(proof), Some(host)) => (check.0)(proof, host),
            _ => false,
        }
    }

    /// The host that the request names, if it is one of ours.
    fn check_host(
        &self,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<(HostName, Option<u16>), Refusal> {
        let text = single(headers, &HOST).map_err(|()| Refusal::Host)?;
        let named = split_authority(text.ok_or(Refusal::Host)?).ok_or(Refusal::Host)?;
        if !self.serves(&named) {
            return Err(Refusal::Host);
        }
        // An absolute target overrides Host (RFC 9112, 3.2.2), so it must name us too.
        if let Some(authority) = uri.authority() {
            let target = split_authority(authority.as_str()).ok_or(Refusal::Host)?;
            if !self.serves(&target) {
                return Err(Refusal::Host);
            }
        }
        Ok(named)
    }

    fn serves(&self, (host, port): &(HostName, Option<u16>)) -> bool {
        // Rebinding needs a name: a page cannot make its own name look like an address.
        if self.any_address && matches!(host, HostName::Address(_)) {
            return true;
        }
        let is_own_port = |wanted: u16| match port {
            Some(port) => *port == wanted,
            None => wanted == 80,
        };
        self.names
            .iter()
            .any(|name| name.host == *host && name.port.is_none_or(is_own_port))
    }

    /// The port that the guard expects in `Host`.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    fn has_token(&self, headers: &HeaderMap, wanted: Option<[u8; 32]>) -> bool {
        let Some(wanted) = wanted else { return false };
        // Hashed first, so that neither content nor length shows in the time it takes.
        let matches = |given: &[u8]| bool::from(sha256(given).ct_eq(&wanted));
        let by_key = headers.get_all(X_API_KEY).iter();
        let by_auth = headers.get_all(AUTHORIZATION).iter();
        by_key.map(HeaderValue::as_bytes).any(matches)
            || by_auth.filter_map(credentials).any(|given| matches(&given))
    }
}

/// The token inside `Bearer …`, or the password inside `Basic …`.
fn credentials(value: &HeaderValue) -> Option<Vec<u8>> {
    let (scheme, rest) = value.to_str().ok()?.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.trim().as_bytes().to_vec());
    }
    if scheme.eq_ignore_ascii_case("basic") {
        let engine = base64::engine::general_purpose::STANDARD;
        let pair = engine.decode(rest.trim()).ok()?;
        let colon = pair.iter().position(|byte| *byte == b':')?;
        return pair.get(colon + 1..).map(<[u8]>::to_vec);
    }
    None
}

/// An `Origin`, if there is one, must be the very host that is called.
fn check_origin(
    (host, port): &(HostName, Option<u16>),
    headers: &HeaderMap,
) -> Result<(), Refusal> {
    let Some(origin) = single(headers, &ORIGIN).map_err(|()| Refusal::Origin)? else {
        return Ok(());
    };
    let (rest, usual_port) = match (
        origin.strip_prefix("http://"),
        origin.strip_prefix("https://"),
    ) {
        (Some(rest), _) => (rest, 80),
        (_, Some(rest)) => (rest, 443),
        // `null` (sandboxed frames, files) and schemes of extensions.
        _ => return Err(Refusal::Origin),
    };
    let (origin_host, origin_port) = split_authority(rest).ok_or(Refusal::Origin)?;
    let same =
        origin_host == *host && origin_port.unwrap_or(usual_port) == port.unwrap_or(usual_port);
    if same { Ok(()) } else { Err(Refusal::Origin) }
}

/// Another site may link to our pages, and nothing else.
fn check_fetch(method: &Method, headers: &HeaderMap) -> Result<(), Refusal> {
    let is = |name: &HeaderName, value: &str| {
        let found = single(headers, name).ok().flatten();
        found.is_some_and(|text| text.eq_ignore_ascii_case(value))
    };
    if !headers.contains_key(SEC_FETCH_SITE)
        || is(&SEC_FETCH_SITE, "same-origin")
        || is(&SEC_FETCH_SITE, "none")
    {
        return Ok(());
    }
    let is_link = is(&SEC_FETCH_MODE, "navigate") && is(&SEC_FETCH_DEST, "document");
    if is_link && is_read(method) {
        Ok(())
    } else {
        Err(Refusal::Origin)
    }
}

/// A browser sends JSON across sites only after asking (CORS), and nobody here says yes.
fn check_content_type(method: &Method, headers: &HeaderMap) -> Result<(), Refusal> {
    let is_browser = headers.contains_key(ORIGIN)
        || [SEC_FETCH_SITE, SEC_FETCH_MODE, SEC_FETCH_DEST]
            .iter()
            .any(|name| headers.contains_key(name));
    // Without a type nobody's form sent it; with one it must be JSON, whoever calls.
    if is_read(method) || (!is_browser && !headers.contains_key(CONTENT_TYPE)) {
        return Ok(());
    }
    let kind = single(headers, &CONTENT_TYPE)
        .ok()
        .flatten()
        .unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        Ok(())
    } else {
        Err(Refusal::ContentType)
    }
}

fn is_read(method: &Method) -> bool {
    *method == Method::GET || *method == Method::HEAD
}

/// The only value of a header; `Err` when there are several, or it is not text.
pub(super) fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, ()> {
    let mut all = headers.get_all(name).iter();
    match (all.next(), all.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| ()),
        (Some(_), Some(_)) => Err(()),
    }
}

/// `host`, `host:port`, `[v6]` or `[v6]:port`; anything else is nothing.
fn split_authority(text: &str) -> Option<(HostName, Option<u16>)> {
    let (host, rest) = match text.strip_prefix('[') {
        Some(inside) => {
            let (address, rest) = inside.split_once(']')?;
            let address: Ipv6Addr = address.parse().ok()?;
            (HostName::Address(address.into()), rest)
        }
        None => {
            let (host, rest) = text.split_at(text.find(':').unwrap_or(text.len()));
            (parse_host(host)?, rest)
        }
    };
    match rest.strip_prefix(':') {
        None if rest.is_empty() => Some((host, None)),
        Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some((host, Some(port.parse().ok()?)))
        }
        _ => None,
    }
}

/// A bare address or name.
fn parse_host(text: &str) -> Option<HostName> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(HostName::Address(address));
    }
    let is_name_byte =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let is_name = !text.is_empty() && text.bytes().all(is_name_byte);
    is_name.then(|| HostName::Text(text.to_ascii_lowercase()))
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

#[cfg(test)]
#[path = "guard_tests.rs"]
mod tests;
