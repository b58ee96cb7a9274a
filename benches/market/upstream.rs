//! The fast upstream: answers from prepared bytes, one read and one write a request.
//!
//! Reads the socket itself, because a server library would cost more than what is measured.

use std::net::Ipv4Addr;

use memchr::memmem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// SSE events of a burst stream that carry text.
const TEXT_EVENTS: usize = 33;

/// The model that is benchmarked; its text is counted with a public vocabulary.
pub const MODEL: &str = "bench/gpt-4o-mini";

/// Prints a ready line and serves until it is killed.
pub fn serve() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        println!(
            "ready role=upstream url=http://{}",
            listener.local_addr().unwrap()
        );
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            tokio::spawn(connection(stream));
        }
    });
}

async fn connection(mut stream: TcpStream) -> Option<()> {
    let (whole, burst) = (whole(), burst());
    let mut buffer = Vec::with_capacity(16 * 1024);
    loop {
        let head = loop {
            if let Some(at) = memmem::find(&buffer, b"\r\n\r\n") {
                break at + 4;
            }
            (stream.read_buf(&mut buffer).await.ok()? > 0).then_some(())?;
        };
        let total = head + content_length(&buffer[..head])?;
        while buffer.len() < total {
            (stream.read_buf(&mut buffer).await.ok()? > 0).then_some(())?;
        }
        let body = &buffer[head..total];
        let streamed = memmem::find(body, b"\"stream\":true").is_some();
        stream
            .write_all(if streamed { &burst } else { &whole })
            .await
            .ok()?;
        buffer.drain(..total);
    }
}

fn content_length(head: &[u8]) -> Option<usize> {
    let head = std::str::from_utf8(head).ok()?;
    head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        if name.eq_ignore_ascii_case("content-length") {
            value.trim().parse().ok()
        } else {
            None
        }
    })
}

fn usage() -> &'static str {
    r#""usage":{"prompt_tokens":9,"completion_tokens":33,"total_tokens":42}"#
}

fn whole() -> Vec<u8> {
    let text = " one".repeat(TEXT_EVENTS);
    let body = format!(
        r#"{{"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"{MODEL}","choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}"}},"finish_reason":"stop"}}],{}}}"#,
        usage()
    );
    let length = body.len();
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length:";
    format!("{head} {length}\r\n\r\n{body}").into_bytes()
}

/// 36 events, one chunk each: the text, the finish, the usage, `[DONE]`.
fn burst() -> Vec<u8> {
    let event = |rest: &str| {
        format!(
            r#"data: {{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"{MODEL}",{rest}}}"#
        ) + "\n\n"
    };
    let text = event(r#""choices":[{"index":0,"delta":{"content":" one"},"finish_reason":null}]"#);
    let mut events = vec![text; TEXT_EVENTS];
    events.push(event(
        r#""choices":[{"index":0,"delta":{},"finish_reason":"stop"}]"#,
    ));
    events.push(event(&format!(r#""choices":[],{}"#, usage())));
    events.push("data: [DONE]\n\n".to_owned());
    let mut out = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                   transfer-encoding: chunked\r\n\r\n"
        .to_owned();
    for event in events {
        out.push_str(&format!("{:x}\r\n{event}\r\n", event.len()));
    }
    out.push_str("0\r\n\r\n");
    out.into_bytes()
}
