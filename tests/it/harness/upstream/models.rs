//! The upstream's `/v1/models`: the plain OpenAI list, and OpenRouter's with prices.

use serde_json::{Value, json};

/// The shape of the model list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListShape {
    /// `{"object":"list","data":[{"id","object","created","owned_by"}]}`: no prices.
    Plain,
    /// OpenRouter's: `pricing` as decimal strings in USD per token, context, modalities.
    OpenRouter,
}

/// One model of the list.
#[derive(Clone, Debug)]
pub struct ModelEntry {
    /// The id as the upstream knows it.
    pub id: String,
    /// USD per million input tokens.
    pub input_usd: String,
    /// USD per million output tokens.
    pub output_usd: String,
}

impl ModelEntry {
    /// Returns an entry; prices are decimal USD per million tokens.
    pub fn new(id: &str, input_usd: &str, output_usd: &str) -> Self {
        Self {
            id: id.into(),
            input_usd: input_usd.into(),
            output_usd: output_usd.into(),
        }
    }
}

/// Returns the body of `GET /v1/models`.
pub fn list(shape: ListShape, models: &[ModelEntry]) -> Value {
    match shape {
        ListShape::Plain => json!({
            "object": "list",
            "data": models.iter().map(|m| json!({
                "id": m.id, "object": "model", "created": 1_700_000_000, "owned_by": "scripted",
            })).collect::<Vec<_>>(),
        }),
        ListShape::OpenRouter => json!({
            "data": models.iter().map(open_router_entry).collect::<Vec<_>>(),
        }),
    }
}

fn open_router_entry(model: &ModelEntry) -> Value {
    json!({
        "id": model.id,
        "canonical_slug": model.id,
        "name": model.id,
        "created": 1_700_000_000,
        "description": "A scripted model.",
        "context_length": 128_000,
        "architecture": {
            "modality": "text->text", "input_modalities": ["text"],
            "output_modalities": ["text"], "tokenizer": "GPT", "instruct_type": null,
        },
        "pricing": {
            "prompt": per_token(&model.input_usd),
            "completion": per_token(&model.output_usd),
            "request": "0", "image": "0",
            "input_cache_read": per_token(&model.input_usd),
        },
        "top_provider": {
            "context_length": 128_000, "max_completion_tokens": 16_384, "is_moderated": false,
        },
        "supported_parameters": ["max_tokens", "temperature", "tools", "tool_choice"],
    })
}

/// Moves the decimal point of a USD-per-million string six places to the left, without floats.
fn per_token(usd_per_million: &str) -> String {
    let (whole, part) = usd_per_million
        .split_once('.')
        .unwrap_or((usd_per_million, ""));
    let digits = format!("{whole:0>7}{part}");
    let (head, tail) = digits.split_at(digits.len() - part.len() - 6);
    let text = format!("{head}.{tail}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::per_token;

    #[test]
    fn prices_per_million_become_prices_per_token() {
        assert_eq!(per_token("0.15"), "0.00000015");
        assert_eq!(per_token("2.5"), "0.0000025");
        assert_eq!(per_token("10"), "0.00001");
        assert_eq!(per_token("12345678"), "12.345678");
        assert_eq!(per_token("0"), "0");
    }
}
