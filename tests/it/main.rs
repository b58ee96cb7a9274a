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
#[path = "../sim/mod.rs"]
mod sim;
#[path = "../tiny_model/mod.rs"]
mod tiny_model;

mod budgets;
mod chain;
mod choosing;
mod commands;
mod concurrency;
mod contribute;
mod crash;
mod dashboard;
mod dialects;
mod discovery;
mod doctor;
mod edges;
mod failover;
mod forgery;
mod guard;
mod lifecycle;
mod limits;
mod market;
mod metrics;
mod money;
mod offers;
mod onchain;
mod openapi;
mod overbilling;
mod own_head;
mod pipeline;
mod pipeline_losses;
mod pipeline_trust;
mod pipeline_upstream;
mod replay;
mod responses;
mod restarted;
mod routing;
mod service;
mod simulated;
mod split_head;
mod stage_orders;
mod stage_wire;
mod unpaid;
mod upstream;
mod wallet;
