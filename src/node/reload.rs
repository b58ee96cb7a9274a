//! SIGHUP: reads the configuration again and takes over what can change while the node runs.
//!
//! What the buyer wants (prices, sellers, names, the daily budget) and what the seller asks (models,
//! prices) holds from the next request on. Everything else stands on sockets, files or promises made
//! to peers: it is named in the log, and waits for a restart. A configuration with a mistake in it
//! changes nothing.

use std::sync::Arc;

use tokio::sync::watch;

use super::base::Base;
use super::{buy, paying, stock};
use crate::buyer::Buyer;
use crate::buyer::budget::{Budget, Scope};
use crate::launch::Launch;
use crate::seller::pricing::PriceRules;

/// Keys that hold from the next request on, in a running buyer.
const BUYING: [&str; 11] = [
    "buy.prefer",
    "buy.max_price_in",
    "buy.max_price_out",
    "buy.seller",
    "buy.allow",
    "buy.deny",
    "buy.aliases",
    "buy.auto",
    "buy.budget.daily",
    "buy.budget.monthly",
    "buy.budget.request",
];

/// Keys of which new offers are made at once, in a running seller.
const SELLING: [&str; 8] = [
    "sell.models",
    "sell.price_in",
    "sell.price_out",
    "sell.price_cached",
    "sell.price_cache_write",
    "sell.markup",
    "sell.context",
    "sell.max_output",
];

/// What takes new settings.
#[derive(Default)]
pub(super) struct Targets {
    pub buyer: Option<(Arc<Buyer>, Budget)>,
    pub seller: Option<watch::Sender<PriceRules>>,
}

/// Follows SIGHUP until the base ends.
pub(super) fn follow(launch: &Launch, base: &Base, targets: Targets) {
    let (hangup, reload) = (Arc::clone(&launch.hangup), Arc::clone(&launch.reload));
    let mut config = base.config.clone();
    let ledger = base.ledger.clone();
    let stop = base.base.cancelled();
    base.base.spawn("reload", async move {
        loop {
            tokio::select! {
                () = hangup.notified() => {}
                () = stop.cancelled() => return,
            }
            let next = match reload() {
                Ok(next) => next,
                Err(error) => {
                    tracing::error!(%error, "the configuration is wrong; the old one stays");
                    continue;
                }
            };
            let changed = config.changed_keys(&next);
            if let Some((buyer, budget)) = &targets.buyer
                && is_about(&changed, &BUYING)
            {
                let limits = paying::limits(&ledger, &next).await;
                match (buy::policy(&next), limits) {
                    (Ok(policy), Ok(limits)) => {
                        buyer.change(policy, buy::names(&next));
                        budget.limit(&Scope::ALL, limits);
                    }
                    (Err(error), _) | (_, Err(error)) => {
                        tracing::error!(%error, "the buyer keeps its old settings");
                        continue;
                    }
                }
            }
            if let Some(seller) = &targets.seller
                && is_about(&changed, &SELLING)
            {
                seller.send_replace(stock::rules(&next));
            }
            say(&changed, &targets);
            config = next;
        }
    });
}

fn is_about(changed: &[String], keys: &[&str]) -> bool {
    changed.iter().any(|key| keys.contains(&key.as_str()))
}

/// One line for what holds now, one for what does not.
fn say(changed: &[String], targets: &Targets) {
    let holds = |key: &&String| {
        (targets.buyer.is_some() && BUYING.contains(&key.as_str()))
            || (targets.seller.is_some() && SELLING.contains(&key.as_str()))
    };
    let (now, later): (Vec<&String>, Vec<&String>) = changed.iter().partition(holds);
    let text = |keys: &[&String]| {
        let keys: Vec<&str> = keys.iter().map(|key| key.as_str()).collect();
        keys.join(", ")
    };
    if changed.is_empty() {
        tracing::info!("configuration read again; nothing has changed");
    }
    if !now.is_empty() {
        tracing::info!(keys = text(&now), "configuration reloaded");
    }
    if !later.is_empty() {
        tracing::warn!(keys = text(&later), "these keys need a restart");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn every_reloadable_key_exists() {
        let table = Config::default().to_toml();
        for key in BUYING.iter().chain(&SELLING) {
            let (section, name) = key.rsplit_once('.').unwrap();
            assert!(table.contains(&format!("[{section}]")), "{key}");
            assert!(table.contains(&format!("{name} =")), "{key}");
        }
    }

    #[test]
    fn what_changed_is_named_by_its_key() {
        let (old, mut new) = (Config::default(), Config::default());
        assert!(old.changed_keys(&new).is_empty());
        new.buy.port = 1;
        new.buy.aliases = vec!["a=b".to_owned()];
        assert_eq!(old.changed_keys(&new), ["buy.aliases", "buy.port"]);
        assert!(is_about(&old.changed_keys(&new), &BUYING));
    }
}
