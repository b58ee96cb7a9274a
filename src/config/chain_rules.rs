//! What must hold among the keys of `[payment]` and `[chain]`. Called by `check::rules`.

use std::time::Duration;

use super::{ChainSection, Config};
use crate::keys::parse_address;
use crate::types::EvmAddress;

/// What the hub contract lets a challenge period be.
const CHALLENGE_MIN: Duration = Duration::from_secs(3_600);
/// As above.
const CHALLENGE_MAX: Duration = Duration::from_secs(30 * 24 * 3_600);
/// Chains make no more than a few blocks a second; more looks only annoy the RPC node.
const POLL_MIN: Duration = Duration::from_millis(100);
/// SQLite and JSON keep 63 bits.
const CHAIN_ID_MAX: u64 = u64::MAX >> 1;
/// A share of everything.
const WHOLE_BASIS_POINTS: u32 = 10_000;

/// Windows, fees, deposits and times.
pub(super) fn payment(config: &Config, wrong: &mut impl FnMut(&str, String)) {
    let pay = &config.payment;
    for (path, low, high, name) in [
        (
            "payment.window_min",
            pay.window_min,
            pay.window_max,
            "window_max",
        ),
        ("payment.pair_min", pay.pair_min, pay.pair_max, "pair_max"),
        (
            "payment.open_fee",
            pay.open_fee,
            pay.deposit_min,
            "deposit_min",
        ),
        (
            "payment.open_fee_max",
            pay.open_fee_max,
            pay.deposit_min,
            "deposit_min",
        ),
        (
            "payment.deposit_min",
            pay.deposit_min,
            pay.deposit_max,
            "deposit_max",
        ),
    ] {
        if low > high {
            wrong(path, format!("is above {name}"));
        }
    }
    if !(CHALLENGE_MIN..=CHALLENGE_MAX).contains(&pay.challenge_period) {
        let message = "must be from 1h to 30d (720h); the contract takes no other".to_owned();
        wrong("payment.challenge_period", message);
    }
    if pay.lifetime < pay.challenge_period.saturating_mul(2) {
        let message = "must be at least twice challenge_period, or a channel ends at once";
        wrong("payment.lifetime", message.to_owned());
    }
    if pay.idle_close.is_zero() {
        wrong("payment.idle_close", "must be more than 0".to_owned());
    }
    match pay.deposit_share {
        Some(points) if (1..=WHOLE_BASIS_POINTS).contains(&points) => {}
        _ => wrong(
            "payment.deposit_share",
            "must be more than 0% and at most 100%".to_owned(),
        ),
    }
}

/// All of a chain or nothing of it.
pub(super) fn chain(config: &Config, wrong: &mut impl FnMut(&str, String)) {
    let chain = &config.chain;
    for url in &chain.rpc {
        if !(url.starts_with("http://") || url.starts_with("https://")) {
            // The text is not repeated: URLs of RPC services hold keys.
            let message = "holds no URL; each starts with http:// or https://".to_owned();
            wrong("chain.rpc", message);
        }
    }
    for (path, text) in [("chain.hub", &chain.hub), ("chain.token", &chain.token)] {
        if let Some(Err(message)) = text.as_deref().map(parse_address) {
            wrong(path, message);
        }
    }
    if chain.poll < POLL_MIN {
        wrong("chain.poll", "must be at least 100ms".to_owned());
    }
    if chain.call_timeout.is_zero() {
        wrong("chain.call_timeout", "must be more than 0".to_owned());
    }
    if chain.log_range == 0 {
        wrong("chain.log_range", "must be at least 1".to_owned());
    }
    if chain.gas_price_max == 0 {
        wrong("chain.gas_price_max", "must be at least 1".to_owned());
    }
    if chain.chain_id > CHAIN_ID_MAX {
        wrong("chain.chain_id", "is no number of a chain".to_owned());
    }
    complete(chain, wrong);
}

/// A chain needs all four keys; `node chain deploy` prints them.
fn complete(chain: &ChainSection, wrong: &mut impl FnMut(&str, String)) {
    let given = [
        ("chain.rpc", !chain.rpc.is_empty()),
        ("chain.chain_id", chain.chain_id != 0),
        ("chain.hub", chain.hub.is_some()),
        ("chain.token", chain.token.is_some()),
    ];
    // The hub names the chain that is meant; an RPC node alone is what `chain deploy` takes.
    if chain.hub.is_none() && chain.token.is_none() {
        return;
    }
    for (path, _) in given.iter().filter(|(_, is_given)| !is_given) {
        let message = "is missing: a chain needs rpc, chain_id, hub and token (`node chain deploy` \
                       prints them)";
        wrong(path, message.to_owned());
    }
}

impl ChainSection {
    /// True when a chain is configured.
    #[must_use]
    pub const fn is_set(&self) -> bool {
        !self.rpc.is_empty() && self.hub.is_some() && self.token.is_some()
    }
    /// The hub's address; checked when the config was loaded.
    #[must_use]
    pub fn hub_address(&self) -> Option<EvmAddress> {
        self.hub
            .as_deref()
            .and_then(|text| parse_address(text).ok())
    }
    /// The token's address, as above.
    #[must_use]
    pub fn token_address(&self) -> Option<EvmAddress> {
        self.token
            .as_deref()
            .and_then(|text| parse_address(text).ok())
    }
}
