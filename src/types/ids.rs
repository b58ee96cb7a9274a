//! Identifiers. Peers are libp2p peer ids (their ed25519 public key is inside); requests, attempts
//! and channels are fixed-size byte strings printed as lower-case hex.

use std::fmt;
use std::str::FromStr;

pub use libp2p::PeerId;
use serde::{Deserialize, Serialize};
use unicode_normalization::UnicodeNormalization;

/// Longest canonical model id, in bytes; longer ones are kept verbatim.
const MODEL_ID_BYTES_MAX: usize = 96;

/// Why an identifier was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
pub enum IdError {
    /// Wrong length or not hex.
    #[error("`{0}` is not {1} bytes of hex")]
    NotHex(String, usize),
}

macro_rules! byte_id {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// The bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
            /// From a slice of exactly the right length.
            #[must_use]
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                <[u8; $len]>::try_from(bytes).ok().map(Self)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), hex::encode(self.0))
            }
        }
        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                let bare = text.strip_prefix("0x").unwrap_or(text);
                hex::decode(bare)
                    .ok()
                    .and_then(|v| Self::from_slice(&v))
                    .ok_or_else(|| IdError::NotHex(text.to_owned(), $len))
            }
        }
    };
}

byte_id!(
    /// A client's request; equal in all attempts and in both ledgers.
    RequestId, 16
);
byte_id!(
    /// One attempt at one seller: the first 16 bytes of sha256(head).
    AttemptId, 16
);
byte_id!(
    /// A payment channel: the EIP-712 digest of its descriptor.
    ChannelId, 32
);
byte_id!(
    /// A sha-256 or keccak-256 hash.
    Hash32, 32
);
byte_id!(
    /// A 20-byte EVM address (prints without `0x`; `to_checksum` in `keys` prints for people).
    EvmAddress, 20
);

byte_id!(
    /// A transaction that is to be made, whatever fees it takes in the end.
    IntentId, 16
);

impl RequestId {
    /// A fresh id: 6 bytes of milliseconds, then 10 random bytes. Ids of one node rise with time,
    /// which keeps the ledger's index pages few and warm.
    #[must_use]
    pub fn generate(now_ms: super::UnixMs) -> Self {
        let mut id: [u8; 16] = rand::random();
        if let (Some(slot), Some(time)) = (
            id.first_chunk_mut::<6>(),
            now_ms.to_be_bytes().last_chunk::<6>(),
        ) {
            *slot = *time;
        }
        Self(id)
    }
}

/// A model's name on the network: trimmed, NFC, lower case, ASCII `[a-z0-9._:/@-]`, at most 96
/// bytes; names that do not fit are kept verbatim (trimmed).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ModelId(String);

impl ModelId {
    /// Makes the canonical form of `name`.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let trimmed = name.trim();
        let lowered: String = trimmed.nfc().collect::<String>().to_lowercase();
        if lowered.len() <= MODEL_ID_BYTES_MAX && lowered.bytes().all(is_model_byte) {
            Self(lowered)
        } else {
            Self(trimmed.to_owned())
        }
    }
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

const fn is_model_byte(b: u8) -> bool {
    b.is_ascii_lowercase()
        || b.is_ascii_digit()
        || matches!(b, b'.' | b'_' | b':' | b'/' | b'@' | b'-')
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_names_are_folded_to_one_form() {
        assert_eq!(ModelId::new("  Llama-3.1:8B ").as_str(), "llama-3.1:8b");
        assert_eq!(ModelId::new("Modèle X").as_str(), "Modèle X");
        let long = "A".repeat(97);
        assert_eq!(ModelId::new(&long).as_str(), long);
    }

    #[test]
    fn ids_round_trip_as_hex() {
        let id = RequestId([7; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("zz".parse::<RequestId>().is_err());
    }
}
