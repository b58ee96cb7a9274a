//! The router's constants. All are starting points and can be configured.

use crate::types::MicroUsd;

const SECOND_MS: u64 = 1_000;
const MINUTE_MS: u64 = 60 * SECOND_MS;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const DAY_MS: u64 = 24 * HOUR_MS;

/// What the user looks for first; it sets the price of a second of waiting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Prefer {
    /// The lowest price.
    Cheap,
    /// Price and speed together.
    #[default]
    Balanced,
    /// The shortest wait.
    Fast,
}

impl Prefer {
    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cheap => "cheap",
            Self::Balanced => "balanced",
            Self::Fast => "fast",
        }
    }
}

impl std::str::FromStr for Prefer {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "cheap" => Ok(Self::Cheap),
            "balanced" => Ok(Self::Balanced),
            "fast" => Ok(Self::Fast),
            _ => Err(()),
        }
    }
}

/// Every constant of the score, the newcomers' rules and the breaker.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// What a second of waiting is worth, micro-USD, when only the price matters.
    pub second_cheap: f64,
    /// The same when price and speed matter.
    pub second_balanced: f64,
    /// The same when speed matters.
    pub second_fast: f64,
    /// Time lost by a failed attempt when nothing better is known, s.
    pub fail_s: f64,
    /// Output expected of an answer before any was seen, tokens.
    pub output_tokens: f64,

    /// Half-life of what is known about success, ms.
    pub quality_half_life_ms: u64,
    /// Prior probability of success, at most.
    pub quality_prior: f64,
    /// Weight of the prior, in observations.
    pub quality_prior_weight: f64,
    /// Most evidence kept, in observations, so that a change is noticed within a few of them.
    pub quality_evidence_max: f64,

    /// Time in which latency is forgotten, ms.
    pub latency_tau_ms: u64,
    /// Least weight of a new latency.
    pub latency_step_min: f64,
    /// A seller without a latency is taken for this much slower than the median.
    pub latency_prior_factor: f64,
    /// First token before anybody's was seen, s.
    pub ttft_s: f64,
    /// Speed before anybody's was seen, tokens/s.
    pub tokens_per_s: f64,

    /// Requests over which billed is compared with the own count.
    pub honesty_requests: f64,
    /// Highest factor by which over-billing raises a price.
    pub honesty_factor_max: f64,
    /// Billed above own count by this factor sets a seller aside …
    pub quarantine_factor: f64,
    /// … after this many requests.
    pub quarantine_requests: u32,
    /// How long a seller stays in quarantine, ms.
    pub quarantine_ms: u64,
    /// Prior of an unchanged model: checks passed.
    pub genuine_prior: f64,
    /// Prior of an unchanged model: checks failed.
    pub substituted_prior: f64,
    /// Half-life of checks, ms.
    pub check_half_life_ms: u64,
    /// Probability of a substituted model from which a seller is in quarantine.
    pub substituted_max: f64,

    /// A seller is proven after this many good answers, …
    pub proven_answers: u32,
    /// … this much own spend, micro-USD, …
    pub proven_spend: f64,
    /// … and this long after it was first seen, ms.
    pub proven_age_ms: u64,
    /// Credit of a newcomer, micro-USD: what may be in flight or prepaid to it.
    pub credit_start: f64,
    /// Credit gained per micro-USD of own verified spend.
    pub credit_gain: f64,
    /// Half-life of that spend, ms.
    pub credit_half_life_ms: u64,
    /// Highest credit, micro-USD.
    pub credit_max: f64,
    /// Spent on newcomers in a day, at least, micro-USD …
    pub exploration_min: f64,
    /// … or this share of a day's mean spend over the last week.
    pub exploration_share: f64,
    /// How often a newcomer is asked for its own sake beside proven sellers, while newcomers are
    /// good.
    pub exploration_chance: f64,
    /// Prepayment that newcomers may lose in a day while nobody is proven, micro-USD.
    pub bootstrap_loss_max: MicroUsd,

    /// Failures in a row that open the breaker.
    pub breaker_in_a_row: u32,
    /// First pause of an open breaker, ms.
    pub breaker_pause_ms: u64,
    /// Longest pause, ms.
    pub breaker_pause_max_ms: u64,

    /// Scores this close to the best count as equal.
    pub tie: f64,
    /// Requests that share the cost of opening a channel.
    pub open_fee_requests: f64,
    /// Share of a conversation's last turn expected in its seller's cache before it was seen.
    pub cache_hit_prior: f64,
    /// How long an upstream keeps a prompt in its cache, ms.
    pub cache_life_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            second_cheap: 100.0,
            second_balanced: 500.0,
            second_fast: 5_000.0,
            fail_s: 20.0,
            output_tokens: 512.0,
            quality_half_life_ms: 6 * HOUR_MS,
            quality_prior: 0.7,
            quality_prior_weight: 4.0,
            quality_evidence_max: 100.0,
            latency_tau_ms: 10 * MINUTE_MS,
            latency_step_min: 0.1,
            latency_prior_factor: 1.25,
            ttft_s: 1.0,
            tokens_per_s: 50.0,
            honesty_requests: 20.0,
            honesty_factor_max: 1.5,
            quarantine_factor: 1.25,
            quarantine_requests: 10,
            quarantine_ms: 7 * DAY_MS,
            genuine_prior: 8.0,
            substituted_prior: 0.4,
            check_half_life_ms: 30 * DAY_MS,
            substituted_max: 0.2,
            proven_answers: 20,
            proven_spend: 50_000.0,
            proven_age_ms: DAY_MS,
            credit_start: 50_000.0,
            credit_gain: 0.25,
            credit_half_life_ms: 30 * DAY_MS,
            credit_max: 5_000_000.0,
            exploration_min: 50_000.0,
            exploration_share: 0.02,
            exploration_chance: 0.04,
            bootstrap_loss_max: MicroUsd(1_000_000),
            breaker_in_a_row: 3,
            breaker_pause_ms: 30 * SECOND_MS,
            breaker_pause_max_ms: 15 * MINUTE_MS,
            tie: 0.02,
            open_fee_requests: 20.0,
            cache_hit_prior: 0.8,
            cache_life_ms: 5 * MINUTE_MS,
        }
    }
}

impl Settings {
    /// What a second of waiting is worth, micro-USD.
    #[must_use]
    pub const fn second(&self, prefer: Prefer) -> f64 {
        match prefer {
            Prefer::Cheap => self.second_cheap,
            Prefer::Balanced => self.second_balanced,
            Prefer::Fast => self.second_fast,
        }
    }
}
