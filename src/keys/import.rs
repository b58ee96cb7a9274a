//! Reads keys that come from elsewhere: our own file, a Solana-style JSON array of 64 bytes, 32
//! bytes of hex, or recovery words. The form is told by the first character.
//!
//! Invariants: the public half of a Solana key must fit its secret half (else a damaged file
//! would silently become another account); errors never repeat the input. Callers: `cli::keygen`.

use ed25519_dalek::SigningKey;
use zeroize::{Zeroize, Zeroizing};

use super::{FileError, Seed, SeedError, parse_key_file};

/// Nothing importable is larger; the rest is not read.
pub const IMPORT_BYTES_MAX: usize = 65_536;
/// A Solana key file holds the secret and the public half.
const SOLANA_KEY_BYTES: usize = 64;

/// Why an import was refused.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// None of the known forms.
    #[error(
        "this is no key: give a key file of ours, a Solana-style JSON array of 64 bytes, 32 bytes of hex, or recovery words"
    )]
    Unknown,
    /// Larger than any key.
    #[error("this is no key: it is larger than 64 KiB")]
    TooLarge,
    /// A JSON array of something else.
    #[error("a Solana-style key is a JSON array of exactly 64 numbers from 0 to 255")]
    NotSolana,
    /// The halves do not belong together.
    #[error("the public half of this key does not fit its secret half; the file is damaged")]
    HalvesDiffer,
    /// Looks like words, is no phrase.
    #[error(transparent)]
    Seed(#[from] SeedError),
    /// Looks like a file of ours.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Reads a key in any of the known forms; `passphrase` opens a sealed file of our own.
///
/// # Errors
/// When the bytes are in no known form or damaged.
pub fn parse_import(bytes: &[u8], passphrase: Option<&str>) -> Result<Seed, ImportError> {
    if bytes.len() > IMPORT_BYTES_MAX {
        return Err(ImportError::TooLarge);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| ImportError::Unknown)?;
    let text = text.trim_start_matches('\u{feff}').trim();
    match text.chars().next() {
        Some('{') => Ok(parse_key_file(text.as_bytes(), passphrase)?),
        Some('[') => solana(text),
        _ => match hex_seed(text) {
            Some(seed) => Ok(seed),
            None if looks_like_words(text) => Ok(Seed::from_words(text)?),
            None => Err(ImportError::Unknown),
        },
    }
}

fn solana(text: &str) -> Result<Seed, ImportError> {
    let bytes: Zeroizing<Vec<u8>> =
        Zeroizing::new(serde_json::from_str(text).map_err(|_| ImportError::NotSolana)?);
    let pair: Zeroizing<[u8; SOLANA_KEY_BYTES]> = Zeroizing::new(
        <[u8; SOLANA_KEY_BYTES]>::try_from(bytes.as_slice()).map_err(|_| ImportError::NotSolana)?,
    );
    let key = SigningKey::from_keypair_bytes(&pair).map_err(|_| ImportError::HalvesDiffer)?;
    Ok(Seed::from_raw(key.to_bytes()))
}

fn hex_seed(text: &str) -> Option<Seed> {
    let bare = text
        .strip_prefix("0x")
        .or_else(|| text.strip_prefix("0X"))
        .unwrap_or(text);
    let mut raw = [0u8; 32];
    let seed = hex::decode_to_slice(bare.as_bytes(), &mut raw)
        .is_ok()
        .then(|| Seed::from_raw(raw));
    raw.zeroize();
    seed
}

fn looks_like_words(text: &str) -> bool {
    text.split_whitespace().count() > 1
        && text
            .chars()
            .all(|c| c.is_ascii_alphabetic() || c.is_ascii_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{Identity, render_key_file};

    const ABANDON: &str = "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about";

    fn peer(seed: &Seed) -> crate::types::PeerId {
        seed.identity().unwrap().peer_id()
    }
    fn solana_json(seed: [u8; 32]) -> Vec<u8> {
        let mut pair = seed.to_vec();
        pair.extend(Identity::from_seed(&seed).public_key());
        pair
    }

    #[test]
    fn a_solana_key_keeps_its_address() {
        let text = serde_json::to_string(&solana_json([8; 32])).unwrap();
        let seed = parse_import(text.as_bytes(), None).unwrap();
        assert_eq!(
            seed.identity().unwrap().solana_address(),
            Identity::from_seed(&[8; 32]).solana_address()
        );
        assert!(seed.words().is_none());
    }

    #[test]
    fn a_solana_key_with_a_wrong_public_half_is_refused() {
        let mut pair = solana_json([8; 32]);
        pair[40] ^= 1;
        let text = serde_json::to_string(&pair).unwrap();
        assert!(matches!(
            parse_import(text.as_bytes(), None),
            Err(ImportError::HalvesDiffer)
        ));
        for bad in ["[]", "[1,2,3]", "[256]", "[1", "[\"a\"]"] {
            assert!(matches!(
                parse_import(bad.as_bytes(), None),
                Err(ImportError::NotSolana)
            ));
        }
    }

    #[test]
    fn hex_is_read_with_and_without_a_prefix_in_either_case() {
        let want = peer(&Seed::from_raw([0xab; 32]));
        for text in [
            "ab".repeat(32),
            format!("0x{}\n", "AB".repeat(32)),
            format!(" {} ", "Ab".repeat(32)),
        ] {
            assert_eq!(peer(&parse_import(text.as_bytes(), None).unwrap()), want);
        }
    }

    #[test]
    fn words_and_our_own_file_are_read() {
        let seed = Seed::from_words(ABANDON).unwrap();
        let words = ABANDON.replace(' ', "\n");
        assert_eq!(
            peer(&parse_import(words.as_bytes(), None).unwrap()),
            peer(&seed)
        );
        let file = render_key_file(&seed, None).unwrap();
        assert_eq!(peer(&parse_import(&file, None).unwrap()), peer(&seed));
    }

    #[test]
    fn anything_else_is_refused_without_repeating_it() {
        for text in ["", "hello", "abc123", &"ab".repeat(31), "0x12", "a-b c-d"] {
            let error = parse_import(text.as_bytes(), None).unwrap_err();
            assert!(matches!(error, ImportError::Unknown), "{text}: {error}");
        }
        assert!(matches!(
            parse_import(&vec![b'a'; IMPORT_BYTES_MAX + 1], None),
            Err(ImportError::TooLarge)
        ));
        assert!(matches!(
            parse_import(&[0xff, 0xfe], None),
            Err(ImportError::Unknown)
        ));
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "\\PC{0,200}") {
            let _ = parse_import(text.as_bytes(), None);
        }
    }
}
