//! `[buy.routing]`: the router's constants. The defaults are the router's own.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::values::{duration, opt_percent, opt_usd, usd};
use crate::router::Settings;
use crate::router::number::micro_usd;
use crate::types::MicroUsd;

/// `[buy.routing]`: what waiting is worth, and how far strangers are trusted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RoutingSection {
    /// What a second of waiting is worth with `prefer = "cheap"`, in USD.
    #[serde(with = "usd")]
    pub second_cheap: MicroUsd,
    /// The same with `prefer = "balanced"`.
    #[serde(with = "usd")]
    pub second_balanced: MicroUsd,
    /// The same with `prefer = "fast"`.
    #[serde(with = "usd")]
    pub second_fast: MicroUsd,
    /// Time in which half of what is known about success is forgotten.
    #[serde(with = "duration")]
    pub quality_half_life: Duration,
    /// Time in which speeds are forgotten.
    #[serde(with = "duration")]
    pub latency_memory: Duration,
    /// Good answers that a seller needs to be proven,
    pub proven_answers: u32,
    /// and USD spent on them,
    #[serde(with = "usd")]
    pub proven_spend: MicroUsd,
    /// and time since it was first seen.
    #[serde(with = "duration")]
    pub proven_age: Duration,
    /// What may be in flight or prepaid to a newcomer, in USD.
    #[serde(with = "usd")]
    pub credit_start: MicroUsd,
    /// The same to anybody, at most.
    #[serde(with = "usd")]
    pub credit_max: MicroUsd,
    /// Most spent on newcomers in a day beside proven sellers, in USD,
    #[serde(with = "usd")]
    pub exploration_min: MicroUsd,
    /// or this share of the last seven days' spend, if that is more.
    #[serde(with = "opt_percent")]
    pub exploration_share: Option<u32>,
    /// How often a newcomer is asked for its own sake, while newcomers are good.
    #[serde(with = "opt_percent")]
    pub exploration_chance: Option<u32>,
    /// Billing above the own count that sets a seller aside,
    #[serde(with = "opt_percent")]
    pub quarantine_above: Option<u32>,
    /// after this many requests,
    pub quarantine_requests: u32,
    /// for this long.
    #[serde(with = "duration")]
    pub quarantine: Duration,
    /// Failures in a row after which a seller is left alone,
    pub breaker_failures: u32,
    /// for this long at first, doubling,
    #[serde(with = "duration")]
    pub breaker_pause: Duration,
    /// and at most for this long.
    #[serde(with = "duration")]
    pub breaker_pause_max: Duration,
    /// Connections kept to the best sellers of each model used in the last half hour.
    pub warm_sellers: u32,
    /// Most spent in a day on questions with known answers, in USD; `None` = none are asked.
    #[serde(with = "opt_usd")]
    pub canaries: Option<MicroUsd>,
    /// Time between two of them.
    #[serde(with = "duration")]
    pub canary_interval: Duration,
    /// How long upstreams keep a conversation in their cache.
    #[serde(with = "duration")]
    pub cache_life: Duration,
}

impl Default for RoutingSection {
    fn default() -> Self {
        Self {
            second_cheap: MicroUsd(100),
            second_balanced: MicroUsd(500),
            second_fast: MicroUsd(5_000),
            quality_half_life: Duration::from_secs(6 * 3_600),
            latency_memory: Duration::from_secs(10 * 60),
            proven_answers: 20,
            proven_spend: MicroUsd(50_000),
            proven_age: Duration::from_secs(24 * 3_600),
            credit_start: MicroUsd(50_000),
            credit_max: MicroUsd(5_000_000),
            exploration_min: MicroUsd(50_000),
            exploration_share: Some(200),
            exploration_chance: Some(400),
            quarantine_above: Some(2_500),
            quarantine_requests: 10,
            quarantine: Duration::from_secs(7 * 24 * 3_600),
            breaker_failures: 3,
            breaker_pause: Duration::from_secs(30),
            breaker_pause_max: Duration::from_secs(15 * 60),
            warm_sellers: 3,
            canaries: None,
            canary_interval: Duration::from_secs(10 * 60),
            cache_life: Duration::from_secs(5 * 60),
        }
    }
}

impl RoutingSection {
    /// The same for the router; newcomers may lose prepayments of `bootstrap_loss_max` in a day while
    /// nobody is proven.
    #[must_use]
    pub fn settings(&self, bootstrap_loss_max: MicroUsd) -> Settings {
        let usual = Settings::default();
        let share = |bp: Option<u32>, none: f64| bp.map_or(none, |bp| f64::from(bp) / 10_000.0);
        Settings {
            second_cheap: micro_usd(self.second_cheap),
            second_balanced: micro_usd(self.second_balanced),
            second_fast: micro_usd(self.second_fast),
            quality_half_life_ms: ms(self.quality_half_life),
            latency_tau_ms: ms(self.latency_memory),
            proven_answers: self.proven_answers,
            proven_spend: micro_usd(self.proven_spend),
            proven_age_ms: ms(self.proven_age),
            credit_start: micro_usd(self.credit_start),
            credit_max: micro_usd(self.credit_max.max(self.credit_start)),
            exploration_min: micro_usd(self.exploration_min),
            exploration_share: share(self.exploration_share, 0.0),
            exploration_chance: share(self.exploration_chance, 0.0),
            bootstrap_loss_max,
            quarantine_factor: 1.0 + share(self.quarantine_above, f64::INFINITY),
            quarantine_requests: self.quarantine_requests,
            quarantine_ms: ms(self.quarantine),
            breaker_in_a_row: self.breaker_failures.max(1),
            breaker_pause_ms: ms(self.breaker_pause),
            breaker_pause_max_ms: ms(self.breaker_pause_max),
            cache_life_ms: ms(self.cache_life),
            ..usual
        }
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_the_routers_own() {
        let loss = crate::config::PaymentSection::default().bootstrap_loss_max;
        assert_eq!(
            RoutingSection::default().settings(loss),
            Settings::default()
        );
    }
}
