//! Tests of the own token counts.

use super::*;
use crate::llm_api::Dialect;
use crate::llm_api::growth::{LINEAR_MAX, growth};
use proptest::prelude::*;
use serde_json::json;

fn request(value: &serde_json::Value, dialect: Dialect) -> (Vec<u8>, RequestView) {
    let body = serde_json::to_vec(value).unwrap();
    let view = RequestView::parse(&body, dialect).unwrap();
    (body, view)
}

#[test]
fn known_texts_have_known_counts() {
    let c = TokenCounter::new();
    let o200k = c.count_text("openai/gpt-4o-mini", "hello world");
    assert_eq!((o200k.tokens, o200k.exact), (2, true));
    assert_eq!(c.count_text("gpt-4-turbo", "tiktoken is great!").tokens, 6);
    assert!(!c.count_text("claude-sonnet-4", "hello world").exact);
    assert_eq!(c.count_text("gpt-4o", "").tokens, 0);
}

#[test]
fn families_are_recognised_by_name() {
    for (model, want) in [
        ("gpt-4o", Tokenizer::O200k),
        ("openai/gpt-4o:free", Tokenizer::O200k),
        ("GPT-5-mini", Tokenizer::O200k),
        ("o3-mini", Tokenizer::O200k),
        ("openai/gpt-oss-120b", Tokenizer::O200k),
        ("gpt-4.1-nano", Tokenizer::O200k),
        ("gpt-4-0613", Tokenizer::Cl100k),
        ("gpt-3.5-turbo", Tokenizer::Cl100k),
        ("text-embedding-3-small", Tokenizer::Cl100k),
        ("o1x", Tokenizer::Slope),
        ("qwen/qwen3-32b", Tokenizer::Slope),
        ("claude-opus-4", Tokenizer::Slope),
        ("", Tokenizer::Slope),
    ] {
        assert_eq!(Tokenizer::of(model), want, "{model}");
    }
}

#[test]
fn both_dialects_of_a_conversation_count_alike() {
    let c = TokenCounter::new();
    let text = "The quick brown fox jumps over the lazy dog. ".repeat(5);
    let chat = json!({"model":"gpt-4o","messages":[{"role":"user","content":text},{"role":"assistant","content":[{"type":"text","text":text}]}]});
    let messages = json!({"model":"gpt-4o","messages":[{"role":"user","content":[{"type":"text","text":text}]},{"role":"assistant","content":text}]});
    let (cb, cv) = request(&chat, Dialect::Chat);
    let (mb, mv) = request(&messages, Dialect::Messages);
    let chat = c.count_request("gpt-4o", &cb, &cv);
    assert_eq!(chat, c.count_request("gpt-4o", &mb, &mv));
    assert_eq!(chat.tokens, 2 * c.count_text("gpt-4o", &text).tokens);
}

#[test]
fn a_longer_conversation_only_counts_what_is_new() {
    let c = TokenCounter::new();
    let message = |i: usize| json!({"role":"user","content":format!("message number {i}: {}", "x y z ".repeat(30))});
    let body =
        |n: usize| json!({"model":"gpt-4o","messages":(0..n).map(message).collect::<Vec<_>>()});
    let (b, v) = request(&body(10), Dialect::Chat);
    let ten = c.count_request("gpt-4o", &b, &v);
    assert_eq!(c.0.cache.lock().len(), 10);
    assert_eq!(c.count_request("gpt-4o", &b, &v), ten);
    let (b, v) = request(&body(11), Dialect::Chat);
    assert!(c.count_request("gpt-4o", &b, &v).tokens > ten.tokens);
    assert_eq!(c.0.cache.lock().len(), 11);
}

#[test]
fn images_and_frames_are_no_text_but_tools_and_their_input_are() {
    let c = TokenCounter::new();
    let image = format!("data:image/png;base64,{}", "iVBORw0K".repeat(1000));
    let (b, v) = request(
        &json!({"model":"gpt-4o","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":image}}]}]}),
        Dialect::Chat,
    );
    assert_eq!(c.count_request("gpt-4o", &b, &v).tokens, 0);
    let (b, v) = request(
        &json!({"model":"gpt-4o","messages":[{"role":"assistant","content":[{"type":"tool_use","id":"toolu_1","name":"read","input":{"path":"/etc/hosts"}}]}]}),
        Dialect::Messages,
    );
    let want = c.count_text("gpt-4o", "read").tokens
        + c.count_text("gpt-4o", r#"{"path":"/etc/hosts"}"#).tokens;
    assert_eq!(c.count_request("gpt-4o", &b, &v).tokens, want);
}

#[test]
fn answers_are_counted_whole_or_streamed_and_reasoning_once() {
    let c = TokenCounter::new();
    let whole = json!({"id":"chatcmpl-1","model":"m","choices":[{"message":{"role":"assistant","content":"hello world","reasoning":"think hard","reasoning_details":[{"type":"reasoning.text","text":"think hard"}]},"finish_reason":"stop"}]});
    let body = serde_json::to_vec(&whole).unwrap();
    assert_eq!(c.count_whole_answer("gpt-4o", &body).tokens, 4);
    let mut meter = AnswerMeter::with_text(Dialect::Chat);
    meter.push(b"data: {\"choices\":[{\"delta\":{\"content\":\"hello\"}}]}\n\ndata: {\"choices\":[{\"delta\":{\"content\":\" world\"}}]}\n\n");
    assert_eq!(c.count_answer("gpt-4o", &meter).tokens, 2);
    let tool = br#"{"type":"message","content":[{"type":"tool_use","id":"t","name":"f","input":{"a":"hello world"}}]}"#;
    assert!(c.count_whole_answer("gpt-4o", tool).tokens >= 6);
    assert_eq!(c.count_whole_answer("gpt-4o", b"not json").tokens, 0);
}

#[test]
fn a_slope_narrows_the_margin_but_never_raises_the_bound() {
    let c = TokenCounter::new();
    let text = "some words that are counted ".repeat(100);
    let before = c.count_text("claude-x", &text);
    assert_eq!(before.margin, Margin::Unknown);
    for _ in 0..CALIBRATED_AFTER {
        c.observe("claude-x", 1_000, 1_150);
        c.observe("liar", 1_000, 200_000);
        c.observe("gpt-4o", 1_000, 2_000);
    }
    let after = c.count_text("claude-x", &text);
    assert_eq!(after.margin, Margin::Calibrated);
    assert_eq!(after.tokens, (before.raw * 1_150).div_ceil(1_000));
    let liar = c.count_text("liar", &text);
    assert!(
        liar.tokens * Margin::Calibrated.output_permille()
            <= before.raw * Margin::Unknown.output_permille()
    );
    assert_eq!(c.slope("gpt-4o"), None);
    let kept = serde_json::to_string(&c.slopes()).unwrap();
    let other = TokenCounter::new();
    other.restore(serde_json::from_str(&kept).unwrap());
    assert_eq!(other.slope("claude-x"), Some(1_150));
}

#[test]
fn hostile_text_is_counted_in_linear_time() {
    for text in [" ", "a", "\n", "\n ", "aA1!", "é", "\u{0301}", "'"] {
        for tokenizer in [Tokenizer::O200k, Tokenizer::Cl100k] {
            let growth = growth(|size| {
                let long = text.repeat(size * 25_000 / text.len());
                assert!(tokenizer.count(&long) > 0);
            });
            assert!(growth < LINEAR_MAX, "{text:?} {tokenizer:?}: {growth}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn counting_never_panics(noise in prop::collection::vec(any::<u8>(), 0..200), text in any::<String>()) {
        let c = TokenCounter::new();
        let _ = c.count_whole_answer("gpt-4o", &noise);
        let _ = c.count_text("x", &text);
        let body = format!("{{\"model\":\"m\",\"messages\":[{}]}}", serde_json::to_string(&text).unwrap());
        let v = RequestView::parse(body.as_bytes(), Dialect::Chat).unwrap();
        prop_assert_eq!(c.count_request("gpt-4o", body.as_bytes(), &v).tokens, if is_base64_image(text.as_bytes()) { 0 } else { Tokenizer::O200k.count(&text) });
    }
}
