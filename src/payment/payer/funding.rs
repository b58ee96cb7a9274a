//! A buyer's channels on a chain: opened and raised by signature, closed when they are idle, and the
//! money that is left for them. The buyer sends no transaction and needs no gas.
//!
//! Nothing here is in a request's way but the first opening with a seller, which costs one commit
//! and no question to the chain: what vault and wallet hold was read before.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::Shared;
use super::pair::Pair;
use super::state::TopUpPlan;
use crate::chain::hub::Hub;
use crate::ledger::{ChannelRow, Ledger, Role, Row};
use crate::payment::PaymentError;
use crate::payment::onchain::paper::{self, OpenPlan};
use crate::payment::onchain::{
    ChannelView, Level, MODE_ON_CHAIN, OnChannel, Onchain, Purse, Split,
};
use crate::protocol::session::Open;
use crate::protocol::terms::ChainTerms;
use crate::protocol::voucher::{ChannelDescriptor, HubChannel, TokenAuthorization};
use crate::protocol::{SessionMessage, Terms};
use crate::types::{ChannelId, MicroUsd, UnixMs};

/// How long a seller has to bring an opening or a top-up to the chain, seconds: an RPC node may be
/// down for a while, and the money is set aside for as long.
const VALID_S: u64 = 3_600;
/// Numbers of openings that are tried before a new channel is given up: after a lost ledger the
/// first ones may be closed already.
pub(super) const COUNTERS_MAX: u64 = 64;
/// A seller may ask for up to this many times the challenge period that this node would ask for.
const CHALLENGE_TIMES_MAX: u32 = 2;

/// What a buyer needs for channels on a chain.
pub(super) struct Funds {
    pub onchain: Onchain,
    pub device: u32,
    pub purse: Mutex<Purse>,
    /// What a request costs here, a moving mean in micro-USD.
    usual: AtomicU64,
}

impl Funds {
    pub fn new(onchain: Onchain, device: u32) -> Self {
        Self {
            onchain,
            device,
            purse: Mutex::default(),
            usual: AtomicU64::new(0),
        }
    }
    /// A request cost this much.
    pub fn learn_cost(&self, cost: MicroUsd) {
        let mean = |old: u64| {
            Some(if old == 0 {
                cost.0
            } else {
                // The last 16 count most.
                old.saturating_sub(old / 16).saturating_add(cost.0 / 16)
            })
        };
        let _ = self
            .usual
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, mean);
    }
    fn usual(&self) -> MicroUsd {
        MicroUsd(self.usual.load(Ordering::Relaxed))
    }
    /// The chain that a seller's terms name, if it is ours.
    pub fn shared_with(&self, terms: &Terms) -> Option<ChainTerms> {
        let link = &self.onchain.link;
        terms
            .chain
            .filter(|chain| chain.domain == link.domain() && chain.token == link.token())
    }
}

/// The channel to name in OPEN: the one that stands, or a new one, durable before it leaves.
pub(super) async fn open(
    shared: &Shared,
    funds: &Funds,
    pair: &Pair,
    terms: &Terms,
    chain: &ChainTerms,
) -> Result<(ChannelId, Open), PaymentError> {
    let now_ms = shared.clock.now_ms();
    if pair.state.lock().standing(now_ms).is_some() {
        return reopen(shared, pair);
    }
    let (row, on_chain) = new_channel(shared, funds, pair, terms, chain).await?;
    shared
        .ledger
        .commit(vec![Row::Channel(row.clone())])
        .await?;
    let open = to_open(shared, &row, &on_chain.channel);
    tracing::info!(seller = %pair.seller(), channel = %row.channel, deposit_usd = %row.deposit,
        "a channel is signed");
    pair.state.lock().pay_by(row.clone(), Some(on_chain));
    Ok((row.channel, open))
}

/// The channel that there is, over or not: to settle what is in doubt on it costs nothing.
pub(super) fn reopen(shared: &Shared, pair: &Pair) -> Result<(ChannelId, Open), PaymentError> {
    let state = pair.state.lock();
    let channel = state.on_chain.as_ref().map(|on| &on.channel);
    let (row, channel) = state.row().zip(channel).ok_or_else(|| {
        PaymentError::Session("no channel with this seller is left to settle".into())
    })?;
    Ok((row.channel, to_open(shared, row, channel)))
}

/// Whether vault and wallet have enough for another channel with a seller whose terms are known.
///
/// # Errors
/// What is missing.
pub(super) fn check_money(shared: &Shared, pair: &Pair) -> Result<(), PaymentError> {
    let Some(funds) = &shared.funds else {
        return Ok(());
    };
    let Some(terms) = pair.terms() else {
        return Ok(());
    };
    match funds.shared_with(&terms) {
        Some(chain) => affordable(funds, terms.open_fee, chain.deposit_min).map(drop),
        None => Ok(()),
    }
}

/// Whether a channel is over as its seller says. The seller may have seen its end a moment earlier;
/// but every new channel costs a fee, so where this node's own picture says that it is open, the chain
/// is asked.
///
/// # Errors
/// When the chain shows it open, or cannot be asked now.
pub(super) async fn check_over(
    funds: &Funds,
    pair: &Pair,
    id: &ChannelId,
) -> Result<(), PaymentError> {
    let is_live = {
        let state = pair.state.lock();
        state.on_chain.as_ref().is_some_and(|on| on.view.is_live())
    };
    if !is_live {
        return Ok(());
    }
    let link = &funds.onchain.link;
    let asked = Hub::checked(link.chain().as_ref(), link.domain())
        .channel(id)
        .await
        .map_err(|error| {
            tracing::debug!(%error, "the end of a channel cannot be looked up now");
            PaymentError::ChainUnknown
        })?;
    if asked.is_closed {
        Ok(())
    } else {
        Err(PaymentError::Refused(
            "the seller says that the channel is over; the chain shows it open".into(),
        ))
    }
}

fn to_open(shared: &Shared, row: &ChannelRow, channel: &HubChannel) -> Open {
    let descriptor = channel.descriptor.to_bytes();
    let identity = &shared.keys.identity;
    Open::sign(descriptor, row.epoch, row.channel, identity).with(channel.opening.clone())
}

/// The next channel with this seller: one that the chain shows and this ledger lost, or a new one.
async fn new_channel(
    shared: &Shared,
    funds: &Funds,
    pair: &Pair,
    terms: &Terms,
    chain: &ChainTerms,
) -> Result<(ChannelRow, OnChannel), PaymentError> {
    check_terms(funds, terms, chain)?;
    let first = pair.state.lock().next_counter;
    let domain = funds.onchain.link.domain();
    for counter in first..first.saturating_add(COUNTERS_MAX) {
        let descriptor = paper::descriptor(terms, chain, &shared.keys, funds.device, counter);
        let id = domain.channel_id(&descriptor);
        let view = view_of(&shared.ledger, &id).await?;
        if view.closed > Level::No {
            continue;
        }
        let channel = if view.opened > Level::No {
            found(shared, funds, descriptor, &view)
        } else {
            fresh(shared, funds, terms, chain, descriptor)?
        };
        let identity = &shared.keys.identity;
        let row = ChannelRow {
            at_ms: shared.clock.now_ms(),
            role: Role::Buy,
            channel: id,
            peer: *pair.seller(),
            mode: MODE_ON_CHAIN.to_owned(),
            descriptor: channel.to_bytes(),
            epoch: counter,
            deposit: channel.opening.deposit,
            open_signature: Open::sign(Vec::new(), counter, id, identity).signature.0,
        };
        let on_chain = OnChannel::load(&shared.ledger, &row).await?;
        let on_chain = on_chain.unwrap_or_else(|| OnChannel::new(channel));
        return Ok((row, on_chain));
    }
    Err(PaymentError::Refused(
        "too many channels with this seller are closed".into(),
    ))
}

async fn view_of(ledger: &Ledger, id: &ChannelId) -> Result<ChannelView, PaymentError> {
    Ok(OnChannel::standing_of(ledger, id).await?.view())
}

fn check_terms(funds: &Funds, terms: &Terms, chain: &ChainTerms) -> Result<(), PaymentError> {
    let rules = &funds.onchain.rules;
    if terms.open_fee > rules.open_fee_max {
        return Err(PaymentError::Refused(format!(
            "the seller asks {} USD for opening a channel, above [payment] open_fee_max of {} USD",
            terms.open_fee, rules.open_fee_max
        )));
    }
    let longest = rules.challenge_period_s.saturating_mul(CHALLENGE_TIMES_MAX);
    if chain.challenge_period_s > longest {
        return Err(PaymentError::Refused(format!(
            "the seller's challenge period of {} s is longer than {longest} s",
            chain.challenge_period_s
        )));
    }
    Ok(())
}

/// A channel that the chain shows and this ledger lost: signed again as it was, for both ledgers.
fn found(
    shared: &Shared,
    funds: &Funds,
    descriptor: ChannelDescriptor,
    view: &ChannelView,
) -> HubChannel {
    let plan = OpenPlan {
        device: funds.device,
        deposit: view.deposit_seen,
        open_fee: view.open_fee,
        expiry_s: view.expiry_s,
        valid_before_s: shared.clock.now_ms() / 1_000,
    };
    let domain = funds.onchain.link.domain();
    HubChannel {
        opening: paper::sign_opening(domain, &descriptor, &plan, None, &shared.keys.payment),
        domain,
        descriptor,
        consumed: view.open_fee,
    }
}

/// A new channel, its deposit set aside.
fn fresh(
    shared: &Shared,
    funds: &Funds,
    terms: &Terms,
    chain: &ChainTerms,
    descriptor: ChannelDescriptor,
) -> Result<HubChannel, PaymentError> {
    let now_s = shared.clock.now_ms() / 1_000;
    let (domain, rules) = (funds.onchain.link.domain(), &funds.onchain.rules);
    let id = domain.channel_id(&descriptor);
    let plan = OpenPlan {
        device: funds.device,
        deposit: affordable(funds, terms.open_fee, chain.deposit_min)?,
        open_fee: terms.open_fee,
        expiry_s: now_s.saturating_add(rules.lifetime_s),
        valid_before_s: now_s.saturating_add(VALID_S),
    };
    let authorization = set_aside(shared, funds, id, plan.deposit, plan.deposit)?;
    let key = &shared.keys.payment;
    Ok(HubChannel {
        opening: paper::sign_opening(domain, &descriptor, &plan, authorization, key),
        domain,
        descriptor,
        consumed: terms.open_fee,
    })
}

fn affordable(funds: &Funds, fee: MicroUsd, least: MicroUsd) -> Result<MicroUsd, PaymentError> {
    let purse = funds.purse.lock();
    let free = purse.free().ok_or(PaymentError::ChainUnknown)?;
    let size = funds.onchain.rules.deposit(funds.usual(), fee, free);
    size.filter(|size| *size >= least)
        .ok_or(PaymentError::InsufficientFunds { free, least })
}

/// Sets `amount` aside and signs for the wallet's part of it.
fn set_aside(
    shared: &Shared,
    funds: &Funds,
    channel: ChannelId,
    deposit: MicroUsd,
    amount: MicroUsd,
) -> Result<Option<TokenAuthorization>, PaymentError> {
    let link = &funds.onchain.link;
    let void_s = (shared.clock.now_ms() / 1_000).saturating_add(VALID_S);
    let mut purse = funds.purse.lock();
    let Some(split) = purse.promise(channel, deposit, amount, void_s) else {
        let free = purse.free().unwrap_or_default();
        return Err(PaymentError::InsufficientFunds {
            free,
            least: amount,
        });
    };
    if split.wallet == MicroUsd::ZERO {
        return Ok(None);
    }
    let token = link.token_domain().ok_or(PaymentError::ChainUnknown)?;
    let (hub, key) = (link.domain().hub, &shared.keys.payment);
    Ok(paper::sign_authorization(token, hub, &split, void_s, key))
}

/// Signs a higher deposit when the channel runs low; off the request path, in the bookkeeper's turn.
pub(super) async fn top_up(shared: &Shared, pair: &Pair) -> Result<(), PaymentError> {
    let Some(funds) = &shared.funds else {
        return Ok(());
    };
    let plan = pair.state.lock().plan_top_up(shared.clock.now_ms());
    let Some(plan) = plan else {
        return Ok(());
    };
    match raise(shared, funds, pair, plan).await {
        Ok(()) => Ok(()),
        Err(PaymentError::Ledger(error)) => Err(error.into()),
        Err(error) => {
            tracing::debug!(seller = %pair.seller(), %error, "the deposit is not raised");
            Ok(())
        }
    }
}

async fn raise(
    shared: &Shared,
    funds: &Funds,
    pair: &Pair,
    plan: TopUpPlan,
) -> Result<(), PaymentError> {
    let now_s = shared.clock.now_ms() / 1_000;
    let rules = &funds.onchain.rules;
    let deposit = if plan.again {
        plan.row.deposit
    } else {
        let more = affordable(funds, MicroUsd::ZERO, MicroUsd(1))?;
        plan.row.deposit.saturating_add(more)
    };
    let id = plan.row.channel;
    let more = deposit.saturating_sub(plan.shown);
    let authorization = set_aside(shared, funds, id, deposit, more)?;
    let times = (
        plan.expiry_s.max(now_s.saturating_add(rules.lifetime_s)),
        now_s.saturating_add(VALID_S),
    );
    let (domain, key) = (plan.channel.domain, &shared.keys.payment);
    let top_up = paper::sign_top_up(domain, id, deposit, times, authorization, key);
    if !plan.again {
        let row = ChannelRow {
            at_ms: shared.clock.now_ms(),
            deposit,
            ..plan.row
        };
        shared
            .ledger
            .commit(vec![Row::Channel(row.clone())])
            .await?;
        pair.state.lock().raise(row);
    }
    tracing::info!(seller = %pair.seller(), channel = %id, deposit_usd = %deposit,
        "a higher deposit is signed");
    super::session::send(pair, &[SessionMessage::TopUp(top_up)]).await;
    Ok(())
}

/// What an earlier life signed away and the chain does not show yet.
pub(super) fn remember(funds: &Funds, row: &ChannelRow, on_chain: &OnChannel, now_ms: UnixMs) {
    let view = &on_chain.view;
    if on_chain.is_over(now_ms) || view.opened > Level::No {
        return;
    }
    let opening = &on_chain.channel.opening;
    let wallet = opening
        .authorization
        .as_ref()
        .map_or(MicroUsd::ZERO, |a| a.amount);
    let split = Split {
        vault: opening.deposit.saturating_sub(wallet),
        wallet,
    };
    let (id, void_s) = (row.channel, opening.valid_before_s);
    funds
        .purse
        .lock()
        .remember(id, opening.deposit, split, void_s);
}

/// The last word on a channel: a voucher over exactly what was consumed.
pub(super) fn closing_words(shared: &Shared, pair: &Pair) -> Option<SessionMessage> {
    let state = pair.state.lock();
    let channel = state.channel()?;
    let last = state.last_word().map(|consumed| {
        let key = &shared.keys.voucher;
        let signature = paper::sign_voucher(state.domain(), channel, consumed, key);
        (consumed, signature)
    });
    Some(SessionMessage::Close { channel, last })
}
