//! One seed, from which every key of the node is derived.
//!
//! Words follow the wallets (BIP-39, SLIP-10 for ed25519, BIP-32 for secp256k1), so Phantom and
//! MetaMask restore the same addresses. Raw seeds (imports) have no words: their secp256k1 keys
//! come by HKDF-SHA256 under labels of our own. Invariants: no key material outlives its owner
//! un-wiped; the paths and labels never change (they are where the money is). Callers:
//! [`super::NodeKeys`], `keys::file`, `cli::keygen`.

use std::fmt;

use bip39::{Language, Mnemonic};
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use rand::TryRng;
use sha2::{Sha256, Sha512};
use zeroize::{Zeroize, Zeroizing};

use super::{Identity, PaymentKey};
use crate::types::Secret;

/// Where Solana wallets keep the first account; every level is hardened.
const IDENTITY_PATH: [u32; 4] = [44, 501, 0, 0];
/// Where EVM wallets keep the first account.
const PAYMENT_PATH: &str = "m/44'/60'/0'/0/0";
/// Voucher keys: account 1, one index per device.
const VOUCHER_PATH: &str = "m/44'/60'/1'/0";
/// HKDF label of a raw seed's payment key.
const PAYMENT_LABEL: &[u8] = b"souk/payment/v1";
/// HKDF label of a raw seed's voucher keys; the device follows as 4 bytes, big endian.
const VOUCHER_LABEL: &[u8] = b"souk/voucher/v1";
/// Set in a BIP-32 index that is hardened; plain device numbers end below it.
const HARDENED: u32 = 0x8000_0000;

/// Why a seed was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SeedError {
    /// Not a BIP-39 phrase.
    #[error("these are not BIP-39 recovery words: {0}; check the spelling and the order")]
    Words(&'static str),
    /// The system gave no randomness.
    #[error("the system's random source failed; try again")]
    Random,
    /// Device numbers end below 2^31.
    #[error("device {0} is out of range; set `[payment] device` below 2147483648")]
    Device(u32),
    /// A scalar outside the curve order (chance 2^-127).
    #[error("this seed gives no valid payment key; generate or import another")]
    NotAScalar,
}

/// How many recovery words to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WordCount {
    /// 128 bits of entropy.
    #[default]
    Twelve,
    /// 256 bits of entropy.
    TwentyFour,
}

/// The secret everything else comes from.
#[derive(Clone)]
pub enum Seed {
    /// BIP-39 recovery words (no BIP-39 passphrase).
    Words {
        /// The phrase, lower case, single spaces.
        phrase: Secret<String>,
        /// PBKDF2 of the phrase, made once because it is slow.
        stretched: Secret<[u8; 64]>,
    },
    /// 32 bytes of an import: the ed25519 seed itself.
    Raw(Secret<[u8; 32]>),
}

impl Seed {
    /// Fresh words from the system's random source.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn generate(count: WordCount) -> Result<Self, SeedError> {
        let mut entropy = Zeroizing::new([0u8; 32]);
        rand::rngs::SysRng
            .try_fill_bytes(entropy.as_mut_slice())
            .map_err(|_| SeedError::Random)?;
        let used = match count {
            WordCount::Twelve => 16,
            WordCount::TwentyFour => 32,
        };
        let (entropy, _) = entropy.split_at_checked(used).ok_or(SeedError::Random)?;
        let mnemonic = Mnemonic::from_entropy_in(Language::English, entropy)
            .map_err(|e| SeedError::Words(reason(&e)))?;
        Ok(Self::from_mnemonic(&mnemonic))
    }

    /// From recovery words; case and white space do not matter, the checksum does.
    ///
    /// # Errors
    /// When they are no English BIP-39 phrase.
    pub fn from_words(text: &str) -> Result<Self, SeedError> {
        let mut tidy = Zeroizing::new(String::with_capacity(text.len()));
        for word in text.split_whitespace() {
            if !tidy.is_empty() {
                tidy.push(' ');
            }
            tidy.extend(word.chars().map(|c| c.to_ascii_lowercase()));
        }
        let mnemonic = Mnemonic::parse_in_normalized(Language::English, &tidy)
            .map_err(|e| SeedError::Words(reason(&e)))?;
        Ok(Self::from_mnemonic(&mnemonic))
    }

    /// From the 32 bytes of an ed25519 key.
    #[must_use]
    pub const fn from_raw(bytes: [u8; 32]) -> Self {
        Self::Raw(Secret::new(bytes))
    }

    fn from_mnemonic(mnemonic: &Mnemonic) -> Self {
        Self::Words {
            phrase: Secret::new(mnemonic.to_string()),
            stretched: Secret::new(mnemonic.to_seed_normalized("")),
        }
    }

    /// The recovery words, if this seed has any.
    #[must_use]
    pub const fn words(&self) -> Option<&Secret<String>> {
        match self {
            Self::Words { phrase, .. } => Some(phrase),
            Self::Raw(_) => None,
        }
    }

    /// The ed25519 identity.
    ///
    /// # Errors
    /// Never for a seed made here; kept fallible with its siblings.
    pub fn identity(&self) -> Result<Identity, SeedError> {
        match self {
            Self::Words { stretched, .. } => {
                let key = slip10(stretched.expose(), &IDENTITY_PATH)?;
                Ok(Identity::from_seed(&key))
            }
            Self::Raw(bytes) => Ok(Identity::from_seed(bytes.expose())),
        }
    }

    /// The key that holds the money.
    ///
    /// # Errors
    /// With a chance of 2^-127.
    pub fn payment(&self) -> Result<PaymentKey, SeedError> {
        match self {
            Self::Words { stretched, .. } => bip32_key(stretched.expose(), PAYMENT_PATH),
            Self::Raw(bytes) => expand(bytes.expose(), &[PAYMENT_LABEL]),
        }
    }

    /// The voucher key of a device.
    ///
    /// # Errors
    /// When `device` is 2^31 or more.
    pub fn voucher(&self, device: u32) -> Result<PaymentKey, SeedError> {
        if device >= HARDENED {
            return Err(SeedError::Device(device));
        }
        match self {
            Self::Words { stretched, .. } => {
                bip32_key(stretched.expose(), &format!("{VOUCHER_PATH}/{device}"))
            }
            Self::Raw(bytes) => expand(bytes.expose(), &[VOUCHER_LABEL, &device.to_be_bytes()]),
        }
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Words { .. } => "Seed::Words([secret])",
            Self::Raw(_) => "Seed::Raw([secret])",
        })
    }
}

/// What is wrong with a phrase, without repeating any of it.
const fn reason(error: &bip39::Error) -> &'static str {
    match error {
        bip39::Error::BadWordCount(_) => "a phrase has 12, 15, 18, 21 or 24 words",
        bip39::Error::UnknownWord(_) => "a word is not in the English word list",
        bip39::Error::InvalidChecksum => "the checksum does not fit",
        _ => "the phrase is malformed",
    }
}

/// SLIP-10 for ed25519: hardened children only, HMAC-SHA512 all the way down.
fn slip10(seed: &[u8], path: &[u32]) -> Result<Zeroizing<[u8; 32]>, SeedError> {
    let mut node = hmac_sha512(b"ed25519 seed", &[seed])?;
    for index in path {
        let (key, chain) = node.split_at(32);
        let hardened = (index | HARDENED).to_be_bytes();
        node = hmac_sha512(chain, &[&[0], key, &hardened])?;
    }
    let mut key = Zeroizing::new([0u8; 32]);
    let (left, _) = node.split_at(32);
    key.copy_from_slice(left);
    Ok(key)
}

fn hmac_sha512(key: &[u8], parts: &[&[u8]]) -> Result<Zeroizing<[u8; 64]>, SeedError> {
    let mut mac = Hmac::<Sha512>::new_from_slice(key).map_err(|_| SeedError::NotAScalar)?;
    for part in parts {
        mac.update(part);
    }
    Ok(Zeroizing::new(mac.finalize().into_bytes().into()))
}

fn bip32_key(seed: &[u8], path: &str) -> Result<PaymentKey, SeedError> {
    let path = path.parse().map_err(|_| SeedError::NotAScalar)?;
    let child = bip32::XPrv::derive_from_path(seed, &path).map_err(|_| SeedError::NotAScalar)?;
    Ok(PaymentKey::from_signing_key(child.private_key().clone()))
}

fn expand(seed: &[u8; 32], info: &[&[u8]]) -> Result<PaymentKey, SeedError> {
    let mut out = Zeroizing::new([0u8; 32]);
    Hkdf::<Sha256>::new(None, seed)
        .expand_multi_info(info, out.as_mut_slice())
        .map_err(|_| SeedError::NotAScalar)?;
    let key = PaymentKey::from_bytes(&out);
    out.zeroize();
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::to_checksum;

    const ABANDON: &str = "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about";

    fn hex32(text: &str) -> [u8; 32] {
        hex::decode(text).unwrap().try_into().unwrap()
    }

    #[test]
    fn the_abandon_phrase_restores_the_addresses_that_wallets_show() {
        let seed = Seed::from_words(ABANDON).unwrap();
        assert_eq!(
            to_checksum(&seed.payment().unwrap().address()),
            "0x9858EfFD232B4033E47d90003D41EC34EcaEda94"
        );
        assert_eq!(
            seed.identity().unwrap().solana_address(),
            "HAgk14JpMQLgt6rVgv7cBQFJWFto5Dqxi472uT3DKpqk"
        );
    }

    #[test]
    fn slip_10_test_vector_1_for_ed25519_holds() {
        let seed = hex::decode("000102030405060708090a0b0c0d0e0f").unwrap();
        for (path, want) in [
            (
                &[][..],
                "2b4be7f19ee27bbf30c667b642d5f4aa69fd169872f8fc3059c08ebae2eb19e7",
            ),
            (
                &[0],
                "68e0fe46dfb67e368c75379acec591dad19df3cde26e63b93a8e704f1dade7a3",
            ),
            (
                &[0, 1],
                "b1d0bad404bf35da785a64ca1ac54b2617211d2777696fbffaf208f746ae84f2",
            ),
            (
                &[0, 1, 2],
                "92a5b23c0b8a99e37d07df3fb9966917f5d06e02ddbd909c7e184371463e9fc9",
            ),
            (
                &[0, 1, 2, 2],
                "30d1dc7e5fc04c31219ab25a27ae00b50f6fd66622f6e9c913253d6511d1e662",
            ),
            (
                &[0, 1, 2, 2, 1_000_000_000],
                "8f94d394a8e8fd6b1bc2f3f49f5c47e385281d5c17e65324b0f62483e37e8793",
            ),
        ] {
            assert_eq!(*slip10(&seed, path).unwrap(), hex32(want), "{path:?}");
        }
    }

    #[test]
    fn slip_10_test_vector_2_for_ed25519_holds() {
        let seed = hex::decode("fffcf9f6f3f0edeae7e4e1dedbd8d5d2cfccc9c6c3c0bdbab7b4b1aeaba8a5a29f9c999693908d8a8784817e7b7875726f6c696663605d5a5754514e4b484542").unwrap();
        for (path, want) in [
            (
                &[][..],
                "171cb88b1b3c1db25add599712e36245d75bc65a1a5c9e18d76f9f2b1eab4012",
            ),
            (
                &[0],
                "1559eb2bbec5790b0c65d8693e4d0875b1747f4970ae8b650486ed7470845635",
            ),
        ] {
            assert_eq!(*slip10(&seed, path).unwrap(), hex32(want), "{path:?}");
        }
    }

    #[test]
    fn generated_phrases_have_the_asked_length_and_restore_the_same_keys() {
        for (count, words) in [(WordCount::Twelve, 12), (WordCount::TwentyFour, 24)] {
            let seed = Seed::generate(count).unwrap();
            let phrase = seed.words().unwrap().expose();
            assert_eq!(phrase.split(' ').count(), words);
            let again = Seed::from_words(&format!("  {}\n", phrase.to_uppercase())).unwrap();
            assert_eq!(
                seed.identity().unwrap().peer_id(),
                again.identity().unwrap().peer_id()
            );
            assert_eq!(
                seed.voucher(3).unwrap().address(),
                again.voucher(3).unwrap().address()
            );
        }
    }

    #[test]
    fn a_raw_seed_is_the_identity_and_its_payment_key_is_hkdf_of_it() {
        let seed = Seed::from_raw([5; 32]);
        assert_eq!(
            seed.identity().unwrap().peer_id(),
            Identity::from_seed(&[5; 32]).peer_id()
        );
        // RFC 5869 by hand: extract with a zero salt, one block of expand.
        let mac = |key: &[u8], data: &[u8]| -> Vec<u8> {
            let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
            mac.update(data);
            mac.finalize().into_bytes().to_vec()
        };
        let prk = mac(&[0; 32], &[5; 32]);
        let payment: [u8; 32] = mac(&prk, b"souk/payment/v1\x01").try_into().unwrap();
        assert_eq!(
            seed.payment().unwrap().address(),
            PaymentKey::from_bytes(&payment).unwrap().address()
        );
        let voucher: [u8; 32] = mac(&prk, b"souk/voucher/v1\x00\x00\x00\x07\x01")
            .try_into()
            .unwrap();
        assert_eq!(
            seed.voucher(7).unwrap().address(),
            PaymentKey::from_bytes(&voucher).unwrap().address()
        );
        assert!(seed.words().is_none());
    }

    #[test]
    fn every_device_has_its_own_voucher_key() {
        for seed in [Seed::from_words(ABANDON).unwrap(), Seed::from_raw([5; 32])] {
            let addresses: std::collections::HashSet<_> = (0..8)
                .map(|device| seed.voucher(device).unwrap().address())
                .chain([seed.payment().unwrap().address()])
                .collect();
            assert_eq!(addresses.len(), 9);
            assert_eq!(
                seed.voucher(HARDENED).unwrap_err(),
                SeedError::Device(HARDENED)
            );
        }
    }

    #[test]
    fn bad_phrases_are_refused_with_a_reason_and_without_their_words() {
        let wrong_sum = ABANDON.replace("about", "abandon");
        for (text, want) in [
            (wrong_sum.as_str(), "checksum"),
            ("abandon abandon", "12, 15"),
            (&ABANDON.replace("about", "souk"), "word list"),
        ] {
            let error = Seed::from_words(text).unwrap_err().to_string();
            assert!(
                error.contains(want) && !error.contains("abandon"),
                "{error}"
            );
        }
    }

    #[test]
    fn secrets_do_not_show_in_debug_output() {
        let shown = format!(
            "{:?} {:?}",
            Seed::from_words(ABANDON).unwrap(),
            Seed::from_raw([9; 32])
        );
        assert!(!shown.contains("abandon") && !shown.contains("9, 9"));
    }
}
