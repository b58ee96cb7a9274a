//! Engines whose owners cheat, or whose machines are slow.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use souk::pipeline::engine::{
    Engine, EngineError, Load, ModelConfig, Precision, Slot, Span, Stage,
};
use souk::pipeline::processor::Processor;
use souk::pipeline::worker::Worker;

/// An engine that is not what its owner says.
pub struct Bent {
    stage: Stage,
    /// Spans whose results are made a tenth longer.
    pub lies: fn(&Span) -> bool,
    /// What every batch takes beside computing.
    pub longer: Duration,
}

/// Computes `layers` of the model at `path` otherwise than it should.
pub async fn bent(
    path: &Path,
    layers: Range<usize>,
    lies: fn(&Span) -> bool,
    longer: Duration,
) -> Worker {
    let load = Load {
        path: path.to_owned(),
        layers,
        precision: Precision::Q8,
        positions_max: 2_048,
    };
    let engine = move || {
        Ok(Bent {
            stage: Stage::load(&load, &mut |_| {})?,
            lies,
            longer,
        })
    };
    let processor = Processor::start(Some(1)).unwrap();
    Worker::start(processor, engine).await.unwrap()
}

impl Engine for Bent {
    fn config(&self) -> &ModelConfig {
        self.stage.config()
    }
    fn layers(&self) -> Range<usize> {
        self.stage.layers()
    }
    fn open(&mut self, positions_max: usize) -> Result<Slot, EngineError> {
        self.stage.open(positions_max)
    }
    fn forward(&mut self, spans: &[Span], rows: Vec<f32>) -> Result<Vec<f32>, EngineError> {
        std::thread::sleep(self.longer);
        let mut rows = self.stage.forward(spans, rows)?;
        let hidden = self.stage.config().hidden;
        let mut rest = rows.as_mut_slice();
        for span in spans {
            let (these, others) = rest.split_at_mut(span.rows * hidden);
            if (self.lies)(span) {
                these.iter_mut().for_each(|x| *x *= 1.1);
            }
            rest = others;
        }
        Ok(rows)
    }
    fn positions_free(&self) -> usize {
        Engine::positions_free(&self.stage)
    }
    fn length(&self, slot: Slot) -> Option<usize> {
        self.stage.length(slot)
    }
    fn close(&mut self, slot: Slot) {
        self.stage.close(slot);
    }
}
