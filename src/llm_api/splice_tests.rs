//! Tests of the splices.

use super::*;
use crate::llm_api::{sse, usage};
use proptest::prelude::*;
use serde_json::{Value, json};

fn view(body: &[u8]) -> RequestView {
    RequestView::parse(body, Dialect::Chat).unwrap()
}

fn parsed(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

#[test]
fn include_usage_is_injected_in_every_shape() {
    for (options, want) in [
        ("", r#"{"include_usage":true}"#),
        (r#","stream_options":null"#, r#"{"include_usage":true}"#),
        (r#","stream_options":{ }"#, r#"{"include_usage":true}"#),
        (
            r#","stream_options":{"x":1}"#,
            r#"{"include_usage":true,"x":1}"#,
        ),
        (
            r#","stream_options":{"x":1,"include_usage":false}"#,
            r#"{"x":1,"include_usage":true}"#,
        ),
        (
            r#","stream_options":{"include_usage":null}"#,
            r#"{"include_usage":true}"#,
        ),
    ] {
        let body = Bytes::from(format!(r#"{{ "model":"m","stream":true{options}}}"#));
        let out = inject_include_usage(&body, &view(&body));
        assert_eq!(parsed(&out)["stream_options"], parsed(want.as_bytes()));
        let again = view(&out);
        assert!(again.include_usage);
        assert_eq!(inject_include_usage(&out, &again), out);
    }
    let whole = Bytes::from_static(br#"{"model":"m"}"#);
    assert_eq!(inject_include_usage(&whole, &view(&whole)), whole);
}

#[test]
fn only_the_answers_own_model_is_rewritten() {
    let chat = Bytes::from_static(b"data: {\"id\":\"1\",\"model\":\"up/m\",\"choices\":[{\"delta\":{\"content\":\"\\\"model\\\":\\\"up/m\\\"\"}}]}\n\ndata: {\"choices\":[{\"delta\":{}}],\"model\":\"up/m\"}\n\ndata: [DONE]\n\n");
    let out = rewrite_answer_model(&chat, "m");
    let text = std::str::from_utf8(&out).unwrap();
    assert_eq!(text.matches(r#""model":"m""#).count(), 2);
    assert!(text.contains(r#"\"model\":\"up/m\""#));
    let start = Bytes::from_static(b"event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"i\",\"model\":\"up\",\"content\":[]}}\n\n");
    assert!(
        rewrite_answer_model(&start, "m")
            .windows(11)
            .any(|w| w == b"\"model\":\"m\"")
    );
    let tool = Bytes::from_static(
        br#"{"content":[{"type":"tool_use","input":{"model":"keep"}}],"model":"up"}"#,
    );
    let out = parsed(&rewrite_answer_model(&tool, "m"));
    assert_eq!(out["content"][0]["input"]["model"], "keep");
    assert_eq!(out["model"], "m");
    let same = Bytes::from_static(b"data: {\"model\":\"m\"}\n\n");
    assert_eq!(rewrite_answer_model(&same, "m").as_ptr(), same.as_ptr());
}

#[test]
fn cost_goes_into_the_usage_object_alone() {
    let chunk = Bytes::from_static(
        b"data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}\n\n",
    );
    let out = splice_cost(&chunk, MicroUsd(123));
    assert_eq!(
        out,
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2,\"cost\":0.000123}}\n\n"
    );
    let again = splice_cost(&out, MicroUsd(5));
    assert!(again.ends_with(b"\"cost\":0.000005}}\n\n"));
    let null = Bytes::from_static(b"data: {\"usage\":null}\n\n");
    assert_eq!(splice_cost(&null, MicroUsd(5)), null);
    let empty = Bytes::from_static(b"{\"usage\":{}}");
    assert_eq!(
        splice_cost(&empty, MicroUsd(5)),
        "{\"usage\":{\"cost\":0.000005}}"
    );
}

#[test]
fn missing_usage_is_inserted_into_whole_answers_and_events() {
    let counts = Usage {
        input: 3,
        output: 4,
        ..Usage::default()
    };
    for body in [
        r#"{"id":"x"}"#,
        "{\n  \"id\":\"x\"\n}\n",
        r#"{"id":"x","usage":null}"#,
        "{}",
    ] {
        let body = Bytes::from(body.to_owned());
        let out = insert_usage(&body, Dialect::Chat, &counts, Some(MicroUsd(9)));
        assert_eq!(usage::extract(Dialect::Chat, &out), Some(counts), "{out:?}");
        assert_eq!(parsed(&out)["usage"]["cost"], json!(0.000_009));
        assert_eq!(
            insert_usage(&out, Dialect::Chat, &Usage::default(), None),
            out
        );
    }
    let delta = Bytes::from_static(b"event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"}}\n\n");
    let out = insert_usage(&delta, Dialect::Messages, &counts, None);
    assert_eq!(
        usage::extract(Dialect::Messages, sse::data(&out).unwrap()),
        Some(counts)
    );
    for odd in [
        ": hello\n\n",
        "",
        "[1]",
        "data: [DONE]\n\n",
        "data: {\"a\":\n\n",
    ] {
        let odd = Bytes::from_static(odd.as_bytes());
        assert_eq!(insert_usage(&odd, Dialect::Chat, &counts, None), odd);
    }
}

/// A request body with everything in odd places, as text.
fn any_body() -> impl Strategy<Value = (Value, bool)> {
    (
        ".{0,20}",
        any::<bool>(),
        prop::option::of(prop::option::of(any::<bool>())),
        ".{0,30}",
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(model, stream, options, text, late, pretty)| {
            let mut body = serde_json::Map::new();
            if !late {
                body.insert("model".into(), json!(format!("m{model}")));
            }
            body.insert(
                "messages".into(),
                json!([{"role":"user","content":text,"model":"inner"}]),
            );
            body.insert("stream".into(), json!(stream));
            if let Some(options) = options {
                body.insert(
                    "stream_options".into(),
                    options.map_or(json!({"a":[1]}), |b| json!({"include_usage":b,"z":"}"})),
                );
            }
            if late {
                body.insert("model".into(), json!(format!("m{model}")));
            }
            (Value::Object(body), pretty)
        })
}

proptest! {
    #[test]
    fn rewrite_model_changes_nothing_else((value, pretty) in any_body(), to in ".{1,20}") {
        let body = Bytes::from(if pretty { serde_json::to_vec_pretty(&value) } else { serde_json::to_vec(&value) }.unwrap());
        let v = view(&body);
        let out = rewrite_model(&body, &v, &to);
        let mut want = value;
        want["model"] = json!(to);
        prop_assert_eq!(&parsed(&out), &want);
        prop_assert_eq!(&out[..v.model_span.start], &body[..v.model_span.start]);
        let tail = body.len() - v.model_span.end;
        prop_assert_eq!(&out[out.len() - tail..], &body[v.model_span.end..]);
    }
    #[test]
    fn inject_include_usage_changes_nothing_else((value, pretty) in any_body()) {
        let body = Bytes::from(if pretty { serde_json::to_vec_pretty(&value) } else { serde_json::to_vec(&value) }.unwrap());
        let out = inject_include_usage(&body, &view(&body));
        let mut want = value.clone();
        if value["stream"] == json!(true) {
            if !want["stream_options"].is_object() {
                want["stream_options"] = json!({});
            }
            want["stream_options"]["include_usage"] = json!(true);
        }
        prop_assert_eq!(parsed(&out), want);
        // All bytes of the original are there still, around one edit.
        let same = body.iter().zip(out.iter()).take_while(|(a, b)| a == b).count();
        let tail = body.iter().rev().zip(out.iter().rev()).take_while(|(a, b)| a == b).count();
        prop_assert!(same + tail + "false".len() >= body.len());
    }
    #[test]
    fn splice_cost_keeps_everything_else(text in ".{0,40}", p in any::<u32>(), c in any::<u32>(), cost in any::<u64>(), event in any::<bool>(), crlf in any::<bool>()) {
        let end = if crlf { "\r\n\r\n" } else { "\n\n" };
        let json = json!({"id":text,"choices":[{"usage":{"no":1}}],"usage":{"prompt_tokens":p,"completion_tokens":c,"details":{"x":text}}}).to_string();
        let body = Bytes::from(if event { format!("data: {json}{end}") } else { json });
        let out = splice_cost(&body, MicroUsd(cost));
        let added = format!(",\"cost\":{}", MicroUsd(cost).to_json_number());
        prop_assert_eq!(std::str::from_utf8(&out).unwrap().replacen(&added, "", 1).into_bytes(), body.to_vec());
        let payload = sse::data(&out).unwrap();
        prop_assert_eq!(usage::extract(Dialect::Chat, payload), usage::extract(Dialect::Chat, sse::data(&body).unwrap()));
    }
    #[test]
    fn noise_never_panics_and_stays(noise in prop::collection::vec(any::<u8>(), 0..200), s in "(data: |\\{|\\}|\"model\"|\"usage\"|:|\"a\"|,|\\[|\n){0,20}") {
        for bytes in [Bytes::from(noise), Bytes::from(s)] {
            let _ = rewrite_answer_model(&bytes, "x");
            let _ = splice_cost(&bytes, MicroUsd(1));
            let _ = insert_usage(&bytes, Dialect::Messages, &Usage::default(), None);
        }
    }
}

#[test]
fn a_model_that_only_looks_shallow_is_left_alone() {
    for (line, want) in [
        (r#"{"id":"{","model":"up"}"#, r#"{"id":"{","model":"m"}"#),
        (
            r#"{"id":"model","model":"up"}"#,
            r#"{"id":"model","model":"m"}"#,
        ),
        (
            r#"{"object":"model","id":1}"#,
            r#"{"object":"model","id":1}"#,
        ),
        (r#"{"model":null}"#, r#"{"model":null}"#),
        (r#"{"model" : "u\"p"}"#, r#"{"model" : "m"}"#),
        (r#"{"a":[{"model":"keep"}]}"#, r#"{"a":[{"model":"keep"}]}"#),
        (r#"{"model":"cut"#, r#"{"model":"cut"#),
    ] {
        for (before, after) in [("", ""), ("data: ", "\n\n")] {
            let event = Bytes::from(format!("{before}{line}{after}"));
            assert_eq!(
                rewrite_answer_model(&event, "m"),
                format!("{before}{want}{after}")
            );
        }
    }
}

#[test]
fn members_are_taken_out_and_nothing_else_changes() {
    let of = |body: &'static str, names: &[&str]| {
        let body = Bytes::from_static(body.as_bytes());
        String::from_utf8(remove_members(&body, names).to_vec()).unwrap()
    };
    let body = "{ \"a\" : [1, {\"seed\":2}] ,\"seed\": 7, \"b\":\"seed\" }";
    assert_eq!(
        of(body, &["seed"]),
        "{ \"a\" : [1, {\"seed\":2}],\"b\":\"seed\" }"
    );
    assert_eq!(of(body, &["seed", "b"]), "{ \"a\" : [1, {\"seed\":2}] }");
    assert_eq!(
        of(body, &["x"]),
        "{ \"a\" : [1, {\"seed\":2}],\"seed\": 7,\"b\":\"seed\" }"
    );
    assert_eq!(of("{\"seed\":1}", &["seed"]), "{}");
    assert_eq!(of("{}", &["seed"]), "{}");
    assert_eq!(of("nonsense", &["seed"]), "nonsense");
}

#[test]
fn usage_goes_into_the_answer_within_an_event_of_responses() {
    let usage = Usage {
        input: 3,
        output: 4,
        ..Usage::default()
    };
    for null in ["", ",\"usage\":null"] {
        let event = format!(
            "event: response.completed\ndata: {{\"type\":\"response.completed\",\"response\":{{\"id\":\"r\"{null}}}}}\n\n"
        );
        let got = insert_usage(&Bytes::from(event), Dialect::Responses, &usage, None);
        let json: serde_json::Value =
            serde_json::from_slice(super::super::sse::data(&got).unwrap()).unwrap();
        assert_eq!(json["response"]["usage"]["output_tokens"], 4);
        assert_eq!(json.get("usage"), None);
    }
}
