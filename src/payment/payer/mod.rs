//! The buyer's side of money: one [`Pair`] per seller, found or opened by [`PayerHub::pair`].
//!
//! A pair owns the channel machine, a bookkeeper task (`book`: makes finals and vouchers durable,
//! then sends ACCEPT and VOUCHER) and, while connected, a session (`session`: handshake, SYNC,
//! receipts). Attempts call [`Pair::begin`], [`Pair::opened`], [`Pair::start`], [`Pair::receive`] and one of
//! [`Pair::finish`] (cost known) or [`Pair::park`] (in doubt, settled by the next SYNC).

mod book;
pub mod doubt;
mod pair;
mod session;
pub mod state;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use parking_lot::Mutex;
use tokio::time::Instant;

pub use pair::{Pair, PairSnapshot, Spending};
pub use state::PayerState;

use super::PaymentError;
use super::window::WindowSettings;
use crate::keys::NodeKeys;
use crate::ledger::{Ledger, Role};
use crate::network::Handle;
use crate::tasks::Tasks;
use crate::types::{Clock, PeerId};

/// Pairs with something in doubt are looked at this often.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(5);
/// A seller that cannot be reached is tried again after twice the time, up to this.
const RECONCILE_PAUSE_MAX: Duration = Duration::from_secs(60);
/// Sellers reconnected at once; one that does not answer holds up no other.
const RECONCILE_AT_ONCE: usize = 8;

/// What the payer needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The network's name.
    pub network: String,
    /// Windows and limits.
    pub windows: WindowSettings,
    /// The whole handshake of a session, dial included.
    pub handshake_timeout: Duration,
}

/// All pairs of this buyer. Cheap to clone.
#[derive(Clone)]
pub struct PayerHub {
    shared: Arc<Shared>,
}

pub(super) struct Shared {
    ledger: Ledger,
    network: Handle,
    keys: NodeKeys,
    clock: Arc<dyn Clock>,
    tasks: Tasks,
    spending: Arc<dyn Spending>,
    settings: Settings,
    pairs: Mutex<HashMap<PeerId, Arc<Pair>>>,
}

impl PayerHub {
    /// Restores every pair from the ledger and starts reconciling what is in doubt.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn restore(
        ledger: Ledger,
        network: Handle,
        keys: NodeKeys,
        clock: Arc<dyn Clock>,
        tasks: Tasks,
        spending: Arc<dyn Spending>,
        settings: Settings,
    ) -> Result<Self, PaymentError> {
        let channels = ledger.load(Role::Buy).await?;
        let shared = Arc::new(Shared {
            ledger,
            network,
            keys,
            clock,
            tasks,
            spending,
            settings,
            pairs: Mutex::new(HashMap::new()),
        });
        let hub = Self { shared };
        for state in channels {
            let pair = hub.get_or_make(state.row.peer);
            pair.adopt(state, hub.shared.clock.now_ms());
        }
        let reconciler = hub.clone();
        hub.shared.tasks.spawn(
            "payer-reconcile",
            async move { reconciler.reconcile().await },
        );
        Ok(hub)
    }

    /// The pair with `seller`, its session up. Waits for the handshake when there is none yet.
    ///
    /// # Errors
    /// When the seller cannot be reached or refuses the session.
    pub async fn pair(&self, seller: &PeerId) -> Result<Arc<Pair>, PaymentError> {
        let pair = self.get_or_make(*seller);
        if !pair.is_up() {
            session::connect(&self.shared, &pair).await?;
        }
        Ok(pair)
    }

    /// The pair with `seller` as far as it is known, without connecting.
    #[must_use]
    pub fn known(&self, seller: &PeerId) -> Option<Arc<Pair>> {
        self.shared.pairs.lock().get(seller).cloned()
    }

    /// Every pair.
    #[must_use]
    pub fn pairs(&self) -> Vec<Arc<Pair>> {
        self.shared.pairs.lock().values().cloned().collect()
    }

    fn get_or_make(&self, seller: PeerId) -> Arc<Pair> {
        let mut pairs = self.shared.pairs.lock();
        if let Some(pair) = pairs.get(&seller) {
            return Arc::clone(pair);
        }
        let spending = Arc::clone(&self.shared.spending);
        let pair = Arc::new(Pair::new(seller, self.shared.settings.windows, spending));
        pairs.insert(seller, Arc::clone(&pair));
        drop(pairs);
        let (shared, kept) = (Arc::clone(&self.shared), Arc::clone(&pair));
        self.shared.tasks.spawn_critical("payer-book", async move {
            Ok(book::keep(shared, kept).await?)
        });
        pair
    }

    async fn reconcile(&self) {
        let cancelled = self.shared.tasks.cancelled();
        let mut pauses: HashMap<PeerId, (Instant, Duration)> = HashMap::new();
        loop {
            let now = Instant::now();
            let mut due = self.pairs();
            due.retain(|pair| {
                let rested = pauses
                    .get(pair.seller())
                    .is_none_or(|(until, _)| *until <= now);
                pair.in_doubt() && rested
            });
            let tried: Vec<(PeerId, bool)> = tokio::select! {
                tried = futures::stream::iter(due)
                    .map(|pair| self.reconcile_one(pair))
                    .buffer_unordered(RECONCILE_AT_ONCE)
                    .collect() => tried,
                () = cancelled.cancelled() => return,
            };
            for (seller, reached) in tried {
                if reached {
                    pauses.remove(&seller);
                    continue;
                }
                let pause = pauses.get(&seller).map_or(RECONCILE_INTERVAL, |(_, last)| {
                    last.saturating_mul(2).min(RECONCILE_PAUSE_MAX)
                });
                pauses.insert(seller, (Instant::now() + pause, pause));
            }
            tokio::select! {
                () = tokio::time::sleep(RECONCILE_INTERVAL) => {}
                () = cancelled.cancelled() => return,
            }
        }
    }

    /// Brings the session up, or asks again on the one that stands. Says whether it stands.
    async fn reconcile_one(&self, pair: Arc<Pair>) -> (PeerId, bool) {
        let seller = *pair.seller();
        if pair.is_up() {
            session::sync_again(&pair).await;
            return (seller, true);
        }
        let connected = session::connect(&self.shared, &pair).await;
        if let Err(error) = &connected {
            tracing::debug!(%seller, %error, "reconcile later");
        }
        (seller, connected.is_ok())
    }
}
