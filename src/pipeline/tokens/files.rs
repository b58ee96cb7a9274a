//! The files that come with weights: `tokenizer.json`, `tokenizer_config.json`,
//! `chat_template.jinja`, `generation_config.json`, `config.json`; a GGUF file has the like inside.
//! What lies beside a GGUF file wins over what is in it.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;
use tokenizers::Tokenizer;

use crate::pipeline::engine::Vocabulary;
use crate::pipeline::error::PipelineError;

/// A tokenizer of a million tokens has 50 MiB. Bytes.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// What was found.
pub(super) struct Found {
    pub(super) tokenizer: Tokenizer,
    pub(super) template: Option<String>,
    /// Some models have another template for conversations with tools.
    pub(super) tool_template: Option<String>,
    pub(super) bos: String,
    pub(super) eos: String,
    pub(super) ends: BTreeSet<u32>,
}

pub(super) fn find(path: &Path) -> Result<Found, PipelineError> {
    let is_file = path.is_file();
    let folder = if is_file {
        path.parent().unwrap_or(path)
    } else {
        path
    };
    let inside = if is_file {
        Some(Vocabulary::read(path)?)
    } else {
        None
    };
    let (tokenizer, inner) = match (read(&folder.join("tokenizer.json"))?, inside) {
        (Some(bytes), inner) => {
            let bad = |e| failed(&folder.join("tokenizer.json"), &e);
            (Tokenizer::from_bytes(bytes).map_err(bad)?, inner)
        }
        (None, Some(mut inner)) => {
            let nothing = Err(String::new());
            let tokenizer = std::mem::replace(&mut inner.tokenizer, nothing).map_err(|why| {
                let why = format!("{why}; put the model's tokenizer.json beside it");
                failed(path, &why)
            })?;
            (tokenizer, Some(inner))
        }
        (None, None) => return Err(failed(&folder.join("tokenizer.json"), &"it is missing")),
    };
    let config = json(&folder.join("tokenizer_config.json"))?;
    let named = |key: &str| match config.get(key)? {
        Value::String(text) => Some(text.clone()),
        Value::Object(token) => token.get("content")?.as_str().map(str::to_owned),
        _ => None,
    };
    let mut ends: BTreeSet<u32> = BTreeSet::new();
    for name in ["generation_config.json", "config.json"] {
        let about = json(&folder.join(name))?;
        ends.extend(about.get("eos_token_id").map(ids).unwrap_or_default());
    }
    let eos = named("eos_token");
    ends.extend(eos.as_ref().and_then(|text| tokenizer.token_to_id(text)));
    let text_of = |id: u32| tokenizer.id_to_token(id);
    let inner_ends = inner.iter().flat_map(|inner| inner.ends.iter().copied());
    ends.extend(inner_ends);
    let inner_eos = inner.as_ref().and_then(|inner| inner.ends.first().copied());
    let inner_bos = inner.as_ref().and_then(|inner| inner.bos);
    let beside = read(&folder.join("chat_template.jinja"))?;
    let beside = beside.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let (listed, tool_template) = config
        .get("chat_template")
        .map(templates)
        .unwrap_or_default();
    Ok(Found {
        template: beside
            .or(listed)
            .or(inner.as_ref().and_then(|i| i.template.clone())),
        tool_template,
        bos: named("bos_token")
            .or_else(|| inner_bos.and_then(text_of))
            .unwrap_or_default(),
        eos: eos
            .or_else(|| inner_eos.and_then(text_of))
            .unwrap_or_default(),
        ends,
        tokenizer,
    })
}

/// The usual template and the one for tools.
fn templates(value: &Value) -> (Option<String>, Option<String>) {
    let named = |name: &str| {
        let all = value.as_array()?;
        let one = all.iter().find(|one| one["name"] == name)?;
        one["template"].as_str().map(str::to_owned)
    };
    match value {
        Value::String(text) => (Some(text.clone()), None),
        _ => (named("default"), named("tool_use")),
    }
}

/// One number, or several.
fn ids(value: &Value) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(all) => all.iter().filter_map(id).collect(),
        one => id(one).into_iter().collect(),
    }
}

/// A file's JSON; null when there is no such file.
fn json(path: &Path) -> Result<Value, PipelineError> {
    let Some(bytes) = read(path)? else {
        return Ok(Value::Null);
    };
    serde_json::from_slice(&bytes).map_err(|error| failed(path, &error))
}

/// A file's bytes; none when there is no such file.
fn read(path: &Path) -> Result<Option<Vec<u8>>, PipelineError> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(path, &error)),
        Ok(about) if about.len() > FILE_BYTES_MAX => return Err(failed(path, &"it is too large")),
        Ok(_) => {}
    }
    let bytes = std::fs::read(path);
    bytes.map(Some).map_err(|error| failed(path, &error))
}

fn failed(path: &Path, why: &dyn std::fmt::Display) -> PipelineError {
    PipelineError::Failed(format!("{}: {why}", path.display()))
}
