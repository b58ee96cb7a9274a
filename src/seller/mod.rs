//! L4: infer streams to an upstream, and what they earn.
//!
//! One stream, top to bottom (`Seller::serve`):
//! `accept → verify head → admit → call upstream → meter while relaying → receipt → record`.
//!
//! `intake` takes an order: [`admission`] checks its head, [`limits`] how much is served; [`catalogue`] knows the offers that bind us, [`upstream`] is the
//! HTTP client, `reply` relays and meters (`stream` or `whole`), [`stage`] serves layers of a pipeline
//! instead, `account` turns what was delivered into a receipt, [`control`] answers the owner's own HTTP port.
//! A buyer that cancels or vanishes stops the upstream at once.
//!
//! Before that: [`presets`] says which upstream a name means, [`pricing`] what each model costs,
//! [`demo_upstream`] is an upstream without a provider and [`demo_plan`] the market of `node demo`.

mod account;
pub mod admission;
pub mod catalogue;
pub mod control;
mod demo_answer;
pub mod demo_plan;
pub mod demo_upstream;
mod intake;
mod layers;
pub mod limits;
mod measures;
pub mod presets;
pub mod pricing;
pub mod replay;
mod reply;
pub mod stage;
mod stream;
pub mod upstream;
mod whole;
mod wire;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use admission::{Gate, Order};
use limits::Limits;
use stage::{StageService, StageSession};
use upstream::Upstream;
use wire::{InferWire, NoOrder};

use crate::keys::NodeKeys;
use crate::ledger::{Ledger, OpenRow, Role};
use crate::llm_api::{Endpoint, TokenCounter};
use crate::network::Stream;
use crate::payment::WindowSettings;
use crate::payment::payee::{PayeeHub, PayeePair};
use crate::protocol::limits::{STREAMS_PER_NODE_MAX, STREAMS_PER_PEER_MAX};
use crate::protocol::{Ending, PeerErrorCode};
use crate::tasks::Tasks;
use crate::types::{AttemptId, Clock, MicroUsd, PeerId};

/// Streams that still run this long after a shutdown began are ended, with a receipt.
const DRAIN_PATIENCE: Duration = Duration::from_secs(6);

/// What a seller needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Requests at the upstream at once; more are refused before their body is read.
    pub max_concurrent: usize,
    /// Windows and limits.
    pub windows: WindowSettings,
    /// Silence of the upstream within an answer that ends it.
    pub idle_timeout: Duration,
}

/// Serves infer streams. Cheap to clone.
#[derive(Clone)]
pub struct Seller {
    shared: Arc<Shared>,
}

struct Shared {
    gate: Gate,
    payee: PayeeHub,
    upstream: Option<Upstream>,
    stages: Option<Arc<dyn StageService>>,
    ledger: Ledger,
    keys: NodeKeys,
    clock: Arc<dyn Clock>,
    tasks: Tasks,
    counter: TokenCounter,
    settings: Settings,
    slots: Arc<Semaphore>,
    per_buyer: Mutex<HashMap<PeerId, Arc<Semaphore>>>,
    limits: Mutex<Limits>,
    stats: Stats,
    stop: CancellationToken,
    /// Cancelled: nothing new is taken.
    drain: CancellationToken,
    drain_at: OnceLock<Instant>,
}

/// Counters for `status` and `/metrics`.
#[derive(Debug, Default)]
pub struct Stats {
    /// Requests that reached the upstream.
    pub served: AtomicU64,
    /// Requests refused before it.
    pub refused: AtomicU64,
    /// The same by code.
    refused_by: Mutex<BTreeMap<&'static str, u64>>,
    /// Answers the buyer cut short.
    pub cancelled: AtomicU64,
}

impl Stats {
    /// Requests refused before they reached the upstream, by code.
    #[must_use]
    pub fn refused_by(&self) -> BTreeMap<&'static str, u64> {
        self.refused_by.lock().clone()
    }
}

/// The parts a seller is made of.
pub struct Parts {
    /// Checks heads.
    pub gate: Gate,
    /// Keeps the money.
    pub payee: PayeeHub,
    /// Answers requests; none at a node that only serves layers.
    pub upstream: Option<Upstream>,
    /// Serves layers of pipelines, if any.
    pub stages: Option<Arc<dyn StageService>>,
    /// Keeps the record.
    pub ledger: Ledger,
    /// Signs receipts.
    pub keys: NodeKeys,
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// Runs the streams.
    pub tasks: Tasks,
    /// Counts tokens.
    pub counter: TokenCounter,
    /// How much is served.
    pub limits: Limits,
}

impl Shared {
    /// A request that was counted with `counted` tokens is over.
    fn count_served(&self, buyer: PeerId, counted: u64, tokens: u64, cost: MicroUsd) {
        let now_ms = self.clock.now_ms();
        let mut limits = self.limits.lock();
        limits.served(buyer, counted, tokens, cost, now_ms);
    }

    /// True once nothing new is taken.
    fn is_draining(&self) -> bool {
        self.drain.is_cancelled() || self.stop.is_cancelled()
    }

    /// Resolves when a shutdown has waited long enough for streams to end by themselves.
    async fn drained(&self) {
        self.stop.cancelled().await;
        let since = *self.drain_at.get_or_init(Instant::now);
        tokio::time::sleep_until(since + DRAIN_PATIENCE).await;
    }

    /// The places that one buyer's streams share; those of absent buyers are forgotten.
    fn place(&self, buyer: PeerId) -> Arc<Semaphore> {
        let mut places = self.per_buyer.lock();
        if places.len() >= STREAMS_PER_NODE_MAX {
            places.retain(|_, place| place.available_permits() < STREAMS_PER_PEER_MAX);
        }
        let new = || Arc::new(Semaphore::new(STREAMS_PER_PEER_MAX));
        Arc::clone(places.entry(buyer).or_insert_with(new))
    }
}

/// What a request takes up at this seller, until its answer is out: a place among its buyer's
/// streams and a slot at the upstream. The receipt's way to the disk holds up no next request.
struct Room {
    _place: OwnedSemaphorePermit,
    _slot: OwnedSemaphorePermit,
}

/// Who does an admitted request's work.
enum Work {
    /// The upstream answers it.
    Upstream(Upstream, Endpoint),
    /// Layers are computed for it.
    Stage(Box<dyn StageSession>),
}

/// One admitted request.
struct Job {
    room: Option<Room>,
    order: Order,
    attempt: AttemptId,
    pair: Arc<PayeePair>,
    body: Bytes,
    /// None for a session of a stage.
    endpoint: Option<Endpoint>,
    prefill: MicroUsd,
    /// Its input, as the limits counted it.
    counted: u64,
    started: Instant,
}

impl Seller {
    /// Puts a seller together.
    #[must_use]
    pub fn new(parts: Parts, settings: Settings) -> Self {
        let Parts {
            gate,
            payee,
            upstream,
            stages,
            ledger,
            keys,
            clock,
            tasks,
            counter,
            limits,
        } = parts;
        let slots = Arc::new(Semaphore::new(
            settings.max_concurrent.min(STREAMS_PER_NODE_MAX),
        ));
        let stats = Stats::default();
        let stop = tasks.cancelled();
        let shared = Shared {
            gate,
            payee,
            upstream,
            stages,
            ledger,
            keys,
            clock,
            tasks,
            counter,
            settings,
            slots,
            per_buyer: Mutex::default(),
            limits: Mutex::new(limits),
            stats,
            drain: CancellationToken::new(),
            stop,
            drain_at: OnceLock::new(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Counters since the start.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.shared.stats
    }
    /// Requests at the upstream at once, at most.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.shared.settings.max_concurrent
    }
    /// Requests at the upstream now.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        let free = self.shared.slots.available_permits();
        self.shared.settings.max_concurrent.saturating_sub(free)
    }

    /// Takes nothing new from now on: requests are refused as `draining`, what runs is finished.
    pub fn drain(&self) {
        self.shared.drain.cancel();
    }
    /// True once nothing new is taken.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.shared.is_draining()
    }
    /// Resolves when [`Self::drain`] was called and nothing runs any more.
    pub async fn drained(&self) {
        self.shared.drain.cancelled().await;
        let all = self
            .shared
            .settings
            .max_concurrent
            .min(STREAMS_PER_NODE_MAX);
        let all = u32::try_from(all).unwrap_or(u32::MAX);
        // Closed semaphores have no more to wait for.
        drop(self.shared.slots.acquire_many(all).await);
    }

    /// Takes infer streams until the network or the node ends. While the node ends, those that come
    /// are refused with a word, on `last` tasks, so that buyers go elsewhere at once.
    pub async fn accept(self, mut incoming: mpsc::Receiver<(PeerId, Stream)>, last: Tasks) {
        let ended = last.cancelled();
        loop {
            let (buyer, stream) = tokio::select! {
                next = incoming.recv() => match next { Some(next) => next, None => return },
                () = ended.cancelled() => return,
            };
            let tasks = if self.shared.stop.is_cancelled() {
                &last
            } else {
                &self.shared.tasks
            };
            let seller = self.clone();
            tasks.spawn("infer", async move { seller.serve(buyer, stream).await });
        }
    }

    /// One stream: an order, and after a good end the next one.
    async fn serve(&self, buyer: PeerId, stream: Stream) {
        let mut wire = InferWire::new(stream);
        let mut head = wire.head().await;
        loop {
            let order = match head {
                Ok(payload) => self.take_order(&mut wire, buyer, payload).await,
                Err(why) => Err(why),
            };
            match order {
                Ok((job, work)) => {
                    self.shared.stats.served.fetch_add(1, Ordering::Relaxed);
                    if !reply::answer(&self.shared, &mut wire, job, work).await {
                        return;
                    }
                }
                Err(NoOrder::Refuse(code)) => return self.refuse(&mut wire, buyer, code, 0).await,
                Err(NoOrder::Wait(code, ms)) => {
                    return self.refuse(&mut wire, buyer, code, ms).await;
                }
                Err(NoOrder::Gone) => {
                    return tracing::debug!(%buyer, "stream ended before its order");
                }
            }
            head = tokio::select! {
                next = wire.next_head() => next,
                () = self.shared.stop.cancelled() => return,
            };
        }
    }

    async fn refuse(
        &self,
        wire: &mut InferWire,
        buyer: PeerId,
        code: PeerErrorCode,
        retry_after_ms: u64,
    ) {
        let stats = &self.shared.stats;
        stats.refused.fetch_add(1, Ordering::Relaxed);
        *stats.refused_by.lock().entry(code.as_str()).or_insert(0) += 1;
        tracing::info!(%buyer, code = code.as_str(), "request refused");
        let now_ms = self.shared.clock.now_ms();
        wire.refuse(code, retry_after_ms, now_ms).await;
    }
}

impl Job {
    fn open_row(&self, at_ms: u64) -> OpenRow {
        let head = &self.order.signed.head;
        OpenRow {
            at_ms,
            attempt_id: self.attempt,
            request_id: head.request_id,
            attempt: head.attempt,
            role: Role::Sell,
            peer: head.buyer,
            client: String::new(),
            model_asked: head.model.clone(),
            model: self.order.sold.offer.model.clone(),
            offer_hash: head.offer_hash,
            price: self.order.sold.offer.price,
            channel: head.channel,
            max_cost: head.max_cost,
            prefill: self.prefill,
            voucher_before: self.pair.held(),
            signed_head: self.order.signed.bytes.to_vec(),
        }
    }
    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// How an attempt ended, with what an error code says about it.
#[derive(Clone, Copy, Debug)]
struct Finish {
    ending: Ending,
    error: Option<&'static str>,
}
