//! Sorts what RPC nodes say when they refuse, by what can be done about it.

use alloy::transports::{RpcError, TransportErrorKind};

use crate::chain::hub::refusal_reason;
use crate::chain::{ChainError, SendRefusal};

/// Longest message of a node that is kept.
const MESSAGE_CHARS_MAX: usize = 300;
/// geth's code for a call that reverted.
const REVERTED: i64 = 3;
/// Too many requests, or a range of logs that is too wide (EIP-1474: limit exceeded).
const LIMIT_EXCEEDED: i64 = -32_005;
/// The node itself failed.
const INTERNAL: i64 = -32_603;

/// What nodes say about a transaction they do not take; there are no codes for it.
const REFUSALS: [(&str, SendRefusal); 9] = [
    ("nonce too low", SendRefusal::NonceTooLow),
    (
        "replacement transaction underpriced",
        SendRefusal::Underpriced,
    ),
    ("replacement fee too low", SendRefusal::Underpriced),
    ("already known", SendRefusal::AlreadyKnown),
    ("already imported", SendRefusal::AlreadyKnown),
    ("insufficient funds", SendRefusal::InsufficientFunds),
    ("less than block base fee", SendRefusal::FeeTooLow),
    ("transaction underpriced", SendRefusal::FeeTooLow),
    ("max fee per gas", SendRefusal::FeeTooLow),
];

/// What nodes say about a range of logs they find too wide.
const TOO_WIDE: [&str; 5] = [
    "block range",
    "range is too large",
    "range too large",
    "query returned more than",
    "too many results",
];

/// Sorts an error of one node.
pub(super) fn sort(url: &str, error: &RpcError<TransportErrorKind>) -> ChainError {
    let node = |reason: String| ChainError::Node {
        url: url.to_owned(),
        reason: cut(&reason),
    };
    let payload = match error {
        RpcError::ErrorResp(payload) => payload,
        RpcError::Transport(kind) => return node(transport(kind)),
        RpcError::DeserError { err, .. } => return node(format!("answers no JSON-RPC: {err}")),
        other => return node(other.to_string()),
    };
    let message = cut(&payload.message);
    let lower = message.to_lowercase();
    let data = payload.data.as_ref().and_then(|raw| revert_data(raw.get()));
    if let Some(why) = REFUSALS.iter().find(|(words, _)| lower.contains(words)) {
        return ChainError::NotTaken {
            why: why.1,
            message,
        };
    }
    if payload.code == REVERTED || lower.contains("revert") {
        let reason = data.and_then(|data| refusal_reason(&data));
        return ChainError::Reverted(reason.unwrap_or(message));
    }
    if TOO_WIDE.iter().any(|words| lower.contains(words)) {
        return ChainError::RangeTooWide(message);
    }
    match payload.code {
        LIMIT_EXCEEDED | INTERNAL => node(message),
        _ => ChainError::Refused(message),
    }
}

/// A transport error without its URL: it may hold a key.
fn transport(kind: &TransportErrorKind) -> String {
    match kind {
        TransportErrorKind::HttpError(error)
        | TransportErrorKind::HttpErrorWithRetryAfter { error, .. } => {
            format!("answers HTTP {}", error.status)
        }
        TransportErrorKind::Custom(error) => {
            let mut deepest: &dyn std::error::Error = error.as_ref();
            while let Some(source) = deepest.source() {
                deepest = source;
            }
            deepest.to_string()
        }
        other => other.to_string(),
    }
}

/// The bytes of a revert: a hex string, or one inside an object.
fn revert_data(json: &str) -> Option<Vec<u8>> {
    let value: serde_json::Value = serde_json::from_str(json).ok()?;
    let text = value.as_str().or_else(|| value.get("data")?.as_str())?;
    hex::decode(text.strip_prefix("0x")?).ok()
}

fn cut(text: &str) -> String {
    text.chars().take(MESSAGE_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::Retry;

    fn said(json: &str) -> ChainError {
        let payload = serde_json::from_str(json).unwrap();
        sort("u", &RpcError::ErrorResp(payload))
    }

    #[test]
    fn errors_are_sorted_by_what_can_be_done() {
        let too_low = said(r#"{"code":-32000,"message":"nonce too low: next nonce 5"}"#);
        assert!(matches!(
            too_low,
            ChainError::NotTaken {
                why: SendRefusal::NonceTooLow,
                ..
            }
        ));
        let wide = said(r#"{"code":-32000,"message":"block range is too wide"}"#);
        assert!(matches!(wide, ChainError::RangeTooWide(_)));
        let busy = said(r#"{"code":-32005,"message":"daily limit exceeded"}"#);
        assert_eq!(busy.retry(), Retry::NextUrl);
        // A chain without tips must not look like a chain without nodes.
        let unknown = said(r#"{"code":-32601,"message":"the method does not exist"}"#);
        assert_eq!(unknown.retry(), Retry::Never);
        let odd = said(r#"{"code":-32602,"message":"invalid params"}"#);
        assert_eq!(odd.retry(), Retry::Never);
    }

    #[test]
    fn a_revert_is_named_with_the_contracts_own_word() {
        let selector = &crate::chain::transaction::keccak(b"NotExpired()").0[..4];
        let data = hex::encode(selector);
        let json = format!(r#"{{"code":3,"message":"execution reverted","data":"0x{data}"}}"#);
        assert!(matches!(said(&json), ChainError::Reverted(word) if word == "NotExpired"));
        let plain = said(r#"{"code":3,"message":"execution reverted: no"}"#);
        assert!(matches!(plain, ChainError::Reverted(word) if word.contains("no")));
    }
}
