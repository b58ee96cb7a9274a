//! A stage's side of one session: which steps are computed, what is billed, what is sent where.

use std::collections::VecDeque;

use bytes::Bytes;

use super::tally::Rows;
use super::{Log, chunk_rows, digest_of, message_rows};
use crate::protocol::stage::{
    Done, Halt, Next, Out, PushKey, Route, RowsDigest, StageMessage, State, Step, StepKind,
};

/// Steps whose results can be sent again; older duplicates are dropped.
const DUPLICATES_MAX: usize = 64;

/// What the caller sends, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StageEffect {
    /// To the head, on the session's own stream.
    Head(StageMessage, Bytes),
    /// To the next stage, on the stream of this route.
    Next(Step, Bytes),
}

/// What becomes of a step.
#[derive(Debug, PartialEq, Eq)]
pub enum StageVerdict {
    /// Compute its rows and say so with [`StageMachine::computed`], before any other event.
    Compute(Work),
    /// It was computed before: send this, bill nothing.
    Again(Vec<StageEffect>),
}

/// A step that is to be computed, once.
#[derive(Debug, PartialEq, Eq)]
pub struct Work {
    step: Step,
    taken: RowsDigest,
}

impl Work {
    /// Where the rows begin; the engine forgets what was there and behind.
    #[must_use]
    pub const fn pos(&self) -> u32 {
        self.step.pos
    }
    /// Rows.
    #[must_use]
    pub const fn n(&self) -> u32 {
        self.step.n
    }
    /// Why.
    #[must_use]
    pub const fn kind(&self) -> StepKind {
        self.step.kind
    }
}

/// Why a step is not computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageRefusal {
    /// Of an epoch that is over: drop it.
    Stale,
    /// Of an epoch whose route is not known here yet: offer it again after the next ROUTE.
    Early,
    /// Something before it is missing: tell the head.
    Gap,
    /// More positions than were reserved, or rows of another size: tell the head, end the session.
    Malformed,
}

/// One session at a stage.
#[derive(Clone, Debug)]
pub struct StageMachine {
    positions_max: u32,
    epoch: u32,
    key: Option<PushKey>,
    route: Option<Route>,
    next_in: u32,
    next_out: u32,
    /// The next holds these already: results below are not sent, until they are passed once.
    skip_below: u32,
    sent: VecDeque<(u32, Option<Step>)>,
    log: Log,
    rows: Rows,
}

impl StageMachine {
    /// A session of at most `positions_max` positions with rows of `row_bytes`.
    #[must_use]
    pub fn new(positions_max: u32, row_bytes: usize) -> Self {
        Self {
            positions_max,
            epoch: 0,
            key: None,
            route: None,
            next_in: 0,
            next_out: 0,
            skip_below: 0,
            sent: VecDeque::new(),
            log: Log::new(row_bytes),
            rows: Rows::default(),
        }
    }

    /// The epoch that was halted or routed last.
    #[must_use]
    pub const fn epoch(&self) -> u32 {
        self.epoch
    }
    /// Where results go now; none between HALT and ROUTE.
    #[must_use]
    pub const fn route(&self) -> Option<&Route> {
        self.route.as_ref()
    }
    /// True when who shows `key` may push rows of `epoch`.
    #[must_use]
    pub fn admits(&self, epoch: u32, key: &PushKey) -> bool {
        self.epoch == epoch && self.key.as_ref() == Some(key)
    }
    /// Rows computed, each billed once.
    #[must_use]
    pub const fn rows(&self) -> Rows {
        self.rows
    }

    /// HALT: nothing goes out until the next ROUTE. An old one changes nothing.
    pub fn halt(&mut self, halt: Halt) -> Option<StageEffect> {
        if halt.epoch <= self.epoch {
            return None;
        }
        self.epoch = halt.epoch;
        self.key = Some(halt.key);
        self.route = None;
        let state = State {
            epoch: self.epoch,
            length: self.log.length(),
        };
        Some(StageEffect::Head(StageMessage::State(state), Bytes::new()))
    }

    /// ROUTE: sends what the next lacks, from the log. A route of another epoch changes nothing.
    pub fn route_to(&mut self, route: Route) -> Vec<StageEffect> {
        if route.epoch != self.epoch || self.route.is_some() {
            return Vec::new();
        }
        self.route = Some(route);
        self.log.truncate(route.keep);
        self.next_in = 0;
        self.next_out = 0;
        self.sent.clear();
        self.skip_below = route.held;
        let mut effects = Vec::new();
        let (mut pos, end) = (route.held, self.log.length());
        let chunk = if route.next == Next::HeadLast {
            end
        } else {
            chunk_rows(self.log.row_bytes())
        };
        while pos < end {
            let n = chunk.min(end - pos);
            self.send(pos, n, StepKind::Prefill, &mut effects);
            pos += n;
        }
        if self.log.length() >= self.skip_below {
            self.skip_below = 0;
        }
        effects
    }

    /// Judges a step with its rows: R1 to R5.
    ///
    /// # Errors
    /// When it is not to be computed; [`StageRefusal`] says what to do.
    pub fn step(&mut self, step: Step, rows: &Bytes) -> Result<StageVerdict, StageRefusal> {
        if step.epoch < self.epoch {
            return Err(StageRefusal::Stale);
        }
        if step.epoch > self.epoch || self.route.is_none() {
            return Err(StageRefusal::Early);
        }
        let end = step.pos.checked_add(step.n);
        let is_sized = super::index(step.n).checked_mul(self.log.row_bytes()) == Some(rows.len());
        if !is_sized || step.n == 0 || end.is_none_or(|end| end > self.positions_max) {
            return Err(StageRefusal::Malformed);
        }
        if step.seq < self.next_in {
            return Ok(StageVerdict::Again(self.again(step.seq)));
        }
        if step.seq > self.next_in || step.pos > self.log.length() {
            return Err(StageRefusal::Gap);
        }
        self.next_in = self.next_in.saturating_add(1);
        let taken = digest_of(rows);
        Ok(StageVerdict::Compute(Work { step, taken }))
    }

    /// The results of `work`: remembered, billed, announced, and sent where the route says. The
    /// caller sends nothing of it before the bill is covered. None when the engine gave other than
    /// `n` rows.
    pub fn computed(&mut self, work: Work, rows: &Bytes) -> Option<Vec<StageEffect>> {
        let Work { step, taken } = work;
        let (seq, pos, n) = (step.seq, step.pos, step.n);
        if rows.len() != super::index(n).checked_mul(self.log.row_bytes())? {
            return None;
        }
        if !self.log.put(pos, rows) {
            return None;
        }
        self.rows.add(n, step.kind);
        let digest = digest_of(rows);
        let done = StageMessage::Done(Done {
            pos,
            n,
            taken,
            digest,
        });
        let mut effects = vec![StageEffect::Head(done, Bytes::new())];
        let end = pos.saturating_add(n);
        let from = pos.max(self.skip_below.min(end));
        let out = (from < end).then(|| self.send(from, end - from, step.kind, &mut effects));
        if end >= self.skip_below {
            self.skip_below = 0;
        }
        if self.sent.len() == DUPLICATES_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back((seq, out));
        Some(effects)
    }

    /// SHOW: results again, for an audit; none when they are not here.
    #[must_use]
    pub fn show(&self, seq: u32, pos: u32, n: u32) -> Option<StageEffect> {
        let end = pos.checked_add(n)?;
        if n == 0 || end > self.log.length() || n > message_rows(self.log.row_bytes()) {
            return None;
        }
        let out = Out {
            epoch: 0,
            seq,
            pos,
            n,
            rows: n,
            kind: StepKind::Prefill,
        };
        let rows = self.log.read(pos, end);
        Some(StageEffect::Head(StageMessage::Out(out), rows))
    }

    /// Sends rows of the log under the next number.
    fn send(&mut self, pos: u32, n: u32, kind: StepKind, effects: &mut Vec<StageEffect>) -> Step {
        let seq = self.next_out;
        self.next_out = self.next_out.saturating_add(1);
        let step = Step {
            epoch: self.epoch,
            seq,
            pos,
            n,
            kind,
        };
        effects.extend(self.effect(step));
        step
    }

    /// A sent step's message; its rows are read from the log.
    fn effect(&self, step: Step) -> Option<StageEffect> {
        let end = step.pos.saturating_add(step.n);
        let is_last = match self.route?.next {
            Next::Stage { .. } => {
                let rows = self.log.read(step.pos, end);
                return Some(StageEffect::Next(step, rows));
            }
            Next::HeadAll => false,
            Next::HeadLast => step.kind != StepKind::Verify,
        };
        let rows = if is_last { 1 } else { step.n };
        let out = Out {
            epoch: step.epoch,
            seq: step.seq,
            pos: step.pos,
            n: step.n,
            rows,
            kind: step.kind,
        };
        let rows = self.log.read(end.saturating_sub(rows), end);
        Some(StageEffect::Head(StageMessage::Out(out), rows))
    }

    /// R2: what the step of that number led to, if its rows are still what they were.
    fn again(&self, seq: u32) -> Vec<StageEffect> {
        let sent = self.sent.iter().find(|(of, _)| *of == seq);
        let step = sent.and_then(|(_, step)| *step);
        step.filter(|step| step.pos.saturating_add(step.n) <= self.log.length())
            .and_then(|step| self.effect(step))
            .into_iter()
            .collect()
    }
}
