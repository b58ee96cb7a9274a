//! How many threads candle multiplies on: it reads that from the environment, once.

use crate::pipeline::processor;

/// Sees to it that candle takes as many threads as [`processor::threads`] says. A running program
/// cannot change its environment safely, so it starts itself anew (the same process, the same
/// arguments): call it before anything is opened. Returns when the environment says it already, or
/// warns that it cannot be.
pub fn bound() {
    if std::env::var_os(processor::THREADS).is_some() {
        return;
    }
    if let Err(error) = start_anew() {
        let (name, threads) = (processor::THREADS, processor::threads());
        tracing::warn!(%error, "computing may take every core; set {name}={threads}");
    }
}

#[cfg(unix)]
fn start_anew() -> std::io::Result<()> {
    use std::os::unix::process::CommandExt as _;
    let mut args = std::env::args_os();
    let mut command = std::process::Command::new(std::env::current_exe()?);
    // Hints name the program as it was called.
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    let threads = processor::threads().to_string();
    command.args(args).env(processor::THREADS, threads);
    // It returns only when it fails.
    Err(command.exec())
}

#[cfg(not(unix))]
fn start_anew() -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}
