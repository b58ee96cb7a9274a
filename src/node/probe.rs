//! What `node doctor` tries without starting a role: the chain, the upstream, the peers to start from.
//!
//! Nothing is written, and nothing is asked twice. A random identity is used on the network, so a
//! node that runs on the same keys is not disturbed.

use std::sync::Arc;
use std::time::Duration;

use super::{chain, upstream};
use crate::chain::memory::MemoryJournal;
use crate::config::Config;
use crate::failure::{Failure, FailureKind};
use crate::keys::PaymentKey;
use crate::llm_api::price_list;
use crate::network;
use crate::seller::upstream::UpstreamError;
use crate::tasks::Tasks;
use crate::types::{Clock, PeerId, Secret, SystemClock};

/// A chain that has not answered by now counts as down.
const CHAIN_TIMEOUT: Duration = Duration::from_secs(15);
/// Between looks at which peers are there.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The network's tasks end within this.
const END: Duration = Duration::from_secs(1);

/// Compares the configured chain, hub and token with what the RPC nodes say.
///
/// # Errors
/// The first difference, or that no RPC node answers.
pub async fn chain(config: &Config) -> Result<(), Failure> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    // Nothing is signed; the link only wants to know who it would be.
    let key = PaymentKey::generate();
    let journal = Arc::new(MemoryJournal::default());
    let link = chain::open_with(&config.chain, journal, &clock, &key)
        .map_err(|error| Failure::from_error(&error))?;
    let Some(link) = link else { return Ok(()) };
    match tokio::time::timeout(CHAIN_TIMEOUT, link.check()).await {
        Ok(checked) => checked.map_err(|error| chain::failure(&error)),
        Err(_) => {
            let message = format!("no RPC node answered in {CHAIN_TIMEOUT:?}");
            Err(Failure::new(FailureKind::Network, message).hint("check [chain] rpc"))
        }
    }
}

/// What an upstream has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Models that it lists.
    pub models: usize,
    /// Of them with a price.
    pub priced: usize,
}

/// Asks the configured upstream for its models with the configured key.
///
/// # Errors
/// When the upstream is unknown, down, or refuses the key.
pub async fn upstream(config: &Config) -> Result<Listed, Failure> {
    let failed = |error: anyhow::Error| Failure::from_error(&error);
    let upstream = upstream::over_http(config).map_err(failed)?;
    let Some(upstream) = upstream else {
        // The demo upstream is inside the process.
        return Ok(Listed {
            models: 0,
            priced: 0,
        });
    };
    let said = |error: UpstreamError| {
        let hint = match &error {
            UpstreamError::Key(_) => "give a valid key with --api-key-env or --api-key-file",
            UpstreamError::Settings(_) => "correct [sell] upstream, base_url or the key",
            _ => "check that the upstream runs, and [sell] upstream and base_url",
        };
        Failure::new(FailureKind::Upstream, error.to_string()).hint(hint)
    };
    let body = upstream.list_models().await.map_err(said)?;
    upstream.try_key().await.map_err(said)?;
    let list = price_list::parse(&body).unwrap_or_default();
    Ok(Listed {
        models: list.len(),
        priced: list.iter().filter(|model| model.price.is_some()).count(),
    })
}

/// Peers to start from, and which of them answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entrances {
    /// Configured addresses.
    pub configured: usize,
    /// Peers that a connection exists to now.
    pub reached: usize,
}

/// Dials the configured bootstrap peers, for at most `wait`.
///
/// # Errors
/// When an address is malformed.
pub async fn entrances(config: &Config, wait: Duration) -> Result<Entrances, Failure> {
    let bootstrap = config.node.bootstrap.clone();
    let configured = bootstrap.len();
    let settings = network::Settings {
        network: config.node.network.clone(),
        bootstrap,
        mdns: false,
        server: Some(false),
        ..network::Settings::new(Secret::new(rand::random()))
    };
    let (handle, _incoming, runner) = network::start(settings, Arc::new(SystemClock))
        .map_err(|error| Failure::new(FailureKind::BadConfig, error.to_string()))?;
    let tasks = Tasks::new();
    let stop = tasks.cancelled();
    tasks.spawn("network", async move {
        drop(runner.run(stop).await);
    });
    let named = named_peers(&config.node.bootstrap);
    let wanted = named.len().max(1);
    let deadline = tokio::time::Instant::now() + wait;
    while handle.connected_peers().len() < wanted && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let reached = handle.connected_peers().len();
    drop(tasks.shutdown(END).await);
    Ok(Entrances {
        configured,
        reached,
    })
}

/// The peers that the addresses name; several addresses may lead to one.
fn named_peers(addresses: &[String]) -> std::collections::BTreeSet<PeerId> {
    let name = |address: &String| address.rsplit_once("/p2p/")?.1.parse().ok();
    addresses.iter().filter_map(name).collect()
}
