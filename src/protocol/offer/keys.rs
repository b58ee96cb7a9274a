//! Under which keys of the DHT an offer belongs.
//!
//! Shard 0 of a model always; one of 16 further shards, chosen by the seller's id, when shard 0 says it is
//! full; and one of 16 catalogue keys, chosen by the first nibble of the model's hash, for the model list.

use sha2::{Digest, Sha256};

use super::Offer;
use crate::types::{ModelId, PeerId};

/// A key of the DHT: a sha-256.
pub type OfferKey = [u8; 32];

/// Shards besides shard 0.
pub const SHARDS_EXTRA: u16 = 16;
/// Number of catalogue keys.
pub const CATALOGUE_KEYS: u8 = 16;

const MODEL_PREFIX: &[u8] = b"souk/model/1\0";
const CATALOGUE_PREFIX: &[u8] = b"souk/catalogue/1\0";

/// The key of one shard of a model on a network.
#[must_use]
pub fn model_key(network: &str, model: &ModelId, shard: u16) -> OfferKey {
    hash(&[
        MODEL_PREFIX,
        network.as_bytes(),
        b"\0",
        model.as_str().as_bytes(),
        b"\0",
        &shard.to_be_bytes(),
    ])
}

/// The further shard, 1 to 16, in which a seller puts its offers when shard 0 is full.
#[must_use]
pub fn extra_shard(seller: &PeerId) -> u16 {
    let digest = hash(&[&seller.to_bytes()]);
    1 + u16::from(digest.first().copied().unwrap_or(0)) % SHARDS_EXTRA
}

/// All shards of a model, shard 0 first.
pub fn model_keys<'a>(
    network: &'a str,
    model: &'a ModelId,
) -> impl Iterator<Item = OfferKey> + use<'a> {
    (0..=SHARDS_EXTRA).map(move |shard| model_key(network, model, shard))
}

/// The catalogue key of a model.
#[must_use]
pub fn catalogue_key(network: &str, model: &ModelId) -> OfferKey {
    let digest = hash(&[model.as_str().as_bytes()]);
    nth_catalogue_key(network, digest.first().copied().unwrap_or(0) >> 4)
}

/// All catalogue keys of a network.
pub fn catalogue_keys(network: &str) -> impl Iterator<Item = OfferKey> + use<'_> {
    (0..CATALOGUE_KEYS).map(move |nibble| nth_catalogue_key(network, nibble))
}

fn nth_catalogue_key(network: &str, nibble: u8) -> OfferKey {
    hash(&[CATALOGUE_PREFIX, network.as_bytes(), b"\0", &[nibble]])
}

/// True when `offer` may be stored under `key`.
pub(super) fn belongs(key: &OfferKey, offer: &Offer) -> bool {
    *key == model_key(&offer.network, &offer.model, 0)
        || *key == catalogue_key(&offer.network, &offer.model)
        || *key == model_key(&offer.network, &offer.model, extra_shard(&offer.seller))
}

fn hash(parts: &[&[u8]]) -> OfferKey {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().into()
}
