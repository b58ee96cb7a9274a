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
use candle_core::{CpuStorage, Device, Module as _, Result, Storage, Tensor};
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

    /// Rows of inputs to rows of outputs.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [product] = Self::forward_all([self], x)?;
        Ok(product)
    }

    /// Several matrices times the same rows, which are quantised once for all where that can be.
    pub(super) fn forward_all<const N: usize>(all: [&Self; N], x: &Tensor) -> Result<[Tensor; N]> {
        let products = if let Some(tiles) = each(&all, |form| match form {
            Form::Tiles(tiles) => Some(tiles),
            Form::Candle { .. } => None,
        }) {
            tiled(&tiles, x)?
        } else {
            let tensors = each(&all, |form| match form {
                Form::Candle {
                    matrix: QMatMul::QTensor(tensor),
                    ..
                } => Some(tensor.as_ref()),
                _ => None,
            });
            let fused = match tensors {
                Some(tensors) if N > 1 => QTensor::gemv_fused_shared_lhs(&tensors, x)?,
                _ => None,
            };
            match fused {
                Some(products) => products,
                None => all.iter().map(|w| w.alone(x)).collect::<Result<_>>()?,
            }
        };
        let other = |products: Vec<Tensor>| {
            let count = products.len();
            candle_core::Error::Msg(format!("{count} products of {N} matrices"))
        };
        products.try_into().map_err(other)
    }

    fn alone(&self, x: &Tensor) -> Result<Tensor> {
        match &self.0 {
            Form::Tiles(tiles) => {
                let mut products = tiled(&[tiles], x)?;
                products
                    .pop()
                    .ok_or_else(|| candle_core::Error::Msg("no product".to_owned()))
            }
            Form::Candle { matrix, .. } => matrix.forward(x),
        }
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

fn tiled(all: &[&Tiles], x: &Tensor) -> Result<Vec<Tensor>> {
    let (rows, inputs) = x.dims2()?;
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    let (Storage::Cpu(CpuStorage::F32(numbers)), Some((start, end))) =
        (&*storage, layout.contiguous_offsets())
    else {
        candle_core::bail!("rows are single-precision numbers in this machine's memory");
    };
    let Some(numbers) = numbers.get(start..end) else {
        candle_core::bail!("rows end before their numbers do");
    };
    let products = tiles::product(all, numbers, inputs)?;
    let product = |(tiles, product): (&&Tiles, Vec<f32>)| {
        Tensor::from_vec(product, (rows, tiles.outputs()), &Device::Cpu)
    };
    all.iter().zip(products).map(product).collect()
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

    fn values(product: Result<Tensor>) -> Vec<Vec<f32>> {
        product.unwrap().to_vec2().unwrap()
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
                let plain = values(plain.forward(&x));
                assert_eq!(plain, values(weights.forward(&x)));
                weights.settle();
                assert_eq!(plain, values(weights.forward(&x)));
            }
            let Form::Candle { first, .. } = &weights.0 else {
                panic!("candle was to multiply");
            };
            let is_gone = |first: &Arc<First>| first.blocks.read().is_none();
            let was_read = |first: &Arc<First>| first.was_read.load(Ordering::Relaxed);
            assert_eq!(first.as_ref().map(is_gone), first.as_ref().map(was_read));
        }
    }

    /// Whatever this processor's form is, and in any company.
    #[test]
    fn products_are_those_of_the_exact_weights_but_for_rounding() {
        let (weight, other) = (
            numbers(64, 512),
            numbers(96, 512).affine(-1.5, 0.1).unwrap(),
        );
        let form = |weight| Weights::new(QMatMul::from_qtensor(quantised(weight)).unwrap());
        let (weights, others) = (form(&weight).unwrap(), form(&other).unwrap());
        for rows in [1, 7, 64] {
            let x = numbers(rows, 512).affine(3.0, 0.2).unwrap();
            let [one, two] = Weights::forward_all([&weights, &others], &x).unwrap();
            for (product, weight) in [(one, &weight), (two, &other)] {
                let exact = values(x.matmul(&weight.t().unwrap())).concat();
                let all = values(Ok(product)).concat();
                let most = exact.iter().fold(0f32, |most, x| most.max(x.abs()));
                for (exact, product) in exact.iter().zip(all) {
                    assert!((exact - product).abs() < most / 50.0, "{exact} {product}");
                }
            }
        }
        // Numbers in another order than rows lie in memory.
        let x = numbers(512, 7);
        let turned = x.t().unwrap();
        let straight = turned.contiguous().unwrap();
        assert_eq!(
            values(weights.forward(&turned)),
            values(weights.forward(&straight))
        );
    }
}
