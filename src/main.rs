//! The `node` program: parse, run the command, turn its error into an exit code.

use std::process::ExitCode;

/// Much quicker than the system's allocator on the many small, short-lived buffers of a relay.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // First of all: libp2p brings two TLS providers, and rustls refuses to choose.
    drop(rustls::crypto::ring::default_provider().install_default());
    match souk::cli::Cli::from_args(std::env::args_os()) {
        Ok(cli) => ExitCode::from(cli.run()),
        Err(code) => ExitCode::from(code),
    }
}
