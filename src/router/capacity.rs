//! How many requests a seller takes at once, learned from its refusals. A full seller is no bad one:
//! a 429 lowers this and nothing else.

use serde::{Deserialize, Serialize};

/// A refusal leaves this share of what was in flight.
const CUT: f64 = 0.7;
/// Good answers for one more request at once.
const ANSWERS_PER_STEP: u32 = 20;
/// A cap this high is none.
const UNLIMITED: f64 = 1_000.0;

/// One seller's learned limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Capacity {
    /// Requests at once; `None` until it first refused.
    cap: Option<f64>,
    good: u32,
    #[serde(skip)]
    in_flight: u32,
}

impl Capacity {
    /// Under way now.
    #[must_use]
    pub const fn in_flight(&self) -> u32 {
        self.in_flight
    }
    /// The limit; `None` when it never refused.
    #[must_use]
    pub const fn cap(&self) -> Option<f64> {
        self.cap
    }
    /// True when one more fits.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.cap
            .is_none_or(|cap| f64::from(self.in_flight) + 1.0 <= cap.max(1.0))
    }
    /// A request goes out.
    pub const fn begin(&mut self) {
        self.in_flight = self.in_flight.saturating_add(1);
    }
    /// A request is over.
    pub const fn end(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }
    /// It answered.
    pub fn succeed(&mut self) {
        self.good = self.good.saturating_add(1);
        if self.good >= ANSWERS_PER_STEP {
            self.good = 0;
            self.cap = self.cap.map(|cap| cap + 1.0).filter(|cap| *cap < UNLIMITED);
        }
    }
    /// It was full with what is in flight now, this request included.
    pub fn refuse(&mut self) {
        let held = f64::from(self.in_flight.max(1));
        let cap = self.cap.map_or(held, |cap| cap.min(held));
        self.cap = Some((cap * CUT).max(1.0));
        self.good = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_cuts_and_twenty_answers_add_one() {
        let mut capacity = Capacity::default();
        for _ in 0..10 {
            assert!(capacity.has_room());
            capacity.begin();
        }
        capacity.refuse();
        assert_eq!(capacity.cap(), Some(7.0));
        assert!(!capacity.has_room());
        for _ in 0..4 {
            capacity.end();
        }
        assert!(capacity.has_room());
        for _ in 0..20 {
            capacity.succeed();
        }
        assert_eq!(capacity.cap(), Some(8.0));
        for _ in 0..20 {
            capacity.refuse();
        }
        assert_eq!(capacity.cap(), Some(1.0));
        for _ in 0..6 {
            capacity.end();
        }
        assert!(capacity.has_room());
    }
}
