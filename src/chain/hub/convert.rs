//! Between the contract's numbers and ours.

use alloy::primitives::aliases::{U40, U96};
use alloy::primitives::{Address, B256, U256, Uint};

use super::abi::ChannelHub as abi;
use crate::protocol::voucher::ChannelDescriptor;
use crate::types::{EvmAddress, Hash32, MicroUsd};

/// An address of alloy.
pub(in crate::chain) fn address(ours: EvmAddress) -> Address {
    Address::from(ours.0)
}

/// An address of ours.
pub(in crate::chain) fn ours(address: Address) -> EvmAddress {
    EvmAddress(address.into_array())
}

/// 32 bytes of alloy.
pub(in crate::chain) fn b256(ours: Hash32) -> B256 {
    B256::from(ours.0)
}

/// Money of the contract. What 64 bits do not hold exists only with worthless tokens; it saturates.
pub(in crate::chain) fn money<const BITS: usize, const LIMBS: usize>(
    sum: Uint<BITS, LIMBS>,
) -> MicroUsd {
    MicroUsd(sum.saturating_to())
}

/// Money for the contract.
pub(in crate::chain) fn u96(sum: MicroUsd) -> U96 {
    U96::from(sum.0)
}

/// Seconds of the contract; "for ever" saturates.
pub(in crate::chain) fn u40(seconds: u64) -> U40 {
    U40::saturating_from(seconds)
}

/// A sum of a token.
pub(in crate::chain) fn u256(sum: MicroUsd) -> U256 {
    U256::from(sum.0)
}

/// The contract's form of a descriptor.
pub(in crate::chain) fn channel(descriptor: &ChannelDescriptor) -> abi::Channel {
    abi::Channel {
        buyer: address(descriptor.buyer),
        seller: address(descriptor.seller),
        operator: address(descriptor.operator),
        token: address(descriptor.token),
        voucherSigner: address(descriptor.voucher_signer),
        challengePeriod: descriptor.challenge_period_s,
        salt: b256(descriptor.salt),
    }
}

/// Our form of a descriptor.
pub(in crate::chain) fn descriptor(channel: &abi::Channel) -> ChannelDescriptor {
    ChannelDescriptor {
        buyer: ours(channel.buyer),
        seller: ours(channel.seller),
        operator: ours(channel.operator),
        token: ours(channel.token),
        voucher_signer: ours(channel.voucherSigner),
        challenge_period_s: channel.challengePeriod,
        salt: Hash32(channel.salt.0),
    }
}
