//! The holder's side of the DHT: a `RecordStore` that merges signed offers into one set per key.
//!
//! Stock records hold one value per key and stock provider lists stop at 20, so most sellers would be invisible.
//! Here each key holds up to 512 offers, one per (seller, model), and a GET is answered with a ranked sample.
//! Invariants: only offers that passed the validator are stored; a lower `seq` never replaces a higher one; caps on
//! offers per key, keys and bytes hold after every call; eviction looks at expiry, then at the most crowded public
//! source network, then at chance, never at the price and never at who came first. Called by the runner and kad.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use libp2p::PeerId;
use libp2p::kad::store::{Error, RecordStore, Result as StoreResult};
use libp2p::kad::{ProviderRecord, Record, RecordKey};
use rand::seq::{IndexedRandom, IteratorRandom, SliceRandom};
use sha2::{Digest, Sha256};

use super::address::Group;
use crate::protocol::offer::{
    OfferError, OfferKey, SET_BYTES_MAX, SHARDS_EXTRA, SetHeader, SignedOffer, decode_set,
    encode_set,
};
use crate::types::{Clock, ModelId, UnixMs};

/// Offers per key.
pub const OFFERS_PER_KEY_MAX: usize = 512;
/// Keys of one holder.
pub const KEYS_MAX: usize = 8_192;
/// Bytes of all offers of one holder.
pub const STORE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Offers one public /24 keeps under a key that is full.
pub const OFFERS_PER_GROUP_MAX: usize = 8;
/// Bytes an entry costs besides the offer itself (map entry, names), a rough upper value.
const ENTRY_OVERHEAD_BYTES: usize = 256;
/// Keys looked at when one must go.
const EVICTION_SAMPLE: usize = 16;

/// The caps, so that tests can use small ones.
#[derive(Clone, Copy, Debug)]
pub struct StoreLimits {
    /// Offers per key.
    pub offers_per_key: usize,
    /// Offers per public /24 under a full key.
    pub offers_per_group: usize,
    /// Keys.
    pub keys: usize,
    /// Bytes.
    pub bytes: usize,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self {
            offers_per_key: OFFERS_PER_KEY_MAX,
            offers_per_group: OFFERS_PER_GROUP_MAX,
            keys: KEYS_MAX,
            bytes: STORE_BYTES_MAX,
        }
    }
}

struct Entry {
    bytes: Bytes,
    seq: UnixMs,
    kept_until: UnixMs,
    live: bool,
    price: u64,
    first_seen: UnixMs,
    source: Option<Group>,
}

impl Entry {
    fn cost(&self) -> usize {
        self.bytes.len() + ENTRY_OVERHEAD_BYTES
    }
}

type EntryId = (PeerId, ModelId);

#[derive(Default)]
struct KeySet {
    slot: usize,
    entries: HashMap<EntryId, Entry>,
}

/// What a merge did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merged {
    /// Stored as a new or newer offer.
    Stored,
    /// A newer or the same offer is here already.
    Older,
    /// The key is full and chance kept the others.
    Evicted,
}

/// The merging store.
pub struct OfferStore {
    network: String,
    local: PeerId,
    clock: Arc<dyn Clock>,
    limits: StoreLimits,
    keys: HashMap<OfferKey, KeySet>,
    slots: Vec<OfferKey>,
    bytes: usize,
}

impl OfferStore {
    /// An empty store of a network.
    #[must_use]
    pub fn new(network: &str, local: PeerId, clock: Arc<dyn Clock>, limits: StoreLimits) -> Self {
        Self {
            network: network.to_owned(),
            local,
            clock,
            limits,
            keys: HashMap::new(),
            slots: Vec::new(),
            bytes: 0,
        }
    }
    /// Verifies one raw offer for `key` and merges it.
    ///
    /// # Errors
    /// Says why the offer was refused.
    pub fn merge(
        &mut self,
        key: &[u8],
        raw: &[u8],
        source: Option<Group>,
    ) -> Result<Merged, OfferError> {
        let key = OfferKey::try_from(key).map_err(|_| OfferError::WrongKey)?;
        let now = self.clock.now_ms();
        let signed = SignedOffer::decode_under(raw, Some(&key), &self.network, now)?;
        Ok(self.insert(key, &signed, source, now))
    }
    /// Verifies and merges every offer of a PUT value; returns how many were stored or known.
    pub fn merge_set(&mut self, key: &[u8], value: &[u8], source: Option<Group>) -> usize {
        let Some(set) = decode_set(value) else {
            return 0;
        };
        set.offers
            .iter()
            .filter(|raw| self.merge(key, raw, source).is_ok())
            .count()
    }
    fn insert(
        &mut self,
        key: OfferKey,
        signed: &SignedOffer,
        source: Option<Group>,
        now: UnixMs,
    ) -> Merged {
        let offer = &signed.offer;
        let id: EntryId = (offer.seller, offer.model.clone());
        let known = self.keys.get(&key).and_then(|set| set.entries.get(&id));
        if known.is_some_and(|entry| entry.seq >= offer.seq) {
            return Merged::Older;
        }
        let first_seen = known.map_or(now, |entry| entry.first_seen);
        let entry = Entry {
            bytes: signed.bytes.clone(),
            seq: offer.seq,
            kept_until: if offer.is_tombstone() {
                offer
                    .seq
                    .saturating_add(crate::protocol::offer::LIFETIME_MS_MAX)
            } else {
                offer.not_after
            },
            live: !offer.is_tombstone(),
            price: offer.price.input.saturating_add(offer.price.output),
            first_seen,
            source,
        };
        if !self.keys.contains_key(&key) {
            self.make_room_for_key(&key, now);
            let slot = self.slots.len();
            self.slots.push(key);
            self.keys.insert(
                key,
                KeySet {
                    slot,
                    ..KeySet::default()
                },
            );
        }
        let Some(set) = self.keys.get_mut(&key) else {
            return Merged::Evicted;
        };
        self.bytes += entry.cost();
        if let Some(old) = set.entries.insert(id.clone(), entry) {
            self.bytes = self.bytes.saturating_sub(old.cost());
        }
        self.trim_key(&key, now);
        self.trim_bytes(now);
        match self.keys.get(&key) {
            Some(set) if set.entries.contains_key(&id) => Merged::Stored,
            _ => Merged::Evicted,
        }
    }
    /// Brings one key back under its cap.
    fn trim_key(&mut self, key: &OfferKey, now: UnixMs) {
        let limits = self.limits;
        let Some(set) = self.keys.get_mut(key) else {
            return;
        };
        let mut freed = 0;
        if set.entries.len() > limits.offers_per_key {
            set.entries.retain(|_, entry| {
                let keep = entry.kept_until > now;
                freed += if keep { 0 } else { entry.cost() };
                keep
            });
        }
        while set.entries.len() > limits.offers_per_key {
            let Some(victim) = pick_victim(set, limits.offers_per_group) else {
                break;
            };
            freed += set.entries.remove(&victim).map_or(0, |e| e.cost());
        }
        self.bytes = self.bytes.saturating_sub(freed);
    }
    /// Makes room for a new key: of a few keys chosen by chance the one farthest from this node goes.
    fn make_room_for_key(&mut self, new: &OfferKey, now: UnixMs) {
        if self.keys.len() < self.limits.keys {
            return;
        }
        let sample: Vec<OfferKey> = self
            .slots
            .sample(&mut rand::rng(), EVICTION_SAMPLE)
            .copied()
            .collect();
        let local = Sha256::digest(self.local.to_bytes());
        let is_stale = |key: &OfferKey| {
            self.keys
                .get(key)
                .is_none_or(|set| set.entries.values().all(|e| e.kept_until <= now))
        };
        let victim = sample
            .iter()
            .max_by_key(|key| (is_stale(key), distance(&local, key)))
            .copied();
        debug_assert!(victim != Some(*new));
        if let Some(victim) = victim {
            self.drop_key(&victim);
        }
    }
    fn drop_key(&mut self, key: &OfferKey) {
        let Some(set) = self.keys.remove(key) else {
            return;
        };
        let freed: usize = set.entries.values().map(Entry::cost).sum();
        self.bytes = self.bytes.saturating_sub(freed);
        if set.slot < self.slots.len() {
            self.slots.swap_remove(set.slot);
        }
        if let Some(moved) = self.slots.get(set.slot)
            && let Some(other) = self.keys.get_mut(moved)
        {
            other.slot = set.slot;
        }
    }
    /// Brings the whole store back under its byte cap: the biggest of a few keys loses an offer by chance.
    fn trim_bytes(&mut self, now: UnixMs) {
        while self.bytes > self.limits.bytes {
            let biggest = self
                .slots
                .sample(&mut rand::rng(), EVICTION_SAMPLE)
                .max_by_key(|key| self.keys.get(*key).map_or(0, |s| s.entries.len()))
                .copied();
            let Some(key) = biggest else {
                return;
            };
            let Some(set) = self.keys.get_mut(&key) else {
                return;
            };
            let expired = set
                .entries
                .iter()
                .find(|(_, e)| e.kept_until <= now)
                .map(|(id, _)| id.clone());
            let victim = expired.or_else(|| set.entries.keys().choose(&mut rand::rng()).cloned());
            if let Some(entry) = victim.and_then(|id| set.entries.remove(&id)) {
                self.bytes = self.bytes.saturating_sub(entry.cost());
            }
            if set.entries.is_empty() {
                self.drop_key(&key);
            }
        }
    }
    /// Forgets what has expired; called from time to time by the runner.
    pub fn sweep(&mut self) {
        let now = self.clock.now_ms();
        let mut freed = 0;
        let mut empty = Vec::new();
        for (key, set) in &mut self.keys {
            set.entries.retain(|_, entry| {
                let keep = entry.kept_until > now;
                freed += if keep { 0 } else { entry.cost() };
                keep
            });
            if set.entries.is_empty() {
                empty.push(*key);
            }
        }
        self.bytes = self.bytes.saturating_sub(freed);
        for key in empty {
            self.drop_key(&key);
        }
    }
    /// Offers and bytes held.
    #[must_use]
    pub fn usage(&self) -> (usize, usize) {
        (
            self.keys.values().map(|s| s.entries.len()).sum(),
            self.bytes,
        )
    }
    /// A sample over all models for a catalogue pull: one offer of each (seller, model), by chance, up to a size.
    #[must_use]
    pub fn catalogue(&self, bytes_max: usize) -> Vec<Bytes> {
        let now = self.clock.now_ms();
        let mut seen: HashMap<&EntryId, &Entry> = HashMap::new();
        for (id, entry) in self.keys.values().flat_map(|s| &s.entries) {
            if entry.kept_until > now && seen.get(id).is_none_or(|old| old.seq < entry.seq) {
                seen.insert(id, entry);
            }
        }
        // One offer of every model first, then the rest.
        let mut all: Vec<(&EntryId, &Entry)> = seen.into_iter().collect();
        all.shuffle(&mut rand::rng());
        let mut models: HashMap<&ModelId, usize> = HashMap::new();
        let mut ranked: Vec<(usize, &Entry)> = all
            .into_iter()
            .map(|((_, model), entry)| {
                let rank = models.entry(model).or_default();
                *rank += 1;
                (*rank, entry)
            })
            .collect();
        ranked.sort_by_key(|(rank, _)| *rank);
        let mut left = bytes_max;
        ranked
            .into_iter()
            .map_while(|(_, entry)| {
                left = left.checked_sub(entry.bytes.len() + 2)?;
                Some(entry.bytes.clone())
            })
            .collect()
    }
    /// The ranked reply for a key.
    fn reply(&self, key: &OfferKey) -> Option<Vec<u8>> {
        let now = self.clock.now_ms();
        let set = self.keys.get(key)?;
        let mut entries: Vec<&Entry> = set
            .entries
            .values()
            .filter(|e| e.kept_until > now)
            .collect();
        let live = entries.iter().filter(|e| e.live).count();
        let header = SetHeader {
            count: u32::try_from(live).unwrap_or(u32::MAX),
            cap: u32::try_from(self.limits.offers_per_key).unwrap_or(u32::MAX),
            shards: SHARDS_EXTRA,
        };
        entries.shuffle(&mut rand::rng());
        let total: usize = entries.iter().map(|e| e.bytes.len() + 2).sum();
        if total <= SET_BYTES_MAX - 16 {
            let offers = entries.iter().map(|e| &e.bytes);
            return Some(encode_set(header, offers, SET_BYTES_MAX));
        }
        let picked = pick_sample(&entries);
        Some(encode_set(header, picked, SET_BYTES_MAX))
    }
}

/// A quarter by price, a quarter longest seen, the rest by chance (`entries` comes shuffled).
fn pick_sample<'a>(entries: &[&'a Entry]) -> Vec<&'a Bytes> {
    let mut by_price: Vec<usize> = (0..entries.len()).collect();
    let mut by_age = by_price.clone();
    let price = |i: &usize| {
        entries
            .get(*i)
            .map_or(u64::MAX, |e| if e.live { e.price } else { u64::MAX })
    };
    let age = |i: &usize| entries.get(*i).map_or(u64::MAX, |e| e.first_seen);
    by_price.sort_by_key(price);
    by_age.sort_by_key(age);
    let mut taken = vec![false; entries.len()];
    let mut out = Vec::new();
    let mut fill = |order: &[usize], budget: usize| {
        let mut left = budget;
        for i in order {
            let (Some(entry), Some(mark)) = (entries.get(*i), taken.get_mut(*i)) else {
                continue;
            };
            if *mark {
                continue;
            }
            let Some(rest) = left.checked_sub(entry.bytes.len() + 2) else {
                break;
            };
            left = rest;
            *mark = true;
            out.push(&entry.bytes);
        }
    };
    let budget = SET_BYTES_MAX - 16;
    fill(&by_price, budget / 4);
    fill(&by_age, budget / 4);
    let random: Vec<usize> = (0..entries.len()).collect();
    fill(&random, budget / 2);
    out
}

/// Whom to evict from a full key: someone of the most crowded public network when it has more than its share,
/// else anyone, by chance.
fn pick_victim(set: &KeySet, group_max: usize) -> Option<EntryId> {
    let mut counts: HashMap<Group, usize> = HashMap::new();
    for group in set.entries.values().filter_map(|e| e.source) {
        *counts.entry(group).or_default() += 1;
    }
    let crowded = counts
        .into_iter()
        .filter(|(_, n)| *n > group_max)
        .max_by_key(|(_, n)| *n)
        .map(|(group, _)| group);
    let mut rng = rand::rng();
    set.entries
        .iter()
        .filter(|(_, e)| crowded.is_none() || e.source == crowded)
        .map(|(id, _)| id)
        .choose(&mut rng)
        .cloned()
}

fn distance(local: &[u8], key: &OfferKey) -> OfferKey {
    let hashed: [u8; 32] = Sha256::digest(key).into();
    let mut out = hashed;
    for (byte, other) in out.iter_mut().zip(local) {
        *byte ^= other;
    }
    out
}

/// kad's own records and provider lists are not used here.
pub type NoRecords<'a> = std::iter::Empty<Cow<'a, Record>>;
/// See [`NoRecords`].
pub type NoProviders<'a> = std::iter::Empty<Cow<'a, ProviderRecord>>;

impl RecordStore for OfferStore {
    type RecordsIter<'a> = NoRecords<'a>;
    type ProvidedIter<'a> = NoProviders<'a>;

    fn get(&self, key: &RecordKey) -> Option<Cow<'_, Record>> {
        let id = OfferKey::try_from(key.as_ref()).ok()?;
        let value = self.reply(&id)?;
        Some(Cow::Owned(Record::new(key.clone(), value)))
    }
    /// Only our own offers come this way (inbound ones are filtered and merged by the runner).
    fn put(&mut self, record: Record) -> StoreResult<()> {
        if record.value.len() > SET_BYTES_MAX {
            return Err(Error::ValueTooLarge);
        }
        self.merge_set(record.key.as_ref(), &record.value, None);
        Ok(())
    }
    fn remove(&mut self, _: &RecordKey) {}
    fn records(&self) -> Self::RecordsIter<'_> {
        std::iter::empty()
    }
    fn add_provider(&mut self, _: ProviderRecord) -> StoreResult<()> {
        Err(Error::MaxProvidedKeys)
    }
    fn providers(&self, _: &RecordKey) -> Vec<ProviderRecord> {
        Vec::new()
    }
    fn provided(&self) -> Self::ProvidedIter<'_> {
        std::iter::empty()
    }
    fn remove_provider(&mut self, _: &RecordKey, _: &PeerId) {}
}

#[cfg(test)]
mod tests;
