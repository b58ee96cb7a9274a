//! `node chain deploy`: what it prints is a chain that a wallet works on.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;
use souk::keys::{PaymentKey, to_checksum};
use souk::types::MicroUsd;

use super::{configure, stderr, sum};
use crate::harness::anvil::Anvil;
use crate::harness::market::Hold;
use crate::harness::node::{Home, Node};
use crate::harness::ports;

/// A file with a raw key, as other wallets export it.
fn key_file(home: &Home, key: &PaymentKey) -> String {
    let path = home.path().join("deployer");
    let text = format!("0x{}\n", hex::encode(key.secret_bytes().expose()));
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_ones_own_is_one_command_and_its_lines_are_a_config() {
    let _hold = Hold::shared().await;
    let anvil = Anvil::start();
    let (home, deployer) = (Home::new(), PaymentKey::generate());
    let file = key_file(&home, &deployer);
    let url = anvil.url();
    let grant = format!("{}=7.5", home.evm_address);
    let args = [
        "chain",
        "deploy",
        "--rpc",
        &url,
        "--key-file",
        &file,
        "--test-token",
        "--mint",
        &grant,
    ];

    let broke = home.run(&args);
    assert_eq!(broke.status.code(), Some(5), "{}", stderr(&broke));
    let account = to_checksum(&deployer.address());
    assert!(stderr(&broke).contains(&account), "{}", stderr(&broke));

    // A dry run says what is missing, then that nothing is, and leaves no trace on the chain.
    let dry = [&args[..], &["--dry-run", "--json"]].concat();
    let plan = home.json(&dry)["plan"].clone();
    assert_eq!(plan["is_enough"], false, "{plan}");
    assert_eq!(plan["deployer"], account);
    anvil.fund(&account);
    let plan = home.json(&dry)["plan"].clone();
    assert_eq!(plan["is_enough"], true, "{plan}");
    assert_eq!(anvil.rpc("eth_blockNumber", json!([])), "0x0");
    let done = home.run(&args);
    assert!(done.status.success(), "{}", stderr(&done));
    let lines = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(
        stderr(&done).contains("sending the hub"),
        "{}",
        stderr(&done)
    );
    configure(&home, &lines);
    let balance = home.json(&["wallet", "balance", "--json"]);
    assert_eq!(sum(&balance, "wallet_micro_usd"), MicroUsd(7_500_000));
    assert_eq!(balance["chain_id"], anvil.chain_id);

    // The hub is known by its code: a token in its place is refused, and so is another chain.
    let hub = line(&lines, "hub");
    let token = line(&lines, "token");
    configure(&home, &lines.replace(&hub, &token));
    let wrong = home.run(&["wallet", "balance"]);
    assert_eq!(wrong.status.code(), Some(64), "{}", stderr(&wrong));
    assert!(stderr(&wrong).contains("code hash"), "{}", stderr(&wrong));
    let id = anvil.chain_id.to_string();
    configure(&home, &lines.replace(&id, "5"));
    let wrong = home.run(&["buy", "--port", "0"]);
    assert_eq!(wrong.status.code(), Some(64), "{}", stderr(&wrong));
    assert!(
        stderr(&wrong).contains("serves chain"),
        "{}",
        stderr(&wrong)
    );
}

/// The value of a config line.
fn line(lines: &str, key: &str) -> String {
    let prefix = format!("{key} = \"");
    let found = lines.lines().find_map(|line| line.strip_prefix(&prefix));
    found.unwrap().trim_end_matches('"').to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_others_can_read_and_a_chain_that_is_not_there_are_named() {
    let home = Home::new();
    let file = key_file(&home, &PaymentKey::generate());
    // Nobody listens on port 1.
    let gone = home.run(&[
        "chain",
        "deploy",
        "--rpc",
        "http://127.0.0.1:1",
        "--key-file",
        &file,
    ]);
    assert_eq!(gone.status.code(), Some(4), "{}", stderr(&gone));
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let open = home.run(&[
        "chain",
        "deploy",
        "--rpc",
        "http://127.0.0.1:1",
        "--key-file",
        &file,
    ]);
    assert_eq!(open.status.code(), Some(3), "{}", stderr(&open));
    let none = home.run(&["wallet", "balance"]);
    assert_eq!(none.status.code(), Some(3), "{}", stderr(&none));
    assert!(
        stderr(&none).contains("no chain is configured"),
        "{}",
        stderr(&none)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_starts_while_its_chain_is_down_and_ends_when_it_turns_out_wrong() {
    let _hold = Hold::shared().await;
    let home = Home::new();
    let port = ports::take();
    let hub = "0x5FbDB2315678afecb367f032d93F642f64180aa3";
    configure(
        &home,
        &format!(
            "[chain]\nrpc = [\"http://127.0.0.1:{port}\"]\nchain_id = 99\nhub = \"{hub}\"\n\
             token = \"{hub}\"\npoll = \"200ms\"\ncall_timeout = \"10s\"\n"
        ),
    );
    let mut node = Node::start_at(home, &["buy", "--port", "0"]);
    assert!(node.is_running());
    assert!(
        node.stderr_tail().contains("the chain does not answer"),
        "{}",
        node.stderr_tail()
    );
    let anvil = Anvil::start_at(port, 100);
    let end = tokio::time::Instant::now() + std::time::Duration::from_secs(120);
    while node.is_running() && tokio::time::Instant::now() < end {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(node.exit_code(), Some(64), "{}", node.stderr_tail());
    assert_eq!(anvil.rpc("eth_chainId", json!([])), "0x64");
}
