//! Ends channels whose seller does not, and brings the rest of expired ones back into a buyer's vault,
//! without a word from the user: most are closed by their sellers, these are left. The wallet finds the way: the node's
//! own transaction where it has coins for gas, else another seller's.

use std::time::Duration;

use crate::ledger::Role;
use crate::payment::payer::PayerHub;
use crate::tasks::Tasks;
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
