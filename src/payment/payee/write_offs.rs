//! What one buyer did not accept of what receipts claimed, fading with time: a flaky link now and
//! then must not add up to a refusal for good, and a cheat must not wait long for the next chance.
//! Pure; called by `state`.

use crate::types::{MicroUsd, UnixMs};

/// After this time half of it is forgotten.
const HALF_LIFE_MS: u64 = 24 * 60 * 60 * 1_000;
/// What was refused so long ago is less than a thousandth of what it was.
pub(super) const REMEMBERED_MS: u64 = 10 * HALF_LIFE_MS;

/// The sum as it stood when something was last added.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct WriteOffs {
    sum: MicroUsd,
    at_ms: UnixMs,
}

impl WriteOffs {
    /// The sum now. Between two halvings it falls in a straight line, which is never below the
    /// exponential curve and at most 6 % above it.
    pub fn now(&self, now_ms: UnixMs) -> MicroUsd {
        let passed = now_ms.saturating_sub(self.at_ms);
        let halvings = u32::try_from(passed / HALF_LIFE_MS).unwrap_or(u32::MAX);
        let halved = MicroUsd(self.sum.0.checked_shr(halvings).unwrap_or(0));
        let faded = halved.mul_div_ceil(passed % HALF_LIFE_MS, 2 * HALF_LIFE_MS);
        halved.saturating_sub(faded)
    }

    /// Adds what was refused at a time, oldest first.
    pub fn add(&mut self, refused: MicroUsd, now_ms: UnixMs) {
        self.sum = self.now(now_ms).saturating_add(refused);
        self.at_ms = now_ms.max(self.at_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn half_is_forgotten_in_a_day_and_all_in_the_end() {
        let mut offs = WriteOffs::default();
        offs.add(MicroUsd(1_000), 5);
        assert_eq!(offs.now(5), MicroUsd(1_000));
        assert_eq!(offs.now(5 + HALF_LIFE_MS / 2), MicroUsd(750));
        assert_eq!(offs.now(5 + HALF_LIFE_MS), MicroUsd(500));
        offs.add(MicroUsd(100), 5 + HALF_LIFE_MS);
        assert_eq!(offs.now(5 + 2 * HALF_LIFE_MS), MicroUsd(300));
        assert_eq!(offs.now(u64::MAX), MicroUsd::ZERO);
        // A clock that is set back forgets nothing.
        assert_eq!(offs.now(0), MicroUsd(600));
    }

    proptest! {
        #[test]
        fn it_only_falls(sum in 0..1_000_000u64, a in 0..20 * HALF_LIFE_MS, b in 0..20 * HALF_LIFE_MS) {
            let mut offs = WriteOffs::default();
            offs.add(MicroUsd(sum), 0);
            prop_assert!(offs.now(a.max(b)) <= offs.now(a.min(b)));
        }
    }
}
