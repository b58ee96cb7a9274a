//! How words of the command line become questions to the ledger.

use super::*;
use crate::ledger::{ChannelRow, FinalRow, OpenRow, Outcome, Row};
use crate::types::{AttemptId, ChannelId, Hash32, ManualClock, PriceTable, RequestId, Usage};
use clap::Parser;

const NOON: u64 = 1_793_534_400_000; // 2026-11-01T12:00:00Z

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: LedgerArgs,
}

async fn ledger(env: &Env, words: &str) -> anyhow::Result<String> {
    let words = ["ledger"].into_iter().chain(words.split_whitespace());
    output(Line::try_parse_from(words)?.args, env).await
}

fn env(dir: &Path, json: bool) -> Env {
    Env {
        clock: Arc::new(ManualClock::new(NOON + 86_400_000)),
        zone: TimeZone::UTC,
        ..Env::new(dir, json)
    }
}

fn buyer() -> PeerId {
    "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp"
        .parse()
        .unwrap()
}

fn rows() -> Vec<Row> {
    let channel = ChannelId([1; 32]);
    let attempt_id = AttemptId([3; 16]);
    let usage = Usage {
        input: 1000,
        cache_read: 0,
        cache_write: 0,
        output: 100,
        reasoning: 0,
    };
    vec![
        Row::Channel(ChannelRow {
            at_ms: NOON,
            role: Role::Sell,
            channel,
            peer: buyer(),
            mode: "credit".to_owned(),
            descriptor: vec![],
            epoch: 0,
            deposit: MicroUsd(1_000_000),
            open_signature: [0; 64],
        }),
        Row::Open(OpenRow {
            at_ms: NOON,
            attempt_id,
            request_id: RequestId([2; 16]),
            attempt: 1,
            role: Role::Sell,
            peer: buyer(),
            client: String::new(),
            model_asked: "m".to_owned(),
            model: ModelId::new("m"),
            offer_hash: Hash32([5; 32]),
            price: PriceTable {
                input: 1_000_000,
                output: 2_000_000,
                ..PriceTable::default()
            },
            channel,
            max_cost: MicroUsd(5000),
            prefill: MicroUsd(0),
            voucher_before: MicroUsd(0),
            signed_head: vec![1],
        }),
        Row::Final(FinalRow {
            at_ms: NOON,
            attempt_id,
            outcome: Outcome::Accepted,
            status: 200,
            billed: MicroUsd(1200),
            model_served: "m-1\u{1b}[2J".to_owned(),
            usage: Some(usage),
            own_input: None,
            own_output: Some(101),
            ttft_ms: Some(12),
            total_ms: 60,
            disputed: false,
            receipt: Some(vec![9]),
            error: None,
        }),
    ]
}

async fn filled(dir: &Path) {
    let clock = Arc::new(ManualClock::new(NOON));
    let path = dir.join(LEDGER_FILE);
    let (ledger, writer) = Ledger::open(&path, clock, Settings::default())
        .await
        .unwrap();
    let cancel = CancellationToken::new();
    let fill = async {
        ledger.commit(rows()).await.unwrap();
        cancel.cancel();
    };
    let ((), written) = tokio::join!(fill, writer.run(cancel.clone()));
    written.unwrap();
}

#[tokio::test]
async fn reports_print_exact_decimals_and_never_a_zero_for_what_is_not_known() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let text = env(dir.path(), false);
    let day = ledger(&text, "").await.unwrap();
    assert!(
        day.contains("2026-11-01") && day.contains("0.001200"),
        "{day}"
    );
    assert!(day.contains("total"), "{day}");
    let list = ledger(&text, "requests").await.unwrap();
    assert!(list.contains("0.001200") && list.contains('–'), "{list}");
    assert!(!list.contains('\u{1b}'), "{list}");
    let csv = ledger(&text, "--by buyer --csv").await.unwrap();
    assert_eq!(csv.lines().count(), 3, "{csv}");
    let none = ledger(&text, "--last 1h").await.unwrap();
    assert!(!none.contains("0.001200"), "{none}");
    let here = ledger(&text, "--since 2026-11-01 --until 2026-11-01")
        .await
        .unwrap();
    assert!(here.contains("0.001200"), "{here}");
    assert!(ledger(&text, "--last 7x").await.is_err());
    assert!(ledger(&text, "--since soon").await.is_err());
    let id = "02".repeat(16);
    let shown = ledger(&text, &format!("show {id}")).await.unwrap();
    assert!(shown.contains("receipt") && shown.contains("09"), "{shown}");
    assert!(ledger(&text, "show 00").await.is_err());
    assert!(
        ledger(&text, &format!("show {}", "00".repeat(16)))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn the_json_names_of_a_request_are_those_of_the_interface() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let list = ledger(&env(dir.path(), true), "requests --limit 5")
        .await
        .unwrap();
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    let record = list[0].as_object().unwrap();
    let names = "time direction request_id client model model_served seller buyer status \
        input_tokens cached_tokens cache_write_tokens output_tokens reasoning_tokens \
        own_input_tokens own_output_tokens billed_micro_usd ttft_ms total_ms attempt channel \
        voucher_micro_usd settled attempt_id";
    for name in names.split_whitespace() {
        assert!(record.contains_key(name), "{name}");
    }
    assert_eq!(record["time"], "2026-11-01T12:00:00Z");
    assert_eq!(record["direction"], "earned");
    assert_eq!(record["buyer"], buyer().to_base58());
    assert_eq!(record["seller"], serde_json::Value::Null);
    assert_eq!(record["own_input_tokens"], serde_json::Value::Null);
    assert_eq!(record["billed_micro_usd"], 1200);
    assert_eq!(record["settled"], false);
}

#[tokio::test]
async fn settlements_and_budgets_are_booked_and_verify_stays_clean() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let env = env(dir.path(), true);
    let settle = format!("settle --peer {} --amount 0.0012", buyer());
    let dry = ledger(&env, &format!("{settle} --dry-run")).await.unwrap();
    let dry: serde_json::Value = serde_json::from_str(&dry).unwrap();
    assert_eq!(dry["owed_micro_usd"], 1200);
    assert_eq!(dry["owed_afterwards_micro_usd"], 0);
    let before: serde_json::Value =
        serde_json::from_str(&ledger(&env, "requests").await.unwrap()).unwrap();
    assert_eq!(before[0]["settled"], false, "nothing is booked");
    ledger(&env, &settle).await.unwrap();
    let other = PeerId::random();
    let unknown = ledger(&env, &format!("settle --peer {other} --amount 1")).await;
    assert!(
        unknown
            .unwrap_err()
            .to_string()
            .contains("no credit channel")
    );
    ledger(&env, "budget set --daily 5 --monthly 50")
        .await
        .unwrap();
    ledger(&env, "budget set --daily 2 --client alice --model m")
        .await
        .unwrap();
    let budgets = ledger(&env, "budget show").await.unwrap();
    let budgets: serde_json::Value = serde_json::from_str(&budgets).unwrap();
    assert_eq!(budgets[0]["daily_micro_usd"], 5_000_000);
    assert_eq!(budgets[1]["client"], "alice");
    assert_eq!(budgets[1]["daily_micro_usd"], 2_000_000);
    let list: serde_json::Value =
        serde_json::from_str(&ledger(&env, "requests").await.unwrap()).unwrap();
    assert_eq!(list[0]["settled"], true);
    let sums: serde_json::Value =
        serde_json::from_str(&ledger(&env, "--by buyer").await.unwrap()).unwrap();
    assert_eq!(sums["rows"][0]["settled_micro_usd"], 1200);
    assert_eq!(sums["rows"][0]["billed_micro_usd"], 1200);
    let report: serde_json::Value =
        serde_json::from_str(&ledger(&env, "verify").await.unwrap()).unwrap();
    assert_eq!(report["difference_count"], 0);
}

#[tokio::test]
async fn a_write_goes_through_the_running_node() {
    let dir = tempfile::tempdir().unwrap();
    let mut env = env(dir.path(), true);
    env.running = Some(Arc::new(|write| {
        Box::pin(async move {
            assert!(matches!(write, LedgerWrite::Settle { .. }));
            Ok(())
        })
    }));
    let settle = format!("settle --peer {} --amount $1.5", buyer());
    ledger(&env, &settle).await.unwrap();
}
