//! What a GGUF file says about text: its tokens, its chat template, and which tokens begin and end.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::quantized::tokenizer::TokenizerFromGguf as _;
use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

use super::EngineError;
use super::source::{io, malformed};

/// A GGUF file's part about text.
pub struct Vocabulary {
    /// Turns text to tokens and back; the error when its kind is none that is known.
    pub tokenizer: Result<Tokenizer, String>,
    /// The chat template, in Jinja.
    pub template: Option<String>,
    /// The token that texts begin with.
    pub bos: Option<u32>,
    /// Tokens that end an answer.
    pub ends: Vec<u32>,
}

impl Vocabulary {
    /// Reads the file's metadata.
    ///
    /// # Errors
    /// When it cannot be read or is no GGUF.
    pub fn read(path: &Path) -> Result<Self, EngineError> {
        let content = content(path)?;
        let id = |key: &str| {
            let value = content.metadata.get(&format!("tokenizer.ggml.{key}"));
            value.and_then(|value| value.to_u32().ok())
        };
        let template = content.metadata.get("tokenizer.chat_template");
        Ok(Self {
            tokenizer: Tokenizer::from_gguf(&content).map_err(|error| error.to_string()),
            template: template.and_then(text),
            bos: id("bos_token_id"),
            ends: ["eos_token_id", "eot_token_id", "eom_token_id"]
                .into_iter()
                .filter_map(id)
                .collect(),
        })
    }
}

fn content(path: &Path) -> Result<Content, EngineError> {
    let mut file = File::open(path).map_err(io(path))?;
    Content::read(&mut file).map_err(|error| malformed(path, error.to_string()))
}

/// A hash of everything in a GGUF file that decides between text and tokens.
///
/// # Errors
/// As [`Vocabulary::read`].
pub(super) fn digest(path: &Path) -> Result<Vec<u8>, EngineError> {
    let content = content(path)?;
    let entries: BTreeMap<&String, &Value> = content
        .metadata
        .iter()
        .filter(|(key, _)| key.starts_with("tokenizer.ggml."))
        .collect();
    let mut hash = Sha256::new();
    for (key, value) in entries {
        add_text(&mut hash, key);
        add(&mut hash, value);
    }
    Ok(hash.finalize().to_vec())
}

/// A text with its length before it, so that no two lists of texts are the same bytes.
fn add_text(hash: &mut Sha256, text: &str) {
    hash.update(u64::try_from(text.len()).unwrap_or(u64::MAX).to_be_bytes());
    hash.update(text);
}

/// A value with its kind before it: numbers that are equal in different widths differ.
fn add(hash: &mut Sha256, value: &Value) {
    let (kind, number) = match value {
        Value::U8(n) => ("u8", n.to_string()),
        Value::I8(n) => ("i8", n.to_string()),
        Value::U16(n) => ("u16", n.to_string()),
        Value::I16(n) => ("i16", n.to_string()),
        Value::U32(n) => ("u32", n.to_string()),
        Value::I32(n) => ("i32", n.to_string()),
        Value::U64(n) => ("u64", n.to_string()),
        Value::I64(n) => ("i64", n.to_string()),
        Value::F32(n) => ("f32", n.to_bits().to_string()),
        Value::F64(n) => ("f64", n.to_bits().to_string()),
        Value::Bool(is_so) => ("bool", is_so.to_string()),
        Value::String(text) => ("text", text.clone()),
        Value::Array(all) => {
            add_text(hash, "array");
            add_text(hash, &all.len().to_string());
            return all.iter().for_each(|one| add(hash, one));
        }
    };
    add_text(hash, kind);
    add_text(hash, &number);
}

fn text(value: &Value) -> Option<String> {
    value.to_string().ok().cloned()
}
