//! The ledger against the chain: what its events say must be what the hub has.
//!
//! What the ledger holds as final is taken from it, what came later from the chain itself, so the
//! ledger need not be caught up and nothing is written. When the chain moves while it is read, a
//! difference is looked at again. Called by `node ledger verify`.

use std::collections::BTreeMap;

use serde::Serialize;

use super::channels::{Told, decode};
use super::{Wallet, WalletError};
use crate::chain::digest::HubDomain;
use crate::chain::hub::{HubEvent, HubLog};
use crate::chain::{At, BlockRef, Chain, ChainError, LogQuery, Topics};
use crate::types::{ChannelId, EvmAddress, MicroUsd, Stage};

/// Comparisons before a difference is believed while the chain keeps moving.
const TRIES_MAX: u32 = 4;

/// What the comparison found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Compared {
    /// Channels compared.
    pub channels: u64,
    /// What differs; empty when all is well.
    pub differences: Vec<String>,
}

impl Wallet {
    /// Compares every channel and the vault with the hub.
    ///
    /// # Errors
    /// When the chain or the ledger cannot be asked; that is no difference.
    pub async fn compare(&self) -> Result<Compared, WalletError> {
        for _ in 1..TRIES_MAX {
            let (found, has_moved) = self.compare_once().await?;
            if found.differences.is_empty() || !has_moved {
                return Ok(found);
            }
        }
        Ok(self.compare_once().await?.0)
    }

    /// What differs, and whether the chain moved meanwhile.
    async fn compare_once(&self) -> Result<(Compared, bool), WalletError> {
        let (link, chain) = (&self.0.link, self.0.link.chain());
        let mut found = Compared::default();
        let before = head(&**chain).await?;
        let events = self.known_events(before.number, &mut found).await?;
        let told = super::channels::told(&events, self.address(), link.token());
        found.channels = u64::try_from(told.len()).unwrap_or(u64::MAX);
        self.compare_channels(&told, &mut found).await?;
        self.compare_vault(&events, &mut found).await?;
        self.compare_vouchers(&told, &mut found).await?;
        let after = head(&**chain).await?;
        Ok((found, after != before))
    }

    /// What the ledger holds as final, and on top of it what the chain has now. What the ledger
    /// holds as confirmed above its last cursor must be there.
    async fn known_events(
        &self,
        head: u64,
        found: &mut Compared,
    ) -> Result<Vec<(HubEvent, bool)>, WalletError> {
        let watch = self.0.link.watch_settings();
        let HubDomain { chain_id, hub } = watch.domain;
        let cursor = self.0.reader.chain_cursor(chain_id, &hub).await?;
        let base = cursor.map_or(watch.start_block, |row| row.block.0);
        let rows = self.0.reader.hub_events(chain_id, &hub).await?;
        let (old, newer): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.block.0 <= base);
        let fresh = self.logs_above(base, head).await?;
        for row in newer.iter().filter(|row| row.stage == Stage::Confirmed) {
            let is_there = |log: &HubLog| {
                log.raw.tx == row.tx && log.raw.topics == row.topics && log.raw.data == row.data
            };
            if !fresh.iter().any(is_there) {
                let (kind, block) = (&row.kind, row.block.0);
                found.differences.push(format!(
                    "the ledger holds {kind} of block {block} as confirmed, the chain has no such event"
                ));
            }
        }
        let mut events = vec![];
        for row in old {
            events.push(decode(row)?);
        }
        events.extend(fresh.into_iter().map(|log| (log.event, false)));
        Ok(events)
    }

    async fn logs_above(&self, base: u64, head: u64) -> Result<Vec<HubLog>, WalletError> {
        let watch = self.0.link.watch_settings();
        let (mut range, mut from, mut logs) = (watch.range_blocks_max.max(1), base + 1, vec![]);
        while from <= head {
            let to = head.min(from.saturating_add(range - 1));
            let query = LogQuery {
                address: watch.domain.hub,
                from,
                to,
                topics: Topics::default(),
            };
            match self.0.link.chain().logs(query).await {
                Ok(raw) => {
                    logs.extend(raw.into_iter().filter_map(HubLog::decode));
                    from = to + 1;
                }
                Err(ChainError::RangeTooWide(_)) if range > 1 => range = range.div_ceil(2),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(logs)
    }

    async fn compare_channels(
        &self,
        told: &BTreeMap<ChannelId, Told>,
        found: &mut Compared,
    ) -> Result<(), WalletError> {
        let hub = self.hub()?;
        for (id, ours) in told {
            let theirs = hub.channel(id).await?;
            let mut pair = |what: &str, ledger: String, chain: String| {
                if ledger != chain {
                    found.differences.push(format!(
                        "channel 0x{id}: the ledger has {what} {ledger}, the hub {chain}"
                    ));
                }
            };
            let (is_ours, is_theirs) = (ours.is_closed, theirs.is_closed);
            pair("closed", is_ours.to_string(), is_theirs.to_string());
            if is_theirs {
                // A closed channel is a tombstone; what it paid is in the vaults.
                continue;
            }
            pair(
                "deposit",
                ours.deposit.to_string(),
                theirs.deposit.to_string(),
            );
            pair(
                "settled",
                ours.settled.to_string(),
                theirs.settled.to_string(),
            );
            pair(
                "expiry",
                ours.expiry_s.to_string(),
                theirs.expiry_s.to_string(),
            );
        }
        Ok(())
    }

    async fn compare_vault(
        &self,
        events: &[(HubEvent, bool)],
        found: &mut Compared,
    ) -> Result<(), WalletError> {
        let token = self.0.link.token();
        let ours = vault_of(events, self.address(), token);
        let theirs = self.hub()?.vault(token, self.address()).await?;
        if i128::from(theirs.0) != ours {
            let ledger = shown(ours);
            found.differences.push(format!(
                "vault: the ledger's events add up to {ledger} USD, the hub has {theirs}"
            ));
        }
        Ok(())
    }

    /// Nothing was paid out that this node has no voucher for.
    async fn compare_vouchers(
        &self,
        told: &BTreeMap<ChannelId, Told>,
        found: &mut Compared,
    ) -> Result<(), WalletError> {
        let signed = super::channels::signed(&self.0.reader).await?;
        for (id, one) in told {
            // A ledger that was lost knows no voucher; then the channel's row is missing too.
            let Some((sum, _)) = signed.get(id) else {
                continue;
            };
            if one.settled > *sum {
                found.differences.push(format!(
                    "channel 0x{id}: {} USD was settled and the highest voucher is {sum} USD",
                    one.settled
                ));
            }
        }
        Ok(())
    }
}

async fn head(chain: &dyn Chain) -> Result<BlockRef, ChainError> {
    let newest = chain.block(At::Latest).await?;
    let missing = || ChainError::Malformed("no newest block".to_owned());
    Ok(newest.ok_or_else(missing)?.at)
}

fn shown(sum: i128) -> String {
    let bare = MicroUsd(u64::try_from(sum.unsigned_abs()).unwrap_or(u64::MAX));
    if sum < 0 {
        format!("-{bare}")
    } else {
        bare.to_string()
    }
}

/// What an account's vault must hold after these events; negative when some are missing.
fn vault_of(events: &[(HubEvent, bool)], me: EvmAddress, our_token: EvmAddress) -> i128 {
    let mut sum = 0i128;
    let mut channels = BTreeMap::new();
    let of = |amount: &MicroUsd| i128::from(amount.0);
    for (event, _) in events {
        match event {
            HubEvent::Deposited {
                token,
                account,
                amount,
            } if *token == our_token && *account == me => sum += of(amount),
            HubEvent::Withdrawn {
                token,
                account,
                amount,
                fee,
                relayer,
                ..
            } if *token == our_token => {
                if *account == me {
                    sum -= of(amount) + of(fee);
                }
                if *relayer == me {
                    sum += of(fee);
                }
            }
            HubEvent::Opened {
                channel,
                descriptor,
                deposit,
                open_fee,
                ..
            } if descriptor.token == our_token => {
                if descriptor.buyer == me {
                    sum -= of(deposit);
                }
                if descriptor.seller == me {
                    sum += of(open_fee);
                }
                channels.insert(*channel, (descriptor, *deposit));
            }
            HubEvent::ToppedUp {
                channel, deposit, ..
            } => {
                if let Some((descriptor, before)) = channels.get_mut(channel) {
                    if descriptor.buyer == me {
                        sum -= of(deposit) - of(before);
                    }
                    *before = *deposit;
                }
            }
            HubEvent::Settled { channel, paid, .. }
                if channels.get(channel).is_some_and(|(d, _)| d.seller == me) =>
            {
                sum += of(paid);
            }
            HubEvent::Closed {
                channel, refund, ..
            } if channels.get(channel).is_some_and(|(d, _)| d.buyer == me) => {
                sum += of(refund);
            }
            _ => {}
        }
    }
    sum
}
