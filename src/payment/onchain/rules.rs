//! When a deposit counts, how large one is, and when a channel is brought to the chain: pure
//! functions of amounts and times. Gas is the outbox's matter: what it finds too dear waits, unless it
//! is forced here.

use super::standing::{ChannelView, Level};
use crate::types::{MicroUsd, UnixMs};

/// Requests that a deposit should last for.
const REQUESTS_PER_DEPOSIT: u64 = 20;
/// A buyer that left gets this long to come back and accept what it owes, ms; a channel that ends
/// does not wait longer.
const ACCEPT_PATIENCE_MS: u64 = 600_000;
/// Least deposits that the free money must make before a channel is opened that nobody needs yet.
const DEPOSITS_LEFT_MIN: u64 = 4;
/// Hundredths of a percent in a whole.
const BASIS_POINTS: u64 = 10_000;

/// What `[payment]` says of channels on a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Most that is served before a deposit is seen on the chain.
    pub unconfirmed_max: MicroUsd,
    /// Most of a deposit that counts while its block is not final.
    pub unsafe_max: MicroUsd,
    /// What this node asks as a seller for opening a channel.
    pub open_fee: MicroUsd,
    /// The highest such fee that this node pays as a buyer.
    pub open_fee_max: MicroUsd,
    /// Least deposit of a channel.
    pub deposit_min: MicroUsd,
    /// Greatest deposit of a channel.
    pub deposit_max: MicroUsd,
    /// Greatest share of the free money in one channel, in hundredths of a percent.
    pub deposit_share_bp: u32,
    /// Seconds between a close request and the money's return.
    pub challenge_period_s: u32,
    /// Seconds a channel lasts when nobody asks for its end.
    pub lifetime_s: u64,
    /// A channel that carried nothing for this long is closed, ms.
    pub idle_close_ms: u64,
    /// A seller settles when vouchers of this worth are not settled.
    pub settle_min: MicroUsd,
    /// Sellers of a model with which a buyer has channels before it needs them; 0 = none.
    pub open_ahead: u32,
}

impl Default for Rules {
    fn default() -> Self {
        const DAY_S: u64 = 24 * 3_600;
        Self {
            unconfirmed_max: MicroUsd(50_000),
            unsafe_max: MicroUsd(100_000),
            open_fee: MicroUsd(10_000),
            open_fee_max: MicroUsd(50_000),
            deposit_min: MicroUsd(500_000),
            deposit_max: MicroUsd::from_usd(20),
            deposit_share_bp: 2_000,
            challenge_period_s: 86_400,
            lifetime_s: 30 * DAY_S,
            idle_close_ms: 7 * DAY_S * 1_000,
            settle_min: MicroUsd::from_usd(1),
            open_ahead: 2,
        }
    }
}

impl Rules {
    /// Most that a seller delivers in all, `base` included, for what the chain shows of the deposit:
    /// final money in full, money in a fresh block up to a little, a mere signature up to less.
    #[must_use]
    pub fn ceiling(&self, view: &ChannelView, base: MicroUsd) -> MicroUsd {
        if view.closed > Level::No {
            return MicroUsd::ZERO;
        }
        let on_trust = match view.opened {
            Level::No => return base.saturating_add(self.unconfirmed_max),
            Level::Seen => base,
            Level::Final => view.deposit_final,
        };
        let fresh = on_trust.saturating_add(self.unsafe_max);
        view.deposit_final.max(fresh.min(view.deposit_seen))
    }

    /// What a new channel's deposit is, or what is added to one, when `free` is left in vault and
    /// wallet: enough for 20 usual requests, not more than a share of it all, not less than is worth
    /// its gas. None when not even the fee of the opening fits.
    #[must_use]
    pub fn deposit(
        &self,
        usual_request: MicroUsd,
        fee: MicroUsd,
        free: MicroUsd,
    ) -> Option<MicroUsd> {
        let wish = MicroUsd(usual_request.0.saturating_mul(REQUESTS_PER_DEPOSIT));
        let share = free.mul_div_ceil(u64::from(self.deposit_share_bp), BASIS_POINTS);
        let most = share.max(self.deposit_min).min(self.deposit_max);
        let size = wish.clamp(self.deposit_min.min(most), most).min(free);
        (size > fee).then_some(size)
    }

    /// With how many sellers a buyer has channels before it needs them, when `free` is left: none
    /// when the deposits for that would leave it little for the sellers that it does need.
    #[must_use]
    pub fn ahead(&self, free: MicroUsd) -> usize {
        let least = MicroUsd(self.deposit_min.0.saturating_mul(DEPOSITS_LEFT_MIN));
        if free < least {
            return 0;
        }
        usize::try_from(self.open_ahead).unwrap_or(usize::MAX)
    }

    /// What the seller does about a channel now.
    #[must_use]
    pub fn due(&self, facts: &SellFacts, now_ms: UnixMs) -> Due {
        let view = &facts.view;
        if view.opened < Level::Final || view.closed > Level::No {
            return Due::Nothing;
        }
        let challenge_ms = u64::from(facts.challenge_period_s).saturating_mul(1_000);
        let expiry_ms = view.expiry_s.saturating_mul(1_000);
        let is_urgent = expiry_ms.saturating_sub(now_ms) < challenge_ms / 2;
        let idle_ms = now_ms.saturating_sub(facts.used_ms);
        let patience_ms = ACCEPT_PATIENCE_MS.min(self.idle_close_ms);
        let is_busy = facts.is_busy || (facts.awaits_accepts && idle_ms <= patience_ms);
        let ends = view.closing > Level::No || facts.close_wanted;
        if is_urgent || (ends && !is_busy) {
            return Due::Close;
        }
        let unsettled = facts.claim.saturating_sub(view.settled);
        let age_ms = facts
            .dirty_since_ms
            .map_or(0, |since| now_ms.saturating_sub(since));
        if unsettled > MicroUsd::ZERO && (ends || age_ms > challenge_ms / 2) {
            return Due::Settle { is_forced: true };
        }
        if unsettled >= self.settle_min {
            return Due::Settle { is_forced: false };
        }
        if idle_ms > self.idle_close_ms && !is_busy {
            return Due::Close;
        }
        Due::Nothing
    }
}

/// What the seller knows of a channel when it decides.
#[derive(Clone, Copy, Debug)]
pub struct SellFacts {
    /// What the chain shows.
    pub view: ChannelView,
    /// From the descriptor.
    pub challenge_period_s: u32,
    /// What the best voucher is worth: at most the deposit.
    pub claim: MicroUsd,
    /// Since when some of it is not settled.
    pub dirty_since_ms: Option<UnixMs>,
    /// Both sides want the end.
    pub close_wanted: bool,
    /// Requests run.
    pub is_busy: bool,
    /// Receipts wait for their ACCEPT.
    pub awaits_accepts: bool,
    /// When the channel was last used.
    pub used_ms: UnixMs,
}

/// What a seller does about a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing now.
    Nothing,
    /// Bring the best voucher to the chain.
    Settle {
        /// Now, whatever the gas; else when gas is small against the gain.
        is_forced: bool,
    },
    /// The same, and end the channel, whatever the gas.
    Close,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY_MS: u64 = 86_400_000;
    const NOW: UnixMs = 100 * DAY_MS;

    fn view(seen: u64, sure: u64) -> ChannelView {
        ChannelView {
            opened: if sure > 0 { Level::Final } else { Level::Seen },
            deposit_seen: MicroUsd(seen),
            deposit_final: MicroUsd(sure),
            expiry_s: 200 * DAY_MS / 1_000,
            ..ChannelView::default()
        }
    }

    fn facts(claim: u64) -> SellFacts {
        SellFacts {
            view: view(5_000_000, 5_000_000),
            challenge_period_s: 86_400,
            claim: MicroUsd(claim),
            dirty_since_ms: (claim > 0).then_some(NOW - 1_000),
            close_wanted: false,
            is_busy: false,
            awaits_accepts: false,
            used_ms: NOW - 1_000,
        }
    }

    #[test]
    fn a_deposit_counts_little_by_little() {
        let rules = Rules::default();
        let base = MicroUsd(10_000);
        assert_eq!(
            rules.ceiling(&ChannelView::default(), base),
            MicroUsd(60_000)
        );
        assert_eq!(rules.ceiling(&view(5_000_000, 0), base), MicroUsd(110_000));
        assert_eq!(rules.ceiling(&view(90_000, 0), base), MicroUsd(90_000));
        assert_eq!(
            rules.ceiling(&view(9_000_000, 5_000_000), base),
            MicroUsd(5_100_000)
        );
        let closed = ChannelView {
            closed: Level::Seen,
            ..view(5, 5)
        };
        assert_eq!(rules.ceiling(&closed, base), MicroUsd::ZERO);
    }

    #[test]
    fn a_deposit_fits_the_requests_and_the_purse() {
        let rules = Rules::default();
        let usd = |text: &str| text.parse::<MicroUsd>().unwrap();
        let of = |usual, free| rules.deposit(usd(usual), usd("0.01"), usd(free));
        assert_eq!(of("0", "100"), Some(usd("0.5")));
        assert_eq!(of("0.1", "100"), Some(usd("2")));
        assert_eq!(of("5", "100"), Some(usd("20")));
        assert_eq!(of("5", "10"), Some(usd("2")));
        assert_eq!(of("5", "1"), Some(usd("0.5")));
        assert_eq!(of("5", "0.3"), Some(usd("0.3")));
        assert_eq!(of("5", "0.01"), None);
        assert_eq!(of("5", "0"), None);
    }

    #[test]
    fn nothing_is_opened_ahead_from_a_small_purse() {
        let rules = Rules::default();
        assert_eq!(rules.ahead(MicroUsd(1_999_999)), 0);
        assert_eq!(rules.ahead(MicroUsd(2_000_000)), 2);
        let off = Rules {
            open_ahead: 0,
            ..rules
        };
        assert_eq!(off.ahead(MicroUsd::MAX), 0);
    }

    #[test]
    fn settling_waits_for_a_dollar_or_half_the_challenge_period() {
        let rules = Rules::default();
        let due = |facts: &SellFacts| rules.due(facts, NOW);
        assert_eq!(due(&facts(0)), Due::Nothing);
        assert_eq!(due(&facts(999_999)), Due::Nothing);
        assert_eq!(due(&facts(1_000_000)), Due::Settle { is_forced: false });
        let old = SellFacts {
            dirty_since_ms: Some(NOW - DAY_MS / 2 - 1),
            ..facts(1)
        };
        assert_eq!(due(&old), Due::Settle { is_forced: true });
        let mut settled = facts(2_000_000);
        settled.view.settled = MicroUsd(1_500_000);
        assert_eq!(due(&settled), Due::Nothing);
        let mut fresh = facts(2_000_000);
        fresh.view.opened = Level::Seen;
        assert_eq!(due(&fresh), Due::Nothing);
    }

    #[test]
    fn a_channel_closes_when_asked_for_idle_or_near_its_end() {
        let rules = Rules::default();
        let close = Due::Close;
        let wanted = SellFacts {
            close_wanted: true,
            ..facts(7)
        };
        assert_eq!(rules.due(&wanted, NOW), close);
        let busy = SellFacts {
            is_busy: true,
            ..wanted
        };
        assert_eq!(rules.due(&busy, NOW), Due::Settle { is_forced: true });
        let mut near = busy;
        near.view.expiry_s = (NOW + DAY_MS / 2 - 1_000) / 1_000;
        assert_eq!(rules.due(&near, NOW), close, "the expiry waits for nobody");
        let idle = SellFacts {
            used_ms: NOW - 8 * DAY_MS,
            ..facts(0)
        };
        assert_eq!(rules.due(&idle, NOW), close);
        let left = SellFacts {
            awaits_accepts: true,
            ..wanted
        };
        let settle = Due::Settle { is_forced: true };
        assert_eq!(rules.due(&left, NOW), settle, "it may come back");
        let gone = SellFacts {
            used_ms: NOW - 3_600_000,
            ..left
        };
        assert_eq!(rules.due(&gone, NOW), close, "but not for ever");
        let mut over = wanted;
        over.view.closed = Level::Seen;
        assert_eq!(rules.due(&over, NOW), Due::Nothing);
    }

    proptest! {
        #[test]
        fn no_ceiling_is_above_what_the_chain_shows_and_a_little(
            seen in 0..u64::MAX / 4, sure in 0..u64::MAX / 4, base in 0..1_000_000u64,
        ) {
            let rules = Rules::default();
            let view = view(seen.max(sure), sure);
            let ceiling = rules.ceiling(&view, MicroUsd(base));
            prop_assert!(ceiling.0 <= seen.max(sure));
            prop_assert!(ceiling.0 <= sure.max(base) + rules.unsafe_max.0);
            prop_assert!(ceiling.0 >= sure);
        }
        #[test]
        fn no_deposit_is_above_the_free_money(usual in 0..u64::MAX, free in 0..u64::MAX / 2) {
            let rules = Rules::default();
            if let Some(size) = rules.deposit(MicroUsd(usual), rules.open_fee, MicroUsd(free)) {
                prop_assert!(size.0 <= free && size <= rules.deposit_max);
                prop_assert!(size > rules.open_fee);
            }
        }
        #[test]
        fn whatever_is_unsettled_reaches_the_chain_before_the_expiry(
            claim in 1..5_000_000u64, dirty_ago in 0..3 * DAY_MS, left in 0..30 * DAY_MS,
        ) {
            let mut facts = facts(claim);
            facts.dirty_since_ms = Some(NOW - dirty_ago);
            facts.view.expiry_s = (NOW + left) / 1_000;
            facts.view.closing = if left <= DAY_MS { Level::Seen } else { Level::No };
            let due = Rules::default().due(&facts, NOW);
            if dirty_ago > DAY_MS / 2 || left < DAY_MS {
                prop_assert_ne!(due, Due::Nothing);
            }
        }
    }
}
