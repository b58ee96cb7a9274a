//! `node demo`: a whole market on loopback in one process, paid on a local chain where anvil is
//! installed. Nothing is written outside a temporary directory, and nothing listens beyond loopback.

use super::base::{Base, load_keys};
use super::demo_chain::DemoChain;
use super::demo_scratch::{self, Scratch};
use super::{buy, sell};
use crate::config::{ChainSection, Config};
use crate::data_dir::DataDir;
use crate::launch::Launch;
use crate::llm_api::Dialect;
use crate::seller::demo_plan::{DemoPlan, DemoSeller};
use crate::seller::demo_upstream;
use crate::tasks::Tasks;
use crate::telemetry::Metrics;
use crate::types::{EvmAddress, MicroUsd};

/// The demo's own network, so that it never meets a real one.
const NETWORK: &str = "souk-demo";

/// Test money in the buyer's wallet.
const BUYER_MONEY: MicroUsd = MicroUsd::from_usd(20);
/// Sellers of the demo settle from here on.
const SETTLE_MIN: MicroUsd = MicroUsd(1_000);

/// Runs the demo until it is stopped.
///
/// # Errors
/// When a port is taken or a part cannot start.
pub async fn demo(launch: Launch) -> anyhow::Result<()> {
    demo_scratch::sweep();
    let scratch = Scratch::new()?;
    let mut bases = Vec::new();
    // One process has one set of metrics: all its nodes count into it, each port shows it.
    let metrics = Metrics::install();
    let mut config = on_loopback(Config::default(), Vec::new());
    config.node.dht_server = crate::config::Switch::On;
    let (bootstrap, _incoming) =
        Base::start(config, &scratch.node("bootstrap")?, "bootstrap").await?;
    let entry = bootstrap.network.listeners().await;
    let bootstrap_tasks = bootstrap.front.clone();
    bases.push(bootstrap);
    let plan = DemoPlan::default();
    let dir = scratch.node("buyer")?;
    let sellers: anyhow::Result<Vec<(&DemoSeller, DataDir)>> = plan
        .sellers
        .iter()
        .map(|seller| Ok((seller, scratch.node(seller.name)?)))
        .collect();
    let sellers = sellers?;
    // Dropped last: it ends with the demo.
    let dirs = sellers.iter().map(|(_, dir)| dir);
    let (_chain, section) = chain(&bootstrap_tasks, &dir, dirs).await?;
    let mode = if section.is_set() {
        "channel"
    } else {
        "credit(unsecured)"
    };
    for (seller_plan, dir) in &sellers {
        let seller = seller(dir, &entry, seller_plan, &section, metrics.clone());
        bases.push(seller.await?);
    }
    let mut config = on_loopback(launch.config.clone(), entry);
    config.buy.host = "127.0.0.1".to_owned();
    config.chain = section;
    let (base, _incoming) = Base::start(config, &dir, "buy").await?;
    let buying = buy::start(&base, "buy", metrics).await?;
    base.lock.publish(&buying.run_info)?;
    wait_for_models(&buying, &plan).await;
    launch.ready(&format!(
        "ready role=demo url={} peer={} sellers={} mode={mode} dir={}",
        buying.url,
        base.network.local_peer(),
        plan.sellers.len(),
        scratch.path().display()
    ));
    let program = std::env::args().next().unwrap_or_else(|| "node".to_owned());
    print_hint(&plan.commands_text(&program, &buying.url, dir.path()));
    if mode == "channel" {
        let dir = dir.path().display();
        print_hint(&format!(
            "  # Where the money is\n  {program} wallet balance --data-dir {dir}\n"
        ));
    }
    bases.push(base);
    end(bases, launch).await
}

/// A local chain with money on it for the buyer and gas for the sellers, where anvil is installed;
/// else it says that payment is unsecured credit.
async fn chain(
    tasks: &Tasks,
    buyer: &DataDir,
    sellers: impl Iterator<Item = &DataDir>,
) -> anyhow::Result<(Option<DemoChain>, ChainSection)> {
    let Some(chain) = DemoChain::start(tasks).await? else {
        print_hint(
            "anvil is not installed (npm i -g @foundry-rs/anvil, or contracts/tools), so there is \
             no local chain: the buyer pays with unsecured credit",
        );
        return Ok((None, ChainSection::default()));
    };
    let account = |dir: &DataDir| -> anyhow::Result<EvmAddress> {
        Ok(load_keys(&Config::default(), dir)?.payment.address())
    };
    for dir in sellers {
        chain.give_gas(&account(dir)?).await?;
    }
    let section = chain.deploy(vec![(account(buyer)?, BUYER_MONEY)]).await?;
    Ok((Some(chain), section))
}

async fn seller(
    dir: &DataDir,
    entry: &[String],
    plan: &DemoSeller,
    chain: &ChainSection,
    metrics: Option<Metrics>,
) -> anyhow::Result<Base> {
    let mut config = on_loopback(Config::default(), entry.to_vec());
    config.chain = chain.clone();
    // Seen to settle while one looks.
    config.payment.settle_min = SETTLE_MIN;
    config.sell.http_port = 0;
    // Sold at the upstream's own list prices.
    config.sell.markup = Some(0);
    let api = if plan.dialect == Dialect::Messages {
        "anthropic"
    } else {
        "openai-chat"
    };
    config.sell.api = Some(api.to_owned());
    // The upstream must be there before the seller asks for its list.
    let tasks = Tasks::new();
    let address = demo_upstream::start(plan.upstream.clone(), &tasks).await?;
    config.sell.upstream = Some(format!("http://{address}/v1"));
    let (base, incoming) = Base::start(config, dir, "sell").await?;
    let wares = sell::Wares {
        answers: true,
        layers: false,
    };
    let (stop, front) = (base.front.cancelled(), base.front.clone());
    front.spawn("demo-upstream", async move {
        stop.cancelled().await;
        drop(tasks.shutdown(std::time::Duration::from_secs(1)).await);
    });
    let selling = sell::start(&base, incoming, ("sell", wares), metrics).await?;
    base.lock.publish(&selling.run_info)?;
    Ok(base)
}

fn on_loopback(mut config: Config, bootstrap: Vec<String>) -> Config {
    config.node.network = NETWORK.to_owned();
    config.node.listen = vec![
        "/ip4/127.0.0.1/udp/0/quic-v1".to_owned(),
        "/ip4/127.0.0.1/tcp/0".to_owned(),
    ];
    config.node.bootstrap = bootstrap;
    config.node.mdns = crate::config::Switch::Off;
    config.node.upnp = false;
    config
}

/// The demo is ready when a client would see every model.
async fn wait_for_models(buying: &buy::Buying, plan: &DemoPlan) {
    let ids = plan
        .sellers
        .iter()
        .flat_map(|s| s.upstream.models.iter().map(|m| &m.id));
    let wanted = ids.collect::<std::collections::HashSet<_>>().len();
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(15);
    while buying.book.models().len() < wanted && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// Messages go to stderr; stdout has the ready line alone.
fn print_hint(text: &str) {
    use std::io::Write as _;
    drop(writeln!(std::io::stderr().lock(), "{text}"));
}

/// Waits for the end of the demo, then ends every node, the buyer first.
async fn end(mut bases: Vec<Base>, launch: Launch) -> anyhow::Result<()> {
    let mut result = Ok(());
    if let Some(buyer) = bases.pop() {
        result = buyer.run_until(launch.stop.clone()).await;
    }
    launch.stop.cancel();
    while let Some(base) = bases.pop() {
        let ended = base.run_until(launch.stop.clone()).await;
        result = result.and(ended);
    }
    result
}
