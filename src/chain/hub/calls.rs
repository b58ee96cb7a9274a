//! Calldata of the hub and the token, one function per call.

use alloy::primitives::{Bytes, U256};
use alloy::sol_types::SolCall;

use super::abi::{ChannelHub as hub, TestUSD as usd};
use super::auth::{Authorization, Claim, OpenAuth, WithdrawAuth, claim_of, signature};
use super::convert::{address, b256, channel, u40, u96, u256};
use crate::protocol::voucher::ChannelDescriptor;
use crate::types::{EvmAddress, MicroUsd};

/// Several calls as one transaction.
#[must_use]
pub fn multicall(calls: Vec<Vec<u8>>) -> Vec<u8> {
    hub::multicallCall {
        data: calls.into_iter().map(Bytes::from).collect(),
    }
    .abi_encode()
}
/// Opens a channel from the buyer's vault.
#[must_use]
pub fn open(auth: &OpenAuth, by_buyer: &[u8; 65]) -> Vec<u8> {
    hub::openCall {
        auth: auth.typed(),
        signature: signature(by_buyer),
    }
    .abi_encode()
}
/// Takes tokens from the owner's wallet into its vault.
#[must_use]
pub fn deposit_with_authorization(
    token: EvmAddress,
    auth: &Authorization,
    by_owner: &[u8; 65],
) -> Vec<u8> {
    let typed = hub::Authorization {
        from: address(auth.from),
        value: u256(auth.amount),
        validAfter: U256::from(auth.valid_after_s),
        validBefore: U256::from(auth.valid_before_s),
        nonce: b256(auth.nonce),
    };
    let call = hub::depositWithAuthorizationCall {
        token: address(token),
        auth: typed,
        signature: signature(by_owner),
    };
    call.abi_encode()
}
/// Pays from the sender's wallet (after an approval) into a vault.
#[must_use]
pub fn deposit(token: EvmAddress, account: EvmAddress, amount: MicroUsd) -> Vec<u8> {
    let (token, account) = (address(token), address(account));
    hub::depositCall {
        token,
        account,
        amount: u256(amount),
    }
    .abi_encode()
}
/// Pays a voucher.
#[must_use]
pub fn settle(voucher: &Claim) -> Vec<u8> {
    hub::settleCall {
        claim: claim_of(voucher),
    }
    .abi_encode()
}
/// Pays many vouchers; one forged voucher reverts all.
#[must_use]
pub fn settle_batch(vouchers: &[Claim]) -> Vec<u8> {
    hub::settleBatchCall {
        claims: vouchers.iter().map(claim_of).collect(),
    }
    .abi_encode()
}
/// Raises the deposit.
#[must_use]
pub fn top_up(
    descriptor: &ChannelDescriptor,
    deposit: MicroUsd,
    expiry_s: u64,
    valid_before_s: u64,
    by_buyer: &[u8; 65],
) -> Vec<u8> {
    let call = hub::topUpCall {
        channel: channel(descriptor),
        deposit: u96(deposit),
        expiry: u40(expiry_s),
        validBefore: u40(valid_before_s),
        signature: signature(by_buyer),
    };
    call.abi_encode()
}
/// Pays a voucher and closes, by the seller or its operator.
#[must_use]
pub fn close(voucher: &Claim) -> Vec<u8> {
    hub::closeCall {
        claim: claim_of(voucher),
    }
    .abi_encode()
}
/// The same by anyone with the seller's signature.
#[must_use]
pub fn close_by_sig(voucher: &Claim, valid_before_s: u64, by_seller: &[u8; 65]) -> Vec<u8> {
    let call = hub::closeBySigCall {
        claim: claim_of(voucher),
        validBefore: u40(valid_before_s),
        signature: signature(by_seller),
    };
    call.abi_encode()
}
/// Asks for a close, by the buyer.
#[must_use]
pub fn request_close(descriptor: &ChannelDescriptor) -> Vec<u8> {
    hub::requestCloseCall {
        channel: channel(descriptor),
    }
    .abi_encode()
}
/// The same by anyone with the signature of the buyer or its voucher signer.
#[must_use]
pub fn request_close_by_sig(
    descriptor: &ChannelDescriptor,
    valid_before_s: u64,
    by_buyer: &[u8; 65],
) -> Vec<u8> {
    let call = hub::requestCloseBySigCall {
        channel: channel(descriptor),
        validBefore: u40(valid_before_s),
        signature: signature(by_buyer),
    };
    call.abi_encode()
}
/// Brings the rest of an expired channel back into the buyer's vault.
#[must_use]
pub fn reclaim(descriptor: &ChannelDescriptor) -> Vec<u8> {
    hub::reclaimCall {
        channel: channel(descriptor),
    }
    .abi_encode()
}
/// Pays out of the sender's vault.
#[must_use]
pub fn withdraw(token: EvmAddress, to: EvmAddress, amount: MicroUsd) -> Vec<u8> {
    let (token, to) = (address(token), address(to));
    hub::withdrawCall {
        token,
        to,
        amount: u256(amount),
    }
    .abi_encode()
}
/// The same by anyone with the owner's signature.
#[must_use]
pub fn withdraw_by_sig(auth: &WithdrawAuth, by_owner: &[u8; 65]) -> Vec<u8> {
    hub::withdrawBySigCall {
        auth: auth.typed(),
        signature: signature(by_owner),
    }
    .abi_encode()
}
/// Lets the hub take tokens from the sender's wallet.
#[must_use]
pub fn approve(spender: EvmAddress, amount: MicroUsd) -> Vec<u8> {
    usd::approveCall {
        spender: address(spender),
        value: u256(amount),
    }
    .abi_encode()
}
/// Makes test tokens.
#[must_use]
pub fn mint(account: EvmAddress, amount: MicroUsd) -> Vec<u8> {
    usd::mintCall {
        account: address(account),
        value: u256(amount),
    }
    .abi_encode()
}
