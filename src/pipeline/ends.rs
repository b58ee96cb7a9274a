//! The thread that drives a model's two ends: tokens to rows, and last rows to logits.
//!
//! The output matrix is among a model's largest, so last rows of all sessions that are ready go
//! through it together, as a worker's rows do.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::engine::{Head, ModelConfig};
use super::error::PipelineError;
use super::processor::Processor;

/// Last rows of a batch.
const BATCH_ROWS_MAX: usize = 32;
/// How long a batch waits until it is as large as the last one.
const BATCH_WAIT: Duration = Duration::from_millis(1);

/// Tokens that are looked up without waiting for the processor, which may be busy for long: it takes
/// microseconds.
const EMBEDDED_AT_ONCE: usize = 64;

type Answer = oneshot::Sender<Result<Vec<f32>, PipelineError>>;

enum Message {
    Embed(Vec<u32>, Answer),
    Logits(Vec<f32>, Answer),
}

/// A model's ends and the thread that drives them. Cheap to clone; the thread ends with the last handle.
#[derive(Clone)]
pub struct Ends {
    sender: Sender<Message>,
    config: Arc<ModelConfig>,
}

impl Ends {
    /// Loads the ends on their thread, and starts to serve.
    ///
    /// # Errors
    /// What loading ran into.
    pub async fn start(
        processor: Processor,
        load: impl FnOnce() -> Result<Head, PipelineError> + Send + 'static,
    ) -> Result<Self, PipelineError> {
        let (ready, loaded) = oneshot::channel();
        let (sender, receiver) = channel();
        let thread = std::thread::Builder::new().name("model-ends".to_owned());
        let body = move || match processor.run(load) {
            Ok(head) => {
                let config = Arc::new(head.config().clone());
                if ready.send(Ok(config)).is_ok() {
                    run(&head, &processor, receiver);
                }
            }
            Err(error) => drop(ready.send(Err(error))),
        };
        let no_thread = |e| PipelineError::Failed(format!("no thread for the model: {e}"));
        thread.spawn(body).map_err(no_thread)?;
        let config = loaded.await.map_err(|_| PipelineError::Stopped)??;
        Ok(Self { sender, config })
    }

    /// The model's shape.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// One row of `hidden` numbers per token.
    ///
    /// # Errors
    /// [`PipelineError::Invalid`] when a token is not in the vocabulary.
    pub async fn embed(&self, tokens: Vec<u32>) -> Result<Vec<f32>, PipelineError> {
        self.ask(|reply| Message::Embed(tokens, reply)).await
    }

    /// The logits (one per token of the vocabulary) after this row of `hidden` numbers.
    ///
    /// # Errors
    /// [`PipelineError::Invalid`] when it is no row.
    pub async fn logits(&self, row: Vec<f32>) -> Result<Vec<f32>, PipelineError> {
        let (numbers, hidden) = (row.len(), self.config.hidden);
        if numbers != hidden {
            let why = format!("{numbers} numbers are no row of {hidden}");
            return Err(PipelineError::Invalid(why));
        }
        self.ask(|reply| Message::Logits(row, reply)).await
    }

    async fn ask(
        &self,
        message: impl FnOnce(Answer) -> Message,
    ) -> Result<Vec<f32>, PipelineError> {
        let (reply, answer) = oneshot::channel();
        let sent = self.sender.send(message(reply));
        sent.map_err(|_| PipelineError::Stopped)?;
        answer.await.map_err(|_| PipelineError::Stopped)?
    }
}

/// Last rows that wait for their logits.
type Waiting = Vec<(Vec<f32>, Answer)>;

/// Until all handles are gone.
fn run(head: &Head, processor: &Processor, mut receiver: Receiver<Message>) {
    let mut expected = 1;
    while let Ok(first) = receiver.recv() {
        let mut rows: Waiting = vec![];
        let until = Instant::now() + BATCH_WAIT;
        let mut next = Some(first);
        while let Some(message) = next {
            take(head, processor, message, &mut rows);
            let patience = if rows.is_empty() || rows.len() >= expected {
                Duration::ZERO
            } else {
                until.saturating_duration_since(Instant::now())
            };
            next = if rows.len() >= BATCH_ROWS_MAX {
                None
            } else {
                receiver.recv_timeout(patience).ok()
            };
        }
        if rows.is_empty() {
            continue;
        }
        let receiver = &mut receiver;
        expected = processor.run(move || {
            // Whoever came while others computed comes along.
            while rows.len() < BATCH_ROWS_MAX
                && let Ok(message) = receiver.try_recv()
            {
                take(head, processor, message, &mut rows);
            }
            let count = rows.len();
            answer(head, rows);
            count
        });
    }
}

/// Answers what asks for rows, and keeps what asks for logits.
fn take(head: &Head, processor: &Processor, message: Message, rows: &mut Waiting) {
    match message {
        Message::Logits(row, reply) if !reply.is_closed() => rows.push((row, reply)),
        Message::Logits(..) => {}
        Message::Embed(tokens, reply) => {
            let embed = || head.embed(&tokens).map_err(PipelineError::from);
            let embedded = if tokens.len() <= EMBEDDED_AT_ONCE {
                embed()
            } else {
                processor.run(embed)
            };
            let _ = reply.send(embedded);
        }
    }
}

fn answer(head: &Head, rows: Waiting) {
    let all: Vec<f32> = rows.iter().flat_map(|(row, _)| row).copied().collect();
    match head.logits_each(&all) {
        Ok(logits) => {
            let each = logits.chunks_exact(head.config().vocabulary);
            for ((_, reply), logits) in rows.into_iter().zip(each) {
                let _ = reply.send(Ok(logits.to_vec()));
            }
        }
        Err(error) => {
            let error = PipelineError::from(error);
            for (_, reply) in rows {
                let _ = reply.send(Err(error.clone()));
            }
        }
    }
}
