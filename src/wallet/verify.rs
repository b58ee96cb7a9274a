//! The ledger against the chain: what its confirmed events say must be what the hub has.
//!
//! The comparison reads the hub at the newest block and the ledger afterwards, twice if need be, so
//! that an event between the two readings is no difference. Called by `node ledger verify`.

use serde::Serialize;

use super::{Wallet, WalletError};
use crate::chain::hub::HubEvent;
use crate::types::MicroUsd;

/// What the comparison found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Compared {
    /// Channels compared.
    pub channels: u64,
    /// What differs; empty when all is well.
    pub differences: Vec<String>,
}

impl Wallet {
    /// Compares every channel and the vault with the hub. The ledger must be caught up first.
    ///
    /// # Errors
    /// When the chain or the ledger cannot be asked; that is no difference.
    pub async fn compare(&self) -> Result<Compared, WalletError> {
        let (hub, link, me) = (self.hub()?, &self.0.link, self.address());
        let token = link.token();
        let events = self.events().await?;
        let told = super::channels::told(&events, me, token);
        let mut found = Compared::default();
        let mut differ = |text: String| found.differences.push(text);
        for (id, ours) in &told {
            let theirs = hub.channel(id).await?;
            let mut pair = |what: &str, ledger: String, chain: String| {
                if ledger != chain {
                    differ(format!(
                        "channel 0x{id}: the ledger has {what} {ledger}, the hub {chain}"
                    ));
                }
            };
            pair(
                "closed",
                ours.is_closed.to_string(),
                theirs.is_closed.to_string(),
            );
            if theirs.is_closed {
                // A closed channel is a tombstone: the hub forgets its sums.
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
        let vault = vault_of(&events, me, token);
        let theirs = hub.vault(token, me).await?;
        if i128::from(theirs.0) != vault {
            let ledger = shown(vault);
            differ(format!(
                "vault: the ledger's events add up to {ledger} USD, the hub has {theirs}"
            ));
        }
        found.channels = u64::try_from(told.len()).unwrap_or(u64::MAX);
        self.compare_vouchers(&told, &mut found).await?;
        Ok(found)
    }

    /// Nothing was paid out that this node has no voucher for.
    async fn compare_vouchers(
        &self,
        told: &std::collections::BTreeMap<crate::types::ChannelId, super::channels::Told>,
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

fn shown(sum: i128) -> String {
    let bare = MicroUsd(u64::try_from(sum.unsigned_abs()).unwrap_or(u64::MAX));
    if sum < 0 {
        format!("-{bare}")
    } else {
        bare.to_string()
    }
}

/// What an account's vault must hold after these events; negative when some are missing.
fn vault_of(
    events: &[(HubEvent, bool)],
    me: crate::types::EvmAddress,
    our_token: crate::types::EvmAddress,
) -> i128 {
    let mut sum = 0i128;
    let mut channels = std::collections::BTreeMap::new();
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
            HubEvent::Settled { channel, paid, .. } => {
                if channels.get(channel).is_some_and(|(d, _)| d.seller == me) {
                    sum += of(paid);
                }
            }
            HubEvent::Closed {
                channel, refund, ..
            } => {
                if channels.get(channel).is_some_and(|(d, _)| d.buyer == me) {
                    sum += of(refund);
                }
            }
            _ => {}
        }
    }
    sum
}
