//! secp256k1 keys: the payment key (its EVM address holds the money) and the voucher keys.
//!
//! Invariants: signatures are deterministic (RFC 6979), `r ‖ s ‖ v` with low s and v = 27 or 28;
//! recovery refuses anything else, so one message has one valid signature per key as the hub
//! contract checks it. Callers: `protocol` (vouchers, EIP-191 texts), `payment`, `chain`.

use std::fmt;

use alloy::primitives::{Address, eip191_hash_message};
use k256::ecdsa::{RecoveryId, Signature, SigningKey, VerifyingKey};
use rand::Rng;
use zeroize::Zeroizing;

use super::SignatureError;
use super::seed::SeedError;
use crate::types::{EvmAddress, Hash32, Secret};

/// What Ethereum adds to the recovery bit.
const V_BASE: u8 = 27;

/// A secp256k1 key pair that signs 32-byte hashes.
#[derive(Clone)]
pub struct PaymentKey {
    key: SigningKey,
    address: EvmAddress,
}

impl PaymentKey {
    /// From 32 secret bytes.
    ///
    /// # Errors
    /// When they are no valid scalar (zero, or the curve order and above).
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, SeedError> {
        let key = SigningKey::from_slice(bytes).map_err(|_| SeedError::NotAScalar)?;
        Ok(Self::from_signing_key(key))
    }
    pub(super) fn from_signing_key(key: SigningKey) -> Self {
        let address = address_of(key.verifying_key());
        Self { key, address }
    }
    /// A fresh key, for tests and demos.
    #[must_use]
    pub fn generate() -> Self {
        let mut bytes = Zeroizing::new([0u8; 32]);
        loop {
            rand::rng().fill_bytes(bytes.as_mut_slice());
            if let Ok(key) = Self::from_bytes(&bytes) {
                return key;
            }
        }
    }
    /// The EVM address.
    #[must_use]
    pub const fn address(&self) -> EvmAddress {
        self.address
    }
    /// The secret bytes, for the chain's transaction signer.
    #[must_use]
    pub fn secret_bytes(&self) -> Secret<[u8; 32]> {
        Secret::new(self.key.to_bytes().into())
    }
    /// Signs a hash: `r ‖ s ‖ v`, v = 27 or 28, low s.
    #[must_use]
    pub fn sign_hash(&self, hash: &Hash32) -> [u8; 65] {
        let mut out = [0u8; 65];
        // A 32-byte prehash is always long enough, so the error cannot occur; all-zero bytes are
        // no valid signature, so even then nothing would pass a check.
        if let Ok((signature, id)) = self.key.sign_prehash_recoverable(hash.as_bytes()) {
            let (low, id) = match signature.normalize_s() {
                Some(low) => (low, RecoveryId::new(!id.is_y_odd(), id.is_x_reduced())),
                None => (signature, id),
            };
            let (rs, v) = out.split_at_mut(64);
            rs.copy_from_slice(&low.to_bytes());
            v.fill(V_BASE.saturating_add(u8::from(id.is_y_odd())));
        }
        out
    }
}

impl fmt::Debug for PaymentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PaymentKey({})", to_checksum(&self.address))
    }
}

fn address_of(key: &VerifyingKey) -> EvmAddress {
    EvmAddress(Address::from_public_key(key).into_array())
}

/// Who signed `hash`.
///
/// # Errors
/// When s is high, v is not 27 or 28, or no key fits.
pub fn recover(hash: &Hash32, signature: &[u8; 65]) -> Result<EvmAddress, SignatureError> {
    let (rs, v) = signature.split_at(64);
    let odd = match v {
        [27] => false,
        [28] => true,
        _ => return Err(SignatureError::Malformed),
    };
    let parsed = Signature::from_slice(rs).map_err(|_| SignatureError::Malformed)?;
    if parsed.normalize_s().is_some() {
        return Err(SignatureError::Malformed);
    }
    VerifyingKey::recover_from_prehash(hash.as_bytes(), &parsed, RecoveryId::new(odd, false))
        .map(|key| address_of(&key))
        .map_err(|_| SignatureError::Mismatch)
}

/// The hash a wallet signs for `personal_sign` (EIP-191, version 0x45).
#[must_use]
pub fn personal_hash(message: &[u8]) -> Hash32 {
    Hash32(eip191_hash_message(message).0)
}

/// The address as people see it: `0x` and EIP-55 mixed case.
#[must_use]
pub fn to_checksum(address: &EvmAddress) -> String {
    Address::from(address.0).to_checksum(None)
}

/// Reads an address, only in its exact EIP-55 form.
#[must_use]
pub fn parse_checksummed(text: &str) -> Option<EvmAddress> {
    Address::parse_checksummed(text, None)
        .ok()
        .map(|address| EvmAddress(address.into_array()))
}

/// Reads an address as people write it: EIP-55 mixed case with its checksum, or all in one case.
///
/// # Errors
/// When it is none, or its checksum shows a typing error.
pub fn parse_address(text: &str) -> Result<EvmAddress, String> {
    let wrong = || format!("`{text}` is no address; they look like 0x5FbD…0aa3, 40 hex digits");
    let bare = text.strip_prefix("0x").ok_or_else(wrong)?;
    let address: EvmAddress = bare.parse().map_err(|_| wrong())?;
    let is_mixed = bare != bare.to_lowercase() && bare != bare.to_uppercase();
    if is_mixed && parse_checksummed(text).is_none() {
        return Err(format!(
            "`{text}` has a typing error: its EIP-55 checksum is wrong"
        ));
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(hex_bytes: &str) -> PaymentKey {
        let bytes: [u8; 32] = hex::decode(hex_bytes).unwrap().try_into().unwrap();
        PaymentKey::from_bytes(&bytes).unwrap()
    }

    #[test]
    fn a_well_known_personal_signature_comes_out_byte_for_byte() {
        // web3.js documentation, `accounts.sign('Some data', …)`.
        let key = key("4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318");
        assert_eq!(
            to_checksum(&key.address()),
            "0x2c7536E3605D9C16a7a3D7b1898e529396a65c23"
        );
        let hash = personal_hash(b"Some data");
        assert_eq!(
            hash.to_string(),
            "1da44b586eb0729ff70a73c326926f6ed5a25f5b056e7f47fbc6e58d86871655"
        );
        let signature = key.sign_hash(&hash);
        assert_eq!(
            hex::encode(signature),
            "b91467e570a6466aa9e9876cbcd013baba02900b8979d43fe208a4a4f339f5fd6007e74cd82e037b800186422fc2da167c747ef045e5d18a5f5d4300f8e1a0291c"
        );
        assert_eq!(recover(&hash, &signature), Ok(key.address()));
    }

    #[test]
    fn the_mirrored_signature_with_high_s_is_refused() {
        // order - s of the vector above, with the other recovery bit.
        let key = key("4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318");
        let hash = personal_hash(b"Some data");
        let mut mirrored = key.sign_hash(&hash);
        let low = Signature::from_slice(&mirrored[..64]).unwrap();
        let high = Signature::from_scalars(low.r().to_bytes(), (-*low.s()).to_bytes()).unwrap();
        mirrored[..64].copy_from_slice(&high.to_bytes());
        mirrored[64] ^= 27 ^ 28;
        assert_eq!(recover(&hash, &mirrored), Err(SignatureError::Malformed));
    }

    #[test]
    fn zero_and_the_curve_order_are_no_keys() {
        assert!(PaymentKey::from_bytes(&[0; 32]).is_err());
        assert!(PaymentKey::from_bytes(&[0xff; 32]).is_err());
    }

    #[test]
    fn only_the_exact_checksummed_form_of_an_address_is_read() {
        let good = "0x2c7536E3605D9C16a7a3D7b1898e529396a65c23";
        assert!(parse_checksummed(good).is_some());
        assert!(parse_checksummed(&good.to_lowercase()).is_none());
        assert!(parse_checksummed("2c7536E3605D9C16a7a3D7b1898e529396a65c23").is_none());
    }

    #[test]
    fn secrets_do_not_show_in_debug_output() {
        let shown = format!("{:?}", PaymentKey::from_bytes(&[9; 32]).unwrap());
        assert!(shown.starts_with("PaymentKey(0x") && !shown.contains("0909"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn signatures_recover_to_the_signer_and_a_flipped_bit_does_not(
            seed in any::<[u8; 32]>(), hash in any::<[u8; 32]>(),
            at in 0usize..65, bit in 0u8..8,
        ) {
            let Ok(key) = PaymentKey::from_bytes(&seed) else { return Ok(()); };
            let signature = key.sign_hash(&Hash32(hash));
            prop_assert_eq!(recover(&Hash32(hash), &signature), Ok(key.address()));
            let mut forged = signature;
            forged[at] ^= 1 << bit;
            prop_assert_ne!(recover(&Hash32(hash), &forged), Ok(key.address()));
        }
    }
}
