//! What newcomers may cost: a share of the week's spend a day, and while nobody is proven a bounded
//! loss of prepayments.

use serde::{Deserialize, Serialize};

use super::number::micro_usd;
use super::settings::Settings;
use crate::types::{MicroUsd, UnixMs};

const DAY_MS: u64 = 24 * 3_600_000;
/// Days of spend that the budget is a share of.
const DAYS: usize = 7;

/// Spend of the last days, and what newcomers took of today's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Exploration {
    /// Number of today since the epoch.
    day: u64,
    /// Spent, micro-USD; today first.
    spent: [f64; DAYS],
    /// Of today's, on newcomers.
    explored: f64,
    /// Prepaid to newcomers today and lost.
    lost: f64,
}

impl Exploration {
    /// An attempt was paid.
    pub fn spend(&mut self, cost: MicroUsd, on_newcomer: bool, now_ms: UnixMs) {
        self.turn(now_ms);
        let cost = micro_usd(cost);
        if let Some(today) = self.spent.first_mut() {
            *today += cost;
        }
        if on_newcomer {
            self.explored += cost;
        }
    }

    /// A newcomer kept a prepayment and gave no answer for it.
    pub fn lose(&mut self, lost: MicroUsd, now_ms: UnixMs) {
        self.turn(now_ms);
        self.lost += micro_usd(lost);
    }

    /// True while newcomers may be tried beside proven sellers.
    #[must_use]
    pub fn may_explore(&self, now_ms: UnixMs, settings: &Settings) -> bool {
        let now = self.at(now_ms);
        let week: f64 = now.spent.iter().sum();
        now.explored < (settings.exploration_share * week).max(settings.exploration_min)
    }

    /// True while a newcomer may be prepaid beyond its credit because nobody is proven.
    #[must_use]
    pub fn may_bootstrap(&self, now_ms: UnixMs, settings: &Settings) -> bool {
        self.at(now_ms).lost < micro_usd(settings.bootstrap_loss_max)
    }

    /// The same, today being the day of `now_ms`.
    fn at(&self, now_ms: UnixMs) -> Self {
        let mut now = self.clone();
        now.turn(now_ms);
        now
    }

    fn turn(&mut self, now_ms: UnixMs) {
        let day = now_ms / DAY_MS;
        // A clock that was set back opens no new day.
        let passed = day.saturating_sub(self.day);
        if passed == 0 {
            return;
        }
        let passed = usize::try_from(passed).unwrap_or(DAYS).min(DAYS);
        self.spent.rotate_right(passed % DAYS);
        self.spent
            .iter_mut()
            .take(passed)
            .for_each(|day| *day = 0.0);
        (self.explored, self.lost, self.day) = (0.0, 0.0, day);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_allows_its_share_and_the_next_one_again() {
        let settings = Settings::default();
        let mut exploration = Exploration::default();
        assert!(exploration.may_explore(DAY_MS, &settings));
        exploration.spend(MicroUsd(50_000), true, DAY_MS);
        assert!(!exploration.may_explore(DAY_MS, &settings));
        assert!(exploration.may_explore(2 * DAY_MS, &settings));
        exploration.spend(MicroUsd(10_000_000), false, 2 * DAY_MS);
        exploration.spend(MicroUsd(200_000), true, 2 * DAY_MS);
        assert!(exploration.may_explore(2 * DAY_MS, &settings));
        exploration.spend(MicroUsd(10_000), true, 2 * DAY_MS);
        assert!(!exploration.may_explore(2 * DAY_MS, &settings));
        // Eight days on nothing of it counts any more.
        let later = 10 * DAY_MS;
        exploration.spend(MicroUsd(50_000), true, later);
        assert!(!exploration.may_explore(later, &settings));
        assert!(exploration.may_bootstrap(later, &settings));
        exploration.lose(MicroUsd(1_000_000), later);
        assert!(!exploration.may_bootstrap(later, &settings));
        assert!(exploration.may_bootstrap(later + DAY_MS, &settings));
    }
}
