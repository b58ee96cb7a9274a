//! Puts a seller on a base: upstream, prices, offers, payee, streams, its own small HTTP port.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{mpsc, watch};

use super::agreement::Sold;
use super::base::Base;
use super::contribute::{self, Contribution, Desk, Tending};
use super::stock::{self, Stock, Withdrawal};
use super::upstream;
use crate::data_dir::RunInfo;
use crate::discovery::Announcer;
use crate::http::guard::{self, Guard};
use crate::http::server::{self, Server};
use crate::llm_api::Dialect;
use crate::network::{Incoming, Stream};
use crate::payment::payee::{self, PayeeHub};
use crate::protocol::{SignedTerms, Terms};
use crate::seller::admission::{BuyerPolicy, Gate, Lives, Policies};
use crate::seller::catalogue::{Catalogue, OfferFrame};
use crate::seller::control::{Control, ControlParts};
use crate::seller::limits::{DAY_MS, LimitSettings, Limits};
use crate::seller::pricing::PriceRules;
use crate::seller::stage::StageService;
use crate::seller::upstream::Upstream;
use crate::seller::{Parts, Seller, Settings};
use crate::telemetry::Metrics;
use crate::types::{MicroUsd, PeerId};
use crate::wallet::Wallet;
use crate::wallet::relay::ask::Sellers;

/// An ending seller waits this long until somebody has heard that it sells no more.
const WITHDRAW_WAIT: Duration = Duration::from_secs(1);
/// The ready line waits this long for the first offers to be published.
const PUBLISH_WAIT: Duration = Duration::from_secs(3);
/// Silence of the upstream that ends an answer.
const UPSTREAM_IDLE: Duration = Duration::from_secs(60);
/// Credit on a private network, per buyer and in all.
const CREDIT_PRIVATE: (MicroUsd, MicroUsd) = (MicroUsd::from_usd(1), MicroUsd::from_usd(5));
/// Buyers with channels at once.
const BUYERS_MAX: usize = 10_000;
/// Hidden reasoning that may be billed above the buyer's own count, tokens.
const REASONING_CAP: u32 = 32_000;

/// What the layers' desk says of itself.
type StageStatus = Arc<dyn Fn() -> Value + Send + Sync>;

/// A running seller.
pub(super) struct Selling {
    pub models: usize,
    pub run_info: RunInfo,
    pub credit: MicroUsd,
    /// The layers for sale, as the ready line says it.
    pub layers: Option<String>,
    /// Takes new prices and models.
    pub rules: watch::Sender<PriceRules>,
}

/// What a node sells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wares {
    /// An upstream's answers.
    pub answers: bool,
    /// Layers of a model.
    pub layers: bool,
}

/// Starts the seller's parts; buyers are served when this returns.
///
/// # Errors
/// When there is no upstream, key or price, or the port is taken.
pub(super) async fn start(
    base: &Base,
    incoming: Incoming,
    (role, wares): (&str, Wares),
    metrics: Option<Metrics>,
) -> anyhow::Result<Selling> {
    base.warm_counter();
    let config = &base.config;
    let upstream = if wares.answers {
        Some(upstream::open(base).await?)
    } else {
        None
    };
    let contribution = if wares.layers {
        Some(Contribution::start(base).await?)
    } else {
        None
    };
    let desk = contribution.as_ref().map(|one| Arc::clone(&one.desk));
    let layers = contribution.as_ref().map(Contribution::summary);
    let (limit, total) = credit(base).await;
    let onchain = base.onchain();
    let address = base.keys.payment.address();
    let terms = SignedTerms::sign(
        Terms {
            seller: base.keys.identity.peer_id(),
            payment_address: address,
            credit_limit: limit,
            open_fee: onchain
                .as_ref()
                .map_or(MicroUsd::ZERO, |one| one.rules.open_fee),
            reasoning_cap: u64::from(REASONING_CAP),
            data_policy: "not stated".to_owned(),
            supported_parameters: Vec::new(),
            chain: onchain.as_ref().map(|one| one.terms(address)),
        },
        &base.keys.identity,
    );
    let frame = OfferFrame {
        network: config.node.network.clone(),
        dialect: upstream.as_ref().map_or(Dialect::Chat, Upstream::dialect),
        completions: upstream.as_ref().is_some_and(Upstream::has_completions),
        reasoning_cap: REASONING_CAP,
        terms_hash: terms.hash,
        free: (config.sell.free || !wares.answers) && (config.contribute.free || !wares.layers),
        addrs: base.network.offer_addresses().await,
    };
    let stock = Stock {
        rules: stock::rules(config),
        upstream: upstream.clone(),
        is_split: super::pipeline::is_used(config) && config.sell.split,
        layers: match &contribution {
            Some(contribution) => contribution.on_sale(),
            None => watch::Sender::new(None).subscribe(),
        },
        frame,
    };
    let catalogue = Arc::new(Catalogue::new(base.keys.identity.clone()));
    let (announcer, runner) = Announcer::new(
        base.network.clone(),
        &config.node.network,
        Arc::clone(&base.clock),
    );
    let models = stock::publish(base, &stock, &catalogue, &announcer).await?;
    let stop = base.base.cancelled();
    base.base
        .spawn("announcer", async move { runner.run(stop).await });
    let payee = open_payee(base, terms, limit, total).await?;
    let work = (upstream, desk.clone());
    let seller = open_seller(base, work, Arc::clone(&catalogue), payee.clone()).await?;
    if let Some(desk) = &desk {
        contribute::watch_load(base, desk);
    }
    let stage = desk
        .clone()
        .map(|desk| -> StageStatus { Arc::new(move || desk.status()) });
    accept(base, incoming, &seller, payee.clone(), desk);
    if let Some(contribution) = contribution {
        let tending = Tending::of(base);
        base.front
            .spawn("stage", async move { contribution.tend(tending).await });
    }
    // A seller without gas asks whoever is connected; other sellers answer.
    let wallet = super::chain::wallet(base, connected(base), Sold(payee.clone()));
    if let Some(wallet) = &wallet {
        super::reclaim::close_without_gas(wallet.clone(), payee.clone(), &base.base);
    }
    let withdraw = stock::withdrawal(base, &catalogue, &announcer);
    drain(base, role, &seller, Arc::clone(&withdraw), &announcer);
    let run_info = control(
        base,
        role,
        &seller,
        &payee,
        &catalogue,
        withdraw,
        (wallet, stage, metrics),
    )
    .await?;
    let rules = stock::refresh(base, stock, catalogue, announcer.clone(), seller);
    let mut published = announcer.watch();
    let first = published.wait_for(|published| published.at_ms > 0);
    let _ = tokio::time::timeout(PUBLISH_WAIT, first).await;
    Ok(Selling {
        models,
        run_info,
        credit: limit,
        layers,
        rules,
    })
}

/// Off the market first when the node ends, so that buyers hear of it while what runs is finished;
/// and the end of a node that does nothing else when it was told to drain and has nothing left to do.
fn drain(base: &Base, role: &str, seller: &Seller, withdraw: Withdrawal, announcer: &Announcer) {
    let (stop, mut published) = (base.front.cancelled(), announcer.watch());
    base.front.spawn("withdraw", async move {
        stop.cancelled().await;
        let before = published.borrow().at_ms;
        withdraw();
        let heard = published.wait_for(|published| published.at_ms > before);
        let _ = tokio::time::timeout(WITHDRAW_WAIT, heard).await;
    });
    if role == "run" {
        return;
    }
    let (seller, front) = (seller.clone(), base.front.clone());
    let stop = base.base.cancelled();
    base.base.spawn("drained", async move {
        tokio::select! {
            () = seller.drained() => {
                tracing::info!("nothing runs any more; ending");
                front.cancel();
            }
            () = stop.cancelled() => {}
        }
    });
}

/// Credit per buyer and in all: as configured, else generous only where nobody else can come.
async fn credit(base: &Base) -> (MicroUsd, MicroUsd) {
    let sell = &base.config.sell;
    let listeners = base.network.listeners().await;
    let private = base
        .config
        .node
        .bootstrap
        .iter()
        .chain(&listeners)
        .all(|a| is_private(a));
    // Who takes deposits gives no unsecured credit, unless it is told to.
    let (limit, total) = if private && base.chain.is_none() {
        CREDIT_PRIVATE
    } else {
        (MicroUsd::ZERO, MicroUsd::ZERO)
    };
    let limit = sell.credit_limit.unwrap_or(limit);
    (limit, sell.credit_total.unwrap_or_else(|| total.max(limit)))
}

/// True for loopback and private multiaddrs.
fn is_private(address: &str) -> bool {
    let mut parts = address.split('/').skip(1);
    match (parts.next(), parts.next()) {
        (Some("ip4"), Some(ip)) => ip.parse::<std::net::Ipv4Addr>().is_ok_and(|ip| {
            ip.is_loopback() || ip.is_private() || ip.is_link_local() || ip.is_unspecified()
        }),
        (Some("ip6"), Some(ip)) => ip
            .parse::<std::net::Ipv6Addr>()
            .is_ok_and(|ip| ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local()),
        _ => false,
    }
}

async fn open_payee(
    base: &Base,
    terms: SignedTerms,
    credit_limit: MicroUsd,
    credit_total: MicroUsd,
) -> anyhow::Result<PayeeHub> {
    let settings = payee::Settings {
        network: base.config.node.network.clone(),
        windows: base.windows(),
        credit_limit,
        credit_total,
        buyers_max: BUYERS_MAX,
        onchain: base.onchain(),
    };
    let hub = PayeeHub::restore(
        base.ledger.clone(),
        base.keys.clone(),
        Arc::clone(&base.clock),
        base.base.clone(),
        settings,
        terms,
    );
    Ok(hub.await?)
}

async fn open_seller(
    base: &Base,
    (upstream, desk): (Option<Upstream>, Option<Arc<Desk>>),
    catalogue: Arc<Catalogue>,
    payee: PayeeHub,
) -> anyhow::Result<Seller> {
    let lives = Lives {
        started_ms: base.clock.now_ms(),
        last_admission_ms: base.ledger.newest_admission().await?,
    };
    let (sell, layers) = (&base.config.sell, &base.config.contribute);
    let policies = Policies {
        answers: BuyerPolicy {
            allow: super::buy::peers("sell.allow", &sell.allow)?,
            deny: super::buy::peers("sell.deny", &sell.deny)?,
        },
        layers: BuyerPolicy {
            allow: super::buy::peers("contribute.allow", &layers.allow)?,
            deny: super::buy::peers("contribute.deny", &layers.deny)?,
        },
    };
    let stages = desk.clone().map(|desk| -> Arc<dyn StageService> { desk });
    let answers = upstream.as_ref().map_or(0, |_| sell.max_concurrent);
    let sessions = desk.as_ref().map_or(0, |_| layers.sessions);
    let gate = Gate::new(
        base.keys.identity.peer_id(),
        base.config.node.network.clone(),
        lives,
        policies,
        catalogue,
    );
    let parts = Parts {
        gate,
        payee,
        upstream,
        stages,
        ledger: base.ledger.clone(),
        keys: base.keys.clone(),
        clock: Arc::clone(&base.clock),
        tasks: base.front.clone(),
        counter: base.counter.clone(),
        limits: limits(base).await?,
    };
    let settings = Settings {
        max_concurrent: usize::try_from(answers.saturating_add(sessions)).unwrap_or(usize::MAX),
        windows: base.windows(),
        idle_timeout: UPSTREAM_IDLE,
    };
    Ok(Seller::new(parts, settings))
}

/// The limits, with what the ledger says was served today.
async fn limits(base: &Base) -> anyhow::Result<Limits> {
    let set = &base.config.sell.limits;
    let settings = LimitSettings {
        requests_per_minute: set.requests_per_minute,
        tokens_per_minute: set.tokens_per_minute,
        buyer_requests_per_minute: set.buyer_requests_per_minute,
        buyer_tokens_per_minute: set.buyer_tokens_per_minute,
        buyer_tokens_daily: set.buyer_tokens_daily,
        buyer_daily: set.buyer_daily,
    };
    let now_ms = base.clock.now_ms();
    let mut limits = Limits::new(settings, now_ms);
    let since_ms = now_ms - now_ms % DAY_MS;
    for (buyer, tokens, billed) in base.ledger.served_since(since_ms).await? {
        limits.remember(buyer, tokens, billed, now_ms);
    }
    Ok(limits)
}

/// Takes infer and session streams.
fn accept(
    base: &Base,
    incoming: Incoming,
    seller: &Seller,
    payee: PayeeHub,
    desk: Option<Arc<Desk>>,
) {
    let Incoming {
        infer,
        mut session,
        relay,
        rows,
    } = incoming;
    // Without layers nobody is told to push rows here; whoever does is reset.
    if let Some(desk) = desk {
        take_rows(base, rows, desk);
    }
    super::chain::relay(base, relay);
    let seller = seller.clone();
    let last = base.base.clone();
    base.base.spawn(
        "accept-infer",
        async move { seller.accept(infer, last).await },
    );
    let (tasks, stop) = (base.base.clone(), base.base.cancelled());
    base.base.spawn("accept-session", async move {
        loop {
            let (buyer, stream) = tokio::select! {
                next = session.recv() => match next { Some(next) => next, None => return },
                () = stop.cancelled() => return,
            };
            let payee = payee.clone();
            tasks.spawn("payee-session", async move {
                payee.serve_session(buyer, stream).await
            });
        }
    });
}

/// Takes rows from other stages.
fn take_rows(base: &Base, mut rows: mpsc::Receiver<(PeerId, Stream)>, desk: Arc<Desk>) {
    let (tasks, stop) = (base.front.clone(), base.front.cancelled());
    base.front.spawn("accept-rows", async move {
        loop {
            let (from, stream) = tokio::select! {
                next = rows.recv() => match next { Some(next) => next, None => return },
                () = stop.cancelled() => return,
            };
            tasks.spawn("rows", desk.rows(from, stream));
        }
    });
}

/// The seller's own pages on loopback.
async fn control(
    base: &Base,
    role: &str,
    seller: &Seller,
    payee: &PayeeHub,
    catalogue: &Arc<Catalogue>,
    withdraw: Withdrawal,
    (wallet, stage, metrics): (Option<Wallet>, Option<StageStatus>, Option<Metrics>),
) -> anyhow::Result<RunInfo> {
    let port = if role == "contribute" {
        base.config.contribute.http_port
    } else {
        base.config.sell.http_port
    };
    let settings = server::Settings {
        port,
        ..server::Settings::default()
    };
    let server = Server::bind(settings).await?;
    let port = server.local_addr().port();
    let run_info = RunInfo::new(role, &format!("http://127.0.0.1:{port}"));
    let guard = Guard::new(&guard::Settings {
        host: "127.0.0.1".to_owned(),
        port,
        hosts: Vec::new(),
        token: None,
        clients: Vec::new(),
        sign_in: None,
        control: Some(run_info.token()),
    });
    let control = Control::new(ControlParts {
        role: role.to_owned(),
        peer: base.keys.identity.peer_id(),
        evm_address: crate::keys::to_checksum(&base.keys.payment.address()),
        network: base.network.clone(),
        seller: seller.clone(),
        payee: payee.clone(),
        catalogue: Arc::clone(catalogue),
        wallet,
        ledger: base.ledger.clone(),
        clock: Arc::clone(&base.clock),
        started_ms: base.clock.now_ms(),
        guard: guard.clone(),
        withdraw,
        stage,
        metrics,
    });
    let (tasks, stop) = (base.front.clone(), base.front.cancelled());
    base.front.spawn("http", async move {
        server.run(guard, Arc::new(control), &tasks, stop).await;
    });
    Ok(run_info)
}

/// The connected peers, as relayers.
fn connected(base: &Base) -> Sellers {
    let network = base.network.clone();
    Arc::new(move || network.connected_peers())
}
