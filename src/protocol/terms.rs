//! Terms: what a seller says once per session, signed; an offer names them by hash.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::limits::TERMS_BYTES_MAX;
use super::signature::peer_bytes;
use super::voucher::HubDomain;
use super::{DecodeError, decode, domain, encode};
use crate::keys::{self, Identity};
use crate::types::{EvmAddress, Hash32, MicroUsd, PeerId};

/// The seller's standing conditions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// Whose terms.
    #[serde(with = "peer_bytes")]
    pub seller: PeerId,
    /// Where earnings go; part of every channel's descriptor.
    pub payment_address: EvmAddress,
    /// Unsecured credit for one buyer.
    pub credit_limit: MicroUsd,
    /// Fee for opening a channel (0 in credit mode).
    pub open_fee: MicroUsd,
    /// Hidden reasoning tokens that may be billed above the buyer's own count.
    pub reasoning_cap: u64,
    /// What the seller says it keeps of prompts and answers.
    pub data_policy: String,
    /// Request parameters that the seller's upstreams support; empty = not stated.
    pub supported_parameters: Vec<String>,
    /// The chain on which the seller takes channels; `None` = it takes none.
    pub chain: Option<ChainTerms>,
}

/// What a channel on a chain must say, word for word, before the seller serves on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainTerms {
    /// Chain and hub.
    pub domain: HubDomain,
    /// The token.
    pub token: EvmAddress,
    /// The seller's key that may close.
    pub operator: EvmAddress,
    /// Seconds between a close request and the money's return.
    pub challenge_period_s: u32,
    /// Smaller deposits are not worth their gas.
    pub deposit_min: MicroUsd,
    /// Most that is served before the chain has confirmed the deposit.
    pub unconfirmed_max: MicroUsd,
}

/// Terms with their signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedTerms {
    /// The decoded terms.
    pub terms: Terms,
    /// `signature ‖ terms`.
    pub bytes: Bytes,
    /// sha256 of `bytes`.
    pub hash: Hash32,
}

impl SignedTerms {
    /// Signs `terms` with the seller's identity.
    #[must_use]
    pub fn sign(terms: Terms, identity: &Identity) -> Self {
        let encoded = encode(&terms);
        let mut bytes = identity
            .sign(&domain::message(domain::TERMS, &encoded))
            .to_vec();
        bytes.extend_from_slice(&encoded);
        let hash = Hash32(Sha256::digest(&bytes).into());
        Self {
            terms,
            bytes: bytes.into(),
            hash,
        }
    }

    /// Decodes and checks that `seller` signed them.
    ///
    /// # Errors
    /// When they are malformed, another seller's, or badly signed.
    pub fn decode_and_verify(bytes: &Bytes, seller: &PeerId) -> Result<Self, DecodeError> {
        let (signature, encoded) = bytes
            .split_first_chunk::<64>()
            .ok_or(DecodeError::Malformed("terms"))?;
        let terms: Terms = decode("terms", encoded, TERMS_BYTES_MAX)?;
        if terms.seller != *seller {
            return Err(DecodeError::BadSignature("terms"));
        }
        keys::verify(seller, &domain::message(domain::TERMS, encoded), signature)
            .map_err(|_| DecodeError::BadSignature("terms"))?;
        let hash = Hash32(Sha256::digest(bytes).into());
        Ok(Self {
            terms,
            bytes: bytes.clone(),
            hash,
        })
    }
}
