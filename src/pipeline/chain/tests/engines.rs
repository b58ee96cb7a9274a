//! Engines that lie, and engines that take their time.

use super::*;

/// An engine that lies about the spans that it chooses.
pub async fn liar(path: &std::path::Path, first: u16, end: u16, lies: fn(&Span) -> bool) -> Worker {
    let load = load(path, first, end);
    let stage = move || Ok(Liar(Stage::load(&load, &mut |_| {})?, lies));
    let started = Worker::start(Processor::start(Some(1)).unwrap(), stage);
    started.await.unwrap()
}

/// An engine that takes `longer` for every batch.
pub async fn slow(path: &std::path::Path, first: u16, end: u16, longer: Duration) -> Worker {
    let load = load(path, first, end);
    let stage = move || Ok(Slow(Stage::load(&load, &mut |_| {})?, longer));
    let started = Worker::start(Processor::start(Some(1)).unwrap(), stage);
    started.await.unwrap()
}

fn load(path: &std::path::Path, first: u16, end: u16) -> Load {
    Load {
        path: path.to_owned(),
        layers: usize::from(first)..usize::from(end),
        precision: Precision::Q8,
        positions_max: POSITIONS,
    }
}

/// Gives rows that are a twentieth too long, of the spans that it chooses.
struct Liar(Stage, fn(&Span) -> bool);

impl Engine for Liar {
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
        let mut rows = self.0.forward(spans, rows)?;
        let hidden = self.0.config().hidden;
        let mut rest = rows.as_mut_slice();
        for span in spans {
            let (these, others) = rest.split_at_mut(span.rows * hidden);
            if (self.1)(span) {
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

/// Its work takes so much longer.
struct Slow(Stage, Duration);

impl Engine for Slow {
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
        std::thread::sleep(self.1);
        self.0.forward(spans, rows)
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
