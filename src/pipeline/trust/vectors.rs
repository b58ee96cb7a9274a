//! Rows that the head knows the results of, at every border between layers.
//!
//! Made once per start, of tokens that nobody else knows, one layer after the other. What a stage is
//! asked for the first time are the rows at its first layer; it must come out with those at its last.

use super::super::error::PipelineError;
use super::compare::agree;
use super::reference::Reference;

/// Rows of a check. Few, because each is paid for; more than one, because a row must depend on the
/// rows before it.
pub const CHECK_ROWS: u16 = 8;

/// The same rows before each layer and behind the last.
#[derive(Clone, Debug, PartialEq)]
pub struct Vectors {
    hidden: usize,
    borders: Vec<Vec<f32>>,
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
        Ok(Self { hidden, borders })
    }

    /// The rows that go into layer `layer`, or come out of the last; none beyond it.
    #[must_use]
    pub fn at(&self, layer: u16) -> Option<&[f32]> {
        self.borders.get(usize::from(layer)).map(Vec::as_slice)
    }

    /// True when `rows` is what comes out before layer `end`.
    #[must_use]
    pub fn confirm(&self, end: u16, rows: &[f32]) -> bool {
        let expected = self.at(end);
        expected.is_some_and(|expected| agree(rows, expected, self.hidden))
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
        let vectors = vectors.unwrap();
        assert_eq!(*told.lock(), [1, 2, 3]);
        for first in 0..3u16 {
            for end in first + 1..=3 {
                let rows = vectors.at(first).unwrap().to_vec();
                let mut out = sound.compute(first, end, rows).await.unwrap();
                assert!(vectors.confirm(end, &out), "{first}..{end}");
                out[5] *= 1.2;
                assert!(!vectors.confirm(end, &out), "{first}..{end}");
            }
        }
        assert_eq!(vectors.at(4), None);
        assert!(!vectors.confirm(4, &[1.0; 8]));
        let broken = Adds { broken: Some(1) };
        let made = Vectors::make(&broken, vec![1.0; 8], 4, 3, &|_| {}).await;
        assert!(matches!(made, Err(PipelineError::Failed(_))));
    }
}
