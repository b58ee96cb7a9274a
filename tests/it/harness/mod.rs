//! What the behaviour tests stand on: a scripted upstream, real nodes, and a byte-exact client.
#![allow(
    dead_code,
    reason = "a harness offers more than the tests of one day use"
)]

pub mod anvil;
pub mod books;
pub mod chain;
pub mod cheat;
pub mod clock;
pub mod http;
pub mod layers;
pub mod market;
pub mod node;
pub mod payer;
pub mod peer;
pub mod ports;
pub mod proxy;
pub mod stage;
pub mod upstream;
