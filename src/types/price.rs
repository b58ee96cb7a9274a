//! Prices as integers: micro-USD per one million tokens ($2.50/M = 2 500 000).

use serde::{Deserialize, Serialize};

use super::{MicroUsd, Usage};

/// Prices are per this many tokens.
pub const TOKENS_PER_PRICE: u64 = 1_000_000;

/// What one million tokens of each kind cost, in micro-USD.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PriceTable {
    /// Fresh input.
    pub input: u64,
    /// Input read from the upstream's cache.
    pub cache_read: u64,
    /// Input written to the upstream's cache.
    pub cache_write: u64,
    /// Output, reasoning included.
    pub output: u64,
}

impl PriceTable {
    /// Cost of `usage`: `ceil(Σ tokensᵢ·priceᵢ ÷ 1 000 000)` in 128 bits, rounded up once.
    #[must_use]
    pub fn cost(&self, usage: &Usage) -> MicroUsd {
        let total = u128::from(usage.input) * u128::from(self.input)
            + u128::from(usage.cache_read) * u128::from(self.cache_read)
            + u128::from(usage.cache_write) * u128::from(self.cache_write)
            + u128::from(usage.output) * u128::from(self.output);
        let micro = total.div_ceil(u128::from(TOKENS_PER_PRICE));
        MicroUsd(u64::try_from(micro).unwrap_or(u64::MAX))
    }
    /// Cost of `tokens` fresh input and `output` output tokens.
    #[must_use]
    pub fn cost_in_out(&self, input: u64, output: u64) -> MicroUsd {
        self.cost(&Usage {
            input,
            output,
            ..Usage::default()
        })
    }
    /// True when every part is free.
    #[must_use]
    pub fn is_free(&self) -> bool {
        *self == Self::default()
    }
    /// The dearest input part, which bounds the cost of an input whose cache share is unknown.
    #[must_use]
    pub fn input_max(&self) -> u64 {
        self.input.max(self.cache_read).max(self.cache_write)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cost_rounds_up_once() {
        let price = PriceTable {
            input: 2_500_000,
            cache_read: 1,
            cache_write: 1,
            output: 10_000_000,
        };
        let usage = Usage {
            input: 1,
            cache_read: 1,
            cache_write: 1,
            output: 1,
            reasoning: 1,
        };
        assert_eq!(price.cost(&usage), MicroUsd(13));
        assert_eq!(price.cost(&Usage::default()), MicroUsd::ZERO);
    }

    proptest! {
        #[test]
        fn cost_is_monotone_in_every_part(a in 0u64..1_000_000, b in 0u64..1_000_000, p in 0u64..100_000_000) {
            let price = PriceTable { input: p, cache_read: p / 2, cache_write: p, output: p };
            let small = Usage { input: a, output: b, ..Usage::default() };
            let large = Usage { input: a + 1, output: b + 1, ..Usage::default() };
            prop_assert!(price.cost(&large) >= price.cost(&small));
        }
    }
}
