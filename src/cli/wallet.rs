//! `node wallet`: where the money is, and moving it between the wallet and the vault.

use clap::Subcommand;
use serde_json::Value;

use super::GlobalArgs;
use super::output::{self, Output};
use super::till::{Manner, Till, carry_out};
use crate::chain::coins;
use crate::keys::parse_address;
use crate::types::{EvmAddress, MicroUsd};
use crate::wallet::Order;

/// What is to be done.
#[derive(Clone, Debug, Subcommand)]
pub enum WalletCommand {
    /// Show what is in the wallet, in the vault and in channels
    Balance,
    /// Move money from the wallet into the vault, from where channels open
    Deposit {
        /// How much, in USD
        #[arg(value_name = "USD")]
        amount: MicroUsd,
        #[command(flatten)]
        manner: Manner,
    },
    /// Pay out of the vault
    Withdraw {
        /// How much, in USD
        #[arg(value_name = "USD", required_unless_present = "all")]
        amount: Option<MicroUsd>,
        /// Everything that is free
        #[arg(long, conflicts_with = "amount")]
        all: bool,
        /// To this account [default: the own wallet]
        #[arg(long, value_name = "ADDRESS", value_parser = parse_address)]
        to: Option<EvmAddress>,
        #[command(flatten)]
        manner: Manner,
    },
}

/// Runs `node wallet`.
pub async fn run(global: &GlobalArgs, out: &Output, command: WalletCommand) -> anyhow::Result<()> {
    match command {
        WalletCommand::Balance => balance(global, out).await,
        WalletCommand::Deposit { amount, manner } => {
            let order = Order::Deposit {
                amount_micro_usd: amount,
            };
            carry_out(global, out, &order, manner).await
        }
        WalletCommand::Withdraw {
            amount, to, manner, ..
        } => {
            let order = Order::Withdraw {
                amount_micro_usd: amount,
                to,
            };
            carry_out(global, out, &order, manner).await
        }
    }
}

async fn balance(global: &GlobalArgs, out: &Output) -> anyhow::Result<()> {
    let till = Till::open(global).await?;
    let balance = till.balance().await;
    till.close().await?;
    let balance = balance?;
    if out.json {
        output::json(&balance);
    } else {
        output::text(&screen(out, &balance));
    }
    Ok(())
}

fn screen(out: &Output, balance: &Value) -> String {
    let text = |key: &str| balance.get(key).and_then(Value::as_str).unwrap_or("?");
    let usd = |key: &str| {
        let micro = balance.get(key).and_then(Value::as_u64);
        micro.map_or_else(|| "?".to_owned(), |micro| MicroUsd(micro).to_string())
    };
    let chain = balance.get("chain_id").and_then(Value::as_u64).unwrap_or(0);
    let wei: u128 = text("eth_wei").parse().unwrap_or_default();
    let mut lines = vec![out.bold(&format!("{} on chain {chain}", text("address")))];
    for (name, sum, note) in [
        (
            "wallet",
            usd("wallet_micro_usd"),
            "tokens outside of the hub",
        ),
        (
            "vault",
            usd("vault_micro_usd"),
            "free: channels open from here",
        ),
        (
            "channels",
            usd("reserved_micro_usd"),
            "deposits that are not paid out",
        ),
        (
            "earned",
            usd("earned_unsettled_micro_usd"),
            "vouchers that are not settled",
        ),
    ] {
        lines.push(format!("{name:<9}{sum:>16} USD  {note}"));
    }
    lines.push(format!("{:<9}{:>16} ETH  for gas", "coin", coins(wei)));
    let pending = balance.get("pending").and_then(Value::as_array);
    for one in pending.into_iter().flatten() {
        let text = |key: &str| one.get(key).and_then(Value::as_str);
        let purpose = text("purpose").unwrap_or("?");
        let step = text("step").unwrap_or("sent");
        lines.push(format!("on its way: {purpose} ({step})"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Color;
    use serde_json::json;

    #[test]
    fn the_screen_says_where_the_money_is() {
        let balance = json!({
            "address": "0xabc", "chain_id": 31_337, "wallet_micro_usd": 1, "vault_micro_usd": 2_000_000,
            "reserved_micro_usd": 500_000, "earned_unsettled_micro_usd": 0, "eth_wei": "0",
            "pending": [{"purpose": "withdraw", "step": null}],
        });
        let text = screen(&Output::new(false, Color::Never, true), &balance);
        assert!(text.contains("0xabc on chain 31337"), "{text}");
        assert!(
            text.contains("vault            2.000000 USD  free"),
            "{text}"
        );
        assert!(text.ends_with("on its way: withdraw (sent)"), "{text}");
    }
}
