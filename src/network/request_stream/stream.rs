//! A stream, and which connection carries it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use libp2p::swarm::ConnectionId;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::compat::Compat;

/// Which connection carries a stream. A peer may have several, and a dead one looks alive for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carrier(pub(super) ConnectionId);

/// A stream to or from a peer. Dropping it ends both directions; a reader on the other side then sees the end of
/// the stream without an END frame.
#[derive(Debug)]
pub struct Stream {
    pub(super) io: Compat<libp2p::Stream>,
    pub(super) carrier: Carrier,
    pub(super) _permits: Permits,
}

impl Stream {
    /// The connection that carries it.
    #[must_use]
    pub const fn carrier(&self) -> Carrier {
        self.carrier
    }
}

/// Held as long as the stream.
#[derive(Debug)]
pub(super) struct Permits {
    pub(super) _connection: OwnedSemaphorePermit,
    pub(super) _node: Option<OwnedSemaphorePermit>,
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
