//! The seller's side of money: one [`PayeePair`] per buyer that opened a channel.
//!
//! [`PayeeHub::serve_session`] answers a buyer's session stream (`session`). A request asks its
//! pair to [`PayeePair::admit`] it, to [`PayeePair::deliver`] more of the answer, and to
//! [`PayeePair::end`] it with a receipt that is repeated until the buyer's ACCEPT is durable. All
//! buyers together share one `CreditPool`: keys are free, so the sum is what bounds the gift.

pub mod on_chain;
mod open;
mod open_on_chain;
mod pair;
mod session;
pub mod state;
mod treasurer;
pub mod tried;
mod waits;
mod write_offs;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

pub use pair::{AdmitError, PayeePair};
pub use state::{Ended, PayeeState};

use self::on_chain::VOUCHERS_KEPT;
use self::waits::Waits;
use self::write_offs::WriteOffs;
use super::PaymentError;
use super::onchain::{Level, OnChannel, Onchain, mode_in_words, paper};
use super::window::WindowSettings;
use crate::chain::hub::Claim;
use crate::keys::NodeKeys;
use crate::ledger::{ChannelRow, ChannelState, Ledger, Role, Row, SettlementRow};
use crate::network::Stream;
use crate::protocol::SignedTerms;
use crate::tasks::Tasks;
use crate::types::{ChannelId, Clock, MicroUsd, PeerId, UnixMs};

/// What the payee needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The network's name.
    pub network: String,
    /// Windows and limits.
    pub windows: WindowSettings,
    /// Unsecured credit for each buyer.
    pub credit_limit: MicroUsd,
    /// Unsecured credit for all buyers together.
    pub credit_total: MicroUsd,
    /// Buyers with channels remembered at once; more are refused.
    pub buyers_max: usize,
    /// The chain on which channels are taken; none takes unsecured credit only.
    pub onchain: Option<Onchain>,
}

/// All pairs of this seller. Cheap to clone.
#[derive(Clone)]
pub struct PayeeHub {
    shared: Arc<Shared>,
}

pub(super) struct Shared {
    ledger: Ledger,
    keys: NodeKeys,
    clock: Arc<dyn Clock>,
    tasks: Tasks,
    settings: Settings,
    terms: SignedTerms,
    pool: Arc<CreditPool>,
    pairs: Mutex<HashMap<PeerId, Arc<PayeePair>>>,
    /// Channels on a chain whose buyers have opened others since.
    leaving: Mutex<Vec<Arc<PayeePair>>>,
    /// What buyers of an earlier life of this node did not accept; a new channel starts with it.
    write_offs: Mutex<HashMap<PeerId, WriteOffs>>,
    /// Served on trust for openings that the chain refused.
    lost_on_trust: Mutex<WriteOffs>,
    /// What cannot be brought to the chain now.
    waits: Mutex<Waits>,
    /// Something may be due on the chain.
    due: Notify,
}

impl Shared {
    fn all_pairs(&self) -> Vec<Arc<PayeePair>> {
        let mut all: Vec<_> = self.pairs.lock().values().cloned().collect();
        all.extend(self.leaving.lock().iter().cloned());
        all
    }
    /// What is over waits for nothing.
    fn forget_waits(&self) {
        let all = self.all_pairs();
        let is_there = |id: &ChannelId| {
            let mut found = all.iter().filter(|pair| pair.channel() == *id);
            found.any(|pair| pair.view().is_some_and(|view| view.closed == Level::No))
        };
        self.waits.lock().keep(is_there);
    }
    /// Every channel of a buyer, the present one first.
    fn all_of(&self, buyer: &PeerId) -> Vec<Arc<PayeePair>> {
        let mut all: Vec<_> = self.pairs.lock().get(buyer).cloned().into_iter().collect();
        let leaving = self.leaving.lock();
        all.extend(leaving.iter().filter(|pair| pair.buyer() == buyer).cloned());
        all
    }
    /// A buyer's channels but this one: they have no session of their own.
    fn others_of(&self, pair: &PayeePair) -> Vec<Arc<PayeePair>> {
        let mut others = self.all_of(pair.buyer());
        others.retain(|other| other.channel() != pair.channel());
        others
    }
}

/// What all buyers together owe, unsecured.
#[derive(Debug, Default)]
pub(super) struct CreditPool {
    owed: AtomicU64,
    total: u64,
}

impl CreditPool {
    fn exhausted(&self) -> bool {
        self.owed.load(Ordering::Relaxed) >= self.total
    }
    fn add(&self, amount: MicroUsd) {
        let _ = self
            .owed
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |owed| {
                Some(owed.saturating_add(amount.0))
            });
    }
    fn pay(&self, amount: MicroUsd) {
        let _ = self
            .owed
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |owed| {
                Some(owed.saturating_sub(amount.0))
            });
    }
}

impl PayeeHub {
    /// Restores every channel from the ledger.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn restore(
        ledger: Ledger,
        keys: NodeKeys,
        clock: Arc<dyn Clock>,
        tasks: Tasks,
        settings: Settings,
        terms: SignedTerms,
    ) -> Result<Self, PaymentError> {
        let pool = Arc::new(CreditPool {
            owed: AtomicU64::new(0),
            total: settings.credit_total.0,
        });
        let mut pairs: HashMap<PeerId, Arc<PayeePair>> = HashMap::new();
        let mut leaving = Vec::new();
        let mut raised = Vec::new();
        let write_offs = earlier_write_offs(&ledger, clock.now_ms()).await?;
        let onchain = settings.onchain.clone();
        // First the ear, then the memory: an event may come twice so, never not at all.
        let events = onchain.as_ref().map(|onchain| onchain.link.events());
        for state in ledger.load(Role::Sell).await? {
            if let Some(on) = OnChannel::load(&ledger, &state.row).await? {
                let Some(onchain) = &onchain else { continue };
                let is_closed = on.view.closed == Level::Final;
                if is_closed && state.unfinished.is_empty() {
                    continue;
                }
                let (peer, rules) = (state.row.peer, onchain.rules);
                let kept = u32::try_from(VOUCHERS_KEPT).unwrap_or(u32::MAX);
                let vouchers = ledger.vouchers(&state.row.channel, None, kept).await?;
                let pair = PayeePair::restore_on_chain(state, on, rules, vouchers, &settings);
                let pair = Arc::new(pair);
                if is_closed {
                    // Nothing is left on the chain, but the buyer has not accepted all yet.
                    leaving.push(pair);
                } else {
                    leaving.extend(pairs.insert(peer, pair));
                }
                continue;
            }
            let owed = state.accepted_sum.saturating_sub(state.settlements_sum);
            pool.add(owed);
            let deposit = settings.credit_limit.saturating_add(state.settlements_sum);
            raised.extend(raised_row(&state, deposit, clock.now_ms()));
            let peer = state.row.peer;
            match PayeePair::restore(state, deposit, &settings, Arc::clone(&pool)) {
                Ok(pair) => {
                    pairs.entry(peer).or_insert_with(|| Arc::new(pair));
                }
                Err(error) => tracing::error!(%peer, %error, "channel row is unreadable"),
            }
        }
        if !raised.is_empty() {
            ledger.submit(raised).await?;
        }
        for (buyer, pair) in &pairs {
            if let Some(offs) = write_offs.get(buyer) {
                pair.state.lock().write_offs = *offs;
            }
        }
        let pairs = Mutex::new(pairs);
        let shared = Arc::new(Shared {
            ledger,
            keys,
            clock,
            tasks,
            settings,
            terms,
            pool,
            pairs,
            leaving: Mutex::new(leaving),
            write_offs: Mutex::new(write_offs),
            lost_on_trust: Mutex::default(),
            waits: Mutex::default(),
            due: Notify::new(),
        });
        if let (Some(onchain), Some(events)) = (onchain, events) {
            let treasury = Arc::clone(&shared);
            shared.tasks.spawn_critical("payee-treasurer", async move {
                Ok(treasurer::run(treasury, onchain, events).await?)
            });
        }
        Ok(Self { shared })
    }

    /// Answers one session stream until it ends; a newer one from the same buyer replaces it.
    pub async fn serve_session(&self, buyer: PeerId, stream: Stream) {
        if let Err(error) = session::serve(&self.shared, buyer, stream).await {
            tracing::debug!(%buyer, %error, "session ended");
        }
    }

    /// The pair with `buyer`, once it opened a channel.
    #[must_use]
    pub fn pair(&self, buyer: &PeerId) -> Option<Arc<PayeePair>> {
        self.shared.pairs.lock().get(buyer).cloned()
    }

    /// Every pair.
    #[must_use]
    pub fn pairs(&self) -> Vec<Arc<PayeePair>> {
        self.shared.pairs.lock().values().cloned().collect()
    }

    /// How this node is paid, in words.
    #[must_use]
    pub fn mode(&self) -> String {
        mode_in_words(self.shared.settings.onchain.as_ref())
    }

    /// What cannot be brought to the chain now and why, in words; none when nothing waits.
    #[must_use]
    pub fn waits(&self) -> Option<String> {
        self.shared.waits.lock().in_words()
    }

    /// Channels that are to be closed and for which this node has no gas: somebody else may send it.
    #[must_use]
    pub fn without_gas(&self) -> Vec<ChannelId> {
        self.shared.waits.lock().without_gas()
    }

    /// The fair last claim on a channel: over what was delivered, not over what was prepaid. None where
    /// the channel is not here.
    #[must_use]
    pub fn last_claim(&self, channel: &ChannelId) -> Option<Claim> {
        let all = self.shared.all_pairs();
        let pair = all.iter().find(|pair| pair.channel() == *channel)?;
        let state = pair.state.lock();
        let one = state.on_chain.as_ref()?;
        Some(paper::claim(
            &one.on.channel.descriptor,
            state.claimed(true),
        ))
    }

    /// Ends the channel with `buyer`: when nothing runs on it any more, its last voucher is brought to
    /// the chain and the rest goes back. Says whether there is one to end.
    pub fn close(&self, buyer: &PeerId) -> bool {
        let Some(pair) = self.pair(buyer) else {
            return false;
        };
        let mut state = pair.state.lock();
        let Some(one) = &mut state.on_chain else {
            return false;
        };
        one.ending = true;
        drop(state);
        self.shared.due.notify_one();
        true
    }

    /// Books a payment that `buyer` made outside; its deposit rises by it and it is told.
    ///
    /// # Errors
    /// When the buyer has no channel here, or the ledger cannot be written.
    pub async fn settle(
        &self,
        buyer: &PeerId,
        amount: MicroUsd,
        note: String,
    ) -> Result<MicroUsd, PaymentError> {
        let pair = self.pair(buyer).ok_or_else(|| {
            PaymentError::Refused(format!("{buyer} never opened a channel with this seller"))
        })?;
        if pair.view().is_some() {
            return Err(PaymentError::Refused(format!(
                "{buyer} pays on the chain; a payment outside is for unsecured credit"
            )));
        }
        let row = SettlementRow {
            at_ms: self.shared.clock.now_ms(),
            role: Role::Sell,
            channel: pair.channel(),
            peer: *buyer,
            amount,
            note,
        };
        pair.book_channel(&self.shared.ledger).await?;
        self.shared
            .ledger
            .commit(vec![Row::Settlement(row)])
            .await?;
        self.shared.pool.pay(amount.min(pair.owed()));
        let deposit = pair.add_settlement(amount);
        session::tell_deposit(&pair).await;
        Ok(deposit)
    }
}

/// What each buyer did not accept, as far as it is not forgotten by now.
async fn earlier_write_offs(
    ledger: &Ledger,
    now_ms: UnixMs,
) -> Result<HashMap<PeerId, WriteOffs>, PaymentError> {
    let since_ms = now_ms.saturating_sub(write_offs::REMEMBERED_MS);
    let mut all: HashMap<PeerId, WriteOffs> = HashMap::new();
    for (buyer, at_ms, refused) in ledger.refused_since(since_ms).await? {
        all.entry(buyer).or_default().add(refused, at_ms);
    }
    Ok(all)
}

/// The row that a channel needs when more credit is given than its rows allow: it goes ahead of the
/// first voucher that makes use of it. Less credit needs none; what was promised before stands.
#[must_use]
pub fn raised_row(channel: &ChannelState, deposit: MicroUsd, at_ms: UnixMs) -> Option<Row> {
    (deposit > channel.limit).then(|| {
        Row::Channel(ChannelRow {
            at_ms,
            deposit,
            ..channel.row.clone()
        })
    })
}
