//! A model's layers where others have them: [`Remote`] runs rows through stages of other peers.
//!
//! A session is an actor (`run`) around the pure [`super::session::Chain`]: it has stages found
//! (`find`) and opens them through a [`Source`], passes messages, pings whoever is silent, and has a
//! lost stage's place taken. What a stage is owed goes to the one who opened it, as a count of rows.
//! [`order`] is the source that orders and pays at the market.
//!
//! # Whom it asks
//! - Nobody serves a session whom this head has not checked (`find`, by [`Vectors`]): a session
//!   waits for that, once, instead of being computed by whoever says that he can.
//! - Once every place is taken, the next best for each is made ready (`spares`): connected, its
//!   payment agreed, checked. To replace a lost one then costs an order and the replay.
//! - While it runs, stages are audited (`auditing` draws and gathers, `audit` judges).
//! - Who is out because it was away may be asked again after [`Settings::pardon`], if nobody else
//!   has its layers; who broke the rules is not, in this session; who computes other than its
//!   layers is not asked by this head any more ([`Trust`]).
//!
//! # Invariants
//! - A caller of [`Run::step`] sees a loss only as time: the answer is that of the rows asked for.
//! - A session that is dropped closes every stage it opened.

mod account;
mod again;
mod audit;
mod auditing;
mod find;
pub mod order;
mod places;
mod run;
mod spares;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot, watch};

use super::error::PipelineError;
use super::layers::{Layers, Run};
use super::patron::Patron;
use super::session::{CHUNK_ROWS_MAX, HopId, Rows, Shape};
use super::trust::{Reference, Trust, Vectors};
use crate::protocol::offer::SignedOffer;
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
    /// For whom.
    pub patron: Patron,
}

/// Somebody who offers to take a place, or a first part of it.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Who.
    pub peer: PeerId,
    /// The layer after its last.
    pub end: u16,
    /// The offer that an order names, at a market.
    pub offer: Option<Arc<SignedOffer>>,
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

/// Knows stages, and opens sessions at them.
pub trait Source: Send + Sync {
    /// Who would take `want`'s place, or a first part of it, the best first; none of `want.not`.
    fn candidates(&self, want: &Want) -> Vec<Candidate>;
    /// Why there are none.
    fn nobody(&self, want: &Want) -> PipelineError {
        PipelineError::Lost(format!("nobody offers layers from {} on", want.first))
    }
    /// Opens a session at one of these. What comes from it goes to `heard`.
    fn open(
        &self,
        want: Want,
        at: Candidate,
        heard: mpsc::Sender<Heard>,
    ) -> BoxFuture<'static, Result<Opened, PipelineError>>;
    /// Makes one ready to be opened: all that does not depend on the session.
    fn warm(&self, at: Candidate) -> BoxFuture<'static, Result<(), PipelineError>>;
}

/// Steps for each audit, in sessions of up to [`super::trust::odds::AUDIT_ROWS`] positions; in longer
/// ones as many more. An audit has the rows before those it looks at computed too, so this keeps
/// audits at a few per cent of the work at any length: 256 rows of one stage for 2 000 of each.
const AUDIT_ONE_IN: u32 = 2_000;
/// A process that ends says so; one that is killed or cut off is found by its silence alone. Whoever
/// waits for an answer notices a second, and a living stage that is taken for dead costs one replay.
const PATIENCE: Duration = Duration::from_secs(1);
/// Where stages are slow to answer pings they are given so many times the slowest answer …
pub(super) const PATIENCE_ANSWERS: u32 = 8;
/// … up to this.
pub(super) const PATIENCE_MAX: Duration = Duration::from_secs(5);

/// A killed program is up again, and one that was busy answers.
const PARDON: Duration = Duration::from_secs(2);

/// What a head makes sure of by the model's file.
#[derive(Clone)]
pub struct Checks {
    /// Rows whose results are known, once they are made; sessions wait for them.
    pub vectors: watch::Receiver<Option<Arc<Vectors>>>,
    /// Who judges where there is nobody else to ask.
    pub reference: Arc<dyn Reference>,
}

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
    /// A stage that is pinged and says nothing for this long is gone; where answers are slow it is
    /// given longer ([`Trust::slowest_answer`]).
    pub patience: Duration,
    /// A stage that lives and computes nothing of what it was given for this long is dismissed.
    pub stall: Duration,
    /// A session fails when for so long no place is taken and no row goes further.
    pub search: Duration,
    /// Who left a session for no fault is asked again after this long, if nobody else is there.
    pub pardon: Duration,
    /// After about one step in so many a stage's work is done again by another; 0 never.
    pub audit_one_in: u32,
    /// Whether the next best for each place is made ready.
    pub spares: bool,
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
            pardon: PARDON,
            audit_one_in: AUDIT_ONE_IN,
            spares: true,
        }
    }
}

/// All layers, on other peers. Cheap to clone.
#[derive(Clone)]
pub struct Remote {
    settings: Settings,
    source: Arc<dyn Source>,
    tasks: Tasks,
    trust: Trust,
    checks: Option<Checks>,
}

impl Remote {
    /// Layers that `source` finds: anybody serves at once, and audits need two others who agree.
    #[must_use]
    pub fn new(settings: Settings, source: Arc<dyn Source>, tasks: Tasks) -> Self {
        Self {
            settings,
            source,
            tasks,
            trust: Trust::default(),
            checks: None,
        }
    }

    /// The same, where nobody serves before he was checked, and what is found out is shared.
    #[must_use]
    pub fn checked(self, checks: Checks, trust: Trust) -> Self {
        Self {
            checks: Some(checks),
            trust,
            ..self
        }
    }

    /// What was found out so far.
    #[must_use]
    pub const fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Waits for the rows of checks, as long as for a place.
    async fn vectors(&self) -> Result<Option<Arc<Vectors>>, PipelineError> {
        let Some(checks) = &self.checks else {
            return Ok(None);
        };
        let mut vectors = checks.vectors.clone();
        let made = vectors.wait_for(Option::is_some);
        match tokio::time::timeout(self.settings.search, made).await {
            Ok(Ok(made)) => Ok(made.clone()),
            Ok(Err(_)) => Err(PipelineError::Failed(
                "the rows that stages are checked by could not be made; the node's log says why"
                    .to_owned(),
            )),
            Err(_) => Err(PipelineError::Lost(
                "the rows that stages are checked by are still being made; try again in a minute"
                    .to_owned(),
            )),
        }
    }
}

impl Layers for Remote {
    fn open(&self, positions_max: usize) -> BoxFuture<'_, Result<Box<dyn Run>, PipelineError>> {
        self.open_for(positions_max, &Patron::default())
    }

    fn open_for(
        &self,
        positions_max: usize,
        patron: &Patron,
    ) -> BoxFuture<'_, Result<Box<dyn Run>, PipelineError>> {
        let patron = patron.clone();
        Box::pin(async move {
            let too_long = PipelineError::TooLong {
                wanted: positions_max,
                most: super::session::index(crate::protocol::limits::STAGE_POSITIONS_MAX),
            };
            let positions = u32::try_from(positions_max).ok();
            let positions = positions
                .filter(|n| (1..=crate::protocol::limits::STAGE_POSITIONS_MAX).contains(n));
            let positions_max = positions.ok_or(too_long)?;
            let vectors = self.vectors().await?;
            let (asks, asked) = mpsc::channel(1);
            let (ready, opened) = oneshot::channel();
            let finder = find::Finder {
                settings: self.settings,
                source: Arc::clone(&self.source),
                tasks: self.tasks.clone(),
                trust: self.trust.clone(),
                vectors,
                reference: self.checks.as_ref().map(|c| Arc::clone(&c.reference)),
            };
            let actor = run::Actor::new(positions_max, finder, patron.clone());
            self.tasks
                .spawn("pipeline-session", actor.run(asked, ready));
            opened.await.map_err(|_| PipelineError::Stopped)??;
            let hidden = self.settings.hidden.max(1);
            let run: Box<dyn Run> = Box::new(RemoteRun {
                asks,
                hidden,
                patron,
            });
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
    hidden: usize,
    patron: Patron,
}

impl Run for RemoteRun {
    fn step(
        &mut self,
        pos: usize,
        rows: Vec<f32>,
        kind: StepKind,
    ) -> BoxFuture<'_, Result<Vec<f32>, PipelineError>> {
        Box::pin(async move {
            let count = u32::try_from(rows.len() / self.hidden).unwrap_or(u32::MAX);
            self.patron.foresee(count, kind)?;
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
