//! How long a stage takes for a decode row, by the head's clock.
//!
//! Each stage says when it is done with a row; its time is from when the stage before it was. So
//! waiting for others does not count, the way there does, and a stage cannot say that it was done
//! before it is: with DONE it names the digest of its results. The middle of the last few times is
//! taken, so that a machine's hiccup, or a wait for a voucher, changes nothing.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Times that are remembered.
const KEPT: usize = 32;
/// Times before they say anything.
const ENOUGH: usize = 4;

/// One stage's times.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    took_us: VecDeque<u64>,
    last: Option<Instant>,
}

impl Pace {
    /// One row took so long.
    pub fn add(&mut self, took: Duration, now: Instant) {
        if self.took_us.len() == KEPT {
            self.took_us.pop_front();
        }
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.took_us.push_back(us.max(1));
        self.last = Some(now);
    }
    /// The time of a row, µs; none before there are enough.
    #[must_use]
    pub fn row_us(&self) -> Option<u64> {
        if self.took_us.len() < ENOUGH {
            return None;
        }
        let mut sorted: Vec<u64> = self.took_us.iter().copied().collect();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied()
    }
    /// Since the last time.
    #[must_use]
    pub fn age(&self, now: Instant) -> Option<Duration> {
        self.last.map(|last| now.saturating_duration_since(last))
    }
}

/// When the stages of one session were done with the row that is on its way.
#[derive(Clone, Debug)]
pub struct Laps<K> {
    /// The row's position and when it was asked for; none while no single row is.
    row: Option<(u32, Instant)>,
    done: Vec<(K, Instant)>,
}

impl<K: Copy + PartialEq> Laps<K> {
    /// Nothing is on its way.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            row: None,
            done: Vec::new(),
        }
    }
    /// One decode row, at `pos`, was asked for.
    pub fn start(&mut self, pos: u32, now: Instant) {
        self.row = Some((pos, now));
        self.done.clear();
    }
    /// What is on its way is measured no more: several rows, or a loss.
    pub fn void(&mut self) {
        self.row = None;
    }
    /// A stage is done with rows `pos..pos + n`.
    pub fn done(&mut self, stage: K, pos: u32, n: u32, now: Instant) {
        if self.row.is_some_and(|(row, _)| row == pos) && n == 1 {
            self.done.push((stage, now));
        }
    }
    /// The row came back: what each of `stages`, in their order, took. Word of one stage may come
    /// later than that of the next; then the next took no time that shows.
    pub fn finish(&mut self, stages: &[K]) -> Vec<(K, Duration)> {
        let Some((_, mut since)) = self.row.take() else {
            return Vec::new();
        };
        let mut took = Vec::with_capacity(stages.len());
        for stage in stages {
            let Some((_, at)) = self.done.iter().find(|(who, _)| who == stage) else {
                return Vec::new();
            };
            took.push((*stage, at.saturating_duration_since(since)));
            since = since.max(*at);
        }
        took
    }
}

impl<K: Copy + PartialEq> Default for Laps<K> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hiccup_does_not_change_a_pace_and_a_change_does() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        for ms in [5, 5, 900] {
            pace.add(Duration::from_millis(ms), now);
        }
        assert_eq!(pace.row_us(), None, "too few");
        for ms in [6, 5, 700, 5] {
            pace.add(Duration::from_millis(ms), now);
        }
        assert_eq!(pace.row_us(), Some(5_000));
        for _ in 0..KEPT {
            pace.add(Duration::from_millis(20), now);
        }
        assert_eq!(pace.row_us(), Some(20_000));
        assert_eq!(
            pace.age(now + Duration::from_secs(3)),
            Some(Duration::from_secs(3))
        );
    }

    #[test]
    fn each_stage_is_measured_from_the_end_of_the_one_before() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut laps = Laps::new();
        laps.start(9, start);
        laps.done('a', 9, 1, at(10));
        // A chunk that was on its way before is another thing.
        laps.done('b', 0, 8, at(11));
        laps.done('c', 9, 1, at(90));
        laps.done('b', 9, 1, at(30));
        let took = laps.finish(&['a', 'b', 'c']);
        let ms: Vec<_> = took
            .iter()
            .map(|(who, took)| (*who, took.as_millis()))
            .collect();
        assert_eq!(ms, [('a', 10), ('b', 20), ('c', 60)]);
        assert!(laps.finish(&['a', 'b', 'c']).is_empty(), "once");
        laps.start(10, start);
        laps.done('a', 10, 1, at(10));
        laps.void();
        assert!(laps.finish(&['a']).is_empty());
        // Nobody is blamed when a word is missing.
        laps.start(11, start);
        laps.done('b', 11, 1, at(10));
        assert!(laps.finish(&['a', 'b']).is_empty());
    }
}
