//! What this seller sells: its signed offers, by hash, for as long as each one binds.
//!
//! A changed price makes a new offer; the old one is honoured until its `not_after`. A withdrawn
//! model stays known until then, so that its buyers get `offer_withdrawn` and try elsewhere.

use std::collections::HashMap;

use parking_lot::RwLock;
use std::sync::Arc;

use crate::keys::Identity;
use crate::llm_api::{Dialect, Endpoint};
use crate::protocol::offer::{Capabilities, Modes, Offer, SignedOffer, StageTerms, stage_model};
use crate::types::{Hash32, ModelId, PriceTable, UnixMs};

/// An offer binds this long, ms (the network refuses more than an hour ahead).
pub const OFFER_LIFE_MS: u64 = 55 * 60 * 1_000;
/// Input tokens assumed per KiB of request body.
const TOKENS_PER_KIB: u16 = 256;
/// Tokens assumed for one image.
const IMAGE_TOKENS: u32 = 1_600;

/// One model for sale.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelForSale {
    /// The network's name of it.
    pub id: ModelId,
    /// The upstream's name of it.
    pub upstream_id: String,
    /// What it costs here.
    pub price: PriceTable,
    /// What the upstream's own list asks for it, if it has one.
    pub list: Option<PriceTable>,
    /// Context length in tokens; 0 = unknown.
    pub context: u32,
    /// Longest output in tokens; 0 = unknown.
    pub max_output: u32,
    /// What it can do, paths aside.
    pub can: Capabilities,
    /// Set when layers of a pipeline are for sale instead of the model's answers.
    pub stage: Option<StageTerms>,
}

impl ModelForSale {
    /// Layers of a pipeline for sale: no path of an upstream, no answers.
    #[must_use]
    pub fn stage(terms: StageTerms, price: PriceTable) -> Self {
        let id = stage_model(&terms.manifest);
        Self {
            upstream_id: id.as_str().to_owned(),
            id,
            price,
            list: None,
            context: 0,
            max_output: 0,
            can: Capabilities::PIPELINE,
            stage: Some(terms),
        }
    }
    /// True when `offer` promises what is still for sale: its paths, its layers.
    fn still_serves(&self, offer: &Offer, frame: &OfferFrame) -> bool {
        offer.caps.contains(paths(frame, self)) && self.has_layers_of(offer)
    }
    fn has_layers_of(&self, offer: &Offer) -> bool {
        let layers = |terms: Option<StageTerms>| terms.map(|t| (t.manifest, t.range()));
        layers(offer.stage) == layers(self.stage)
    }
}

/// What does not differ between this seller's offers.
#[derive(Clone, Debug)]
pub struct OfferFrame {
    /// The network's name.
    pub network: String,
    /// The upstream's dialect.
    pub dialect: Dialect,
    /// The upstream has `/v1/completions`.
    pub completions: bool,
    /// Hidden reasoning that may be billed, tokens.
    pub reasoning_cap: u32,
    /// Hash of the signed terms.
    pub terms_hash: Hash32,
    /// Sold for nothing.
    pub free: bool,
    /// Where buyers reach this node, as binary multiaddrs.
    pub addrs: Vec<Vec<u8>>,
}

/// One offer as it binds this seller.
#[derive(Clone, Debug)]
pub struct Sold {
    /// The offer as signed.
    pub offer: Offer,
    /// What the upstream calls the model.
    pub upstream_id: String,
    /// No longer sold.
    pub withdrawn: bool,
}

/// All offers that bind this seller.
pub struct Catalogue {
    identity: Identity,
    by_hash: RwLock<HashMap<Hash32, Arc<Sold>>>,
    current: RwLock<Vec<SignedOffer>>,
    /// The upstream's list prices, by the network's names.
    lists: RwLock<HashMap<ModelId, PriceTable>>,
}

impl Catalogue {
    /// An empty catalogue of the node `identity`.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        Self {
            identity,
            by_hash: RwLock::default(),
            current: RwLock::default(),
            lists: RwLock::default(),
        }
    }

    /// Takes up the offers of an earlier life that still bind: a buyer may hold one and have heard of
    /// no newer. `kept` are signed bytes; what `models` no longer sells counts as withdrawn.
    pub fn restore(
        &self,
        kept: impl IntoIterator<Item = Vec<u8>>,
        models: &[ModelForSale],
        frame: &OfferFrame,
        now_ms: UnixMs,
    ) {
        let mut by_hash = self.by_hash.write();
        for bytes in kept {
            let Ok(signed) = SignedOffer::decode_and_verify(&bytes, &frame.network, now_ms) else {
                continue;
            };
            let offer = signed.offer;
            if offer.seller != self.identity.peer_id() {
                continue;
            }
            let model = models.iter().find(|m| m.id == offer.model);
            let withdrawn = !model.is_some_and(|m| m.still_serves(&offer, frame));
            let upstream_id = model.map_or_else(String::new, |m| m.upstream_id.clone());
            by_hash.entry(signed.hash).or_insert_with(|| {
                Arc::new(Sold {
                    offer,
                    upstream_id,
                    withdrawn,
                })
            });
        }
    }

    /// Signs new offers for `models`; what is not among them any more counts as withdrawn.
    pub fn publish(
        &self,
        models: &[ModelForSale],
        frame: &OfferFrame,
        now_ms: UnixMs,
    ) -> Vec<SignedOffer> {
        let by_id: HashMap<&ModelId, &ModelForSale> = models.iter().map(|m| (&m.id, m)).collect();
        let mut by_hash = self.by_hash.write();
        by_hash.retain(|_, sold| sold.offer.not_after >= now_ms);
        for sold in by_hash.values_mut() {
            let model = by_id.get(&sold.offer.model);
            // Another path than before is honoured by the same upstream; other layers are gone.
            let is_sold = model.is_some_and(|m| m.has_layers_of(&sold.offer));
            if !is_sold && !sold.withdrawn {
                *sold = Arc::new(Sold {
                    withdrawn: true,
                    ..(**sold).clone()
                });
            }
        }
        let mut signed_offers = Vec::with_capacity(models.len());
        for model in models {
            let offer = self.offer(model, frame, now_ms);
            let sign = |message: &[u8]| self.identity.sign(message);
            let signed = match SignedOffer::sign(offer.clone(), sign) {
                Ok(signed) => signed,
                Err(error) => {
                    tracing::warn!(model = %offer.model, %error, "model cannot be offered");
                    continue;
                }
            };
            let upstream_id = model.upstream_id.clone();
            by_hash.insert(
                signed.hash,
                Arc::new(Sold {
                    offer,
                    upstream_id,
                    withdrawn: false,
                }),
            );
            signed_offers.push(signed);
        }
        drop(by_hash);
        let lists = models.iter().filter_map(|m| Some((m.id.clone(), m.list?)));
        *self.lists.write() = lists.collect();
        self.current.write().clone_from(&signed_offers);
        signed_offers
    }

    /// Takes everything off the market: tombstones to announce, for what is on offer now. Offers that
    /// buyers hold still bind.
    pub fn withdraw(&self, now_ms: UnixMs) -> Vec<SignedOffer> {
        let offered = std::mem::take(&mut *self.current.write());
        let sign = |message: &[u8]| self.identity.sign(message);
        let graves = offered.iter().map(|signed| {
            let grave = signed.offer.tombstone(now_ms);
            SignedOffer::sign(grave, sign)
        });
        graves.filter_map(Result::ok).collect()
    }

    /// The offer of that hash, while it binds.
    #[must_use]
    pub fn by_offer(&self, hash: &Hash32, now_ms: UnixMs) -> Option<Arc<Sold>> {
        self.by_hash
            .read()
            .get(hash)
            .filter(|s| s.offer.not_after >= now_ms)
            .cloned()
    }

    /// What the upstream's own list asks for a model on sale, if it has one.
    #[must_use]
    pub fn list_price(&self, model: &str) -> Option<PriceTable> {
        self.lists.read().get(&ModelId::new(model)).copied()
    }

    /// The offers announced now.
    #[must_use]
    pub fn current(&self) -> Vec<SignedOffer> {
        self.current.read().clone()
    }

    fn offer(&self, model: &ModelForSale, frame: &OfferFrame, now_ms: UnixMs) -> Offer {
        let others = model.can.without(Capabilities::COMPLETIONS);
        let caps = others.union(paths(frame, model));
        let seller = self.identity.peer_id();
        Offer {
            not_after: now_ms.saturating_add(OFFER_LIFE_MS),
            price: model.price,
            context: model.context,
            max_output: model.max_output,
            caps,
            tokens_per_kib: TOKENS_PER_KIB,
            image_tokens: IMAGE_TOKENS,
            reasoning_cap: frame.reasoning_cap,
            modes: if frame.free {
                Modes::FREE.union(Modes::CREDIT)
            } else {
                Modes::CREDIT
            },
            addrs: frame.addrs.clone(),
            terms_hash: frame.terms_hash,
            stage: model.stage,
            ..Offer::new(&frame.network, seller, model.id.clone(), now_ms)
        }
    }
}

/// The paths of a model; one that makes vectors has no other, nor has a stage.
fn paths(frame: &OfferFrame, model: &ModelForSale) -> Capabilities {
    let (own, can) = (dialect_bit(frame.dialect), model.can);
    if model.stage.is_some() {
        Capabilities::PIPELINE
    } else if can.contains(Capabilities::EMBEDDINGS) {
        Capabilities::EMBEDDINGS
    } else if frame.completions && can.contains(Capabilities::COMPLETIONS) {
        own.union(Capabilities::COMPLETIONS)
    } else {
        own
    }
}

/// True when the offer is for that path.
#[must_use]
pub fn serves(offer: &Offer, endpoint: Endpoint) -> bool {
    offer.caps.contains(match endpoint {
        Endpoint::Dialect(dialect) => dialect_bit(dialect),
        Endpoint::Completions => Capabilities::COMPLETIONS,
        Endpoint::Embeddings => Capabilities::EMBEDDINGS,
    })
}

const fn dialect_bit(dialect: Dialect) -> Capabilities {
    match dialect {
        Dialect::Chat => Capabilities::DIALECT_CHAT,
        Dialect::Messages => Capabilities::DIALECT_MESSAGES,
        Dialect::Responses => Capabilities::DIALECT_RESPONSES,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(id: &str) -> ModelForSale {
        ModelForSale {
            id: ModelId::new(id),
            upstream_id: format!("up/{id}"),
            price: PriceTable::default(),
            list: None,
            context: 0,
            max_output: 0,
            can: Capabilities::TOOLS,
            stage: None,
        }
    }

    fn frame() -> OfferFrame {
        OfferFrame {
            network: "net".to_owned(),
            dialect: Dialect::Chat,
            completions: true,
            reasoning_cap: 0,
            terms_hash: Hash32::default(),
            free: true,
            addrs: Vec::new(),
        }
    }

    #[test]
    fn an_offer_states_the_paths_that_its_upstream_and_its_model_have() {
        let offered = |completions: bool, can: Capabilities| {
            let model = ModelForSale { can, ..model("a") };
            let frame = OfferFrame {
                completions,
                ..frame()
            };
            let catalogue = Catalogue::new(Identity::from_seed(&[7; 32]));
            let signed = catalogue.publish(&[model], &frame, 1_700_000_000_000);
            signed[0].offer.clone()
        };
        let both = Capabilities::COMPLETIONS.union(Capabilities::TOOLS);
        let (chat, vectors) = (Endpoint::Dialect(Dialect::Chat), Endpoint::Embeddings);
        for (upstream, can, served) in [
            (true, both, true),
            (false, both, false),
            (true, Capabilities::TOOLS, false),
        ] {
            let offer = offered(upstream, can);
            assert!(serves(&offer, chat) && !serves(&offer, vectors));
            assert_eq!(serves(&offer, Endpoint::Completions), served);
        }
        let offer = offered(true, Capabilities::EMBEDDINGS);
        assert!(serves(&offer, vectors) && !serves(&offer, chat));
        assert!(!serves(&offer, Endpoint::Completions));
    }

    #[test]
    fn regression_a_restarted_seller_honours_the_offers_of_its_earlier_life() {
        let now = 1_700_000_000_000;
        let identity = || Identity::from_seed(&[7; 32]);
        let models = [model("a"), model("b")];
        let old = Catalogue::new(identity()).publish(&models, &frame(), now);
        let kept = || old.iter().map(|signed| signed.bytes.to_vec());

        let later = now + 60_000;
        let again = Catalogue::new(identity());
        again.restore(kept(), &models[..1], &frame(), later);
        again.publish(&models[..1], &frame(), later);
        let first = again.by_offer(&old[0].hash, later).unwrap();
        assert!(!first.withdrawn && first.upstream_id == "up/a");
        assert!(again.by_offer(&old[1].hash, later).unwrap().withdrawn);
        assert_eq!(again.current().len(), 1);

        let stranger = Catalogue::new(Identity::from_seed(&[8; 32]));
        stranger.restore(kept(), &models, &frame(), later);
        assert!(stranger.by_offer(&old[0].hash, later).is_none());
        let late = Catalogue::new(identity());
        late.restore(kept(), &models, &frame(), now + 2 * OFFER_LIFE_MS);
        assert!(late.by_offer(&old[0].hash, now).is_none());
    }
}
