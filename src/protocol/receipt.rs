//! The receipt: the seller's signed statement of what one attempt used and costs.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::limits::HEAD_BYTES_MAX;
use super::signature::{IdentitySignature, peer_bytes};
use super::{DecodeError, decode, domain, encode};
use crate::keys::{self, Identity};
use crate::types::{AttemptId, Hash32, MicroUsd, PeerId, RequestId, Usage};

/// No request costs more than a million USD; a receipt that says so is refused.
const COST_MICRO_USD_MAX: u64 = 1_000_000_000_000;

/// How an attempt ended, as the seller saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// The whole answer was delivered.
    Complete,
    /// The buyer cancelled or its stream broke: input and delivered output are owed.
    BuyerStopped,
    /// The seller or its upstream failed: only delivered output is owed.
    SellerFailed,
}

/// What one attempt used and costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The client's request.
    pub request_id: RequestId,
    /// The attempt.
    pub attempt_id: AttemptId,
    /// sha256 of the signed head: the order.
    pub order_hash: Hash32,
    /// Who served.
    #[serde(with = "peer_bytes")]
    pub seller: PeerId,
    /// Who pays.
    #[serde(with = "peer_bytes")]
    pub buyer: PeerId,
    /// The upstream's HTTP status.
    pub status: u16,
    /// How it ended.
    pub ending: Ending,
    /// Token parts: the upstream's, or the seller's own count.
    pub usage: Usage,
    /// True when `usage` is the upstream's own report.
    pub usage_from_upstream: bool,
    /// The seller's own count of delivered output tokens.
    pub own_output: u64,
    /// Usage × the offer's prices.
    pub cost: MicroUsd,
    /// sha256 over the answer's body bytes as sent.
    pub response_hash: Hash32,
    /// Bytes of the answer's body as sent.
    pub response_len: u64,
    /// When it was signed, ms on the seller's clock.
    pub at_ms: u64,
}

/// A receipt with its signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedReceipt {
    /// The decoded receipt.
    pub receipt: Receipt,
    /// `signature ‖ receipt`, the payload of USAGE.
    pub bytes: Bytes,
}

impl SignedReceipt {
    /// Signs `receipt` with the seller's identity.
    #[must_use]
    pub fn sign(receipt: Receipt, identity: &Identity) -> Self {
        let encoded = encode(&receipt);
        let signature = identity.sign(&domain::message(domain::RECEIPT, &encoded));
        let mut bytes = signature.to_vec();
        bytes.extend_from_slice(&encoded);
        Self {
            receipt,
            bytes: bytes.into(),
        }
    }

    /// Decodes and checks that `seller` signed it.
    ///
    /// # Errors
    /// When it is malformed, names another seller, or its signature is bad.
    pub fn decode_and_verify(bytes: &Bytes, seller: &PeerId) -> Result<Self, DecodeError> {
        let (signature, encoded) = bytes
            .split_first_chunk::<64>()
            .ok_or(DecodeError::Malformed("receipt"))?;
        let receipt: Receipt = decode("receipt", encoded, HEAD_BYTES_MAX)?;
        let signature = IdentitySignature(*signature);
        if receipt.usage.clamped() != receipt.usage || receipt.cost.0 > COST_MICRO_USD_MAX {
            return Err(DecodeError::Malformed("receipt"));
        }
        if receipt.seller != *seller {
            return Err(DecodeError::BadSignature("receipt"));
        }
        keys::verify(
            seller,
            &domain::message(domain::RECEIPT, encoded),
            &signature.0,
        )
        .map_err(|_| DecodeError::BadSignature("receipt"))?;
        Ok(Self {
            receipt,
            bytes: bytes.clone(),
        })
    }
}
