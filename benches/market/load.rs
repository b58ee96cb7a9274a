//! The load driver: keep-alive HTTP/1.1 on raw sockets, closed loop, one request a connection.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use memchr::memmem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::upstream::MODEL;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A small whole answer.
    Whole,
    /// A stream of 36 events at once.
    Burst,
}

/// What one cell measured.
#[derive(Default)]
pub struct Sample {
    /// Microseconds to the end of each answer.
    pub total_us: Vec<u32>,
    /// Microseconds to the first body byte of each answer.
    pub first_us: Vec<u32>,
    /// Answers that were not 200 or not complete.
    pub failures: u64,
    /// Wall time.
    pub elapsed: Duration,
}

impl Sample {
    /// Returns answers a second.
    pub fn per_second(&self) -> f64 {
        self.total_us.len() as f64 / self.elapsed.as_secs_f64()
    }
}

/// Keeps `count` requests in flight for `time`; every connection is warm before the clock starts.
pub async fn drive(address: SocketAddr, kind: Kind, count: usize, time: Duration) -> Sample {
    let request = request(address, kind);
    let begun = Instant::now();
    let end = begun + time;
    let tasks: Vec<_> = (0..count)
        .map(|_| {
            let request = request.clone();
            tokio::spawn(async move { client(address, &request, end).await })
        })
        .collect();
    let mut all = Sample::default();
    for task in tasks {
        let one = task.await.unwrap();
        all.total_us.extend(one.total_us);
        all.first_us.extend(one.first_us);
        all.failures += one.failures;
    }
    all.elapsed = begun.elapsed();
    all.total_us.sort_unstable();
    all.first_us.sort_unstable();
    all
}

fn request(address: SocketAddr, kind: Kind) -> Vec<u8> {
    let stream = match kind {
        Kind::Whole => "",
        Kind::Burst => r#","stream":true,"stream_options":{"include_usage":true}"#,
    };
    let body = format!(
        r#"{{"model":"{MODEL}","max_tokens":64,"messages":[{{"role":"user","content":"Count to three."}}]{stream}}}"#
    );
    let length = body.len();
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer local\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

async fn client(address: SocketAddr, request: &[u8], end: Instant) -> Sample {
    let mut sample = Sample::default();
    'connect: while Instant::now() < end {
        let Ok(mut stream) = TcpStream::connect(address).await else {
            sample.failures += 1;
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        stream.set_nodelay(true).unwrap();
        let mut buffer = Vec::with_capacity(64 * 1024);
        while Instant::now() < end {
            match exchange(&mut stream, request, &mut buffer).await {
                Some((first, total)) => {
                    sample.first_us.push(micros(first));
                    sample.total_us.push(micros(total));
                }
                None => {
                    sample.failures += 1;
                    continue 'connect;
                }
            }
        }
        break;
    }
    sample
}

/// Sends one request and reads its answer; none when it is not a complete 200.
async fn exchange(
    stream: &mut TcpStream,
    request: &[u8],
    buffer: &mut Vec<u8>,
) -> Option<(Duration, Duration)> {
    buffer.clear();
    let begun = Instant::now();
    stream.write_all(request).await.ok()?;
    let head = loop {
        if let Some(at) = memmem::find(buffer, b"\r\n\r\n") {
            break at + 4;
        }
        (stream.read_buf(buffer).await.ok()? > 0).then_some(())?;
    };
    buffer.starts_with(b"HTTP/1.1 200").then_some(())?;
    let text = std::str::from_utf8(&buffer[..head])
        .ok()?
        .to_ascii_lowercase();
    let length: Option<usize> = text
        .lines()
        .find_map(|l| l.strip_prefix("content-length:")?.trim().parse().ok());
    while buffer.len() == head {
        (stream.read_buf(buffer).await.ok()? > 0).then_some(())?;
    }
    let first = begun.elapsed();
    match length {
        Some(length) => read_to(stream, buffer, head + length).await?,
        None => read_chunks(stream, buffer, head).await?,
    }
    Some((first, begun.elapsed()))
}

async fn read_to(stream: &mut TcpStream, buffer: &mut Vec<u8>, want: usize) -> Option<()> {
    while buffer.len() < want {
        (stream.read_buf(buffer).await.ok()? > 0).then_some(())?;
    }
    Some(())
}

async fn read_chunks(stream: &mut TcpStream, buffer: &mut Vec<u8>, mut at: usize) -> Option<()> {
    loop {
        let line = read_line(stream, buffer, &mut at).await?;
        let digits = std::str::from_utf8(&buffer[line.0..line.1]).ok()?;
        let size = usize::from_str_radix(digits.split(';').next()?.trim(), 16).ok()?;
        if size == 0 {
            break;
        }
        at += size + 2;
        read_to(stream, buffer, at).await?;
    }
    loop {
        // Trailers, then an empty line.
        let line = read_line(stream, buffer, &mut at).await?;
        if line.0 == line.1 {
            return Some(());
        }
    }
}

/// Returns the next line's span without its end, and moves `at` behind it.
async fn read_line(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
    at: &mut usize,
) -> Option<(usize, usize)> {
    loop {
        if let Some(length) = memmem::find(&buffer[*at..], b"\r\n") {
            let span = (*at, *at + length);
            *at += length + 2;
            return Some(span);
        }
        (stream.read_buf(buffer).await.ok()? > 0).then_some(())?;
    }
}

fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}
