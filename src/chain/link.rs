//! A chain as a node uses it: one cheap handle over the RPC nodes, the hub, the watcher and the
//! outbox. `node` makes it from the configuration and runs it; `payment` and `wallet` use it.
//!
//! # How it works
//! [`Link::run`] first compares chain id, the hub's code and the token with what they must be, again
//! and again while no RPC node answers, then watches and sends until it is stopped. A wrong chain,
//! hub or token ends it: no waiting repairs a configuration.
//!
//! Readers subscribe: [`Link::events`], [`Link::outcomes`]. Subscribe first, then read what is
//! stored: an event may come twice then, never not at all. A reader that does not read holds up all.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::digest::{HubDomain, TokenDomain};
use super::hub::{self, Hub};
use super::journal::{Journal, Outcome};
use super::outbox::{self, OUTCOMES_QUEUED_MAX, Sender};
use super::watcher::{self, ChainEvent, EVENTS_QUEUED_MAX, Watcher};
use super::{Chain, ChainError};
use crate::types::EvmAddress;

/// Decimals of every token that is paid with: a micro-USD is its smallest unit.
const TOKEN_DECIMALS: u8 = 6;

/// What a link is made of.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The token.
    pub token: EvmAddress,
    /// How logs are read; names the hub.
    pub watch: watcher::Settings,
}

/// How the chain is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// No RPC node has answered yet, so nothing is believed or sent.
    Unchecked(String),
    /// It was checked and answers.
    Good,
    /// It was checked and does not answer now.
    Down(String),
}

/// Passes each item on to everybody who subscribed.
struct Fan<T> {
    readers: Mutex<Vec<mpsc::Sender<T>>>,
    queued_max: usize,
}

impl<T: Clone> Fan<T> {
    const fn new(queued_max: usize) -> Self {
        Self {
            readers: Mutex::new(Vec::new()),
            queued_max,
        }
    }
    fn subscribe(&self) -> mpsc::Receiver<T> {
        let (send, receive) = mpsc::channel(self.queued_max);
        self.readers.lock().push(send);
        receive
    }
    async fn pass(&self, item: T) {
        let readers = self.readers.lock().clone();
        for reader in readers {
            // A reader that is gone wants nothing.
            drop(reader.send(item.clone()).await);
        }
        self.readers.lock().retain(|reader| !reader.is_closed());
    }
    async fn pump(&self, mut from: mpsc::Receiver<T>) {
        while let Some(item) = from.recv().await {
            self.pass(item).await;
        }
    }
}

struct Parts {
    sender: Sender,
    settings: Settings,
    token: OnceLock<TokenDomain>,
    health: watch::Sender<Health>,
    events: Fan<ChainEvent>,
    outcomes: Fan<Outcome>,
}

/// A handle; cheap to clone.
#[derive(Clone)]
pub struct Link(Arc<Parts>);

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("hub", &self.domain()).finish()
    }
}

impl Link {
    /// Watches where `sender` sends; asks nothing yet.
    #[must_use]
    pub fn new(sender: Sender, settings: Settings) -> Self {
        Self(Arc::new(Parts {
            sender,
            settings,
            token: OnceLock::new(),
            health: watch::Sender::new(Health::Unchecked("not asked yet".to_owned())),
            events: Fan::new(EVENTS_QUEUED_MAX),
            outcomes: Fan::new(OUTCOMES_QUEUED_MAX),
        }))
    }

    /// The chain itself, for questions.
    #[must_use]
    pub fn chain(&self) -> &Arc<dyn Chain> {
        self.0.sender.chain()
    }
    /// Chain and hub.
    #[must_use]
    pub fn domain(&self) -> HubDomain {
        self.0.settings.watch.domain
    }
    /// The token's address.
    #[must_use]
    pub fn token(&self) -> EvmAddress {
        self.0.settings.token
    }
    /// What signatures for the token are bound to; none before the chain was checked.
    #[must_use]
    pub fn token_domain(&self) -> Option<&TokenDomain> {
        self.0.token.get()
    }
    /// Sends transactions of this node's key.
    #[must_use]
    pub fn sender(&self) -> &Sender {
        &self.0.sender
    }
    /// What remembers for watcher and outbox.
    #[must_use]
    pub fn journal(&self) -> &Arc<dyn Journal> {
        self.0.sender.journal()
    }
    /// How transactions are sent, what gas may cost.
    #[must_use]
    pub fn send_settings(&self) -> outbox::Settings {
        self.0.sender.settings()
    }
    /// Which hub is watched, from where, and how.
    #[must_use]
    pub fn watch_settings(&self) -> watcher::Settings {
        self.0.settings.watch
    }
    /// Time between looks at the chain.
    #[must_use]
    pub fn poll_every(&self) -> Duration {
        self.0.settings.watch.poll_every
    }
    /// How the chain is, now and from now on.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        self.0.health.subscribe()
    }
    /// Every event from now on, as the watcher stored it.
    #[must_use]
    pub fn events(&self) -> mpsc::Receiver<ChainEvent> {
        self.0.events.subscribe()
    }
    /// What becomes of transactions from now on.
    #[must_use]
    pub fn outcomes(&self) -> mpsc::Receiver<Outcome> {
        self.0.outcomes.subscribe()
    }
    /// A watcher of the hub over the same journal, for a process that catches up once.
    #[must_use]
    pub fn watcher(&self) -> Watcher {
        let (chain, journal) = (self.chain(), self.journal());
        let clock = Arc::clone(self.0.sender.clock());
        let watch = self.0.settings.watch;
        Watcher::new(Arc::clone(chain), Arc::clone(journal), clock, watch)
    }

    /// Compares chain, hub and token with what is configured and compiled in.
    ///
    /// # Errors
    /// [`is_wrong`] tells a configuration that is wrong from a chain that cannot be asked now.
    pub async fn check(&self) -> Result<(), ChainError> {
        let result = self.compare().await;
        self.0.health.send_replace(match &result {
            Ok(()) => Health::Good,
            Err(error) => Health::Unchecked(error.to_string()),
        });
        result
    }

    async fn compare(&self) -> Result<(), ChainError> {
        let (chain, address) = (&**self.chain(), self.token());
        Hub::check(chain, self.domain()).await?;
        let bad = |reason: String| ChainError::BadToken { address, reason };
        if chain.code(address).await?.is_empty() {
            return Err(bad("nothing is there".to_owned()));
        }
        let (name, version, decimals) = match hub::token_domain(chain, address).await {
            Err(error @ (ChainError::Malformed(_) | ChainError::Reverted(_))) => {
                return Err(bad(format!("it is no ERC-3009 token ({error})")));
            }
            other => other?,
        };
        if decimals != TOKEN_DECIMALS {
            return Err(bad(format!("it has {decimals} decimals, not 6")));
        }
        let domain = TokenDomain {
            name,
            version,
            chain_id: self.domain().chain_id,
            token: address,
        };
        // A second check finds the same; the first stays.
        drop(self.0.token.set(domain));
        Ok(())
    }

    /// Checks, watches and sends until `cancel`.
    ///
    /// # Errors
    /// When the journal fails, the configuration is wrong, or the chain contradicts what is final.
    pub async fn run(&self, cancel: CancellationToken) -> Result<(), ChainError> {
        while let Err(error) = self.check().await {
            if is_wrong(&error) {
                return Err(error);
            }
            tracing::debug!(%error, "the chain cannot be checked yet");
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                () = tokio::time::sleep(self.poll_every()) => {}
            }
        }
        let parts = &self.0;
        let (event_send, events) = mpsc::channel(EVENTS_QUEUED_MAX);
        let (outcome_send, outcomes) = mpsc::channel(OUTCOMES_QUEUED_MAX);
        let watcher = self.watcher();
        let faults = watcher.fault();
        let work = async {
            tokio::try_join!(
                watcher.run(event_send, cancel.clone()),
                parts.sender.run(outcome_send, cancel.clone()),
            )
        };
        let passing = async {
            tokio::join!(
                parts.events.pump(events),
                parts.outcomes.pump(outcomes),
                self.follow(faults),
            )
        };
        tokio::select! {
            result = work => result.map(|_| ()),
            // Readers that stand still must not hold up the end.
            () = async { passing.await; std::future::pending().await } => Ok(()),
        }
    }

    async fn follow(&self, mut faults: watch::Receiver<Option<String>>) {
        loop {
            let now = match &*faults.borrow_and_update() {
                Some(fault) => Health::Down(fault.clone()),
                None => Health::Good,
            };
            self.0.health.send_replace(now);
            if faults.changed().await.is_err() {
                return;
            }
        }
    }
}

/// True for what no waiting repairs: another chain, another contract, another kind of token.
#[must_use]
pub const fn is_wrong(error: &ChainError) -> bool {
    matches!(
        error,
        ChainError::WrongChain { .. }
            | ChainError::OtherContract { .. }
            | ChainError::BadToken { .. }
    )
}
