//! A conversation's tokens to the text of an answer, over any [`Layers`].
//!
//! One answer, top to bottom: `open → prompt through the layers → logits → choose a token → its
//! text → stop sequences → calls of tools`, then the chosen token through the layers, and again.
//! A token is chosen once and only here, from logits that exist, so whatever the layers lose and
//! compute again below, the text has neither gap nor repeat.

mod calls;
mod stop;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;

use super::ends::Ends;
use super::engine::{Sampler, sampling};
use super::error::PipelineError;
use super::layers::{Layers, Run, StepKind};
use super::patron::Patron;
use super::tokens::Tokens;
use super::tokens::stream::Detokenizer;
use crate::tasks::off_thread_if;
use calls::{Calls, Part};
use stop::Stop;

/// Rows of a prompt that are handed to the layers at once; bounds the memory for rows of hidden
/// states, 64 MiB at 16 384 numbers a row.
const PROMPT_ROWS: usize = 1_024;
/// Tokens of an answer whose request names no limit. Room is reserved for all of them.
pub const ANSWER_TOKENS_DEFAULT: usize = 2_048;

/// A model that answers. Cheap to clone.
#[derive(Clone)]
pub struct Model {
    tokens: Tokens,
    ends: Ends,
    layers: Arc<dyn Layers>,
    /// Positions of prompt and answer together, at most.
    context: usize,
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct Request {
    /// The tokens to go on from.
    pub prompt: Vec<u32>,
    /// Tokens of the answer, at most; none is [`ANSWER_TOKENS_DEFAULT`] or what the context leaves.
    pub answer_max: Option<usize>,
    /// How tokens are chosen.
    pub sampling: sampling::Settings,
    /// Texts before which the answer ends.
    pub stop: Vec<String>,
    /// Calls of tools are looked for.
    pub has_tools: bool,
    /// For whom, where others compute its layers.
    pub patron: Patron,
}

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// More text.
    Text(String),
    /// A tool is to be called.
    Call {
        /// The tool's name.
        name: String,
        /// Its arguments, as JSON.
        arguments: String,
    },
    /// It is over; nothing follows.
    End {
        /// Why.
        finish: Finish,
        /// What it took.
        usage: Usage,
    },
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// By itself, or before a stop sequence.
    Stop,
    /// At its limit, or where a spending limit ends it.
    Length,
    /// Tools are to be called.
    Calls,
}

/// Tokens of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Read.
    pub prompt: usize,
    /// Written; the one that ends the answer is not counted.
    pub answer: usize,
}

/// Why no answer begins.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GenerateError {
    /// Shorten one or the other.
    #[error(
        "the context is {context} tokens; the prompt has {prompt} and the answer may have {answer}"
    )]
    Context {
        /// Positions there are.
        context: usize,
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens of the answer.
        answer: usize,
    },
    /// Nothing to go on from.
    #[error("the prompt is empty")]
    Empty,
    /// See [`PipelineError`].
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
}

impl Model {
    /// Puts a model together. `positions_max` bounds a session beside the model's own context.
    #[must_use]
    pub fn new(tokens: Tokens, ends: Ends, layers: Arc<dyn Layers>, positions_max: usize) -> Self {
        let context = ends.config().context.min(positions_max);
        Self {
            tokens,
            ends,
            layers,
            context,
        }
    }

    /// The model's vocabulary and manners.
    #[must_use]
    pub const fn tokens(&self) -> &Tokens {
        &self.tokens
    }
    /// Positions of prompt and answer together, at most.
    #[must_use]
    pub const fn context(&self) -> usize {
        self.context
    }

    /// Reserves room and begins an answer; nothing is computed yet.
    ///
    /// # Errors
    /// When the request does not fit the model, or there is no room now.
    pub async fn begin(&self, request: Request) -> Result<Answer, GenerateError> {
        let prompt = request.prompt.len();
        if prompt == 0 {
            return Err(GenerateError::Empty);
        }
        let left = self.context.saturating_sub(prompt);
        let answer = request
            .answer_max
            .unwrap_or(left.clamp(1, ANSWER_TOKENS_DEFAULT));
        if answer > left || left == 0 {
            let context = self.context;
            return Err(GenerateError::Context {
                context,
                prompt,
                answer,
            });
        }
        let run = self.layers.open_for(prompt + answer, &request.patron);
        let run = run.await?;
        let style = self.tokens.tool_style().filter(|_| request.has_tools);
        Ok(Answer {
            model: self.clone(),
            run,
            sampler: Some(Sampler::new(request.sampling)),
            is_greedy: request.sampling.temperature <= 0.0,
            detokenizer: self.tokens.detokenizer(),
            stop: Stop::new(request.stop),
            calls: Calls::new(style),
            answer_max: answer,
            next: request.prompt,
            pos: 0,
            ready: VecDeque::new(),
            is_over: false,
            usage: Usage { prompt, answer: 0 },
        })
    }
}

/// An answer that is being written. Dropping it frees its room.
pub struct Answer {
    model: Model,
    run: Box<dyn Run>,
    /// Lent away while it chooses.
    sampler: Option<Sampler>,
    is_greedy: bool,
    detokenizer: Detokenizer,
    stop: Stop,
    calls: Calls,
    answer_max: usize,
    /// Tokens that the layers have not seen yet: the prompt, then the last one chosen.
    next: Vec<u32>,
    /// Their first one's position.
    pos: usize,
    ready: VecDeque<Event>,
    is_over: bool,
    usage: Usage,
}

impl Answer {
    /// The next piece; none after [`Event::End`].
    ///
    /// # Errors
    /// What computing ran into; the answer is over then.
    pub async fn next(&mut self) -> Result<Option<Event>, PipelineError> {
        while self.ready.is_empty() && !self.is_over {
            match self.choose().await {
                Ok(token) => self.take(token),
                // What is said already is paid for, and stands.
                Err(PipelineError::Budget(why)) if self.usage.answer > 0 => {
                    tracing::info!(why, "an answer ends early");
                    self.end(Finish::Length, false);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(self.ready.pop_front())
    }

    /// What is new goes through the layers; the token after it.
    async fn choose(&mut self) -> Result<u32, PipelineError> {
        let kind = if self.pos == 0 {
            StepKind::Prefill
        } else {
            StepKind::Decode
        };
        let tokens = std::mem::take(&mut self.next);
        let mut row = vec![];
        for some in tokens.chunks(PROMPT_ROWS) {
            let rows = self.model.ends.embed(some.to_vec()).await?;
            row = self.run.step(self.pos, rows, kind).await?;
            self.pos += some.len();
        }
        let logits = self.model.ends.logits(row).await?;
        let mut sampler = self.sampler.take().ok_or(PipelineError::Stopped)?;
        // By chance a whole vocabulary is sorted.
        let chosen = off_thread_if(!self.is_greedy, move || {
            let token = sampler.next(&logits);
            Some((sampler, token))
        });
        let (sampler, token) = chosen.await.ok_or(PipelineError::Stopped)?;
        self.sampler = Some(sampler);
        token.ok_or_else(|| PipelineError::Failed("the model's logits are no numbers".to_owned()))
    }

    fn take(&mut self, token: u32) {
        if self.model.tokens.is_end(token) {
            return self.end(Finish::Stop, false);
        }
        self.usage.answer += 1;
        self.next = vec![token];
        let text = self.detokenizer.push(token);
        let (text, is_stopped) = self.stop.push(&text);
        let parts = self.calls.push(&text);
        self.give(parts);
        if is_stopped {
            self.end(Finish::Stop, true);
        } else if self.usage.answer == self.answer_max {
            self.end(Finish::Length, false);
        }
    }

    fn end(&mut self, finish: Finish, is_stopped: bool) {
        let mut parts = vec![];
        let mut finish = finish;
        if !is_stopped {
            let (mut text, is_stopped) = self.stop.push(&self.detokenizer.finish());
            if is_stopped {
                finish = Finish::Stop;
            } else {
                text.push_str(&self.stop.finish());
            }
            parts = self.calls.push(&text);
        }
        parts.extend(self.calls.finish());
        self.give(parts);
        let finish = if self.calls.found() > 0 && finish == Finish::Stop {
            Finish::Calls
        } else {
            finish
        };
        let usage = self.usage;
        self.ready.push_back(Event::End { finish, usage });
        self.is_over = true;
    }

    fn give(&mut self, parts: Vec<Part>) {
        self.ready.extend(parts.into_iter().map(|part| match part {
            Part::Text(text) => Event::Text(text),
            Part::Call { name, arguments } => Event::Call { name, arguments },
        }));
    }
}
