//! Frames: type `u8`, length `u24` big-endian, payload of at most 64 KiB.
//!
//! Pure: [`encode_into`] appends to a buffer that is flushed once, [`decode`] takes from a buffer
//! that a socket fills. The async halves are in `network::framed`.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::limits::FRAME_PAYLOAD_BYTES_MAX;

/// Bytes before the payload.
pub const HEADER_BYTES: usize = 4;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// B→S: signature ‖ head; begins a request.
    ReqHead = 1,
    /// Raw bytes of a request or an answer.
    Body = 2,
    /// End of the body.
    End = 3,
    /// S→B: status, headers, model served.
    RespHead = 4,
    /// S→B: what is owed so far; a voucher please.
    Need = 5,
    /// S→B: the signed receipt.
    Usage = 6,
    /// B→S: stop.
    Cancel = 7,
    /// S→B: refused or failed.
    Error = 8,
    /// S→B: still here.
    Nop = 9,
    /// Session messages, either way.
    Session = 32,
    /// Messages about a transaction to be sent, either way.
    Relay = 33,
}

impl FrameKind {
    const fn from_u8(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::ReqHead,
            2 => Self::Body,
            3 => Self::End,
            4 => Self::RespHead,
            5 => Self::Need,
            6 => Self::Usage,
            7 => Self::Cancel,
            8 => Self::Error,
            9 => Self::Nop,
            32 => Self::Session,
            33 => Self::Relay,
            _ => return None,
        })
    }
    const fn to_u8(self) -> u8 {
        match self {
            Self::ReqHead => 1,
            Self::Body => 2,
            Self::End => 3,
            Self::RespHead => 4,
            Self::Need => 5,
            Self::Usage => 6,
            Self::Cancel => 7,
            Self::Error => 8,
            Self::Nop => 9,
            Self::Session => 32,
            Self::Relay => 33,
        }
    }
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it carries.
    pub kind: FrameKind,
    /// At most 64 KiB.
    pub payload: Bytes,
}

/// A violation of the framing; the stream is reset.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum FrameError {
    /// Unknown type byte.
    #[error("unknown frame type {0}")]
    UnknownKind(u8),
    /// Payload above the limit.
    #[error("frame of {0} bytes exceeds 64 KiB")]
    TooLong(usize),
}

/// Appends one frame; a payload above the limit is split into several frames of the same kind
/// (only BODY is ever that long).
pub fn encode_into(buffer: &mut BytesMut, kind: FrameKind, payload: &[u8]) {
    let mut rest = payload;
    loop {
        let (piece, tail) = rest.split_at(rest.len().min(FRAME_PAYLOAD_BYTES_MAX));
        buffer.reserve(HEADER_BYTES + piece.len());
        buffer.put_u8(kind.to_u8());
        buffer.put_uint(u64::try_from(piece.len()).unwrap_or(0), 3);
        buffer.put_slice(piece);
        rest = tail;
        if rest.is_empty() {
            return;
        }
    }
}

/// Takes one frame from the front of `buffer`, or `None` when it is not complete yet.
///
/// # Errors
/// When the type is unknown or the length above the limit; the caller resets the stream.
pub fn decode(buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
    let Some(&[kind, a, b, c]) = buffer.first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let kind = FrameKind::from_u8(kind).ok_or(FrameError::UnknownKind(kind))?;
    let len = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
    if len > FRAME_PAYLOAD_BYTES_MAX {
        return Err(FrameError::TooLong(len));
    }
    if buffer.len() < HEADER_BYTES + len {
        return Ok(None);
    }
    buffer.advance(HEADER_BYTES);
    Ok(Some(Frame {
        kind,
        payload: buffer.split_to(len).freeze(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_survive_any_split(bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..8), cut in 1usize..64) {
            let mut wire = BytesMut::new();
            for body in &bodies { encode_into(&mut wire, FrameKind::Body, body); }
            let (mut buffer, mut got) = (BytesMut::new(), Vec::new());
            for piece in wire.chunks(cut) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = decode(&mut buffer).unwrap() { got.push(frame.payload.to_vec()); }
            }
            prop_assert_eq!(got, bodies);
        }
        #[test]
        fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..4096)) {
            let mut buffer = BytesMut::from(&noise[..]);
            while let Ok(Some(_)) = decode(&mut buffer) {}
        }
    }

    #[test]
    fn a_long_body_is_split_and_a_long_length_is_refused() {
        let mut wire = BytesMut::new();
        encode_into(
            &mut wire,
            FrameKind::Body,
            &vec![7; FRAME_PAYLOAD_BYTES_MAX + 1],
        );
        assert_eq!(
            decode(&mut wire).unwrap().unwrap().payload.len(),
            FRAME_PAYLOAD_BYTES_MAX
        );
        assert_eq!(decode(&mut wire).unwrap().unwrap().payload.len(), 1);
        let mut bad = BytesMut::from(&[2u8, 1, 0, 1][..]);
        assert_eq!(decode(&mut bad), Err(FrameError::TooLong(65_537)));
    }
}
