//! What a transaction may cost: pure decisions about fees. All in wei per gas unless said otherwise.

use crate::chain::Fees;
use crate::types::{MicroUsd, UnixMs};

/// Most of a transaction's gain that its gas may eat, in percent.
const GAS_PERCENT_MAX: u64 = 5;
/// Nodes replace a waiting transaction only for 10 % more of both fees; one eighth is above that
/// with all roundings.
const BUMP_NUM: u128 = 9;
const BUMP_DEN: u128 = 8;
/// The base fee rises by at most one eighth a block: twice the base is good for six full blocks.
const BASE_HEADROOM: u128 = 2;

/// The fees of a signed transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Most wei per gas.
    pub max_fee: u128,
    /// Most of it that goes to the block's maker.
    pub max_priority_fee: u128,
}

/// What to offer for a first try; none when the cap is below the present base fee, so that the
/// transaction would only wait.
#[must_use]
pub fn first_offer(now: Fees, cap: u128) -> Option<Offer> {
    let wish = now
        .base
        .saturating_mul(BASE_HEADROOM)
        .saturating_add(now.priority);
    let max_fee = wish.min(cap);
    (max_fee >= now.base && max_fee > 0).then(|| Offer {
        max_fee,
        max_priority_fee: now.priority.min(max_fee),
    })
}

/// What to offer instead of `old`: enough to replace it, at least what a first try would offer;
/// none when that is above the cap.
#[must_use]
pub fn next_offer(old: Offer, now: Fees, cap: u128) -> Option<Offer> {
    let bump = |fee: u128| {
        fee.saturating_mul(BUMP_NUM)
            .div_ceil(BUMP_DEN)
            .saturating_add(1)
    };
    let fresh = first_offer(now, cap);
    let max_fee = bump(old.max_fee).max(fresh.map_or(0, |offer| offer.max_fee));
    let tip = bump(old.max_priority_fee).max(fresh.map_or(0, |offer| offer.max_priority_fee));
    (max_fee <= cap).then_some(Offer {
        max_fee,
        max_priority_fee: tip.min(max_fee),
    })
}

/// What `gas` costs at `fee` wei per gas, at a price of one whole coin (10^18 wei), rounded up.
#[must_use]
pub fn gas_cost(gas: u64, fee: u128, coin_price: MicroUsd) -> MicroUsd {
    const WEI_PER_COIN: u128 = 1_000_000_000_000_000_000;
    let wei = u128::from(gas).saturating_mul(fee);
    // Split, so that neither a large sum overflows nor a small one vanishes.
    let price = u128::from(coin_price.0);
    let whole = (wei / WEI_PER_COIN).saturating_mul(price);
    let part = (wei % WEI_PER_COIN)
        .saturating_mul(price)
        .div_ceil(WEI_PER_COIN);
    MicroUsd(u64::try_from(whole.saturating_add(part)).unwrap_or(u64::MAX))
}

/// Why a transaction is made now, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worth {
    /// Its gas is small against its gain.
    Cheap,
    /// Its gas is not, but waiting longer loses the gain.
    Forced,
    /// It can wait for cheaper gas.
    Wait,
}

/// Whether a transaction that gains `gain` is worth `cost` of gas at `now_ms`. Without a deadline it
/// may wait for ever; from `lead_ms` before its deadline on it is made at any cost below its gain,
/// and one that gains nothing in money (a close, a reclaim asked for) only by its deadline.
#[must_use]
pub fn worth(
    gain: MicroUsd,
    cost: MicroUsd,
    deadline_ms: Option<UnixMs>,
    lead_ms: u64,
    now_ms: UnixMs,
) -> Worth {
    let eaten = u128::from(cost.0) * 100;
    if eaten <= u128::from(gain.0) * u128::from(GAS_PERCENT_MAX) {
        return Worth::Cheap;
    }
    let is_near = deadline_ms.is_some_and(|at| now_ms.saturating_add(lead_ms) >= at);
    // Spending more than is saved helps nobody, however near the deadline is.
    if is_near && (cost < gain || gain == MicroUsd::ZERO) {
        return Worth::Forced;
    }
    Worth::Wait
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOUR: u64 = 3_600_000;

    #[test]
    fn gas_above_5_percent_of_the_gain_waits_unless_the_deadline_is_near() {
        let cent = MicroUsd(10_000);
        let at = |gain, deadline| worth(MicroUsd(gain), cent, deadline, HOUR, 10 * HOUR);
        assert_eq!(at(200_000, None), Worth::Cheap);
        assert_eq!(at(199_999, None), Worth::Wait);
        assert_eq!(at(199_999, Some(11 * HOUR + 1)), Worth::Wait);
        assert_eq!(at(199_999, Some(11 * HOUR)), Worth::Forced);
        assert_eq!(
            at(10_000, Some(11 * HOUR)),
            Worth::Wait,
            "it would gain nothing"
        );
        assert_eq!(
            at(0, Some(0)),
            Worth::Forced,
            "a close that the user asked for"
        );
    }

    #[test]
    fn a_settlement_costs_what_the_gas_says() {
        // 44 400 gas at 0.01 gwei and $2 500 a coin.
        assert_eq!(
            gas_cost(44_400, 10_000_000, MicroUsd::from_usd(2_500)),
            MicroUsd(1_110)
        );
        assert_eq!(gas_cost(1, 1, MicroUsd(1)), MicroUsd(1), "never nothing");
        assert_eq!(gas_cost(0, 1, MicroUsd(1)), MicroUsd(0));
    }

    proptest! {
        #[test]
        fn offers_stay_below_the_cap_and_replace_the_old(
            base in 0u128..1 << 60, priority in 0u128..1 << 50, cap in 1u128..1 << 61,
        ) {
            let now = Fees { base, priority };
            let Some(mut offer) = first_offer(now, cap) else {
                prop_assert!(cap < base || (base + priority == 0));
                return Ok(());
            };
            let mut bumps = 0;
            while let Some(next) = next_offer(offer, now, cap) {
                prop_assert!(next.max_fee * 10 >= offer.max_fee * 11);
                prop_assert!(next.max_priority_fee * 10 >= offer.max_priority_fee * 11
                    || next.max_priority_fee == next.max_fee);
                prop_assert!(next.max_priority_fee <= next.max_fee);
                offer = next;
                bumps += 1;
            }
            prop_assert!(offer.max_fee <= cap && offer.max_priority_fee <= offer.max_fee);
            prop_assert!(bumps < 1000);
        }
        #[test]
        fn cheap_means_at_most_a_twentieth(gain in any::<u64>(), cost in any::<u64>()) {
            let cheap = worth(MicroUsd(gain), MicroUsd(cost), None, 0, 0) == Worth::Cheap;
            prop_assert_eq!(cheap, u128::from(cost) * 20 <= u128::from(gain));
        }
    }
}
