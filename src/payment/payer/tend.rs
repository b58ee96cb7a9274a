//! Looks after the buyer's channels on a chain: takes in its events, reads what is left in vault and
//! wallet, asks for the end of idle channels, and leaves those that are over. One task per node.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::Shared;
use super::funding::{self, Funds};
use super::pair::Pair;
use super::state::PayerState;
use crate::chain::hub::HubEvent;
use crate::chain::watcher::ChainEvent;
use crate::payment::PaymentError;
use crate::types::UnixMs;

/// Channels are looked at this often.
const TICK: Duration = Duration::from_secs(2);
/// Vault and wallet are read this often when nothing is known to have changed; somebody may send
/// tokens to the wallet, which is no event of the hub.
const BALANCE_INTERVAL_MS: u64 = 30_000;

/// Runs until shutdown.
pub(super) async fn run(
    shared: Arc<Shared>,
    mut events: mpsc::Receiver<ChainEvent>,
) -> Result<(), PaymentError> {
    let Some(funds) = &shared.funds else {
        return Ok(());
    };
    let cancelled = shared.tasks.cancelled();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut read_ms: Option<UnixMs> = None;
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => {
                    if take_in(&shared, &event).await {
                        read_ms = None;
                    }
                    continue;
                }
                None => return Ok(()),
            },
            _ = tick.tick() => {}
            () = cancelled.cancelled() => return Ok(()),
        }
        let now_ms = shared.clock.now_ms();
        let is_due = read_ms.is_none_or(|at| now_ms.saturating_sub(at) >= BALANCE_INTERVAL_MS);
        if is_due && read_purse(&shared, funds).await {
            read_ms = Some(now_ms);
        }
        funds.purse.lock().expire(now_ms / 1_000);
        for pair in shared.all_pairs() {
            tend(&shared, &pair, now_ms).await?;
        }
    }
}

/// Takes in an event; true when it moved money of this node.
async fn take_in(shared: &Shared, event: &ChainEvent) -> bool {
    let (ChainEvent::Seen(log) | ChainEvent::Confirmed(log) | ChainEvent::Removed { log, .. }) =
        event;
    let Some(id) = log.event.channel() else {
        let me = shared.keys.payment.address();
        return match &log.event {
            HubEvent::Deposited { account, .. } | HubEvent::Withdrawn { account, .. } => {
                *account == me
            }
            _ => false,
        };
    };
    let pairs = shared.all_pairs();
    let Some(pair) = pairs.iter().find(|pair| pair.channel() == Some(id)) else {
        return false;
    };
    {
        let mut state = pair.state.lock();
        if !state.chain_event(event) {
            // In credit mode nothing of this is ours.
            return state.on_chain.is_some();
        }
    }
    tracing::info!(seller = %pair.seller(), channel = %id, event = log.event.as_str(), "on the chain");
    let is_done = pair.state.lock().leaves(shared.clock.now_ms());
    if is_done {
        super::session::hang_up(pair, PayerState::part).await;
    }
    true
}

/// Reads vault and wallet; what the chain shows of channels by then is no promise any more.
pub(super) async fn read_purse(shared: &Shared, funds: &Funds) -> bool {
    let shown: Vec<_> = shared
        .all_pairs()
        .iter()
        .filter_map(|pair| {
            let state = pair.state.lock();
            let deposit = state.on_chain.as_ref()?.view.deposit_seen;
            Some((state.channel()?, deposit))
        })
        .collect();
    match funds.onchain.balances(shared.keys.payment.address()).await {
        Ok(split) => {
            let mut purse = funds.purse.lock();
            purse.learn(split.vault, split.wallet);
            for (channel, deposit) in &shown {
                purse.shown(channel, *deposit);
            }
            true
        }
        Err(error) => {
            tracing::debug!(%error, "vault and wallet cannot be read now");
            false
        }
    }
}

async fn tend(shared: &Shared, pair: &Pair, now_ms: UnixMs) -> Result<(), PaymentError> {
    let Some(funds) = &shared.funds else {
        return Ok(());
    };
    let due = pair.state.lock().tend(&funds.onchain.rules, now_ms);
    if due.is_over {
        super::session::hang_up(pair, PayerState::part).await;
    }
    if due.asks_close
        && let Some(words) = funding::closing_words(shared, pair)
    {
        super::session::send(pair, &[words]).await;
    }
    funding::top_up(shared, pair).await
}
