//! L1: bytes to types and back, sign and verify.

pub mod delegation;
