//! The seam between what makes text and what computes layers: [`Layers`] runs rows through all
//! layers of a model, wherever those are. [`Local`] has them all in this process.

use futures::future::BoxFuture;

use super::error::PipelineError;
use super::patron::Patron;
use super::worker::{Lease, Worker};
pub use crate::protocol::stage::StepKind;

/// Runs rows through every layer of a model.
pub trait Layers: Send + Sync {
    /// Reserves room for a session of at most `positions_max` positions.
    ///
    /// # Errors
    /// [`PipelineError::Full`] for now, [`PipelineError::TooLong`] for ever, or what the way there
    /// ran into.
    fn open(&self, positions_max: usize) -> BoxFuture<'_, Result<Box<dyn Run>, PipelineError>>;
    /// The same for somebody; what layers here cost nobody pays.
    ///
    /// # Errors
    /// As [`Layers::open`], and [`PipelineError::Budget`].
    fn open_for(
        &self,
        positions_max: usize,
        _patron: &Patron,
    ) -> BoxFuture<'_, Result<Box<dyn Run>, PipelineError>> {
        self.open(positions_max)
    }
}

/// One session's rows. Dropping it frees the room.
pub trait Run: Send {
    /// Computes `rows` (n × hidden numbers), of positions `pos..pos + n`, and answers the last
    /// row's result (hidden numbers). Writing at a lower position forgets what came after it.
    ///
    /// # Errors
    /// [`PipelineError::Gap`] when rows before `pos` are missing, [`PipelineError::Budget`] before
    /// any row is computed; and what was lost on the way.
    fn step(
        &mut self,
        pos: usize,
        rows: Vec<f32>,
        kind: StepKind,
    ) -> BoxFuture<'_, Result<Vec<f32>, PipelineError>>;
}

/// All layers in this process.
pub struct Local(Worker);

impl Local {
    /// Over a worker whose engine holds every layer.
    ///
    /// # Errors
    /// [`PipelineError::Invalid`] when layers are missing.
    pub fn new(worker: Worker) -> Result<Self, PipelineError> {
        let (layers, all) = (worker.layers(), worker.config().layers);
        if layers != (0..all) {
            return Err(PipelineError::Invalid(format!(
                "layers {}..{} are here and the model has {all}",
                layers.start, layers.end
            )));
        }
        Ok(Self(worker))
    }
}

impl Layers for Local {
    fn open(&self, positions_max: usize) -> BoxFuture<'_, Result<Box<dyn Run>, PipelineError>> {
        Box::pin(async move {
            let hidden = self.0.config().hidden;
            let lease = self.0.open(positions_max).await?;
            let run: Box<dyn Run> = Box::new(LocalRun { lease, hidden });
            Ok(run)
        })
    }
}

struct LocalRun {
    lease: Lease,
    hidden: usize,
}

impl Run for LocalRun {
    fn step(
        &mut self,
        pos: usize,
        rows: Vec<f32>,
        kind: StepKind,
    ) -> BoxFuture<'_, Result<Vec<f32>, PipelineError>> {
        Box::pin(async move {
            let mut all = self.lease.forward(pos, rows, kind).await?;
            let before = all.len().saturating_sub(self.hidden);
            Ok(all.split_off(before))
        })
    }
}
