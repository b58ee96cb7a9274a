//! What must not pass: a client's secrets to sellers, browsers' pages to the port, sellers'
//! billing troubles to the client, and anything without a bound.

use serde_json::json;

use crate::harness::http::Request;
use crate::harness::market::{Dialect, Market, UPSTREAM_KEY};
use crate::harness::upstream::{Fault, Script};

/// The largest body that a node takes.
const BODY_MAX_BYTES: usize = 32 * 1024 * 1024;

/// Headers that clients, proxies, browsers and SDKs send and that are nobody else's business.
const SECRET_HEADERS: [&str; 60] = [
    "authorization",
    "proxy-authorization",
    "x-api-key",
    "api-key",
    "x-auth-token",
    "x-access-token",
    "x-amz-security-token",
    "x-goog-api-key",
    "x-csrf-token",
    "x-xsrf-token",
    "cookie",
    "cookie2",
    "user-agent",
    "referer",
    "from",
    "via",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-real-ip",
    "x-client-ip",
    "true-client-ip",
    "cf-connecting-ip",
    "x-cluster-client-ip",
    "x-original-url",
    "x-request-id",
    "x-correlation-id",
    "x-trace-id",
    "traceparent",
    "tracestate",
    "baggage",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-cloud-trace-context",
    "x-amzn-trace-id",
    "sentry-trace",
    "x-datadog-trace-id",
    "x-session-id",
    "session-id",
    "x-user-id",
    "x-device-id",
    "x-account-id",
    "x-tenant-id",
    "openai-organization",
    "openai-project",
    "x-openai-client",
    "anthropic-organization-id",
    "x-app",
    "http-referer",
    "x-title",
    "x-stainless-lang",
    "x-stainless-os",
    "x-stainless-arch",
    "x-stainless-runtime",
    "x-stainless-package-version",
    "x-stainless-retry-count",
    "x-vault-token",
    "x-my-own-secret",
];

const CANARY: &str = "canary-7f3a";

#[tokio::test(flavor = "multi_thread")]
async fn none_of_sixty_secret_headers_reaches_the_sellers_upstream() {
    for dialect in Dialect::ALL {
        let market = Market::start(dialect, vec![Script::default()]).await;
        let mut request = dialect.request("Say something.", false);
        request.path.push_str(&format!("?key={CANARY}"));
        for (i, name) in SECRET_HEADERS.iter().enumerate() {
            request = request.header(name, &format!("{CANARY}-{i}"));
        }
        let response = market.send(&request).await;
        assert_eq!(response.status, 200, "{}", response.text());
        let seen = market.sellers[0].upstream.exchanges();
        let leaked: Vec<_> = seen[0]
            .headers
            .iter()
            .filter(|(_, v)| v.contains(CANARY))
            .collect();
        assert!(leaked.is_empty(), "{dialect:?}: {leaked:?}");
        assert!(!seen[0].path.contains(CANARY), "{}", seen[0].path);
        let key = match dialect {
            Dialect::Chat => ("authorization", format!("Bearer {UPSTREAM_KEY}")),
            Dialect::Messages => ("x-api-key", UPSTREAM_KEY.to_owned()),
        };
        assert_eq!(
            seen[0].header(key.0),
            Some(key.1.as_str()),
            "the seller's own key"
        );
        let text = format!("{:?}{}", response.headers, response.text());
        assert!(
            !text.contains(UPSTREAM_KEY),
            "the seller's key stays with the seller"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_the_limit_is_refused_before_any_seller_sees_it() {
    let market = Market::start(Dialect::Chat, vec![Script::default()]).await;
    for dialect in Dialect::ALL {
        let body = dialect.body(&"x".repeat(BODY_MAX_BYTES), false);
        let response = market.send(&Request::post(dialect.path(), &body)).await;
        assert_eq!(response.status, 413);
        assert!(response.json()["error"]["message"].is_string());
    }
    assert_eq!(market.upstream_requests(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_other_sites_cannot_use_the_port() {
    let market = Market::start(Dialect::Chat, vec![Script::default()]).await;
    let port = market.buyer.http().port();
    let ask = || Dialect::Chat.request("Say something.", false);
    let refused = [
        ask().host("evil.example"),
        ask().host(&format!("evil.example:{port}")),
        ask().host(&format!("127.0.0.1.evil.example:{port}")),
        ask().header("origin", "https://evil.example"),
        ask().header("origin", "null"),
        ask().header("origin", &format!("http://localhost.evil.example:{port}")),
        Request::get("/v1/models").host("evil.example"),
        Request::get("/api/status").host("evil.example"),
        Request::get("/api/status").header("origin", "https://evil.example"),
    ];
    for request in refused {
        let response = market.send(&request).await;
        assert_eq!(response.status, 403, "{request:?}");
        assert!(response.json()["error"]["message"].is_string());
        assert_eq!(response.header("access-control-allow-origin"), None);
    }
    let mut plain = ask();
    plain.headers = vec![("content-type".into(), "text/plain".into())];
    assert!(
        [403, 415].contains(&market.send(&plain).await.status),
        "a form post is no API call"
    );
    let mut preflight =
        Request::get("/v1/chat/completions").header("origin", "https://evil.example");
    preflight.method = "OPTIONS".into();
    let response = market.send(&preflight).await;
    assert_eq!(response.header("access-control-allow-origin"), None);
    assert_eq!(market.upstream_requests(), 0);
    let ok = ask().host(&format!("localhost:{port}"));
    assert_eq!(
        market.send(&ok).await.status,
        200,
        "the same machine by name"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_402_of_a_sellers_upstream_never_reaches_the_client() {
    for dialect in Dialect::ALL {
        let broke = || Script::failing(Fault::Status(402));
        let market = Market::start(dialect, vec![broke(), broke()]).await;
        for stream in [false, true] {
            let response = market.ask("Say something.", stream).await;
            assert!([502, 503].contains(&response.status), "{}", response.status);
            let text = response.text().to_lowercase();
            for word in [
                "402",
                "payment required",
                "billing",
                "insufficient",
                "quota",
            ] {
                assert!(!text.contains(word), "{word:?} in {text}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_a_request_is_refused_in_the_dialects_words() {
    let market = Market::start(Dialect::Chat, vec![Script::default()]).await;
    let deep = format!(
        r#"{{"model":"m","messages":[],"x":{}{}}}"#,
        "[".repeat(100),
        "]".repeat(100)
    );
    let bodies = [
        "",
        "{",
        "[]",
        "null",
        "\"text\"",
        r#"{"messages":[]}"#,
        r#"{"model":7,"messages":[]}"#,
        r#"{"model":"a","model":"b","messages":[]}"#,
        &deep,
    ];
    for dialect in Dialect::ALL {
        for body in bodies {
            let request = Request::post_bytes(dialect.path(), body.as_bytes().to_vec());
            let response = market.send(&request).await;
            assert_eq!(response.status, 400, "{body}: {}", response.text());
            let json = response.json();
            assert!(json["error"]["message"].is_string(), "{json}");
            assert_eq!(
                json["type"] == json!("error"),
                dialect == Dialect::Messages,
                "{json}"
            );
        }
    }
    assert_eq!(market.upstream_requests(), 0);
}
