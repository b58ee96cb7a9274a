//! The node's configuration: flags over `SOUK_*` variables over a TOML file over defaults.
//!
//! Layers are merged key by key, so every value knows its [`Origin`]. Each layer is checked
//! against the key set of [`Config::default`]; all problems are reported at once, an unknown key
//! with its path and the nearest known name. Secrets are references only ([`SecretRef`]).
//! Called by `cli` and by `node` (which hands every module below it its own `Settings`).

mod chain_rules;
mod check;
mod contribute;
mod head;
mod limits;
mod routing;
mod sections;
mod values;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use check::Checker;
pub use check::model_entry;
pub use contribute::ContributeSection;
pub use head::{HeadSection, Wire};
pub use limits::{BuyBudget, NamedClient, SellLimits};
pub use routing::RoutingSection;
pub use sections::{
    BuySection, BuyTimeouts, ChainSection, LedgerSection, NodeSection, PaymentSection, Prefer,
    SellModel, SellSection,
};
pub use values::{SecretError, SecretRef, Switch};

/// Largest config file read; the example is 5 KB.
const CONFIG_BYTES_MAX: u64 = 1024 * 1024;

/// Upstream presets that `[sell] upstream` knows by name.
pub const UPSTREAM_PRESETS: [&str; 8] = [
    "openrouter",
    "anthropic",
    "openai",
    "ollama",
    "llamacpp",
    "vllm",
    "pipeline",
    "demo",
];

/// Dialects that `[sell] api` knows.
pub const UPSTREAM_APIS: [&str; 3] = ["openai-chat", "openai-responses", "anthropic"];

/// The whole configuration, valid by construction when it comes from [`load`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What every role shares.
    pub node: NodeSection,
    /// The local proxy.
    pub buy: BuySection,
    /// The upstream and its prices.
    pub sell: SellSection,
    /// Layers for pipelines.
    pub contribute: ContributeSection,
    /// Stages of other peers, as a head uses them.
    pub head: HeadSection,
    /// How much may be at risk.
    pub payment: PaymentSection,
    /// Where deposits lie.
    pub chain: ChainSection,
    /// The durable record.
    pub ledger: LedgerSection,
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// The config file.
    File(PathBuf),
    /// An environment variable.
    Env(String),
    /// A command-line flag.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Env(name) => write!(f, "${name}"),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}

/// One key set by one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// The key's path: `buy.port`.
    pub path: String,
    /// Its value.
    pub value: Value,
    /// Who set it.
    pub origin: Origin,
}

impl Setting {
    /// A value given by a flag.
    pub fn flag(path: &str, flag: &'static str, value: impl Into<Value>) -> Self {
        Self {
            path: path.to_owned(),
            value: value.into(),
            origin: Origin::Flag(flag),
        }
    }
}

/// One thing that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key's path; empty when it concerns the whole file.
    pub path: String,
    /// What is wrong and what to write instead.
    pub message: String,
    /// Who set it.
    pub origin: Origin,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// Everything that is wrong with a configuration, never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", join_problems(.0))]
pub struct ConfigError(pub Vec<Problem>);

fn join_problems(problems: &[Problem]) -> String {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    match lines.as_slice() {
        [one] => one.clone(),
        many => format!("{} problems:\n  {}", many.len(), many.join("\n  ")),
    }
}

/// What a configuration is made of.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The config file; `None` reads none.
    pub file: Option<PathBuf>,
    /// Whether a missing file is an error (it was named) or not (the usual place).
    pub file_required: bool,
    /// The environment.
    pub env: Vec<(String, String)>,
    /// What the flags say.
    pub flags: Vec<Setting>,
}

/// A valid configuration and where each value came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// By key path.
    pub origins: BTreeMap<String, Origin>,
    /// The file that was read, if there was one.
    pub file: Option<PathBuf>,
}

impl Loaded {
    /// Every key with its effective value and origin, in the order of the sections.
    #[must_use]
    pub fn entries(&self) -> Vec<(String, Value, Origin)> {
        check::leaves(&to_table(&self.config))
            .into_iter()
            .map(|(path, value)| {
                let origin = self.origins.get(&path).cloned().unwrap_or(Origin::Default);
                (path, value, origin)
            })
            .collect()
    }
}

impl Config {
    /// The keys whose values differ, by path.
    #[must_use]
    pub fn changed_keys(&self, other: &Self) -> Vec<String> {
        let leaves = |config| -> BTreeMap<String, Value> {
            check::leaves(&to_table(config)).into_iter().collect()
        };
        let (ours, theirs) = (leaves(self), leaves(other));
        let all: std::collections::BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
        let differ = |key: &&String| ours.get(*key) != theirs.get(*key);
        all.into_iter().filter(differ).cloned().collect()
    }

    /// The configuration as TOML text.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(self).unwrap_or_default()
    }
}

/// Where the config file is looked for: `$XDG_CONFIG_HOME/souk/config.toml`.
#[must_use]
pub fn default_file() -> Option<PathBuf> {
    directories::BaseDirs::new().map(|base| base.config_dir().join("souk/config.toml"))
}

/// Merges all layers and checks the result.
///
/// # Errors
/// Every problem of every layer, or of the merged whole.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
    let mut checker = Checker::new(to_table(&Config::default()));
    let mut file = None;
    if let Some(path) = &sources.file {
        let origin = Origin::File(path.clone());
        match read_file(path) {
            Ok(Some(text)) => {
                checker.file(&text, &origin);
                file = Some(path.clone());
            }
            Ok(None) if sources.file_required => {
                checker.problem("", "there is no such file".to_owned(), origin);
            }
            Ok(None) => {}
            Err(error) => checker.problem("", format!("cannot be read: {error}"), origin),
        }
    }
    checker.env(&sources.env);
    for setting in &sources.flags {
        checker.set(setting.clone());
    }
    let (table, origins, mut problems) = checker.finish();
    // Each value was read alone before, so together they read too.
    match table.try_into::<Config>() {
        Ok(config) => {
            problems.extend(check::rules(&config, &origins));
            if problems.is_empty() {
                return Ok(Loaded {
                    config,
                    origins,
                    file,
                });
            }
        }
        Err(error) => problems.push(Problem {
            path: String::new(),
            message: error.message().to_owned(),
            origin: Origin::Default,
        }),
    }
    Err(ConfigError(problems))
}

fn to_table(config: &Config) -> Table {
    Table::try_from(config).unwrap_or_default()
}

/// The file's text, or `None` when there is none.
fn read_file(path: &Path) -> std::io::Result<Option<String>> {
    use std::io::{Error, ErrorKind, Read as _};
    let file = match std::fs::File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut text = String::new();
    let read = file.take(CONFIG_BYTES_MAX).read_to_string(&mut text)?;
    if u64::try_from(read).unwrap_or(u64::MAX) >= CONFIG_BYTES_MAX {
        return Err(Error::new(ErrorKind::FileTooLarge, "larger than 1 MiB"));
    }
    Ok(Some(text))
}

#[cfg(test)]
mod tests;
