//! A model's layers where others have them: [`Remote`] runs rows through stages of other peers.
//!
//! A session is an actor (`run`) around the pure [`super::session::Chain`]: it opens stages through
//! a [`Source`], passes messages, pings whoever is silent, and has a lost stage's place taken. What
//! a stage is owed goes to the one who opened it, as a count of rows. [`order`] is the source that
//! orders and pays at the market.
//!
//! # Invariants
//! - A caller of [`Run::step`] sees a loss only as time: the answer is that of the rows asked for.
//! - A stage that was dismissed is not asked again in the same session.
//! - A session that is dropped closes every stage it opened.

mod account;
mod audit;
mod auditing;
pub mod order;
mod run;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::error::PipelineError;
use super::layers::{Layers, Run};
use super::session::{CHUNK_ROWS_MAX, HopId, Rows, Shape};
use crate::protocol::stage::{StageMessage, StageSession, StepKind, WireFormat};
use crate::tasks::Tasks;
use crate::types::PeerId;

/// A place in the chain that somebody is wanted for.
#[derive(Clone, Debug)]
pub struct Want {
    /// What this stage will be called.
    pub id: HopId,
    /// The session's name at that stage.
    pub session: StageSession,
    /// First layer: exactly this.
    pub first: u16,
    /// The layer after the last: at most this.
    pub end: u16,
    /// Positions.
    pub positions_max: u32,
    /// How rows travel.
    pub wire: WireFormat,
    /// Who was dismissed in this session.
    pub not: BTreeSet<PeerId>,
}

/// A session at a stage.
#[derive(Debug)]
pub struct Opened {
    /// Who.
    pub peer: PeerId,
    /// Where the stage before it finds it, as its offer says.
    pub addresses: Vec<Vec<u8>>,
    /// The layer after its last.
    pub end: u16,
    /// What it is to be told. Dropping it closes the session.
    pub orders: mpsc::Sender<Order>,
}

/// What an open session is told.
#[derive(Clone, Debug)]
pub enum Order {
    /// Pass this on.
    Say(StageMessage, Bytes),
    /// This much it has computed in all, by our own count.
    Owe(Rows),
    /// It computed something else than its layers: nothing more is paid.
    Forfeit,
}

/// What comes from a stage: a message with its rows, or why nothing will come any more.
pub type Heard = (HopId, Result<(StageMessage, Bytes), String>);

/// Room for what a session is told: a whole replay, and some more. What does not fit is lost, as on a
/// bad wire: the session mends it, or gives up a stage that reads nothing.
#[must_use]
pub fn orders_max(positions_max: u32) -> usize {
    const BESIDE: usize = 1_024;
    let chunks = positions_max / super::session::CHUNK_ROWS_MAX;
    super::session::index(chunks).saturating_add(BESIDE)
}

/// Opens sessions at stages.
pub trait Source: Send + Sync {
    /// Opens one that takes `want`'s place, or a first part of it. What comes from it goes to
    /// `heard`.
    fn open(
        &self,
        want: Want,
        heard: mpsc::Sender<Heard>,
    ) -> BoxFuture<'static, Result<Opened, PipelineError>>;
}

/// Steps for each audit: an audit of a prefix costs as many rows of one stage as a step costs of all,
/// times the prefix, so this keeps them at a few per cent of the work.
const AUDIT_ONE_IN: u32 = 2_000;
/// A process that dies closes its streams, which is seen at once; only one that is cut off is found
/// by its silence. Shorter, and a busy machine's stages are taken for dead.
const PATIENCE: Duration = Duration::from_secs(5);

/// How a session is kept alive.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Layers of the whole model.
    pub layers: u16,
    /// Numbers of a row.
    pub hidden: usize,
    /// How rows travel.
    pub wire: WireFormat,
    /// Stage to stage, or through the head.
    pub shape: Shape,
    /// Rows of a prompt that travel together, from 1 on: while a stage computes some, the one before
    /// it computes the next.
    pub chunk_rows: u32,
    /// A stage that is pinged and says nothing for this long is gone.
    pub patience: Duration,
    /// A stage that lives and computes nothing of what it was given for this long is dismissed.
    pub stall: Duration,
    /// A lost place is looked for so long; then the session fails.
    pub search: Duration,
    /// After one step in so many a stage's work is done again by another; 0 never.
    pub audit_one_in: u32,
}

impl Settings {
    /// The usual times for a model of this shape.
    #[must_use]
    pub const fn new(layers: u16, hidden: usize, wire: WireFormat) -> Self {
        Self {
            layers,
            hidden,
            wire,
            shape: Shape::Push,
            chunk_rows: CHUNK_ROWS_MAX,
            patience: PATIENCE,
            stall: Duration::from_secs(120),
            search: Duration::from_secs(30),
            audit_one_in: AUDIT_ONE_IN,
        }
    }
}

/// All layers, on other peers. Cheap to clone.
#[derive(Clone)]
pub struct Remote {
    settings: Settings,
    source: Arc<dyn Source>,
    tasks: Tasks,
    /// Who was found to compute something else than its layers.
    distrusted: Arc<Mutex<BTreeSet<PeerId>>>,
}

impl Remote {
    /// Layers that `source` finds.
    #[must_use]
    pub fn new(settings: Settings, source: Arc<dyn Source>, tasks: Tasks) -> Self {
        Self {
            settings,
            source,
            tasks,
            distrusted: Arc::default(),
        }
    }

    /// Who was found to compute something else than its layers, and is not asked again.
    #[must_use]
    pub fn distrusted(&self) -> Vec<PeerId> {
        self.distrusted.lock().iter().copied().collect()
    }
}

impl Layers for Remote {
    fn open(&self, positions_max: usize) -> BoxFuture<'_, Result<Box<dyn Run>, PipelineError>> {
        Box::pin(async move {
            let (asks, asked) = mpsc::channel(1);
            let (ready, opened) = oneshot::channel();
            let too_long = PipelineError::TooLong {
                wanted: positions_max,
                most: super::session::index(crate::protocol::limits::STAGE_POSITIONS_MAX),
            };
            let positions = u32::try_from(positions_max).ok();
            let positions = positions
                .filter(|n| (1..=crate::protocol::limits::STAGE_POSITIONS_MAX).contains(n));
            let positions_max = positions.ok_or(too_long)?;
            let distrusted = Arc::clone(&self.distrusted);
            let source = Arc::clone(&self.source);
            let actor = run::Actor::new(self.settings, positions_max, source, distrusted);
            self.tasks
                .spawn("pipeline-session", actor.run(asked, ready));
            opened.await.map_err(|_| PipelineError::Stopped)??;
            let run: Box<dyn Run> = Box::new(RemoteRun { asks });
            Ok(run)
        })
    }
}

/// Rows that are to go through, and who waits for them.
struct Ask {
    pos: usize,
    rows: Vec<f32>,
    kind: StepKind,
    reply: oneshot::Sender<Result<Vec<f32>, PipelineError>>,
}

struct RemoteRun {
    asks: mpsc::Sender<Ask>,
}

impl Run for RemoteRun {
    fn step(
        &mut self,
        pos: usize,
        rows: Vec<f32>,
        kind: StepKind,
    ) -> BoxFuture<'_, Result<Vec<f32>, PipelineError>> {
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            let ask = Ask {
                pos,
                rows,
                kind,
                reply,
            };
            let gone = |_| PipelineError::Stopped;
            self.asks
                .send(ask)
                .await
                .map_err(|_| PipelineError::Stopped)?;
            answer.await.map_err(gone)?
        })
    }
}
