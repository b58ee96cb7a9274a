//! How much is served, to all and to each buyer: rates by the minute and quotas by the UTC day, as a
//! pure state that is told the time.
//!
//! A request counts with its input when it is taken and with the rest when it is over, for only then
//! is the rest known; what overdraws a rate is waited off before the next request. Invariants: a
//! refused request counts nothing; memory is bounded, a buyer whose rates are full again and who was
//! served nothing today is forgotten. Called by the flow of [`super`].

use std::collections::HashMap;

use crate::types::{MicroUsd, PeerId, UnixMs};

/// A minute, ms: the time a rate is counted by.
const MINUTE_MS: u64 = 60_000;
/// A UTC day, ms: the time a quota is counted by.
pub const DAY_MS: u64 = 24 * 60 * MINUTE_MS;
/// Buyers that are kept apart before those at rest are forgotten.
const BUYERS_KEPT: usize = 10_000;

/// What the owner allows; 0 and `None` are no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitSettings {
    /// Requests in a minute, all buyers together.
    pub requests_per_minute: u32,
    /// Tokens in a minute, all buyers together.
    pub tokens_per_minute: u32,
    /// Requests in a minute of one buyer.
    pub buyer_requests_per_minute: u32,
    /// Tokens in a minute of one buyer.
    pub buyer_tokens_per_minute: u32,
    /// Tokens in a day of one buyer.
    pub buyer_tokens_daily: u64,
    /// What one buyer is served in a day.
    pub buyer_daily: Option<MicroUsd>,
}

/// Why a request is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// A rate is used up; it is there again in so many ms.
    Rate(u64),
    /// The buyer's quota of the day is used up; the next begins in so many ms.
    Quota(u64),
}

/// An allowance that refills in a minute: `limit` tokens of `1/MINUTE_MS` parts each.
#[derive(Clone, Copy, Debug)]
struct Rate {
    limit: u32,
    /// Parts that are there; below zero when more was used than there was.
    parts: i64,
    at_ms: UnixMs,
}

#[derive(Clone, Copy, Debug)]
struct Rates {
    requests: Rate,
    tokens: Rate,
}

#[derive(Clone, Copy, Debug)]
struct Buyer {
    rates: Rates,
    /// Served in the current day.
    tokens: u64,
    cost: MicroUsd,
}

/// All rates and quotas.
#[derive(Clone, Debug)]
pub struct Limits {
    settings: LimitSettings,
    all: Rates,
    buyers: HashMap<PeerId, Buyer>,
    /// Number of the current UTC day.
    day: u64,
}

impl Rate {
    fn new(limit: u32, now_ms: UnixMs) -> Self {
        Self {
            limit,
            parts: parts(u64::from(limit)),
            at_ms: now_ms,
        }
    }

    /// Refills by the time that passed.
    fn turn(&mut self, now_ms: UnixMs) {
        let passed = now_ms.saturating_sub(self.at_ms).min(MINUTE_MS * 60);
        self.at_ms = self.at_ms.max(now_ms);
        let more = passed.saturating_mul(u64::from(self.limit));
        let full = parts(u64::from(self.limit));
        let more = i64::try_from(more).unwrap_or(i64::MAX);
        self.parts = self.parts.saturating_add(more).min(full);
    }

    /// How long until one more fits, ms; 0 = now.
    fn wait_ms(&self, least: u64) -> u64 {
        if self.limit == 0 {
            return 0;
        }
        let missing = parts(least).saturating_sub(self.parts);
        let missing = u64::try_from(missing).unwrap_or(0);
        missing.div_ceil(u64::from(self.limit))
    }

    fn take(&mut self, count: u64) {
        if self.limit > 0 {
            self.parts = self.parts.saturating_sub(parts(count));
        }
    }

    fn is_full(&self) -> bool {
        self.limit == 0 || self.parts >= parts(u64::from(self.limit))
    }
}

fn parts(count: u64) -> i64 {
    i64::try_from(count.saturating_mul(MINUTE_MS)).unwrap_or(i64::MAX)
}

impl Rates {
    fn new(requests: u32, tokens: u32, now_ms: UnixMs) -> Self {
        Self {
            requests: Rate::new(requests, now_ms),
            tokens: Rate::new(tokens, now_ms),
        }
    }
    fn turn(&mut self, now_ms: UnixMs) {
        self.requests.turn(now_ms);
        self.tokens.turn(now_ms);
    }
    /// Tokens need only not be overdrawn: no request is too long for ever.
    fn wait_ms(&self) -> u64 {
        self.requests.wait_ms(1).max(self.tokens.wait_ms(0))
    }
    fn is_full(&self) -> bool {
        self.requests.is_full() && self.tokens.is_full()
    }
}

impl Limits {
    /// Nothing served yet.
    #[must_use]
    pub fn new(settings: LimitSettings, now_ms: UnixMs) -> Self {
        let all = (settings.requests_per_minute, settings.tokens_per_minute);
        Self {
            settings,
            all: Rates::new(all.0, all.1, now_ms),
            buyers: HashMap::new(),
            day: now_ms / DAY_MS,
        }
    }

    /// What the ledger says a buyer was served today.
    pub fn remember(&mut self, buyer: PeerId, tokens: u64, cost: MicroUsd, now_ms: UnixMs) {
        let buyer = self.buyer(buyer, now_ms);
        buyer.tokens = buyer.tokens.saturating_add(tokens);
        buyer.cost = buyer.cost.saturating_add(cost);
    }

    /// Takes a request whose input is `tokens` by estimate.
    ///
    /// # Errors
    /// Which limit does not allow it, and when it will; nothing has changed then.
    pub fn take(&mut self, buyer: PeerId, tokens: u64, now_ms: UnixMs) -> Result<(), Refused> {
        self.turn(now_ms);
        let settings = self.settings;
        let mut all = self.all;
        let one = self.buyer(buyer, now_ms);
        one.rates.turn(now_ms);
        let too_many = settings.buyer_tokens_daily > 0
            && one.tokens.saturating_add(tokens) > settings.buyer_tokens_daily;
        if too_many || settings.buyer_daily.is_some_and(|most| one.cost >= most) {
            return Err(Refused::Quota(DAY_MS - now_ms % DAY_MS));
        }
        let wait_ms = all.wait_ms().max(one.rates.wait_ms());
        if wait_ms > 0 {
            return Err(Refused::Rate(wait_ms));
        }
        one.tokens = one.tokens.saturating_add(tokens);
        for rates in [&mut one.rates, &mut all] {
            rates.requests.take(1);
            rates.tokens.take(tokens);
        }
        self.all = all;
        Ok(())
    }

    /// A request that was taken with `estimate` is over: it had `tokens` and costs `cost`.
    pub fn served(
        &mut self,
        buyer: PeerId,
        estimate: u64,
        tokens: u64,
        cost: MicroUsd,
        now_ms: UnixMs,
    ) {
        self.turn(now_ms);
        let one = self.buyer(buyer, now_ms);
        one.tokens = one.tokens.saturating_sub(estimate).saturating_add(tokens);
        one.cost = one.cost.saturating_add(cost);
        let more = tokens.saturating_sub(estimate);
        one.rates.tokens.take(more);
        self.all.tokens.take(more);
    }

    /// Served to `buyer` in the current day: tokens and their cost.
    #[must_use]
    pub fn today(&self, buyer: &PeerId) -> (u64, MicroUsd) {
        let buyer = self.buyers.get(buyer);
        buyer.map_or((0, MicroUsd::ZERO), |one| (one.tokens, one.cost))
    }

    fn turn(&mut self, now_ms: UnixMs) {
        self.all.turn(now_ms);
        let day = now_ms / DAY_MS;
        if day > self.day {
            self.day = day;
            for buyer in self.buyers.values_mut() {
                buyer.tokens = 0;
                buyer.cost = MicroUsd::ZERO;
            }
        }
    }

    fn buyer(&mut self, buyer: PeerId, now_ms: UnixMs) -> &mut Buyer {
        if self.buyers.len() >= BUYERS_KEPT && !self.buyers.contains_key(&buyer) {
            self.buyers.retain(|_, one| {
                one.rates.turn(now_ms);
                let served = one.tokens > 0 || one.cost > MicroUsd::ZERO;
                served || !one.rates.is_full()
            });
        }
        let settings = self.settings;
        self.buyers.entry(buyer).or_insert_with(|| Buyer {
            rates: Rates::new(
                settings.buyer_requests_per_minute,
                settings.buyer_tokens_per_minute,
                now_ms,
            ),
            tokens: 0,
            cost: MicroUsd::ZERO,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const T0: UnixMs = 20_000 * DAY_MS;

    fn limits(settings: LimitSettings) -> Limits {
        Limits::new(settings, T0)
    }

    #[test]
    fn a_buyers_rate_leaves_the_others_theirs_and_says_when_it_is_back() {
        let mut limits = limits(LimitSettings {
            buyer_requests_per_minute: 2,
            requests_per_minute: 3,
            ..LimitSettings::default()
        });
        let (first, second) = (PeerId::random(), PeerId::random());
        assert_eq!(limits.take(first, 1, T0), Ok(()));
        assert_eq!(limits.take(first, 1, T0), Ok(()));
        assert_eq!(limits.take(first, 1, T0), Err(Refused::Rate(30_000)));
        assert_eq!(limits.take(second, 1, T0), Ok(()));
        assert_eq!(limits.take(second, 1, T0), Err(Refused::Rate(20_000)));
        assert_eq!(limits.take(second, 1, T0 + 20_000), Ok(()));
        assert_eq!(limits.take(first, 1, T0 + 39_999), Err(Refused::Rate(1)));
        assert_eq!(limits.take(first, 1, T0 + 40_000), Ok(()));
    }

    #[test]
    fn tokens_that_overdraw_a_rate_are_waited_off() {
        let mut limits = limits(LimitSettings {
            buyer_tokens_per_minute: 600,
            ..LimitSettings::default()
        });
        let buyer = PeerId::random();
        assert_eq!(limits.take(buyer, 500, T0), Ok(()));
        limits.served(buyer, 500, 1_000, MicroUsd(1), T0);
        assert_eq!(limits.take(buyer, 1, T0), Err(Refused::Rate(40_000)));
        assert_eq!(limits.take(buyer, 10_000, T0 + 40_000), Ok(()));
    }

    #[test]
    fn a_quota_is_of_the_utc_day_and_survives_a_restart() {
        let settings = LimitSettings {
            buyer_tokens_daily: 1_000,
            buyer_daily: Some(MicroUsd(50)),
            ..LimitSettings::default()
        };
        let (thirsty, rich) = (PeerId::random(), PeerId::random());
        let mut limits = limits(settings);
        limits.remember(thirsty, 900, MicroUsd(1), T0);
        limits.remember(rich, 1, MicroUsd(49), T0);
        assert_eq!(limits.take(thirsty, 101, T0), Err(Refused::Quota(DAY_MS)));
        assert_eq!(limits.take(thirsty, 100, T0), Ok(()));
        assert_eq!(limits.take(rich, 1, T0), Ok(()));
        limits.served(rich, 1, 1, MicroUsd(1), T0);
        let later = T0 + DAY_MS / 2;
        assert_eq!(limits.take(rich, 1, later), Err(Refused::Quota(DAY_MS / 2)));
        assert_eq!(limits.take(rich, 1, T0 + DAY_MS), Ok(()));
        assert_eq!(limits.today(&rich), (1, MicroUsd::ZERO));
    }

    #[test]
    fn buyers_at_rest_are_forgotten_when_there_are_many() {
        let mut limits = limits(LimitSettings {
            buyer_requests_per_minute: 1,
            ..LimitSettings::default()
        });
        for _ in 0..BUYERS_KEPT {
            limits.take(PeerId::random(), 0, T0).unwrap();
        }
        limits.take(PeerId::random(), 0, T0 + MINUTE_MS).unwrap();
        assert_eq!(limits.buyers.len(), 1);
    }

    proptest! {
        #[test]
        fn no_minute_takes_more_than_twice_its_rate(steps in prop::collection::vec(0u64..4_000, 1..200)) {
            let mut limits = limits(LimitSettings { requests_per_minute: 10, ..LimitSettings::default() });
            let buyer = PeerId::random();
            let mut now_ms = T0;
            let mut taken = Vec::new();
            for step in steps {
                now_ms += step;
                if limits.take(buyer, 5, now_ms).is_ok() {
                    taken.push(now_ms);
                }
            }
            for from in &taken {
                let in_minute = taken.iter().filter(|at| *at >= from && **at < from + MINUTE_MS);
                prop_assert!(in_minute.count() <= 20);
            }
        }
    }
}
