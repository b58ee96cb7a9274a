//! One number per seller: what a good answer from it costs, in micro-USD, waiting included.
//!
//! `U = (k·C' + v·L + (1 − q)·v·t_fail) ÷ (q·(1 − h))`. Money and seconds are one scale, so the
//! number can be told to a user; dividing by the chance of a good answer prices what does not come.

use super::number::{micro_usd, real};
use super::record::{ModelRecord, SellerRecord, size_of};
use super::settings::Settings;
use super::{Ask, Entry};
use crate::types::{PeerId, UnixMs};

/// Least chance of a good answer that is divided by: a hopeless seller is dear, not infinite.
const SUCCESS_MIN: f64 = 1e-3;

/// The prices of a model's market that stand in for what a seller has not shown yet.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Market {
    /// Median of the first token by input size, s.
    pub ttft_s: [Option<f64>; super::record::SIZES_COUNT],
    /// Median of what nine of ten first tokens take, by input size, s.
    pub ttft_p90_s: [Option<f64>; super::record::SIZES_COUNT],
    /// Median speed, tokens/s.
    pub speed: Option<f64>,
    /// Median of billed ÷ own count.
    pub billing: Option<f64>,
}

/// A seller's score and the parts it is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// The seller.
    pub seller: PeerId,
    /// The score, micro-USD; the least is chosen.
    pub total: f64,
    /// List cost of this request, micro-USD.
    pub list_cost: f64,
    /// What the seller's cache of this conversation saves, micro-USD.
    pub saved: f64,
    /// The cost that counts: newcomers gain nothing by undercutting, a cache is saved by all.
    pub cost: f64,
    /// Factor for billing above the own count.
    pub billing: f64,
    /// Expected time to the whole answer, s.
    pub latency_s: f64,
    /// Time lost when the attempt fails, s.
    pub fail_s: f64,
    /// Chance of success.
    pub success: f64,
    /// Chance that it serves another model than it says.
    pub substituted: f64,
    /// Judged by its own record.
    pub proven: bool,
    /// Holds this conversation in its upstream's cache.
    pub holds_cache: bool,
    /// Requests under way there.
    pub in_flight: u32,
    /// Attempts known of this model.
    pub observed: u32,
}

/// What the formula adds up.
pub struct Parts {
    /// Billed cost, micro-USD.
    pub money: f64,
    /// Expected time to the whole answer, s.
    pub latency_s: f64,
    /// Time lost when the attempt fails, s.
    pub fail_s: f64,
    /// Chance of success.
    pub success: f64,
    /// Chance that it serves another model than it says.
    pub substituted: f64,
}

impl Parts {
    /// The formula: micro-USD for a good answer, when a second is worth `second` micro-USD.
    #[must_use]
    pub fn total(&self, second: f64) -> f64 {
        let waiting = second * self.latency_s + (1.0 - self.success) * second * self.fail_s;
        (self.money + waiting) / (self.success * (1.0 - self.substituted)).max(SUCCESS_MIN)
    }
}

/// The list cost of a request, micro-USD: expected output, and `cached` tokens at the cache's price.
#[must_use]
pub fn list_cost(entry: &Entry, input: f64, cached: f64, output: f64, settings: &Settings) -> f64 {
    let price = &entry.price;
    let cached = if price.cache_read < price.input {
        cached.min(input)
    } else {
        0.0
    };
    let tokens = (input - cached) * real(price.input)
        + cached * real(price.cache_read)
        + output * real(price.output);
    let opening = if entry.has_channel {
        0.0
    } else {
        micro_usd(entry.open_fee) / settings.open_fee_requests
    };
    tokens / 1e6 + opening
}

/// What a score is made of, besides the list cost and the chance of success.
pub struct Known<'a> {
    /// The request.
    pub ask: &'a Ask<'a>,
    /// The seller, when anything is known.
    pub seller: Option<&'a SellerRecord>,
    /// Its record with this model.
    pub model: Option<&'a ModelRecord>,
    /// What stands in for the rest.
    pub market: &'a Market,
    /// Tokens expected of the answer.
    pub output: f64,
    /// Now.
    pub now_ms: UnixMs,
    /// The constants.
    pub settings: &'a Settings,
}

impl Known<'_> {
    /// Expected time to the whole answer, and what a failed attempt loses, s.
    #[must_use]
    pub fn seconds(&self) -> (f64, f64) {
        let (settings, size) = (self.settings, size_of(self.ask.input_tokens));
        let factor = settings.latency_prior_factor;
        let market = self.market.ttft_s.get(size).copied().flatten();
        let ttft = self
            .model
            .and_then(|model| model.ttft_s(size))
            .unwrap_or_else(|| market.map_or(settings.ttft_s, |median| median * factor));
        let speed = self
            .model
            .and_then(|model| model.speed.typical())
            .unwrap_or_else(|| {
                let median = self.market.speed;
                median.map_or(settings.tokens_per_s, |median| median / factor)
            });
        let usual = self.market.ttft_p90_s.get(size).copied().flatten();
        let p90 = self.model.and_then(|model| model.ttft_p90_s(size));
        let p90 = p90.or(usual).unwrap_or(settings.fail_s);
        let fail_s = p90.min(self.ask.deadline_s);
        (ttft + self.output / speed.max(0.1), fail_s)
    }

    /// The factor by which it bills above the own count, against the market where nobody can count
    /// exactly.
    #[must_use]
    pub fn billing(&self) -> f64 {
        let billed = self.model.and_then(ModelRecord::billing).unwrap_or(1.0);
        let usual = if self.ask.exact {
            1.0
        } else {
            self.market.billing.unwrap_or(1.0).max(1.0)
        };
        (billed / usual).clamp(1.0, self.settings.honesty_factor_max)
    }

    /// The chance that it serves another model than it says.
    #[must_use]
    pub fn substituted(&self) -> f64 {
        let unknown = SellerRecord::default();
        let seller = self.seller.unwrap_or(&unknown);
        seller.substituted(self.now_ms, self.settings)
    }
}

impl Score {
    /// Computes the total from the parts.
    pub fn sum_up(&mut self, second: f64) {
        self.total = Parts {
            money: self.billing * self.cost,
            latency_s: self.latency_s,
            fail_s: self.fail_s,
            success: self.success,
            substituted: self.substituted,
        }
        .total(second);
    }
}
