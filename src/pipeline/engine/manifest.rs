//! What a model is, as one hash: stages fit together only where it is equal.
//!
//! The root of a Merkle tree over the model's shape, its tokenizer and its tensors (name, kind, shape,
//! bytes), in the order of their names, so that it does not matter into how many files they are cut,
//! and one tensor can be proven alone. Leaf = sha256(0 ‖ contents), node = sha256(1 ‖ left ‖ right),
//! an odd one goes up as it is. Making it reads every byte of the model once.

use std::path::Path;

use sha2::{Digest, Sha256};

use super::EngineError;
use super::config::{Family, ModelConfig, Scaling};
use super::source::{Source, io};
use super::vocabulary;
use crate::types::Hash32;

/// Said in the first leaf: what is hashed may change with the engine.
pub(super) const VERSION: &str = "souk/manifest/2";
/// The file of a directory that turns text into tokens.
const TOKENIZER: &str = "tokenizer.json";
/// What a leaf begins with, and a node: neither passes for the other.
const LEAF: u8 = 0;
/// As above.
const NODE: u8 = 1;

/// A model's shape and root hash; `progress` is told how many bytes of how many were read.
///
/// # Errors
/// When files cannot be read or are no model that is computed here.
pub fn root(
    path: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(ModelConfig, Hash32), EngineError> {
    let (mut source, config) = Source::open(path)?;
    let mut leaves = vec![leaf(&shape(&config)), leaf(&tokenizer(path)?)];
    let extents = source.extents();
    let all = extents.iter().map(|extent| extent.bytes).sum();
    let mut done = 0;
    for extent in extents {
        let mut bytes = Sha256::new();
        source.scan(&extent, &mut |piece| {
            bytes.update(piece);
            done += u64::try_from(piece.len()).unwrap_or(0);
            progress(done, all);
        })?;
        let mut contents = Vec::new();
        push(&mut contents, extent.name.as_bytes());
        push(&mut contents, extent.kind.as_bytes());
        for side in &extent.shape {
            contents.extend_from_slice(&number(*side));
        }
        contents.extend_from_slice(&bytes.finalize());
        leaves.push(leaf(&contents));
    }
    Ok((config, tree(leaves)))
}

/// A text with its length before it, so that no two lists of texts are the same bytes.
fn push(to: &mut Vec<u8>, text: &[u8]) {
    to.extend_from_slice(&number(text.len()));
    to.extend_from_slice(text);
}

fn number(count: usize) -> [u8; 8] {
    u64::try_from(count).unwrap_or(u64::MAX).to_be_bytes()
}

/// Everything that decides what is computed, besides the weights.
fn shape(config: &ModelConfig) -> Vec<u8> {
    let mut out = Vec::new();
    push(&mut out, VERSION.as_bytes());
    let family = match config.family {
        Family::Llama => "llama",
        Family::Mistral => "mistral",
        Family::Qwen2 => "qwen2",
        Family::Qwen3 => "qwen3",
    };
    push(&mut out, family.as_bytes());
    for count in [
        config.layers,
        config.hidden,
        config.intermediate,
        config.heads,
        config.kv_heads,
        config.head_dim,
        config.vocabulary,
        config.context,
    ] {
        out.extend_from_slice(&number(count));
    }
    out.extend_from_slice(&config.norm_epsilon.to_bits().to_be_bytes());
    let angles = match config.scaling {
        Scaling::None => vec![config.rope_theta],
        Scaling::Linear(factor) => vec![config.rope_theta, factor],
        Scaling::Llama3 {
            factor,
            low,
            high,
            context,
        } => vec![config.rope_theta, factor, low, high, context],
    };
    out.extend_from_slice(&number(angles.len()));
    for angle in angles {
        out.extend_from_slice(&angle.to_bits().to_be_bytes());
    }
    out
}

/// What turns text into tokens: a directory's tokenizer, or what a GGUF file says; nothing where
/// there is none. A chat template is the seller's business and no part of a model.
fn tokenizer(path: &Path) -> Result<Vec<u8>, EngineError> {
    if !path.is_dir() {
        return vocabulary::digest(path);
    }
    let file = path.join(TOKENIZER);
    if !file.exists() {
        return Ok(Vec::new());
    }
    let text = std::fs::read(&file).map_err(io(&file))?;
    Ok(Sha256::digest(text).to_vec())
}

fn leaf(contents: &[u8]) -> [u8; 32] {
    let hasher = Sha256::new().chain_update([LEAF]);
    hasher.chain_update(contents).finalize().into()
}

fn tree(mut level: Vec<[u8; 32]>) -> Hash32 {
    while level.len() > 1 {
        let pairs = level.chunks(2).map(|pair| match pair {
            [left, right] => {
                let hasher = Sha256::new().chain_update([NODE]);
                hasher
                    .chain_update(left)
                    .chain_update(right)
                    .finalize()
                    .into()
            }
            odd => odd.first().copied().unwrap_or_default(),
        });
        level = pairs.collect();
    }
    Hash32(level.first().copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::GgmlDType;

    use super::super::tests::models::{case, directory, gguf};
    use super::*;

    fn root_of(path: &Path) -> Hash32 {
        root(path, &mut |_, _| {}).unwrap().1
    }

    #[test]
    fn a_root_names_shape_weights_and_tokenizer() {
        let files = directory(&case("llama"));
        let path = files.path().to_owned();
        let (mut last, mut all) = (0, 0);
        let (config, first) = root(&path, &mut |done, of| (last, all) = (done, of)).unwrap();
        assert!(config.layers > 0 && all > 0 && last == all);
        assert_eq!(root_of(&path), first);

        // One bit of the last tensor.
        let weights = path.join("model-1.safetensors");
        let mut bytes = std::fs::read(&weights).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&weights, &bytes).unwrap();
        let changed = root_of(&path);
        assert_ne!(changed, first);
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&weights, &bytes).unwrap();
        assert_eq!(root_of(&path), first);

        // The shape that is computed with, and not how the file is written.
        let config = path.join("config.json");
        let text = std::fs::read_to_string(&config).unwrap();
        std::fs::write(&config, format!("\n  {text}\n")).unwrap();
        assert_eq!(root_of(&path), first);
        let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
        value["rms_norm_eps"] = 0.125.into();
        std::fs::write(&config, value.to_string()).unwrap();
        assert_ne!(root_of(&path), first);
        std::fs::write(&config, text).unwrap();

        std::fs::write(path.join(TOKENIZER), "{}").unwrap();
        assert_ne!(root_of(&path), first);
    }

    #[test]
    fn other_files_are_other_models() {
        let llama = case("llama");
        let roots = [
            root_of(directory(&llama).path()),
            root_of(directory(&case("qwen2")).path()),
            root_of(&gguf(&llama, GgmlDType::F32).gguf()),
            root_of(&gguf(&llama, GgmlDType::Q8_0).gguf()),
        ];
        for (at, root) in roots.iter().enumerate() {
            assert!(!roots[at + 1..].contains(root), "{at}");
        }
    }

    #[test]
    fn no_tree_passes_for_another() {
        let leaves = |all: &[u8]| all.iter().map(|one| leaf(&[*one])).collect::<Vec<_>>();
        let roots = [
            tree(leaves(&[1])),
            tree(leaves(&[1, 2])),
            tree(leaves(&[2, 1])),
            tree(leaves(&[1, 2, 3])),
            tree(leaves(&[1, 2, 3, 3])),
        ];
        for (at, root) in roots.iter().enumerate() {
            assert!(!roots[at + 1..].contains(root), "{at}");
        }
    }
}
