//! Which headers travel with a request to a seller and back with its answer: two allow-lists.
//!
//! A seller is a stranger. Nothing that names the client, its keys, its session or its organisation
//! may reach it, so what is not listed does not travel. Callers: buyer (both ways), seller (both
//! ways again: it does not trust the buyer's list, nor show the upstream's account).

/// Request headers that mean something to an upstream and nothing about the client.
const REQUEST_HEADERS: [&str; 5] = [
    "accept",
    "content-type",
    "anthropic-version",
    "anthropic-beta",
    "openai-beta",
];

/// Answer headers that a client acts on.
const ANSWER_HEADERS: [&str; 5] = [
    "content-type",
    "retry-after",
    "retry-after-ms",
    "x-should-retry",
    "request-id",
];

/// Families of rate-limit headers. They speak of the seller's account at its upstream, yet a
/// client's back-off reads them.
const ANSWER_PREFIXES: [&str; 2] = ["x-ratelimit-", "anthropic-ratelimit-"];

/// True when a request header may be passed to a seller and on to its upstream.
#[must_use]
pub fn request_header_allowed(name: &str) -> bool {
    REQUEST_HEADERS.iter().any(|h| h.eq_ignore_ascii_case(name))
}

/// True when an answer header may be passed back to the client.
#[must_use]
pub fn answer_header_allowed(name: &str) -> bool {
    ANSWER_HEADERS.iter().any(|h| h.eq_ignore_ascii_case(name))
        || ANSWER_PREFIXES.iter().any(|p| {
            name.get(..p.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(p))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_and_names_of_the_client_never_travel() {
        for name in [
            "authorization",
            "Proxy-Authorization",
            "x-api-key",
            "api-key",
            "X-Goog-Api-Key",
            "cookie",
            "set-cookie",
            "user-agent",
            "x-stainless-lang",
            "x-stainless-retry-count",
            "openai-organization",
            "openai-project",
            "anthropic-organization-id",
            "x-session-id",
            "session_id",
            "x-client-request-id",
            "x-request-id",
            "traceparent",
            "tracestate",
            "baggage",
            "x-b3-traceid",
            "x-forwarded-for",
            "forwarded",
            "via",
            "referer",
            "origin",
            "http-referer",
            "x-title",
            "x-souk-seller",
            "sign-in-with-x",
            "host",
            "content-length",
            "transfer-encoding",
            "connection",
            "accept-encoding",
            "x-app",
            "",
            "anthropic-dangerous-direct-browser-access",
        ] {
            assert!(!request_header_allowed(name), "{name}");
        }
        assert!(request_header_allowed("Anthropic-Version"));
        assert!(request_header_allowed("anthropic-beta"));
    }

    #[test]
    fn answers_keep_what_a_client_acts_on() {
        for name in [
            "Content-Type",
            "Retry-After",
            "x-ratelimit-remaining-tokens",
            "Anthropic-RateLimit-Requests-Reset",
            "request-id",
        ] {
            assert!(answer_header_allowed(name), "{name}");
        }
        for name in [
            "set-cookie",
            "openai-organization",
            "cf-ray",
            "content-length",
            "content-encoding",
            "server",
            "anthropic-organization-id",
            "ünïcode-heäder",
        ] {
            assert!(!answer_header_allowed(name), "{name}");
        }
    }
}
