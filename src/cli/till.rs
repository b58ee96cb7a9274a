//! The wallet behind `node wallet` and `node channel`: the running node's, over its control API, or
//! the data directory's own. Both answer with the same JSON.
//!
//! Also here: what both commands do with an order: show it (`--dry-run`), send it, follow it.

use std::time::Duration;

use serde_json::{Value, json};

use super::api::Api;
use super::output::{self, Output};
use super::progress::Progress;
use super::{CliError, FailureKind, GlobalArgs};
use crate::chain::coins;
use crate::node::purse::{self, Purse};
use crate::wallet::{Order, Ticket, WalletError};

/// Between looks at what is on its way.
const LOOK_EVERY: Duration = Duration::from_millis(400);
/// A transaction in no block after this long is left to the outbox.
const MINED_AFTER: Duration = Duration::from_secs(600);
/// Once it is in a block, its finality is waited for this long: some chains take a quarter hour.
const FINAL_AFTER: Duration = Duration::from_secs(120);

/// How an order is carried out.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Manner {
    /// Only show what would be sent and what it costs
    #[arg(long)]
    pub dry_run: bool,
    /// Do not wait for the chain
    #[arg(long, conflicts_with = "dry_run")]
    pub no_wait: bool,
}

/// An open wallet.
pub enum Till {
    /// A role runs: its outbox sends.
    Running(Api),
    /// None does.
    Own(Box<Purse>),
}

impl Till {
    /// Opens the wallet of the configured directory.
    ///
    /// # Errors
    /// When there are no keys, no chain, or it does not answer.
    pub async fn open(global: &GlobalArgs) -> anyhow::Result<Self> {
        let dir = global.data_dir()?;
        if dir.holder().is_some() {
            return Ok(Self::Running(Api::find(global)?));
        }
        let config = global.load(Vec::new())?.config;
        Ok(Self::Own(Box::new(Purse::open(&config, &dir).await?)))
    }

    /// What is where.
    pub async fn balance(&self) -> anyhow::Result<Value> {
        match self {
            Self::Running(api) => api.get("/api/wallet").await,
            Self::Own(purse) => said(purse.wallet.balance_json().await),
        }
    }

    /// The channels.
    pub async fn channels(&self) -> anyhow::Result<Value> {
        match self {
            Self::Running(api) => api.get("/api/wallet/channels").await,
            Self::Own(purse) => said(purse.wallet.channels_json().await),
        }
    }

    /// Shows an order.
    pub async fn plan(&self, order: &Order) -> anyhow::Result<Value> {
        match self {
            Self::Running(api) => api.post_waiting("/api/wallet/plan", &json!(order)).await,
            Self::Own(purse) => said(purse.wallet.plan(order).await.map(|plan| json!(plan))),
        }
    }

    async fn send(&self, order: &Order) -> anyhow::Result<Value> {
        match self {
            Self::Running(api) => api.post_waiting("/api/wallet/send", &json!(order)).await,
            Self::Own(purse) => said(purse.wallet.send(order).await.map(|sent| json!(sent))),
        }
    }

    /// Drives and asks.
    async fn progress(&mut self, tickets: &[Ticket]) -> anyhow::Result<Vec<Value>> {
        let answer = match self {
            Self::Running(api) => {
                let body = json!({ "tickets": tickets });
                api.post("/api/wallet/progress", &body).await?
            }
            Self::Own(purse) => {
                purse.step().await?;
                let body = json!({ "tickets": tickets }).to_string();
                said(purse.wallet.progress_json(body.as_bytes()).await)?
            }
        };
        let list = answer.get("progress").and_then(Value::as_array);
        Ok(list.cloned().unwrap_or_default())
    }

    /// Ends it.
    pub async fn close(self) -> anyhow::Result<()> {
        match self {
            Self::Running(_) => Ok(()),
            Self::Own(purse) => purse.close().await,
        }
    }
}

fn said(result: Result<Value, WalletError>) -> anyhow::Result<Value> {
    result.map_err(|error| purse::failure(&error).into())
}

/// Shows an order, or carries it out and follows it; prints what came of it.
///
/// # Errors
/// When it cannot be sent, or the chain refuses it.
pub async fn carry_out(
    global: &GlobalArgs,
    out: &Output,
    order: &Order,
    manner: Manner,
) -> anyhow::Result<()> {
    let mut till = Till::open(global).await?;
    let done = carry_out_at(&mut till, global, out, order, manner).await;
    // What was stored is kept also when something failed.
    let closed = till.close().await;
    done.and(closed)
}

async fn carry_out_at(
    till: &mut Till,
    global: &GlobalArgs,
    out: &Output,
    order: &Order,
    manner: Manner,
) -> anyhow::Result<()> {
    if manner.dry_run {
        let plan = till.plan(order).await?;
        if out.json {
            output::json(&json!({ "dry_run": true, "plan": plan }));
        } else {
            output::text(&format!("{}\nnothing was sent", plan_text(&plan)));
        }
        return Ok(());
    }
    let progress = Progress::new(!out.json && !global.quiet, "sending");
    let sent = progress.during(till.send(order)).await?;
    let plan = sent.get("plan").cloned().unwrap_or_default();
    let tickets: Vec<Ticket> = sent
        .get("tickets")
        .and_then(|list| serde_json::from_value(list.clone()).ok())
        .unwrap_or_default();
    let states = if manner.no_wait {
        vec![]
    } else {
        let is_quiet = out.json || global.quiet;
        follow(till, &tickets, &progress, |text| {
            if !is_quiet {
                progress.message(text);
            }
        })
        .await?
    };
    drop(progress);
    let state = |index: usize| states.get(index).cloned().unwrap_or(Value::Null);
    let transactions: Vec<Value> = tickets
        .iter()
        .enumerate()
        .map(|(index, ticket)| json!({ "ticket": ticket, "progress": state(index) }))
        .collect();
    if out.json {
        output::json(&json!({ "plan": plan, "transactions": transactions }));
    } else {
        output::text(&plan_text(&plan));
        output::text(&output::own_name(&outcome_text(&states)));
    }
    let has_failed = states.iter().any(|one| word(one) == "failed");
    if has_failed {
        let message = "the chain refused it; no money moved, the gas is spent";
        return Err(CliError::new(FailureKind::Failure, message).into());
    }
    Ok(())
}

/// Looks until everything is final, or for as long as is sensible.
async fn follow(
    till: &mut Till,
    tickets: &[Ticket],
    progress: &Progress,
    tell: impl Fn(&str),
) -> anyhow::Result<Vec<Value>> {
    let began = tokio::time::Instant::now();
    let mut mined_at = None;
    let mut shown = ("", 0);
    loop {
        let states = till.progress(tickets).await?;
        let count = |wanted: &[&str]| {
            let fits = |state: &&Value| wanted.contains(&word(state));
            states.iter().filter(fits).count()
        };
        let (all, ended) = (tickets.len(), count(&["confirmed", "failed"]));
        let in_blocks = count(&["mined"]) + ended;
        let (text, done) = if in_blocks < all {
            ("waiting for a block:", in_blocks)
        } else {
            ("in a block, waiting until it is final:", ended)
        };
        if ended == all {
            return Ok(states);
        }
        if (text, done) != shown {
            if !progress.is_shown() {
                tell(&format!("{text} {done} of {all}"));
            } else if text != shown.0 {
                progress.name(text);
            }
            shown = (text, done);
        }
        let count = |steps| u64::try_from(steps).unwrap_or(0);
        progress.at(count(done), count(all));
        if in_blocks == all && mined_at.is_none() {
            mined_at = Some(tokio::time::Instant::now());
        }
        let is_late = mined_at.is_some_and(|at| at.elapsed() > FINAL_AFTER)
            || (mined_at.is_none() && began.elapsed() > MINED_AFTER);
        if is_late {
            tell("not waiting longer; `node wallet balance` shows what is still on its way");
            return Ok(states);
        }
        progress.during(tokio::time::sleep(LOOK_EVERY)).await;
    }
}

fn word(state: &Value) -> &str {
    state.get("state").and_then(Value::as_str).unwrap_or("?")
}

fn outcome_text(states: &[Value]) -> String {
    if states.is_empty() {
        return "sent; `node wallet balance` shows what is still on its way".to_owned();
    }
    let line = |state: &Value| {
        let text = |key| state.get(key).and_then(Value::as_str).unwrap_or("");
        let block = state.get("block").and_then(Value::as_u64);
        let block = block.map_or_else(String::new, |number| format!(" in block {number}"));
        let fee = state.get("fee_wei").and_then(Value::as_u64);
        let fee = fee.map_or_else(String::new, |wei| {
            format!(", gas {} ETH", coins(wei.into()))
        });
        format!("{}{block} {}{fee}", word(state), text("tx"))
    };
    let lines: Vec<String> = states.iter().map(line).collect();
    lines.join("\n")
}

/// An order and its cost, for people.
fn plan_text(plan: &Value) -> String {
    let text = |key| plan.get(key).and_then(Value::as_str).unwrap_or("?");
    let usd = |key| {
        let micro = plan.get(key).and_then(Value::as_u64)?;
        Some(crate::types::MicroUsd(micro).to_string())
    };
    let mut lines = vec![format!("from {}", text("address"))];
    for step in plan
        .get("steps")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let what = step.get("what").and_then(Value::as_str).unwrap_or("?");
        let to = step.get("to").and_then(Value::as_str).unwrap_or("?");
        lines.push(format!("  {what} (hub {to})"));
    }
    if let Some(fee) = usd("fee_micro_usd") {
        let relayer = text("relayer");
        lines.push(format!(
            "a seller ({relayer}) sends it and takes {fee} USD from the vault; no gas is needed"
        ));
    }
    if plan.get("way").and_then(Value::as_str) == Some("agreed") {
        lines.push("the node ends it with the other side; it costs nothing here".to_owned());
    }
    if let Some(wei) = plan.get("gas_wei").and_then(Value::as_str) {
        let wei = wei.parse().unwrap_or_default();
        let (eth, usd) = (coins(wei), usd("gas_micro_usd").unwrap_or_default());
        lines.push(format!("gas costs about {eth} ETH ({usd} USD)"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_says_who_sends_it_and_what_it_costs() {
        let own = json!({
            "address": "0xme", "way": "own", "gas_wei": "1000000000000", "gas_micro_usd": 3_000,
            "steps": [{"what": "take 5.000000 USD from the wallet into the vault", "to": "0xhub"}],
        });
        let text = plan_text(&own);
        assert!(
            text.contains("gas costs about 0.000001 ETH (0.003000 USD)"),
            "{text}"
        );
        let relayed = json!({"address": "0xme", "fee_micro_usd": 2_000, "relayer": "0xrelayer"});
        let text = plan_text(&relayed);
        assert!(text.contains("takes 0.002000 USD from the vault"), "{text}");
        assert!(!text.contains("gas costs"), "{text}");
    }
}
