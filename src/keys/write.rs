//! Puts a key file on disk: whole or not at all, mode 0600, never over another by accident.
//!
//! The bytes go to a temporary file in the same directory, are flushed, and get their name in one
//! step (a hard link, which fails when the name is taken; or a rename when replacing was asked
//! for). The directory is flushed last, so after a crash there is the old file, the new one, or
//! none, and never half of one. A replaced file is kept beside the new one: it may hold money.
//! Callers: `cli::keygen`.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rand::Rng;

/// Only the owner reads and writes a key file.
const FILE_MODE: u32 = 0o600;
/// Only the owner enters the data directory.
const DIR_MODE: u32 = 0o700;
/// Kept copies of replaced key files are numbered up to here; then someone must clean up.
const KEPT_MAX: u32 = 99;

/// Whether an existing key file may be replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replace {
    /// Refuse when the name is taken.
    Never,
    /// Replace it (`--force`); the old file is kept under another name.
    Keep,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Where a replaced file is now.
    pub kept: Option<PathBuf>,
}

/// Why a key file was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The name is taken.
    #[error(
        "{0} exists; keys are never overwritten. Choose another place with --out, or replace it with --force (the old file is kept beside it)"
    )]
    Exists(PathBuf),
    /// The path names no file.
    #[error("{0} is not a file name; give --out a path like ./key.json")]
    NotAFile(PathBuf),
    /// Too many kept copies.
    #[error("{0} has {KEPT_MAX} kept copies; move them away first")]
    TooManyKept(PathBuf),
    /// The file system said no.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> WriteError {
    let path = path.to_owned();
    move |source| WriteError::Io { what, path, source }
}

/// Makes the data directory with mode 0700, or narrows ours to it.
///
/// # Errors
/// When it cannot be made, or is ours and cannot be narrowed.
pub fn ensure_private_dir(dir: &Path) -> Result<(), WriteError> {
    make_dirs(dir)?;
    let meta = fs::metadata(dir).map_err(io_error("look at", dir))?;
    let ours = meta.uid() == rustix::process::geteuid().as_raw();
    if ours && meta.mode() & 0o077 != 0 {
        fs::set_permissions(dir, Permissions::from_mode(DIR_MODE))
            .map_err(io_error("set mode 0700 on", dir))?;
    }
    Ok(())
}

fn make_dirs(dir: &Path) -> Result<(), WriteError> {
    DirBuilder::new()
        .recursive(true)
        .mode(DIR_MODE)
        .create(dir)
        .map_err(io_error("make the directory", dir))
}

/// Writes a key file. Missing directories are made with mode 0700; existing ones stay as they are.
///
/// # Errors
/// When the name is taken and `replace` is [`Replace::Never`], or the file system refuses.
pub fn write_key_file(path: &Path, bytes: &[u8], replace: Replace) -> Result<Written, WriteError> {
    let name = path
        .file_name()
        .ok_or_else(|| WriteError::NotAFile(path.to_owned()))?;
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    make_dirs(dir)?;
    if path.is_dir() {
        return Err(WriteError::NotAFile(path.to_owned()));
    }
    let mut random = [0u8; 8];
    rand::rng().fill_bytes(&mut random);
    let temporary = dir.join(format!(
        ".{}.{}.tmp",
        name.to_string_lossy(),
        hex::encode(random)
    ));
    let result =
        write_temporary(&temporary, bytes).and_then(|()| give_name(&temporary, path, replace));
    // Gone already after a rename; otherwise the name must not stay behind, whatever happened.
    let _ = fs::remove_file(&temporary);
    let written = result?;
    flush_dir(dir)?;
    Ok(written)
}

fn write_temporary(path: &Path, bytes: &[u8]) -> Result<(), WriteError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .open(path)
        .map_err(io_error("create", path))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(io_error("write", path))
}

fn give_name(temporary: &Path, path: &Path, replace: Replace) -> Result<Written, WriteError> {
    match fs::hard_link(temporary, path) {
        Ok(()) => Ok(Written { kept: None }),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => match replace {
            Replace::Never => Err(WriteError::Exists(path.to_owned())),
            Replace::Keep => {
                let kept = keep_old(path)?;
                fs::rename(temporary, path).map_err(io_error("replace", path))?;
                Ok(Written { kept: Some(kept) })
            }
        },
        // No hard links here (FAT, some network mounts): look first, then rename.
        Err(_) if fs::symlink_metadata(path).is_err() => {
            fs::rename(temporary, path).map_err(io_error("name", path))?;
            Ok(Written { kept: None })
        }
        Err(_) if replace == Replace::Never => Err(WriteError::Exists(path.to_owned())),
        Err(_) => {
            let kept = keep_old(path)?;
            fs::rename(temporary, path).map_err(io_error("replace", path))?;
            Ok(Written { kept: Some(kept) })
        }
    }
}

/// Gives the old file a second name (or, without hard links, another one).
fn keep_old(path: &Path) -> Result<PathBuf, WriteError> {
    for number in 1..=KEPT_MAX {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".old-{number}"));
        let kept = PathBuf::from(name);
        match fs::hard_link(path, &kept) {
            Ok(()) => return Ok(kept),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(_) if fs::symlink_metadata(&kept).is_ok() => {}
            Err(_) => {
                fs::rename(path, &kept).map_err(io_error("keep a copy of", path))?;
                return Ok(kept);
            }
        }
    }
    Err(WriteError::TooManyKept(path.to_owned()))
}

fn flush_dir(dir: &Path) -> Result<(), WriteError> {
    File::open(dir)
        .and_then(|handle| handle.sync_all())
        .map_err(io_error("flush", dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn files_are_0600_and_new_directories_0700() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("a/b/key.json");
        write_key_file(&path, b"x", Replace::Never).unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        assert_eq!(mode(&home.path().join("a")), 0o700);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn an_existing_file_stays_untouched_without_force() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("key.json");
        write_key_file(&path, b"first", Replace::Never).unwrap();
        assert!(matches!(
            write_key_file(&path, b"second", Replace::Never),
            Err(WriteError::Exists(_))
        ));
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_dangling_link_under_the_name_counts_as_taken() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("key.json");
        std::os::unix::fs::symlink(home.path().join("elsewhere"), &path).unwrap();
        assert!(matches!(
            write_key_file(&path, b"x", Replace::Never),
            Err(WriteError::Exists(_))
        ));
        assert!(!home.path().join("elsewhere").exists());
    }

    #[test]
    fn force_replaces_and_keeps_every_old_file() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("key.json");
        write_key_file(&path, b"1", Replace::Never).unwrap();
        let two = write_key_file(&path, b"2", Replace::Keep).unwrap();
        let three = write_key_file(&path, b"3", Replace::Keep).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"3");
        assert_eq!(fs::read(two.kept.unwrap()).unwrap(), b"1");
        let kept = three.kept.unwrap();
        assert_eq!(fs::read(&kept).unwrap(), b"2");
        assert_eq!(mode(&kept), 0o600);
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn our_own_wide_directory_is_narrowed() {
        let home = tempfile::tempdir().unwrap();
        fs::set_permissions(home.path(), Permissions::from_mode(0o755)).unwrap();
        ensure_private_dir(home.path()).unwrap();
        assert_eq!(mode(home.path()), 0o700);
    }

    #[test]
    fn a_directory_is_no_key_file() {
        let home = tempfile::tempdir().unwrap();
        assert!(matches!(
            write_key_file(home.path(), b"x", Replace::Keep),
            Err(WriteError::NotAFile(_))
        ));
    }

    #[test]
    fn of_many_writers_at_once_exactly_one_wins() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("key.json");
        let wins = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..8u8)
                .map(|n| {
                    let path = &path;
                    scope.spawn(move || write_key_file(path, &[n; 512], Replace::Never).is_ok())
                })
                .collect();
            writers
                .into_iter()
                .map(|w| w.join().unwrap())
                .filter(|won| *won)
                .count()
        });
        assert_eq!(wins, 1);
        let bytes = fs::read(&path).unwrap();
        assert!(bytes.len() == 512 && bytes.iter().all(|b| *b == bytes[0]));
    }
}
