//! When a stage gives up its place for a better one: seldom, never leaving a hole, never all at once.
//!
//! Two reasons: rows find no way through the model and there they would (a stage has left for good),
//! or far less is done there than here. A move costs every session that runs here a replay elsewhere,
//! so new ones are refused first and those that run get time to end. Of several stages at the same
//! place one moves at a time: the one that the hour and its id pick. A state machine without a clock.

use std::ops::Range;
use std::time::Duration;

use super::{Coverage, Joiner, Offered, place, rank};
use crate::types::UnixMs;

/// At most one move in this time.
pub const MOVE_PAUSE: Duration = Duration::from_secs(30 * 60);
/// Sessions that run get this long before their stage goes.
pub const DRAIN_MAX: Duration = Duration::from_secs(10 * 60);
/// How often it is worth asking.
pub const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Only for a place where this many times less is done per layer.
const GAIN: u128 = 2;
/// While there is no way, another of those at the same place is picked after so many looks: one that
/// may not move must not keep the others from mending.
const MEND_LOOKS: u64 = 3;

/// How fast a stage changes its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// At most one move in this time.
    pub pause: Duration,
    /// Sessions that run get this long.
    pub drain_max: Duration,
    /// Between two looks.
    pub look_every: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            pause: MOVE_PAUSE,
            drain_max: DRAIN_MAX,
            look_every: LOOK_EVERY,
        }
    }
}

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
    pace: Pace,
    /// When it came to its place.
    placed_ms: UnixMs,
    draining: Option<(Range<u16>, UnixMs)>,
}

/// What a look sees.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// Who looks.
    pub joiner: &'a Joiner<'a>,
    /// Its layers.
    pub mine: &'a Range<u16>,
    /// Layers of the model.
    pub layers: u16,
    /// The stages of all; its own may be among them.
    pub offered: &'a [Offered],
    /// Sessions running here.
    pub sessions: usize,
}

impl Mover {
    /// A stage that has just come to its place.
    #[must_use]
    pub const fn new(now_ms: UnixMs, pace: Pace) -> Self {
        Self {
            pace,
            placed_ms: now_ms,
            draining: None,
        }
    }

    /// Looks at what is on offer. After [`Step::Move`] it counts as moved.
    pub fn step(&mut self, now_ms: UnixMs, seen: &Seen<'_>) -> Step {
        if let Some((target, since_ms)) = &self.draining {
            let is_late = now_ms >= since_ms.saturating_add(ms(self.pace.drain_max));
            if seen.sessions > 0 && !is_late {
                return Step::Drain(target.clone());
            }
            // Those that made up for this place may be gone by now, or what was missing is back.
            let target = target.clone();
            self.draining = None;
            self.placed_ms = now_ms;
            return if seen.without_me().is_whole() || seen.mends(&target) {
                Step::Move(target)
            } else {
                Step::Stay
            };
        }
        let pause = ms(self.pace.pause).max(1);
        if now_ms < self.placed_ms.saturating_add(pause) {
            return Step::Stay;
        }
        let without = seen.without_me();
        let target = place(&without, seen.joiner).filter(|target| target != seen.mine);
        let Some(target) = target else {
            return Step::Stay;
        };
        let (is_worth, turn_ms) = if without.is_whole() {
            (gains(&without, seen.mine, &target), pause)
        } else {
            let looks = ms(self.pace.look_every).saturating_mul(MEND_LOOKS);
            (seen.mends(&target), looks.clamp(1, pause))
        };
        if !is_worth || !seen.is_my_turn(now_ms.checked_div(turn_ms).unwrap_or(0)) {
            return Step::Stay;
        }
        self.draining = Some((target.clone(), now_ms));
        Step::Drain(target)
    }
}

impl Seen<'_> {
    fn others(&self) -> impl Iterator<Item = &Offered> {
        let me = self.joiner.peer;
        self.offered.iter().filter(move |o| o.peer != *me)
    }
    fn without_me(&self) -> Coverage {
        Coverage::of(self.layers, self.others())
    }
    /// Whether there is a way, and how many layers somebody computes, with this stage at `range`.
    fn with_me(&self, range: &Range<u16>) -> (bool, usize) {
        let me = Offered::at(*self.joiner.peer, self.layers, range);
        let coverage = Coverage::of(self.layers, self.others().chain([&me]));
        (coverage.is_whole(), coverage.covered())
    }
    /// True when the way, or the piece of it that there is, is longer with this stage at `target`.
    fn mends(&self, target: &Range<u16>) -> bool {
        self.with_me(target) > self.with_me(self.mine)
    }
    /// Of those at the same place the one with the lowest rank in this turn may go.
    fn is_my_turn(&self, turn: u64) -> bool {
        let own = rank(self.joiner.peer, turn);
        let is_alike =
            |o: &&Offered| o.terms.layers == self.layers && o.terms.range() == *self.mine;
        !self
            .others()
            .filter(is_alike)
            .any(|o| rank(&o.peer, turn) < own)
    }
}

/// True when far less is done at `target` than would be done here without this stage.
fn gains(without: &Coverage, mine: &Range<u16>, target: &Range<u16>) -> bool {
    let mean = |range: &Range<u16>| {
        let width = range.end.saturating_sub(range.start).max(1);
        (u128::from(without.work(range)), u128::from(width))
    };
    let (there, here) = (mean(target), mean(mine));
    there.0 * here.1 * GAIN < here.0 * there.1
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
