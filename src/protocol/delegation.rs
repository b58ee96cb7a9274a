//! Delegation: a wallet lets a node key act for it, with a text the wallet's owner can read.
//!
//! The text is CAIP-122 ("Sign in with X"): EIP-4361 signed by EIP-191 for EVM wallets, Sign-In
//! With Solana signed by ed25519 for Solana wallets. Three resources say what is delegated:
//!
//! ```text
//! - urn:souk:deleg/v1:node:12D3Koo…      the node key that may act
//! - urn:souk:deleg/v1:role:buy           as what
//! - urn:souk:deleg/v1:daily-cap:5000000  up to how many micro-USD a day
//! ```
//!
//! Invariants: a text is parsed by line, rebuilt and compared byte for byte, so there is one text
//! for every meaning; it names the node, ends at most 30 days after it was issued, is at most
//! 4 KiB, and carries a fixed statement, so that a sign-in to some other site is never one. Smart
//! contract wallets (EIP-1271) are not supported: checking them needs a chain.
//! Callers: the head check of a seller; `node` when the owner hands in a signed text.
//!
//! [`sign_in`] is the other use of the same texts: `SIGN-IN-WITH-X` on the buyer's port.

mod message;
pub mod sign_in;

use sha2::{Digest, Sha256};

pub use message::{Message, MessageError, Namespace, TEXT_BYTES_MAX};
pub use sign_in::{NonceSet, SignInError, SignInProof, SignedIn, verify_sign_in};

use crate::types::{Hash32, MicroUsd, PeerId, UnixMs};

/// Keeps the hash of a delegation apart from every other hash.
const HASH_DOMAIN: &[u8] = b"souk/deleg/v1\0";
/// What every delegation says to the person who signs it.
pub const STATEMENT: &str =
    "I let this Souk node act for my account, in the role and up to the daily cap named below.";
/// A delegation ends at most this long after it was issued: 30 days, so a lost one dies out.
pub const LIFETIME_MS_MAX: u64 = 30 * 24 * 3_600 * 1_000;
/// Clocks may differ by this much, as for request heads.
const SKEW_MS: u64 = 60_000;
const NODE: &str = "urn:souk:deleg/v1:node:";
const ROLE: &str = "urn:souk:deleg/v1:role:";
const CAP: &str = "urn:souk:deleg/v1:daily-cap:";

/// As what the node may act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DelegatedRole {
    /// Spend the account's money.
    Buy,
    /// Earn for the account.
    Sell,
}

impl DelegatedRole {
    /// As it stands in the text.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Buy => "buy",
            Self::Sell => "sell",
        }
    }
    fn parse(text: &str) -> Option<Self> {
        match text {
            "buy" => Some(Self::Buy),
            "sell" => Some(Self::Sell),
            _ => None,
        }
    }
}

/// Why a delegation was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DelegationError {
    /// The text itself, or its signature.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// A CAIP-122 text, but not a delegation.
    #[error("this text is no delegation: {0}; make a new one on the node that will use it")]
    NotADelegation(&'static str),
    /// Made for another node.
    #[error("this delegation names another node; sign one for the node that uses it")]
    OtherNode,
    /// Lives longer than allowed, or ends before it begins.
    #[error("a delegation must end within 30 days of its issue; sign a shorter one")]
    Lifetime,
    /// Issued in the future.
    #[error("this delegation is not valid yet; check the clocks of both machines")]
    NotYet,
    /// Over.
    #[error("this delegation has expired; sign a new one")]
    Expired,
}

/// What a wallet delegates, read from its text (not yet checked against a signature).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delegation {
    /// The text's fields, as signed.
    pub message: Message,
    /// The node key that may act.
    pub node: PeerId,
    /// As what.
    pub role: DelegatedRole,
    /// Up to how much a day.
    pub daily_cap: MicroUsd,
    /// When it was issued.
    pub issued_ms: UnixMs,
    /// When it ends.
    pub expires_ms: UnixMs,
}

/// What a new delegation says; [`Delegation::draft`] makes the text for the wallet to sign.
#[derive(Debug, Clone)]
pub struct Draft<'a> {
    /// The wallet's kind.
    pub namespace: Namespace,
    /// The wallet's address: EIP-55 or base58.
    pub address: &'a str,
    /// CAIP-2 reference: `8453`, `5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp`.
    pub chain_id: &'a str,
    /// Who asks: the host that shows the text to the wallet.
    pub domain: &'a str,
    /// Where it asks.
    pub uri: &'a str,
    /// At least 8 random letters and digits.
    pub nonce: &'a str,
    /// The node key that may act.
    pub node: PeerId,
    /// As what.
    pub role: DelegatedRole,
    /// Up to how much a day.
    pub daily_cap: MicroUsd,
    /// From when (cut to whole seconds).
    pub issued_ms: UnixMs,
    /// Until when (cut to whole seconds).
    pub expires_ms: UnixMs,
}

/// A delegation whose signature and times were checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedDelegation {
    /// CAIP-10 account that delegates: `eip155:8453:0x…`, `solana:…:…`.
    pub account: String,
    /// The node key that may act.
    pub node: PeerId,
    /// As what.
    pub role: DelegatedRole,
    /// Up to how much a day.
    pub daily_cap: MicroUsd,
    /// When it was issued.
    pub issued_ms: UnixMs,
    /// When it ends; check again on every use.
    pub expires_ms: UnixMs,
    /// What a request head names.
    pub hash: Hash32,
}

impl Delegation {
    /// Makes a delegation and its text from what the owner chose.
    ///
    /// # Errors
    /// When a field does not fit the text form, or it would live longer than 30 days.
    pub fn draft(draft: &Draft<'_>) -> Result<(Self, String), DelegationError> {
        let message = Message {
            namespace: draft.namespace,
            domain: draft.domain.to_owned(),
            address: draft.address.to_owned(),
            statement: Some(STATEMENT.to_owned()),
            uri: draft.uri.to_owned(),
            version: message::VERSION.to_owned(),
            chain_id: draft.chain_id.to_owned(),
            nonce: draft.nonce.to_owned(),
            issued_at: message::format_time(draft.issued_ms)?,
            expiration_time: Some(message::format_time(draft.expires_ms)?),
            not_before: None,
            request_id: None,
            resources: vec![
                format!("{NODE}{}", draft.node),
                format!("{ROLE}{}", draft.role.as_str()),
                format!("{CAP}{}", draft.daily_cap.0),
            ],
        };
        let text = message.to_text();
        Ok((Self::parse(&text)?, text))
    }

    /// Reads a delegation's text, strictly: one text for every meaning.
    ///
    /// # Errors
    /// When the text is no CAIP-122 message, or not one of ours.
    pub fn parse(text: &str) -> Result<Self, DelegationError> {
        let message = Message::parse(text)?;
        if message.statement.as_deref() != Some(STATEMENT) {
            return Err(DelegationError::NotADelegation(
                "the statement is another one",
            ));
        }
        if message.not_before.is_some() || message.request_id.is_some() {
            return Err(DelegationError::NotADelegation(
                "it has fields of a sign-in",
            ));
        }
        let [node, role, cap] = message.resources.as_slice() else {
            return Err(DelegationError::NotADelegation("it needs three resources"));
        };
        let node = exact(node, NODE, |v| v.parse().ok(), PeerId::to_string)
            .ok_or(DelegationError::NotADelegation("the node is malformed"))?;
        let role = exact(role, ROLE, DelegatedRole::parse, |r| r.as_str().to_owned())
            .ok_or(DelegationError::NotADelegation("the role is unknown"))?;
        let daily_cap = exact(cap, CAP, |v| v.parse().ok(), u64::to_string)
            .map(MicroUsd)
            .ok_or(DelegationError::NotADelegation("the cap is malformed"))?;
        let issued_ms = message.issued_ms()?;
        let expires_ms = message
            .expires_ms()?
            .ok_or(DelegationError::NotADelegation("it has no expiration time"))?;
        let lifetime = expires_ms
            .checked_sub(issued_ms)
            .ok_or(DelegationError::Lifetime)?;
        if lifetime == 0 || lifetime > LIFETIME_MS_MAX {
            return Err(DelegationError::Lifetime);
        }
        Ok(Self {
            message,
            node,
            role,
            daily_cap,
            issued_ms,
            expires_ms,
        })
    }

    /// CAIP-10 account that delegates.
    #[must_use]
    pub fn account(&self) -> String {
        self.message.account()
    }
}

/// Reads the value behind `prefix` and accepts it only if it prints as it was written.
fn exact<T>(
    line: &str,
    prefix: &str,
    parse: impl Fn(&str) -> Option<T>,
    print: impl Fn(&T) -> String,
) -> Option<T> {
    let value = line.strip_prefix(prefix)?;
    parse(value).filter(|parsed| print(parsed) == value)
}

/// What a request head names: the hash of the delegation's text.
#[must_use]
pub fn hash(text: &str) -> Hash32 {
    let mut hasher = Sha256::new();
    hasher.update(HASH_DOMAIN);
    hasher.update(text.as_bytes());
    Hash32(hasher.finalize().into())
}

/// Checks a delegation for use by `node` now. `signature` is 64 bytes of ed25519 (Solana) or
/// `r ‖ s ‖ v` (EVM); cheap checks come first.
///
/// # Errors
/// When the text, the times, the node or the signature do not fit.
pub fn verify(
    text: &str,
    signature: &[u8],
    now_ms: UnixMs,
    node: &PeerId,
) -> Result<VerifiedDelegation, DelegationError> {
    let delegation = Delegation::parse(text)?;
    if delegation.node != *node {
        return Err(DelegationError::OtherNode);
    }
    if delegation.issued_ms > now_ms.saturating_add(SKEW_MS) {
        return Err(DelegationError::NotYet);
    }
    if delegation.expires_ms <= now_ms {
        return Err(DelegationError::Expired);
    }
    delegation.message.check_signature(text, signature)?;
    Ok(VerifiedDelegation {
        account: delegation.account(),
        node: delegation.node,
        role: delegation.role,
        daily_cap: delegation.daily_cap,
        issued_ms: delegation.issued_ms,
        expires_ms: delegation.expires_ms,
        hash: hash(text),
    })
}

#[cfg(test)]
mod tests;
