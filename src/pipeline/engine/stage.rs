//! A range of a model's layers on this machine's processor.

use std::collections::BTreeMap;
use std::ops::Range;

use super::block::{Block, Place};
use super::config::{Family, ModelConfig};
use super::kv::Kv;
use super::rope::Rope;
use super::source::{Name, Source};
use super::{Engine, EngineError, Load, Precision, Slot, Span};

/// See [`Engine`].
pub struct Stage {
    config: ModelConfig,
    layers: Range<usize>,
    blocks: Vec<Block>,
    rope: Rope,
    slots: BTreeMap<Slot, Kv>,
    next_slot: u64,
    positions_max: usize,
    precision: Precision,
}

impl Stage {
    /// Reads the range's weights; `progress` is told after each layer how many are there.
    ///
    /// # Errors
    /// When files cannot be read or hold no model that is computed here.
    pub fn load(load: &Load, progress: &mut dyn FnMut(usize)) -> Result<Self, EngineError> {
        let (mut source, config) = Source::open(&load.path)?;
        let layers = load.layers.clone();
        if layers.is_empty() || layers.end > config.layers {
            return Err(EngineError::Shape(format!(
                "layers {}..{} of a model that has {}",
                layers.start, layers.end, config.layers
            )));
        }
        let divisors = if source.has(Name::Angles) {
            Some(source.vector(Name::Angles, config.head_dim / 2)?)
        } else {
            None
        };
        let is_interleaved = source.is_gguf() && config.family == Family::Llama;
        let mut rope = Rope::new(&config, divisors, is_interleaved);
        rope.reach(1);
        let mut blocks = Vec::with_capacity(layers.len());
        for layer in layers.clone() {
            let block = Block::load(&mut source, &config, layer, load.precision)?;
            warm(&block, &rope, &config)?;
            blocks.push(block);
            progress(blocks.len());
        }
        Ok(Self {
            rope,
            config,
            layers,
            blocks,
            slots: BTreeMap::new(),
            next_slot: 0,
            positions_max: load.positions_max,
            precision: load.precision,
        })
    }

    /// Checks that rows and spans fit, and that no span leaves a gap or comes twice.
    fn check(&self, spans: &[Span], numbers: usize) -> Result<(), EngineError> {
        let mut rows = 0;
        for (index, span) in spans.iter().enumerate() {
            let kv = self.slots.get(&span.slot);
            let kv = kv.ok_or(EngineError::NoSlot(span.slot))?;
            if span.pos > kv.length {
                let (pos, length) = (span.pos, kv.length);
                return Err(EngineError::Gap { pos, length });
            }
            let end = span.pos.saturating_add(span.rows);
            if end > kv.reserved {
                return Err(EngineError::TooLong {
                    wanted: end,
                    most: kv.reserved,
                });
            }
            let twice = spans.iter().skip(index + 1).any(|o| o.slot == span.slot);
            if span.rows == 0 || twice {
                let why = "a span has rows, and a slot one span".to_owned();
                return Err(EngineError::Shape(why));
            }
            rows += span.rows;
        }
        if rows == 0 || numbers != rows * self.config.hidden {
            let hidden = self.config.hidden;
            return Err(EngineError::Shape(format!(
                "{numbers} numbers for {rows} rows of {hidden}"
            )));
        }
        Ok(())
    }

    fn compute(&mut self, spans: &[Span], mut rows: Vec<f32>) -> candle_core::Result<Vec<f32>> {
        let mut slots: BTreeMap<&Slot, &mut Kv> = self.slots.iter_mut().collect();
        let mut places = Vec::with_capacity(spans.len());
        for span in spans {
            let end = span.pos + span.rows;
            self.rope.reach(end);
            if let Some(kv) = slots.remove(&span.slot) {
                kv.length = span.pos;
                kv.reach(end);
                let (rows, pos) = (span.rows, span.pos);
                places.push(Place { rows, pos, kv });
            }
        }
        for (layer, block) in self.blocks.iter().enumerate() {
            block.forward(&mut rows, layer, &mut places, &self.rope)?;
        }
        Ok(rows)
    }
}

/// Computes a row for nobody: the first use of a matrix lays it out anew, which takes as long as reading
/// it and must not be the first customer's wait. One layer after the other, so that no more than one is
/// ever in memory twice.
fn warm(block: &Block, rope: &Rope, config: &ModelConfig) -> Result<(), EngineError> {
    let mut kv = Kv::new(1, 1, (config.kv_heads, config.head_dim), Precision::Q8);
    kv.reach(1);
    let place = Place {
        rows: 1,
        pos: 0,
        kv: &mut kv,
    };
    block.forward(&mut vec![1.0; config.hidden], 0, &mut [place], rope)?;
    block.settle();
    Ok(())
}

impl Engine for Stage {
    fn config(&self) -> &ModelConfig {
        &self.config
    }
    fn layers(&self) -> Range<usize> {
        self.layers.clone()
    }
    fn open(&mut self, positions_max: usize) -> Result<Slot, EngineError> {
        let most = self.config.context.min(self.positions_max);
        if positions_max > most || positions_max == 0 {
            let wanted = positions_max;
            return Err(EngineError::TooLong { wanted, most });
        }
        let (wanted, free) = (positions_max, self.positions_free());
        if wanted > free {
            return Err(EngineError::Full { wanted, free });
        }
        let slot = Slot(self.next_slot);
        self.next_slot += 1;
        let heads = (self.config.kv_heads, self.config.head_dim);
        let kv = Kv::new(positions_max, self.blocks.len(), heads, self.precision);
        self.slots.insert(slot, kv);
        Ok(slot)
    }
    fn forward(&mut self, spans: &[Span], rows: Vec<f32>) -> Result<Vec<f32>, EngineError> {
        self.check(spans, rows.len())?;
        let answer = self.compute(spans, rows)?;
        for span in spans {
            if let Some(kv) = self.slots.get_mut(&span.slot) {
                kv.length = span.pos + span.rows;
            }
        }
        Ok(answer)
    }
    fn positions_free(&self) -> usize {
        let reserved: usize = self.slots.values().map(|kv| kv.reserved).sum();
        self.positions_max.saturating_sub(reserved)
    }
    fn length(&self, slot: Slot) -> Option<usize> {
        self.slots.get(&slot).map(|kv| kv.length)
    }
    fn close(&mut self, slot: Slot) {
        self.slots.remove(&slot);
    }
}
