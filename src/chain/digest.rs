//! The EIP-712 digests that owners, sellers and voucher signers sign for the hub and its token.
//! Checked against the vectors that the contract itself produces.

use alloy::primitives::{B256, U256};
use alloy::sol_types::{Eip712Domain, SolStruct};

use super::hub::convert::{address, b256, u40, u96, u256};
use super::hub::{Authorization, OpenAuth, WithdrawAuth, signed};
use crate::protocol::voucher::Voucher;
use crate::types::{ChannelId, EvmAddress, Hash32, MicroUsd};

pub use crate::protocol::voucher::HubDomain;

impl HubDomain {
    fn digest(&self, message: &impl SolStruct) -> Hash32 {
        Hash32(message.eip712_signing_hash(&self.eip712()).0)
    }
    /// Signed by the buyer.
    #[must_use]
    pub fn open(&self, auth: &OpenAuth) -> Hash32 {
        self.digest(&auth.typed())
    }
    /// Signed by the buyer.
    #[must_use]
    pub fn top_up(
        &self,
        channel: &ChannelId,
        deposit: MicroUsd,
        expiry_s: u64,
        valid_before_s: u64,
    ) -> Hash32 {
        self.digest(&signed::TopUpAuth {
            channelId: id(channel),
            deposit: u96(deposit),
            expiry: u40(expiry_s),
            validBefore: u40(valid_before_s),
        })
    }
    /// Signed by the seller or its operator.
    #[must_use]
    pub fn close(&self, voucher: &Voucher, valid_before_s: u64) -> Hash32 {
        self.digest(&signed::CloseAuth {
            channelId: id(&voucher.channel),
            cumulative: u96(voucher.cumulative),
            validBefore: u40(valid_before_s),
        })
    }
    /// Signed by the buyer or its voucher signer.
    #[must_use]
    pub fn request_close(&self, channel: &ChannelId, valid_before_s: u64) -> Hash32 {
        let valid_before = u40(valid_before_s);
        self.digest(&signed::RequestClose {
            channelId: id(channel),
            validBefore: valid_before,
        })
    }
    /// Signed by the vault's owner.
    #[must_use]
    pub fn withdraw(&self, auth: &WithdrawAuth) -> Hash32 {
        self.digest(&auth.typed())
    }
}

fn id(channel: &ChannelId) -> B256 {
    B256::from(channel.0)
}

/// A token on a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenDomain {
    /// `name()` of the token.
    pub name: String,
    /// `version()` of the token.
    pub version: String,
    /// The chain.
    pub chain_id: u64,
    /// The token.
    pub token: EvmAddress,
}

impl TokenDomain {
    /// Signed by the tokens' owner, so that `hub` may take them (ERC-3009).
    #[must_use]
    pub fn receive(&self, auth: &Authorization, hub: EvmAddress) -> Hash32 {
        let domain = Eip712Domain::new(
            Some(self.name.clone().into()),
            Some(self.version.clone().into()),
            Some(U256::from(self.chain_id)),
            Some(address(self.token)),
            None,
        );
        let message = signed::ReceiveWithAuthorization {
            from: address(auth.from),
            to: address(hub),
            value: u256(auth.amount),
            validAfter: U256::from(auth.valid_after_s),
            validBefore: U256::from(auth.valid_before_s),
            nonce: b256(auth.nonce),
        };
        Hash32(message.eip712_signing_hash(&domain).0)
    }
}
