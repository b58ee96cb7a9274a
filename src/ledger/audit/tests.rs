//! Verify passes on what the writer wrote and fails after any change.

use std::path::Path;
use std::sync::Arc;

use sqlx::{ConnectOptions as _, Connection as _, Row as _};

use super::super::testing::*;
use super::super::tests::raw;
use super::super::*;
use super::*;
use crate::types::{AttemptId, Hash32, ModelId};

const T0: u64 = 1_700_000_000_000;

struct Signer;

impl CheckpointSigner for Signer {
    fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut signature = [0; 64];
        signature[0] = message.iter().fold(0, |a, b| a ^ b);
        signature
    }
}

/// A ledger with at least one row in every table and no null column that a flip would miss.
async fn full_ledger(path: &Path) {
    let settings = Settings {
        checkpoint_rows: 19,
        signer: Some(Arc::new(Signer)),
    };
    let clock = Arc::new(crate::types::ManualClock::new(T0));
    let (ledger, writer) = Ledger::open(path, clock, settings).await.unwrap();
    let cancel = tokio_util::sync::CancellationToken::new();
    #[allow(clippy::disallowed_methods, reason = "tests have no task tracker")]
    let task = tokio::spawn(writer.run(cancel.clone()));
    let mut rows = vec![
        Row::Channel(channel(Role::Sell, 1, T0)),
        Row::Offer(OfferRow {
            at_ms: T0,
            hash: Hash32([4; 32]),
            model: ModelId::new("m"),
            not_after: T0 + 1000,
            bytes: vec![1, 2],
        }),
        Row::BudgetSet(BudgetRow {
            at_ms: T0,
            client: None,
            model: None,
            daily: Some(MicroUsd(5)),
            monthly: None,
        }),
        Row::BudgetSet(BudgetRow {
            at_ms: T0,
            client: Some("c".to_owned()),
            model: Some(ModelId::new("m")),
            daily: Some(MicroUsd(5)),
            monthly: Some(MicroUsd(50)),
        }),
        Row::Settlement(SettlementRow {
            at_ms: T0,
            role: Role::Sell,
            channel: channel_id(1),
            peer: peer(1),
            amount: MicroUsd(70),
            note: "bank".to_owned(),
        }),
    ];
    rows.extend(onchain_rows());
    rows.extend(request(Role::Sell, 1, 1, T0, 0));
    rows.push(Row::Open(open(Role::Sell, 2, 1, T0)));
    ledger.commit(rows).await.unwrap();
    ledger
        .commit(request(Role::Sell, 3, 1, T0, 5000))
        .await
        .unwrap();
    cancel.cancel();
    task.await.unwrap().unwrap();
    ledger.reader().pool.close().await;
}

async fn differences(path: &Path) -> Vec<Difference> {
    let reader = Reader::open(path).await.unwrap();
    let report = verify(&reader, &AuditOptions::default()).await.unwrap();
    reader.pool.close().await;
    report.differences
}

#[tokio::test]
async fn verify_fails_after_one_changed_byte_in_any_column_of_any_table() {
    let dir = tempfile::tempdir().unwrap();
    let good = dir.path().join("good.db");
    full_ledger(&good).await;
    assert_eq!(differences(&good).await, []);
    let path = dir.path().join("changed.db");
    let mut tried = 0;
    for table in super::super::table::Table::ALL {
        let name = table.name();
        for column in ["seq", "hash"].iter().chain(table.columns()) {
            let kind = type_of(&good, name, column).await;
            let change = match kind.as_str() {
                "integer" => format!("{column} + 1"),
                "text" => format!("char(unicode({column}) + 1) || substr({column}, 2)"),
                "blob" => format!(
                    "unhex(case when hex(substr({column}, 1, 1)) = '00' then '01' else '00' end
                           || hex(substr({column}, 2)))"
                ),
                _ => "x'00'".to_owned(),
            };
            // A null column takes a byte of its own type.
            let change = match (kind.as_str(), *column) {
                ("null", "error") => "'x'".to_owned(),
                ("null", _) => "0".to_owned(),
                _ => change,
            };
            std::fs::copy(&good, &path).unwrap();
            let seq = format!("(select max(seq) from {name})");
            let sql = format!(
                "drop trigger {name}_keeps; update {name} set {column} = {change} where seq = {seq}"
            );
            raw(&path, &sql).await;
            let found = differences(&path).await;
            assert!(!found.is_empty(), "{name}.{column} was changed unseen");
            tried += 1;
        }
        std::fs::copy(&good, &path).unwrap();
        let sql = format!(
            "drop trigger {name}_stays; delete from {name} where seq = (select min(seq) from {name})"
        );
        raw(&path, &sql).await;
        assert!(
            !differences(&path).await.is_empty(),
            "{name} lost a row unseen"
        );
    }
    assert!(tried > 100, "{tried}");
}

async fn type_of(path: &Path, table: &str, column: &str) -> String {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
    let mut conn = options.connect().await.unwrap();
    let sql = format!("select typeof({column}) from {table} order by seq desc limit 1");
    let row = sqlx::query(sqlx::AssertSqlSafe(sql))
        .fetch_one(&mut conn)
        .await
        .unwrap();
    let kind = row.get(0);
    conn.close().await.unwrap();
    kind
}

struct Suspicious;

impl SignatureCheck for Suspicious {
    fn voucher(&self, _: &ChannelRow, voucher: &VoucherRow) -> Result<(), String> {
        if voucher.cumulative == MicroUsd(10_000) {
            return Err("bad voucher signature".to_owned());
        }
        Ok(())
    }
    fn checkpoint(&self, message: &[u8], signature: &[u8; 64]) -> Result<(), String> {
        if &Signer.sign(message) == signature {
            return Ok(());
        }
        Err("bad checkpoint signature".to_owned())
    }
}

#[tokio::test]
async fn signatures_are_checked_by_the_given_check() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    full_ledger(&path).await;
    let reader = Reader::open(&path).await.unwrap();
    let options = AuditOptions {
        signatures: Arc::new(Suspicious),
        ..AuditOptions::default()
    };
    let report = verify(&reader, &options).await.unwrap();
    assert_eq!(report.difference_count, 1);
    assert!(report.differences[0].what.contains("bad voucher signature"));
    assert!(report.signatures > 8);
}

#[tokio::test]
async fn verify_names_money_that_does_not_add_up() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(&dir.path().join("ledger.db")).await;
    let ledger = &running.ledger;
    let mut small = channel(Role::Buy, 1, T0);
    small.deposit = MicroUsd(4000);
    let mut unpaid = accepted(2, T0, 900_000);
    unpaid.usage = None;
    let mut no_receipt = accepted(3, T0, 10);
    no_receipt.receipt = None;
    let mut excused = accepted(4, T0, 10);
    excused.receipt = None;
    excused.error = Some("seller_died".to_owned());
    let mut too_dear = accepted(5, T0, 5551);
    too_dear.status = 200;
    let mut over_limit = open(Role::Buy, 6, 1, T0);
    over_limit.max_cost = MicroUsd(1);
    ledger
        .commit(vec![
            Row::Channel(small),
            Row::Voucher(voucher(Role::Buy, 1, 5000, None)),
            Row::Voucher(voucher(Role::Buy, 9, 1, Some(99))),
            Row::Open(open(Role::Buy, 2, 1, T0)),
            Row::Open(open(Role::Buy, 3, 1, T0)),
            Row::Open(open(Role::Buy, 4, 1, T0)),
            Row::Open(open(Role::Buy, 5, 1, T0)),
            Row::Open(over_limit),
            Row::Open(open(Role::Buy, 7, 8, T0)),
            Row::Final(unpaid),
            Row::Final(no_receipt),
            Row::Final(excused),
            Row::Final(too_dear),
            Row::Final(accepted(6, T0, 2)),
        ])
        .await
        .unwrap();
    let report = verify(ledger, &AuditOptions::default()).await.unwrap();
    let found: Vec<&str> = report.differences.iter().map(|d| d.what.as_str()).collect();
    let expect = [
        "above the deposit of 0.004000 USD (I2)",
        "its channel has no row",
        "which never opened",
        "without a receipt",
        "its usage costs 0.005550 USD (I8)",
        "above its limit of 0.000001 USD",
        "names a channel that has no row",
        "vouchers only reach 0.005000 USD",
        "above its deposit of 0.004000 USD",
    ];
    for part in expect {
        assert_eq!(
            found.iter().filter(|d| d.contains(part)).count(),
            1,
            "{part}: {found:#?}"
        );
    }
    assert_eq!(found.len(), expect.len(), "{found:#?}");
    assert_eq!(report.unfinished, 1);
    let id = AttemptId(id16(7));
    assert!(
        ledger
            .attempt(&id)
            .await
            .unwrap()
            .unwrap()
            .final_row
            .is_none()
    );
    running.stop().await;
}

#[tokio::test]
async fn the_limit_of_a_channel_is_its_newest_deposit_and_what_was_settled_since() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(&dir.path().join("ledger.db")).await;
    let paid = |amount| {
        Row::Settlement(SettlementRow {
            at_ms: T0,
            role: Role::Sell,
            channel: channel_id(1),
            peer: peer(1),
            amount: MicroUsd(amount),
            note: String::new(),
        })
    };
    let with_deposit = |deposit| {
        Row::Channel(ChannelRow {
            deposit: MicroUsd(deposit),
            ..channel(Role::Sell, 1, T0)
        })
    };
    let rows = vec![with_deposit(100), paid(7), with_deposit(300), paid(20)];
    for row in rows {
        running.ledger.commit(vec![row]).await.unwrap();
    }
    let up_to_it = Row::Voucher(voucher(Role::Sell, 1, 320, None));
    running.ledger.commit(vec![up_to_it]).await.unwrap();
    let state = running.ledger.load(Role::Sell).await.unwrap().remove(0);
    assert_eq!(state.limit, MicroUsd(320));
    assert_eq!(state.settlements_sum, MicroUsd(27));
    let report = verify(&running.ledger, &AuditOptions::default())
        .await
        .unwrap();
    assert!(report.differences.is_empty(), "{:?}", report.differences);
}
