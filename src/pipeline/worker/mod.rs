//! The one thread that drives an engine, for any number of sessions.
//!
//! Sessions [`Worker::open`] a [`Lease`] and ask it to `forward` rows. The thread takes whatever
//! rows are ready, of all sessions, into one batch (`queue` says which), and the weights are read
//! once for all of them: that is why eight streams cost little more than one.
//!
//! # Invariants
//! - Two calls of an engine never run at once, and none runs on the runtime's workers.
//! - One session's mistake fails its own call only: every span is checked before the batch.
//! - A lease that is dropped frees its room, and a call whose future is dropped leaves the worker
//!   whole: what of it waits is not computed.
//! - Queued work is bounded: a lease has one call at a time, and leases are bounded by positions.

mod queue;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::engine::{Engine, ModelConfig, Slot, Span};
use super::error::PipelineError;
use super::layers::StepKind;
use super::processor::Processor;
use queue::{Job, Queue};

/// How long a batch waits for those who were in the last one: they come back at about the same
/// time, and a row that misses the batch waits for a whole one.
const BATCH_WAIT: Duration = Duration::from_millis(2);

type Answer<T> = oneshot::Sender<Result<T, PipelineError>>;

enum Message {
    Open(usize, Answer<Slot>),
    Forward(Job<Answer<Vec<f32>>>),
    Close(Slot),
}

/// An engine and the thread that drives it. Cheap to clone; the thread ends with the last handle.
#[derive(Clone)]
pub struct Worker {
    sender: Sender<Message>,
    shared: Arc<Shared>,
}

struct Shared {
    config: ModelConfig,
    layers: Range<usize>,
    positions_free: AtomicUsize,
    rows: AtomicU64,
    batches: AtomicU64,
    busy_us: AtomicU64,
}

/// What a worker has done since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Rows through the engine's whole range.
    pub rows: u64,
    /// Batches they were in.
    pub batches: u64,
    /// Time that took.
    pub busy: Duration,
}

impl Worker {
    /// Loads an engine on its thread, and starts to serve. `load` runs there, because it may
    /// quantise for minutes.
    ///
    /// # Errors
    /// What loading ran into.
    pub async fn start<E: Engine + 'static>(
        processor: Processor,
        load: impl FnOnce() -> Result<E, PipelineError> + Send + 'static,
    ) -> Result<Self, PipelineError> {
        let (ready, loaded) = oneshot::channel();
        let (sender, receiver) = channel();
        let thread = std::thread::Builder::new().name("engine".to_owned());
        let body = move || {
            let engine = match processor.run(load) {
                Ok(engine) => engine,
                Err(error) => return drop(ready.send(Err(error))),
            };
            let shared = Arc::new(Shared {
                config: engine.config().clone(),
                layers: engine.layers(),
                positions_free: AtomicUsize::new(engine.positions_free()),
                rows: AtomicU64::new(0),
                batches: AtomicU64::new(0),
                busy_us: AtomicU64::new(0),
            });
            if ready.send(Ok(Arc::clone(&shared))).is_ok() {
                Loop::new(engine, shared).run(&processor, receiver);
            }
        };
        let no_thread = |e| PipelineError::Failed(format!("no thread for the engine: {e}"));
        thread.spawn(body).map_err(no_thread)?;
        let shared = loaded.await.map_err(|_| PipelineError::Stopped)??;
        Ok(Self { sender, shared })
    }

    /// The whole model's shape.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.shared.config
    }
    /// The layers here.
    #[must_use]
    pub fn layers(&self) -> Range<usize> {
        self.shared.layers.clone()
    }
    /// Positions that may still be reserved.
    #[must_use]
    pub fn positions_free(&self) -> usize {
        self.shared.positions_free.load(Ordering::Relaxed)
    }
    /// What was done so far.
    #[must_use]
    pub fn work(&self) -> Work {
        Work {
            rows: self.shared.rows.load(Ordering::Relaxed),
            batches: self.shared.batches.load(Ordering::Relaxed),
            busy: Duration::from_micros(self.shared.busy_us.load(Ordering::Relaxed)),
        }
    }

    /// Reserves room for a session of at most `positions_max` positions.
    ///
    /// # Errors
    /// [`PipelineError::Full`] at once, never by waiting; [`PipelineError::TooLong`].
    pub async fn open(&self, positions_max: usize) -> Result<Lease, PipelineError> {
        let (reply, answer) = oneshot::channel();
        self.send(Message::Open(positions_max, reply))?;
        let slot = answer.await.map_err(|_| PipelineError::Stopped)??;
        let worker = self.clone();
        Ok(Lease { worker, slot })
    }

    fn send(&self, message: Message) -> Result<(), PipelineError> {
        let sent = self.sender.send(message);
        sent.map_err(|_| PipelineError::Stopped)
    }
}

/// Room in an engine. Dropping it frees the room.
pub struct Lease {
    worker: Worker,
    slot: Slot,
}

impl Lease {
    /// Computes `rows` (n × hidden numbers), of positions `pos..pos + n`, and answers as many.
    /// Writing at a lower position forgets what came after it.
    ///
    /// # Errors
    /// [`PipelineError::Gap`], [`PipelineError::TooLong`] and [`PipelineError::Invalid`] leave what
    /// is remembered as it was.
    pub async fn forward(
        &mut self,
        pos: usize,
        rows: Vec<f32>,
        kind: StepKind,
    ) -> Result<Vec<f32>, PipelineError> {
        let hidden = self.worker.config().hidden;
        if rows.is_empty() || !rows.len().is_multiple_of(hidden) {
            let numbers = rows.len();
            let why = format!("{numbers} numbers are no whole rows of {hidden}");
            return Err(PipelineError::Invalid(why));
        }
        let (reply, answer) = oneshot::channel();
        self.worker.send(Message::Forward(Job {
            slot: self.slot,
            pos,
            rows,
            kind,
            done: vec![],
            reply,
        }))?;
        answer.await.map_err(|_| PipelineError::Stopped)?
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // A worker that has stopped holds nothing any more.
        let _ = self.worker.send(Message::Close(self.slot));
    }
}

/// What the thread knows.
struct Loop<E> {
    engine: E,
    shared: Arc<Shared>,
    queue: Queue<Answer<Vec<f32>>>,
    /// Positions that each slot reserved.
    reserved: BTreeMap<Slot, usize>,
    /// Slots whose rows were answered last and whose next are on their way.
    expected: BTreeSet<Slot>,
}

impl<E: Engine> Loop<E> {
    fn new(engine: E, shared: Arc<Shared>) -> Self {
        let queue = Queue::new(engine.config().hidden);
        Self {
            engine,
            shared,
            queue,
            reserved: BTreeMap::new(),
            expected: BTreeSet::new(),
        }
    }

    /// Until all handles are gone.
    fn run(mut self, processor: &Processor, mut receiver: Receiver<Message>) {
        loop {
            if self.queue.is_empty() {
                match receiver.recv() {
                    Ok(message) => self.take(message),
                    Err(_) => return,
                }
            }
            self.gather(&receiver);
            if self.queue.is_empty() {
                continue;
            }
            let mine = (&mut self, &mut receiver);
            processor.run(move || {
                let (this, receiver) = mine;
                // Whoever came while others computed comes along.
                this.take_waiting(receiver);
                this.queue.retain(|job| !job.reply.is_closed());
                if !this.queue.is_empty() {
                    this.compute();
                }
            });
        }
    }

    fn take_waiting(&mut self, receiver: &Receiver<Message>) {
        while let Ok(message) = receiver.try_recv() {
            self.take(message);
        }
    }

    /// Takes what is there, and waits a little for those who were in the last batch.
    fn gather(&mut self, receiver: &Receiver<Message>) {
        let until = Instant::now() + BATCH_WAIT;
        loop {
            self.take_waiting(receiver);
            if self.expected.is_empty() || self.queue.is_empty() {
                return;
            }
            match receiver.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(message) => self.take(message),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    return self.expected.clear();
                }
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Open(positions_max, reply) => {
                let slot = self.engine.open(positions_max).map_err(PipelineError::from);
                if let Ok(slot) = slot {
                    self.reserved.insert(slot, positions_max);
                }
                self.tell_free();
                // Whoever asked is gone: so is the room.
                if let Err(Ok(slot)) = reply.send(slot) {
                    self.close(slot);
                }
            }
            Message::Forward(job) => {
                self.expected.remove(&job.slot);
                self.queue.push(job);
            }
            Message::Close(slot) => self.close(slot),
        }
    }

    fn close(&mut self, slot: Slot) {
        self.queue.retain(|job| job.slot != slot);
        self.expected.remove(&slot);
        self.reserved.remove(&slot);
        self.engine.close(slot);
        self.tell_free();
    }

    fn tell_free(&self) {
        let free = self.engine.positions_free();
        self.shared.positions_free.store(free, Ordering::Relaxed);
    }

    /// One batch, on the processor.
    fn compute(&mut self) {
        let hidden = self.shared.config.hidden;
        let (mut jobs, mut spans, mut rows) = (vec![], vec![], vec![]);
        for (job, span) in self.queue.next() {
            if let Err(why) = self.check(&job, span) {
                let _ = job.reply.send(Err(why));
                continue;
            }
            let numbers = span.rows * hidden;
            rows.extend(job.rows.iter().take(numbers));
            spans.push(span);
            jobs.push(job);
        }
        if jobs.is_empty() {
            return;
        }
        let started = Instant::now();
        let answer = self.engine.forward(&spans, rows);
        let busy = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let computed: usize = spans.iter().map(|span| span.rows).sum();
        let computed = u64::try_from(computed).unwrap_or(u64::MAX);
        self.shared.busy_us.fetch_add(busy, Ordering::Relaxed);
        self.shared.batches.fetch_add(1, Ordering::Relaxed);
        self.shared.rows.fetch_add(computed, Ordering::Relaxed);
        match answer {
            Ok(out) => self.answer(jobs, &spans, &out),
            Err(error) => {
                let error = PipelineError::from(error);
                tracing::warn!(%error, sessions = jobs.len(), "a batch failed");
                for job in jobs {
                    let _ = job.reply.send(Err(error.clone()));
                }
            }
        }
    }

    /// Gives each job its part of what was computed.
    fn answer(&mut self, jobs: Vec<Job<Answer<Vec<f32>>>>, spans: &[Span], mut out: &[f32]) {
        let hidden = self.shared.config.hidden;
        let mut parts = vec![];
        for (job, span) in jobs.into_iter().zip(spans) {
            let (part, rest) = out.split_at((span.rows * hidden).min(out.len()));
            out = rest;
            parts.push((job, *span, part));
        }
        // From the last on, so that unfinished ones stand in the queue in the order they had.
        for (job, span, part) in parts.into_iter().rev() {
            if let Some(job) = self.queue.advance(job, span, part) {
                self.expected.insert(job.slot);
                let _ = job.reply.send(Ok(job.done));
            }
        }
    }

    /// What the engine would refuse a whole batch for.
    fn check(&self, job: &Job<Answer<Vec<f32>>>, span: Span) -> Result<(), PipelineError> {
        let no_slot = || PipelineError::Invalid(format!("no slot {:?}", job.slot));
        let length = self.engine.length(job.slot).ok_or_else(no_slot)?;
        let most = *self.reserved.get(&job.slot).ok_or_else(no_slot)?;
        if span.pos > length {
            let pos = span.pos;
            return Err(PipelineError::Gap { pos, length });
        }
        let rows = job.rows.len().checked_div(self.shared.config.hidden);
        let wanted = span.pos.saturating_add(rows.unwrap_or(0));
        if wanted > most {
            return Err(PipelineError::TooLong { wanted, most });
        }
        Ok(())
    }
}
