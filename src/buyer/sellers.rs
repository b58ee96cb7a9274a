//! `/api/sellers`: every seller that offers something or that we have a channel with, with its
//! price, how it did lately, what can still be ordered from it, and why it is not used.

use std::collections::BTreeMap;
use std::sync::Arc;

use rust_decimal::prelude::ToPrimitive as _;
use serde_json::{Value, json};

use crate::discovery::OfferBook;
use crate::ledger::report::RequestRecord;
use crate::network::Handle;
use crate::payment::payer::{Pair, PayerHub};
use crate::protocol::offer::SignedOffer;
use crate::router::Router;
use crate::router::breaker::Gate;
use crate::router::record::{Evidence, ModelRecord};
use crate::types::{MicroUsd, PeerId, UnixMs};

/// Where the list is put together from.
pub(super) struct Sources<'a> {
    pub book: &'a OfferBook,
    pub router: &'a Router,
    pub payer: &'a PayerHub,
    pub network: &'a Handle,
    /// The newest attempts.
    pub recent: &'a [RequestRecord],
    pub now_ms: UnixMs,
}

#[derive(Default)]
struct Seller {
    offers: Vec<Arc<SignedOffer>>,
    pair: Option<Arc<Pair>>,
}

/// How a seller did lately.
#[derive(Debug, Default, PartialEq)]
struct Record {
    attempts: u32,
    good: u32,
}

/// How fast a seller's models are, the middle one of them.
struct Pace {
    ttft_ms: Option<u64>,
    tokens_per_second: Option<u64>,
}

/// All sellers, those with offers first, cheapest first.
pub(super) fn list(sources: &Sources<'_>) -> Vec<Value> {
    let mut sellers: BTreeMap<PeerId, Seller> = BTreeMap::new();
    for offer in sources.book.live() {
        let seller = sellers.entry(offer.offer.seller).or_default();
        seller.offers.push(offer);
    }
    for pair in sources.payer.pairs() {
        let peer = *pair.seller();
        sellers.entry(peer).or_default().pair = Some(pair);
    }
    let records = records(sources.recent);
    let mut all: Vec<_> = sellers.into_iter().collect();
    all.sort_by_cached_key(|(peer, seller)| {
        let cheapest = seller.offers.iter().map(price_of).min();
        (cheapest.is_none(), cheapest, *peer)
    });
    let value = |(peer, seller): &(PeerId, Seller)| {
        let record = records.get(peer.to_base58().as_str());
        seller_json(sources, peer, seller, record)
    };
    all.iter().map(value).collect()
}

fn price_of(offer: &Arc<SignedOffer>) -> u64 {
    let price = &offer.offer.price;
    price.input.saturating_add(price.output)
}

fn seller_json(
    sources: &Sources<'_>,
    peer: &PeerId,
    seller: &Seller,
    record: Option<&Record>,
) -> Value {
    let cheapest = seller.offers.iter().min_by_key(|offer| price_of(offer));
    let price = cheapest.map(|offer| offer.offer.price);
    let mut models: Vec<&str> = seller
        .offers
        .iter()
        .map(|o| o.offer.model.as_str())
        .collect();
    models.sort_unstable();
    let credit = seller.pair.as_ref().and_then(|pair| pair.headroom());
    let pace = Pace::of(sources.router, peer, &seller.offers);
    let (state, reason) = state_of(sources, peer, seller, credit);
    json!({
        "peer": peer.to_base58(),
        "models": models,
        "price_in_micro_usd": price.map(|price| price.input),
        "price_out_micro_usd": price.map(|price| price.output),
        "quality": record.and_then(Record::quality),
        "ttft_ms": pace.ttft_ms,
        "tokens_per_second": pace.tokens_per_second,
        "attempts": record.map_or(0, |record| record.attempts),
        "proven": sources.router.is_proven(peer),
        "credit_micro_usd": credit.map(|left| left.0),
        "in_doubt": seller.pair.as_ref().map(|pair| pair.snapshot().in_doubt),
        "connected": sources.network.is_connected(peer),
        "state": state,
        "reason": reason,
        "evidence": evidence(sources.router, peer),
    })
}

/// What a seller was found doing, newest first.
pub(super) fn evidence(router: &Router, peer: &PeerId) -> Vec<Value> {
    let record = router.record(peer).unwrap_or_default();
    let found = record.evidence.into_iter().rev();
    let one = |found: Evidence| json!({ "at_ms": found.at_ms, "what": found.what });
    found.map(one).collect()
}

fn state_of(
    sources: &Sources<'_>,
    peer: &PeerId,
    seller: &Seller,
    credit: Option<MicroUsd>,
) -> (&'static str, Option<String>) {
    if let Some(until) = sources.book.peers().dead_until(peer) {
        let seconds = until.saturating_sub(sources.now_ms).div_ceil(1_000);
        return (
            "set_aside",
            Some(format!("it failed; tried again in {seconds} s")),
        );
    }
    if let Some((state, why)) = judged(sources, peer) {
        return (state, Some(why));
    }
    if seller.offers.is_empty() {
        return ("gone", Some("it offers nothing now".to_owned()));
    }
    let is_free = seller
        .offers
        .iter()
        .all(|offer| offer.offer.price.is_free());
    if credit == Some(MicroUsd::ZERO) && !is_free {
        let how = "it gives no credit, or it is used up; pay it, and it books that with `node ledger settle`";
        return ("no_credit", Some(how.to_owned()));
    }
    if seller.pair.as_ref().is_some_and(|pair| pair.is_up()) {
        return ("ready", None);
    }
    if sources.network.is_connected(peer) {
        return ("connected", None);
    }
    ("known", Some("not asked for anything yet".to_owned()))
}

/// What the router holds against a seller.
fn judged(sources: &Sources<'_>, peer: &PeerId) -> Option<(&'static str, String)> {
    let record = sources.router.record(peer)?;
    if record.is_quarantined(sources.now_ms) {
        let hours = record
            .quarantine_until_ms()
            .saturating_sub(sources.now_ms)
            .div_ceil(3_600_000);
        let why = format!("{}; asked again in {hours} h", record.quarantine_reason);
        return Some(("quarantine", why));
    }
    if let Gate::Open(until_ms) = record.breaker.gate(sources.now_ms) {
        let seconds = until_ms.saturating_sub(sources.now_ms).div_ceil(1_000);
        return Some((
            "failing",
            format!("it kept failing; asked again in {seconds} s"),
        ));
    }
    if !record.capacity.has_room() {
        let at_once = record.capacity.in_flight();
        return Some(("full", format!("it takes {at_once} requests at once")));
    }
    None
}

/// Attempts by seller.
fn records(recent: &[RequestRecord]) -> BTreeMap<&str, Record> {
    let mut all: BTreeMap<&str, Record> = BTreeMap::new();
    for row in recent {
        let (Some(seller), Some(status)) = (row.seller.as_deref(), row.status) else {
            continue;
        };
        // A request that is at fault itself, or was cut by its client, says nothing of the seller.
        if matches!(status, 0 | 400 | 413 | 422 | 429 | 499) {
            continue;
        }
        let record = all.entry(seller).or_default();
        record.attempts = record.attempts.saturating_add(1);
        if status >= 400 {
            continue;
        }
        record.good = record.good.saturating_add(1);
    }
    all
}

impl Record {
    /// The share of good attempts, to two decimals; `None` without any.
    fn quality(&self) -> Option<f64> {
        let share = f64::from(self.good) / f64::from(self.attempts);
        (self.attempts > 0).then(|| (share * 100.0).round() / 100.0)
    }
}

impl Pace {
    /// From what the router learned, which tells streams from answers in one piece: the first token
    /// of these is their end.
    fn of(router: &Router, peer: &PeerId, offers: &[Arc<SignedOffer>]) -> Self {
        let models = offers.iter().map(|offer| &offer.offer.model);
        let records: Vec<_> = models
            .filter_map(|model| router.model_record(peer, model))
            .collect();
        let middle = |of: &dyn Fn(&ModelRecord) -> Option<f64>| {
            median(records.iter().filter_map(of).filter_map(whole).collect())
        };
        Self {
            ttft_ms: middle(&|record| record.ttft_s(0).map(|seconds| seconds * 1_000.0)),
            tokens_per_second: middle(&|record| record.speed.typical()),
        }
    }
}

/// Rounded; none when it is no whole number that fits.
fn whole(value: f64) -> Option<u64> {
    value.round().to_u64()
}

fn median(mut values: Vec<u64>) -> Option<u64> {
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seller_without_a_record_has_no_quality() {
        assert_eq!(Record::default().quality(), None);
        let two_of_three = Record {
            attempts: 3,
            good: 2,
        };
        assert_eq!(two_of_three.quality(), Some(0.67));
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![9, 1, 5]), Some(5));
        assert_eq!((whole(39.6), whole(f64::NAN)), (Some(40), None));
    }
}
