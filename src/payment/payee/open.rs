//! OPEN: which channel a buyer may have here, and the pair that goes with it.

use std::sync::Arc;

use super::Shared;
use super::pair::PayeePair;
use crate::ledger::{ChannelRow, Role};
use crate::payment::PaymentError;
use crate::payment::onchain::MODE_ON_CREDIT;
use crate::protocol::session::Open;
use crate::protocol::voucher::CreditParty;
use crate::protocol::{ChannelDescriptor, DecodeError};
use crate::types::PeerId;

/// Finds the buyer's channel, or remembers the one it opens. Idempotent. Says whether the channel was
/// not known here.
pub(super) async fn open_pair(
    shared: &Arc<Shared>,
    buyer: PeerId,
    open: &Open,
) -> Result<(Arc<PayeePair>, bool), PaymentError> {
    match (&open.opening, &shared.settings.onchain) {
        (Some(opening), Some(onchain)) => {
            super::open_on_chain::open_pair(shared, onchain, buyer, open, opening).await
        }
        (Some(_), None) => Err(PaymentError::Refused(
            "this seller takes no channels on a chain".into(),
        )),
        (None, _) => open_credit(shared, buyer, open),
    }
}

/// A book of IOUs; the first order books it.
fn open_credit(
    shared: &Arc<Shared>,
    buyer: PeerId,
    open: &Open,
) -> Result<(Arc<PayeePair>, bool), PaymentError> {
    let descriptor = ChannelDescriptor::from_bytes(&open.descriptor).map_err(refused)?;
    let channel = descriptor.credit_id();
    open.verify(channel, &buyer).map_err(refused)?;
    if descriptor.seller != shared.keys.payment.address() {
        return Err(PaymentError::Refused(
            "the channel pays another address".into(),
        ));
    }
    if descriptor != expected(shared, buyer, &descriptor, open.epoch) {
        return Err(PaymentError::Refused(
            "the channel is not the one between these two nodes".into(),
        ));
    }
    if let Some(pair) = shared.pairs.lock().get(&buyer) {
        return if pair.channel() == channel {
            Ok((Arc::clone(pair), false))
        } else {
            Err(PaymentError::Refused(
                "another channel of this buyer is open".into(),
            ))
        };
    }
    let row = ChannelRow {
        at_ms: shared.clock.now_ms(),
        role: Role::Sell,
        channel,
        peer: buyer,
        mode: MODE_ON_CREDIT.to_owned(),
        descriptor: open.descriptor.clone(),
        epoch: open.epoch,
        deposit: shared.settings.credit_limit,
        open_signature: open.signature.0,
    };
    let pool = Arc::clone(&shared.pool);
    let pair = PayeePair::on_credit(row, &descriptor, &shared.settings, pool);
    let pair = Arc::new(pair);
    remember(shared, buyer, &pair)?;
    Ok((pair, true))
}

/// Puts a new pair in its place.
pub(super) fn remember(
    shared: &Shared,
    buyer: PeerId,
    pair: &Arc<PayeePair>,
) -> Result<(), PaymentError> {
    let mut pairs = shared.pairs.lock();
    if pairs.len() >= shared.settings.buyers_max {
        // Keys are free: those that opened, ordered nothing and left make room.
        pairs.retain(|_, pair| pair.is_booked() || Arc::strong_count(pair) > 1);
        if pairs.len() >= shared.settings.buyers_max {
            return Err(PaymentError::Refused("too many buyers".into()));
        }
    }
    let before = pairs.insert(buyer, Arc::clone(pair));
    // A new channel is no clean slate.
    let offs = match &before {
        Some(before) => Some(before.state.lock().write_offs),
        None => shared.write_offs.lock().get(&buyer).copied(),
    };
    if let Some(offs) = offs {
        pair.state.lock().write_offs = offs;
    }
    // It may still have something to settle.
    shared.leaving.lock().extend(before);
    Ok(())
}

/// The only credit channel that `buyer` can have here in this epoch, with the keys it names: an OPEN
/// for another node that earns to the same address is not for us.
fn expected(
    shared: &Shared,
    buyer: PeerId,
    named: &ChannelDescriptor,
    epoch: u64,
) -> ChannelDescriptor {
    let buyer = CreditParty {
        peer: buyer,
        payment: named.buyer,
        voucher_signer: named.voucher_signer,
    };
    let address = shared.keys.payment.address();
    let seller = CreditParty {
        peer: shared.keys.identity.peer_id(),
        payment: address,
        voucher_signer: address,
    };
    ChannelDescriptor::credit(&buyer, &seller, epoch)
}

pub(super) fn refused(error: DecodeError) -> PaymentError {
    PaymentError::Refused(error.to_string())
}
