//! Fixed-size signatures with compact encodings.

use std::fmt;

use serde::de::{Error, SeqAccess, Visitor};
use serde::ser::SerializeTuple;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

macro_rules! signature {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq)]
        pub struct $name(pub [u8; $len]);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", hex::encode(self.0))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let mut tuple = serializer.serialize_tuple($len)?;
                for byte in &self.0 {
                    tuple.serialize_element(byte)?;
                }
                tuple.end()
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Bytes;
                impl<'de> Visitor<'de> for Bytes {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        write!(f, "{} bytes", $len)
                    }
                    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<$name, A::Error> {
                        let mut out = [0u8; $len];
                        for slot in &mut out {
                            *slot = seq.next_element()?.ok_or_else(|| A::Error::custom("short"))?;
                        }
                        Ok($name(out))
                    }
                }
                deserializer.deserialize_tuple($len, Bytes)
            }
        }
    };
}

signature!(
    /// Ed25519, by a node's identity.
    IdentitySignature, 64
);
signature!(
    /// secp256k1 `r ‖ s ‖ v`, by a payment or voucher key.
    EvmSignature, 65
);

/// Peer ids as their multihash bytes.
pub mod peer_bytes {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::types::PeerId;

    /// Writes the multihash bytes.
    ///
    /// # Errors
    /// As the serializer.
    pub fn serialize<S: Serializer>(peer: &PeerId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&peer.to_bytes())
    }
    /// Reads and checks the multihash.
    ///
    /// # Errors
    /// When the bytes are no peer id.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PeerId, D::Error> {
        let bytes = Vec::<u8>::deserialize(deserializer)?;
        PeerId::from_bytes(&bytes).map_err(|_| D::Error::custom("not a peer id"))
    }
}
