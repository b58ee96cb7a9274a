//! L1: what travels between nodes, as bytes and as types. No I/O, no async, no clock.
//!
//! Two kinds of libp2p stream carry frames ([`frame`]):
//!
//! - one **infer** stream per attempt (`/souk/infer/1`): `REQ_HEAD BODY* END` up,
//!   `NOP* RESP_HEAD BODY* END USAGE` down, `NEED`, `CANCEL` and `ERROR` where they apply
//!   ([`head`], [`infer`], [`receipt`]);
//! - one ordered **session** stream per pair (`/souk/session/1`): HELLO, TERMS, OPEN, SYNC,
//!   VOUCHER, RECEIPT, ACCEPT ([`session`], [`terms`], [`voucher`]).
//!
//! A third kind asks a seller to send a transaction that the asker signed by calls and has no gas
//! for (`/souk/relay-tx/1`, [`relay`]).
//!
//! A stage of a pipeline is ordered like an answer, and then talks on its infer stream ([`stage`]);
//! stages push rows to each other on a fourth kind (`/souk/rows/1`).
//!
//! Everything signed has a domain string ([`domain`]) and golden vectors. Everything decoded is
//! bounded by the constants of [`limits`] before it allocates; a peer that exceeds one is reset.
//! Encoding is postcard: compact, canonical for our types, without self-description to fuzz.

pub mod delegation;
pub mod domain;
pub mod frame;
pub mod head;
pub mod infer;
pub mod limits;
pub mod offer;
pub mod receipt;
pub mod relay;
pub mod session;
pub mod signature;
pub mod stage;
pub mod terms;
pub mod voucher;

pub use frame::{Frame, FrameError, FrameKind};
pub use head::{HeadError, RequestHead, SignedHead};
pub use infer::{CancelReason, Need, PeerError, PeerErrorCode, Progress, ResponseHead};
pub use receipt::{Ending, Receipt, SignedReceipt};
pub use session::SessionMessage;
pub use signature::{EvmSignature, IdentitySignature};
pub use terms::{SignedTerms, Terms};
pub use voucher::{ChannelDescriptor, Voucher};

/// Version of the wire protocol; both sides must name the same.
pub const WIRE_VERSION: u8 = 1;

/// Why bytes from a peer were refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
pub enum DecodeError {
    /// Longer than its limit.
    #[error("message of {len} bytes exceeds the limit of {max}")]
    TooLong {
        /// Bytes received.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// Not the encoding of this type, or bytes left over.
    #[error("malformed {0}")]
    Malformed(&'static str),
    /// The signature does not belong to the named signer.
    #[error("bad signature on {0}")]
    BadSignature(&'static str),
}

/// Encodes any message; our types always encode.
pub(crate) fn encode<T: serde::Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).unwrap_or_default()
}

/// Decodes exactly one message of at most `max` bytes.
pub(crate) fn decode<T: serde::de::DeserializeOwned>(
    what: &'static str,
    bytes: &[u8],
    max: usize,
) -> Result<T, DecodeError> {
    if bytes.len() > max {
        return Err(DecodeError::TooLong {
            len: bytes.len(),
            max,
        });
    }
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        _ => Err(DecodeError::Malformed(what)),
    }
}

#[cfg(test)]
mod vectors_tests;
