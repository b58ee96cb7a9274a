//! What became of each channel, by the hub's own logs: not by what any node says.

use souk::chain::digest::HubDomain;
use souk::chain::hub::{Hub, HubEvent, HubLog};
use souk::chain::rpc::Rpc;
use souk::chain::{At, Chain as _, LogQuery, Topics};
use souk::keys::parse_checksummed;
use souk::types::{ChannelId, EvmAddress, MicroUsd};

/// One channel by the hub's own logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Story {
    pub channel: ChannelId,
    pub fee: MicroUsd,
    /// The fee and all that settlements and the close paid.
    pub paid: MicroUsd,
    pub settlements: u64,
    pub is_closed: bool,
}

pub struct Chain {
    pub rpc: Rpc,
    pub hub: HubDomain,
    pub token: EvmAddress,
}

impl Chain {
    /// Every channel in the order of their openings; a sum that falls or is paid twice is an error.
    pub async fn settled(&self) -> Result<Vec<Story>, String> {
        let say = |error: souk::chain::ChainError| error.to_string();
        let head = self.rpc.block(At::Latest).await.map_err(say)?;
        let query = LogQuery {
            address: self.hub.hub,
            from: 0,
            to: head.map_or(0, |block| block.at.number),
            topics: Topics::default(),
        };
        let logs = self.rpc.logs(query).await.map_err(say)?;
        let mut all: Vec<Story> = vec![];
        for event in logs
            .into_iter()
            .filter_map(HubLog::decode)
            .map(|log| log.event)
        {
            if let HubEvent::Opened {
                channel, open_fee, ..
            } = event
            {
                all.push(Story {
                    channel,
                    fee: open_fee,
                    paid: open_fee,
                    settlements: 0,
                    is_closed: false,
                });
                continue;
            }
            let story = event
                .channel()
                .and_then(|id| all.iter_mut().find(|one| one.channel == id));
            let Some(story) = story else { continue };
            match event {
                HubEvent::Settled { settled, paid, .. } => {
                    if story.is_closed || settled != story.paid.saturating_add(paid) {
                        return Err(format!("paid twice: {event:?} after {story:?}"));
                    }
                    story.paid = settled;
                    story.settlements += 1;
                }
                HubEvent::Closed { settled, .. } => {
                    if settled < story.paid {
                        return Err(format!("a sum falls: {event:?} after {story:?}"));
                    }
                    story.paid = settled;
                    story.is_closed = true;
                }
                _ => {}
            }
        }
        Ok(all)
    }

    pub async fn vault(&self, account: &str) -> Result<MicroUsd, String> {
        let say = |error: souk::chain::ChainError| error.to_string();
        let hub = Hub::check(&self.rpc, self.hub).await.map_err(say)?;
        let account = parse_checksummed(account).ok_or("no address")?;
        hub.vault(self.token, account).await.map_err(say)
    }
}
