//! Frames over an async stream: reads are cancel safe, writes are gathered and flushed once.

use std::io;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::protocol::frame::{self, Frame, FrameError, FrameKind};

/// Bytes asked of the socket at once: a burst of events in one read.
const READ_BYTES: usize = 16 * 1024;
/// Gathered bytes above which a writer should flush before it adds more.
pub const FLUSH_BYTES: usize = 64 * 1024;

/// Why a framed stream ended.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The connection broke.
    #[error("stream broke: {0}")]
    Io(#[from] io::Error),
    /// The peer violated the framing.
    #[error("protocol violation: {0}")]
    Frame(#[from] FrameError),
}

/// The reading half.
#[derive(Debug)]
pub struct FrameReader<R> {
    io: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Wraps a byte stream.
    pub fn new(io: R) -> Self {
        Self {
            io,
            buffer: BytesMut::with_capacity(READ_BYTES),
        }
    }

    /// The next frame, or `None` at a clean end. Cancel safe: what was read stays buffered.
    ///
    /// # Errors
    /// When the connection breaks, ends inside a frame, or the peer violates the framing.
    pub async fn read(&mut self) -> Result<Option<Frame>, WireError> {
        loop {
            if let Some(frame) = frame::decode(&mut self.buffer)? {
                return Ok(Some(frame));
            }
            self.buffer.reserve(READ_BYTES);
            if self.io.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
                };
            }
        }
    }

    /// A frame that is already here, without touching the socket: for draining before a flush.
    ///
    /// # Errors
    /// When the peer violates the framing.
    pub fn buffered(&mut self) -> Result<Option<Frame>, WireError> {
        Ok(frame::decode(&mut self.buffer)?)
    }
}

/// The writing half.
#[derive(Debug)]
pub struct FrameWriter<W> {
    io: W,
    buffer: BytesMut,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Wraps a byte stream.
    pub fn new(io: W) -> Self {
        Self {
            io,
            buffer: BytesMut::new(),
        }
    }

    /// Gathers a frame; nothing is sent before [`Self::flush`].
    pub fn put(&mut self, kind: FrameKind, payload: &[u8]) {
        frame::encode_into(&mut self.buffer, kind, payload);
    }

    /// Bytes gathered and not yet written.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.buffer.len()
    }

    /// Writes what was gathered and flushes the stream once.
    ///
    /// # Errors
    /// When the connection breaks. Not cancel safe: part may be written.
    pub async fn flush(&mut self) -> Result<(), WireError> {
        self.io.write_all_buf(&mut self.buffer).await?;
        self.io.flush().await?;
        Ok(())
    }

    /// Gathers one frame and flushes.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn send(&mut self, kind: FrameKind, payload: &[u8]) -> Result<(), WireError> {
        self.put(kind, payload);
        self.flush().await
    }

    /// Flushes and closes the writing side.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn close(&mut self) -> Result<(), WireError> {
        self.flush().await?;
        self.io.shutdown().await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_cross_a_pipe_and_a_truncated_one_is_an_error() {
        let (a, b) = tokio::io::duplex(7);
        let mut writer = FrameWriter::new(a);
        let mut reader = FrameReader::new(b);
        let write = async {
            writer.put(FrameKind::Body, b"hello");
            writer.put(FrameKind::End, b"");
            writer.flush().await.unwrap();
            writer.io.write_all(&[2, 0, 0, 9, 1]).await.unwrap();
            writer.io.shutdown().await.unwrap();
        };
        let read = async {
            assert_eq!(
                reader.read().await.unwrap().unwrap().payload.as_ref(),
                b"hello"
            );
            assert_eq!(reader.read().await.unwrap().unwrap().kind, FrameKind::End);
            assert!(reader.read().await.is_err());
        };
        tokio::join!(write, read);
    }
}
