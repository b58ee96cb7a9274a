//! One decoder layer: norm, attention, norm, MLP, each added to what came in.
//!
//! Rows of several slots go through the matrices together, which is what makes eight streams cost
//! little more than one; only attention looks at each slot alone.

use candle_core::Tensor;
use candle_nn::attention::{AttnMask, flash_attn};

use super::config::ModelConfig;
use super::kv::Kv;
use super::rope::Rope;
use super::source::{Name, Part, Source};
use super::weights::Weights;
use super::{EngineError, Precision};

type Computed<T> = candle_core::Result<T>;

/// A matrix with its bias, if it has one.
struct Linear {
    weight: Weights,
    bias: Option<Tensor>,
}

impl Linear {
    fn load(
        source: &mut Source,
        (layer, part): (usize, Part),
        (outputs, inputs): (usize, usize),
        precision: Precision,
    ) -> Result<Self, EngineError> {
        let name = Name::Bias(layer, part);
        let bias = if source.has(name) {
            Some(source.vector(name, outputs)?)
        } else {
            None
        };
        let matrix = source.matrix(Name::Weight(layer, part), (outputs, inputs), precision)?;
        let weight = Weights::new(matrix)?;
        Ok(Self { weight, bias })
    }
    fn forward(&self, x: &Tensor) -> Computed<Tensor> {
        let [product] = forward_all(x, [self])?;
        Ok(product)
    }
}

/// Several matrices times the same rows.
fn forward_all<const N: usize>(x: &Tensor, all: [&Linear; N]) -> Computed<[Tensor; N]> {
    let mut products = Weights::forward_all(all.map(|linear| &linear.weight), x)?;
    for (linear, product) in all.iter().zip(&mut products) {
        if let Some(bias) = &linear.bias {
            *product = product.broadcast_add(bias)?;
        }
    }
    Ok(products)
}

/// Divides by the root of the mean square.
pub(super) struct Norm {
    weight: Tensor,
    epsilon: f32,
}

impl Norm {
    pub(super) fn load(
        source: &mut Source,
        name: Name,
        count: usize,
        config: &ModelConfig,
    ) -> Result<Self, EngineError> {
        Ok(Self {
            weight: source.vector(name, count)?,
            epsilon: config.norm_epsilon,
        })
    }
    pub(super) fn forward(&self, x: &Tensor) -> Computed<Tensor> {
        candle_nn::ops::rms_norm(&x.contiguous()?, &self.weight, self.epsilon)
    }
}

/// Where the rows of one slot lie in a batch.
pub(super) struct Place<'a> {
    /// First row of the batch.
    pub at: usize,
    /// How many.
    pub rows: usize,
    /// Their first position.
    pub pos: usize,
    pub kv: &'a Kv,
}

/// One layer's weights; shared by all slots.
pub(super) struct Block {
    attention_norm: Norm,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    query_norm: Option<Norm>,
    key_norm: Option<Norm>,
    mlp_norm: Norm,
    gate: Linear,
    up: Linear,
    down: Linear,
    shape: Shape,
}

#[derive(Clone, Copy)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    scale: f32,
}

impl Block {
    pub(super) fn load(
        source: &mut Source,
        config: &ModelConfig,
        layer: usize,
        precision: Precision,
    ) -> Result<Self, EngineError> {
        let (hidden, wide, dim) = (config.hidden, config.intermediate, config.head_dim);
        let (queries, keys) = (config.heads * dim, config.kv_heads * dim);
        let mut linear = |part, shape| Linear::load(source, (layer, part), shape, precision);
        let (query, key) = (
            linear(Part::Query, (queries, hidden))?,
            linear(Part::Key, (keys, hidden))?,
        );
        let value = linear(Part::Value, (keys, hidden))?;
        let output = linear(Part::Output, (hidden, queries))?;
        let gate = linear(Part::Gate, (wide, hidden))?;
        let up = linear(Part::Up, (wide, hidden))?;
        let down = linear(Part::Down, (hidden, wide))?;
        let mut norm = |part, count| Norm::load(source, Name::Weight(layer, part), count, config);
        let (attention_norm, mlp_norm) = (
            norm(Part::AttentionNorm, hidden)?,
            norm(Part::MlpNorm, hidden)?,
        );
        let mut head_norm = |part| {
            let name = Name::Weight(layer, part);
            let is_there = source.has(name);
            is_there
                .then(|| Norm::load(source, name, dim, config))
                .transpose()
        };
        let (query_norm, key_norm) = (head_norm(Part::QueryNorm)?, head_norm(Part::KeyNorm)?);
        let dim_single = f32::from(u16::try_from(dim).unwrap_or(u16::MAX));
        Ok(Self {
            attention_norm,
            query,
            key,
            value,
            output,
            query_norm,
            key_norm,
            mlp_norm,
            gate,
            up,
            down,
            shape: Shape {
                heads: config.heads,
                kv_heads: config.kv_heads,
                head_dim: dim,
                scale: 1.0 / dim_single.sqrt(),
            },
        })
    }

    /// After a first row: what it does not need any more goes.
    pub(super) fn settle(&self) {
        for linear in [
            &self.query,
            &self.key,
            &self.value,
            &self.output,
            &self.gate,
            &self.up,
            &self.down,
        ] {
            linear.weight.settle();
        }
    }

    /// Computes this layer, the `layer`th of its range, for `x` (rows, hidden).
    pub(super) fn forward(
        &self,
        x: &Tensor,
        layer: usize,
        places: &[Place<'_>],
        rope: &Rope,
    ) -> Computed<Tensor> {
        let normed = self.attention_norm.forward(x)?;
        let heard = self.attend(&normed, layer, places, rope)?;
        let x = (x + self.output.forward(&heard)?)?;
        let normed = self.mlp_norm.forward(&x)?;
        let [gate, up] = forward_all(&normed, [&self.gate, &self.up])?;
        let wide = (candle_nn::ops::silu(&gate)? * up)?;
        x + self.down.forward(&wide)?
    }

    fn attend(
        &self,
        x: &Tensor,
        layer: usize,
        places: &[Place<'_>],
        rope: &Rope,
    ) -> Computed<Tensor> {
        let Shape {
            heads,
            kv_heads,
            head_dim,
            scale,
        } = self.shape;
        let rows = x.dim(0)?;
        let by_head = |y: Tensor, heads: usize, norm: Option<&Norm>| -> Computed<Tensor> {
            let y = y.reshape((1, rows, heads, head_dim))?;
            norm.map_or_else(|| Ok(y.clone()), |norm| norm.forward(&y))
        };
        let [queries, keys, values] = forward_all(x, [&self.query, &self.key, &self.value])?;
        let queries = by_head(queries, heads, self.query_norm.as_ref())?;
        let keys = by_head(keys, kv_heads, self.key_norm.as_ref())?;
        let values = by_head(values, kv_heads, None)?;
        let mut heard = Vec::with_capacity(places.len());
        for place in places {
            let own = |all: &Tensor| all.narrow(1, place.at, place.rows);
            let query = rope.turn(&own(&queries)?, place.pos)?;
            let key = rope.turn(&own(&keys)?, place.pos)?;
            let (keys, values) = place.kv.write(layer, place.pos, &key, &own(&values)?)?;
            let mask = AttnMask::causal_with_offset(place.pos);
            let one = flash_attn::<f32>(&query, &keys, &values, scale, mask, None, None)?;
            let one = one.transpose(1, 2)?;
            heard.push(one.reshape((place.rows, heads * head_dim))?);
        }
        match heard.as_slice() {
            [one] => Ok(one.clone()),
            all => Tensor::cat(all, 0),
        }
    }
}
