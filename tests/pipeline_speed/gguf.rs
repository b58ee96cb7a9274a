//! A random Llama in one GGUF file, Q8_0, with a vocabulary that other engines accept.

use std::path::Path;

use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
use candle_core::{Device, Tensor};
use gguf_file::Value;

/// A model's shape.
pub struct Shape {
    pub hidden: usize,
    pub intermediate: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub vocabulary: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            hidden: 1_024,
            intermediate: 2_816,
            layers: 24,
            heads: 16,
            kv_heads: 8,
            vocabulary: 32_000,
        }
    }
}

impl Shape {
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (hidden, wide) = (self.hidden, self.intermediate);
        let kv = hidden / self.heads * self.kv_heads;
        let mut all = vec![
            (
                "token_embd.weight".to_owned(),
                vec![self.vocabulary, hidden],
            ),
            ("output.weight".to_owned(), vec![self.vocabulary, hidden]),
            ("output_norm.weight".to_owned(), vec![hidden]),
        ];
        for layer in 0..self.layers {
            for (part, shape) in [
                ("attn_norm", vec![hidden]),
                ("ffn_norm", vec![hidden]),
                ("attn_q", vec![hidden, hidden]),
                ("attn_k", vec![kv, hidden]),
                ("attn_v", vec![kv, hidden]),
                ("attn_output", vec![hidden, hidden]),
                ("ffn_gate", vec![wide, hidden]),
                ("ffn_up", vec![wide, hidden]),
                ("ffn_down", vec![hidden, wide]),
            ] {
                all.push((format!("blk.{layer}.{part}.weight"), shape));
            }
        }
        all
    }

    /// Numbers that training would have found.
    pub fn parameters(&self) -> usize {
        let each = self.tensors().into_iter();
        each.map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    /// Writes the file.
    pub fn write(&self, path: &Path) {
        let count = |count: usize| Value::U32(u32::try_from(count).unwrap());
        let text = |text: &str| Value::String(text.to_owned());
        let texts = |all: Vec<String>| Value::Array(all.into_iter().map(Value::String).collect());
        let bytes = (0..self.vocabulary).map(|id| format!("<{id}>"));
        let kinds = vec![Value::I32(1); self.vocabulary];
        let metadata = [
            ("general.architecture", text("llama")),
            ("llama.block_count", count(self.layers)),
            ("llama.context_length", count(4_096)),
            ("llama.embedding_length", count(self.hidden)),
            ("llama.feed_forward_length", count(self.intermediate)),
            ("llama.attention.head_count", count(self.heads)),
            ("llama.attention.head_count_kv", count(self.kv_heads)),
            ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
            ("llama.rope.freq_base", Value::F32(10_000.0)),
            ("llama.vocab_size", count(self.vocabulary)),
            ("tokenizer.ggml.model", text("gpt2")),
            ("tokenizer.ggml.pre", text("llama-bpe")),
            ("tokenizer.ggml.tokens", texts(bytes.collect())),
            ("tokenizer.ggml.token_type", Value::Array(kinds)),
            ("tokenizer.ggml.merges", texts(vec!["< 1".to_owned()])),
            ("tokenizer.ggml.bos_token_id", count(1)),
            ("tokenizer.ggml.eos_token_id", count(2)),
        ];
        let tensors: Vec<(String, QTensor)> = self
            .tensors()
            .into_iter()
            .map(|(name, shape)| {
                let tensor = tensor(&name, &shape);
                let dtype = if shape.len() == 2 {
                    GgmlDType::Q8_0
                } else {
                    GgmlDType::F32
                };
                (name, QTensor::quantize(&tensor, dtype).unwrap())
            })
            .collect();
        let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, v)| (*key, v)).collect();
        let tensors: Vec<(&str, &QTensor)> =
            tensors.iter().map(|(key, t)| (key.as_str(), t)).collect();
        let mut file = std::io::BufWriter::new(std::fs::File::create(path).unwrap());
        gguf_file::write(&mut file, &metadata, &tensors).unwrap();
    }
}

/// Numbers around nought (norms: around one), so large that rows neither grow nor vanish.
fn tensor(name: &str, shape: &[usize]) -> Tensor {
    let mut state = name.bytes().fold(0xCBF2_9CE4_8422_2325u64, |seed, byte| {
        (seed ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3)
    }) | 1;
    let scale = if name.contains("embd") {
        1.0
    } else {
        4.0 / (*shape.last().unwrap() as f32).sqrt()
    };
    let number = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let part = (state >> 40) as f32 / 16_777_216.0 - 0.5;
        if name.contains("norm") {
            1.0 + part
        } else {
            part * scale
        }
    };
    let numbers: Vec<f32> = (0..shape.iter().product::<usize>()).map(number).collect();
    Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
}
