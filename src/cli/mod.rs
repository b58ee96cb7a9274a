//! The command line: what can be typed, and which function each command calls.
//!
//! Data goes to stdout, messages to stderr; with `--json` stdout is one JSON value and an error is
//! one JSON object on stderr. `main` calls [`Cli::from_args`] and [`Cli::run`].

mod api;
mod args;
mod chain;
mod channel;
mod chat;
mod config;
mod doctor;
pub mod keygen;
pub mod ledger;
mod ledger_env;
mod ledger_view;
mod models;
mod openclaw;
mod output;
mod progress;
mod roles;
mod service;
mod shell;
mod status;
mod threads;
mod till;
mod wallet;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};

pub use crate::failure::{Failure as CliError, FailureKind};
pub use args::{BuyArgs, ContributeArgs, DemoArgs, ModelsArgs, RunArgs, SellArgs};

use crate::config::{ConfigError, Loaded, Setting, Sources};
use crate::data_dir::{DataDir, DataDirError};
use crate::telemetry::{self, Color};
use output::Output;

/// A peer-to-peer market for LLM inference: sell any upstream, buy through one local URL.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, propagate_version = true)]
#[command(subcommand_precedence_over_arg = true)]
#[command(
    after_help = "Exit codes: 0 ok, 1 failure, 2 usage, 3 not configured, 4 network, \
5 payment or limit, 6 upstream, 64 bad config, 130 interrupted.\n\
SOUK_LOG is the tracing filter; every config key is also a variable SOUK_<SECTION>_<KEY>."
)]
pub struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

/// Flags that every command knows.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Common flags")]
pub struct GlobalArgs {
    /// Config file [default: ~/.config/souk/config.toml]
    #[arg(long, global = true, value_name = "FILE", env = "SOUK_CONFIG")]
    pub config: Option<PathBuf>,
    /// Keys, ledger and caches [env: SOUK_DATA_DIR] [default: ~/.local/share/souk]
    #[arg(long, global = true, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Listen here (repeatable)
    #[arg(long, global = true, value_name = "MULTIADDR", num_args = 1..)]
    pub listen: Vec<String>,
    /// Others reach this node here, if not where it listens (repeatable)
    #[arg(long, global = true, value_name = "MULTIADDR", num_args = 1..)]
    pub external: Vec<String>,
    /// Start from these peers (repeatable, or with commas, as a ready line lists them)
    #[arg(long, global = true, value_name = "MULTIADDR", num_args = 1.., value_delimiter = ',')]
    pub bootstrap: Vec<String>,
    /// JSON-RPC node of the chain, the preferred one first (repeatable)
    #[arg(long, global = true, value_name = "URL")]
    pub rpc: Vec<String>,
    /// Print one JSON value instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// Only errors on stderr
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// More on stderr (repeatable)
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// Colour the output
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN")]
    pub color: Color,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create the node's keys
    Keygen(keygen::KeygenArgs),
    /// Sell an upstream's models
    Sell(Box<SellArgs>),
    /// Compute layers of a model for pipelines of others
    Contribute(Box<ContributeArgs>),
    /// Run the local proxy that buys
    Buy(Box<BuyArgs>),
    /// Run every role that the config enables, in one process
    Run(Box<RunArgs>),
    /// Run a whole market on this machine to try it out
    Demo(DemoArgs),
    /// Show what the network sells now
    Models(ModelsArgs),
    /// Show the running node on one screen
    Status(status::StatusArgs),
    /// Ask a model from the terminal
    Chat(chat::ChatArgs),
    /// Report what was earned and spent
    Ledger(Box<ledger::LedgerArgs>),
    /// Show and move the money on the chain
    #[command(subcommand)]
    Wallet(wallet::WalletCommand),
    /// Show and end payment channels
    #[command(subcommand)]
    Channel(channel::ChannelCommand),
    /// Make a chain of your own usable
    #[command(subcommand)]
    Chain(chain::ChainCommand),
    /// Run a bare node for others to start from
    Bootstrap,
    /// Check or show the configuration
    Config(config::ConfigArgs),
    /// Look for what is wrong, and say what to do
    Doctor,
    /// Offer the network's models to OpenClaw
    #[command(name = "openclaw")]
    OpenClaw(openclaw::OpenClawArgs),
    /// Run a role as a systemd service
    Service(service::ServiceArgs),
    /// Print a completion script for a shell
    Completions(shell::CompletionsArgs),
    /// Print the manual page
    Man,
}

impl Cli {
    /// Parses the command line.
    ///
    /// # Errors
    /// The exit code, after help, version or a usage error was printed.
    pub fn from_args(args: impl IntoIterator<Item = OsString>) -> Result<Self, u8> {
        let args: Vec<OsString> = args.into_iter().collect();
        Self::try_parse_from(&args).map_err(|error| {
            if error.use_stderr() && args.iter().any(|arg| arg == "--json") {
                let text = error.to_string();
                let message = text.lines().next().unwrap_or_default();
                let message = message.strip_prefix("error: ").unwrap_or(message);
                let failure = CliError::new(FailureKind::Usage, message).hint("see --help");
                output::error(&failure, true, false);
                return FailureKind::Usage.exit_code();
            }
            drop(error.print());
            u8::try_from(error.exit_code()).unwrap_or(1)
        })
    }

    /// The config keys that the role's own flags set.
    fn settings(&self) -> Vec<Setting> {
        match &self.command {
            Command::Sell(args) => args.settings(),
            Command::Contribute(args) => args.settings(),
            Command::Buy(args) => args.settings(),
            Command::Run(args) => args.settings(),
            Command::Demo(args) => args.settings(),
            _ => Vec::new(),
        }
    }

    /// Starts logging, runs the command and prints its failure. Returns the exit code.
    #[must_use]
    pub fn run(self) -> u8 {
        let out = Output::new(
            self.global.json,
            self.global.color,
            env("NO_COLOR").is_some(),
        );
        let complaint = telemetry::start(&telemetry::Settings {
            filter: env("SOUK_LOG"),
            quiet: self.global.quiet,
            verbose: self.global.verbose,
            json: self.global.json,
            color: self.global.color,
            no_color: env("NO_COLOR").is_some(),
        });
        if let Some(complaint) = complaint {
            output::message(&format!("warning: {complaint}"));
        }
        crate::failpoint::arm(env("FAILPOINT_SOUK"));
        let result = runtime().and_then(|runtime| {
            let result = runtime.block_on(self.dispatch(&out));
            runtime.shutdown_timeout(RUNTIME_STOP);
            result
        });
        match result {
            Ok(()) => 0,
            Err(error) => {
                let failure = failure_of(&error);
                if failure.kind != FailureKind::Interrupted {
                    output::error(&failure, out.json, out.color_err);
                }
                failure.kind.exit_code()
            }
        }
    }

    async fn dispatch(self, out: &Output) -> anyhow::Result<()> {
        let global = self.global;
        match self.command {
            Command::Keygen(args) => {
                let dir = global.data_dir()?;
                keygen::run(&args, dir.path(), out.json).map_err(keygen_failure)
            }
            Command::Ledger(args) => {
                let env = ledger_env::of(&global, out.json)?;
                ledger::run(*args, &env).await
            }
            Command::Sell(args) => roles::sell(&global, &args).await,
            Command::Contribute(args) => roles::contribute(&global, &args).await,
            Command::Buy(args) => roles::buy(&global, &args).await,
            Command::Run(args) => roles::run(&global, &args).await,
            Command::Demo(args) => roles::demo(&global, &args).await,
            Command::Bootstrap => roles::bootstrap(&global).await,
            Command::Models(args) => models::run(&args, &global, out).await,
            Command::Status(args) => status::run(&global, out, &args).await,
            Command::Wallet(command) => wallet::run(&global, out, command).await,
            Command::Channel(command) => channel::run(&global, out, command).await,
            Command::Chain(command) => chain::run(&global, out, command).await,
            Command::Config(args) => config::run(&global, out, &args),
            Command::Chat(args) => chat::run(&global, out, &args).await,
            Command::Doctor => doctor::run(&global, out).await,
            Command::OpenClaw(args) => openclaw::run(&global, out, &args).await,
            Command::Service(args) => service::run(&global, out, &args),
            Command::Completions(args) => {
                shell::completions(&args);
                Ok(())
            }
            Command::Man => shell::man(),
        }
    }
}

/// Blocking work (fsync, tokenising) gets this long after the command is done.
const RUNTIME_STOP: std::time::Duration = std::time::Duration::from_secs(2);

/// Worker threads at most. A node mostly waits: one worker carries thousands of requests a second,
/// and each further one costs wake-ups (two on two cores: 40 % more CPU per request).
const WORKERS_MAX: usize = 4;

/// Half of the cores, unless tokio's own variable `TOKIO_WORKER_THREADS` says otherwise.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if std::env::var_os("TOKIO_WORKER_THREADS").is_none() {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        builder.worker_threads((cores / 2).clamp(1, WORKERS_MAX));
    }
    Ok(builder.enable_all().thread_name("souk").build()?)
}

impl GlobalArgs {
    /// Where the configuration comes from, given what the command's own flags set.
    fn sources(&self, flags: Vec<Setting>) -> Sources {
        let mut all = Vec::new();
        if let Some(dir) = &self.data_dir {
            let text = dir.display().to_string();
            all.push(Setting::flag("node.data_dir", "--data-dir", text));
        }
        for (key, flag, addresses) in [
            ("node.listen", "--listen", &self.listen),
            ("node.external", "--external", &self.external),
            ("node.bootstrap", "--bootstrap", &self.bootstrap),
            ("chain.rpc", "--rpc", &self.rpc),
        ] {
            if !addresses.is_empty() {
                all.push(Setting::flag(key, flag, addresses.clone()));
            }
        }
        all.extend(flags);
        Sources {
            file: self.config.clone().or_else(crate::config::default_file),
            file_required: self.config.is_some(),
            env: std::env::vars_os()
                .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
                .filter(|(name, _)| name.starts_with("SOUK_"))
                .collect(),
            flags: all,
        }
    }
    /// The configuration with these flags on top.
    fn load(&self, flags: Vec<Setting>) -> Result<Loaded, ConfigError> {
        crate::config::load(&self.sources(flags))
    }
    /// The defaults with what the flags and the environment say of the data directory: for a look
    /// at a node whose configuration is wrong.
    fn defaults(&self) -> crate::config::Config {
        let mut config = crate::config::Config::default();
        let from_env = || env("SOUK_DATA_DIR").map(PathBuf::from);
        config.node.data_dir = self.data_dir.clone().or_else(from_env);
        config
    }
    /// The data directory that the configuration names.
    ///
    /// # Errors
    /// When the configuration is wrong or there is no home directory.
    pub fn data_dir(&self) -> anyhow::Result<DataDir> {
        let loaded = self.load(Vec::new())?;
        Ok(DataDir::resolve(loaded.config.node.data_dir.as_deref())?)
    }
}

/// A set, non-empty environment variable.
fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

/// Finds the class of errors that do not carry one themselves.
fn failure_of(error: &anyhow::Error) -> CliError {
    let failure = CliError::from_error(error);
    for cause in error.chain() {
        if cause.is::<ConfigError>() || cause.is::<crate::config::SecretError>() {
            return CliError::new(FailureKind::BadConfig, failure.message).hint(
                "`node config show --origin` lists every key and where its value comes from",
            );
        }
        if let Some(DataDirError::InUse { .. }) = cause.downcast_ref() {
            return CliError::new(FailureKind::Failure, failure.message).retryable();
        }
    }
    failure
}

#[cfg(test)]
mod tests;

/// A keygen failure with its exit code.
fn keygen_failure(error: keygen::KeygenError) -> anyhow::Error {
    let kind = match error.exit_code() {
        2 => FailureKind::Usage,
        _ => FailureKind::Failure,
    };
    CliError::new(kind, error.to_string()).into()
}
