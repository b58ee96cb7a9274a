//! What a slot's layers remember: keys and values by position.
//!
//! Positions are explicit, so forgetting is setting a length; what lies beyond is overwritten later.
//! Memory grows with what is used, up to what was reserved.

use candle_core::{DType, Device, Result, Tensor};

use super::config::ModelConfig;

/// Positions that memory begins with.
const FIRST: usize = 128;

struct Memory {
    keys: Tensor,
    values: Tensor,
}

/// One slot's memory of a range of layers.
pub(super) struct Kv {
    layers: Vec<Memory>,
    /// Positions there is room for now.
    room: usize,
    /// Positions there will ever be.
    pub(super) reserved: usize,
    /// Positions remembered.
    pub(super) length: usize,
}

impl Kv {
    pub(super) const fn new(reserved: usize) -> Self {
        Self {
            layers: vec![],
            room: 0,
            reserved,
            length: 0,
        }
    }

    /// Makes room for `positions`, which are at most what was reserved.
    pub(super) fn reach(
        &mut self,
        positions: usize,
        layers: usize,
        config: &ModelConfig,
    ) -> Result<()> {
        if positions <= self.room {
            return Ok(());
        }
        let room = positions.max(2 * self.room).max(FIRST).min(self.reserved);
        let shape = (1, room, config.kv_heads, config.head_dim);
        let fresh = || Tensor::zeros(shape, DType::F32, &Device::Cpu);
        let mut grown = Vec::with_capacity(layers);
        for layer in 0..layers {
            let memory = Memory {
                keys: fresh()?,
                values: fresh()?,
            };
            if let Some(old) = self.layers.get(layer).filter(|_| self.length > 0) {
                let copy = |from: &Tensor, to: &Tensor| {
                    to.slice_set(&from.narrow(1, 0, self.length)?.contiguous()?, 1, 0)
                };
                copy(&old.keys, &memory.keys)?;
                copy(&old.values, &memory.values)?;
            }
            grown.push(memory);
        }
        self.layers = grown;
        self.room = room;
        Ok(())
    }

    /// Writes a layer's rows (1, rows, heads, numbers) at `pos` and gives all up to their end.
    pub(super) fn write(
        &self,
        layer: usize,
        pos: usize,
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let Some(memory) = self.layers.get(layer) else {
            candle_core::bail!("no memory for layer {layer}")
        };
        memory.keys.slice_set(&keys.contiguous()?, 1, pos)?;
        memory.values.slice_set(&values.contiguous()?, 1, pos)?;
        let end = pos + keys.dim(1)?;
        Ok((
            memory.keys.narrow(1, 0, end)?,
            memory.values.narrow(1, 0, end)?,
        ))
    }
}
