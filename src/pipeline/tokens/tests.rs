//! A byte's tokenizer is the hardest: every character but ASCII is spread over tokens.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::pipeline::tiny_model::{SPECIAL, TinyModel};

fn tiny() -> Tokens {
    let folder = tempfile::tempdir().unwrap();
    TinyModel::default().write(folder.path());
    Tokens::load(folder.path()).unwrap()
}

#[test]
fn a_conversation_becomes_tokens_and_names_of_special_ones_are_one_token() {
    let tokens = tiny();
    let messages = [json!({"role": "user", "content": "Hé"})];
    let prompt = tokens.prompt(&messages, None).unwrap();
    let mut expected = vec![256];
    expected.extend("user\nHé".bytes().map(u32::from));
    expected.push(257);
    expected.push(10);
    expected.push(256);
    expected.extend("assistant\n".bytes().map(u32::from));
    assert_eq!(prompt, expected);
    assert!(tokens.is_end(257) && !tokens.is_end(256));
    assert_eq!(tokens.tool_style(), Some(ToolStyle::Tagged));
}

#[test]
fn a_character_comes_whole_and_only_when_it_is_there() {
    let mut text = tiny().detokenizer();
    let pieces: Vec<String> = "a🌍é".bytes().map(|byte| text.push(byte.into())).collect();
    assert_eq!(pieces, ["a", "", "", "", "🌍", "", "é"]);
    // Special tokens say nothing, but for those that open or close a call.
    assert_eq!(text.push(256), "");
    assert_eq!(text.push(0xC3), "");
    assert_eq!(text.push(258), "\u{FFFD}<tool_call>");
    assert_eq!(SPECIAL[2], "<tool_call>");
    assert_eq!(text.finish(), "");
}

proptest! {
    #[test]
    fn pieces_are_the_whole_text(text in any::<String>()) {
        let tokens = tiny_once();
        let mut detokenizer = tokens.detokenizer();
        let ids = text.bytes().map(u32::from);
        let mut made: String = ids.map(|id| detokenizer.push(id)).collect();
        made.push_str(&detokenizer.finish());
        prop_assert_eq!(made, text);
    }

    #[test]
    fn bytes_that_are_no_text_never_stall_it(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let tokens = tiny_once();
        let mut detokenizer = tokens.detokenizer();
        let mut made: String = bytes.iter().map(|byte| detokenizer.push(u32::from(*byte))).collect();
        made.push_str(&detokenizer.finish());
        let readable = |text: &str| text.replace('\u{FFFD}', "");
        prop_assert_eq!(readable(&made), readable(&String::from_utf8_lossy(&bytes)));
    }
}

fn tiny_once() -> &'static Tokens {
    static ONCE: std::sync::OnceLock<Tokens> = std::sync::OnceLock::new();
    ONCE.get_or_init(tiny)
}

#[test]
fn what_is_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = Tokens::load(folder.path()).err().unwrap().to_string();
    assert!(error.contains("tokenizer.json"), "{error}");
    TinyModel::default().write(folder.path());
    std::fs::write(folder.path().join("tokenizer_config.json"), "{}").unwrap();
    let bare = Tokens::load(folder.path()).unwrap();
    assert_eq!(bare.prompt(&[], None), Err(TokensError::NoTemplate));
    std::fs::write(
        folder.path().join("chat_template.jinja"),
        "{{ bos_token }}x",
    )
    .unwrap();
    let beside = Tokens::load(folder.path()).unwrap();
    assert_eq!(beside.prompt(&[], None), Ok(vec![u32::from(b'x')]));
}
