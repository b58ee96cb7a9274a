//! A TCP socket that notes when its client went away.
//!
//! hyper keeps reading while it answers, so the end of the stream is seen within the time that
//! the kernel needs to deliver it, also in the middle of an answer.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::Shared;

/// A socket with a number in the log.
pub struct Watched {
    stream: TcpStream,
    id: u64,
    shared: Arc<Shared>,
}

impl Watched {
    /// Wraps a fresh socket and records it as open.
    pub fn new(stream: TcpStream, shared: Arc<Shared>) -> Self {
        let id = shared.log().open_connection();
        Self { stream, id, shared }
    }

    /// Returns its number in the log.
    pub fn id(&self) -> u64 {
        self.id
    }

    fn closed(&self) {
        self.shared.log().close_connection(self.id);
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.closed();
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        if result.is_err() || (buf.filled().len() == before && buf.remaining() > 0) {
            self.closed();
        }
        Poll::Ready(result)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.stream).poll_write(cx, buf));
        if result.is_err() {
            self.closed();
        }
        Poll::Ready(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
