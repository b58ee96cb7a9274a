//! Many sessions on one engine: the real one for its bits, a scripted one for its order.

#![allow(clippy::disallowed_methods, reason = "a test's own tasks")]

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use futures::FutureExt as _;
use futures::future::join_all;

use super::*;
use crate::pipeline::ends::Ends;
use crate::pipeline::engine::tests::models::{case, directory};
use crate::pipeline::engine::{EngineError, Head, Load, Precision, Stage};
use crate::pipeline::layers::{Layers, Local};

fn processor() -> Processor {
    Processor::start(Some(1)).unwrap()
}

async fn real(path: &std::path::Path, positions_max: usize) -> (Worker, Ends) {
    let load = Load {
        path: path.to_owned(),
        layers: 0..6,
        precision: Precision::Q8,
        positions_max,
    };
    let path = path.to_owned();
    let processor = processor();
    let stage = move || Ok(Stage::load(&load, &mut |_| {})?);
    let head = move || Ok(Head::load(&path, Precision::Q8)?);
    let worker = Worker::start(processor.clone(), stage).await.unwrap();
    (worker, Ends::start(processor, head).await.unwrap())
}

/// All logits of a greedy answer.
async fn answer(layers: &dyn Layers, ends: &Ends, prompt: Vec<u32>, count: usize) -> Vec<Vec<f32>> {
    let mut run = layers.open(60).await.unwrap();
    let mut pos = prompt.len();
    let rows = ends.embed(prompt).await.unwrap();
    let mut last = run.step(0, rows, StepKind::Prefill).await.unwrap();
    let mut all: Vec<Vec<f32>> = vec![];
    while all.len() < count {
        let logits = ends.logits(last).await.unwrap();
        let best = (0u32..).zip(&logits).max_by(|a, b| a.1.total_cmp(b.1));
        let rows = ends.embed(vec![best.unwrap().0]).await.unwrap();
        all.push(logits);
        last = run.step(pos, rows, StepKind::Decode).await.unwrap();
        pos += 1;
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_computed_together_get_the_bits_of_each_alone() {
    let files = directory(&case("qwen3"));
    /// Eight sessions of 60 positions, and no more than the model's context.
    const ROOM: usize = 8 * 60;
    let (worker, ends) = real(files.path(), ROOM).await;
    let layers = Local::new(worker.clone()).unwrap();
    let prompt = |index: u32| (0..3 + 5 * index).map(|t| (t * 7 + index) % 256).collect();
    let mut alone = vec![];
    for index in 0..8 {
        alone.push(answer(&layers, &ends, prompt(index), 12).await);
    }
    let before = worker.work();
    let together = (0..8).map(|index| answer(&layers, &ends, prompt(index), 12));
    let together = join_all(together).await;
    assert!(together == alone);
    let after = worker.work();
    assert_eq!(after.rows - before.rows, before.rows);
    assert!(after.batches - before.batches < before.batches);
    // Closing was asked for before this opening, which only fits when all else is gone.
    assert!(worker.open(ROOM).await.is_ok());
}

#[tokio::test]
async fn room_is_bounded_and_comes_back() {
    let files = directory(&case("llama"));
    let (worker, _) = real(files.path(), 300).await;
    let first = worker.open(200).await.unwrap();
    let full = worker.open(101).await.err();
    let (wanted, free) = (101, 100);
    assert_eq!(full, Some(PipelineError::Full { wanted, free }));
    let long = worker.open(301).await.err();
    let (wanted, most) = (301, 300);
    assert_eq!(long, Some(PipelineError::TooLong { wanted, most }));
    drop(first);
    let mut second = worker.open(101).await.unwrap();
    // One session's mistakes are its own, and leave it as it was.
    let hidden = worker.config().hidden;
    let gap = second.forward(1, vec![0.0; hidden], StepKind::Decode).await;
    assert_eq!(gap, Err(PipelineError::Gap { pos: 1, length: 0 }));
    let long = second.forward(0, vec![0.0; 102 * hidden], StepKind::Prefill);
    let (wanted, most) = (102, 101);
    assert_eq!(long.await, Err(PipelineError::TooLong { wanted, most }));
    let torn = second.forward(0, vec![0.0; 3], StepKind::Decode).await;
    assert!(matches!(torn, Err(PipelineError::Invalid(_))));
    assert!(
        second
            .forward(0, vec![0.1; hidden], StepKind::Decode)
            .await
            .is_ok()
    );
}

/// A number that the scripted engine fails on.
const FAILS: f32 = -1.0;

/// Adds 1 to each number, when it is let; fails on a row of [`FAILS`].
struct Scripted {
    config: ModelConfig,
    lengths: BTreeMap<Slot, usize>,
    gate: Arc<Mutex<()>>,
    is_busy: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<Vec<Span>>>>,
}

impl Engine for Scripted {
    fn config(&self) -> &ModelConfig {
        &self.config
    }
    fn layers(&self) -> Range<usize> {
        0..self.config.layers
    }
    fn open(&mut self, _: usize) -> Result<Slot, EngineError> {
        let slot = Slot(self.lengths.keys().next_back().map_or(0, |slot| slot.0 + 1));
        self.lengths.insert(slot, 0);
        Ok(slot)
    }
    fn forward(&mut self, spans: &[Span], rows: Vec<f32>) -> Result<Vec<f32>, EngineError> {
        assert!(
            !self.is_busy.swap(true, Ordering::SeqCst),
            "two calls at once"
        );
        drop(self.gate.lock().unwrap());
        self.seen.lock().unwrap().push(spans.to_vec());
        self.is_busy.store(false, Ordering::SeqCst);
        if rows.contains(&FAILS) {
            return Err(EngineError::Compute(candle_core::Error::Msg(
                "scripted".to_owned(),
            )));
        }
        for span in spans {
            self.lengths.insert(span.slot, span.pos + span.rows);
        }
        Ok(rows.into_iter().map(|number| number + 1.0).collect())
    }
    fn positions_free(&self) -> usize {
        1_000 - self.lengths.len()
    }
    fn length(&self, slot: Slot) -> Option<usize> {
        self.lengths.get(&slot).copied()
    }
    fn close(&mut self, slot: Slot) {
        self.lengths.remove(&slot);
    }
}

struct Script {
    worker: Worker,
    gate: Arc<Mutex<()>>,
    seen: Arc<Mutex<Vec<Vec<Span>>>>,
    hidden: usize,
}

async fn scripted() -> Script {
    scripted_on(processor()).await
}

async fn scripted_on(processor: Processor) -> Script {
    let config = ModelConfig::from_json(case("llama").config.to_string().as_bytes()).unwrap();
    let (gate, seen) = (Arc::default(), Arc::default());
    let engine = Scripted {
        config: config.clone(),
        lengths: BTreeMap::new(),
        gate: Arc::clone(&gate),
        is_busy: Arc::default(),
        seen: Arc::clone(&seen),
    };
    let worker = Worker::start(processor, move || Ok(engine)).await.unwrap();
    Script {
        worker,
        gate,
        seen,
        hidden: config.hidden,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_never_run_at_once_and_each_gets_its_own_rows() {
    let script = scripted().await;
    let hidden = script.hidden;
    let sessions = (0..40u8).map(|index| {
        let worker = script.worker.clone();
        tokio::spawn(async move {
            let mut lease = worker.open(100).await.unwrap();
            for pos in 0..20 {
                let out = lease.forward(pos, vec![f32::from(index); hidden], StepKind::Decode);
                assert_eq!(out.await.unwrap(), vec![f32::from(index) + 1.0; hidden]);
            }
        })
    });
    for session in join_all(sessions).await {
        session.unwrap();
    }
    assert_eq!(script.worker.work().rows, 800);
}

#[tokio::test]
async fn rows_that_come_while_others_compute_come_along() {
    let processor = processor();
    let script = scripted_on(processor.clone()).await;
    let mut one = script.worker.open(100).await.unwrap();
    let mut other = script.worker.open(100).await.unwrap();
    let (begun, begins) = channel();
    let (end, ends) = channel::<()>();
    let elsewhere = std::thread::spawn(move || {
        processor.run(move || {
            begun.send(()).unwrap();
            ends.recv().unwrap();
        });
    });
    begins.recv().unwrap();
    let row = || vec![1.0; script.hidden];
    let mut first = Box::pin(one.forward(0, row(), StepKind::Decode));
    assert!(first.as_mut().now_or_never().is_none());
    // Time for a worker to make up its mind about the batch, should it not wait with that.
    std::thread::sleep(BATCH_WAIT * 10);
    let mut second = Box::pin(other.forward(0, row(), StepKind::Decode));
    assert!(second.as_mut().now_or_never().is_none());
    end.send(()).unwrap();
    assert!(first.await.is_ok() && second.await.is_ok());
    elsewhere.join().unwrap();
    assert_eq!(script.worker.work().batches, 1);
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_the_worker_whole() {
    let script = scripted().await;
    let hidden = script.hidden;
    let mut gone = script.worker.open(100).await.unwrap();
    let mut busy = script.worker.open(100).await.unwrap();
    let mut other = script.worker.open(100).await.unwrap();
    let held = script.gate.lock().unwrap();
    // The engine is held in this call; what follows waits in the queue.
    let running = busy.forward(0, vec![1.0; hidden], StepKind::Decode);
    let mut running = Box::pin(running);
    assert!(running.as_mut().now_or_never().is_none());
    {
        let dropped = gone.forward(0, vec![2.0; 50 * hidden], StepKind::Prefill);
        assert!(dropped.now_or_never().is_none());
    }
    // The same session asks again, then goes away altogether.
    assert!(
        gone.forward(0, vec![3.0; hidden], StepKind::Decode)
            .now_or_never()
            .is_none()
    );
    drop(gone);
    drop(held);
    running.await.unwrap();
    other
        .forward(0, vec![4.0; hidden], StepKind::Decode)
        .await
        .unwrap();
    let rows: usize = script
        .seen
        .lock()
        .unwrap()
        .iter()
        .flatten()
        .map(|span| span.rows)
        .sum();
    // What nobody waits for was not computed, but for what the engine had begun.
    assert!(rows <= 2 + BATCH_ROWS, "{rows}");
    // Closing was asked for before this opening.
    let _fourth = script.worker.open(1).await.unwrap();
    assert_eq!(script.worker.positions_free(), 997);
}

/// Rows that a call in flight may have had in its batch.
const BATCH_ROWS: usize = queue::BATCH_ROWS_MAX;

#[tokio::test]
async fn a_failed_batch_is_told_and_the_next_works() {
    let script = scripted().await;
    let mut lease = script.worker.open(100).await.unwrap();
    let failed = lease
        .forward(0, vec![FAILS; script.hidden], StepKind::Decode)
        .await;
    assert_eq!(
        failed,
        Err(PipelineError::Failed(
            "computing failed: scripted".to_owned()
        ))
    );
    let fine = lease
        .forward(0, vec![1.0; script.hidden], StepKind::Decode)
        .await;
    assert_eq!(fine, Ok(vec![2.0; script.hidden]));
}

#[tokio::test]
async fn what_cannot_be_loaded_is_no_worker() {
    let nothing = || Err::<Stage, _>(PipelineError::Failed("no such file".to_owned()));
    let error = Worker::start(processor(), nothing).await.err();
    assert_eq!(
        error,
        Some(PipelineError::Failed("no such file".to_owned()))
    );
}
