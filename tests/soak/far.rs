//! Three stages that are far from their head and from each other: how fast one answer and eight are
//! when stages push to the next and when all goes through the head, and how long a prompt takes in
//! chunks and in one piece.
//!
//! Each stage is a process in a network namespace of its own; `switch.py` carries packets between
//! them and holds each for a while.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use souk::pipeline::chain::{Remote, Settings};
use souk::pipeline::ends::Ends;
use souk::pipeline::engine::{Head, Precision};
use souk::pipeline::layers::{Layers, StepKind};
use souk::pipeline::processor::Processor;
use souk::pipeline::session::{CHUNK_ROWS_MAX, Shape};
use souk::protocol::stage::WireFormat;

use crate::harness::node::Node;
use crate::harness::payer::Payer;
use crate::tiny_model::TinyModel;

/// Addresses of documentation, which no real network has.
const NETWORK: &str = "198.51.100";
const HIDDEN: usize = 768;
const LAYERS: u16 = 12;
const RANGES: [&str; 3] = ["0..4", "4..8", "8..12"];
/// Tokens of each prompt and answer whose speed is measured.
const PROMPT: usize = 16;
const ANSWER: usize = 33;
/// Rows of the prompt whose time is measured.
const PREFILL: usize = 1_024;
/// The shortest of so many is taken: whatever else runs here only adds.
const TRIES: usize = 5;
const STREAMS: usize = 8;

/// Namespaces and the switch between them; both end with it.
struct Land {
    names: Vec<String>,
    switch: Child,
}

impl Land {
    fn new(delay_ms: u64) -> Result<Self, String> {
        let me = std::process::id();
        let names: Vec<String> = (1..=RANGES.len())
            .map(|n| format!("souk-{me}-{n}"))
            .collect();
        for name in &names {
            let made = Command::new("ip").args(["netns", "add", name]).status();
            if !made.is_ok_and(|status| status.success()) {
                return Err("namespaces need root and iproute2 (`ip netns add`)".to_owned());
            }
        }
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/soak/switch.py");
        let switch = Command::new("python3")
            .arg(program)
            .args([&delay_ms.to_string(), NETWORK])
            .args(&names)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("python3: {error}"))?;
        let mut land = Self { names, switch };
        let mut line = String::new();
        let out = land.switch.stdout.take().ok_or("no stdout")?;
        let read = BufReader::new(out).read_line(&mut line);
        if read.is_err() || line.trim() != "ready" {
            return Err("the switch did not start: it needs root and /dev/net/tun".to_owned());
        }
        Ok(land)
    }
}

impl Drop for Land {
    fn drop(&mut self) {
        self.switch.kill().ok();
        self.switch.wait().ok();
        for name in &self.names {
            Command::new("ip")
                .args(["netns", "delete", name])
                .status()
                .ok();
        }
    }
}

/// Runs the experiment; gives its lines of figures.
pub async fn run(delay_ms: u64) -> Result<String, String> {
    let files = tempfile::tempdir().unwrap();
    let model = TinyModel {
        hidden: HIDDEN,
        intermediate: 2_048,
        layers: usize::from(LAYERS),
        heads: 12,
        kv_heads: 4,
        context: 2_048,
        ..TinyModel::default()
    };
    model.write(files.path());
    let path = files.path().to_str().unwrap().to_owned();
    let land = Land::new(delay_ms)?;
    let stages = land.names.iter().zip(RANGES).zip(2u32..);
    let nodes: Vec<Node> = stages
        .map(|((name, layers), number)| {
            let listen = format!("/ip4/{NETWORK}.{number}/udp/0/quic-v1");
            let mut args = vec!["contribute", "--model", &path, "--layers", layers, "--free"];
            args.extend([
                "--positions",
                "20000",
                "--http-port",
                "0",
                "--listen",
                &listen,
            ]);
            Node::start_inside(name, &args)
        })
        .collect();
    let settings = Settings {
        patience: Duration::from_secs(10),
        audit_one_in: 0,
        ..Settings::new(LAYERS, HIDDEN, WireFormat::F16)
    };
    let listed = nodes.iter().map(|node| (node.listen().to_owned(), None));
    let listen = format!("/ip4/{NETWORK}.1/udp/0/quic-v1");
    let payer = Payer::of(&listen, listed.collect(), settings).await;
    let ends = move || Ok(Head::load(files.path(), Precision::Q8)?);
    let ends = Ends::start(Processor::start(Some(1)).unwrap(), ends).await;
    let ends = ends.map_err(|error| error.to_string())?;
    let mut lines = vec![];
    for shape in [Shape::Push, Shape::Star] {
        let remote = payer.remote_with(Settings { shape, ..settings });
        let one = streams(&remote, &ends, 1).await;
        let eight = streams(&remote, &ends, STREAMS).await;
        lines.push(format!(
            "far: delay_ms={delay_ms} stages=3 shape={shape:?} one={one:.2} tokens/s \
             {STREAMS} streams={eight:.2} tokens/s ({:.2} times)",
            eight / one
        ));
    }
    for chunk_rows in [CHUNK_ROWS_MAX, u32::try_from(PREFILL).unwrap()] {
        let remote = payer.remote_with(Settings {
            chunk_rows,
            ..settings
        });
        let took = prefill(&remote, &ends).await;
        lines.push(format!(
            "far: delay_ms={delay_ms} prefill of {PREFILL} in chunks of {chunk_rows}: {took:?}"
        ));
    }
    Ok(lines.join("\n"))
}

/// Tokens a second of so many answers at once, their prompts not counted.
async fn streams(remote: &Remote, ends: &Ends, count: usize) -> f64 {
    let each = (0..count).map(|number| answer(remote, ends, number));
    let times = futures::future::join_all(each).await;
    let first = times.iter().map(|(begun, _)| *begun).max().unwrap();
    let last = times.iter().map(|(_, ended)| *ended).max().unwrap();
    (count * (ANSWER - 1)) as f64 / (last - first).as_secs_f64()
}

/// When the first token of an answer was there, and when the last.
async fn answer(remote: &Remote, ends: &Ends, number: usize) -> (Instant, Instant) {
    let prompt: Vec<u32> = (0..PROMPT)
        .map(|at| ((at * 7 + number * 31) % 256) as u32)
        .collect();
    let mut run = remote.open(PROMPT + ANSWER).await.unwrap();
    let rows = ends.embed(prompt).await.unwrap();
    let mut last = run.step(0, rows, StepKind::Prefill).await.unwrap();
    let mut begun = None;
    for at in 0..ANSWER {
        let logits = ends.logits(last).await.unwrap();
        begun.get_or_insert_with(Instant::now);
        let best = (0u32..).zip(&logits).max_by(|a, b| a.1.total_cmp(b.1));
        let rows = ends.embed(vec![best.unwrap().0]).await.unwrap();
        last = run.step(PROMPT + at, rows, StepKind::Decode).await.unwrap();
    }
    (begun.unwrap(), Instant::now())
}

async fn prefill(remote: &Remote, ends: &Ends) -> Duration {
    let prompt: Vec<u32> = (0..PREFILL).map(|at| (at % 256) as u32).collect();
    let rows = ends.embed(prompt).await.unwrap();
    let mut best = Duration::MAX;
    for _ in 0..TRIES {
        let mut run = remote.open(PREFILL).await.unwrap();
        let began = Instant::now();
        run.step(0, rows.clone(), StepKind::Prefill).await.unwrap();
        best = best.min(began.elapsed());
    }
    best
}
