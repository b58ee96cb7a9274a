//! What every role stands on: keys, ledger, cache, network, and an ordered end.
//!
//! Three groups of tasks end one after the other: `front` (clients and streams: finish what runs),
//! `base` (network, sessions, bookkeepers: send the last ACCEPTs), `disk` (the ledger's writer:
//! everything queued becomes durable).

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::OnceCell;

use super::chain;
use super::paying::Paying;
use crate::chain::link::Link;
use crate::config::Config;
use crate::data_dir::{DataDir, DirLock};
use crate::discovery::OfferCache;
use crate::failure::{Failure, FailureKind};
use crate::keys::{FileError, Identity, KeysError, NodeKeys};
use crate::ledger::{Cache, CachedOffer, CachedPeer, CheckpointSigner, Ledger};
use crate::llm_api::TokenCounter;
use crate::network::{self, Handle, Incoming};
use crate::payment::WindowSettings;
use crate::payment::onchain::{Onchain, Rules};
use crate::protocol::offer::SignedOffer;
use crate::tasks::Tasks;
use crate::types::{Clock, SystemClock};

/// Streams get this long to end after SIGTERM.
const FRONT_DEADLINE: Duration = Duration::from_secs(15);
/// Sessions and the network get this long.
const BASE_DEADLINE: Duration = Duration::from_secs(3);
/// The last commit gets this long.
const DISK_DEADLINE: Duration = Duration::from_secs(10);
/// Known peers are saved this often.
const PEERS_INTERVAL: Duration = Duration::from_secs(20);
/// Peers read from the cache at start.
const PEERS_MAX: u32 = 200;

/// The parts all roles share.
pub(super) struct Base {
    pub config: Config,
    pub keys: NodeKeys,
    pub clock: Arc<dyn Clock>,
    pub ledger: Ledger,
    pub cache: Cache,
    pub network: Handle,
    /// The chain that deposits lie on; none pays by unsecured credit.
    pub chain: Option<Link>,
    pub counter: TokenCounter,
    pub front: Tasks,
    pub base: Tasks,
    disk: Tasks,
    pub lock: DirLock,
    /// Opened by the first role that pays: [`Base::paying`].
    pub(super) paying: OnceCell<Paying>,
}

impl Base {
    /// Opens everything; the network listens when this returns.
    ///
    /// # Errors
    /// What is missing or broken, with what to do about it.
    pub async fn start(
        config: Config,
        dir: &DataDir,
        role: &str,
    ) -> anyhow::Result<(Self, Incoming)> {
        let lock = dir.lock(role)?;
        let keys = load_keys(&config, dir)?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let (front, base, disk) = (Tasks::new(), Tasks::new(), Tasks::new());
        let signer = Arc::new(Checkpoints(keys.identity.clone()));
        let settings = crate::ledger::Settings {
            signer: Some(signer),
            ..crate::ledger::Settings::default()
        };
        let (ledger, writer) = Ledger::open(&dir.ledger_db(), Arc::clone(&clock), settings)
            .await
            .context("the ledger cannot be opened")?;
        let stop = disk.cancelled();
        disk.spawn_critical("ledger", async move { Ok(writer.run(stop).await?) });
        let link = chain::open(&config.chain, &ledger, &clock, &keys.payment)?;
        if let Some(link) = &link {
            chain::start(link, &base).await?;
        }
        let cache = Cache::open(&dir.cache_db())
            .await
            .context("the cache cannot be opened")?;
        let known = cache.peers(PEERS_MAX).await.unwrap_or_default();
        let settings = network::Settings {
            network: config.node.network.clone(),
            listen: config.node.listen.clone(),
            bootstrap: config.node.bootstrap.clone(),
            external: config.node.external.clone(),
            known_peers: known.into_iter().map(|p| (p.peer, p.addrs)).collect(),
            server: config.node.dht_server.forced(),
            mdns: config.node.mdns.forced().unwrap_or(true),
            upnp: config.node.upnp,
            dial_timeout: config.buy.timeouts.dial,
            open_timeout: config.buy.timeouts.open,
            ..network::Settings::new(keys.identity.secret_bytes())
        };
        let (handle, incoming, runner) = network::start(settings, Arc::clone(&clock))
            .map_err(|e| Failure::new(FailureKind::Network, e.to_string()))?;
        let stop = base.cancelled();
        base.spawn_critical("network", async move { Ok(runner.run(stop).await?) });
        let counter = TokenCounter::new();
        let this = Self {
            config,
            keys,
            clock,
            ledger,
            cache,
            network: handle,
            chain: link,
            counter,
            front,
            base,
            disk,
            lock,
            paying: OnceCell::new(),
        };
        this.keep_peers();
        Ok((this, incoming))
    }

    /// Loads what tokens are counted with, in the background. Roles that meter call it; a bootstrap
    /// node does without.
    pub fn warm_counter(&self) {
        let warm = self.counter.clone();
        self.front.spawn("vocabularies", async move {
            crate::tasks::off_thread_if(true, move || warm.warm_up()).await;
        });
    }

    /// Windows and limits from the config.
    pub fn windows(&self) -> WindowSettings {
        let payment = &self.config.payment;
        WindowSettings {
            stream_min: payment.window_min,
            stream_max: payment.window_max,
            pair_min: payment.pair_min,
            pair_max: payment.pair_max,
            prepay_max: payment.prepay_max,
        }
    }

    /// The chain that this node pays and is paid on, with the limits of `[payment]`.
    pub fn onchain(&self) -> Option<Onchain> {
        let link = self.chain.clone()?;
        let pay = &self.config.payment;
        let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
        let rules = Rules {
            unconfirmed_max: pay.unconfirmed_max,
            unsafe_max: pay.unsafe_max,
            open_fee: pay.open_fee,
            open_fee_max: pay.open_fee_max,
            deposit_min: pay.deposit_min,
            deposit_max: pay.deposit_max,
            deposit_share_bp: pay.deposit_share.unwrap_or(0),
            challenge_period_s: seconds(pay.challenge_period),
            lifetime_s: pay.lifetime.as_secs(),
            idle_close_ms: u64::try_from(pay.idle_close.as_millis()).unwrap_or(u64::MAX),
            settle_min: pay.settle_min,
            open_ahead: pay.open_ahead,
        };
        Some(Onchain { link, rules })
    }

    /// Runs until `stop` or until a critical task ends, then shuts down in order.
    ///
    /// # Errors
    /// When a critical task had failed.
    pub async fn run_until(self, stop: tokio_util::sync::CancellationToken) -> anyhow::Result<()> {
        let (front, base, disk) = (
            self.front.cancelled(),
            self.base.cancelled(),
            self.disk.cancelled(),
        );
        tokio::select! {
            () = stop.cancelled() => {}
            () = front.cancelled() => {}
            () = base.cancelled() => {}
            () = disk.cancelled() => {}
        }
        self.shutdown().await
    }

    async fn shutdown(self) -> anyhow::Result<()> {
        let front = self.front.shutdown(FRONT_DEADLINE).await;
        self.save_peers().await;
        let base = self.base.shutdown(BASE_DEADLINE).await;
        let disk = self.disk.shutdown(DISK_DEADLINE).await;
        self.cache.close().await;
        disk?;
        // A stream that ran into the deadline was ended; that is what draining means.
        for late in [front, base] {
            match late {
                Err(crate::tasks::TasksError::Late { .. }) | Ok(()) => {}
                Err(failed) => return Err(failed.into()),
            }
        }
        Ok(())
    }

    fn keep_peers(&self) {
        let (network, cache, clock) = (
            self.network.clone(),
            self.cache.clone(),
            Arc::clone(&self.clock),
        );
        let stop = self.base.cancelled();
        self.base.spawn("peers", async move {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(PEERS_INTERVAL) => save(&network, &cache, &*clock).await,
                    () = stop.cancelled() => return,
                }
            }
        });
    }

    async fn save_peers(&self) {
        save(&self.network, &self.cache, &*self.clock).await;
    }
}

async fn save(network: &Handle, cache: &Cache, clock: &dyn Clock) {
    let now_ms = clock.now_ms();
    let row = |(peer, addrs)| CachedPeer {
        peer,
        addrs,
        last_ok_ms: now_ms,
        last_fail_ms: 0,
    };
    let peers: Vec<CachedPeer> = network.known_peers().into_iter().map(row).collect();
    if let Err(error) = cache.put_peers(&peers).await {
        tracing::debug!(%error, "peers not saved");
    }
}

pub(super) fn load_keys(config: &Config, dir: &DataDir) -> anyhow::Result<NodeKeys> {
    let passphrase = config.node.passphrase.read()?;
    let passphrase = passphrase.as_ref().map(|secret| secret.expose().as_str());
    NodeKeys::load(&dir.key_file(), passphrase, config.payment.device).map_err(|error| {
        let missing = matches!(&error, KeysError::File(FileError::Missing { .. }));
        let failure = Failure::new(FailureKind::NotConfigured, error.to_string());
        let hint = format!("node keygen --data-dir {}", dir.path().display());
        if missing {
            failure.hint(hint).into()
        } else {
            failure.into()
        }
    })
}

/// Signs the ledger's checkpoints with the node's identity.
struct Checkpoints(Identity);

impl CheckpointSigner for Checkpoints {
    fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message)
    }
}

/// Offers live in cache.db between runs.
pub(super) struct CachedOffers {
    pub cache: Cache,
    pub clock: Arc<dyn Clock>,
}

impl OfferCache for CachedOffers {
    fn load(&self) -> BoxFuture<'_, Vec<Bytes>> {
        async {
            let rows = self
                .cache
                .offers(self.clock.now_ms())
                .await
                .unwrap_or_default();
            rows.into_iter().map(|row| row.bytes.into()).collect()
        }
        .boxed()
    }
    fn save(&self, offers: Vec<Arc<SignedOffer>>) -> BoxFuture<'_, ()> {
        async move {
            let row = |signed: &Arc<SignedOffer>| CachedOffer {
                hash: signed.hash,
                not_after: signed.offer.not_after,
                bytes: signed.bytes.to_vec(),
            };
            let rows: Vec<CachedOffer> = offers.iter().map(row).collect();
            if let Err(error) = self.cache.put_offers(&rows, self.clock.now_ms()).await {
                tracing::debug!(%error, "offers not saved");
            }
        }
        .boxed()
    }
}
