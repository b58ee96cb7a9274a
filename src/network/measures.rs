//! What `/metrics` counts of the network: peers, and questions to the DHT by how they ended.
//!
//! Labels are outcomes only; a peer never becomes one. Read by both roles' `/metrics`.

use metrics::{counter, gauge};

use super::Handle;
use crate::telemetry::Measure;

/// Everything that the network measures, with what it means.
pub const MEASURES: [Measure; 5] = [
    Measure::gauge("souk_peers", "Peers with a connection"),
    Measure::counter("souk_dht_walks_total", "Look-ups of offers in the DHT"),
    Measure::counter(
        "souk_dht_puts_total",
        "Sets of offers put into the DHT, by outcome",
    ),
    Measure::counter(
        "souk_dht_pulls_total",
        "Catalogues asked of peers, by outcome",
    ),
    Measure::counter(
        "souk_network_streams_dropped_total",
        "Streams of peers reset because the queue was full",
    ),
];

pub(super) fn walked() {
    counter!("souk_dht_walks_total").increment(1);
}

pub(super) fn put(is_taken: bool) -> bool {
    let outcome = if is_taken { "taken" } else { "failed" };
    counter!("souk_dht_puts_total", "outcome" => outcome).increment(1);
    is_taken
}

pub(super) fn pulled(is_answered: bool) {
    let outcome = if is_answered { "answered" } else { "silent" };
    counter!("souk_dht_pulls_total", "outcome" => outcome).increment(1);
}

impl Handle {
    /// Sets what is read at each look at `/metrics`.
    pub fn measure(&self) {
        let peers = u32::try_from(self.connected_peers().len()).unwrap_or(u32::MAX);
        gauge!("souk_peers").set(f64::from(peers));
        counter!("souk_network_streams_dropped_total").absolute(self.streams_dropped());
    }
}
