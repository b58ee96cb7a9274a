//! Which requests come in, and which do not.

use super::*;
use http_body_util::BodyExt as _;
use proptest::prelude::*;

fn guard(change: impl FnOnce(&mut Settings)) -> Guard {
    let mut settings = Settings {
        host: "127.0.0.1".to_owned(),
        port: 5005,
        ..Settings::default()
    };
    change(&mut settings);
    Guard::new(&settings)
}

fn check(guard: &Guard, method: &str, uri: &str, headers: &[(&str, &str)]) -> Result<(), Refusal> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
    }
    guard.check(&method.parse().unwrap(), &uri.parse().unwrap(), &map)
}

fn get(headers: &[(&str, &str)]) -> Result<(), Refusal> {
    check(&guard(|_| ()), "GET", "/", headers)
}

#[test]
fn only_our_own_names_are_served() {
    for host in [
        "127.0.0.1:5005",
        "localhost:5005",
        "LOCALHOST:5005",
        "[::1]:5005",
    ] {
        assert_eq!(get(&[("host", host)]), Ok(()), "{host}");
    }
    for host in [
        "evil.example",
        "evil.example:5005",
        "localhost",
        "localhost:80",
        "localhost.:5005",
        "localhost.evil.example:5005",
        "127.0.0.1.nip.io:5005",
        "127.0.0.1:5005@evil.example",
        "user@localhost:5005",
        "192.168.0.1:5005",
        "[::1",
        "::1:5005",
        "localhost:+5005",
        "localhost:",
        "localhost:99999",
        "",
    ] {
        assert_eq!(get(&[("host", host)]), Err(Refusal::Host), "{host}");
    }
    assert_eq!(get(&[]), Err(Refusal::Host));
    let twice = [("host", "localhost:5005"), ("host", "localhost:5005")];
    assert_eq!(get(&twice), Err(Refusal::Host));
}

#[test]
fn an_absolute_target_must_name_us_too() {
    let guard = guard(|_| ());
    let host = [("host", "localhost:5005")];
    assert_eq!(
        check(&guard, "GET", "http://evil.example/", &host),
        Err(Refusal::Host)
    );
    assert_eq!(
        check(&guard, "GET", "http://localhost:5005/", &host),
        Ok(())
    );
}

#[test]
fn more_names_can_be_configured() {
    let guard = guard(|s| s.hosts = vec!["host.docker.internal".to_owned(), "a.b:443".to_owned()]);
    for (host, fine) in [
        ("host.docker.internal:8080", true),
        ("a.b:443", true),
        ("a.b:5005", false),
        ("c.d", false),
    ] {
        assert_eq!(
            check(&guard, "GET", "/", &[("host", host)]).is_ok(),
            fine,
            "{host}"
        );
    }
}

#[test]
fn bound_to_all_addresses_any_address_is_fine_but_no_foreign_name() {
    let guard = guard(|s| s.host = "0.0.0.0".to_owned());
    assert_eq!(
        check(&guard, "GET", "/", &[("host", "192.168.0.7:5005")]),
        Ok(())
    );
    let foreign = [("host", "rebind.evil.example:5005")];
    assert_eq!(check(&guard, "GET", "/", &foreign), Err(Refusal::Host));
}

#[test]
fn only_our_own_page_may_be_the_origin() {
    let host = ("host", "localhost:5005");
    assert_eq!(get(&[host, ("origin", "http://localhost:5005")]), Ok(()));
    for origin in [
        "http://evil.example",
        "null",
        "http://localhost",
        "http://localhost:3000",
        "http://127.0.0.1:5005",
        "https://localhost",
        "file://",
        "chrome-extension://abc",
        "http://localhost:5005/",
        "",
    ] {
        assert_eq!(
            get(&[host, ("origin", origin)]),
            Err(Refusal::Origin),
            "{origin}"
        );
    }
}

#[test]
fn behind_a_tls_proxy_the_origin_is_https() {
    let guard = guard(|s| s.hosts = vec!["souk.example".to_owned()]);
    let host = ("host", "souk.example");
    assert_eq!(
        check(
            &guard,
            "GET",
            "/",
            &[host, ("origin", "https://souk.example")]
        ),
        Ok(())
    );
}

#[test]
fn another_site_may_only_link_to_a_page() {
    let host = ("host", "localhost:5005");
    let cross = ("sec-fetch-site", "cross-site");
    let link = [
        host,
        cross,
        ("sec-fetch-mode", "navigate"),
        ("sec-fetch-dest", "document"),
    ];
    assert_eq!(get(&link), Ok(()));
    let frame = [
        host,
        cross,
        ("sec-fetch-mode", "navigate"),
        ("sec-fetch-dest", "iframe"),
    ];
    assert_eq!(get(&frame), Err(Refusal::Origin));
    assert_eq!(
        get(&[host, cross, ("sec-fetch-mode", "no-cors")]),
        Err(Refusal::Origin)
    );
    assert_eq!(
        get(&[host, ("sec-fetch-site", "same-site")]),
        Err(Refusal::Origin)
    );
    assert_eq!(get(&[host, ("sec-fetch-site", "same-origin")]), Ok(()));
    assert_eq!(
        check(&guard(|_| ()), "POST", "/", &link),
        Err(Refusal::Origin)
    );
}

#[test]
fn what_is_sent_must_be_called_json_and_browsers_must_say_so() {
    let guard = guard(|_| ());
    let post = |headers: &[(&str, &str)]| {
        let mut all = vec![("host", "localhost:5005")];
        all.extend_from_slice(headers);
        check(&guard, "POST", "/v1/chat/completions", &all)
    };
    let form = ("content-type", "application/x-www-form-urlencoded");
    let json = ("content-type", "Application/JSON; charset=utf-8");
    let origin = ("origin", "http://localhost:5005");
    assert_eq!(post(&[form]), Err(Refusal::ContentType));
    assert_eq!(post(&[]), Ok(()));
    assert_eq!(post(&[form, origin]), Err(Refusal::ContentType));
    assert_eq!(post(&[origin]), Err(Refusal::ContentType));
    assert_eq!(post(&[json, origin]), Ok(()));
    // Node's own fetch says its mode, also outside a browser; SDKs send JSON.
    assert_eq!(post(&[json, ("sec-fetch-mode", "cors")]), Ok(()));
    let two = [("content-type", "text/plain"), json, origin];
    assert_eq!(post(&two), Err(Refusal::ContentType));
}

#[test]
fn the_token_is_taken_from_every_usual_place() {
    let guard = guard(|s| {
        s.token = Some(Secret::new("secret".to_owned()));
        s.control = Some(Secret::new("control".to_owned()));
    });
    let host = ("host", "localhost:5005");
    let basic = base64::engine::general_purpose::STANDARD.encode("me:secret");
    for (name, value, fine) in [
        ("authorization", "Bearer secret", true),
        ("authorization", "bearer secret", true),
        ("x-api-key", "secret", true),
        ("authorization", &format!("Basic {basic}"), true),
        ("authorization", "Bearer control", true),
        ("authorization", "Bearer wrong", false),
        ("authorization", "Bearer", false),
        ("authorization", "Basic ??", false),
        ("x-api-key", "", false),
        ("x-other", "secret", false),
    ] {
        let result = check(&guard, "GET", "/v1/models", &[host, (name, value)]);
        assert_eq!(result.is_ok(), fine, "{name}: {value}");
    }
    assert_eq!(check(&guard, "GET", "/healthz", &[host]), Ok(()));
    assert_eq!(check(&guard, "GET", "/", &[host]), Err(Refusal::Token));
}

#[test]
fn a_named_client_is_known_by_its_token_and_nobody_comes_in_without_one() {
    let secret = |text: &str| Secret::new(text.to_owned());
    let guard = guard(|s| {
        s.clients = vec![
            ("alice".to_owned(), secret("a")),
            ("bob".to_owned(), secret("b")),
        ];
        s.control = Some(secret("control"));
    });
    let name = |value: &str| {
        let headers = HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())]);
        guard
            .client(&headers)
            .map(|ClientName(name)| name.to_string())
    };
    assert_eq!(name("Bearer b").as_deref(), Some("bob"));
    assert_eq!(name("Bearer c"), None);
    assert_eq!(name("Bearer control"), None);
    let host = ("host", "localhost:5005");
    let come = |headers: &[(&str, &str)]| check(&guard, "GET", "/v1/models", headers);
    assert_eq!(come(&[host, ("x-api-key", "a")]), Ok(()));
    assert_eq!(come(&[host, ("x-api-key", "control")]), Ok(()));
    assert_eq!(come(&[host, ("x-api-key", "c")]), Err(Refusal::Token));
    assert_eq!(come(&[host]), Err(Refusal::Token));
}

#[test]
fn only_the_control_token_controls() {
    let guard = guard(|s| s.control = Some(Secret::new("control".to_owned())));
    let with = |value: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, value.parse().unwrap());
        guard.is_control(&headers)
    };
    assert!(with("Bearer control"));
    assert!(!with("Bearer other"));
    assert!(!super::tests::guard(|_| ()).is_control(&HeaderMap::new()));
}

#[test]
fn a_body_declared_too_long_is_refused_by_its_head() {
    let guard = guard(|_| ());
    let post = |length: &str| {
        let headers = [("host", "localhost:5005"), ("content-length", length)];
        check(&guard, "POST", "/v1/messages", &headers)
    };
    assert_eq!(post("33554432"), Ok(()));
    assert_eq!(post("33554433"), Err(Refusal::TooLarge));
    assert_eq!(post("99999999999999999999999"), Err(Refusal::TooLarge));
}

#[tokio::test]
async fn each_dialect_gets_its_own_error_shape() {
    for (path, pointer) in [
        ("/v1/messages", "/type"),
        ("/v1/chat/completions", "/error/code"),
    ] {
        let response = Refusal::Host.response(path);
        assert_eq!(response.status(), 403);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let value: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert!(value.pointer(pointer).is_some(), "{value}");
    }
}

proptest! {
    #[test]
    fn no_foreign_host_is_ever_served(host in "[a-z0-9.:\\[\\]@-]{0,24}") {
        let ours = ["127.0.0.1:5005", "localhost:5005", "[::1]:5005"];
        let served = get(&[("host", &host)]).is_ok();
        prop_assert!(!served || ours.contains(&host.as_str()) || host.starts_with("[0"));
    }
    #[test]
    fn noise_in_headers_never_panics(
        host in "[ -~]{0,30}", origin in "[ -~]{0,30}", auth in "[ -~]{0,30}", kind in "[ -~]{0,30}",
    ) {
        let guard = guard(|s| s.token = Some(Secret::new("t".to_owned())));
        let headers = [
            ("host", host.as_str()), ("origin", &origin), ("authorization", &auth),
            ("content-type", &kind), ("sec-fetch-site", &kind), ("content-length", &auth),
        ];
        let _ = check(&guard, "POST", "/v1/responses", &headers);
    }
}
