//! The signed request head: everything a seller must know before it reads a body.
//!
//! `Ed25519("souk/req/v1\0" ‖ sha256(head bytes as sent))`. The attempt's id is the first 16 bytes
//! of that hash, so that both ledgers name an attempt by what was signed. The order of a seller's
//! checks is in `seller::admission`.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::infer::check_headers;
use super::limits::HEAD_BYTES_MAX;
use super::signature::{IdentitySignature, peer_bytes};
use super::{DecodeError, decode, domain, encode};
use crate::keys::{self, Identity};
use crate::types::{AttemptId, ChannelId, Hash32, MicroUsd, PeerId, RequestId};

/// Bytes of the signature that precede the head.
const SIGNATURE_BYTES: usize = 64;

/// What the buyer orders.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestHead {
    /// [`super::WIRE_VERSION`].
    pub version: u8,
    /// The network's name.
    pub network: String,
    /// The client's request; equal in all attempts.
    pub request_id: RequestId,
    /// 1 for the first attempt.
    pub attempt: u32,
    /// Who shall serve it.
    #[serde(with = "peer_bytes")]
    pub seller: PeerId,
    /// Who asks, and pays.
    #[serde(with = "peer_bytes")]
    pub buyer: PeerId,
    /// The dialect's path, e.g. `/v1/chat/completions`.
    pub path: String,
    /// The model as the offer names it.
    pub model: String,
    /// The client wants a stream.
    pub stream: bool,
    /// Allow-listed request headers.
    pub headers: Vec<(String, String)>,
    /// sha256 of the body.
    pub body_sha256: Hash32,
    /// Bytes of the body.
    pub body_len: u64,
    /// sha256 of the signed offer whose prices apply.
    pub offer_hash: Hash32,
    /// The most this request may cost.
    pub max_cost: MicroUsd,
    /// The channel that pays.
    pub channel: ChannelId,
    /// The voucher to wait for before the upstream is called; it is on the session stream.
    pub cumulative_required: MicroUsd,
    /// 8 random bytes per buyer process ‖ u64 big-endian counter.
    pub nonce: [u8; 16],
    /// Issued at, ms on the seller's clock.
    pub iat_ms: u64,
    /// Expires at, at most 60 s later.
    pub exp_ms: u64,
    /// A wallet's permission for the buyer's node key (CAIP-122 text and signature).
    pub delegation: Option<DelegationProof>,
}

/// A wallet's signed CAIP-122 text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DelegationProof {
    /// The text as signed.
    pub text: String,
    /// The wallet's signature.
    pub signature: Vec<u8>,
}

/// A head with its signature, and the exact bytes that were signed.
#[derive(Clone, Debug)]
pub struct SignedHead {
    /// The decoded head.
    pub head: RequestHead,
    /// `signature ‖ head`, the payload of REQ_HEAD.
    pub bytes: Bytes,
    /// sha256 of the head's bytes.
    pub hash: Hash32,
    signature: IdentitySignature,
}

/// Why a head was refused before its contents were looked at.
pub type HeadError = DecodeError;

impl SignedHead {
    /// Signs `head` with the buyer's identity.
    #[must_use]
    pub fn sign(head: RequestHead, identity: &Identity) -> Self {
        let encoded = encode(&head);
        let hash = Hash32(Sha256::digest(&encoded).into());
        let signature =
            IdentitySignature(identity.sign(&domain::message(domain::REQUEST, &hash.0)));
        let mut bytes = Vec::with_capacity(SIGNATURE_BYTES + encoded.len());
        bytes.extend_from_slice(&signature.0);
        bytes.extend_from_slice(&encoded);
        Self {
            head,
            bytes: bytes.into(),
            hash,
            signature,
        }
    }

    /// Decodes `signature ‖ head` and checks sizes; the signature is checked by [`Self::verify`],
    /// after the cheaper checks.
    ///
    /// # Errors
    /// When it is malformed or over a limit.
    pub fn decode(bytes: &Bytes) -> Result<Self, HeadError> {
        if bytes.len() > HEAD_BYTES_MAX {
            return Err(DecodeError::TooLong {
                len: bytes.len(),
                max: HEAD_BYTES_MAX,
            });
        }
        let (signature, encoded) = bytes
            .split_first_chunk::<SIGNATURE_BYTES>()
            .ok_or(DecodeError::Malformed("request head"))?;
        let head: RequestHead = decode("request head", encoded, HEAD_BYTES_MAX)?;
        check_headers(&head.headers)?;
        Ok(Self {
            head,
            hash: Hash32(Sha256::digest(encoded).into()),
            signature: IdentitySignature(*signature),
            bytes: bytes.clone(),
        })
    }

    /// Checks the buyer's signature.
    ///
    /// # Errors
    /// When the buyer named in the head did not sign it.
    pub fn verify(&self) -> Result<(), HeadError> {
        keys::verify(
            &self.head.buyer,
            &domain::message(domain::REQUEST, &self.hash.0),
            &self.signature.0,
        )
        .map_err(|_| DecodeError::BadSignature("request head"))
    }

    /// The attempt's id: the first 16 bytes of the head's hash.
    #[must_use]
    pub fn attempt_id(&self) -> AttemptId {
        AttemptId(self.hash.0.first_chunk::<16>().copied().unwrap_or_default())
    }
}
