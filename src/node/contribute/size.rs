//! How large a layer is in memory, and what it is usually worth.

use crate::pipeline::engine::ModelConfig;

/// Bytes of 32 weights once loaded: one each and a scale of two.
const GROUP_BYTES: u64 = 34;
/// Weights of such a group.
const GROUP: u64 = 32;
/// Memory assumed free where the system does not say, bytes.
const MEMORY_UNKNOWN: u64 = 8 << 30;
/// Usual prices per million tokens and billion weights, micro-USD: a model of 70 billion is $0.14 in
/// and $0.42 out. Input, output.
const PRICE_PER_BILLION: (u64, u64) = (2_000, 6_000);

/// Weights of one layer.
fn weights(config: &ModelConfig) -> u64 {
    let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    let (hidden, wide) = (count(config.hidden), count(config.intermediate));
    let queries = count(config.heads).saturating_mul(count(config.head_dim));
    let keys = count(config.kv_row());
    let attention = queries.saturating_mul(2).saturating_add(keys);
    let mlp = wide.saturating_mul(3);
    hidden.saturating_mul(attention.saturating_add(mlp))
}

/// Bytes of one layer with room for so many positions.
pub(super) fn layer_bytes(config: &ModelConfig, positions: u32) -> u64 {
    let held = weights(config).saturating_mul(GROUP_BYTES).div_ceil(GROUP);
    let position = u64::try_from(config.kv_bytes()).unwrap_or(u64::MAX);
    let kept = position.saturating_mul(positions.into());
    held.saturating_add(kept).max(1)
}

/// Usual prices of a million rows through one layer, micro-USD: input, output; never 0.
pub(super) fn price(config: &ModelConfig) -> (u64, u64) {
    let per = |price: u64| {
        let price = weights(config).saturating_mul(price) / 1_000_000_000;
        price.max(1)
    };
    (per(PRICE_PER_BILLION.0), per(PRICE_PER_BILLION.1))
}

/// Half of the memory that is free now, bytes.
pub(super) fn memory_free_half() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    available(&text).unwrap_or(MEMORY_UNKNOWN) / 2
}

fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_memory_is_read_as_the_kernel_writes_it() {
        let text = "MemTotal:       24000000 kB\nMemAvailable:   16000000 kB\n";
        assert_eq!(available(text), Some(16_000_000 * 1_024));
        assert_eq!(available("MemTotal: 5 kB"), None);
        assert_eq!(available("MemAvailable: many kB"), None);
    }

    #[test]
    fn a_layer_of_a_large_model_has_a_plausible_size_and_price() {
        // The shape of a model of 70 billion weights.
        let config = ModelConfig::from_json(
            br#"{"model_type":"llama","architectures":["LlamaForCausalLM"],"vocab_size":128256,
                "hidden_size":8192,"intermediate_size":28672,"num_hidden_layers":80,
                "num_attention_heads":64,"num_key_value_heads":8,"max_position_embeddings":131072,
                "rms_norm_eps":1e-5,"rope_theta":500000.0,"tie_word_embeddings":false}"#,
        )
        .unwrap();
        let weights = weights(&config) * 80;
        assert!((67..71).contains(&(weights / 1_000_000_000)), "{weights}");
        let bytes = layer_bytes(&config, 0);
        assert!((850 << 20..950 << 20).contains(&bytes), "{bytes}");
        let kept = layer_bytes(&config, 8_192) - bytes;
        assert!((32 << 20..33 << 20).contains(&kept), "{kept}");
        let (input, output) = price(&config);
        assert!((130_000..150_000).contains(&(input * 80)), "{input}");
        assert!((400_000..420_000).contains(&(output * 80)), "{output}");
    }
}
