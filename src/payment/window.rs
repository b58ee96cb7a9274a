//! How much either side risks: the window of one stream, and the cap of a pair.

use crate::protocol::limits::STAGE_CHUNK_ROWS_MAX;
use crate::protocol::offer::{Offer, is_stage_model};
use crate::types::{MicroUsd, ModelId, PriceTable};

/// Constants of the windows; one set per node, from `[payment]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSettings {
    /// Least window of a stream.
    pub stream_min: MicroUsd,
    /// Greatest window of a stream.
    pub stream_max: MicroUsd,
    /// Least cap over all streams of a pair.
    pub pair_min: MicroUsd,
    /// Greatest cap over all streams of a pair.
    pub pair_max: MicroUsd,
    /// Most that is prepaid for one request's known-before part.
    pub prepay_max: MicroUsd,
}

impl Default for WindowSettings {
    fn default() -> Self {
        Self {
            stream_min: MicroUsd(500),
            stream_max: MicroUsd(10_000),
            pair_min: MicroUsd(50_000),
            pair_max: MicroUsd(250_000),
            prepay_max: MicroUsd(500_000),
        }
    }
}

/// Output tokens that a window covers at least: two seconds of a fast model.
const WINDOW_OUTPUT_TOKENS: u64 = 256;
/// The cap of a pair is this share of what it has already settled: 1 %.
const PAIR_SHARE_DEN: u64 = 100;

impl WindowSettings {
    /// The window of one stream at `price`: 256 output tokens, clamped.
    #[must_use]
    pub fn stream(&self, price: &PriceTable) -> MicroUsd {
        price
            .cost_in_out(0, WINDOW_OUTPUT_TOKENS)
            .clamp(self.stream_min, self.stream_max)
    }
    /// The window of one session of a stage of `layers` layers: what a stream has, and at least one
    /// chunk of rows, because a chunk's results leave together and are paid when they have left. No
    /// more than a fresh pair may risk in all.
    #[must_use]
    pub fn stage(&self, price: &PriceTable, layers: u16) -> MicroUsd {
        let rows = u64::from(STAGE_CHUNK_ROWS_MAX);
        let tokens = rows.saturating_mul(u64::from(layers));
        let chunk = price
            .cost_in_out(tokens, 0)
            .max(price.cost_in_out(0, tokens));
        self.stream(price).max(chunk.min(self.pair_min))
    }
    /// The window of what is ordered by `offer`; both sides read it from there.
    #[must_use]
    pub fn of(&self, offer: &Offer) -> MicroUsd {
        match &offer.stage {
            _ if offer.price.is_free() => MicroUsd::ZERO,
            Some(terms) => self.stage(&offer.price, terms.width()),
            None => self.stream(&offer.price),
        }
    }
    /// The most that the window of an attempt of an earlier life was: its offer may be gone.
    #[must_use]
    pub fn most(&self, model: &ModelId, price: &PriceTable) -> MicroUsd {
        if is_stage_model(model) {
            self.stream(price).max(self.pair_min)
        } else {
            self.stream(price)
        }
    }
    /// The cap over all streams of a pair that has settled `accepted` in all.
    #[must_use]
    pub fn pair_cap(&self, accepted: MicroUsd) -> MicroUsd {
        accepted
            .mul_div_ceil(1, PAIR_SHARE_DEN)
            .clamp(self.pair_min, self.pair_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_may_give_one_chunk_before_it_is_paid() {
        let windows = WindowSettings::default();
        let price = |input, output| PriceTable {
            input,
            output,
            ..PriceTable::default()
        };
        // Cheap: as any stream. Decode dearer than prefill: any chunk may be priced by either.
        assert_eq!(windows.stage(&price(1_000, 1_000), 4), MicroUsd(500));
        let dear = price(10_000_000, 30_000_000);
        assert_eq!(windows.stream(&dear), MicroUsd(7_680));
        assert_eq!(windows.stage(&dear, 10), MicroUsd(64 * 10 * 30));
        assert_eq!(windows.stage(&dear, 80), windows.pair_min);
        let stage = crate::protocol::offer::stage_model(&crate::types::Hash32([1; 32]));
        assert_eq!(windows.most(&stage, &dear), windows.pair_min);
    }
}
