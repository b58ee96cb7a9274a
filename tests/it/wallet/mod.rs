//! The owner's commands on a real chain: deploying, wallet, channels, relaying, comparing. Everything
//! is typed as users type it; anvil is the chain.

mod channels;
mod demo;
mod deploy;
mod money;
mod relay;
mod tls;
mod verify;

use std::process::Output;

use serde_json::{Value, json};
use souk::chain::hub::{Hub, calls, token_balance};
use souk::keys::{NodeKeys, parse_checksummed, to_checksum};
use souk::types::{EvmAddress, MicroUsd};

use crate::chain::Market as Chain;
use crate::harness::chain::CALL_TIMEOUT;
use crate::harness::market::Hold;
use crate::harness::node::Home;

/// A chain with hub and token, and homes that know it.
pub(crate) struct World {
    chain: Chain,
    _hold: Hold,
}

impl World {
    pub(crate) async fn start() -> Self {
        let hold = Hold::shared().await;
        Self {
            chain: Chain::start().await,
            _hold: hold,
        }
    }

    /// What a config says of this chain. Blocks come with transactions, so each is final at once.
    pub(crate) fn config(&self, more: &str) -> String {
        let anvil = &self.chain.world.anvil;
        format!(
            "[chain]\nrpc = [\"{}\"]\nchain_id = {}\nhub = \"{}\"\ntoken = \"{}\"\n\
             confirmations = 0\npoll = \"200ms\"\ncall_timeout = \"{}s\"\ncoin_price = \"0.01\"\n{more}",
            anvil.url(),
            anvil.chain_id,
            to_checksum(&self.chain.hub.hub),
            to_checksum(&self.chain.token),
            CALL_TIMEOUT.as_secs(),
        )
    }

    /// A home with keys and this chain in its config.
    fn home(&self) -> Home {
        let home = Home::new();
        configure(&home, &self.config(""));
        home
    }

    /// A home with test tokens in its wallet, and coins for gas if it shall have some.
    async fn rich(&self, usd: u64, has_gas: bool) -> Home {
        let home = self.home();
        self.mint(&home, MicroUsd::from_usd(usd)).await;
        if has_gas {
            self.chain.world.anvil.fund(&home.evm_address);
        }
        home
    }

    async fn mint(&self, home: &Home, amount: MicroUsd) {
        let world = &self.chain.world;
        let mint = calls::mint(address(home), amount);
        world
            .send(&world.sender(), Some(self.chain.token), mint)
            .await;
    }

    async fn vault(&self, account: EvmAddress) -> MicroUsd {
        let hub = Hub::check(self.chain.world.chain.as_ref(), self.chain.hub);
        hub.await
            .unwrap()
            .vault(self.chain.token, account)
            .await
            .unwrap()
    }

    async fn tokens(&self, account: EvmAddress) -> MicroUsd {
        let chain = self.chain.world.chain.as_ref();
        token_balance(chain, self.chain.token, account)
            .await
            .unwrap()
    }

    fn transactions(&self, account: &str) -> Value {
        let params = json!([account, "latest"]);
        self.chain
            .world
            .anvil
            .rpc("eth_getTransactionCount", params)
    }

    fn wei(&self, account: &str) -> Value {
        let params = json!([account, "latest"]);
        self.chain.world.anvil.rpc("eth_getBalance", params)
    }

    /// Lets the chain's clock run ahead.
    fn pass(&self, seconds: u64) {
        let anvil = &self.chain.world.anvil;
        anvil.rpc("evm_increaseTime", json!([seconds]));
        anvil.mine(1);
    }
}

/// Writes the config where the command looks for it.
pub(crate) fn configure(home: &Home, text: &str) {
    home.configure(text);
}

fn address(home: &Home) -> EvmAddress {
    parse_checksummed(&home.evm_address).unwrap()
}

fn keys(home: &Home) -> NodeKeys {
    NodeKeys::load(&home.path().join("key.json"), None, 0).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The state of each transaction that a command reports.
fn states(answer: &Value) -> Vec<String> {
    let all = answer["transactions"].as_array().unwrap();
    let state = |one: &Value| one["progress"]["state"].as_str().unwrap().to_owned();
    all.iter().map(state).collect()
}

/// A sum that a command reports.
fn sum(answer: &Value, field: &str) -> MicroUsd {
    MicroUsd(
        answer[field]
            .as_u64()
            .unwrap_or_else(|| panic!("no {field} in {answer}")),
    )
}
