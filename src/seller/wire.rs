//! The seller's end of one infer stream: reads the order, watches for CANCEL, gathers answers.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::time::Instant;

use crate::network::Stream;
use crate::network::framed::{FrameReader, FrameWriter, WireError};
use crate::protocol::frame::Frame;
use crate::protocol::{CancelReason, FrameKind, Need, PeerError, PeerErrorCode, Progress};
use crate::types::{MicroUsd, UnixMs};

/// The head must come within this.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The next head on a stream that served one may take this long: twice what buyers keep streams for.
const NEXT_HEAD_TIMEOUT: Duration = Duration::from_secs(20);
/// A body must keep coming: at most this between two frames.
const BODY_IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// A whole body gets this, and a second more for each [`BODY_BYTES_PER_S`]: a slot is not held by
/// a trickle.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// The slowest body that is waited for.
const BODY_BYTES_PER_S: usize = 64 * 1024;
/// A buyer that takes nothing for this long has gone.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(30);
/// The last frames get this.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// One infer stream, split, so that CANCEL is seen while the answer is written.
pub(super) struct InferWire {
    reader: FrameReader<ReadHalf<Stream>>,
    pub writer: FrameWriter<WriteHalf<Stream>>,
}

/// How the buyer stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stopped {
    /// It said why, and waits for USAGE.
    Cancelled(CancelReason),
    /// The stream broke.
    Gone,
}

/// What a frame after the order means: only CANCEL may come.
fn stop_of(frame: Result<Option<Frame>, WireError>) -> Stopped {
    match frame {
        Ok(Some(frame)) if frame.kind == FrameKind::Cancel => {
            CancelReason::decode(&frame.payload).map_or(Stopped::Gone, Stopped::Cancelled)
        }
        _ => Stopped::Gone,
    }
}

/// Why there is no order to work on.
#[derive(Debug)]
pub(super) enum NoOrder {
    /// The stream ended or broke.
    Gone,
    /// It is refused for so many ms.
    Wait(PeerErrorCode, u64),
    /// The peer broke a rule.
    Refuse(PeerErrorCode),
}

impl InferWire {
    pub fn new(stream: Stream) -> Self {
        let (read, write) = tokio::io::split(stream);
        Self {
            reader: FrameReader::new(read),
            writer: FrameWriter::new(write),
        }
    }

    /// Both directions, to be used at once.
    pub fn halves(
        &mut self,
    ) -> (
        &mut FrameReader<ReadHalf<Stream>>,
        &mut FrameWriter<WriteHalf<Stream>>,
    ) {
        (&mut self.reader, &mut self.writer)
    }

    /// The payload of the first REQ_HEAD.
    pub async fn head(&mut self) -> Result<Bytes, NoOrder> {
        self.head_within(HEAD_TIMEOUT).await
    }

    /// The payload of the REQ_HEAD after a request that ended well.
    pub async fn next_head(&mut self) -> Result<Bytes, NoOrder> {
        self.head_within(NEXT_HEAD_TIMEOUT).await
    }

    async fn head_within(&mut self, limit: Duration) -> Result<Bytes, NoOrder> {
        match tokio::time::timeout(limit, self.reader.read()).await {
            Ok(Ok(Some(frame))) if frame.kind == FrameKind::ReqHead => Ok(frame.payload),
            Ok(Ok(Some(_)) | Err(WireError::Frame(_))) => {
                Err(NoOrder::Refuse(PeerErrorCode::Malformed))
            }
            _ => Err(NoOrder::Gone),
        }
    }

    /// The body of exactly `len` bytes, then END.
    pub async fn body(&mut self, len: usize) -> Result<Bytes, NoOrder> {
        let mut body = BytesMut::new();
        let seconds = u64::try_from(len / BODY_BYTES_PER_S).unwrap_or(u64::MAX);
        let deadline = Instant::now() + BODY_TIMEOUT + Duration::from_secs(seconds);
        loop {
            let limit = deadline.min(Instant::now() + BODY_IDLE_TIMEOUT);
            let frame = match tokio::time::timeout_at(limit, self.reader.read()).await {
                Ok(Ok(Some(frame))) => frame,
                Ok(Err(WireError::Frame(_))) => {
                    return Err(NoOrder::Refuse(PeerErrorCode::Malformed));
                }
                _ => return Err(NoOrder::Gone),
            };
            match frame.kind {
                // Grows only by what really arrived, never by what the head claims.
                FrameKind::Body if body.len() + frame.payload.len() <= len => {
                    body.extend_from_slice(&frame.payload);
                }
                FrameKind::End if body.len() == len => return Ok(body.freeze()),
                FrameKind::Body | FrameKind::End => {
                    return Err(NoOrder::Refuse(PeerErrorCode::BodyMismatch));
                }
                FrameKind::Cancel => return Err(NoOrder::Gone),
                _ => return Err(NoOrder::Refuse(PeerErrorCode::Malformed)),
            }
        }
    }

    /// Sends what is gathered, unless the buyer stops or takes nothing for [`FLUSH_TIMEOUT`].
    pub async fn flush(&mut self) -> Result<(), Stopped> {
        if self.writer.pending() == 0 {
            return Ok(());
        }
        let Self { reader, writer } = self;
        tokio::select! {
            biased;
            sent = writer.flush() => sent.map_err(|_| Stopped::Gone),
            frame = reader.read() => Err(stop_of(frame)),
            () = tokio::time::sleep(FLUSH_TIMEOUT) => Err(Stopped::Gone),
        }
    }

    /// Sends the last frames and closes, as far as the buyer takes them.
    pub async fn close(&mut self) {
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.writer.close()).await;
    }

    /// Sends the last frames and leaves the stream open; true when they are out.
    pub async fn rest(&mut self) -> bool {
        let sent = tokio::time::timeout(CLOSE_TIMEOUT, self.writer.flush()).await;
        matches!(sent, Ok(Ok(())))
    }

    /// Resolves when the buyer stops; cancel safe. A buyer only ever sends CANCEL after its END.
    pub async fn stopped(&mut self) -> Stopped {
        stop_of(self.reader.read().await)
    }

    /// Says that the seller is alive; the buyer owes its input once the upstream was called.
    pub async fn alive(&mut self, upstream_called: bool) -> Result<(), WireError> {
        self.writer
            .send(FrameKind::Nop, &Progress { upstream_called }.encode())
            .await
    }

    /// Asks for a voucher of at least `cumulative`, after everything gathered so far.
    pub async fn need(&mut self, cumulative: MicroUsd) -> Result<(), WireError> {
        self.writer
            .send(FrameKind::Need, &Need { cumulative }.encode())
            .await
    }

    /// Refuses or gives up; the buyer may already be gone.
    pub async fn refuse(&mut self, code: PeerErrorCode, retry_after_ms: u64, now_ms: UnixMs) {
        let error = PeerError {
            code,
            message: code.as_str().to_owned(),
            retry_after_ms: u32::try_from(retry_after_ms).unwrap_or(u32::MAX),
            now_ms,
        };
        self.writer.put(FrameKind::Error, &error.encode());
        self.close().await;
    }
}
