//! The three dialects and the paths they live on. Called by whoever holds an HTTP path or a head.

use serde::{Deserialize, Serialize};

/// An HTTP dialect of LLM inference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dialect {
    /// OpenAI Chat Completions.
    Chat,
    /// Anthropic Messages.
    Messages,
    /// OpenAI Responses.
    Responses,
}

impl Dialect {
    /// Its short name: `chat`, `messages`, `responses`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Messages => "messages",
            Self::Responses => "responses",
        }
    }
    /// Its canonical path.
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Messages => "/v1/messages",
            Self::Responses => "/v1/responses",
        }
    }
    /// The dialect spoken at a path; `/v1` is optional, a query string and a final `/` are ignored.
    /// `count_tokens`, `embeddings` and the like are not inference and give `None`.
    #[must_use]
    pub fn from_path(path: &str) -> Option<Self> {
        match bare(path) {
            "/chat/completions" => Some(Self::Chat),
            "/messages" => Some(Self::Messages),
            "/responses" => Some(Self::Responses),
            _ => None,
        }
    }
}

/// A path without query, final `/` and `/v1`.
fn bare(path: &str) -> &str {
    let bare = path.split(['?', '#']).next().unwrap_or(path);
    let bare = bare.strip_suffix('/').unwrap_or(bare);
    bare.strip_prefix("/v1").unwrap_or(bare)
}

/// A path that sellers serve: one for each dialect, and OpenAI's two others, which are passed as
/// they are and never translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// A dialect's own path.
    Dialect(Dialect),
    /// `/v1/completions`: a prompt that goes on, usage and errors as in chat.
    Completions,
    /// `/v1/embeddings`: no output tokens; the input is what is paid.
    Embeddings,
}

impl Endpoint {
    /// The endpoint at a path, as lenient as [`Dialect::from_path`].
    #[must_use]
    pub fn from_path(path: &str) -> Option<Self> {
        match bare(path) {
            "/completions" => Some(Self::Completions),
            "/embeddings" => Some(Self::Embeddings),
            _ => Dialect::from_path(path).map(Self::Dialect),
        }
    }
    /// Its canonical path.
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::Dialect(dialect) => dialect.path(),
            Self::Completions => "/v1/completions",
            Self::Embeddings => "/v1/embeddings",
        }
    }
    /// The dialect of its usage, errors and stream.
    #[must_use]
    pub const fn dialect(self) -> Dialect {
        match self {
            Self::Dialect(dialect) => dialect,
            Self::Completions | Self::Embeddings => Dialect::Chat,
        }
    }
    /// An answer without output tokens is worth nothing, but for embeddings.
    #[must_use]
    pub const fn owes_without_output(self) -> bool {
        matches!(self, Self::Embeddings)
    }
}

impl std::fmt::Display for Dialect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_its_dialect_whatever_the_query_says() {
        for d in [Dialect::Chat, Dialect::Messages, Dialect::Responses] {
            assert_eq!(Dialect::from_path(d.path()), Some(d));
        }
        assert_eq!(
            Dialect::from_path("/v1/messages?beta=true"),
            Some(Dialect::Messages)
        );
        assert_eq!(
            Dialect::from_path("/chat/completions/"),
            Some(Dialect::Chat)
        );
        assert_eq!(Dialect::from_path("/v1/messages/count_tokens"), None);
        assert_eq!(Dialect::from_path("/v1/embeddings"), None);
        assert_eq!(Dialect::from_path(""), None);
        for path in ["/v1/completions", "/v1/embeddings", "/v1/messages"] {
            let endpoint = Endpoint::from_path(&format!("{path}/?beta=true")).unwrap();
            assert_eq!(endpoint.path(), path);
        }
        assert_eq!(
            Endpoint::from_path("/embeddings"),
            Some(Endpoint::Embeddings)
        );
        assert_eq!(Endpoint::from_path("/v1/models"), None);
    }
}
