//! L4: infer streams to an upstream, and what they earn.
//!
//! One stream, top to bottom (`Seller::serve`):
//! `accept → verify head → admit → call upstream → meter while relaying → receipt → record`.
//!
//! [`admission`] checks heads, [`catalogue`] knows the offers that bind us, [`upstream`] is the
//! HTTP client, `reply` relays and meters (`stream` or `whole`), `account` turns what was delivered
//! into a receipt, [`control`] answers the owner's own HTTP port.
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
mod measures;
pub mod presets;
pub mod pricing;
pub mod replay;
mod reply;
mod stream;
pub mod upstream;
mod whole;
mod wire;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use admission::{Gate, Order};
use upstream::Upstream;
use wire::{InferWire, NoOrder};

use crate::keys::NodeKeys;
use crate::ledger::{Ledger, LedgerError, OpenRow, Role, Row};
use crate::llm_api::{self, Dialect, Endpoint, RequestView, TokenCounter};
use crate::network::Stream;
use crate::payment::WindowSettings;
use crate::payment::payee::{AdmitError, PayeeHub, PayeePair};
use crate::protocol::limits::{STREAMS_PER_NODE_MAX, STREAMS_PER_PEER_MAX};
use crate::protocol::{Ending, PeerErrorCode};
use crate::tasks::Tasks;
use crate::types::{AttemptId, Clock, MicroUsd, PeerId};

/// How long a request waits for the voucher that pays its prefill.
const VOUCHER_WAIT: Duration = Duration::from_secs(2);

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
    upstream: Upstream,
    ledger: Ledger,
    keys: NodeKeys,
    clock: Arc<dyn Clock>,
    tasks: Tasks,
    counter: TokenCounter,
    settings: Settings,
    slots: Arc<Semaphore>,
    per_buyer: Mutex<HashMap<PeerId, Arc<Semaphore>>>,
    stats: Stats,
    stop: CancellationToken,
    drain_at: OnceLock<Instant>,
}

/// Counters for `status` and `/metrics`.
#[derive(Debug, Default)]
pub struct Stats {
    /// Requests that reached the upstream.
    pub served: AtomicU64,
    /// Requests refused before it.
    pub refused: AtomicU64,
    /// The same by reason.
    pub refusals: measures::Refusals,
    /// Answers the buyer cut short.
    pub cancelled: AtomicU64,
}

/// The parts a seller is made of.
pub struct Parts {
    /// Checks heads.
    pub gate: Gate,
    /// Keeps the money.
    pub payee: PayeeHub,
    /// Does the work.
    pub upstream: Upstream,
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
}

impl Shared {
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

/// One admitted request.
struct Job {
    room: Option<Room>,
    order: Order,
    attempt: AttemptId,
    pair: Arc<PayeePair>,
    body: Bytes,
    endpoint: Endpoint,
    dialect: Dialect,
    prefill: MicroUsd,
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
            ledger,
            keys,
            clock,
            tasks,
            counter,
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
            ledger,
            keys,
            clock,
            tasks,
            counter,
            settings,
            slots,
            per_buyer: Mutex::default(),
            stats,
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

    /// Takes infer streams until the network or the node ends.
    pub async fn accept(self, mut incoming: mpsc::Receiver<(PeerId, Stream)>) {
        let cancelled = self.shared.stop.clone();
        loop {
            let (buyer, stream) = tokio::select! {
                next = incoming.recv() => match next { Some(next) => next, None => return },
                () = cancelled.cancelled() => return,
            };
            let seller = self.clone();
            self.shared
                .tasks
                .spawn("infer", async move { seller.serve(buyer, stream).await });
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
                Ok(job) => {
                    self.shared.stats.served.fetch_add(1, Ordering::Relaxed);
                    if !reply::answer(&self.shared, &mut wire, job).await {
                        return;
                    }
                }
                Err(NoOrder::Refuse(code)) => return self.refuse(&mut wire, buyer, code).await,
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

    async fn refuse(&self, wire: &mut InferWire, buyer: PeerId, code: PeerErrorCode) {
        self.shared.stats.refused.fetch_add(1, Ordering::Relaxed);
        self.shared.stats.refusals.count(code);
        tracing::info!(%buyer, code = code.as_str(), "request refused");
        wire.refuse(code, code.as_str(), self.shared.clock.now_ms())
            .await;
    }

    /// Head, slot, body, credit: everything before the upstream is called.
    async fn take_order(
        &self,
        wire: &mut InferWire,
        buyer: PeerId,
        payload: Bytes,
    ) -> Result<Job, NoOrder> {
        let shared = &*self.shared;
        let overloaded = |_| NoOrder::Refuse(PeerErrorCode::Overloaded);
        let place = shared
            .place(buyer)
            .try_acquire_owned()
            .map_err(overloaded)?;
        let order = shared
            .gate
            .check(&payload, &buyer, shared.clock.now_ms())
            .map_err(NoOrder::Refuse)?;
        self.refuse_earlier_life(&order).await?;
        let slot = Arc::clone(&shared.slots)
            .try_acquire_owned()
            .map_err(overloaded)?;
        let head = &order.signed.head;
        let pair = shared
            .payee
            .pair(&buyer)
            .filter(|pair| pair.channel() == head.channel)
            .ok_or(NoOrder::Refuse(PeerErrorCode::UnknownChannel))?;
        let endpoint = Endpoint::from_path(&head.path)
            .filter(|endpoint| endpoint.dialect() == shared.upstream.dialect())
            .filter(|endpoint| catalogue::serves(&order.sold.offer, *endpoint))
            .ok_or(NoOrder::Refuse(PeerErrorCode::Malformed))?;
        let dialect = endpoint.dialect();
        let length = usize::try_from(head.body_len).unwrap_or(usize::MAX);
        let body = wire.body(length).await?;
        if Sha256::digest(&body).as_slice() != head.body_sha256.as_bytes() {
            return Err(NoOrder::Refuse(PeerErrorCode::BodyMismatch));
        }
        let (body, prefill) = prepare(&order, &body, dialect)?;
        if prefill > order.signed.head.max_cost {
            return Err(NoOrder::Refuse(PeerErrorCode::AboveMaxCost));
        }
        let attempt = order.signed.attempt_id();
        let started = Instant::now();
        let room = Room {
            _place: place,
            _slot: slot,
        };
        let job = Job {
            room: Some(room),
            order,
            attempt,
            pair,
            body,
            endpoint,
            dialect,
            prefill,
            started,
        };
        self.admit(&job).await?;
        Ok(job)
    }

    /// Refuses what an earlier life has served: a restart forgets nonces, the ledger does not.
    async fn refuse_earlier_life(&self, order: &Order) -> Result<(), NoOrder> {
        let shared = &*self.shared;
        if !shared.gate.may_be_of_an_earlier_life(&order.signed.head) {
            return Ok(());
        }
        let attempt = order.signed.attempt_id();
        match shared.ledger.has_attempt(&attempt).await {
            Ok(false) => Ok(()),
            Ok(true) => Err(NoOrder::Refuse(PeerErrorCode::Replayed)),
            Err(error) => Err(ledger_failed(&error)),
        }
    }

    /// Waits for the voucher that pays the prefill, then books the open row.
    async fn admit(&self, job: &Job) -> Result<(), NoOrder> {
        let shared = &*self.shared;
        let price = &job.order.sold.offer.price;
        let window = if price.is_free() {
            MicroUsd::ZERO
        } else {
            shared.settings.windows.stream(price)
        };
        job.pair
            .admit(
                job.attempt,
                job.prefill,
                window,
                shared.clock.now_ms(),
                VOUCHER_WAIT,
            )
            .await
            .map_err(|error| {
                NoOrder::Refuse(match error {
                    AdmitError::UnknownChannel => PeerErrorCode::UnknownChannel,
                    AdmitError::CreditExhausted => PeerErrorCode::CreditExhausted,
                    AdmitError::VoucherLate => PeerErrorCode::VoucherLate,
                    AdmitError::Unaccepted | AdmitError::Unconfirmed => PeerErrorCode::Overloaded,
                    AdmitError::Ending => PeerErrorCode::UnknownChannel,
                    AdmitError::WrittenOff => PeerErrorCode::CreditExhausted,
                })
            })?;
        let row = job.open_row(shared.clock.now_ms());
        let booked = async {
            job.pair.book_channel(&shared.ledger).await?;
            shared.ledger.submit(vec![Row::Open(row)]).await
        };
        if let Err(error) = booked.await {
            job.pair.drop_attempt(&job.attempt);
            return Err(ledger_failed(&error));
        }
        crate::failpoint::hit("seller_open_row");
        Ok(())
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

/// Names the model as the upstream does, and works out the prefill from the bytes as signed.
fn prepare(order: &Order, body: &Bytes, dialect: Dialect) -> Result<(Bytes, MicroUsd), NoOrder> {
    let malformed = |_| NoOrder::Refuse(PeerErrorCode::Malformed);
    let view = RequestView::parse(body, dialect).map_err(malformed)?;
    let offer = &order.sold.offer;
    let tokens =
        llm_api::prefill_tokens(&view, body.len(), offer.tokens_per_kib, offer.image_tokens);
    let prefill = offer.price.cost_in_out(tokens, 0);
    let body = if view.model == order.sold.upstream_id {
        body.clone()
    } else {
        llm_api::rewrite_model(body, &view, &order.sold.upstream_id)
    };
    Ok((body, prefill))
}

fn ledger_failed(error: &LedgerError) -> NoOrder {
    tracing::error!(%error, "ledger failed; refusing");
    NoOrder::Refuse(PeerErrorCode::Internal)
}

/// How an attempt ended, with what an error code says about it.
#[derive(Clone, Copy, Debug)]
struct Finish {
    ending: Ending,
    error: Option<&'static str>,
}
