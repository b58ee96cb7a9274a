//! The plugin that makes the market a provider of OpenClaw's own: a folder that OpenClaw links.

use std::path::Path;

use crate::cli::{CliError, FailureKind};

/// The folder's files.
const FILES: [(&str, &str); 4] = [
    ("package.json", include_str!("plugin/package.json")),
    (
        "openclaw.plugin.json",
        include_str!("plugin/openclaw.plugin.json"),
    ),
    ("index.js", include_str!("plugin/index.js")),
    ("README.md", include_str!("plugin/README.md")),
];

/// Writes the folder, over an older version of it but over nothing else.
///
/// # Errors
/// When the folder holds something else, or cannot be written.
pub(super) fn write(folder: &Path) -> anyhow::Result<()> {
    let failed = |error: std::io::Error| {
        let message = format!("{} cannot be written: {error}", folder.display());
        CliError::new(FailureKind::Failure, message).hint("name a folder of your own")
    };
    std::fs::create_dir_all(folder).map_err(failed)?;
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if !FILES.iter().any(|(ours, _)| name == *ours) {
            let message = format!("{} holds other files", folder.display());
            let hint = "name a new or empty folder";
            return Err(CliError::new(FailureKind::Usage, message).hint(hint).into());
        }
    }
    for (name, text) in FILES {
        std::fs::write(folder.join(name), text).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_others_is_left_alone_and_an_older_plugin_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("new").join("plugin");
        write(&folder).unwrap();
        std::fs::write(folder.join("index.js"), "old").unwrap();
        write(&folder).unwrap();
        let text = std::fs::read_to_string(folder.join("index.js")).unwrap();
        assert!(text.contains("registerProvider"));
        std::fs::write(folder.join("mine.txt"), "mine").unwrap();
        assert!(write(&folder).is_err());
        assert!(folder.join("mine.txt").exists());
    }

    #[test]
    fn the_manifest_is_of_this_version_and_names_the_provider() {
        let json = |at: usize| -> serde_json::Value { serde_json::from_str(FILES[at].1).unwrap() };
        assert_eq!(json(0)["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(json(1)["providers"][0], super::super::patch::PROVIDER);
    }
}
