//! Rows and helpers for this module's tests.

use std::path::Path;
use std::sync::Arc;

use sqlx::Connection as _;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::types::{
    AttemptId, ChannelId, EvmAddress, Hash32, IntentId, ManualClock, MicroUsd, ModelId, PeerId,
    PriceTable, Purpose, RequestId, Stage, Step, Usage,
};

/// A ledger with its writer running.
pub(super) struct Running {
    pub(super) ledger: Ledger,
    cancel: CancellationToken,
    pub(super) task: JoinHandle<Result<(), LedgerError>>,
}

#[allow(clippy::disallowed_methods, reason = "tests have no task tracker")]
pub(super) async fn start_with(path: &Path, checkpoint_rows: u32) -> Running {
    let settings = Settings {
        checkpoint_rows,
        signer: None,
    };
    let clock = Arc::new(ManualClock::new(1_700_000_000_000));
    let (ledger, writer) = Ledger::open(path, clock, settings).await.unwrap();
    let cancel = CancellationToken::new();
    let task = tokio::spawn(writer.run(cancel.clone()));
    Running {
        ledger,
        cancel,
        task,
    }
}

pub(super) async fn start(path: &Path) -> Running {
    start_with(path, Settings::default().checkpoint_rows).await
}

impl Running {
    /// Drains, commits and closes.
    pub(super) async fn stop(self) {
        self.cancel.cancel();
        self.task.await.unwrap().unwrap();
        self.ledger.reader().pool.close().await;
    }
    /// As a power cut would: nothing is flushed. A write that had reached the database's own thread is
    /// waited for: a dead process leaves none that goes on beside its successor.
    pub(super) async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
        self.ledger.reader().pool.close().await;
        let options = sqlx::sqlite::SqliteConnectOptions::new()
            .filename(&self.ledger.reader().path)
            .busy_timeout(std::time::Duration::from_secs(60));
        let mut after = sqlx::SqliteConnection::connect_with(&options)
            .await
            .unwrap();
        for sql in ["begin immediate", "rollback"] {
            sqlx::query(sql).execute(&mut after).await.unwrap();
        }
        after.close().await.unwrap();
    }
}

pub(super) fn peer(n: u8) -> PeerId {
    // The identity multihash of a protobuf ed25519 public key, without computing a key.
    let mut bytes = vec![0, 36, 8, 1, 18, 32];
    bytes.extend([n; 32]);
    PeerId::from_bytes(&bytes).unwrap()
}

pub(super) fn id16(n: u64) -> [u8; 16] {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    id[8..].copy_from_slice(&n.to_be_bytes());
    id
}

pub(super) fn channel_id(n: u8) -> ChannelId {
    ChannelId([n; 32])
}

pub(super) fn price() -> PriceTable {
    PriceTable {
        input: 2_500_000,
        cache_read: 250_000,
        cache_write: 3_000_000,
        output: 10_000_000,
    }
}

pub(super) fn channel(role: Role, n: u8, at_ms: u64) -> ChannelRow {
    ChannelRow {
        at_ms,
        role,
        channel: channel_id(n),
        peer: peer(n),
        mode: "credit".to_owned(),
        descriptor: vec![n; 100],
        epoch: 0,
        deposit: MicroUsd::from_usd(1000),
        open_signature: [n; 64],
    }
}

pub(super) fn open(role: Role, n: u64, chan: u8, at_ms: u64) -> OpenRow {
    OpenRow {
        at_ms,
        attempt_id: AttemptId(id16(n)),
        request_id: RequestId(id16(n + 1_000_000_000)),
        attempt: 1,
        role,
        peer: peer(chan),
        client: "openclaw".to_owned(),
        model_asked: "GPT-4o".to_owned(),
        model: ModelId::new("openai/gpt-4o"),
        offer_hash: Hash32([chan; 32]),
        price: price(),
        channel: channel_id(chan),
        max_cost: MicroUsd(1_000_000),
        prefill: MicroUsd(500),
        voucher_before: MicroUsd(0),
        signed_head: vec![1; 300],
    }
}

pub(super) fn usage() -> Usage {
    Usage {
        input: 1000,
        cache_read: 200,
        cache_write: 0,
        output: 300,
        reasoning: 100,
    }
}

pub(super) fn delivered(n: u64, at_ms: u64, cost: u64) -> DeliveredRow {
    DeliveredRow {
        at_ms,
        attempt_id: AttemptId(id16(n)),
        status: 200,
        usage: Some(usage()),
        own_input: Some(1001),
        own_output: Some(299),
        cost: MicroUsd(cost),
        receipt: Some(vec![2; 200]),
    }
}

pub(super) fn accepted(n: u64, at_ms: u64, billed: u64) -> FinalRow {
    FinalRow {
        at_ms,
        attempt_id: AttemptId(id16(n)),
        outcome: Outcome::Accepted,
        status: 200,
        billed: MicroUsd(billed),
        model_served: "gpt-4o-2024-11-20".to_owned(),
        usage: Some(usage()),
        own_input: Some(1001),
        own_output: Some(299),
        ttft_ms: Some(210),
        total_ms: 1900,
        disputed: false,
        receipt: Some(vec![2; 200]),
        error: None,
    }
}

pub(super) fn voucher(role: Role, chan: u8, cumulative: u64, attempt: Option<u64>) -> VoucherRow {
    VoucherRow {
        at_ms: 1_700_000_000_000,
        role,
        channel: channel_id(chan),
        cumulative: MicroUsd(cumulative),
        signature: [3; 65],
        attempt: attempt.map(|n| AttemptId(id16(n))),
    }
}

/// A whole bought request: rows in the order a node writes them.
pub(super) fn request(role: Role, n: u64, chan: u8, at_ms: u64, before: u64) -> Vec<Row> {
    let mut paid = voucher(role, chan, before + 5000, Some(n));
    paid.at_ms = at_ms;
    vec![
        Row::Open(open(role, n, chan, at_ms)),
        Row::Voucher(paid),
        Row::Delivered(delivered(n, at_ms + 10, 5000)),
        Row::Final(accepted(n, at_ms + 11, 5000)),
    ]
}

pub(super) const HUB: EvmAddress = EvmAddress([5; 20]);
pub(super) const SENDER: EvmAddress = EvmAddress([6; 20]);

pub(super) fn intent(n: u8, nonce: u64, chan: Option<u8>) -> IntentRow {
    IntentRow {
        at_ms: 1_700_000_000_000,
        intent: IntentId([n; 16]),
        chain_id: 8453,
        sender: SENDER,
        nonce,
        target: Some(HUB),
        value: 0,
        calldata: vec![1, 2, 3],
        calldata_hash: Hash32([9; 32]),
        gas_limit: 100_000,
        purpose: Purpose::Settle,
        channel: chan.map(channel_id),
        gain: MicroUsd(1_000_000),
    }
}

pub(super) fn sent(n: u8, tx: u8) -> SentRow {
    SentRow {
        at_ms: 1_700_000_000_001,
        intent: IntentId([n; 16]),
        tx: Hash32([tx; 32]),
        max_fee: 2_000_000_000,
        max_priority_fee: 1_000_000,
        raw: vec![2, tx],
    }
}

pub(super) fn outcome(n: u8, tx: Option<u8>, step: Step) -> OutcomeRow {
    OutcomeRow {
        at_ms: 1_700_000_000_002,
        intent: IntentId([n; 16]),
        step,
        tx: tx.map(|tx| Hash32([tx; 32])),
        block: tx.map(|tx| (77, Hash32([tx; 32]))),
        succeeded: true,
        fee: 44_400,
    }
}

pub(super) fn event(index: u64, stage: Stage) -> EventRow {
    EventRow {
        at_ms: 1_700_000_000_003,
        chain_id: 8453,
        hub: HUB,
        stage,
        kind: "settled".to_owned(),
        channel: Some(channel_id(1)),
        amount: MicroUsd(7),
        block: (70 + index, Hash32([8; 32])),
        tx: Hash32([7; 32]),
        log_index: index,
        topics: vec![Hash32([1; 32]), Hash32([2; 32])],
        data: vec![3; 64],
    }
}

pub(super) fn cursor(number: u64) -> CursorRow {
    CursorRow {
        at_ms: 1_700_000_000_004,
        chain_id: 8453,
        hub: HUB,
        block: (number, Hash32([4; 32])),
    }
}

/// A transaction's whole life and an event's, and some that are under way.
pub(super) fn onchain_rows() -> Vec<Row> {
    vec![
        Row::Intent(intent(1, 0, Some(1))),
        Row::Sent(sent(1, 1)),
        Row::Outcome(outcome(1, Some(1), Step::Mined)),
        Row::Outcome(outcome(1, Some(1), Step::Reorged)),
        Row::Event(event(0, Stage::Seen)),
        Row::Event(event(0, Stage::Confirmed)),
        Row::Event(event(1, Stage::Seen)),
        Row::Event(event(1, Stage::Removed)),
        Row::Event(event(2, Stage::Seen)),
        Row::Cursor(cursor(60)),
    ]
}
