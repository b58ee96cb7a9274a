//! What the router knows, as bytes for the cache: one record per seller, and one of the whole.
//!
//! Conversations are not kept: an upstream's prompt cache is cold after a restart. A record that
//! cannot be read is left out; it is learned again.

use serde::{Deserialize, Serialize};

use super::Router;
use super::explore::Exploration;
use super::learn::SELLERS_MAX;
use super::quality::Quality;
use super::record::{ModelRecord, SellerRecord};
use crate::types::{ModelId, PeerId};

#[derive(Serialize, Deserialize)]
struct Kept {
    seller: SellerRecord,
    models: Vec<(String, ModelRecord)>,
}

#[derive(Default, Serialize, Deserialize)]
struct Whole {
    newcomers: Quality,
    exploration: Exploration,
}

/// Everything worth keeping.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Of the whole.
    pub whole: Vec<u8>,
    /// Of each seller.
    pub sellers: Vec<(PeerId, Vec<u8>)>,
}

impl Router {
    /// What is known now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let state = self.inner.state.lock();
        let whole = Whole {
            newcomers: state.newcomers,
            exploration: state.exploration.clone(),
        };
        let sellers = state.sellers.iter().filter_map(|(peer, seller)| {
            let models = state.models.iter().filter_map(|(model, known)| {
                let record = known.records.get(peer)?;
                Some((model.to_string(), record.clone()))
            });
            let kept = Kept {
                seller: seller.clone(),
                models: models.collect(),
            };
            Some((*peer, serde_json::to_vec(&kept).ok()?))
        });
        Snapshot {
            whole: serde_json::to_vec(&whole).unwrap_or_default(),
            sellers: sellers.collect(),
        }
    }

    /// Takes up what an earlier process knew.
    pub fn restore(&self, snapshot: &Snapshot) {
        let mut state = self.inner.state.lock();
        let whole: Whole = serde_json::from_slice(&snapshot.whole).unwrap_or_default();
        (state.newcomers, state.exploration) = (whole.newcomers, whole.exploration);
        for (peer, bytes) in snapshot.sellers.iter().take(SELLERS_MAX) {
            let Ok(kept) = serde_json::from_slice::<Kept>(bytes) else {
                tracing::debug!(seller = %peer, "a kept record cannot be read and is left out");
                continue;
            };
            state.sellers.insert(*peer, kept.seller);
            for (model, record) in kept.models {
                let model = state.models.entry(ModelId::new(&model)).or_default();
                model.records.insert(*peer, record);
            }
        }
        drop(state);
        self.refresh();
    }
}
