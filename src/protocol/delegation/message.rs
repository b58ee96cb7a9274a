//! A CAIP-122 message as text: written, read back by line, and checked against its signature.
//!
//! Invariants: a text is accepted only if rebuilding it from its fields gives the same bytes;
//! every field is printable ASCII on one line, so nothing can hide in a wallet's display; EVM
//! addresses are in EIP-55 form. Callers: [`super::Delegation`], [`super::sign_in`].

use jiff::Timestamp;

use crate::keys::{self, SignatureError};
use crate::types::UnixMs;

/// No text is longer: what a wallet's window can show, and more than any real one needs.
pub const TEXT_BYTES_MAX: usize = 4_096;
/// A message lists at most this many resources.
const RESOURCES_MAX: usize = 16;
/// EIP-4361 wants at least 8 letters and digits in a nonce.
const NONCE_BYTES_MIN: usize = 8;
/// Room for a 256-bit nonce in hex; it is kept in memory.
const NONCE_BYTES_MAX: usize = 64;
/// CAIP-2's limit for the reference of a chain (some wallets write `solana:mainnet`).
const CHAIN_ID_BYTES_MAX: usize = 48;
/// The only version of the message form.
pub(super) const VERSION: &str = "1";
const SIGN_IN_LINE: &str = " wants you to sign in with your ";
const ACCOUNT_LINE: &str = " account:";

/// The kind of wallet that signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Namespace {
    /// Sign-In With Solana, ed25519.
    Solana,
    /// EIP-4361, `personal_sign` (EIP-191).
    Eip155,
}

impl Namespace {
    /// CAIP-2's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Solana => "solana",
            Self::Eip155 => "eip155",
        }
    }
    const fn in_text(self) -> &'static str {
        match self {
            Self::Solana => "Solana",
            Self::Eip155 => "Ethereum",
        }
    }
}

/// Why a message was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Above the size limit.
    #[error("the signed text is longer than 4 KiB")]
    TooLong,
    /// A line is missing, malformed or out of place.
    #[error("the signed text is malformed at `{0}`; sign it exactly as it was shown")]
    Malformed(&'static str),
    /// The fields give another text: something is doubled, out of order or written differently.
    #[error("the signed text is not in its one canonical form; sign it exactly as it was shown")]
    NotCanonical,
    /// The signature.
    #[error("the signature was refused: {0}")]
    Signature(#[from] SignatureError),
    /// Signed by another wallet than the text names.
    #[error(
        "the signature is not by the wallet that the text names; choose that wallet and sign again"
    )]
    OtherSigner,
}

/// The fields of a CAIP-122 message, as they stand in its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The wallet's kind.
    pub namespace: Namespace,
    /// Host (and port) that asks.
    pub domain: String,
    /// The wallet's address.
    pub address: String,
    /// One line for the person who signs.
    pub statement: Option<String>,
    /// What is asked for.
    pub uri: String,
    /// Always `1`.
    pub version: String,
    /// CAIP-2 reference of the chain (without the namespace).
    pub chain_id: String,
    /// Letters and digits.
    pub nonce: String,
    /// RFC 3339.
    pub issued_at: String,
    /// RFC 3339.
    pub expiration_time: Option<String>,
    /// RFC 3339.
    pub not_before: Option<String>,
    /// Free text.
    pub request_id: Option<String>,
    /// URIs.
    pub resources: Vec<String>,
}

impl Message {
    /// The text that the wallet signs.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut lines = vec![
            format!(
                "{}{SIGN_IN_LINE}{}{ACCOUNT_LINE}",
                self.domain,
                self.namespace.in_text()
            ),
            self.address.clone(),
            String::new(),
        ];
        match (&self.statement, self.namespace) {
            (Some(statement), _) => lines.extend([statement.clone(), String::new()]),
            // EIP-4361's grammar keeps both empty lines, Solana's only one.
            (None, Namespace::Eip155) => lines.push(String::new()),
            (None, Namespace::Solana) => {}
        }
        lines.push(format!("URI: {}", self.uri));
        lines.push(format!("Version: {}", self.version));
        lines.push(format!("Chain ID: {}", self.chain_id));
        lines.push(format!("Nonce: {}", self.nonce));
        lines.push(format!("Issued At: {}", self.issued_at));
        for (name, value) in [
            ("Expiration Time", &self.expiration_time),
            ("Not Before", &self.not_before),
            ("Request ID", &self.request_id),
        ] {
            lines.extend(value.as_ref().map(|value| format!("{name}: {value}")));
        }
        if !self.resources.is_empty() {
            lines.push("Resources:".to_owned());
            lines.extend(self.resources.iter().map(|uri| format!("- {uri}")));
        }
        lines.join("\n")
    }

    /// Reads a text by line, checks every field, rebuilds it and compares byte for byte.
    ///
    /// # Errors
    /// When it is too long, malformed, or not in canonical form.
    pub fn parse(text: &str) -> Result<Self, MessageError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(MessageError::TooLong);
        }
        let mut lines = text.split('\n').peekable();
        let first = lines.next().unwrap_or_default();
        let (domain, kind) = first
            .strip_suffix(ACCOUNT_LINE)
            .and_then(|line| line.split_once(SIGN_IN_LINE))
            .ok_or(MessageError::Malformed("first line"))?;
        let namespace = match kind {
            "Ethereum" => Namespace::Eip155,
            "Solana" => Namespace::Solana,
            _ => return Err(MessageError::Malformed("first line")),
        };
        let address = lines.next().unwrap_or_default().to_owned();
        let statement = read_statement(&mut lines)?;
        let mut field = |name: &'static str| {
            lines
                .next_if(|line| tagged(line, name).is_some())
                .and_then(|line| tagged(line, name))
                .map(str::to_owned)
        };
        let mut needed = |name| field(name).ok_or(MessageError::Malformed(name));
        let (uri, version) = (needed("URI")?, needed("Version")?);
        let (chain_id, nonce) = (needed("Chain ID")?, needed("Nonce")?);
        let issued_at = needed("Issued At")?;
        let message = Self {
            namespace,
            domain: domain.to_owned(),
            address,
            statement,
            uri,
            version,
            chain_id,
            nonce,
            issued_at,
            expiration_time: field("Expiration Time"),
            not_before: field("Not Before"),
            request_id: field("Request ID"),
            resources: read_resources(&mut lines)?,
        };
        message.check_fields()?;
        if message.to_text() != text {
            return Err(MessageError::NotCanonical);
        }
        Ok(message)
    }

    /// Checks every field's form; what passes can be printed and read back.
    ///
    /// # Errors
    /// Names the first field that does not fit.
    pub fn check_fields(&self) -> Result<(), MessageError> {
        let check = |ok: bool, name| ok.then_some(()).ok_or(MessageError::Malformed(name));
        check(is_domain(&self.domain), "domain")?;
        self.check_address()?;
        check(self.statement.as_deref().is_none_or(is_line), "statement")?;
        check(is_uri(&self.uri), "URI")?;
        check(self.version == VERSION, "Version")?;
        check(self.is_chain_id(), "Chain ID")?;
        check(is_nonce(&self.nonce), "Nonce")?;
        self.issued_ms()?;
        self.expires_ms()?;
        self.not_before_ms()?;
        check(self.request_id.as_deref().is_none_or(is_line), "Request ID")?;
        check(
            self.resources.len() <= RESOURCES_MAX && self.resources.iter().all(|r| is_uri(r)),
            "Resources",
        )
    }

    /// CAIP-10 account: `eip155:8453:0x…`.
    #[must_use]
    pub fn account(&self) -> String {
        format!(
            "{}:{}:{}",
            self.namespace.as_str(),
            self.chain_id,
            self.address
        )
    }

    /// When it was issued.
    ///
    /// # Errors
    /// When the time is malformed.
    pub fn issued_ms(&self) -> Result<UnixMs, MessageError> {
        parse_time(&self.issued_at, "Issued At")
    }
    /// When it ends.
    ///
    /// # Errors
    /// When the time is malformed.
    pub fn expires_ms(&self) -> Result<Option<UnixMs>, MessageError> {
        let parse = |text: &String| parse_time(text, "Expiration Time");
        self.expiration_time.as_ref().map(parse).transpose()
    }
    /// When it begins to hold.
    ///
    /// # Errors
    /// When the time is malformed.
    pub fn not_before_ms(&self) -> Result<Option<UnixMs>, MessageError> {
        let parse = |text: &String| parse_time(text, "Not Before");
        self.not_before.as_ref().map(parse).transpose()
    }

    /// Checks that the wallet the message names signed `text`.
    ///
    /// # Errors
    /// When the signature is malformed or another wallet's.
    pub fn check_signature(&self, text: &str, signature: &[u8]) -> Result<(), MessageError> {
        match self.namespace {
            Namespace::Solana => {
                let key = solana_key(&self.address).ok_or(MessageError::Malformed("address"))?;
                let signature = signature
                    .try_into()
                    .map_err(|_| SignatureError::Malformed)?;
                Ok(keys::verify_with_key(&key, text.as_bytes(), signature)?)
            }
            Namespace::Eip155 => {
                let address = keys::parse_checksummed(&self.address)
                    .ok_or(MessageError::Malformed("address"))?;
                let signature = signature
                    .try_into()
                    .map_err(|_| SignatureError::Malformed)?;
                let signer = keys::recover(&keys::personal_hash(text.as_bytes()), signature)?;
                if signer == address {
                    Ok(())
                } else {
                    Err(MessageError::OtherSigner)
                }
            }
        }
    }

    fn check_address(&self) -> Result<(), MessageError> {
        let ok = match self.namespace {
            Namespace::Solana => solana_key(&self.address).is_some(),
            Namespace::Eip155 => keys::parse_checksummed(&self.address).is_some(),
        };
        ok.then_some(()).ok_or(MessageError::Malformed("address"))
    }

    fn is_chain_id(&self) -> bool {
        let id = self.chain_id.as_str();
        let size = (1..=CHAIN_ID_BYTES_MAX).contains(&id.len());
        size && match self.namespace {
            Namespace::Eip155 => id.bytes().all(|b| b.is_ascii_digit()) && !id.starts_with('0'),
            Namespace::Solana => id
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b':')),
        }
    }
}

type Lines<'a> = std::iter::Peekable<std::str::Split<'a, char>>;

/// The empty line after the address, and the statement with its own, if there is one.
fn read_statement(lines: &mut Lines<'_>) -> Result<Option<String>, MessageError> {
    let blank = |line: Option<&str>| {
        (line == Some(""))
            .then_some(())
            .ok_or(MessageError::Malformed("statement"))
    };
    blank(lines.next())?;
    match lines.peek() {
        Some(line) if line.starts_with("URI: ") => Ok(None),
        Some(&"") => {
            lines.next();
            Ok(None)
        }
        _ => {
            let statement = lines.next().unwrap_or_default().to_owned();
            blank(lines.next())?;
            Ok(Some(statement))
        }
    }
}

/// The list at the end; nothing may follow it.
fn read_resources(lines: &mut Lines<'_>) -> Result<Vec<String>, MessageError> {
    let Some(heading) = lines.next() else {
        return Ok(Vec::new());
    };
    if heading != "Resources:" {
        return Err(MessageError::Malformed("Resources"));
    }
    lines
        .map(|line| {
            line.strip_prefix("- ")
                .map(str::to_owned)
                .ok_or(MessageError::Malformed("Resources"))
        })
        .collect()
}

fn tagged<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.strip_prefix(name)?.strip_prefix(": ")
}

/// One line of printable ASCII: what every wallet shows as it is.
fn is_line(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| (b' '..=b'~').contains(&b))
}

fn is_domain(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|b| {
            b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']')
        })
}

fn is_uri(text: &str) -> bool {
    let scheme = text.split_once(':').map_or("", |(scheme, _)| scheme);
    scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
        && text.bytes().all(|b| b.is_ascii_graphic())
        && !text.contains(['"', '<', '>', '\\', '^', '`', '{', '|', '}'])
}

fn is_nonce(text: &str) -> bool {
    (NONCE_BYTES_MIN..=NONCE_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

fn solana_key(address: &str) -> Option<[u8; 32]> {
    let mut key = [0u8; 32];
    let size = bs58::decode(address).onto(&mut key).ok()?;
    (size == key.len()).then_some(key)
}

fn parse_time(text: &str, name: &'static str) -> Result<UnixMs, MessageError> {
    let bad = MessageError::Malformed(name);
    if !is_time(text) {
        return Err(bad);
    }
    let time: Timestamp = text.parse().map_err(|_| bad.clone())?;
    u64::try_from(time.as_millisecond()).map_err(|_| bad)
}

/// RFC 3339 as wallets write it; the parser alone would also take spaces and week dates.
fn is_time(text: &str) -> bool {
    let bytes = text.as_bytes();
    (20..=35).contains(&bytes.len())
        && bytes.get(10) == Some(&b'T')
        && bytes
            .iter()
            .all(|b| b.is_ascii_digit() || matches!(b, b'-' | b':' | b'.' | b'+' | b'T' | b'Z'))
}

/// A time as our own texts write it: whole seconds, UTC.
pub(super) fn format_time(ms: UnixMs) -> Result<String, MessageError> {
    i64::try_from(ms / 1_000)
        .ok()
        .and_then(|seconds| Timestamp::from_second(seconds).ok())
        .map(|time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
        .ok_or(MessageError::Malformed("Issued At"))
}
