//! The rules of a choice: who may be asked at all, who is asked, and why the others are not.

use std::hash::{DefaultHasher, Hasher};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::breaker::Gate;
use super::number::{median, micro_usd, real};
use super::quality::Quality;
use super::record::{ModelRecord, SellerRecord};
use super::score::{Known, Market, Score, list_cost};
use super::{Ask, Entry, Inner, ModelState, Router, State};
use crate::types::{ModelId, PeerId, UnixMs};

/// How steeply the chance of newcomers falls with what they were worth: at three quarters of the
/// prior it is a seventeenth.
const WORTH_POWER: i32 = 10;

/// Who is asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Position in the entries.
    pub index: usize,
    /// Why: the score and its parts.
    pub score: Score,
}

/// Why a seller was not asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Skip {
    /// It was asked for this request already.
    Tried,
    /// It keeps failing; asked again at this time.
    Breaker(UnixMs),
    /// It was found out, until this time.
    Quarantined(UnixMs, String),
    /// It has as much as it takes at once.
    Full,
    /// More would be at stake with it than its credit allows.
    Exposure,
    /// Today's budget for newcomers is spent.
    Exploration,
}

impl Router {
    /// Chooses among `entries`, without those in `tried`; none when nobody may be asked.
    #[must_use]
    pub fn choose(&self, ask: &Ask<'_>, entries: &[Entry], tried: &[PeerId]) -> Option<Choice> {
        let now_ms = self.now_ms();
        let mut state = self.inner.state.lock();
        let mut rng = SmallRng::seed_from_u64(state.rng.random());
        let view = View::new(&self.inner, &state, ask, now_ms);
        let mut fit = view.eligible(entries, tried);
        if fit.is_empty() {
            fit = view.last_resort(entries, tried);
        }
        let mut scores = view.score(&fit, entries);
        if view.knows_nobody() {
            return least_cost(&scores, &fit, view.ask.pinned);
        }
        let prior = view.prior(&state.newcomers);
        if rng.random::<f64>() < view.exploration_chance(&state.newcomers) {
            view.explore(&mut scores, &mut fit);
        }
        for score in &mut scores {
            let quality = record_of(&state.models, ask.model, &score.seller)
                .map_or_else(Quality::default, |record| record.quality);
            // A proven seller's chance is drawn, so that a better one is found again; a newcomer
            // gets no luck, or ever new keys would have it often enough.
            score.success = if score.proven {
                let (prior, settings) = (self.inner.settings.quality_prior, &self.inner.settings);
                quality.sample(prior, now_ms, settings, &mut rng)
            } else {
                quality.mean(prior, now_ms, &self.inner.settings)
            };
            score.sum_up(self.inner.settings.second(ask.prefer));
        }
        self.inner.pick(&scores, &fit, entries, ask.pinned)
    }

    /// Every seller's score with its mean chance of success, or why it is skipped. For people:
    /// nothing is drawn, so a choice may differ.
    #[must_use]
    pub fn explain(&self, ask: &Ask<'_>, entries: &[Entry]) -> Vec<Result<Score, Skip>> {
        let now_ms = self.now_ms();
        let guard = self.inner.state.lock();
        let view = View::new(&self.inner, &guard, ask, now_ms);
        let all: Vec<usize> = (0..entries.len()).collect();
        let mut scores = view.score(&all, entries);
        let prior = view.prior(&guard.newcomers);
        let explained = scores.iter_mut().zip(entries).map(|(score, entry)| {
            if let Some(skip) = view.skip(entry, &[]) {
                return Err(skip);
            }
            let quality = record_of(&guard.models, ask.model, &score.seller)
                .map_or_else(Quality::default, |record| record.quality);
            score.success = quality.mean(prior, now_ms, &self.inner.settings);
            score.sum_up(self.inner.settings.second(ask.prefer));
            Ok(score.clone())
        });
        explained.collect()
    }
}

/// The state as one choice sees it.
struct View<'a> {
    inner: &'a Inner,
    ask: &'a Ask<'a>,
    now_ms: UnixMs,
    output: f64,
    holder: Option<(PeerId, f64)>,
    may_explore: bool,
    may_bootstrap: bool,
    sellers: &'a hashbrown::HashMap<PeerId, SellerRecord>,
    model: Option<&'a ModelState>,
}

static NO_MARKET: Market = Market {
    ttft_s: [None; super::record::SIZES_COUNT],
    ttft_p90_s: [None; super::record::SIZES_COUNT],
    speed: None,
    billing: None,
};

impl<'a> View<'a> {
    fn new(inner: &'a Inner, state: &'a State, ask: &'a Ask<'a>, now_ms: UnixMs) -> Self {
        let settings = &inner.settings;
        let usual = state
            .outputs
            .peek(&(ask.client.to_owned(), ask.model.clone()))
            .and_then(super::LogMean::typical)
            .unwrap_or(settings.output_tokens);
        let holder = ask
            .conversation
            .and_then(|key| state.conversations.holder(key, now_ms, settings));
        Self {
            inner,
            ask,
            now_ms,
            output: usual.min(real(ask.output_max)),
            holder,
            may_explore: state.exploration.may_explore(now_ms, settings),
            may_bootstrap: state.exploration.may_bootstrap(now_ms, settings),
            sellers: &state.sellers,
            model: state.models.get(ask.model),
        }
    }

    fn is_proven(&self, seller: &PeerId) -> bool {
        let settings = &self.inner.settings;
        let record = self.sellers.get(seller);
        record.is_some_and(|record| record.is_proven(self.now_ms, settings))
    }

    /// Has answered as often as a proven seller, if not for as long.
    fn is_known(&self, seller: &PeerId) -> bool {
        let record = self.sellers.get(seller);
        let enough = self.inner.settings.proven_answers;
        record.is_some_and(|record| record.good_answers >= enough)
    }

    /// The positions of those that may be asked: lossy ways only when there is no other, newcomers
    /// only as far as they may be explored. On a retry those that have answered well come alone: a
    /// client that waits already is not the one to try strangers on.
    fn eligible(&self, entries: &[Entry], tried: &[PeerId]) -> Vec<usize> {
        let fits = |(_, entry): &(usize, &Entry)| self.skip(entry, tried).is_none();
        let all: Vec<(usize, &Entry)> = entries.iter().enumerate().filter(fits).collect();
        let some_proven = all.iter().any(|(_, entry)| self.is_proven(&entry.seller));
        let allowed = all.into_iter().filter(|(_, entry)| {
            let proven = self.is_proven(&entry.seller);
            proven || self.may_try(entry, some_proven)
        });
        let mut allowed: Vec<_> = allowed.collect();
        let is_known = |(_, entry): &(usize, &Entry)| self.is_known(&entry.seller);
        if !tried.is_empty() && allowed.iter().any(is_known) {
            allowed.retain(is_known);
        }
        let all_lossy = allowed.iter().all(|(_, entry)| entry.is_lossy);
        let allowed = allowed
            .into_iter()
            .filter(|(_, e)| all_lossy || !e.is_lossy);
        let allowed: Vec<_> = allowed.collect();
        let price = |entry: &Entry| (entry.price.input, entry.price.output);
        let native = allowed.iter().filter(|(_, entry)| !entry.is_translated);
        let native = native.map(|(_, entry)| price(entry)).min();
        // A translation has nothing for itself but its price.
        let is_worth_it = |entry: &Entry| {
            !entry.is_translated || native.is_none_or(|native| price(entry) < native)
        };
        let fit = allowed.iter().filter(|(_, entry)| is_worth_it(entry));
        fit.map(|(index, _)| *index).collect()
    }

    /// Whether a newcomer may be asked: beside proven sellers within the budget for newcomers and
    /// its credit; with nobody proven also up to one request's prefill.
    fn may_try(&self, entry: &Entry, some_proven: bool) -> bool {
        let unknown = SellerRecord::new(self.now_ms);
        let record = self.sellers.get(&entry.seller).unwrap_or(&unknown);
        let credit = record.credit(self.now_ms, &self.inner.settings);
        let covered = micro_usd(entry.prefill) <= credit;
        if some_proven {
            self.may_explore && covered
        } else {
            covered || self.may_bootstrap
        }
    }

    /// Those who keep failing or seem full: better than nobody.
    fn last_resort(&self, entries: &[Entry], tried: &[PeerId]) -> Vec<usize> {
        let resort = entries.iter().enumerate().filter(|(_, entry)| {
            let skip = self.skip(entry, tried);
            matches!(skip, Some(Skip::Breaker(_) | Skip::Full))
        });
        resort.map(|(index, _)| index).collect()
    }

    /// Newcomers alone, none dearer than usual or than the best known seller with its wait: else a
    /// good one beside better known sellers would never be asked, and a cheap slow seller that came
    /// first would keep the market. A conversation is not torn from its cache for this.
    fn explore(&self, scores: &mut Vec<Score>, fit: &mut Vec<usize>) {
        let holds_cache = scores.iter().any(|score| score.holds_cache);
        let costs = scores.iter().filter(|score| score.proven);
        let usual = median(&mut costs.map(|score| score.list_cost).collect::<Vec<_>>());
        let (Some(usual), false, None) = (usual, holds_cache, self.ask.pinned) else {
            return;
        };
        let second = self.inner.settings.second(self.ask.prefer);
        let known = scores.iter().filter(|score| score.proven);
        let known = known.map(|score| score.billing * score.cost + second * score.latency_s);
        let bound = usual.max(known.min_by(f64::total_cmp).unwrap_or(usual));
        let is_new = |score: &Score| !score.proven && score.list_cost <= bound;
        if !scores.iter().any(is_new) {
            return;
        }
        let keep: Vec<bool> = scores.iter().map(is_new).collect();
        let mut kept = keep.iter();
        scores.retain(|_| kept.next().is_some_and(|keep| *keep));
        let mut kept = keep.iter();
        fit.retain(|_| kept.next().is_some_and(|keep| *keep));
    }

    fn skip(&self, entry: &Entry, tried: &[PeerId]) -> Option<Skip> {
        if tried.contains(&entry.seller) {
            return Some(Skip::Tried);
        }
        let record = self.sellers.get(&entry.seller)?;
        if record.is_quarantined(self.now_ms) {
            let reason = record.quarantine_reason.clone();
            return Some(Skip::Quarantined(record.quarantine_until_ms(), reason));
        }
        if let Gate::Open(until_ms) = record.breaker.gate(self.now_ms) {
            return Some(Skip::Breaker(until_ms));
        }
        if !record.capacity.has_room() {
            return Some(Skip::Full);
        }
        // One request is always allowed; what it may prepay is `may_try`'s question.
        let at_stake = record.exposure.saturating_add(entry.prefill);
        let credit = record.credit(self.now_ms, &self.inner.settings);
        let is_newcomer = !record.is_proven(self.now_ms, &self.inner.settings);
        let is_over = record.exposure.0 > 0 && micro_usd(at_stake) > credit;
        (is_newcomer && is_over).then_some(Skip::Exposure)
    }

    /// Scores without a chance of success yet.
    fn score(&self, fit: &[usize], entries: &[Entry]) -> Vec<Score> {
        let settings = &self.inner.settings;
        let market = self.model.map_or(&NO_MARKET, |model| &model.market);
        let scores = fit.iter().filter_map(|index| entries.get(*index));
        let mut scores: Vec<Score> = scores
            .map(|entry| {
                let seller = self.sellers.get(&entry.seller);
                let model = self.model.and_then(|m| m.records.get(&entry.seller));
                let cached = self.holder.filter(|(peer, _)| *peer == entry.seller);
                let input = real(self.ask.input_tokens);
                let held = cached.map_or(0.0, |(_, tokens)| tokens);
                let known = Known {
                    ask: self.ask,
                    seller,
                    model,
                    market,
                    output: self.output,
                    now_ms: self.now_ms,
                    settings,
                };
                let list = list_cost(entry, input, 0.0, self.output, settings);
                let saved = list - list_cost(entry, input, held, self.output, settings);
                let (latency_s, fail_s) = known.seconds();
                Score {
                    seller: entry.seller,
                    total: 0.0,
                    list_cost: list,
                    saved,
                    cost: list - saved,
                    billing: known.billing(),
                    latency_s,
                    fail_s,
                    success: settings.quality_prior,
                    substituted: known.substituted(),
                    proven: self.is_proven(&entry.seller),
                    holds_cache: cached.is_some(),
                    in_flight: seller.map_or(0, |record| record.capacity.in_flight()),
                    observed: model.map_or(0, |record| record.observed),
                }
            })
            .collect();
        self.blind_to_undercutting(&mut scores);
        scores
    }

    /// A newcomer's price counts at least as the median of the proven sellers; without any of these,
    /// as the median of all.
    fn blind_to_undercutting(&self, scores: &mut [Score]) {
        let of = |proven: bool| {
            let costs = scores.iter().filter(|score| !proven || score.proven);
            median(&mut costs.map(|score| score.list_cost).collect::<Vec<_>>())
        };
        let Some(usual) = of(true).or_else(|| of(false)) else {
            return;
        };
        for score in scores.iter_mut().filter(|score| !score.proven) {
            score.cost = score.list_cost.max(usual) - score.saved;
        }
    }

    /// Nobody was ever asked for this model. (Among strangers beside somebody known the cheapest
    /// would be the next key of whoever was found out.)
    fn knows_nobody(&self) -> bool {
        self.model.is_none_or(|model| model.records.is_empty())
    }

    /// How often a newcomer is asked for its own sake: much less where newcomers were bad of late.
    fn exploration_chance(&self, newcomers: &Quality) -> f64 {
        let settings = &self.inner.settings;
        let worth = newcomers.mean(settings.quality_prior, self.now_ms, settings);
        let worth = (worth / settings.quality_prior).min(1.0);
        settings.exploration_chance * worth.powi(WORTH_POWER)
    }

    /// What a newcomer is expected to be: no better than newcomers were.
    fn prior(&self, newcomers: &Quality) -> f64 {
        let settings = &self.inner.settings;
        let mean = newcomers.mean(settings.quality_prior, self.now_ms, settings);
        mean.min(settings.quality_prior)
    }
}

fn record_of<'a>(
    models: &'a hashbrown::HashMap<ModelId, ModelState>,
    model: &ModelId,
    seller: &PeerId,
) -> Option<&'a ModelRecord> {
    models.get(model)?.records.get(seller)
}

/// Nobody is known: the cheapest.
fn least_cost(scores: &[Score], fit: &[usize], pinned: Option<PeerId>) -> Option<Choice> {
    let best = scores.iter().zip(fit).min_by(|(a, _), (b, _)| {
        let pin = |score: &Score| Some(score.seller) != pinned;
        (pin(a).cmp(&pin(b)))
            .then(a.list_cost.total_cmp(&b.list_cost))
            .then(a.in_flight.cmp(&b.in_flight))
    });
    best.map(|(score, index)| Choice {
        index: *index,
        score: score.clone(),
    })
}

impl Inner {
    /// The pinned seller, else the least score; among equals the cache, a native way, an open
    /// channel, fewer requests in flight, and at last a local hash.
    fn pick(
        &self,
        scores: &[Score],
        fit: &[usize],
        entries: &[Entry],
        pinned: Option<PeerId>,
    ) -> Option<Choice> {
        let best = scores
            .iter()
            .map(|score| score.total)
            .min_by(f64::total_cmp)?;
        let bound = best * (1.0 + self.settings.tie);
        let chosen = scores
            .iter()
            .zip(fit)
            .filter(|(score, _)| score.total <= bound || Some(score.seller) == pinned)
            .min_by_key(|(score, index)| {
                let entry = entries.get(**index);
                (
                    Some(score.seller) != pinned,
                    !score.holds_cache,
                    entry.is_some_and(|entry| entry.is_translated),
                    !entry.is_some_and(|entry| entry.has_channel),
                    score.in_flight,
                    self.hash(&score.seller),
                )
            });
        chosen.map(|(score, index)| Choice {
            index: *index,
            score: score.clone(),
        })
    }

    fn hash(&self, seller: &PeerId) -> u64 {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.salt);
        hasher.write(&seller.to_bytes());
        hasher.finish()
    }
}
