//! What one attempt may cost: its share of the budget, and the most it may take of it.
//!
//! A stream begins with its input and one window; each step of its payment is held first, and where
//! that does not fit the answer ends with `length`. A whole answer begins with what an ordinary one
//! costs, and with its head, which names its cost before a byte is paid, with that. (Holding all that
//! it can cost at most would let one request without a limit of its own hold the whole day's budget.)
//! What is booked is never above what is held. Made by `attempt`, carried by `books`.

use std::sync::Arc;

use parking_lot::Mutex;

use super::budget::{Exceeded, Purpose, Reservation};
use super::route::Candidate;
use super::{Shared, asked::Asked};
use crate::types::{AttemptId, MicroUsd};

/// The running meter estimates and the receipt counts: a stream's meter may pass its list cost by
/// this factor before it counts as run away.
const METER_SLACK: u64 = 2;

/// Output of an ordinary whole answer, tokens: few are longer.
const OUTPUT_ORDINARY: u64 = 1_024;

/// The money of one attempt.
pub(super) struct Allowance {
    held: Reservation,
    window: MicroUsd,
    /// The most it may cost, said to the seller.
    pub max_cost: MicroUsd,
    /// True when that is the user's wish and not what the request can cost at most.
    is_capped: bool,
    limit: Reached,
}

/// The spending limit that stood in an attempt's way, if one did, from when it did: a moment later
/// others may have given back what was missing.
pub(super) type Reached = Arc<Mutex<Option<Exceeded>>>;

impl Allowance {
    /// Takes the attempt's share; `window` is how far a stream may run ahead of its payment.
    ///
    /// # Errors
    /// The limit that does not allow it.
    pub fn take(
        shared: &Shared,
        asked: &Asked,
        candidate: &Candidate,
        window: MicroUsd,
    ) -> Result<Self, Exceeded> {
        let least = least(candidate, window);
        let most = if asked.stream {
            least
        } else {
            ordinary(candidate).max(least)
        };
        let held = shared
            .budget
            .reserve(&purpose(asked, candidate), least, most)?;
        let max_cost = held.could_be(candidate.max_cost);
        let limit = (max_cost < candidate.max_cost).then(|| held.tightest());
        Ok(Self {
            held,
            window,
            max_cost,
            is_capped: max_cost < candidate.list_cost,
            limit: Arc::new(Mutex::new(limit.flatten())),
        })
    }

    /// Where the limit that was reached will stand.
    pub fn reached(&self) -> Reached {
        Arc::clone(&self.limit)
    }

    /// The attempt that it is for.
    pub fn name(&self, attempt: AttemptId) {
        self.held.name(attempt);
    }

    /// True when the seller was told less than the request can cost, so that an answer above it is
    /// no fault of the seller's.
    pub const fn is_capped(&self) -> bool {
        self.is_capped
    }

    /// What of a meter at `running` may be paid, once it and a window beyond it are held; `None` when
    /// a limit does not allow it, and then nothing more may be promised.
    pub fn step(&self, running: MicroUsd) -> Option<MicroUsd> {
        if self.is_capped && running > self.max_cost {
            return None;
        }
        let ahead = running.saturating_add(self.window).min(self.max_cost);
        let most = self.max_cost.mul_div_ceil(METER_SLACK, 1);
        match self.held.raise(ahead) {
            Ok(()) => Some(running.min(most)),
            Err(exceeded) => {
                *self.limit.lock() = Some(exceeded);
                None
            }
        }
    }

    /// What of `cost` is paid: at most `max_cost`, and what the budget has left.
    pub fn cover(&self, cost: MicroUsd) -> MicroUsd {
        self.held.cover(cost.min(self.max_cost))
    }
}

/// What an ordinary answer of `candidate` costs.
fn ordinary(candidate: &Candidate) -> MicroUsd {
    let output = candidate.output_max.min(OUTPUT_ORDINARY);
    let output = candidate.offer.offer.price.cost_in_out(0, output);
    let cost = candidate.prefill.saturating_add(output);
    cost.min(candidate.max_cost)
}

/// What an attempt at `candidate` needs at the least: its input and one window.
pub(super) fn least(candidate: &Candidate, window: MicroUsd) -> MicroUsd {
    let begun = candidate.prefill.saturating_add(window);
    begun.min(candidate.max_cost)
}

/// What is bought, as limits know it.
pub(super) fn purpose(asked: &Asked, candidate: &Candidate) -> Purpose {
    Purpose {
        model: candidate.offer.offer.model.clone(),
        client: asked.client.clone(),
    }
}
