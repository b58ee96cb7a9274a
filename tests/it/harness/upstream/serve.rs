//! The scripted upstream's HTTP side: accepts, reads, answers by script, records.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::ask::{Ask, Dialect};
use super::record::Exchange;
use super::script::{Fault, Gate, Script};
use super::socket::Watched;
use super::{Shared, chat, messages, models, plain, responses, shape};

/// Numbers answers, so that no two are equal byte for byte.
static NEXT_ANSWER: AtomicU64 = AtomicU64::new(1);

/// Whole answers are handed to the socket in pieces of this size when a fault counts pieces.
const WHOLE_PIECE_BYTES: usize = 64;

/// Time for the socket to take what was written before the script cuts the connection.
const CUT_DELAY: Duration = Duration::from_millis(20);

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// One step of an answer's body.
enum Step {
    Wait(Duration),
    Hold(Gate),
    Send(Bytes),
    Repeat(Bytes),
    Stall,
    Cut,
}

/// Serves connections until it is dropped; all connections end with it.
pub async fn accept_loop(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        stream.set_nodelay(true).ok();
        let watched = Watched::new(stream, Arc::clone(&shared));
        let (id, shared) = (watched.id(), Arc::clone(&shared));
        connections.spawn(async move {
            let service = service_fn(move |request| {
                let shared = Arc::clone(&shared);
                async move { Ok::<_, Infallible>(answer(request, id, shared).await) }
            });
            hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(watched), service)
                .await
                .ok();
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn answer(
    request: Request<Incoming>,
    connection: u64,
    shared: Arc<Shared>,
) -> Response<Body> {
    let script = shared.script();
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await.map(|b| b.to_bytes()) else {
        return respond(
            Head::new(StatusCode::BAD_REQUEST, JSON),
            VecDeque::new(),
            None,
        );
    };
    let key = shared.log().begin(Exchange {
        connection,
        at: Instant::now(),
        method: head.method.to_string(),
        path: head.uri.to_string(),
        headers: head
            .headers
            .iter()
            .map(|(n, v)| {
                (
                    n.to_string(),
                    String::from_utf8_lossy(v.as_bytes()).into_owned(),
                )
            })
            .collect(),
        body: body.clone(),
        status: None,
        sent: vec![],
        pieces: vec![],
        finished: None,
        abandoned: None,
    });
    let record = Record {
        key,
        shared,
        finished: false,
    };
    let path = head.uri.path();
    if path.ends_with("/models") {
        let list = Bytes::from(models::list(script.list, &script.models).to_string());
        return json(StatusCode::OK, list, record);
    }
    let dialect = if path.ends_with("/completions") {
        Dialect::Chat
    } else if path.ends_with("/messages") {
        Dialect::Messages
    } else if path.ends_with("/responses") {
        Dialect::Responses
    } else if path.ends_with("/embeddings") {
        return match plain::embeddings(&body) {
            Some(vectors) => json(StatusCode::OK, vectors, record),
            None => {
                let why = chat::error(400, "not understood");
                json(StatusCode::BAD_REQUEST, why, record)
            }
        };
    } else {
        return json(
            StatusCode::NOT_FOUND,
            chat::error(404, "no such path"),
            record,
        );
    };
    if !authorised(&head.headers, &script) {
        return json(
            StatusCode::UNAUTHORIZED,
            error(dialect, 401, "wrong key"),
            record,
        );
    }
    // Dropped here by hyper when the client goes away: the record then says so.
    tokio::time::sleep(script.first_byte_after).await;
    if script.fault == Fault::StallBeforeFirstByte {
        std::future::pending::<()>().await;
    }
    if path.ends_with("/completions") && !path.ends_with("/chat/completions") {
        return match plain::as_chat(&body) {
            Some(body) => infer(dialect, &body, &script, record, plain::REWRITE),
            None => {
                let why = chat::error(400, "not understood");
                json(StatusCode::BAD_REQUEST, why, record)
            }
        };
    }
    infer(dialect, &body, &script, record, |bytes| bytes)
}

fn infer(
    dialect: Dialect,
    body: &[u8],
    script: &Script,
    record: Record,
    rewrite: fn(Bytes) -> Bytes,
) -> Response<Body> {
    let flaky = match script.fault {
        Fault::Flaky { percent } => rand::random_ratio(percent, 100),
        _ => false,
    };
    match script.fault {
        _ if flaky => {
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            return json(status, error(dialect, 500, "a bad moment"), record);
        }
        Fault::Status(code) => {
            let status = StatusCode::from_u16(code).unwrap();
            return json(
                status,
                error(dialect, code, "the scripted upstream failed"),
                record,
            );
        }
        Fault::RateLimited { retry_after_s } => {
            let steps = VecDeque::from([Step::Send(error(dialect, 429, "slow down"))]);
            let mut head = Head::new(StatusCode::TOO_MANY_REQUESTS, JSON);
            head.retry_after_s = Some(retry_after_s);
            return respond(head, steps, Some(record));
        }
        Fault::Html => {
            let page = Bytes::from_static(b"<html><body>Sign in to the Wi-Fi</body></html>");
            let steps = VecDeque::from([Step::Send(page)]);
            return respond(Head::new(StatusCode::OK, "text/html"), steps, Some(record));
        }
        _ => {}
    }
    if script.strict
        && let Err(why) = shape::check(dialect, body)
    {
        return json(StatusCode::BAD_REQUEST, error(dialect, 400, &why), record);
    }
    let Some(ask) = Ask::read(dialect, body, script) else {
        return json(
            StatusCode::BAD_REQUEST,
            error(dialect, 400, "not understood"),
            record,
        );
    };
    let number = NEXT_ANSWER.fetch_add(1, Ordering::Relaxed);
    let pieces = match (ask.stream, dialect) {
        (true, Dialect::Chat) => chat::events(&ask, number)
            .into_iter()
            .map(rewrite)
            .collect(),
        (true, Dialect::Messages) => messages::events(&ask, number),
        (true, Dialect::Responses) => responses::events(&ask, number),
        (false, Dialect::Chat) => whole(rewrite(chat::whole(&ask, number)), script),
        (false, Dialect::Messages) => whole(messages::whole(&ask, number), script),
        (false, Dialect::Responses) => whole(responses::whole(&ask, number), script),
    };
    let kind = if ask.stream {
        "text/event-stream; charset=utf-8"
    } else {
        JSON
    };
    let whole_length = pieces.iter().map(Bytes::len).sum::<usize>();
    let steps = steps(dialect, pieces, ask.stream, script);
    let endless = matches!(script.fault, Fault::Flood | Fault::MalformedJson);
    let length = (!ask.stream && !endless).then_some(whole_length);
    respond(
        Head {
            status: StatusCode::OK,
            kind,
            length,
            retry_after_s: None,
        },
        steps,
        Some(record),
    )
}

const JSON: &str = "application/json";

fn error(dialect: Dialect, status: u16, message: &str) -> Bytes {
    match dialect {
        Dialect::Chat | Dialect::Responses => chat::error(status, message),
        Dialect::Messages => messages::error(status, message),
    }
}

fn whole(body: Bytes, script: &Script) -> Vec<Bytes> {
    match script.fault {
        Fault::None => vec![body],
        _ => body
            .chunks(WHOLE_PIECE_BYTES)
            .map(Bytes::copy_from_slice)
            .collect(),
    }
}

/// Turns the pieces of a good answer into what this script does with them.
fn steps(dialect: Dialect, pieces: Vec<Bytes>, stream: bool, script: &Script) -> VecDeque<Step> {
    let pace = script
        .tokens_per_second
        .filter(|_| stream)
        .map(|t| Duration::from_secs_f64(1.0 / t));
    let mut steps = VecDeque::new();
    let limit = match script.fault {
        Fault::StallAfter(n) | Fault::CutAfter(n) => n,
        Fault::MalformedJson | Fault::Flood => 1,
        _ => usize::MAX,
    };
    let filler = pieces.get(3).cloned();
    for (i, piece) in pieces.into_iter().take(limit).enumerate() {
        if let (Some(gap), true) = (pace, i > 0) {
            steps.push_back(Step::Wait(gap));
        }
        if let Some((events, gate)) = &script.gate
            && stream
            && *events == i
        {
            steps.push_back(Step::Hold(gate.clone()));
        }
        steps.push_back(Step::Send(piece));
    }
    match script.fault {
        Fault::StallAfter(_) => steps.push_back(Step::Stall),
        Fault::CutAfter(_) => steps.extend([Step::Wait(CUT_DELAY), Step::Cut]),
        Fault::MalformedJson if stream => steps.push_back(Step::Send(match dialect {
            Dialect::Chat | Dialect::Responses => chat::malformed_event(),
            Dialect::Messages => messages::malformed_event(),
        })),
        Fault::Flood => steps.extend(filler.map(Step::Repeat)),
        _ => {}
    }
    steps
}

fn authorised(headers: &http::HeaderMap, script: &Script) -> bool {
    let Some(key) = &script.key else { return true };
    let bearer = format!("Bearer {key}");
    let is = |name: &str, want: &str| {
        headers
            .get(name)
            .is_some_and(|v| v.as_bytes() == want.as_bytes())
    };
    is("authorization", &bearer) || is("x-api-key", key)
}

fn json(status: StatusCode, body: Bytes, record: Record) -> Response<Body> {
    let mut head = Head::new(status, JSON);
    head.length = Some(body.len());
    respond(head, VecDeque::from([Step::Send(body)]), Some(record))
}

/// What goes before an answer's body.
struct Head {
    status: StatusCode,
    kind: &'static str,
    length: Option<usize>,
    retry_after_s: Option<u64>,
}

impl Head {
    fn new(status: StatusCode, kind: &'static str) -> Self {
        Self {
            status,
            kind,
            length: None,
            retry_after_s: None,
        }
    }
}

fn respond(head: Head, steps: VecDeque<Step>, record: Option<Record>) -> Response<Body> {
    if let Some(record) = &record {
        record.with(|e| e.status = Some(head.status.as_u16()));
    }
    let mut response = Response::builder()
        .status(head.status)
        .header(header::CONTENT_TYPE, head.kind)
        .header("x-request-id", "req-scripted")
        .header("x-ratelimit-remaining-requests", "99");
    if let Some(length) = head.length {
        response = response.header(header::CONTENT_LENGTH, length);
    }
    if let Some(seconds) = head.retry_after_s {
        response = response.header(header::RETRY_AFTER, seconds);
    }
    response
        .body(StreamBody::new(frames(steps, record)).boxed_unsync())
        .unwrap()
}

/// Plays the steps; the record's drop tells a finished answer from an abandoned one.
fn frames(
    steps: VecDeque<Step>,
    record: Option<Record>,
) -> impl Stream<Item = io::Result<Frame<Bytes>>> {
    stream::unfold((steps, record), |(mut steps, mut record)| async move {
        loop {
            let bytes = match steps.pop_front() {
                None => return None,
                Some(Step::Wait(time)) => {
                    tokio::time::sleep(time).await;
                    continue;
                }
                Some(Step::Hold(gate)) => {
                    gate.pass().await;
                    continue;
                }
                Some(Step::Stall) => std::future::pending().await,
                Some(Step::Cut) => {
                    let cut = io::Error::other("cut by script");
                    return Some((Err(cut), (VecDeque::new(), record)));
                }
                Some(Step::Repeat(bytes)) => {
                    steps.push_front(Step::Repeat(bytes.clone()));
                    tokio::task::yield_now().await;
                    bytes
                }
                Some(Step::Send(bytes)) => bytes,
            };
            if let Some(record) = &mut record {
                record.sent(&bytes);
                if steps.is_empty() {
                    // hyper does not ask again once the announced length is written.
                    record.finish();
                }
            }
            return Some((Ok(bytes), (steps, record)));
        }
    })
    .map(|piece| piece.map(Frame::data))
}

/// The log entry of one request; dropping it unfinished marks the answer abandoned.
struct Record {
    key: usize,
    shared: Arc<Shared>,
    finished: bool,
}

impl Record {
    fn with(&self, change: impl FnOnce(&mut Exchange)) {
        if let Some(exchange) = self.shared.log().exchange(self.key) {
            change(exchange);
        }
    }

    fn sent(&self, bytes: &Bytes) {
        self.with(|e| {
            e.sent.extend_from_slice(bytes);
            e.pieces.push((Instant::now(), bytes.len()));
        });
    }

    fn finish(&mut self) {
        self.finished = true;
        self.with(|e| e.finished = Some(Instant::now()));
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.finished {
            self.with(|e| e.abandoned = Some(Instant::now()));
        }
    }
}
