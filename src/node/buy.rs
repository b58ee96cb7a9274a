//! Puts a buyer on a base: offer book, payer, local HTTP.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::agreement::Bought;
use super::base::{Base, CachedOffers};
use super::paying::Paying;
use super::routing;
use crate::buyer::budget::Budget;
use crate::buyer::control::{Control, ControlParts};
use crate::buyer::names::Names;
use crate::buyer::route::Policy;
use crate::buyer::{Buyer, Parts, Settings, Timeouts};
use crate::config::{Config, NamedClient};
use crate::data_dir::RunInfo;
use crate::discovery::OfferBook;
use crate::failure::{Failure, FailureKind};
use crate::http::guard::{self, Guard, SignInCheck};
use crate::http::server::{self, Server};
use crate::protocol::delegation::sign_in::{NonceSet, SignInProof, verify_sign_in};
use crate::protocol::head::DelegationProof;
use crate::telemetry::Metrics;
use crate::types::{ModelId, PeerId, Secret};
use crate::wallet::relay::ask::Sellers;

/// A running buyer.
pub(super) struct Buying {
    pub url: String,
    pub run_info: RunInfo,
    pub book: OfferBook,
    pub buyer: Arc<Buyer>,
    pub budget: Budget,
}

/// Starts the buyer's parts; requests are answered when this returns.
///
/// # Errors
/// When the config is contradictory, the port is taken, or the ledger cannot be read.
pub(super) async fn start(
    base: &Base,
    role: &str,
    metrics: Option<Metrics>,
) -> anyhow::Result<Buying> {
    base.warm_counter();
    let config = &base.config;
    let offers = Arc::new(CachedOffers {
        cache: base.cache.clone(),
        clock: Arc::clone(&base.clock),
    });
    let (book, runner) = OfferBook::new(
        base.network.clone(),
        &config.node.network,
        Arc::clone(&base.clock),
        offers,
    );
    let stop = base.base.cancelled();
    base.base
        .spawn("offer-book", async move { runner.run(stop).await });
    let Paying { payer, budget } = base.paying().await?;
    let own = super::own::open(base).await?;
    let (server, guard, run_info) = bind(base, role).await?;
    let role = Bought(payer.clone());
    let wallet = super::chain::wallet(base, sellers(base, &book), role);
    if let Some(wallet) = &wallet {
        super::reclaim::start(wallet.clone(), payer.clone(), &base.base);
    }
    let router = routing::open(base, &book).await;
    let control = Control::new(ControlParts {
        wallet,
        peer: base.keys.identity.peer_id(),
        evm_address: crate::keys::to_checksum(&base.keys.payment.address()),
        network: base.network.clone(),
        book: book.clone(),
        pipelines: super::pipelines::report(book.clone()),
        router: router.clone(),
        payer: payer.clone(),
        ledger: base.ledger.clone(),
        budget: budget.clone(),
        clock: Arc::clone(&base.clock),
        started_ms: base.clock.now_ms(),
        guard: guard.clone(),
        metrics,
    });
    let parts = Parts {
        book: book.clone(),
        payer,
        network: base.network.clone(),
        ledger: base.ledger.clone(),
        keys: base.keys.clone(),
        clock: Arc::clone(&base.clock),
        tasks: base.front.clone(),
        budget: budget.clone(),
        router,
        counter: base.counter.clone(),
        own,
        control: Arc::new(control),
    };
    let buyer = Arc::new(Buyer::new(parts, settings_of(base)?));
    let warm = usize::try_from(config.buy.routing.warm_sellers).unwrap_or(usize::MAX);
    if warm > 0 {
        let (buyer, stop) = (Buyer::clone(&buyer), base.front.cancelled());
        base.front
            .spawn("warm", async move { buyer.keep_warm(warm, stop).await });
    }
    let every = config.buy.routing.canary_interval;
    if config.buy.routing.canaries.is_some() && !every.is_zero() {
        let (buyer, stop) = (Buyer::clone(&buyer), base.front.cancelled());
        base.front.spawn(
            "canaries",
            async move { buyer.ask_canaries(every, stop).await },
        );
    }
    let url = run_info.url.clone();
    let (tasks, stop) = (base.front.clone(), base.front.cancelled());
    let handler = Arc::clone(&buyer);
    base.front.spawn("http", async move {
        server.run(guard, handler, &tasks, stop).await;
    });
    Ok(Buying {
        url,
        run_info,
        book,
        buyer,
        budget,
    })
}

/// The named clients with their tokens.
fn clients(entries: &[String]) -> anyhow::Result<Vec<(String, Secret<String>)>> {
    let mut clients = Vec::new();
    for entry in entries {
        let bad = |why| Failure::new(FailureKind::BadConfig, format!("buy.clients: {why}"));
        let client = NamedClient::parse(entry).map_err(bad)?;
        if let Some(token) = client.token.read()? {
            clients.push((client.name, token));
        }
    }
    Ok(clients)
}

async fn bind(base: &Base, role: &str) -> anyhow::Result<(Server, Guard, RunInfo)> {
    let buy = &base.config.buy;
    let token = buy.token.read()?;
    let clients = clients(&buy.clients)?;
    let loopback = matches!(buy.host.as_str(), "127.0.0.1" | "localhost" | "::1");
    if !loopback && token.is_none() && clients.is_empty() {
        let message = format!("--host {} lets others spend your money", buy.host);
        let hint = "set [buy] token = \"env:NAME\" or \"file:PATH\", or use 127.0.0.1";
        return Err(Failure::new(FailureKind::BadConfig, message)
            .hint(hint)
            .into());
    }
    let server = Server::bind(server::Settings {
        host: buy.host.clone(),
        port: buy.port,
        connections_max: usize::try_from(buy.max_connections).unwrap_or(usize::MAX),
        ..server::Settings::default()
    })
    .await?;
    let port = server.local_addr().port();
    let shown = if buy.host.contains(':') {
        format!("[{}]", buy.host)
    } else {
        buy.host.clone()
    };
    let run_info = RunInfo::new(role, &format!("http://{shown}:{port}"));
    let guard = Guard::new(&guard::Settings {
        host: buy.host.clone(),
        port,
        hosts: buy.hosts.clone(),
        token,
        clients,
        sign_in: Some(sign_in(base)),
        control: Some(run_info.token()),
    });
    Ok((server, guard, run_info))
}

fn settings_of(base: &Base) -> anyhow::Result<Settings> {
    let buy = &base.config.buy;
    Ok(Settings {
        network: base.config.node.network.clone(),
        windows: base.windows(),
        policy: policy(&base.config)?,
        names: names(&base.config),
        timeouts: Timeouts {
            open: buy.timeouts.open,
            all_attempts: buy.timeouts.all_attempts.max(buy.timeouts.first_token),
            idle: buy.timeouts.idle,
            total: buy.timeouts.total,
        },
        delegation: delegation(base)?,
    })
}

/// What the user accepts.
pub(super) fn policy(config: &Config) -> anyhow::Result<Policy> {
    let buy = &config.buy;
    Ok(Policy {
        max_price_in: buy.max_price_in.map(|price| price.0),
        max_price_out: buy.max_price_out.map(|price| price.0),
        seller: buy
            .seller
            .as_deref()
            .map(|text| peer("buy.seller", text))
            .transpose()?,
        allow: peers("buy.allow", &buy.allow)?,
        deny: peers("buy.deny", &buy.deny)?,
        prefer: routing::prefer(buy.prefer),
        prepay_max: config.payment.prepay_max,
        request_max: buy.budget.request,
    })
}

/// The user's own names for models.
pub(super) fn names(config: &Config) -> Names {
    let buy = &config.buy;
    Names {
        aliases: buy.aliases.iter().filter_map(|text| alias(text)).collect(),
        auto: buy.auto.iter().map(|id| ModelId::new(id)).collect(),
    }
}

/// `name=model`; the config has been checked.
fn alias(text: &str) -> Option<(String, ModelId)> {
    let (name, model) = text.split_once('=')?;
    Some((name.trim().to_owned(), ModelId::new(model.trim())))
}

/// Lets in the node's own wallets and those the config names.
fn sign_in(base: &Base) -> SignInCheck {
    let mut allowed = base.config.buy.wallets.clone();
    allowed.push(crate::keys::to_checksum(&base.keys.payment.address()));
    allowed.push(base.keys.identity.solana_address());
    let clock = Arc::clone(&base.clock);
    let nonces = NonceSet::new(clock.now_ms());
    SignInCheck(Arc::new(move |header, host| {
        let proof = SignInProof::from_header(header);
        let signed_in =
            proof.and_then(|proof| verify_sign_in(&proof, host, clock.now_ms(), &allowed, &nonces));
        if let Err(error) = &signed_in {
            tracing::info!(%error, "sign-in refused");
        }
        signed_in.is_ok()
    }))
}

/// The wallet's permission for this node, checked before it is sent to anybody.
fn delegation(base: &Base) -> anyhow::Result<Option<DelegationProof>> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        text: String,
        signature: String,
    }
    let Some(path) = &base.config.buy.delegation_file else {
        return Ok(None);
    };
    let bad = |what: String| {
        let message = format!("{}: {what}", path.display());
        let hint =
            "a JSON file {\"text\": CAIP-122 text, \"signature\": hex} for this node's peer id";
        Failure::new(FailureKind::BadConfig, message).hint(hint)
    };
    let bytes = std::fs::read(path).map_err(|e| bad(e.to_string()))?;
    let file: File = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
    let hex_text = file.signature.strip_prefix("0x").unwrap_or(&file.signature);
    let signature = hex::decode(hex_text).map_err(|_| bad("the signature is no hex".into()))?;
    let me = base.keys.identity.peer_id();
    crate::protocol::delegation::verify(&file.text, &signature, base.clock.now_ms(), &me)
        .map_err(|e| bad(e.to_string()))?;
    Ok(Some(DelegationProof {
        text: file.text,
        signature,
    }))
}

pub(super) fn peers(key: &str, texts: &[String]) -> Result<Vec<PeerId>, Failure> {
    texts.iter().map(|text| peer(key, text)).collect()
}

fn peer(key: &str, text: &str) -> Result<PeerId, Failure> {
    text.parse().map_err(|_| {
        let message = format!("{key}: `{text}` is no peer id");
        Failure::new(FailureKind::BadConfig, message).hint("`node status` shows full peer ids")
    })
}

/// Sellers that could relay, connected ones first.
fn sellers(base: &Base, book: &OfferBook) -> Sellers {
    let (network, book) = (base.network.clone(), book.clone());
    Arc::new(move || {
        let offers = book.live();
        let all: BTreeSet<PeerId> = offers.iter().map(|signed| signed.offer.seller).collect();
        let mut peers: Vec<PeerId> = all.into_iter().collect();
        peers.sort_by_key(|peer| !network.is_connected(peer));
        peers
    })
}
