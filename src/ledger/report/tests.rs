//! Reports against histories whose sums are known.

use jiff::tz::TimeZone;

use super::super::testing::*;
use super::super::*;
use super::*;
use crate::types::{AttemptId, MicroUsd};

/// 2026-03-29T00:30:00Z: summer time begins in Berlin half an hour later.
const T0: u64 = 1_774_744_200_000;
const HOUR: u64 = 3_600_000;

/// 40 requests bought and sold in turn, one an hour, the fifth of each side without usage; some
/// checkpoints in between.
async fn filled(path: &std::path::Path) -> Running {
    let running = start_with(path, 20).await;
    let ledger = &running.ledger;
    ledger
        .commit(vec![
            Row::Channel(channel(Role::Buy, 1, T0)),
            Row::Channel(channel(Role::Sell, 2, T0)),
        ])
        .await
        .unwrap();
    for n in 0..40u64 {
        let (role, chan) = if n % 2 == 0 {
            (Role::Buy, 1)
        } else {
            (Role::Sell, 2)
        };
        ledger
            .commit(request(role, n, chan, T0 + n * HOUR, n / 2 * 5000))
            .await
            .unwrap();
    }
    ledger
        .commit(vec![Row::Settlement(SettlementRow {
            at_ms: T0 + HOUR,
            role: Role::Sell,
            channel: channel_id(2),
            peer: peer(2),
            amount: MicroUsd(12_000),
            note: "cash \"in hand\"".to_owned(),
        })])
        .await
        .unwrap();
    running
}

#[tokio::test]
async fn every_grouping_adds_up_to_the_same_totals() {
    let dir = tempfile::tempdir().unwrap();
    let running = filled(&dir.path().join("ledger.db")).await;
    let all = Filter::default();
    for by in [
        GroupBy::Day,
        GroupBy::Month,
        GroupBy::Model,
        GroupBy::Client,
    ] {
        let summary = summary(&running.ledger, by, &all, &TimeZone::UTC)
            .await
            .unwrap();
        let [spent, earned] = summary.totals.as_slice() else {
            panic!("{:?}", summary.totals)
        };
        assert_eq!((spent.direction, earned.direction), ("spent", "earned"));
        assert_eq!((spent.requests, spent.billed_micro_usd), (20, 100_000));
        assert_eq!(spent.authorised_micro_usd, 100_000);
        assert_eq!(spent.settled_micro_usd, Some(0));
        assert_eq!(earned.settled_micro_usd, Some(12_000));
        assert_eq!(earned.pending_micro_usd, Some(88_000));
        assert_eq!(spent.output_tokens, Some(6000));
        let sum: u64 = summary.rows.iter().map(|row| row.billed_micro_usd).sum();
        assert_eq!(sum, 200_000);
        assert_eq!(summary.rows.iter().map(|row| row.requests).sum::<u64>(), 40);
    }
    let buyers = summary(&running.ledger, GroupBy::Buyer, &all, &TimeZone::UTC)
        .await
        .unwrap();
    assert_eq!(buyers.rows.len(), 1);
    assert_eq!(buyers.rows[0].key, peer(2).to_base58());
    assert_eq!(buyers.rows[0].pending_micro_usd, Some(88_000));
    let one = Filter {
        model: Some(crate::types::ModelId::new("other")),
        ..Filter::default()
    };
    let none = summary(&running.ledger, GroupBy::Day, &one, &TimeZone::UTC)
        .await
        .unwrap();
    assert!(none.rows.is_empty() && none.totals.is_empty());
    running.stop().await;
}

#[tokio::test]
async fn days_are_local_days_also_when_summer_time_begins() {
    let dir = tempfile::tempdir().unwrap();
    let running = filled(&dir.path().join("ledger.db")).await;
    let berlin = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
    let bought = Filter {
        role: Some(Role::Buy),
        ..Filter::default()
    };
    let days = summary(&running.ledger, GroupBy::Day, &bought, &berlin)
        .await
        .unwrap();
    let days: Vec<_> = days
        .rows
        .iter()
        .map(|r| (r.key.as_str(), r.requests))
        .collect();
    // From 01:30 CET; the 29th has 23 hours, so 22 hours are left: 00:30Z to 21:59Z, every 2 hours.
    assert_eq!(days, [("2026-03-29", 11), ("2026-03-30", 9)]);
    let part = Filter {
        since_ms: Some(T0 + 10 * HOUR),
        until_ms: Some(T0 + 20 * HOUR),
        ..bought
    };
    let part = summary(&running.ledger, GroupBy::Day, &part, &berlin)
        .await
        .unwrap();
    assert_eq!(part.totals[0].requests, 5);
    assert_eq!(part.totals[0].pending_micro_usd, None);
    running.stop().await;
}

#[tokio::test]
async fn what_was_not_reported_is_null_and_an_open_attempt_has_no_bill() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(&dir.path().join("ledger.db")).await;
    let ledger = &running.ledger;
    let mut silent = accepted(1, T0, 9);
    silent.usage = None;
    silent.ttft_ms = None;
    let mut failed = accepted(2, T0, 0);
    failed.outcome = Outcome::Failed;
    failed.error = Some("timeout".to_owned());
    ledger
        .commit(vec![
            Row::Channel(channel(Role::Buy, 1, T0)),
            Row::Open(open(Role::Buy, 1, 1, T0)),
            Row::Open(open(Role::Buy, 2, 1, T0)),
            Row::Open(open(Role::Buy, 3, 1, T0)),
            Row::Final(silent),
            Row::Final(failed),
        ])
        .await
        .unwrap();
    let local = Some(peer(7));
    let list = requests(ledger, &Filter::default(), local, 10)
        .await
        .unwrap();
    let [running_one, failed, silent] = list.as_slice() else {
        panic!("{list:?}")
    };
    assert_eq!(running_one.status, None);
    assert_eq!(running_one.billed_micro_usd, None);
    assert_eq!(running_one.settled, None);
    assert_eq!(failed.billed_micro_usd, Some(0));
    assert_eq!(failed.outcome.as_deref(), Some("failed"));
    assert_eq!(silent.input_tokens, None);
    assert_eq!(silent.ttft_ms, None);
    assert_eq!(silent.billed_micro_usd, Some(9));
    assert_eq!(silent.buyer, Some(peer(7).to_base58()));
    assert_eq!(silent.seller, Some(peer(1).to_base58()));
    let days = summary(ledger, GroupBy::Model, &Filter::default(), &TimeZone::UTC)
        .await
        .unwrap();
    assert_eq!(days.rows[0].input_tokens, Some(1000));
    running.stop().await;
}

#[tokio::test]
async fn settlements_cover_the_oldest_cost_first() {
    let dir = tempfile::tempdir().unwrap();
    let running = filled(&dir.path().join("ledger.db")).await;
    let sold = Filter {
        role: Some(Role::Sell),
        ..Filter::default()
    };
    let list = requests(&running.ledger, &sold, None, 100).await.unwrap();
    let settled: Vec<bool> = list.iter().rev().map(|r| r.settled.unwrap()).collect();
    assert_eq!(settled.len(), 20);
    assert_eq!(settled[..3], [true, true, false]); // 12 000 pays two of 5 000
    assert!(!settled[2..].contains(&true));
    let few = requests(&running.ledger, &sold, None, 3).await.unwrap();
    assert_eq!(few, list[..3]);
    assert_eq!(few[0].voucher_micro_usd, Some(100_000));
    running.stop().await;
}

#[tokio::test]
async fn exports_hold_every_attempt_and_beancount_balances() {
    let dir = tempfile::tempdir().unwrap();
    let running = filled(&dir.path().join("ledger.db")).await;
    let mut texts = Vec::new();
    for format in [
        ExportFormat::Csv,
        ExportFormat::Jsonl,
        ExportFormat::Beancount,
    ] {
        let mut out = Vec::new();
        let all = Filter::default();
        let zone = TimeZone::UTC;
        export(
            &running.ledger,
            &all,
            None,
            format,
            &zone,
            &mut out,
            &|_| {},
        )
        .await
        .unwrap();
        texts.push(String::from_utf8(out).unwrap());
    }
    let mut csv = csv::Reader::from_reader(texts[0].as_bytes());
    let at = csv
        .headers()
        .unwrap()
        .iter()
        .position(|h| h == "billed_micro_usd")
        .unwrap();
    let sum: u64 = csv
        .records()
        .map(|r| r.unwrap()[at].parse::<u64>().unwrap())
        .sum();
    assert_eq!(sum, 200_000);
    let first: serde_json::Value = serde_json::from_str(texts[1].lines().next().unwrap()).unwrap();
    assert_eq!(first["attempt_id"], AttemptId(id16(0)).to_string());
    assert_eq!(texts[1].lines().count(), 40);
    assert_eq!(texts[2].matches(" * ").count(), 41);
    assert!(texts[2].contains("cash \\\"in hand\\\""));
    assert!(texts[2].contains("Expenses:Souk:Openai-gpt-4o  0.005000 USD"));
    assert_eq!(texts[2].matches(" open ").count(), 5);
    running.stop().await;
}

#[tokio::test]
async fn a_shown_request_has_its_receipt_its_voucher_and_its_signatures() {
    let dir = tempfile::tempdir().unwrap();
    let running = filled(&dir.path().join("ledger.db")).await;
    let check = audit::NoSignatureCheck;
    let by_request = show(&running.ledger, id16(1_000_000_002), None, &check)
        .await
        .unwrap();
    let by_attempt = show(&running.ledger, id16(2), None, &check).await.unwrap();
    assert_eq!(by_request, by_attempt);
    assert_eq!(by_request.len(), 1);
    let shown = &by_request[0];
    assert_eq!(shown.receipt, Some("02".repeat(200)));
    assert_eq!(shown.vouchers[0].cumulative_micro_usd, 10_000);
    let what: Vec<_> = shown.signatures.iter().map(|s| (s.what, s.good)).collect();
    assert_eq!(
        what,
        [
            ("head", true),
            ("channel", true),
            ("voucher", true),
            ("receipt", true)
        ]
    );
    assert!(
        show(&running.ledger, [9; 16], None, &check)
            .await
            .unwrap()
            .is_empty()
    );
    running.stop().await;
}

#[test]
fn texts_from_peers_cannot_drive_a_terminal_or_a_spreadsheet() {
    assert_eq!(safe_text("a\u{1b}[31mb\n"), "a[31mb");
    assert_eq!(safe_text("=1+1"), "'=1+1");
    assert_eq!(safe_text("gpt-4o"), "gpt-4o");
}
