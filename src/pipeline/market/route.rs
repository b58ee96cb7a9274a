//! The way through a model, or through the layers of a lost stage, that takes least time and money.
//!
//! Time and price become one number by what a second is worth to whoever asks. Exact: a table over
//! borders and hops, whose edges are the stages.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{HOPS_MAX, Offered};
use crate::protocol::offer::Wires;
use crate::types::PeerId;

/// What a way is wanted for.
#[derive(Clone, Debug)]
pub struct Ask<'a> {
    /// Layers to run.
    pub layers: Range<u16>,
    /// Positions that each stage must still have room for.
    pub positions: u32,
    /// Forms of rows that each stage must speak.
    pub wires: Wires,
    /// Most stages; [`HOPS_MAX`] for a whole model.
    pub hops_max: usize,
    /// What a second is worth, micro-USD.
    pub second_worth: u64,
    /// Never these.
    pub without: &'a [PeerId],
}

impl Ask<'_> {
    /// A way through a whole model of `layers` layers with room for `positions`.
    #[must_use]
    pub const fn whole(layers: u16, positions: u32, second_worth: u64) -> Self {
        Self {
            layers: 0..layers,
            positions,
            wires: Wires::F16,
            hops_max: HOPS_MAX,
            second_worth,
            without: &[],
        }
    }
    fn allows(&self, one: &Offered) -> bool {
        one.rows_per_s > 0
            && one.terms.free_positions >= self.positions
            && one.terms.wires.contains(self.wires)
            && one.terms.first >= self.layers.start
            && one.terms.end <= self.layers.end
            && one.terms.first < one.terms.end
            && !self.without.contains(&one.peer)
    }
}

/// Stages one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Places in the list that was asked, in order of layers.
    pub hops: Vec<usize>,
    /// Time of one decode row through all of them, µs.
    pub row_us: u64,
    /// What a million decode rows cost, micro-USD.
    pub row_price: u64,
    score: u128,
}

impl Route {
    /// Decode rows per second of one session, in thousandths.
    #[must_use]
    pub const fn milli_rows_per_s(&self) -> u64 {
        match 1_000_000_000u64.checked_div(self.row_us) {
            Some(rate) => rate,
            None => u64::MAX,
        }
    }
    fn with(&self, at: usize, one: &Offered, ask: &Ask<'_>) -> Self {
        let mut hops = self.hops.clone();
        hops.push(at);
        let row_us = self.row_us.saturating_add(one.row_us());
        let row_price = self.row_price.saturating_add(one.row_price());
        // Both in millionths of a micro-USD per row.
        let score = u128::from(row_us) * u128::from(ask.second_worth) + u128::from(row_price);
        Self {
            hops,
            row_us,
            row_price,
            score,
        }
    }
    /// Less is better: worth of the time and price together, then fewer hops.
    const fn key(&self) -> (u128, usize) {
        (self.score, self.hops.len())
    }
}

/// The best way through `ask.layers`; `None` when there is none. A seller has one stage of a model,
/// so no way meets it twice.
#[must_use]
pub fn best(offered: &[Offered], ask: &Ask<'_>) -> Option<Route> {
    let mut edges: Vec<(usize, &Offered)> = offered.iter().enumerate().collect();
    edges.retain(|(_, one)| ask.allows(one));
    // By their beginnings: when an edge's turn comes, every way to its beginning is known.
    edges.sort_by_key(|(at, one)| (one.terms.first, *at));
    // The best way of exactly so many hops to a border.
    let mut ways: BTreeMap<(u16, usize), Route> = BTreeMap::new();
    let start = Route {
        hops: Vec::new(),
        row_us: 0,
        row_price: 0,
        score: 0,
    };
    ways.insert((ask.layers.start, 0), start);
    for (at, one) in edges {
        for hops in 0..ask.hops_max {
            let Some(before) = ways.get(&(one.terms.first, hops)) else {
                continue;
            };
            let way = before.with(at, one, ask);
            let known = ways.get(&(one.terms.end, hops + 1));
            if known.is_none_or(|known| way.key() < known.key()) {
                ways.insert((one.terms.end, hops + 1), way);
            }
        }
    }
    let ended = ways
        .into_iter()
        .filter(|((end, _), _)| *end == ask.layers.end);
    ended
        .map(|(_, way)| way)
        .filter(|way| !way.hops.is_empty())
        .min_by_key(Route::key)
}
