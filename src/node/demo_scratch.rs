//! The demo's directory, which goes away with it; what a killed demo left is swept by the next one.
//!
//! A demo holds its directory's lock, which the system frees when the process ends, however it ends.
//! So a directory whose lock is free is nobody's.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use crate::data_dir::{DataDir, DirLock};
use crate::keys::{Replace, Seed, WordCount, render_key_file, write_key_file};

/// What every demo's directory is called, with a random end.
const PREFIX: &str = "souk-demo-";
/// A demo that starts has its lock well within this.
const LOCKED_AFTER: Duration = Duration::from_secs(5);

/// A directory that goes away with the demo.
pub(super) struct Scratch {
    dir: DataDir,
    _lock: DirLock,
}

impl Scratch {
    /// A new one in the system's place for temporary files, locked.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn new() -> anyhow::Result<Self> {
        let name = format!("{PREFIX}{}", hex::encode(rand::random::<[u8; 6]>()));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path)?;
        let dir = DataDir::resolve(Some(&path))?;
        let lock = dir.lock("demo")?;
        Ok(Self { dir, _lock: lock })
    }
    /// A data directory with fresh keys.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn node(&self, name: &str) -> anyhow::Result<DataDir> {
        let dir = DataDir::resolve(Some(&self.path().join(name)))?;
        dir.create()?;
        let seed = Seed::generate(WordCount::Twelve)?;
        write_key_file(
            &dir.key_file(),
            &render_key_file(&seed, None)?,
            Replace::Never,
        )?;
        Ok(dir)
    }
    /// Where it is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(self.path()));
    }
}

/// Removes what killed demos of this user left. What cannot be looked at or removed is left alone.
pub(super) fn sweep() {
    sweep_in(&std::env::temp_dir());
}

fn sweep_in(temporary: &Path) {
    let Ok(entries) = std::fs::read_dir(temporary) else {
        return;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().and_then(|name| name.to_str());
        if name.is_some_and(|name| name.starts_with(PREFIX)) && is_stale(&path) {
            tracing::info!(dir = %path.display(), "a killed demo left this; it is removed");
            drop(std::fs::remove_dir_all(&path));
        }
    }
}

/// True for a directory of this user's own, old enough to be locked, whose lock nobody holds.
fn is_stale(path: &Path) -> bool {
    let Ok(found) = path.symlink_metadata() else {
        return false;
    };
    let is_ours = found.is_dir() && found.uid() == rustix::process::geteuid().as_raw();
    let age = found.modified().ok().and_then(|at| at.elapsed().ok());
    let lock = path.join("lock").symlink_metadata();
    let has_lock = lock.is_ok_and(|lock| lock.is_file());
    let is_free = DataDir::resolve(Some(path)).is_ok_and(|dir| dir.holder().is_none());
    is_ours && has_lock && age.is_some_and(|age| age >= LOCKED_AFTER) && is_free
}

#[cfg(test)]
mod tests {
    use super::*;

    fn age(path: &Path) {
        let dir = std::fs::File::open(path).unwrap();
        let now = dir.metadata().unwrap().modified().unwrap();
        dir.set_modified(now - LOCKED_AFTER * 2).unwrap();
    }

    #[test]
    fn only_what_nobody_holds_is_swept() {
        let temporary = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let path = temporary.path().join(name);
            let dir = DataDir::resolve(Some(&path)).unwrap();
            let lock = dir.lock("demo").unwrap();
            std::fs::write(path.join("ledger.db"), b"x").unwrap();
            age(&path);
            (path, lock)
        };
        let (killed, lock) = make("souk-demo-killed");
        drop(lock);
        let (running, _held) = make("souk-demo-running");
        let (other, lock) = make("souk-other");
        drop(lock);
        let (fresh, lock) = make("souk-demo-fresh");
        drop(lock);
        std::fs::write(fresh.join("now"), b"x").unwrap();
        let bare = temporary.path().join("souk-demo-without-lock");
        std::fs::create_dir(&bare).unwrap();
        age(&bare);
        age(&killed);
        sweep_in(temporary.path());
        assert!(!killed.exists());
        for kept in [running, other, fresh, bare] {
            assert!(kept.exists(), "{}", kept.display());
        }
    }
}
