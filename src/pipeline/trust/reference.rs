//! The judge that a head has itself: the model's file, of which only its two ends are in memory.

use std::path::PathBuf;
use std::sync::Arc;

use futures::future::BoxFuture;

use super::super::engine::{Engine as _, Load, Precision, Span, Stage};
use super::super::error::PipelineError;
use super::super::processor::Processor;

/// Computes rows through layers as the model has them.
pub trait Reference: Send + Sync {
    /// `rows` (n × hidden numbers) of positions 0..n through `first..end`; as many numbers.
    ///
    /// # Errors
    /// When the model cannot be read or computed.
    fn compute(
        &self,
        first: u16,
        end: u16,
        rows: Vec<f32>,
    ) -> BoxFuture<'_, Result<Vec<f32>, PipelineError>>;
}

/// Reads one layer after the other from the file: slow, in the memory of one layer.
pub struct FromFile {
    path: PathBuf,
    precision: Precision,
    processor: Processor,
    /// One layer is in memory at a time.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl FromFile {
    /// The model at `path`.
    #[must_use]
    pub fn new(path: PathBuf, precision: Precision, processor: Processor) -> Self {
        Self {
            path,
            precision,
            processor,
            turn: Arc::default(),
        }
    }
}

impl Reference for FromFile {
    fn compute(
        &self,
        first: u16,
        end: u16,
        mut rows: Vec<f32>,
    ) -> BoxFuture<'_, Result<Vec<f32>, PipelineError>> {
        Box::pin(async move {
            let turn = Arc::clone(&self.turn).lock_owned().await;
            let (path, precision) = (self.path.clone(), self.precision);
            let processor = self.processor.clone();
            let computing = tokio::task::spawn_blocking(move || {
                let _turn = turn;
                for layer in first..end {
                    let layer = usize::from(layer);
                    rows = processor.run(|| through(&path, precision, layer, rows))?;
                }
                Ok(rows)
            });
            computing.await.map_err(|_| PipelineError::Stopped)?
        })
    }
}

/// Rows through one layer that is read for them.
fn through(
    path: &std::path::Path,
    precision: Precision,
    layer: usize,
    rows: Vec<f32>,
) -> Result<Vec<f32>, PipelineError> {
    let hidden = super::super::engine::shape(path)?.hidden;
    let count = rows.len().checked_div(hidden).unwrap_or(0).max(1);
    let load = Load {
        path: path.to_owned(),
        layers: layer..layer.saturating_add(1),
        precision,
        positions_max: count,
    };
    let mut stage = Stage::load(&load, &mut |_| {})?;
    let slot = stage.open(count)?;
    let span = Span {
        slot,
        pos: 0,
        rows: count,
    };
    Ok(stage.forward(&[span], rows)?)
}
