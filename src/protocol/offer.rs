//! The signed offer: what a seller promises for one model until `not_after`.
//!
//! An offer is at most 512 bytes: `postcard(offer) ‖ ed25519 signature`, where the signature is over
//! `"souk/offer/v1\0" ‖ postcard(offer)`. One pure validator, [`SignedOffer::decode_and_verify`], is used
//! by the holders of the DHT, by buyers and by fuzz targets; it checks lengths first and the signature last.
//! Prices are integers. A tombstone (`not_after == seq`) withdraws an earlier offer and stays valid for an hour.
//! Called by `network` (holder), `discovery` (announcer, offer book), buyer and seller.

/// Gives a set of bits its operations.
macro_rules! bits {
    ($name:ident) => {
        impl $name {
            /// True when every bit of `other` is set here.
            #[must_use]
            pub const fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }
            /// The bits of both.
            #[must_use]
            pub const fn union(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }
            /// These bits without those of `other`.
            #[must_use]
            pub const fn without(self, other: Self) -> Self {
                Self(self.0 & !other.0)
            }
        }
    };
}

mod capabilities;
mod keys;
mod set;
mod stage;
mod wire;

use bytes::Bytes;
use ed25519_dalek::{Signature, VerifyingKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::types::{Hash32, ModelId, PeerId, PriceTable, UnixMs};

pub use capabilities::Capabilities;
pub use keys::{
    CATALOGUE_KEYS, OfferKey, SHARDS_EXTRA, catalogue_key, catalogue_keys, extra_shard, model_key,
    model_keys,
};
pub use set::{OfferSet, SET_BYTES_MAX, SetHeader, decode_set, encode_set};
pub use stage::{LAYERS_MAX, STAGE_PATH, StageTerms, Wires, is_stage_model, stage_model};
pub use wire::public_key_of;

/// The version this node writes and reads: the first byte of an offer.
pub const OFFER_VERSION: u8 = 2;
/// Longest offer with its signature, in bytes (table LIMITS).
pub const OFFER_BYTES_MAX: usize = 512;
/// Length of the signature at the end of an offer.
pub const SIGNATURE_BYTES: usize = 64;
/// Longest life of an offer, in ms: a stale price is honoured for an hour at most.
pub const LIFETIME_MS_MAX: u64 = 60 * 60 * 1_000;
/// How far a peer's clock may be off, in ms.
pub const CLOCK_SKEW_MS: u64 = 120 * 1_000;
/// Most addresses in one offer.
pub const ADDRESSES_MAX: usize = 4;
/// Longest name of a quantisation, in bytes.
pub const QUANTISATION_BYTES_MAX: usize = 16;
/// Longest network id, in bytes.
pub const NETWORK_BYTES_MAX: usize = 32;
/// Highest believable price: 10 000 USD per million tokens, in micro-USD.
pub const PRICE_MAX: u64 = 10_000_000_000;
/// What a seller bills at most per KiB of text it cannot count otherwise.
pub const TOKENS_PER_KIB_DEFAULT: u16 = 256;
/// Signed before the bytes, so that an offer's signature is good for nothing else.
const DOMAIN: &[u8] = b"souk/offer/v1\0";

/// How a seller lets itself be paid, as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Modes(pub u8);

impl Modes {
    /// A credit line, settled outside.
    pub const CREDIT: Self = Self(1);
    /// A payment channel on the chain.
    pub const CHANNEL: Self = Self(1 << 1);
    /// Nothing is charged.
    pub const FREE: Self = Self(1 << 2);
}

bits!(Modes);

/// One seller's promise for one model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Format version, [`OFFER_VERSION`].
    pub version: u8,
    /// The network it is for (`souk-1`).
    pub network: String,
    /// Who sells; travels as its 32-byte public key.
    #[serde(with = "wire::peer")]
    pub seller: PeerId,
    /// The model in canonical form.
    pub model: ModelId,
    /// Strictly rising per (seller, model): the ms at which it was made.
    pub seq: UnixMs,
    /// Valid until then; equal to `seq` in a tombstone.
    pub not_after: UnixMs,
    /// Prices per million tokens.
    pub price: PriceTable,
    /// Context window in tokens (0: unknown).
    pub context: u32,
    /// Most output tokens (0: unknown).
    pub max_output: u32,
    /// What the model can do.
    pub caps: Capabilities,
    /// Quantisation as the seller names it.
    pub quantisation: String,
    /// Bound of tokens per KiB of request text.
    pub tokens_per_kib: u16,
    /// Bound of tokens per image.
    pub image_tokens: u32,
    /// Bound of hidden reasoning tokens (0: none).
    pub reasoning_cap: u32,
    /// Ways to pay.
    pub modes: Modes,
    /// At most four multiaddrs in binary form, without `/p2p`; none: resolve by peer id.
    #[serde(with = "wire::addresses")]
    pub addrs: Vec<Vec<u8>>,
    /// sha256 of the seller's signed terms.
    pub terms_hash: Hash32,
    /// Set when layers of a pipeline are offered instead of a model's answers.
    pub stage: Option<StageTerms>,
}

impl Offer {
    /// An offer with this node's version and defaults, to be filled in.
    #[must_use]
    pub fn new(network: &str, seller: PeerId, model: ModelId, now_ms: UnixMs) -> Self {
        Self {
            version: OFFER_VERSION,
            network: network.to_owned(),
            seller,
            model,
            seq: now_ms,
            not_after: now_ms.saturating_add(LIFETIME_MS_MAX),
            price: PriceTable::default(),
            context: 0,
            max_output: 0,
            caps: Capabilities::DIALECT_CHAT,
            quantisation: String::new(),
            tokens_per_kib: TOKENS_PER_KIB_DEFAULT,
            image_tokens: 0,
            reasoning_cap: 0,
            modes: Modes::CREDIT,
            addrs: Vec::new(),
            terms_hash: Hash32::default(),
            stage: None,
        }
    }
    /// The same offer withdrawn at `now_ms`.
    #[must_use]
    pub fn tombstone(&self, now_ms: UnixMs) -> Self {
        let seq = now_ms.max(self.seq.saturating_add(1));
        Self {
            seq,
            not_after: seq,
            addrs: Vec::new(),
            ..self.clone()
        }
    }
    /// True when it withdraws an offer instead of making one.
    #[must_use]
    pub const fn is_tombstone(&self) -> bool {
        self.not_after == self.seq
    }
    /// True when a buyer may use it at `now_ms`.
    #[must_use]
    pub const fn is_live(&self, now_ms: UnixMs) -> bool {
        !self.is_tombstone() && self.not_after > now_ms
    }
    /// True when a holder keeps it at `now_ms` (live, or a tombstone of the last hour).
    #[must_use]
    pub const fn is_kept(&self, now_ms: UnixMs) -> bool {
        if self.is_tombstone() {
            self.seq.saturating_add(LIFETIME_MS_MAX) > now_ms
        } else {
            self.not_after > now_ms
        }
    }
    /// Everything a reader checks before the signature.
    fn check(&self, network: &str, now_ms: UnixMs) -> Result<(), OfferError> {
        if self.network != network || self.network.len() > NETWORK_BYTES_MAX {
            return Err(OfferError::OtherNetwork);
        }
        let model = self.model.as_str();
        if model.is_empty()
            || model.chars().any(char::is_control)
            || ModelId::new(model) != self.model
        {
            return Err(OfferError::ModelName);
        }
        if self.quantisation.len() > QUANTISATION_BYTES_MAX
            || self.quantisation.chars().any(char::is_control)
            || self.addrs.len() > ADDRESSES_MAX
        {
            return Err(OfferError::TooLong);
        }
        if self.seq > now_ms.saturating_add(CLOCK_SKEW_MS)
            || self.not_after < self.seq
            || self.not_after > self.seq.saturating_add(LIFETIME_MS_MAX)
        {
            return Err(OfferError::Times);
        }
        if !self.is_kept(now_ms.saturating_sub(CLOCK_SKEW_MS)) {
            return Err(OfferError::Expired);
        }
        let p = &self.price;
        if [p.input, p.cache_read, p.cache_write, p.output]
            .iter()
            .any(|part| *part > PRICE_MAX)
        {
            return Err(OfferError::Price);
        }
        self.check_stage()
    }
    /// A stage's offer looks like nothing else, and nothing else like it.
    fn check_stage(&self) -> Result<(), OfferError> {
        let Some(stage) = &self.stage else {
            return if is_stage_model(&self.model) {
                Err(OfferError::Stage)
            } else {
                Ok(())
            };
        };
        let is_named = self.model == stage_model(&stage.manifest);
        if is_named && self.caps == Capabilities::PIPELINE && stage.is_possible() {
            Ok(())
        } else {
            Err(OfferError::Stage)
        }
    }
}

/// Why an offer was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
pub enum OfferError {
    /// Longer than 512 bytes, or a part of it is too long.
    #[error("the offer is longer than {OFFER_BYTES_MAX} bytes or a part of it is too long")]
    TooLong,
    /// Not an offer at all.
    #[error("the bytes are no offer")]
    Malformed,
    /// Made by another version of the protocol.
    #[error("the offer has version {0}; this node reads version {OFFER_VERSION}, update it")]
    Version(u8),
    /// For another network.
    #[error("the offer is for another network")]
    OtherNetwork,
    /// The model name is not canonical.
    #[error("the model name of the offer is not in canonical form")]
    ModelName,
    /// Stored under a key that is not the model's.
    #[error("the offer does not belong under this key")]
    WrongKey,
    /// Times that cannot be.
    #[error("the times of the offer cannot be; check this machine's clock")]
    Times,
    /// No longer valid.
    #[error("the offer has expired")]
    Expired,
    /// A price nobody asks.
    #[error("the price of the offer is beyond 10 000 USD per million tokens")]
    Price,
    /// Layers that no model has, or a stage under the name of something else.
    #[error("the offer of a pipeline's stage contradicts itself")]
    Stage,
    /// The signature is wrong.
    #[error("the signature of the offer is wrong")]
    Signature,
    /// The seller's id holds no ed25519 key.
    #[error("the seller's peer id holds no ed25519 key")]
    NoKey,
}

/// An offer whose signature has been checked (or made here).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedOffer {
    /// What is promised.
    pub offer: Offer,
    /// `postcard(offer) ‖ signature`, as it travels.
    pub bytes: Bytes,
    /// sha256 of `bytes`; a request names the offer by it.
    pub hash: Hash32,
}

impl SignedOffer {
    /// Signs `offer` with `sign` (the seller's identity; it gets the message with its domain).
    ///
    /// # Errors
    /// When the offer would be longer than 512 bytes.
    pub fn sign(
        offer: Offer,
        sign: impl FnOnce(&[u8]) -> [u8; SIGNATURE_BYTES],
    ) -> Result<Self, OfferError> {
        let mut buffer = [0u8; OFFER_BYTES_MAX - SIGNATURE_BYTES];
        let mut bytes = postcard::to_slice(&offer, &mut buffer)
            .map_err(|_| OfferError::TooLong)?
            .to_vec();
        let signature = sign(&message(&bytes));
        bytes.extend_from_slice(&signature);
        Ok(Self::from_checked(offer, bytes.into()))
    }
    /// Reads and checks an offer, cheapest check first, the signature last.
    ///
    /// # Errors
    /// Says which check failed.
    pub fn decode_and_verify(
        bytes: &[u8],
        network: &str,
        now_ms: UnixMs,
    ) -> Result<Self, OfferError> {
        Self::decode_under(bytes, None, network, now_ms)
    }
    /// Like [`Self::decode_and_verify`], and the offer must belong under `key` when one is given.
    ///
    /// # Errors
    /// Says which check failed.
    pub fn decode_under(
        bytes: &[u8],
        key: Option<&OfferKey>,
        network: &str,
        now_ms: UnixMs,
    ) -> Result<Self, OfferError> {
        if bytes.len() > OFFER_BYTES_MAX {
            return Err(OfferError::TooLong);
        }
        let split = bytes
            .len()
            .checked_sub(SIGNATURE_BYTES)
            .ok_or(OfferError::Malformed)?;
        let (body, signature) = bytes.split_at_checked(split).ok_or(OfferError::Malformed)?;
        // Before the rest is read: another version may have other fields.
        if let Some(version) = body.first().filter(|version| **version != OFFER_VERSION) {
            return Err(OfferError::Version(*version));
        }
        let (offer, rest): (Offer, &[u8]) =
            postcard::take_from_bytes(body).map_err(|_| OfferError::Malformed)?;
        if !rest.is_empty() {
            return Err(OfferError::Malformed);
        }
        offer.check(network, now_ms)?;
        if key.is_some_and(|key| !keys::belongs(key, &offer)) {
            return Err(OfferError::WrongKey);
        }
        let public = public_key_of(&offer.seller).ok_or(OfferError::NoKey)?;
        let public = VerifyingKey::from_bytes(&public).map_err(|_| OfferError::NoKey)?;
        let signature = Signature::from_slice(signature).map_err(|_| OfferError::Signature)?;
        public
            .verify_strict(&message(body), &signature)
            .map_err(|_| OfferError::Signature)?;
        Ok(Self::from_checked(offer, Bytes::copy_from_slice(bytes)))
    }
    fn from_checked(offer: Offer, bytes: Bytes) -> Self {
        let hash = Hash32(Sha256::digest(&bytes).into());
        Self { offer, bytes, hash }
    }
}

fn message(body: &[u8]) -> Vec<u8> {
    [DOMAIN, body].concat()
}

#[cfg(test)]
pub(crate) mod tests;
