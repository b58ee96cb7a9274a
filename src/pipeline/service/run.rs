//! One session from its first HALT to its end: asks the machine, computes, has it paid, sends.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

use super::push::Pusher;
use super::{Cover, End, HeadSide, Reserved};
use crate::pipeline::rows;
use crate::pipeline::session::{
    CHUNK_ROWS_MAX, StageEffect, StageMachine, StageRefusal, StageVerdict, Work, index,
};
use crate::protocol::stage::{
    Halt, Next, Push, Route, StageDecoder, StageError, StageMessage, Step, WireFormat,
};
use crate::seller::stage::VOUCHER_PATIENCE;
use crate::types::Usage;

/// Messages of the head that wait while rows are computed; its pings are answered before they are
/// counted. More are left on the wire.
const BACKLOG_MAX: usize = 64;

impl Reserved {
    /// Serves the session to its end.
    pub async fn run(self, head: impl HeadSide) -> End {
        let hidden = self.shared.worker.config().hidden;
        let row_bytes = self.open.wire.row_bytes(hidden);
        let (failed, failures) = mpsc::channel(1);
        let mut running = Running {
            machine: StageMachine::new(self.open.positions_max, row_bytes),
            layers: u64::from(self.open.end.saturating_sub(self.open.first)),
            hidden,
            wire: self.open.wire,
            mouth: Mouth {
                head,
                decoder: StageDecoder::default(),
                backlog: VecDeque::new(),
            },
            early: None,
            pusher: None,
            failed,
            reserved: self,
        };
        match running.serve(failures).await {
            Err(end) => end,
            Ok(never) => match never {},
        }
    }
}

/// The head's stream, read whole messages at a time.
struct Mouth<H> {
    head: H,
    decoder: StageDecoder,
    backlog: VecDeque<(StageMessage, Bytes)>,
}

impl<H: HeadSide> Mouth<H> {
    /// The head's next message; none when a ping's answer is gathered instead, to be flushed.
    /// Cancel safe.
    async fn next(&mut self) -> Result<Option<(StageMessage, Bytes)>, End> {
        loop {
            if let Some(message) = self.backlog.pop_front() {
                return Ok(Some(message));
            }
            if self.read().await? {
                return Ok(None);
            }
        }
    }

    /// Reads a piece into the backlog. True when it held a ping: the answer is gathered, to be
    /// flushed. Cancel safe.
    async fn read(&mut self) -> Result<bool, End> {
        let piece = self.head.read().await?;
        self.decoder.push(&piece);
        let mut pinged = false;
        loop {
            match self.decoder.next_message() {
                Ok(None) => break,
                Ok(Some((StageMessage::Ping(n), _))) => {
                    pinged = true;
                    self.put(StageMessage::Pong(n), &Bytes::new());
                }
                Ok(Some(message)) => self.backlog.push_back(message),
                Err(_) => return Err(End::Failed("malformed")),
            }
        }
        Ok(pinged)
    }

    /// Answers pings until that is done.
    async fn meanwhile<T>(&mut self, doing: impl Future<Output = T>) -> Result<T, End> {
        tokio::pin!(doing);
        loop {
            let has_room = self.backlog.len() < BACKLOG_MAX;
            tokio::select! {
                done = &mut doing => return Ok(done),
                pinged = self.read(), if has_room => if pinged? {
                    self.head.flush().await?;
                },
            }
        }
    }

    fn put(&mut self, message: StageMessage, rows: &Bytes) {
        let mut bytes = BytesMut::new();
        message.encode_into(rows, &mut bytes);
        self.head.put(&bytes);
    }
}

enum Never {}

struct Running<H> {
    reserved: Reserved,
    machine: StageMachine,
    layers: u64,
    hidden: usize,
    wire: WireFormat,
    mouth: Mouth<H>,
    /// A pushed step that waits for its ROUTE; while there is one no other is taken.
    early: Option<(Step, Bytes)>,
    pusher: Option<Pusher>,
    failed: mpsc::Sender<u32>,
}

impl<H: HeadSide> Running<H> {
    async fn serve(&mut self, mut failures: mpsc::Receiver<u32>) -> Result<Never, End> {
        loop {
            if self.machine.route().is_some()
                && let Some((step, rows)) = self.early.take()
            {
                self.step(step, rows, true).await?;
                continue;
            }
            tokio::select! {
                biased;
                message = self.mouth.next() => {
                    match message? {
                        Some((message, rows)) => self.heard(message, rows).await?,
                        None => self.mouth.head.flush().await?,
                    }
                }
                Some(epoch) = failures.recv() => {
                    self.complain(epoch, StageError::NextLost).await?;
                }
                Some((step, rows)) = self.reserved.pushed.recv(), if self.early.is_none() => {
                    self.step(step, rows, true).await?;
                }
            }
        }
    }

    async fn heard(&mut self, message: StageMessage, rows: Bytes) -> Result<(), End> {
        match message {
            StageMessage::Halt(halt) => self.halt(halt).await,
            StageMessage::Route(route) => self.route(route).await,
            StageMessage::Step(step) => self.step(step, rows, false).await,
            StageMessage::Show { seq, pos, n } => {
                let shown = self.machine.show(seq, pos, n);
                self.send(shown.into_iter().collect()).await
            }
            StageMessage::Meet { peer, addresses } => {
                self.reserved.shared.peers.meet(&peer, &addresses);
                Ok(())
            }
            _ => Err(End::Failed("malformed")),
        }
    }

    async fn halt(&mut self, halt: Halt) -> Result<(), End> {
        let state = self.machine.halt(halt);
        if state.is_some() {
            self.pusher = None;
            self.early = None;
            self.reserved.key.send_replace(Some((halt.epoch, halt.key)));
        }
        self.send(state.into_iter().collect()).await
    }

    async fn route(&mut self, route: Route) -> Result<(), End> {
        let effects = self.machine.route_to(route);
        if let (Some(route), Next::Stage { peer, session, key }) =
            (self.machine.route(), route.next)
        {
            let push = Push {
                session,
                epoch: route.epoch,
                key,
            };
            let shared = &self.reserved.shared;
            let peers = std::sync::Arc::clone(&shared.peers);
            let failed = self.failed.clone();
            let chunks = index(self.reserved.open.positions_max / CHUNK_ROWS_MAX);
            let pusher = Pusher::start(&shared.tasks, peers, peer, push, chunks, failed);
            self.pusher = Some(pusher);
        }
        self.send(effects).await
    }

    async fn step(&mut self, step: Step, rows: Bytes, is_pushed: bool) -> Result<(), End> {
        match self.machine.step(step, &rows) {
            // Whoever repeats itself to a slow next stage fills no queue.
            Ok(StageVerdict::Again(_)) if self.pusher.as_ref().is_some_and(|p| !p.has_room()) => {
                Ok(())
            }
            Ok(StageVerdict::Again(effects)) => self.send(effects).await,
            Ok(StageVerdict::Compute(work)) => self.compute(work, &rows).await,
            Err(StageRefusal::Stale) => Ok(()),
            Err(StageRefusal::Early) if is_pushed => {
                self.early = Some((step, rows));
                Ok(())
            }
            Err(StageRefusal::Early | StageRefusal::Gap) => {
                self.complain(self.machine.epoch(), StageError::Gap).await
            }
            Err(StageRefusal::Malformed) => {
                self.complain(self.machine.epoch(), StageError::Malformed)
                    .await?;
                Err(End::Failed("malformed"))
            }
        }
    }

    async fn compute(&mut self, work: Work, bytes: &Bytes) -> Result<(), End> {
        let numbers = rows::from_bytes(bytes, self.hidden, self.wire);
        let numbers = numbers.ok_or(End::Failed("malformed"))?;
        let (lease, mouth) = (&mut self.reserved.lease, &mut self.mouth);
        let forward = lease.forward(index(work.pos()), numbers, work.kind());
        let result = mouth.meanwhile(forward).await?;
        let numbers = match result {
            Ok(numbers) => numbers,
            Err(error) => {
                tracing::warn!(%error, "rows of a stage session were not computed");
                self.complain(self.machine.epoch(), StageError::Failed)
                    .await?;
                return Err(End::Failed("engine"));
            }
        };
        let results = rows::to_bytes(&numbers, self.hidden, self.wire);
        let effects = self.machine.computed(work, &results);
        let effects = effects.ok_or(End::Failed("engine"))?;
        self.cover().await?;
        self.send(effects).await
    }

    /// Returns when all that was computed is covered.
    async fn cover(&mut self) -> Result<(), End> {
        let usage = self.usage();
        while let Cover::Awaited { arrived, missing } = self.mouth.head.state(usage)? {
            self.mouth.head.flush().await?;
            let paid = tokio::time::timeout(VOUCHER_PATIENCE, arrived);
            let paid = self.mouth.meanwhile(paid).await?;
            paid.map_err(|_| End::Unpaid(missing))?;
        }
        Ok(())
    }

    /// All block-tokens so far.
    fn usage(&self) -> Usage {
        let rows = self.machine.rows();
        Usage {
            input: rows.prefill.saturating_mul(self.layers),
            output: rows.decode.saturating_mul(self.layers),
            ..Usage::default()
        }
    }

    async fn complain(&mut self, epoch: u32, error: StageError) -> Result<(), End> {
        let message = StageMessage::Error { epoch, error };
        self.mouth.put(message, &Bytes::new());
        self.mouth.head.flush().await
    }

    async fn send(&mut self, effects: Vec<StageEffect>) -> Result<(), End> {
        let mut for_head = false;
        for effect in effects {
            match effect {
                StageEffect::Head(message, rows) => {
                    self.mouth.put(message, &rows);
                    for_head = true;
                }
                StageEffect::Next(step, rows) => {
                    if let Some(pusher) = &self.pusher {
                        pusher.send(step, rows);
                    }
                }
            }
        }
        if for_head {
            self.mouth.head.flush().await
        } else {
            Ok(())
        }
    }
}
