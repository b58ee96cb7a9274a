//! The scripted upstream as a program of its own: `cargo run --example upstream -- --port 8089`.
//!
//! The SDK drivers of `tests/clients` and anybody who wants a provider without a key start it.
//! It prints one ready line on stdout and serves until it is killed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
#![allow(clippy::disallowed_methods, dead_code)]

#[path = "../it/harness/upstream/mod.rs"]
mod upstream;

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use upstream::{Fault, ListShape, ModelEntry, Script, Upstream, UsageReport};

/// A scripted OpenAI and Anthropic provider on loopback.
#[derive(Parser)]
struct Args {
    /// Port to listen on; 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Text of every answer that is not a tool turn.
    #[arg(long)]
    text: Option<String>,
    /// Model in the list, as ID or ID,USD_IN,USD_OUT per million tokens (repeatable).
    #[arg(long = "model")]
    models: Vec<String>,
    /// List models with OpenRouter's prices.
    #[arg(long)]
    priced: bool,
    /// Milliseconds before the first byte.
    #[arg(long, default_value_t = 0)]
    first_byte_ms: u64,
    /// Events a second of a stream; all at once when not given.
    #[arg(long)]
    tokens_per_second: Option<f64>,
    /// stall, stall-after:N, cut-after:N, status:N, rate-limited:S, malformed, html, flood.
    #[arg(long)]
    fault: Option<String>,
    /// Reported usage times this; 0 reports none.
    #[arg(long, default_value_t = 1)]
    usage_times: u64,
    /// Hidden reasoning tokens in the usage.
    #[arg(long, default_value_t = 0)]
    reasoning_tokens: u64,
    /// Models do what their names end in: -thinking, -parallel (three calls), -long, -refusing.
    #[arg(long)]
    by_model: bool,
    /// Refuse requests that a vendor would refuse for their shape.
    #[arg(long)]
    strict: bool,
    /// The only key to accept.
    #[arg(long)]
    key: Option<String>,
    /// File that gets each request as one line of JSON.
    #[arg(long)]
    log: Option<PathBuf>,
}

fn script(args: &Args) -> Script {
    let mut script = Script {
        first_byte_after: Duration::from_millis(args.first_byte_ms),
        tokens_per_second: args.tokens_per_second,
        fault: args.fault.as_deref().map_or(Fault::None, fault),
        usage: match args.usage_times {
            0 => UsageReport::None,
            1 => UsageReport::Honest,
            k => UsageReport::Times(k),
        },
        reasoning_tokens: args.reasoning_tokens,
        by_model: args.by_model,
        strict: args.strict,
        key: args.key.clone(),
        list: if args.priced {
            ListShape::OpenRouter
        } else {
            ListShape::Plain
        },
        ..Script::default()
    };
    if let Some(text) = &args.text {
        script.text.clone_from(text);
    }
    if !args.models.is_empty() {
        script.models = args
            .models
            .iter()
            .map(|m| {
                let mut parts = m.splitn(3, ',');
                let id = parts.next().unwrap_or_default();
                let input = parts.next().unwrap_or("0.15");
                ModelEntry::new(id, input, parts.next().unwrap_or("0.60"))
            })
            .collect();
    }
    script
}

fn fault(text: &str) -> Fault {
    let (name, number) = text.split_once(':').unwrap_or((text, "0"));
    let number: u64 = number
        .parse()
        .expect("the number after ':' is a whole number");
    let count = usize::try_from(number).unwrap();
    match name {
        "stall" => Fault::StallBeforeFirstByte,
        "stall-after" => Fault::StallAfter(count),
        "cut-after" => Fault::CutAfter(count),
        "status" => Fault::Status(number.try_into().expect("a status has three digits")),
        "rate-limited" => Fault::RateLimited {
            retry_after_s: number,
        },
        "malformed" => Fault::MalformedJson,
        "html" => Fault::Html,
        "flood" => Fault::Flood,
        other => panic!("unknown fault {other:?}; see --help"),
    }
}

#[tokio::main]
async fn main() {
    let args = Args::parse();
    let upstream = Upstream::start_on(args.port, script(&args)).await;
    println!("ready role=upstream url=http://{}", upstream.address());
    std::io::stdout().flush().ok();
    let mut log = args
        .log
        .as_ref()
        .map(|path| std::fs::File::create(path).unwrap());
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let done: Vec<_> = upstream.all_exchanges();
        if done
            .iter()
            .any(|e| e.finished.is_none() && e.abandoned.is_none())
        {
            continue; // forgetting an exchange under way would lose the rest of its record
        }
        if let Some(file) = &mut log {
            for exchange in &done {
                let line = serde_json::json!({
                    "path": exchange.path, "status": exchange.status,
                    "headers": exchange.headers,
                    "body": String::from_utf8_lossy(&exchange.body),
                    "sent": String::from_utf8_lossy(&exchange.sent),
                });
                writeln!(file, "{line}").unwrap();
            }
        }
        if !done.is_empty() {
            upstream.forget();
        }
    }
}
