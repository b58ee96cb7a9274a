//! The node's ed25519 identity: signs with a key whose public half is inside the peer id, so a
//! signature is checked with nothing but the peer id.
//!
//! Invariants: the peer id is the identity multihash of libp2p's protobuf public key (what every
//! libp2p node computes for the same seed); own messages are checked with `verify_strict`, which
//! refuses weak keys and malleable signatures. Callers: everything that signs or checks offers,
//! heads, receipts, delegations.

use std::fmt;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use rand::Rng;
use zeroize::Zeroizing;

use crate::types::{PeerId, Secret};

/// How an ed25519 peer id begins: identity multihash (0x00) of 36 bytes (0x24), which are the
/// protobuf `KeyType = Ed25519` (08 01) and `Data` of 32 bytes (12 20).
const PEER_ID_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];
/// Multicodec of an ed25519 public key, as `did:key` wants it.
const DID_PREFIX: [u8; 2] = [0xed, 0x01];

/// Why a signature was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The peer id holds no ed25519 key.
    #[error("this peer id holds no ed25519 key; only ed25519 peers can sign here")]
    NotEd25519,
    /// The public key is no point of the curve.
    #[error("the public key is malformed")]
    BadKey,
    /// The signature does not fit the message and the key.
    #[error("the signature does not fit the message and the signer")]
    Mismatch,
    /// A malleable or malformed signature (high s, recovery byte other than 27 or 28).
    #[error("the signature is malformed: it needs a low s and a recovery byte of 27 or 28")]
    Malformed,
}

/// An ed25519 key pair and its peer id.
#[derive(Clone)]
pub struct Identity {
    key: SigningKey,
    peer_id: PeerId,
}

impl Identity {
    /// The identity of a 32-byte seed.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let key = SigningKey::from_bytes(seed);
        let peer_id = peer_id_of(key.verifying_key().as_bytes());
        Self { key, peer_id }
    }
    /// A fresh identity, for tests and demos (a node's own comes from its [`super::Seed`]).
    #[must_use]
    pub fn generate() -> Self {
        let mut seed = Zeroizing::new([0u8; 32]);
        rand::rng().fill_bytes(seed.as_mut_slice());
        Self::from_seed(&seed)
    }
    /// The peer id; the public key is inside.
    #[must_use]
    pub fn peer_id(&self) -> PeerId {
        self.peer_id
    }
    /// `did:key:z6Mk…`.
    #[must_use]
    pub fn did(&self) -> String {
        let mut bytes = DID_PREFIX.to_vec();
        bytes.extend_from_slice(&self.public_key());
        format!("did:key:z{}", bs58::encode(bytes).into_string())
    }
    /// The raw public key.
    #[must_use]
    pub fn public_key(&self) -> [u8; 32] {
        self.key.verifying_key().to_bytes()
    }
    /// The same key as a Solana address.
    #[must_use]
    pub fn solana_address(&self) -> String {
        bs58::encode(self.public_key()).into_string()
    }
    /// Signs a message.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message).to_bytes()
    }
    /// The 32 seed bytes, for libp2p's own key pair.
    #[must_use]
    pub fn secret_bytes(&self) -> Secret<[u8; 32]> {
        Secret::new(self.key.to_bytes())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.peer_id)
    }
}

#[allow(
    clippy::expect_used,
    reason = "38 bytes under a constant, valid multihash header always parse; a test covers it"
)]
fn peer_id_of(public_key: &[u8; 32]) -> PeerId {
    let mut bytes = PEER_ID_PREFIX.to_vec();
    bytes.extend_from_slice(public_key);
    PeerId::from_bytes(&bytes).expect("an identity multihash of 36 bytes is a peer id")
}

/// The ed25519 public key inside a peer id.
///
/// # Errors
/// When the peer's key is of another kind.
pub fn public_key_of(peer: &PeerId) -> Result<[u8; 32], SignatureError> {
    peer.to_bytes()
        .strip_prefix(&PEER_ID_PREFIX)
        .and_then(|key| <[u8; 32]>::try_from(key).ok())
        .ok_or(SignatureError::NotEd25519)
}

/// Checks that `peer` signed `message` (strictly: no weak keys, no malleable signatures).
///
/// # Errors
/// When the peer id holds no usable ed25519 key or the signature does not fit.
pub fn verify(peer: &PeerId, message: &[u8], signature: &[u8; 64]) -> Result<(), SignatureError> {
    verify_with_key(&public_key_of(peer)?, message, signature)
}

/// Checks a signature against a raw ed25519 public key (a Solana wallet's), strictly.
///
/// # Errors
/// When the key is malformed or the signature does not fit.
pub fn verify_with_key(
    public_key: &[u8; 32],
    message: &[u8],
    signature: &[u8; 64],
) -> Result<(), SignatureError> {
    VerifyingKey::from_bytes(public_key)
        .map_err(|_| SignatureError::BadKey)?
        .verify_strict(message, &Signature::from_bytes(signature))
        .map_err(|_| SignatureError::Mismatch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_peer_id_is_the_one_libp2p_computes_for_the_same_seed() {
        let mut seed = [7u8; 32];
        let identity = Identity::from_seed(&seed);
        let theirs = libp2p::identity::Keypair::ed25519_from_bytes(&mut seed).unwrap();
        assert_eq!(identity.peer_id(), theirs.public().to_peer_id());
        assert!(identity.peer_id().to_base58().starts_with("12D3Koo"));
        let signature = identity.sign(b"hello");
        assert!(theirs.public().verify(b"hello", &signature));
        let back: [u8; 64] = theirs.sign(b"hi").unwrap().try_into().unwrap();
        assert_eq!(verify(&identity.peer_id(), b"hi", &back), Ok(()));
    }

    #[test]
    fn rfc_8032_test_1_gives_its_known_key_signature_and_did() {
        let seed: [u8; 32] =
            hex::decode("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
                .unwrap()
                .try_into()
                .unwrap();
        let identity = Identity::from_seed(&seed);
        assert_eq!(
            hex::encode(identity.public_key()),
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
        );
        assert_eq!(
            hex::encode(identity.sign(b"")),
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
        );
        assert!(identity.did().starts_with("did:key:z6Mk"));
    }

    #[test]
    fn secrets_do_not_show_in_debug_output() {
        let identity = Identity::from_seed(&[9; 32]);
        let shown = format!("{identity:?} {:?}", identity.secret_bytes());
        assert!(!shown.contains("0909") && !shown.contains("9, 9"));
    }

    #[test]
    fn a_peer_id_without_an_ed25519_key_is_refused() {
        assert_eq!(
            verify(&PeerId::random(), b"x", &[0; 64]),
            Err(SignatureError::NotEd25519)
        );
    }

    #[test]
    fn a_weak_key_cannot_sign_anything() {
        // The identity point: with it (R = identity, s = 0) passes a lax check of any message.
        let mut weak = [0u8; 32];
        weak[0] = 1;
        let mut signature = [0u8; 64];
        signature[0] = 1;
        assert!(verify_with_key(&weak, b"anything", &signature).is_err());
    }

    proptest! {
        #[test]
        fn any_flipped_bit_of_message_or_signature_is_refused(
            message in proptest::collection::vec(any::<u8>(), 1..64),
            at in any::<prop::sample::Index>(),
            bit in 0u8..8,
        ) {
            let identity = Identity::from_seed(&[3; 32]);
            let signature = identity.sign(&message);
            prop_assert_eq!(verify(&identity.peer_id(), &message, &signature), Ok(()));
            let mut forged = signature;
            forged[at.index(64)] ^= 1 << bit;
            prop_assert!(verify(&identity.peer_id(), &message, &forged).is_err());
            let mut other = message.clone();
            let i = at.index(other.len());
            other[i] ^= 1 << bit;
            prop_assert!(verify(&identity.peer_id(), &other, &signature).is_err());
        }
    }
}
