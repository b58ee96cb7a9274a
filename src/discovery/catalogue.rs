//! The verified offers a buyer knows, by model: pure data, no network.
//!
//! Invariants: one offer per (seller, model), the one with the highest `seq`; at most [`OFFERS_MAX`] in all and
//! [`OFFERS_PER_MODEL_MAX`] per model (chance decides who goes, not the price); a list handed out holds live offers.

use std::collections::HashMap;
use std::sync::Arc;

use rand::seq::IteratorRandom;

use crate::protocol::offer::{Capabilities, SignedOffer, is_stage_model};
use crate::types::{Hash32, ModelId, PeerId, PriceTable, UnixMs};

/// Offers in memory: about 1 KiB each.
pub const OFFERS_MAX: usize = 8_192;
/// Offers of one model.
pub const OFFERS_PER_MODEL_MAX: usize = 1_024;

/// The live offers of a model, shared.
pub type OfferList = Arc<[Arc<SignedOffer>]>;

/// What the model list shows of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSummary {
    /// The model.
    pub model: ModelId,
    /// Sellers with a live offer that are not set aside.
    pub sellers: usize,
    /// The lowest price (input + output per million).
    pub price_min: PriceTable,
    /// Largest context window.
    pub context_max: u32,
    /// Largest output.
    pub output_max: u32,
    /// What at least one seller can do.
    pub caps: Capabilities,
}

#[derive(Default)]
struct Shelf {
    sellers: HashMap<PeerId, Arc<SignedOffer>>,
    list: Option<OfferList>,
    /// Until then every offer of `list` is live.
    list_until: UnixMs,
}

impl Shelf {
    fn rebuild(&mut self, now: UnixMs) {
        let live: Vec<_> = self
            .sellers
            .values()
            .filter(|s| s.offer.is_live(now))
            .cloned()
            .collect();
        self.list_until = live.iter().map(|s| s.offer.not_after).min().unwrap_or(0);
        self.list = Some(live.into());
    }
}

/// All known offers.
#[derive(Default)]
pub(super) struct Catalogue {
    shelves: HashMap<ModelId, Shelf>,
    hashes: HashMap<Hash32, Arc<SignedOffer>>,
}

impl Catalogue {
    /// True when exactly this offer is known, so that its signature need not be checked again.
    pub(super) fn knows(&self, hash: &Hash32) -> bool {
        self.hashes.contains_key(hash)
    }
    /// Takes a verified offer; `None` when it is not newer than what is known.
    pub(super) fn insert(&mut self, signed: SignedOffer, now: UnixMs) -> Option<Arc<SignedOffer>> {
        let (seller, seq) = (signed.offer.seller, signed.offer.seq);
        if self.hashes.len() >= OFFERS_MAX {
            self.sweep(now);
            self.evict_one();
        }
        let shelf = self.shelves.entry(signed.offer.model.clone()).or_default();
        let known = shelf.sellers.get(&seller);
        if known.is_some_and(|k| k.offer.seq >= seq) {
            return None;
        }
        if known.is_none()
            && shelf.sellers.len() >= OFFERS_PER_MODEL_MAX
            && let Some(victim) = shelf.sellers.keys().choose(&mut rand::rng()).copied()
            && let Some(old) = shelf.sellers.remove(&victim)
        {
            self.hashes.remove(&old.hash);
        }
        let signed = Arc::new(signed);
        if let Some(old) = shelf.sellers.insert(seller, signed.clone()) {
            self.hashes.remove(&old.hash);
        }
        self.hashes.insert(signed.hash, signed.clone());
        shelf.rebuild(now);
        Some(signed)
    }
    fn evict_one(&mut self) {
        if self.hashes.len() < OFFERS_MAX {
            return;
        }
        let Some(victim) = self.hashes.values().choose(&mut rand::rng()).cloned() else {
            return;
        };
        self.remove(&victim);
    }
    fn remove(&mut self, victim: &SignedOffer) {
        self.hashes.remove(&victim.hash);
        let model = &victim.offer.model;
        if let Some(shelf) = self.shelves.get_mut(model) {
            shelf.sellers.remove(&victim.offer.seller);
            shelf.list = None;
            if shelf.sellers.is_empty() {
                self.shelves.remove(model);
            }
        }
    }
    /// The live offers of a model: a clone of a shared list unless one has just expired.
    pub(super) fn offers(&self, model: &ModelId, now: UnixMs) -> OfferList {
        let Some(shelf) = self.shelves.get(model) else {
            return Arc::from([]);
        };
        match &shelf.list {
            Some(list) if list.is_empty() || now < shelf.list_until => list.clone(),
            _ => shelf
                .sellers
                .values()
                .filter(|s| s.offer.is_live(now))
                .cloned()
                .collect(),
        }
    }
    /// The offer with this hash, live or not.
    pub(super) fn by_hash(&self, hash: &Hash32) -> Option<Arc<SignedOffer>> {
        self.hashes.get(hash).cloned()
    }
    /// Forgets what is no longer kept and rebuilds the lists; called every few seconds.
    pub(super) fn sweep(&mut self, now: UnixMs) {
        let hashes = &mut self.hashes;
        self.shelves.retain(|_, shelf| {
            let before = shelf.sellers.len();
            shelf.sellers.retain(|_, signed| {
                let kept = signed.offer.is_kept(now);
                if !kept {
                    hashes.remove(&signed.hash);
                }
                kept
            });
            if shelf.sellers.len() != before || shelf.list.is_none() || now >= shelf.list_until {
                shelf.rebuild(now);
            }
            !shelf.sellers.is_empty()
        });
    }
    /// Every model with a live offer of a seller that `usable` accepts, by name.
    pub(super) fn models(
        &self,
        now: UnixMs,
        usable: impl Fn(&PeerId) -> bool,
    ) -> Vec<ModelSummary> {
        let mut list: Vec<ModelSummary> = self
            .shelves
            .keys()
            .filter(|model| !is_stage_model(model))
            .filter_map(|model| summary(model, &self.offers(model, now), &usable))
            .collect();
        list.sort_by(|a, b| a.model.cmp(&b.model));
        list
    }
    /// The names under which stages of pipelines are offered now.
    pub(super) fn stage_models(&self, now: UnixMs) -> Vec<ModelId> {
        let names = self.shelves.keys().filter(|model| is_stage_model(model));
        let mut names: Vec<ModelId> = names
            .filter(|model| !self.offers(model, now).is_empty())
            .cloned()
            .collect();
        names.sort();
        names
    }
    /// Every live offer.
    pub(super) fn live(&self, now: UnixMs) -> Vec<Arc<SignedOffer>> {
        let all = self.hashes.values();
        all.filter(|signed| signed.offer.is_live(now))
            .cloned()
            .collect()
    }
    /// Number of offers.
    pub(super) fn len(&self) -> usize {
        self.hashes.len()
    }
}

fn summary(
    model: &ModelId,
    offers: &[Arc<SignedOffer>],
    usable: &impl Fn(&PeerId) -> bool,
) -> Option<ModelSummary> {
    let usable: Vec<_> = offers
        .iter()
        .map(|s| &s.offer)
        .filter(|o| usable(&o.seller))
        .collect();
    let price_min = usable
        .iter()
        .map(|o| o.price)
        .min_by_key(|p| p.input.saturating_add(p.output))?;
    Some(ModelSummary {
        model: model.clone(),
        sellers: usable.len(),
        price_min,
        context_max: usable.iter().map(|o| o.context).max().unwrap_or(0),
        output_max: usable.iter().map(|o| o.max_output).max().unwrap_or(0),
        caps: usable
            .iter()
            .fold(Capabilities::default(), |all, o| all.union(o.caps)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::offer::LIFETIME_MS_MAX;
    use crate::protocol::offer::tests::{NOW, offer, signed, stage};

    #[test]
    fn a_list_holds_live_offers_only_and_the_newest_of_each_seller() {
        let mut book = Catalogue::default();
        let model = ModelId::new("m");
        for seed in 0..5 {
            book.insert(signed(seed, offer(seed, "m", NOW - 10)), NOW)
                .unwrap();
        }
        assert!(
            book.insert(signed(1, offer(1, "m", NOW - 11)), NOW)
                .is_none()
        );
        let newer = book.insert(signed(1, offer(1, "m", NOW)), NOW).unwrap();
        assert_eq!(book.offers(&model, NOW).len(), 5);
        assert_eq!(book.by_hash(&newer.hash), Some(newer));
        let grave = offer(2, "m", NOW - 10).tombstone(NOW);
        book.insert(signed(2, grave), NOW).unwrap();
        assert_eq!(book.offers(&model, NOW).len(), 4);
        let later = NOW + LIFETIME_MS_MAX - 5;
        assert_eq!(book.offers(&model, later).len(), 1);
        book.sweep(later);
        assert_eq!(book.models(later, |_| true)[0].sellers, 1);
        book.sweep(NOW + 3 * LIFETIME_MS_MAX);
        assert_eq!((book.len(), book.shelves.len()), (0, 0));
    }

    #[test]
    fn a_model_has_room_for_so_many_sellers() {
        let mut book = Catalogue::default();
        for seed in 0..1_100 {
            book.insert(signed(seed, offer(seed, "m", NOW)), NOW);
        }
        assert_eq!(book.len(), OFFERS_PER_MODEL_MAX);
        assert_eq!(
            book.offers(&ModelId::new("m"), NOW).len(),
            OFFERS_PER_MODEL_MAX
        );
    }

    #[test]
    fn a_stage_is_no_model_that_the_list_shows() {
        let mut book = Catalogue::default();
        book.insert(signed(1, offer(1, "m", NOW)), NOW);
        let stage = book.insert(signed(2, stage(2, 7, 0..40)), NOW).unwrap();
        let shown = book.models(NOW, |_| true);
        assert_eq!((shown.len(), shown[0].model.as_str()), (1, "m"));
        assert_eq!(book.stage_models(NOW).first(), Some(&stage.offer.model));
        assert_eq!(book.offers(&stage.offer.model, NOW).len(), 1);
        assert!(book.stage_models(NOW + 2 * LIFETIME_MS_MAX).is_empty());
    }

    #[test]
    fn a_model_whose_sellers_are_all_set_aside_is_not_shown() {
        let mut book = Catalogue::default();
        book.insert(signed(1, offer(1, "m", NOW)), NOW);
        assert!(book.models(NOW, |_| false).is_empty());
        assert_eq!(book.models(NOW, |_| true)[0].price_min.output, 1_000_000);
    }
}
