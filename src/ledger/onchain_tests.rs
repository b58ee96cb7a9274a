//! Rows about the chain: kept, read back, judged; and a ledger from before there were any.

use super::audit::{AuditOptions, verify};
use super::testing::*;
use super::*;
use crate::types::{IntentId, Stage, Step};

const T0: u64 = 1_700_000_000_000;

#[tokio::test]
async fn what_a_restarted_node_needs_of_the_chain_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    let running = start(&path).await;
    running.ledger.commit(onchain_rows()).await.unwrap();
    let done = vec![
        Row::Intent(intent(2, 1, None)),
        Row::Sent(sent(2, 2)),
        Row::Sent(sent(2, 3)),
        Row::Outcome(outcome(2, Some(3), Step::Mined)),
        Row::Outcome(outcome(2, Some(3), Step::Confirmed)),
        Row::Intent(intent(3, 2, None)),
    ];
    running.ledger.commit(done).await.unwrap();
    running.stop().await;

    let running = start(&path).await;
    let ledger = &running.ledger;
    let open = ledger.open_intents(8453, &SENDER).await.unwrap();
    assert_eq!(open.len(), 2);
    assert_eq!(open[0].intent, intent(1, 0, Some(1)));
    assert_eq!(open[0].sent, [sent(1, 1)]);
    assert_eq!(open[0].last, Some(outcome(1, Some(1), Step::Reorged)));
    assert_eq!(
        (&open[1].intent, open[1].sent.len()),
        (&intent(3, 2, None), 0)
    );
    assert!(ledger.open_intents(1, &SENDER).await.unwrap().is_empty());
    assert_eq!(ledger.outcomes(&IntentId([2; 16])).await.unwrap().len(), 2);

    assert_eq!(
        ledger.chain_cursor(8453, &HUB).await.unwrap(),
        Some(cursor(60))
    );
    assert_eq!(ledger.chain_cursor(1, &HUB).await.unwrap(), None);
    let mut first = event(0, Stage::Seen);
    first.stage = Stage::Confirmed;
    let standing = vec![first, event(2, Stage::Seen)];
    assert_eq!(ledger.events_above(8453, &HUB, 60).await.unwrap(), standing);
    assert_eq!(
        ledger.events_above(8453, &HUB, 70).await.unwrap(),
        standing[1..]
    );
    assert_eq!(
        ledger.channel_events(&channel_id(1)).await.unwrap(),
        standing
    );
    let report = verify(ledger, &AuditOptions::default()).await.unwrap();
    assert_eq!(report.differences, []);
    assert_eq!((report.transactions, report.chain_events), (3, 5));
    running.stop().await;
}

#[tokio::test]
async fn a_nonce_an_intent_and_a_transaction_exist_once() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(&dir.path().join("ledger.db")).await;
    let ledger = &running.ledger;
    ledger.commit(onchain_rows()).await.unwrap();
    for twice in [
        Row::Intent(intent(9, 0, None)),
        Row::Intent(intent(1, 9, None)),
        Row::Sent(sent(1, 1)),
    ] {
        let refused = ledger.commit(vec![twice]).await;
        assert!(
            matches!(refused, Err(LedgerError::Invalid(_))),
            "{refused:?}"
        );
    }
    ledger
        .commit(vec![Row::Intent(intent(9, 9, None))])
        .await
        .unwrap();
    running.stop().await;
}

#[tokio::test]
async fn verify_names_transactions_and_events_out_of_turn() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(&dir.path().join("ledger.db")).await;
    let ledger = &running.ledger;
    ledger.commit(onchain_rows()).await.unwrap();
    let mut other = event(2, Stage::Confirmed);
    other.data = vec![9];
    for row in [
        Row::Intent(intent(2, 1, Some(1))),
        Row::Outcome(outcome(1, Some(1), Step::Confirmed)),
        Row::Outcome(outcome(1, Some(1), Step::Mined)),
        Row::Outcome(outcome(2, Some(99), Step::Mined)),
        Row::Event(other),
        Row::Event(event(0, Stage::Removed)),
        Row::Event(event(5, Stage::Confirmed)),
    ] {
        ledger.commit(vec![row]).await.unwrap();
    }
    let report = verify(ledger, &AuditOptions::default()).await.unwrap();
    let found: Vec<&str> = report.differences.iter().map(|d| d.what.as_str()).collect();
    let expect = [
        "under way (I6)",
        "cannot be confirmed now (I7)",
        "is not under way (I6)",
        "in a form never signed (I6)",
        "says something else than before (I7)",
        "was confirmed, and a reorg removed it (I7)",
        "event 5 of block 75 cannot be confirmed now (I7)",
    ];
    for part in expect {
        assert!(
            found.iter().any(|what| what.contains(part)),
            "{part}: {found:#?}"
        );
    }
    assert_eq!(found.len(), expect.len(), "{found:#?}");
    running.stop().await;
}

#[tokio::test]
async fn a_ledger_of_the_first_version_is_brought_up_to_date_and_stays_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    let running = start(&path).await;
    let old = [
        vec![Row::Channel(channel(Role::Buy, 1, T0))],
        request(Role::Buy, 1, 1, T0, 0),
    ];
    running.ledger.commit(old.concat()).await.unwrap();
    running.stop().await;
    // What 0002 and 0003 added goes: this is the file as the first version left it.
    let mut back = String::new();
    for table in [
        "tx_sent",
        "tx_outcome",
        "tx_intent",
        "chain_event",
        "chain_cursor",
        "client_budget",
    ] {
        back.push_str(&format!("drop table {table}; "));
    }
    super::tests::raw(&path, &format!("{back} pragma user_version = 1")).await;
    assert!(matches!(
        Reader::open(&path).await,
        Err(LedgerError::Corrupt { .. })
    ));

    let running = start(&path).await;
    let ledger = &running.ledger;
    assert_eq!(ledger.load(Role::Buy).await.unwrap().len(), 1);
    ledger.commit(onchain_rows()).await.unwrap();
    let report = verify(ledger, &AuditOptions::default()).await.unwrap();
    assert_eq!((report.differences, report.rows), (vec![], 15));
    running.stop().await;
}
