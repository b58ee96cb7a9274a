//! What travels between two nodes, as bytes: pure encoders, decoders and checks, no I/O.

pub mod offer;
