//! `node keygen`: makes or imports the node's keys and writes the key file.
//!
//! Invariants: the file is on disk before anything is printed; an existing one is never
//! overwritten without `--force` (and then kept); secrets are not printed, except fresh recovery
//! words, once. Data goes to stdout, advice to stderr. [`PassphraseArgs`] is shared with the
//! commands that load the keys. Callers: the command line's dispatch.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use zeroize::{Zeroize, Zeroizing};

use crate::keys::{
    FileError, ImportError, NodeKeys, Replace, Seed, SeedError, WordCount, WriteError,
    ensure_private_dir, parse_import, render_key_file, to_checksum, write_key_file,
};
use crate::types::Secret;

/// The key file's name in the data directory.
pub const KEY_FILE: &str = "key.json";
/// Holds the passphrase where no flag does.
pub const PASSPHRASE_ENV: &str = "SOUK_PASSPHRASE";
/// Neither keys nor passphrases are larger; one byte more is read to notice it.
const INPUT_BYTES_MAX: u64 = 65_536;
/// Recovery words a line.
const WORDS_PER_LINE: usize = 6;

/// Make this node's keys: identity and payment key from one seed
#[derive(Debug, Args)]
pub struct KeygenArgs {
    /// Write the keys here [default: key.json in the data directory]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Replace an existing key file (the old one is kept beside it)
    #[arg(long)]
    pub force: bool,
    /// Import a key file, a Solana-style array of 64 bytes, 32-byte hex or recovery words; - reads stdin
    #[arg(long, value_name = "FILE")]
    pub import: Option<PathBuf>,
    /// How many recovery words to make
    #[arg(long, value_name = "12|24", default_value = "12", value_parser = parse_word_count, conflicts_with = "import")]
    pub words: WordCount,
    /// Where the passphrase comes from
    #[command(flatten)]
    pub passphrase: PassphraseArgs,
}

/// Where the key file's passphrase comes from: a file, a prompt, or `SOUK_PASSPHRASE`.
#[derive(Debug, Default, Args)]
pub struct PassphraseArgs {
    /// Read the key file's passphrase from the first line of FILE (else from SOUK_PASSPHRASE)
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase")]
    pub passphrase_file: Option<PathBuf>,
    /// Ask for the key file's passphrase on the terminal
    #[arg(long)]
    pub passphrase: bool,
}

/// Why keys were not made.
#[derive(Debug, thiserror::Error)]
pub enum KeygenError {
    /// `--passphrase` without a terminal.
    #[error("there is no terminal to ask on; use --passphrase-file FILE or {PASSPHRASE_ENV}")]
    NoTerminal,
    /// Typed two different ones.
    #[error("the two passphrases differ; nothing was written, try again")]
    PassphrasesDiffer,
    /// Empty, or no text.
    #[error("the passphrase {0}; give one line of text")]
    Passphrase(&'static str),
    /// A file or stdin could not be read, or stdout not written.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The import.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// The seed.
    #[error(transparent)]
    Seed(#[from] SeedError),
    /// Rendering the key file.
    #[error(transparent)]
    File(#[from] FileError),
    /// Writing the key file.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl KeygenError {
    /// The process's exit code: 2 for a wrong call, else 1.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::NoTerminal | Self::Write(WriteError::NotAFile(_)) => 2,
            _ => 1,
        }
    }
    /// The `kind` in the JSON form of an error.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::NoTerminal => "usage",
            Self::PassphrasesDiffer | Self::Passphrase(_) => "passphrase",
            Self::Import(_) => "import",
            Self::Write(WriteError::Exists(_)) => "exists",
            Self::Io { .. } | Self::Write(_) => "io",
            Self::Seed(_) | Self::File(_) => "keys",
        }
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    peer_id: String,
    did: String,
    evm_address: String,
    path: String,
    words: Option<String>,
}

impl Drop for Report {
    fn drop(&mut self) {
        self.words.zeroize();
    }
}

/// Makes or imports keys, writes the key file and prints the ids.
///
/// # Errors
/// When the import, the passphrase or the file does not work out; nothing is left half done.
pub fn run(args: &KeygenArgs, data_dir: &Path, json: bool) -> Result<(), KeygenError> {
    let passphrase = args.passphrase.read(AskTwice::Yes)?;
    let passphrase = passphrase.as_ref().map(|p| p.expose().as_str());
    let made = make(args, data_dir, passphrase)?;
    let text = if json {
        as_json(&made.report)
    } else {
        Zeroizing::new(as_text(&made.report))
    };
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(io_error("write to", "stdout"))?;
    let mut advice = io::stderr().lock();
    for line in &made.advice {
        // Advice only: a closed stderr does not undo the keys.
        let _ = writeln!(advice, "{line}");
    }
    Ok(())
}

/// Keys on disk, and what to say about them.
struct Made {
    report: Report,
    advice: Vec<String>,
}

fn make(args: &KeygenArgs, data_dir: &Path, passphrase: Option<&str>) -> Result<Made, KeygenError> {
    let path = match &args.out {
        Some(out) => out.clone(),
        None => data_dir.join(KEY_FILE),
    };
    let path = std::path::absolute(&path).map_err(io_error("find", &path.to_string_lossy()))?;
    let replace = if args.force {
        Replace::Keep
    } else {
        Replace::Never
    };
    // Before anything slow or typed; the write itself checks again, without a gap.
    if replace == Replace::Never && path.symlink_metadata().is_ok() {
        return Err(WriteError::Exists(path).into());
    }
    let seed = match &args.import {
        Some(from) => parse_import(&read_input(from)?, passphrase)?,
        None => Seed::generate(args.words)?,
    };
    let keys = NodeKeys::from_seed(&seed, 0)?;
    let bytes = render_key_file(&seed, passphrase)?;
    if args.out.is_none() {
        ensure_private_dir(data_dir)?;
    }
    let written = write_key_file(&path, &bytes, replace)?;
    let fresh = args.import.is_none();
    let words = seed.words().filter(|_| fresh);
    Ok(Made {
        report: Report {
            peer_id: keys.identity.peer_id().to_string(),
            did: keys.identity.did(),
            evm_address: to_checksum(&keys.payment.address()),
            path: path.to_string_lossy().into_owned(),
            words: words.map(|w| w.expose().clone()),
        },
        advice: advice(&seed, fresh, written.kept.as_deref()),
    })
}

fn advice(seed: &Seed, fresh: bool, kept: Option<&Path>) -> Vec<String> {
    let mut lines = Vec::new();
    lines.push(match (seed.words(), fresh) {
        (Some(_), true) => {
            "Write the recovery words down now; they are not shown again. Whoever has them has the money."
        }
        (Some(_), false) => "Keep your recovery words: they restore these keys.",
        (None, _) => {
            "There are no recovery words for this import: keep a copy of the key file. Its payment key is derived from the imported key, so ordinary wallets cannot restore it."
        }
    }
    .to_owned());
    if let Some(kept) = kept {
        lines.push(format!("The old key file is kept at {}.", kept.display()));
    }
    lines
}

fn as_json(report: &Report) -> Zeroizing<String> {
    // Strings only: this cannot fail.
    let mut text = Zeroizing::new(serde_json::to_string(report).unwrap_or_default());
    text.push('\n');
    text
}

fn as_text(report: &Report) -> String {
    let mut text = format!(
        "peer id      {}\ndid          {}\nEVM address  {}\nkey file     {}\n",
        report.peer_id, report.did, report.evm_address, report.path
    );
    if let Some(words) = &report.words {
        text.push_str("recovery words\n");
        let words: Vec<&str> = words.split(' ').collect();
        for line in words.chunks(WORDS_PER_LINE) {
            text.push_str("  ");
            text.push_str(&line.join(" "));
            text.push('\n');
        }
    }
    text
}

fn parse_word_count(text: &str) -> Result<WordCount, String> {
    match text {
        "12" => Ok(WordCount::Twelve),
        "24" => Ok(WordCount::TwentyFour),
        _ => Err("choose 12 or 24".to_owned()),
    }
}

/// Whether a typed passphrase must be typed again (it must where it seals something new).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AskTwice {
    /// Ask again and compare.
    Yes,
    /// Once is enough: a wrong one opens nothing.
    No,
}

impl PassphraseArgs {
    /// Reads the passphrase, if there is one: the file, the terminal, or the environment.
    ///
    /// # Errors
    /// When the file cannot be read, there is no terminal, or the passphrase is empty.
    pub fn read(&self, twice: AskTwice) -> Result<Option<Secret<String>>, KeygenError> {
        let found = if let Some(file) = &self.passphrase_file {
            Some(first_line(&read_input(file)?)?)
        } else if self.passphrase {
            Some(ask(twice)?)
        } else {
            std::env::var(PASSPHRASE_ENV).ok().map(Secret::new)
        };
        match found {
            Some(secret) if secret.expose().is_empty() => Err(KeygenError::Passphrase("is empty")),
            other => Ok(other),
        }
    }
}

fn first_line(bytes: &[u8]) -> Result<Secret<String>, KeygenError> {
    let text = std::str::from_utf8(bytes).map_err(|_| KeygenError::Passphrase("is not text"))?;
    let line = text.split('\n').next().unwrap_or_default();
    let line = line.strip_suffix('\r').unwrap_or(line);
    Ok(Secret::new(line.to_owned()))
}

fn ask(twice: AskTwice) -> Result<Secret<String>, KeygenError> {
    if !io::stderr().is_terminal() {
        return Err(KeygenError::NoTerminal);
    }
    let prompt = |text: &str| {
        rpassword::prompt_password(text)
            .map(Secret::new)
            .map_err(io_error("read the passphrase from", "the terminal"))
    };
    let first = prompt("Passphrase for the key file: ")?;
    if twice == AskTwice::Yes && prompt("The same again: ")? != first {
        return Err(KeygenError::PassphrasesDiffer);
    }
    Ok(first)
}

/// Reads a file, or stdin for `-`, up to a limit.
fn read_input(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeygenError> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(4_096));
    let result = if path == Path::new("-") {
        io::stdin()
            .lock()
            .take(INPUT_BYTES_MAX + 1)
            .read_to_end(&mut bytes)
    } else {
        File::open(path).and_then(|file| file.take(INPUT_BYTES_MAX + 1).read_to_end(&mut bytes))
    };
    result.map_err(io_error("read", &path.to_string_lossy()))?;
    Ok(bytes)
}

fn io_error(what: &'static str, path: &str) -> impl FnOnce(io::Error) -> KeygenError {
    let path = path.to_owned();
    move |source| KeygenError::Io { what, path, source }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use clap::Parser;

    use super::*;

    const ABANDON: &str = "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about";

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: KeygenArgs,
    }

    fn args(line: &[&str]) -> KeygenArgs {
        Line::try_parse_from([&["keygen"], line].concat())
            .unwrap()
            .args
    }

    #[test]
    fn fresh_keys_are_written_privately_and_load_again() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("souk");
        let made = make(&args(&["--words", "24"]), &dir, None).unwrap();
        let words = made.report.words.clone().unwrap();
        assert_eq!(words.split(' ').count(), 24);
        let path = dir.join(KEY_FILE);
        assert_eq!(made.report.path, path.to_string_lossy());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
        let keys = NodeKeys::load(&path, None, 0).unwrap();
        assert_eq!(keys.identity.peer_id().to_string(), made.report.peer_id);
        assert_eq!(
            to_checksum(&keys.payment.address()),
            made.report.evm_address
        );
    }

    #[test]
    fn json_has_the_five_names_of_the_interface() {
        let home = tempfile::tempdir().unwrap();
        let made = make(&args(&[]), home.path(), None).unwrap();
        let value: serde_json::Value = serde_json::from_str(&as_json(&made.report)).unwrap();
        let names: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
        assert_eq!(names, ["peer_id", "did", "evm_address", "path", "words"]);
        assert!(value["words"].is_string());
    }

    #[test]
    fn keys_are_not_overwritten_without_force_and_kept_with_it() {
        let home = tempfile::tempdir().unwrap();
        let first = make(&args(&[]), home.path(), None).unwrap();
        let error = make(&args(&[]), home.path(), None).err().unwrap();
        assert_eq!(error.kind(), "exists");
        let second = make(&args(&["--force"]), home.path(), None).unwrap();
        assert_ne!(first.report.peer_id, second.report.peer_id);
        assert!(second.advice.iter().any(|line| line.contains(".old-1")));
        let old = NodeKeys::load(&home.path().join("key.json.old-1"), None, 0).unwrap();
        assert_eq!(old.identity.peer_id().to_string(), first.report.peer_id);
    }

    #[test]
    fn imported_words_give_the_known_addresses_and_are_not_printed() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("words.txt");
        fs::write(&file, ABANDON).unwrap();
        let out = home.path().join("new/key.json");
        let line = [
            "--import",
            file.to_str().unwrap(),
            "--out",
            out.to_str().unwrap(),
        ];
        let made = make(&args(&line), home.path(), Some("pass")).unwrap();
        assert_eq!(
            made.report.evm_address,
            "0x9858EfFD232B4033E47d90003D41EC34EcaEda94"
        );
        assert!(made.report.words.is_none() && !as_text(&made.report).contains("abandon"));
        assert!(!fs::read_to_string(&out).unwrap().contains("abandon"));
        assert!(NodeKeys::load(&out, None, 0).is_err());
        let keys = NodeKeys::load(&out, Some("pass"), 0).unwrap();
        assert_eq!(
            keys.identity.solana_address(),
            "HAgk14JpMQLgt6rVgv7cBQFJWFto5Dqxi472uT3DKpqk"
        );
    }

    #[test]
    fn a_raw_import_says_that_there_are_no_words() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("hex");
        fs::write(&file, "ab".repeat(32)).unwrap();
        let made = make(
            &args(&["--import", file.to_str().unwrap()]),
            home.path(),
            None,
        )
        .unwrap();
        assert!(made.report.words.is_none());
        assert!(made.advice[0].contains("no recovery words"));
    }

    #[test]
    fn a_failed_import_writes_nothing() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("bad");
        fs::write(&file, "not a key").unwrap();
        let dir = home.path().join("souk");
        let line = ["--import", file.to_str().unwrap()];
        assert!(make(&args(&line), &dir, None).is_err());
        assert!(!dir.exists());
    }

    #[test]
    fn the_passphrase_is_the_first_line_of_its_file() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("pass");
        let read = || {
            PassphraseArgs {
                passphrase_file: Some(file.clone()),
                passphrase: false,
            }
            .read(AskTwice::No)
        };
        fs::write(&file, "correct horse \r\nsecond line").unwrap();
        assert_eq!(read().unwrap().unwrap().expose(), "correct horse ");
        fs::write(&file, "\n").unwrap();
        assert!(read().is_err());
        fs::remove_file(&file).unwrap();
        assert!(read().unwrap_err().to_string().contains("cannot read"));
    }

    #[test]
    fn wrong_combinations_of_flags_are_refused() {
        for line in [
            &["--words", "13"][..],
            &["--words", "12", "--import", "x"],
            &["--passphrase", "--passphrase-file", "x"],
        ] {
            assert!(Line::try_parse_from([&["keygen"], line].concat()).is_err());
        }
    }
}
