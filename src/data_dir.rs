//! The data directory: where keys, ledger and caches lie, who may use it now, and how other
//! commands find the running node.
//!
//! Invariants: at most one process holds the lock (an OS lock, so a killed holder leaves none);
//! the lock file names the holder's pid and role; `run.json` is written atomically with mode 0600
//! and counts only while the lock is held. Called by `cli` and `node`.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::types::Secret;

/// A look at the lock by `node status` must not make a starting node fail: it lasts microseconds.
const LOCK_TRIES: u32 = 5;
/// Pause between two tries.
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// Both files are one short JSON object.
const STATE_FILE_BYTES_MAX: u64 = 16 * 1024;
/// Only the owner reads or writes.
const FILE_MODE: u32 = 0o600;
/// Only the owner enters.
const DIR_MODE: u32 = 0o700;

/// Why the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// There is no home directory to put it in.
    #[error("there is no home directory; name a data directory with --data-dir")]
    NoHome,
    /// Another process holds it.
    #[error("{} is in use by {holder}; stop it, or use another --data-dir", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// Who holds it.
        holder: Holder,
    },
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Who holds a data directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Holder {
    /// Its process; 0 when it has not said yet.
    pub pid: u32,
    /// What it does.
    pub role: String,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.pid == 0 {
            f.write_str("another process")
        } else {
            write!(f, "`node {}` (pid {})", self.role, self.pid)
        }
    }
}

/// What a running node tells other commands of the same user: the text of `run.json`.
#[derive(Clone, Serialize, Deserialize)]
pub struct RunInfo {
    /// The process.
    pub pid: u32,
    /// `buy`, `sell`, `run`, `demo` or `bootstrap`.
    pub role: String,
    /// Where its HTTP interface is.
    pub url: String,
    /// What `/api` calls that change anything must carry.
    token: String,
}

impl std::fmt::Debug for RunInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RunInfo({} {} {})", self.role, self.pid, self.url)
    }
}

impl RunInfo {
    /// Describes this process, with a fresh random token.
    #[must_use]
    pub fn new(role: &str, url: &str) -> Self {
        Self {
            pid: std::process::id(),
            role: role.to_owned(),
            url: url.to_owned(),
            token: hex::encode(rand::random::<[u8; 32]>()),
        }
    }
    /// The token.
    #[must_use]
    pub fn token(&self) -> Secret<String> {
        Secret::new(self.token.clone())
    }
}

/// A data directory, not necessarily there yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataDir {
    root: PathBuf,
}

impl DataDir {
    /// The given directory, or the usual one: `$XDG_DATA_HOME/souk`.
    ///
    /// # Errors
    /// [`DataDirError::NoHome`] when none is given and there is no home directory.
    pub fn resolve(given: Option<&Path>) -> Result<Self, DataDirError> {
        let root = match given {
            Some(path) => path.to_owned(),
            None => directories::BaseDirs::new()
                .ok_or(DataDirError::NoHome)?
                .data_dir()
                .join("souk"),
        };
        Ok(Self { root })
    }
    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.root
    }
    /// The node's keys.
    #[must_use]
    pub fn key_file(&self) -> PathBuf {
        self.root.join("key.json")
    }
    /// The durable ledger.
    #[must_use]
    pub fn ledger_db(&self) -> PathBuf {
        self.root.join("ledger.db")
    }
    /// Hashes of models that were read before; making them again takes minutes.
    #[must_use]
    pub fn models_json(&self) -> PathBuf {
        self.root.join("models.json")
    }
    /// What can be rebuilt: peers, offers, scores.
    #[must_use]
    pub fn cache_db(&self) -> PathBuf {
        self.root.join("cache.db")
    }
    /// How other commands find the running node.
    #[must_use]
    pub fn run_file(&self) -> PathBuf {
        self.root.join("run.json")
    }
    fn lock_file(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// Makes the directory, mode 0700, if it is not there.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn create(&self) -> Result<(), DataDirError> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(DIR_MODE)
            .create(&self.root)
            .map_err(|source| io_error(&self.root, source))
    }

    /// Takes the directory for this process until the returned lock is dropped.
    ///
    /// A `run.json` that a killed process left behind is removed.
    ///
    /// # Errors
    /// [`DataDirError::InUse`] names the holder.
    pub fn lock(&self, role: &str) -> Result<DirLock, DataDirError> {
        self.create()?;
        let path = self.lock_file();
        let failed = |source| io_error(&path, source);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(FILE_MODE)
            .open(&path)
            .map_err(failed)?;
        self.acquire(&file)?;
        let holder = Holder {
            pid: std::process::id(),
            role: role.to_owned(),
        };
        let text = serde_json::to_vec(&holder).unwrap_or_default();
        file.set_len(0).map_err(failed)?;
        file.rewind().map_err(failed)?;
        file.write_all(&text).map_err(failed)?;
        remove_if_there(&self.run_file())?;
        Ok(DirLock {
            dir: self.clone(),
            _file: file,
        })
    }

    fn acquire(&self, file: &File) -> Result<(), DataDirError> {
        for last in (0..LOCK_TRIES).rev() {
            match file.try_lock() {
                Ok(()) => return Ok(()),
                Err(TryLockError::Error(source)) => {
                    return Err(io_error(&self.lock_file(), source));
                }
                Err(TryLockError::WouldBlock) if last > 0 => std::thread::sleep(LOCK_PAUSE),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        Err(DataDirError::InUse {
            dir: self.root.clone(),
            holder: read_json(&self.lock_file()).unwrap_or_default(),
        })
    }

    /// Who holds the directory now, if anybody does.
    #[must_use]
    pub fn holder(&self) -> Option<Holder> {
        let path = self.lock_file();
        let file = File::open(&path).ok()?;
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => Some(read_json(&path).unwrap_or_default()),
            // Free: the lock just taken goes with the file handle.
            _ => None,
        }
    }

    /// The running node's `run.json`; `None` when nothing runs or it is not ready yet. A file that
    /// a killed process left behind does not count.
    #[must_use]
    pub fn running(&self) -> Option<RunInfo> {
        let holder = self.holder()?;
        let info: RunInfo = read_json(&self.run_file())?;
        (holder.pid == info.pid).then_some(info)
    }
}

/// Holds a data directory; dropping it removes `run.json` and lets the directory go.
#[derive(Debug)]
pub struct DirLock {
    dir: DataDir,
    _file: File,
}

impl DirLock {
    /// The directory that is held.
    #[must_use]
    pub const fn dir(&self) -> &DataDir {
        &self.dir
    }
    /// Writes `run.json`: first beside it with mode 0600, then renamed over it.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn publish(&self, info: &RunInfo) -> Result<(), DataDirError> {
        let path = self.dir.run_file();
        let beside = path.with_extension("json.new");
        let failed = |source| io_error(&beside, source);
        remove_if_there(&beside)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(FILE_MODE)
            .open(&beside)
            .map_err(failed)?;
        let mode = std::fs::Permissions::from_mode(FILE_MODE);
        file.set_permissions(mode).map_err(failed)?;
        let text = serde_json::to_vec(info).unwrap_or_default();
        file.write_all(&text).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        std::fs::rename(&beside, &path).map_err(|source| io_error(&path, source))
    }
}

impl Drop for DirLock {
    fn drop(&mut self) {
        drop(remove_if_there(&self.dir.run_file()));
    }
}

fn remove_if_there(path: &Path) -> Result<(), DataDirError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io_error(path, error)),
        _ => Ok(()),
    }
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Option<T> {
    let mut text = Vec::new();
    let file = File::open(path).ok()?;
    file.take(STATE_FILE_BYTES_MAX)
        .read_to_end(&mut text)
        .ok()?;
    serde_json::from_slice(&text).ok()
}

fn io_error(path: &Path, source: std::io::Error) -> DataDirError {
    DataDirError::Io {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> (tempfile::TempDir, DataDir) {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::resolve(Some(&temp.path().join("data"))).unwrap();
        (temp, dir)
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_second_process_is_told_the_holders_pid_and_role() {
        let (_temp, dir) = fresh();
        assert_eq!(dir.holder(), None);
        let lock = dir.lock("buy").unwrap();
        let error = dir.lock("sell").unwrap_err().to_string();
        let pid = std::process::id();
        assert!(
            error.contains(&format!("`node buy` (pid {pid})")),
            "{error}"
        );
        assert_eq!(dir.holder().unwrap().role, "buy");
        drop(lock);
        assert_eq!(dir.holder(), None);
        dir.lock("sell").unwrap();
    }

    #[test]
    fn run_json_is_private_and_gone_when_the_node_ends() {
        let (_temp, dir) = fresh();
        let lock = dir.lock("buy").unwrap();
        assert!(dir.running().is_none());
        let info = RunInfo::new("buy", "http://127.0.0.1:5005");
        lock.publish(&info).unwrap();
        lock.publish(&info).unwrap();
        assert_eq!(mode(&dir.run_file()), 0o600);
        assert_eq!(mode(dir.path()), 0o700);
        let seen = dir.running().unwrap();
        assert_eq!(seen.url, info.url);
        assert_eq!(seen.token(), info.token());
        assert_eq!(seen.token().expose().len(), 64);
        assert!(!format!("{seen:?}").contains(seen.token().expose()));
        drop(lock);
        assert!(dir.running().is_none() && !dir.run_file().exists());
    }

    #[test]
    fn a_run_json_left_by_a_killed_process_does_not_count() {
        let (_temp, dir) = fresh();
        dir.create().unwrap();
        let left = serde_json::to_vec(&RunInfo::new("buy", "http://127.0.0.1:1")).unwrap();
        std::fs::write(dir.run_file(), left).unwrap();
        assert!(dir.running().is_none());
        let _lock = dir.lock("sell").unwrap();
        assert!(dir.running().is_none());
        assert!(!dir.run_file().exists());
    }

    #[test]
    fn torn_files_are_no_answer_and_no_crash() {
        let (_temp, dir) = fresh();
        let _lock = dir.lock("buy").unwrap();
        std::fs::write(dir.run_file(), "{\"pid\":").unwrap();
        assert!(dir.running().is_none());
    }
}
