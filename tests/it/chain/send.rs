//! Transactions: deployed, opened, settled; through reorgs, gaps, raised fees and restarts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use souk::chain::digest::HubDomain;
use souk::chain::hub::{Hub, calls};
use souk::chain::journal::{Purpose, Record, Step};
use souk::chain::outbox::{Sender, SubmitError};
use souk::chain::transaction::{Unsigned, sign};
use souk::chain::{
    Answer, At, Block, Call, Chain, ChainError, Fees, LogQuery, NonceAt, RawLog, Receipt,
};
use souk::keys::{PaymentKey, to_checksum};
use souk::ledger::audit::{AuditOptions, verify};
use souk::ledger::{Ledger, Settings};
use souk::payment::evidence::Evidence;
use souk::payment::journal::LedgerJournal;
use souk::types::{EvmAddress, Hash32, MicroUsd, PeerId, SystemClock};

use super::{CONFIRMATIONS, CUMULATIVE, Market, request, steps};

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_is_trusted_only_with_its_own_code_on_its_own_chain() {
    let market = Market::start().await;
    let chain = market.world.chain.as_ref();
    Hub::check(chain, market.hub).await.unwrap();
    for hub in [market.token, EvmAddress([7; 20])] {
        let other = Hub::check(chain, HubDomain { hub, ..market.hub }).await;
        assert!(matches!(other, Err(ChainError::OtherContract { .. })));
    }
    let elsewhere = HubDomain {
        chain_id: market.hub.chain_id + 1,
        ..market.hub
    };
    let other = Hub::check(chain, elsewhere).await;
    assert!(matches!(other, Err(ChainError::OtherContract { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_opens_and_settles_and_the_buyer_needs_no_gas() {
    let market = Market::start().await;
    let sender = market.world.sender();
    market.world.mined(&sender, market.open(1)).await;
    assert_eq!(steps(&sender.poll().await.unwrap()), [Step::Mined]);
    let hub = Hub::check(market.world.chain.as_ref(), market.hub)
        .await
        .unwrap();
    let state = hub.channel(&market.id(1)).await.unwrap();
    assert_eq!(
        (state.deposit, state.settled),
        (MicroUsd::from_usd(5), MicroUsd(2_000))
    );

    let busy = sender.submit(market.settle(1)).await;
    assert!(
        matches!(busy, Err(SubmitError::Busy(_))),
        "the opening is not final yet"
    );
    market.world.anvil.mine(CONFIRMATIONS);
    assert_eq!(steps(&sender.poll().await.unwrap()), [Step::Confirmed]);
    market.world.mined(&sender, market.settle(1)).await;
    let state = hub.channel(&market.id(1)).await.unwrap();
    assert_eq!(state.settled, CUMULATIVE);
    let seller = market.world.seller.address();
    assert_eq!(hub.vault(market.token, seller).await.unwrap(), CUMULATIVE);
    let buyer = market.world.buyer.address();
    assert_eq!(market.world.chain.balance(buyer).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_transaction_is_named_and_costs_nothing() {
    let market = Market::start().await;
    let sender = market.world.sender();
    market.world.mined(&sender, market.open(1)).await;
    let mut forged = market.claim(1, CUMULATIVE);
    forged.cumulative = MicroUsd::from_usd(2);
    let data = calls::settle(&forged);
    let forged = request(Some(market.hub.hub), data, Purpose::Settle, None);
    let stored = market.world.journal.records().len();
    match sender.submit(forged).await {
        Err(SubmitError::Chain(ChainError::Reverted(word))) => assert_eq!(word, "BadSignature"),
        other => panic!("{other:?}"),
    }
    let data = calls::reclaim(&market.descriptor(1));
    match sender
        .submit(request(Some(market.hub.hub), data, Purpose::Reclaim, None))
        .await
    {
        Err(SubmitError::Chain(ChainError::Reverted(word))) => assert_eq!(word, "NotExpired"),
        other => panic!("{other:?}"),
    }
    assert_eq!(market.world.journal.records().len(), stored);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settlement_that_a_reorg_removed_is_sent_again() {
    let market = Market::start().await;
    let sender = market.world.sender();
    market.world.mined(&sender, market.open(1)).await;
    market.world.anvil.mine(CONFIRMATIONS);
    sender.poll().await.unwrap();
    let id = market.world.mined(&sender, market.settle(1)).await;
    assert_eq!(steps(&sender.poll().await.unwrap()), [Step::Mined]);
    let tx = market.world.newest_tx(id);
    market.world.anvil.rpc("anvil_setAutomine", json!([false]));
    market.world.anvil.rpc("anvil_reorg", json!([1, []]));
    // Whether the node kept it among the waiting ones or not: it is handed over again.
    market
        .world
        .anvil
        .rpc("anvil_dropAllTransactions", json!([]));
    assert_eq!(steps(&sender.poll().await.unwrap()), [Step::Reorged]);
    market.world.anvil.mine(1);
    assert_eq!(steps(&sender.poll().await.unwrap()), [Step::Mined]);
    assert_eq!(market.world.newest_tx(id), tx, "the same bytes");
    market.world.anvil.mine(CONFIRMATIONS);
    assert_eq!(steps(&sender.poll().await.unwrap()), [Step::Confirmed]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_transaction_is_replaced_by_one_that_pays_more() {
    let market = Market::start().await;
    let sender = market.world.sender();
    market.world.anvil.rpc("anvil_setAutomine", json!([false]));
    let id = sender.submit(market.open(1)).await.unwrap();
    let first = market.world.newest_tx(id);
    market.world.clock.advance(61_000);
    sender.poll().await.unwrap();
    let second = market.world.newest_tx(id);
    assert_ne!(first, second);
    market.world.anvil.mine(1);
    assert_eq!(steps(&sender.poll().await.unwrap()), [Step::Mined]);
    assert!(market.world.chain.receipt(first).await.unwrap().is_none());
    assert!(
        market
            .world
            .chain
            .receipt(second)
            .await
            .unwrap()
            .unwrap()
            .succeeded
    );
}

/// The nonce of the seller's next transaction.
async fn next_nonce(market: &Market) -> u64 {
    let seller = market.world.seller.address();
    let nonce = market.world.chain.nonce(seller, NonceAt::Latest);
    nonce.await.unwrap()
}

/// The chain forgets a transaction that waits.
fn drop_waiting(market: &Market, tx: &Hash32) {
    let params = json!([format!("0x{tx}")]);
    market.world.anvil.rpc("anvil_dropTransaction", params);
}

/// A transfer of nothing by the seller's key, sent past the outbox.
async fn foreign(market: &Market, nonce: u64) -> Hash32 {
    let signed = sign(
        &Unsigned {
            chain_id: market.hub.chain_id,
            nonce,
            to: Some(market.world.seller.address()),
            value: 0,
            data: vec![],
            gas_limit: 21_000,
            max_fee: 10_000_000_000,
            max_priority_fee: 2_000_000_000,
        },
        &market.world.seller,
    );
    market.world.chain.send(signed.raw).await.unwrap();
    signed.hash
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nonce_that_went_missing_is_filled() {
    let market = Market::start().await;
    let sender = market.world.sender();
    market.world.anvil.rpc("anvil_setAutomine", json!([false]));
    let nonce = next_nonce(&market).await;
    let gone = foreign(&market, nonce).await;
    let id = sender.submit(market.open(1)).await.unwrap();
    drop_waiting(&market, &gone);
    market.world.anvil.mine(1);
    assert!(
        market.world.receipt(id).await.is_none(),
        "it waits behind the gap"
    );
    sender.poll().await.unwrap();
    market.world.clock.advance(121_000);
    // The first poll remembers the filling, the second signs and sends it.
    sender.poll().await.unwrap();
    sender.poll().await.unwrap();
    market.world.anvil.mine(1);
    assert_eq!(
        steps(&sender.poll().await.unwrap()),
        [Step::Mined, Step::Mined]
    );
    assert!(market.world.receipt(id).await.unwrap().succeeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_transaction_in_the_place_of_ours_ends_it_once_final() {
    let market = Market::start().await;
    let sender = market.world.sender();
    market.world.anvil.rpc("anvil_setAutomine", json!([false]));
    let id = sender.submit(market.open(1)).await.unwrap();
    let ours = market.world.newest_tx(id);
    let nonce = next_nonce(&market).await;
    drop_waiting(&market, &ours);
    foreign(&market, nonce).await;
    market.world.anvil.mine(1);
    for _ in 0..5 {
        assert_eq!(
            sender.poll().await.unwrap(),
            vec![],
            "not before it is final"
        );
    }
    market.world.anvil.mine(CONFIRMATIONS);
    let mut ended = vec![];
    for _ in 0..3 {
        ended.extend(sender.poll().await.unwrap());
    }
    assert_eq!(steps(&ended), [Step::Displaced]);
    // The channel is free again, and the same work gets the next nonce.
    market.world.anvil.rpc("anvil_setAutomine", json!([true]));
    market.world.mined(&sender, market.open(1)).await;
    assert_eq!(steps(&sender.poll().await.unwrap()), [Step::Mined]);
}

/// A chain whose cable can be cut for transactions only.
struct Cut {
    inner: Arc<dyn Chain>,
    is_cut: AtomicBool,
}

impl Chain for Cut {
    fn chain_id(&self) -> Answer<'_, u64> {
        self.inner.chain_id()
    }
    fn block(&self, at: At) -> Answer<'_, Option<Block>> {
        self.inner.block(at)
    }
    fn logs(&self, query: LogQuery) -> Answer<'_, Vec<RawLog>> {
        self.inner.logs(query)
    }
    fn code(&self, address: EvmAddress) -> Answer<'_, Vec<u8>> {
        self.inner.code(address)
    }
    fn call_at(&self, call: Call, at: At) -> Answer<'_, Vec<u8>> {
        self.inner.call_at(call, at)
    }
    fn estimate_gas(&self, call: Call) -> Answer<'_, u64> {
        self.inner.estimate_gas(call)
    }
    fn fees(&self) -> Answer<'_, Fees> {
        self.inner.fees()
    }
    fn nonce(&self, account: EvmAddress, at: NonceAt) -> Answer<'_, u64> {
        self.inner.nonce(account, at)
    }
    fn balance(&self, account: EvmAddress) -> Answer<'_, u128> {
        self.inner.balance(account)
    }
    fn send(&self, raw: Vec<u8>) -> Answer<'_, ()> {
        if self.is_cut.load(Ordering::SeqCst) {
            let gone = Err(ChainError::Unreachable("cut by the test".to_owned()));
            return Box::pin(std::future::ready(gone));
        }
        self.inner.send(raw)
    }
    fn receipt(&self, tx: Hash32) -> Answer<'_, Option<Receipt>> {
        self.inner.receipt(tx)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_between_signing_and_broadcasting_sends_the_same_transaction_once() {
    let market = Market::start().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    let cut = Arc::new(Cut {
        inner: market.world.chain.clone(),
        is_cut: AtomicBool::new(true),
    });
    market.world.anvil.rpc("anvil_setAutomine", json!([false]));
    let mut hashes = vec![];
    for life in 0..3 {
        let clock = Arc::new(SystemClock);
        let (ledger, writer) = Ledger::open(&path, clock.clone(), Settings::default())
            .await
            .unwrap();
        let stop = tokio_util::sync::CancellationToken::new();
        let task = tokio::spawn(writer.run(stop.clone()));
        let journal = Arc::new(LedgerJournal(ledger.clone()));
        let mut settings = souk::chain::outbox::Settings::new(market.hub.chain_id, MicroUsd(1));
        settings.confirmations = Some(CONFIRMATIONS);
        let key = market.world.seller.clone();
        let sender = Sender::new(cut.clone(), journal, clock, key, settings);
        match life {
            0 => {
                sender.submit(market.open(1)).await.unwrap();
            }
            1 => {
                cut.is_cut.store(false, Ordering::SeqCst);
                sender.poll().await.unwrap();
                market.world.anvil.mine(1);
                assert_eq!(steps(&sender.poll().await.unwrap()), [Step::Mined]);
            }
            _ => {
                market.world.anvil.mine(CONFIRMATIONS);
                assert_eq!(steps(&sender.poll().await.unwrap()), [Step::Confirmed]);
            }
        }
        let seller = market.world.seller.address();
        let open = ledger
            .open_intents(market.hub.chain_id, &seller)
            .await
            .unwrap();
        hashes.extend(
            open.iter()
                .flat_map(|one| one.sent.iter().map(|sent| sent.tx)),
        );
        assert_eq!(open.is_empty(), life == 2);
        let me = PeerId::random();
        let options = AuditOptions {
            signatures: Arc::new(Evidence {
                me,
                network: "test".to_owned(),
            }),
            ..AuditOptions::default()
        };
        let report = verify(&ledger, &options).await.unwrap();
        assert_eq!((report.differences, report.transactions), (vec![], 1));
        stop.cancel();
        task.await.unwrap().unwrap();
    }
    assert_eq!(hashes.len(), 2);
    assert_eq!(hashes[0], hashes[1], "one transaction in both lives");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_without_gas_is_told_what_it_needs() {
    let market = Market::start().await;
    let poor = PaymentKey::generate();
    market.world.anvil.rpc(
        "anvil_setBalance",
        json!([to_checksum(&poor.address()), "0x1"]),
    );
    let settings = souk::chain::outbox::Settings::new(market.hub.chain_id, MicroUsd(1));
    let clock = Arc::new(market.world.clock.clone());
    let journal = market.world.journal.clone();
    let sender = Sender::new(market.world.chain.clone(), journal, clock, poor, settings);
    let refused = sender.submit(market.open(1)).await;
    assert!(
        matches!(refused, Err(SubmitError::NoGas { needed_wei, has_wei: 1 }) if needed_wei > 1),
        "{refused:?}"
    );
    let records = market.world.journal.records();
    assert!(!records.iter().any(|record| matches!(
        record,
        Record::Intent(intent) if intent.purpose == Purpose::Open
    )));
}
