//! When a stage gives up its place for a better one: seldom, never leaving a hole, never all at once.
//!
//! A move costs every session that runs here a replay elsewhere, so new ones are refused first and
//! those that run get time to end. Of several stages at the same place one moves at a time: the one
//! that the hour and its id pick. A state machine without a clock.

use std::ops::Range;
use std::time::Duration;

use super::{Coverage, Joiner, Offered, place, rank};
use crate::types::UnixMs;

/// At most one move in this time, ms.
pub const MOVE_PAUSE_MS: u64 = 30 * 60 * 1_000;
/// Sessions that run get this long before their stage goes, ms.
pub const DRAIN_MS_MAX: u64 = 10 * 60 * 1_000;
/// How often it is worth asking.
pub const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Only for a place where this many times less is done per layer.
const GAIN: u128 = 2;

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Stay,
    /// Take no new sessions; these layers come next.
    Drain(Range<u16>),
    /// Load and offer these layers.
    Move(Range<u16>),
}

/// Decides for one stage.
#[derive(Clone, Debug)]
pub struct Mover {
    /// When it came to its place.
    placed_ms: UnixMs,
    draining: Option<(Range<u16>, UnixMs)>,
}

impl Mover {
    /// A stage that has just come to its place.
    #[must_use]
    pub const fn new(now_ms: UnixMs) -> Self {
        Self {
            placed_ms: now_ms,
            draining: None,
        }
    }

    /// Looks at the stages of all `offered` (its own may be among them), with `sessions` running
    /// here. After [`Step::Move`] it counts as moved.
    pub fn step(
        &mut self,
        now_ms: UnixMs,
        mine: &Range<u16>,
        joiner: &Joiner<'_>,
        layers: u16,
        offered: &[Offered],
        sessions: usize,
    ) -> Step {
        let others = || offered.iter().filter(|o| o.peer != *joiner.peer);
        if let Some((target, since_ms)) = &self.draining {
            let is_late = now_ms >= since_ms.saturating_add(DRAIN_MS_MAX);
            if sessions > 0 && !is_late {
                return Step::Drain(target.clone());
            }
            // Those that made up for this place may be gone by now.
            let is_free = Coverage::of(layers, others()).is_whole();
            let target = target.clone();
            self.draining = None;
            self.placed_ms = now_ms;
            return if is_free {
                Step::Move(target)
            } else {
                Step::Stay
            };
        }
        if now_ms < self.placed_ms.saturating_add(MOVE_PAUSE_MS) {
            return Step::Stay;
        }
        let is_alike = |o: &&Offered| o.terms.layers == layers && o.terms.range() == *mine;
        let turn = now_ms / MOVE_PAUSE_MS;
        let own = rank(joiner.peer, turn);
        if others().filter(is_alike).any(|o| rank(&o.peer, turn) < own) {
            return Step::Stay;
        }
        let without = Coverage::of(layers, others());
        match better(&without, mine, joiner) {
            Some(target) => {
                self.draining = Some((target.clone(), now_ms));
                Step::Drain(target)
            }
            None => Step::Stay,
        }
    }
}

/// A place where far less is done than would be done here without this stage.
fn better(without: &Coverage, mine: &Range<u16>, joiner: &Joiner<'_>) -> Option<Range<u16>> {
    if !without.is_whole() {
        return None;
    }
    let target = place(without, joiner).filter(|target| target != mine)?;
    let mean = |range: &Range<u16>| {
        let width = range.end.saturating_sub(range.start).max(1);
        (u128::from(without.work(range)), u128::from(width))
    };
    let (there, here) = (mean(&target), mean(mine));
    (there.0 * here.1 * GAIN < here.0 * there.1).then_some(target)
}
