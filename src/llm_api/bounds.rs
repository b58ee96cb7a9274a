//! The most a buyer pays for a request: its own count, with margins. Pure integers.
//!
//! An upstream's `usage` is a claim. The buyer recounts the text and pays at most its own count
//! × 1.03 + 16 out and × 1.05 + 32 + 16 a message + 400 with tools in (× 1.35 where the tokenizer is
//! not public and not calibrated), declared tokens for images, and hidden reasoning up to the
//! offer's cap. The constants together are worth at most $0.001 a request. Called by the buyer
//! before ACCEPT and for `usage.cost`; by the seller to see what it can hope for.

use super::Margin;
use crate::types::{MicroUsd, PriceTable, Usage};

/// Output tokens granted on top of the factor.
const OUTPUT_CONSTANT: u64 = 16;
/// Input tokens granted on top of the factor.
const INPUT_CONSTANT: u64 = 32;
/// Input tokens granted for each message (role, separators).
const INPUT_PER_MESSAGE: u64 = 16;
/// Input tokens granted when tools are present (their template).
const INPUT_FOR_TOOLS: u64 = 400;
/// Worth of all constants of a request, at most.
const CONSTANTS_MAX: MicroUsd = MicroUsd(1_000);

/// What the buyer knows of a request and its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnCount {
    /// Own count of the request's text.
    pub input: u64,
    /// Own count of the delivered text.
    pub output: u64,
    /// How far the input count is to be trusted.
    pub input_margin: Margin,
    /// How far the output count is to be trusted.
    pub output_margin: Margin,
    /// Messages in the request.
    pub message_count: u64,
    /// Tools in the request.
    pub has_tools: bool,
    /// Images in the request.
    pub images: u64,
    /// Tokens an image has by the offer.
    pub image_tokens: u64,
    /// Hidden reasoning that the offer declares, at most.
    pub reasoning_cap: u64,
}

/// Tokens up to which a claim is paid: by count, and by the constants on top.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Input by count and images.
    pub input: u64,
    /// Input by constants.
    pub input_constant: u64,
    /// Output by count, without hidden reasoning.
    pub output: u64,
    /// Output by constants.
    pub output_constant: u64,
    /// Hidden reasoning, at most.
    pub reasoning_cap: u64,
}

fn scaled(tokens: u64, permille: u64) -> u64 {
    let wide = (u128::from(tokens) * u128::from(permille)).div_ceil(1000);
    u64::try_from(wide).unwrap_or(u64::MAX)
}

/// The bound of an own count.
#[must_use]
pub fn bound(own: &OwnCount) -> Bound {
    let tools = if own.has_tools { INPUT_FOR_TOOLS } else { 0 };
    Bound {
        input: scaled(own.input, own.input_margin.input_permille())
            .saturating_add(own.images.saturating_mul(own.image_tokens)),
        input_constant: own
            .message_count
            .saturating_mul(INPUT_PER_MESSAGE)
            .saturating_add(INPUT_CONSTANT + tools),
        output: scaled(own.output, own.output_margin.output_permille()),
        output_constant: OUTPUT_CONSTANT,
        reasoning_cap: own.reasoning_cap,
    }
}

/// What is paid for a claim, and whether the claim was above the bound (the receipt is disputed).
/// A claim within the bound costs exactly its list price.
#[must_use]
pub fn bounded_cost(price: &PriceTable, claimed: &Usage, own: &OwnCount) -> (MicroUsd, bool) {
    let limit = bound(own);
    let reasoning = claimed.reasoning.min(limit.reasoning_cap);
    let output_counted = limit.output.saturating_add(reasoning);
    let counted = trim(price, claimed, limit.input, output_counted);
    let whole = trim(
        price,
        claimed,
        limit.input.saturating_add(limit.input_constant),
        output_counted.saturating_add(limit.output_constant),
    );
    let cost = price
        .cost(&whole)
        .min(price.cost(&counted).saturating_add(CONSTANTS_MAX));
    (cost, price.cost(claimed) > cost)
}

/// The claim cut to the limits; of input the dearest part is cut first.
fn trim(price: &PriceTable, claimed: &Usage, input_max: u64, output_max: u64) -> Usage {
    let mut kept = *claimed;
    kept.output = claimed.output.min(output_max);
    kept.reasoning = claimed.reasoning.min(kept.output);
    let total = u128::from(claimed.input)
        + u128::from(claimed.cache_read)
        + u128::from(claimed.cache_write);
    let over = total.saturating_sub(u128::from(input_max));
    let mut over = u64::try_from(over).unwrap_or(u64::MAX);
    let mut parts = [
        (price.input, &mut kept.input),
        (price.cache_read, &mut kept.cache_read),
        (price.cache_write, &mut kept.cache_write),
    ];
    parts.sort_by_key(|(price, _)| std::cmp::Reverse(*price));
    for (_, part) in parts {
        let cut = over.min(*part);
        *part -= cut;
        over -= cut;
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PRICE: PriceTable = PriceTable {
        input: 2_500_000,
        cache_read: 250_000,
        cache_write: 3_125_000,
        output: 10_000_000,
    };

    fn own(input: u64, output: u64) -> OwnCount {
        OwnCount {
            input,
            output,
            input_margin: Margin::Exact,
            output_margin: Margin::Exact,
            message_count: 1,
            has_tools: false,
            images: 0,
            image_tokens: 0,
            reasoning_cap: 0,
        }
    }

    #[test]
    fn an_honest_claim_costs_its_list_price() {
        let claimed = Usage {
            input: 40,
            cache_read: 60,
            output: 50,
            ..Usage::default()
        };
        assert_eq!(
            bounded_cost(&PRICE, &claimed, &own(95, 48)),
            (PRICE.cost(&claimed), false)
        );
    }

    #[test]
    fn a_claim_of_two_hundred_times_the_text_is_cut_and_disputed() {
        let claimed = Usage {
            input: 20_000,
            output: 10_000,
            ..Usage::default()
        };
        let (cost, disputed) = bounded_cost(&PRICE, &claimed, &own(100, 50));
        assert!(disputed);
        // 105 + 48 in, 52 + 16 out.
        assert_eq!(cost, PRICE.cost_in_out(153, 68));
    }

    #[test]
    fn constants_are_worth_a_tenth_of_a_cent_at_most() {
        let dear = PriceTable {
            input: 100_000_000,
            output: 100_000_000,
            ..PRICE
        };
        let claimed = Usage {
            input: 1_000,
            output: 1_000,
            ..Usage::default()
        };
        let count = OwnCount {
            has_tools: true,
            message_count: 1_000_000,
            ..own(0, 0)
        };
        assert_eq!(
            bounded_cost(&dear, &claimed, &count),
            (MicroUsd(1_000), true)
        );
    }

    #[test]
    fn hidden_reasoning_is_paid_up_to_the_cap() {
        let claimed = Usage {
            output: 5_050,
            reasoning: 5_000,
            ..Usage::default()
        };
        let with_cap = |cap| {
            let count = OwnCount {
                reasoning_cap: cap,
                ..own(0, 50)
            };
            bounded_cost(&PRICE, &claimed, &count)
        };
        assert_eq!(with_cap(8_000), (PRICE.cost(&claimed), false));
        assert_eq!(with_cap(1_000), (PRICE.cost_in_out(0, 1_068), true));
    }

    proptest! {
        #[test]
        fn nobody_pays_more_than_claim_or_bound(i in 0u64..1 << 50, r in 0u64..1 << 50, w in 0u64..1 << 50, o in 0u64..1 << 50, oi in 0u64..100_000, oo in 0u64..100_000, m in 0u64..200, t in any::<bool>()) {
            let claimed = Usage { input: i, cache_read: r, cache_write: w, output: o, reasoning: 0 };
            let count = OwnCount { message_count: m, has_tools: t, ..own(oi, oo) };
            let (cost, disputed) = bounded_cost(&PRICE, &claimed, &count);
            prop_assert!(cost <= PRICE.cost(&claimed));
            prop_assert_eq!(disputed, cost < PRICE.cost(&claimed));
            let b = bound(&count);
            let most = PriceTable { input: PRICE.input_max(), ..PRICE }.cost_in_out(b.input, b.output);
            prop_assert!(cost <= most.saturating_add(CONSTANTS_MAX));
        }
        #[test]
        fn extreme_numbers_do_not_overflow(a in any::<u64>(), b in any::<u64>(), c in any::<u64>()) {
            let claimed = Usage { input: a, cache_read: b, cache_write: c, output: a, reasoning: b };
            let count = OwnCount { input: b, output: c, message_count: a, images: b, image_tokens: c, reasoning_cap: a, has_tools: true, input_margin: Margin::Unknown, output_margin: Margin::Calibrated };
            let _ = bounded_cost(&PRICE, &claimed, &count);
        }
    }
}
