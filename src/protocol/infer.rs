//! The small messages of an infer stream: response head, NEED, CANCEL, ERROR, NOP.
//!
//! A stream carries one request at a time: REQ_HEAD, BODY, END; then RESP_HEAD, BODY, END, USAGE. After
//! a good end the next REQ_HEAD may follow on it within 10 s; after anything else it is closed.

use serde::{Deserialize, Serialize};

use super::limits::{HEAD_BYTES_MAX, HEADER_BYTES_MAX, HEADERS_MAX, tame_text};
use super::{DecodeError, decode, encode};
use crate::types::MicroUsd;

/// RESP_HEAD: the answer begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResponseHead {
    /// The upstream's HTTP status.
    pub status: u16,
    /// Allow-listed response headers.
    pub headers: Vec<(String, String)>,
    /// The model as the upstream names it.
    pub model_served: String,
    /// Set for a whole answer: what it will cost and how long it is.
    pub whole: Option<WholeAnswer>,
}

/// What is known of a whole answer before its first byte is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WholeAnswer {
    /// Bytes of the body.
    pub length: u64,
    /// Cost of the whole request, input included.
    pub cost: MicroUsd,
}

/// NEED: the seller waits for a voucher of at least `cumulative`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Need {
    /// The least cumulative that lets the stream go on.
    pub cumulative: MicroUsd,
}

/// CANCEL: why the buyer stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CancelReason {
    /// The client hung up: input and delivered output are owed.
    ClientGone,
    /// The buyer's budget is used up: input and delivered output are owed.
    Budget,
    /// The seller was too slow: nothing is owed before RESP_HEAD.
    Timeout,
    /// Another seller answered first: nothing is owed before RESP_HEAD.
    Superseded,
}

impl CancelReason {
    /// True when the buyer owes the input, because stopping was its own wish.
    #[must_use]
    pub const fn owes_input(self) -> bool {
        matches!(self, Self::ClientGone | Self::Budget)
    }
}

/// NOP: a sign of life while the buyer waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The upstream has been called: from here on a cancel owes the input.
    pub upstream_called: bool,
}

/// ERROR: the seller refuses or gives up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerError {
    /// Which refusal.
    pub code: PeerErrorCode,
    /// For people; at most 200 characters once decoded.
    pub message: String,
    /// When to try again, ms; 0 = unknown.
    pub retry_after_ms: u32,
    /// The seller's clock, so a buyer with a skewed one can sign anew.
    pub now_ms: u64,
}

/// Each refusal has its own code; tests and the router tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PeerErrorCode {
    /// Not decodable, or over a limit.
    Malformed,
    /// Another wire version or network.
    WrongNetwork,
    /// The head names another buyer than the connection's peer.
    WrongBuyer,
    /// The head names another seller.
    WrongSeller,
    /// `iat`/`exp` outside the allowed window; `now_ms` helps.
    ClockSkew,
    /// Issued before this seller started; sign anew, once, to the same seller.
    Stale,
    /// This nonce was seen already.
    Replayed,
    /// The offer is not this seller's, or its time is over.
    UnknownOffer,
    /// The model is no longer sold.
    OfferWithdrawn,
    /// The signature does not match.
    BadSignature,
    /// The body's hash or length is not the head's.
    BodyMismatch,
    /// The delegation is not valid for this node.
    BadDelegation,
    /// No open channel of that id.
    UnknownChannel,
    /// This buyer's credit is used up.
    CreditExhausted,
    /// The voucher that the prefill needs did not come in time; same seller once more.
    VoucherLate,
    /// More requests than the seller takes at once.
    Overloaded,
    /// Not on the allow list, or denied.
    NotAllowed,
    /// The answer would cost more than `max_cost`.
    AboveMaxCost,
    /// The upstream could not be reached or broke its answer.
    UpstreamFailed,
    /// The seller is shutting down.
    Draining,
    /// A fault of the seller itself.
    Internal,
    /// More requests or tokens in a minute than the seller serves; `retry_after_ms` says when.
    RateLimited,
    /// This buyer was served as much today as the seller serves it.
    QuotaUsedUp,
}

impl PeerErrorCode {
    /// The code as it is logged and shown: snake_case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::WrongNetwork => "wrong_network",
            Self::WrongBuyer => "wrong_buyer",
            Self::WrongSeller => "wrong_seller",
            Self::ClockSkew => "clock_skew",
            Self::Stale => "stale",
            Self::Replayed => "replayed",
            Self::UnknownOffer => "unknown_offer",
            Self::OfferWithdrawn => "offer_withdrawn",
            Self::BadSignature => "bad_signature",
            Self::BodyMismatch => "body_mismatch",
            Self::BadDelegation => "bad_delegation",
            Self::UnknownChannel => "unknown_channel",
            Self::CreditExhausted => "credit_exhausted",
            Self::VoucherLate => "voucher_late",
            Self::Overloaded => "overloaded",
            Self::NotAllowed => "not_allowed",
            Self::AboveMaxCost => "above_max_cost",
            Self::UpstreamFailed => "upstream_failed",
            Self::Draining => "draining",
            Self::Internal => "internal",
            Self::RateLimited => "rate_limited",
            Self::QuotaUsedUp => "quota_used_up",
        }
    }
}

macro_rules! message {
    ($($name:ident),*) => {$(
        impl $name {
            /// Encodes the payload of its frame.
            #[must_use]
            pub fn encode(&self) -> Vec<u8> {
                encode(self)
            }
        }
    )*};
}
message!(ResponseHead, Need, CancelReason, Progress, PeerError);

impl ResponseHead {
    /// Decodes and bounds a response head.
    ///
    /// # Errors
    /// When it is malformed or has too many or too long headers.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut head: Self = decode("response head", bytes, HEAD_BYTES_MAX)?;
        check_headers(&head.headers)?;
        head.model_served = tame_text(&head.model_served);
        Ok(head)
    }
}

impl PeerError {
    /// Decodes an error; its text is cut and cleaned.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut error: Self = decode("error", bytes, HEAD_BYTES_MAX)?;
        error.message = tame_text(&error.message);
        Ok(error)
    }
}

/// Decodes a small fixed message.
macro_rules! small {
    ($($name:ident => $what:literal),*) => {$(
        impl $name {
            /// Decodes the payload of its frame.
            ///
            /// # Errors
            /// When it is malformed.
            pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
                decode($what, bytes, 64)
            }
        }
    )*};
}
small!(Need => "need", CancelReason => "cancel", Progress => "nop");

/// Refuses too many or too long headers.
pub(super) fn check_headers(headers: &[(String, String)]) -> Result<(), DecodeError> {
    if headers.len() > HEADERS_MAX {
        return Err(DecodeError::TooLong {
            len: headers.len(),
            max: HEADERS_MAX,
        });
    }
    match headers
        .iter()
        .map(|(n, v)| n.len() + v.len())
        .find(|len| *len > HEADER_BYTES_MAX)
    {
        Some(len) => Err(DecodeError::TooLong {
            len,
            max: HEADER_BYTES_MAX,
        }),
        None => Ok(()),
    }
}
