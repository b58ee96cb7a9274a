//! Behaviour tests: real nodes, a scripted upstream, loopback only. One module per promise.
//!
//! `architecture` reads the sources; every other module starts processes through `harness`, with
//! the same commands that users type, and looks at what crosses the sockets and at the ledgers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
#![allow(clippy::disallowed_methods, clippy::as_conversions)]

mod architecture;
mod harness;

mod concurrency;
mod crash;
mod dialects;
mod discovery;
mod failover;
mod guard;
mod lifecycle;
mod market;
mod money;
mod responses;
mod upstream;
