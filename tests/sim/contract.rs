//! The hub and the token, as a model: vaults and channels by the contract's rules.

use std::collections::{BTreeMap, BTreeSet};

use souk::chain::hub::HubEvent;
use souk::protocol::EvmSignature;
use souk::protocol::voucher::{HubChannel, TokenAuthorization, TopUp};
use souk::types::{ChannelId, Hash32, MicroUsd};

use super::wire::signature;

/// What a transaction asks of the hub.
#[derive(Clone, Debug)]
pub enum Call {
    Open(Box<HubChannel>),
    TopUp(Box<HubChannel>, TopUp),
    Settle(ChannelId, MicroUsd, EvmSignature),
    Close(ChannelId, MicroUsd, EvmSignature),
    RequestClose(ChannelId),
    Reclaim(ChannelId),
    /// The buyer takes money out of its vault.
    Withdraw(MicroUsd),
}

/// A channel as the contract stores it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stored {
    pub deposit: MicroUsd,
    pub settled: MicroUsd,
    pub fee: MicroUsd,
    pub expiry_s: u64,
    pub challenge_s: u64,
    pub closing: bool,
    pub closed: bool,
}

/// All money, and the seller's count of transactions.
#[derive(Clone, Debug, Default)]
pub struct Contract {
    pub buyer_vault: MicroUsd,
    pub buyer_wallet: MicroUsd,
    pub seller_vault: MicroUsd,
    pub channels: BTreeMap<ChannelId, Stored>,
    pub authorizations: BTreeSet<Hash32>,
    pub nonce: u64,
}

pub type Reverted = &'static str;

impl Contract {
    /// Everything that there is: no call changes it.
    pub fn total(&self) -> MicroUsd {
        let open = self.channels.values();
        let in_channels: MicroUsd = open
            .map(|one| one.deposit.saturating_sub(one.settled))
            .sum();
        [
            self.buyer_vault,
            self.buyer_wallet,
            self.seller_vault,
            in_channels,
        ]
        .into_iter()
        .sum()
    }

    /// Does what a call asks, or nothing.
    pub fn execute(&mut self, call: &Call, now_s: u64) -> Result<Vec<HubEvent>, Reverted> {
        let mut next = self.clone();
        let events = next.apply(call, now_s)?;
        *self = next;
        Ok(events)
    }

    fn apply(&mut self, call: &Call, now_s: u64) -> Result<Vec<HubEvent>, Reverted> {
        match call {
            Call::Open(channel) => self.open(channel, now_s),
            Call::TopUp(channel, top_up) => self.top_up(channel, top_up, now_s),
            Call::Settle(id, sum, by) => Ok(self.settle(id, *sum, by)?.into_iter().collect()),
            Call::Close(id, sum, by) => {
                let paid = self.settle(id, *sum, by)?;
                let ended = self.finish(id)?;
                Ok(paid.into_iter().chain(ended).collect())
            }
            Call::RequestClose(id) => self.request_close(id, now_s),
            Call::Reclaim(id) => {
                let one = self.channels.get(id).ok_or("ChannelUnknown")?;
                if now_s < one.expiry_s {
                    return Err("NotExpired");
                }
                Ok(self.finish(id)?.into_iter().collect())
            }
            Call::Withdraw(amount) => {
                let amount = self.buyer_vault.min(*amount);
                self.buyer_vault = self.buyer_vault.saturating_sub(amount);
                self.buyer_wallet = self.buyer_wallet.saturating_add(amount);
                Ok(Vec::new())
            }
        }
    }

    fn fill(&mut self, given: Option<&TokenAuthorization>) -> Result<(), Reverted> {
        let Some(given) = given else {
            return Ok(());
        };
        if !self.authorizations.insert(given.nonce) {
            return Ok(());
        }
        if self.buyer_wallet < given.amount {
            return Err("ERC20InsufficientBalance");
        }
        self.buyer_wallet = self.buyer_wallet.saturating_sub(given.amount);
        self.buyer_vault = self.buyer_vault.saturating_add(given.amount);
        Ok(())
    }

    fn debit(&mut self, amount: MicroUsd) -> Result<(), Reverted> {
        if self.buyer_vault < amount {
            return Err("InsufficientBalance");
        }
        self.buyer_vault = self.buyer_vault.saturating_sub(amount);
        Ok(())
    }

    fn open(&mut self, channel: &HubChannel, now_s: u64) -> Result<Vec<HubEvent>, Reverted> {
        let (id, opening) = (channel.id(), &channel.opening);
        let challenge_s = u64::from(channel.descriptor.challenge_period_s);
        self.fill(opening.authorization.as_ref())?;
        if opening.open_fee > opening.deposit {
            return Err("BadAmount");
        }
        if now_s >= opening.valid_before_s {
            return Err("AuthExpired");
        }
        if opening.expiry_s < now_s + challenge_s {
            return Err("BadExpiry");
        }
        if self.channels.contains_key(&id) {
            return Err("ChannelExists");
        }
        self.debit(opening.deposit)?;
        self.seller_vault = self.seller_vault.saturating_add(opening.open_fee);
        let stored = Stored {
            deposit: opening.deposit,
            settled: opening.open_fee,
            fee: opening.open_fee,
            expiry_s: opening.expiry_s,
            challenge_s,
            ..Stored::default()
        };
        self.channels.insert(id, stored);
        Ok(vec![HubEvent::Opened {
            channel: id,
            descriptor: channel.descriptor.clone(),
            deposit: opening.deposit,
            open_fee: opening.open_fee,
            expiry_s: opening.expiry_s,
        }])
    }

    fn top_up(
        &mut self,
        channel: &HubChannel,
        top_up: &TopUp,
        now_s: u64,
    ) -> Result<Vec<HubEvent>, Reverted> {
        let id = channel.id();
        self.fill(top_up.authorization.as_ref())?;
        let before = *self.channels.get(&id).ok_or("ChannelUnknown")?;
        if before.closing || before.closed {
            return Err("ChannelEnding");
        }
        if top_up.deposit <= before.deposit {
            return Err("BadAmount");
        }
        if top_up.expiry_s < before.expiry_s || top_up.expiry_s < now_s + before.challenge_s {
            return Err("BadExpiry");
        }
        if now_s >= top_up.valid_before_s {
            return Err("AuthExpired");
        }
        self.debit(top_up.deposit.saturating_sub(before.deposit))?;
        let after = Stored {
            deposit: top_up.deposit,
            expiry_s: top_up.expiry_s,
            ..before
        };
        self.channels.insert(id, after);
        Ok(vec![HubEvent::ToppedUp {
            channel: id,
            deposit: top_up.deposit,
            expiry_s: top_up.expiry_s,
        }])
    }

    /// A voucher above the deposit is worth the deposit; one that adds nothing does nothing.
    fn settle(
        &mut self,
        id: &ChannelId,
        sum: MicroUsd,
        by: &EvmSignature,
    ) -> Result<Option<HubEvent>, Reverted> {
        let Some(one) = self.channels.get_mut(id) else {
            return Ok(None);
        };
        let settled = sum.min(one.deposit);
        if settled <= one.settled {
            return Ok(None);
        }
        if *by != signature(sum) {
            return Err("BadSignature");
        }
        let paid = settled.saturating_sub(one.settled);
        one.settled = settled;
        self.seller_vault = self.seller_vault.saturating_add(paid);
        Ok(Some(HubEvent::Settled {
            channel: *id,
            settled,
            paid,
        }))
    }

    fn finish(&mut self, id: &ChannelId) -> Result<Option<HubEvent>, Reverted> {
        let one = self.channels.get_mut(id).ok_or("ChannelUnknown")?;
        if one.closed {
            return Ok(None);
        }
        let refund = one.deposit.saturating_sub(one.settled);
        one.deposit = one.settled;
        one.closed = true;
        let settled = one.settled;
        self.buyer_vault = self.buyer_vault.saturating_add(refund);
        Ok(Some(HubEvent::Closed {
            channel: *id,
            settled,
            refund,
        }))
    }

    fn request_close(&mut self, id: &ChannelId, now_s: u64) -> Result<Vec<HubEvent>, Reverted> {
        let one = self.channels.get_mut(id).ok_or("ChannelUnknown")?;
        if one.closing || one.closed {
            return Ok(Vec::new());
        }
        one.expiry_s = one.expiry_s.min(now_s + one.challenge_s);
        one.closing = true;
        let expiry_s = one.expiry_s;
        Ok(vec![HubEvent::CloseRequested {
            channel: *id,
            expiry_s,
        }])
    }
}
