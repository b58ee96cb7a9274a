//! Blocks and logs in, ordered events out: the pure half of the watcher. No I/O and no clock; it
//! says what it wants to know, the driver asks the chain.
//!
//! # How it works
//! A sparse list of blocks is kept: each with its hash and the logs seen up to it from the entry
//! below. Everything up to `cursor` is final. One poll is:
//! 1. find the highest kept block that is still in the chain; what is above it is removed;
//! 2. read what has become final, from the cursor on: this second reading decides. What it shows
//!    is confirmed (and seen first, if the first reading missed it); what it lacks is removed;
//! 3. read what is new above.
//!
//! The second reading is there because a node behind a balancer answers a query about blocks it
//! does not know yet with "no logs", not with an error.
//!
//! # Invariants
//! Events come in the order of the chain within a reading; `Confirmed` and `Removed` only after
//! `Seen`; a log is seen once between two removals; removals come from the top down. After a poll,
//! what is seen and not removed is exactly what the chain has up to the head it was given.

use std::collections::{BTreeMap, VecDeque};

use crate::chain::hub::HubLog;
use crate::chain::{BlockRef, ChainError};

/// Blocks below the cursor that are kept, so that a reorg through the final height is still taken
/// back correctly. Twice the deepest reorg that is planned for (64).
const HISTORY_BLOCKS: u64 = 128;
/// Ranges read in a row after which a halved range is doubled again: a node that limits its answers
/// by their size refuses one busy stretch, not all that follows.
const GROW_AFTER_RANGES: u32 = 8;

/// An event, in the order in which it is to be entered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChainEvent {
    /// A block has it.
    Seen(HubLog),
    /// A final block has it.
    Confirmed(HubLog),
    /// Its block is gone.
    Removed {
        /// The log.
        log: HubLog,
        /// It had been confirmed: what was final was not.
        was_confirmed: bool,
    },
}

/// What the tracker wants to know next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// The hash of the block of this height now; answered by [`Tracker::header`].
    Header(u64),
    /// The logs of these blocks, with the hash of the last one, both from one view of the chain;
    /// answered by [`Tracker::logs`].
    Logs {
        /// First block.
        from: u64,
        /// Last block.
        to: u64,
    },
    /// Nothing; the poll is done.
    Nothing,
}

/// A log that is seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The log.
    pub log: HubLog,
    /// Whether it is confirmed too.
    pub is_confirmed: bool,
}

/// A kept block and the logs between it and the one below.
#[derive(Clone, Debug)]
struct Entry {
    at: BlockRef,
    logs: Vec<Kept>,
}

/// Where a poll stands.
#[derive(Clone, Debug)]
enum Phase {
    /// Looking for the highest kept block that is still there: `low` is, what is above `high` is not.
    Fork {
        low: Option<usize>,
        high: usize,
        probe: usize,
    },
    /// Reading on.
    Read,
    /// A range is read on top of `anchor`; if that is gone meanwhile, they are of two chains.
    Check {
        anchor: BlockRef,
    },
    Done,
}

/// The watcher's memory of a hub's chain.
#[derive(Debug)]
pub struct Tracker {
    /// Kept blocks, lowest first. The first is the base: a final block, or the start.
    entries: VecDeque<Entry>,
    cursor: BlockRef,
    head: u64,
    safe: u64,
    /// As configured, and as nodes want it now.
    range_blocks_full: u64,
    range_blocks_max: u64,
    ranges_read: u32,
    phase: Phase,
    is_paused: bool,
    events: Vec<ChainEvent>,
}

impl Tracker {
    /// Continues after `base`, a final block below which nothing is read again; `seen` are the logs
    /// above it that were seen and not removed. What is confirmed already is not confirmed again.
    #[must_use]
    pub fn new(base: BlockRef, seen: Vec<Kept>, range_blocks_max: u64) -> Self {
        let mut by_block: BTreeMap<BlockRef, Vec<Kept>> = BTreeMap::new();
        for kept in seen {
            by_block.entry(kept.log.raw.block).or_default().push(kept);
        }
        let first = Entry {
            at: base,
            logs: vec![],
        };
        let above = by_block.into_iter().map(|(at, logs)| Entry { at, logs });
        Self {
            entries: std::iter::once(first).chain(above).collect(),
            cursor: base,
            head: base.number,
            safe: base.number,
            range_blocks_full: range_blocks_max.max(1),
            range_blocks_max: range_blocks_max.max(1),
            ranges_read: 0,
            phase: Phase::Done,
            is_paused: false,
            events: vec![],
        }
    }

    /// The final block from which a restarted tracker can still take back what this one can.
    #[must_use]
    pub fn base(&self) -> BlockRef {
        self.entries.front().map_or(self.cursor, |entry| entry.at)
    }

    /// Up to where everything is handled and final.
    #[must_use]
    pub const fn cursor(&self) -> BlockRef {
        self.cursor
    }

    /// The highest block whose logs are read.
    #[must_use]
    pub fn tip(&self) -> BlockRef {
        self.entries.back().map_or(self.cursor, |entry| entry.at)
    }

    /// Begins a poll; `safe` is the highest block that counts as final. Whatever a broken-off poll
    /// had not read yet is read by this one.
    pub fn begin(&mut self, head: u64, safe: u64) {
        self.head = head;
        self.safe = safe.min(head);
        self.is_paused = false;
        let high = self.entries.len().saturating_sub(1);
        // Mostly nothing happened: the newest kept block first.
        self.phase = Phase::Fork {
            low: None,
            high,
            probe: high,
        };
    }

    /// What to find out next.
    #[must_use]
    pub fn ask(&self) -> Ask {
        match &self.phase {
            Phase::Done => Ask::Nothing,
            Phase::Fork { probe, .. } => {
                let entry = self.entries.get(*probe);
                entry.map_or(Ask::Nothing, |entry| Ask::Header(entry.at.number))
            }
            Phase::Check { anchor } => Ask::Header(anchor.number),
            Phase::Read => {
                let range = self.next_range();
                range.map_or(Ask::Nothing, |(from, to, _)| Ask::Logs { from, to })
            }
        }
    }

    /// What has happened since the last call.
    pub fn take_events(&mut self) -> Vec<ChainEvent> {
        std::mem::take(&mut self.events)
    }

    /// Reads nothing more in this poll, but still makes sure that what was read is of one chain.
    pub const fn pause(&mut self) {
        self.is_paused = true;
    }

    /// Halves the ranges asked for; false when they cannot get smaller.
    pub const fn shrink_range(&mut self) -> bool {
        let can = self.range_blocks_max > 1;
        self.range_blocks_max = self.range_blocks_max.div_ceil(2);
        self.ranges_read = 0;
        can
    }

    /// Doubles a halved range after a while without complaints.
    fn grow_range(&mut self) {
        self.ranges_read = self.ranges_read.saturating_add(1);
        if self.ranges_read >= GROW_AFTER_RANGES && self.range_blocks_max < self.range_blocks_full {
            self.ranges_read = 0;
            let doubled = self.range_blocks_max.saturating_mul(2);
            self.range_blocks_max = doubled.min(self.range_blocks_full);
        }
    }

    /// Answers [`Ask::Header`].
    ///
    /// # Errors
    /// [`ChainError::TooDeep`] when even the oldest kept block is gone; nothing changes then.
    pub fn header(&mut self, now: Option<BlockRef>) -> Result<(), ChainError> {
        match self.phase {
            Phase::Fork { low, high, probe } => self.search(low, high, probe, now),
            Phase::Check { anchor } if now == Some(anchor) => {
                self.read_on();
                Ok(())
            }
            Phase::Check { anchor } => {
                let below = self
                    .entries
                    .partition_point(|entry| entry.at.number < anchor.number);
                let Some(high) = below.checked_sub(1) else {
                    self.phase = Phase::Done;
                    return Err(ChainError::TooDeep(anchor.number));
                };
                self.cut_above(high);
                self.phase = Phase::Fork {
                    low: None,
                    high,
                    probe: high,
                };
                Ok(())
            }
            Phase::Read | Phase::Done => Ok(()),
        }
    }

    fn search(
        &mut self,
        low: Option<usize>,
        high: usize,
        probe: usize,
        now: Option<BlockRef>,
    ) -> Result<(), ChainError> {
        let Some(kept) = self.entries.get(probe).map(|entry| entry.at) else {
            return Ok(());
        };
        let (low, high) = if now == Some(kept) {
            (Some(probe), high)
        } else {
            let Some(below) = probe.checked_sub(1) else {
                self.phase = Phase::Done;
                return Err(ChainError::TooDeep(kept.number));
            };
            (low, below)
        };
        if low == Some(high) {
            self.cut_above(high);
            self.read_on();
        } else {
            let least = low.unwrap_or(0);
            let probe = least + (high - least).div_ceil(2);
            self.phase = Phase::Fork { low, high, probe };
        }
        Ok(())
    }

    /// Reads the next range, or ends the poll.
    fn read_on(&mut self) {
        let is_done = self.is_paused || self.next_range().is_none();
        self.phase = if is_done { Phase::Done } else { Phase::Read };
    }

    /// Drops what is above the entry `keep` and takes its logs back, from the top down.
    fn cut_above(&mut self, keep: usize) {
        while self.entries.len() > keep + 1 {
            let Some(entry) = self.entries.pop_back() else {
                break;
            };
            for kept in entry.logs.into_iter().rev() {
                self.remove(kept);
            }
        }
        if let Some(last) = self.entries.back()
            && last.at.number < self.cursor.number
        {
            self.cursor = last.at;
        }
    }

    fn remove(&mut self, kept: Kept) {
        self.events.push(ChainEvent::Removed {
            log: kept.log,
            was_confirmed: kept.is_confirmed,
        });
    }

    /// The next range, and whether it is read to be final.
    fn next_range(&self) -> Option<(u64, u64, bool)> {
        let range = |from: u64, last: u64, is_final| {
            let to = last.min(from.saturating_add(self.range_blocks_max - 1));
            (from <= last).then_some((from, to, is_final))
        };
        range(self.cursor.number + 1, self.safe, true)
            .or_else(|| range(self.tip().number + 1, self.head, false))
    }

    /// Answers [`Ask::Logs`]: the logs from `from` on, in order, and the last block as it was before
    /// and after they were read.
    pub fn logs(&mut self, last: BlockRef, logs: Vec<HubLog>) {
        if !matches!(self.phase, Phase::Read) {
            return;
        }
        let Some((from, to, is_final)) = self.next_range() else {
            return;
        };
        if last.number != to {
            return;
        }
        self.grow_range();
        let anchor = if is_final { self.cursor } else { self.tip() };
        if is_final {
            self.confirm(from, last, logs);
        } else {
            for log in logs {
                self.events.push(ChainEvent::Seen(log.clone()));
                self.keep(log, false);
            }
            self.keep_block(last);
        }
        self.phase = Phase::Check { anchor };
    }

    /// The second reading of `from..=last`: what it shows is final.
    fn confirm(&mut self, from: u64, last: BlockRef, logs: Vec<HubLog>) {
        let start = self.entries.partition_point(|entry| entry.at.number < from);
        let above = self
            .entries
            .partition_point(|entry| entry.at.number <= last.number);
        let above = self.entries.split_off(above);
        let first_reading: Vec<Kept> = self
            .entries
            .drain(start..)
            .flat_map(|entry| entry.logs)
            .collect();
        for kept in first_reading.iter().rev() {
            if !logs.contains(&kept.log) {
                self.remove(kept.clone());
            }
        }
        for log in logs {
            let known = first_reading.iter().find(|kept| kept.log == log);
            if known.is_none() {
                self.events.push(ChainEvent::Seen(log.clone()));
            }
            if known.is_none_or(|kept| !kept.is_confirmed) {
                self.events.push(ChainEvent::Confirmed(log.clone()));
            }
            self.keep(log, true);
        }
        self.keep_block(last);
        self.entries.extend(above);
        self.cursor = last;
        self.forget();
    }

    /// Adds a block at the top.
    fn keep_block(&mut self, at: BlockRef) {
        if self.tip().number < at.number {
            self.entries.push_back(Entry { at, logs: vec![] });
        }
    }

    /// Adds a log to the topmost block.
    fn keep(&mut self, log: HubLog, is_confirmed: bool) {
        self.keep_block(log.raw.block);
        if let Some(top) = self.entries.back_mut() {
            top.logs.push(Kept { log, is_confirmed });
        }
    }

    /// Drops blocks that no reorg reaches; the lowest one left stays as the base.
    fn forget(&mut self) {
        let oldest = self.cursor.number.saturating_sub(HISTORY_BLOCKS);
        while self
            .entries
            .get(1)
            .is_some_and(|second| second.at.number <= oldest)
        {
            self.entries.pop_front();
        }
    }
}
