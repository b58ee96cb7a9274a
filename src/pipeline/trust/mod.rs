//! What a head makes sure of before and while it pays others for layers.
//!
//! Nothing forces a stage to compute what it sells. So the head looks, in four ways:
//!
//! - [`vectors`]: rows whose results the head has made itself from the model's file. Whoever is to
//!   serve layers for the first time computes them, for pay, and must come out where the head did.
//!   Both begin with the same bits, so that what is left to differ is the processor.
//! - audits (in [`super::chain`]): once in a while a stage shows rows of a running session, which
//!   must be those it said it sent, and somebody else computes them again. [`odds`] says how many
//!   audits find whom; [`compare`] what counts as the same.
//! - [`pace`]: how long a stage takes for a row, by the head's own clock instead of by what it says.
//! - [`mod@reference`]: the model's file as a judge, layer by layer, where there is nobody else to ask.
//!
//! [`Trust`] remembers what was found for as long as this process lives: one session pays for a
//! check, all others know.
//!
//! # What it cannot do
//! - A stage that computes honestly what looks like a check and lies elsewhere passes the vectors;
//!   only audits find it, with the odds that [`odds`] computes.
//! - What differs by less than [`compare::DISTANCE_MAX`] passes: machines differ in their last bits.
//! - A stage that was found out comes back under a new name; it earns what its first lies earn until
//!   they are found, at most what one session may owe.

pub mod compare;
pub mod odds;
pub mod pace;
pub mod reference;
pub mod vectors;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::types::PeerId;
pub use pace::Pace;
pub use reference::{FromFile, Reference};
pub use vectors::Vectors;

/// A check holds so long: a stage whose machine changes its mind later is found by audits.
pub const CHECK_LIFE: Duration = Duration::from_hours(6);
/// What was measured counts so long: who was busy then may be free now.
pub const PACE_LIFE: Duration = Duration::from_mins(10);
/// Of the slowest answer so much is forgotten with each that is faster: a sixteenth.
const FORGET: u32 = 16;
/// Peers with whom one disagrees about the rows between them before it is taken for the liar.
const QUARRELS_MAX: usize = 2;

/// Layers at one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Part {
    /// Who.
    pub peer: PeerId,
    /// First layer.
    pub first: u16,
    /// The layer after the last.
    pub end: u16,
}

/// What this process found out about stages of one model. Cheap to clone.
#[derive(Clone, Default)]
pub struct Trust(Arc<Mutex<Found>>);

#[derive(Default)]
struct Found {
    distrusted: BTreeSet<PeerId>,
    checked: BTreeMap<Part, Instant>,
    /// Whoever checks one holds its lock, so that sessions that begin together pay for one check.
    checking: BTreeMap<Part, Arc<tokio::sync::Mutex<()>>>,
    quarrels: BTreeMap<PeerId, BTreeSet<PeerId>>,
    paces: BTreeMap<Part, Pace>,
    audits: u64,
    slowest_answer: Duration,
}

impl Trust {
    /// Who was found to compute something else than its layers.
    #[must_use]
    pub fn distrusted(&self) -> BTreeSet<PeerId> {
        self.0.lock().distrusted.clone()
    }
    /// True for one of these.
    #[must_use]
    pub fn is_distrusted(&self, peer: &PeerId) -> bool {
        self.0.lock().distrusted.contains(peer)
    }
    /// It computes something else than its layers: never again.
    pub fn distrust(&self, peer: PeerId) {
        self.0.lock().distrusted.insert(peer);
    }

    /// True when it came out where the head did, not long ago.
    #[must_use]
    pub fn is_checked(&self, part: &Part, now: Instant) -> bool {
        let checked = self.0.lock().checked.get(part).copied();
        checked.is_some_and(|at| now.saturating_duration_since(at) < CHECK_LIFE)
    }
    /// It did just now.
    pub fn passed(&self, part: Part, now: Instant) {
        let mut found = self.0.lock();
        let young = |at: &Instant| now.saturating_duration_since(*at) < CHECK_LIFE;
        found.checked.retain(|_, at| young(at));
        found.checked.insert(part, now);
        found.checking.remove(&part);
    }
    /// Held while it is checked.
    #[must_use]
    pub fn check_lock(&self, part: Part) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(self.0.lock().checking.entry(part).or_default())
    }

    /// One says that it took other rows than the other shows to have sent: one of them lies, and who
    /// does so with several is the one.
    pub fn quarrel(&self, a: PeerId, b: PeerId) {
        let mut found = self.0.lock();
        for (one, other) in [(a, b), (b, a)] {
            let with = found.quarrels.entry(one).or_default();
            with.insert(other);
            if with.len() >= QUARRELS_MAX {
                found.distrusted.insert(one);
            }
        }
    }

    /// A row of it took so long, from when the stage before was done.
    pub fn measured(&self, part: Part, took: Duration, now: Instant) {
        let mut found = self.0.lock();
        found
            .paces
            .retain(|_, pace| pace.age(now).is_some_and(|age| age < PACE_LIFE));
        found.paces.entry(part).or_default().add(took, now);
    }
    /// What a decode row takes there and on the way there, µs; none when that is not known, or was
    /// long ago.
    #[must_use]
    pub fn row_us(&self, part: &Part, now: Instant) -> Option<u64> {
        let found = self.0.lock();
        let pace = found.paces.get(part)?;
        pace.age(now).filter(|age| *age < PACE_LIFE)?;
        pace.row_us()
    }

    /// A stage that was pinged said something after this long.
    pub fn answered(&self, after: Duration) {
        let mut found = self.0.lock();
        let known = found.slowest_answer;
        found.slowest_answer = after.max(known.saturating_sub(known / FORGET));
    }
    /// How long stages take to answer pings, at the slowest of late: by it a head tells a busy machine
    /// from a dead one.
    #[must_use]
    pub fn slowest_answer(&self) -> Duration {
        self.0.lock().slowest_answer
    }

    /// An audit came to a verdict.
    pub fn audited(&self) {
        let mut found = self.0.lock();
        found.audits = found.audits.saturating_add(1);
    }
    /// Audits that came to a verdict.
    #[must_use]
    pub fn audits(&self) -> u64 {
        self.0.lock().audits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_and_a_pace_count_for_a_while_and_distrust_for_ever() {
        let trust = Trust::default();
        let part = |end| Part {
            peer: PeerId::random(),
            first: 0,
            end,
        };
        let (one, other, now) = (part(4), part(4), Instant::now());
        trust.passed(one, now);
        assert!(trust.is_checked(&one, now) && !trust.is_checked(&other, now));
        assert!(
            !trust.is_checked(&Part { end: 5, ..one }, now),
            "other layers"
        );
        assert!(!trust.is_checked(&one, now + CHECK_LIFE));
        for _ in 0..9 {
            trust.measured(one, Duration::from_millis(7), now);
        }
        assert_eq!(trust.row_us(&one, now), Some(7_000));
        assert_eq!(trust.row_us(&one, now + PACE_LIFE), None);
        trust.distrust(other.peer);
        assert_eq!(trust.distrusted(), BTreeSet::from([other.peer]));
    }

    #[test]
    fn a_slow_answer_is_forgotten_by_and_by() {
        let trust = Trust::default();
        let ms = Duration::from_millis;
        assert_eq!(trust.slowest_answer(), ms(0));
        trust.answered(ms(160));
        trust.answered(ms(20));
        assert_eq!(trust.slowest_answer(), ms(150));
        trust.answered(ms(400));
        assert_eq!(trust.slowest_answer(), ms(400));
        for _ in 0..100 {
            trust.answered(ms(20));
        }
        assert!(trust.slowest_answer() < ms(22));
    }

    #[test]
    fn who_quarrels_with_several_is_the_liar() {
        let trust = Trust::default();
        let [liar, a, b] = [(); 3].map(|()| PeerId::random());
        trust.quarrel(liar, a);
        trust.quarrel(a, liar);
        assert!(trust.distrusted().is_empty(), "one word against another");
        trust.quarrel(b, liar);
        assert_eq!(trust.distrusted(), BTreeSet::from([liar]));
    }
}
