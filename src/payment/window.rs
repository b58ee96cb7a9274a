//! How much either side risks: the window of one stream, and the cap of a pair.

use crate::types::{MicroUsd, PriceTable};

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
    /// The cap over all streams of a pair that has settled `accepted` in all.
    #[must_use]
    pub fn pair_cap(&self, accepted: MicroUsd) -> MicroUsd {
        accepted
            .mul_div_ceil(1, PAIR_SHARE_DEN)
            .clamp(self.pair_min, self.pair_max)
    }
}
