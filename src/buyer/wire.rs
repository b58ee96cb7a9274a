//! The buyer's end of one infer stream: sends the order, reads what comes, tells a dead seller from
//! a slow one.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{ReadHalf, WriteHalf};
use tokio::time::Instant;

use crate::network::framed::{FrameReader, FrameWriter, WireError};
use crate::network::{Carrier, Stream};
use crate::protocol::frame::Frame;
use crate::protocol::{CancelReason, FrameKind, SignedHead};

/// No frame for this long is a dead peer: a killed process sends no close, a live seller says NOP
/// every 5 s.
pub(super) const DEAD_AFTER: Duration = Duration::from_secs(12);
/// After CANCEL the receipt is awaited this long.
const CANCEL_PATIENCE: Duration = Duration::from_secs(2);

/// One infer stream.
pub(super) struct OrderWire {
    reader: FrameReader<ReadHalf<Stream>>,
    writer: FrameWriter<WriteHalf<Stream>>,
    /// It carried a request before: its other end may be gone unseen.
    pub is_kept: bool,
    /// The connection that carries it.
    pub carrier: Carrier,
}

/// Why no frame came.
#[derive(Debug)]
pub(super) enum Silence {
    /// The stream ended or broke.
    Broken(String),
    /// Nothing came in time.
    Late,
}

impl OrderWire {
    pub fn new(stream: Stream) -> Self {
        let carrier = stream.carrier();
        let (read, write) = tokio::io::split(stream);
        Self {
            reader: FrameReader::new(read),
            writer: FrameWriter::new(write),
            is_kept: false,
            carrier,
        }
    }

    /// Sends head, body and END, one flush.
    pub async fn order(&mut self, head: &SignedHead, body: &Bytes) -> Result<(), WireError> {
        self.writer.put(FrameKind::ReqHead, &head.bytes);
        if !body.is_empty() {
            self.writer.put(FrameKind::Body, body);
        }
        self.writer.send(FrameKind::End, &[]).await
    }

    /// The next frame before `deadline`. Cancel safe.
    pub async fn frame(&mut self, deadline: Instant) -> Result<Frame, Silence> {
        let limit = deadline.min(Instant::now() + DEAD_AFTER);
        match tokio::time::timeout_at(limit, self.reader.read()).await {
            Ok(Ok(Some(frame))) => Ok(frame),
            Ok(Ok(None)) => Err(Silence::Broken("the seller closed the stream".into())),
            Ok(Err(error)) => Err(Silence::Broken(error.to_string())),
            Err(_) => Err(Silence::Late),
        }
    }

    /// A frame that is here already.
    pub fn buffered(&mut self) -> Result<Option<Frame>, Silence> {
        self.reader
            .buffered()
            .map_err(|error| Silence::Broken(error.to_string()))
    }

    /// Stops the seller and waits for its USAGE; `each` sees every frame on the way. Gives the
    /// receipt's bytes, or `None` when none came in time.
    pub async fn cancel(
        &mut self,
        reason: CancelReason,
        mut each: impl FnMut(&Frame),
    ) -> Option<Bytes> {
        let deadline = Instant::now() + CANCEL_PATIENCE;
        self.writer
            .send(FrameKind::Cancel, &reason.encode())
            .await
            .ok()?;
        self.receipt(deadline, &mut each).await
    }

    /// Waits for USAGE after the answer's end.
    pub async fn receipt_soon(&mut self) -> Option<Bytes> {
        self.receipt(Instant::now() + CANCEL_PATIENCE, &mut |_| {})
            .await
    }

    async fn receipt(&mut self, deadline: Instant, each: &mut impl FnMut(&Frame)) -> Option<Bytes> {
        loop {
            let frame = self.frame(deadline).await.ok()?;
            if frame.kind == FrameKind::Usage {
                return Some(frame.payload);
            }
            each(&frame);
        }
    }
}
