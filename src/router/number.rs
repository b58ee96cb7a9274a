//! Integers as floats. Scores are estimates and may be floats; money that is booked never is.

use crate::types::MicroUsd;

/// 2³², the weight of the upper half of a `u64`.
const UPPER: f64 = 4_294_967_296.0;

/// `n` as a float, to 53 bits.
#[must_use]
pub fn real(n: u64) -> f64 {
    let upper = u32::try_from(n >> 32).unwrap_or(u32::MAX);
    let lower = u32::try_from(n & u64::from(u32::MAX)).unwrap_or(u32::MAX);
    f64::from(upper).mul_add(UPPER, f64::from(lower))
}

/// Micro-USD as a float.
#[must_use]
pub fn micro_usd(amount: MicroUsd) -> f64 {
    real(amount.0)
}

/// The middle value; the lower one of two. `None` without any. Reorders `values`.
#[must_use]
pub fn median(values: &mut [f64]) -> Option<f64> {
    let middle = values.len().saturating_sub(1) / 2;
    if values.is_empty() {
        return None;
    }
    let (_, value, _) = values.select_nth_unstable_by(middle, f64::total_cmp);
    Some(*value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_keep_their_value_and_the_median_is_in_the_middle() {
        let exact = [
            (0, 0.0),
            (1, 1.0),
            (u64::from(u32::MAX), 4_294_967_295.0),
            (1 << 32, 4_294_967_296.0),
            (1 << 53, 9_007_199_254_740_992.0),
        ];
        for (n, float) in exact {
            assert_eq!(real(n), float);
        }
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&mut [2.0, 1.0]), Some(1.0));
        assert_eq!(median(&mut []), None);
    }
}
