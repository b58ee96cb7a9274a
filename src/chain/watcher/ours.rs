//! Which of a hub's events are this node's: those of its account and of its channels. Everybody's
//! channels are in one hub, and most of them are nobody's business here. Pure.
//!
//! Near the head the hub's few new logs are read as they are and sifted; a long stretch is asked for
//! by topics, so that a node that was away, or lost its ledger, is not sent a whole market's history.

use std::collections::BTreeSet;

use crate::chain::hub::{HubEvent, HubLog, topics};
use crate::chain::{RawLog, Topics};
use crate::types::{ChannelId, EvmAddress};

/// Stretches longer than this are asked for by topics: four questions instead of one, so not for the
/// few blocks of a usual poll.
pub(super) const SIFTED_BLOCKS_MAX: u64 = 64;
/// Channels named in one question; RPC nodes limit its size.
const CHANNELS_ASKED_MAX: usize = 256;

/// An account and its channels as far as they are known.
#[derive(Clone, Debug)]
pub(super) struct Ours {
    account: EvmAddress,
    channels: BTreeSet<ChannelId>,
}

impl Ours {
    pub fn new(account: EvmAddress, channels: impl IntoIterator<Item = ChannelId>) -> Self {
        Self {
            account,
            channels: channels.into_iter().collect(),
        }
    }
    /// Whether an event is kept; learns the channels that open. Events must come in order.
    pub fn keeps(&mut self, event: &HubEvent) -> bool {
        let me = self.account;
        match event {
            HubEvent::Opened {
                channel,
                descriptor,
                ..
            } => {
                let is_ours = descriptor.buyer == me || descriptor.seller == me;
                if is_ours {
                    self.channels.insert(*channel);
                }
                is_ours
            }
            HubEvent::Deposited { account, .. } => *account == me,
            // The fee of what was relayed lands in the relayer's vault.
            HubEvent::Withdrawn {
                account, relayer, ..
            } => *account == me || *relayer == me,
            HubEvent::ToppedUp { channel, .. }
            | HubEvent::Settled { channel, .. }
            | HubEvent::CloseRequested { channel, .. }
            | HubEvent::Closed { channel, .. } => self.channels.contains(channel),
        }
    }
    /// Learns the channels that open in these logs.
    pub fn learn(&mut self, logs: &[RawLog]) {
        for log in logs.iter().cloned().filter_map(HubLog::decode) {
            self.keeps(&log.event);
        }
    }
    /// Questions that together find every event of the account but those of its channels.
    pub fn about_account(&self) -> Vec<Topics> {
        topics::about_account(self.account)
    }
    /// Questions for the events of its channels, all that are known by now.
    pub fn about_channels(&self) -> Vec<Topics> {
        let all: Vec<ChannelId> = self.channels.iter().copied().collect();
        let parts = all.chunks(CHANNELS_ASKED_MAX);
        parts.map(topics::about_channels).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ChannelDescriptor;
    use crate::types::{Hash32, MicroUsd};

    const fn address(n: u8) -> EvmAddress {
        EvmAddress([n; 20])
    }

    fn opened(n: u8, buyer: u8, seller: u8) -> HubEvent {
        HubEvent::Opened {
            channel: ChannelId([n; 32]),
            descriptor: ChannelDescriptor {
                buyer: address(buyer),
                seller: address(seller),
                operator: address(seller),
                token: address(9),
                voucher_signer: address(buyer),
                challenge_period_s: 86_400,
                salt: Hash32([n; 32]),
            },
            deposit: MicroUsd(5),
            open_fee: MicroUsd(1),
            expiry_s: 7,
        }
    }

    fn settled(n: u8) -> HubEvent {
        HubEvent::Settled {
            channel: ChannelId([n; 32]),
            settled: MicroUsd(3),
            paid: MicroUsd(2),
        }
    }

    fn withdrawn(account: u8, relayer: u8) -> HubEvent {
        HubEvent::Withdrawn {
            token: address(9),
            account: address(account),
            to: address(account),
            amount: MicroUsd(1),
            relayer: address(relayer),
            fee: MicroUsd(1),
        }
    }

    #[test]
    fn only_what_is_ours_is_kept() {
        let mut ours = Ours::new(address(1), [ChannelId([7; 32])]);
        assert!(ours.keeps(&settled(7)), "known from before");
        assert!(!ours.keeps(&settled(8)), "somebody's");
        assert!(!ours.keeps(&opened(8, 2, 3)) && !ours.keeps(&settled(8)));
        assert!(ours.keeps(&opened(2, 1, 3)) && ours.keeps(&settled(2)));
        assert!(ours.keeps(&opened(3, 4, 1)) && ours.keeps(&settled(3)));
        assert!(ours.keeps(&withdrawn(1, 0)) && ours.keeps(&withdrawn(5, 1)));
        assert!(!ours.keeps(&withdrawn(5, 6)));
        assert_eq!(ours.about_channels().len(), 1);
    }

    #[test]
    fn many_channels_take_many_questions() {
        let ids = (0..600u64).map(|n| {
            let mut id = [0; 32];
            if let Some(last) = id.last_chunk_mut::<8>() {
                *last = n.to_be_bytes();
            }
            ChannelId(id)
        });
        let ours = Ours::new(address(1), ids);
        assert_eq!(ours.about_channels().len(), 3);
    }
}
