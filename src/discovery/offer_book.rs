//! The buyer's offers: read in O(1) by requests, filled in the background.
//!
//! Sources: the cache of the last run, a catalogue pull from every peer that connects, look-ups of wanted models and
//! a slow walk over the catalogue keys. Everything is verified again, also what the cache returns. Invariants: the
//! request path never waits for a walk except in [`OfferBook::find`], which has a deadline. The work in the background
//! is [`super::refresh`]. Called by buyer (read, want, mark).

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use lru::LruCache;
use parking_lot::{Mutex, RwLock};
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::cache::OfferCache;
use super::catalogue::{Catalogue, ModelSummary, OfferList};
use super::peer_book::PeerBook;
use super::refresh::OfferBookRunner;
use crate::network::Handle;
use crate::protocol::offer::{OfferError, SignedOffer, is_stage_model, stage_model};
use crate::types::{Clock, Hash32, ModelId, PeerId, UnixMs};

/// Background work waiting.
pub(super) const QUEUE_MAX: usize = 512;
/// Models whose look-up is remembered.
const MODELS_REMEMBERED_MAX: usize = 1_024;
/// A look-up that found nothing is not repeated before, in ms.
const UNKNOWN_MS: u64 = 10 * 1_000;
/// A look-up that could not ask anybody is repeated after, in ms.
const AGAIN_MS: u64 = 500;
/// Below this many offers a model has few.
const FEW_OFFERS: usize = 3;
/// A wanted model is looked up again after, in ms.
pub(super) const INTEREST_MS: u64 = 5 * 60 * 1_000;
/// Offers waiting to be saved; a full list loses the oldest (they will be pulled again).
const UNSAVED_MAX: usize = 8_192;

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

/// What became of a raw offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Absorbed {
    /// Verified and taken.
    New,
    /// Not newer than what is known.
    Known,
    /// Expired, from the future or from another version: honest peers show such offers.
    Outdated,
    /// No honest holder shows this.
    Forged,
}

#[derive(Clone, Copy, Default)]
pub(super) struct Interest {
    pub(super) wanted: UnixMs,
    pub(super) started: UnixMs,
    done: UnixMs,
    pub(super) running: bool,
}

pub(super) struct Inner {
    pub(super) network: String,
    pub(super) handle: Handle,
    pub(super) ready: watch::Sender<bool>,
    pub(super) server: watch::Sender<bool>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) cache: Arc<dyn OfferCache>,
    pub(super) catalogue: RwLock<Catalogue>,
    pub(super) peers: PeerBook,
    version: watch::Sender<u64>,
    pub(super) interest: Mutex<LruCache<ModelId, Interest>>,
    wants: mpsc::Sender<ModelId>,
    pub(super) unsaved: Mutex<VecDeque<Arc<SignedOffer>>>,
}

impl Inner {
    /// Verifies and takes one raw offer.
    pub(super) fn absorb_one(&self, raw: &[u8]) -> Absorbed {
        let signed = match self.take(raw) {
            Ok(signed) => signed,
            Err(why) => return why,
        };
        let mut unsaved = self.unsaved.lock();
        if unsaved.len() >= UNSAVED_MAX {
            unsaved.pop_front();
        }
        unsaved.push_back(signed);
        Absorbed::New
    }
    pub(super) fn take(&self, raw: &[u8]) -> Result<Arc<SignedOffer>, Absorbed> {
        let hash = Hash32(Sha256::digest(raw).into());
        if self.catalogue.read().knows(&hash) {
            return Err(Absorbed::Known);
        }
        let now = self.clock.now_ms();
        let signed =
            SignedOffer::decode_and_verify(raw, &self.network, now).map_err(|e| match e {
                OfferError::Expired | OfferError::Times | OfferError::Version(_) => {
                    Absorbed::Outdated
                }
                _ => Absorbed::Forged,
            })?;
        let taken = self.catalogue.write().insert(signed, now);
        let signed = taken.ok_or(Absorbed::Known)?;
        self.handle
            .add_raw_addresses(&signed.offer.seller, &signed.offer.addrs);
        Ok(signed)
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
        let (wants, wanted) = mpsc::channel(QUEUE_MAX);
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
        let runner = OfferBookRunner::new(inner.clone(), wanted);
        (Self { inner }, runner)
    }
    /// The live offers of a model; none of one that only stages have. Never waits.
    #[must_use]
    pub fn offers(&self, model: &ModelId) -> OfferList {
        if is_stage_model(model) {
            return Arc::from([]);
        }
        self.shelf(model)
    }
    /// The live offers of stages of the model with this manifest. Never waits.
    #[must_use]
    pub fn stages(&self, manifest: &Hash32) -> OfferList {
        let model = stage_model(manifest);
        let all = self.shelf(&model);
        let is_of = |s: &Arc<SignedOffer>| s.offer.stage.is_some_and(|t| t.manifest == *manifest);
        if all.iter().all(is_of) {
            return all;
        }
        all.iter().filter(|signed| is_of(signed)).cloned().collect()
    }
    /// Notes interest in the stages of the model with this manifest. Never waits.
    pub fn want_stages(&self, manifest: &Hash32) {
        self.want(&stage_model(manifest));
    }
    /// Looks the stages of the model with this manifest up now; returns when whoever could be asked
    /// has answered. For those that plan by them; requests never wait for it.
    pub async fn refresh_stages(&self, manifest: &Hash32) {
        self.inner.look_up(&stage_model(manifest)).await;
    }
    /// The names under which stages are offered now.
    #[must_use]
    pub fn stage_models(&self) -> Vec<ModelId> {
        let now = self.inner.clock.now_ms();
        self.inner.catalogue.read().stage_models(now)
    }
    fn shelf(&self, model: &ModelId) -> OfferList {
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
        let few = has_few(model, self.shelf(model).len());
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
        let new = self.inner.absorb_one(raw) == Absorbed::New;
        if new {
            self.inner.progressed();
        }
        new
    }
}

/// True when a model's offers should be looked up often: those that there are may not be enough. A
/// pipeline needs every one of its stages, and they move.
pub(super) fn has_few(model: &ModelId, offers: usize) -> bool {
    offers < FEW_OFFERS || is_stage_model(model)
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
