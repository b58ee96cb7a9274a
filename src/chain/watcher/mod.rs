//! Watches the hub's logs: polls the chain, lets the [`Tracker`] decide, stores the events, then
//! hands them on in order.
//!
//! Invariants: an event is stored before it is handed on, so a restart hands on at most what is
//! stored again, never less; a poll that breaks off (a node failed, the chain moved) is begun anew
//! by the next one and loses nothing. Run by `node`; read by `payment`.

mod ours;
mod tracker;
#[cfg(test)]
mod tracker_tests;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use ours::{Ours, SIFTED_BLOCKS_MAX};
pub use tracker::{Ask, ChainEvent, Kept, Tracker};

use super::digest::HubDomain;
use super::hub::HubLog;
use super::journal::{CursorRecord, EventRecord, Journal, JournalError, Record, Stage};
use super::{At, BlockRef, Chain, ChainError, LogQuery, RawLog, Topics};
use crate::types::{Clock, EvmAddress, UnixMs};

/// Events that may wait for their reader; beyond it the watcher waits.
pub const EVENTS_QUEUED_MAX: usize = 256;
/// Logs of one answer; more is no honest hub, or the range is halved.
const LOGS_MAX: usize = 20_000;
/// Ranges read by one poll; more blocks are read by the next ones, each storing how far it came.
const RANGES_MAX: u32 = 16;
/// How often the place to restart from is stored while nothing else happens.
const CURSOR_EVERY_MS: u64 = 600_000;
/// Polls in a row for which a head below what was read may be a node that is late.
const LATE_POLLS_MAX: u32 = 5;

/// How a watcher works.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The hub.
    pub domain: HubDomain,
    /// Whose events are kept: its own and those of its channels.
    pub account: EvmAddress,
    /// The block the hub was deployed in, or any before it.
    pub start_block: u64,
    /// Blocks below the head that count as final; none believes the node's `safe` tag.
    pub confirmations: Option<u64>,
    /// Most blocks of one query for logs; halved when the node wants less.
    pub range_blocks_max: u64,
    /// Time between polls.
    pub poll_every: Duration,
}

/// A watcher of one hub.
pub struct Watcher {
    chain: Arc<dyn Chain>,
    journal: Arc<dyn Journal>,
    clock: Arc<dyn Clock>,
    settings: Settings,
    tracker: Option<Tracker>,
    ours: Ours,
    stored_base: Option<BlockRef>,
    stored_ms: UnixMs,
    late_polls: u32,
    is_caught_up: bool,
    fault: watch::Sender<Option<String>>,
}

impl From<JournalError> for ChainError {
    fn from(error: JournalError) -> Self {
        Self::Journal(error.0)
    }
}

impl Watcher {
    /// Watches nothing yet.
    #[must_use]
    pub fn new(
        chain: Arc<dyn Chain>,
        journal: Arc<dyn Journal>,
        clock: Arc<dyn Clock>,
        settings: Settings,
    ) -> Self {
        Self {
            chain,
            journal,
            clock,
            settings,
            tracker: None,
            ours: Ours::new(settings.account, []),
            stored_base: None,
            stored_ms: 0,
            late_polls: 0,
            is_caught_up: false,
            fault: watch::Sender::new(None),
        }
    }

    /// Why the chain could not be watched at the last poll of [`Self::run`]; none while it can.
    #[must_use]
    pub fn fault(&self) -> watch::Receiver<Option<String>> {
        self.fault.subscribe()
    }

    /// Polls until `cancel`; hands events to `events`. A chain that cannot be asked is logged and
    /// asked again.
    ///
    /// # Errors
    /// When the journal fails, or the chain contradicts what is final.
    pub async fn run(
        mut self,
        events: mpsc::Sender<ChainEvent>,
        cancel: CancellationToken,
    ) -> Result<(), ChainError> {
        loop {
            match self.poll().await {
                Ok(news) => {
                    if self.fault.send_replace(None).is_some() {
                        tracing::info!("the chain can be watched again");
                    }
                    for event in news {
                        if events.send(event).await.is_err() {
                            return Ok(());
                        }
                    }
                }
                Err(error @ (ChainError::Journal(_) | ChainError::TooDeep(_))) => {
                    return Err(error);
                }
                Err(error) => {
                    self.is_caught_up = true;
                    let before = self.fault.send_replace(Some(error.to_string()));
                    // Once is enough: an outage of an hour is one message.
                    if before.is_none() {
                        tracing::warn!(%error, "the chain cannot be watched now");
                    }
                }
            }
            let pause = if self.tracker.is_some() && !self.is_caught_up {
                Duration::ZERO
            } else {
                self.settings.poll_every
            };
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Up to where everything is handled and final.
    #[must_use]
    pub fn cursor(&self) -> Option<BlockRef> {
        self.tracker.as_ref().map(Tracker::cursor)
    }

    /// Reads what is new (a part of it, when there is much), stores and returns its events in order.
    /// What was read before an error comes with the next poll's events.
    ///
    /// # Errors
    /// When the chain or the journal cannot be asked.
    ///
    /// Cancel safety: none; events of a dropped poll are stored, but lost to the caller.
    pub async fn poll(&mut self) -> Result<Vec<ChainEvent>, ChainError> {
        let mut tracker = match self.tracker.take() {
            Some(tracker) => tracker,
            None => self.restore().await?,
        };
        if let Err(error) = self.read(&mut tracker).await {
            // What was read so far stays in the tracker for the next poll.
            self.tracker = Some(tracker);
            return Err(error);
        }
        let events = tracker.take_events();
        // On a failed store the tracker is dropped: what is durable is read again.
        self.store(&tracker, &events).await?;
        self.tracker = Some(tracker);
        Ok(events)
    }

    /// True when the last poll read up to the head; false while older blocks are caught up with.
    #[must_use]
    pub const fn is_caught_up(&self) -> bool {
        self.is_caught_up
    }

    async fn restore(&mut self) -> Result<Tracker, ChainError> {
        let HubDomain { chain_id, hub } = self.settings.domain;
        let state = self.journal.watch_state(chain_id, hub).await?;
        let base = match state.base {
            Some(base) => base,
            None => self.block(self.settings.start_block).await?,
        };
        self.stored_base = Some(base);
        self.ours = Ours::new(self.settings.account, state.channels);
        Ok(Tracker::new(
            base,
            state.seen,
            self.settings.range_blocks_max,
        ))
    }

    async fn block(&self, number: u64) -> Result<BlockRef, ChainError> {
        let block = self.chain.block(At::Number(number)).await?;
        block.map(|block| block.at).ok_or_else(|| missing(number))
    }

    async fn read(&mut self, tracker: &mut Tracker) -> Result<(), ChainError> {
        let latest = self.chain.block(At::Latest).await?;
        let head = latest.ok_or_else(|| missing(0))?.at.number;
        if head < tracker.tip().number && self.late_polls < LATE_POLLS_MAX {
            self.late_polls += 1;
            return Ok(());
        }
        self.late_polls = 0;
        let safe = match self.settings.confirmations {
            Some(depth) => head.saturating_sub(depth),
            None => {
                let safe = self.chain.block(At::Safe).await?;
                safe.map_or(0, |safe| safe.at.number)
            }
        };
        tracker.begin(head, safe);
        self.is_caught_up = true;
        let mut ranges = 0;
        loop {
            match tracker.ask() {
                Ask::Nothing => return Ok(()),
                Ask::Header(number) => {
                    let found = self.chain.block(At::Number(number)).await?;
                    if found.is_none() && number <= head {
                        return Err(missing(number));
                    }
                    tracker.header(found.map(|block| block.at))?;
                }
                Ask::Logs { from, to } => match self.logs(from, to).await {
                    Ok((last, logs)) => {
                        tracker.logs(last, logs);
                        ranges += 1;
                        if ranges >= RANGES_MAX {
                            self.is_caught_up = false;
                            tracker.pause();
                        }
                    }
                    Err(ChainError::RangeTooWide(why)) => {
                        if !tracker.shrink_range() {
                            return Err(ChainError::Refused(why));
                        }
                    }
                    Err(error) => return Err(error),
                },
            }
        }
    }

    /// This node's logs of a range, all from one view of the chain.
    async fn logs(&mut self, from: u64, to: u64) -> Result<(BlockRef, Vec<HubLog>), ChainError> {
        let last = self.block(to).await?;
        let mut raw = if to.saturating_sub(from) < SIFTED_BLOCKS_MAX {
            self.ask(from, to, Topics::default()).await?
        } else {
            self.own_logs(from, to).await?
        };
        if raw.len() > LOGS_MAX {
            return Err(ChainError::RangeTooWide(format!("{} logs", raw.len())));
        }
        if self.block(to).await? != last {
            return Err(ChainError::Malformed(
                "the chain moved while it was read".to_owned(),
            ));
        }
        raw.sort_by_key(|log| (log.block.number, log.index));
        let is_inside = |log: &&RawLog| {
            let number = log.block.number;
            (from..=to).contains(&number) && (number != to || log.block == last)
        };
        if let Some(odd) = raw.iter().find(|log| !is_inside(log)) {
            let number = odd.block.number;
            return Err(ChainError::Malformed(format!(
                "a log of block {number}, not asked for"
            )));
        }
        let ours = &mut self.ours;
        let logs = raw.into_iter().filter_map(HubLog::decode);
        Ok((last, logs.filter(|log| ours.keeps(&log.event)).collect()))
    }

    async fn ask(&self, from: u64, to: u64, topics: Topics) -> Result<Vec<RawLog>, ChainError> {
        let query = LogQuery {
            address: self.settings.domain.hub,
            from,
            to,
            topics,
        };
        self.chain.logs(query).await
    }

    /// The logs of a long range, found by their topics: first the account's, which tell of its
    /// channels, then those of the channels. One that two questions find comes once.
    async fn own_logs(&self, from: u64, to: u64) -> Result<Vec<RawLog>, ChainError> {
        let (mut ours, mut found) = (self.ours.clone(), vec![]);
        for topics in ours.about_account() {
            found.extend(self.ask(from, to, topics).await?);
        }
        ours.learn(&found);
        for topics in ours.about_channels() {
            found.extend(self.ask(from, to, topics).await?);
        }
        let place = |log: &RawLog| (log.block.number, log.index, log.block.hash);
        found.sort_by_key(place);
        found.dedup_by_key(|log| place(log));
        Ok(found)
    }

    async fn store(&mut self, tracker: &Tracker, events: &[ChainEvent]) -> Result<(), ChainError> {
        let HubDomain { chain_id, hub } = self.settings.domain;
        let at_ms = self.clock.now_ms();
        let event = |event: &ChainEvent| {
            let (stage, log) = match event {
                ChainEvent::Seen(log) => (Stage::Seen, log),
                ChainEvent::Confirmed(log) => (Stage::Confirmed, log),
                ChainEvent::Removed { log, .. } => (Stage::Removed, log),
            };
            Record::Event(EventRecord {
                at_ms,
                chain_id,
                hub,
                stage,
                log: log.clone(),
            })
        };
        let mut records: Vec<Record> = events.iter().map(event).collect();
        let base = tracker.base();
        let is_due = !self.is_caught_up || at_ms.saturating_sub(self.stored_ms) >= CURSOR_EVERY_MS;
        if self.stored_base != Some(base) && (is_due || !records.is_empty()) {
            let block = base;
            records.push(Record::Cursor(CursorRecord {
                at_ms,
                chain_id,
                hub,
                block,
            }));
            self.stored_base = Some(base);
            self.stored_ms = at_ms;
        }
        if !records.is_empty() {
            self.journal.store(records).await?;
        }
        Ok(())
    }
}

fn missing(number: u64) -> ChainError {
    ChainError::Malformed(format!("block {number} is not known to the RPC node"))
}
