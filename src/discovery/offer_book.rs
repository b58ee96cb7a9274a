//! The buyer's offers: read in O(1) by requests, filled in the background.
//!
//! Sources: the cache of the last run, a catalogue pull from every peer that connects, look-ups of wanted models and
//! a slow walk over the catalogue keys. Everything is verified again, also what the cache returns. Invariants: the
//! request path never waits for a walk except in [`OfferBook::find`], which has a deadline; work in the background is
//! bounded ([`WORK_MAX`] at a time, queues bounded). Called by buyer (read, want, mark) and node (runner).

use std::collections::{HashSet, VecDeque};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use lru::LruCache;
use parking_lot::{Mutex, RwLock};
use rand::seq::SliceRandom;
use sha2::{Digest, Sha256};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::catalogue::{Catalogue, ModelSummary, OfferList};
use super::offer_cache::OfferCache;
use super::peer_book::PeerBook;
use crate::network::{Handle, NetworkEvent};
use crate::protocol::offer::SignedOffer;
use crate::types::{Clock, Hash32, ModelId, PeerId, UnixMs};

/// Background work at a time.
const WORK_MAX: usize = 16;
/// Background work waiting.
const QUEUE_MAX: usize = 512;
/// Models whose look-up is remembered.
const MODELS_REMEMBERED_MAX: usize = 1_024;
/// Peers whose last pull is remembered.
const PULLS_REMEMBERED_MAX: usize = 4_096;
/// A look-up that found nothing is not repeated before, in ms.
const UNKNOWN_MS: u64 = 10 * 1_000;
/// A look-up that could not ask anybody is repeated after, in ms.
const AGAIN_MS: u64 = 500;
/// A wanted model with few offers is looked up again after, in ms.
const FEW_OFFERS_MS: u64 = 30 * 1_000;
/// Below this many offers a model has few.
const FEW_OFFERS: usize = 3;
/// A wanted model is looked up again after, in ms.
const INTEREST_MS: u64 = 5 * 60 * 1_000;
/// Interest in a model lasts after its last request, in ms.
const INTEREST_LASTS_MS: u64 = 60 * 60 * 1_000;
/// A peer's catalogue is pulled again after, in ms.
const PULL_MS: u64 = 60 * 1_000;
/// Peers pulled in one refresh.
const PULLS_PER_REFRESH: usize = 4;
/// The catalogue keys are walked again after, in ms.
const WALK_MS: u64 = 10 * 60 * 1_000;
/// How often the runner looks around.
const TICK: Duration = Duration::from_secs(1);
/// Sweep and save every so many ticks.
const HOUSEKEEPING_TICKS: u64 = 5;
/// Offers waiting to be saved; a full list loses the oldest (they will be pulled again).
const UNSAVED_MAX: usize = 8_192;
/// Time for the last save.
const LAST_SAVE: Duration = Duration::from_secs(2);

/// What a search for a model gave.
#[derive(Clone, Debug)]
pub enum Found {
    /// Live offers, at least one.
    Offers(OfferList),
    /// Nobody offers it: a look-up has ended without any (404).
    Unknown,
    /// Too early to say: nobody could be asked before the deadline (503).
    NotReady,
}

#[derive(Clone, Copy, Default)]
struct Interest {
    wanted: UnixMs,
    started: UnixMs,
    done: UnixMs,
    running: bool,
}

pub(super) struct Inner {
    pub(super) network: String,
    pub(super) handle: Handle,
    pub(super) ready: watch::Sender<bool>,
    pub(super) server: watch::Sender<bool>,
    clock: Arc<dyn Clock>,
    cache: Arc<dyn OfferCache>,
    catalogue: RwLock<Catalogue>,
    peers: PeerBook,
    version: watch::Sender<u64>,
    interest: Mutex<LruCache<ModelId, Interest>>,
    wants: mpsc::Sender<ModelId>,
    unsaved: Mutex<VecDeque<Arc<SignedOffer>>>,
}

impl Inner {
    /// Verifies one raw offer; true when it was new.
    pub(super) fn absorb_one(&self, raw: &[u8]) -> bool {
        let Some(signed) = self.take(raw) else {
            return false;
        };
        let mut unsaved = self.unsaved.lock();
        if unsaved.len() >= UNSAVED_MAX {
            unsaved.pop_front();
        }
        unsaved.push_back(signed);
        true
    }
    fn take(&self, raw: &[u8]) -> Option<Arc<SignedOffer>> {
        let hash = Hash32(Sha256::digest(raw).into());
        if self.catalogue.read().knows(&hash) {
            return None;
        }
        let now = self.clock.now_ms();
        let signed = SignedOffer::decode_and_verify(raw, &self.network, now).ok()?;
        let signed = self.catalogue.write().insert(signed, now)?;
        self.handle
            .add_raw_addresses(&signed.offer.seller, &signed.offer.addrs);
        Some(signed)
    }
    pub(super) fn progressed(&self) {
        self.version.send_modify(|v| *v = v.wrapping_add(1));
    }
    pub(super) fn looked_up(&self, model: &ModelId, counts: bool) {
        let now = self.clock.now_ms();
        if let Some(entry) = self.interest.lock().get_mut(model) {
            entry.running = false;
            if counts {
                entry.done = now;
            }
        }
        self.progressed();
    }
}

/// The buyer's view of the market. Cheap to clone.
#[derive(Clone)]
pub struct OfferBook {
    inner: Arc<Inner>,
}

impl OfferBook {
    /// A book that is filled by its runner.
    #[must_use]
    pub fn new(
        handle: Handle,
        network: &str,
        clock: Arc<dyn Clock>,
        cache: Arc<dyn OfferCache>,
    ) -> (Self, OfferBookRunner) {
        let size = NonZeroUsize::new(MODELS_REMEMBERED_MAX).unwrap_or(NonZeroUsize::MIN);
        let pulls = NonZeroUsize::new(PULLS_REMEMBERED_MAX).unwrap_or(NonZeroUsize::MIN);
        let (wants, wanted) = mpsc::channel(QUEUE_MAX);
        let events = handle.subscribe();
        let inner = Arc::new(Inner {
            network: network.to_owned(),
            handle,
            ready: watch::channel(false).0,
            server: watch::channel(false).0,
            peers: PeerBook::new(clock.clone()),
            clock,
            cache,
            catalogue: RwLock::default(),
            version: watch::channel(0).0,
            interest: Mutex::new(LruCache::new(size)),
            wants,
            unsaved: Mutex::default(),
        });
        let runner = OfferBookRunner {
            inner: inner.clone(),
            wanted,
            events,
            queue: VecDeque::new(),
            pulled: LruCache::new(pulls),
            walked: 0,
            ticks: 0,
        };
        (Self { inner }, runner)
    }
    /// The live offers of a model. Never waits.
    #[must_use]
    pub fn offers(&self, model: &ModelId) -> OfferList {
        let now = self.inner.clock.now_ms();
        self.inner.catalogue.read().offers(model, now)
    }
    /// The offer with this hash, live or not.
    #[must_use]
    pub fn by_hash(&self, hash: &Hash32) -> Option<Arc<SignedOffer>> {
        self.inner.catalogue.read().by_hash(hash)
    }
    /// Every model somebody usable offers now, by name.
    #[must_use]
    pub fn models(&self) -> Vec<ModelSummary> {
        let now = self.inner.clock.now_ms();
        let peers = &self.inner.peers;
        self.inner
            .catalogue
            .read()
            .models(now, |seller| !peers.is_dead(seller))
    }
    /// Notes interest in a model; a background look-up follows when its offers are few or old. Never waits.
    pub fn want(&self, model: &ModelId) {
        let now = self.inner.clock.now_ms();
        let few = self.offers(model).len() < FEW_OFFERS;
        let mut interest = self.inner.interest.lock();
        let entry = interest.get_or_insert_mut(model.clone(), Interest::default);
        entry.wanted = now;
        if is_due(entry, few, now) && self.inner.wants.try_send(model.clone()).is_ok() {
            entry.running = true;
            entry.started = now;
        }
    }
    /// The live offers of a model, waiting at most `deadline` for a background look-up when there are none.
    pub async fn find(&self, model: &ModelId, deadline: Duration) -> Found {
        let until = Instant::now() + deadline;
        let mut version = self.inner.version.subscribe();
        let asked = self.inner.clock.now_ms();
        loop {
            version.mark_unchanged();
            let offers = self.offers(model);
            if !offers.is_empty() {
                self.want(model);
                return Found::Offers(offers);
            }
            if self.is_unknown(model, asked) {
                return Found::Unknown;
            }
            self.want(model);
            match tokio::time::timeout_at(until, version.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return Found::NotReady,
            }
        }
    }
    fn is_unknown(&self, model: &ModelId, asked: UnixMs) -> bool {
        let interest = self.inner.interest.lock();
        let done = interest.peek(model).map_or(0, |entry| entry.done);
        self.is_ready() && done > 0 && done.saturating_add(UNKNOWN_MS) > asked
    }
    /// True when one catalogue pull has succeeded.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        *self.inner.ready.borrow()
    }
    /// Waits until one catalogue pull has succeeded; false at the deadline.
    pub async fn wait_ready(&self, deadline: Duration) -> bool {
        let mut ready = self.inner.ready.subscribe();
        let wait = ready.wait_for(|ready| *ready);
        tokio::time::timeout(deadline, wait).await.is_ok()
    }
    /// Sets a seller aside (30 s, doubling to an hour).
    pub fn mark_dead(&self, peer: &PeerId) {
        self.inner.peers.mark_dead(peer);
    }
    /// A seller answered.
    pub fn mark_alive(&self, peer: &PeerId) {
        self.inner.peers.mark_alive(peer);
    }
    /// True while a seller is set aside.
    #[must_use]
    pub fn is_dead(&self, peer: &PeerId) -> bool {
        self.inner.peers.is_dead(peer)
    }
    /// The negative cache itself.
    #[must_use]
    pub fn peers(&self) -> &PeerBook {
        &self.inner.peers
    }
    /// Every live offer, also of sellers that are set aside, in no order. For reports.
    #[must_use]
    pub fn live(&self) -> Vec<Arc<SignedOffer>> {
        self.inner.catalogue.read().live(self.inner.clock.now_ms())
    }
    /// Number of offers known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.catalogue.read().len()
    }
    /// True when no offer is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Takes a raw offer that came another way (a refreshed one in an answer, a test); true when it was new.
    pub fn add(&self, raw: &[u8]) -> bool {
        let new = self.inner.absorb_one(raw);
        if new {
            self.inner.progressed();
        }
        new
    }
}

/// True when a wanted model should be looked up now.
fn is_due(entry: &Interest, few: bool, now: UnixMs) -> bool {
    let pause = match (entry.done, few) {
        (0, _) => AGAIN_MS,
        (_, true) => UNKNOWN_MS,
        (_, false) => INTEREST_MS,
    };
    !entry.running && now >= entry.started.saturating_add(pause)
}

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
        let last = self.pulled.get(&peer).copied().unwrap_or(0);
        if last == 0 || now >= last.saturating_add(PULL_MS) {
            self.pulled.put(peer, now);
            self.queue_work(Work::Pull(peer));
        }
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
        let due = |peer: &PeerId| self.pulled.peek(peer).is_none_or(|at| now >= at + PULL_MS);
        let due: Vec<PeerId> = peers
            .into_iter()
            .filter(due)
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
        for raw in &saved {
            taken += usize::from(self.take(raw).is_some());
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
            let few = catalogue.offers(model, now).len() < FEW_OFFERS;
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
