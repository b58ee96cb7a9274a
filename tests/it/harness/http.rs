//! A raw HTTP/1.1 client for byte-exact tests: it decodes chunks itself and stamps each read.
//!
//! A library client would hide what these tests are about: which bytes arrived when, whether an
//! answer ended well, and what the trailers say. One connection per request, `connection: close`
//! unless the test says else, and a deadline on everything.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// No answer of a test takes longer; a hang fails with a message instead of a stuck run.
pub const DEADLINE: Duration = Duration::from_secs(180);

/// A request to send.
#[derive(Clone, Debug)]
pub struct Request {
    /// The method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Headers besides `host`, `content-length` and `connection`, sent as they are.
    pub headers: Vec<(String, String)>,
    /// The `host` header; the address when none.
    pub host: Option<String>,
    /// The body.
    pub body: Vec<u8>,
}

impl Request {
    /// Returns a GET.
    pub fn get(path: &str) -> Self {
        let (method, path) = ("GET".to_owned(), path.to_owned());
        Self {
            method,
            path,
            headers: vec![],
            host: None,
            body: vec![],
        }
    }

    /// Returns a POST of JSON.
    pub fn post(path: &str, body: &Value) -> Self {
        Self::post_bytes(path, body.to_string().into_bytes())
    }

    /// Returns a POST of bytes that claim to be JSON.
    pub fn post_bytes(path: &str, body: Vec<u8>) -> Self {
        let request = Self {
            body,
            method: "POST".into(),
            ..Self::get(path)
        };
        request.header("content-type", "application/json")
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets another `host` header.
    pub fn host(mut self, host: &str) -> Self {
        self.host = Some(host.to_owned());
        self
    }

    fn head(&self, address: SocketAddr) -> Vec<u8> {
        let host = self.host.clone().unwrap_or_else(|| address.to_string());
        let mut head = format!("{} {} HTTP/1.1\r\nhost: {host}\r\n", self.method, self.path);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if self.method != "GET" {
            head.push_str(&format!("content-length: {}\r\n", self.body.len()));
        }
        head.push_str("connection: close\r\n\r\n");
        head.into_bytes()
    }
}

/// A piece of body and when it was read, counted from the moment the request was sent.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Time since the request was sent.
    pub at: Duration,
    /// Decoded body bytes.
    pub bytes: Vec<u8>,
}

/// An answer, read to its end.
#[derive(Clone, Debug)]
pub struct Response {
    /// When writing the request began; the other times count from here.
    pub sent_at: Instant,
    /// The status code.
    pub status: u16,
    /// Headers in order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// When the head was complete.
    pub head_at: Duration,
    /// The body as it came.
    pub pieces: Vec<Piece>,
    /// Trailer fields of a chunked body.
    pub trailers: Vec<(String, String)>,
    /// Whether the body ended as its framing says, rather than by a closed socket.
    pub complete: bool,
    /// When the end was seen.
    pub end_at: Duration,
}

impl Response {
    /// Returns the whole body.
    pub fn body(&self) -> Vec<u8> {
        self.pieces.iter().flat_map(|p| p.bytes.clone()).collect()
    }

    /// Returns the whole body as text.
    pub fn text(&self) -> String {
        String::from_utf8(self.body()).expect("the body is not UTF-8")
    }

    /// Returns the body as JSON.
    pub fn json(&self) -> Value {
        let text = self.text();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("not JSON ({e}): {text}"))
    }

    /// Returns a header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    /// Returns when each SSE event (up to its blank line) had arrived, counted from `sent_at`.
    pub fn event_times(&self) -> Vec<Duration> {
        let mut body: Vec<u8> = vec![];
        let mut times = vec![];
        for piece in &self.pieces {
            let from = body.len().saturating_sub(1);
            body.extend_from_slice(&piece.bytes);
            let ends = body[from..].windows(2).filter(|w| w == b"\n\n").count();
            times.extend(std::iter::repeat_n(piece.at, ends));
        }
        times
    }

    /// Returns the `data:` payloads of a stream, in order.
    pub fn data(&self) -> Vec<String> {
        let text = self.text();
        text.lines()
            .filter_map(|l| l.strip_prefix("data:"))
            .map(|d| d.trim().to_owned())
            .collect()
    }
}

/// A request whose answer is being read; dropping it hangs up.
pub struct Exchange {
    stream: TcpStream,
    /// Bytes read and not yet decoded.
    rest: Vec<u8>,
    framing: Framing,
    response: Response,
}

enum Framing {
    Length(usize),
    Chunked,
    UntilClose,
}

/// Sends a request and reads the answer to its end.
pub async fn send(address: SocketAddr, request: &Request) -> Response {
    let label = format!("{} {}", request.method, request.path);
    timeout(DEADLINE, async {
        let exchange = open(address, request).await.unwrap();
        exchange.finish().await
    })
    .await
    .unwrap_or_else(|_| panic!("no complete answer to {label} within {DEADLINE:?}"))
}

/// Writes a request without waiting for anything.
pub async fn write(address: SocketAddr, request: &Request) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&request.head(address)).await?;
    stream.write_all(&request.body).await?;
    Ok(stream)
}

/// Sends a request and reads until the head of the answer is complete.
///
/// Reads while it writes: a server may refuse a big body before it has taken it.
pub async fn open(address: SocketAddr, request: &Request) -> io::Result<Exchange> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let sent_at = Instant::now();
    let mut rest = vec![];
    let head = [request.head(address), request.body.clone()].concat();
    let end = write_and_read_head(&mut stream, &head, &mut rest).await?;
    let head = String::from_utf8_lossy(&rest[..end]).into_owned();
    rest.drain(..end + 4);
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|l| l.split(' ').nth(1))
        .and_then(|s| s.parse().ok());
    let headers: Vec<_> = lines.filter_map(field).collect();
    let value = |name: &str| {
        headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.clone())
    };
    let framing = if value("transfer-encoding").is_some_and(|v| v.contains("chunked")) {
        Framing::Chunked
    } else if let Some(length) = value("content-length") {
        Framing::Length(length.parse().unwrap())
    } else {
        Framing::UntilClose
    };
    let response = Response {
        status: status.ok_or_else(|| io::Error::other("no status line"))?,
        sent_at,
        headers,
        head_at: sent_at.elapsed(),
        pieces: vec![],
        trailers: vec![],
        complete: false,
        end_at: Duration::ZERO,
    };
    Ok(Exchange {
        stream,
        rest,
        framing,
        response,
    })
}

impl Exchange {
    /// Returns the answer's status.
    pub fn status(&self) -> u16 {
        self.response.status
    }

    /// Reads the next piece of body; none at the end, good or bad.
    pub async fn next(&mut self) -> Option<Piece> {
        let bytes = match self.framing {
            Framing::Length(left) => self.next_of(left).await?,
            Framing::UntilClose => self.next_of(usize::MAX).await?,
            Framing::Chunked => self.next_chunk().await?,
        };
        let piece = Piece {
            at: self.response.sent_at.elapsed(),
            bytes,
        };
        self.response.pieces.push(piece.clone());
        Some(piece)
    }

    /// Reads until the body so far contains `text`; panics when it ends first.
    pub async fn until(&mut self, text: &str) {
        timeout(DEADLINE, async {
            while !String::from_utf8_lossy(&self.response.body()).contains(text) {
                let so_far = self.response.body().len();
                assert!(
                    self.next().await.is_some(),
                    "ended after {so_far} bytes without {text:?}"
                );
            }
        })
        .await
        .unwrap_or_else(|_| panic!("{text:?} did not come within {DEADLINE:?}"));
    }

    /// Reads to the end.
    pub async fn finish(mut self) -> Response {
        while self.next().await.is_some() {}
        self.response.end_at = self.response.sent_at.elapsed();
        self.response
    }

    async fn next_of(&mut self, left: usize) -> Option<Vec<u8>> {
        if left == 0 {
            self.response.complete = true;
            return None;
        }
        if self.rest.is_empty() && self.more().await == 0 {
            self.response.complete = matches!(self.framing, Framing::UntilClose);
            return None;
        }
        let take = self.rest.len().min(left);
        if let Framing::Length(left) = &mut self.framing {
            *left -= take;
        }
        Some(self.rest.drain(..take).collect())
    }

    async fn next_chunk(&mut self) -> Option<Vec<u8>> {
        let line = self.line().await?;
        let size = usize::from_str_radix(line.split(';').next()?.trim(), 16).unwrap();
        if size == 0 {
            while let Some(line) = self.line().await {
                if line.is_empty() {
                    self.response.complete = true;
                    break;
                }
                self.response.trailers.extend(field(&line));
            }
            return None;
        }
        while self.rest.len() < size + 2 {
            if self.more().await == 0 {
                return None;
            }
        }
        let chunk = self.rest.drain(..size).collect();
        self.rest.drain(..2);
        Some(chunk)
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(at) = self.rest.windows(2).position(|w| w == b"\r\n") {
                let line = String::from_utf8_lossy(&self.rest[..at]).into_owned();
                self.rest.drain(..at + 2);
                return Some(line);
            }
            if self.more().await == 0 {
                return None;
            }
        }
    }

    async fn more(&mut self) -> usize {
        read_some(&mut self.stream, &mut self.rest)
            .await
            .unwrap_or(0)
    }
}

async fn write_and_read_head(
    stream: &mut TcpStream,
    request: &[u8],
    rest: &mut Vec<u8>,
) -> io::Result<usize> {
    let (mut reader, mut writer) = stream.split();
    let reading = read_head(&mut reader, rest);
    tokio::pin!(reading);
    tokio::select! {
        end = &mut reading => end,
        // A broken pipe is no failure when an answer came first.
        _ = writer.write_all(request) => reading.await,
    }
}

/// Reads until the blank line and returns where it begins.
async fn read_head(stream: &mut (impl AsyncRead + Unpin), rest: &mut Vec<u8>) -> io::Result<usize> {
    loop {
        if let Some(at) = rest.windows(4).position(|w| w == b"\r\n\r\n") {
            return Ok(at);
        }
        if read_some(stream, rest).await? == 0 {
            return Err(io::Error::other("closed before the head of the answer"));
        }
    }
}

async fn read_some(stream: &mut (impl AsyncRead + Unpin), into: &mut Vec<u8>) -> io::Result<usize> {
    let mut buffer = [0; 16 * 1024];
    let n = stream.read(&mut buffer).await?;
    into.extend_from_slice(&buffer[..n]);
    Ok(n)
}

fn field(line: &str) -> Option<(String, String)> {
    let (name, value) = line.split_once(':')?;
    Some((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
}
