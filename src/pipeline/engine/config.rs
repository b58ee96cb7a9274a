//! The shape of a model, from `config.json` beside safetensors or from GGUF metadata.
//!
//! Everything is checked here, so that what computes may trust it: a stranger's file must end in an
//! error with the key's name, never in a wrong answer.

use candle_core::quantized::gguf_file;
use serde::Deserialize;

/// Most layers, heads or rows of anything: above every model published, below what overflows.
const COUNT_MAX: usize = 1 << 20;

/// Whose layers these are. They differ in biases, norms and names only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Llama 2 and 3 and what is built like them.
    Llama,
    /// Mistral's dense models.
    Mistral,
    /// Qwen 2 and 2.5: queries, keys and values have biases.
    Qwen2,
    /// Qwen 3: queries and keys are normed per head.
    Qwen3,
}

/// How positions beyond the trained ones are told.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    /// As trained.
    None,
    /// All angles divided.
    Linear(f64),
    /// Slow angles divided, fast ones kept, between them mixed (Llama 3.1).
    Llama3 {
        /// What slow ones are divided by.
        factor: f64,
        /// Wavelengths above `context / low` are slow.
        low: f64,
        /// Wavelengths below `context / high` are fast.
        high: f64,
        /// The trained context, positions.
        context: f64,
    },
}

/// A model's shape.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Whose layers.
    pub family: Family,
    /// Decoder layers.
    pub layers: usize,
    /// Numbers of a row.
    pub hidden: usize,
    /// Numbers between the two halves of a layer's MLP.
    pub intermediate: usize,
    /// Heads that ask.
    pub heads: usize,
    /// Heads that are asked; divides `heads`.
    pub kv_heads: usize,
    /// Numbers of a head; even.
    pub head_dim: usize,
    /// Tokens.
    pub vocabulary: usize,
    /// Most positions; of models with a sliding window only the window, where both are the same.
    pub context: usize,
    /// Keeps norms from dividing by nothing.
    pub norm_epsilon: f32,
    /// Base of the angles.
    pub rope_theta: f64,
    /// How angles are stretched.
    pub scaling: Scaling,
}

impl ModelConfig {
    /// Numbers that one position adds to the memory of one layer: its key and its value.
    #[must_use]
    pub const fn kv_row(&self) -> usize {
        2 * self.kv_heads * self.head_dim
    }

    /// Bytes that one position takes in the memory of one layer: two a number, and a scale of four for
    /// each head's key and value.
    #[must_use]
    pub const fn kv_bytes(&self) -> usize {
        2 * self.kv_row() + 2 * 4 * self.kv_heads
    }

    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// What is missing, impossible, or of a kind that is not computed here.
    pub fn from_json(text: &[u8]) -> Result<Self, ConfigError> {
        let raw: HubConfig =
            serde_json::from_slice(text).map_err(|error| ConfigError::Bad(error.to_string()))?;
        let family = match raw.model_type.as_str() {
            "llama" => Family::Llama,
            "mistral" => Family::Mistral,
            "qwen2" => Family::Qwen2,
            "qwen3" => Family::Qwen3,
            other => return Err(ConfigError::Unsupported(format!("model_type `{other}`"))),
        };
        if raw.hidden_act.as_deref().is_some_and(|act| act != "silu") {
            let act = raw.hidden_act.unwrap_or_default();
            return Err(ConfigError::Unsupported(format!("hidden_act `{act}`")));
        }
        if raw.mlp_bias == Some(true) {
            return Err(ConfigError::Unsupported("mlp_bias".to_owned()));
        }
        // Newer files say everything about angles in one place.
        let rope = raw.rope_parameters.or(raw.rope_scaling).unwrap_or_default();
        let is_window = raw.use_sliding_window != Some(false);
        let window = raw.sliding_window.filter(|_| is_window);
        let config = Self {
            family,
            layers: raw.num_hidden_layers,
            hidden: raw.hidden_size,
            intermediate: raw.intermediate_size,
            heads: raw.num_attention_heads,
            kv_heads: raw.num_key_value_heads.unwrap_or(raw.num_attention_heads),
            head_dim: match raw.head_dim {
                Some(dim) => dim,
                None => raw
                    .hidden_size
                    .checked_div(raw.num_attention_heads)
                    .unwrap_or(0),
            },
            vocabulary: raw.vocab_size,
            context: raw
                .max_position_embeddings
                .min(window.unwrap_or(usize::MAX)),
            norm_epsilon: raw.rms_norm_eps.unwrap_or(1e-6),
            rope_theta: rope.rope_theta.or(raw.rope_theta).unwrap_or(10_000.0),
            scaling: rope.scaling()?,
        };
        config.checked()
    }

    /// Reads GGUF metadata.
    ///
    /// # Errors
    /// As [`Self::from_json`].
    pub fn from_gguf(content: &gguf_file::Content) -> Result<Self, ConfigError> {
        let keys = Keys(content);
        let arch = keys.text("general.architecture")?;
        let family = match arch.as_str() {
            "llama" => Family::Llama,
            "qwen2" => Family::Qwen2,
            "qwen3" => Family::Qwen3,
            other => return Err(ConfigError::Unsupported(format!("architecture `{other}`"))),
        };
        let key = |name: &str| format!("{arch}.{name}");
        let heads = keys.count(&key("attention.head_count"))?;
        let hidden = keys.count(&key("embedding_length"))?;
        let experts = keys.count_or(&key("expert_count"), 0)?;
        if experts > 0 {
            return Err(ConfigError::Unsupported("mixture of experts".to_owned()));
        }
        let embedding = content.tensor_infos.get("token_embd.weight");
        let rows = embedding.and_then(|info| info.shape.dims().first().copied());
        let scaling = match keys.text(&key("rope.scaling.type")) {
            Err(_) => Scaling::None,
            Ok(kind) if kind == "none" => Scaling::None,
            Ok(kind) if kind == "linear" => {
                Scaling::Linear(keys.number(&key("rope.scaling.factor"))?)
            }
            Ok(kind) => {
                return Err(ConfigError::Unsupported(format!(
                    "rope.scaling.type `{kind}`"
                )));
            }
        };
        let window = keys.count_or(&key("attention.sliding_window"), usize::MAX)?;
        let config = Self {
            family,
            layers: keys.count(&key("block_count"))?,
            hidden,
            intermediate: keys.count(&key("feed_forward_length"))?,
            heads,
            kv_heads: keys.count_or(&key("attention.head_count_kv"), heads)?,
            head_dim: keys.count_or(
                &key("attention.key_length"),
                hidden.checked_div(heads).unwrap_or(0),
            )?,
            vocabulary: rows.ok_or_else(|| ConfigError::Bad("no token_embd.weight".to_owned()))?,
            context: keys.count(&key("context_length"))?.min(window),
            norm_epsilon: single(keys.number(&key("attention.layer_norm_rms_epsilon"))?),
            rope_theta: keys.number(&key("rope.freq_base")).unwrap_or(10_000.0),
            scaling,
        };
        config.checked()
    }

    fn checked(self) -> Result<Self, ConfigError> {
        let bad = |why: String| Err(ConfigError::Bad(why));
        for (name, count) in [
            ("layers", self.layers),
            ("hidden size", self.hidden),
            ("intermediate size", self.intermediate),
            ("attention heads", self.heads),
            ("key/value heads", self.kv_heads),
            ("head dimension", self.head_dim),
            ("vocabulary", self.vocabulary),
            ("context", self.context),
        ] {
            // A context of many millions is a promise, not memory.
            let most = if name == "context" {
                usize::MAX
            } else {
                COUNT_MAX
            };
            if count == 0 || count > most {
                return bad(format!("{name} is {count}"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let (heads, kv) = (self.heads, self.kv_heads);
            return bad(format!(
                "{heads} heads are no multiple of {kv} key/value heads"
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return bad(format!("the head dimension {} is odd", self.head_dim));
        }
        if !(self.norm_epsilon.is_finite() && self.norm_epsilon >= 0.0) {
            return bad("the norm's epsilon is no number".to_owned());
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 1.0) {
            return bad("rope_theta is not above 1".to_owned());
        }
        Ok(self)
    }
}

/// What is wrong with a model's description.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Damaged or contradictory.
    #[error("{0}")]
    Bad(String),
    /// Whole, and of a kind that is not computed here.
    #[error("{0} is not supported")]
    Unsupported(String),
}

/// `config.json` as the model hub has it, with names of old and new files.
#[derive(Deserialize)]
struct HubConfig {
    model_type: String,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: usize,
    rms_norm_eps: Option<f32>,
    rope_theta: Option<f64>,
    rope_scaling: Option<HubRope>,
    rope_parameters: Option<HubRope>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    hidden_act: Option<String>,
    mlp_bias: Option<bool>,
}

#[derive(Default, Deserialize)]
struct HubRope {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

impl HubRope {
    fn scaling(&self) -> Result<Scaling, ConfigError> {
        let need = |value: Option<f64>, name: &str| match value {
            Some(number) if number.is_finite() && number > 0.0 => Ok(number),
            _ => Err(ConfigError::Bad(format!(
                "rope scaling needs {name} above 0"
            ))),
        };
        match self.rope_type.as_deref() {
            None | Some("default") => Ok(Scaling::None),
            Some("linear") => Ok(Scaling::Linear(need(self.factor, "factor")?)),
            Some("llama3") => {
                let low = need(self.low_freq_factor, "low_freq_factor")?;
                let high = need(self.high_freq_factor, "high_freq_factor")?;
                if high <= low {
                    let why = "high_freq_factor is not above low_freq_factor".to_owned();
                    return Err(ConfigError::Bad(why));
                }
                let context = self.original_max_position_embeddings;
                Ok(Scaling::Llama3 {
                    factor: need(self.factor, "factor")?,
                    low,
                    high,
                    context: need(context, "original_max_position_embeddings")?,
                })
            }
            Some(other) => Err(ConfigError::Unsupported(format!("rope scaling `{other}`"))),
        }
    }
}

/// Metadata by name.
struct Keys<'a>(&'a gguf_file::Content);

impl Keys<'_> {
    fn value(&self, key: &str) -> Result<&gguf_file::Value, ConfigError> {
        let missing = || ConfigError::Bad(format!("no {key}"));
        self.0.metadata.get(key).ok_or_else(missing)
    }
    fn text(&self, key: &str) -> Result<String, ConfigError> {
        let text = self.value(key)?.to_string();
        text.cloned()
            .map_err(|_| ConfigError::Bad(format!("{key} is no text")))
    }
    fn count(&self, key: &str) -> Result<usize, ConfigError> {
        let bad = || ConfigError::Bad(format!("{key} is no count"));
        let number = match self.value(key)? {
            gguf_file::Value::U32(number) => u64::from(*number),
            gguf_file::Value::U64(number) => *number,
            gguf_file::Value::I32(number) => u64::try_from(*number).map_err(|_| bad())?,
            gguf_file::Value::U16(number) => u64::from(*number),
            _ => return Err(bad()),
        };
        usize::try_from(number).map_err(|_| bad())
    }
    fn count_or(&self, key: &str, otherwise: usize) -> Result<usize, ConfigError> {
        if self.0.metadata.contains_key(key) {
            self.count(key)
        } else {
            Ok(otherwise)
        }
    }
    fn number(&self, key: &str) -> Result<f64, ConfigError> {
        match self.value(key)? {
            gguf_file::Value::F32(number) => Ok(f64::from(*number)),
            gguf_file::Value::F64(number) => Ok(*number),
            _ => Err(ConfigError::Bad(format!("{key} is no number"))),
        }
    }
}

/// The nearest 32-bit number; what is written in a file as one loses nothing.
fn single(number: f64) -> f32 {
    candle_core::WithDType::from_f64(number)
}
