//! The composition root: builds the parts of each role, says when it is ready, ends it in order.
//!
//! `bootstrap` is a base alone; `sell` and `buy` put their parts on one; `run` puts both on the
//! same base (one identity); `demo` makes five bases in one process. Nothing below knows the
//! config or the other role.

mod agreement;
mod base;
mod buy;
mod chain;
mod contribute;
mod demo;
mod demo_chain;
mod demo_scratch;
pub mod deploy;
mod own;
mod paying;
mod pipeline;
mod pipelines;
pub mod probe;
pub mod purse;
mod reclaim;
mod reload;
mod remote;
mod routing;
mod sell;
mod stock;
mod upstream;

use std::sync::Arc;

use base::Base;
use reload::Targets;
use sell::Wares;

use crate::data_dir::RunInfo;
use crate::failure::{Failure, FailureKind};
use crate::launch::Launch;
use crate::telemetry::Metrics;

pub use contribute::check_model;
pub use demo::demo;
pub use pipeline::is_used as sells_pipeline;

/// Runs a bare node that others start from.
///
/// # Errors
/// When it cannot start, or a critical task failed.
pub async fn bootstrap(launch: Launch) -> anyhow::Result<()> {
    let mut config = launch.config.clone();
    // Others find the network through this node: it serves the DHT wherever it listens.
    if config.node.dht_server.forced().is_none() {
        config.node.dht_server = crate::config::Switch::On;
    }
    let (base, _incoming) = Base::start(config, &launch.dir, "bootstrap").await?;
    base.lock.publish(&RunInfo::new("bootstrap", ""))?;
    let listen = listen_text(&base).await;
    launch.ready(&format!(
        "ready role=bootstrap peer={} listen={listen}",
        base.network.local_peer()
    ));
    base.run_until(launch.stop).await
}

/// Runs a seller.
///
/// # Errors
/// When it cannot start, or a critical task failed.
pub async fn sell(launch: Launch) -> anyhow::Result<()> {
    let (base, incoming) = Base::start(launch.config.clone(), &launch.dir, "sell").await?;
    let wares = Wares {
        answers: true,
        layers: false,
    };
    let selling = sell::start(&base, incoming, ("sell", wares), Metrics::install()).await?;
    base.lock.publish(&selling.run_info)?;
    say_credit(&base, &selling);
    let targets = Targets {
        seller: Some(selling.rules.clone()),
        ..Targets::default()
    };
    reload::follow(&launch, &base, targets);
    launch.ready(&sell_line(&base, "sell", &selling).await);
    base.run_until(launch.stop).await
}

/// Computes layers of a model for pipelines of others.
///
/// # Errors
/// When it cannot start, or a critical task failed.
pub async fn contribute(launch: Launch) -> anyhow::Result<()> {
    let role = "contribute";
    let (base, incoming) = Base::start(launch.config.clone(), &launch.dir, role).await?;
    let wares = Wares {
        answers: false,
        layers: true,
    };
    let selling = sell::start(&base, incoming, (role, wares), Metrics::install()).await?;
    base.lock.publish(&selling.run_info)?;
    say_credit(&base, &selling);
    reload::follow(&launch, &base, Targets::default());
    launch.ready(&sell_line(&base, role, &selling).await);
    base.run_until(launch.stop).await
}

/// True when a buyer has ends of models, whose layers it buys.
#[must_use]
pub const fn buys_layers(config: &crate::config::Config) -> bool {
    !config.buy.pipelines.is_empty()
}

/// Runs a buyer.
///
/// # Errors
/// When it cannot start, or a critical task failed.
pub async fn buy(launch: Launch) -> anyhow::Result<()> {
    let (base, _incoming) = Base::start(launch.config.clone(), &launch.dir, "buy").await?;
    let buying = buy::start(&base, "buy", Metrics::install()).await?;
    base.lock.publish(&buying.run_info)?;
    let targets = Targets {
        buyer: Some((Arc::clone(&buying.buyer), buying.budget.clone())),
        ..Targets::default()
    };
    reload::follow(&launch, &base, targets);
    launch.ready(&buy_line(&base, &buying));
    base.run_until(launch.stop).await
}

/// Runs every role that the config enables, with one identity.
///
/// # Errors
/// When none is enabled, one cannot start, or a critical task failed.
pub async fn run(launch: Launch) -> anyhow::Result<()> {
    let config = &launch.config;
    let sells = config.sell.enabled && config.sell.upstream.is_some();
    let wares = Wares {
        answers: sells,
        layers: config.contribute.enabled && config.contribute.model.is_some(),
    };
    if !wares.answers && !wares.layers && !config.buy.enabled {
        let message = "no role is enabled";
        let hint = "set [buy] enabled = true, [sell] enabled = true with an upstream, or \
                    [contribute] enabled = true with a model";
        return Err(Failure::new(FailureKind::BadConfig, message)
            .hint(hint)
            .into());
    }
    let (base, incoming) = Base::start(config.clone(), &launch.dir, "run").await?;
    let metrics = Metrics::install();
    let selling = if wares.answers || wares.layers {
        Some(sell::start(&base, incoming, ("run", wares), metrics.clone()).await?)
    } else {
        None
    };
    let buying = if config.buy.enabled {
        Some(buy::start(&base, "run", metrics).await?)
    } else {
        None
    };
    let targets = Targets {
        buyer: buying
            .as_ref()
            .map(|b| (Arc::clone(&b.buyer), b.budget.clone())),
        seller: selling.as_ref().map(|s| s.rules.clone()),
    };
    reload::follow(&launch, &base, targets);
    let mut line = format!("ready role=run peer={}", base.network.local_peer());
    if let Some(selling) = &selling {
        say_credit(&base, selling);
        line.push_str(&format!(
            " listen={} models={}",
            listen_text(&base).await,
            selling.models
        ));
        base.lock.publish(&selling.run_info)?;
    }
    if let Some(buying) = &buying {
        line.push_str(&format!(" url={}", buying.url));
        base.lock.publish(&buying.run_info)?;
    }
    launch.ready(&line);
    base.run_until(launch.stop).await
}

fn buy_line(base: &Base, buying: &buy::Buying) -> String {
    format!(
        "ready role=buy url={} peer={} mode={}",
        buying.url,
        base.network.local_peer(),
        if base.chain.is_some() {
            "channel"
        } else {
            "credit"
        }
    )
}

async fn sell_line(base: &Base, role: &str, selling: &sell::Selling) -> String {
    let layers = selling.layers.as_ref();
    format!(
        "ready role={role} peer={} listen={} models={}{} url={} mode={}",
        base.network.local_peer(),
        listen_text(base).await,
        selling.models,
        layers.map_or_else(String::new, |layers| format!(" {layers}")),
        selling.run_info.url,
        if base.chain.is_some() {
            "channel"
        } else {
            "credit(unsecured)"
        }
    )
}

fn say_credit(base: &Base, selling: &sell::Selling) {
    let is_none = selling.credit == crate::types::MicroUsd::ZERO;
    if base.chain.is_some() && is_none {
        tracing::info!("buyers pay by channels on the chain; nobody gets unsecured credit");
    } else if selling.credit == crate::types::MicroUsd::ZERO {
        tracing::warn!(
            "this node is public, so strangers get no credit: only free models are served; \
             --credit-limit USD gives each buyer unsecured credit"
        );
    } else {
        tracing::info!(credit_usd = %selling.credit, "each buyer gets unsecured credit");
    }
}

/// Where others reach this node, comma separated; loopback last.
async fn listen_text(base: &Base) -> String {
    base.network.listeners().await.join(",")
}
