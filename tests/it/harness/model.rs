//! A tiny Llama in files, whose numbers come from a formula: nothing is stored or downloaded.

use std::path::Path;

use serde_json::{Map, Value, json};

/// Layers of the model.
pub const LAYERS: usize = 6;
const HIDDEN: usize = 64;
const WIDE: usize = 96;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const VOCABULARY: usize = 128;

/// Writes `config.json` and `model.safetensors`; another `seed` is another model.
pub fn write(folder: &Path, seed: u64) {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": WIDE,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let head = HIDDEN / HEADS;
    let mut tensors = vec![
        (
            "model.embed_tokens.weight".to_owned(),
            vec![VOCABULARY, HIDDEN],
        ),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
        ("lm_head.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
    ];
    for layer in 0..LAYERS {
        for (name, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![KV_HEADS * head, HIDDEN]),
            ("self_attn.v_proj", vec![KV_HEADS * head, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("mlp.gate_proj", vec![WIDE, HIDDEN]),
            ("mlp.up_proj", vec![WIDE, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, WIDE]),
        ] {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    let (mut header, mut data) = (Map::new(), Vec::new());
    let mut state = seed;
    for (name, shape) in tensors {
        let begin = data.len();
        for _ in 0..shape.iter().product::<usize>() {
            // splitmix64
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^= z >> 31;
            let part = (z >> 40) as f32 / 16_777_216.0 - 0.5;
            let number = if name.contains("norm") {
                1.0 + part
            } else {
                part * 0.5
            };
            data.extend_from_slice(&number.to_le_bytes());
        }
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()]});
        header.insert(name, entry);
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&data);
    std::fs::write(folder.join("model.safetensors"), file).unwrap();
}
