//! A small random model in files: safetensors, a tokenizer whose tokens are bytes, a chat template.
//! Weights come from a formula, so that every run of a test and every process has the same.

#![allow(
    clippy::as_conversions,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    dead_code,
    reason = "a test's model; each test uses a part"
)]

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

/// Tokens that are no bytes, in order of their numbers, from 256 on.
pub const SPECIAL: [&str; 4] = ["<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>"];
/// Conversations as ChatML, tools by their names.
pub const TEMPLATE: &str = "{% if tools %}<|im_start|>tools {{ tools | tojson }}<tool_call><|im_end|>{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// The shape of a model.
#[derive(Clone, Copy, Debug)]
pub struct TinyModel {
    pub hidden: usize,
    pub intermediate: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub vocabulary: usize,
    pub context: usize,
    /// Says visible ASCII only, and never ends by itself.
    pub is_legible: bool,
}

impl Default for TinyModel {
    fn default() -> Self {
        Self {
            hidden: 64,
            intermediate: 160,
            layers: 6,
            heads: 4,
            kv_heads: 2,
            vocabulary: 256 + SPECIAL.len(),
            context: 512,
            is_legible: false,
        }
    }
}

impl TinyModel {
    /// Writes the model's files into a folder.
    pub fn write(&self, folder: &Path) {
        let config = json!({
            "model_type": "llama", "hidden_act": "silu", "hidden_size": self.hidden,
            "intermediate_size": self.intermediate, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary, "max_position_embeddings": self.context,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
            "eos_token_id": 257,
        });
        let write = |name: &str, value: &Value| {
            std::fs::write(folder.join(name), value.to_string()).unwrap();
        };
        write("config.json", &config);
        write("tokenizer.json", &tokenizer());
        let manners = json!({"eos_token": "<|im_end|>", "chat_template": TEMPLATE});
        write("tokenizer_config.json", &manners);
        let tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)> = self
            .tensors()
            .into_iter()
            .map(|(name, shape)| {
                let mut bytes = numbers(&name, &shape);
                if self.is_legible && name == "lm_head.weight" {
                    silence(&mut bytes, self.hidden);
                }
                (name, (shape, bytes))
            })
            .collect();
        let views = tensors.iter().map(|(name, (shape, bytes))| {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
            (name.as_str(), view.unwrap())
        });
        let file = folder.join("model.safetensors");
        safetensors::serialize_to_file(views, None, &file).unwrap();
    }

    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (hidden, wide) = (self.hidden, self.intermediate);
        let kv = hidden / self.heads * self.kv_heads;
        let mut all = vec![
            (
                "model.embed_tokens.weight".to_owned(),
                vec![self.vocabulary, hidden],
            ),
            ("lm_head.weight".to_owned(), vec![self.vocabulary, hidden]),
            ("model.norm.weight".to_owned(), vec![hidden]),
        ];
        for layer in 0..self.layers {
            for (part, shape) in [
                ("input_layernorm", vec![hidden]),
                ("post_attention_layernorm", vec![hidden]),
                ("self_attn.q_proj", vec![hidden, hidden]),
                ("self_attn.k_proj", vec![kv, hidden]),
                ("self_attn.v_proj", vec![kv, hidden]),
                ("self_attn.o_proj", vec![hidden, hidden]),
                ("mlp.gate_proj", vec![wide, hidden]),
                ("mlp.up_proj", vec![wide, hidden]),
                ("mlp.down_proj", vec![hidden, wide]),
            ] {
                all.push((format!("model.layers.{layer}.{part}.weight"), shape));
            }
        }
        all
    }
}

/// Numbers around nought (norms: around one), as little-endian f32.
fn numbers(name: &str, shape: &[usize]) -> Vec<u8> {
    let seed = name.bytes().fold(0xCBF2_9CE4_8422_2325u64, |seed, byte| {
        (seed ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3)
    });
    let inputs = *shape.last().unwrap() as f32;
    // What comes out of a matrix is about as large as what goes in, at any width.
    let scale = if name.contains("embed") {
        1.0
    } else {
        4.0 / inputs.sqrt()
    };
    let count: usize = shape.iter().product();
    let mut bytes = Vec::with_capacity(4 * count);
    for index in 0..count as u64 {
        let mut z = seed.wrapping_add(index).wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        let part = (z >> 40) as f32 / 16_777_216.0 - 0.5;
        let number = if name.contains("norm") {
            1.0 + part
        } else {
            part * scale
        };
        bytes.extend(number.to_le_bytes());
    }
    bytes
}

/// Takes the weights of tokens that are no visible ASCII away: among many others one is above 0.
fn silence(bytes: &mut [u8], hidden: usize) {
    for (token, row) in bytes.chunks_mut(4 * hidden).enumerate() {
        if !(33..127).contains(&token) {
            row.fill(0);
        }
    }
}

/// A tokenizer of single bytes.
fn tokenizer() -> Value {
    // Bytes that are no visible characters are written as those from U+0100 on.
    let is_visible = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut hidden = (0x100u32..).map(|code| char::from_u32(code).unwrap());
    let vocabulary: serde_json::Map<String, Value> = (0..=255u8)
        .map(|byte| {
            let letter = if is_visible(byte) {
                char::from(byte)
            } else {
                hidden.next().unwrap()
            };
            (letter.to_string(), json!(byte))
        })
        .collect();
    let special: Vec<Value> = SPECIAL
        .iter()
        .zip(256..)
        .map(|(text, id)| {
            json!({
                "id": id, "content": text, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true,
            })
        })
        .collect();
    let bytes = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false,
    });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": special,
        "normalizer": null, "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": vocabulary, "merges": [],
        },
    })
}
