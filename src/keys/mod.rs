//! The node's keys: one seed, two curves, three keys.
//!
//! A [`Seed`] is either BIP-39 recovery words or 32 raw bytes. From it come the [`Identity`]
//! (ed25519: peer id, `did:key`, signs heads, offers, receipts), the payment key (secp256k1: the
//! EVM address that holds the money) and the voucher key (secp256k1, one per device: signs
//! payment-channel vouchers). All three are derived, never stored, so the words alone bring the
//! money back, in this program or in an ordinary wallet.
//!
//! | key | from words | from a raw seed |
//! |---|---|---|
//! | identity | SLIP-10 `m/44'/501'/0'/0'` | the seed itself |
//! | payment | BIP-32 `m/44'/60'/0'/0/0` | HKDF-SHA256 `souk/payment/v1` |
//! | voucher | BIP-32 `m/44'/60'/1'/0/device` | HKDF-SHA256 `souk/voucher/v1 ‖ device` |
//!
//! Invariants: secrets are wiped on drop and `Debug` never shows them; a key file is written
//! whole or not at all, mode 0600; a file others can read or that someone else owns is refused;
//! the ids in a file must match the keys derived from it. Callers: `cli::keygen` writes, the
//! composition root loads [`NodeKeys`], `protocol` and `network` sign and verify.

mod file;
mod identity;
mod import;
mod payment_key;
mod seal;
mod seed;
mod write;

use std::path::Path;

pub use file::{FileError, load_payment_key, load_seed, parse_key_file, render_key_file};
pub use identity::{Identity, SignatureError, public_key_of, verify, verify_with_key};
pub use import::{ImportError, parse_import};
pub use payment_key::{
    PaymentKey, parse_address, parse_checksummed, personal_hash, recover, to_checksum,
};
pub use seal::SealError;
pub use seed::{Seed, SeedError, WordCount};
pub use write::{Replace, WriteError, Written, ensure_private_dir, write_key_file};

/// Everything a running node signs with.
#[derive(Clone, Debug)]
pub struct NodeKeys {
    /// Who the node is on the network.
    pub identity: Identity,
    /// Holds and moves the money on chain.
    pub payment: PaymentKey,
    /// Signs vouchers on this device's channels.
    pub voucher: PaymentKey,
}

/// Why the node's keys could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The key file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The derivation.
    #[error(transparent)]
    Seed(#[from] SeedError),
}

impl NodeKeys {
    /// Reads the key file at `path` and derives the keys for `device` (`[payment] device`).
    ///
    /// # Errors
    /// When the file is missing, readable by others, corrupt, sealed with another passphrase, or
    /// when `device` is out of range.
    pub fn load(path: &Path, passphrase: Option<&str>, device: u32) -> Result<Self, KeysError> {
        Ok(Self::from_seed(&load_seed(path, passphrase)?, device)?)
    }

    /// Derives the keys of a seed.
    ///
    /// # Errors
    /// When `device` is out of range.
    pub fn from_seed(seed: &Seed, device: u32) -> Result<Self, SeedError> {
        Ok(Self {
            identity: seed.identity()?,
            payment: seed.payment()?,
            voucher: seed.voucher(device)?,
        })
    }
}
