//! What lies on this machine: the data directory, room on the disk, the keys, the program's name.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::check::Check;
use crate::config::Config;
use crate::data_dir::DataDir;
use crate::keys::{FileError, KeysError, NodeKeys};

/// Below this the ledger cannot be sure to write: its log alone may take some MiB.
const FREE_BYTES_MIN: u64 = 64 * 1024 * 1024;
/// Below this there is time to act.
const FREE_BYTES_ENOUGH: u64 = 1024 * 1024 * 1024;
/// Any bit of another user.
const OTHERS: u32 = 0o077;

/// Whether the directory is there, private and writable.
pub(super) fn directory(dir: &DataDir) -> Check {
    const NAME: &str = "data directory";
    let path = dir.path();
    let place = path.display();
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return match ancestor(path) {
                Some(above) if is_writable(&above) => {
                    Check::pass(NAME, format!("{place} will be made"))
                }
                above => {
                    let at = above.unwrap_or_else(|| path.to_owned());
                    let what = format!("{place} cannot be made: {} is closed", at.display());
                    Check::fail(NAME, what, "make it, or name another one with --data-dir")
                }
            };
        }
        Err(error) => {
            let fix = "name another one with --data-dir";
            return Check::fail(NAME, format!("{place}: {error}"), fix);
        }
    };
    if !meta.is_dir() {
        let fix = "move it away, or name a directory with --data-dir";
        return Check::fail(NAME, format!("{place} is no directory"), fix);
    }
    if !is_writable(path) {
        let fix = format!("chown it to yourself and `chmod 700 {place}`, or use --data-dir");
        return Check::fail(NAME, format!("{place} cannot be written to"), fix);
    }
    let mode = meta.permissions().mode();
    if mode & OTHERS != 0 {
        let what = format!(
            "{place} is open to other users (mode {:04o})",
            mode & 0o7777
        );
        return Check::warn(NAME, what, format!("chmod 700 {place}"));
    }
    Check::pass(NAME, place.to_string())
}

/// The nearest directory above that exists; none below something that is no directory.
fn ancestor(path: &Path) -> Option<PathBuf> {
    let above = path.ancestors().skip(1).find(|above| above.exists())?;
    above.is_dir().then(|| above.to_owned())
}

/// Tries it: permission bits say nothing about root, read-only mounts and quotas.
fn is_writable(dir: &Path) -> bool {
    let probe = dir.join(format!(".doctor-{}", std::process::id()));
    let written = std::fs::File::create_new(&probe).and_then(|mut file| file.write_all(b"x"));
    drop(std::fs::remove_file(&probe));
    written.is_ok()
}

/// Whether there is room for the ledger.
pub(super) fn disk(dir: &DataDir) -> Check {
    let place = dir.path().ancestors().find(|above| above.exists());
    let place = place.unwrap_or_else(|| dir.path());
    match rustix::fs::statvfs(place) {
        Err(error) => Check::skip("disk", format!("{}: {error}", place.display())),
        Ok(found) => room(found.f_bavail.saturating_mul(found.f_frsize), place),
    }
}

fn room(free: u64, place: &Path) -> Check {
    let what = format!("{} MiB free at {}", free / (1024 * 1024), place.display());
    let fix = "make room: a ledger that cannot write stops the node";
    match free {
        0..FREE_BYTES_MIN => Check::fail("disk", what, fix),
        FREE_BYTES_MIN..FREE_BYTES_ENOUGH => Check::warn("disk", what, fix),
        _ => Check::pass("disk", what),
    }
}

/// Whether the keys are there, private and readable.
pub(super) fn keys(config: &Config, dir: &DataDir) -> Check {
    const NAME: &str = "keys";
    let path = dir.key_file();
    let passphrase = match config.node.passphrase.read() {
        Ok(passphrase) => passphrase,
        Err(error) => return Check::fail(NAME, error.to_string(), "correct [node] passphrase"),
    };
    let passphrase = passphrase.as_ref().map(|secret| secret.expose().as_str());
    let error = match NodeKeys::load(&path, passphrase, config.payment.device) {
        Ok(keys) => return Check::pass(NAME, keys.identity.peer_id().to_base58()),
        Err(error) => error,
    };
    let shown = path.display();
    let fix = match &error {
        KeysError::File(FileError::Missing(_)) => {
            format!("node keygen --data-dir {}", dir.path().display())
        }
        KeysError::File(FileError::Mode { .. }) => format!("chmod 600 {shown}"),
        KeysError::File(FileError::Owner { us, .. }) => format!("chown {us} {shown}"),
        KeysError::File(FileError::NeedsPassphrase | FileError::Seal(_)) => {
            "set [node] passphrase to \"env:NAME\" or \"file:PATH\"".to_owned()
        }
        _ => "restore it from a copy, or `node keygen --import` your recovery words".to_owned(),
    };
    Check::fail(NAME, error.to_string(), fix)
}

/// Whether this program hides Node.js, which has the same name.
pub(super) fn name() -> Check {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let ours = std::env::current_exe().and_then(std::fs::canonicalize).ok();
    let found: Vec<PathBuf> = std::env::split_paths(&path)
        .map(|folder| folder.join("node"))
        .filter(|file| file.is_file())
        .collect();
    let is_ours = |file: &&PathBuf| {
        let real = std::fs::canonicalize(file).ok();
        real.is_some() && real == ours
    };
    match (found.first(), found.iter().find(|file| !is_ours(file))) {
        (Some(first), other) if is_ours(&first) => {
            let what = match other {
                Some(other) => format!(
                    "{} comes before {} in your PATH and hides Node.js",
                    first.display(),
                    other.display()
                ),
                None => format!(
                    "{} is in your PATH under the name of Node.js",
                    first.display()
                ),
            };
            let fix = format!(
                "mv {} {}",
                first.display(),
                first.with_file_name("souk").display()
            );
            Check::warn("program name", what, fix)
        }
        _ => Check::pass("program name", "hides no other program"),
    }
}

/// The model whose layers are contributed, where one is configured.
pub(super) fn layers(config: &Config) -> Option<Check> {
    let path = config.contribute.model.as_deref()?;
    Some(match crate::node::check_model(path) {
        Ok(said) => Check::pass("layers", format!("{}: {said}", path.display())),
        Err(why) => Check::fail(
            "layers",
            why,
            "name a directory with safetensors and config.json, or a GGUF file, in [contribute] model",
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::super::check::Verdict;
    use super::*;

    #[test]
    fn a_disk_that_is_nearly_full_fails_before_the_ledger_does() {
        let of = |free| room(free, Path::new("/x")).verdict;
        assert_eq!(of(FREE_BYTES_MIN - 1), Verdict::Fail);
        assert_eq!(of(FREE_BYTES_MIN), Verdict::Warn);
        assert_eq!(of(FREE_BYTES_ENOUGH), Verdict::Pass);
    }
}
