//! `node ledger verify` against the chain: what one has and the other has not is a difference.

use serde_json::json;
use souk::types::MicroUsd;

use super::channels::open;
use super::{World, states};

#[tokio::test(flavor = "multi_thread")]
async fn money_that_the_chain_does_not_have_is_a_difference() {
    let world = World::start().await;
    let home = world.rich(20, true).await;
    let anvil = &world.chain.world.anvil;
    let snapshot = anvil.rpc("evm_snapshot", json!([]));
    let sent = home.json(&["wallet", "deposit", "5", "--json"]);
    assert_eq!(states(&sent), ["confirmed"]);
    // The chain forgets the deposit that the ledger holds as final.
    anvil.rpc("evm_revert", json!([snapshot]));
    let output = home.run(&["ledger", "verify", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        report["difference_count"], 0,
        "the ledger alone is in order"
    );
    let found = report["chain"]["differences"].to_string();
    assert!(found.contains("the chain has no such event"), "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_ledger_has_not_heard_yet_is_no_difference_and_a_dead_chain_is_said() {
    let world = World::start().await;
    let home = world.rich(20, true).await;
    home.json(&["wallet", "deposit", "5", "--json"]);
    // Opened behind the ledger's back: no node runs.
    open(&world, &home, MicroUsd::from_usd(2), 7).await;
    let checked = home.json(&["ledger", "verify", "--json"]);
    assert_eq!(checked["chain"]["channels"], 1, "{checked}");
    assert_eq!(
        checked["chain"]["differences"].as_array().unwrap().len(),
        0,
        "{checked}"
    );
    let url = world.chain.world.anvil.url();
    super::configure(&home, &world.config("").replace(&url, "http://127.0.0.1:1"));
    let checked = home.json(&["ledger", "verify", "--json"]);
    assert!(checked["chain"]["not_compared"].is_string(), "{checked}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_event_in_the_ledger_is_found() {
    let world = World::start().await;
    let home = world.rich(20, true).await;
    home.json(&["wallet", "deposit", "5", "--json"]);
    let db = home.path().join("ledger.db");
    // As somebody with the file would: one byte of the deposit's sum, past the triggers.
    let script = "import sqlite3, sys\n\
        db = sqlite3.connect(sys.argv[1])\n\
        db.execute('drop trigger chain_event_keeps')\n\
        db.execute(\"update chain_event set amount = amount + 1 where kind = 'deposited'\")\n\
        db.commit()\n";
    let status = std::process::Command::new("python3")
        .args(["-c", script, db.to_str().unwrap()])
        .status();
    assert!(status.unwrap().success());
    let output = home.run(&["ledger", "verify"]);
    assert_eq!(output.status.code(), Some(1));
}
