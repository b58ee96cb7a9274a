//! The long-running commands: they read the config, watch the signals and start a role.
//!
//! SIGTERM and SIGINT ask the role to drain; a second one exits at once. SIGHUP asks it to read
//! the config again. SIGTERM ends with 0, SIGINT with 130.

use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{
    BuyArgs, CliError, ContributeArgs, DemoArgs, FailureKind, GlobalArgs, RunArgs, SellArgs,
    threads,
};
use crate::config::{Config, Setting};
use crate::data_dir::DataDir;
use crate::launch::Launch;

/// Runs `node sell`.
pub async fn sell(global: &GlobalArgs, args: &SellArgs) -> anyhow::Result<()> {
    let computes = crate::node::sells_pipeline;
    serve(global, args.settings(), computes, crate::node::sell).await
}

/// Runs `node contribute`.
pub async fn contribute(global: &GlobalArgs, args: &ContributeArgs) -> anyhow::Result<()> {
    serve(global, args.settings(), |_| true, crate::node::contribute).await
}

/// Runs `node buy`.
pub async fn buy(global: &GlobalArgs, args: &BuyArgs) -> anyhow::Result<()> {
    let computes = crate::node::buys_layers;
    serve(global, args.settings(), computes, crate::node::buy).await
}

/// Runs `node run`.
pub async fn run(global: &GlobalArgs, args: &RunArgs) -> anyhow::Result<()> {
    let computes = |config: &Config| {
        let has_ends = config.buy.enabled && crate::node::buys_layers(config);
        config.contribute.enabled || has_ends || crate::node::sells_pipeline(config)
    };
    serve(global, args.settings(), computes, crate::node::run).await
}

/// Runs `node demo`.
pub async fn demo(global: &GlobalArgs, args: &DemoArgs) -> anyhow::Result<()> {
    serve(global, args.settings(), |_| false, crate::node::demo).await
}

/// Runs `node bootstrap`.
pub async fn bootstrap(global: &GlobalArgs) -> anyhow::Result<()> {
    serve(global, Vec::new(), |_| false, crate::node::bootstrap).await
}

/// Starts a role and stays until it ends. `computes` says whether it multiplies matrices here.
async fn serve(
    global: &GlobalArgs,
    flags: Vec<Setting>,
    computes: impl FnOnce(&Config) -> bool,
    start: impl AsyncFnOnce(Launch) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let sources = global.sources(flags);
    let config = crate::config::load(&sources)?.config;
    if computes(&config) {
        threads::bound();
    }
    let dir = DataDir::resolve(config.node.data_dir.as_deref())?;
    let launch = Launch {
        config,
        dir,
        stop: CancellationToken::new(),
        hangup: Arc::new(Notify::new()),
        reload: Arc::new(move || crate::config::load(&sources).map(|loaded| loaded.config)),
        json: global.json,
    };
    let mut signals = Signals::listen()?;
    let (stop, hangup) = (launch.stop.clone(), Arc::clone(&launch.hangup));
    let role = start(launch);
    tokio::pin!(role);
    let mut stopped_by = None;
    loop {
        let seen = tokio::select! {
            result = &mut role => {
                result?;
                break;
            }
            seen = signals.next() => seen,
        };
        match seen {
            Seen::Hangup => hangup.notify_one(),
            stopping if stopped_by.is_some() => std::process::exit(stopping.exit_code()),
            stopping => {
                tracing::info!("draining; a second signal exits at once");
                crate::launch::tell_systemd(&[sd_notify::NotifyState::Stopping]);
                stopped_by = Some(stopping);
                stop.cancel();
            }
        }
    }
    match stopped_by {
        Some(Seen::Interrupt) => Err(CliError::new(FailureKind::Interrupted, "interrupted").into()),
        _ => Ok(()),
    }
}

/// A signal that a role reacts to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Seen {
    Hangup,
    Interrupt,
    Terminate,
}

impl Seen {
    /// The shell's code for a process that a signal ended.
    const fn exit_code(self) -> i32 {
        match self {
            Self::Hangup => 129,
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }
}

struct Signals {
    hangup: Signal,
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }
    async fn next(&mut self) -> Seen {
        tokio::select! {
            _ = self.hangup.recv() => Seen::Hangup,
            _ = self.interrupt.recv() => Seen::Interrupt,
            _ = self.terminate.recv() => Seen::Terminate,
        }
    }
}
