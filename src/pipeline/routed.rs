//! Stages at the market for a head that orders them: those on the best way first, then whoever else
//! there is. The list is what the offer book has heard; how fast a stage is, what this head measured
//! of it, if it did, else what the offer claims. Nothing here waits.

use std::sync::Arc;
use std::time::Instant;

use super::chain::Want;
use super::chain::order::Places;
use super::error::PipelineError;
use super::market::{Ask, HOPS_MAX, Offered, Route, route};
use super::trust::{Part, Trust};
use crate::discovery::OfferBook;
use crate::protocol::offer::{SignedOffer, Wires};
use crate::protocol::stage::WireFormat;
use crate::types::{Hash32, MicroUsd, PeerId};

/// Stages named for one place: the best and those to try when it refuses.
const CHOICES_MAX: usize = 8;

/// See the module.
pub struct Routed {
    book: OfferBook,
    manifest: Hash32,
    rules: Rules,
    trust: Trust,
}

/// Which stages a head takes.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// What a second is worth, micro-USD.
    pub second_worth: u64,
    /// Only these; empty: all.
    pub only: Vec<PeerId>,
    /// Never these.
    pub never: Vec<PeerId>,
    /// The most that a million rows through the whole model may cost.
    pub most: Option<Most>,
}

/// A most for a million rows, and why.
#[derive(Clone, Debug)]
pub struct Most {
    /// Prefill, micro-USD.
    pub prefill: u64,
    /// Decode, micro-USD.
    pub decode: u64,
    /// Where it comes from and what raises it, for people.
    pub why: &'static str,
}

impl Rules {
    fn allow(&self, peer: &PeerId) -> bool {
        !self.never.contains(peer) && (self.only.is_empty() || self.only.contains(peer))
    }
}

impl Routed {
    /// Stages of the model `manifest` that `rules` allow; `trust` knows what was measured of them.
    #[must_use]
    pub const fn new(book: OfferBook, manifest: Hash32, rules: Rules, trust: Trust) -> Self {
        Self {
            book,
            manifest,
            rules,
            trust,
        }
    }

    /// The offers that may be taken, and what is believed of each.
    fn allowed(&self) -> (Vec<Arc<SignedOffer>>, Vec<Offered>) {
        let live = self.book.stages(&self.manifest);
        let usable = live.iter().filter(|o| {
            let peer = &o.offer.seller;
            !self.book.is_dead(peer) && self.rules.allow(peer)
        });
        let signed: Vec<Arc<SignedOffer>> = usable.map(Arc::clone).collect();
        let now = Instant::now();
        let claimed = signed.iter().filter_map(|o| Offered::claimed(o));
        let offered = claimed.map(|one| measured(one, &self.trust, now)).collect();
        (signed, offered)
    }

    /// The stages that may be taken now.
    #[must_use]
    pub fn offered(&self) -> Vec<Offered> {
        self.allowed().1
    }

    /// What a million tokens cost on the best way through `layers` layers: in, out, micro-USD.
    #[must_use]
    pub fn best_prices(&self, layers: u16) -> Option<(u64, u64)> {
        self.book.want_stages(&self.manifest);
        let offered = self.offered();
        let ask = Ask::whole(layers, 1, self.rules.second_worth);
        let most = self
            .rules
            .most
            .as_ref()
            .map(|most| (most.prefill, most.decode));
        affordable(&offered, &ask, most).map(|way| prices(&offered, &way))
    }

    /// What the stages that serve already leave of the most.
    fn left(&self, want: &Want) -> Option<(u64, u64)> {
        let most = self.rules.most.as_ref()?;
        let (prefill, decode) = want.patron.prices();
        Some((
            most.prefill.saturating_sub(prefill),
            most.decode.saturating_sub(decode),
        ))
    }
}

/// The offer with the time that a row was measured to take there, its way included, if it was.
fn measured(mut offered: Offered, trust: &Trust, now: Instant) -> Offered {
    let part = Part {
        peer: offered.peer,
        first: offered.terms.first,
        end: offered.terms.end,
    };
    if let Some(row_us) = trust.row_us(&part, now) {
        let rows_per_s = 1_000_000u64.checked_div(row_us).unwrap_or(0).max(1);
        offered.rows_per_s = u32::try_from(rows_per_s).unwrap_or(u32::MAX);
        offered.link_us = 0;
    }
    offered
}

impl Places for Routed {
    fn offers(&self, want: &Want) -> Vec<Arc<SignedOffer>> {
        self.book.want_stages(&self.manifest);
        let (signed, offered) = self.allowed();
        let chosen = choices(&offered, want, self.rules.second_worth, self.left(want));
        let by_hash = |hash: &Hash32| signed.iter().find(|o| o.hash == *hash);
        chosen
            .iter()
            .filter_map(|hash| by_hash(hash).map(Arc::clone))
            .collect()
    }

    fn nobody(&self, want: &Want) -> PipelineError {
        let first = want.first;
        let (_, offered) = self.allowed();
        let not: Vec<PeerId> = want.not.iter().copied().collect();
        let ask = ask(want, 0, &not);
        let way = route::best(&offered, &ask);
        let is_too_dear = affordable(&offered, &ask, self.left(want)).is_none();
        match (way.filter(|_| is_too_dear), &self.rules.most) {
            (Some(way), Some(most)) => {
                let (prefill, decode) = prices(&offered, &way);
                let (input, output) = want.patron.prices();
                let usd = |price| MicroUsd(price).to_json_number();
                PipelineError::Budget(format!(
                    "layers from {first} on cost ${} in and ${} out per million tokens at the \
                     cheapest, and ${} and ${} are allowed: {}",
                    usd(prefill),
                    usd(decode),
                    usd(most.prefill.saturating_sub(input)),
                    usd(most.decode.saturating_sub(output)),
                    most.why
                ))
            }
            _ if !self.rules.only.is_empty() => {
                let why = format!("none of [head] stages offers layers from {first} on");
                PipelineError::Lost(why)
            }
            _ => PipelineError::Lost(format!("nobody offers layers from {first} on")),
        }
    }
}

/// What is asked of the market for a place.
fn ask<'a>(want: &Want, second_worth: u64, without: &'a [PeerId]) -> Ask<'a> {
    Ask {
        layers: want.first..want.end,
        positions: want.positions_max,
        wires: match want.wire {
            WireFormat::F16 => Wires::F16,
            WireFormat::F32 => Wires::F32,
            WireFormat::Int8 => Wires::INT8,
        },
        hops_max: HOPS_MAX,
        second_worth,
        without,
    }
}

/// What a million rows cost on a way: prefill, decode.
fn prices(offered: &[Offered], way: &Route) -> (u64, u64) {
    let hops = way.hops.iter().filter_map(|hop| offered.get(*hop));
    let prefill = hops.map(Offered::prefill_price);
    (prefill.fold(0, u64::saturating_add), way.row_price)
}

/// The best way that costs no more than this; where that is too dear, the cheapest.
fn affordable(offered: &[Offered], ask: &Ask<'_>, most: Option<(u64, u64)>) -> Option<Route> {
    let within = |way: &Route| {
        let (prefill, decode) = prices(offered, way);
        most.is_none_or(|most| prefill <= most.0 && decode <= most.1)
    };
    let best = route::best(offered, ask)?;
    if within(&best) {
        return Some(best);
    }
    let cheap = Ask {
        second_worth: 0,
        ..ask.clone()
    };
    route::best(offered, &cheap).filter(within)
}

/// Those of `live` to ask for a place, the best first: the first stages of the best ways, by what was
/// measured of them, or else by what they claim.
#[must_use]
pub fn chosen(
    live: &[Arc<SignedOffer>],
    want: &Want,
    second_worth: u64,
    trust: &Trust,
) -> Vec<Arc<SignedOffer>> {
    let now = Instant::now();
    let claimed = live.iter().filter_map(|offer| Offered::claimed(offer));
    let offered: Vec<Offered> = claimed.map(|one| measured(one, trust, now)).collect();
    let by_hash = |hash: &Hash32| live.iter().find(|offer| offer.hash == *hash);
    choices(&offered, want, second_worth, None)
        .iter()
        .filter_map(|hash| by_hash(hash).map(Arc::clone))
        .collect()
}

/// The first stages of the best ways, the best first, each of another peer; offers by their hashes.
fn choices(
    offered: &[Offered],
    want: &Want,
    second_worth: u64,
    most: Option<(u64, u64)>,
) -> Vec<Hash32> {
    let mut without: Vec<PeerId> = want.not.iter().copied().collect();
    let mut chosen = Vec::new();
    while chosen.len() < CHOICES_MAX {
        let way = affordable(offered, &ask(want, second_worth, &without), most);
        let first = way.and_then(|way| way.hops.first().and_then(|hop| offered.get(*hop)));
        let Some(first) = first else {
            break;
        };
        without.push(first.peer);
        chosen.push(first.offer);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::pipeline::market::tests::{peer, stage};
    use crate::pipeline::patron::Patron;
    use crate::pipeline::session::HopId;
    use crate::protocol::stage::StageSession;

    #[test]
    fn the_best_way_is_named_first_and_each_peer_once() {
        let mut offered = vec![
            stage(1, 30, 0..10, 10),
            stage(2, 30, 10..30, 10),
            stage(3, 30, 0..30, 20),
            stage(4, 30, 0..10, 40),
            stage(5, 30, 0..9, 90),
        ];
        for (at, one) in offered.iter_mut().enumerate() {
            one.offer = Hash32([u8::try_from(at).unwrap(); 32]);
        }
        let want = |not: &[u16]| Want {
            id: HopId(0),
            session: StageSession([0; 16]),
            first: 0,
            end: 30,
            positions_max: 100,
            wire: WireFormat::F16,
            not: not.iter().map(|n| peer(*n)).collect::<BTreeSet<_>>(),
            patron: Patron::default(),
        };
        let named = |not: &[u16]| -> Vec<u8> {
            let chosen = choices(&offered, &want(not), 500, None);
            chosen.iter().map(|hash| hash.0[0]).collect()
        };
        // Nobody goes on from layer 9, so the quickest is of no use.
        assert_eq!(named(&[]), [2, 3, 0]);
        assert_eq!(named(&[3]), [3, 0]);
        assert_eq!(named(&[2, 3]), [0u8; 0]);
    }

    #[test]
    fn a_way_that_costs_more_than_it_may_is_not_taken() {
        let mut offered = vec![
            stage(1, 30, 0..10, 90),
            stage(2, 30, 0..10, 10),
            stage(3, 30, 10..30, 10),
        ];
        for (at, (one, price)) in offered.iter_mut().zip([50, 2, 3]).enumerate() {
            one.offer = Hash32([u8::try_from(at).unwrap(); 32]);
            (one.price.input, one.price.output) = (price / 2, price);
        }
        let want = Want {
            id: HopId(0),
            session: StageSession([0; 16]),
            first: 0,
            end: 30,
            positions_max: 100,
            wire: WireFormat::F16,
            not: BTreeSet::new(),
            patron: Patron::default(),
        };
        let named = |most| -> Vec<u8> {
            let chosen = choices(&offered, &want, 500, most);
            chosen.iter().map(|hash| hash.0[0]).collect()
        };
        assert_eq!(named(None), [0, 1]);
        // The quick one and the rest cost 560 and 280; the slow one and the rest 80 and 30.
        assert_eq!(named(Some((270, 560))), [0, 1]);
        assert_eq!(named(Some((270, 559))), [1]);
        assert_eq!(named(Some((30, 80))), [1]);
        assert_eq!(named(Some((30, 79))), [0u8; 0]);
        assert_eq!(named(Some((29, 80))), [0u8; 0]);
    }
}
