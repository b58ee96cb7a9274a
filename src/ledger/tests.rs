//! The ledger as others use it: durability, groups, refusals, restarts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::testing::*;
use super::*;
use crate::types::{AttemptId, ManualClock, MicroUsd, ModelId};

const T0: u64 = 1_700_000_000_000;

#[tokio::test]
async fn committed_rows_survive_a_crash_and_queued_ones_are_whole_or_absent() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    let running = start(&path).await;
    let ledger = &running.ledger;
    ledger
        .commit(vec![Row::Channel(channel(Role::Buy, 1, T0))])
        .await
        .unwrap();
    ledger
        .commit(request(Role::Buy, 1, 1, T0, 0))
        .await
        .unwrap();
    ledger
        .submit(request(Role::Buy, 2, 1, T0, 5000))
        .await
        .unwrap();
    running.kill().await;

    let running = start(&path).await;
    let state = running.ledger.load(Role::Buy).await.unwrap();
    assert_eq!(state.len(), 1);
    let lost = !running
        .ledger
        .has_attempt(&AttemptId(id16(2)))
        .await
        .unwrap();
    let sum = if lost { 5000 } else { 10_000 };
    assert_eq!(state[0].accepted_sum, MicroUsd(sum));
    assert_eq!(state[0].voucher.as_ref().unwrap().cumulative, MicroUsd(sum));
    let attempt = running
        .ledger
        .attempt(&AttemptId(id16(1)))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(attempt.open, open(Role::Buy, 1, 1, T0));
    assert_eq!(attempt.delivered, Some(delivered(1, T0 + 10, 5000)));
    assert_eq!(attempt.final_row, Some(accepted(1, T0 + 11, 5000)));
    running.stop().await;
}

#[tokio::test]
async fn submitted_rows_are_durable_within_the_linger() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    let running = start(&path).await;
    running
        .ledger
        .submit(vec![Row::Channel(channel(Role::Sell, 1, T0))])
        .await
        .unwrap();
    let began = Instant::now();
    while running
        .ledger
        .channels(Role::Sell)
        .await
        .unwrap()
        .is_empty()
    {
        assert!(began.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    running.kill().await;
    let reader = Reader::open(&path).await.unwrap();
    assert_eq!(
        reader.channels(Role::Sell).await.unwrap(),
        [channel(Role::Sell, 1, T0)]
    );
}

#[tokio::test]
async fn a_clean_stop_commits_what_is_queued() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    let running = start(&path).await;
    running
        .ledger
        .submit(vec![Row::Channel(channel(Role::Buy, 1, T0))])
        .await
        .unwrap();
    for n in 0..300 {
        let rows = request(Role::Buy, n, 1, T0, n * 5000);
        running.ledger.submit(rows).await.unwrap();
    }
    let ledger = running.ledger.clone();
    running.stop().await;
    let late = ledger.commit(request(Role::Buy, 999, 1, T0, 0)).await;
    assert!(matches!(late, Err(LedgerError::Stopped(_))));
    let reader = Reader::open(&path).await.unwrap();
    let state = reader.load(Role::Buy).await.unwrap();
    assert_eq!(state[0].accepted_sum, MicroUsd(300 * 5000));
    let report = audit::verify(&reader, &audit::AuditOptions::default())
        .await
        .unwrap();
    assert_eq!(report.differences, []);
    assert_eq!(report.attempts, 300);
}

#[tokio::test]
async fn an_attempt_is_charged_at_most_once_and_a_bad_row_takes_no_other_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(&dir.path().join("ledger.db")).await;
    let ledger = &running.ledger;
    ledger
        .commit(vec![Row::Channel(channel(Role::Buy, 1, T0))])
        .await
        .unwrap();
    ledger
        .commit(request(Role::Buy, 1, 1, T0, 0))
        .await
        .unwrap();

    // The same booking again is covered, another amount is refused.
    let mut again = accepted(1, T0 + 999, 5000);
    again.total_ms = 7;
    ledger.commit(vec![Row::Final(again)]).await.unwrap();
    ledger
        .commit(vec![Row::Delivered(delivered(1, T0, 5000))])
        .await
        .unwrap();
    let more = ledger.commit(vec![Row::Final(accepted(1, T0, 5001))]).await;
    assert!(
        matches!(more, Err(LedgerError::AlreadyBooked { billed, .. }) if billed == MicroUsd(5000))
    );
    let replay = ledger
        .commit(vec![Row::Open(open(Role::Buy, 1, 1, T0))])
        .await;
    assert!(matches!(replay, Err(LedgerError::AttemptExists(_))));
    let orphan = ledger.commit(vec![Row::Final(accepted(77, T0, 1))]).await;
    assert!(matches!(orphan, Err(LedgerError::NotOpened(_))));

    // In one batch: good, bad (its good half must go too), good.
    let (a, b, c) = tokio::join!(
        ledger.commit(request(Role::Buy, 2, 1, T0, 5000)),
        ledger.commit(vec![
            Row::Open(open(Role::Buy, 50, 1, T0)),
            Row::Open(open(Role::Buy, 1, 1, T0)),
        ]),
        ledger.commit(request(Role::Buy, 3, 1, T0, 10_000)),
    );
    a.unwrap();
    assert!(b.unwrap_err().is_refusal());
    c.unwrap();
    assert!(!ledger.has_attempt(&AttemptId(id16(50))).await.unwrap());
    let state = ledger.load(Role::Buy).await.unwrap();
    assert_eq!(state[0].accepted_sum, MicroUsd(15_000));
    let report = audit::verify(ledger, &audit::AuditOptions::default())
        .await
        .unwrap();
    assert_eq!(report.differences, []);
    running.stop().await;
}

#[tokio::test]
async fn vouchers_never_go_back_and_equal_ones_are_kept_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    let running = start(&path).await;
    let ledger = &running.ledger;
    ledger
        .commit(vec![Row::Channel(channel(Role::Sell, 1, T0))])
        .await
        .unwrap();
    for cumulative in [0, 100, 50, 100, 300, 299] {
        let row = voucher(Role::Sell, 1, cumulative, None);
        let persisted = ledger.persist_voucher(row.clone()).await.unwrap();
        assert_eq!(*persisted, row);
    }
    let kept = ledger.vouchers(&channel_id(1), None, 10).await.unwrap();
    let kept: Vec<u64> = kept.iter().map(|v| v.cumulative.0).collect();
    assert_eq!(kept, [300, 100, 0]);
    running.stop().await;

    let running = start(&path).await;
    running
        .ledger
        .persist_voucher(voucher(Role::Sell, 1, 200, None))
        .await
        .unwrap();
    let state = running.ledger.load(Role::Sell).await.unwrap();
    assert_eq!(state[0].voucher.as_ref().unwrap().cumulative, MicroUsd(300));
    let report = audit::verify(&running.ledger, &audit::AuditOptions::default())
        .await
        .unwrap();
    assert_eq!(report.differences, []);
    running.stop().await;
}

#[tokio::test]
async fn rows_that_cannot_be_stored_are_refused_before_they_are_queued() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(&dir.path().join("ledger.db")).await;
    let ledger = &running.ledger;
    let mut failed = accepted(1, T0, 5);
    failed.outcome = Outcome::Failed;
    let mut huge = voucher(Role::Buy, 1, u64::MAX, None);
    let mut fat = open(Role::Buy, 1, 1, T0);
    fat.signed_head = vec![0; 70_000];
    for row in [
        Row::Final(failed),
        Row::Voucher(huge.clone()),
        Row::Open(fat),
    ] {
        let refused = ledger.submit(vec![row]).await;
        assert!(matches!(refused, Err(LedgerError::Invalid(_))));
    }
    huge.cumulative = MicroUsd(1);
    ledger.commit(vec![Row::Voucher(huge)]).await.unwrap();
    let mut long = open(Role::Buy, 1, 1, T0);
    long.client = "ä".repeat(300);
    long.max_cost = MicroUsd::MAX;
    ledger.commit(vec![Row::Open(long)]).await.unwrap();
    let kept = ledger.attempt(&AttemptId(id16(1))).await.unwrap().unwrap();
    assert_eq!(kept.open.client, "ä".repeat(100));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[allow(clippy::disallowed_methods, reason = "tests have no task tracker")]
async fn sixty_four_writers_at_once_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    let running = start_with(&path, 500).await;
    let mut tasks = Vec::new();
    for writer in 0..64u64 {
        let ledger = running.ledger.clone();
        tasks.push(tokio::spawn(async move {
            let chan = u8::try_from(writer).unwrap();
            let row = Row::Channel(channel(Role::Sell, chan, T0));
            ledger.commit(vec![row]).await.unwrap();
            for n in 0..20u64 {
                let rows = request(Role::Sell, writer * 1000 + n, chan, T0, n * 5000);
                if n % 2 == 0 {
                    ledger.commit(rows).await.unwrap();
                } else {
                    ledger.submit(rows).await.unwrap();
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    running.stop().await;
    let reader = Reader::open(&path).await.unwrap();
    let state = reader.load(Role::Sell).await.unwrap();
    assert_eq!(state.len(), 64);
    assert!(state.iter().all(|c| c.accepted_sum == MicroUsd(100_000)));
    let report = audit::verify(&reader, &audit::AuditOptions::default())
        .await
        .unwrap();
    assert_eq!(report.differences, []);
    assert_eq!(report.attempts, 64 * 20);
}

#[tokio::test]
#[allow(clippy::disallowed_methods, reason = "tests have no task tracker")]
async fn a_full_disk_stops_the_writer_and_everybody_waiting_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    let clock = Arc::new(ManualClock::new(T0));
    let (ledger, mut writer) = Ledger::open(&path, clock, Settings::default())
        .await
        .unwrap();
    sqlx::query("pragma max_page_count = 60")
        .execute(&mut writer.batches.conn)
        .await
        .unwrap();
    let task = tokio::spawn(writer.run(tokio_util::sync::CancellationToken::new()));
    let row = Row::Channel(channel(Role::Buy, 1, T0));
    ledger.commit(vec![row]).await.unwrap();
    let mut good = 0;
    let stopped = loop {
        let rows = request(Role::Buy, good, 1, T0, good * 5000);
        let (one, other) = tokio::join!(
            ledger.commit(rows),
            ledger.commit(vec![Row::Open(open(Role::Buy, good + 5000, 1, T0))]),
        );
        if let Err(error) = one {
            assert!(other.is_err());
            break error;
        }
        good += 1;
    };
    assert!(
        matches!(&stopped, LedgerError::Stopped(why) if why.contains("full")),
        "{stopped}"
    );
    assert!(good > 0);
    assert!(ledger.stop_reason().is_some());
    let later = ledger
        .submit(vec![Row::Open(open(Role::Buy, 9999, 1, T0))])
        .await;
    assert!(matches!(later, Err(LedgerError::Stopped(_))));
    assert!(task.await.unwrap().is_err());
    let states = Reader::open(&path)
        .await
        .unwrap()
        .load(Role::Buy)
        .await
        .unwrap();
    assert_eq!(states[0].accepted_sum, MicroUsd(good * 5000));
}

#[tokio::test]
async fn a_second_writer_is_told_that_the_ledger_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    let running = start(&path).await;
    let clock = Arc::new(ManualClock::new(T0));
    let second = Ledger::open(&path, clock, Settings::default()).await;
    assert!(matches!(second, Err(LedgerError::InUse(_))));
    running.stop().await;
    start(&path).await.stop().await;
}

async fn open_error(path: &std::path::Path) -> LedgerError {
    let clock = Arc::new(ManualClock::new(T0));
    match Ledger::open(path, clock, Settings::default()).await {
        Ok(_) => panic!("it opened"),
        Err(error) => error,
    }
}

#[tokio::test]
async fn damaged_foreign_newer_and_changed_files_are_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    std::fs::write(&path, [9u8; 8192]).unwrap();
    assert!(matches!(
        open_error(&path).await,
        LedgerError::Corrupt { .. }
    ));
    std::fs::remove_file(&path).unwrap();

    assert!(matches!(
        Reader::open(&path).await,
        Err(LedgerError::Missing(_))
    ));
    start(&path).await.stop().await;
    raw(&path, "pragma user_version = 99").await;
    let newer = open_error(&path).await;
    assert!(matches!(newer, LedgerError::TooNew { found: 99, .. }));
    assert!(Reader::open(&path).await.is_err());
    raw(&path, "pragma user_version = 3; pragma application_id = 5").await;
    let foreign = open_error(&path).await.to_string();
    assert!(foreign.contains("other program"), "{foreign}");
    raw(&path, "pragma application_id = 0x534f554b").await;

    let running = start(&path).await;
    let row = Row::Channel(channel(Role::Buy, 1, T0));
    running.ledger.commit(vec![row]).await.unwrap();
    running.stop().await;
    raw(
        &path,
        "drop trigger channel_keeps; update channel set deposit = 1",
    )
    .await;
    let changed = open_error(&path).await.to_string();
    assert!(changed.contains("row 1 (channel) was changed"), "{changed}");
}

/// Runs SQL on the file behind the ledger's back.
pub(super) async fn raw(path: &std::path::Path, sql: &str) {
    use sqlx::{ConnectOptions as _, Connection as _};
    let options = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(path)
        .pragma("ignore_check_constraints", "on")
        .foreign_keys(false);
    let mut conn = options.connect().await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned()))
        .execute(&mut conn)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
    conn.close().await.unwrap();
}

#[tokio::test]
async fn ledger_rows_can_be_neither_changed_nor_deleted_by_accident() {
    use sqlx::{ConnectOptions as _, Executor as _};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    let running = start(&path).await;
    let row = Row::Channel(channel(Role::Buy, 1, T0));
    running.ledger.commit(vec![row]).await.unwrap();
    running.stop().await;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path);
    let mut conn = options.connect().await.unwrap();
    assert!(conn.execute("update channel set epoch = 5").await.is_err());
    assert!(conn.execute("delete from channel").await.is_err());
}

#[tokio::test]
async fn offers_budgets_settlements_and_spending_are_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    let running = start_with(&path, 10).await;
    let ledger = &running.ledger;
    let offer = OfferRow {
        at_ms: T0,
        hash: crate::types::Hash32([4; 32]),
        model: ModelId::new("m"),
        not_after: T0 + 1000,
        bytes: vec![1, 2],
    };
    let budget = |daily, model: Option<&str>| BudgetRow {
        at_ms: T0,
        client: None,
        model: model.map(ModelId::new),
        daily: Some(MicroUsd(daily)),
        monthly: None,
    };
    let of_a_client = BudgetRow {
        client: Some("alice".to_owned()),
        ..budget(3, None)
    };
    let paid = SettlementRow {
        at_ms: T0,
        role: Role::Buy,
        channel: channel_id(1),
        peer: peer(1),
        amount: MicroUsd(70),
        note: "bank".to_owned(),
    };
    ledger
        .commit(vec![
            Row::Channel(channel(Role::Buy, 1, T0)),
            Row::Offer(offer.clone()),
            Row::Offer(offer.clone()),
            Row::BudgetSet(budget(1, None)),
            Row::BudgetSet(budget(5, Some("m"))),
            Row::BudgetSet(of_a_client.clone()),
            Row::BudgetSet(budget(2, None)),
            Row::Settlement(paid.clone()),
        ])
        .await
        .unwrap();
    ledger
        .commit(vec![Row::Offer(offer.clone())])
        .await
        .unwrap();
    let hour = 3_600_000;
    for n in 0..30 {
        let rows = request(Role::Buy, n, 1, T0 + n * hour, n * 5000);
        ledger.commit(rows).await.unwrap();
    }
    assert_eq!(ledger.offers_since(T0).await.unwrap(), [offer]);
    assert!(ledger.offers_since(T0 + 1001).await.unwrap().is_empty());
    assert_eq!(
        ledger.budgets().await.unwrap(),
        [budget(2, None), budget(5, Some("m")), of_a_client]
    );
    assert_eq!(ledger.settlements(Role::Buy).await.unwrap(), [paid]);
    assert_eq!(
        ledger.load(Role::Buy).await.unwrap()[0].settlements_sum,
        MicroUsd(70)
    );
    let spent = |since| async move { ledger.spent_since(since, Role::Buy).await.unwrap().0 };
    assert_eq!(spent(0).await, 150_000);
    assert_eq!(spent(T0 + 20 * hour).await, 50_000);
    let newest = ledger.newest_admission().await.unwrap();
    assert!(newest.is_some_and(|at_ms| at_ms >= T0 + 29 * hour));
    assert_eq!(
        ledger.spent_since(0, Role::Sell).await.unwrap(),
        MicroUsd(0)
    );
    let model = ModelId::new("openai/gpt-4o");
    let by_purpose = ledger.spent_by_purpose(T0 + 20 * hour, Role::Buy);
    let client = open(Role::Buy, 1, 1, T0).client;
    let all = by_purpose.await.unwrap();
    assert_eq!(all, [(model, client, MicroUsd(50_000))]);
    running.stop().await;
}
