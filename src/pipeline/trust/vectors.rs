//! Rows that the head knows the results of, for any range of layers.
//!
//! Made once per start, of tokens that nobody else knows, one layer after the other, so that what a
//! stage is asked for the first time looks like any other rows before its first layer. What it must
//! come out with is computed for just its range, from just the bits that travel: small models turn
//! the rounding of 16 bits into some per cent, and a stage must not be blamed for the wire.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{Mutex, oneshot};

use super::super::error::PipelineError;
use super::super::rows;
use super::compare::agree;
use super::reference::Reference;
use crate::protocol::stage::WireFormat;
use crate::tasks::Tasks;

/// Rows of a check. Few, because each is paid for; more than one, because a row must depend on the
/// rows before it.
pub const CHECK_ROWS: u16 = 8;

/// Rows before each layer, and what becomes of them in the ranges that were asked for.
pub struct Vectors {
    hidden: usize,
    borders: Vec<Vec<f32>>,
    checks: Mutex<BTreeMap<(u16, u16, bool), Arc<Check>>>,
}

/// What a stage is asked, and what it must answer but for rounding.
#[derive(Debug)]
pub struct Check {
    /// The rows, as they travel.
    pub input: Bytes,
    /// How they do.
    pub wire: WireFormat,
    hidden: usize,
    expected: Vec<f32>,
}

impl Check {
    /// True when these results, as they travel, are right.
    #[must_use]
    pub fn confirm(&self, results: &Bytes) -> bool {
        let numbers = rows::from_bytes(results, self.hidden, self.wire);
        numbers.is_some_and(|numbers| agree(&numbers, &self.expected, self.hidden))
    }
}

impl Vectors {
    /// Takes `rows` (n × `hidden` numbers) through all `layers`; `progress` is told after each how
    /// many there are.
    ///
    /// # Errors
    /// When the model cannot be read or computed, or gives rows of another size.
    pub async fn make(
        reference: &dyn Reference,
        rows: Vec<f32>,
        hidden: usize,
        layers: u16,
        progress: &(dyn Fn(u16) + Send + Sync),
    ) -> Result<Self, PipelineError> {
        let size = rows.len();
        let mut borders = vec![rows];
        for layer in 0..layers {
            let rows = borders.last().cloned().unwrap_or_default();
            let rows = reference.compute(layer, layer + 1, rows).await?;
            if rows.len() != size {
                let why = format!("layer {layer} gave {} numbers for {size}", rows.len());
                return Err(PipelineError::Failed(why));
            }
            borders.push(rows);
            progress(layer + 1);
        }
        Ok(Self {
            hidden,
            borders,
            checks: Mutex::default(),
        })
    }

    /// The check of layers `first..end`, computed by `reference` when it is wanted for the first time.
    /// That goes on when the caller does not wait for it: the next one will need it too.
    ///
    /// # Errors
    /// [`PipelineError::Invalid`] for layers that the model does not have, and what computing ran into.
    pub async fn check(
        self: &Arc<Self>,
        reference: &Arc<dyn Reference>,
        tasks: &Tasks,
        (first, end): (u16, u16),
        wire: WireFormat,
    ) -> Result<Arc<Check>, PipelineError> {
        let (tell, told) = oneshot::channel();
        let (this, reference) = (Arc::clone(self), Arc::clone(reference));
        tasks.spawn("check-rows", async move {
            // Whoever asked may have gone.
            let _ = tell.send(this.computed(&*reference, first, end, wire).await);
        });
        told.await.map_err(|_| PipelineError::Stopped)?
    }

    async fn computed(
        &self,
        reference: &dyn Reference,
        first: u16,
        end: u16,
        wire: WireFormat,
    ) -> Result<Arc<Check>, PipelineError> {
        // Eight bits are too coarse to tell rounding from lies.
        let wire = match wire {
            WireFormat::Int8 => WireFormat::F16,
            wire => wire,
        };
        let key = (first, end, wire == WireFormat::F32);
        let mut checks = self.checks.lock().await;
        if let Some(check) = checks.get(&key) {
            return Ok(Arc::clone(check));
        }
        let invalid = || PipelineError::Invalid(format!("the model has no layers {first}..{end}"));
        let is_there = first < end && usize::from(end) < self.borders.len();
        let border = self.borders.get(usize::from(first)).filter(|_| is_there);
        let input = rows::to_bytes(border.ok_or_else(invalid)?, self.hidden, wire);
        let travelled = rows::from_bytes(&input, self.hidden, wire).ok_or_else(invalid)?;
        let check = Arc::new(Check {
            expected: reference.compute(first, end, travelled).await?,
            input,
            wire,
            hidden: self.hidden,
        });
        checks.insert(key, Arc::clone(&check));
        Ok(check)
    }
}

#[cfg(test)]
mod tests {
    use futures::future::BoxFuture;

    use super::*;

    /// Layer `n` adds `n + 1` to every number; some layers are broken.
    struct Adds {
        broken: Option<u16>,
    }

    impl Reference for Adds {
        fn compute(
            &self,
            first: u16,
            end: u16,
            mut rows: Vec<f32>,
        ) -> BoxFuture<'_, Result<Vec<f32>, PipelineError>> {
            Box::pin(async move {
                for layer in first..end {
                    rows.iter_mut().for_each(|x| *x += f32::from(layer + 1));
                    if self.broken == Some(layer) {
                        rows.pop();
                    }
                }
                Ok(rows)
            })
        }
    }

    #[tokio::test]
    async fn any_range_is_checked_at_its_borders() {
        let told = parking_lot::Mutex::new(vec![]);
        let progress = |layer| told.lock().push(layer);
        let sound = Adds { broken: None };
        let vectors = Vectors::make(&sound, vec![1.0; 8], 4, 3, &progress).await;
        let vectors = Arc::new(vectors.unwrap());
        assert_eq!(*told.lock(), [1, 2, 3]);
        let (reference, tasks): (Arc<dyn Reference>, _) = (Arc::new(sound), Tasks::new());
        for (first, end) in [(0, 1), (0, 3), (1, 2), (1, 3), (2, 3)] {
            let wire = WireFormat::F16;
            let check = vectors.check(&reference, &tasks, (first, end), wire).await;
            let check = check.unwrap();
            let input = rows::from_bytes(&check.input, 4, wire).unwrap();
            assert_eq!(input, vectors.borders[usize::from(first)]);
            let mut out = reference.compute(first, end, input).await.unwrap();
            assert!(
                check.confirm(&rows::to_bytes(&out, 4, wire)),
                "{first}..{end}"
            );
            out[5] *= 1.2;
            assert!(
                !check.confirm(&rows::to_bytes(&out, 4, wire)),
                "{first}..{end}"
            );
            assert!(!check.confirm(&Bytes::from_static(b"no rows")));
        }
        for range in [(0, 4), (3, 3), (3, 4), (9, 2)] {
            let check = vectors
                .check(&reference, &tasks, range, WireFormat::F16)
                .await;
            assert!(matches!(check, Err(PipelineError::Invalid(_))), "{range:?}");
        }
        let broken = Adds { broken: Some(1) };
        let made = Vectors::make(&broken, vec![1.0; 8], 4, 3, &|_| {}).await;
        assert!(matches!(made, Err(PipelineError::Failed(_))));
    }
}
