//! 8-bit weights that are in memory once.
//!
//! Where the processor allows it they are [`Tiles`], and candle keeps nothing. Elsewhere candle
//! multiplies; on x86 it lays Q8_0 weights out anew when they first multiply, for instructions that
//! take sixteen rows at a time, and keeps what it was given beside that: every layer would take twice
//! its size. [`Weights`] watches for it and lets the first form go. It relies on candle 0.11.1, which asks
//! for nothing of it later; if another version does, computing fails with an error that says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor, QuantizedType};
use candle_core::{CpuStorage, Device, Module as _, Result, Tensor};
use half::f16;
use parking_lot::RwLock;

use super::tiles::{self, Tiles};

/// A matrix of a layer.
pub(super) struct Weights(Form);

enum Form {
    Tiles(Tiles),
    Candle {
        matrix: QMatMul,
        first: Option<Arc<First>>,
    },
}

impl Weights {
    /// Takes over what was read or quantised.
    pub(super) fn new(matrix: QMatMul) -> Result<Self> {
        match &matrix {
            QMatMul::QTensor(tensor) if tensor.dtype() == GgmlDType::Q8_0 => {
                let (outputs, inputs) = tensor.shape().dims2()?;
                match Tiles::new(&tensor.data()?, outputs, inputs) {
                    Some(tiles) => Ok(Self(Form::Tiles(tiles))),
                    None => Self::watched(tensor),
                }
            }
            _ => Ok(Self::kept(matrix)),
        }
    }

    /// Lets candle multiply, and sees whether it copies.
    fn watched(tensor: &QTensor) -> Result<Self> {
        let first = Arc::new(First {
            blocks: RwLock::new(Some(GgmlDType::Q8_0.from_data(tensor.data()?))),
            bytes: tensor.storage_size_in_bytes(),
            was_read: AtomicBool::new(false),
            is_needed: AtomicBool::new(false),
        });
        let storage = QStorage::Cpu(Box::new(Given(Arc::clone(&first))));
        let tensor = QTensor::new(storage, tensor.shape().clone())?;
        let (matrix, first) = (QMatMul::from_qtensor(tensor)?, Some(first));
        Ok(Self(Form::Candle { matrix, first }))
    }

    const fn kept(matrix: QMatMul) -> Self {
        let first = None;
        Self(Form::Candle { matrix, first })
    }

    /// Rows of as many inputs, one after the other, to rows of outputs.
    ///
    /// # Errors
    /// When these are no whole rows.
    pub(super) fn forward(&self, rows: &[f32], inputs: usize) -> Result<Vec<f32>> {
        let [product] = Self::forward_all([self], rows, inputs)?;
        Ok(product)
    }

    /// Several matrices times the same rows, which are quantised once for all where that can be.
    pub(super) fn forward_all<const N: usize>(
        all: [&Self; N],
        rows: &[f32],
        inputs: usize,
    ) -> Result<[Vec<f32>; N]> {
        let tiles = each(&all, |form| match form {
            Form::Tiles(tiles) => Some(tiles),
            Form::Candle { .. } => None,
        });
        let products = match tiles {
            Some(tiles) => tiles::product(&tiles, rows, inputs)?,
            None => Self::by_candle(&all, rows, inputs)?,
        };
        let other = |products: Vec<_>| {
            let count = products.len();
            candle_core::Error::Msg(format!("{count} products of {N} matrices"))
        };
        products.try_into().map_err(other)
    }

    fn by_candle(all: &[&Self], rows: &[f32], inputs: usize) -> Result<Vec<Vec<f32>>> {
        let count = rows.len().checked_div(inputs).unwrap_or(0);
        let x = Tensor::from_slice(rows, (count, inputs), &Device::Cpu)?;
        let tensors = each(all, |form| match form {
            Form::Candle {
                matrix: QMatMul::QTensor(tensor),
                ..
            } => Some(tensor.as_ref()),
            _ => None,
        });
        let fused = match tensors {
            Some(tensors) if tensors.len() > 1 => QTensor::gemv_fused_shared_lhs(&tensors, &x)?,
            _ => None,
        };
        if let Some(products) = fused {
            return products.iter().map(numbers).collect();
        }
        let alone = |weights: &&Self| match &weights.0 {
            Form::Tiles(tiles) => Ok(tiles::product(&[tiles], rows, inputs)?.concat()),
            Form::Candle { matrix, .. } => numbers(&matrix.forward(&x)?),
        };
        all.iter().map(alone).collect()
    }

    /// Lets the first form go if another was made of it: call it after a first product.
    pub(super) fn settle(&self) {
        if let Form::Candle {
            first: Some(first), ..
        } = &self.0
            && first.was_read.load(Ordering::Relaxed)
            && !first.is_needed.load(Ordering::Relaxed)
        {
            *first.blocks.write() = None;
        }
    }
}

/// What each of them is, if all are it.
fn each<'a, T: ?Sized>(
    all: &[&'a Weights],
    form: impl Fn(&'a Form) -> Option<&'a T>,
) -> Option<Vec<&'a T>> {
    all.iter().map(|weights| form(&weights.0)).collect()
}

fn numbers(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
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

    fn quantised(weight: &Tensor) -> QTensor {
        QTensor::quantize(weight, GgmlDType::Q8_0).unwrap()
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        super::numbers(tensor).unwrap()
    }

    /// Rows that candle lays out anew, and a matrix too narrow for that.
    #[test]
    fn products_are_the_same_before_and_after_the_first_form_goes() {
        for (outputs, inputs) in [(64, 512), (40, 64)] {
            let weight = numbers(outputs, inputs);
            let plain = QMatMul::from_qtensor(quantised(&weight)).unwrap();
            let weights = Weights::watched(&quantised(&weight)).unwrap();
            for rows in [1, 3, 8, 40] {
                let x = numbers(rows, inputs);
                let plain = values(&plain.forward(&x).unwrap());
                assert_eq!(plain, weights.forward(&values(&x), inputs).unwrap());
                weights.settle();
                assert_eq!(plain, weights.forward(&values(&x), inputs).unwrap());
            }
            let Form::Candle { first, .. } = &weights.0 else {
                panic!("candle was to multiply");
            };
            let is_gone = |first: &Arc<First>| first.blocks.read().is_none();
            let was_read = |first: &Arc<First>| first.was_read.load(Ordering::Relaxed);
            assert_eq!(first.as_ref().map(is_gone), first.as_ref().map(was_read));
        }
    }

    /// In this processor's form, in candle's, in one of each, and of exact numbers.
    #[test]
    fn products_are_those_of_the_exact_weights_but_for_rounding() {
        let exact = [
            numbers(64, 512),
            numbers(96, 512).affine(-1.5, 0.1).unwrap(),
        ];
        let own = |weight| Weights::new(QMatMul::from_qtensor(quantised(weight)).unwrap());
        let candles = |weight| Weights::watched(&quantised(weight));
        let plain = |weight: &Tensor| Weights::new(QMatMul::Tensor(weight.clone()));
        let [one, two] = &exact;
        let all = [
            [own(one), own(two)],
            [candles(one), candles(two)],
            [own(one), candles(two)],
            [plain(one), plain(two)],
        ];
        for [one, two] in all {
            let (one, two) = (one.unwrap(), two.unwrap());
            for rows in [1, 7, 64] {
                let x = numbers(rows, 512).affine(3.0, 0.2).unwrap();
                let products = Weights::forward_all([&one, &two], &values(&x), 512).unwrap();
                for (product, weight) in products.iter().zip(&exact) {
                    let exact = values(&x.matmul(&weight.t().unwrap()).unwrap());
                    let most = exact.iter().fold(0f32, |most, x| most.max(x.abs()));
                    assert_eq!(exact.len(), product.len());
                    for (exact, product) in exact.iter().zip(product) {
                        assert!((exact - product).abs() < most / 50.0, "{exact} {product}");
                    }
                }
            }
            assert!(one.forward(&[0.0; 511], 512).is_err());
        }
    }
}
