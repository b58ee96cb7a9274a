//! Reads an upstream's list of models and prices: OpenRouter (and our own `/v1/models`), OpenAI,
//! Anthropic, Ollama (`/api/tags`), llama.cpp, vLLM. Prices are decimal strings of USD per token and
//! become integers without a float. Called by the seller at start and hourly, and by the buyer for
//! the "saving against list price".

use std::str::FromStr;

use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;
use serde_json::Value;

use super::usage::whole_number;
use crate::types::PriceTable;

/// Longest list that is read.
const LIST_BYTES_MAX: usize = 16 << 20;
/// Most models taken from a list.
const MODELS_MAX: usize = 10_000;
/// Longest model id taken.
const ID_BYTES_MAX: usize = 256;
/// USD per token to micro-USD per million tokens.
const USD_PER_TOKEN: u64 = 1_000_000_000_000;

/// Why a list was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum PriceListError {
    /// Above 16 MiB.
    #[error(
        "the upstream's model list is larger than {LIST_BYTES_MAX} bytes; name models with --model"
    )]
    TooLong,
    /// Not JSON.
    #[error("the upstream's model list is not JSON; check --base-url")]
    NotJson,
    /// No list inside.
    #[error(
        "the upstream's answer holds no model list; check --base-url, or name models with --model"
    )]
    NoList,
}

/// A model as its upstream lists it. `None` and `false` mean "not said".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamModel {
    /// The upstream's id.
    pub id: String,
    /// Prices, when listed in full. Cached input defaults to input, cache writes to 1.25 × input.
    pub price: Option<PriceTable>,
    /// True when it also charges by request, which a token price cannot express.
    pub has_request_fee: bool,
    /// Context window in tokens.
    pub context: Option<u32>,
    /// Longest output in tokens.
    pub max_output: Option<u32>,
    /// Takes images; `None` when the list does not say.
    pub vision: Option<bool>,
    /// Served at `/v1/completions`; `None` when the list names no paths.
    pub completions: Option<bool>,
    /// Makes vectors of texts, and nothing else.
    pub embeddings: bool,
    /// Takes tools; `None` when the list does not say.
    pub tools: Option<bool>,
    /// Answers in JSON on request; `None` when the list does not say.
    pub json: Option<bool>,
    /// Parameters it supports, when listed.
    pub supported_parameters: Vec<String>,
    /// Quantisation, when listed.
    pub quantisation: Option<String>,
}

/// Reads a list of any known shape. Entries without an id are left out.
pub fn parse(body: &[u8]) -> Result<Vec<UpstreamModel>, PriceListError> {
    if body.len() > LIST_BYTES_MAX {
        return Err(PriceListError::TooLong);
    }
    let value: Value = serde_json::from_slice(body).map_err(|_| PriceListError::NotJson)?;
    let list = [value.get("data"), value.get("models"), Some(&value)]
        .into_iter()
        .flatten()
        .find_map(Value::as_array)
        .ok_or(PriceListError::NoList)?;
    Ok(list.iter().filter_map(model).take(MODELS_MAX).collect())
}

fn model(entry: &Value) -> Option<UpstreamModel> {
    let text = |path: &str| entry.pointer(path).and_then(Value::as_str);
    let id = ["/id", "/name", "/model"].iter().find_map(|p| text(p))?;
    if id.is_empty() || id.len() > ID_BYTES_MAX {
        return None;
    }
    let small = |paths: &[&str]| {
        paths
            .iter()
            .find_map(|p| entry.pointer(p).and_then(whole_number))
            .filter(|n| *n > 0)
            .and_then(|n| u32::try_from(n).ok())
    };
    let strings = |path: &str| -> Option<Vec<String>> {
        let list = entry.pointer(path)?.as_array()?;
        Some(
            list.iter()
                .filter_map(|v| v.as_str().map(str::to_owned))
                .collect(),
        )
    };
    let inputs = strings("/architecture/input_modalities").or_else(|| strings("/input_modalities"));
    let parameters = strings("/supported_parameters");
    let supports = |name: &str| parameters.as_ref().map(|p| p.iter().any(|x| x == name));
    Some(UpstreamModel {
        id: id.to_owned(),
        price: entry.get("pricing").and_then(price),
        has_request_fee: entry
            .pointer("/pricing/request")
            .and_then(decimal)
            .is_some_and(|d| !d.is_zero()),
        context: small(&[
            "/top_provider/context_length",
            "/context_length",
            "/max_model_len",
            "/context_window",
            "/max_input_tokens",
            "/meta/n_ctx",
            "/meta/n_ctx_train",
        ]),
        max_output: small(&[
            "/top_provider/max_completion_tokens",
            "/max_completion_tokens",
            "/max_output_tokens",
            "/max_tokens",
        ]),
        vision: inputs.map(|i| i.iter().any(|m| m == "image")),
        completions: strings("/supported_endpoints").map(|paths| has_completions(&paths)),
        embeddings: is_for_embeddings(id, strings("/architecture/output_modalities")),
        tools: supports("tools"),
        json: supports("response_format")
            .zip(supports("structured_outputs"))
            .map(|(any, schema)| any || schema),
        quantisation: text("/details/quantization_level")
            .or_else(|| text("/quantization"))
            .map(|q| q.chars().take(16).collect()),
        supported_parameters: parameters.unwrap_or_default(),
    })
}

fn has_completions(paths: &[String]) -> bool {
    let is_it = |path: &String| path.ends_with("/completions") && !path.contains("/chat/");
    paths.iter().any(is_it)
}

/// What the list says, or the name where it says nothing: no vendor serves both from one model.
fn is_for_embeddings(id: &str, outputs: Option<Vec<String>>) -> bool {
    outputs.map_or_else(
        || id.to_ascii_lowercase().contains("embed"),
        |outputs| outputs.iter().any(|o| o.starts_with("embedding")),
    )
}

/// OpenRouter's `pricing` object; `None` when a price is missing, dynamic (−1) or out of range.
fn price(pricing: &Value) -> Option<PriceTable> {
    let at = |key: &str| pricing.get(key).and_then(per_million);
    let input = at("prompt")?;
    Some(PriceTable {
        input,
        output: at("completion")?,
        cache_read: at("input_cache_read").unwrap_or(input),
        cache_write: at("input_cache_write").unwrap_or_else(|| default_cache_write(input)),
    })
}

/// The price of cache writes where none is given: 1.25 × input, rounded up.
#[must_use]
pub const fn default_cache_write(input: u64) -> u64 {
    input.saturating_add(input.div_ceil(4))
}

fn decimal(value: &Value) -> Option<Decimal> {
    let text = match value {
        Value::String(s) => s.trim().to_owned(),
        Value::Number(n) => n.to_string(),
        _ => return None,
    };
    Decimal::from_str(&text)
        .or_else(|_| Decimal::from_scientific(&text))
        .ok()
}

fn per_million(value: &Value) -> Option<u64> {
    let usd = decimal(value)?;
    if usd.is_sign_negative() && !usd.is_zero() {
        return None;
    }
    usd.checked_mul(Decimal::from(USD_PER_TOKEN))?
        .ceil()
        .to_u64()
}

#[cfg(test)]
#[path = "price_list_tests.rs"]
mod tests;
