//! The buyer's side of money: one [`Pair`] per seller, found or opened by [`PayerHub::pair`].
//!
//! A pair owns the channel machine, a bookkeeper task (`book`: makes finals and vouchers durable,
//! then sends ACCEPT and VOUCHER) and, while connected, a session (`session`: handshake, SYNC,
//! receipts). Attempts call [`Pair::begin`], [`Pair::opened`], [`Pair::start`], [`Pair::receive`] and one of
//! [`Pair::finish`] (cost known) or [`Pair::park`] (in doubt, settled by the next SYNC).

mod book;
pub mod doubt;
mod funding;
mod pair;
mod session;
pub mod state;
mod tend;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use parking_lot::Mutex;
use tokio::time::Instant;

pub use pair::{Pair, PairSnapshot, Spending};
pub use state::PayerState;

use self::funding::Funds;
use self::session::Wish;
use super::PaymentError;
use super::onchain::{Level, OnChannel, Onchain, mode_in_words};
use super::window::WindowSettings;
use crate::keys::NodeKeys;
use crate::ledger::{ChannelState, Ledger, Role};
use crate::network::Handle;
use crate::tasks::Tasks;
use crate::types::{ChannelId, Clock, MicroUsd, PeerId};

/// Pairs with something in doubt are looked at this often.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(5);
/// A seller that cannot be reached is tried again after twice the time, up to this.
const RECONCILE_PAUSE_MAX: Duration = Duration::from_secs(60);
/// Sellers reconnected at once; one that does not answer holds up no other.
const RECONCILE_AT_ONCE: usize = 8;

/// The start waits this long for what vault and wallet hold.
const FIRST_READ: Duration = Duration::from_secs(3);

/// A seller that was asked for the end has this long to bring it to the chain, ms: gas may be dear
/// for a while, and the chain's own way takes a challenge period more.
const STUCK_MS: u64 = 3_600_000;

/// What the payer needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The network's name.
    pub network: String,
    /// Windows and limits.
    pub windows: WindowSettings,
    /// The whole handshake of a session, dial included.
    pub handshake_timeout: Duration,
    /// Which voucher key this is; part of every channel's salt on a chain.
    pub device: u32,
    /// The chain that deposits lie on; none pays by unsecured credit.
    pub onchain: Option<Onchain>,
}

/// A buyer's money outside of channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wallet {
    /// In the hub.
    pub vault: MicroUsd,
    /// At its own address.
    pub wallet: MicroUsd,
    /// Of both, what is not signed away for channels that the chain does not show yet.
    pub free: MicroUsd,
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
    funds: Option<Funds>,
    pairs: Mutex<HashMap<PeerId, Arc<Pair>>>,
}

impl Shared {
    fn all_pairs(&self) -> Vec<Arc<Pair>> {
        self.pairs.lock().values().cloned().collect()
    }
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
        let onchain = settings.onchain.clone();
        // First the ear, then the memory: an event may come twice so, never not at all.
        let events = onchain.as_ref().map(|onchain| onchain.link.events());
        let channels = ledger.load(Role::Buy).await?;
        let device = settings.device;
        let shared = Arc::new(Shared {
            ledger,
            network,
            keys,
            clock,
            tasks,
            spending,
            settings,
            funds: onchain.map(|onchain| Funds::new(onchain, device)),
            pairs: Mutex::new(HashMap::new()),
        });
        let hub = Self { shared };
        for state in channels {
            hub.adopt(state).await?;
        }
        if let Some(funds) = &hub.shared.funds {
            // A first request may open a channel at once. A chain that is down stops nobody.
            let read = tend::read_purse(&hub.shared, funds);
            let _ = tokio::time::timeout(FIRST_READ, read).await;
        }
        if let Some(events) = events {
            let shared = Arc::clone(&hub.shared);
            hub.shared
                .tasks
                .spawn_critical("payer-channels", async move {
                    Ok(tend::run(shared, events).await?)
                });
        }
        let reconciler = hub.clone();
        hub.shared.tasks.spawn(
            "payer-reconcile",
            async move { reconciler.reconcile().await },
        );
        Ok(hub)
    }

    /// Takes up a channel of an earlier life; one that can pay no more leaves only its attempts.
    async fn adopt(&self, state: ChannelState) -> Result<(), PaymentError> {
        let now_ms = self.shared.clock.now_ms();
        let on_chain = OnChannel::load(&self.shared.ledger, &state.row).await?;
        let pair = self.get_or_make(state.row.peer);
        let is_over = on_chain.as_ref().is_some_and(|on| on.is_over(now_ms));
        let is_our_mode = on_chain.is_some() == self.shared.funds.is_some();
        // One that is over is named once more where something may be in doubt on it, unless a later
        // one stands.
        let is_needed =
            !is_over || !state.unfinished.is_empty() || state::is_recent(&state, now_ms);
        let has_another = !pair.state.lock().is_spent(now_ms);
        if !is_our_mode || !is_needed || (is_over && has_another) {
            pair.adopt_rest(state, on_chain.is_some());
            return Ok(());
        }
        if let (Some(funds), Some(on_chain)) = (&self.shared.funds, &on_chain) {
            funding::remember(funds, &state.row, on_chain, now_ms);
        }
        pair.adopt(state, on_chain, now_ms);
        Ok(())
    }

    /// The pair with `seller`, its session up for orders over the connection that these will take. Waits for the handshake when there is none
    /// yet; opens a channel where none stands.
    ///
    /// # Errors
    /// When the seller cannot be reached or refuses the session, or nothing is left for a channel.
    pub async fn pair(&self, seller: &PeerId) -> Result<Arc<Pair>, PaymentError> {
        let pair = self.get_or_make(*seller);
        if !pair.takes_orders() || session::is_stranded(&self.shared, &pair) {
            session::connect(&self.shared, &pair, Wish::Order).await?;
        }
        Ok(pair)
    }

    /// How many sellers this node keeps channels with before they are needed; 0 without a chain, and
    /// while little is left.
    #[must_use]
    pub fn opens_ahead(&self) -> usize {
        let Some(funds) = &self.shared.funds else {
            return 0;
        };
        let free = funds.purse.lock().free().unwrap_or_default();
        funds.onchain.rules.ahead(free)
    }

    /// Opens a channel with a seller that may be needed soon; never in a request's way. Says whether
    /// one was opened: none where one stands, or where little is left.
    ///
    /// # Errors
    /// When the seller cannot be reached or refuses.
    pub async fn open_ahead(&self, seller: &PeerId) -> Result<bool, PaymentError> {
        let now_ms = self.shared.clock.now_ms();
        let known = self.known(seller);
        let stands = known.is_some_and(|pair| !pair.state.lock().is_spent(now_ms));
        if stands || self.opens_ahead() == 0 {
            return Ok(false);
        }
        self.pair(seller).await.map(|_| true)
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

    /// Asks a seller to end its channel: at once when nothing runs, else when it has ended. Says
    /// whether there is one to end.
    pub fn close(&self, seller: &PeerId) -> bool {
        let Some(pair) = self.known(seller) else {
            return false;
        };
        let mut state = pair.state.lock();
        let is_live = state.on_chain.as_ref().is_some_and(|on| on.view.is_live());
        if is_live {
            state.ending = true;
            state.asked_close_ms = 0;
        }
        is_live
    }

    /// Channels whose end was asked for long ago and that their sellers do not close.
    #[must_use]
    pub fn stuck(&self) -> Vec<ChannelId> {
        let now_ms = self.shared.clock.now_ms();
        let stuck = |pair: &Arc<Pair>| {
            let state = pair.state.lock();
            let view = state.on_chain.as_ref()?.view;
            let waits = view.is_live() && view.closing == Level::No && state.ending_ms > 0;
            let is_long = now_ms.saturating_sub(state.ending_ms) > STUCK_MS;
            state.channel().filter(|_| waits && is_long)
        };
        self.shared.all_pairs().iter().filter_map(stuck).collect()
    }

    /// What vault and wallet hold and what of it is signed away; none in credit mode or before the
    /// chain has answered.
    #[must_use]
    pub fn wallet(&self) -> Option<Wallet> {
        let purse = self.shared.funds.as_ref()?.purse.lock();
        let read = purse.read()?;
        Some(Wallet {
            vault: read.vault,
            wallet: read.wallet,
            free: purse.free()?,
        })
    }

    /// True when nothing is left: not in vault and wallet, and not in any channel.
    #[must_use]
    pub fn is_broke(&self) -> bool {
        let in_channels = self.shared.all_pairs().iter().any(|pair| {
            let state = pair.state.lock();
            let is_live = state.on_chain.as_ref().is_some_and(|on| on.view.is_live());
            is_live && state.machine().headroom() > MicroUsd::ZERO
        });
        let least = self
            .shared
            .funds
            .as_ref()
            .map(|funds| funds.onchain.rules.open_fee);
        let is_empty = self
            .wallet()
            .zip(least)
            .is_some_and(|(wallet, least)| wallet.vault.saturating_add(wallet.wallet) <= least);
        is_empty && !in_channels
    }

    /// How this node pays, in words.
    #[must_use]
    pub fn mode(&self) -> String {
        mode_in_words(self.shared.funds.as_ref().map(|funds| &funds.onchain))
    }

    /// True in a node that pays on a chain.
    #[must_use]
    pub fn pays_on_chain(&self) -> bool {
        self.shared.funds.is_some()
    }

    fn get_or_make(&self, seller: PeerId) -> Arc<Pair> {
        let mut pairs = self.shared.pairs.lock();
        if let Some(pair) = pairs.get(&seller) {
            return Arc::clone(pair);
        }
        let spending = Arc::clone(&self.shared.spending);
        let pair = Pair::new(seller, self.shared.settings.windows, spending);
        pair.state.lock().gives_no_credit = self.shared.funds.is_some();
        let pair = Arc::new(pair);
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
        if pair.is_up() && !session::is_stranded(&self.shared, &pair) {
            session::sync_again(&pair).await;
            return (seller, true);
        }
        // Never a new channel: what is in doubt is settled over the one it was promised on.
        let connected = session::connect(&self.shared, &pair, Wish::Settle).await;
        if let Err(error) = &connected {
            tracing::debug!(%seller, %error, "reconcile later");
        }
        (seller, connected.is_ok())
    }
}
