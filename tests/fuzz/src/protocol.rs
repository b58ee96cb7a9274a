//! The messages of stage sessions; of the protocol's own module only what these need.

#[path = "../../../src/protocol/limits.rs"]
pub mod limits;
#[path = "../../../src/protocol/signature.rs"]
pub mod signature;
#[path = "../../../src/protocol/stage.rs"]
pub mod stage;

/// Why bytes from a peer were refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
pub enum DecodeError {
    /// Longer than its limit.
    #[error("message of {len} bytes exceeds the limit of {max}")]
    TooLong {
        /// Bytes received.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// Not the encoding of this type, or bytes left over.
    #[error("malformed {0}")]
    Malformed(&'static str),
}

pub(crate) fn encode<T: serde::Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).unwrap_or_default()
}

pub(crate) fn decode<T: serde::de::DeserializeOwned>(
    what: &'static str,
    bytes: &[u8],
    max: usize,
) -> Result<T, DecodeError> {
    let len = bytes.len();
    if len > max {
        return Err(DecodeError::TooLong { len, max });
    }
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        _ => Err(DecodeError::Malformed(what)),
    }
}
