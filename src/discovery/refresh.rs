//! Keeps the buyer's offers fresh: pulls, look-ups, the walk, loading and saving.
//!
//! Invariants: at most [`WORK_MAX`] pieces of work at a time, queues bounded; never on the request
//! path. Made by [`super::OfferBook::new`], run by node.

use std::collections::{HashSet, VecDeque};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use lru::LruCache;
use rand::seq::SliceRandom;
use tokio::sync::{broadcast, mpsc};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::catalogue::OFFERS_MAX;
use super::offer_book::{INTEREST_MS, Inner, QUEUE_MAX, has_few};
use crate::network::NetworkEvent;
use crate::types::{ModelId, PeerId, UnixMs};

/// Peers whose last pull is remembered.
const PULLS_REMEMBERED_MAX: usize = 4_096;
/// Background work at a time.
const WORK_MAX: usize = 16;
/// A wanted model with few offers is looked up again after, in ms.
const FEW_OFFERS_MS: u64 = 30 * 1_000;
/// Interest in a model lasts after its last request, in ms.
const INTEREST_LASTS_MS: u64 = 60 * 60 * 1_000;
/// A peer's catalogue is pulled again after, in ms.
const PULL_MS: u64 = 60 * 1_000;
/// The same while nobody sells anything that we know of, in ms: a market that has just begun must
/// not look empty for a minute to who came before its first seller.
const PULL_EMPTY_MS: u64 = 5 * 1_000;
/// Peers pulled in one refresh.
const PULLS_PER_REFRESH: usize = 4;
/// The catalogue keys are walked again after, in ms.
const WALK_MS: u64 = 10 * 60 * 1_000;
/// How often the runner looks around.
const TICK: Duration = Duration::from_secs(1);
/// Sweep and save every so many ticks.
const HOUSEKEEPING_TICKS: u64 = 5;
/// Time for the last save.
const LAST_SAVE: Duration = Duration::from_secs(2);

enum Work {
    Pull(PeerId),
    LookUp(ModelId),
    Walk,
}

/// Fills the book until cancelled.
pub struct OfferBookRunner {
    inner: Arc<Inner>,
    wanted: mpsc::Receiver<ModelId>,
    events: broadcast::Receiver<NetworkEvent>,
    queue: VecDeque<Work>,
    pulled: LruCache<PeerId, UnixMs>,
    walked: UnixMs,
    ticks: u64,
}

impl OfferBookRunner {
    pub(super) fn new(inner: Arc<Inner>, wanted: mpsc::Receiver<ModelId>) -> Self {
        let pulls = NonZeroUsize::new(PULLS_REMEMBERED_MAX).unwrap_or(NonZeroUsize::MIN);
        Self {
            events: inner.handle.subscribe(),
            inner,
            wanted,
            queue: VecDeque::new(),
            pulled: LruCache::new(pulls),
            walked: 0,
            ticks: 0,
        }
    }
    /// Runs until cancelled; saves what is new at the end.
    pub async fn run(mut self, cancel: CancellationToken) {
        let inner = self.inner.clone();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut work: FuturesUnordered<BoxFuture<'_, ()>> = FuturesUnordered::new();
        work.push(inner.load().boxed());
        for peer in inner.handle.connected_peers() {
            self.queue_pull(peer);
        }
        loop {
            while work.len() < WORK_MAX
                && let Some(next) = self.queue.pop_front()
            {
                work.push(inner.perform(next).boxed());
            }
            tokio::select! {
                () = cancel.cancelled() => break,
                Some(model) = self.wanted.recv() => self.queue_work(Work::LookUp(model)),
                event = self.events.recv() => self.event(event),
                Some(()) = work.next() => {}
                _ = tick.tick() => {
                    if self.tick() {
                        inner.save().await;
                    }
                }
            }
        }
        let _ = tokio::time::timeout(LAST_SAVE, inner.save()).await;
    }
    fn queue_work(&mut self, work: Work) {
        if self.queue.len() < QUEUE_MAX {
            self.queue.push_back(work);
        } else if let Work::LookUp(model) = work {
            self.inner.looked_up(&model, false);
        }
    }
    fn queue_pull(&mut self, peer: PeerId) {
        let now = self.inner.clock.now_ms();
        if self.is_due(&peer, now) {
            self.pulled.put(peer, now);
            self.queue_work(Work::Pull(peer));
        }
    }
    fn is_due(&self, peer: &PeerId, now: UnixMs) -> bool {
        let is_empty = self.inner.catalogue.read().len() == 0;
        let pause = if is_empty { PULL_EMPTY_MS } else { PULL_MS };
        let last = self.pulled.peek(peer);
        last.is_none_or(|at| now >= at.saturating_add(pause))
    }
    fn event(&mut self, event: Result<NetworkEvent, broadcast::error::RecvError>) {
        match event {
            Ok(NetworkEvent::Connected(peer)) => {
                self.inner.peers.mark_alive(&peer);
                self.queue_pull(peer);
            }
            Ok(NetworkEvent::Disconnected(peer)) => {
                // What it offers may have changed when it comes back.
                self.pulled.pop(&peer);
            }
            Ok(NetworkEvent::DialFailed(peer)) => self.inner.peers.mark_dead(&peer),
            Ok(NetworkEvent::Server(_)) => {
                self.inner.server.send_replace(true);
                let now = self.inner.clock.now_ms();
                if self.walked == 0 {
                    self.walked = now;
                    self.queue_work(Work::Walk);
                }
            }
            Ok(NetworkEvent::Listening(_)) => {}
            Err(_) => {
                for peer in self.inner.handle.connected_peers() {
                    self.queue_pull(peer);
                }
            }
        }
    }
    /// Queues what is due; true when it is time to sweep and save.
    fn tick(&mut self) -> bool {
        self.ticks = self.ticks.wrapping_add(1);
        if !self.ticks.is_multiple_of(HOUSEKEEPING_TICKS) {
            return false;
        }
        let now = self.inner.clock.now_ms();
        self.inner.catalogue.write().sweep(now);
        if self.walked > 0 && now >= self.walked.saturating_add(WALK_MS) {
            self.walked = now;
            self.queue_work(Work::Walk);
        }
        let mut peers = self.inner.handle.connected_peers();
        peers.shuffle(&mut rand::rng());
        let due: Vec<PeerId> = peers
            .into_iter()
            .filter(|peer| self.is_due(peer, now))
            .take(PULLS_PER_REFRESH)
            .collect();
        for peer in due {
            self.queue_pull(peer);
        }
        for model in self.inner.due_models(now) {
            self.queue_work(Work::LookUp(model));
        }
        true
    }
}

impl Inner {
    async fn perform(&self, work: Work) {
        match work {
            Work::Pull(peer) => self.pull(peer).await,
            Work::LookUp(model) => self.look_up(&model).await,
            Work::Walk => self.walk_catalogue().await,
        }
    }
    async fn load(&self) {
        let saved = self.cache.load().await;
        let mut taken = 0;
        for raw in saved.iter().take(OFFERS_MAX) {
            taken += usize::from(self.take(raw).is_ok());
            if taken % 16 == 15 {
                self.progressed();
                tokio::task::yield_now().await;
            }
        }
        tracing::debug!(saved = saved.len(), taken, "offers of the last run");
        self.progressed();
    }
    async fn save(&self) {
        let new: Vec<_> = self.unsaved.lock().drain(..).collect();
        if new.is_empty() {
            return;
        }
        // Only the newest of each seller and model.
        let mut seen = HashSet::new();
        let newest: Vec<_> = new
            .into_iter()
            .rev()
            .filter(|s| seen.insert((s.offer.seller, s.offer.model.clone())))
            .collect();
        self.cache.save(newest).await;
    }
    /// Models of lasting interest whose offers should be refreshed.
    fn due_models(&self, now: UnixMs) -> Vec<ModelId> {
        let catalogue = self.catalogue.read();
        let mut interest = self.interest.lock();
        let mut due = Vec::new();
        for (model, entry) in interest.iter_mut() {
            let few = has_few(model, catalogue.offers(model, now).len());
            let pause = if few { FEW_OFFERS_MS } else { INTEREST_MS };
            let lasts = entry.wanted.saturating_add(INTEREST_LASTS_MS) > now;
            if lasts && !entry.running && now >= entry.started.saturating_add(pause) {
                entry.running = true;
                entry.started = now;
                due.push(model.clone());
            }
            if due.len() >= WORK_MAX {
                break;
            }
        }
        due
    }
}
