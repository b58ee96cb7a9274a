//! Channels that a running role ends itself when its owner asks: through its sessions, over exactly
//! what was consumed, without a challenge period.

use std::sync::Arc;

use crate::chain::hub::Claim;
use crate::payment::payee::PayeeHub;
use crate::payment::payer::{Pair, PayerHub};
use crate::types::{ChannelId, PeerId};
use crate::wallet::Agreement;

/// A buyer ends a channel by asking its seller, who must be there.
pub(super) struct Bought(pub PayerHub);

impl Bought {
    fn seller_of(&self, channel: &ChannelId) -> Option<PeerId> {
        let pairs = self.0.pairs();
        let holds = |pair: &&Arc<Pair>| pair.channel() == Some(*channel) && pair.is_up();
        pairs.iter().find(holds).map(|pair| *pair.seller())
    }
}

impl Agreement for Bought {
    fn can_end(&self, channel: &ChannelId) -> bool {
        self.seller_of(channel).is_some()
    }
    fn end(&self, channel: &ChannelId) -> bool {
        let seller = self.seller_of(channel);
        seller.is_some_and(|seller| self.0.close(&seller))
    }
    fn last_claim(&self, _channel: &ChannelId) -> Option<Claim> {
        None
    }
}

/// A seller ends a channel alone: it brings the last voucher once nothing runs any more.
pub(super) struct Sold(pub PayeeHub);

impl Sold {
    fn buyer_of(&self, channel: &ChannelId) -> Option<PeerId> {
        let pairs = self.0.pairs();
        let found = pairs.iter().find(|pair| pair.channel() == *channel);
        found.map(|pair| *pair.buyer())
    }
}

impl Agreement for Sold {
    fn can_end(&self, channel: &ChannelId) -> bool {
        self.buyer_of(channel).is_some()
    }
    fn end(&self, channel: &ChannelId) -> bool {
        let buyer = self.buyer_of(channel);
        buyer.is_some_and(|buyer| self.0.close(&buyer))
    }
    fn last_claim(&self, channel: &ChannelId) -> Option<Claim> {
        self.0.last_claim(channel)
    }
}
