//! Tests of the request view.

use super::*;
use proptest::prelude::*;

fn chat(body: &str) -> Result<RequestView, RequestError> {
    RequestView::parse(body.as_bytes(), Dialect::Chat)
}

#[test]
fn a_chat_request_shows_what_routing_needs() {
    let body = r#" {"model":"openai\/gpt-4o","messages":[{"role":"user","content":[
        {"type":"text","text":"data:image/png;base64,AAAA"},
        {"type":"image_url","image_url":{"url":"data:image/png;base64,iVBORw0KGgo="}},
        {"type":"image_url","image_url":{"url":"https://x/y.png"}}]},{"role":"assistant","content":null}],
        "max_tokens":5,"max_completion_tokens":7.0,"stream":true,"stream_options":{"include_usage":true},
        "tools":[{"type":"function","function":{"name":"f","parameters":{"type":"image"}}}],
        "response_format":{"type":"json_schema"},"n":2}"#;
    let v = chat(body).unwrap();
    assert_eq!(v.model, "openai/gpt-4o");
    assert_eq!(&body[v.model_span.clone()], r#""openai\/gpt-4o""#);
    assert!(v.stream && v.include_usage && v.has_tools && v.response_format_json);
    assert_eq!((v.max_tokens, v.choices, v.message_count), (Some(7), 2, 2));
    assert_eq!((v.image_count, v.base64_bytes), (2, 34));
    assert_eq!(prefill_tokens(&v, 1024 + 34, 256, 100), 256 + 200);
    assert_eq!(prefill_tokens(&v, 1025 + 34, 256, 0), 257);
}

#[test]
fn a_messages_request_shows_what_routing_needs() {
    let body = r#"{"model":"claude-x","max_tokens":64000,"system":[{"type":"text","text":"s"}],"thinking":{"type":"enabled","budget_tokens":1},
        "messages":[{"role":"user","content":[{"type":"image","source":{"type":"base64","media_type":"image/jpeg","data":"/9j/4AAQ"}},
        {"type":"tool_result","content":[{"type":"image","source":{"data":"iVBORw0KG","type":"base64"}}]},
        {"type":"document","source":{"type":"base64","data":"JVBERi0"}}]}],"tools":[],"output_config":{"format":{"type":"json_schema"}}}"#;
    let v = RequestView::parse(body.as_bytes(), Dialect::Messages).unwrap();
    assert_eq!((v.max_tokens, v.message_count), (Some(64_000), 1));
    assert_eq!((v.image_count, v.base64_bytes), (2, 17));
    assert!(!v.has_tools && !v.stream && v.response_format_json);
    assert!(v.system_span.is_some());
}

#[test]
fn a_responses_request_is_seen_shallowly() {
    let body = r#"{"model":"m","input":"hi","max_output_tokens":9,"stream":true,"text":{"format":{"type":"json_object"}}}"#;
    let v = RequestView::parse(body.as_bytes(), Dialect::Responses).unwrap();
    assert_eq!((v.max_tokens, v.message_count), (Some(9), 1));
    assert!(v.stream && v.response_format_json);
}

#[test]
fn two_models_are_refused_even_when_one_is_escaped() {
    let want = Err(RequestError::DuplicateKey("model".into()));
    assert_eq!(chat(r#"{"model":"a","model":"b"}"#), want);
    assert_eq!(chat(r#"{"model":"a","mod\u0065l":"b"}"#), want);
    assert!(chat(r#"{"model":"a","Model":"b"}"#).is_err());
    let twice =
        r#"{"model":"a","stream_options":{"include_usage":false,"include\u005fusage":true}}"#;
    assert!(matches!(chat(twice), Err(RequestError::DuplicateKey(_))));
    assert_eq!(chat(r#"{"mod\u0065l":"b"}"#).unwrap().model, "b");
}

#[test]
fn wrong_bodies_are_refused_with_words() {
    for (body, part) in [
        ("", "too early"),
        ("[]", "one JSON object"),
        ("{}", "`model` is missing"),
        (r#"{"model":5}"#, "`model` must be"),
        (r#"{"model":" "}"#, "`model` must be"),
        (r#"{"model":"a"} x"#, "not valid JSON"),
        (r#"{"model":"a","stream":"yes"}"#, "`stream` must be"),
        (r#"{"model":"a","max_tokens":-1}"#, "`max_tokens` must be"),
        (r#"{"model":"a","max_tokens":1.5}"#, "`max_tokens` must be"),
        (r#"{"model":"a","messages":"x"}"#, "`messages` must be"),
        (
            r#"{"model":"a","stream_options":[]}"#,
            "`stream_options` must be",
        ),
        (r#"{"model":"a""#, "too early"),
    ] {
        let error = chat(body).unwrap_err().to_string();
        assert!(error.contains(part), "{body}: {error}");
    }
    let deep = format!(
        r#"{{"model":"a","x":{}{}}}"#,
        "[".repeat(64),
        "]".repeat(64)
    );
    assert_eq!(chat(&deep), Err(JsonError::TooDeep.into()));
    let fits = format!(
        r#"{{"model":"a","x":{}{}}}"#,
        "[".repeat(63),
        "]".repeat(63)
    );
    assert!(chat(&fits).is_ok());
    let many: String = (0..200).map(|i| format!(",\"k{i}\":0")).collect();
    assert_eq!(
        chat(&format!("{{\"model\":\"a\"{many}}}")),
        Err(RequestError::TooManyKeys)
    );
}

#[test]
fn null_means_absent() {
    let v =
        chat(r#"{"model":"a","stream":null,"max_tokens":null,"stream_options":null,"tools":null}"#)
            .unwrap();
    assert!(!v.stream && !v.include_usage && !v.has_tools);
    assert_eq!(v.max_tokens, None);
}

#[test]
fn a_conversation_keeps_its_key_as_it_grows() {
    let key = |b: &str| conversation_key(b.as_bytes(), &chat(b).unwrap());
    let one = key(
        r#"{"model":"a","messages":[{"role":"system","content":"s"},{"role":"user","content":"q"}]}"#,
    );
    let two = key(
        r#"{"stream":true,"model":"a","messages":[{"role":"system","content":"s"},{"role":"user","content":"q"},{"role":"assistant","content":"r"}]}"#,
    );
    let other = key(
        r#"{"model":"a","messages":[{"role":"system","content":"s"},{"role":"user","content":"p"}]}"#,
    );
    assert_eq!(one, two);
    assert_ne!(one, other);
}

#[test]
fn huge_base64_and_prices_do_not_overflow() {
    let mut v = chat(r#"{"model":"a"}"#).unwrap();
    v.base64_bytes = u64::MAX;
    v.image_count = u64::MAX;
    assert_eq!(prefill_tokens(&v, usize::MAX, u16::MAX, u32::MAX), u64::MAX);
}

proptest! {
    #[test]
    fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..300), s in "\\{(\"(model|stream|n|messages|tools|input)\":(\"a\"|true|1|\\[\\{\\}\\]|\\{\\}|null),?){0,6}\\}?") {
        for d in [Dialect::Chat, Dialect::Messages, Dialect::Responses] {
            let _ = RequestView::parse(&noise, d);
            if let Ok(v) = RequestView::parse(s.as_bytes(), d) {
                let _ = conversation_key(s.as_bytes(), &v);
            }
        }
    }
    #[test]
    fn the_view_agrees_with_a_full_parse(model in "[a-z/é\"\\\\]{1,20}", stream in any::<bool>(), max in any::<Option<u32>>(), n in 0usize..8, text in ".{0,40}", pretty in any::<bool>()) {
        let messages: Vec<_> = (0..n).map(|_| serde_json::json!({"role":"user","content":text})).collect();
        let value = serde_json::json!({"metadata":{"model":"inner"},"messages":messages,"model":model,"stream":stream,"max_tokens":max});
        let body = if pretty { serde_json::to_vec_pretty(&value) } else { serde_json::to_vec(&value) }.unwrap();
        let v = RequestView::parse(&body, Dialect::Messages).unwrap();
        prop_assert_eq!(v.model, model);
        prop_assert_eq!(v.stream, stream);
        prop_assert_eq!(v.max_tokens, max.map(u64::from));
        prop_assert_eq!(v.message_count, len64(n));
    }
}

#[test]
fn prose_cannot_hide_from_the_prefill_as_an_image() {
    let prose = "please read all of this ".repeat(4_000);
    for text in [format!("data:image;base64,{prose}"), format!("/9j/{prose}")] {
        let body = serde_json::json!({"model": "m", "messages": [{"role": "assistant", "content": [
            {"type": "tool_use", "id": "1", "name": "n", "input": {"url": text}}]}]});
        let body = body.to_string();
        let view = RequestView::parse(body.as_bytes(), Dialect::Messages).unwrap();
        assert_eq!(view.base64_bytes, 0);
    }
    let image = format!("data:image/png;base64,{}", "iVBORw0KGgo".repeat(1_000));
    let body = serde_json::json!({"model": "m", "messages": [{"role": "user", "content": [
        {"type": "weird", "url": image}]}]});
    let view = RequestView::parse(body.to_string().as_bytes(), Dialect::Chat).unwrap();
    assert_eq!(view.image_count, 1);
}
