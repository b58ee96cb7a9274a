//! What is known about one seller, and about one model of it.

use serde::{Deserialize, Serialize};

use super::breaker::Breaker;
use super::capacity::Capacity;
use super::decay::{Decaying, LogMean};
use super::number::{micro_usd, real};
use super::observation::Answered;
use super::quality::Quality;
use super::settings::Settings;
use crate::types::{MicroUsd, ModelId, UnixMs};

/// Upper ends of the input sizes between which latency is told apart, tokens.
const SIZES: [u64; 3] = [4_000, 32_000, 128_000];
/// Sizes told apart.
pub const SIZES_COUNT: usize = SIZES.len() + 1;

/// The size class of an input.
#[must_use]
pub fn size_of(input_tokens: u64) -> usize {
    SIZES.iter().take_while(|end| input_tokens >= **end).count()
}

/// Findings kept of a seller; what is older says little of it.
const EVIDENCE_MAX: usize = 8;

/// How often a model that is what it says answers a known question, …
const PROBE_PASS_GOOD: f64 = 0.95;
/// … and how often one that is not.
const PROBE_PASS_BAD: f64 = 0.3;
/// Doubt that sets a seller aside: once in a hundred tests of good ones at most.
const PROBE_DOUBT_MAX: f64 = 100.0;

/// Something that a seller was found doing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// When.
    pub at_ms: UnixMs,
    /// What, with the attempt that shows it.
    pub what: String,
}

/// One seller, all its models together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SellerRecord {
    /// When its first offer was seen.
    pub first_seen_ms: UnixMs,
    /// When it was last asked; what was not for longest is forgotten first.
    pub asked_ms: UnixMs,
    /// Answers that were good.
    pub good_answers: u32,
    /// Spent on them, micro-USD.
    pub spend: f64,
    verified: Decaying,
    /// Whether it may be asked.
    pub breaker: Breaker,
    /// How much at once.
    pub capacity: Capacity,
    passed: Decaying,
    failed: Decaying,
    quarantine_until_ms: UnixMs,
    /// Why it is in quarantine, for people.
    pub quarantine_reason: String,
    /// What it was found doing, oldest first, for people; of each the ledger keeps the receipt.
    #[serde(default)]
    pub evidence: Vec<Evidence>,
    /// When it was last asked what is known.
    #[serde(default)]
    pub probed_ms: UnixMs,
    /// How many times likelier its answers to such questions are of a model that cannot answer them
    /// than of one that can, since it was last as likely.
    #[serde(default)]
    pub doubt: f64,
    /// At stake in what is under way, micro-USD.
    #[serde(skip)]
    pub exposure: MicroUsd,
}

impl SellerRecord {
    /// A seller first seen at `now_ms`.
    #[must_use]
    pub fn new(now_ms: UnixMs) -> Self {
        Self {
            first_seen_ms: now_ms,
            ..Self::default()
        }
    }

    /// True when it earned to be treated by its own record.
    #[must_use]
    pub fn is_proven(&self, now_ms: UnixMs, settings: &Settings) -> bool {
        self.good_answers >= settings.proven_answers
            && self.spend >= settings.proven_spend
            && now_ms.saturating_sub(self.first_seen_ms) >= settings.proven_age_ms
            && !self.is_quarantined(now_ms)
    }

    /// What may be in flight or prepaid to it, micro-USD. (On-chain volume raises it only with an
    /// indexer; without one it counts for nothing.)
    #[must_use]
    pub fn credit(&self, now_ms: UnixMs, settings: &Settings) -> f64 {
        let verified = self.verified.get(now_ms, settings.credit_half_life_ms);
        settings
            .credit_gain
            .mul_add(verified, settings.credit_start)
            .clamp(settings.credit_start, settings.credit_max)
    }

    /// A good answer was paid.
    pub fn succeed(&mut self, cost: MicroUsd, now_ms: UnixMs, settings: &Settings) {
        self.good_answers = self.good_answers.saturating_add(1);
        self.spend += micro_usd(cost);
        let half_life = settings.credit_half_life_ms;
        self.verified.add(micro_usd(cost), now_ms, half_life);
        self.breaker.succeed();
        self.capacity.succeed();
    }

    /// The probability that it serves another model than it says.
    #[must_use]
    pub fn substituted(&self, now_ms: UnixMs, settings: &Settings) -> f64 {
        let half_life = settings.check_half_life_ms;
        let passed = settings.genuine_prior + self.passed.get(now_ms, half_life);
        let failed = settings.substituted_prior + self.failed.get(now_ms, half_life);
        failed / (passed + failed)
    }

    /// A check of the model's identity or of an answer's consistency. Mere traffic is none.
    pub fn check(&mut self, passed: bool, now_ms: UnixMs, settings: &Settings) {
        let side = if passed {
            &mut self.passed
        } else {
            &mut self.failed
        };
        side.add(1.0, now_ms, settings.check_half_life_ms);
        if self.substituted(now_ms, settings) > settings.substituted_max {
            self.quarantine("its answers failed checks", now_ms, settings);
        }
    }

    /// It was asked what is known. A sequential test: one wrong answer is a mistake, two of a few are
    /// none.
    pub fn probe(&mut self, passed: bool, model: &ModelId, now_ms: UnixMs, settings: &Settings) {
        let likelihood = if passed {
            PROBE_PASS_BAD / PROBE_PASS_GOOD
        } else {
            (1.0 - PROBE_PASS_BAD) / (1.0 - PROBE_PASS_GOOD)
        };
        self.doubt = (self.doubt.max(1.0) * likelihood).max(1.0);
        if !passed {
            let what = format!("it gave a wrong answer to a known question as `{model}`");
            self.remember(&what, now_ms);
        }
        self.check(passed, now_ms, settings);
        if self.doubt >= PROBE_DOUBT_MAX {
            let why = "it gave wrong answers to known questions";
            self.quarantine(why, now_ms, settings);
        }
    }

    /// Keeps what it was found doing.
    pub fn remember(&mut self, what: &str, now_ms: UnixMs) {
        if self.evidence.len() >= EVIDENCE_MAX {
            self.evidence.remove(0);
        }
        self.evidence.push(Evidence {
            at_ms: now_ms,
            what: what.to_owned(),
        });
    }

    /// Sets it aside for long, a newcomer for a seventh of that: it may have had a bad start. The
    /// first reason stays.
    pub fn quarantine(&mut self, reason: &str, now_ms: UnixMs, settings: &Settings) {
        if !self.is_quarantined(now_ms) {
            let is_known = self.good_answers >= settings.proven_answers;
            let share = if is_known { 1 } else { 7 };
            self.quarantine_until_ms = now_ms.saturating_add(settings.quarantine_ms / share);
            reason.clone_into(&mut self.quarantine_reason);
        }
    }
    /// True while it is set aside for what it did.
    #[must_use]
    pub const fn is_quarantined(&self, now_ms: UnixMs) -> bool {
        now_ms < self.quarantine_until_ms
    }
    /// When that ends.
    #[must_use]
    pub const fn quarantine_until_ms(&self) -> UnixMs {
        self.quarantine_until_ms
    }
}

/// One model of one seller.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelRecord {
    /// Chance of success.
    pub quality: Quality,
    /// First token, s, by input size.
    pub ttft: [LogMean; SIZES_COUNT],
    /// Tokens/s.
    pub speed: LogMean,
    billed: f64,
    own: f64,
    compared: u32,
    /// Attempts that counted.
    pub observed: u32,
}

impl ModelRecord {
    /// Takes a good answer's times and costs in.
    pub fn answer(&mut self, answer: &Answered, now_ms: UnixMs, settings: &Settings) {
        let (tau, step) = (settings.latency_tau_ms, settings.latency_step_min);
        let ttft = self.ttft.get_mut(size_of(answer.input_tokens));
        if let (Some(ttft), Some(seconds)) = (ttft, answer.ttft_s) {
            ttft.observe(seconds, now_ms, tau, step);
        }
        if answer.writing_s > 0.0 && answer.output_tokens > 1 {
            let speed = real(answer.output_tokens) / answer.writing_s;
            self.speed.observe(speed, now_ms, tau, step);
        }
        let keep = 1.0 - 1.0 / settings.honesty_requests.max(1.0);
        self.billed = self.billed.mul_add(keep, micro_usd(answer.billed));
        self.own = self.own.mul_add(keep, micro_usd(answer.own));
        self.compared = self.compared.saturating_add(1);
    }

    /// Billed ÷ own count over the last requests; `None` before the first.
    #[must_use]
    pub fn billing(&self) -> Option<f64> {
        (self.compared > 0 && self.own > 0.0).then(|| self.billed / self.own)
    }
    /// Requests compared.
    #[must_use]
    pub const fn compared(&self) -> u32 {
        self.compared
    }

    /// The first token's typical time for an input size, s, taken from the nearest size that is
    /// known; `None` before any.
    #[must_use]
    pub fn ttft_s(&self, size: usize) -> Option<f64> {
        self.nearest(size).and_then(LogMean::typical)
    }
    /// Nine of ten first tokens come within this, s.
    #[must_use]
    pub fn ttft_p90_s(&self, size: usize) -> Option<f64> {
        self.nearest(size).and_then(LogMean::p90)
    }

    fn nearest(&self, size: usize) -> Option<&LogMean> {
        let known = self.ttft.iter().enumerate();
        known
            .filter(|(_, mean)| mean.typical().is_some())
            .min_by_key(|(at, _)| at.abs_diff(size))
            .map(|(_, mean)| mean)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_wrong_answers_of_a_few_set_a_seller_aside_and_one_does_not() {
        let (settings, model) = (Settings::default(), ModelId::new("m"));
        let mut record = SellerRecord::new(0);
        for passed in [true, true, false, true, true, true] {
            record.probe(passed, &model, 1, &settings);
            assert!(!record.is_quarantined(1));
        }
        record.probe(false, &model, 2, &settings);
        record.probe(false, &model, 3, &settings);
        assert!(record.is_quarantined(3));
        assert_eq!(record.evidence.len(), 3);
        let again: SellerRecord =
            serde_json::from_value(serde_json::to_value(&record).unwrap()).unwrap();
        assert_eq!(again.evidence, record.evidence);
    }

    #[test]
    fn records_of_earlier_versions_are_read() {
        let mut kept = serde_json::to_value(SellerRecord::new(7)).unwrap();
        let fields = kept.as_object_mut().unwrap();
        for name in ["evidence", "probed_ms", "doubt"] {
            fields.remove(name).unwrap();
        }
        let record: SellerRecord = serde_json::from_value(kept).unwrap();
        assert_eq!(record, SellerRecord::new(7));
    }
}
