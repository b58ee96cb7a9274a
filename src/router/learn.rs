//! What an attempt changes.

use super::decay::LogMean;
use super::number::{median, micro_usd, real};
use super::observation::{Answered, Observation, Outcome};
use super::record::{ModelRecord, SIZES_COUNT, SellerRecord};
use super::score::Market;
use super::{Inner, ModelState, Router, State};
use crate::types::{MicroUsd, ModelId, PeerId, UnixMs};

use rand::RngExt;

/// Sellers remembered; those not asked for longest are forgotten first.
pub(super) const SELLERS_MAX: usize = 10_000;
/// Medians over so few sellers are computed after each answer: a buyer's first requests need them.
const SMALL_MARKET: usize = 16;
/// Time in which an answer's usual length and cost are forgotten, ms: a day's work is alike.
const LENGTH_TAU_MS: u64 = 24 * 3_600_000;
/// Weight of a newcomer's good answer among all newcomers, where a bad one has 1: rubbish passes the
/// free checks about as often as not, so an answer that passed says less than one that did not.
const NEWCOMER_GOOD: f64 = 0.25;
/// Least weight of a new length.
const LENGTH_STEP_MIN: f64 = 0.05;

impl Router {
    /// Offers of these sellers were seen: the age of those that are new counts from here.
    pub fn meet<'a>(&self, sellers: impl IntoIterator<Item = &'a PeerId>) {
        let now_ms = self.now_ms();
        let mut state = self.inner.state.lock();
        for seller in sellers {
            if !state.sellers.contains_key(seller) {
                state.make_room();
                state.sellers.insert(*seller, SellerRecord::new(now_ms));
            }
        }
    }

    /// An attempt goes out with `exposure` at stake. To be followed by [`Self::observe`].
    pub fn begin(&self, seller: &PeerId, exposure: MicroUsd) {
        let now_ms = self.now_ms();
        let mut state = self.inner.state.lock();
        let new = || SellerRecord::new(now_ms);
        let record = state.sellers.entry(*seller).or_insert_with(new);
        record.breaker.ask(now_ms);
        record.capacity.begin();
        record.asked_ms = now_ms;
        record.exposure = record.exposure.saturating_add(exposure);
    }

    /// An attempt is over.
    pub fn observe(&self, seen: &Observation<'_>) {
        let now_ms = self.now_ms();
        self.inner.state.lock().observe(&self.inner, seen, now_ms);
    }

    /// A check of a seller's model that was made on purpose passed or failed.
    pub fn check(&self, seller: &PeerId, passed: bool) {
        let now_ms = self.now_ms();
        let mut state = self.inner.state.lock();
        if let Some(record) = state.sellers.get_mut(seller) {
            record.check(passed, now_ms, &self.inner.settings);
        }
    }

    /// A seller was asked what is known; `passed` when it knew, none when that cannot be told.
    pub fn probed(&self, seller: &PeerId, model: &ModelId, passed: Option<bool>) {
        let now_ms = self.now_ms();
        let mut state = self.inner.state.lock();
        if let Some(record) = state.sellers.get_mut(seller) {
            record.probed_ms = now_ms;
            if let Some(passed) = passed {
                record.probe(passed, model, now_ms, &self.inner.settings);
            }
        }
    }

    /// Computes the medians that stand in for what is not known. Called every few seconds, off the
    /// path of requests.
    pub fn refresh(&self) {
        let mut state = self.inner.state.lock();
        for model in state.models.values_mut() {
            model.market = Market::of(model);
        }
    }
}

impl State {
    fn observe(&mut self, inner: &Inner, seen: &Observation<'_>, now_ms: UnixMs) {
        let settings = &inner.settings;
        let spread = self.rng.random();
        let new = || SellerRecord::new(now_ms);
        let record = self.sellers.entry(seen.seller).or_insert_with(new);
        record.exposure = record.exposure.saturating_sub(seen.exposure);
        let was_proven = record.is_proven(now_ms, settings);
        let (good, cost) = match &seen.outcome {
            Outcome::Excused => {
                record.breaker.forget();
                record.capacity.end();
                return;
            }
            Outcome::Full => {
                record.breaker.forget();
                record.capacity.refuse();
                record.capacity.end();
                return;
            }
            Outcome::Good(answered) => {
                record.succeed(answered.cost, now_ms, settings);
                (true, answered.cost)
            }
            Outcome::Doubtful {
                answered,
                reason,
                is_grave,
            } => {
                tracing::warn!(seller = %seen.seller, reason, "an answer failed a check");
                record.remember(reason, now_ms);
                if *is_grave {
                    record.check(false, now_ms, settings);
                }
                if *is_grave && !was_proven {
                    // No record speaks for it.
                    record.quarantine(reason, now_ms, settings);
                }
                record.breaker.succeed();
                (false, answered.cost)
            }
            Outcome::Failed { expected, lost } => {
                record.breaker.fail(now_ms, spread, settings);
                if !was_proven {
                    self.exploration.lose(*lost, now_ms);
                }
                (false, *expected)
            }
        };
        record.capacity.end();
        self.some_proven |= record.is_proven(now_ms, settings);
        if let Outcome::Good(answered) | Outcome::Doubtful { answered, .. } = &seen.outcome {
            self.exploration.spend(answered.cost, !was_proven, now_ms);
        }
        self.learn_of_model(inner, seen, good, cost, now_ms);
        // What newcomers are worth beside known sellers; in the first days everybody is new.
        if !was_proven && self.some_proven {
            let weight = if good { NEWCOMER_GOOD } else { 1.0 };
            self.newcomers.observe(good, weight, now_ms, settings);
        }
    }

    fn learn_of_model(
        &mut self,
        inner: &Inner,
        seen: &Observation<'_>,
        good: bool,
        cost: MicroUsd,
        now_ms: UnixMs,
    ) {
        let settings = &inner.settings;
        let model = model_entry(&mut self.models, seen.model);
        let usual = model.cost.typical().unwrap_or(1.0).max(1.0);
        let model_record = model.records.entry(seen.seller).or_default();
        let weight = micro_usd(cost) / usual;
        model_record.quality.observe(good, weight, now_ms, settings);
        model_record.observed = model_record.observed.saturating_add(1);
        let (Outcome::Good(answered) | Outcome::Doubtful { answered, .. }) = &seen.outcome else {
            return;
        };
        model_record.answer(answered, now_ms, settings);
        let over = over_billing(model_record, model.market.billing, answered, settings);
        if answered.cost > MicroUsd::ZERO {
            let cost = micro_usd(answered.cost);
            let (tau, step) = (LENGTH_TAU_MS, LENGTH_STEP_MIN);
            model.cost.observe(cost, now_ms, tau, step);
        }
        if model.records.len() <= SMALL_MARKET {
            model.market = Market::of(model);
        }
        if let (Some(factor), Some(record)) = (over, self.sellers.get_mut(&seen.seller)) {
            let reason = format!("billed {factor:.2} times its answers by our own count");
            tracing::warn!(seller = %seen.seller, reason, "seller set aside");
            record.remember(&reason, now_ms);
            record.quarantine(&reason, now_ms, settings);
        }
        let output = real(answered.output_tokens).max(1.0);
        let key = (seen.client.to_owned(), seen.model.clone());
        self.outputs
            .get_or_insert_mut(key, LogMean::default)
            .observe(output, now_ms, LENGTH_TAU_MS, LENGTH_STEP_MIN);
        if let Some(key) = seen.conversation.filter(|_| good) {
            self.conversations
                .turn(key, seen.seller, answered, now_ms, settings);
        }
    }

    /// Keeps the number of sellers bounded; those with something at stake stay.
    fn make_room(&mut self) {
        if self.sellers.len() < SELLERS_MAX {
            return;
        }
        let oldest = self
            .sellers
            .iter()
            .filter(|(_, record)| record.exposure == MicroUsd::ZERO)
            .min_by_key(|(_, record)| record.asked_ms)
            .map(|(seller, _)| *seller);
        if let Some(seller) = oldest {
            self.sellers.remove(&seller);
            for model in self.models.values_mut() {
                model.records.remove(&seller);
            }
        }
    }
}

fn model_entry<'a>(
    models: &'a mut hashbrown::HashMap<ModelId, ModelState>,
    model: &ModelId,
) -> &'a mut ModelState {
    models.entry_ref(model).or_default()
}

/// The factor above the market's by which a seller bills, when that is enough to set it aside.
fn over_billing(
    record: &ModelRecord,
    market: Option<f64>,
    answered: &Answered,
    settings: &super::Settings,
) -> Option<f64> {
    let usual = if answered.exact {
        1.0
    } else {
        market.unwrap_or(1.0).max(1.0)
    };
    let factor = record.billing()? / usual;
    let enough = record.compared() >= settings.quarantine_requests;
    (enough && factor > settings.quarantine_factor).then_some(factor)
}

impl Market {
    fn of(model: &ModelState) -> Self {
        let records = || model.records.values();
        let over = |value: &dyn Fn(&ModelRecord) -> Option<f64>| {
            median(&mut records().filter_map(value).collect::<Vec<_>>())
        };
        let mut ttft_s = [None; SIZES_COUNT];
        for (size, slot) in ttft_s.iter_mut().enumerate() {
            *slot = over(&|record| record.ttft_s(size));
        }
        let mut ttft_p90_s = [None; SIZES_COUNT];
        for (size, slot) in ttft_p90_s.iter_mut().enumerate() {
            *slot = over(&|record| record.ttft_p90_s(size));
        }
        Self {
            ttft_s,
            ttft_p90_s,
            speed: over(&|record| record.speed.typical()),
            billing: over(&ModelRecord::billing),
        }
    }
}

impl Router {
    /// True when a seller is judged by its own record.
    #[must_use]
    pub fn is_proven(&self, seller: &PeerId) -> bool {
        let record = self.record(seller);
        record.is_some_and(|record| record.is_proven(self.now_ms(), &self.inner.settings))
    }
    /// What is known of a seller, for people.
    #[must_use]
    pub fn record(&self, seller: &PeerId) -> Option<SellerRecord> {
        self.inner.state.lock().sellers.get(seller).cloned()
    }
    /// What is known of a seller's model, for people.
    #[must_use]
    pub fn model_record(&self, seller: &PeerId, model: &ModelId) -> Option<ModelRecord> {
        let state = self.inner.state.lock();
        state.models.get(model)?.records.get(seller).cloned()
    }
}
