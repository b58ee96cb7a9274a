//! Ends channels whose seller does not, and brings the rest of expired ones back into a buyer's vault,
//! without a word from the user: most are closed by their sellers, these are left. A seller without
//! gas has its own channels closed by another. The wallet finds the way: the node's own transaction
//! where it has coins for gas, else another seller's.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::ledger::Role;
use crate::payment::payee::PayeeHub;
use crate::payment::payer::PayerHub;
use crate::tasks::Tasks;
use crate::types::ChannelId;
use crate::wallet::{Order, Wallet, WalletError};

/// A seller that comes back closes by itself first.
const FIRST: Duration = Duration::from_secs(20);
/// Expired channels are looked for this often; their money waits for nothing else.
const INTERVAL: Duration = Duration::from_secs(60);
/// The state of a channel whose rest may go back.
const EXPIRED: &str = "expired";

/// Looks until shutdown.
pub(super) fn start(wallet: Wallet, payer: PayerHub, tasks: &Tasks) {
    let stop = tasks.cancelled();
    tasks.spawn("reclaim", async move {
        let mut pause = FIRST;
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return,
            }
            pause = INTERVAL;
            if let Err(error) = ask_for_the_end(&wallet, &payer).await {
                tracing::warn!(%error, "channels are closed later");
            }
            if let Err(error) = reclaim(&wallet).await {
                tracing::warn!(%error, "expired channels are reclaimed later");
            }
        }
    });
}

/// A seller looks this often whether a close waits for nothing but gas.
const GAS_INTERVAL: Duration = Duration::from_secs(10);
/// What a relayer took is not given to another for this long: a fee is paid for each.
const RELAYED_FOR: Duration = Duration::from_secs(600);

/// Has a seller's channels closed by another one while its account is empty, for a fee out of what
/// they pay.
pub(super) fn close_without_gas(wallet: Wallet, payee: PayeeHub, tasks: &Tasks) {
    let stop = tasks.cancelled();
    tasks.spawn("close-without-gas", async move {
        let mut relayed: HashMap<ChannelId, Instant> = HashMap::new();
        loop {
            tokio::select! {
                () = tokio::time::sleep(GAS_INTERVAL) => {}
                () = stop.cancelled() => return,
            }
            relayed.retain(|_, at| at.elapsed() < RELAYED_FOR);
            let mut due = payee.without_gas();
            due.retain(|id| !relayed.contains_key(id));
            for id in due {
                let order = Order::Close {
                    channels: Some(vec![id]),
                    alone: true,
                };
                match wallet.send(&order).await {
                    Ok(_) => {
                        tracing::info!(channel = %id, "its close goes another way");
                        relayed.insert(id, Instant::now());
                    }
                    // What is missing is said by the treasurer; this is tried again.
                    Err(error) => tracing::debug!(channel = %id, %error, "nobody closes it now"),
                }
            }
        }
    });
}

/// A seller that was asked and does not close: the chain is asked instead.
async fn ask_for_the_end(wallet: &Wallet, payer: &PayerHub) -> Result<(), WalletError> {
    let stuck = payer.stuck();
    if stuck.is_empty() {
        return Ok(());
    }
    let order = Order::Close {
        channels: Some(stuck),
        alone: true,
    };
    wallet.send(&order).await.map(|_| ())
}

async fn reclaim(wallet: &Wallet) -> Result<(), WalletError> {
    let held = wallet.channels().await?;
    let expired: Vec<_> = held
        .iter()
        .filter(|one| one.side == Role::Buy && one.state == EXPIRED)
        .map(|one| one.id)
        .collect();
    if expired.is_empty() {
        return Ok(());
    }
    let count = expired.len();
    let order = Order::Reclaim {
        channels: Some(expired),
    };
    wallet.send(&order).await?;
    tracing::info!(channels = count, "reclaiming what expired channels hold");
    Ok(())
}
