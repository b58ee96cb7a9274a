//! EIP-712 vouchers: a cumulative promise to pay, in the form the hub contract understands.
//!
//! A channel's id is the EIP-712 digest of its descriptor, so it is bound to its [`VoucherDomain`].
//! In credit mode that is `SoukCredit`, chain 0, contract 0: such an IOU can never be settled on a
//! chain, and a channel never changes its mode. [`Opening`] and [`TopUp`] are what a buyer signs for
//! a channel on a chain, [`HubChannel`] is what both sides keep of one.

mod domain;
mod opening;

use alloy::primitives::{Address, B256};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::signature::EvmSignature;
use super::{DecodeError, decode, encode};
use crate::keys::{self, PaymentKey};
use crate::types::{ChannelId, EvmAddress, Hash32, MicroUsd, PeerId};

pub use domain::{HubDomain, VoucherDomain};
pub use opening::{HubChannel, HubTerms, Opening, TokenAuthorization, TopUp};

mod typed {
    //! Type strings must equal the contract's.
    #![allow(missing_docs, reason = "generated types")]
    alloy::sol! {
        struct Channel {
            address buyer;
            address seller;
            address operator;
            address token;
            address voucherSigner;
            uint32 challengePeriod;
            bytes32 salt;
        }
        struct Voucher {
            bytes32 channelId;
            uint96 cumulative;
        }
    }
}

/// Bytes of an encoded descriptor, at most.
const DESCRIPTOR_BYTES_MAX: usize = 512;

/// Who pays whom, immutable; its digest is the channel's id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelDescriptor {
    /// Vault account that pays.
    pub buyer: EvmAddress,
    /// Vault account that earns.
    pub seller: EvmAddress,
    /// The seller's hot key that may only close; 0 in credit mode.
    pub operator: EvmAddress,
    /// The token; 0 in credit mode.
    pub token: EvmAddress,
    /// The buyer's hot key that signs vouchers.
    pub voucher_signer: EvmAddress,
    /// Seconds between a close request and the money's return; 0 in credit mode.
    pub challenge_period_s: u32,
    /// Makes the id unique.
    pub salt: Hash32,
}

impl ChannelDescriptor {
    /// The descriptor of a credit-mode channel; `epoch` rises only after an agreed close.
    #[must_use]
    pub fn credit(buyer: &CreditParty, seller: &CreditParty, epoch: u64) -> Self {
        let mut salt = Sha256::new();
        salt.update(buyer.peer.to_bytes());
        salt.update(seller.peer.to_bytes());
        salt.update(epoch.to_be_bytes());
        Self {
            buyer: buyer.payment,
            seller: seller.payment,
            operator: EvmAddress::default(),
            token: EvmAddress::default(),
            voucher_signer: buyer.voucher_signer,
            challenge_period_s: 0,
            salt: Hash32(salt.finalize().into()),
        }
    }

    /// The id of this channel in credit mode.
    #[must_use]
    pub fn credit_id(&self) -> ChannelId {
        VoucherDomain::Credit.channel_id(self)
    }

    fn typed(&self) -> typed::Channel {
        typed::Channel {
            buyer: address(self.buyer),
            seller: address(self.seller),
            operator: address(self.operator),
            token: address(self.token),
            voucherSigner: address(self.voucher_signer),
            challengePeriod: self.challenge_period_s,
            salt: B256::from(self.salt.0),
        }
    }

    /// As it is stored and sent.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        encode(self)
    }

    /// From stored or received bytes.
    ///
    /// # Errors
    /// When they are malformed.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        decode("channel descriptor", bytes, DESCRIPTOR_BYTES_MAX)
    }
}

/// One side of a credit channel.
#[derive(Clone, Copy, Debug)]
pub struct CreditParty {
    /// Its node.
    pub peer: PeerId,
    /// Its payment address.
    pub payment: EvmAddress,
    /// The key that signs vouchers (the buyer's; the seller's is unused).
    pub voucher_signer: EvmAddress,
}

/// A cumulative promise: "of this channel you may take up to `cumulative` in all".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Voucher {
    /// The channel.
    pub channel: ChannelId,
    /// Never decreases.
    pub cumulative: MicroUsd,
}

impl Voucher {
    /// Signs it with the buyer's voucher key.
    #[must_use]
    pub fn sign(&self, domain: VoucherDomain, key: &PaymentKey) -> EvmSignature {
        EvmSignature(key.sign_hash(&domain.voucher(self)))
    }

    /// Checks that `signer` signed it.
    ///
    /// # Errors
    /// When somebody else did, or for another domain, or the signature is malformed.
    pub fn verify(
        &self,
        domain: VoucherDomain,
        signature: &EvmSignature,
        signer: &EvmAddress,
    ) -> Result<(), DecodeError> {
        match keys::recover(&domain.voucher(self), &signature.0) {
            Ok(found) if found == *signer => Ok(()),
            _ => Err(DecodeError::BadSignature("voucher")),
        }
    }
}

fn address(value: EvmAddress) -> Address {
    Address::from(value.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel() -> ChannelDescriptor {
        ChannelDescriptor {
            buyer: EvmAddress([1; 20]),
            seller: EvmAddress([2; 20]),
            operator: EvmAddress::default(),
            token: EvmAddress::default(),
            voucher_signer: EvmAddress([3; 20]),
            challenge_period_s: 0,
            salt: Hash32([4; 32]),
        }
    }

    #[test]
    fn a_voucher_verifies_only_for_its_signer_channel_amount_and_domain() {
        let key = PaymentKey::generate();
        let voucher = Voucher {
            channel: channel().credit_id(),
            cumulative: MicroUsd(5),
        };
        let hub = |chain_id, hub| {
            VoucherDomain::Hub(HubDomain {
                chain_id,
                hub: EvmAddress([hub; 20]),
            })
        };
        let domains = [VoucherDomain::Credit, hub(1, 1), hub(1, 2), hub(2, 1)];
        let (me, other) = (key.address(), PaymentKey::generate().address());
        for domain in domains {
            let signature = voucher.sign(domain, &key);
            assert!(voucher.verify(domain, &signature, &me).is_ok());
            assert!(voucher.verify(domain, &signature, &other).is_err());
            let more = Voucher {
                cumulative: MicroUsd(6),
                ..voucher
            };
            assert!(more.verify(domain, &signature, &me).is_err());
            let moved = Voucher {
                channel: ChannelId([9; 32]),
                ..voucher
            };
            assert!(moved.verify(domain, &signature, &me).is_err());
            for elsewhere in domains.into_iter().filter(|one| *one != domain) {
                assert!(voucher.verify(elsewhere, &signature, &me).is_err());
            }
        }
    }

    #[test]
    fn descriptors_round_trip() {
        let bytes = channel().to_bytes();
        assert_eq!(ChannelDescriptor::from_bytes(&bytes), Ok(channel()));
    }
}
