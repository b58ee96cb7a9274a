//! What this account has, and where: in its wallet, free in its vault, in channels, as gas.

use serde::Serialize;

use super::channels::signed;
use super::{Wallet, WalletError};
use crate::chain::hub::token_balance;
use crate::types::MicroUsd;

/// Everything at the newest block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Balance {
    /// The account.
    pub address: String,
    /// The chain.
    pub chain_id: u64,
    /// The hub.
    pub hub: String,
    /// The token.
    pub token: String,
    /// Tokens outside of the vault.
    pub wallet_micro_usd: MicroUsd,
    /// Free in the vault.
    pub vault_micro_usd: MicroUsd,
    /// Deposits of own channels that are not paid out yet.
    pub reserved_micro_usd: MicroUsd,
    /// Vouchers of buyers that are not settled yet, as far as deposits cover them.
    pub earned_unsettled_micro_usd: MicroUsd,
    /// What pays for gas, in wei.
    pub eth_wei: String,
    /// Transactions that are not final yet.
    pub pending: Vec<Pending>,
}

/// A transaction on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pending {
    /// Names it.
    pub intent: String,
    /// What for.
    pub purpose: &'static str,
    /// The last that was heard of it; null before that.
    pub step: Option<&'static str>,
}

impl Wallet {
    /// Asks the chain and the ledger what is where.
    ///
    /// # Errors
    /// When one of them cannot be asked.
    pub async fn balance(&self) -> Result<Balance, WalletError> {
        let link = &self.0.link;
        let (me, token, domain) = (self.address(), link.token(), link.domain());
        let (hub, chain) = (self.hub()?, &**link.chain());
        let mut reserved = MicroUsd::ZERO;
        let mut unsettled = MicroUsd::ZERO;
        let vouchers = signed(&self.0.reader).await?;
        for (id, told) in self.told().await? {
            if told.is_closed {
                continue;
            }
            // What the ledger has not heard yet (a settlement a second ago) the hub knows.
            let now = hub.channel(&id).await?;
            if now.is_closed || now.expiry_s == 0 {
                continue;
            }
            if told.descriptor.buyer == me {
                reserved = reserved.saturating_add(now.deposit.saturating_sub(now.settled));
            } else if let Some((sum, _)) = vouchers.get(&id) {
                let covered = (*sum).min(now.deposit).saturating_sub(now.settled);
                unsettled = unsettled.saturating_add(covered);
            }
        }
        let intents = self.0.reader.open_intents(domain.chain_id, &me).await?;
        let pending = intents.into_iter().map(|state| Pending {
            intent: state.intent.intent.to_string(),
            purpose: state.intent.purpose.as_str(),
            step: state.last.map(|outcome| outcome.step.as_str()),
        });
        Ok(Balance {
            address: crate::keys::to_checksum(&me),
            chain_id: domain.chain_id,
            hub: crate::keys::to_checksum(&domain.hub),
            token: crate::keys::to_checksum(&token),
            wallet_micro_usd: token_balance(chain, token, me).await?,
            vault_micro_usd: hub.vault(token, me).await?,
            reserved_micro_usd: reserved,
            earned_unsettled_micro_usd: unsettled,
            eth_wei: chain.balance(me).await?.to_string(),
            pending: pending.collect(),
        })
    }
}
