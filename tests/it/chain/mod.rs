//! The EVM side against a real chain: the hub is deployed, channels open and settle through the
//! outbox, nodes fail, the chain reorganises, the process stops at the worst moment.

mod rpc;
mod send;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use souk::chain::digest::{HubDomain, TokenDomain};
use souk::chain::hub::{Authorization, Claim, Contract, OpenAuth, calls};
use souk::chain::journal::{Outcome, Purpose, Record, Step};
use souk::chain::memory::MemoryJournal;
use souk::chain::outbox::{Request, Sender, Settings};
use souk::chain::rpc::{self as nodes, Rpc};
use souk::chain::watcher::{self, Watcher};
use souk::chain::{Chain, Receipt};
use souk::keys::{PaymentKey, to_checksum};
use souk::protocol::voucher::{ChannelDescriptor, Voucher};
use souk::types::{ChannelId, EvmAddress, Hash32, IntentId, ManualClock, MicroUsd};

use crate::harness::anvil::Anvil;

/// Blocks below the head that these tests count as final.
pub(crate) const CONFIRMATIONS: u64 = 12;
/// A voucher settles $1.23.
const CUMULATIVE: MicroUsd = MicroUsd(1_234_567);
/// Times 20 ms: how long anvil may take for a block.
const MINED_WAITS_MAX: u32 = 1_000;
/// Far in the future, for validity and expiry.
const LATE_S: u64 = 4_102_444_800;

/// A client of one node.
fn rpc_of(urls: Vec<String>, chain_id: u64) -> Arc<Rpc> {
    drop(rustls::crypto::ring::default_provider().install_default());
    let mut settings = nodes::Settings::new(urls, chain_id);
    settings.call_timeout = Duration::from_secs(2);
    Arc::new(Rpc::new(settings, Arc::new(souk::types::SystemClock)).unwrap())
}

/// A chain with a funded seller.
pub(crate) struct World {
    pub(crate) anvil: Anvil,
    pub(crate) chain: Arc<dyn Chain>,
    journal: Arc<MemoryJournal>,
    clock: ManualClock,
    seller: PaymentKey,
    buyer: PaymentKey,
    voucher_key: PaymentKey,
}

/// A world with the hub, the token and a buyer who has tokens and no gas.
pub(crate) struct Market {
    pub(crate) world: World,
    pub(crate) hub: HubDomain,
    pub(crate) token: EvmAddress,
}

impl World {
    fn start() -> Self {
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

    pub(crate) fn sender(&self) -> Sender {
        self.sender_over(self.chain.clone())
    }

    fn sender_over(&self, chain: Arc<dyn Chain>) -> Sender {
        let mut settings = Settings::new(self.anvil.chain_id, MicroUsd(1));
        settings.confirmations = Some(CONFIRMATIONS);
        let (journal, clock) = (self.journal.clone(), Arc::new(self.clock.clone()));
        Sender::new(chain, journal, clock, self.seller.clone(), settings)
    }

    fn watcher(&self, domain: HubDomain) -> Watcher {
        let settings = watcher::Settings {
            domain,
            start_block: 0,
            confirmations: Some(CONFIRMATIONS),
            range_blocks_max: 2_000,
            poll_every: Duration::from_millis(100),
        };
        let (journal, clock) = (self.journal.clone(), Arc::new(self.clock.clone()));
        Watcher::new(self.chain.clone(), journal, clock, settings)
    }

    /// The newest signed form of an intent.
    fn newest_tx(&self, id: IntentId) -> Hash32 {
        let records = self.journal.records();
        let ours = records.iter().rev().find_map(|record| match record {
            Record::Sent(sent) if sent.intent == id => Some(sent.tx),
            _ => None,
        });
        ours.unwrap()
    }

    async fn receipt(&self, id: IntentId) -> Option<Receipt> {
        self.chain.receipt(self.newest_tx(id)).await.unwrap()
    }

    /// Sends and waits for the block.
    pub(crate) async fn send(
        &self,
        sender: &Sender,
        to: Option<EvmAddress>,
        data: Vec<u8>,
    ) -> Receipt {
        let wanted = request(to, data, Purpose::Other, None);
        let id = self.mined(sender, wanted).await;
        self.receipt(id).await.unwrap()
    }

    /// Sends while anvil mines by itself, which takes it a moment.
    async fn mined(&self, sender: &Sender, request: Request) -> IntentId {
        let id = sender.submit(request).await.unwrap();
        for _ in 0..MINED_WAITS_MAX {
            if self.receipt(id).await.is_some() {
                return id;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("anvil does not mine");
    }

    async fn into_market(self) -> Market {
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
        assert_eq!(
            steps(&ended)
                .iter()
                .filter(|step| **step == Step::Confirmed)
                .count(),
            3
        );
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
    pub(crate) async fn start() -> Self {
        World::start().into_market().await
    }

    fn descriptor(&self, salt: u8) -> ChannelDescriptor {
        let world = &self.world;
        ChannelDescriptor {
            buyer: world.buyer.address(),
            seller: world.seller.address(),
            operator: world.seller.address(),
            token: self.token,
            voucher_signer: world.voucher_key.address(),
            challenge_period_s: 86_400,
            salt: Hash32([salt; 32]),
        }
    }

    fn id(&self, salt: u8) -> ChannelId {
        self.hub.channel_id(&self.descriptor(salt))
    }

    /// Deposit and opening as one transaction; the buyer only signs.
    fn open(&self, salt: u8) -> Request {
        let buyer = &self.world.buyer;
        let token = TokenDomain {
            name: "Test USD".to_owned(),
            version: "2".to_owned(),
            chain_id: self.hub.chain_id,
            token: self.token,
        };
        let deposit = Authorization {
            from: buyer.address(),
            amount: MicroUsd::from_usd(5),
            valid_after_s: 0,
            valid_before_s: LATE_S,
            nonce: Hash32([salt; 32]),
        };
        let by_buyer = buyer.sign_hash(&token.receive(&deposit, self.hub.hub));
        let pay = calls::deposit_with_authorization(self.token, &deposit, &by_buyer);
        let auth = OpenAuth {
            descriptor: self.descriptor(salt),
            deposit: MicroUsd::from_usd(5),
            open_fee: MicroUsd(2_000),
            expiry_s: LATE_S,
            valid_before_s: LATE_S,
        };
        let open = calls::open(&auth, &buyer.sign_hash(&self.hub.open(&auth)));
        let data = calls::multicall(vec![pay, open]);
        request(Some(self.hub.hub), data, Purpose::Open, Some(self.id(salt)))
    }

    fn claim(&self, salt: u8, cumulative: MicroUsd) -> Claim {
        let voucher = Voucher {
            channel: self.id(salt),
            cumulative,
        };
        let signature = self
            .world
            .voucher_key
            .sign_hash(&self.hub.voucher(&voucher));
        Claim {
            descriptor: self.descriptor(salt),
            cumulative,
            signature,
        }
    }

    fn settle(&self, salt: u8) -> Request {
        let data = calls::settle(&self.claim(salt, CUMULATIVE));
        request(
            Some(self.hub.hub),
            data,
            Purpose::Settle,
            Some(self.id(salt)),
        )
    }
}

/// Worth its gas at any price.
fn request(
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

fn steps(outcomes: &[Outcome]) -> Vec<Step> {
    outcomes.iter().map(|outcome| outcome.step).collect()
}
