//! The HTTP endpoint behind a seller: one client, its key, its dialect.
//!
//! No redirects (an upstream must not send us elsewhere), identity encoding, no total timeout on
//! streams. The key never leaves this file.

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};

use crate::llm_api::Dialect;
use crate::types::Secret;

/// Longest wait for a TCP and TLS connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Idle connections are dropped before a usual server's 60 s keep-alive ends.
const POOL_IDLE: Duration = Duration::from_secs(50);
/// A price list is at most this long; OpenRouter's is about 600 KiB.
const LIST_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Longest wait for the model list.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);
/// Sent when the client named none.
const ANTHROPIC_VERSION: &str = "2023-06-01";

/// Where and how to call.
#[derive(Clone, Debug)]
pub struct UpstreamSettings {
    /// E.g. `https://openrouter.ai/api/v1`.
    pub base_url: String,
    /// What it speaks.
    pub dialect: Dialect,
    /// Has `/v1/completions`.
    pub completions: bool,
    /// Its key, if it wants one.
    pub key: Option<Secret<String>>,
}

/// Why a call failed before an answer began.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The address or the key cannot be used.
    #[error("upstream settings: {0}")]
    Settings(String),
    /// No answer.
    #[error("upstream does not answer: {0}")]
    Unreachable(String),
    /// It does not know the key.
    #[error("the upstream refuses the key (status {0})")]
    Key(u16),
    /// An answer that is no answer.
    #[error("upstream answered {0} to the model list")]
    List(String),
}

/// A ready client for one upstream.
#[derive(Clone, Debug)]
pub struct Upstream {
    client: reqwest::Client,
    base: String,
    dialect: Dialect,
    completions: bool,
}

impl Upstream {
    /// Checks the settings and makes the client.
    ///
    /// # Errors
    /// When the URL is not http(s) or the key holds characters a header cannot carry.
    pub fn new(settings: UpstreamSettings) -> Result<Self, UpstreamError> {
        let base = settings.base_url.trim_end_matches('/').to_owned();
        let url = reqwest::Url::parse(&base)
            .map_err(|e| UpstreamError::Settings(format!("`{base}` is no URL: {e}")))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(UpstreamError::Settings(format!(
                "`{base}` must be http or https"
            )));
        }
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(key) = &settings.key {
            let (name, value) = match settings.dialect {
                Dialect::Messages => ("x-api-key", key.expose().clone()),
                Dialect::Chat | Dialect::Responses => {
                    ("authorization", format!("Bearer {}", key.expose()))
                }
            };
            let mut value = HeaderValue::from_str(&value).map_err(|_| {
                UpstreamError::Settings("the upstream key holds unprintable characters".into())
            })?;
            value.set_sensitive(true);
            headers.insert(HeaderName::from_static(name), value);
        }
        let client = reqwest::Client::builder()
            .default_headers(headers)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(POOL_IDLE)
            .build()
            .map_err(|e| UpstreamError::Settings(e.to_string()))?;
        Ok(Self {
            client,
            base,
            dialect: settings.dialect,
            completions: settings.completions,
        })
    }

    /// What it speaks.
    #[must_use]
    pub const fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// True when it has `/v1/completions`.
    #[must_use]
    pub const fn has_completions(&self) -> bool {
        self.completions
    }

    /// Sends a request; the answer's head has arrived when this returns.
    ///
    /// # Errors
    /// When the upstream does not answer.
    pub async fn call(
        &self,
        path: &str,
        headers: &[(String, String)],
        body: Bytes,
    ) -> Result<reqwest::Response, UpstreamError> {
        let mut request = self.client.post(self.url(path)).body(body);
        if self.dialect == Dialect::Messages
            && !headers.iter().any(|(name, _)| name == "anthropic-version")
        {
            request = request.header("anthropic-version", ANTHROPIC_VERSION);
        }
        for (name, value) in headers {
            if name != "content-type" {
                request = request.header(name, value);
            }
        }
        request
            .send()
            .await
            .map_err(|e| UpstreamError::Unreachable(e.without_url().to_string()))
    }

    /// Sends a request without content: a valid key gets a complaint about it, at no cost. (Some
    /// upstreams list their models to anybody.)
    ///
    /// # Errors
    /// When the upstream does not answer, or refuses the key.
    pub async fn try_key(&self) -> Result<(), UpstreamError> {
        let empty = self.call(self.dialect.path(), &[], Bytes::from_static(b"{}"));
        let answer = tokio::time::timeout(LIST_TIMEOUT, empty).await;
        let late = |_| UpstreamError::Unreachable("it took too long".to_owned());
        match answer.map_err(late)??.status().as_u16() {
            status @ (401 | 403) => Err(UpstreamError::Key(status)),
            _ => Ok(()),
        }
    }

    /// Fetches the model list as JSON bytes.
    ///
    /// # Errors
    /// When the upstream does not answer, refuses, or sends too much.
    pub async fn list_models(&self) -> Result<Bytes, UpstreamError> {
        let unreachable =
            |e: reqwest::Error| UpstreamError::Unreachable(e.without_url().to_string());
        let mut request = self
            .client
            .get(self.url("/v1/models"))
            .timeout(LIST_TIMEOUT);
        if self.dialect == Dialect::Messages {
            request = request.header("anthropic-version", ANTHROPIC_VERSION);
        }
        let mut response = request.send().await.map_err(unreachable)?;
        if matches!(response.status().as_u16(), 401 | 403) {
            return Err(UpstreamError::Key(response.status().as_u16()));
        }
        if !response.status().is_success() {
            return Err(UpstreamError::List(response.status().to_string()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            body.extend_from_slice(&chunk);
            if body.len() > LIST_BYTES_MAX {
                return Err(UpstreamError::List("more than 8 MiB".into()));
            }
        }
        Ok(body.into())
    }

    /// `path` starts with `/v1`; a base that ends with it does not get it twice.
    fn url(&self, path: &str) -> String {
        if self.base.ends_with("/v1") {
            format!("{}{}", self.base, path.strip_prefix("/v1").unwrap_or(path))
        } else {
            format!("{}{path}", self.base)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(base_url: &str) -> Result<Upstream, UpstreamError> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        Upstream::new(UpstreamSettings {
            base_url: base_url.into(),
            dialect: Dialect::Chat,
            completions: true,
            key: None,
        })
    }

    #[test]
    fn a_base_with_or_without_v1_reaches_the_same_path() {
        let path = "/v1/chat/completions";
        assert_eq!(
            upstream("http://x/api/v1").unwrap().url(path),
            "http://x/api/v1/chat/completions"
        );
        assert_eq!(
            upstream("http://x/").unwrap().url(path),
            "http://x/v1/chat/completions"
        );
    }

    #[test]
    fn other_schemes_are_refused() {
        assert!(upstream("ftp://x").is_err());
        assert!(upstream("nonsense").is_err());
    }
}
