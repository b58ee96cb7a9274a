//! Failures in each dialect's own JSON shape, whole or as the last event of a stream, and the
//! washing of an upstream's billing words.
//!
//! A client disables a provider's key for minutes when it reads that credit ran out, so only the
//! buyer's own wallet may say so. Callers: buyer (all errors), seller (upstream errors).

use bytes::Bytes;

use super::Dialect;
use super::json::quoted;

/// Longest error text that is passed on, in bytes.
const MESSAGE_BYTES_MAX: usize = 600;

/// The dialect's name for a kind of failure.
#[must_use]
pub const fn error_type(dialect: Dialect, status: u16) -> &'static str {
    match (dialect, status) {
        (_, 401) => "authentication_error",
        (_, 403) => "permission_error",
        (_, 429) => "rate_limit_error",
        (Dialect::Messages, 402) => "billing_error",
        (Dialect::Messages, 404) => "not_found_error",
        (Dialect::Messages, 413) => "request_too_large",
        (Dialect::Messages, 504) => "timeout_error",
        (Dialect::Messages, 503 | 529) => "overloaded_error",
        (Dialect::Messages, 500..) => "api_error",
        (_, 402) => "insufficient_quota",
        (_, 500..) => "server_error",
        _ => "invalid_request_error",
    }
}

/// The JSON body of an error answer. `code` is a stable short name (`no_seller`); Messages has no
/// field for it, so there it ends the message.
#[must_use]
pub fn envelope(dialect: Dialect, status: u16, code: &str, message: &str) -> Bytes {
    let kind = quoted(error_type(dialect, status));
    let message = clip(message);
    Bytes::from(match dialect {
        Dialect::Messages => {
            let message = if code.is_empty() || message.contains(code) {
                message.to_owned()
            } else {
                format!("{message} ({code})")
            };
            format!(
                "{{\"type\":\"error\",\"error\":{{\"type\":{kind},\"message\":{}}}}}",
                quoted(&message)
            )
        }
        Dialect::Chat | Dialect::Responses => format!(
            "{{\"error\":{{\"message\":{},\"type\":{kind},\"param\":null,\"code\":{}}}}}",
            quoted(message),
            quoted(code)
        ),
    })
}

/// The SSE bytes of a failure after the status was sent. Nothing follows it, no terminator either: a
/// cut answer must not look like a whole one.
#[must_use]
pub fn error_event(dialect: Dialect, status: u16, code: &str, message: &str) -> Bytes {
    error_event_numbered(dialect, status, code, message, 0)
}

/// As [`error_event`]; Responses numbers its events, and `number` is this one's.
#[must_use]
pub fn error_event_numbered(
    dialect: Dialect,
    status: u16,
    code: &str,
    message: &str,
    number: u64,
) -> Bytes {
    let bytes = match dialect {
        Dialect::Chat => {
            let body = envelope(dialect, status, code, message);
            [b"data: ".as_slice(), &body, b"\n\n"].concat()
        }
        Dialect::Messages => {
            let body = envelope(dialect, status, code, message);
            [b"event: error\ndata: ".as_slice(), &body, b"\n\n"].concat()
        }
        Dialect::Responses => format!(
            "event: error\ndata: {{\"type\":\"error\",\"code\":{},\"message\":{},\"param\":null,\"sequence_number\":{number}}}\n\n",
            quoted(code),
            quoted(clip(message))
        )
        .into_bytes(),
    };
    Bytes::from(bytes)
}

/// The message inside an upstream's error answer, of any of the shapes in use.
#[must_use]
pub fn message_of(body: &[u8]) -> Option<String> {
    let value: serde_json::Value =
        serde_json::from_slice(body.get(..64 << 10).unwrap_or(body)).ok()?;
    ["/error/message", "/message", "/error", "/detail"]
        .iter()
        .find_map(|p| value.pointer(p)?.as_str().map(|m| clip(m).to_owned()))
}

/// At most 600 bytes, cut between characters.
fn clip(message: &str) -> &str {
    let mut end = message.len().min(MESSAGE_BYTES_MAX);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message.get(..end).unwrap_or_default()
}

/// Words by which clients recognise a billing failure, lower case.
const BILLING_WORDS: [&str; 22] = [
    "insufficient_quota",
    "insufficient credits",
    "insufficient credit",
    "insufficient balance",
    "insufficient funds",
    "insufficient_funds",
    "payment required",
    "payment_required",
    "billing_error",
    "billing",
    "quota",
    "credits",
    "credit",
    "balance",
    "payment",
    "top up",
    "top-up",
    "topup",
    "recharge",
    "subscription",
    "prepaid",
    "402",
];

/// Takes the billing words out of an upstream's error text; the rest stays readable.
#[must_use]
pub fn strip_billing_words(message: &str) -> String {
    let text = clip(message);
    let lower = text.to_ascii_lowercase();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while let Some(rest) = lower.get(at..).filter(|r| !r.is_empty()) {
        if let Some(word) = BILLING_WORDS.iter().find(|w| rest.starts_with(**w)) {
            out.push_str("[upstream limit]");
            at += word.len();
            continue;
        }
        let step = rest.chars().next().map_or(1, char::len_utf8);
        out.push_str(text.get(at..at + step).unwrap_or_default());
        at += step;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm_api::sse;
    use proptest::prelude::*;
    use serde_json::Value;

    #[test]
    fn each_dialect_has_its_own_envelope() {
        let chat: Value =
            serde_json::from_slice(&envelope(Dialect::Chat, 503, "no_seller", "none")).unwrap();
        assert_eq!(chat["error"]["code"], "no_seller");
        assert_eq!(chat["error"]["type"], "server_error");
        let messages: Value =
            serde_json::from_slice(&envelope(Dialect::Messages, 529, "busy", "none")).unwrap();
        assert_eq!(messages["type"], "error");
        assert_eq!(messages["error"]["type"], "overloaded_error");
        assert_eq!(messages["error"]["message"], "none (busy)");
    }

    #[test]
    fn error_events_are_recognised_as_errors_and_are_no_terminator() {
        for d in [Dialect::Chat, Dialect::Messages, Dialect::Responses] {
            let event = error_event(d, 502, "cut", "it \"broke\"\nhere");
            assert!(sse::is_error(&event) && !sse::is_done(d, &event));
            assert!(serde_json::from_slice::<Value>(sse::data(&event).unwrap()).is_ok());
        }
    }

    #[test]
    fn upstream_messages_are_found_in_all_shapes() {
        for body in [
            r#"{"error":{"message":"m"}}"#,
            r#"{"message":"m"}"#,
            r#"{"error":"m"}"#,
            r#"{"type":"error","error":{"type":"x","message":"m"}}"#,
        ] {
            assert_eq!(message_of(body.as_bytes()).as_deref(), Some("m"));
        }
        assert_eq!(message_of(b"<html>"), None);
    }

    proptest! {
        #[test]
        fn no_billing_word_survives(a in ".{0,20}", i in 0usize..22, b in ".{0,20}") {
            let washed = strip_billing_words(&format!("{a}{}{b}", BILLING_WORDS[i].to_uppercase()));
            let lower = washed.to_ascii_lowercase();
            prop_assert!(!BILLING_WORDS.iter().any(|w| lower.contains(w)));
        }
        #[test]
        fn envelopes_are_json_whatever_the_text(m in any::<String>(), c in any::<String>(), s in 100u16..600) {
            for d in [Dialect::Chat, Dialect::Messages, Dialect::Responses] {
                let parsed = serde_json::from_slice::<Value>(&envelope(d, s, &c, &m));
                prop_assert!(parsed.is_ok());
                let event = error_event(d, s, &c, &m);
                prop_assert!(event.ends_with(b"\n\n"));
                prop_assert!(sse::is_error(&event));
            }
        }
    }
}
