//! The two ends of a model: tokens to rows, and a last row to the logits of the next token.

use std::path::Path;

use candle_core::quantized::QMatMul;
use candle_core::{Device, Tensor};

use super::block::Norm;
use super::config::ModelConfig;
use super::source::{Name, Source};
use super::weights::Weights;
use super::{EngineError, Precision};

/// Embedding, last norm and output of a model.
pub struct Head {
    config: ModelConfig,
    embedding: QMatMul,
    norm: Norm,
    /// Made of the embedding where that serves for it.
    logits: Weights,
}

impl Head {
    /// Reads the ends of the model at `path`.
    ///
    /// # Errors
    /// As [`super::Stage::load`].
    pub fn load(path: &Path, precision: Precision) -> Result<Self, EngineError> {
        let (mut source, config) = Source::open(path)?;
        let shape = (config.vocabulary, config.hidden);
        let embedding = source.matrix(Name::Embedding, shape, precision)?;
        let logits = if source.has(Name::Logits) {
            source.matrix(Name::Logits, shape, precision)?
        } else {
            embedding.clone()
        };
        let head = Self {
            embedding,
            norm: Norm::load(&mut source, Name::LastNorm, config.hidden, &config)?,
            logits: Weights::new(logits)?,
            config,
        };
        // As a stage does: the first use of a matrix is slow.
        head.logits(&vec![1.0; head.config.hidden])?;
        head.logits.settle();
        Ok(head)
    }

    /// The model's shape.
    #[must_use]
    pub const fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// One row of `hidden` numbers per token.
    ///
    /// # Errors
    /// When a token is not in the vocabulary.
    pub fn embed(&self, tokens: &[u32]) -> Result<Vec<f32>, EngineError> {
        let is_known =
            |token: &u32| usize::try_from(*token).is_ok_and(|token| token < self.config.vocabulary);
        if let Some(odd) = tokens.iter().find(|token| !is_known(token)) {
            return Err(EngineError::Shape(format!(
                "token {odd} is not in the vocabulary"
            )));
        }
        let tokens = Tensor::new(tokens, &Device::Cpu)?;
        let rows = self.embedding.embedding(&tokens)?;
        Ok(rows.flatten_all()?.to_vec1()?)
    }

    /// The logits of the token after the last of `rows`.
    ///
    /// # Errors
    /// When there is no whole row.
    pub fn logits(&self, rows: &[f32]) -> Result<Vec<f32>, EngineError> {
        let hidden = self.config.hidden;
        let last = rows.len().checked_sub(hidden).and_then(|at| rows.get(at..));
        let last = last.ok_or_else(|| EngineError::Shape("no whole row".to_owned()))?;
        self.logits_each(last)
    }

    /// The logits after each of `rows`, `vocabulary` numbers a row.
    ///
    /// # Errors
    /// When these are no whole rows.
    pub fn logits_each(&self, rows: &[f32]) -> Result<Vec<f32>, EngineError> {
        let hidden = self.config.hidden;
        let count = rows.len().checked_div(hidden).unwrap_or(0);
        if count == 0 || count * hidden != rows.len() {
            return Err(EngineError::Shape("no whole rows".to_owned()));
        }
        Ok(self.logits.forward(&self.norm.of(rows), hidden)?)
    }
}
