//! The seller's own loopback port: probes, `/metrics`, and `/api` for the command line.
//!
//! Invariants: reads never wait for a peer or the upstream; `POST /api/settle`, which raises what a
//! buyer may order, needs the control token and is durable when it is answered; so does `POST /api/drain`,
//! which takes the seller off the market. `node` makes it and serves it with [`crate::http::server`].

mod page;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response as RouterResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::{FutureExt as _, future::BoxFuture};
use http::{HeaderMap, Request, Response, Uri};
use hyper::body::Incoming;
use metrics::{counter, gauge};
use serde_json::{Value, json};

use super::Seller;
use super::catalogue::Catalogue;
use crate::http::body::Body;
use crate::http::control::{self, ControlError, ControlResult};
use crate::http::guard::Guard;
use crate::http::server;
use crate::ledger::report::{self, Filter, GroupBy, RequestRecord};
use crate::ledger::{Ledger, LedgerError, Role};
use crate::network::Handle;
use crate::payment::PaymentError;
use crate::payment::onchain::Level;
use crate::payment::payee::{PayeeHub, PayeePair};
use crate::telemetry::Metrics;
use crate::types::day::midnight_before;
use crate::types::{Clock, MicroUsd, PeerId, UnixMs};
use crate::wallet::Wallet;

/// Requests that `/api/status` shows.
const STATUS_REQUESTS: u32 = 10;

/// What the control API shows and changes.
pub struct ControlParts {
    /// What it was started as.
    pub role: String,
    /// This node.
    pub peer: PeerId,
    /// Its payment address, as people write it.
    pub evm_address: String,
    /// Who is connected.
    pub network: Handle,
    /// What it counts.
    pub seller: Seller,
    /// What is on sale.
    pub catalogue: Arc<Catalogue>,
    /// Who owes what.
    pub payee: PayeeHub,
    /// Money on the chain; none without one.
    pub wallet: Option<Wallet>,
    /// The record.
    pub ledger: Ledger,
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// When the node started.
    pub started_ms: UnixMs,
    /// Knows the control token.
    pub guard: Guard,
    /// Takes the offers off the market.
    pub withdraw: Arc<dyn Fn() + Send + Sync>,
    /// What the layers' desk says of itself; none without layers.
    pub stage: Option<Arc<dyn Fn() -> Value + Send + Sync>>,
    /// The process' metrics, if they are collected.
    pub metrics: Option<Metrics>,
}

/// The control API as a handler. Cheap to clone.
#[derive(Clone)]
pub struct Control {
    router: Router,
}

type Parts = State<Arc<ControlParts>>;

impl Control {
    /// Puts the API together.
    #[must_use]
    pub fn new(parts: ControlParts) -> Self {
        if parts.metrics.is_some() {
            Metrics::describe(&super::measures::MEASURES);
            Metrics::describe(&crate::network::MEASURES);
        }
        let wallet = control::wallet::routes(parts.wallet.clone(), parts.guard.clone());
        let look = Arc::new(control::wallet::Look::default());
        let router = Router::new()
            .route(
                "/",
                get(move |state: Parts| page::index(state, look.clone())),
            )
            .route("/assets/{name}", get(crate::dashboard::asset))
            .route("/healthz", get(healthz))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .route("/api/openapi.json", get(async || control::openapi("sell")))
            .route("/api/status", get(status))
            .route("/api/requests", get(requests))
            .route("/api/ledger", get(sums))
            .route("/api/channels", get(channels))
            .route("/api/settle", post(settle))
            .route("/api/drain", post(drain))
            .method_not_allowed_fallback(control::method_not_allowed)
            .fallback(control::owner_fallback)
            .with_state(Arc::new(parts))
            .merge(wallet);
        Self { router }
    }
}

impl server::Handler for Control {
    fn handle(&self, request: Request<Incoming>) -> BoxFuture<'static, Response<Body>> {
        control::answer(self.router.clone(), request).boxed()
    }
}

async fn healthz(State(parts): Parts) -> RouterResponse {
    let runs = parts.ledger.stop_reason().is_none();
    control::probe(runs, "ok", "the ledger has stopped")
}

async fn readyz(State(parts): Parts) -> RouterResponse {
    let sells = !parts.catalogue.current().is_empty();
    control::probe(sells, "ready", "nothing is on sale yet")
}

async fn metrics(State(parts): Parts) -> RouterResponse {
    parts.measure();
    control::metrics_text(parts.metrics.as_ref())
}

async fn status(State(parts): Parts) -> ControlResult {
    let now_ms = parts.clock.now_ms();
    let accounts = parts.accounts();
    let stats = parts.seller.stats();
    let earned = parts
        .ledger
        .spent_since(midnight_before(now_ms), Role::Sell);
    let earned = earned.await.map_err(ledger_failed)?;
    let recent = parts.recent(STATUS_REQUESTS).await?;
    let offers = parts.catalogue.current();
    let state = match parts.ledger.stop_reason() {
        Some(reason) => format!("stopped: {reason}"),
        None if parts.seller.is_draining() => "draining".to_owned(),
        None if offers.is_empty() => "nothing on sale yet".to_owned(),
        None => "selling".to_owned(),
    };
    let by_model = parts.summary(GroupBy::Model).await?;
    // What was given up on, ever.
    let written_off: u64 = by_model
        .totals
        .iter()
        .map(|row| row.written_off_micro_usd)
        .sum();
    let models: Vec<&str> = offers.iter().map(|o| o.offer.model.as_str()).collect();
    Ok(Json(json!({
        "role": if parts.role == "contribute" { "contribute" } else { "sell" },
        "version": env!("CARGO_PKG_VERSION"),
        "peer": parts.peer.to_base58(),
        "evm_address": parts.evm_address,
        "mode": parts.payee.mode(),
        "chain_waits": parts.payee.waits(),
        "state": state,
        "peers": parts.network.connected_peers().len(),
        "uptime_s": now_ms.saturating_sub(parts.started_ms) / 1_000,
        "models": models,
        "layers": super::layers::on_sale(&offers, parts.stage.as_deref()),
        "in_flight": parts.seller.in_flight(),
        "served": stats.served.load(Ordering::Relaxed),
        "refused": stats.refused.load(Ordering::Relaxed),
        "refused_by": stats.refused_by(),
        "draining": parts.seller.is_draining(),
        "slots": parts.seller.slots(),
        "cancelled": stats.cancelled.load(Ordering::Relaxed),
        "in_doubt": total(&accounts, |account| account.unaccepted),
        "money": {
            "earned_today_micro_usd": earned.0,
            "owed_micro_usd": total(&accounts, Account::owed),
            "in_doubt_micro_usd": total(&accounts, Account::in_doubt),
            "written_off_micro_usd": written_off,
        },
        "margins": parts.margins(&by_model.rows),
        "requests": recent,
    })))
}

async fn requests(State(parts): Parts, uri: Uri) -> ControlResult {
    let recent = parts.recent(control::limit(&uri)?).await?;
    Ok(Json(json!({ "requests": recent })))
}

async fn sums(State(parts): Parts, uri: Uri) -> ControlResult {
    let by = match control::query(&uri, "by") {
        None | Some("model") => GroupBy::Model,
        Some("hour") => GroupBy::Hour,
        Some("day") => GroupBy::Day,
        Some("month") => GroupBy::Month,
        Some("buyer") => GroupBy::Buyer,
        Some(_) => {
            let message = "`by` is one of model, hour, day, month, buyer";
            return Err(ControlError::BadRequest(message.to_owned()));
        }
    };
    Ok(Json(json!(parts.summary(by).await?)))
}

async fn channels(State(parts): Parts) -> ControlResult {
    let one = |account: Account| {
        json!({
            "channel": account.channel,
            "peer": account.buyer,
            "buyer": account.buyer,
            "mode": account.mode,
            "confirmed": account.confirmed,
            "onchain_settled_micro_usd": account.onchain_settled,
            "open_fee_micro_usd": account.onchain_settled.map(|_| account.open_fee),
            "deposit_micro_usd": account.deposit,
            "voucher_micro_usd": account.voucher,
            "delivered_micro_usd": account.delivered,
            "accepted_micro_usd": account.accepted,
            "settlements_micro_usd": account.settlements,
            "owed_micro_usd": account.owed(),
            "in_doubt_micro_usd": account.in_doubt(),
            "in_doubt": account.unaccepted,
        })
    };
    let list: Vec<Value> = parts.accounts().into_iter().map(one).collect();
    Ok(Json(json!({ "channels": list })))
}

/// Takes nothing new from now on; a seller that does nothing else ends when what runs is finished.
async fn drain(State(parts): Parts, headers: HeaderMap) -> ControlResult {
    control::require_control(&parts.guard, &headers)?;
    parts.seller.drain();
    (parts.withdraw)();
    let in_flight = parts.seller.in_flight();
    tracing::info!(in_flight, "draining");
    Ok(Json(json!({ "draining": true, "in_flight": in_flight })))
}

/// Books a payment that a buyer made outside.
async fn settle(State(parts): Parts, headers: HeaderMap, body: Bytes) -> ControlResult {
    control::require_control(&parts.guard, &headers)?;
    let settlement = Settlement::parse(&body)?;
    let Settlement {
        buyer,
        amount,
        note,
    } = settlement;
    let deposit = parts.payee.settle(&buyer, amount, note).await;
    let deposit = deposit.map_err(|error| match error {
        PaymentError::Ledger(error) => ledger_failed(error),
        other => ControlError::NotFound(other.to_string()),
    })?;
    tracing::info!(%buyer, amount_usd = %amount, deposit_usd = %deposit, "payment booked");
    Ok(Json(json!({
        "peer": buyer.to_base58(),
        "amount_usd": amount.to_string(),
        "deposit_usd": deposit.to_string(),
        "deposit_micro_usd": deposit.0,
    })))
}

#[derive(Debug, PartialEq, Eq)]
struct Settlement {
    buyer: PeerId,
    amount: MicroUsd,
    note: String,
}

impl Settlement {
    fn parse(body: &[u8]) -> Result<Self, ControlError> {
        let bad = |message: &str| ControlError::BadRequest(message.to_owned());
        let fields = control::object(body)?;
        let known = |name: &&String| matches!(name.as_str(), "peer" | "amount_usd" | "note");
        if let Some(other) = fields.keys().find(|name| !known(name)) {
            let message = format!("`{other}` is unknown; send `peer`, `amount_usd` and `note`");
            return Err(ControlError::BadRequest(message));
        }
        let peer = fields.get("peer").and_then(Value::as_str);
        let buyer = peer
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| bad("`peer` must be the buyer's peer id (12D3Koo…)"))?;
        let amount = fields.get("amount_usd").unwrap_or(&Value::Null);
        let amount = control::amount("amount_usd", amount)?;
        if amount == MicroUsd::ZERO {
            return Err(bad("`amount_usd` must be more than 0"));
        }
        let note = match fields.get("note") {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(note)) => note.clone(),
            Some(_) => return Err(bad("`note` must be text")),
        };
        Ok(Self {
            buyer,
            amount,
            note,
        })
    }
}

/// One buyer's account, micro-USD.
struct Account {
    buyer: String,
    channel: String,
    deposit: u64,
    voucher: u64,
    delivered: u64,
    accepted: u64,
    settlements: u64,
    /// Attempts that ended and that the buyer has not accepted yet.
    unaccepted: u64,
    mode: &'static str,
    /// Whether the deposit is final; none in credit mode.
    confirmed: Option<bool>,
    /// What the chain paid; none in credit mode.
    onchain_settled: Option<u64>,
    /// What the opening cost the buyer, part of `delivered`; 0 in credit mode.
    open_fee: u64,
}

impl Account {
    fn of(pair: &PayeePair) -> Self {
        let [
            deposit,
            voucher,
            delivered,
            accepted,
            settlements,
            unaccepted,
        ] = pair.snapshot();
        let view = pair.view();
        Self {
            mode: if view.is_some() { "channel" } else { "credit" },
            confirmed: view.map(|view| view.opened == Level::Final),
            onchain_settled: view.map(|view| view.settled.0),
            open_fee: view.map_or(0, |view| view.open_fee.0),
            buyer: pair.buyer().to_base58(),
            channel: pair.channel().to_string(),
            deposit,
            voucher,
            delivered,
            accepted,
            settlements,
            unaccepted,
        }
    }
    /// Delivered and not paid: on credit by a payment outside, in a channel by a voucher, which the
    /// chain makes good.
    fn owed(&self) -> u64 {
        let paid = match self.onchain_settled {
            Some(settled) => self.voucher.max(settled),
            None => self.settlements,
        };
        self.delivered.saturating_sub(paid)
    }
    /// Delivered and not accepted: running, or its receipt waits for an answer.
    const fn in_doubt(&self) -> u64 {
        let answers = self.delivered.saturating_sub(self.open_fee);
        answers.saturating_sub(self.accepted)
    }
}

fn total(accounts: &[Account], of: impl Fn(&Account) -> u64) -> u64 {
    accounts.iter().map(of).fold(0, u64::saturating_add)
}

impl ControlParts {
    /// Sets what is read at each look.
    fn measure(&self) {
        let stats = self.seller.stats();
        let accounts = self.accounts();
        self.network.measure();
        let set = |name, value| gauge!(name).set(value);
        let offers = self.catalogue.current().len();
        set("souk_seller_offers", control::gauge_of(offers));
        let in_flight = self.seller.in_flight();
        set(
            "souk_seller_requests_in_flight",
            control::gauge_of(in_flight),
        );
        set("souk_seller_slots", control::gauge_of(self.seller.slots()));
        let unaccepted = total(&accounts, |a| a.unaccepted);
        set(
            "souk_seller_receipts_unaccepted",
            control::gauge_of(unaccepted),
        );
        let owed = MicroUsd(total(&accounts, Account::owed));
        set("souk_seller_owed_usd", control::gauge_usd(owed));
        let vouchers = MicroUsd(total(&accounts, |a| a.voucher));
        set("souk_seller_vouchers_usd", control::gauge_usd(vouchers));
        set("souk_seller_channels", control::gauge_of(accounts.len()));
        for (name, count) in [
            ("souk_seller_served_total", &stats.served),
            ("souk_seller_refused_total", &stats.refused),
            ("souk_seller_cancelled_total", &stats.cancelled),
        ] {
            counter!(name).absolute(count.load(Ordering::Relaxed));
        }
        for (code, count) in stats.refused_by() {
            counter!("souk_seller_refusals_total", "code" => code).absolute(count);
        }
    }
    fn accounts(&self) -> Vec<Account> {
        let pairs = self.payee.pairs();
        pairs.iter().map(|pair| Account::of(pair)).collect()
    }
    async fn recent(&self, limit: u32) -> Result<Vec<RequestRecord>, ControlError> {
        let reader = self.ledger.reader();
        let records = report::requests(reader, &sold(), Some(self.peer), limit).await;
        records.map_err(ledger_failed)
    }
    async fn summary(&self, by: GroupBy) -> Result<report::Summary, ControlError> {
        let zone = jiff::tz::TimeZone::system();
        let summary = report::summary(self.ledger.reader(), by, &sold(), &zone).await;
        summary.map_err(ledger_failed)
    }
}

fn sold() -> Filter {
    Filter {
        role: Some(Role::Sell),
        ..Filter::default()
    }
}

fn ledger_failed(error: LedgerError) -> ControlError {
    if error.is_refusal() {
        ControlError::BadRequest(error.to_string())
    } else {
        ControlError::Internal(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_voucher_covers_is_not_owed_and_the_fee_of_an_opening_is_no_doubt() {
        let account = |onchain_settled, settlements, open_fee| Account {
            buyer: String::new(),
            channel: String::new(),
            deposit: 500_000,
            voucher: 30_000,
            delivered: 30_700,
            accepted: 20_000,
            settlements,
            unaccepted: 1,
            mode: "",
            confirmed: None,
            onchain_settled,
            open_fee,
        };
        let channel = account(Some(25_000), 0, 10_000);
        assert_eq!((channel.owed(), channel.in_doubt()), (700, 700));
        // On credit a voucher is a promise; only a payment counts.
        let credit = account(None, 5_000, 0);
        assert_eq!((credit.owed(), credit.in_doubt()), (25_700, 10_700));
    }

    #[test]
    fn a_settlement_names_a_buyer_and_a_positive_amount() {
        let peer = PeerId::random();
        let of = |value: Value| Settlement::parse(value.to_string().as_bytes());
        let good = of(json!({"peer": peer.to_base58(), "amount_usd": "1.5"})).unwrap();
        assert_eq!((good.buyer, good.amount), (peer, MicroUsd(1_500_000)));
        let peer = peer.to_base58();
        assert!(of(json!({"peer": peer, "amount_usd": 0})).is_err());
        assert!(of(json!({"peer": peer, "amount_usd": "1", "memo": "x"})).is_err());
        assert!(of(json!({"peer": "x", "amount_usd": "1"})).is_err());
        assert!(of(json!({"amount_usd": "1"})).is_err());
        assert!(Settlement::parse(b"[]").is_err());
    }
}
