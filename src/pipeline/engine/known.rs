//! Models whose manifest was made before: a root takes reading every byte, which is minutes for a large
//! model, and a node starts with the same one again and again.
//!
//! Remembered by path, and for each file its size and time of change. Whoever alters a file and sets
//! its time back fools its own node, whose rows then fail the checks of others.

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use super::manifest::{self, VERSION};
use super::source::io;
use super::{EngineError, ModelConfig, shape};
use crate::types::Hash32;

/// Models that are remembered; the oldest goes.
const MODELS_MAX: usize = 32;

/// One model's files as they were when its root was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Print {
    /// How roots were made then.
    version: String,
    path: PathBuf,
    /// Name, bytes, nanoseconds since 1970.
    files: Vec<(PathBuf, u64, u128)>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Known {
    print: Print,
    root: Hash32,
}

/// As [`manifest::root`], from the file `memory` where it is known there; what is made is written there.
///
/// # Errors
/// As [`manifest::root`]. A memory that cannot be read or written costs time only.
pub fn root(
    path: &Path,
    memory: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(ModelConfig, Hash32), EngineError> {
    let print = print(path)?;
    let mut all = read(memory);
    if let Some(known) = all.iter().find(|known| known.print == print) {
        return Ok((shape(path)?, known.root));
    }
    let (config, root) = manifest::root(path, progress)?;
    all.retain(|known| known.print.path != print.path);
    all.insert(0, Known { print, root });
    all.truncate(MODELS_MAX);
    if let Err(error) = write(memory, &all) {
        tracing::warn!(%error, path = %memory.display(), "the model's hash is made again next time");
    }
    Ok((config, root))
}

/// The files that a model's root is made of.
fn print(path: &Path) -> Result<Print, EngineError> {
    let whole = path.canonicalize().map_err(io(path))?;
    let mut names = vec![];
    if whole.is_dir() {
        for entry in std::fs::read_dir(&whole).map_err(io(&whole))? {
            let file = entry.map_err(io(&whole))?.path();
            if file
                .extension()
                .is_some_and(|end| end == "safetensors" || end == "json")
            {
                names.push(file);
            }
        }
        names.sort();
    } else {
        names.push(whole.clone());
    }
    let mut files = vec![];
    for name in names {
        let about = std::fs::metadata(&name).map_err(io(&name))?;
        let changed = about.modified().map_err(io(&name))?;
        let since = changed.duration_since(UNIX_EPOCH).unwrap_or_default();
        files.push((name, about.len(), since.as_nanos()));
    }
    Ok(Print {
        version: VERSION.to_owned(),
        path: whole,
        files,
    })
}

fn read(memory: &Path) -> Vec<Known> {
    let text = std::fs::read(memory).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// Whole or not at all.
fn write(memory: &Path, all: &[Known]) -> std::io::Result<()> {
    let fresh = memory.with_extension("new");
    std::fs::write(&fresh, serde_json::to_vec(all)?)?;
    std::fs::rename(fresh, memory)
}

#[cfg(test)]
mod tests {
    use super::super::tests::models::{case, directory};
    use super::*;

    #[test]
    fn a_model_is_read_once_and_again_when_it_changes() {
        let files = directory(&case("llama"));
        let folder = tempfile::tempdir().unwrap();
        let memory = folder.path().join("models.json");
        let root_of = || {
            let mut was_read = false;
            let found = root(files.path(), &memory, &mut |_, _| was_read = true).unwrap();
            (found.1, was_read)
        };
        let (first, was_read) = root_of();
        assert!(was_read);
        assert_eq!(
            first,
            manifest::root(files.path(), &mut |_, _| {}).unwrap().1
        );
        assert_eq!(root_of(), (first, false));

        let config = files.path().join("config.json");
        let text = std::fs::read_to_string(&config).unwrap();
        let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
        value["rms_norm_eps"] = 0.125.into();
        std::fs::write(&config, value.to_string()).unwrap();
        let (changed, was_read) = root_of();
        assert!(was_read && changed != first);
        assert_eq!(root_of(), (changed, false));

        std::fs::write(&memory, "not JSON").unwrap();
        assert_eq!(root_of(), (changed, true));
        assert_eq!(root_of(), (changed, false));
    }
}
