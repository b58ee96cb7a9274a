//! What can be typed, and what it means.

use clap::CommandFactory as _;

use super::*;
use crate::config::{Config, Prefer};

fn parse(line: &str) -> Result<Cli, u8> {
    let words = std::iter::once("node").chain(line.split_whitespace());
    Cli::from_args(words.map(OsString::from))
}

fn settings(line: &str) -> Result<Config, ConfigError> {
    let cli = parse(line).unwrap();
    let mut sources = cli.global.sources(cli.settings());
    sources.file = None;
    sources.env.clear();
    crate::config::load(&sources).map(|loaded| loaded.config)
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_flag_of_sell_reaches_the_config() {
    let config = settings(
        "sell --upstream vllm --base-url http://h:1 --api openai-chat --api-key-env K --model a=b \
         --model c --price-in 1 --price-out 2.5 --price-cached 0.1 --price-cache-write 1.5 \
         --http-port 0 --context 8192 --max-output 100 --max-concurrent 3 --credit-limit 1 \
         --credit-total 5 --listen /ip4/127.0.0.1/tcp/0 --bootstrap /ip4/1.2.3.4/tcp/1 --data-dir /d",
    )
    .unwrap();
    let sell = &config.sell;
    assert_eq!(sell.upstream.as_deref(), Some("vllm"));
    assert_eq!(sell.base_url.as_deref(), Some("http://h:1"));
    assert_eq!(sell.api.as_deref(), Some("openai-chat"));
    assert_eq!(sell.api_key_env.as_deref(), Some("K"));
    assert_eq!(sell.models.len(), 2);
    assert_eq!(sell.models[0].upstream_id.as_deref(), Some("b"));
    assert_eq!(sell.price_out.unwrap().0, 2_500_000);
    assert_eq!(sell.price_cached.unwrap().0, 100_000);
    assert_eq!(sell.price_cache_write.unwrap().0, 1_500_000);
    assert_eq!(
        (sell.http_port, sell.context, sell.max_output),
        (0, 8192, 100)
    );
    assert_eq!(sell.max_concurrent, 3);
    assert_eq!(sell.credit_limit.unwrap().0, 1_000_000);
    assert_eq!(sell.credit_total.unwrap().0, 5_000_000);
    assert_eq!(config.node.listen, ["/ip4/127.0.0.1/tcp/0"]);
    assert_eq!(config.node.bootstrap, ["/ip4/1.2.3.4/tcp/1"]);
    assert_eq!(config.node.data_dir, Some(PathBuf::from("/d")));
}

#[test]
fn every_flag_of_buy_reaches_the_config() {
    let peer = crate::types::PeerId::random().to_string();
    let config = settings(&format!(
        "buy --port 0 --host localhost --prefer fast --max-price-in 1 --max-price-out 2 \
         --budget-daily 3 --seller {peer} --allow {peer} --deny {peer}"
    ))
    .unwrap();
    let buy = &config.buy;
    assert_eq!(
        (buy.port, buy.host.as_str(), buy.prefer),
        (0, "localhost", Prefer::Fast)
    );
    assert_eq!(buy.max_price_in.unwrap().0, 1_000_000);
    assert_eq!(buy.max_price_out.unwrap().0, 2_000_000);
    assert_eq!(buy.budget.daily.unwrap().0, 3_000_000);
    assert_eq!(buy.seller.as_deref(), Some(peer.as_str()));
    assert_eq!((buy.allow.len(), buy.deny.len()), (1, 1));
}

#[test]
fn run_takes_the_named_roles_or_those_of_the_config() {
    let both = settings("run").unwrap();
    assert!(both.sell.enabled && both.buy.enabled);
    let sell = settings("run --sell --upstream demo --markup 10%").unwrap();
    assert!(sell.sell.enabled && !sell.buy.enabled);
    assert_eq!(sell.sell.markup, Some(1_000));
}

#[test]
fn common_flags_may_stand_after_the_command() {
    let many = settings("buy --listen /ip4/1.1.1.1/tcp/1 /ip4/1.1.1.1/tcp/2 --port 1").unwrap();
    assert_eq!((many.node.listen.len(), many.buy.port), (2, 1));
    let before = settings("--listen /ip4/1.1.1.1/tcp/1 buy --port 1").unwrap();
    assert_eq!(before.node.listen.len(), 1);
    let cli = parse("status --json -vv --color never").unwrap();
    assert!(cli.global.json);
    assert_eq!(cli.global.verbose, 2);
    assert_eq!(cli.global.color, Color::Never);
}

#[test]
fn wrong_usage_ends_with_2_and_help_with_0() {
    assert_eq!(parse("sell --markup 1% --free").unwrap_err(), 2);
    assert_eq!(parse("fly").unwrap_err(), 2);
    assert_eq!(parse("fly --json").unwrap_err(), 2);
    assert_eq!(parse("").unwrap_err(), 2);
    assert_eq!(parse("--help").unwrap_err(), 0);
    assert_eq!(parse("--version").unwrap_err(), 0);
}

#[test]
fn errors_keep_their_class_through_contexts() {
    let config = settings("buy --host 0.0.0.0").unwrap_err();
    let failure = failure_of(&anyhow::Error::new(config).context("start"));
    assert_eq!(failure.kind.exit_code(), 64);
    let in_use = DataDirError::InUse {
        dir: "/d".into(),
        holder: crate::data_dir::Holder::default(),
    };
    assert!(failure_of(&in_use.into()).retryable);
}

#[test]
fn money_commands_say_exactly_what_is_meant() {
    for good in [
        "wallet balance",
        "wallet deposit 5",
        "wallet deposit 0.000001 --dry-run --json",
        "wallet withdraw 2.5 --to 0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
        "wallet withdraw --all --no-wait",
        "channel list",
        "channel close --all --alone",
        "channel reclaim --all --dry-run",
        "chain deploy --rpc http://127.0.0.1:8545 --key-file k --test-token",
        "chain deploy --rpc http://127.0.0.1:8545 --key-file k --dry-run --json",
    ] {
        assert!(parse(good).is_ok(), "{good}");
    }
    for bad in [
        "wallet deposit",
        "wallet deposit -1",
        "wallet deposit 0.0000001",
        "wallet withdraw",
        "wallet withdraw 1 --all",
        "wallet withdraw 1 --to 0x5aAec6053F3E94C9b9A09f33669435E7Ef1BeAed",
        "wallet withdraw 1 --dry-run --no-wait",
        "channel close",
        "channel close 0x12",
        "channel reclaim 0x12 --all",
        "chain deploy --rpc http://127.0.0.1:8545",
        "chain deploy --key-file k --mint 0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed=1",
    ] {
        assert!(parse(bad).is_err(), "{bad}");
    }
    let config = settings("buy --rpc http://a --rpc https://b").unwrap();
    assert_eq!(config.chain.rpc, ["http://a", "https://b"]);
}
