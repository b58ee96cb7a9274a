//! Tests of the running meter.

use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

fn count(bytes: &[u8]) -> u64 {
    let mut m = AnswerMeter::new();
    m.push(bytes);
    m.text_bytes()
}

fn collected(dialect: Dialect, bytes: &[u8]) -> String {
    let mut m = AnswerMeter::with_text(dialect);
    m.push(bytes);
    m.text()
}

/// Length of a text as it stands in JSON.
fn raw_len(text: &str) -> u64 {
    len64(Value::from(text).to_string().len() - 2)
}

#[test]
fn text_that_responses_says_again_is_counted_once() {
    let stream = concat!(
        "data: {\"type\":\"response.output_text.delta\",\"delta\":\"four\"}\n\n",
        "data: {\"type\":\"response.output_text.done\",\"text\":\"four\"}\n\n",
        "data: {\"type\":\"response.completed\",\"response\":{\"output\":[{\"content\":[{\"text\":\"four\"}]}]}}\n\n",
    );
    let mut meter = AnswerMeter::with_text(Dialect::Responses);
    meter.push(stream.as_bytes());
    assert_eq!((meter.text_bytes(), meter.text().as_str()), (4, "four"));
}

#[test]
fn text_of_every_dialect_counts_by_its_bytes_on_the_wire() {
    for (body, want) in [
        (
            r#"data: {"choices":[{"delta":{"role":"assistant","content":"ab\nc"}}]}"#,
            5,
        ),
        (
            r#"data: {"choices":[{"delta":{"content":null,"tool_calls":[{"id":"call_1","function":{"name":"f","arguments":"{\"a\":1}"}}]}}]}"#,
            9,
        ),
        (
            r#"data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"hé"}}"#,
            3,
        ),
        (
            r#"data: {"delta":{"type":"input_json_delta","partial_json":"{\""}}"#,
            3,
        ),
        (
            r#"data: {"delta":{"type":"thinking_delta","thinking":"hm"}}"#,
            2,
        ),
        (
            r#"data: {"delta":{"type":"signature_delta","signature":"AAAA"}}"#,
            0,
        ),
        (
            r#"data: {"type":"response.output_text.delta","delta":"xyz"}"#,
            3,
        ),
        (
            r#"data: {"choices":[{"delta":{"reasoning_content":"abcd","reasoning":"e"}}]}"#,
            5,
        ),
        (r#"data:{"content" : "ab"}"#, 2),
        (
            r#"data: {"content":["ab","c"],"text":5,"thinking":{"a":"b"}}"#,
            0,
        ),
        (r#"data: {"content":[{"type":"text","text":"abc"}]}"#, 3),
        (
            r#"data: {"x":"content","y":":","z":"\"content\":\"no\""}"#,
            0,
        ),
        (
            r#"data: {"contents":"no","xcontent":"no","partial_jsonx":"no"}"#,
            0,
        ),
        (r#"data: {"con\u0074ent":"no"}"#, 0),
        ("data: {\"content\":\"a\\", 2),
        ("data: {\"content\":\"a\\\\\"}", 3),
        ("data: [DONE]", 0),
        (": \"content\":\"comment\"", 0),
        ("event: \"content\":\"no\"\nid: \"text\":\"no\"", 0),
        (r#"datax: {"content":"no"}"#, 0),
        ("dat\ndata: {\"content\":\"ab\"}", 2),
        ("data\n\n\ndata: {\"content\":\"ab\"}", 2),
        ("\n\r\ndata: {\"content\":\"ab\"}\r\n\r\n", 2),
        (
            " \n{\"choices\":[{\"message\":{\"content\":\n \"ab\"}}]}",
            2,
        ),
        ("{\"content\":\n:\"ab\"}", 0),
        ("data: {\"content\":\ndata: \"ab\"}\n\n", 2),
        ("data: {\"content\":\n\ndata: \"ab\"}\n\n", 0),
        ("data: {\"content\":\"ab\ndata: {\"content\":\"c\"}", 3),
        ("", 0),
    ] {
        assert_eq!(count(body.as_bytes()), want, "{body}");
    }
}

#[test]
fn tokens_are_bytes_by_four_rounded_up() {
    let mut m = AnswerMeter::new();
    m.push(br#"{"text":"abcde"#);
    assert_eq!((m.text_bytes(), m.estimated_tokens()), (5, 2));
    let price = PriceTable {
        input: 1_000_000,
        output: 3_000_000,
        ..PriceTable::default()
    };
    assert_eq!(m.running_cost(10, &price), MicroUsd(16));
    assert_eq!(m.body_bytes(), 14);
}

#[test]
fn collected_text_is_decoded_and_said_once() {
    let twice = br#"data: {"choices":[{"delta":{"reasoning":"abc ","reasoning_details":[{"type":"reasoning.text","text":"abc "}],"content":""}}]}

data: {"choices":[{"delta":{"content":"d\u00e9\ud83d"}}]}

data: {"choices":[{"delta":{"content":"\ude00\n"}}]}

"#;
    assert_eq!(collected(Dialect::Chat, twice), "abc dé😀\n");
    let parts = br#"{"content":[{"type":"text","text":"same"},{"type":"text","text":"same"}]}"#;
    assert_eq!(collected(Dialect::Messages, parts), "samesame");
    let responses = b"data: {\"type\":\"response.output_text.delta\",\"delta\":\"hi\"}\n\ndata: {\"type\":\"response.output_text.done\",\"text\":\"hi\"}\n\n";
    assert_eq!(collected(Dialect::Responses, responses), "hi");
}

#[test]
fn collecting_stops_at_its_limit_and_counts_on() {
    let mut m = AnswerMeter::with_text(Dialect::Chat);
    m.push(b"data: {\"content\":\"");
    let chunk = vec![b'a'; 1 << 20];
    for _ in 0..9 {
        m.push(&chunk);
    }
    assert_eq!(m.text_bytes(), 9 << 20);
    assert_eq!(m.uncollected_bytes(), 1 << 20);
    assert_eq!(m.text().len(), COLLECTED_TEXT_BYTES_MAX);
}

/// Pieces that meet in all the awkward ways.
fn any_body() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just("data: ".to_owned()),
        Just("data:".to_owned()),
        Just("\n".to_owned()),
        Just("\r\n".to_owned()),
        Just("\n\n".to_owned()),
        Just("\"content\":\"".to_owned()),
        Just("\"reasoning_details_x\": \"".to_owned()),
        Just("\"partial_json\"".to_owned()),
        Just("\"partial_jsonx\": \"".to_owned()),
        Just("\n\ndata: {\"partial_jsonx\":\"ab\",\"arguments\":\"".to_owned()),
        Just("\"delta\":{".to_owned()),
        Just("\"".to_owned()),
        Just("\\".to_owned()),
        Just("\\\"".to_owned()),
        Just("\\u00e9".to_owned()),
        Just(":".to_owned()),
        Just("{".to_owned()),
        Just("}".to_owned()),
        Just("[".to_owned()),
        Just(",".to_owned()),
        Just(" ".to_owned()),
        Just("event: message_delta\n".to_owned()),
        Just(": comment\n".to_owned()),
        "[a-zé]{0,20}",
    ];
    prop::collection::vec(piece, 0..60).prop_map(|v| v.concat().into_bytes())
}

proptest! {
    #[test]
    fn every_position_has_one_integer_however_it_was_reached(body in any_body(), cut in 1usize..17) {
        let mut one = AnswerMeter::with_text(Dialect::Chat);
        for (i, b) in body.iter().enumerate() {
            one.push(std::slice::from_ref(b));
            prop_assert_eq!(one.text_bytes(), count(&body[..=i]), "at {}", i);
        }
        let mut some = AnswerMeter::with_text(Dialect::Chat);
        body.chunks(cut).for_each(|c| some.push(c));
        prop_assert_eq!(some.text_bytes(), one.text_bytes());
        prop_assert_eq!(some.text(), one.text());
        prop_assert_eq!(some.text(), collected(Dialect::Chat, &body));
    }
    #[test]
    fn noise_is_metered_alike_and_never_panics(body in prop::collection::vec(any::<u8>(), 0..300), cut in 1usize..7) {
        let mut m = AnswerMeter::with_text(Dialect::Messages);
        body.chunks(cut).for_each(|c| m.push(c));
        prop_assert_eq!(m.text_bytes(), count(&body));
        prop_assert!(m.text_bytes() <= len64(body.len()));
        let _ = m.text();
    }
    #[test]
    fn a_stream_counts_exactly_its_deltas(texts in prop::collection::vec(".{0,12}", 0..12), crlf in any::<bool>(), space in any::<bool>()) {
        let (end, lead) = (if crlf { "\r\n\r\n" } else { "\n\n" }, if space { "data: " } else { "data:" });
        let mut body = String::from(": hello\n\n");
        for t in &texts {
            let chunk = json!({"id":t,"model":"content","choices":[{"index":0,"delta":{"content":t},"finish_reason":null}]});
            body.push_str(&format!("{lead}{chunk}{end}"));
        }
        body.push_str("data: [DONE]\n\n");
        prop_assert_eq!(count(body.as_bytes()), texts.iter().map(|t| raw_len(t)).sum::<u64>());
        prop_assert_eq!(collected(Dialect::Chat, body.as_bytes()), texts.concat());
    }
    #[test]
    fn a_whole_answer_counts_exactly_its_text(text in any::<String>(), args in any::<String>(), pretty in any::<bool>()) {
        let value = json!({"id":"x","choices":[{"message":{"role":"assistant","content":text,"tool_calls":[{"function":{"name":"n","arguments":args}}]}}],"usage":{"prompt_tokens":1}});
        let body = if pretty { serde_json::to_vec_pretty(&value) } else { serde_json::to_vec(&value) }.unwrap();
        prop_assert_eq!(count(&body), raw_len(&text) + raw_len(&args));
    }
}
