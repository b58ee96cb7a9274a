//! Takes one order: everything before the upstream is called, cheapest first.
//!
//! place of its buyer → head → served before? → slot → limits → channel → body → credit. A refused
//! order leaves nothing behind but its nonce. Called by the flow of [`super`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::admission::Order;
use super::limits::Refused;
use super::stage::{STAGE_OPEN_BYTES_MAX, StageOrder};
use super::wire::{InferWire, NoOrder};
use super::{Job, Room, Seller, Work, catalogue};
use crate::ledger::{LedgerError, Row};
use crate::llm_api::{self, Dialect, Endpoint, RequestView};
use crate::payment::payee::AdmitError;
use crate::protocol::PeerErrorCode;
use crate::protocol::offer::STAGE_PATH;
use crate::types::{MicroUsd, PeerId};

/// When a seller that is full may be asked again, ms.
const OVERLOADED_MS: u64 = 1_000;

/// How long a request waits for the voucher that pays its prefill.
const VOUCHER_WAIT: Duration = Duration::from_secs(2);

impl Seller {
    /// Head, slot, body, credit: everything before the upstream is called.
    pub(super) async fn take_order(
        &self,
        wire: &mut InferWire,
        buyer: PeerId,
        payload: Bytes,
    ) -> Result<(Job, Work), NoOrder> {
        let shared = &*self.shared;
        if shared.is_draining() {
            return Err(NoOrder::Refuse(PeerErrorCode::Draining));
        }
        let overloaded = |_| NoOrder::Wait(PeerErrorCode::Overloaded, OVERLOADED_MS);
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
        let counted = self.count(&order)?;
        let room = Room {
            _place: place,
            _slot: slot,
        };
        let filled = self.fill(wire, order, counted, room).await;
        if filled.is_err() {
            shared.count_served(buyer, counted, 0, MicroUsd::ZERO);
        }
        filled
    }

    /// Counts the order's input towards the limits; by its length, for its body is not here yet.
    fn count(&self, order: &Order) -> Result<u64, NoOrder> {
        let shared = &*self.shared;
        let (head, offer) = (&order.signed.head, &order.sold.offer);
        let tokens = head.body_len.saturating_mul(offer.tokens_per_kib.into());
        let tokens = tokens.div_ceil(1_024);
        let now_ms = shared.clock.now_ms();
        let taken = shared.limits.lock().take(head.buyer, tokens, now_ms);
        taken.map(|()| tokens).map_err(|refused| match refused {
            Refused::Rate(wait_ms) => NoOrder::Wait(PeerErrorCode::RateLimited, wait_ms),
            Refused::Quota(wait_ms) => NoOrder::Wait(PeerErrorCode::QuotaUsedUp, wait_ms),
        })
    }

    /// Body and credit of an order whose head passed.
    async fn fill(
        &self,
        wire: &mut InferWire,
        order: Order,
        counted: u64,
        room: Room,
    ) -> Result<(Job, Work), NoOrder> {
        let shared = &*self.shared;
        let head = &order.signed.head;
        let pair = shared
            .payee
            .pair(&head.buyer)
            .filter(|pair| pair.channel() == head.channel)
            .ok_or(NoOrder::Refuse(PeerErrorCode::UnknownChannel))?;
        let (body, prefill, work) = self.work(wire, &order).await?;
        if prefill > order.signed.head.max_cost {
            return Err(NoOrder::Refuse(PeerErrorCode::AboveMaxCost));
        }
        let attempt = order.signed.attempt_id();
        let job = Job {
            room: Some(room),
            order,
            attempt,
            pair,
            body,
            endpoint: match work {
                Work::Upstream(_, endpoint) => Some(endpoint),
                Work::Stage(_) => None,
            },
            prefill,
            counted,
            started: Instant::now(),
        };
        self.admit(&job).await?;
        Ok((job, work))
    }

    /// Reads the body and gives it to whoever does this work: as it is passed on, what it is worth
    /// before anything is done, and who does it.
    async fn work(
        &self,
        wire: &mut InferWire,
        order: &Order,
    ) -> Result<(Bytes, MicroUsd, Work), NoOrder> {
        let shared = &*self.shared;
        let (head, offer) = (&order.signed.head, &order.sold.offer);
        let malformed = NoOrder::Refuse(PeerErrorCode::Malformed);
        let length = usize::try_from(head.body_len).unwrap_or(usize::MAX);
        if let Some(terms) = offer.stage {
            let stages = shared.stages.as_ref();
            let Some(stages) =
                stages.filter(|_| head.path == STAGE_PATH && length <= STAGE_OPEN_BYTES_MAX)
            else {
                return Err(malformed);
            };
            let order = StageOrder {
                payer: head.buyer,
                attempt: order.signed.attempt_id(),
                terms,
                price: offer.price,
                max_cost: head.max_cost,
                body: read_body(wire, order, length).await?,
            };
            let body = order.body.clone();
            let session = stages
                .open(order)
                .await
                .map_err(|refused| NoOrder::Wait(refused.code, refused.retry_after_ms))?;
            return Ok((body, MicroUsd::ZERO, Work::Stage(session)));
        }
        let Some(upstream) = &shared.upstream else {
            return Err(malformed);
        };
        let endpoint = Endpoint::from_path(&head.path)
            .filter(|endpoint| endpoint.dialect() == upstream.dialect())
            .filter(|endpoint| catalogue::serves(offer, *endpoint))
            .ok_or(malformed)?;
        let body = read_body(wire, order, length).await?;
        let (body, prefill) = prepare(order, &body, endpoint.dialect())?;
        Ok((body, prefill, Work::Upstream(upstream.clone(), endpoint)))
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
        let window = shared.settings.windows.of(&job.order.sold.offer);
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

/// The body, as the head describes it.
async fn read_body(wire: &mut InferWire, order: &Order, length: usize) -> Result<Bytes, NoOrder> {
    let body = wire.body(length).await?;
    if Sha256::digest(&body).as_slice() != order.signed.head.body_sha256.as_bytes() {
        return Err(NoOrder::Refuse(PeerErrorCode::BodyMismatch));
    }
    Ok(body)
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
