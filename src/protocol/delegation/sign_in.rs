//! `SIGN-IN-WITH-X` on the buyer's port: a wallet signs in instead of a token (x402's extension).
//!
//! The header is base64 of a JSON object: the fields of a CAIP-122 message and its signature. The
//! text is rebuilt from the fields and checked. Invariants: the message names this host, was
//! issued at most 60 s ago and safely after this process started, comes from an allowed wallet, and its
//! nonce counts once. Nonces are kept for allowed wallets only and no longer than they could be
//! used, so the set is bounded. Callers: the buyer's HTTP guard.

use std::collections::HashMap;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use parking_lot::Mutex;
use serde::Deserialize;

use super::message::{Message, MessageError, Namespace};
use crate::types::UnixMs;

/// The header's name, in lower case as HTTP libraries keep it.
pub const HEADER: &str = "sign-in-with-x";
/// A header is at most this long: 4 KiB of text, JSON around it, base64 on top.
pub const HEADER_BYTES_MAX: usize = 8_192;
/// A sign-in is good for this long after its issue.
pub const WINDOW_MS: u64 = 60_000;
/// A wallet's clock may be ahead by this much; it is usually on the same machine.
const AHEAD_MS: u64 = 5_000;
/// Nonces kept at once: 60 s of more than 60 sign-ins a second. A full set refuses.
const NONCES_MAX: usize = 4_096;
/// Base64 with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Why a sign-in was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignInError {
    /// Not the header's form.
    #[error("SIGN-IN-WITH-X is malformed: {0}")]
    Header(&'static str),
    /// The message or its signature.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// Signed for another host.
    #[error("this sign-in is for another host; sign in to the address you are calling")]
    OtherHost,
    /// Outside its window.
    #[error(
        "this sign-in is not valid now: sign a new one (it holds for 60 s) and check the clock"
    )]
    NotNow,
    /// A wallet that may not sign in here.
    #[error("this wallet may not sign in here; add it to the allowed wallets")]
    NotAllowed,
    /// Seen before.
    #[error("this sign-in was used already; sign a new one with a new nonce")]
    Replayed,
    /// Too many sign-ins at once.
    #[error("too many sign-ins within a minute; try again in a minute")]
    Busy,
}

/// The header's JSON, as x402 writes it. Fields that are not part of the text are ignored.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct HeaderJson {
    domain: String,
    address: String,
    #[serde(default)]
    statement: Option<String>,
    uri: String,
    version: String,
    chain_id: String,
    #[serde(rename = "type")]
    kind: String,
    nonce: String,
    issued_at: String,
    #[serde(default)]
    expiration_time: Option<String>,
    #[serde(default)]
    not_before: Option<String>,
    #[serde(default)]
    request_id: Option<String>,
    #[serde(default)]
    resources: Vec<String>,
    signature: String,
}

/// A sign-in as it came: a message and the signature over its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignInProof {
    /// The message's fields.
    pub message: Message,
    /// 64 bytes of ed25519, or `r ‖ s ‖ v`.
    pub signature: Vec<u8>,
}

impl SignInProof {
    /// Reads the header's value.
    ///
    /// # Errors
    /// When it is too long, no base64, no JSON, or its fields do not fit a message.
    pub fn from_header(value: &str) -> Result<Self, SignInError> {
        if value.len() > HEADER_BYTES_MAX {
            return Err(SignInError::Header("it is longer than 8 KiB"));
        }
        let json = BASE64
            .decode(value.trim())
            .map_err(|_| SignInError::Header("it is not base64"))?;
        let fields: HeaderJson = serde_json::from_slice(&json)
            .map_err(|_| SignInError::Header("a field is missing or not JSON"))?;
        let (space, chain_id) = fields
            .chain_id
            .split_once(':')
            .ok_or(SignInError::Header("chainId is not CAIP-2"))?;
        let (namespace, signature) = match (space, fields.kind.as_str()) {
            ("eip155", "eip191") => (Namespace::Eip155, evm_signature(&fields.signature)),
            ("solana", "ed25519") => (Namespace::Solana, solana_signature(&fields.signature)),
            _ => return Err(SignInError::Header("chainId and type are no known pair")),
        };
        let message = Message {
            namespace,
            chain_id: chain_id.to_owned(),
            domain: fields.domain,
            address: fields.address,
            statement: fields.statement,
            uri: fields.uri,
            version: fields.version,
            nonce: fields.nonce,
            issued_at: fields.issued_at,
            expiration_time: fields.expiration_time,
            not_before: fields.not_before,
            request_id: fields.request_id,
            resources: fields.resources,
        };
        Ok(Self {
            message,
            signature: signature.ok_or(SignInError::Header("the signature is malformed"))?,
        })
    }

    /// From a text and its signature, where they come without the header.
    ///
    /// # Errors
    /// When the text is no CAIP-122 message.
    pub fn from_text(text: &str, signature: &[u8]) -> Result<Self, SignInError> {
        Ok(Self {
            message: Message::parse(text)?,
            signature: signature.to_vec(),
        })
    }
}

fn evm_signature(text: &str) -> Option<Vec<u8>> {
    let bytes = hex::decode(text.strip_prefix("0x")?).ok()?;
    (bytes.len() == 65).then_some(bytes)
}

fn solana_signature(text: &str) -> Option<Vec<u8>> {
    let mut bytes = [0u8; 64];
    let size = bs58::decode(text).onto(&mut bytes).ok()?;
    (size == bytes.len()).then(|| bytes.to_vec())
}

/// Who signed in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedIn {
    /// CAIP-10 account.
    pub account: String,
    /// The wallet's address alone.
    pub address: String,
}

/// Nonces used within the window; shared by all connections of the port.
#[derive(Debug)]
pub struct NonceSet {
    from_ms: UnixMs,
    capacity: usize,
    used: Mutex<HashMap<String, UnixMs>>,
}

impl NonceSet {
    /// An empty set. The one from before a restart is gone, so only messages that cannot have been
    /// used then count: issued `AHEAD_MS` after `now_ms` or later.
    #[must_use]
    pub fn new(now_ms: UnixMs) -> Self {
        Self::with_capacity(now_ms, NONCES_MAX)
    }
    fn with_capacity(now_ms: UnixMs, capacity: usize) -> Self {
        Self {
            from_ms: now_ms.saturating_add(AHEAD_MS),
            capacity,
            used: Mutex::new(HashMap::new()),
        }
    }
    /// Uses a nonce up until `until_ms`.
    fn take(&self, key: String, now_ms: UnixMs, until_ms: UnixMs) -> Result<(), SignInError> {
        let mut used = self.used.lock();
        if used.len() >= self.capacity {
            used.retain(|_, until| *until >= now_ms);
        }
        if used.get(&key).is_some_and(|until| *until >= now_ms) {
            return Err(SignInError::Replayed);
        }
        if used.len() >= self.capacity {
            return Err(SignInError::Busy);
        }
        used.insert(key, until_ms);
        Ok(())
    }
}

/// Checks a sign-in to `host` (the request's `Host` header, already accepted by the port's own
/// list) by one of the `allowed` addresses, and uses its nonce up. Cheap checks come first.
///
/// # Errors
/// When the message, host, time, wallet, signature or nonce does not fit.
pub fn verify_sign_in(
    proof: &SignInProof,
    host: &str,
    now_ms: UnixMs,
    allowed: &[String],
    nonces: &NonceSet,
) -> Result<SignedIn, SignInError> {
    let message = &proof.message;
    let text = message.to_text();
    // Fields from a header could carry line breaks; only what reads back as itself goes on.
    if Message::parse(&text)? != *message {
        return Err(SignInError::Message(MessageError::NotCanonical));
    }
    check_host(message, host)?;
    let until_ms = check_window(message, now_ms, nonces.from_ms)?;
    let is_allowed = |wallet: &String| match message.namespace {
        Namespace::Eip155 => wallet.eq_ignore_ascii_case(&message.address),
        Namespace::Solana => *wallet == message.address,
    };
    if !allowed.iter().any(is_allowed) {
        return Err(SignInError::NotAllowed);
    }
    message.check_signature(&text, &proof.signature)?;
    let key = format!("{}:{}", message.address, message.nonce);
    nonces.take(key, now_ms, until_ms)?;
    Ok(SignedIn {
        account: message.account(),
        address: message.address.clone(),
    })
}

fn check_host(message: &Message, host: &str) -> Result<(), SignInError> {
    let rest = message
        .uri
        .strip_prefix("http://")
        .or_else(|| message.uri.strip_prefix("https://"))
        .ok_or(SignInError::OtherHost)?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if host.is_empty()
        || !message.domain.eq_ignore_ascii_case(host)
        || !authority.eq_ignore_ascii_case(host)
    {
        return Err(SignInError::OtherHost);
    }
    Ok(())
}

/// Returns until when the message could be used again.
fn check_window(message: &Message, now_ms: UnixMs, from_ms: UnixMs) -> Result<UnixMs, SignInError> {
    let issued_ms = message.issued_ms()?;
    let until_ms = issued_ms.saturating_add(WINDOW_MS);
    let expires_ms = message.expires_ms()?.unwrap_or(UnixMs::MAX);
    let begins_ms = message.not_before_ms()?.unwrap_or(0);
    let good = issued_ms <= now_ms.saturating_add(AHEAD_MS)
        && issued_ms >= from_ms
        && now_ms <= until_ms
        && now_ms < expires_ms
        && begins_ms <= now_ms;
    good.then_some(until_ms).ok_or(SignInError::NotNow)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_nonce_set_refuses_until_nonces_run_out() {
        let set = NonceSet::with_capacity(0, 2);
        assert_eq!(set.take("a".into(), 0, 10), Ok(()));
        assert_eq!(set.take("a".into(), 10, 10), Err(SignInError::Replayed));
        assert_eq!(set.take("b".into(), 0, 20), Ok(()));
        assert_eq!(set.take("c".into(), 0, 20), Err(SignInError::Busy));
        assert_eq!(set.take("b".into(), 0, 20), Err(SignInError::Replayed));
        assert_eq!(set.take("c".into(), 11, 30), Ok(()));
        assert_eq!(set.take("d".into(), 11, 30), Err(SignInError::Busy));
    }
}
