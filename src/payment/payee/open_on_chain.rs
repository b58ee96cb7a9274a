//! OPEN on a chain: a seller serves on a channel only after each word of it was checked, because the
//! buyer alone writes it. What only the chain knows (is the vault full?) is asked afterwards; until
//! then a buyer gets no more than the little that is served on trust.

use std::sync::Arc;

use super::Shared;
use super::on_chain::Hubbed;
use super::open::{refused, remember};
use super::pair::PayeePair;
use crate::ledger::{ChannelRow, Role};
use crate::payment::PaymentError;
use crate::payment::onchain::paper::{self, VALID_MIN_S};
use crate::payment::onchain::{Level, MODE_ON_CHAIN, OnChannel, Onchain};
use crate::protocol::ChannelDescriptor;
use crate::protocol::session::Open;
use crate::protocol::terms::ChainTerms;
use crate::protocol::voucher::{HubChannel, Opening};
use crate::types::{MicroUsd, PeerId};

/// Buyers that are served on trust at once, each up to what an unseen opening is good for: keys are
/// free, so the sum is what bounds the gift.
const ON_TRUST_MAX: u64 = 20;

/// Finds the channel, or takes it up; one that is over, for ACCEPTs alone. Says whether it was not
/// known here.
pub(super) async fn open_pair(
    shared: &Arc<Shared>,
    onchain: &Onchain,
    buyer: PeerId,
    open: &Open,
    opening: &Opening,
) -> Result<(Arc<PayeePair>, bool), PaymentError> {
    let descriptor = ChannelDescriptor::from_bytes(&open.descriptor).map_err(refused)?;
    let domain = onchain.link.domain();
    let id = domain.channel_id(&descriptor);
    open.verify(id, &buyer).map_err(refused)?;
    let now_ms = shared.clock.now_ms();
    let theirs = shared.all_of(&buyer);
    if let Some(pair) = theirs.iter().find(|pair| pair.channel() == id) {
        // Also one that is over: its last ACCEPTs may be missing.
        return Ok((Arc::clone(pair), false));
    }
    let known = shared.pairs.lock().get(&buyer).cloned();
    if known.is_some_and(|pair| !pair.is_over(now_ms) && !pair.has_ended() && pair.view().is_some())
    {
        return Err(PaymentError::Refused(
            "another channel of this buyer is open".into(),
        ));
    }
    let channel = HubChannel {
        domain,
        descriptor,
        opening: opening.clone(),
        consumed: opening.open_fee,
    };
    let me = shared.keys.identity.peer_id();
    paper::check_opening(&channel, &buyer, &me, open.epoch).map_err(PaymentError::Refused)?;
    let row = ChannelRow {
        at_ms: now_ms,
        role: Role::Sell,
        channel: id,
        peer: buyer,
        mode: MODE_ON_CHAIN.to_owned(),
        descriptor: channel.to_bytes(),
        epoch: open.epoch,
        deposit: opening.deposit,
        open_signature: open.signature.0,
    };
    let mut on = OnChannel::new(channel);
    on.standing = OnChannel::standing_of(&shared.ledger, &id).await?;
    on.view = on.standing.view();
    let terms = shared
        .terms
        .terms
        .chain
        .as_ref()
        .ok_or_else(|| PaymentError::Refused("this seller's terms name no chain".into()))?;
    check_words(shared, terms, &on)?;
    let is_closed = on.view.closed > Level::No;
    match on.view.opened {
        Level::No => check_opening(shared, terms, opening, now_ms)?,
        Level::Seen | Level::Final => {}
    }
    let on_chain = Hubbed::new(on, onchain.rules, now_ms);
    let pair = Arc::new(PayeePair::on_chain(row, on_chain, &shared.settings));
    // One that is closed and forgotten here is only for what the buyer has in doubt on it.
    if !is_closed {
        remember(shared, buyer, &pair)?;
    }
    Ok((pair, true))
}

/// The descriptor's words, one by one.
fn check_words(shared: &Shared, terms: &ChainTerms, on: &OnChannel) -> Result<(), PaymentError> {
    let named = &on.channel.descriptor;
    let wrong = [
        (
            named.seller != shared.keys.payment.address(),
            "it pays another address",
        ),
        (named.operator != terms.operator, "its operator is not ours"),
        (named.token != terms.token, "its token is another"),
        (
            named.challenge_period_s != terms.challenge_period_s,
            "its challenge period is another",
        ),
        (named.buyer == named.seller, "it pays itself"),
    ];
    match wrong.iter().find(|(is_wrong, _)| *is_wrong) {
        Some((_, what)) => Err(PaymentError::Refused(format!("the channel: {what}"))),
        None => Ok(()),
    }
}

/// What an opening must promise before its gas is spent.
fn check_opening(
    shared: &Shared,
    terms: &ChainTerms,
    opening: &Opening,
    now_ms: u64,
) -> Result<(), PaymentError> {
    let now_s = now_ms / 1_000;
    let fee = shared.terms.terms.open_fee;
    let least_expiry_s = now_s.saturating_add(u64::from(terms.challenge_period_s) * 2);
    let problem = if opening.open_fee < fee {
        format!("the opening pays {} USD, not {fee}", opening.open_fee)
    } else if opening.deposit < terms.deposit_min || opening.deposit < opening.open_fee {
        format!("a deposit of {} USD is not worth its gas", opening.deposit)
    } else if opening.valid_before_s < now_s.saturating_add(VALID_MIN_S) {
        "the opening is void too soon".to_owned()
    } else if opening.expiry_s < least_expiry_s {
        "the channel ends too soon".to_owned()
    } else if on_trust(shared) >= ON_TRUST_MAX {
        "too many channels wait for the chain; try again in a minute".to_owned()
    } else {
        return Ok(());
    };
    Err(PaymentError::Refused(problem))
}

/// How many openings' worth of trust is given away: unseen ones, and what was lost to void ones.
fn on_trust(shared: &Shared) -> u64 {
    let now_ms = shared.clock.now_ms();
    let pairs = shared.pairs.lock();
    let unseen = pairs.values().filter(|pair| {
        let view = pair.view();
        view.is_some_and(|view| view.opened == Level::No) && !pair.is_over(now_ms)
    });
    let unseen = u64::try_from(unseen.count()).unwrap_or(u64::MAX);
    let each = shared
        .settings
        .onchain
        .as_ref()
        .map_or(MicroUsd(1), |one| one.rules.unconfirmed_max);
    let lost = shared.lost_on_trust.lock().now(now_ms);
    unseen.saturating_add(lost.0 / each.0.max(1))
}
