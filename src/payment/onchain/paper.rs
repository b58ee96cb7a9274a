//! What is signed for the hub, and what it makes as calldata: openings and top-ups by the buyer,
//! claims by its vouchers. No I/O; what the chain alone can judge (does the vault hold so much?) is
//! asked of the chain.

use rand::random;

use super::purse::Split;
use crate::chain::digest::TokenDomain;
use crate::chain::hub::{Authorization, Claim, OpenAuth, calls};
use crate::keys::{self, NodeKeys, PaymentKey};
use crate::protocol::EvmSignature;
use crate::protocol::terms::ChainTerms;
use crate::protocol::voucher::{
    ChannelDescriptor, HubChannel, HubDomain, HubTerms, Opening, TokenAuthorization, TopUp,
    VoucherDomain,
};
use crate::protocol::{Terms, Voucher};
use crate::types::{ChannelId, EvmAddress, Hash32, MicroUsd, PeerId};

/// What a seller must still have of an authorisation's life when it gets it, seconds: a transaction
/// is mined well within it.
pub const VALID_MIN_S: u64 = 120;

/// The descriptor of the opening number `counter` between two nodes, by the seller's terms.
#[must_use]
pub fn descriptor(
    terms: &Terms,
    chain: &ChainTerms,
    keys: &NodeKeys,
    device: u32,
    counter: u64,
) -> ChannelDescriptor {
    let named = HubTerms {
        buyer: keys.payment.address(),
        seller: terms.payment_address,
        operator: chain.operator,
        token: chain.token,
        voucher_signer: keys.voucher.address(),
        challenge_period_s: chain.challenge_period_s,
    };
    let me = keys.identity.peer_id();
    ChannelDescriptor::on_hub(&named, &me, &terms.seller, device, counter)
}

/// What an opening says, before it is signed.
#[derive(Clone, Copy, Debug)]
pub struct OpenPlan {
    /// The buyer's device.
    pub device: u32,
    /// Most that vouchers will be worth.
    pub deposit: MicroUsd,
    /// What the seller gets for opening.
    pub open_fee: MicroUsd,
    /// When the rest may go back, in seconds.
    pub expiry_s: u64,
    /// Void from then on, in seconds.
    pub valid_before_s: u64,
}

/// Signs an opening with the vault owner's key.
#[must_use]
pub fn sign_opening(
    domain: HubDomain,
    descriptor: &ChannelDescriptor,
    plan: &OpenPlan,
    authorization: Option<TokenAuthorization>,
    key: &PaymentKey,
) -> Opening {
    let mut opening = Opening {
        device: plan.device,
        deposit: plan.deposit,
        open_fee: plan.open_fee,
        expiry_s: plan.expiry_s,
        valid_before_s: plan.valid_before_s,
        signature: EvmSignature([0; 65]),
        authorization,
    };
    let digest = domain.open(&open_auth(descriptor, &opening));
    opening.signature = EvmSignature(key.sign_hash(&digest));
    opening
}

/// Signs a top-up with the vault owner's key.
#[must_use]
pub fn sign_top_up(
    domain: HubDomain,
    channel: ChannelId,
    deposit: MicroUsd,
    (expiry_s, valid_before_s): (u64, u64),
    authorization: Option<TokenAuthorization>,
    key: &PaymentKey,
) -> TopUp {
    let digest = domain.top_up(&channel, deposit, expiry_s, valid_before_s);
    TopUp {
        channel,
        deposit,
        expiry_s,
        valid_before_s,
        signature: EvmSignature(key.sign_hash(&digest)),
        authorization,
    }
}

/// Signs that the hub may take the wallet's part; none when there is none.
#[must_use]
pub fn sign_authorization(
    token: &TokenDomain,
    hub: EvmAddress,
    split: &Split,
    valid_before_s: u64,
    key: &PaymentKey,
) -> Option<TokenAuthorization> {
    if split.wallet == MicroUsd::ZERO {
        return None;
    }
    let auth = Authorization {
        from: key.address(),
        amount: split.wallet,
        valid_after_s: 0,
        valid_before_s,
        nonce: Hash32(random()),
    };
    Some(TokenAuthorization {
        amount: auth.amount,
        valid_after_s: auth.valid_after_s,
        valid_before_s,
        nonce: auth.nonce,
        signature: EvmSignature(key.sign_hash(&token.receive(&auth, hub))),
    })
}

/// Checks that `channel` is the opening number `counter` between these two nodes and that its buyer
/// signed for it.
///
/// # Errors
/// What it is not.
pub fn check_opening(
    channel: &HubChannel,
    buyer: &PeerId,
    seller: &PeerId,
    counter: u64,
) -> Result<(), String> {
    let named = &channel.descriptor;
    let terms = HubTerms {
        buyer: named.buyer,
        seller: named.seller,
        operator: named.operator,
        token: named.token,
        voucher_signer: named.voucher_signer,
        challenge_period_s: named.challenge_period_s,
    };
    let device = channel.opening.device;
    if *named != ChannelDescriptor::on_hub(&terms, buyer, seller, device, counter) {
        return Err("the channel is not the one between these two nodes".into());
    }
    let digest = channel.domain.open(&open_auth(named, &channel.opening));
    match keys::recover(&digest, &channel.opening.signature.0) {
        Ok(signer) if signer == named.buyer => Ok(()),
        _ => Err("the opening is not signed by the vault's owner".into()),
    }
}

/// Checks a top-up's signature.
///
/// # Errors
/// When somebody else signed it.
pub fn check_top_up(channel: &HubChannel, top_up: &TopUp) -> Result<(), String> {
    let (expiry, valid) = (top_up.expiry_s, top_up.valid_before_s);
    let digest = channel
        .domain
        .top_up(&channel.id(), top_up.deposit, expiry, valid);
    match keys::recover(&digest, &top_up.signature.0) {
        Ok(signer) if signer == channel.descriptor.buyer => Ok(()),
        _ => Err("the top-up is not signed by the vault's owner".into()),
    }
}

/// One transaction that fills the vault, where that is needed, and opens the channel.
#[must_use]
pub fn open_call(channel: &HubChannel) -> Vec<u8> {
    let opening = &channel.opening;
    let auth = open_auth(&channel.descriptor, opening);
    let open = calls::open(&auth, &opening.signature.0);
    after_filling(&channel.descriptor, opening.authorization.as_ref(), open)
}

/// One transaction that fills the vault, where that is needed, and raises the deposit.
#[must_use]
pub fn top_up_call(descriptor: &ChannelDescriptor, top_up: &TopUp) -> Vec<u8> {
    let raise = calls::top_up(
        descriptor,
        top_up.deposit,
        top_up.expiry_s,
        top_up.valid_before_s,
        &top_up.signature.0,
    );
    after_filling(descriptor, top_up.authorization.as_ref(), raise)
}

/// A claim for all that `voucher` says; without one, for nothing.
#[must_use]
pub fn claim(descriptor: &ChannelDescriptor, voucher: Option<(MicroUsd, EvmSignature)>) -> Claim {
    let (cumulative, signature) = voucher.unwrap_or((MicroUsd::ZERO, EvmSignature([0; 65])));
    Claim {
        descriptor: descriptor.clone(),
        cumulative,
        signature: signature.0,
    }
}

/// A call that asks for the end of a channel, for whoever sends it; signed by the voucher key.
#[must_use]
pub fn request_close_call(channel: &HubChannel, valid_before_s: u64, key: &PaymentKey) -> Vec<u8> {
    let digest = channel.domain.request_close(&channel.id(), valid_before_s);
    let signature = key.sign_hash(&digest);
    calls::request_close_by_sig(&channel.descriptor, valid_before_s, &signature)
}

/// Signs a voucher in a channel's domain.
#[must_use]
pub fn sign_voucher(
    domain: VoucherDomain,
    channel: ChannelId,
    cumulative: MicroUsd,
    key: &PaymentKey,
) -> EvmSignature {
    let voucher = Voucher {
        channel,
        cumulative,
    };
    voucher.sign(domain, key)
}

fn open_auth(descriptor: &ChannelDescriptor, opening: &Opening) -> OpenAuth {
    OpenAuth {
        descriptor: descriptor.clone(),
        deposit: opening.deposit,
        open_fee: opening.open_fee,
        expiry_s: opening.expiry_s,
        valid_before_s: opening.valid_before_s,
    }
}

fn after_filling(
    descriptor: &ChannelDescriptor,
    authorization: Option<&TokenAuthorization>,
    call: Vec<u8>,
) -> Vec<u8> {
    let Some(given) = authorization else {
        return call;
    };
    let auth = Authorization {
        from: descriptor.buyer,
        amount: given.amount,
        valid_after_s: given.valid_after_s,
        valid_before_s: given.valid_before_s,
        nonce: given.nonce,
    };
    let fill = calls::deposit_with_authorization(descriptor.token, &auth, &given.signature.0);
    calls::multicall(vec![fill, call])
}
