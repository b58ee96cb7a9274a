//! The buyer: local HTTP in, a seller's answer out.
pub mod body;
pub mod guard;
pub mod request_body;
pub mod server;
