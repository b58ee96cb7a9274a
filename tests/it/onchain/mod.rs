//! Payment on a real chain between real processes: anvil, a bootstrap node, sellers, buyers. The
//! buyer's account never has a wei.
//!
//! Blocks come only when a test asks for them or lets them come, so that it can say what happened
//! before the chain knew of anything.

mod ahead;
mod faults;
mod gas;
mod hostile;
mod layers;
mod life;
mod recovery;
mod settle;
mod theft;

use std::time::Duration;

use serde_json::{Value, json};
use souk::chain::hub::OnChain;
use souk::types::{ChannelId, MicroUsd};
use tokio::time::Instant;

use crate::harness::books::{self, Rows};
use crate::harness::chain::{Market as Chain, address};
use crate::harness::http::{self, Request, Response};
use crate::harness::market::{self, Dialect, Hold, Seller, UPSTREAM_KEY};
use crate::harness::node::{Home, Node};
use crate::harness::proxy::Proxy;
use crate::harness::upstream::{Script, Upstream};

/// USD per million tokens: a usual answer costs about a cent.
const PRICES: (&str, &str) = ("20", "80");
/// Blocks below the head that the nodes count as final.
const CONFIRMATIONS: u64 = 3;
/// What the chain does within a few blocks is there by then, on a busy machine.
const CHAIN_DEADLINE: Duration = Duration::from_secs(180);
/// Both ledgers agree by then.
const BOOKED_DEADLINE: Duration = Duration::from_secs(180);
/// How often a condition is looked at.
const PAUSE: Duration = Duration::from_millis(100);
/// Nothing is settled or closed by itself while a test runs: an end that comes while a slow machine
/// is between two requests would be another story.
const PATIENT: &str = "[payment]\nsettle_min = \"5\"\nidle_close = \"1h\"\n";

/// A market whose nodes pay on a chain.
struct World {
    chain: Chain,
    bootstrap: Node,
    seller: Seller,
    buyer: Node,
    /// Between the nodes and the chain, where a test wants one.
    proxy: Option<Proxy>,
    _hold: Hold,
}

/// What a node's config says of the chain, and more.
fn config(chain: &Chain, home: &Home, more: &str) -> String {
    config_at(chain, &chain.world.anvil.url(), home, more)
}

fn config_at(chain: &Chain, rpc: &str, home: &Home, more: &str) -> String {
    let text = format!("{}{more}", chain.section(rpc, CONFIRMATIONS));
    let path = home.path().join("config.toml");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

impl World {
    /// A funded buyer with `tokens` in its wallet, a seller with coins for gas. No block is made
    /// from here on until [`World::let_blocks_come`].
    async fn start(tokens: MicroUsd, more: &str) -> Self {
        Self::start_with(tokens, more, more, Script::default()).await
    }

    async fn start_with(
        tokens: MicroUsd,
        seller_more: &str,
        buyer_more: &str,
        script: Script,
    ) -> Self {
        Self::start_over(tokens, seller_more, buyer_more, script, false).await
    }

    /// As [`World::start`], with a proxy between the nodes and the chain.
    async fn start_behind(tokens: MicroUsd, more: &str) -> Self {
        Self::start_over(tokens, more, more, Script::default(), true).await
    }

    async fn start_over(
        tokens: MicroUsd,
        seller_more: &str,
        buyer_more: &str,
        script: Script,
        is_behind: bool,
    ) -> Self {
        let hold = Hold::shared().await;
        let chain = Chain::start().await;
        let proxy = if is_behind {
            Some(Proxy::start(chain.world.anvil.port).await)
        } else {
            None
        };
        let rpc = proxy
            .as_ref()
            .map_or_else(|| chain.world.anvil.url(), Proxy::url);
        let buyer = Home::new();
        chain.mint(&buyer, tokens).await;
        chain.world.anvil.mine(CONFIRMATIONS);
        chain.hold_blocks();
        let bootstrap = Node::start(&["bootstrap"]);
        let seller = start_seller(&chain, &rpc, bootstrap.listen(), seller_more, script).await;
        let file = config_at(&chain, &rpc, &buyer, buyer_more);
        let args = [
            "buy",
            "--port",
            "0",
            "--bootstrap",
            bootstrap.listen(),
            "--config",
            &file,
        ];
        let buyer = Node::start_at(buyer, &args);
        market::wait_for_sellers(&buyer, 1).await;
        Self {
            chain,
            bootstrap,
            seller,
            buyer,
            proxy,
            _hold: hold,
        }
    }

    async fn ask(&self, prompt: &str, stream: bool) -> Response {
        let request = Dialect::Chat.request(prompt, stream);
        http::send(self.buyer.http(), &request).await
    }

    /// The first answer. What the wallet holds is read a moment after the buyer's start; before that
    /// it signs nothing and says so.
    async fn ask_first(&self, prompt: &str, stream: bool) -> Response {
        let end = Instant::now() + CHAIN_DEADLINE;
        loop {
            let answer = self.ask(prompt, stream).await;
            if answer.status == 200 {
                return answer;
            }
            let (channels, text) = (self.channels().await, answer.text());
            assert!(channels.is_empty(), "{text} with {channels:#?}");
            assert!(Instant::now() < end, "{text}\n{}", self.buyer.stderr_tail());
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The buyer's owner ends its channels, each with its seller, once the node knows them for good.
    async fn end_channels(&self) {
        self.wait_confirmed().await;
        let args = ["channel", "close", "--all", "--no-wait", "--json"];
        let done = self.buyer.home().json(&args);
        assert_eq!(done["plan"]["way"], "agreed", "{done}");
    }

    /// The buyer's channels as its port shows them.
    async fn channels(&self) -> Vec<Value> {
        channels(&self.buyer).await
    }

    async fn channel(&self) -> ChannelId {
        let list = self.channels().await;
        let id = list.first().and_then(|one| one["channel"].as_str());
        id.expect("a channel is signed").parse().unwrap()
    }

    /// What the contract says of a channel.
    async fn on_chain(&self, id: &ChannelId) -> OnChain {
        self.chain.on_chain(id).await
    }

    /// Waits until the contract says what `is_so` wants.
    async fn wait_on_chain(&self, id: &ChannelId, what: &str, is_so: impl Fn(&OnChain) -> bool) {
        let end = Instant::now() + CHAIN_DEADLINE;
        loop {
            let state = self.on_chain(id).await;
            if is_so(&state) {
                return;
            }
            assert!(
                Instant::now() < end,
                "{what}: {state:?}\nseller:\n{}\nbuyer:\n{}",
                self.seller.node.stderr_tail(),
                self.buyer.stderr_tail()
            );
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Waits until a transaction is in the chain's pool.
    async fn wait_for_a_transaction(&self) {
        let end = Instant::now() + CHAIN_DEADLINE;
        let anvil = &self.chain.world.anvil;
        while anvil.rpc("txpool_status", json!([]))["pending"] == "0x0" {
            assert!(Instant::now() < end, "nothing was sent");
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Lets blocks come, until the channel is open for good on the chain and for the buyer's node.
    async fn opened(&self) -> ChannelId {
        self.chain.let_blocks_come();
        let channel = self.channel().await;
        self.wait_on_chain(&channel, "opened", |state| state.expiry_s > 0)
            .await;
        self.wait_confirmed().await;
        channel
    }

    /// Waits until the buyer's node knows that the deposit is final.
    async fn wait_confirmed(&self) {
        wait_confirmed(&self.buyer).await;
    }

    /// Asks until an answer comes.
    async fn ask_until_served(&self) {
        let end = Instant::now() + CHAIN_DEADLINE;
        loop {
            let answer = self.ask("Are you there?", false).await;
            if answer.status == 200 {
                return;
            }
            assert!(Instant::now() < end, "{}", answer.text());
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Both ledgers once every attempt is booked.
    async fn booked(&self) -> (Rows, Rows) {
        let (buyer, seller) = (self.buyer.home(), self.seller.node.home());
        let agreed = books::agreed(&[buyer], &[seller], BOOKED_DEADLINE).await;
        agreed.unwrap_or_else(|differences| {
            let (bought, sold) = (self.buyer.stderr_tail(), self.seller.node.stderr_tail());
            panic!("{differences}\nthe buyer:\n{bought}\nthe seller:\n{sold}")
        })
    }

    fn verify(&self) {
        for home in [self.buyer.home(), self.seller.node.home()] {
            books::verify(home).unwrap_or_else(|differences| panic!("{differences}"));
        }
    }

    fn wei(&self, home: &Home) -> Value {
        let params = json!([home.evm_address, "latest"]);
        self.chain.world.anvil.rpc("eth_getBalance", params)
    }
}

async fn start_seller(
    chain: &Chain,
    rpc: &str,
    bootstrap: &str,
    more: &str,
    script: Script,
) -> Seller {
    let upstream = Upstream::start(script.key(UPSTREAM_KEY)).await;
    let home = Home::new();
    chain.world.anvil.fund(&home.evm_address);
    let file = config_at(chain, rpc, &home, more);
    let node = Seller::node_at(home, bootstrap, &upstream, PRICES, &["--config", &file]);
    Seller { node, upstream }
}

async fn channels(node: &Node) -> Vec<Value> {
    let answer = http::send(node.http(), &Request::get("/api/channels")).await;
    answer.json()["channels"]
        .as_array()
        .cloned()
        .unwrap_or_default()
}

/// Waits until a node knows that the deposit of a channel of its is final.
async fn wait_confirmed(node: &Node) {
    let end = Instant::now() + CHAIN_DEADLINE;
    loop {
        let list = channels(node).await;
        if list.iter().any(|one| one["confirmed"] == true) {
            return;
        }
        assert!(Instant::now() < end, "not confirmed: {list:#?}");
        tokio::time::sleep(PAUSE).await;
    }
}
