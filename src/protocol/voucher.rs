//! EIP-712 vouchers: a cumulative promise to pay, in the form the hub contract understands.
//!
//! A channel's id is the EIP-712 digest of its descriptor, so it is bound to the domain. In credit
//! mode the domain is `SoukCredit`, chain 0, contract 0: such an IOU can never be settled on a
//! chain, and a channel never changes its mode.

use std::sync::LazyLock;

use alloy::primitives::{Address, B256, aliases::U96};
use alloy::sol_types::{Eip712Domain, SolStruct, eip712_domain};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::signature::EvmSignature;
use super::{DecodeError, decode, encode};
use crate::keys::{self, PaymentKey};
use crate::types::{ChannelId, EvmAddress, Hash32, MicroUsd, PeerId};

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
        let typed = typed::Channel {
            buyer: address(self.buyer),
            seller: address(self.seller),
            operator: address(self.operator),
            token: address(self.token),
            voucherSigner: address(self.voucher_signer),
            challengePeriod: self.challenge_period_s,
            salt: B256::from(self.salt.0),
        };
        ChannelId(typed.eip712_signing_hash(&CREDIT_DOMAIN).0)
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
    /// The EIP-712 digest that is signed, in credit mode.
    #[must_use]
    pub fn credit_digest(&self) -> Hash32 {
        let typed = typed::Voucher {
            channelId: B256::from(self.channel.0),
            cumulative: U96::from(self.cumulative.0),
        };
        // The separator is hashed once: 0.6 µs a voucher instead of 2.
        let mut message = [0u8; 66];
        if let Some((prefix, rest)) = message.split_first_chunk_mut::<2>() {
            *prefix = [0x19, 0x01];
            if let Some((separator, hash)) = rest.split_first_chunk_mut::<32>() {
                *separator = CREDIT_SEPARATOR.0;
                hash.copy_from_slice(typed.eip712_hash_struct().as_slice());
            }
        }
        Hash32(alloy::primitives::keccak256(message).0)
    }

    /// Signs it with the buyer's voucher key.
    #[must_use]
    pub fn sign(&self, key: &PaymentKey) -> EvmSignature {
        EvmSignature(key.sign_hash(&self.credit_digest()))
    }

    /// Checks that `signer` signed it.
    ///
    /// # Errors
    /// When somebody else did, or the signature is malformed.
    pub fn verify(&self, signature: &EvmSignature, signer: &EvmAddress) -> Result<(), DecodeError> {
        match keys::recover(&self.credit_digest(), &signature.0) {
            Ok(found) if found == *signer => Ok(()),
            _ => Err(DecodeError::BadSignature("voucher")),
        }
    }
}

static CREDIT_DOMAIN: LazyLock<Eip712Domain> = LazyLock::new(|| {
    eip712_domain! {
        name: "SoukCredit",
        version: "1",
        chain_id: 0,
        verifying_contract: Address::ZERO,
    }
});

static CREDIT_SEPARATOR: LazyLock<B256> = LazyLock::new(|| CREDIT_DOMAIN.separator());

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
    fn the_cached_digest_equals_the_library_s() {
        let voucher = Voucher {
            channel: channel().credit_id(),
            cumulative: MicroUsd(123_456),
        };
        let typed = typed::Voucher {
            channelId: B256::from(voucher.channel.0),
            cumulative: U96::from(123_456),
        };
        assert_eq!(
            voucher.credit_digest().0,
            typed.eip712_signing_hash(&CREDIT_DOMAIN).0
        );
    }

    #[test]
    fn a_voucher_verifies_only_for_its_signer_channel_and_amount() {
        let key = PaymentKey::generate();
        let voucher = Voucher {
            channel: channel().credit_id(),
            cumulative: MicroUsd(5),
        };
        let signature = voucher.sign(&key);
        assert!(voucher.verify(&signature, &key.address()).is_ok());
        assert!(
            voucher
                .verify(&signature, &PaymentKey::generate().address())
                .is_err()
        );
        let more = Voucher {
            cumulative: MicroUsd(6),
            ..voucher
        };
        assert!(more.verify(&signature, &key.address()).is_err());
        let other = Voucher {
            channel: ChannelId([9; 32]),
            ..voucher
        };
        assert!(other.verify(&signature, &key.address()).is_err());
    }

    #[test]
    fn descriptors_round_trip() {
        let bytes = channel().to_bytes();
        assert_eq!(ChannelDescriptor::from_bytes(&bytes), Ok(channel()));
    }
}
