//! Where a joiner's layers are worth most.
//!
//! While rows find no way through the model, a joiner takes layers that make one, or that bring it
//! nearest: from one end of the missing piece, in equal parts, because as many stages are needed
//! anyway. Once there is a way it takes, between borders of ways, the layers that least is done
//! for. Both ends of what it takes lie on borders that others have, else no rows would come.

use std::cmp::Reverse;
use std::ops::Range;

use super::{Coverage, rank};
use crate::types::PeerId;

/// Two windows count as equally well served when their work differs by less than this, per cent.
const ALIKE_PERCENT: u128 = 5;

/// Who looks for a place.
#[derive(Clone, Copy, Debug)]
pub struct Joiner<'a> {
    /// Itself: of joiners that come together each takes another of equal places.
    pub peer: &'a PeerId,
    /// Most layers that fit into its memory.
    pub layers_max: u16,
    /// Layers whose weights it has; empty: those of all.
    pub on_disk: &'a [Range<u16>],
}

impl Joiner<'_> {
    fn has(&self, range: &Range<u16>) -> bool {
        let within = |own: &Range<u16>| own.start <= range.start && range.end <= own.end;
        self.on_disk.is_empty() || self.on_disk.iter().any(within)
    }
    fn rank(&self, range: &Range<u16>) -> u64 {
        rank(
            self.peer,
            u64::from(range.start) << 16 | u64::from(range.end),
        )
    }
}

/// The layers to take, given what the others cover; `None` when none fits into memory. Layers on
/// disk are taken where they are of any use; else the answer may be others, to be fetched first.
#[must_use]
pub fn place(others: &Coverage, joiner: &Joiner<'_>) -> Option<Range<u16>> {
    if joiner.layers_max == 0 || others.layers() == 0 {
        return None;
    }
    let candidates = if others.is_whole() {
        strengthening(others, joiner)
    } else {
        completing(others, joiner)
    };
    let own: Vec<_> = candidates
        .iter()
        .filter(|c| joiner.has(c))
        .cloned()
        .collect();
    let candidates = if own.is_empty() { candidates } else { own };
    let candidates = if others.is_whole() {
        least_served(others, candidates)
    } else {
        candidates
    };
    candidates
        .into_iter()
        .min_by_key(|range| (Reverse(range.len()), joiner.rank(range)))
}

/// Ranges that make a way, or that shorten the missing piece.
fn completing(others: &Coverage, joiner: &Joiner<'_>) -> Vec<Range<u16>> {
    let all = between(others.reached().iter(), others.leading().iter());
    let fitting = fit(&all, joiner.layers_max);
    if !fitting.is_empty() {
        return fitting;
    }
    let missing = all.into_iter().min_by_key(|gap| (gap.len(), gap.start));
    missing.map_or_else(Vec::new, |gap| parts(&gap, joiner.layers_max))
}

/// Ranges between borders of ways; parts of one where no stage is small enough for this joiner.
fn strengthening(others: &Coverage, joiner: &Joiner<'_>) -> Vec<Range<u16>> {
    let borders = others.on_the_way();
    let fitting = fit(&between(borders.iter(), borders.iter()), joiner.layers_max);
    if !fitting.is_empty() {
        return fitting;
    }
    let pieces = borders.windows(2).filter_map(|pair| match pair {
        [start, end] => Some(*start..*end),
        _ => None,
    });
    pieces
        .flat_map(|piece| parts(&piece, joiner.layers_max))
        .collect()
}

fn between<'a>(
    starts: impl Iterator<Item = &'a u16>,
    ends: impl Iterator<Item = &'a u16> + Clone,
) -> Vec<Range<u16>> {
    starts
        .flat_map(|start| ends.clone().map(|end| *start..*end))
        .filter(|range| !range.is_empty())
        .collect()
}

fn fit(ranges: &[Range<u16>], layers_max: u16) -> Vec<Range<u16>> {
    let small = ranges.iter().filter(|r| r.len() <= usize::from(layers_max));
    small.cloned().collect()
}

/// The first and the last of the equal parts into which `gap` falls when none is above `layers_max`.
fn parts(gap: &Range<u16>, layers_max: u16) -> Vec<Range<u16>> {
    let length = gap.end.saturating_sub(gap.start);
    let part = length.div_ceil(length.div_ceil(layers_max.max(1)).max(1));
    vec![
        gap.start..gap.start.saturating_add(part),
        gap.end.saturating_sub(part)..gap.end,
    ]
}

/// Those of the candidates for which least is done per layer, and those nearly like them.
fn least_served(others: &Coverage, candidates: Vec<Range<u16>>) -> Vec<Range<u16>> {
    // As a fraction: work over layers.
    let mean = |range: &Range<u16>| (u128::from(others.work(range)), width(range));
    let below = |a: (u128, u128), b: (u128, u128)| a.0 * b.1 < b.0 * a.1;
    let mut least: Option<(u128, u128)> = None;
    for range in &candidates {
        let this = mean(range);
        if least.is_none_or(|least| below(this, least)) {
            least = Some(this);
        }
    }
    let Some((work, layers)) = least else {
        return candidates;
    };
    let alike = (work * (100 + ALIKE_PERCENT), layers * 100);
    let is_alike = |range: &Range<u16>| !below(alike, mean(range));
    candidates.into_iter().filter(is_alike).collect()
}

fn width(range: &Range<u16>) -> u128 {
    u128::from(range.end.saturating_sub(range.start))
}
