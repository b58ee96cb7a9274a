//! 8-bit weights that are in memory once.
//!
//! On x86 candle lays Q8_0 weights out anew when they first multiply, for instructions that take
//! sixteen rows at a time, and keeps what it was given beside that: every layer would take twice its
//! size. [`Weights`] watches for it and lets the first form go. It relies on candle 0.11.1, which asks
//! for nothing of it later; if another version does, computing fails with an error that says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor, QuantizedType};
use candle_core::{CpuStorage, Result};
use half::f16;
use parking_lot::RwLock;

/// A matrix of a layer.
pub(super) struct Weights {
    matrix: QMatMul,
    first: Option<Arc<First>>,
}

impl Weights {
    /// Takes over what was read or quantised.
    pub(super) fn new(matrix: QMatMul) -> Result<Self> {
        let QMatMul::QTensor(tensor) = &matrix else {
            return Ok(Self::kept(matrix));
        };
        if tensor.dtype() != GgmlDType::Q8_0 || !cfg!(target_arch = "x86_64") {
            return Ok(Self::kept(matrix));
        }
        let first = Arc::new(First {
            blocks: RwLock::new(Some(GgmlDType::Q8_0.from_data(tensor.data()?))),
            bytes: tensor.storage_size_in_bytes(),
            was_read: AtomicBool::new(false),
            is_needed: AtomicBool::new(false),
        });
        let storage = QStorage::Cpu(Box::new(Given(Arc::clone(&first))));
        let tensor = QTensor::new(storage, tensor.shape().clone())?;
        Ok(Self {
            matrix: QMatMul::from_qtensor(tensor)?,
            first: Some(first),
        })
    }

    const fn kept(matrix: QMatMul) -> Self {
        Self {
            matrix,
            first: None,
        }
    }

    pub(super) const fn matrix(&self) -> &QMatMul {
        &self.matrix
    }

    /// Lets the first form go if another was made of it: call it after a first product.
    pub(super) fn settle(&self) {
        if let Some(first) = &self.first
            && first.was_read.load(Ordering::Relaxed)
            && !first.is_needed.load(Ordering::Relaxed)
        {
            *first.blocks.write() = None;
        }
    }
}

/// Blocks as they came, until they are let go.
struct First {
    blocks: RwLock<Option<Box<dyn QuantizedType>>>,
    bytes: usize,
    /// They were copied into another order.
    was_read: AtomicBool,
    /// Products are made of them as they are.
    is_needed: AtomicBool,
}

impl First {
    fn with<T>(&self, ask: impl FnOnce(&dyn QuantizedType) -> Result<T>) -> Result<T> {
        self.is_needed.store(true, Ordering::Relaxed);
        match self.blocks.read().as_deref() {
            Some(blocks) => ask(blocks),
            None => candle_core::bail!("weights were asked for in an order that was let go"),
        }
    }
}

/// What candle is given.
struct Given(Arc<First>);

impl QuantizedType for Given {
    fn dtype(&self) -> GgmlDType {
        GgmlDType::Q8_0
    }
    fn matmul_t(&self, mkn: (usize, usize, usize), lhs: &[f32], dst: &mut [f32]) -> Result<()> {
        self.0.with(|blocks| blocks.matmul_t(mkn, lhs, dst))
    }
    fn matmul_t_f16(&self, mkn: (usize, usize, usize), lhs: &[f16], dst: &mut [f16]) -> Result<()> {
        self.0.with(|blocks| blocks.matmul_t_f16(mkn, lhs, dst))
    }
    fn embedding(&self, ids: &[u32], rows: usize, hidden: usize) -> Result<CpuStorage> {
        self.0.with(|blocks| blocks.embedding(ids, rows, hidden))
    }
    fn dequantize(&self, count: usize) -> Result<CpuStorage> {
        self.0.with(|blocks| blocks.dequantize(count))
    }
    fn storage_size_in_bytes(&self) -> usize {
        match self.0.blocks.read().as_deref() {
            Some(blocks) => blocks.storage_size_in_bytes(),
            None => 0,
        }
    }
    fn as_ptr(&self) -> *const u8 {
        self.0.was_read.store(true, Ordering::Relaxed);
        match self.0.blocks.read().as_deref() {
            Some(blocks) => blocks.as_ptr(),
            // No bytes are there, so none may be read.
            None => std::ptr::NonNull::<u16>::dangling().as_ptr().cast(),
        }
    }
    fn block_size(&self) -> usize {
        GgmlDType::Q8_0.block_size()
    }
    fn from_float(&mut self, _: &[f32]) {}
    fn from_float_imatrix(&mut self, _: &[f32], _: &[f32], _: usize) {}
    fn size(&self) -> usize {
        self.0.bytes
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Module as _, Tensor};

    use super::*;

    fn numbers(rows: usize, columns: usize) -> Tensor {
        let all: Vec<f32> = (0u16..1_013)
            .cycle()
            .step_by(401)
            .take(rows * columns)
            .map(|part| f32::from(part) / 1_013.0 - 0.5)
            .collect();
        Tensor::from_vec(all, (rows, columns), &Device::Cpu).unwrap()
    }

    /// Rows that candle lays out anew, and a matrix too narrow for that.
    #[test]
    fn products_are_the_same_before_and_after_the_first_form_goes() {
        for (outputs, inputs) in [(64, 512), (40, 64)] {
            let weight = numbers(outputs, inputs);
            let quantised = || QTensor::quantize(&weight, GgmlDType::Q8_0).unwrap();
            let plain = QMatMul::from_qtensor(quantised()).unwrap();
            let weights = Weights::new(QMatMul::from_qtensor(quantised()).unwrap()).unwrap();
            for rows in [1, 3, 8, 40] {
                let x = numbers(rows, inputs);
                let of = |matrix: &QMatMul| -> Vec<Vec<f32>> {
                    matrix.forward(&x).unwrap().to_vec2().unwrap()
                };
                assert_eq!(of(&plain), of(weights.matrix()));
                weights.settle();
                assert_eq!(of(&plain), of(weights.matrix()));
            }
            let first = weights.first.as_ref();
            let is_gone = |first: &Arc<First>| first.blocks.read().is_none();
            let was_read = |first: &Arc<First>| first.was_read.load(Ordering::Relaxed);
            assert_eq!(first.map(is_gone), first.map(was_read));
        }
    }
}
