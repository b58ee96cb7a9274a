//! Messages of the session stream: one ordered stream per pair, opened by the buyer.
//!
//! Order on every new stream, before the first head: HELLO both ways, TERMS when the buyer's copy
//! is old, OPEN and OPEN_ACK (idempotent: a seller that lost its ledger learns the channel anew),
//! then SYNC both ways. After that VOUCHER, RECEIPT, ACCEPT and TOP_UP flow as they arise.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::limits::{ATTEMPTS_PER_MESSAGE_MAX, SESSION_BYTES_MAX, tame_text};
use super::signature::{EvmSignature, IdentitySignature};
use super::voucher::{Opening, TopUp};
use super::{DecodeError, decode, domain, encode};
use crate::keys::{self, Identity};
use crate::types::{AttemptId, ChannelId, Hash32, MicroUsd, PeerId, UnixMs};

/// Credit mode's bit in [`Hello::modes`].
pub const MODE_CREDIT: u32 = 1;
/// Channel mode's bit in [`Hello::modes`]: channels on the chain that the terms name.
pub const MODE_CHANNEL: u32 = 2;

/// One message of the session stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionMessage {
    /// Both ways, first.
    Hello(Hello),
    /// S→B: signed terms (`SignedTerms::bytes`).
    Terms(Vec<u8>),
    /// B→S: the channel that pays.
    Open(Open),
    /// S→B: known, with this deposit.
    OpenAck {
        /// The channel.
        channel: ChannelId,
        /// Credit limit plus settlements, over all epochs; on a chain 0 when the channel is over: then
        /// the session is for ACCEPTs of what is in doubt, and carries no orders.
        deposit: MicroUsd,
    },
    /// B→S: what the buyer has signed and what it holds open.
    SyncBuyer(SyncBuyer),
    /// S→B: what the seller holds; also sent when the deposit changes.
    SyncSeller(SyncSeller),
    /// B→S: a cumulative promise.
    Voucher {
        /// The channel.
        channel: ChannelId,
        /// In all, from the channel's start.
        cumulative: MicroUsd,
        /// By the voucher key, over the EIP-712 digest.
        signature: EvmSignature,
    },
    /// S→B: durable up to here.
    VoucherAck {
        /// The channel.
        channel: ChannelId,
        /// The highest durable cumulative.
        cumulative: MicroUsd,
    },
    /// S→B: a receipt whose ACCEPT is missing (`SignedReceipt::bytes`).
    Receipt(Vec<u8>),
    /// B→S: costs that the buyer books.
    Accept(Accept),
    /// S→B: booked.
    AcceptAck(Vec<AttemptId>),
    /// Either way: this side gives the channel up; its epoch ends once both have said so.
    Close {
        /// The channel.
        channel: ChannelId,
        /// B→S: a voucher over exactly what the buyer consumed, for the close on the chain. It may
        /// be below the highest one, which holds prepayment too.
        last: Option<(MicroUsd, EvmSignature)>,
    },
    /// Either way: the session ends, and why.
    Error {
        /// snake_case.
        code: String,
        /// For people.
        message: String,
    },
    /// B→S: leave to raise the deposit on the chain.
    TopUp(TopUp),
}

/// The first message each way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`super::WIRE_VERSION`].
    pub version: u8,
    /// The network's name.
    pub network: String,
    /// Bits: [`MODE_CREDIT`], [`MODE_CHANNEL`]; B→S: the one it opens, S→B: all it takes.
    pub modes: u32,
    /// B→S: the terms the buyer holds; S→B: the current ones.
    pub terms_hash: Hash32,
    /// The sender's clock.
    pub clock_ms: UnixMs,
}

/// A buyer names its channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// `ChannelDescriptor::to_bytes`.
    pub descriptor: Vec<u8>,
    /// The channel's epoch in credit mode, the number of the opening in channel mode.
    pub epoch: u64,
    /// By the buyer's identity over the channel id: binds the EVM key to the node.
    pub signature: IdentitySignature,
    /// What opens it on the chain; none in credit mode.
    pub opening: Option<Opening>,
}

impl Open {
    /// Signs the opening of `channel`.
    #[must_use]
    pub fn sign(descriptor: Vec<u8>, epoch: u64, channel: ChannelId, identity: &Identity) -> Self {
        let signature =
            IdentitySignature(identity.sign(&domain::message(domain::OPEN, &channel.0)));
        Self {
            descriptor,
            epoch,
            signature,
            opening: None,
        }
    }
    /// With what opens it on the chain.
    #[must_use]
    pub fn with(self, opening: Opening) -> Self {
        Self {
            opening: Some(opening),
            ..self
        }
    }
    /// Checks that `buyer` opens `channel`.
    ///
    /// # Errors
    /// When it did not sign this.
    pub fn verify(&self, channel: ChannelId, buyer: &PeerId) -> Result<(), DecodeError> {
        keys::verify(
            buyer,
            &domain::message(domain::OPEN, &channel.0),
            &self.signature.0,
        )
        .map_err(|_| DecodeError::BadSignature("open"))
    }
}

/// What the buyer knows after (re)connecting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncBuyer {
    /// The channel.
    pub channel: ChannelId,
    /// Its highest voucher, signed; `None` when it signed nothing.
    pub voucher: Option<(MicroUsd, EvmSignature)>,
    /// Attempts without a final row and no longer running.
    pub open: Vec<AttemptId>,
}

/// What the seller knows after (re)connecting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncSeller {
    /// The channel.
    pub channel: ChannelId,
    /// Credit limit plus settlements.
    pub deposit: MicroUsd,
    /// Settlements booked so far; the buyer books the difference to its own.
    pub settled: MicroUsd,
    /// The highest voucher it holds, with the buyer's signature.
    pub voucher: Option<(MicroUsd, EvmSignature)>,
    /// What the buyer has accepted by the seller's books, the fee of an opening included: where a
    /// buyer without its ledger goes on.
    pub accepted: MicroUsd,
    /// Attempts it has not seen accepted and that no longer run.
    pub open: Vec<SyncAttempt>,
    /// Of the buyer's open attempts, those the seller does not know: nothing is owed.
    pub unknown: Vec<AttemptId>,
}

/// An attempt in doubt, as the seller saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncAttempt {
    /// The attempt.
    pub attempt: AttemptId,
    /// Its receipt (`SignedReceipt::bytes`), or `None` when the seller died before it had one.
    pub receipt: Option<Vec<u8>>,
    /// The signed head, so that a buyer without its ledger can see that it ordered this.
    pub signed_head: Vec<u8>,
}

/// Costs the buyer books, one signature for all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accept {
    /// Attempt and accepted cost.
    pub items: Vec<(AttemptId, MicroUsd)>,
    /// By the buyer's identity, `accept/v1`.
    pub signature: IdentitySignature,
}

impl Accept {
    /// Signs a batch.
    #[must_use]
    pub fn sign(items: Vec<(AttemptId, MicroUsd)>, identity: &Identity) -> Self {
        let message = domain::message(domain::ACCEPT, &encode(&items));
        Self {
            signature: IdentitySignature(identity.sign(&message)),
            items,
        }
    }
    /// Checks the buyer's signature.
    ///
    /// # Errors
    /// When it is bad.
    pub fn verify(&self, buyer: &PeerId) -> Result<(), DecodeError> {
        let message = domain::message(domain::ACCEPT, &encode(&self.items));
        keys::verify(buyer, &message, &self.signature.0)
            .map_err(|_| DecodeError::BadSignature("accept"))
    }
}

impl SessionMessage {
    /// Encodes the payload of a SESSION frame.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Decodes and bounds a message.
    ///
    /// # Errors
    /// When it is malformed or lists too many attempts.
    pub fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let mut message: Self = decode("session message", bytes, SESSION_BYTES_MAX)?;
        let listed = match &mut message {
            Self::SyncBuyer(sync) => sync.open.len(),
            Self::SyncSeller(sync) => sync.open.len().max(sync.unknown.len()),
            Self::Accept(accept) => accept.items.len(),
            Self::AcceptAck(items) => items.len(),
            Self::Error { code, message } => {
                *code = tame_text(code);
                *message = tame_text(message);
                0
            }
            _ => 0,
        };
        if listed > ATTEMPTS_PER_MESSAGE_MAX {
            return Err(DecodeError::TooLong {
                len: listed,
                max: ATTEMPTS_PER_MESSAGE_MAX,
            });
        }
        Ok(message)
    }
}
