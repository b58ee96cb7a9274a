//! What a seller has on offer: priced from the upstream's list, signed, announced, renewed, withdrawn.

use std::sync::Arc;

use tokio::sync::watch;

use super::base::Base;
use crate::config::Config;
use crate::discovery::Announcer;
use crate::failure::{Failure, FailureKind};
use crate::ledger::{Ledger, OfferRow, Row};
use crate::llm_api::price_list::{self, UpstreamModel};
use crate::protocol::offer::Capabilities;
use crate::seller::Seller;
use crate::seller::catalogue::{Catalogue, ModelForSale, OfferFrame};
use crate::seller::pricing::{self, ModelRule, PriceFlags, PriceRules, PricingError};
use crate::seller::upstream::Upstream;
use crate::types::MicroUsd;

/// What is sold, and through whom.
pub(super) struct Stock {
    pub rules: PriceRules,
    /// None where only layers are for sale.
    pub upstream: Option<Upstream>,
    /// Answers come through layers on other peers.
    pub is_split: bool,
    /// Layers for sale, if any; they change when they are moved.
    pub layers: watch::Receiver<Option<ModelForSale>>,
    pub frame: OfferFrame,
}

impl Stock {
    /// The upstream's own list; none where there is no upstream, or its complaint.
    async fn listed(&self) -> (Option<Vec<UpstreamModel>>, Option<String>) {
        let Some(upstream) = &self.upstream else {
            return (None, None);
        };
        match upstream.list_models().await {
            Ok(body) => (price_list::parse(&body).ok(), None),
            Err(error) => (None, Some(error.to_string())),
        }
    }
    /// Models whose answers are for sale.
    fn answers(&self, listed: Option<&[UpstreamModel]>) -> Result<pricing::Sale, PricingError> {
        if self.upstream.is_none() {
            return Ok(pricing::Sale::default());
        }
        let mut sale = pricing::models_for_sale(&self.rules, listed)?;
        for model in sale.models.iter_mut().filter(|_| self.is_split) {
            model.can = model.can.union(Capabilities::PIPELINE);
        }
        Ok(sale)
    }
    /// The same with the layers.
    fn with_layers(&self, mut models: Vec<ModelForSale>) -> Vec<ModelForSale> {
        models.extend(self.layers.borrow().clone());
        models
    }
}

/// The config's prices.
pub(super) fn rules(config: &Config) -> PriceRules {
    let sell = &config.sell;
    let flags = |input: Option<MicroUsd>, output: Option<MicroUsd>, cached, cache_write| {
        let micro = |price: Option<MicroUsd>| price.map(|price| price.0);
        PriceFlags {
            input: micro(input),
            output: micro(output),
            cached: micro(cached),
            cache_write: micro(cache_write),
        }
    };
    let models = sell.models.iter().map(|m| ModelRule {
        id: super::pipeline::name_of(config, m),
        upstream_id: m
            .upstream_id
            .clone()
            .filter(|_| !super::pipeline::is_used(config)),
        price: flags(m.price_in, m.price_out, m.price_cached, m.price_cache_write),
        context: m.context,
        max_output: m.max_output,
    });
    PriceRules {
        models: models.collect(),
        flags: flags(
            sell.price_in,
            sell.price_out,
            sell.price_cached,
            sell.price_cache_write,
        ),
        markup_bp: sell.markup,
        free: sell.free,
        context: sell.context,
        max_output: sell.max_output,
    }
}

/// Reads the list, signs offers, makes them durable, hands them to the DHT.
pub(super) async fn publish(
    base: &Base,
    stock: &Stock,
    catalogue: &Catalogue,
    announcer: &Announcer,
) -> anyhow::Result<usize> {
    let (listed, complaint) = stock.listed().await;
    let failed = |error: PricingError| match (&error, complaint.clone()) {
        (PricingError::NoPriceList | PricingError::NoModelList, Some(complaint)) => {
            let hint = "check --base-url and the key, or name models and prices: \
                        --model ID --price-in USD --price-out USD";
            Failure::new(FailureKind::Upstream, complaint).hint(hint)
        }
        _ => Failure::new(FailureKind::BadConfig, error.to_string()),
    };
    let sale = stock.answers(listed.as_deref());
    let sale = sale.and_then(pricing::Sale::strict).map_err(failed)?;
    if let Some(warning) = sale.warning() {
        tracing::warn!("{warning}");
    }
    let models = stock.with_layers(sale.models);
    let now_ms = base.clock.now_ms();
    let kept = base.ledger.offers_since(now_ms).await?;
    let kept = kept.into_iter().map(|row| row.bytes);
    catalogue.restore(kept, &models, &stock.frame, now_ms);
    offer(&base.ledger, stock, catalogue, announcer, &models, now_ms).await
}

async fn offer(
    ledger: &Ledger,
    stock: &Stock,
    catalogue: &Catalogue,
    announcer: &Announcer,
    models: &[ModelForSale],
    now_ms: u64,
) -> anyhow::Result<usize> {
    let offers = catalogue.publish(models, &stock.frame, now_ms);
    let rows = offers.iter().map(|signed| {
        Row::Offer(OfferRow {
            at_ms: now_ms,
            hash: signed.hash,
            model: signed.offer.model.clone(),
            not_after: signed.offer.not_after,
            bytes: signed.bytes.to_vec(),
        })
    });
    ledger.commit(rows.collect()).await?;
    let count = offers.len();
    announcer.set_offers(offers);
    Ok(count)
}

/// Renews offers and prices until the node stops, and when the rules change; a failed look keeps
/// the last ones.
pub(super) fn refresh(
    base: &Base,
    mut stock: Stock,
    catalogue: Arc<Catalogue>,
    announcer: Announcer,
    seller: Seller,
) -> watch::Sender<PriceRules> {
    let (rules, mut changed) = watch::channel(stock.rules.clone());
    let stop = base.base.cancelled();
    let every = base.config.sell.price_refresh;
    let (ledger, clock) = (base.ledger.clone(), Arc::clone(&base.clock));
    base.base.spawn("offers", async move {
        loop {
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                Ok(()) = changed.changed() => stock.rules.clone_from(&changed.borrow_and_update()),
                Ok(()) = stock.layers.changed() => {}
                () = stop.cancelled() => return,
            }
            let (listed, _) = stock.listed().await;
            let models = match stock.answers(listed.as_deref()) {
                Ok(sale) => stock.with_layers(sale.models),
                Err(error) => {
                    tracing::warn!(%error, "prices not renewed; the last offers stay");
                    continue;
                }
            };
            if seller.is_draining() {
                return;
            }
            let now_ms = clock.now_ms();
            let offered = offer(&ledger, &stock, &catalogue, &announcer, &models, now_ms);
            if let Err(error) = offered.await {
                tracing::error!(%error, "offers not renewed");
            }
        }
    });
    rules
}

/// Takes all offers off the market; a second call has nothing left to take.
pub(super) fn withdrawal(
    base: &Base,
    catalogue: &Arc<Catalogue>,
    announcer: &Announcer,
) -> Withdrawal {
    let (catalogue, announcer) = (Arc::clone(catalogue), announcer.clone());
    let clock = Arc::clone(&base.clock);
    Arc::new(move || {
        let graves = catalogue.withdraw(clock.now_ms());
        if !graves.is_empty() {
            announcer.set_offers(graves);
        }
    })
}

/// Takes all offers off the market.
pub(super) type Withdrawal = Arc<dyn Fn() + Send + Sync>;
