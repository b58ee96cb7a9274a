//! One decoder layer: norm, attention, norm, MLP, each added to what came in.
//!
//! Rows of several slots go through the matrices together, which is what makes eight streams cost
//! little more than one; only attention looks at each slot alone.

use super::attention::{self, Shape};
use super::config::ModelConfig;
use super::kv::Kv;
use super::rope::Rope;
use super::source::{Name, Part, Source};
use super::vectors;
use super::weights::Weights;
use super::{EngineError, Precision};

type Computed<T> = candle_core::Result<T>;

/// A matrix with its bias, if it has one.
struct Linear {
    weight: Weights,
    bias: Option<Vec<f32>>,
    inputs: usize,
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
        Ok(Self {
            weight,
            bias,
            inputs,
        })
    }
    fn forward(&self, rows: &[f32]) -> Computed<Vec<f32>> {
        let [product] = forward_all(rows, self.inputs, [self])?;
        Ok(product)
    }
}

/// Several matrices times the same rows.
fn forward_all<const N: usize>(
    rows: &[f32],
    inputs: usize,
    all: [&Linear; N],
) -> Computed<[Vec<f32>; N]> {
    let mut products = Weights::forward_all(all.map(|linear| &linear.weight), rows, inputs)?;
    for (linear, product) in all.iter().zip(&mut products) {
        if let Some(bias) = &linear.bias {
            vectors::add_each(product, bias);
        }
    }
    Ok(products)
}

/// Divides by the root of the mean square.
pub(super) struct Norm {
    weight: Vec<f32>,
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
    pub(super) fn of(&self, rows: &[f32]) -> Vec<f32> {
        let mut rows = rows.to_vec();
        self.apply(&mut rows);
        rows
    }
    fn apply(&self, rows: &mut [f32]) {
        vectors::normalise(rows, &self.weight, self.epsilon);
    }
}

/// The rows of one slot in a batch.
pub(super) struct Place<'a> {
    /// How many.
    pub rows: usize,
    /// Their first position.
    pub pos: usize,
    /// There is room for them.
    pub kv: &'a mut Kv,
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
                scale: 1.0 / vectors::single(dim).sqrt(),
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

    /// Computes this layer, the `layer`th of its range, for `x`, rows of `hidden` numbers.
    pub(super) fn forward(
        &self,
        x: &mut [f32],
        layer: usize,
        places: &mut [Place<'_>],
        rope: &Rope,
    ) -> Computed<()> {
        let normed = self.attention_norm.of(x);
        let heard = self.attend(&normed, layer, places, rope)?;
        vectors::add(x, &self.output.forward(&heard)?);
        let normed = self.mlp_norm.of(x);
        let both = [&self.gate, &self.up];
        let [mut gate, up] = forward_all(&normed, self.gate.inputs, both)?;
        vectors::gated(&mut gate, &up);
        vectors::add(x, &self.down.forward(&gate)?);
        Ok(())
    }

    fn attend(
        &self,
        rows: &[f32],
        layer: usize,
        places: &mut [Place<'_>],
        rope: &Rope,
    ) -> Computed<Vec<f32>> {
        let Shape {
            heads,
            kv_heads,
            head_dim,
            ..
        } = self.shape;
        let all = [&self.query, &self.key, &self.value];
        let [mut queries, mut keys, values] = forward_all(rows, self.query.inputs, all)?;
        let norms = [&self.query_norm, &self.key_norm];
        for (norm, numbers) in norms.into_iter().zip([&mut queries, &mut keys]) {
            if let Some(norm) = norm {
                norm.apply(numbers);
            }
        }
        let mut slots = Vec::with_capacity(places.len());
        let (mut queries, mut keys, mut values) = (&mut *queries, &mut *keys, &*values);
        for Place { rows, pos, kv } in places {
            let (own, own_keys, own_values);
            (own, queries) = queries.split_at_mut(*rows * heads * head_dim);
            (own_keys, keys) = keys.split_at_mut(*rows * kv_heads * head_dim);
            (own_values, values) = values.split_at(own_keys.len());
            rope.turn(own, heads, *pos);
            rope.turn(own_keys, kv_heads, *pos);
            slots.push(attention::Rows {
                pos: *pos,
                queries: own,
                memories: kv.write(layer, *pos, own_keys, own_values),
            });
        }
        Ok(attention::attend(self.shape, &slots))
    }
}
