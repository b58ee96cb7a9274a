//! The tests' models, written to files: their numbers come from a formula that `reference.py`
//! repeats, so that no weight is stored.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
use candle_core::{Device, Tensor};
use serde_json::Value;

pub(in crate::pipeline) struct Case {
    pub(in crate::pipeline) name: String,
    pub(in crate::pipeline) config: Value,
    pub(in crate::pipeline) greedy: Vec<u32>,
    pub(in crate::pipeline) logits: Vec<f32>,
}

pub(in crate::pipeline) fn cases() -> (Vec<u32>, Vec<Case>) {
    let all: Value = serde_json::from_str(include_str!("../reference/vectors.json")).unwrap();
    let tokens = |value: &Value| serde_json::from_value(value.clone()).unwrap();
    let models = all["models"].as_object().unwrap();
    let cases = models.iter().map(|(name, one)| Case {
        name: name.clone(),
        config: one["config"].clone(),
        greedy: tokens(&one["greedy"]),
        logits: serde_json::from_value(one["logits"].clone()).unwrap(),
    });
    (tokens(&all["prompt"]), cases.collect())
}

pub(in crate::pipeline) fn case(name: &str) -> Case {
    cases()
        .1
        .into_iter()
        .find(|case| case.name == name)
        .unwrap()
}

/// The numbers that `reference.py` makes for a tensor of this name.
fn numbers(name: &str, count: usize) -> Vec<f32> {
    let mut seed = 0xCBF2_9CE4_8422_2325u64;
    for byte in name.bytes() {
        seed = (seed ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3);
    }
    let scale = if name.contains("embed") || name.contains("bias") {
        1.0
    } else {
        0.5
    };
    let number = |index: u64| {
        let mut z = seed.wrapping_add(index).wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        let part = (z >> 40) as f32 / 16_777_216.0 - 0.5;
        if name.contains("norm") {
            1.0 + part
        } else {
            part * scale
        }
    };
    (0..count as u64).map(number).collect()
}

/// Every tensor of a model: its name at the hub, its name in GGUF, its shape.
fn tensors(config: &Value) -> Vec<(String, String, Vec<usize>)> {
    let count = |key: &str| config[key].as_u64().map(|count| count as usize);
    let (hidden, wide) = (
        count("hidden_size").unwrap(),
        count("intermediate_size").unwrap(),
    );
    let (heads, kv) = (
        count("num_attention_heads").unwrap(),
        count("num_key_value_heads").unwrap(),
    );
    let dim = count("head_dim").unwrap_or(hidden / heads);
    let vocabulary = count("vocab_size").unwrap();
    let mut all = vec![
        (
            "model.embed_tokens.weight".to_owned(),
            "token_embd.weight".to_owned(),
            vec![vocabulary, hidden],
        ),
        (
            "model.norm.weight".to_owned(),
            "output_norm.weight".to_owned(),
            vec![hidden],
        ),
    ];
    if config["tie_word_embeddings"] != true {
        all.push((
            "lm_head.weight".to_owned(),
            "output.weight".to_owned(),
            vec![vocabulary, hidden],
        ));
    }
    let kind = config["model_type"].as_str().unwrap();
    for layer in 0..count("num_hidden_layers").unwrap() {
        let mut add = |hub: &str, gguf: &str, shape: &[usize]| {
            all.push((
                format!("model.layers.{layer}.{hub}"),
                format!("blk.{layer}.{gguf}"),
                shape.to_vec(),
            ));
        };
        add("input_layernorm.weight", "attn_norm.weight", &[hidden]);
        add(
            "post_attention_layernorm.weight",
            "ffn_norm.weight",
            &[hidden],
        );
        add(
            "self_attn.q_proj.weight",
            "attn_q.weight",
            &[heads * dim, hidden],
        );
        add(
            "self_attn.k_proj.weight",
            "attn_k.weight",
            &[kv * dim, hidden],
        );
        add(
            "self_attn.v_proj.weight",
            "attn_v.weight",
            &[kv * dim, hidden],
        );
        add(
            "self_attn.o_proj.weight",
            "attn_output.weight",
            &[hidden, heads * dim],
        );
        add("mlp.gate_proj.weight", "ffn_gate.weight", &[wide, hidden]);
        add("mlp.up_proj.weight", "ffn_up.weight", &[wide, hidden]);
        add("mlp.down_proj.weight", "ffn_down.weight", &[hidden, wide]);
        if kind == "qwen2" {
            add("self_attn.q_proj.bias", "attn_q.bias", &[heads * dim]);
            add("self_attn.k_proj.bias", "attn_k.bias", &[kv * dim]);
            add("self_attn.v_proj.bias", "attn_v.bias", &[kv * dim]);
        }
        if kind == "qwen3" {
            add("self_attn.q_norm.weight", "attn_q_norm.weight", &[dim]);
            add("self_attn.k_norm.weight", "attn_k_norm.weight", &[dim]);
        }
    }
    all
}

/// A model in files, gone with the value.
pub(in crate::pipeline) struct Files(tempfile::TempDir);

impl Files {
    pub(in crate::pipeline) fn path(&self) -> &Path {
        self.0.path()
    }
    pub(in crate::pipeline) fn gguf(&self) -> PathBuf {
        self.0.path().join("model.gguf")
    }
}

/// The model in two shards, as the hub stores large ones.
pub(in crate::pipeline) fn directory(case: &Case) -> Files {
    let dir = tempfile::tempdir().unwrap();
    let mut config = case.config.clone();
    config["architectures"] = serde_json::json!(["Any"]);
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let mut shards: [BTreeMap<String, Tensor>; 2] = Default::default();
    let mut index = BTreeMap::new();
    for (at, (name, _, shape)) in tensors(&case.config).into_iter().enumerate() {
        let data = numbers(&name, shape.iter().product());
        let tensor = Tensor::from_vec(data, shape, &Device::Cpu).unwrap();
        index.insert(name.clone(), format!("model-{}.safetensors", at % 2));
        shards[at % 2].insert(name, tensor);
    }
    for (at, shard) in shards.into_iter().enumerate() {
        let path = dir.path().join(format!("model-{at}.safetensors"));
        candle_core::safetensors::save(&shard.into_iter().collect(), path).unwrap();
    }
    let index = serde_json::json!({ "weight_map": index });
    let path = dir.path().join("model.safetensors.index.json");
    std::fs::write(path, index.to_string()).unwrap();
    Files(dir)
}

/// The same as GGUF, in the order of rows that its converters use.
pub(in crate::pipeline) fn gguf(case: &Case, dtype: GgmlDType) -> Files {
    use gguf_file::Value as V;
    let dir = tempfile::tempdir().unwrap();
    let arch = match case.config["model_type"].as_str().unwrap() {
        "mistral" => "llama",
        other => other,
    };
    let number = |key: &str| V::U32(case.config[key].as_u64().unwrap() as u32);
    let mut metadata = vec![
        (
            "general.architecture".to_owned(),
            V::String(arch.to_owned()),
        ),
        (format!("{arch}.block_count"), number("num_hidden_layers")),
        (
            format!("{arch}.context_length"),
            number("max_position_embeddings"),
        ),
        (format!("{arch}.embedding_length"), number("hidden_size")),
        (
            format!("{arch}.feed_forward_length"),
            number("intermediate_size"),
        ),
        (
            format!("{arch}.attention.head_count"),
            number("num_attention_heads"),
        ),
        (
            format!("{arch}.attention.head_count_kv"),
            number("num_key_value_heads"),
        ),
        (
            format!("{arch}.attention.layer_norm_rms_epsilon"),
            V::F32(case.config["rms_norm_eps"].as_f64().unwrap() as f32),
        ),
        (
            format!("{arch}.rope.freq_base"),
            V::F32(case.config["rope_theta"].as_f64().unwrap() as f32),
        ),
    ];
    if case.config.get("head_dim").is_some() {
        metadata.push((format!("{arch}.attention.key_length"), number("head_dim")));
    }
    let mut stored = vec![];
    for (name, gguf_name, shape) in tensors(&case.config) {
        let data = numbers(&name, shape.iter().product());
        let mut tensor = Tensor::from_vec(data, shape.clone(), &Device::Cpu).unwrap();
        let heads = match gguf_name.split('.').nth(2) {
            Some("attn_q") => Some("num_attention_heads"),
            Some("attn_k") => Some("num_key_value_heads"),
            _ => None,
        };
        if let Some(heads) = heads.filter(|_| arch == "llama") {
            let heads = case.config[heads].as_u64().unwrap() as usize;
            let half = shape[0] / heads / 2;
            let halves = tensor.reshape((heads, 2, half, shape[1])).unwrap();
            let pairs = halves.transpose(1, 2).unwrap().contiguous().unwrap();
            tensor = pairs.reshape(shape.clone()).unwrap();
        }
        let dtype = if shape.len() == 2 {
            dtype
        } else {
            GgmlDType::F32
        };
        stored.push((gguf_name, QTensor::quantize(&tensor, dtype).unwrap()));
    }
    let metadata: Vec<(&str, &V)> = metadata.iter().map(|(key, v)| (key.as_str(), v)).collect();
    let stored: Vec<(&str, &QTensor)> = stored.iter().map(|(key, t)| (key.as_str(), t)).collect();
    let mut file = std::fs::File::create(dir.path().join("model.gguf")).unwrap();
    gguf_file::write(&mut file, &metadata, &stored).unwrap();
    Files(dir)
}
