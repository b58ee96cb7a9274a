//! What a GGUF file says about text: its tokens, its chat template, and which tokens begin and end.

use std::fs::File;
use std::path::Path;

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::quantized::tokenizer::TokenizerFromGguf as _;
use tokenizers::Tokenizer;

use super::EngineError;

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
        let io = |source| EngineError::Io {
            path: path.to_owned(),
            source,
        };
        let mut file = File::open(path).map_err(io)?;
        let content = Content::read(&mut file).map_err(|error| EngineError::Malformed {
            path: path.to_owned(),
            why: error.to_string(),
        })?;
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

fn text(value: &Value) -> Option<String> {
    value.to_string().ok().cloned()
}
