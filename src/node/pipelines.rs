//! What stages of pipelines are on offer, as reports show it: how far each model is covered, how
//! fast and dear the best way through it is, and what its peers get to see.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::discovery::OfferBook;
use crate::pipeline::market::{Ask, Coverage, Offered, route};
use crate::protocol::offer::stage_model;
use crate::types::Hash32;

/// What a second is worth for the way that is shown, micro-USD: as buyers weigh by default.
const SECOND_WORTH: u64 = 500;
/// Positions for which a stage must have room to be on that way.
const POSITIONS: u32 = 1_024;
/// Said wherever pipelines are shown.
pub(super) const PRIVACY: &str = "Peers that compute layers see hidden states, from which most of a \
prompt can be rebuilt (88 % of its tokens in a published attack). For what must stay private use a \
pipeline of peers you know: [contribute] allow, [buy] allow.";

/// The report, made anew at each call.
pub(super) fn report(book: OfferBook) -> Arc<dyn Fn() -> Value + Send + Sync> {
    Arc::new(move || {
        let mut by_model: BTreeMap<Hash32, Vec<Offered>> = BTreeMap::new();
        for signed in book.live() {
            let is_usable = !book.is_dead(&signed.offer.seller);
            if let Some(one) = Offered::claimed(&signed).filter(|_| is_usable) {
                by_model.entry(one.terms.manifest).or_default().push(one);
            }
        }
        // Whoever looks will look again: what was few is asked for meanwhile.
        by_model
            .keys()
            .for_each(|manifest| book.want_stages(manifest));
        let models: Vec<Value> = by_model
            .iter()
            .map(|(hash, all)| entry(hash, all))
            .collect();
        json!({ "pipelines": models, "privacy": PRIVACY })
    })
}

fn entry(manifest: &Hash32, offered: &[Offered]) -> Value {
    // Stages of one manifest agree about its layers, unless one lies: most of them are right.
    let mut votes: BTreeMap<u16, usize> = BTreeMap::new();
    for one in offered {
        *votes.entry(one.terms.layers).or_insert(0) += 1;
    }
    let most = votes.into_iter().max_by_key(|(_, count)| *count);
    let layers = most.map_or(0, |(layers, _)| layers);
    let coverage = Coverage::of(layers, offered);
    let way = route::best(offered, &Ask::whole(layers, POSITIONS, SECOND_WORTH));
    let mut ranges: Vec<&Offered> = offered.iter().collect();
    ranges.sort_by_key(|one| (one.terms.first, one.terms.end, one.peer));
    let range = |one: &Offered| {
        json!({
            "peer": one.peer.to_base58(),
            "first": one.terms.first,
            "end": one.terms.end,
            "rows_per_second": one.rows_per_s,
            "free_positions": one.terms.free_positions,
            "price_in_micro_usd": one.price.input,
            "price_out_micro_usd": one.price.output,
        })
    };
    let ranges: Vec<Value> = ranges.into_iter().map(range).collect();
    let input = way.as_ref().map(|way| {
        let hops = way.hops.iter().filter_map(|hop| offered.get(*hop));
        hops.map(Offered::prefill_price)
            .fold(0, u64::saturating_add)
    });
    json!({
        "stage_model": stage_model(manifest).as_str(),
        "manifest": manifest.to_string(),
        "layers": layers,
        "covered": coverage.covered(),
        "stages": coverage.stages(),
        "whole": coverage.is_whole(),
        "hops": way.as_ref().map(|way| way.hops.len()),
        "milli_tokens_per_second": way.as_ref().map(route::Route::milli_rows_per_s),
        "price_in_micro_usd": input,
        "price_out_micro_usd": way.as_ref().map(|way| way.row_price),
        "ranges": ranges,
    })
}
