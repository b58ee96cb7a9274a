//! A choice among ten thousand offers looks at sixteen of them.
//!
//! Every few seconds, off the path of requests, a model's offers are put in order by their mean
//! score; a request gates and scores only the first that fit. Newcomers have places of their own, in
//! a new random order each time: however many there are, they crowd nobody out, and each gets its
//! turn.

use rand::seq::SliceRandom;

use super::number::real;
use super::record::SIZES_COUNT;
use super::score::{Known, Parts, list_cost};
use super::{Ask, Entry, Router};

/// Proven sellers scored for a request.
pub const PROVEN_MAX: usize = 12;
/// Newcomers scored for a request.
pub const NEWCOMERS_MAX: usize = 4;
/// Input that stands for a size class, tokens.
const INPUTS: [u64; SIZES_COUNT] = [2_000, 12_000, 64_000, 160_000];

/// Positions of a model's offers in the order in which to look at them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shortlist {
    /// Proven sellers, best first.
    pub proven: Vec<usize>,
    /// The others, shuffled.
    pub newcomers: Vec<usize>,
}

impl Shortlist {
    /// The first positions for which `fit` finds something, with what it found: few enough to score.
    pub fn fitting<T>(&self, mut fit: impl FnMut(usize) -> Option<T>) -> Vec<T> {
        let mut found = Vec::with_capacity(PROVEN_MAX + NEWCOMERS_MAX);
        let mut take = |positions: &[usize], most: usize| {
            let fitting = positions.iter().filter_map(|at| fit(*at));
            found.extend(fitting.take(most));
        };
        take(&self.proven, PROVEN_MAX);
        take(&self.newcomers, NEWCOMERS_MAX);
        found
    }
}

impl Router {
    /// Puts a model's offers in order for requests of a size class. Takes milliseconds for ten
    /// thousand: to be kept and made anew every few seconds.
    #[must_use]
    pub fn shortlist(&self, ask: &Ask<'_>, size: usize, entries: &[Entry]) -> Shortlist {
        let now_ms = self.now_ms();
        let settings = &self.inner.settings;
        let input = INPUTS.get(size).copied().unwrap_or(ask.input_tokens);
        let ask = Ask {
            input_tokens: input,
            ..ask.clone()
        };
        let mut list = Shortlist::default();
        let mut state = self.inner.state.lock();
        let model = state.models.get(ask.model);
        let mut scored = Vec::with_capacity(entries.len());
        for (at, entry) in entries.iter().enumerate() {
            let seller = state.sellers.get(&entry.seller);
            if !seller.is_some_and(|record| record.is_proven(now_ms, settings)) {
                list.newcomers.push(at);
                continue;
            }
            let record = model.and_then(|model| model.records.get(&entry.seller));
            let unknown = super::score::Market::default();
            let known = Known {
                ask: &ask,
                seller,
                model: record,
                market: model.map_or(&unknown, |model| &model.market),
                output: settings.output_tokens,
                now_ms,
                settings,
            };
            let mean = record.map_or(settings.quality_prior, |record| {
                record
                    .quality
                    .mean(settings.quality_prior, now_ms, settings)
            });
            let list_cost = list_cost(
                entry,
                real(ask.input_tokens),
                0.0,
                settings.output_tokens,
                settings,
            );
            let (latency_s, fail_s) = known.seconds();
            let parts = Parts {
                money: known.billing() * list_cost,
                latency_s,
                fail_s,
                success: mean,
                substituted: known.substituted(),
            };
            scored.push((parts.total(settings.second(ask.prefer)), at));
        }
        scored.sort_unstable_by(|(a, _), (b, _)| a.total_cmp(b));
        list.proven = scored.into_iter().map(|(_, at)| at).collect();
        list.newcomers.shuffle(&mut state.rng);
        list
    }
}
