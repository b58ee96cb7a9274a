//! `node wallet` with the account's own gas: into the vault and back, to the micro-USD.

use souk::keys::to_checksum;
use souk::types::{EvmAddress, MicroUsd};

use super::{World, address, states, stderr, sum};

#[tokio::test(flavor = "multi_thread")]
async fn money_moves_into_the_vault_and_back_and_a_dry_run_moves_nothing() {
    let world = World::start().await;
    let home = world.rich(20, true).await;
    let me = address(&home);

    let dry = home.json(&["wallet", "deposit", "5", "--dry-run", "--json"]);
    assert_eq!(dry["dry_run"], true);
    assert_eq!(dry["plan"]["way"], "own");
    assert!(dry["plan"]["gas"].as_u64().unwrap() > 21_000, "{dry}");
    assert_eq!(
        dry["plan"]["steps"][0]["to"],
        to_checksum(&world.chain.hub.hub)
    );
    assert_eq!(world.transactions(&home.evm_address), "0x0");
    assert_eq!(world.vault(me).await, MicroUsd::ZERO);

    let sent = home.json(&["wallet", "deposit", "5", "--json"]);
    assert_eq!(states(&sent), ["confirmed"]);
    assert_eq!(world.vault(me).await, MicroUsd::from_usd(5));
    let sent = home.json(&["wallet", "withdraw", "1.25", "--json"]);
    assert_eq!(states(&sent), ["confirmed"]);
    let balance = home.json(&["wallet", "balance", "--json"]);
    assert_eq!(sum(&balance, "wallet_micro_usd"), MicroUsd(16_250_000));
    assert_eq!(sum(&balance, "vault_micro_usd"), MicroUsd(3_750_000));
    assert_eq!(sum(&balance, "reserved_micro_usd"), MicroUsd::ZERO);
    assert_eq!(balance["pending"].as_array().unwrap().len(), 0);

    let much = home.run(&["wallet", "withdraw", "3.750001"]);
    assert_eq!(much.status.code(), Some(5), "{}", stderr(&much));
    let nowhere = format!("0x{}", EvmAddress::default());
    let lost = home.run(&["wallet", "withdraw", "1", "--to", &nowhere]);
    assert_eq!(lost.status.code(), Some(2), "{}", stderr(&lost));
    let typo = home.run(&[
        "wallet",
        "withdraw",
        "1",
        "--to",
        "0x5aAec6053F3E94C9b9A09f33669435E7Ef1BeAed",
    ]);
    assert_eq!(typo.status.code(), Some(2), "{}", stderr(&typo));

    let other = EvmAddress([0xab; 20]);
    let to = to_checksum(&other);
    let sent = home.json(&["wallet", "withdraw", "--all", "--to", &to, "--json"]);
    assert_eq!(states(&sent), ["confirmed"]);
    assert_eq!(world.tokens(other).await, MicroUsd(3_750_000));
    assert_eq!(world.vault(me).await, MicroUsd::ZERO);

    let checked = home.json(&["ledger", "verify", "--json"]);
    assert_eq!(checked["difference_count"], 0, "{checked}");
    assert_eq!(
        checked["chain"]["differences"].as_array().unwrap().len(),
        0,
        "{checked}"
    );
    let report = home.json(&["ledger", "--json"]);
    let gas = report["totals"][0]["gas_wei"].as_u64().unwrap();
    assert!(gas > 0, "three transactions cost gas: {report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_gas_and_without_a_node_it_says_how_much_is_needed() {
    let world = World::start().await;
    let home = world.rich(20, false).await;
    let poor = home.run(&["wallet", "deposit", "5"]);
    assert_eq!(poor.status.code(), Some(5), "{}", stderr(&poor));
    let said = stderr(&poor);
    assert!(
        said.contains("needs 0.000") && said.contains("start the node"),
        "{said}"
    );
    assert!(said.contains(&home.evm_address), "{said}");
    assert_eq!(world.transactions(&home.evm_address), "0x0");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_command_left_is_finished_by_the_next() {
    let world = World::start().await;
    let home = world.rich(20, true).await;
    world
        .chain
        .world
        .anvil
        .rpc("evm_setAutomine", serde_json::json!([false]));
    let sent = home.json(&["wallet", "deposit", "5", "--no-wait", "--json"]);
    assert_eq!(sent["transactions"].as_array().unwrap().len(), 1);
    let balance = home.json(&["wallet", "balance", "--json"]);
    assert_eq!(balance["pending"][0]["purpose"], "deposit");
    // Nobody but the outbox knows it: the chain forgets what waits.
    world
        .chain
        .world
        .anvil
        .rpc("anvil_dropAllTransactions", serde_json::json!([]));
    world
        .chain
        .world
        .anvil
        .rpc("evm_setAutomine", serde_json::json!([true]));
    let sent = home.json(&["wallet", "deposit", "1", "--json"]);
    assert_eq!(states(&sent), ["confirmed"]);
    assert_eq!(world.vault(address(&home)).await, MicroUsd::from_usd(6));
    assert_eq!(world.transactions(&home.evm_address), "0x2");
}
