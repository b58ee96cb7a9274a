//! A passphrase over a secret: argon2id stretches it, ChaCha20-Poly1305 seals with the result.
//!
//! Every file has its own salt, so the cipher key is new each time and a random 12-byte nonce is
//! enough. Invariants: what surrounds the secret (kind and ids) is authenticated; a file cannot
//! ask for more work than [`M_KIB_MAX`], [`T_MAX`], [`P_MAX`]. Callers: `keys::file`.

use argon2::{Algorithm, Argon2, Params, Version};
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{ChaCha20Poly1305, KeyInit};
use rand::TryRng;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Memory of a new file's argon2id: 64 MiB, RFC 9106's second recommendation.
const M_KIB: u32 = 65_536;
/// Passes of a new file's argon2id (same recommendation).
const T: u32 = 3;
/// Lanes of a new file's argon2id (same recommendation).
const P: u32 = 4;
/// A file may ask for 1 GiB at most: a corrupt number must not take the machine down.
const M_KIB_MAX: u32 = 1_048_576;
/// A file may ask for this many passes at most, for the same reason.
const T_MAX: u32 = 16;
/// A file may ask for this many lanes at most, for the same reason.
const P_MAX: u32 = 16;
/// Salt bytes, as RFC 9106 recommends.
const SALT_BYTES: usize = 16;
/// Nonce bytes of ChaCha20-Poly1305.
const NONCE_BYTES: usize = 12;
/// The only names understood; they are in the file so that it explains itself.
const KDF: &str = "argon2id";
const CIPHER: &str = "chacha20poly1305";

/// Why a secret could not be sealed or opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Wrong passphrase, or the file was altered (the cipher cannot tell which).
    #[error("the passphrase does not open this key file (or the file was altered)")]
    Refused,
    /// Names or numbers that this version does not work with.
    #[error("the sealed part is corrupt: {0}")]
    Corrupt(&'static str),
    /// The system gave no randomness.
    #[error("the system's random source failed; try again")]
    Random,
    /// argon2id found no memory.
    #[error("not enough free memory to stretch the passphrase (64 MiB are needed)")]
    Memory,
}

/// The sealed part of a key file; byte strings are hex.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sealed {
    kdf: String,
    m_kib: u32,
    t: u32,
    p: u32,
    salt: String,
    cipher: String,
    nonce: String,
    data: String,
}

/// Seals `secret` under `passphrase`; `around` is authenticated with it.
pub(super) fn seal(secret: &[u8], passphrase: &str, around: &[u8]) -> Result<Sealed, SealError> {
    seal_with(secret, passphrase, around, (M_KIB, T, P))
}

fn seal_with(
    secret: &[u8],
    passphrase: &str,
    around: &[u8],
    (m_kib, t, p): (u32, u32, u32),
) -> Result<Sealed, SealError> {
    let mut salt = [0u8; SALT_BYTES];
    let mut nonce = [0u8; NONCE_BYTES];
    let mut random = rand::rngs::SysRng;
    random
        .try_fill_bytes(&mut salt)
        .and_then(|()| random.try_fill_bytes(&mut nonce))
        .map_err(|_| SealError::Random)?;
    let key = stretch(passphrase, &salt, m_kib, t, p)?;
    let data = ChaCha20Poly1305::new(&(*key).into())
        .encrypt(
            &nonce.into(),
            Payload {
                msg: secret,
                aad: around,
            },
        )
        .map_err(|_| SealError::Refused)?;
    Ok(Sealed {
        kdf: KDF.to_owned(),
        m_kib,
        t,
        p,
        salt: hex::encode(salt),
        cipher: CIPHER.to_owned(),
        nonce: hex::encode(nonce),
        data: hex::encode(data),
    })
}

/// Opens a sealed secret.
pub(super) fn open(
    sealed: &Sealed,
    passphrase: &str,
    around: &[u8],
) -> Result<Zeroizing<Vec<u8>>, SealError> {
    if sealed.kdf != KDF || sealed.cipher != CIPHER {
        return Err(SealError::Corrupt("unknown kdf or cipher"));
    }
    if sealed.m_kib > M_KIB_MAX || sealed.t > T_MAX || sealed.p > P_MAX {
        return Err(SealError::Corrupt("argon2id parameters out of range"));
    }
    let salt: [u8; SALT_BYTES] = bytes(&sealed.salt, "salt")?;
    let nonce: [u8; NONCE_BYTES] = bytes(&sealed.nonce, "nonce")?;
    let data = hex::decode(&sealed.data).map_err(|_| SealError::Corrupt("data is not hex"))?;
    let key = stretch(passphrase, &salt, sealed.m_kib, sealed.t, sealed.p)?;
    ChaCha20Poly1305::new(&(*key).into())
        .decrypt(
            &nonce.into(),
            Payload {
                msg: &data,
                aad: around,
            },
        )
        .map(Zeroizing::new)
        .map_err(|_| SealError::Refused)
}

fn bytes<const N: usize>(text: &str, what: &'static str) -> Result<[u8; N], SealError> {
    hex::decode(text)
        .ok()
        .and_then(|v| <[u8; N]>::try_from(v).ok())
        .ok_or(SealError::Corrupt(what))
}

fn stretch(
    passphrase: &str,
    salt: &[u8],
    m_kib: u32,
    t: u32,
    p: u32,
) -> Result<Zeroizing<[u8; 32]>, SealError> {
    let params = Params::new(m_kib, t, p, Some(32))
        .map_err(|_| SealError::Corrupt("argon2id parameters out of range"))?;
    let mut key = Zeroizing::new([0u8; 32]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase.as_bytes(), salt, key.as_mut_slice())
        .map_err(|_| SealError::Memory)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHEAP: (u32, u32, u32) = (64, 1, 1);

    #[test]
    fn what_was_sealed_opens_with_the_passphrase_and_the_same_surroundings_only() {
        let sealed = seal_with(b"secret", "correct horse", b"ids", CHEAP).unwrap();
        assert_eq!(
            open(&sealed, "correct horse", b"ids").unwrap().as_slice(),
            b"secret"
        );
        assert_eq!(
            open(&sealed, "wrong", b"ids").unwrap_err(),
            SealError::Refused
        );
        assert_eq!(
            open(&sealed, "correct horse", b"other ids").unwrap_err(),
            SealError::Refused
        );
    }

    #[test]
    fn a_file_cannot_ask_for_unbounded_work() {
        let good = seal_with(b"secret", "p", b"", CHEAP).unwrap();
        for bad in [
            Sealed {
                m_kib: u32::MAX,
                ..good.clone()
            },
            Sealed {
                t: u32::MAX,
                ..good.clone()
            },
            Sealed {
                p: 0,
                ..good.clone()
            },
            Sealed {
                kdf: "none".to_owned(),
                ..good.clone()
            },
            Sealed {
                nonce: "00".to_owned(),
                ..good
            },
        ] {
            assert!(matches!(open(&bad, "p", b""), Err(SealError::Corrupt(_))));
        }
    }

    #[test]
    fn two_seals_of_one_secret_differ() {
        let a = seal_with(b"secret", "p", b"", CHEAP).unwrap();
        let b = seal_with(b"secret", "p", b"", CHEAP).unwrap();
        assert_ne!((a.salt, a.nonce, a.data), (b.salt, b.nonce, b.data));
    }
}
