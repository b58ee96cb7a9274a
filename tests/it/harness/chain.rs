//! A chain with the hub and a token: what tests of payment on a chain stand on, in one process or
//! with real nodes before it.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use souk::chain::digest::HubDomain;
use souk::chain::hub::{Contract, Hub, OnChain, calls, token_balance};
use souk::chain::journal::{Purpose, Record, Step};
use souk::chain::memory::MemoryJournal;
use souk::chain::outbox::{Request, Sender, Settings};
use souk::chain::rpc::{self as nodes, Rpc};
use souk::chain::{Chain, Receipt};
use souk::keys::{PaymentKey, parse_checksummed, to_checksum};
use souk::types::{
    ChannelId, Clock, EvmAddress, Hash32, IntentId, ManualClock, MicroUsd, SystemClock,
};

use super::anvil::Anvil;
use super::node::Home;

/// Blocks below the head that these tests count as final.
pub const CONFIRMATIONS: u64 = 12;
/// Times 20 ms: how long anvil may take for a block.
const MINED_WAITS_MAX: u32 = 6_000;
/// anvil answers within this on a machine that stalls; a test that needs a call to run out of time
/// says so itself.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// A client of these nodes.
pub fn rpc_of(urls: Vec<String>, chain_id: u64) -> Arc<Rpc> {
    rpc_within(urls, chain_id, CALL_TIMEOUT, Arc::new(SystemClock))
}

/// The same, where each call may take this long, and nodes rest and are compared by this clock.
pub fn rpc_within(
    urls: Vec<String>,
    chain_id: u64,
    call_timeout: Duration,
    clock: Arc<dyn Clock>,
) -> Arc<Rpc> {
    drop(rustls::crypto::ring::default_provider().install_default());
    let mut settings = nodes::Settings::new(urls, chain_id);
    settings.call_timeout = call_timeout;
    Arc::new(Rpc::new(settings, clock).unwrap())
}

/// A chain with a funded seller.
pub struct World {
    pub anvil: Anvil,
    pub chain: Arc<dyn Chain>,
    pub journal: Arc<MemoryJournal>,
    pub clock: ManualClock,
    pub seller: PaymentKey,
    pub buyer: PaymentKey,
    pub voucher_key: PaymentKey,
}

/// A world with the hub, the token and a buyer who has tokens and no gas.
pub struct Market {
    pub world: World,
    pub hub: HubDomain,
    pub token: EvmAddress,
}

impl World {
    pub fn start() -> Self {
        let anvil = Anvil::start();
        let seller = PaymentKey::generate();
        anvil.fund(&to_checksum(&seller.address()));
        Self {
            chain: rpc_of(vec![anvil.url()], anvil.chain_id),
            anvil,
            journal: Arc::new(MemoryJournal::default()),
            clock: ManualClock::new(1_700_000_000_000),
            seller,
            buyer: PaymentKey::generate(),
            voucher_key: PaymentKey::generate(),
        }
    }

    pub fn sender(&self) -> Sender {
        self.sender_over(self.chain.clone())
    }

    pub fn sender_over(&self, chain: Arc<dyn Chain>) -> Sender {
        let mut settings = Settings::new(self.anvil.chain_id, MicroUsd(1));
        settings.confirmations = Some(CONFIRMATIONS);
        let (journal, clock) = (self.journal.clone(), Arc::new(self.clock.clone()));
        Sender::new(chain, journal, clock, self.seller.clone(), settings)
    }

    /// The newest signed form of an intent.
    pub fn newest_tx(&self, id: IntentId) -> Hash32 {
        let records = self.journal.records();
        let ours = records.iter().rev().find_map(|record| match record {
            Record::Sent(sent) if sent.intent == id => Some(sent.tx),
            _ => None,
        });
        ours.unwrap()
    }

    pub async fn receipt(&self, id: IntentId) -> Option<Receipt> {
        self.chain.receipt(self.newest_tx(id)).await.unwrap()
    }

    /// Sends and waits for the block.
    pub async fn send(&self, sender: &Sender, to: Option<EvmAddress>, data: Vec<u8>) -> Receipt {
        let wanted = request(to, data, Purpose::Other, None);
        let id = self.mined(sender, wanted).await;
        self.receipt(id).await.unwrap()
    }

    /// Sends while anvil mines by itself, which takes it a moment.
    pub async fn mined(&self, sender: &Sender, request: Request) -> IntentId {
        let id = sender.submit(request).await.unwrap();
        for _ in 0..MINED_WAITS_MAX {
            if self.receipt(id).await.is_some() {
                return id;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("anvil does not mine");
    }

    pub async fn into_market(self) -> Market {
        let sender = self.sender();
        let hub = self
            .send(&sender, None, Contract::Hub.creation_code())
            .await;
        let token = self
            .send(&sender, None, Contract::TestToken.creation_code())
            .await;
        let token = token.created.unwrap();
        let mint = calls::mint(self.buyer.address(), MicroUsd::from_usd(20));
        self.send(&sender, Some(token), mint).await;
        self.anvil.mine(CONFIRMATIONS);
        let ended = sender.poll().await.unwrap();
        let confirmed = ended.iter().filter(|one| one.step == Step::Confirmed);
        assert_eq!(confirmed.count(), 3);
        let chain_id = self.anvil.chain_id;
        let hub = HubDomain {
            chain_id,
            hub: hub.created.unwrap(),
        };
        Market {
            world: self,
            hub,
            token,
        }
    }
}

impl Market {
    /// Deploys hub and token, and gives the buyer's key some tokens.
    pub async fn start() -> Self {
        World::start().into_market().await
    }
    /// Gives a node's wallet tokens.
    pub async fn mint(&self, home: &Home, tokens: MicroUsd) {
        let mint = calls::mint(address(home), tokens);
        let sender = self.world.sender();
        self.world.send(&sender, Some(self.token), mint).await;
    }
    /// No block is made but by [`Self::let_blocks_come`] or by hand.
    pub fn hold_blocks(&self) {
        self.world.anvil.rpc("evm_setAutomine", json!([false]));
    }
    /// Time passes on the chain; the nodes' own clocks stay.
    pub fn travel(&self, seconds: u64) {
        self.world.anvil.rpc("evm_increaseTime", json!([seconds]));
        self.world.anvil.mine(1);
    }
    /// A block a second, as on a rollup.
    pub fn let_blocks_come(&self) {
        self.world.anvil.rpc("evm_setIntervalMining", json!([1]));
    }
    async fn contract(&self) -> Hub<'_> {
        let chain = self.world.chain.as_ref();
        Hub::check(chain, self.hub).await.unwrap()
    }
    /// What the contract says of a channel.
    pub async fn on_chain(&self, id: &ChannelId) -> OnChain {
        self.contract().await.channel(id).await.unwrap()
    }
    /// What a node's vault holds.
    pub async fn vault(&self, home: &Home) -> MicroUsd {
        let hub = self.contract().await;
        hub.vault(self.token, address(home)).await.unwrap()
    }
    /// What a node's wallet holds.
    pub async fn wallet(&self, home: &Home) -> MicroUsd {
        let chain = self.world.chain.as_ref();
        let balance = token_balance(chain, self.token, address(home));
        balance.await.unwrap()
    }
    /// The `[chain]` section for a node that asks `rpc`.
    pub fn section(&self, rpc: &str, confirmations: u64) -> String {
        format!(
            "[chain]\nrpc = [\"{rpc}\"]\nchain_id = {}\nhub = \"{}\"\ntoken = \"{}\"\n\
             confirmations = {confirmations}\npoll = \"200ms\"\ncall_timeout = \"{}s\"\n\
             coin_price = \"1\"\nbump_after = \"2s\"\n",
            self.hub.chain_id,
            to_checksum(&self.hub.hub),
            to_checksum(&self.token),
            CALL_TIMEOUT.as_secs(),
        )
    }
}

/// A node's account.
pub fn address(home: &Home) -> EvmAddress {
    parse_checksummed(&home.evm_address).unwrap()
}

/// Worth its gas at any price.
pub fn request(
    to: Option<EvmAddress>,
    data: Vec<u8>,
    purpose: Purpose,
    channel: Option<ChannelId>,
) -> Request {
    let gain = MicroUsd::from_usd(1_000);
    Request {
        to,
        data,
        purpose,
        channel,
        gain,
        deadline_ms: None,
    }
}
