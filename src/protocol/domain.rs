//! Domain strings: a signature made for one purpose never verifies for another.

/// A buyer's request head.
pub const REQUEST: &str = "req/v1";
/// A seller's terms.
pub const TERMS: &str = "terms/v1";
/// A buyer opening a channel.
pub const OPEN: &str = "open/v1";
/// A buyer accepting costs.
pub const ACCEPT: &str = "accept/v1";
/// A seller's proof of one request.
pub const RECEIPT: &str = "receipt/v1";

/// `"souk/" ‖ domain ‖ 0x00 ‖ payload`: what is really signed.
#[must_use]
pub fn message(domain: &str, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(6 + domain.len() + payload.len());
    out.extend_from_slice(b"souk/");
    out.extend_from_slice(domain.as_bytes());
    out.push(0);
    out.extend_from_slice(payload);
    out
}
