//! Stages at the market: finds offers of layers, orders a session, pays it as it computes.
//!
//! An order for layers is an order like any other: a signed head with the offer's hash and a most,
//! an open row, a running meter that vouchers follow, a receipt, a final row. The meter is our own
//! count of block-tokens; what the stage says it computed beyond that is not paid.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::account::Account;
use super::wire::Wire;
use super::{Candidate, Heard, Opened, Source, Want};
use crate::keys::NodeKeys;
use crate::ledger::{Ledger, OpenRow, Role, Row};
use crate::network::{Handle, Protocol};
use crate::payment::WindowSettings;
use crate::payment::payer::{Pair, PayerHub};
use crate::pipeline::error::PipelineError;
use crate::pipeline::patron::{Meter, Purse};
use crate::protocol::offer::{STAGE_PATH, SignedOffer, StageTerms};
use crate::protocol::stage::StageOpen;
use crate::protocol::{RequestHead, SignedHead, WIRE_VERSION};
use crate::tasks::Tasks;
use crate::types::{Clock, Hash32, MicroUsd, PriceTable, RequestId};

/// The client that orders of layers are booked for which no client of this node asked for.
pub const CLIENT: &str = "pipeline";
/// A head lives this long, ms; the seller's clock decides.
const HEAD_LIFE_MS: u64 = 55_000;
/// From looking for the stage to its RESP_HEAD.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// A session computes its positions once, and some of them again where rows were taken back.
const COST_SLACK: u64 = 2;

/// Knows who offers layers.
pub trait Places: Send + Sync {
    /// Offers that begin with `want`'s first layer and end at most with its last, the best first,
    /// none by those who were dismissed.
    fn offers(&self, want: &Want) -> Vec<Arc<SignedOffer>>;
    /// Why there are none.
    fn nobody(&self, want: &Want) -> PipelineError {
        PipelineError::Lost(format!("nobody offers layers from {} on", want.first))
    }
}

/// A list that does not change: those who reach furthest come first, then in the order of the list.
pub struct Listed(pub Vec<Arc<SignedOffer>>);

impl Places for Listed {
    fn offers(&self, want: &Want) -> Vec<Arc<SignedOffer>> {
        let fits = |terms: &StageTerms| terms.first == want.first && terms.end <= want.end;
        let known = |offer: &&Arc<SignedOffer>| !want.not.contains(&offer.offer.seller);
        let offers = self.0.iter().filter(known);
        let mut found: Vec<_> = offers
            .filter_map(|offer| Some((offer.offer.stage.filter(fits)?.end, offer)))
            .collect();
        found.sort_by_key(|(end, _)| std::cmp::Reverse(*end));
        found
            .into_iter()
            .map(|(_, offer)| Arc::clone(offer))
            .collect()
    }
}

/// What ordering takes.
pub struct Parts {
    /// Who offers layers.
    pub places: Arc<dyn Places>,
    /// Money.
    pub payer: PayerHub,
    /// What of it may be spent.
    pub purse: Arc<dyn Purse>,
    /// Rows.
    pub ledger: Ledger,
    /// Streams.
    pub network: Handle,
    /// Signs orders.
    pub keys: NodeKeys,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Runs open sessions.
    pub tasks: Tasks,
    /// The network's name.
    pub network_name: String,
    /// How far a session may run ahead of its payment.
    pub windows: WindowSettings,
}

/// Orders stages and pays them. Cheap to clone.
#[derive(Clone)]
pub struct Market {
    shared: Arc<Shared>,
}

struct Shared {
    parts: Parts,
    process: [u8; 8],
    orders: AtomicU64,
}

impl Market {
    /// Nothing is ordered yet.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let shared = Shared {
            parts,
            process: rand::random(),
            orders: AtomicU64::new(1),
        };
        Self {
            shared: Arc::new(shared),
        }
    }
}

impl Source for Market {
    fn candidates(&self, want: &Want) -> Vec<Candidate> {
        let offers = self.shared.parts.places.offers(want);
        let candidate = |offer: Arc<SignedOffer>| {
            Some(Candidate {
                peer: offer.offer.seller,
                end: offer.offer.stage?.end,
                offer: Some(offer),
            })
        };
        offers.into_iter().filter_map(candidate).collect()
    }

    fn nobody(&self, want: &Want) -> PipelineError {
        self.shared.parts.places.nobody(want)
    }

    fn open(
        &self,
        want: Want,
        at: Candidate,
        heard: mpsc::Sender<Heard>,
    ) -> BoxFuture<'static, Result<Opened, PipelineError>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let no_offer = || PipelineError::Invalid("nothing is offered there".to_owned());
            let offer = at.offer.ok_or_else(no_offer)?;
            let meter = shared.meter(&want, &offer)?;
            let opening = shared.open(&want, &offer, Arc::clone(&meter), heard);
            let why = match tokio::time::timeout(OPEN_TIMEOUT, opening).await {
                Ok(Ok(opened)) => {
                    want.patron.join(meter);
                    return Ok(opened);
                }
                Ok(Err(reason)) => format!("{}: {reason}", at.peer),
                Err(_) => format!("{}: no answer in time", at.peer),
            };
            tracing::debug!(why, "a stage was not ordered");
            Err(PipelineError::Lost(why))
        })
    }

    /// Connects and agrees on the payment.
    fn warm(&self, at: Candidate) -> BoxFuture<'static, Result<(), PipelineError>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let pairing = shared.parts.payer.pair(&at.peer);
            let lost = |why: &str| PipelineError::Lost(format!("{}: {why}", at.peer));
            match tokio::time::timeout(OPEN_TIMEOUT, pairing).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => Err(lost(&error.to_string())),
                Err(_) => Err(lost("no answer in time")),
            }
        })
    }
}

impl Shared {
    /// Holds what a session may cost at first.
    fn meter(&self, want: &Want, signed: &SignedOffer) -> Result<Arc<Meter>, PipelineError> {
        let (parts, offer) = (&self.parts, &signed.offer);
        let no_stage = || PipelineError::Invalid("its offer is no stage's".to_owned());
        let layers = u64::from(offer.stage.ok_or_else(no_stage)?.width());
        let most = most(&offer.price, layers, want.positions_max);
        let meter = Meter::open(
            &*parts.purse,
            client(want),
            (offer.seller, &offer.model),
            (offer.price, layers),
            (parts.windows.of(offer), most),
        );
        meter.map(Arc::new)
    }

    async fn open(
        &self,
        want: &Want,
        signed: &SignedOffer,
        meter: Arc<Meter>,
        heard: mpsc::Sender<Heard>,
    ) -> Result<Opened, String> {
        let parts = &self.parts;
        let offer = &signed.offer;
        let terms = offer.stage.ok_or("its offer is no stage's")?;
        let pair = parts.payer.pair(&offer.seller).await;
        let pair = pair.map_err(|error| error.to_string())?;
        let body = StageOpen {
            session: want.session,
            manifest: terms.manifest,
            first: terms.first,
            end: terms.end,
            positions_max: want.positions_max,
            wire: want.wire,
        };
        let body: Bytes = body.to_bytes().into();
        let (head, open) = self.order(&pair, signed, (&body, want), meter.max_cost())?;
        meter.name(open.attempt_id);
        let window = parts.windows.of(offer);
        let begun = pair.begin(&open, window);
        begun.map_err(|error| error.to_string())?;
        let account = Account::new(
            Arc::clone(&pair),
            parts.ledger.clone(),
            Arc::clone(&parts.clock),
            &open,
            meter,
        );
        // From here on whatever happens is booked when the account is dropped or settled.
        let written = parts.ledger.submit(vec![Row::Open(open)]).await;
        written.map_err(|error| error.to_string())?;
        pair.opened(&account.attempt());
        let stream = parts.network.open(&offer.seller, Protocol::Infer).await;
        let mut wire = Wire::new(stream.map_err(|error| error.to_string())?, account);
        wire.order(&head, &body).await?;
        let (orders, told) = mpsc::channel(super::orders_max(want.positions_max));
        let id = want.id;
        let serving = wire.serve(id, told, heard);
        parts.tasks.spawn("stage-order", serving);
        Ok(Opened {
            peer: offer.seller,
            addresses: offer.addrs.clone(),
            end: terms.end,
            orders,
        })
    }

    /// The signed head and the open row.
    fn order(
        &self,
        pair: &Pair,
        signed: &SignedOffer,
        (body, want): (&Bytes, &Want),
        max_cost: MicroUsd,
    ) -> Result<(SignedHead, OpenRow), String> {
        let (parts, offer) = (&self.parts, &signed.offer);
        let channel = pair.channel().ok_or("no channel")?;
        let (before, required) = pair.quote(MicroUsd::ZERO, parts.windows.of(offer));
        let now_ms = parts.clock.now_ms();
        let iat_ms = pair.seller_time(now_ms);
        let named = want.patron.named();
        let request_id = named.map_or_else(|| RequestId::generate(now_ms), |one| one.request);
        let head = RequestHead {
            version: WIRE_VERSION,
            network: parts.network_name.clone(),
            request_id,
            attempt: 1,
            seller: offer.seller,
            buyer: parts.keys.identity.peer_id(),
            path: STAGE_PATH.to_owned(),
            model: offer.model.to_string(),
            stream: true,
            headers: Vec::new(),
            body_sha256: Hash32(Sha256::digest(body).into()),
            body_len: u64::try_from(body.len()).unwrap_or(u64::MAX),
            offer_hash: signed.hash,
            max_cost,
            channel,
            cumulative_required: required,
            nonce: self.nonce(),
            iat_ms,
            exp_ms: iat_ms.saturating_add(HEAD_LIFE_MS),
            delegation: None,
        };
        let head = SignedHead::sign(head, &parts.keys.identity);
        let open = OpenRow {
            at_ms: now_ms,
            attempt_id: head.attempt_id(),
            request_id,
            attempt: 1,
            role: Role::Buy,
            peer: offer.seller,
            client: client(want).to_owned(),
            model_asked: named.map_or_else(|| offer.model.to_string(), |one| one.model.clone()),
            model: offer.model.clone(),
            offer_hash: signed.hash,
            price: offer.price,
            channel,
            max_cost,
            prefill: MicroUsd::ZERO,
            voucher_before: before,
            signed_head: head.bytes.to_vec(),
        };
        Ok((head, open))
    }

    /// 8 random bytes of this process, then a counter.
    fn nonce(&self) -> [u8; 16] {
        let mut nonce = [0; 16];
        let count = self.orders.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        for (slot, byte) in nonce.iter_mut().zip(self.process.iter().chain(&count)) {
            *slot = *byte;
        }
        nonce
    }
}

/// Whose order it is, as ledger and limits name it.
fn client(want: &Want) -> &str {
    want.patron.named().map_or(CLIENT, |one| &one.client)
}

/// The most that a session of so many positions may cost.
fn most(price: &PriceTable, layers: u64, positions: u32) -> MicroUsd {
    let rows = u64::from(positions).saturating_mul(COST_SLACK);
    let tokens = rows.saturating_mul(layers);
    let prefill = price.cost_in_out(tokens, 0);
    prefill.max(price.cost_in_out(0, tokens))
}
