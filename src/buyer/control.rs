//! What the buyer's port answers besides model requests: probes, `/metrics`, and `/api` for the
//! command line and the dashboard.
//!
//! Invariants: reads are from memory or from the ledger's readers and never wait for a peer;
//! `POST /api/budget`, which changes something, needs the control token and is durable when it is
//! answered. The JSON names are part of the interface. `node` makes it and gives it to the buyer.

mod page;

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response as RouterResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response, Uri};
use hyper::body::Incoming;
use metrics::gauge;
use serde_json::{Map, Value, json};

use super::budget::{Budget, Limits, Scope, Standing};
use super::measures::MEASURES;
use super::sellers::{self, Sources};
use crate::discovery::OfferBook;
use crate::http::body::Body;
use crate::http::control::{self, ControlError, ControlResult};
use crate::http::guard::Guard;
use crate::http::server;
use crate::ledger::report::{self, Filter, GroupBy, RequestRecord};
use crate::ledger::{BudgetRow, Ledger, LedgerError, Role, Row};
use crate::network::Handle;
use crate::payment::onchain::Level;
use crate::payment::payer::{PairSnapshot, PayerHub};
use crate::telemetry::Metrics;
use crate::types::{Clock, MicroUsd, ModelId, PeerId, UnixMs};
use crate::wallet::Wallet;

/// Requests that `/api/status` shows.
const STATUS_REQUESTS: u32 = 10;
/// Attempts that a seller's speed and quality are taken from, all sellers together.
const SPEED_REQUESTS: u32 = 500;

/// What the control API shows and changes.
pub struct ControlParts {
    /// This node.
    pub peer: PeerId,
    /// Its payment address, as people write it.
    pub evm_address: String,
    /// Who is connected.
    pub network: Handle,
    /// Who sells what.
    pub book: OfferBook,
    /// What is known of the sellers.
    pub router: crate::router::Router,
    /// What is owed to whom.
    pub payer: PayerHub,
    /// Money on the chain; none without one.
    pub wallet: Option<Wallet>,
    /// The record.
    pub ledger: Ledger,
    /// What may be spent.
    pub budget: Budget,
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// When the node started.
    pub started_ms: UnixMs,
    /// Knows the control token.
    pub guard: Guard,
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
            Metrics::describe(&MEASURES);
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
            .route("/api/openapi.json", get(async || control::openapi("buy")))
            .route("/api/status", get(status))
            .route("/api/sellers", get(list_sellers))
            .route("/api/requests", get(requests))
            .route("/api/ledger", get(sums))
            .route("/api/channels", get(channels))
            .route("/api/budget", post(set_budget).get(show_budget))
            .method_not_allowed_fallback(control::method_not_allowed)
            .fallback(control::fallback)
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
    control::probe(parts.book.is_ready(), "ready", "no peer has answered yet")
}

async fn metrics(State(parts): Parts) -> RouterResponse {
    parts.measure();
    control::metrics_text(parts.metrics.as_ref())
}

async fn status(State(parts): Parts) -> ControlResult {
    let all = parts.snapshots();
    let (spent, reserved) = parts.budget.totals();
    let reserved = reserved.saturating_add(prepaid(&all));
    let now_ms = parts.clock.now_ms();
    let recent = parts.recent(STATUS_REQUESTS).await?;
    let state = match parts.ledger.stop_reason() {
        Some(reason) => format!("stopped: {reason}"),
        None if parts.book.is_ready() => "ready".to_owned(),
        None => "looking for peers".to_owned(),
    };
    Ok(Json(json!({
        "role": "buy",
        "version": env!("CARGO_PKG_VERSION"),
        "peer": parts.peer.to_base58(),
        "evm_address": parts.evm_address,
        "mode": parts.payer.mode(),
        "state": state,
        "peers": parts.network.connected_peers().len(),
        "offers": parts.book.len(),
        "uptime_s": now_ms.saturating_sub(parts.started_ms) / 1_000,
        "in_flight": live(&all),
        "in_doubt": in_doubt(&all),
        // No wallet in credit mode: not reported.
        "money": {
            "wallet_micro_usd": null,
            "reserved_micro_usd": reserved.0,
            "spent_today_micro_usd": spent.0,
            "owed_micro_usd": owed(&all).0,
        },
        "budget": budget_json(parts.budget.limits(&Scope::ALL)),
        "limits": standings(&parts.budget),
        "requests": recent,
    })))
}

async fn list_sellers(State(parts): Parts) -> ControlResult {
    let recent = parts.recent(SPEED_REQUESTS).await?;
    let list = sellers::list(&Sources {
        book: &parts.book,
        router: &parts.router,
        payer: &parts.payer,
        network: &parts.network,
        recent: &recent,
        now_ms: parts.clock.now_ms(),
    });
    Ok(Json(json!({ "sellers": list })))
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
        Some("seller") => GroupBy::Seller,
        Some("client") => GroupBy::Client,
        Some(_) => {
            let message = "`by` is one of model, hour, day, month, seller, client";
            return Err(ControlError::BadRequest(message.to_owned()));
        }
    };
    let zone = jiff::tz::TimeZone::system();
    let summary = report::summary(parts.ledger.reader(), by, &bought(), &zone).await;
    Ok(Json(json!(summary.map_err(ledger_failed)?)))
}

async fn channels(State(parts): Parts) -> ControlResult {
    let list: Vec<Value> = parts
        .payer
        .pairs()
        .iter()
        .map(|pair| {
            let money = pair.snapshot();
            json!({
                "channel": pair.channel().map(|id| id.to_string()),
                "peer": pair.seller().to_base58(),
                "seller": pair.seller().to_base58(),
                "mode": if money.on_chain.is_some() { "channel" } else { "credit" },
                "state": money.state(),
                "confirmed": money.on_chain.map(|view| view.opened == Level::Final),
                "onchain_deposit_micro_usd": money.on_chain.map(|view| view.deposit_seen.0),
                "onchain_settled_micro_usd": money.on_chain.map(|view| view.settled.0),
                "open_fee_micro_usd": money.on_chain.map(|view| view.open_fee.0),
                "deposit_micro_usd": pair.terms().map(|_| money.deposit.0),
                "signed_micro_usd": money.signed.0,
                "received_micro_usd": money.received.0,
                "accepted_micro_usd": money.settled.0,
                "settlements_micro_usd": money.settlements.0,
                "owed_micro_usd": owed(&[money]).0,
                "credit_micro_usd": pair.headroom().map(|left| left.0),
                "live": money.live,
                "in_doubt": money.in_doubt,
            })
        })
        .collect();
    Ok(Json(json!({ "channels": list })))
}

async fn show_budget(State(parts): Parts) -> ControlResult {
    let (spent, reserved) = parts.budget.totals();
    let mut shown = budget_json(parts.budget.limits(&Scope::ALL));
    shown.insert("spent_today_micro_usd".to_owned(), json!(spent.0));
    shown.insert("reserved_micro_usd".to_owned(), json!(reserved.0));
    shown.insert("limits".to_owned(), json!(standings(&parts.budget)));
    Ok(Json(Value::Object(shown)))
}

/// Sets the limits that are named; `null` lifts one. They hold from now on and after a restart.
async fn set_budget(State(parts): Parts, headers: HeaderMap, body: Bytes) -> ControlResult {
    control::require_control(&parts.guard, &headers)?;
    let fields = control::object(&body)?;
    let scope = scope_of(&fields)?;
    let limits = limits_of(&fields, parts.budget.limits(&scope))?;
    let row = BudgetRow {
        at_ms: parts.clock.now_ms(),
        client: scope.client.clone(),
        model: scope.model.clone(),
        daily: limits.daily,
        monthly: limits.monthly,
    };
    let commit = parts.ledger.commit(vec![Row::BudgetSet(row)]).await;
    commit.map_err(ledger_failed)?;
    parts.budget.limit(&scope, limits);
    Ok(Json(Value::Object(budget_json(limits))))
}

fn scope_of(fields: &Map<String, Value>) -> Result<Scope, ControlError> {
    let text = |name: &str| match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if !text.trim().is_empty() => Ok(Some(text.trim().to_owned())),
        Some(_) => {
            let message = format!("`{name}` must be a name, or left out");
            Err(ControlError::BadRequest(message))
        }
    };
    Ok(Scope {
        model: text("model")?.map(|model| ModelId::new(&model)),
        client: text("client")?,
    })
}

fn limits_of(fields: &Map<String, Value>, before: Limits) -> Result<Limits, ControlError> {
    let names = ["daily_usd", "monthly_usd", "model", "client"];
    if let Some(other) = fields.keys().find(|name| !names.contains(&name.as_str())) {
        let message = format!("`{other}` is unknown; send `daily_usd`, `monthly_usd` or both");
        return Err(ControlError::BadRequest(message));
    }
    let limit = |name: &str, before: Option<MicroUsd>| match fields.get(name) {
        None => Ok(before),
        Some(Value::Null) => Ok(None),
        Some(value) => control::amount(name, value).map(Some),
    };
    if !fields.contains_key("daily_usd") && !fields.contains_key("monthly_usd") {
        let message = "send `daily_usd`, `monthly_usd` or both";
        return Err(ControlError::BadRequest(message.to_owned()));
    }
    Ok(Limits {
        daily: limit("daily_usd", before.daily)?,
        monthly: limit("monthly_usd", before.monthly)?,
    })
}

/// Every scope that has limits, with what it has spent.
fn standings(budget: &Budget) -> Vec<Value> {
    let limited = budget.standings().into_iter();
    let limited = limited.filter(|one| !one.limits.is_none());
    let one = |standing: Standing| {
        json!({
            "model": standing.scope.model.map(|model| model.to_string()),
            "client": standing.scope.client,
            "daily_micro_usd": standing.limits.daily.map(|limit| limit.0),
            "monthly_micro_usd": standing.limits.monthly.map(|limit| limit.0),
            "spent_today_micro_usd": standing.today.0,
            "spent_this_month_micro_usd": standing.this_month.0,
            "reserved_micro_usd": standing.held.0,
        })
    };
    limited.map(one).collect()
}

fn budget_json(limits: Limits) -> Map<String, Value> {
    let micro = |limit: Option<MicroUsd>| json!(limit.map(|limit| limit.0));
    Map::from_iter([
        ("daily_micro_usd".to_owned(), micro(limits.daily)),
        ("monthly_micro_usd".to_owned(), micro(limits.monthly)),
    ])
}

impl ControlParts {
    async fn recent(&self, limit: u32) -> Result<Vec<RequestRecord>, ControlError> {
        let reader = self.ledger.reader();
        let records = report::requests(reader, &bought(), Some(self.peer), limit).await;
        records.map_err(ledger_failed)
    }
    /// Sets what is read at each look.
    fn measure(&self) {
        let pairs = self.payer.pairs();
        let all: Vec<PairSnapshot> = pairs.iter().map(|pair| pair.snapshot()).collect();
        let (spent, reserved) = self.budget.totals();
        self.network.measure();
        gauge!("souk_offers").set(control::gauge_of(self.book.len()));
        gauge!("souk_buyer_attempts_in_flight").set(control::gauge_of(live(&all)));
        gauge!("souk_buyer_attempts_in_doubt").set(control::gauge_of(in_doubt(&all)));
        gauge!("souk_buyer_spent_today_usd").set(control::gauge_usd(spent));
        gauge!("souk_buyer_reserved_usd").set(control::gauge_usd(reserved));
        gauge!("souk_buyer_owed_usd").set(control::gauge_usd(owed(&all)));
        let credit = pairs.iter().filter_map(|pair| pair.headroom()).sum();
        gauge!("souk_buyer_credit_usd").set(control::gauge_usd(credit));
        let on_chain = all.iter().filter(|pair| pair.on_chain.is_some());
        let deposits = on_chain.map(|pair| pair.deposit).sum();
        gauge!("souk_buyer_deposits_usd").set(control::gauge_usd(deposits));
        for state in PairSnapshot::STATES {
            let count = all.iter().filter(|pair| pair.state() == state).count();
            gauge!("souk_buyer_channels", "state" => state).set(control::gauge_of(count));
        }
        let up = all.iter().filter(|pair| pair.up).count();
        gauge!("souk_buyer_sellers_up").set(control::gauge_of(up));
    }
    fn snapshots(&self) -> Vec<PairSnapshot> {
        let pairs = self.payer.pairs();
        pairs.iter().map(|pair| pair.snapshot()).collect()
    }
}

fn bought() -> Filter {
    Filter {
        role: Some(Role::Buy),
        ..Filter::default()
    }
}

fn live(all: &[PairSnapshot]) -> usize {
    all.iter().map(|pair| pair.live).sum()
}

fn in_doubt(all: &[PairSnapshot]) -> usize {
    all.iter().map(|pair| pair.in_doubt).sum()
}

/// Received and not paid for outside; on a chain what is received is paid out of the deposit.
fn owed(all: &[PairSnapshot]) -> MicroUsd {
    let one = |pair: &PairSnapshot| match pair.on_chain {
        Some(_) => MicroUsd::ZERO,
        None => pair.received.saturating_sub(pair.settlements),
    };
    all.iter().map(one).sum()
}

/// Signed and not used, where no attempt runs (running ones have their reservation).
fn prepaid(all: &[PairSnapshot]) -> MicroUsd {
    let idle = all.iter().filter(|pair| pair.live == 0);
    idle.map(|pair| pair.signed.saturating_sub(pair.received))
        .sum()
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
    fn a_budget_changes_only_what_is_named_and_null_lifts_it() {
        let before = Limits {
            daily: Some(MicroUsd(5)),
            monthly: Some(MicroUsd(50)),
        };
        let of = |value: Value| limits_of(value.as_object().unwrap(), before);
        let set = of(json!({"daily_usd": "0.25"})).unwrap();
        assert_eq!(set.daily, Some(MicroUsd(250_000)));
        assert_eq!(set.monthly, before.monthly);
        let set = of(json!({"daily_usd": null, "monthly_usd": 1})).unwrap();
        assert_eq!((set.daily, set.monthly), (None, Some(MicroUsd(1_000_000))));
        assert!(of(json!({})).is_err());
        assert!(of(json!({"daily": 1})).is_err());
        let scope = |value: Value| scope_of(value.as_object().unwrap());
        let of_both = scope(json!({"model": "M", "client": "alice"})).unwrap();
        assert_eq!(of_both.model, Some(ModelId::new("m")));
        assert_eq!(of_both.client.as_deref(), Some("alice"));
        assert_eq!(scope(json!({"model": null})).unwrap(), Scope::ALL);
        assert!(scope(json!({"client": 1})).is_err());
    }
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod port_tests;
