//! The client's side of one request: its answer's head, body, heartbeat, and its going away.
//!
//! The status is committed at the first event or, for a stream, after [`COMMIT_AFTER`]; from then
//! on a comment every [`BEAT_INTERVAL`] keeps the connection awake until the first event. Comments
//! do not count as the first byte: failover goes on behind them.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::http::body::{Body, BodySender, ClientGone};
use crate::llm_api::Dialect;

/// A stream's status is committed after this, event or not.
const COMMIT_AFTER: Duration = Duration::from_secs(10);
/// Then a comment this often until the first event.
const BEAT_INTERVAL: Duration = Duration::from_secs(10);

/// Where one request's answer goes.
pub(super) struct ClientSink {
    head: Option<oneshot::Sender<Response<Body>>>,
    body: Option<BodySender>,
    /// Headers of this request's answer, whatever it is.
    extra: HeaderMap,
    beat: Option<(Instant, Dialect)>,
    wants_trailers: bool,
}

impl ClientSink {
    /// A sink, and what the server waits for.
    pub fn new(wants_trailers: bool) -> (Self, oneshot::Receiver<Response<Body>>) {
        let (head, answer) = oneshot::channel();
        let extra = HeaderMap::new();
        (
            Self {
                head: Some(head),
                body: None,
                extra,
                beat: None,
                wants_trailers,
            },
            answer,
        )
    }

    /// Heartbeats from now on, in `dialect`; for streams only.
    pub fn start_beating(&mut self, dialect: Dialect) {
        self.beat = Some((Instant::now() + COMMIT_AFTER, dialect));
    }
    /// Adds or replaces a header of the answer, or takes it out when the value is empty; too late
    /// once it is committed.
    pub fn header(&mut self, name: &'static str, value: &str) {
        if value.is_empty() {
            self.extra.remove(name);
        } else if let Ok(value) = HeaderValue::from_str(value) {
            self.extra.insert(name, value);
        }
    }
    /// True once the status line is on its way.
    pub fn committed(&self) -> bool {
        self.head.is_none()
    }

    /// Answers with a complete response.
    pub fn respond(&mut self, status: StatusCode, headers: HeaderMap, body: Bytes) {
        if let Some(head) = self.head.take() {
            let mut response = Response::new(Body::full(body));
            *response.status_mut() = status;
            *response.headers_mut() = headers;
            response
                .headers_mut()
                .extend(std::mem::take(&mut self.extra));
            let _ = head.send(response);
        }
    }

    /// Begins a streamed answer.
    pub fn commit(&mut self, status: StatusCode, headers: HeaderMap) {
        let Some(head) = self.head.take() else { return };
        let (sender, body) = Body::stream();
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
            .headers_mut()
            .extend(std::mem::take(&mut self.extra));
        if self.wants_trailers {
            let name = HeaderValue::from_static("x-souk-cost-usd");
            response.headers_mut().insert(header::TRAILER, name);
        }
        if head.send(response).is_ok() {
            self.body = Some(sender);
        }
    }

    /// Hands bytes of a committed stream to the client.
    pub async fn send(&mut self, bytes: Bytes) -> Result<(), ClientGone> {
        self.beat = None;
        match &self.body {
            Some(body) => body.send(bytes).await,
            None => Err(ClientGone),
        }
    }

    /// Ends a committed stream well, with its cost as a trailer for clients that take one.
    pub async fn finish(&mut self, cost_usd: Option<String>) {
        if let Some(body) = self.body.take() {
            let trailers = cost_usd.filter(|_| self.wants_trailers).and_then(|cost| {
                let mut map = HeaderMap::new();
                map.insert("x-souk-cost-usd", HeaderValue::from_str(&cost).ok()?);
                Some(map)
            });
            let _ = body.finish(trailers).await;
        }
    }

    /// Resolves when the client has gone.
    pub async fn closed(&mut self) {
        match (&mut self.head, &self.body) {
            (Some(head), _) => head.closed().await,
            (None, Some(body)) => body.closed().await,
            (None, None) => {}
        }
    }

    /// Runs `work` while the client is there, with heartbeats.
    pub async fn while_alive<T>(&mut self, work: impl Future<Output = T>) -> Result<T, ClientGone> {
        tokio::pin!(work);
        loop {
            let beat = self.beat;
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                () = self.closed() => return Err(ClientGone),
                () = due(beat) => self.pulse().await?,
            }
        }
    }

    /// Commits the stream if nothing was said yet, and sends one comment.
    async fn pulse(&mut self) -> Result<(), ClientGone> {
        let Some((_, dialect)) = self.beat else {
            return Ok(());
        };
        if !self.committed() {
            self.commit(StatusCode::OK, event_stream_headers());
        }
        let comment: &'static [u8] = match dialect {
            Dialect::Messages => b"event: ping\ndata: {\"type\": \"ping\"}\n\n",
            Dialect::Chat | Dialect::Responses => b": waiting\n\n",
        };
        let sent = match &self.body {
            Some(body) => body.send(Bytes::from_static(comment)).await,
            None => Err(ClientGone),
        };
        self.beat = Some((Instant::now() + BEAT_INTERVAL, dialect));
        sent
    }
}

async fn due(beat: Option<(Instant, Dialect)>) {
    match beat {
        Some((at, _)) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Headers of a stream that has no seller's headers yet.
pub(super) fn event_stream_headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers
}
