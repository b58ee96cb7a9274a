//! What owners and voucher signers let happen, and the contract's form of it.

use alloy::primitives::{B256, Bytes, U256};

use super::abi::ChannelHub as hub;
use super::convert::{address, channel, u40, u96, u256};
use crate::protocol::voucher::ChannelDescriptor;
use crate::types::{EvmAddress, Hash32, MicroUsd};

/// The owner lets a channel be opened from its vault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenAuth {
    /// The channel.
    pub descriptor: ChannelDescriptor,
    /// Most that vouchers will be worth.
    pub deposit: MicroUsd,
    /// What the seller gets for opening it.
    pub open_fee: MicroUsd,
    /// When the rest may go back, in seconds.
    pub expiry_s: u64,
    /// The authorisation is void from then on, in seconds.
    pub valid_before_s: u64,
}

/// A voucher as the contract takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The channel.
    pub descriptor: ChannelDescriptor,
    /// All that was ever signed.
    pub cumulative: MicroUsd,
    /// The voucher signer's r ‖ s ‖ v.
    pub signature: [u8; 65],
}

/// The owner lets money leave its vault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WithdrawAuth {
    /// Whose vault.
    pub account: EvmAddress,
    /// Which token.
    pub token: EvmAddress,
    /// To whom.
    pub to: EvmAddress,
    /// How much; 0 only pays the fee.
    pub amount: MicroUsd,
    /// Who gets the fee; 0 is whoever sends it.
    pub relayer: EvmAddress,
    /// On top of the amount, into the relayer's vault.
    pub fee: MicroUsd,
    /// Any number not yet used.
    pub nonce: u64,
    /// Void from then on, in seconds.
    pub valid_before_s: u64,
}

/// The owner lets the hub take tokens from its wallet (ERC-3009).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Authorization {
    /// Whose wallet.
    pub from: EvmAddress,
    /// How much.
    pub amount: MicroUsd,
    /// Void until then, in seconds.
    pub valid_after_s: u64,
    /// Void from then on, in seconds.
    pub valid_before_s: u64,
    /// Random.
    pub nonce: Hash32,
}

/// The contract's form of a claim: r, and s with the parity in its top bit (EIP-2098).
pub(super) fn claim_of(claim: &Claim) -> hub::Claim {
    let (r, rest) = claim.signature.split_at(32);
    let (s, v) = rest.split_at(32);
    let mut vs = B256::from_slice(s);
    if v == [28]
        && let Some(top) = vs.0.first_mut()
    {
        *top |= 0x80;
    }
    hub::Claim {
        channel: channel(&claim.descriptor),
        cumulative: u96(claim.cumulative),
        r: B256::from_slice(r),
        vs,
    }
}

pub(super) fn signature(bytes: &[u8; 65]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

impl OpenAuth {
    /// The contract's form.
    pub(in crate::chain) fn typed(&self) -> hub::OpenAuth {
        hub::OpenAuth {
            channel: channel(&self.descriptor),
            deposit: u96(self.deposit),
            openFee: u96(self.open_fee),
            expiry: u40(self.expiry_s),
            validBefore: u40(self.valid_before_s),
        }
    }
}

impl WithdrawAuth {
    /// The contract's form.
    pub(in crate::chain) fn typed(&self) -> hub::Withdraw {
        hub::Withdraw {
            account: address(self.account),
            token: address(self.token),
            to: address(self.to),
            amount: u256(self.amount),
            relayer: address(self.relayer),
            fee: u256(self.fee),
            nonce: U256::from(self.nonce),
            validBefore: u40(self.valid_before_s),
        }
    }
}
