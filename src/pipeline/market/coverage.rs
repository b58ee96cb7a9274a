//! What the stages on offer reach together.

use std::collections::BTreeSet;
use std::ops::Range;

use super::Offered;

/// How far rows get through a model of so many layers, and how much is computed of each layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coverage {
    layers: u16,
    /// Borders that rows from the first layer reach.
    reached: BTreeSet<u16>,
    /// Borders from which rows reach the end.
    leading: BTreeSet<u16>,
    /// Rows per second of each layer, of stages with a way to one of the ends.
    rows: Vec<u64>,
    stages: usize,
}

impl Coverage {
    /// Of the stages `offered` of a model with `layers` layers; those of other models, and those
    /// that are not believed to compute at all, do not count.
    #[must_use]
    pub fn of<'a>(layers: u16, offered: impl IntoIterator<Item = &'a Offered>) -> Self {
        let counts = |o: &&Offered| {
            o.rows_per_s > 0 && o.terms.layers == layers && o.terms.first < o.terms.end
        };
        let mut stages: Vec<&Offered> = offered.into_iter().filter(counts).collect();
        stages.sort_by_key(|o| (o.terms.first, o.terms.end));
        let mut reached = BTreeSet::from([0]);
        for stage in &stages {
            // In order of their beginnings: whatever leads to this one has been seen.
            if reached.contains(&stage.terms.first) {
                reached.insert(stage.terms.end);
            }
        }
        stages.sort_by_key(|o| std::cmp::Reverse((o.terms.end, o.terms.first)));
        let mut leading = BTreeSet::from([layers]);
        for stage in &stages {
            if leading.contains(&stage.terms.end) {
                leading.insert(stage.terms.first);
            }
        }
        let mut rows = vec![0u64; usize::from(layers)];
        for stage in &stages {
            let terms = &stage.terms;
            if !reached.contains(&terms.first) && !leading.contains(&terms.end) {
                continue;
            }
            let here = usize::from(terms.first)..usize::from(terms.end);
            for layer in rows.get_mut(here).into_iter().flatten() {
                *layer = layer.saturating_add(stage.rows_per_s.into());
            }
        }
        Self {
            layers,
            reached,
            leading,
            rows,
            stages: stages.len(),
        }
    }
    /// Layers of the model.
    #[must_use]
    pub const fn layers(&self) -> u16 {
        self.layers
    }
    /// Stages that count.
    #[must_use]
    pub const fn stages(&self) -> usize {
        self.stages
    }
    /// True when rows find a way through, of however many stages.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.reached.contains(&self.layers)
    }
    /// Layers that some stage computes.
    #[must_use]
    pub fn covered(&self) -> usize {
        self.rows.iter().filter(|rows| **rows > 0).count()
    }
    /// Rows per second over the layers of `range` added up; divide by its length for the mean.
    #[must_use]
    pub fn work(&self, range: &Range<u16>) -> u64 {
        let here = usize::from(range.start)..usize::from(range.end);
        self.rows.get(here).map_or(0, |rows| {
            rows.iter().fold(0, |sum, rows| sum.saturating_add(*rows))
        })
    }
    /// Borders that rows from the first layer reach.
    pub(super) const fn reached(&self) -> &BTreeSet<u16> {
        &self.reached
    }
    /// Borders from which rows reach the end.
    pub(super) const fn leading(&self) -> &BTreeSet<u16> {
        &self.leading
    }
    /// Borders on a whole way, in order.
    pub(super) fn on_the_way(&self) -> Vec<u16> {
        let both = self.reached.intersection(&self.leading);
        both.copied().collect()
    }
}
