//! An upstream without a provider: a small HTTP/1.1 server on loopback that speaks OpenAI Chat
//! Completions and Anthropic Messages, for `node sell --upstream demo` and `node demo`.
//!
//! What it says is in `demo_answer`; here is when it says it: the first word after the
//! time to the first token, then so many tokens a second. A stream is a body that hyper pulls, so
//! a client that goes away stops it at once and no task or queue is left behind. Bodies and
//! connections are bounded. It wants no key and never leaves 127.0.0.1.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, stream};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::demo_answer::{self, Answer, Refusal};
use crate::llm_api::price_list::default_cache_write;
use crate::llm_api::{Dialect, TokenCounter};
use crate::protocol::limits::BODY_BYTES_MAX;
use crate::tasks::{Tasks, off_thread_if};
use crate::types::PriceTable;

/// Connections served at once; only our own seller calls, a few per request in flight.
const CONNECTIONS_MAX: usize = 1_024;
/// An idle connection outlives the caller's pool (50 s).
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// Out of file descriptors: waiting is all that helps.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Counting the tokens of a longer body takes more than ~100 µs.
const LONG_BODY_BYTES: usize = 16 * 1024;
/// Nanoseconds in a second.
const NANOS: u64 = 1_000_000_000;

/// A model of the demo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DemoModel {
    /// Its name.
    pub id: String,
    /// Its list price.
    pub price: PriceTable,
    /// Context length in tokens; 0 = unknown.
    pub context: u32,
    /// Longest answer in tokens; 0 = unknown. No answer is near it.
    pub max_output: u32,
}

impl DemoModel {
    /// A model at these prices, micro-USD per million tokens; cached input costs a tenth.
    #[must_use]
    pub fn new(id: &str, input: u64, output: u64) -> Self {
        Self {
            id: id.to_owned(),
            price: PriceTable {
                input,
                output,
                cache_read: input.div_ceil(10),
                cache_write: default_cache_write(input),
            },
            context: 200_000,
            max_output: 8_192,
        }
    }
}

/// How the demo upstream answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DemoSettings {
    /// Time to the first token.
    pub ttft: Duration,
    /// Speed from there; 0 = all at once.
    pub tokens_per_second: u32,
    /// What it has.
    pub models: Vec<DemoModel>,
}

impl Default for DemoSettings {
    fn default() -> Self {
        Self {
            ttft: Duration::from_millis(200),
            tokens_per_second: 60,
            models: vec![
                DemoModel::new("demo/echo-small", 100_000, 400_000),
                DemoModel::new("demo/echo-large", 1_000_000, 4_000_000),
                DemoModel::new("demo/claude-echo", 1_000_000, 5_000_000),
            ],
        }
    }
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

struct Shared {
    settings: DemoSettings,
    counter: TokenCounter,
    answers: AtomicU64,
}

/// Starts the server and returns its address; it ends when `tasks` are cancelled, after the
/// answers that have begun. The base URL is `http://ADDRESS/v1`.
///
/// # Errors
/// When loopback has no free port.
pub async fn start(settings: DemoSettings, tasks: &Tasks) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let counter = TokenCounter::new();
    let warm = counter.clone();
    off_thread_if(true, move || warm.warm_up()).await;
    let shared = Arc::new(Shared {
        settings,
        counter,
        answers: AtomicU64::new(0),
    });
    let connections = tasks.clone();
    tasks.spawn("demo-upstream", async move {
        accept(listener, shared, &connections).await;
    });
    Ok(address)
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, tasks: &Tasks) {
    let stop = tasks.cancelled();
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let next = async {
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, listener.accept().await)
        };
        let (slot, accepted) = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            next = next => next,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = serve(Arc::clone(&shared), stream, stop.clone());
                tasks.spawn("demo-connection", async move {
                    connection.await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the demo upstream cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(shared: Arc<Shared>, stream: TcpStream, stop: CancellationToken) {
    // Without it every word waits for a delayed acknowledgement (40 ms).
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(shared.respond(request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection to the demo upstream ended early");
    }
}

impl Shared {
    async fn respond(&self, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let spoken = Dialect::from_path(&path).filter(|dialect| *dialect != Dialect::Responses);
        let dialect = spoken.unwrap_or(Dialect::Chat);
        let is_list = matches!(path.as_str(), "/v1/models" | "/models");
        let answered = match (request.method(), spoken) {
            (&Method::GET, None) if is_list => {
                let list = demo_answer::model_list(&self.settings.models);
                return json_response(StatusCode::OK, list);
            }
            (&Method::POST, Some(dialect)) => self.infer(request, dialect).await,
            _ if is_list || spoken.is_some() => Err(Refusal::new(
                405,
                "method_not_allowed",
                "this path takes another method",
            )),
            _ => Err(Refusal::new(
                404,
                "not_found",
                "the demo has /v1/chat/completions, /v1/messages and /v1/models",
            )),
        };
        answered.unwrap_or_else(|refusal| {
            let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::BAD_REQUEST);
            json_response(status, refusal.body(dialect))
        })
    }

    async fn infer(
        &self,
        request: Request<Incoming>,
        dialect: Dialect,
    ) -> Result<Response<Body>, Refusal> {
        let started = Instant::now();
        let limited = Limited::new(request.into_body(), BODY_BYTES_MAX);
        let body = limited.collect().await.map_err(|_| {
            Refusal::new(413, "request_too_large", "the body is too large or was cut")
        })?;
        let body = body.to_bytes();
        let number = self.answers.fetch_add(1, Ordering::Relaxed);
        let (models, counter) = (self.settings.models.clone(), self.counter.clone());
        let is_long = body.len() > LONG_BODY_BYTES;
        let made = off_thread_if(is_long, move || {
            Some(demo_answer::answer(
                &body, dialect, &models, &counter, number,
            ))
        });
        let lost = || Refusal::new(500, "internal", "the demo lost this request");
        let answer = made.await.ok_or_else(lost)??;
        let pace = Pace {
            first: started.checked_add(self.settings.ttft).unwrap_or(started),
            tokens_per_second: self.settings.tokens_per_second,
        };
        if answer.is_stream {
            let body = StreamBody::new(events(answer, pace)).boxed_unsync();
            return Ok(response(StatusCode::OK, "text/event-stream", body));
        }
        tokio::time::sleep_until(pace.due(answer.paced_tokens())).await;
        Ok(json_response(StatusCode::OK, answer.whole()))
    }
}

/// When which token is due.
#[derive(Clone, Copy, Debug)]
struct Pace {
    first: Instant,
    tokens_per_second: u32,
}

impl Pace {
    /// When a word is due that comes after so many tokens.
    fn due(&self, tokens_before: u64) -> Instant {
        let nanos = tokens_before
            .saturating_mul(NANOS)
            .checked_div(u64::from(self.tokens_per_second))
            .unwrap_or(0);
        let wait = Duration::from_nanos(nanos);
        self.first.checked_add(wait).unwrap_or(self.first)
    }
}

/// The stream of an answer; what is due together is sent together.
fn events(answer: Answer, pace: Pace) -> impl Stream<Item = Result<Frame<Bytes>, Infallible>> {
    // The next word, and the tokens before it.
    stream::unfold((answer, 0usize, 0u64), move |state| async move {
        let (answer, mut next, mut tokens) = state;
        // Also ends the stream after the last word.
        answer.words.get(next)?;
        tokio::time::sleep_until(pace.due(tokens)).await;
        let mut out = String::new();
        if next == 0 {
            answer.opening(&mut out);
        }
        let now = Instant::now();
        while let Some(word) = answer.words.get(next).filter(|_| pace.due(tokens) <= now) {
            answer.word(&mut out, word);
            tokens = tokens.saturating_add(word.tokens);
            next = next.saturating_add(1);
        }
        if next >= answer.words.len() {
            answer.closing(&mut out);
        }
        let frame = Frame::data(Bytes::from(out));
        Some((Ok(frame), (answer, next, tokens)))
    })
}

fn json_response(status: StatusCode, body: Bytes) -> Response<Body> {
    response(status, "application/json", Full::new(body).boxed_unsync())
}

fn response(status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let value = HeaderValue::from_static(content_type);
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    let value = HeaderValue::from_static("no-cache");
    response.headers_mut().insert(header::CACHE_CONTROL, value);
    response
}

#[cfg(test)]
#[path = "demo_upstream_tests.rs"]
mod tests;
