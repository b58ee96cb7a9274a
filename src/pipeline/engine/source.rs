//! Finds a model's tensors by name and reads only those that are asked for: a range of layers costs
//! the disk and the memory of that range.
//!
//! Files are read, not mapped: a map of a file that somebody shortens ends the process.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::quantized::{GgmlDType, QMatMul, QTensor, gguf_file};
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::Metadata;
use serde::Deserialize;

use super::config::{ConfigError, ModelConfig};
use super::{EngineError, Precision};

/// A safetensors header lists tensors; no published one takes a tenth of this. Bytes.
const HEADER_BYTES_MAX: u64 = 100 << 20;
/// Bytes read at once where all are read.
const SCAN_BYTES: usize = 1 << 20;
/// Weights of one 8-bit scale.
const QUANT_GROUP: usize = 32;

/// A matrix or vector of a decoder layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    AttentionNorm,
    Query,
    Key,
    Value,
    Output,
    QueryNorm,
    KeyNorm,
    MlpNorm,
    Gate,
    Up,
    Down,
}

/// A tensor of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    Embedding,
    LastNorm,
    /// Absent where the embedding serves for it.
    Logits,
    Weight(usize, Part),
    Bias(usize, Part),
    /// What GGUF divides the angles by; absent in safetensors, where the configuration says it.
    Angles,
}

impl Part {
    /// As the model hub names it, and as GGUF does.
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::AttentionNorm => ("input_layernorm", "attn_norm"),
            Self::Query => ("self_attn.q_proj", "attn_q"),
            Self::Key => ("self_attn.k_proj", "attn_k"),
            Self::Value => ("self_attn.v_proj", "attn_v"),
            Self::Output => ("self_attn.o_proj", "attn_output"),
            Self::QueryNorm => ("self_attn.q_norm", "attn_q_norm"),
            Self::KeyNorm => ("self_attn.k_norm", "attn_k_norm"),
            Self::MlpNorm => ("post_attention_layernorm", "ffn_norm"),
            Self::Gate => ("mlp.gate_proj", "ffn_gate"),
            Self::Up => ("mlp.up_proj", "ffn_up"),
            Self::Down => ("mlp.down_proj", "ffn_down"),
        }
    }
}

impl Name {
    fn in_directory(self) -> String {
        match self {
            Self::Embedding => "model.embed_tokens.weight".to_owned(),
            Self::LastNorm => "model.norm.weight".to_owned(),
            Self::Logits => "lm_head.weight".to_owned(),
            Self::Weight(layer, part) => format!("model.layers.{layer}.{}.weight", part.names().0),
            Self::Bias(layer, part) => format!("model.layers.{layer}.{}.bias", part.names().0),
            Self::Angles => String::new(),
        }
    }
    fn in_gguf(self) -> String {
        match self {
            Self::Embedding => "token_embd.weight".to_owned(),
            Self::LastNorm => "output_norm.weight".to_owned(),
            Self::Logits => "output.weight".to_owned(),
            Self::Weight(layer, part) => format!("blk.{layer}.{}.weight", part.names().1),
            Self::Bias(layer, part) => format!("blk.{layer}.{}.bias", part.names().1),
            Self::Angles => "rope_freqs.weight".to_owned(),
        }
    }
}

/// A model's files.
pub(super) enum Source {
    Directory(Directory),
    Gguf(Gguf),
}

pub(super) struct Directory {
    path: PathBuf,
    files: Vec<(PathBuf, File)>,
    tensors: BTreeMap<String, Entry>,
}

/// Where a tensor lies.
struct Entry {
    file: usize,
    dtype: DType,
    shape: Vec<usize>,
    begin: u64,
    bytes: usize,
}

/// A tensor's bytes as they lie in a file.
pub(super) struct Extent {
    pub(super) name: String,
    /// How a number is kept.
    pub(super) kind: String,
    pub(super) shape: Vec<usize>,
    file: usize,
    begin: u64,
    /// How many.
    pub(super) bytes: u64,
}

pub(super) struct Gguf {
    opened: (PathBuf, File),
    content: gguf_file::Content,
}

/// Names the shards of a large model.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Source {
    /// Opens a directory or a GGUF file and reads the model's shape.
    pub(super) fn open(path: &Path) -> Result<(Self, ModelConfig), EngineError> {
        if path.is_dir() {
            let (directory, config) = Directory::open(path)?;
            return Ok((Self::Directory(directory), config));
        }
        let mut file = File::open(path).map_err(io(path))?;
        let content = gguf_file::Content::read(&mut file)
            .map_err(|error| malformed(path, format!("no GGUF file: {error}")))?;
        let config = ModelConfig::from_gguf(&content).map_err(config_error(path))?;
        let gguf = Gguf {
            opened: (path.to_owned(), file),
            content,
        };
        Ok((Self::Gguf(gguf), config))
    }

    /// True for files whose llama-like queries and keys are stored in interleaved pairs.
    pub(super) const fn is_gguf(&self) -> bool {
        matches!(self, Self::Gguf(_))
    }

    pub(super) fn has(&self, name: Name) -> bool {
        match self {
            Self::Directory(directory) => directory.tensors.contains_key(&name.in_directory()),
            Self::Gguf(gguf) => gguf.content.tensor_infos.contains_key(&name.in_gguf()),
        }
    }

    /// Reads `rows` × `columns` weights.
    pub(super) fn matrix(
        &mut self,
        name: Name,
        (rows, columns): (usize, usize),
        precision: Precision,
    ) -> Result<QMatMul, EngineError> {
        let tensor = match self {
            Self::Directory(directory) => directory.read(&name.in_directory())?,
            Self::Gguf(gguf) => {
                let quantised = gguf.read(&name.in_gguf())?;
                let is_exact = matches!(
                    quantised.dtype(),
                    GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16
                );
                check_shape(
                    &gguf.opened.0,
                    name,
                    quantised.shape().dims(),
                    &[rows, columns],
                )?;
                if !is_exact && precision == Precision::Q8 {
                    return Ok(QMatMul::from_qtensor(quantised)?);
                }
                quantised.dequantize(&Device::Cpu)?
            }
        };
        check_shape(self.path(), name, tensor.dims(), &[rows, columns])?;
        let tensor = tensor.to_dtype(DType::F32)?;
        if precision == Precision::Q8 && columns.is_multiple_of(QUANT_GROUP) {
            let quantised = QTensor::quantize(&tensor, GgmlDType::Q8_0)?;
            return Ok(QMatMul::from_qtensor(quantised)?);
        }
        Ok(QMatMul::Tensor(tensor))
    }

    /// Reads `count` numbers.
    pub(super) fn vector(&mut self, name: Name, count: usize) -> Result<Vec<f32>, EngineError> {
        let tensor = match self {
            Self::Directory(directory) => directory.read(&name.in_directory())?,
            Self::Gguf(gguf) => gguf.read(&name.in_gguf())?.dequantize(&Device::Cpu)?,
        };
        check_shape(self.path(), name, tensor.dims(), &[count])?;
        Ok(tensor.to_dtype(DType::F32)?.to_vec1()?)
    }

    /// Every tensor's place, by name.
    pub(super) fn extents(&self) -> Vec<Extent> {
        let mut all: Vec<Extent> = match self {
            Self::Directory(directory) => directory.tensors.iter().map(extent_of).collect(),
            Self::Gguf(gguf) => gguf.extents(),
        };
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Reads a tensor's bytes in pieces, in order.
    pub(super) fn scan(
        &mut self,
        extent: &Extent,
        piece: &mut dyn FnMut(&[u8]),
    ) -> Result<(), EngineError> {
        let place = match self {
            Self::Directory(directory) => directory.files.get_mut(extent.file),
            Self::Gguf(gguf) => Some(&mut gguf.opened),
        };
        let Some((path, file)) = place else {
            return Ok(());
        };
        file.seek(SeekFrom::Start(extent.begin)).map_err(io(path))?;
        let mut left = extent.bytes;
        let mut buffer = vec![0; SCAN_BYTES];
        while left > 0 {
            let most = usize::try_from(left).map_or(SCAN_BYTES, |left| left.min(SCAN_BYTES));
            let part = buffer.get_mut(..most).unwrap_or_default();
            file.read_exact(part).map_err(io(path))?;
            piece(part);
            left = left.saturating_sub(u64::try_from(most).unwrap_or(left));
        }
        Ok(())
    }

    fn path(&self) -> &Path {
        match self {
            Self::Directory(directory) => &directory.path,
            Self::Gguf(gguf) => &gguf.opened.0,
        }
    }
}

impl Gguf {
    fn read(&mut self, name: &str) -> Result<QTensor, EngineError> {
        let (path, file) = &mut self.opened;
        let tensor = self.content.tensor(file, name, &Device::Cpu);
        tensor.map_err(|error| malformed(path, format!("{name}: {error}")))
    }

    fn extents(&self) -> Vec<Extent> {
        let infos = self.content.tensor_infos.iter();
        let extent = |(name, info): (&String, &gguf_file::TensorInfo)| {
            let (numbers, kind) = (info.shape.elem_count(), info.ggml_dtype);
            let blocks = numbers.checked_div(kind.block_size()).unwrap_or(0);
            let bytes = blocks.saturating_mul(kind.type_size());
            Extent {
                name: name.clone(),
                kind: format!("{kind:?}"),
                shape: info.shape.dims().to_vec(),
                file: 0,
                begin: self.content.tensor_data_offset.saturating_add(info.offset),
                bytes: u64::try_from(bytes).unwrap_or(u64::MAX),
            }
        };
        infos.map(extent).collect()
    }
}

fn extent_of((name, entry): (&String, &Entry)) -> Extent {
    Extent {
        name: name.clone(),
        kind: entry.dtype.as_str().to_owned(),
        shape: entry.shape.clone(),
        file: entry.file,
        begin: entry.begin,
        bytes: u64::try_from(entry.bytes).unwrap_or(u64::MAX),
    }
}

impl Directory {
    fn open(path: &Path) -> Result<(Self, ModelConfig), EngineError> {
        let config_path = path.join("config.json");
        let text = std::fs::read(&config_path).map_err(io(&config_path))?;
        let config = ModelConfig::from_json(&text).map_err(config_error(&config_path))?;
        let mut directory = Self {
            path: path.to_owned(),
            files: vec![],
            tensors: BTreeMap::new(),
        };
        for name in shards(path)? {
            directory.add(&path.join(name))?;
        }
        Ok((directory, config))
    }

    fn add(&mut self, path: &Path) -> Result<(), EngineError> {
        let mut file = File::open(path).map_err(io(path))?;
        let mut header = vec![0; 8];
        file.read_exact(&mut header).map_err(io(path))?;
        let size: [u8; 8] = header
            .first_chunk()
            .copied()
            .ok_or_else(|| malformed(path, "no header".to_owned()))?;
        let size = u64::from_le_bytes(size);
        let whole = file.metadata().map_err(io(path))?.len();
        if size > HEADER_BYTES_MAX.min(whole) {
            return Err(malformed(path, format!("a header of {size} bytes")));
        }
        header.clear();
        let mut reader = (&mut file).take(size);
        reader.read_to_end(&mut header).map_err(io(path))?;
        let bad = |error: &dyn std::fmt::Display| malformed(path, format!("header: {error}"));
        let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| bad(&error))?;
        let index = self.files.len();
        for (name, info) in metadata.tensors() {
            // Tensors of kinds that are not computed with may lie beside; asking for one fails.
            let Ok(dtype) = DType::try_from(info.dtype) else {
                continue;
            };
            let (begin, end) = info.data_offsets;
            let start = 8 + size;
            let place = |offset| u64::try_from(offset).map(|offset| start.saturating_add(offset));
            let (from, to) = (place(begin), place(end));
            let (from, to) = (
                from.map_err(|error| bad(&error))?,
                to.map_err(|error| bad(&error))?,
            );
            if from > to || to > whole {
                return Err(malformed(
                    path,
                    format!("{name} lies beyond the end of the file"),
                ));
            }
            let entry = Entry {
                file: index,
                dtype,
                shape: info.shape.clone(),
                begin: from,
                bytes: end.saturating_sub(begin),
            };
            let numbers = entry
                .shape
                .iter()
                .try_fold(1usize, |all, one| all.checked_mul(*one));
            let bytes = numbers.and_then(|all| all.checked_mul(dtype.size_in_bytes()));
            if bytes != Some(entry.bytes) {
                return Err(malformed(
                    path,
                    format!("{name} has another size than its shape"),
                ));
            }
            self.tensors.insert(name, entry);
        }
        self.files.push((path.to_owned(), file));
        Ok(())
    }

    fn read(&mut self, name: &str) -> Result<Tensor, EngineError> {
        let missing = || malformed(&self.path, format!("no tensor {name}"));
        let entry = self.tensors.get(name).ok_or_else(missing)?;
        let (path, file) = self.files.get_mut(entry.file).ok_or_else(missing)?;
        file.seek(SeekFrom::Start(entry.begin)).map_err(io(path))?;
        let mut bytes = vec![0; entry.bytes];
        file.read_exact(&mut bytes).map_err(io(path))?;
        let tensor = Tensor::from_raw_buffer(&bytes, entry.dtype, &entry.shape, &Device::Cpu);
        tensor.map_err(|error| malformed(path, format!("{name}: {error}")))
    }
}

/// The files that an index names, or the only one there is.
fn shards(path: &Path) -> Result<Vec<String>, EngineError> {
    let index_path = path.join("model.safetensors.index.json");
    if !index_path.exists() {
        return Ok(vec!["model.safetensors".to_owned()]);
    }
    let text = std::fs::read(&index_path).map_err(io(&index_path))?;
    let index: Index =
        serde_json::from_slice(&text).map_err(|error| malformed(&index_path, error.to_string()))?;
    let mut names: Vec<String> = index.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    // An index must not lead out of its directory.
    if let Some(odd) = names.iter().find(|name| name.contains(['/', '\\'])) {
        return Err(malformed(&index_path, format!("`{odd}` is no file here")));
    }
    Ok(names)
}

fn check_shape(
    path: &Path,
    name: Name,
    found: &[usize],
    wanted: &[usize],
) -> Result<(), EngineError> {
    if found == wanted {
        return Ok(());
    }
    let why = format!("{name:?} is {found:?}, and the configuration says {wanted:?}");
    Err(malformed(path, why))
}

pub(super) fn malformed(path: &Path, why: String) -> EngineError {
    let path = path.to_owned();
    EngineError::Malformed { path, why }
}

pub(super) fn io(path: &Path) -> impl Fn(std::io::Error) -> EngineError {
    let path = path.to_owned();
    move |source| EngineError::Io {
        path: path.clone(),
        source,
    }
}

fn config_error(path: &Path) -> impl Fn(ConfigError) -> EngineError {
    let path = path.to_owned();
    move |error| match error {
        ConfigError::Bad(why) => malformed(&path, why),
        ConfigError::Unsupported(_) => EngineError::Unsupported(error.to_string()),
    }
}
