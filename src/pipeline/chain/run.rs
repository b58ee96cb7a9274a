//! One session at its head: opens stages, passes messages, notices losses, has places taken.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::audit::{Evidence, Verdict};
use super::{Ask, Heard, Opened, Order, Settings, Source, Want};
use crate::pipeline::error::PipelineError;
use crate::pipeline::rows;
use crate::pipeline::session::{Chain, ChainEffect, Hop, HopId, index};
use crate::protocol::stage::{Next, StageMessage, StageSession};
use crate::types::PeerId;

/// Messages of all stages that wait for the session.
const HEARD_MAX: usize = 64;
/// Silence is looked at this often within a patience.
const LOOKS: u32 = 6;
/// Routes of one session: a stage that is lost again and again ends it.
const EPOCHS_MAX: u32 = 1_000;

type Opening = BoxFuture<'static, (Want, Result<Opened, PipelineError>)>;
type Reply = oneshot::Sender<Result<Vec<f32>, PipelineError>>;

pub(super) struct Actor {
    pub(super) settings: Settings,
    positions_max: u32,
    pub(super) source: Arc<dyn Source>,
    pub(super) chain: Chain,
    hops: BTreeMap<HopId, Open>,
    pub(super) dismissed: BTreeSet<PeerId>,
    opening: FuturesUnordered<Opening>,
    /// Places that somebody is being found for.
    sought: BTreeSet<u16>,
    heard: mpsc::Sender<Heard>,
    next_id: u64,
    /// Since when layers are missing.
    missing_since: Option<Instant>,
    last_progress: Instant,
    /// Why the last search or stage failed.
    why: PipelineError,
    waiting: Option<Reply>,
    pub(super) distrusted: Arc<Mutex<BTreeSet<PeerId>>>,
    /// The audit whose rows are being shown.
    pub(super) evidence: Option<Evidence>,
    /// The audit that is being judged.
    pub(super) judging: Option<BoxFuture<'static, (HopId, PeerId, Verdict)>>,
}

struct Open {
    peer: PeerId,
    addresses: Vec<Vec<u8>>,
    orders: mpsc::Sender<Order>,
    last_heard: Instant,
}

impl Actor {
    pub fn new(
        settings: Settings,
        positions_max: u32,
        source: Arc<dyn Source>,
        distrusted: Arc<Mutex<BTreeSet<PeerId>>>,
    ) -> Self {
        let row_bytes = settings.wire.row_bytes(settings.hidden);
        let secret: [u8; 32] = rand::random();
        let dismissed = distrusted.lock().clone();
        // Replaced when the session runs; nothing is opened before.
        let (heard, _) = mpsc::channel(1);
        Self {
            settings,
            positions_max,
            source,
            chain: Chain::new(settings.layers, row_bytes, settings.shape, secret)
                .in_chunks_of(settings.chunk_rows),
            hops: BTreeMap::new(),
            dismissed,
            opening: FuturesUnordered::new(),
            sought: BTreeSet::new(),
            heard,
            next_id: 0,
            missing_since: None,
            last_progress: Instant::now(),
            why: PipelineError::Lost("no stage was found".to_owned()),
            waiting: None,
            distrusted,
            evidence: None,
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
            let look = self.settings.patience / LOOKS;
            let is_busy = self.is_busy();
            tokio::select! {
                ask = asks.recv(), if ready.is_none() && self.waiting.is_none() => match ask {
                    Some(ask) => self.ask(ask),
                    None => break,
                },
                Some((id, what)) = ears.recv() => self.heard(id, what),
                Some((want, opened)) = self.opening.next() => self.opened(&want, opened),
                () = tokio::time::sleep(look), if is_busy => self.look(),
                () = gone(&mut self.waiting) => break,
                (id, peer, verdict) = judged(&mut self.judging) => self.judged(id, peer, verdict),
            }
        }
        self.close(&mut ears).await;
    }

    /// True while something is awaited of a stage, or of one that is being found.
    fn is_busy(&self) -> bool {
        !self.chain.is_settled() || self.missing_since.is_some()
    }

    /// The caller is done. What stages have computed and said is still counted, so that the books
    /// agree; what they never say is not waited for.
    async fn close(&mut self, ears: &mut mpsc::Receiver<Heard>) {
        let until = Instant::now() + self.settings.patience;
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
        let hidden = self.settings.hidden.max(1);
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
        let bytes = rows::to_bytes(&ask.rows, hidden, self.settings.wire);
        let now = Instant::now();
        self.last_progress = now;
        self.hops
            .values_mut()
            .for_each(|open| open.last_heard = now);
        self.waiting = Some(ask.reply);
        let mut effects = Vec::new();
        let pos = u32::try_from(ask.pos).unwrap_or(u32::MAX);
        if !self.chain.ask(pos, &bytes, ask.kind, &mut effects)
            && let Some(reply) = self.waiting.take()
        {
            let why = "rows before these have no result yet".to_owned();
            refuse(reply, PipelineError::Invalid(why));
        }
        self.act(effects);
    }

    fn heard(&mut self, id: HopId, what: Result<(StageMessage, Bytes), String>) {
        let mut effects = Vec::new();
        match what {
            Ok((message, rows)) => {
                if let Some(open) = self.hops.get_mut(&id) {
                    open.last_heard = Instant::now();
                }
                let is_done = matches!(message, StageMessage::Done(_));
                match &message {
                    StageMessage::Pong(_) => return,
                    StageMessage::Out(out) if out.epoch == 0 => {
                        return self.shown(id, out.pos, &rows);
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
                }
                self.chain.lose(id, "its stream ended", &mut effects);
            }
        }
        self.act(effects);
    }

    /// Pings who is silent, gives up who stays so.
    fn look(&mut self) {
        let now = Instant::now();
        let mut effects = Vec::new();
        let patience = self.settings.patience;
        let silent = |open: &Open| now.saturating_duration_since(open.last_heard);
        let dead: Vec<HopId> = self
            .hops
            .iter()
            .filter(|(_, open)| silent(open) >= patience)
            .map(|(id, _)| *id)
            .collect();
        for open in self.hops.values() {
            if silent(open) >= patience / LOOKS {
                let ping = StageMessage::Ping(0);
                let _ = open.orders.try_send(Order::Say(ping, Bytes::new()));
            }
        }
        for id in dead {
            self.chain.lose(id, "it is silent", &mut effects);
        }
        if now.saturating_duration_since(self.last_progress) >= self.settings.stall {
            self.last_progress = now;
            if let Some(id) = self.chain.suspect() {
                self.chain.lose(id, "it computes nothing", &mut effects);
            }
        }
        self.act(effects);
    }

    /// Has every place without a stage looked for.
    fn seek(&mut self) -> Result<(), PipelineError> {
        let missing = self.chain.missing();
        if missing.is_empty() {
            self.missing_since = None;
            return Ok(());
        }
        let now = Instant::now();
        let since = *self.missing_since.get_or_insert(now);
        let is_over = now.saturating_duration_since(since) >= self.settings.search;
        if is_over || self.chain.epoch() > EPOCHS_MAX {
            return Err(self.why.clone());
        }
        for (first, end) in missing {
            if !self.sought.insert(first) {
                continue;
            }
            let id = HopId(self.next_id);
            self.next_id = self.next_id.saturating_add(1);
            let want = Want {
                id,
                session: StageSession(rand::random()),
                first,
                end,
                positions_max: self.positions_max,
                wire: self.settings.wire,
                not: self.dismissed.clone(),
            };
            let opening = self.source.open(want.clone(), self.heard.clone());
            let pause = self.settings.patience / LOOKS;
            let limit = self.settings.search;
            self.opening.push(Box::pin(async move {
                let opened = tokio::time::timeout(limit, opening).await;
                let opened = opened.unwrap_or_else(|_| {
                    Err(PipelineError::Lost("no stage answered in time".to_owned()))
                });
                if opened.is_err() {
                    // Not at once again: who is busy now may be free soon.
                    tokio::time::sleep(pause).await;
                }
                (want, opened)
            }));
        }
        Ok(())
    }

    fn opened(&mut self, want: &Want, opened: Result<Opened, PipelineError>) {
        self.sought.remove(&want.first);
        let opened = match opened {
            Ok(opened) => opened,
            Err(error) => {
                tracing::debug!(%error, first = want.first, end = want.end, "no stage yet");
                self.why = error;
                return;
            }
        };
        let hop = Hop {
            id: want.id,
            first: want.first,
            end: opened.end,
            peer: opened.peer,
            session: want.session,
        };
        let open = Open {
            peer: opened.peer,
            addresses: opened.addresses,
            orders: opened.orders,
            last_heard: Instant::now(),
        };
        self.hops.insert(want.id, open);
        let mut effects = Vec::new();
        if !self.chain.join(hop, &mut effects) {
            // Somebody else has the place: it is closed again, unused.
            self.hops.remove(&want.id);
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
                        tracing::info!(peer = %open.peer, why, "a stage left a session");
                        self.dismissed.insert(open.peer);
                    }
                }
                ChainEffect::Answer(row) => {
                    let row = rows::from_bytes(&row, self.settings.hidden, self.settings.wire);
                    if let Some(reply) = self.waiting.take() {
                        let torn = || PipelineError::Failed("a torn row".to_owned());
                        let _ = reply.send(row.ok_or_else(torn));
                    }
                    self.audit_some();
                }
            }
        }
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

/// Resolves when an audit is judged.
async fn judged<T>(judging: &mut Option<BoxFuture<'static, T>>) -> T {
    match judging {
        Some(judging) => judging.await,
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
