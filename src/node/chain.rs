//! The configured chain as a node uses it: opens it with the ledger as its journal, checks it, and
//! keeps it running among the base's tasks.
//!
//! A chain that cannot be reached at start stops nothing: the node says so and tries again. A wrong
//! chain, hub or token does: it ends the node with code 64.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::base::Base;
use crate::chain::digest::HubDomain;
use crate::chain::journal::Journal;
use crate::chain::link::{self, Link, is_wrong};
use crate::chain::outbox::Sender;
use crate::chain::rpc::{self, Rpc};
use crate::chain::{ChainError, outbox, watcher};
use crate::config::{ChainSection, Config};
use crate::failure::{Failure, FailureKind};
use crate::keys::PaymentKey;
use crate::ledger::Ledger;
use crate::network::Stream;
use crate::payment::journal::LedgerJournal;
use crate::tasks::Tasks;
use crate::types::{Clock, PeerId};
use crate::wallet::relay::ask::Sellers;
use crate::wallet::relay::{Asker, Relayer};
use crate::wallet::{self, Agreement, Wallet};

/// The start waits this long for the first answer of a chain.
const FIRST_CHECK: Duration = Duration::from_secs(5);
/// Wei of a gwei.
const WEI_PER_GWEI: u128 = 1_000_000_000;

/// Opens the configured chain; none when none is configured. Nothing is asked yet.
///
/// # Errors
/// When an RPC URL cannot be used.
pub(super) fn open(
    config: &ChainSection,
    ledger: &Ledger,
    clock: &Arc<dyn Clock>,
    key: &PaymentKey,
) -> anyhow::Result<Option<Link>> {
    open_with(config, Arc::new(LedgerJournal(ledger.clone())), clock, key)
}

/// The same with any journal.
///
/// # Errors
/// As [`open`].
pub(super) fn open_with(
    config: &ChainSection,
    journal: Arc<dyn Journal>,
    clock: &Arc<dyn Clock>,
    key: &PaymentKey,
) -> anyhow::Result<Option<Link>> {
    if !config.is_set() {
        return Ok(None);
    }
    let (Some(hub), Some(token)) = (config.hub_address(), config.token_address()) else {
        return Ok(None);
    };
    let chain = Arc::new(client(config, clock)?);
    let watch = watcher::Settings {
        domain: HubDomain {
            chain_id: config.chain_id,
            hub,
        },
        account: key.address(),
        start_block: config.start_block,
        confirmations: config.confirmations,
        range_blocks_max: config.log_range,
        poll_every: config.poll,
    };
    let (clock, send) = (Arc::clone(clock), send_settings(config));
    let sender = Sender::new(chain, journal, clock, key.clone(), send);
    Ok(Some(Link::new(sender, link::Settings { token, watch })))
}

/// The RPC nodes of the configured chain.
///
/// # Errors
/// When a URL cannot be used.
pub(super) fn client(config: &ChainSection, clock: &Arc<dyn Clock>) -> anyhow::Result<Rpc> {
    let mut nodes = rpc::Settings::new(config.rpc.clone(), config.chain_id);
    nodes.call_timeout = config.call_timeout;
    Rpc::new(nodes, Arc::clone(clock)).map_err(|error| failure(&error).into())
}

/// How transactions are sent.
pub(super) fn send_settings(config: &ChainSection) -> outbox::Settings {
    outbox::Settings {
        fee_cap: u128::from(config.gas_price_max).saturating_mul(WEI_PER_GWEI),
        bump_after_ms: u64::try_from(config.bump_after.as_millis()).unwrap_or(u64::MAX),
        confirmations: config.confirmations,
        poll_every: config.poll,
        ..outbox::Settings::new(config.chain_id, config.coin_price)
    }
}

/// Checks the chain once and keeps it running until the base ends.
///
/// # Errors
/// When the configuration is wrong; a chain that does not answer is only said.
pub(super) async fn start(link: &Link, tasks: &Tasks) -> anyhow::Result<()> {
    match tokio::time::timeout(FIRST_CHECK, link.check()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) if is_wrong(&error) => return Err(failure(&error).into()),
        Ok(Err(error)) => {
            tracing::warn!(%error, "the chain does not answer; channels wait for it");
        }
        Err(_) => tracing::warn!("the chain does not answer; channels wait for it"),
    }
    let (link, stop) = (link.clone(), tasks.cancelled());
    tasks.spawn_critical("chain", async move {
        link.run(stop).await.map_err(|error| failure(&error).into())
    });
    Ok(())
}

/// The wallet of a running node; none without a chain.
pub(super) fn wallet(
    base: &Base,
    sellers: Sellers,
    role: impl Agreement + 'static,
) -> Option<Wallet> {
    let link = base.chain.clone()?;
    let relayers = Some(Asker::new(base.network.clone(), sellers));
    Some(Wallet::new(wallet::Parts {
        link,
        key: base.keys.payment.clone(),
        reader: base.ledger.reader().clone(),
        clock: Arc::clone(&base.clock),
        relayers,
        agreement: Some(Arc::new(role)),
        settings: wallet_settings(&base.config),
    }))
}

/// What a wallet may do.
pub(super) const fn wallet_settings(config: &Config) -> wallet::Settings {
    wallet::Settings {
        relay_fee_max: config.payment.relay_fee_max,
    }
}

/// Sends what buyers without gas sign; without a chain their streams end at once.
pub(super) fn relay(base: &Base, mut streams: mpsc::Receiver<(PeerId, Stream)>) {
    let Some(link) = base.chain.clone() else {
        return;
    };
    let relayer = Relayer::new(link, Arc::clone(&base.clock));
    let (tasks, stop) = (base.base.clone(), base.base.cancelled());
    base.base.spawn("accept-relay", async move {
        loop {
            let (peer, stream) = tokio::select! {
                next = streams.recv() => match next { Some(next) => next, None => return },
                () = stop.cancelled() => return,
            };
            let relayer = relayer.clone();
            tasks.spawn("relay", async move { relayer.serve(peer, stream).await });
        }
    });
}

/// What a command or a node says about a chain's error.
pub(super) fn failure(error: &ChainError) -> Failure {
    let kind = match error {
        error if is_wrong(error) => FailureKind::BadConfig,
        ChainError::Unreachable(_) | ChainError::Node { .. } => FailureKind::Network,
        _ => FailureKind::Failure,
    };
    let failure = Failure::new(kind, error.to_string());
    match kind {
        FailureKind::BadConfig => failure.hint("compare [chain] with `node config show --origin`"),
        FailureKind::Network => failure
            .hint("check [chain] rpc, or try again later")
            .retryable(),
        _ => failure,
    }
}
