//! How the parts of an offer travel that serde alone would write too large or read too freely:
//! a peer id as its 32-byte key, addresses borrowed and counted before anything is allocated.

use crate::types::PeerId;

/// A peer id of an ed25519 key is `identity multihash ‖ protobuf{type 1, 32 bytes}`.
const PROTOBUF_PREFIX: [u8; 4] = [0x08, 0x01, 0x12, 0x20];

/// The ed25519 public key inside a peer id, if there is one.
#[must_use]
pub fn public_key_of(peer: &PeerId) -> Option<[u8; 32]> {
    let multihash = peer.as_ref();
    if multihash.code() != 0 {
        return None;
    }
    multihash
        .digest()
        .strip_prefix(&PROTOBUF_PREFIX)
        .and_then(|key| key.try_into().ok())
}

/// The peer id of an ed25519 public key (the key's validity is checked with the signature).
fn peer_of(key: &[u8; 32]) -> Option<PeerId> {
    // identity multihash: code 0, length 36, then the protobuf.
    let mut bytes = vec![0x00, 0x24];
    bytes.extend_from_slice(&PROTOBUF_PREFIX);
    bytes.extend_from_slice(key);
    PeerId::from_bytes(&bytes).ok()
}

pub(super) mod peer {
    //! A peer id as its public key.
    use super::{PeerId, peer_of, public_key_of};
    use serde::de::Error as _;
    use serde::ser::Error as _;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(
        peer: &PeerId,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        public_key_of(peer)
            .ok_or_else(|| S::Error::custom("the peer id holds no ed25519 key"))?
            .serialize(to)
    }
    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<PeerId, D::Error> {
        let key = <[u8; 32]>::deserialize(from)?;
        peer_of(&key).ok_or_else(|| D::Error::custom("no ed25519 key"))
    }
}

pub(super) mod addresses {
    //! At most four byte strings; a claimed length allocates nothing.
    use std::fmt;

    use serde::de::{Error as _, SeqAccess, Visitor};
    use serde::{Deserializer, Serialize, Serializer};

    use super::super::ADDRESSES_MAX;

    pub(in super::super) fn serialize<S: Serializer>(
        list: &[Vec<u8>],
        to: S,
    ) -> Result<S::Ok, S::Error> {
        list.serialize(to)
    }
    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<Vec<u8>>, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Vec<Vec<u8>>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {ADDRESSES_MAX} addresses")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut list = Vec::new();
                while let Some(address) = seq.next_element::<&'de [u8]>()? {
                    if list.len() == ADDRESSES_MAX {
                        return Err(A::Error::custom("too many addresses"));
                    }
                    list.push(address.to_vec());
                }
                Ok(list)
            }
        }
        from.deserialize_seq(List)
    }
}
