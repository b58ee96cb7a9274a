//! What lies elsewhere: peers, the chain and the money on it, the upstream, other clocks.

use std::time::Duration;

use serde_json::Value;

use super::check::Check;
use crate::cli::GlobalArgs;
use crate::cli::api::Api;
use crate::config::{Config, Switch};
use crate::data_dir::DataDir;
use crate::failure::Failure;
use crate::node::{probe, purse};
use crate::seller::presets::{self, Source};
use crate::types::{Clock as _, MicroUsd, SystemClock};

/// Peers that do not answer in this time are away.
const PEERS_WAIT: Duration = Duration::from_secs(8);
/// Another clock is asked for at most this long.
const CLOCK_WAIT: Duration = Duration::from_secs(5);
/// Sellers refuse requests that are signed this far off; see `seller/admission`.
const SKEW_MAX_S: u64 = 60;
/// Half of it still works, today.
const SKEW_WARN_S: u64 = 10;

/// Turns a failure with its hint into a check.
fn failed(name: &'static str, failure: Failure, otherwise: &str) -> Check {
    let fix = failure.hint.unwrap_or_else(|| otherwise.to_owned());
    Check::fail(name, failure.message, fix)
}

/// Whether anybody is there to start from.
pub(super) async fn peers(global: &GlobalArgs, config: &Config, dir: &DataDir) -> Check {
    const NAME: &str = "peers";
    let add = "add [node] bootstrap (or --bootstrap): the address of any node of the market";
    if dir.holder().is_some() {
        return running_peers(global, add).await;
    }
    if config.node.bootstrap.is_empty() {
        return if config.node.mdns == Switch::Off {
            Check::fail(NAME, "no peer to start from, and mdns is off", add)
        } else {
            let what = "no peer to start from; only the local network is searched";
            Check::warn(NAME, what, add)
        };
    }
    match probe::entrances(config, PEERS_WAIT).await {
        Err(failure) => failed(NAME, failure, "correct [node] bootstrap"),
        Ok(found) if found.reached == 0 => Check::fail(
            NAME,
            format!("none of {} bootstrap addresses answers", found.configured),
            "ask who runs them for their address now, and let UDP out of the firewall",
        ),
        Ok(found) => Check::pass(NAME, format!("{} bootstrap peers answer", found.reached)),
    }
}

async fn running_peers(global: &GlobalArgs, add: &str) -> Check {
    const NAME: &str = "peers";
    let status = match Api::find(global) {
        Ok(api) if api.info().role == "bootstrap" => {
            return Check::skip(NAME, "a bootstrap node has no control port");
        }
        Ok(api) => api.get("/api/status").await,
        Err(error) => Err(error),
    };
    match status {
        Err(error) => failed(NAME, Failure::from_error(&error), "restart the node"),
        Ok(status) => match status.get("peers").and_then(Value::as_u64) {
            Some(0) | None => Check::fail(NAME, "the running node has no peer", add),
            Some(count) => Check::pass(NAME, format!("the running node has {count}")),
        },
    }
}

/// Whether chain, hub and token are what they should be.
pub(super) async fn chain(config: &Config) -> Check {
    const NAME: &str = "chain";
    if !config.chain.is_set() {
        return Check::skip(NAME, "none is configured: payment is unsecured credit");
    }
    match probe::chain(config).await {
        Err(failure) => failed(NAME, failure, "compare [chain] with the market's values"),
        Ok(()) => Check::pass(
            NAME,
            format!("chain {}, hub and token are right", config.chain.chain_id),
        ),
    }
}

/// Whether there is money to open channels with.
pub(super) async fn money(config: &Config, dir: &DataDir) -> Check {
    const NAME: &str = "money";
    let balance = async {
        let wallet = purse::reading(config, dir).await?;
        let balance = wallet.balance_json().await;
        anyhow::Ok(balance.map_err(|error| purse::failure(&error))?)
    };
    let balance = match balance.await {
        Ok(balance) => balance,
        // A node that never ran has no ledger yet.
        Err(_) if !dir.ledger_db().exists() => {
            return Check::skip(NAME, "no node ran here yet; `node wallet balance` shows it");
        }
        Err(error) => return failed(NAME, Failure::from_error(&error), "try again later"),
    };
    let of = |key: &str| balance.get(key).and_then(Value::as_u64).unwrap_or(0);
    let free = of("wallet_micro_usd").saturating_add(of("vault_micro_usd"));
    let shown = MicroUsd(free);
    if MicroUsd(free) < config.payment.deposit_min {
        let what = format!("{shown} USD in wallet and vault open no channel");
        let fix = "send tokens to the address of `node wallet balance`, then `node wallet deposit`";
        return Check::warn(NAME, what, fix);
    }
    Check::pass(NAME, format!("{shown} USD in wallet and vault"))
}

/// Whether the upstream answers and takes the key.
pub(super) async fn upstream(config: &Config) -> Check {
    const NAME: &str = "upstream";
    let Some(named) = &config.sell.upstream else {
        return Check::skip(NAME, "none is configured: this node does not sell");
    };
    match probe::upstream(config).await {
        Err(failure) => failed(NAME, failure, "check [sell] upstream and its key"),
        Ok(_) if named == "demo" => Check::pass(NAME, "the demo's own"),
        Ok(listed) if listed.models == 0 && config.sell.models.is_empty() => {
            let fix = "name them: --model ID --price-in USD --price-out USD";
            Check::fail(NAME, format!("{named} lists no models"), fix)
        }
        Ok(listed) => {
            let (models, priced) = (listed.models, listed.priced);
            Check::pass(NAME, format!("{models} models, {priced} with a price"))
        }
    }
}

/// Whether this clock agrees with others: those of the upstream and the RPC nodes.
pub(super) async fn clock(config: &Config) -> Check {
    const NAME: &str = "clock";
    let sell = &config.sell;
    let upstream = sell.upstream.as_deref().and_then(|named| {
        let source = presets::resolve(named, sell.base_url.as_deref(), sell.api.as_deref());
        match source {
            Ok(Source::Http { base_url, .. }) => Some(base_url),
            _ => None,
        }
    });
    let mut nearest: Option<(u64, String)> = None;
    for url in upstream.iter().chain(&config.chain.rpc) {
        if let Some(skew_s) = skew(url).await
            && nearest.as_ref().is_none_or(|(least, _)| skew_s < *least)
        {
            nearest = Some((skew_s, host(url)));
        }
    }
    // One wrong clock elsewhere proves nothing, so the one that agrees best counts.
    let Some((skew_s, host)) = nearest else {
        return Check::skip(
            NAME,
            "no other clock can be asked (no upstream and no RPC node)",
        );
    };
    let what = format!("{skew_s} s apart from {host}");
    let fix = "let the system set it: `timedatectl set-ntp true`";
    match skew_s {
        0..SKEW_WARN_S => Check::pass(NAME, what),
        SKEW_WARN_S..SKEW_MAX_S => Check::warn(NAME, what, fix),
        _ => {
            let what = format!("{what}; sellers refuse requests of a clock so far off");
            Check::fail(NAME, what, fix)
        }
    }
}

/// How far the `Date` of any answer is from our clock, in seconds.
async fn skew(url: &str) -> Option<u64> {
    let client = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(CLOCK_WAIT)
        .build()
        .ok()?;
    let answer = client.get(url).send().await.ok()?;
    let date = answer.headers().get("date")?.to_str().ok()?;
    let theirs = jiff::fmt::rfc2822::parse(date).ok()?;
    let theirs = theirs.timestamp().as_second();
    let ours = i64::try_from(SystemClock.now_ms() / 1_000).ok()?;
    Some(ours.abs_diff(theirs))
}

/// A URL's host: the rest may hold a key.
fn host(url: &str) -> String {
    let parsed = reqwest::Url::parse(url).ok();
    let host = parsed.as_ref().and_then(reqwest::Url::host_str);
    host.unwrap_or("another host").to_owned()
}
