//! The head's side of one session: the stages in order, what each owes, and how a loss is mended.

use std::collections::BTreeSet;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::hop::{ChainEffect, Hop, HopId, Loss, Shape};
use super::tally::{Rows, Tally};
use super::{CHUNK_ROWS_MAX, Log, Promises, index, message_rows};
use crate::protocol::stage::{
    Done, Halt, Next, Out, PushKey, Route, StageError, StageMessage, State, Step, StepKind,
};

#[derive(Clone, Debug)]
struct Member {
    hop: Hop,
    tally: Tally,
    said: Promises,
    /// Halted at the current epoch and known by what it holds.
    is_ready: bool,
    /// Star: rows that it gave back in this epoch, and rows that it was given.
    outs: u32,
    steps: u32,
}

/// One session at its head.
#[derive(Clone, Debug)]
pub struct Chain {
    layers: u16,
    shape: Shape,
    chunk_rows: u32,
    secret: [u8; 32],
    epoch: u32,
    is_routed: bool,
    members: Vec<Member>,
    /// Links that broke once; a second time the stage behind is out.
    torn: BTreeSet<(HopId, HopId)>,
    log: Log,
    /// Positions whose results were given back, and the last of those asked for.
    answered: u32,
    seq: u32,
}

impl Chain {
    /// A session over `layers` layers with rows of `row_bytes`. `secret` is random: the keys that
    /// stages show each other are made of it.
    #[must_use]
    pub const fn new(layers: u16, row_bytes: usize, shape: Shape, secret: [u8; 32]) -> Self {
        Self {
            layers,
            shape,
            chunk_rows: CHUNK_ROWS_MAX,
            secret,
            epoch: 1,
            is_routed: false,
            members: Vec::new(),
            torn: BTreeSet::new(),
            log: Log::new(row_bytes),
            answered: 0,
            seq: 0,
        }
    }

    /// Gives the first stage at most so many rows at a time, from 1 on; at first
    /// [`CHUNK_ROWS_MAX`].
    #[must_use]
    pub fn in_chunks_of(mut self, rows: u32) -> Self {
        self.chunk_rows = rows.max(1);
        self
    }

    /// Rows that were asked for, from position 0.
    #[must_use]
    pub fn asked_rows(&self, end: u32) -> Bytes {
        self.log.read(0, end)
    }
    /// How many routes there were: 1 without a loss.
    #[must_use]
    pub const fn epoch(&self) -> u32 {
        self.epoch
    }
    /// Positions asked for so far.
    #[must_use]
    pub fn asked(&self) -> u32 {
        self.log.length()
    }
    /// True while rows that were asked for have no result.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.answered < self.asked()
    }
    /// True when nothing that was asked of any stage is undone.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        !self.is_waiting() && self.members.iter().all(|member| member.tally.is_idle())
    }
    /// The stages, in the order of their layers.
    pub fn hops(&self) -> impl Iterator<Item = &Hop> {
        self.members.iter().map(|member| &member.hop)
    }
    /// What a stage computed, by our own count.
    #[must_use]
    pub fn rows(&self, id: HopId) -> Option<Rows> {
        let member = self.members.iter().find(|member| member.hop.id == id);
        member.map(|member| member.tally.rows())
    }
    /// What a stage said of the rows that it computed.
    #[must_use]
    pub fn promises(&self, id: HopId) -> Option<&Promises> {
        let member = self.members.iter().find(|member| member.hop.id == id);
        member.map(|member| &member.said)
    }
    /// Ranges of layers that nobody serves.
    #[must_use]
    pub fn missing(&self) -> Vec<(u16, u16)> {
        let mut missing = Vec::new();
        let mut at = 0;
        for member in &self.members {
            if member.hop.first > at {
                missing.push((at, member.hop.first));
            }
            at = at.max(member.hop.end);
        }
        if at < self.layers {
            missing.push((at, self.layers));
        }
        missing
    }

    /// A stage takes a place; false, and nothing changed, when its layers are not missing.
    pub fn join(&mut self, hop: Hop, effects: &mut Vec<ChainEffect>) -> bool {
        let fits = |(first, end): &(u16, u16)| hop.first >= *first && hop.end <= *end;
        if hop.first >= hop.end || !self.missing().iter().any(fits) {
            return false;
        }
        let at = self
            .members
            .partition_point(|member| member.hop.first < hop.first);
        let member = Member {
            hop,
            tally: Tally::default(),
            said: Promises::default(),
            // It is new: it holds nothing, and its STATE needs no waiting for.
            is_ready: true,
            outs: 0,
            steps: 0,
        };
        self.members.insert(at, member);
        effects.push(self.halt(hop.id));
        self.route_if_ready(effects);
        true
    }

    /// Asks for rows of positions from `pos` on: `pos` at most [`Self::asked`], and what was asked
    /// behind it is taken back. Everything asked before must be answered. False, and nothing
    /// changed, when it does not fit.
    pub fn ask(
        &mut self,
        pos: u32,
        rows: &Bytes,
        kind: StepKind,
        effects: &mut Vec<ChainEffect>,
    ) -> bool {
        if self.is_waiting() || rows.is_empty() || !self.log.put(pos, rows) {
            return false;
        }
        self.answered = pos;
        let n = self.log.length().saturating_sub(pos);
        for member in &mut self.members {
            member.tally.expect(pos, n, kind);
        }
        if self.is_routed {
            self.send_from(pos, kind, effects);
        }
        true
    }

    /// A message came from a stage.
    pub fn heard(
        &mut self,
        id: HopId,
        message: StageMessage,
        rows: Bytes,
        effects: &mut Vec<ChainEffect>,
    ) {
        let Some(at) = self.members.iter().position(|m| m.hop.id == id) else {
            return;
        };
        match message {
            StageMessage::Done(done) => self.done(at, done, effects),
            StageMessage::State(state) => self.state(at, state, effects),
            StageMessage::Out(out) => self.out(at, out, rows, effects),
            StageMessage::Error { epoch, error } => self.refused(at, epoch, error, effects),
            _ => self.lose(
                id,
                Loss::Faulty("a message that stages do not send"),
                effects,
            ),
        }
    }

    /// A stage is gone, or is to go.
    pub fn lose(&mut self, id: HopId, why: Loss, effects: &mut Vec<ChainEffect>) {
        if let Some(at) = self.members.iter().position(|m| m.hop.id == id) {
            let lost = self.members.remove(at);
            effects.push(ChainEffect::Dismiss(id, lost.tally.rows(), why));
            self.resume(effects);
        }
    }

    /// A stage computed something else than its layers: it goes, and those behind it, whose rows were
    /// made of its own, compute all of them again.
    pub fn condemn(&mut self, id: HopId, why: &'static str, effects: &mut Vec<ChainEffect>) {
        let at = self.members.iter().position(|m| m.hop.id == id);
        for member in self
            .members
            .iter_mut()
            .skip(at.map_or(usize::MAX, |at| at + 1))
        {
            member.tally.forget();
        }
        self.lose(id, Loss::Faulty(why), effects);
    }

    /// Halts everyone and routes anew: after a loss, and after rows were lost between two who live.
    pub fn resume(&mut self, effects: &mut Vec<ChainEffect>) {
        self.epoch = self.epoch.saturating_add(1);
        self.is_routed = false;
        let ids: Vec<HopId> = self.hops().map(|hop| hop.id).collect();
        for member in &mut self.members {
            member.is_ready = false;
        }
        effects.extend(ids.into_iter().map(|id| self.halt(id)));
    }

    /// While nothing comes: the first stage that has not done what the one before it has. None when
    /// nothing is awaited from any.
    #[must_use]
    pub fn suspect(&self) -> Option<HopId> {
        let is_late = |member: &&Member| {
            if self.is_routed {
                !member.tally.is_idle()
            } else {
                !member.is_ready
            }
        };
        let late = self.members.iter().find(is_late);
        // All have computed and the result did not come: the last one has it.
        let silent = (self.is_routed && self.is_waiting()).then(|| self.members.last());
        late.or(silent.flatten()).map(|member| member.hop.id)
    }

    fn refused(
        &mut self,
        at: usize,
        epoch: u32,
        error: StageError,
        effects: &mut Vec<ChainEffect>,
    ) {
        let id = |at: usize| self.members.get(at).map(|member| member.hop.id);
        let lost = match error {
            // Of a route that is over, or that is mended already.
            StageError::Gap | StageError::NextLost if epoch != self.epoch => return,
            StageError::Gap => return self.resume(effects),
            StageError::NextLost => {
                let (Some(from), Some(to)) = (id(at), id(at + 1)) else {
                    return;
                };
                if self.torn.insert((from, to)) {
                    // It may be the one who says so that is going: whoever is halted answers.
                    return self.resume(effects);
                }
                Some((to, Loss::Away("out of reach of the stage before")))
            }
            StageError::Malformed => id(at).map(|id| (id, Loss::Faulty(error.as_str()))),
            error => id(at).map(|id| (id, Loss::Away(error.as_str()))),
        };
        if let Some((id, why)) = lost {
            self.lose(id, why, effects);
        }
    }

    fn done(&mut self, at: usize, done: Done, effects: &mut Vec<ChainEffect>) {
        let Some(member) = self.members.get_mut(at) else {
            return;
        };
        if !member.tally.done(done.pos, done.n) {
            let id = member.hop.id;
            return self.lose(
                id,
                Loss::Faulty("says to have computed what was not asked"),
                effects,
            );
        }
        member.said.add(&done);
    }

    fn state(&mut self, at: usize, state: State, effects: &mut Vec<ChainEffect>) {
        let epoch = self.epoch;
        let Some(member) = self.members.get_mut(at) else {
            return;
        };
        if state.epoch != epoch {
            return;
        }
        if state.length != member.tally.cursor() {
            let id = member.hop.id;
            return self.lose(
                id,
                Loss::Faulty("remembers other than it computed"),
                effects,
            );
        }
        member.is_ready = true;
        self.route_if_ready(effects);
    }

    fn out(&mut self, at: usize, out: Out, rows: Bytes, effects: &mut Vec<ChainEffect>) {
        let (shape, row_bytes) = (self.shape, self.log.row_bytes());
        let is_last = at + 1 == self.members.len();
        let Some(member) = self.members.get_mut(at) else {
            return;
        };
        if out.epoch != self.epoch || !self.is_routed || out.seq < member.outs {
            return;
        }
        if out.seq > member.outs {
            return self.resume(effects);
        }
        let id = member.hop.id;
        let end = out.pos.saturating_add(out.n);
        let sized = index(out.rows).checked_mul(row_bytes) == Some(rows.len());
        if !sized || end > member.tally.cursor() || (shape == Shape::Push && !is_last) {
            return self.lose(
                id,
                Loss::Faulty("sent results that were not asked"),
                effects,
            );
        }
        member.outs = member.outs.saturating_add(1);
        if !is_last {
            return self.pass_on(at + 1, out, rows, effects);
        }
        if out.pos > self.answered {
            return self.lose(id, Loss::Faulty("left out a result"), effects);
        }
        if end > self.answered {
            self.answered = end;
            if end == self.asked() {
                let last = rows.len().saturating_sub(row_bytes);
                effects.push(ChainEffect::Answer(rows.slice(last..)));
            }
        }
    }

    /// Star: what one stage gave is the next one's step.
    fn pass_on(&mut self, at: usize, out: Out, rows: Bytes, effects: &mut Vec<ChainEffect>) {
        let Some(member) = self.members.get_mut(at) else {
            return;
        };
        let step = Step {
            epoch: out.epoch,
            seq: member.steps,
            pos: out.pos,
            n: out.n,
            kind: out.kind,
        };
        member.steps = member.steps.saturating_add(1);
        effects.push(ChainEffect::Send(
            member.hop.id,
            StageMessage::Step(step),
            rows,
        ));
    }

    /// Everyone halted and the layers complete: tells each its next, and gives the first its rows.
    fn route_if_ready(&mut self, effects: &mut Vec<ChainEffect>) {
        let is_ready = self.members.iter().all(|member| member.is_ready);
        if self.is_routed || !is_ready || !self.missing().is_empty() {
            return;
        }
        self.is_routed = true;
        self.seq = 0;
        let asked = self.asked();
        let first_holds = self.members.first().map_or(0, |member| member.tally.held());
        let answered = self.answered;
        let nexts: Vec<(Next, u32)> = self
            .members
            .iter()
            .skip(1)
            .map(|member| {
                let hop = member.hop;
                let next = match self.shape {
                    Shape::Star => Next::HeadAll,
                    Shape::Push => Next::Stage {
                        peer: hop.peer,
                        session: hop.session,
                        key: self.key(hop.id),
                    },
                };
                (next, member.tally.held())
            })
            .chain([(Next::HeadLast, answered)])
            .collect();
        for (member, (next, held)) in self.members.iter_mut().zip(nexts) {
            member.tally.restart(asked);
            member.said.truncate(member.tally.cursor());
            (member.outs, member.steps) = (0, 0);
            let route = Route {
                epoch: self.epoch,
                next,
                held,
                keep: member.tally.cursor(),
            };
            let route = StageMessage::Route(route);
            effects.push(ChainEffect::Send(member.hop.id, route, Bytes::new()));
        }
        self.send_from(first_holds, StepKind::Prefill, effects);
    }

    /// Gives the first stage the rows from `pos` on.
    fn send_from(&mut self, mut pos: u32, kind: StepKind, effects: &mut Vec<ChainEffect>) {
        let Some(first) = self.members.first().map(|member| member.hop.id) else {
            return;
        };
        let end = self.asked();
        let chunk = self.chunk_rows.min(message_rows(self.log.row_bytes()));
        while pos < end {
            let n = chunk.min(end - pos);
            let step = Step {
                epoch: self.epoch,
                seq: self.seq,
                pos,
                n,
                kind,
            };
            self.seq = self.seq.saturating_add(1);
            let rows = self.log.read(pos, pos + n);
            effects.push(ChainEffect::Send(first, StageMessage::Step(step), rows));
            pos += n;
        }
    }

    fn halt(&self, id: HopId) -> ChainEffect {
        let halt = Halt {
            epoch: self.epoch,
            key: self.key(id),
        };
        ChainEffect::Send(id, StageMessage::Halt(halt), Bytes::new())
    }

    /// The key that whoever pushes to this stage in this epoch shows it.
    fn key(&self, id: HopId) -> PushKey {
        let mut hash = Sha256::new();
        hash.update(self.secret);
        hash.update(self.epoch.to_be_bytes());
        hash.update(id.0.to_be_bytes());
        let hash: [u8; 32] = hash.finalize().into();
        PushKey(hash.first_chunk::<16>().copied().unwrap_or_default())
    }
}
