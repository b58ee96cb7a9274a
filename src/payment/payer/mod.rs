//! The buyer's side of money: one [`Pair`] per seller, found or opened by [`PayerHub::pair`].
//!
//! A pair owns the channel machine, a bookkeeper task (`book`: makes finals and vouchers durable,
//! then sends ACCEPT and VOUCHER) and, while connected, a session (`session`: handshake, SYNC,
//! receipts). Attempts call [`Pair::begin`], [`Pair::start`], [`Pair::receive`] and one of
//! [`Pair::finish`] (cost known) or [`Pair::park`] (in doubt, settled by the next SYNC).

mod book;
pub mod doubt;
mod pair;
mod session;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

pub use pair::{Pair, PairSnapshot};

use super::PaymentError;
use super::window::WindowSettings;
use crate::keys::NodeKeys;
use crate::ledger::{Ledger, Role};
use crate::network::Handle;
use crate::tasks::Tasks;
use crate::types::{Clock, PeerId};

/// Pairs with something in doubt are reconnected this often.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(5);

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
        settings: Settings,
    ) -> Result<Self, PaymentError> {
        let channels = ledger.load(Role::Buy).await?;
        let shared = Arc::new(Shared {
            ledger,
            network,
            keys,
            clock,
            tasks,
            settings,
            pairs: Mutex::new(HashMap::new()),
        });
        let hub = Self { shared };
        for state in channels {
            let pair = hub.get_or_make(state.row.peer);
            pair.adopt(state);
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
        let pair = Arc::new(Pair::new(seller, self.shared.settings.windows));
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
        loop {
            for pair in self.pairs() {
                if pair.in_doubt()
                    && !pair.is_up()
                    && let Err(error) = session::connect(&self.shared, &pair).await
                {
                    tracing::debug!(seller = %pair.seller(), %error, "reconcile later");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(RECONCILE_INTERVAL) => {}
                () = cancelled.cancelled() => return,
            }
        }
    }
}
