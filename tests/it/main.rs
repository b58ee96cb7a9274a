//! Behaviour tests: real nodes, a scripted upstream, loopback only. One module per promise.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::disallowed_methods, clippy::as_conversions)]

mod harness;
