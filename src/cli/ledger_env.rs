//! What `node ledger` works with on this machine: whose ledger it is, who checks signatures, and
//! the running node that writes on its behalf.

use std::path::Path;
use std::sync::Arc;

use futures::FutureExt;
use serde_json::{Value, json};

use super::GlobalArgs;
use super::api::Api;
use super::ledger::{CompareHook, Env, WriteHook};
use crate::config::Config;
use crate::data_dir::DataDir;
use crate::ledger::LedgerWrite;
use crate::node::purse;
use crate::payment::evidence::Evidence;
use crate::types::PeerId;

/// The environment of the configured data directory.
///
/// # Errors
/// When the configuration is wrong.
pub(super) fn of(global: &GlobalArgs, json: bool) -> anyhow::Result<Env> {
    let config = global.load(Vec::new())?.config;
    let dir = global.data_dir()?;
    let mut env = Env::new(dir.path(), json);
    env.progress = !json && !global.quiet;
    env.local = local_peer(&dir.key_file());
    if let Some(me) = env.local {
        env.signatures = Arc::new(Evidence {
            me,
            network: config.node.network.clone(),
        });
    }
    if config.chain.is_set() {
        env.compare = Some(compare(config, dir));
    }
    env.running = Api::find(global).ok().map(hook);
    Ok(env)
}

/// Compares the ledger with the configured chain, also beside a running node.
fn compare(config: Config, dir: DataDir) -> CompareHook {
    let parts = Arc::new((config, dir));
    Arc::new(move || {
        let parts = Arc::clone(&parts);
        async move {
            let (config, dir) = &*parts;
            let wallet = purse::reading(config, dir).await?;
            let compared = wallet.compare().await;
            compared.map_err(|error| purse::failure(&error).into())
        }
        .boxed()
    })
}

/// The peer id in the key file; it stands there in clear, so no passphrase is asked.
fn local_peer(key_file: &Path) -> Option<PeerId> {
    let text = std::fs::read(key_file).ok()?;
    let value: Value = serde_json::from_slice(&text).ok()?;
    value.get("peer_id")?.as_str()?.parse().ok()
}

/// Hands writes to the running node, which holds the ledger's lock.
fn hook(api: Api) -> WriteHook {
    let api = Arc::new(api);
    Arc::new(move |write| {
        let api = Arc::clone(&api);
        async move {
            let (path, body) = match write {
                LedgerWrite::Settle {
                    peer,
                    amount_micro_usd,
                    note,
                } => {
                    let amount = amount_micro_usd.to_string();
                    let body =
                        json!({ "peer": peer.to_string(), "amount_usd": amount, "note": note });
                    ("/api/settle", body)
                }
                LedgerWrite::BudgetSet {
                    client,
                    model,
                    daily_micro_usd,
                    monthly_micro_usd,
                } => {
                    let usd =
                        |amount: Option<crate::types::MicroUsd>| amount.map(|a| a.to_string());
                    let body = json!({
                        "client": client,
                        "model": model,
                        "daily_usd": usd(daily_micro_usd),
                        "monthly_usd": usd(monthly_micro_usd),
                    });
                    ("/api/budget", body)
                }
            };
            api.post(path, &body).await.map(drop)
        }
        .boxed()
    })
}
