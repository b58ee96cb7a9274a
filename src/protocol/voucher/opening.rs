//! What a buyer signs so that somebody else can open its channel on a chain, and what both ledgers
//! keep of such a channel: enough to open it again after a crash, and to check it years later.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{ChannelDescriptor, HubDomain};
use crate::protocol::signature::EvmSignature;
use crate::protocol::{DecodeError, decode, encode};
use crate::types::{ChannelId, EvmAddress, Hash32, MicroUsd, PeerId};

/// Bytes of an encoded channel, at most: a descriptor, two signatures, some integers.
const HUB_CHANNEL_BYTES_MAX: usize = 1_024;

/// Tokens that may go from the buyer's wallet into its vault (ERC-3009), signed by the wallet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenAuthorization {
    /// How much.
    pub amount: MicroUsd,
    /// Void until then, in seconds.
    pub valid_after_s: u64,
    /// Void from then on, in seconds.
    pub valid_before_s: u64,
    /// Random.
    pub nonce: Hash32,
    /// The wallet's, over the token's own digest.
    pub signature: EvmSignature,
}

/// A buyer's leave to open a channel from its vault, and to fill the vault first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opening {
    /// The buyer's device; part of the salt.
    pub device: u32,
    /// Most that vouchers will be worth.
    pub deposit: MicroUsd,
    /// What the seller gets for opening it.
    pub open_fee: MicroUsd,
    /// When the rest may go back, in seconds.
    pub expiry_s: u64,
    /// Void from then on, in seconds.
    pub valid_before_s: u64,
    /// The vault owner's, over the hub's OpenAuth digest.
    pub signature: EvmSignature,
    /// When the vault lacks some of the deposit.
    pub authorization: Option<TokenAuthorization>,
}

/// A buyer's leave to raise a channel's deposit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopUp {
    /// The channel.
    pub channel: ChannelId,
    /// The new deposit in all.
    pub deposit: MicroUsd,
    /// The new expiry, in seconds.
    pub expiry_s: u64,
    /// Void from then on, in seconds.
    pub valid_before_s: u64,
    /// The vault owner's, over the hub's TopUpAuth digest.
    pub signature: EvmSignature,
    /// When the vault lacks some of it.
    pub authorization: Option<TokenAuthorization>,
}

/// A channel on a chain, as a ledger keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HubChannel {
    /// Where it is.
    pub domain: HubDomain,
    /// Who pays whom.
    pub descriptor: ChannelDescriptor,
    /// What the buyer signed to open it.
    pub opening: Opening,
    /// Counts as consumed before the first request: the fee for opening, or after a lost ledger all
    /// that was signed by then.
    pub consumed: MicroUsd,
}

impl HubChannel {
    /// The channel's id.
    #[must_use]
    pub fn id(&self) -> ChannelId {
        self.domain.channel_id(&self.descriptor)
    }
    /// As it is stored.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        encode(self)
    }
    /// From stored bytes.
    ///
    /// # Errors
    /// When they are malformed.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        decode("channel", bytes, HUB_CHANNEL_BYTES_MAX)
    }
}

/// What a chain channel's descriptor is made of, besides the two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HubTerms {
    /// The buyer's vault account.
    pub buyer: EvmAddress,
    /// The seller's vault account.
    pub seller: EvmAddress,
    /// Who may close besides the seller.
    pub operator: EvmAddress,
    /// The token.
    pub token: EvmAddress,
    /// The buyer's hot key.
    pub voucher_signer: EvmAddress,
    /// Seconds.
    pub challenge_period_s: u32,
}

impl ChannelDescriptor {
    /// The descriptor of a channel on a chain. The salt names both nodes, the buyer's device and the
    /// number of the opening between them, so that a node without its ledger finds it again.
    #[must_use]
    pub fn on_hub(
        terms: &HubTerms,
        buyer: &PeerId,
        seller: &PeerId,
        device: u32,
        counter: u64,
    ) -> Self {
        let mut salt = Sha256::new();
        salt.update(buyer.to_bytes());
        salt.update(seller.to_bytes());
        salt.update(device.to_be_bytes());
        salt.update(counter.to_be_bytes());
        Self {
            buyer: terms.buyer,
            seller: terms.seller,
            operator: terms.operator,
            token: terms.token,
            voucher_signer: terms.voucher_signer,
            challenge_period_s: terms.challenge_period_s,
            salt: Hash32(salt.finalize().into()),
        }
    }
}

#[cfg(test)]
impl HubChannel {
    /// One of fixed parties for tests, whose opening holds for ever and has cost its fee.
    pub(crate) fn example(deposit: MicroUsd, open_fee: MicroUsd) -> Self {
        let address = |n| EvmAddress([n; 20]);
        Self {
            domain: HubDomain {
                chain_id: 1,
                hub: address(9),
            },
            descriptor: ChannelDescriptor {
                buyer: address(1),
                seller: address(2),
                operator: address(2),
                token: address(3),
                voucher_signer: address(4),
                challenge_period_s: 86_400,
                salt: Hash32([5; 32]),
            },
            opening: Opening {
                device: 0,
                deposit,
                open_fee,
                expiry_s: u64::MAX,
                valid_before_s: u64::MAX,
                signature: EvmSignature([0; 65]),
                authorization: None,
            },
            consumed: open_fee,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel() -> HubChannel {
        let address = |n| EvmAddress([n; 20]);
        let terms = HubTerms {
            buyer: address(1),
            seller: address(2),
            operator: address(2),
            token: address(3),
            voucher_signer: address(4),
            challenge_period_s: 86_400,
        };
        let (buyer, seller) = (PeerId::random(), PeerId::random());
        let authorization = TokenAuthorization {
            amount: MicroUsd::MAX,
            valid_after_s: u64::MAX,
            valid_before_s: u64::MAX,
            nonce: Hash32([6; 32]),
            signature: EvmSignature([7; 65]),
        };
        HubChannel {
            domain: HubDomain {
                chain_id: u64::MAX,
                hub: address(5),
            },
            descriptor: ChannelDescriptor::on_hub(&terms, &buyer, &seller, 0, 0),
            opening: Opening {
                device: u32::MAX,
                deposit: MicroUsd::MAX,
                open_fee: MicroUsd::MAX,
                expiry_s: u64::MAX,
                valid_before_s: u64::MAX,
                signature: EvmSignature([8; 65]),
                authorization: Some(authorization),
            },
            consumed: MicroUsd::MAX,
        }
    }

    #[test]
    fn the_largest_channel_round_trips_within_its_bound() {
        let bytes = channel().to_bytes();
        assert!(bytes.len() <= HUB_CHANNEL_BYTES_MAX, "{}", bytes.len());
        assert_eq!(HubChannel::from_bytes(&bytes), Ok(channel_of(&bytes)));
        assert!(HubChannel::from_bytes(&bytes[..bytes.len() - 1]).is_err());
    }

    fn channel_of(bytes: &[u8]) -> HubChannel {
        postcard::from_bytes(bytes).unwrap()
    }

    #[test]
    fn each_opening_has_its_own_salt() {
        let terms = HubTerms {
            buyer: EvmAddress([1; 20]),
            seller: EvmAddress([2; 20]),
            operator: EvmAddress([2; 20]),
            token: EvmAddress([3; 20]),
            voucher_signer: EvmAddress([4; 20]),
            challenge_period_s: 3_600,
        };
        let (buyer, seller) = (PeerId::random(), PeerId::random());
        let of = |device, counter| {
            ChannelDescriptor::on_hub(&terms, &buyer, &seller, device, counter).salt
        };
        let salts = [of(0, 0), of(0, 1), of(1, 0), of(1, 1)];
        let different: std::collections::BTreeSet<[u8; 32]> = salts.iter().map(|s| s.0).collect();
        assert_eq!(different.len(), 4);
    }
}
