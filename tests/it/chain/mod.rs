//! The EVM side against a real chain: the hub is deployed, channels open and settle through the
//! outbox, nodes fail, the chain reorganises, the process stops at the worst moment.

mod rpc;
mod send;
mod watch;

use std::time::Duration;

use souk::chain::digest::{HubDomain, TokenDomain};
use souk::chain::hub::{Authorization, Claim, OpenAuth, calls};
use souk::chain::journal::{Outcome, Purpose, Step};
use souk::chain::memory::MemoryJournal;
use souk::chain::outbox::Request;
use souk::chain::watcher::{self, Watcher};
use souk::protocol::voucher::{ChannelDescriptor, Voucher};
use souk::types::{ChannelId, EvmAddress, Hash32, MicroUsd};

pub(crate) use crate::harness::chain::Market;
use crate::harness::chain::{CONFIRMATIONS, World, request, rpc_of};

/// A voucher settles $1.23.
const CUMULATIVE: MicroUsd = MicroUsd(1_234_567);
/// Far in the future, for validity and expiry.
const LATE_S: u64 = 4_102_444_800;

impl World {
    fn watcher(&self, domain: HubDomain) -> Watcher {
        self.watcher_of(domain, self.buyer.address(), self.journal.clone())
    }

    /// Whoever's watcher, with a memory of its own.
    fn watcher_of(
        &self,
        domain: HubDomain,
        account: EvmAddress,
        journal: std::sync::Arc<MemoryJournal>,
    ) -> Watcher {
        let settings = watcher::Settings {
            domain,
            account,
            start_block: 0,
            confirmations: Some(CONFIRMATIONS),
            range_blocks_max: 2_000,
            poll_every: Duration::from_millis(100),
        };
        let clock = std::sync::Arc::new(self.clock.clone());
        Watcher::new(self.chain.clone(), journal, clock, settings)
    }
}

impl Market {
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

fn steps(outcomes: &[Outcome]) -> Vec<Step> {
    outcomes.iter().map(|outcome| outcome.step).collect()
}
