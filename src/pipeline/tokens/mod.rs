//! Text to tokens and back, and conversations to text, as the model's own files say.
//!
//! # Layout
//! - `files`: finds tokenizer, template and special tokens beside the weights, or in a GGUF file;
//! - [`template`]: renders conversations;
//! - [`stream`]: text of an answer, token by token.
//!
//! Callers: `generate` and the head's service.

mod files;
pub mod stream;
pub mod template;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use tokenizers::Tokenizer;

use super::error::PipelineError;
use stream::Detokenizer;
use template::{Template, TemplateError};

/// How a model writes the calls of tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolStyle {
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>`, as Qwen and Hermes do.
    Tagged,
    /// `[TOOL_CALLS] [{"name": …, "arguments": …}]`, as Mistral does.
    Listed,
    /// The whole answer is `{"name": …, "parameters": …}`, as Llama 3 does.
    Bare,
}

/// A model's vocabulary and manners. Cheap to clone.
#[derive(Clone)]
pub struct Tokens(Arc<Inner>);

struct Inner {
    tokenizer: Tokenizer,
    template: Option<Template>,
    tool_template: Option<Template>,
    style: Option<ToolStyle>,
    ends: BTreeSet<u32>,
}

impl Tokens {
    /// Reads what belongs to the model at `path`: a directory, or a GGUF file.
    ///
    /// # Errors
    /// [`PipelineError::Failed`] with the file that is missing or damaged.
    pub fn load(path: &Path) -> Result<Self, PipelineError> {
        let found = files::find(path)?;
        let bad = |e: TemplateError| PipelineError::Failed(format!("{}: {e}", path.display()));
        let parse = |source: &String| Template::new(source, &found.bos, &found.eos).map_err(bad);
        let template = found.template.as_ref().map(parse).transpose()?;
        let tool_template = found.tool_template.as_ref().map(parse).transpose()?;
        let source = found.tool_template.as_ref().or(found.template.as_ref());
        Ok(Self(Arc::new(Inner {
            style: source.and_then(|source| style(source)),
            tokenizer: found.tokenizer,
            template,
            tool_template,
            ends: found.ends,
        })))
    }

    /// The tokens of a conversation, up to where the model's answer begins.
    ///
    /// # Errors
    /// When the model has no chat template, or its template refuses the conversation.
    pub fn prompt(
        &self,
        messages: &[Value],
        tools: Option<&[Value]>,
    ) -> Result<Vec<u32>, TokensError> {
        let own = self.0.template.as_ref();
        let for_tools = self.0.tool_template.as_ref().filter(|_| tools.is_some());
        let template = for_tools.or(own).ok_or(TokensError::NoTemplate)?;
        self.encode(&template.render(messages, tools)?)
    }

    /// The tokens of a text; names of special tokens in it become these tokens.
    ///
    /// # Errors
    /// When the tokenizer cannot make anything of it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokensError> {
        let encoded = self.0.tokenizer.encode_fast(text, false);
        let encoded = encoded.map_err(|error| TokensError::Encode(error.to_string()))?;
        Ok(encoded.get_ids().to_vec())
    }

    /// True for tokens that end an answer.
    #[must_use]
    pub fn is_end(&self, token: u32) -> bool {
        self.0.ends.contains(&token)
    }

    /// How this model calls tools; none when its template knows none.
    #[must_use]
    pub fn tool_style(&self) -> Option<ToolStyle> {
        self.0.style
    }

    /// Begins the text of an answer.
    #[must_use]
    pub fn detokenizer(&self) -> Detokenizer {
        Detokenizer::new(self.clone())
    }

    /// The text of tokens; special ones are none, but for those that open a call of a tool.
    fn text(&self, tokens: &[u32]) -> String {
        // Decoding fails only where no decoder fits, and then every time: no text is the answer.
        self.0.tokenizer.decode(tokens, true).unwrap_or_default()
    }

    /// A token's own text when it is one that opens a call of a tool.
    fn marker(&self, token: u32) -> Option<String> {
        let text = self.0.tokenizer.id_to_token(token)?;
        MARKERS.contains(&text.as_str()).then_some(text)
    }
}

/// Special tokens that say something to [`super::generate`].
const MARKERS: [&str; 4] = [
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "<|python_tag|>",
];

fn style(template: &str) -> Option<ToolStyle> {
    if !template.contains("tools") {
        None
    } else if template.contains("<tool_call>") {
        Some(ToolStyle::Tagged)
    } else if template.contains("[TOOL_CALLS]") {
        Some(ToolStyle::Listed)
    } else if template.contains("parameters") || template.contains("<|python_tag|>") {
        Some(ToolStyle::Bare)
    } else {
        None
    }
}

/// Why a conversation has no tokens.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokensError {
    /// A base model, most likely.
    #[error("this model has no chat template")]
    NoTemplate,
    /// See [`TemplateError`].
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The tokenizer's own words.
    #[error("the text cannot be turned to tokens: {0}")]
    Encode(String),
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
