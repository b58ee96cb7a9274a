//! `[head]`: this node has a model's two ends and other peers its layers: `node sell --split`,
//! `node buy --pipeline`.

use serde::{Deserialize, Serialize};

use super::Config;
use super::values::opt_usd;
use crate::types::{MicroUsd, PeerId};

/// How rows travel from stage to stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wire {
    /// Two bytes a number.
    #[default]
    F16,
    /// Four, exact.
    F32,
    /// One, and two for each row: half the bytes, a slightly other text.
    Int8,
}

/// `[head]`: how stages of other peers are used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HeadSection {
    /// How rows travel; only stages that offer it are asked.
    pub wire: Wire,
    /// Only these peers' stages; empty = all.
    pub stages: Vec<String>,
    /// Most that `node sell --split` pays for layers between two local midnights, in USD.
    #[serde(with = "opt_usd")]
    pub daily: Option<MicroUsd>,
    /// The same in a local month.
    #[serde(with = "opt_usd")]
    pub monthly: Option<MicroUsd>,
    /// Stages may cost more than the model is sold for.
    pub at_a_loss: bool,
}

/// What must hold among the keys of the section.
pub(super) fn rules(config: &Config, wrong: &mut impl FnMut(&str, String)) {
    for peer in &config.head.stages {
        if peer.parse::<PeerId>().is_err() {
            let message = format!("`{peer}` is no peer id; they look like 12D3Koo…");
            wrong("head.stages", message);
        }
    }
}
