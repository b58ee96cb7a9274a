//! A market in virtual time, in which the crate's own router and simpler rules spend the same money
//! on the same requests. `tests/it` asserts the bounds; the example `routing` prints the tables.
//!
//! `world` has the sellers and what they do, `rivals` the rules that are compared, `run` a run.

#![allow(dead_code, reason = "shared by a test and an example")]

pub mod rivals;
pub mod run;
pub mod world;
