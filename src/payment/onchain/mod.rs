//! Payment on a chain, apart from the two hubs: what is signed ([`paper`]), what the chain shows of a
//! channel ([`standing`]), when to bring it there ([`rules`]), and what a buyer can afford
//! ([`purse`]). All of it is pure; [`Onchain`] is the handle that `node` gives to the hubs.
//!
//! ```text
//! buyer signs Opening ─► OPEN ─► seller: outbox ─► chain ─► watcher ─► Standing ─► ceiling, SYNC
//! buyer signs vouchers ────────► seller: Rules::due ─► settle, close ─► watcher ─► purse
//! ```

pub mod paper;
pub mod purse;
pub mod rules;
pub mod standing;

pub use purse::{Purse, Split};
pub use rules::{Due, Rules, SellFacts};
pub use standing::{ChannelView, Level, Standing};

use super::PaymentError;
use super::journal::kept_event;
use crate::chain::ChainError;
use crate::chain::hub::{Hub, token_balance};
use crate::chain::link::{Health, Link};
use crate::chain::watcher::ChainEvent;
use crate::ledger::{ChannelRow, Ledger};
use crate::protocol::terms::ChainTerms;
use crate::protocol::voucher::HubChannel;
use crate::types::{ChannelId, EvmAddress, MicroUsd, UnixMs};

/// A channel's `mode` in the ledger when it is on a chain.
pub const MODE_ON_CHAIN: &str = "channel";
/// Its mode when it is a book of IOUs.
pub const MODE_ON_CREDIT: &str = "credit";
/// What people are told of that mode.
const CREDIT_IN_WORDS: &str = "credit (unsecured)";

/// How a node pays or is paid, in words.
#[must_use]
pub fn mode_in_words(onchain: Option<&Onchain>) -> String {
    onchain.map_or_else(|| CREDIT_IN_WORDS.to_owned(), Onchain::mode)
}

/// The chain as payment uses it. Cheap to clone. Nothing in a request's way waits for it.
#[derive(Clone, Debug)]
pub struct Onchain {
    /// RPC nodes, watcher and outbox.
    pub link: Link,
    /// Limits and times.
    pub rules: Rules,
}

impl Onchain {
    /// What a seller's terms say of this chain.
    #[must_use]
    pub fn terms(&self, operator: EvmAddress) -> ChainTerms {
        ChainTerms {
            domain: self.link.domain(),
            token: self.link.token(),
            operator,
            challenge_period_s: self.rules.challenge_period_s,
            deposit_min: self.rules.open_fee.saturating_add(WORTH_OPENING),
            unconfirmed_max: self.rules.unconfirmed_max,
        }
    }

    /// How this node pays, in words: the mode stays what it is when the chain does not answer.
    #[must_use]
    pub fn mode(&self) -> String {
        match &*self.link.health().borrow() {
            Health::Good => MODE_ON_CHAIN.to_owned(),
            Health::Unchecked(why) | Health::Down(why) => format!(
                "{MODE_ON_CHAIN}; the chain does not answer ({why}): open channels go on up to \
                 their deposit"
            ),
        }
    }

    /// What an account's vault and wallet hold now.
    ///
    /// # Errors
    /// When the chain cannot be asked or something else lies at the hub's address.
    pub async fn balances(&self, account: EvmAddress) -> Result<Split, ChainError> {
        let (chain, token) = (self.link.chain().as_ref(), self.link.token());
        let hub = Hub::check(chain, self.link.domain()).await?;
        Ok(Split {
            vault: hub.vault(token, account).await?,
            wallet: token_balance(chain, token, account).await?,
        })
    }
}

/// What must be left of a deposit after the fee of the opening: a channel for less is not worth the
/// look at it.
const WORTH_OPENING: MicroUsd = MicroUsd(10_000);

/// A channel on a chain with what the chain shows of it.
#[derive(Clone, Debug)]
pub struct OnChannel {
    /// The channel.
    pub channel: HubChannel,
    /// The events that stand.
    pub standing: Standing,
    /// What they add up to.
    pub view: ChannelView,
}

impl OnChannel {
    /// A channel of which the chain has said nothing yet.
    #[must_use]
    pub fn new(channel: HubChannel) -> Self {
        Self {
            channel,
            standing: Standing::default(),
            view: ChannelView::default(),
        }
    }

    /// Takes in an event; true when the picture changed.
    pub fn apply(&mut self, event: &ChainEvent) -> bool {
        if !self.standing.apply(event) {
            return false;
        }
        let before = std::mem::replace(&mut self.view, self.standing.view());
        before != self.view
    }

    /// True when it is over, or can never begin: its opening is void and the chain does not show it.
    #[must_use]
    pub fn is_over(&self, now_ms: UnixMs) -> bool {
        let void = now_ms / 1_000
            >= self
                .channel
                .opening
                .valid_before_s
                .saturating_add(VOID_GRACE_S);
        self.view.closed > Level::No || (void && self.view.opened == Level::No)
    }

    /// The channel of a row with what the ledger knows of its events; none for a row of another
    /// mode.
    ///
    /// # Errors
    /// When the ledger cannot be read or the row is malformed.
    pub async fn load(ledger: &Ledger, row: &ChannelRow) -> Result<Option<Self>, PaymentError> {
        if row.mode != MODE_ON_CHAIN {
            return Ok(None);
        }
        let refused =
            |error: crate::protocol::DecodeError| PaymentError::Refused(error.to_string());
        let channel = HubChannel::from_bytes(&row.descriptor).map_err(refused)?;
        let mut this = Self::new(channel);
        this.standing = Self::standing_of(ledger, &row.channel).await?;
        this.view = this.standing.view();
        Ok(Some(this))
    }

    /// The events of a channel that this ledger knows, whether it has a row or not.
    ///
    /// # Errors
    /// When the ledger cannot be read or an event is malformed.
    pub async fn standing_of(ledger: &Ledger, id: &ChannelId) -> Result<Standing, PaymentError> {
        let mut standing = Standing::default();
        for event in ledger.channel_events(id).await? {
            let kept = kept_event(event).map_err(|e| PaymentError::Refused(e.to_string()))?;
            standing.apply(&if kept.is_confirmed {
                ChainEvent::Confirmed(kept.log)
            } else {
                ChainEvent::Seen(kept.log)
            });
        }
        Ok(standing)
    }
}

/// A transaction mined just before its opening is void may be seen this much later, seconds.
const VOID_GRACE_S: u64 = 600;
