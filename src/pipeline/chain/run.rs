//! One session at its head: opens stages, passes messages, notices losses, has places taken.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::audit::Verdict;
use super::auditing::Gathering;
use super::find::Finder;
use super::{Ask, Heard, Opened, Order, PATIENCE_ANSWERS, PATIENCE_MAX, Want};
use crate::pipeline::error::PipelineError;
use crate::pipeline::patron::Patron;
use crate::pipeline::rows;
use crate::pipeline::session::{Chain, ChainEffect, Hop, HopId, Loss, index};
use crate::pipeline::trust::Part;
use crate::pipeline::trust::pace::Laps;
use crate::protocol::stage::{Next, StageMessage, StepKind};
use crate::types::PeerId;

/// Messages of all stages that wait for the session.
const HEARD_MAX: usize = 64;
/// Silence is looked at this often within a patience.
pub(super) const LOOKS: u32 = 6;
pub(super) type Opening = BoxFuture<'static, (Want, Result<Opened, PipelineError>)>;
type Reply = oneshot::Sender<Result<Vec<f32>, PipelineError>>;

pub(super) struct Actor {
    pub(super) finder: Finder,
    pub(super) patron: Patron,
    pub(super) positions_max: u32,
    pub(super) chain: Chain,
    pub(super) hops: BTreeMap<HopId, Open>,
    /// Who left, and until when nobody asks it again; none for the whole session.
    pub(super) dismissed: BTreeMap<PeerId, Option<Instant>>,
    /// Sessions that ended before they had their place.
    pub(super) stillborn: BTreeSet<HopId>,
    pub(super) opening: FuturesUnordered<Opening>,
    /// Places that somebody is being found for.
    pub(super) sought: BTreeSet<u16>,
    pub(super) heard: mpsc::Sender<Heard>,
    pub(super) next_id: u64,
    /// Since when nothing came of all trying: layers were missing, and no row went further since.
    pub(super) struggling_since: Option<Instant>,
    /// The last layer that was ever reached, and the last row that went through all of them.
    pub(super) reached: (u16, u32),
    last_progress: Instant,
    /// When this task wanted to run again at the latest.
    due: Option<Instant>,
    /// Why the last search or stage failed.
    pub(super) why: PipelineError,
    waiting: Option<Reply>,
    laps: Laps<HopId>,
    /// Makes the next best ready, for the stages of this route.
    pub(super) sparing: Option<BoxFuture<'static, ()>>,
    pub(super) spared_epoch: u32,
    /// The audit whose rows are being shown.
    pub(super) gathering: Option<Gathering>,
    pub(super) next_show: u32,
    /// The audit that is being judged.
    pub(super) judging: Option<BoxFuture<'static, (HopId, PeerId, Verdict)>>,
}

pub(super) struct Open {
    pub(super) peer: PeerId,
    pub(super) addresses: Vec<Vec<u8>>,
    pub(super) orders: mpsc::Sender<Order>,
    pub(super) last_heard: Instant,
    /// When it was pinged, if it has said nothing since.
    pub(super) pinged: Option<Instant>,
}

impl Actor {
    pub fn new(positions_max: u32, finder: Finder, patron: Patron) -> Self {
        let settings = &finder.settings;
        let row_bytes = settings.wire.row_bytes(settings.hidden);
        let secret: [u8; 32] = rand::random();
        // Replaced when the session runs; nothing is opened before.
        let (heard, _) = mpsc::channel(1);
        Self {
            chain: Chain::new(settings.layers, row_bytes, settings.shape, secret)
                .in_chunks_of(settings.chunk_rows),
            finder,
            patron,
            positions_max,
            hops: BTreeMap::new(),
            dismissed: BTreeMap::new(),
            stillborn: BTreeSet::new(),
            opening: FuturesUnordered::new(),
            sought: BTreeSet::new(),
            heard,
            next_id: 0,
            struggling_since: None,
            reached: (0, 0),
            last_progress: Instant::now(),
            due: None,
            why: PipelineError::Lost("no stage was found".to_owned()),
            waiting: None,
            laps: Laps::new(),
            sparing: None,
            spared_epoch: 0,
            gathering: None,
            next_show: 0,
            judging: None,
        }
    }

    /// Serves the session until its caller drops it, or it cannot go on. `ready` hears once whether
    /// every layer was found.
    pub async fn run(
        mut self,
        mut asks: mpsc::Receiver<Ask>,
        ready: oneshot::Sender<Result<(), PipelineError>>,
    ) {
        let (heard, mut ears) = mpsc::channel(HEARD_MAX);
        self.heard = heard;
        let mut ready = Some(ready);
        loop {
            if let Err(error) = self.seek() {
                tracing::warn!(%error, "a pipeline session ended");
                if let Some(ready) = ready.take() {
                    let _ = ready.send(Err(error));
                } else if let Some(reply) = self.waiting.take() {
                    let _ = reply.send(Err(error));
                }
                return;
            }
            if self.chain.missing().is_empty()
                && let Some(ready) = ready.take()
                && ready.send(Ok(())).is_err()
            {
                return;
            }
            self.spare();
            let look = self.patience() / LOOKS;
            let is_busy = self.is_busy() || self.gathering.is_some();
            let due = Instant::now() + look;
            self.due = is_busy.then_some(due);
            tokio::select! {
                ask = asks.recv(), if ready.is_none() && self.waiting.is_none() => match ask {
                    Some(ask) => self.ask(ask),
                    None => break,
                },
                Some((id, what)) = ears.recv() => self.heard(id, what),
                Some((want, opened)) = self.opening.next() => self.opened(&want, opened),
                () = tokio::time::sleep_until(due), if is_busy => self.look(),
                () = gone(&mut self.waiting) => break,
                (id, peer, verdict) = done(&mut self.judging) => self.judged(id, peer, verdict),
                () = done(&mut self.sparing) => self.sparing = None,
            }
            self.excuse();
        }
        self.leave_audit();
        self.close(&mut ears).await;
    }

    /// How long a stage may say nothing.
    fn patience(&self) -> Duration {
        let slow = self.finder.trust.slowest_answer() * PATIENCE_ANSWERS;
        self.finder.settings.patience.max(slow.min(PATIENCE_MAX))
    }

    /// Time in which this task did not run speaks against no stage: on a machine that stood still they
    /// could not speak either, and what they said is still to be read.
    fn excuse(&mut self) {
        let Some(due) = self.due.take() else { return };
        let now = Instant::now();
        let slept = now.saturating_duration_since(due);
        if slept < self.patience() / LOOKS {
            return;
        }
        let later = |at: Instant| (at + slept).min(now);
        for open in self.hops.values_mut() {
            open.last_heard = later(open.last_heard);
            open.pinged = open.pinged.map(later);
        }
        self.last_progress = later(self.last_progress);
    }

    /// True while something is awaited of a stage, or of one that is being found.
    fn is_busy(&self) -> bool {
        !self.chain.is_settled() || !self.chain.missing().is_empty()
    }

    /// The caller is done. What stages have computed and said is still counted, so that the books
    /// agree; what they never say is not waited for.
    async fn close(&mut self, ears: &mut mpsc::Receiver<Heard>) {
        let until = Instant::now() + self.patience();
        while !self.chain.is_settled() && self.chain.missing().is_empty() {
            match tokio::time::timeout_at(until, ears.recv()).await {
                Ok(Some((id, what))) => self.heard(id, what),
                _ => return,
            }
        }
    }

    fn ask(&mut self, ask: Ask) {
        let refuse = |reply: Reply, error| {
            let _ = reply.send(Err(error));
        };
        let hidden = self.finder.settings.hidden.max(1);
        let count = ask.rows.len() / hidden;
        let length = index(self.chain.asked());
        let end = ask.pos.saturating_add(count);
        if count == 0 || !ask.rows.len().is_multiple_of(hidden) {
            let why = format!("{} numbers are no whole rows", ask.rows.len());
            return refuse(ask.reply, PipelineError::Invalid(why));
        }
        if ask.pos > length {
            let pos = ask.pos;
            return refuse(ask.reply, PipelineError::Gap { pos, length });
        }
        if end > index(self.positions_max) {
            let most = index(self.positions_max);
            return refuse(ask.reply, PipelineError::TooLong { wanted: end, most });
        }
        let bytes = rows::to_bytes(&ask.rows, hidden, self.finder.settings.wire);
        let now = Instant::now();
        self.last_progress = now;
        for open in self.hops.values_mut() {
            (open.last_heard, open.pinged) = (now, None);
        }
        self.waiting = Some(ask.reply);
        let mut effects = Vec::new();
        let pos = u32::try_from(ask.pos).unwrap_or(u32::MAX);
        self.reached.1 = self.reached.1.min(pos);
        self.void_audit(pos);
        if count == 1 && ask.kind == StepKind::Decode {
            self.laps.start(pos, now.into_std());
        } else {
            self.laps.void();
        }
        if !self.chain.ask(pos, &bytes, ask.kind, &mut effects)
            && let Some(reply) = self.waiting.take()
        {
            let why = "rows before these have no result yet".to_owned();
            refuse(reply, PipelineError::Invalid(why));
        }
        self.act(effects);
    }

    fn heard(&mut self, id: HopId, what: Result<(StageMessage, Bytes), String>) {
        self.excuse();
        let mut effects = Vec::new();
        match what {
            Ok((message, rows)) => {
                if let Some(open) = self.hops.get_mut(&id) {
                    let now = Instant::now();
                    open.last_heard = now;
                    if let Some(pinged) = open.pinged.take() {
                        self.finder
                            .trust
                            .answered(now.saturating_duration_since(pinged));
                    }
                }
                let mut is_done = false;
                match &message {
                    StageMessage::Pong(_) => return,
                    StageMessage::Out(out) if out.epoch == 0 => {
                        return self.shown(id, out, rows);
                    }
                    StageMessage::Done(done) => {
                        is_done = true;
                        let now = Instant::now().into_std();
                        self.laps.done(id, done.pos, done.n, now);
                        self.progress(id, done.pos.saturating_add(done.n));
                    }
                    _ => {}
                }
                self.chain.heard(id, message, rows, &mut effects);
                self.last_progress = Instant::now();
                if is_done && let Some(rows) = self.chain.rows(id) {
                    self.tell(id, Order::Owe(rows));
                }
            }
            Err(why) => {
                if self.hops.contains_key(&id) {
                    self.why = PipelineError::Lost(why);
                } else {
                    self.stillborn.insert(id);
                }
                let why = Loss::Away("its stream ended");
                self.chain.lose(id, why, &mut effects);
            }
        }
        self.act(effects);
    }

    /// Pings who is silent, gives up who stays so.
    fn look(&mut self) {
        self.excuse();
        let now = Instant::now();
        self.look_at_audit(now);
        if !self.is_busy() {
            return;
        }
        let mut effects = Vec::new();
        let patience = self.patience();
        let silent = |open: &Open| now.saturating_duration_since(open.last_heard);
        let dead: Vec<HopId> = self
            .hops
            .iter()
            .filter(|(_, open)| silent(open) >= patience)
            .map(|(id, _)| *id)
            .collect();
        for open in self.hops.values_mut() {
            if silent(open) >= patience / LOOKS {
                open.pinged.get_or_insert(now);
                let ping = StageMessage::Ping(0);
                let _ = open.orders.try_send(Order::Say(ping, Bytes::new()));
            }
        }
        for id in dead {
            let why = Loss::Away("it is silent");
            self.chain.lose(id, why, &mut effects);
        }
        if now.saturating_duration_since(self.last_progress) >= self.finder.settings.stall {
            self.last_progress = now;
            if let Some(id) = self.chain.suspect() {
                let why = Loss::Away("it computes nothing");
                self.chain.lose(id, why, &mut effects);
            }
        }
        self.act(effects);
    }

    pub(super) fn act(&mut self, effects: Vec<ChainEffect>) {
        for effect in effects {
            match effect {
                ChainEffect::Send(id, message, rows) => {
                    self.introduce(id, &message);
                    self.tell(id, Order::Say(message, rows));
                }
                ChainEffect::Dismiss(id, rows, why) => {
                    self.tell(id, Order::Owe(rows));
                    if let Some(open) = self.hops.remove(&id) {
                        tracing::info!(peer = %open.peer, why = why.as_str(), "a stage left a session");
                        let until = match why {
                            Loss::Away(_) => Some(Instant::now() + self.finder.settings.pardon),
                            Loss::Faulty(_) => None,
                        };
                        self.patron.leave(&open.peer);
                        self.dismissed.insert(open.peer, until);
                    }
                    self.laps.void();
                }
                ChainEffect::Answer(row) => {
                    let row = rows::from_bytes(
                        &row,
                        self.finder.settings.hidden,
                        self.finder.settings.wire,
                    );
                    if let Some(reply) = self.waiting.take() {
                        let torn = || PipelineError::Failed("a torn row".to_owned());
                        let _ = reply.send(row.ok_or_else(torn));
                    }
                    self.measure();
                    self.audit_some();
                }
            }
        }
    }

    /// A row came back: what each stage took for it is remembered.
    fn measure(&mut self) {
        let hops: Vec<Hop> = self.chain.hops().copied().collect();
        let ids: Vec<HopId> = hops.iter().map(|hop| hop.id).collect();
        let now = Instant::now().into_std();
        for (hop, (_, took)) in hops.iter().zip(self.laps.finish(&ids)) {
            let part = Part {
                peer: hop.peer,
                first: hop.first,
                end: hop.end,
            };
            self.finder.trust.measured(part, took, now);
        }
    }

    /// Who that is.
    pub(super) fn peer_of(&self, id: HopId) -> Option<PeerId> {
        self.hops.get(&id).map(|open| open.peer)
    }

    /// Says where the next stage is before a route names it.
    fn introduce(&self, id: HopId, message: &StageMessage) {
        let StageMessage::Route(route) = message else {
            return;
        };
        let Next::Stage { peer, .. } = route.next else {
            return;
        };
        if let Some(next) = self.hops.values().find(|open| open.peer == peer) {
            let addresses = next.addresses.clone();
            let meet = StageMessage::Meet { peer, addresses };
            self.tell(id, Order::Say(meet, Bytes::new()));
        }
    }

    pub(super) fn tell(&self, id: HopId, order: Order) {
        if let Some(open) = self.hops.get(&id) {
            // One that is gone says so itself.
            let _ = open.orders.try_send(order);
        }
    }
}

/// Resolves when that is done.
async fn done<T>(doing: &mut Option<BoxFuture<'static, T>>) -> T {
    match doing {
        Some(doing) => doing.await,
        None => std::future::pending().await,
    }
}

/// Resolves when whoever waits for the answer has gone.
async fn gone(waiting: &mut Option<Reply>) {
    match waiting {
        Some(reply) => reply.closed().await,
        None => std::future::pending().await,
    }
}
