//! The local HTTP front of a role: what happens to a request before a handler sees it, and how its
//! answer leaves.
//!
//! `accept → limits and timers ([`server`]) → may it come in at all ([`guard`]) → handler → body
//! ([`body`])`; handlers read request bodies with [`request_body`]. [`control`] runs an axum router
//! as a handler, with what the control APIs of both roles share (errors, tokens, `/metrics`).
//!
//! Knows the dialects' error shapes and nothing about money, peers or the ledger. Used by the buyer
//! (its port for clients) and the seller (its port for its owner).

pub mod body;
pub mod control;
pub mod guard;
pub mod request_body;
pub mod server;
