//! How fast the pipeline's engine is, and what splitting costs: a random model of ~300 M parameters,
//! made on the fly, whole in one engine and cut into three, one stream and eight.
//!
//!     cargo run --release --example pipeline_speed [-- KEEP.gguf [TOKENS]]
//!
//! With a path the model is left there, for another engine to be measured on the same file. Prints
//! one line per measurement: tokens per second of wall clock and per second of processor time.
//! `CANDLE_NUM_THREADS` says on how many threads matrices are multiplied; the node has all cores but
//! one, and so has `tests/pipeline_speed/run`, which measures llama.cpp on the same file besides.

#![allow(
    clippy::as_conversions,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "an experiment, not a part of the node"
)]

mod gguf;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::{BoxFuture, join_all};
use souk::pipeline::ends::Ends;
use souk::pipeline::engine::{Head, Load, Precision, Stage};
use souk::pipeline::layers::Local;
use souk::pipeline::processor::Processor;
use souk::pipeline::worker::{Lease, Worker};
use souk::pipeline::{Layers, PipelineError, Run, StepKind};

/// As in the node: memory that is let go goes back to the system.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Tokens of each prompt.
const PROMPT: usize = 16;
/// Tokens of each answer, unless a second argument says otherwise.
const ANSWER: usize = 128;
/// Rows of the prefill that is measured alone.
const PREFILL: usize = 256;
/// Positions of all sessions.
const POSITIONS: usize = 8 * 512;

/// Workers one after the other, in one process.
struct Chain(Vec<Worker>);

struct ChainRun(Vec<Lease>, usize);

impl Layers for Chain {
    fn open(&self, positions_max: usize) -> BoxFuture<'_, Result<Box<dyn Run>, PipelineError>> {
        async move {
            let mut leases = vec![];
            for worker in &self.0 {
                leases.push(worker.open(positions_max).await?);
            }
            let run: Box<dyn Run> = Box::new(ChainRun(leases, self.0[0].config().hidden));
            Ok(run)
        }
        .boxed()
    }
}

impl Run for ChainRun {
    fn step(
        &mut self,
        pos: usize,
        mut rows: Vec<f32>,
        kind: StepKind,
    ) -> BoxFuture<'_, Result<Vec<f32>, PipelineError>> {
        async move {
            for lease in &mut self.0 {
                rows = lease.forward(pos, rows, kind).await?;
            }
            Ok(rows.split_off(rows.len() - self.1))
        }
        .boxed()
    }
}

async fn worker(processor: &Processor, path: &Path, layers: std::ops::Range<usize>) -> Worker {
    let load = Load {
        path: path.to_owned(),
        layers,
        precision: Precision::Q8,
        positions_max: POSITIONS,
    };
    let stage = move || Ok(Stage::load(&load, &mut |_| {})?);
    Worker::start(processor.clone(), stage).await.unwrap()
}

/// Tokens of each answer in this run.
fn answer_tokens() -> usize {
    let given = std::env::args().nth(2).and_then(|text| text.parse().ok());
    given.unwrap_or(ANSWER)
}

/// Writes one greedy answer; its tokens.
async fn answer(layers: &dyn Layers, ends: &Ends, stream: u32) -> Vec<u32> {
    let mut run = layers.open(PROMPT + answer_tokens()).await.unwrap();
    let prompt: Vec<u32> = (0..PROMPT as u32)
        .map(|at| (at * 37 + stream * 101) % 1_000)
        .collect();
    let rows = ends.embed(prompt).await.unwrap();
    let mut last = run.step(0, rows, StepKind::Prefill).await.unwrap();
    let mut tokens = vec![];
    loop {
        let logits = ends.logits(last).await.unwrap();
        let best = (0u32..)
            .zip(&logits)
            .max_by(|a, b| a.1.total_cmp(b.1))
            .unwrap()
            .0;
        tokens.push(best);
        if tokens.len() == answer_tokens() {
            return tokens;
        }
        let rows = ends.embed(vec![best]).await.unwrap();
        let pos = PROMPT + tokens.len() - 1;
        last = run.step(pos, rows, StepKind::Decode).await.unwrap();
    }
}

/// Seconds of processor time that this process has used.
fn processor_time() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    // User and system time, in hundredths of a second.
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

/// Bytes of memory that this process has.
fn memory() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<f64>()
        .unwrap()
        * 4096.0
}

async fn measure(
    name: &str,
    layers: &dyn Layers,
    ends: &Ends,
    streams: u32,
) -> (f64, Vec<Vec<u32>>) {
    let (wall, cpu) = (Instant::now(), processor_time());
    let answers = join_all((0..streams).map(|stream| answer(layers, ends, stream))).await;
    let (wall, cpu) = (wall.elapsed().as_secs_f64(), processor_time() - cpu);
    let tokens = (answer_tokens() * streams as usize) as f64;
    println!(
        "{name:24} {streams} streams: {:7.2} tokens/s, {:7.2} tokens per CPU-second",
        tokens / wall,
        tokens / cpu
    );
    (tokens / cpu, answers)
}

async fn prefill(name: &str, layers: &dyn Layers, ends: &Ends) {
    let mut run = layers.open(PREFILL).await.unwrap();
    let rows = ends.embed((0..PREFILL as u32).collect()).await.unwrap();
    let (wall, cpu) = (Instant::now(), processor_time());
    run.step(0, rows, StepKind::Prefill).await.unwrap();
    let (wall, cpu) = (wall.elapsed().as_secs_f64(), processor_time() - cpu);
    let rows = PREFILL as f64;
    println!(
        "{name:24} prefill of {PREFILL}: {:7.2} tokens/s, {:7.2} tokens per CPU-second",
        rows / wall,
        rows / cpu
    );
}

#[tokio::main]
async fn main() {
    let kept = std::env::args().nth(1).map(PathBuf::from);
    let folder = tempfile::tempdir().unwrap();
    let path = kept.unwrap_or_else(|| folder.path().join("model.gguf"));
    let started = Instant::now();
    let shape = gguf::Shape::default();
    if !path.exists() {
        shape.write(&path);
    }
    println!(
        "model: {} M parameters, {} layers, Q8_0, {} MiB, made in {:.1} s",
        shape.parameters() / 1_000_000,
        shape.layers,
        std::fs::metadata(&path).unwrap().len() >> 20,
        started.elapsed().as_secs_f64()
    );
    let processor = Processor::start(None).unwrap();
    let head_path = path.clone();
    let head = move || Ok(Head::load(&head_path, Precision::Q8)?);
    let ends = Ends::start(processor.clone(), head).await.unwrap();
    let all = shape.layers;
    let before = memory();
    let started = Instant::now();
    let whole = worker(&processor, &path, 0..all).await;
    println!(
        "loading {all} layers: {:.1} s, {:.1} MiB a layer",
        started.elapsed().as_secs_f64(),
        (memory() - before) / all as f64 / f64::from(1 << 20)
    );
    let local = Local::new(whole.clone()).unwrap();
    let (one, first) = measure("whole", &local, &ends, 1).await;
    let (eight, answers) = measure("whole", &local, &ends, 8).await;
    prefill("whole", &local, &ends).await;
    let work = whole.work();
    println!(
        "eight streams are {:.2} times one; {:.1} rows a batch; a stream among eight reads what it reads alone: {}",
        eight / one,
        work.rows as f64 / work.batches as f64,
        answers[0] == first[0]
    );
    drop((local, whole));
    let third = all / 3;
    let ranges = [0..third, third..2 * third, 2 * third..all];
    let mut workers = vec![];
    for range in ranges {
        workers.push(worker(&processor, &path, range).await);
    }
    let busy = || -> Duration { workers.iter().map(|worker| worker.work().busy).sum() };
    let chain: Arc<dyn Layers> = Arc::new(Chain(workers.clone()));
    let (_, split) = measure("three ranges", &*chain, &ends, 1).await;
    let (_, split_eight) = measure("three ranges", &*chain, &ends, 8).await;
    prefill("three ranges", &*chain, &ends).await;
    println!(
        "cut in three reads as whole: {}",
        split == first && split_eight == answers
    );
    println!("time inside engines: {:.1} s", busy().as_secs_f64());
    let idle = processor_time();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let idle = (processor_time() - idle) / 5.0 * 100.0;
    println!("idle: {idle:.2} % of one core");
}
