//! P9: the RPC node is gone for an hour while requests go on, then slow, then back. Open channels
//! serve through all of it, no node changes its mode, both nodes are restarted in the middle, and
//! afterwards everything is settled exactly once: the chain and all ledgers name the same sum.

mod story;

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use souk::chain::digest::HubDomain;
use souk::chain::rpc::{Rpc, Settings};
use souk::keys::{PaymentKey, parse_checksummed, to_checksum};
use souk::types::{EvmAddress, SystemClock};

use story::Chain;

use crate::harness::anvil::Anvil;
use crate::harness::books;
use crate::harness::http::{self, Request};
use crate::harness::market::{Dialect, Seller, UPSTREAM_KEY, wait_for_sellers};
use crate::harness::node::{Home, Node};
use crate::harness::proxy::{Mode, Proxy};
use crate::harness::upstream::{Script, Upstream};

/// USD per million tokens: an answer costs a fortieth of a cent, an hour of them less than a deposit.
const PRICES: (&str, &str) = ("1", "4");
/// Buyers, each with a channel and a client that asks once a second.
const BUYERS: usize = 2;
/// Test money of each.
const MONEY_USD: &str = "100";
/// Time between a client's requests.
const PACE: Duration = Duration::from_secs(1);
/// Of the outage's time: how long the RPC node is slow afterwards.
const SLOW_PART: u32 = 6;
/// How long requests go on when it is back.
const AFTER: Duration = Duration::from_secs(30);
/// Everything is closed and booked by then.
const END_DEADLINE: Duration = Duration::from_secs(300);
/// How often a condition is looked at.
const PAUSE: Duration = Duration::from_millis(200);
/// Settles often, so that settlements fall due all through the outage; a channel outlasts the
/// restarts and closes when the load ends.
const PAYMENT: &str =
    "[payment]\nsettle_min = \"0.05\"\nidle_close = \"45s\"\ndeposit_min = \"10\"\n";

/// What the clients of one phase saw.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    good: u64,
    failed: u64,
}

struct Load {
    rests: AtomicBool,
    ends: AtomicBool,
    good: AtomicU64,
    failed: AtomicU64,
    slowest_ms: AtomicU64,
}

impl Load {
    fn seen(&self) -> Seen {
        Seen {
            good: self.good.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
        }
    }
    fn since(&self, before: Seen) -> Seen {
        let now = self.seen();
        Seen {
            good: now.good - before.good,
            failed: now.failed - before.failed,
        }
    }
}

struct Market {
    anvil: Anvil,
    proxy: Proxy,
    hub: HubDomain,
    token: EvmAddress,
    _bootstrap: Node,
    seller: Seller,
    buyers: Vec<Node>,
}

/// Runs the experiment; gives its line of figures.
pub async fn run(minutes: u64) -> Result<String, String> {
    let began = Instant::now();
    let down = Duration::from_secs(minutes * 60);
    let mut market = Market::start().await;
    market.wait_confirmed().await?;
    let before = market.chain().settled().await?;
    let load = Arc::new(Load {
        rests: AtomicBool::new(false),
        ends: AtomicBool::new(false),
        good: AtomicU64::new(0),
        failed: AtomicU64::new(0),
        slowest_ms: AtomicU64::new(0),
    });
    let clients: Vec<_> = market
        .buyers
        .iter()
        .map(|buyer| tokio::spawn(client(Arc::clone(&load), buyer.http())))
        .collect();

    market.proxy.set(Mode::Down);
    let mut modes = market.minutes(down / 3, &load, "down").await?;
    market.restart(&load, Who::Buyer).await?;
    modes += market.minutes(down / 3, &load, "down").await?;
    market.restart(&load, Who::Seller).await?;
    modes += market.minutes(down / 3, &load, "down").await?;
    let during = load.seen();
    if market.chain().settled().await? != before {
        return Err("something was settled while no node could reach the chain".to_owned());
    }

    market.proxy.set(Mode::Slow);
    market.minutes(down / SLOW_PART, &load, "slow").await?;
    let slow = load.since(during);
    market.proxy.set(Mode::Pass);
    tokio::time::sleep(AFTER).await;
    load.ends.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.map_err(|error| error.to_string())?;
    }
    let after = load.since(Seen {
        good: during.good + slow.good,
        failed: during.failed + slow.failed,
    });
    let end = market.wait_for_the_end().await?;
    if during.failed + slow.failed + after.failed > 0 {
        return Err(format!(
            "requests failed: {during:?} down, {slow:?} slow, {after:?} after"
        ));
    }
    Ok(format!(
        "outage: minutes={minutes} down_good={} down_failed={} slow_good={} slow_failed={} \
         after_good={} after_failed={} slowest_ms={} modes_seen={modes} mode_changes=0 {end} s={}",
        during.good,
        during.failed,
        slow.good,
        slow.failed,
        after.good,
        after.failed,
        load.slowest_ms.load(Ordering::Relaxed),
        began.elapsed().as_secs(),
    ))
}

/// Asks once a second, every other answer as a stream.
async fn client(load: Arc<Load>, buyer: std::net::SocketAddr) {
    let mut tick = tokio::time::interval(PACE);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut count = 0u64;
    while !load.ends.load(Ordering::Relaxed) {
        tick.tick().await;
        if load.rests.load(Ordering::Acquire) {
            continue;
        }
        count += 1;
        let asked = Instant::now();
        let prompt = format!("Say something for the {count}th time.");
        let request = Dialect::Chat.request(&prompt, count.is_multiple_of(2));
        let is_good = match http::open(buyer, &request).await {
            Ok(answer) => {
                let answer = answer.finish().await;
                let is_good = answer.status == 200 && answer.complete;
                if !is_good {
                    eprintln!("request {count}: {} {}", answer.status, answer.text());
                }
                is_good
            }
            Err(error) => {
                eprintln!("request {count}: {error}");
                false
            }
        };
        let ms = u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX);
        load.slowest_ms.fetch_max(ms, Ordering::Relaxed);
        let counter = if is_good { &load.good } else { &load.failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Clone, Copy, Debug)]
enum Who {
    Buyer,
    Seller,
}

impl Market {
    async fn start() -> Self {
        drop(rustls::crypto::ring::default_provider().install_default());
        let anvil = Anvil::start();
        anvil.rpc("evm_setIntervalMining", json!([1]));
        let proxy = Proxy::start(anvil.port).await;
        let buyers: Vec<Home> = (0..BUYERS).map(|_| Home::new()).collect();
        let lines = deploy(&anvil, &buyers);
        let config = |home: &Home| configure(home, &lines, &proxy.url());
        let bootstrap = Node::start(&["bootstrap"]);
        let home = Home::new();
        anvil.fund(&home.evm_address);
        let upstream = Upstream::start(Script::default().key(UPSTREAM_KEY)).await;
        let file = config(&home);
        let more = ["--config", file.as_str()];
        let mut node = Seller::node_at(home, bootstrap.listen(), &upstream, PRICES, &more);
        node.keep_ports();
        let mut nodes = vec![];
        for home in buyers {
            let file = config(&home);
            let entry = bootstrap.listen();
            let args = [
                "buy",
                "--port",
                "0",
                "--bootstrap",
                entry,
                "--config",
                &file,
            ];
            let mut node = Node::start_at(home, &args);
            node.keep_ports();
            wait_for_sellers(&node, 1).await;
            nodes.push(node);
        }
        Self {
            hub: HubDomain {
                chain_id: anvil.chain_id,
                hub: address(&lines, "hub"),
            },
            token: address(&lines, "token"),
            anvil,
            proxy,
            _bootstrap: bootstrap,
            seller: Seller { node, upstream },
            buyers: nodes,
        }
    }

    fn chain(&self) -> Chain {
        let urls = vec![self.anvil.url()];
        let rpc = Rpc::new(
            Settings::new(urls, self.hub.chain_id),
            Arc::new(SystemClock),
        );
        Chain {
            rpc: rpc.unwrap(),
            hub: self.hub,
            token: self.token,
        }
    }

    /// Opens every buyer's channel with a first request and waits until the deposits are final.
    async fn wait_confirmed(&self) -> Result<(), String> {
        for buyer in &self.buyers {
            let first = http::send(buyer.http(), &Dialect::Chat.request("Hello?", false)).await;
            if first.status != 200 {
                return Err(format!("the first request: {}", first.text()));
            }
        }
        let end = Instant::now() + END_DEADLINE;
        for node in self.buyers.iter().chain([&self.seller.node]) {
            while !all_confirmed(node, BUYERS).await {
                if Instant::now() > end {
                    return Err(format!("no final deposit:\n{}", node.stderr_tail()));
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(())
    }

    /// Lets requests go on for a time and prints the nodes' modes each minute; gives how many it saw.
    async fn minutes(&self, time: Duration, load: &Load, what: &str) -> Result<u64, String> {
        let end = Instant::now() + time;
        let (mut number, mut modes) = (0, 0);
        while Instant::now() < end {
            let left = end.saturating_duration_since(Instant::now());
            tokio::time::sleep(left.min(Duration::from_secs(60))).await;
            number += 1;
            let mut line = format!("{what} minute {number}: {:?}", load.seen());
            for node in self.buyers.iter().chain([&self.seller.node]) {
                let mode = mode_of(node).await;
                if !mode.starts_with("channel") {
                    return Err(format!("a node changed its mode to {mode:?}"));
                }
                if what == "down" && !mode.contains("the chain does not answer") {
                    return Err(format!(
                        "a node does not say that its chain is gone: {mode:?}"
                    ));
                }
                modes += 1;
                let short: String = mode.chars().take(40).collect();
                line.push_str(&format!(" | {short}"));
            }
            println!("{line}");
        }
        Ok(modes)
    }

    /// Restarts one side while the chain is away; requests rest meanwhile.
    async fn restart(&mut self, load: &Load, who: Who) -> Result<(), String> {
        load.rests.store(true, Ordering::Release);
        // What was asked before has ended by then.
        tokio::time::sleep(PACE * 3).await;
        match who {
            Who::Buyer => {
                for buyer in &mut self.buyers {
                    buyer.kill();
                    buyer.restart();
                }
            }
            Who::Seller => {
                self.seller.node.kill();
                self.seller.node.restart();
            }
        }
        // A peer's end and its return are noticed within seconds; this is not what is counted here.
        let end = Instant::now() + END_DEADLINE;
        for buyer in &self.buyers {
            wait_for_sellers(buyer, 1).await;
            let hello = Dialect::Chat.request("Are you there?", false);
            while http::send(buyer.http(), &hello).await.status != 200 {
                if Instant::now() > end {
                    let seller = self.seller.node.stderr_tail();
                    return Err(format!(
                        "{who:?} does not come back:\n{seller}\n{}",
                        buyer.stderr_tail()
                    ));
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
        println!("{who:?} restarted without its chain");
        load.rests.store(false, Ordering::Release);
        Ok(())
    }

    /// Every channel closed, every attempt booked, and one sum everywhere.
    async fn wait_for_the_end(&self) -> Result<String, String> {
        let homes: Vec<&Home> = self.buyers.iter().map(Node::home).collect();
        let seller = self.seller.node.home();
        let (bought, sold) = books::agreed(&homes, &[seller], END_DEADLINE).await?;
        let billed = books::billed(&bought);
        let twice = books::charged_twice(&bought);
        if !twice.is_empty() || billed != books::billed(&sold) {
            return Err(format!(
                "charged twice {twice:?}, or {billed} is not what was sold"
            ));
        }
        let (chain, end) = (self.chain(), Instant::now() + END_DEADLINE);
        let story = loop {
            let story = chain.settled().await?;
            if story.iter().all(|one| one.is_closed) {
                break story;
            }
            if Instant::now() > end {
                let tail = self.seller.node.stderr_tail();
                return Err(format!("not closed: {story:?}\n{tail}"));
            }
            tokio::time::sleep(PAUSE).await;
        };
        let fees: u64 = story.iter().map(|one| one.fee.0).sum();
        let paid: u64 = story.iter().map(|one| one.paid.0).sum();
        let vault = chain.vault(&seller.evm_address).await?;
        if paid != billed + fees || vault.0 != paid {
            return Err(format!(
                "settled {paid}, in the seller's vault {vault:?}, billed {billed} with {fees} of fees"
            ));
        }
        for home in homes.iter().chain([&seller]) {
            books::verify(home)?;
        }
        let mut wei = vec![];
        for home in &homes {
            wei.push(
                self.anvil
                    .rpc("eth_getBalance", json!([home.evm_address, "latest"])),
            );
        }
        if wei.iter().any(|wei| wei != "0x0") {
            return Err(format!("a buyer's coins: {wei:?}"));
        }
        let counts: Vec<String> = story
            .iter()
            .map(|one| one.settlements.to_string())
            .collect();
        Ok(format!(
            "channels={} settlements={} billed_micro_usd={billed} fees_micro_usd={fees} \
             settled_micro_usd={paid} lost=0 doubled=0",
            story.len(),
            counts.join("+"),
        ))
    }
}

/// Puts hub and token on the chain with the command that users have; gives its config lines.
fn deploy(anvil: &Anvil, buyers: &[Home]) -> String {
    let (home, key) = (Home::new(), PaymentKey::generate());
    let path = home.path().join("deployer");
    std::fs::write(&path, hex::encode(key.secret_bytes().expose())).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    anvil.fund(&to_checksum(&key.address()));
    let (url, file) = (anvil.url(), path.to_str().unwrap().to_owned());
    let mut args = vec![
        "chain",
        "deploy",
        "--rpc",
        &url,
        "--key-file",
        &file,
        "--test-token",
    ];
    let grants: Vec<String> = buyers
        .iter()
        .map(|buyer| format!("{}={MONEY_USD}", buyer.evm_address))
        .collect();
    for grant in &grants {
        args.extend(["--mint", grant]);
    }
    let done = home.run(&args);
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    String::from_utf8(done.stdout).unwrap()
}

/// A config with the chain behind the proxy.
fn configure(home: &Home, lines: &str, url: &str) -> String {
    let behind: Vec<String> = lines
        .lines()
        .map(|line| match line.starts_with("rpc = ") {
            true => format!("rpc = [\"{url}\"]"),
            false => line.to_owned(),
        })
        .collect();
    let text = format!(
        "{}\nconfirmations = 3\npoll = \"1s\"\ncoin_price = \"1\"\n{PAYMENT}",
        behind.join("\n")
    );
    let path = home.path().join("config.toml");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// The value of a config line.
fn address(lines: &str, key: &str) -> EvmAddress {
    let prefix = format!("{key} = \"");
    let found = lines.lines().find_map(|line| line.strip_prefix(&prefix));
    parse_checksummed(found.unwrap().trim_end_matches('"')).unwrap()
}

async fn mode_of(node: &Node) -> String {
    let status = http::send(node.http(), &Request::get("/api/status")).await;
    status.json()["mode"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// True when every channel of a node is final; the seller has one per buyer.
async fn all_confirmed(node: &Node, most: usize) -> bool {
    let answer = http::send(node.http(), &Request::get("/api/channels"))
        .await
        .json();
    let list: Vec<Value> = answer["channels"].as_array().cloned().unwrap_or_default();
    let wanted = if answer["channels"][0]["seller"].is_string() {
        1
    } else {
        most
    };
    list.len() >= wanted && list.iter().all(|one| one["confirmed"] == true)
}
