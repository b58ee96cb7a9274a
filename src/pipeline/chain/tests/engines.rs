//! Engines that lie, take their time, or fail.

use super::*;

/// What an engine does beside computing.
#[derive(Clone, Copy)]
pub enum How {
    /// Gives rows that are a twentieth too long, of the spans that it chooses.
    Lies(fn(&Span) -> bool),
    /// Takes longer for every batch.
    Slow(Duration),
    /// Computes nothing.
    Fails,
}

struct Bent(Stage, How);

/// The engine of layers `first..end` that is not as it should be.
pub async fn bent(path: &std::path::Path, first: u16, end: u16, how: How) -> Worker {
    let load = Load {
        path: path.to_owned(),
        layers: usize::from(first)..usize::from(end),
        precision: Precision::Q8,
        positions_max: POSITIONS,
    };
    let stage = move || Ok(Bent(Stage::load(&load, &mut |_| {})?, how));
    let started = Worker::start(Processor::start(Some(1)).unwrap(), stage);
    started.await.unwrap()
}

impl Engine for Bent {
    fn config(&self) -> &ModelConfig {
        self.0.config()
    }
    fn layers(&self) -> std::ops::Range<usize> {
        self.0.layers()
    }
    fn open(&mut self, positions_max: usize) -> Result<Slot, EngineError> {
        self.0.open(positions_max)
    }
    fn forward(&mut self, spans: &[Span], rows: Vec<f32>) -> Result<Vec<f32>, EngineError> {
        let lies = match self.1 {
            How::Lies(lies) => lies,
            How::Slow(longer) => {
                std::thread::sleep(longer);
                |_: &Span| false
            }
            How::Fails => return Err(EngineError::Shape("it fails".to_owned())),
        };
        let mut rows = self.0.forward(spans, rows)?;
        let hidden = self.0.config().hidden;
        let mut rest = rows.as_mut_slice();
        for span in spans {
            let (these, others) = rest.split_at_mut(span.rows * hidden);
            if lies(span) {
                these.iter_mut().for_each(|x| *x *= 1.05);
            }
            rest = others;
        }
        Ok(rows)
    }
    fn positions_free(&self) -> usize {
        Engine::positions_free(&self.0)
    }
    fn length(&self, slot: Slot) -> Option<usize> {
        self.0.length(slot)
    }
    fn close(&mut self, slot: Slot) {
        self.0.close(slot);
    }
}
