//! What OpenClaw's config is patched with. Pure.

use rust_decimal::Decimal;
use serde_json::{Map, Value, json};

use crate::cli::{CliError, FailureKind};

/// Under which name OpenClaw lists the network's models.
pub(super) const PROVIDER: &str = "souk";
/// Assumed where no seller says how long a context may be.
const CONTEXT_DEFAULT: u64 = 128_000;
/// Assumed where no seller says how long an answer may be.
const OUTPUT_DEFAULT: u64 = 8_192;
/// Tokens that OpenClaw's prices are for.
const TOKENS: u64 = 1_000_000;
/// Of a list that is shortened this many tenths stay: a file of less than half its size is damage to
/// OpenClaw.
const KEPT_TENTHS: usize = 7;

/// Where the provider stands in OpenClaw's config.
pub(super) fn path() -> String {
    format!("models.providers.{PROVIDER}")
}

/// The provider to be.
pub(super) struct Provider {
    pub base_url: String,
    pub api: &'static str,
    /// A text, or a reference to a secret.
    pub key: Value,
    /// As `/v1/models` lists them.
    pub models: Vec<Value>,
}

impl Provider {
    /// The patch; `primary` also becomes the usual model.
    pub fn patch(&self, primary: Option<&str>) -> anyhow::Result<Value> {
        let models: Vec<Value> = self.models.iter().filter_map(model).collect();
        let provider = json!({
            "baseUrl": self.base_url, "apiKey": self.key, "api": self.api, "models": models,
        });
        let mut patch = json!({ "models": { "providers": { PROVIDER: provider } } });
        let Some(primary) = primary else {
            return Ok(patch);
        };
        let is_listed = models.iter().any(|m| m.get("id") == Some(&json!(primary)));
        if !is_listed {
            let message = format!("`{primary}` is not on sale now");
            let error = CliError::new(FailureKind::Usage, message);
            return Err(error.hint("`node models` lists what is").into());
        }
        let usual = format!("{PROVIDER}/{primary}");
        if let Value::Object(patch) = &mut patch {
            let agents = json!({ "defaults": { "model": { "primary": usual } } });
            patch.insert("agents".to_owned(), agents);
        }
        Ok(patch)
    }
}

/// One model, from an entry of `/v1/models`.
fn model(listed: &Value) -> Option<Value> {
    let id = listed.get("id")?.as_str()?;
    let name = id.rsplit('/').next().unwrap_or(id);
    let price = |key: &str| {
        let text = listed.get("pricing")?.get(key)?.as_str()?;
        let price = text.parse::<Decimal>().ok()?;
        let price = price.checked_mul(Decimal::from(TOKENS))?.normalize();
        // A JSON number with every digit that it has.
        serde_json::from_str::<Value>(&price.to_string()).ok()
    };
    let size = |key: &str, otherwise: u64| {
        let said = listed.get(key).and_then(Value::as_u64);
        said.filter(|size| *size > 0).unwrap_or(otherwise)
    };
    let mut cost = Map::new();
    for (key, ours) in [
        ("input", "prompt"),
        ("output", "completion"),
        ("cacheRead", "input_cache_read"),
        ("cacheWrite", "input_cache_write"),
    ] {
        cost.insert(key.to_owned(), price(ours).unwrap_or_else(|| json!(0)));
    }
    let input = listed.get("input_modalities").cloned();
    Some(json!({
        "id": id,
        "name": format!("{name} (souk)"),
        "input": input.unwrap_or_else(|| json!(["text"])),
        "contextWindow": size("context_length", CONTEXT_DEFAULT),
        "maxTokens": size("max_output", OUTPUT_DEFAULT),
        "cost": cost,
    }))
}

/// The next shorter list on the way to nothing; none when it is empty already.
pub(super) fn shorter(models: &[Value]) -> Option<Vec<Value>> {
    match models {
        [] => None,
        [one] if one.get("contextWindow").is_some() => {
            let id = one.get("id").cloned().unwrap_or_default();
            Some(vec![json!({ "id": id, "name": "souk" })])
        }
        [_] => Some(Vec::new()),
        many => {
            let kept = (many.len() * KEPT_TENTHS / 10).max(1);
            Some(many.iter().take(kept).cloned().collect())
        }
    }
}

/// Where its models stand.
pub(super) fn models_path() -> String {
    format!("{}.models", path())
}

/// A patch that leaves the provider and replaces its models.
pub(super) fn only_models(models: &[Value]) -> Value {
    json!({ "models": { "providers": { PROVIDER: { "models": models } } } })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(id: &str) -> Value {
        json!({
            "id": id, "context_length": 0, "max_output": 4096,
            "input_modalities": ["text", "image"],
            "pricing": {
                "prompt": "0.00000015", "completion": "0.0000006",
                "input_cache_read": "0.000000075", "input_cache_write": "0.0000001875",
            },
        })
    }

    fn provider() -> Provider {
        Provider {
            base_url: "http://127.0.0.1:5005/v1".to_owned(),
            api: "openai-completions",
            key: json!("local"),
            models: vec![listed("openai/gpt-4o-mini"), listed("b")],
        }
    }

    #[test]
    fn prices_are_per_million_tokens_to_the_last_digit() {
        let patch = provider().patch(None).unwrap();
        let first = &patch["models"]["providers"]["souk"]["models"][0];
        let cost = first["cost"].to_string();
        let expected = r#"{"input":0.15,"output":0.6,"cacheRead":0.075,"cacheWrite":0.1875}"#;
        assert_eq!(cost, expected);
        assert_eq!(first["name"], "gpt-4o-mini (souk)");
        assert_eq!(first["contextWindow"], CONTEXT_DEFAULT);
        assert_eq!(first["maxTokens"], 4096);
        assert!(patch.get("agents").is_none(), "the usual model stays");
    }

    #[test]
    fn the_usual_model_must_be_on_sale() {
        let patch = provider().patch(Some("b")).unwrap();
        assert_eq!(patch["agents"]["defaults"]["model"]["primary"], "souk/b");
        assert!(provider().patch(Some("c")).is_err());
    }

    #[test]
    fn a_list_of_any_length_gets_shorter_until_it_is_gone() {
        let mut models: Vec<Value> = (0..300).map(|n| listed(&n.to_string())).collect();
        let mut steps = 0;
        while let Some(less) = shorter(&models) {
            assert!(less.len() * 2 >= models.len() || models.len() <= 1);
            models = less;
            steps += 1;
        }
        assert!(models.is_empty() && steps < 20, "{steps}");
    }
}
