//! Messages of `/souk/relay-tx/1`: a buyer without gas asks a seller to send its signed calls to the
//! hub, for a fee that one of the calls pays out of the buyer's vault.
//!
//! On one stream: ASK, QUOTE, SEND, SENT; either side may answer REFUSED instead and the stream
//! ends. Nothing here is trusted: the hub checks every call's signature, the relayer what the calls
//! are and that they pay it.

use serde::{Deserialize, Serialize};

use super::limits::{RELAY_BYTES_MAX, RELAY_CALLS_MAX, tame_text};
use super::{DecodeError, decode, encode};
use crate::types::{EvmAddress, IntentId, MicroUsd};

/// What a call does; what it costs in gas follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum CallKind {
    /// Takes tokens from the buyer's wallet into its vault.
    Deposit,
    /// Opens a channel.
    Open,
    /// Raises a channel's deposit.
    TopUp,
    /// Asks for a channel's end.
    RequestClose,
    /// Ends a channel with both signatures.
    Close,
    /// Brings an expired channel's rest back.
    Reclaim,
    /// Pays out of the vault, the relayer's fee with it.
    Withdraw,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RelayMessage {
    /// B→S: what would it cost?
    Ask(Ask),
    /// S→B: this much.
    Quote(Quote),
    /// B→S: the calls, in order; one of them pays the fee.
    Send(Vec<Vec<u8>>),
    /// S→B: the transaction is durable at the relayer and on its way.
    Sent {
        /// The relayer's name for it.
        intent: IntentId,
    },
    /// S→B: no, and why.
    Refused {
        /// For people.
        reason: String,
    },
}

/// A transaction in outline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// The chain.
    pub chain_id: u64,
    /// The hub on it.
    pub hub: EvmAddress,
    /// The token that the fee is paid in.
    pub token: EvmAddress,
    /// The calls, without the one that pays.
    pub kinds: Vec<CallKind>,
}

/// What a relayer wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quote {
    /// Whom the fee is to be made out to.
    pub relayer: EvmAddress,
    /// How much; it holds for this stream.
    pub fee: MicroUsd,
}

impl RelayMessage {
    /// As it travels.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads a message; text of the peer is tamed.
    ///
    /// # Errors
    /// When it is malformed or above a limit.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut message: Self = decode("relay message", bytes, RELAY_BYTES_MAX)?;
        let count = match &mut message {
            Self::Ask(ask) => ask.kinds.len(),
            Self::Send(calls) => calls.len(),
            Self::Refused { reason } => {
                *reason = tame_text(reason);
                0
            }
            Self::Quote(_) | Self::Sent { .. } => 0,
        };
        if count > RELAY_CALLS_MAX {
            return Err(DecodeError::Malformed("relay message: too many calls"));
        }
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_survive_the_wire_and_excess_is_refused() {
        let ask = |count: usize| {
            RelayMessage::Ask(Ask {
                chain_id: 8_453,
                hub: EvmAddress([1; 20]),
                token: EvmAddress([2; 20]),
                kinds: vec![CallKind::Reclaim; count],
            })
        };
        for message in [
            ask(RELAY_CALLS_MAX),
            RelayMessage::Quote(Quote {
                relayer: EvmAddress([3; 20]),
                fee: MicroUsd(7),
            }),
            RelayMessage::Send(vec![vec![1, 2], vec![]]),
            RelayMessage::Sent {
                intent: IntentId([4; 16]),
            },
        ] {
            assert_eq!(RelayMessage::from_bytes(&message.to_bytes()), Ok(message));
        }
        assert!(RelayMessage::from_bytes(&ask(RELAY_CALLS_MAX + 1).to_bytes()).is_err());
        let long = RelayMessage::Send(vec![vec![0; RELAY_BYTES_MAX]]);
        assert!(matches!(
            RelayMessage::from_bytes(&long.to_bytes()),
            Err(DecodeError::TooLong { .. })
        ));
        let odd = RelayMessage::Refused {
            reason: "no\u{1b}[2J".to_owned(),
        };
        let read = RelayMessage::from_bytes(&odd.to_bytes()).unwrap();
        assert!(matches!(read, RelayMessage::Refused { reason } if !reason.contains('\u{1b}')));
    }

    proptest! {
        #[test]
        fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..600)) {
            drop(RelayMessage::from_bytes(&noise));
        }
    }
}
