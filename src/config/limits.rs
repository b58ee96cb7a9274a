//! `[buy.budget]` and `[sell.limits]`: what a buyer lets itself spend, how much a seller lets itself
//! be asked; and the buyer's named clients, whose spending can be limited apart.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Config;
use super::values::{SecretRef, opt_usd};
use crate::ledger::PROBE_CLIENT;
use crate::types::MicroUsd;

/// Longest name of a client, characters; it stands in every row of the ledger.
const CLIENT_NAME_CHARS_MAX: usize = 40;

/// `[buy.budget]`: the most that may be spent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BuyBudget {
    /// On one request, in USD; `None` = no limit.
    #[serde(with = "opt_usd")]
    pub request: Option<MicroUsd>,
    /// In a local day, in USD.
    #[serde(with = "opt_usd")]
    pub daily: Option<MicroUsd>,
    /// In a local month, in USD.
    #[serde(with = "opt_usd")]
    pub monthly: Option<MicroUsd>,
}

/// `[sell.limits]`: how much is served; 0 = no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SellLimits {
    /// Requests in a minute, all buyers together.
    pub requests_per_minute: u32,
    /// Tokens in a minute, all buyers together.
    pub tokens_per_minute: u32,
    /// Requests in a minute of one buyer.
    pub buyer_requests_per_minute: u32,
    /// Tokens in a minute of one buyer.
    pub buyer_tokens_per_minute: u32,
    /// Tokens in a UTC day of one buyer.
    pub buyer_tokens_daily: u64,
    /// What one buyer may be served in a UTC day, in USD; `None` = no limit.
    #[serde(with = "opt_usd")]
    pub buyer_daily: Option<MicroUsd>,
}

/// One entry of `[buy] clients`: `name=env:NAME` or `name=file:PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedClient {
    /// As the ledger names it.
    pub name: String,
    /// Its token.
    pub token: SecretRef,
}

impl NamedClient {
    /// Reads an entry.
    ///
    /// # Errors
    /// What to write instead; a secret written into the entry is not repeated.
    pub fn parse(entry: &str) -> Result<Self, String> {
        let (name, token) = entry.split_once('=').unwrap_or((entry, ""));
        let is_named = !name.is_empty()
            && name.len() <= CLIENT_NAME_CHARS_MAX
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if name == PROBE_CLIENT {
            return Err(format!(
                "`{name}` names this node's own questions; take another"
            ));
        }
        if !is_named {
            return Err(
                "each entry is \"name=env:NAME\" or \"name=file:PATH\", the name of letters, \
                        digits, `.`, `_` and `-`"
                    .to_owned(),
            );
        }
        match SecretRef::parse(token) {
            Ok(SecretRef::Unset) => Err(format!("client `{name}` has no token")),
            Ok(token) => Ok(Self {
                name: name.to_owned(),
                token,
            }),
            Err(why) => Err(format!("client `{name}`: {why}")),
        }
    }
}

/// Offers last 55 minutes: renewed no later than this, none is missed for a failed try.
const REFRESH_MAX: Duration = Duration::from_secs(30 * 60);

/// The rules of this file's sections.
pub(super) fn rules(config: &Config, wrong: &mut impl FnMut(&str, String)) {
    let refresh = config.sell.price_refresh;
    if refresh.is_zero() || refresh > REFRESH_MAX {
        let message = "must be more than 0 and at most 30m, for offers last 55 minutes";
        wrong("sell.price_refresh", message.to_owned());
    }
    let mut names: Vec<String> = Vec::new();
    for entry in &config.buy.clients {
        match NamedClient::parse(entry) {
            Ok(client) if names.contains(&client.name) => {
                wrong("buy.clients", format!("`{}` is named twice", client.name));
            }
            Ok(client) => names.push(client.name),
            Err(why) => wrong("buy.clients", why),
        }
    }
}
