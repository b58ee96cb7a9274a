//! What the chain says of one channel: its events that stand, and the picture they add up to. Pure;
//! both hubs keep one per channel, feed it with the watcher's events, and ask for the picture.
//!
//! Invariant: the picture is that of the events seen and not removed, in whatever order they are
//! told, told twice, or taken back by a reorg.

use crate::chain::hub::HubEvent;
use crate::chain::watcher::ChainEvent;
use crate::types::{Hash32, MicroUsd};

/// How far something is believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Not seen.
    #[default]
    No,
    /// In a block that a reorg may still remove.
    Seen,
    /// In a final block.
    Final,
}

/// A channel as the chain shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelView {
    /// Whether it is open (or was).
    pub opened: Level,
    /// The deposit of the newest block.
    pub deposit_seen: MicroUsd,
    /// The deposit of the final blocks.
    pub deposit_final: MicroUsd,
    /// What the opening cost.
    pub open_fee: MicroUsd,
    /// All that the seller got, fee of the opening included, by the newest block.
    pub settled: MicroUsd,
    /// When the rest may go back, in seconds; 0 when it is not open.
    pub expiry_s: u64,
    /// The buyer asked for the end.
    pub closing: Level,
    /// It is over.
    pub closed: Level,
    /// What went back to the buyer's vault when it closed.
    pub refund: MicroUsd,
}

/// One event that stands.
#[derive(Clone, Debug)]
struct Entry {
    block: (u64, Hash32),
    index: u64,
    is_final: bool,
    event: HubEvent,
}

/// The events of one channel that stand.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// In the order of the chain.
    entries: Vec<Entry>,
}

impl Standing {
    /// Takes in what the watcher says; true when the picture may have changed.
    pub fn apply(&mut self, news: &ChainEvent) -> bool {
        let (ChainEvent::Seen(log) | ChainEvent::Confirmed(log) | ChainEvent::Removed { log, .. }) =
            news;
        let key = (log.raw.block.number, log.raw.block.hash, log.raw.index);
        let place = self.entries.iter().position(|one| one.key() == key);
        match (news, place) {
            (ChainEvent::Removed { .. }, Some(place)) => {
                self.entries.remove(place);
                true
            }
            (ChainEvent::Removed { .. }, None) => false,
            (ChainEvent::Confirmed(_), Some(place)) => {
                let entry = self.entries.get_mut(place);
                entry.is_some_and(|one| !std::mem::replace(&mut one.is_final, true))
            }
            (ChainEvent::Seen(_), Some(_)) => false,
            (ChainEvent::Seen(_) | ChainEvent::Confirmed(_), None) => {
                let entry = Entry {
                    block: (key.0, key.1),
                    index: key.2,
                    is_final: matches!(news, ChainEvent::Confirmed(_)),
                    event: log.event.clone(),
                };
                let after = |one: &Entry| (one.block.0, one.index) <= (key.0, key.2);
                let at = self.entries.partition_point(after);
                self.entries.insert(at, entry);
                true
            }
        }
    }

    /// What the events add up to.
    #[must_use]
    pub fn view(&self) -> ChannelView {
        let mut view = ChannelView::default();
        for entry in &self.entries {
            let level = if entry.is_final {
                Level::Final
            } else {
                Level::Seen
            };
            view.enter(&entry.event, level);
        }
        view
    }
}

impl Entry {
    const fn key(&self) -> (u64, Hash32, u64) {
        (self.block.0, self.block.1, self.index)
    }
}

impl ChannelView {
    fn enter(&mut self, event: &HubEvent, level: Level) {
        match event {
            HubEvent::Opened {
                deposit,
                open_fee,
                expiry_s,
                ..
            } => {
                self.opened = level;
                self.open_fee = *open_fee;
                self.settled = self.settled.max(*open_fee);
                self.raise(*deposit, *expiry_s, level);
            }
            HubEvent::ToppedUp {
                deposit, expiry_s, ..
            } => self.raise(*deposit, *expiry_s, level),
            HubEvent::Settled { settled, .. } => self.settled = self.settled.max(*settled),
            HubEvent::CloseRequested { expiry_s, .. } => {
                self.closing = level;
                self.expiry_s = *expiry_s;
            }
            HubEvent::Closed {
                settled, refund, ..
            } => {
                self.closed = level;
                self.settled = self.settled.max(*settled);
                self.refund = *refund;
            }
            HubEvent::Deposited { .. } | HubEvent::Withdrawn { .. } => {}
        }
    }

    fn raise(&mut self, deposit: MicroUsd, expiry_s: u64, level: Level) {
        self.deposit_seen = self.deposit_seen.max(deposit);
        if level == Level::Final {
            self.deposit_final = self.deposit_final.max(deposit);
        }
        self.expiry_s = self.expiry_s.max(expiry_s);
    }

    /// True while vouchers are worth something.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.opened > Level::No && self.closed == Level::No
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::chain::hub::HubLog;
    use crate::chain::{BlockRef, RawLog};
    use crate::types::ChannelId;
    use proptest::prelude::*;

    const ID: ChannelId = ChannelId([1; 32]);

    pub fn log(block: u64, fork: u8, index: u64, event: HubEvent) -> HubLog {
        let raw = RawLog {
            block: BlockRef {
                number: block,
                hash: Hash32([fork; 32]),
            },
            tx: Hash32([2; 32]),
            index,
            topics: Vec::new(),
            data: Vec::new(),
        };
        HubLog { raw, event }
    }

    pub fn topped_up(deposit: u64) -> HubEvent {
        HubEvent::ToppedUp {
            channel: ID,
            deposit: MicroUsd(deposit),
            expiry_s: 100,
        }
    }

    #[test]
    fn a_deposit_counts_as_it_becomes_final_and_a_reorg_takes_it_back() {
        let mut standing = Standing::default();
        let (low, high) = (log(1, 1, 0, topped_up(5)), log(2, 2, 0, topped_up(9)));
        assert!(standing.apply(&ChainEvent::Seen(low.clone())));
        assert!(!standing.apply(&ChainEvent::Seen(low.clone())));
        assert!(standing.apply(&ChainEvent::Confirmed(low)));
        assert!(standing.apply(&ChainEvent::Seen(high.clone())));
        let view = standing.view();
        assert_eq!(
            (view.deposit_seen, view.deposit_final),
            (MicroUsd(9), MicroUsd(5))
        );
        let removed = ChainEvent::Removed {
            log: high,
            was_confirmed: false,
        };
        assert!(standing.apply(&removed));
        assert!(!standing.apply(&removed));
        assert_eq!(standing.view().deposit_seen, MicroUsd(5));
    }

    proptest! {
        /// Whatever was told and taken back in between, only what stands counts.
        #[test]
        fn the_picture_is_that_of_the_events_that_stand(
            told in proptest::collection::vec((0..6u64, 0..3u8, 0..3u8), 0..60),
        ) {
            let mut standing = Standing::default();
            let mut model: std::collections::BTreeMap<(u64, u8), bool> = Default::default();
            for (block, fork, what) in told {
                let log = log(block, fork, 0, topped_up(block * 10 + 1));
                let key = (block, fork);
                match what {
                    0 => { standing.apply(&ChainEvent::Seen(log)); model.entry(key).or_insert(false); }
                    1 => { standing.apply(&ChainEvent::Confirmed(log)); model.insert(key, true); }
                    _ => {
                        standing.apply(&ChainEvent::Removed { log, was_confirmed: false });
                        model.remove(&key);
                    }
                }
                let most = |is_final: bool| model.iter()
                    .filter(|(_, f)| **f || !is_final)
                    .map(|((block, _), _)| MicroUsd(block * 10 + 1))
                    .max().unwrap_or_default();
                let view = standing.view();
                prop_assert_eq!(view.deposit_seen, most(false));
                prop_assert_eq!(view.deposit_final, most(true));
            }
        }
    }
}
