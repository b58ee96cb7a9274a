//! The body of an answer: whole bytes, or a stream that a producer fills piece by piece.
//!
//! Invariants: the queue between producer and client is bounded; a stream that its producer drops
//! without [`BodySender::finish`] ends as a broken connection, never as a well-formed short
//! answer; when the client goes away hyper drops the body and [`BodySender::closed`] fires at
//! once, also while no bytes flow. Made by handlers, taken by [`super::server`].

use std::any::Any;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::mpsc;

/// Pieces that wait for a slow client; each is one read from the seller, so at most 64 KiB.
const QUEUE_PIECES: usize = 8;

/// Why a body ended early.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum BodyError {
    /// The producer went away without finishing.
    #[error("the answer was cut off")]
    Cut,
}

/// The client closed its connection; stop the work.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
#[error("the client has gone")]
pub struct ClientGone;

enum Piece {
    Data(Bytes),
    End(Option<HeaderMap>),
}

enum Inner {
    Full(Bytes),
    Stream(mpsc::Receiver<Piece>),
    /// The producer is gone without finishing; hyper gets one chance to flush before it hears.
    Cut,
    Done,
}

/// An answer's body.
pub struct Body {
    inner: Inner,
    /// Dropped together with the body.
    held: Option<Box<dyn Any + Send>>,
}

/// The producing end of a streamed body.
#[derive(Debug)]
pub struct BodySender(mpsc::Sender<Piece>);

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match &self.inner {
            Inner::Full(_) => "Body(full)",
            Inner::Stream(_) => "Body(stream)",
            Inner::Cut => "Body(cut)",
            Inner::Done => "Body(done)",
        })
    }
}

impl Body {
    /// A body that is there at once; hyper sends its length.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self {
            inner: Inner::Full(bytes.into()),
            held: None,
        }
    }
    /// No body.
    #[must_use]
    pub fn empty() -> Self {
        Self::full(Bytes::new())
    }
    /// A body that grows.
    #[must_use]
    pub fn stream() -> (BodySender, Self) {
        let (sender, receiver) = mpsc::channel(QUEUE_PIECES);
        let body = Self {
            inner: Inner::Stream(receiver),
            held: None,
        };
        (BodySender(sender), body)
    }
    /// Keeps `value` until the body has been sent or the client has gone.
    #[must_use]
    pub fn holding(mut self, value: impl Any + Send) -> Self {
        self.held = match self.held.take() {
            None => Some(Box::new(value)),
            Some(before) => Some(Box::new((before, value))),
        };
        self
    }
}

impl BodySender {
    /// Hands on a piece, waiting while the client is slower than the seller.
    ///
    /// Cancel safe: a piece is sent whole or not at all.
    ///
    /// # Errors
    /// [`ClientGone`] when nobody reads any more.
    pub async fn send(&self, bytes: Bytes) -> Result<(), ClientGone> {
        if bytes.is_empty() {
            return Ok(());
        }
        let sent = self.0.send(Piece::Data(bytes)).await;
        sent.map_err(|_| ClientGone)
    }
    /// Ends the body well, with trailer fields if there are any. Fields reach only a client that
    /// sent `TE: trailers`, and only those that the answer's `Trailer` header names.
    ///
    /// # Errors
    /// [`ClientGone`] when nobody reads any more.
    pub async fn finish(self, trailers: Option<HeaderMap>) -> Result<(), ClientGone> {
        let sent = self.0.send(Piece::End(trailers)).await;
        sent.map_err(|_| ClientGone)
    }
    /// Ends the body as a broken connection, so that no client takes it for complete.
    pub fn cut(self) {}
    /// Completes when the client has gone (or everything has been sent).
    pub async fn closed(&self) {
        self.0.closed().await;
    }
    /// Whether the client has gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let piece = match &mut this.inner {
            Inner::Done => return Poll::Ready(None),
            Inner::Cut => {
                this.inner = Inner::Done;
                return Poll::Ready(Some(Err(BodyError::Cut)));
            }
            Inner::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                this.inner = Inner::Done;
                let frame = (!bytes.is_empty()).then(|| Ok(Frame::data(bytes)));
                return Poll::Ready(frame);
            }
            Inner::Stream(receiver) => ready!(receiver.poll_recv(cx)),
        };
        match piece {
            Some(Piece::Data(bytes)) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            Some(Piece::End(trailers)) => {
                this.inner = Inner::Done;
                Poll::Ready(trailers.map(|fields| Ok(Frame::trailers(fields))))
            }
            None => {
                // At an error hyper drops what it has not flushed, an error event for instance.
                this.inner = Inner::Cut;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Done => true,
            Inner::Full(bytes) => bytes.is_empty(),
            Inner::Stream(_) | Inner::Cut => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Done => SizeHint::with_exact(0),
            Inner::Full(bytes) => {
                SizeHint::with_exact(u64::try_from(bytes.len()).unwrap_or(u64::MAX))
            }
            Inner::Stream(_) | Inner::Cut => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;

    #[tokio::test]
    async fn a_finished_stream_is_whole_and_a_dropped_one_is_an_error() {
        let (sender, body) = Body::stream();
        sender.send(Bytes::from_static(b"a")).await.unwrap();
        sender.send(Bytes::new()).await.unwrap();
        sender.finish(None).await.unwrap();
        assert_eq!(body.collect().await.unwrap().to_bytes(), "a");
        let (sender, body) = Body::stream();
        sender.send(Bytes::from_static(b"a")).await.unwrap();
        sender.cut();
        assert_eq!(body.collect().await.unwrap_err(), BodyError::Cut);
    }

    #[tokio::test]
    async fn dropping_the_body_tells_the_producer_and_lets_go_of_what_it_holds() {
        let (sender, body) = Body::stream();
        let held = std::sync::Arc::new(());
        let body = body.holding(held.clone()).holding(held.clone());
        assert_eq!(std::sync::Arc::strong_count(&held), 3);
        drop(body);
        sender.closed().await;
        assert_eq!(sender.send(Bytes::from_static(b"x")).await, Err(ClientGone));
        assert_eq!(std::sync::Arc::strong_count(&held), 1);
    }

    #[tokio::test]
    async fn the_queue_is_bounded() {
        let (sender, _body) = Body::stream();
        for _ in 0..QUEUE_PIECES {
            sender.send(Bytes::from_static(b"x")).await.unwrap();
        }
        let more = sender.send(Bytes::from_static(b"x"));
        let wait = std::time::Duration::from_millis(20);
        assert!(tokio::time::timeout(wait, more).await.is_err());
    }
}
