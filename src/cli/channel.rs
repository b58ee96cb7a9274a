//! `node channel`: the payment channels of this node on the chain, and getting money back from them.

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::Value;

use super::GlobalArgs;
use super::output::{self, Output};
use super::till::{Manner, Till, carry_out};
use crate::types::{ChannelId, MicroUsd};
use crate::wallet::Order;

/// What is to be done.
#[derive(Clone, Debug, Subcommand)]
pub enum ChannelCommand {
    /// List channels, open ones first
    List,
    /// End channels: at once with the other side, or a buyer's alone after the challenge period
    Close {
        #[command(flatten)]
        which: Which,
        /// Do not ask the other side
        #[arg(long)]
        alone: bool,
        #[command(flatten)]
        manner: Manner,
    },
    /// Bring back what expired channels still hold
    Reclaim {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        manner: Manner,
    },
}

/// Which channels.
#[derive(Clone, Debug, Args)]
pub struct Which {
    /// Channel ids, as `node channel list` shows them
    #[arg(value_name = "CHANNEL", required_unless_present = "all")]
    channels: Vec<ChannelId>,
    /// All of them
    #[arg(long, conflicts_with = "channels")]
    all: bool,
}

impl Which {
    fn ids(self) -> Option<Vec<ChannelId>> {
        (!self.all).then_some(self.channels)
    }
}

/// Runs `node channel`.
pub async fn run(global: &GlobalArgs, out: &Output, command: ChannelCommand) -> anyhow::Result<()> {
    let (order, manner) = match command {
        ChannelCommand::List => return list(global, out).await,
        ChannelCommand::Close {
            which,
            alone,
            manner,
        } => {
            let channels = which.ids();
            (Order::Close { channels, alone }, manner)
        }
        ChannelCommand::Reclaim { which, manner } => {
            let channels = which.ids();
            (Order::Reclaim { channels }, manner)
        }
    };
    carry_out(global, out, &order, manner).await
}

async fn list(global: &GlobalArgs, out: &Output) -> anyhow::Result<()> {
    let till = Till::open(global).await?;
    let list = till.channels().await;
    till.close().await?;
    let list = list?;
    let channels = list.get("channels").and_then(Value::as_array);
    if out.json {
        output::json(&channels.cloned().unwrap_or_default());
        return Ok(());
    }
    let rows: Vec<Vec<String>> = channels.into_iter().flatten().map(row).collect();
    if rows.is_empty() {
        output::message("no channel was opened yet");
        return Ok(());
    }
    let header = [
        "CHANNEL",
        "ROLE",
        "WITH",
        "STATE",
        "DEPOSIT $",
        "SETTLED $",
        "PENDING $",
        "REST $",
        "UNTIL",
    ];
    output::text(&output::table(&header, &[4, 5, 6, 7], rows));
    output::message(
        "settled is in the seller's vault; pending is signed and not paid out; the rest goes back to \
         the buyer's vault with the end",
    );
    Ok(())
}

fn row(channel: &Value) -> Vec<String> {
    let text = |key: &str| {
        channel
            .get(key)
            .and_then(Value::as_str)
            .unwrap_or("?")
            .to_owned()
    };
    let usd = |key: &str| {
        let micro = channel.get(key).and_then(Value::as_u64);
        micro.map_or_else(|| "-".to_owned(), |micro| MicroUsd(micro).to_string())
    };
    let until = channel.get("expiry_s").and_then(Value::as_i64);
    let until = until.and_then(|s| Timestamp::from_second(s).ok());
    let is_confirmed = channel.get("confirmed").and_then(Value::as_bool) == Some(true);
    let note = if is_confirmed { "" } else { " (not final)" };
    vec![
        text("channel"),
        text("role"),
        text("other"),
        format!("{}{note}", text("state")),
        usd("deposit_micro_usd"),
        usd("settled_micro_usd"),
        usd("pending_micro_usd"),
        usd("rest_micro_usd"),
        until.map_or_else(|| "-".to_owned(), |at| at.to_string()),
    ]
}
