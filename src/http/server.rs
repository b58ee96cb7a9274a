//! The local HTTP server: its own accept loop over hyper's HTTP/1.1, with the timers and limits
//! that `axum::serve` lacks.
//!
//! Invariants: TCP_NODELAY on every socket; a head must arrive within its time, an idle kept-alive
//! connection may wait longer (longer than the clients' pools keep theirs, or they would send into
//! a closing socket); at most so many connections; every request passes the [`Guard`] before a
//! handler sees it; after [`Server::run`] returns no connection is open.
//!
//! **A client that goes away is noticed at once.** While the handler still waits (for a seller),
//! hyper reads the end of the connection and drops the handler's future, so everything the future
//! owns is cancelled by drop; work that must outlive it belongs to a task of its own. While the
//! answer streams, hyper drops the body and [`super::body::BodySender::closed`] completes. Hyper
//! reads ahead only when the request's body has been read to its end, so handlers read it first
//! ([`super::request_body::read_body`]). Bytes of a second request sent ahead (pipelining, which no
//! client in use does) hide the end of a connection until the answer is written.
//!
//! `node` binds it, gives it a handler and runs it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::future::BoxFuture;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

use super::body::Body;
use super::guard::Guard;
use super::request_body::discard_body;
use crate::tasks::Tasks;

/// Bytes of a request's head, all header lines together; hyper itself stops at 100 of them.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// What hyper buffers per connection and direction; keeps a slow reader below 1 MiB.
const BUFFER_BYTES_MAX: usize = 256 * 1024;
/// Out of file descriptors: waiting is all that helps.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// After an abort connections end at their next wake-up.
const ABORT_GRACE: Duration = Duration::from_millis(500);
/// What a connection too many is told; there is no request to answer yet, so no dialect either.
const OVERLOADED: &str = r#"{"error":{"message":"too many connections; try again","type":"overloaded_error","code":"overloaded"}}"#;

/// How the server serves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Address or name to bind.
    pub host: String,
    /// Port to bind; 0 = any free one.
    pub port: u16,
    /// Connections served at once.
    pub connections_max: usize,
    /// From a head's first byte (or a connection's start) to its last byte.
    pub head_timeout: Duration,
    /// Between two requests of one connection.
    pub idle_timeout: Duration,
    /// How long answers may take to end after a shutdown began.
    pub drain_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 5005,
            connections_max: 12_000,
            head_timeout: Duration::from_secs(10),
            // Go's and reqwest's pools keep idle connections for 90 s.
            idle_timeout: Duration::from_secs(120),
            drain_timeout: Duration::from_secs(10),
        }
    }
}

/// Why the server cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address cannot be bound.
    #[error("cannot listen on {host}:{port}: {source}; choose another --port (0 = a free one)")]
    Bind {
        /// The configured host.
        host: String,
        /// The configured port.
        port: u16,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Answers requests that passed the guard.
pub trait Handler: Send + Sync + 'static {
    /// Answers one request. Dropped, wherever it is, when the client goes away.
    fn handle(&self, request: Request<Incoming>) -> BoxFuture<'static, Response<Body>>;
}

/// A bound, not yet serving socket.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    settings: Settings,
}

/// What all connections share.
struct Shared {
    guard: Guard,
    handler: Arc<dyn Handler>,
    settings: Settings,
    stop: CancellationToken,
    abort: CancellationToken,
}

impl Server {
    /// Binds the socket.
    ///
    /// # Errors
    /// When the address is wrong or taken.
    pub async fn bind(settings: Settings) -> Result<Self, ServerError> {
        let host = settings.host.trim_matches(['[', ']']);
        let bind = async {
            let listener = TcpListener::bind((host, settings.port)).await?;
            let address = listener.local_addr()?;
            Ok((listener, address))
        };
        match bind.await {
            Ok((listener, address)) => Ok(Self {
                listener,
                address,
                settings,
            }),
            Err(source) => Err(ServerError::Bind {
                host: settings.host,
                port: settings.port,
                source,
            }),
        }
    }

    /// The address it really has.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` is cancelled; then accepts nothing more, lets running answers end for
    /// [`Settings::drain_timeout`], and closes what is left.
    pub async fn run(
        self,
        guard: Guard,
        handler: Arc<dyn Handler>,
        tasks: &Tasks,
        stop: CancellationToken,
    ) {
        let connections_max = self
            .settings
            .connections_max
            .clamp(1, Semaphore::MAX_PERMITS);
        let slots = Arc::new(Semaphore::new(connections_max));
        let shared = Arc::new(Shared {
            guard,
            handler,
            settings: self.settings,
            stop,
            abort: CancellationToken::new(),
        });
        // Also when this future is dropped no connection stays behind.
        let _abort_on_drop = shared.abort.clone().drop_guard();
        loop {
            let accepted = tokio::select! {
                biased;
                () = shared.stop.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            match Arc::clone(&slots).try_acquire_owned() {
                Ok(slot) => {
                    tasks.spawn("http-connection", serve(Arc::clone(&shared), stream, slot))
                }
                // Best effort: a fresh socket's send buffer is empty.
                Err(_) => drop(stream.try_write(overloaded().as_bytes())),
            }
        }
        drop(self.listener);
        let all = u32::try_from(connections_max).unwrap_or(u32::MAX);
        let drained = slots.acquire_many(all);
        let drain_timeout = shared.settings.drain_timeout;
        if tokio::time::timeout(drain_timeout, drained).await.is_err() {
            shared.abort.cancel();
            drop(tokio::time::timeout(ABORT_GRACE, slots.acquire_many(all)).await);
        }
    }
}

fn overloaded() -> String {
    let length = OVERLOADED.len();
    format!(
        "HTTP/1.1 503 Service Unavailable\r\nretry-after: 5\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n{OVERLOADED}"
    )
}

/// One connection, from accept to close.
async fn serve(shared: Arc<Shared>, stream: TcpStream, _slot: OwnedSemaphorePermit) {
    // Without it every small event waits for the client's delayed acknowledgement (40 ms).
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "the client left at once");
        return;
    }
    let phase = Phase::default();
    let socket = Socket::new(stream, phase.clone(), shared.settings.head_timeout);
    let service = {
        let shared = Arc::clone(&shared);
        service_fn(move |request| {
            let (shared, busy) = (Arc::clone(&shared), phase.enter());
            async move {
                let response = shared.answer(request).await;
                Ok::<_, Infallible>(response.map(|body| body.holding(busy)))
            }
        })
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.settings.idle_timeout)
        .max_header_size(HEAD_BYTES_MAX)
        .max_buf_size(BUFFER_BYTES_MAX)
        .serve_connection(TokioIo::new(socket), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        biased;
        () = shared.abort.cancelled() => return,
        result = connection.as_mut() => result,
        () = shared.stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                biased;
                () = shared.abort.cancelled() => return,
                result = connection => result,
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a client's connection ended early");
    }
}

impl Shared {
    async fn answer(&self, mut request: Request<Incoming>) -> Response<Body> {
        let checked = self
            .guard
            .check(request.method(), request.uri(), request.headers());
        let Err(refusal) = checked else {
            if let Some(name) = self.guard.client(request.headers()) {
                request.extensions_mut().insert(name);
            }
            return self.handler.handle(request).await;
        };
        tracing::debug!(code = refusal.code(), "refused a request");
        let (head, body) = request.into_parts();
        discard_body(&head.headers, body).await;
        refusal.response(head.uri.path())
    }
}

/// Where a connection stands between its requests.
#[derive(Clone, Default)]
struct Phase(Arc<PhaseState>);

#[derive(Default)]
struct PhaseState {
    /// From a request's head to the end of its answer.
    is_busy: AtomicBool,
    /// Complete heads so far.
    heads: AtomicU64,
}

impl Phase {
    fn enter(&self) -> Busy {
        self.0.heads.fetch_add(1, Ordering::AcqRel);
        self.0.is_busy.store(true, Ordering::Release);
        Busy(self.clone())
    }
    fn is_busy(&self) -> bool {
        self.0.is_busy.load(Ordering::Acquire)
    }
    fn heads(&self) -> u64 {
        self.0.heads.load(Ordering::Acquire)
    }
}

/// Alive from a request's head to the end of its answer.
struct Busy(Phase);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.0.is_busy.store(false, Ordering::Release);
    }
}

/// The client's socket, which gives up when a head takes too long.
///
/// Hyper's own header timer also runs while a kept-alive connection is idle, so it is the idle
/// timer here, and this one starts with the head's first byte.
struct Socket {
    stream: TcpStream,
    phase: Phase,
    head_timeout: Duration,
    head_timer: Option<Pin<Box<Sleep>>>,
    /// The heads that were complete when the timer was last looked at.
    heads_seen: u64,
}

impl Socket {
    fn new(stream: TcpStream, phase: Phase, head_timeout: Duration) -> Self {
        Self {
            stream,
            phase,
            head_timeout,
            // A connection that never says anything has no more time than a head.
            head_timer: Some(Box::pin(tokio::time::sleep(head_timeout))),
            heads_seen: 0,
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let this = &mut *self;
        // A quick answer may already be over, so being busy says nothing about the last head.
        let heads = this.phase.heads();
        if heads != this.heads_seen {
            this.heads_seen = heads;
            this.head_timer = None;
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buffer);
        if this.phase.is_busy() {
            return read;
        }
        if matches!(read, Poll::Ready(Ok(()))) && buffer.filled().len() > before {
            let deadline = Instant::now() + this.head_timeout;
            this.head_timer
                .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        }
        if read.is_ready() {
            return read;
        }
        if let Some(timer) = this.head_timer.as_mut() {
            ready!(timer.as_mut().poll(cx));
            return Poll::Ready(Err(std::io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
