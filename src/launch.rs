//! What a role needs to start: made by `cli` from flags and config, taken by `node`.

use std::io::Write as _;
use std::sync::Arc;

use sd_notify::NotifyState;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, ConfigError};
use crate::data_dir::DataDir;

/// Reads the configuration again, with the flags and variables the process was started with.
pub type Reload = Arc<dyn Fn() -> Result<Config, ConfigError> + Send + Sync>;

/// Everything a role is started with.
#[derive(Clone)]
pub struct Launch {
    /// The checked configuration.
    pub config: Config,
    /// Where keys and ledgers lie; not locked yet.
    pub dir: DataDir,
    /// Cancelled by the first SIGTERM or SIGINT: drain, flush, return `Ok`. (On the second one the
    /// command exits at once.)
    pub stop: CancellationToken,
    /// Notified on SIGHUP; answer it with [`Launch::reload`].
    pub hangup: Arc<Notify>,
    /// Reads the configuration again.
    pub reload: Reload,
    /// Whether `--json` was given.
    pub json: bool,
}

impl Launch {
    /// Prints the ready line, the only thing that a role writes to stdout, and tells systemd.
    ///
    /// A closed stdout is no reason to stop serving.
    pub fn ready(&self, line: &str) {
        tell_systemd(&[NotifyState::Ready, NotifyState::Status(line)]);
        let mut out = std::io::stdout().lock();
        drop(writeln!(out, "{line}").and_then(|()| out.flush()));
    }
}

/// Says to systemd how this service is (`Type=notify`); without systemd it does nothing.
pub fn tell_systemd(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd was not told");
    }
}
