//! The key file: JSON with version, kind, the secret (plain or sealed) and the public ids.
//!
//! Invariants: read only when nobody else can read or own it; the ids written beside the secret
//! must match what it derives, so a damaged or edited file is refused with the reason; errors
//! never repeat the file's contents. Callers: [`super::NodeKeys::load`], `cli::keygen`, `doctor`.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::seal::{self, SealError, Sealed};
use super::{PaymentKey, Seed, SeedError, to_checksum};
use crate::types::PeerId;

/// The only version there is.
const VERSION: u32 = 1;
/// No key file comes near this; a bigger one is something else.
const FILE_BYTES_MAX: u64 = 65_536;
/// Room for any plain key file, so that rendering does not leave copies behind by growing.
const RENDER_BYTES: usize = 4_096;
/// Keeps what is authenticated beside a sealed secret apart from every other use.
const SEAL_DOMAIN: &str = "souk/key-file/v1";

/// Why a key file was refused.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// There is none.
    #[error("no keys at {0}; make some with `node keygen`")]
    Missing(PathBuf),
    /// Others can read or write it.
    #[error("{path} is open to other users (mode {mode:04o}); close it with `chmod 600 {path}`")]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Someone else owns it.
    #[error(
        "{path} belongs to user id {owner}, not to yours ({us}); fix it with `chown {us} {path}` or run as its owner"
    )]
    Owner {
        /// The file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Our effective user id.
        us: u32,
    },
    /// Not a regular file.
    #[error("{0} is not a regular file; point to the key file itself")]
    NotAFile(PathBuf),
    /// The file system said no.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not a key file, or a damaged one.
    #[error(
        "the key file is corrupt: {0}; restore it from a copy, or from your recovery words with `node keygen --import`"
    )]
    Corrupt(String),
    /// Written by a newer program.
    #[error(
        "the key file has version {0}, this program reads version {VERSION}; update the program"
    )]
    Version(u64),
    /// Sealed, and no passphrase was given.
    #[error(
        "the key file is sealed; give its passphrase with --passphrase-file FILE or SOUK_PASSPHRASE"
    )]
    NeedsPassphrase,
    /// Sealed with something else.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The seed inside.
    #[error("the key file is corrupt: {0}")]
    Seed(#[from] SeedError),
}

/// As it lies on disk. Plain secrets are wiped on drop.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OnDisk {
    version: u32,
    kind: Kind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    words: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seed: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sealed: Option<Sealed>,
    peer_id: String,
    did: String,
    evm_address: String,
}

impl Drop for OnDisk {
    fn drop(&mut self) {
        self.words.zeroize();
        self.seed.zeroize();
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Words,
    Raw,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Words => "words",
            Self::Raw => "raw",
        }
    }
}

/// Read before anything else, so that a newer file is named as such and not called corrupt.
#[derive(Deserialize)]
struct VersionOnly {
    version: u64,
}

fn around(kind: Kind, peer_id: &str, evm_address: &str) -> Vec<u8> {
    format!("{SEAL_DOMAIN}\0{}\0{peer_id}\0{evm_address}", kind.as_str()).into_bytes()
}

/// The bytes of a key file; sealed when there is a passphrase.
///
/// # Errors
/// When sealing fails (no randomness, no memory).
pub fn render_key_file(
    seed: &Seed,
    passphrase: Option<&str>,
) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let identity = seed.identity()?;
    let (kind, secret) = match seed {
        Seed::Words { phrase, .. } => (Kind::Words, Zeroizing::new(phrase.expose().clone())),
        Seed::Raw(bytes) => (Kind::Raw, Zeroizing::new(hex::encode(bytes.expose()))),
    };
    let mut file = OnDisk {
        version: VERSION,
        kind,
        words: None,
        seed: None,
        sealed: None,
        peer_id: identity.peer_id().to_string(),
        did: identity.did(),
        evm_address: to_checksum(&seed.payment()?.address()),
    };
    if let Some(passphrase) = passphrase {
        let around = around(kind, &file.peer_id, &file.evm_address);
        file.sealed = Some(seal::seal(secret.as_bytes(), passphrase, &around)?);
    } else if kind == Kind::Words {
        file.words = Some(secret.to_string());
    } else {
        file.seed = Some(secret.to_string());
    }
    let mut out = Zeroizing::new(Vec::with_capacity(RENDER_BYTES));
    serde_json::to_writer_pretty(&mut *out, &file).map_err(|e| corrupt(&e))?;
    out.push(b'\n');
    Ok(out)
}

/// What serde found wrong, by place only: its own text may repeat values.
fn corrupt(error: &serde_json::Error) -> FileError {
    let what = match error.classify() {
        serde_json::error::Category::Eof => "it ends too early",
        serde_json::error::Category::Data => "a field is missing, unknown or of the wrong type",
        _ => "it is not JSON",
    };
    FileError::Corrupt(format!(
        "{what} (line {}, column {})",
        error.line(),
        error.column()
    ))
}

/// Reads the bytes of a key file.
///
/// # Errors
/// When they are no key file, damaged, or sealed with another passphrase.
pub fn parse_key_file(bytes: &[u8], passphrase: Option<&str>) -> Result<Seed, FileError> {
    let VersionOnly { version } = serde_json::from_slice(bytes).map_err(|e| corrupt(&e))?;
    if version != u64::from(VERSION) {
        return Err(FileError::Version(version));
    }
    let file: OnDisk = serde_json::from_slice(bytes).map_err(|e| corrupt(&e))?;
    let secret = secret_of(&file, passphrase)?;
    let seed = match file.kind {
        Kind::Words => Seed::from_words(&secret)?,
        Kind::Raw => {
            let mut raw = [0u8; 32];
            hex::decode_to_slice(secret.as_bytes(), &mut raw)
                .map_err(|_| FileError::Corrupt("`seed` is not 32 bytes of hex".to_owned()))?;
            let seed = Seed::from_raw(raw);
            raw.zeroize();
            seed
        }
    };
    check_ids(&file, &seed)?;
    Ok(seed)
}

fn secret_of(file: &OnDisk, passphrase: Option<&str>) -> Result<Zeroizing<String>, FileError> {
    match (file.kind, &file.words, &file.seed, &file.sealed) {
        (Kind::Words, Some(plain), None, None) | (Kind::Raw, None, Some(plain), None) => {
            Ok(Zeroizing::new(plain.clone()))
        }
        (kind, None, None, Some(sealed)) => {
            let passphrase = passphrase.ok_or(FileError::NeedsPassphrase)?;
            let around = around(kind, &file.peer_id, &file.evm_address);
            let plain = seal::open(sealed, passphrase, &around)?;
            std::str::from_utf8(&plain)
                .map(|text| Zeroizing::new(text.to_owned()))
                .map_err(|_| FileError::Corrupt("the sealed part is not text".to_owned()))
        }
        _ => Err(FileError::Corrupt(
            "it needs exactly one of `words`, `seed` and `sealed`, fitting its kind".to_owned(),
        )),
    }
}

fn check_ids(file: &OnDisk, seed: &Seed) -> Result<(), FileError> {
    let identity = seed.identity()?;
    let peer: Option<PeerId> = file.peer_id.parse().ok();
    let wrong = if peer != Some(identity.peer_id()) {
        "`peer_id`"
    } else if file.did != identity.did() {
        "`did`"
    } else if file.evm_address != to_checksum(&seed.payment()?.address()) {
        "`evm_address`"
    } else {
        return Ok(());
    };
    Err(FileError::Corrupt(format!(
        "{wrong} does not match the secret"
    )))
}

/// Reads a key file from disk after checking who owns it and who may read it.
///
/// # Errors
/// When it is missing, not private, not ours, or refused by [`parse_key_file`].
pub fn load_seed(path: &Path, passphrase: Option<&str>) -> Result<Seed, FileError> {
    parse_key_file(&read_private(path)?, passphrase)
}

/// Reads the payment key out of a file of its own: 32 bytes of hex, as other wallets export it, or
/// a key file of ours.
///
/// # Errors
/// As [`load_seed`], or when the file holds neither.
pub fn load_payment_key(path: &Path, passphrase: Option<&str>) -> Result<PaymentKey, FileError> {
    let bytes = read_private(path)?;
    let text = std::str::from_utf8(&bytes).unwrap_or_default().trim();
    if text.starts_with('{') {
        return Ok(parse_key_file(&bytes, passphrase)?.payment()?);
    }
    let mut raw = Zeroizing::new([0u8; 32]);
    let bare = text.strip_prefix("0x").unwrap_or(text);
    hex::decode_to_slice(bare.as_bytes(), raw.as_mut_slice()).map_err(|_| {
        let what = "it is neither 32 bytes of hex nor a key file of ours";
        FileError::Corrupt(what.to_owned())
    })?;
    Ok(PaymentKey::from_bytes(&raw)?)
}

/// The bytes of a file that only we can read.
fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let io = |source: io::Error| FileError::Io {
        path: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(FileError::Missing(path.to_owned()));
        }
        other => other.map_err(io)?,
    };
    // On the open handle, so that the file checked is the file read.
    let meta = file.metadata().map_err(io)?;
    check_private(path, meta.is_file(), meta.mode(), meta.uid())?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(RENDER_BYTES));
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(io)?;
    if u64::try_from(bytes.len()).is_ok_and(|n| n > FILE_BYTES_MAX) {
        return Err(FileError::Corrupt("it is larger than 64 KiB".to_owned()));
    }
    Ok(bytes)
}

fn check_private(path: &Path, regular: bool, mode: u32, owner: u32) -> Result<(), FileError> {
    let us = rustix::process::geteuid().as_raw();
    if !regular {
        return Err(FileError::NotAFile(path.to_owned()));
    }
    if owner != us {
        return Err(FileError::Owner {
            path: path.to_owned(),
            owner,
            us,
        });
    }
    if mode & 0o077 != 0 {
        return Err(FileError::Mode {
            path: path.to_owned(),
            mode: mode & 0o7777,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::keys::{Replace, write_key_file};

    const ABANDON: &str = "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about";

    fn peer(seed: &Seed) -> PeerId {
        seed.identity().unwrap().peer_id()
    }

    #[test]
    fn words_and_raw_seeds_come_back_from_disk() {
        let home = tempfile::tempdir().unwrap();
        for (name, seed) in [
            ("words", Seed::from_words(ABANDON).unwrap()),
            ("raw", Seed::from_raw([4; 32])),
        ] {
            let path = home.path().join(name);
            let bytes = render_key_file(&seed, None).unwrap();
            write_key_file(&path, &bytes, Replace::Never).unwrap();
            let back = load_seed(&path, None).unwrap();
            assert_eq!(peer(&back), peer(&seed));
            assert_eq!(back.words(), seed.words());
        }
    }

    #[test]
    fn a_sealed_file_opens_with_its_passphrase_and_hides_the_words() {
        let seed = Seed::from_words(ABANDON).unwrap();
        let bytes = render_key_file(&seed, Some("hunter2")).unwrap();
        let text = std::str::from_utf8(&bytes).unwrap();
        assert!(!text.contains("abandon") && text.contains("argon2id"));
        assert_eq!(
            peer(&parse_key_file(&bytes, Some("hunter2")).unwrap()),
            peer(&seed)
        );
        assert!(matches!(
            parse_key_file(&bytes, None),
            Err(FileError::NeedsPassphrase)
        ));
        assert!(matches!(
            parse_key_file(&bytes, Some("hunter3")),
            Err(FileError::Seal(SealError::Refused))
        ));
        let swapped = text.replace("\"kind\": \"words\"", "\"kind\": \"raw\"");
        assert!(matches!(
            parse_key_file(swapped.as_bytes(), Some("hunter2")),
            Err(FileError::Seal(SealError::Refused))
        ));
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_with_the_fix() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("key.json");
        let bytes = render_key_file(&Seed::from_raw([4; 32]), None).unwrap();
        write_key_file(&path, &bytes, Replace::Never).unwrap();
        for mode in [0o640, 0o604, 0o660, 0o601] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let error = load_seed(&path, None).unwrap_err();
            assert!(matches!(error, FileError::Mode { .. }));
            assert!(error.to_string().contains("chmod 600"));
        }
        fs::set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
        assert!(load_seed(&path, None).is_ok());
    }

    #[test]
    fn a_file_of_another_user_is_refused_with_the_fix() {
        let us = rustix::process::geteuid().as_raw();
        let error = check_private(Path::new("k"), true, 0o600, us + 1).unwrap_err();
        assert!(matches!(error, FileError::Owner { .. }));
        assert!(error.to_string().contains("chown"));
    }

    #[test]
    fn a_missing_file_says_how_to_make_one_and_a_directory_is_no_file() {
        let home = tempfile::tempdir().unwrap();
        let error = load_seed(&home.path().join("none"), None).unwrap_err();
        assert!(error.to_string().contains("node keygen"));
        assert!(matches!(
            load_seed(home.path(), None),
            Err(FileError::NotAFile(_))
        ));
    }

    #[test]
    fn a_damaged_file_is_refused_with_the_reason_and_without_its_secret() {
        let good = render_key_file(&Seed::from_words(ABANDON).unwrap(), None).unwrap();
        let text = std::str::from_utf8(&good).unwrap();
        let other = Seed::from_raw([4; 32]).identity().unwrap();
        let mine = Seed::from_words(ABANDON).unwrap().identity().unwrap();
        for (bad, want) in [
            (String::new(), "ends too early"),
            (text[..text.len() / 2].to_owned(), "ends too early"),
            ("hello".to_owned(), "not JSON"),
            (text.replace("about", "abandon"), "checksum"),
            (
                text.replace(&mine.peer_id().to_string(), &other.peer_id().to_string()),
                "`peer_id`",
            ),
            (text.replace(&mine.did(), &other.did()), "`did`"),
            (text.replace("0x9858", "0x9859"), "`evm_address`"),
            (
                text.replace("\"kind\": \"words\"", "\"kind\": \"raw\""),
                "exactly one",
            ),
            (text.replace("\"kind\"", "\"sort\""), "missing, unknown"),
            (text.replace("\"version\": 1", "\"version\": 2"), "update"),
        ] {
            let error = parse_key_file(bad.as_bytes(), None)
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(want) && !error.contains("abandon"),
                "{want}: {error}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..256)) {
            proptest::prop_assert!(parse_key_file(&bytes, None).is_err());
        }
    }
}
