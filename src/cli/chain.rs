//! `node chain deploy`: puts the hub (and a test token) on a chain of one's own and prints the lines
//! for the config.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::output::{self, Output};
use super::progress::Progress;
use super::{CliError, FailureKind, GlobalArgs};
use crate::keys::{load_payment_key, parse_address};
use crate::node::deploy::{self, Deployed, Estimate, Wanted};
use crate::types::{EvmAddress, MicroUsd};

/// What is to be done.
#[derive(Clone, Debug, Subcommand)]
pub enum ChainCommand {
    /// Deploy the hub, and print the config lines
    Deploy(DeployArgs),
}

/// Arguments of `node chain deploy`; the RPC node is `--rpc`.
#[derive(Clone, Debug, Args)]
pub struct DeployArgs {
    /// Key that pays the gas: 32 bytes of hex, or a key file of ours; readable by you alone
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,
    /// Deploy a token for tests too, which anyone may mint
    #[arg(long)]
    test_token: bool,
    /// Give this account test tokens (repeatable)
    #[arg(long, value_name = "ADDRESS=USD", value_parser = grant, requires = "test_token")]
    mint: Vec<(EvmAddress, MicroUsd)>,
    /// Say what gas it takes, and send nothing
    #[arg(long)]
    dry_run: bool,
}

fn grant(text: &str) -> Result<(EvmAddress, MicroUsd), String> {
    let (account, amount) = text
        .split_once('=')
        .ok_or_else(|| "write it like 0x5FbD…0aa3=100".to_owned())?;
    let amount = amount.parse().map_err(|error| format!("{error}"))?;
    Ok((parse_address(account)?, amount))
}

/// Runs `node chain`.
pub async fn run(global: &GlobalArgs, out: &Output, command: ChainCommand) -> anyhow::Result<()> {
    let ChainCommand::Deploy(args) = command;
    let config = global.load(Vec::new())?.config;
    let passphrase = config.node.passphrase.read()?;
    let passphrase = passphrase.as_ref().map(|secret| secret.expose().as_str());
    let key = load_payment_key(&args.key_file, passphrase)
        .map_err(|error| CliError::new(FailureKind::NotConfigured, error.to_string()))?;
    let wanted = Wanted {
        test_token: args.test_token,
        mint: args.mint,
    };
    if args.dry_run {
        let estimate = deploy::estimate(&config, &key, &wanted).await?;
        if out.json {
            output::json(&json!({ "dry_run": true, "plan": estimate }));
        } else {
            output::text(&plan_text(&estimate));
        }
        return Ok(());
    }
    let is_quiet = out.json || global.quiet;
    let progress = Progress::new(!is_quiet, "asking the chain");
    let tell = |text: &str| {
        if !is_quiet && !progress.is_shown() {
            output::message(text);
        }
        progress.name(text);
    };
    let work = deploy::deploy(&config, key, &wanted, &tell);
    let deployed = progress.during(work).await;
    drop(progress);
    let deployed = deployed?;
    if out.json {
        output::json(&deployed);
    } else {
        output::text(&config_lines(&config.chain.rpc, &deployed));
    }
    Ok(())
}

/// What a deployment would take, for people.
fn plan_text(estimate: &Estimate) -> String {
    let is_enough = if estimate.is_enough {
        "enough"
    } else {
        "too little"
    };
    format!(
        "on chain {}, {} gas without mints: {} wei at the present price\n\
         {} has {} wei: {is_enough}\nnothing was sent",
        estimate.chain_id, estimate.gas, estimate.gas_wei, estimate.deployer, estimate.balance_wei,
    )
}

/// What belongs into the config file.
fn config_lines(rpc: &[String], deployed: &Deployed) -> String {
    let urls: Vec<String> = rpc.iter().map(|url| format!("{url:?}")).collect();
    let (token, note) = match &deployed.token {
        Some(token) => (token.as_str(), ""),
        None => (
            "",
            "  # the token to pay with: 6 decimals and ERC-3009, like USDC",
        ),
    };
    format!(
        "[chain]\nrpc = [{}]\nchain_id = {}\nhub = \"{}\"\ntoken = \"{token}\"{note}\n\
         start_block = {}",
        urls.join(", "),
        deployed.chain_id,
        deployed.hub,
        deployed.start_block,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn the_printed_lines_are_a_config() {
        let mut deployed = Deployed {
            chain_id: 31_337,
            hub: "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed".to_owned(),
            code_hash: "0x00".to_owned(),
            token: Some("0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359".to_owned()),
            start_block: 7,
            deployer: String::new(),
            gas: 1,
            gas_wei: "1".to_owned(),
            confirmations: 2,
        };
        let rpc = ["http://127.0.0.1:8545".to_owned()];
        let config: Config = toml::from_str(&config_lines(&rpc, &deployed)).unwrap();
        assert!(config.chain.is_set());
        assert_eq!(
            (config.chain.chain_id, config.chain.start_block),
            (31_337, 7)
        );
        assert_eq!(config.chain.rpc, rpc);
        deployed.token = None;
        let config: Config = toml::from_str(&config_lines(&rpc, &deployed)).unwrap();
        assert!(!config.chain.is_set());
    }

    #[test]
    fn grants_are_an_account_and_an_amount() {
        let account = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed";
        let (_, amount) = grant(&format!("{account}=2.5")).unwrap();
        assert_eq!(amount, MicroUsd(2_500_000));
        assert!(grant(account).is_err());
        assert!(grant(&format!("{account}=-1")).is_err());
        assert!(grant("0x12=1").is_err());
    }
}
