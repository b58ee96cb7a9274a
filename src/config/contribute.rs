//! `[contribute]`: layers of a model that this machine computes for pipelines of others.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Config;
use super::values::{duration, opt_path, opt_percent, opt_usd};
use crate::types::{MicroUsd, PeerId};

/// Bytes of a GiB.
const GIB: u64 = 1 << 30;
/// The word for layers that are chosen by what the network lacks.
const AUTO: &str = "auto";

/// `[contribute]`: a stage of pipelines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ContributeSection {
    /// Whether `node run` serves layers (it also needs a model).
    pub enabled: bool,
    /// A directory with safetensors and `config.json`, or a GGUF file.
    #[serde(with = "opt_path")]
    pub model: Option<PathBuf>,
    /// `FIRST..END` from 0, or `auto`.
    pub layers: String,
    /// Most layers; 0 = as many as fit into the memory.
    pub layers_max: u16,
    /// Most memory for weights and sessions, GiB; 0 = half of what is free at the start.
    pub memory: u32,
    /// Positions that all sessions together may reserve.
    pub positions: u32,
    /// Sessions at once.
    pub sessions: u32,
    /// No new sessions while other programs use more of the processor than this, in hundredths of a
    /// percent; `None` = never paused.
    #[serde(with = "opt_percent")]
    pub load_max: Option<u32>,
    /// With the layers `auto`: how often it is asked whether another place is worth more.
    #[serde(with = "duration")]
    pub look_every: Duration,
    /// At most one move in this time.
    #[serde(with = "duration")]
    pub move_pause: Duration,
    /// Sessions that run get this long before their layers go.
    #[serde(with = "duration")]
    pub drain_max: Duration,
    /// Price of prefill, USD per million rows through one layer; `None` = by the layer's size.
    #[serde(with = "opt_usd")]
    pub price_in: Option<MicroUsd>,
    /// Price of decode; `None` = by the layer's size.
    #[serde(with = "opt_usd")]
    pub price_out: Option<MicroUsd>,
    /// Serves at price 0.
    pub free: bool,
    /// Port of the stage's own pages on loopback; 0 = any free one.
    pub http_port: u16,
    /// Only these heads (peer ids); empty = all.
    pub allow: Vec<String>,
    /// Never these heads (peer ids).
    pub deny: Vec<String>,
}

impl Default for ContributeSection {
    fn default() -> Self {
        Self {
            enabled: false,
            model: None,
            layers: AUTO.to_owned(),
            layers_max: 0,
            memory: 0,
            positions: 16_384,
            sessions: 64,
            load_max: None,
            look_every: Duration::from_secs(60),
            move_pause: Duration::from_secs(30 * 60),
            drain_max: Duration::from_secs(10 * 60),
            price_in: None,
            price_out: None,
            free: false,
            http_port: 5007,
            allow: Vec::new(),
            deny: Vec::new(),
        }
    }
}

impl ContributeSection {
    /// The layers by number; `None` when the network's lack decides.
    ///
    /// # Errors
    /// When it is neither a range nor `auto`.
    pub fn range(&self) -> Result<Option<Range<u16>>, String> {
        if self.layers == AUTO {
            return Ok(None);
        }
        let ends = self.layers.split_once("..");
        let range = ends.and_then(|(first, end)| {
            let range = first.trim().parse().ok()?..end.trim().parse().ok()?;
            (range.start < range.end).then_some(range)
        });
        range.map(Some).ok_or_else(|| {
            let text = &self.layers;
            format!(
                "`{text}` is no range of layers; write FIRST..END from 0, such as 0..16, or auto"
            )
        })
    }
    /// Most memory as configured, bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> Option<u64> {
        (self.memory > 0).then(|| u64::from(self.memory).saturating_mul(GIB))
    }
}

/// What must hold among the keys of the section.
pub(super) fn rules(config: &Config, wrong: &mut impl FnMut(&str, String)) {
    let section = &config.contribute;
    if let Err(message) = section.range() {
        wrong("contribute.layers", message);
    }
    let peers = section.allow.iter().map(|peer| ("contribute.allow", peer));
    let peers = peers.chain(section.deny.iter().map(|peer| ("contribute.deny", peer)));
    for (path, peer) in peers {
        if peer.parse::<PeerId>().is_err() {
            let message = format!("`{peer}` is no peer id; they look like 12D3Koo…");
            wrong(path, message);
        }
    }
    for (path, number) in [
        ("contribute.positions", section.positions),
        ("contribute.sessions", section.sessions),
    ] {
        if number == 0 {
            wrong(path, "must be at least 1".to_owned());
        }
    }
    if section.look_every.is_zero() {
        wrong("contribute.look_every", "must be above 0".to_owned());
    }
    if section.load_max == Some(0) {
        let message = "must be above 0%; \"\" never pauses".to_owned();
        wrong("contribute.load_max", message);
    }
    if section.free && (section.price_in.is_some() || section.price_out.is_some()) {
        let message = "contradicts a price; give one of them".to_owned();
        wrong("contribute.free", message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_a_range_or_auto() {
        let of = |layers: &str| {
            let layers = layers.to_owned();
            let section = ContributeSection {
                layers,
                ..ContributeSection::default()
            };
            section.range()
        };
        assert_eq!(of("auto"), Ok(None));
        assert_eq!(of("0..16"), Ok(Some(0..16)));
        assert_eq!(of(" 4 .. 9 "), Ok(Some(4..9)));
        for wrong in ["", "5", "5..5", "9..4", "..4", "0..70000", "-1..4", "a..b"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
