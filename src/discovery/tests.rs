//! Discovery over real loopback swarms.
#![allow(
    clippy::disallowed_methods,
    reason = "tests spawn what the composition root would"
)]
use super::*;
use crate::network::tests::{NET, Node, QUIC, TCP, own, run, run_apart, settings, until, within};
use crate::network::{Handle, Protocol};
use crate::protocol::offer::{Offer, SignedOffer};
use crate::types::{Clock, ModelId, SystemClock};
use bytes::Bytes;
use ed25519_dalek::Signer;
use futures::FutureExt;
use futures::future::BoxFuture;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// What is there is found within this, on a loaded machine too.
const PATIENCE: Duration = Duration::from_secs(100);

/// Tries at what is to be quick: a loaded machine may be slow at one of them.
const TRIES: u64 = 10;

fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock)
}

async fn make_offer(node: &Node, model: &str) -> SignedOffer {
    let local = node.handle.local_peer();
    let mut offer = Offer::new(NET, local, ModelId::new(model), SystemClock.now_ms());
    offer.addrs = node.handle.raw_listeners().await;
    offer.addrs.truncate(4);
    offer.price.output = 1_000_000;
    SignedOffer::sign(offer, |m| node.key.sign(m).to_bytes()).unwrap()
}

struct Seller {
    node: Node,
    announcer: Announcer,
}

async fn sell(node: Node, models: &[&str]) -> Seller {
    let (announcer, runner) = Announcer::new(node.handle.clone(), NET, clock());
    tokio::spawn(runner.run(node.cancel.clone()));
    let mut offers = Vec::new();
    for model in models {
        offers.push(make_offer(&node, model).await);
    }
    announcer.set_offers(offers);
    Seller { node, announcer }
}

fn buy_with(handle: &Handle, cancel: &CancellationToken, cache: Arc<dyn OfferCache>) -> OfferBook {
    let (book, runner) = OfferBook::new(handle.clone(), NET, clock(), cache);
    tokio::spawn(runner.run(cancel.clone()));
    book
}

fn buy(node: &Node) -> OfferBook {
    buy_with(&node.handle, &node.cancel, Arc::new(NoCache))
}

/// A buyer does not serve the DHT.
fn buyer(seed: u64, bootstrap: &[String]) -> Node {
    run(crate::network::Settings {
        server: Some(false),
        ..settings(seed, &[], bootstrap)
    })
}

#[derive(Default)]
struct Memory(parking_lot::Mutex<Vec<Arc<SignedOffer>>>);

impl OfferCache for Memory {
    fn load(&self) -> BoxFuture<'_, Vec<Bytes>> {
        let list = self.0.lock().iter().map(|o| o.bytes.clone()).collect();
        async move { list }.boxed()
    }
    fn save(&self, offers: Vec<Arc<SignedOffer>>) -> BoxFuture<'_, ()> {
        self.0.lock().extend(offers);
        async {}.boxed()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_buyer_that_knows_of_nothing_asks_its_peers_again_soon() {
    let boot = run(settings(140, &[QUIC], &[]));
    let list = boot.handle.listeners().await;
    let node = buyer(141, &list);
    let book = buy(&node);
    until(10, || node.handle.is_connected(&boot.handle.local_peer())).await;
    // Its first look around, at an empty market, is over.
    tokio::time::sleep(Duration::from_secs(2)).await;
    // Neither meets the other: what is sold is heard of at the bootstrap node alone.
    let hidden = crate::network::Settings {
        server: Some(false),
        ..settings(142, &[], &list)
    };
    let seller = sell(run(hidden), &["first"]).await;
    until(30, || book.models().len() == 1).await;
    assert!(!node.handle.is_connected(&seller.node.handle.local_peer()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fresh_buyer_finds_all_30_sellers_through_one_bootstrap() {
    let boot = run(settings(100, &[QUIC], &[]));
    let list = boot.handle.listeners().await;
    let mut sellers = Vec::new();
    for seed in 101..131 {
        sellers.push(
            sell(
                run(settings(seed, &[QUIC], &list)),
                &["shared", &format!("own-{seed}")],
            )
            .await,
        );
    }
    for seller in &sellers {
        let mut status = seller.announcer.watch();
        within(60, status.wait_for(|s| s.confirmed == 2))
            .await
            .unwrap();
    }
    let start = Instant::now();
    let node = buyer(99, &list);
    let book = buy(&node);
    let model = ModelId::new("shared");
    let found = book.find(&model, PATIENCE).await;
    assert!(matches!(found, Found::Offers(_)), "{found:?}");
    println!("first offers after {:?}", start.elapsed());
    until(20, || book.offers(&model).len() == 30).await;
    println!("all 30 after {:?}", start.elapsed());
    until(20, || book.models().len() == 31).await;
    let shown = book
        .models()
        .into_iter()
        .find(|m| m.model == model)
        .unwrap();
    assert_eq!(shown.sellers, 30);
    let one = book.offers(&model)[7].clone();
    assert_eq!(book.by_hash(&one.hash), Some(one.clone()));
    // Any of them can be reached by what the offer says.
    within(10, node.handle.open(&one.offer.seller, Protocol::Session))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_bootstrap_gets_the_offers_again() {
    let boot = run_apart(settings(140, &[&own(TCP)], &[]));
    let list = boot.handle.listeners().await;
    let bare = list[0].split("/p2p/").next().unwrap().to_owned();
    let seller = sell(run(settings(141, &[TCP], &list)), &["m"]).await;
    let mut status = seller.announcer.watch();
    within(30, status.wait_for(|s| s.confirmed == 1))
        .await
        .unwrap();
    boot.kill();
    until(30, || seller.node.handle.connected_peers().is_empty()).await;
    // The port may linger for a moment.
    let again = within(20, async {
        loop {
            let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                run_apart(settings(140, &[&bare], &[]))
            }));
            match made {
                Ok(node) => return node,
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    })
    .await;
    until(40, || !seller.node.handle.connected_peers().is_empty()).await;
    let peer = again.handle.local_peer();
    let asker = buyer(142, &list);
    until(20, || asker.handle.is_connected(&peer)).await;
    within(20, async {
        // The bootstrap itself holds the offer again: ask it alone.
        while asker
            .handle
            .pull_catalogue(&peer)
            .await
            .is_none_or(|set| set.is_empty())
        {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_known_peers_delay_nobody() {
    /// Less than a dead one is given up after.
    const COLD_START_MAX: Duration = Duration::from_secs(3);
    let boot = run(settings(150, &[QUIC], &[]));
    let list = boot.handle.listeners().await;
    let seller = sell(run(settings(151, &[QUIC], &list)), &["m"]).await;
    let mut status = seller.announcer.watch();
    within(30, status.wait_for(|s| s.confirmed == 1))
        .await
        .unwrap();
    let mut known: Vec<_> = (0..3u16)
        .map(|i| {
            let gone = crate::protocol::offer::tests::seller(160 + u64::from(i)).1;
            (gone, vec![format!("/ip4/127.0.0.1/udp/{}/quic-v1", 9 + i)])
        })
        .collect();
    known.push((boot.handle.local_peer(), list.clone()));
    known.push((
        seller.node.handle.local_peer(),
        seller.node.handle.listeners().await,
    ));
    let mut took = Duration::MAX;
    for seed in 0..TRIES {
        let start = Instant::now();
        let node = run(crate::network::Settings {
            known_peers: known.clone(),
            server: Some(false),
            ..settings(1_630 + seed, &[], &[])
        });
        let book = buy(&node);
        let found = book.find(&ModelId::new("m"), PATIENCE).await;
        let Found::Offers(offers) = found else {
            panic!("{found:?}");
        };
        let open = node.handle.open(&offers[0].offer.seller, Protocol::Infer);
        within(3, open).await.unwrap();
        took = took.min(start.elapsed());
        if took < COLD_START_MAX {
            break;
        }
    }
    println!("cold start with three of five dead: {took:?}");
    assert!(took < COLD_START_MAX, "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_warm_start_has_its_offers_without_any_network() {
    let cache = Arc::new(Memory::default());
    let node = run(settings(170, &[QUIC], &[]));
    let made = make_offer(&node, "m").await;
    {
        let cancel = CancellationToken::new();
        let (book, runner) = OfferBook::new(node.handle.clone(), NET, clock(), cache.clone());
        let task = tokio::spawn(runner.run(cancel.clone()));
        assert!(book.add(&made.bytes));
        assert!(!book.add(&made.bytes));
        cancel.cancel();
        within(5, task).await.unwrap();
    }
    assert_eq!(cache.0.lock().len(), 1);
    // A forged line in the cache is not believed.
    let mut forged = SignedOffer::clone(&made);
    let mut bytes = made.bytes.to_vec();
    bytes[60] ^= 1;
    forged.bytes = bytes.into();
    cache.0.lock().push(Arc::new(forged));
    let fresh = buyer(171, &[]);
    let book = buy_with(&fresh.handle, &fresh.cancel, cache);
    let found = book.find(&ModelId::new("m"), PATIENCE).await;
    assert!(matches!(found, Found::Offers(list) if list.len() == 1 && *list[0] == made));
    assert_eq!(book.len(), 1);
    assert!(!book.is_ready());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_model_is_unknown_only_after_somebody_was_asked() {
    let alone = buyer(180, &[]);
    let book = buy(&alone);
    let unknown = ModelId::new("x");
    let found = within(2, book.find(&unknown, Duration::from_millis(400))).await;
    assert!(matches!(found, Found::NotReady), "{found:?}");
    let boot = run(settings(181, &[QUIC], &[]));
    let node = buyer(182, &boot.handle.listeners().await);
    let book = buy(&node);
    assert!(book.wait_ready(PATIENCE).await);
    let found = book.find(&ModelId::new("x"), PATIENCE).await;
    assert!(matches!(found, Found::Unknown), "{found:?}");
    // Not asked again, so said at once.
    let mut took = Duration::MAX;
    for _ in 0..TRIES {
        let start = Instant::now();
        let found = book.find(&ModelId::new("x"), PATIENCE).await;
        assert!(matches!(found, Found::Unknown), "{found:?}");
        took = took.min(start.elapsed());
    }
    assert!(took < Duration::from_millis(100), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_withdrawn_model_disappears_and_a_new_price_replaces_the_old() {
    let boot = run(settings(190, &[QUIC], &[]));
    let list = boot.handle.listeners().await;
    let seller = sell(run(settings(191, &[QUIC], &list)), &["m", "n"]).await;
    let mut status = seller.announcer.watch();
    within(30, status.wait_for(|s| s.confirmed == 2))
        .await
        .unwrap();
    let node = buyer(192, &list);
    let book = buy(&node);
    let (m, n) = (ModelId::new("m"), ModelId::new("n"));
    assert!(matches!(book.find(&m, PATIENCE).await, Found::Offers(_)));
    until(10, || book.models().len() == 2).await;
    let old = book.offers(&m)[0].clone();
    let grave = old.offer.tombstone(SystemClock.now_ms());
    let grave = SignedOffer::sign(grave, |b| seller.node.key.sign(b).to_bytes()).unwrap();
    let mut dear = Offer {
        seq: SystemClock.now_ms(),
        ..book.offers(&n)[0].offer.clone()
    };
    dear.not_after = dear.seq + 600_000;
    dear.price.output = 5_000_000;
    let dear = SignedOffer::sign(dear, |b| seller.node.key.sign(b).to_bytes()).unwrap();
    seller.announcer.set_offers(vec![grave, dear.clone()]);
    within(
        30,
        status.wait_for(|s| s.at_ms > dear.offer.seq && s.confirmed == 2),
    )
    .await
    .unwrap();
    let late = buyer(193, &list);
    let fresh = buy(&late);
    assert!(matches!(fresh.find(&n, PATIENCE).await, Found::Offers(l) if *l[0] == dear));
    assert!(matches!(fresh.find(&m, PATIENCE).await, Found::Unknown));
    assert_eq!(fresh.models().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn six_hundred_free_keys_do_not_hide_the_honest_seller() {
    use crate::protocol::offer::{SetHeader, catalogue_key, encode_set, model_key};
    let boot = run(settings(200, &[QUIC], &[]));
    let list = boot.handle.listeners().await;
    let mut others = Vec::new();
    for seed in 201..205 {
        others.push(run(settings(seed, &[QUIC], &list)));
    }
    let honest = sell(run(settings(205, &[QUIC], &list)), &["m"]).await;
    let mut status = honest.announcer.watch();
    within(30, status.wait_for(|s| s.confirmed == 1))
        .await
        .unwrap();
    let model = ModelId::new("m");
    let mut free: Vec<Bytes> = Vec::new();
    for seed in 10_000..10_600u64 {
        let mut offer = crate::protocol::offer::tests::offer(seed, "m", SystemClock.now_ms());
        offer.price = crate::types::PriceTable::default();
        free.push(crate::protocol::offer::tests::signed(seed, offer).bytes);
    }
    // Two attackers, each within the rate a peer has.
    for (seed, part) in [(206, &free[..300]), (207, &free[300..])] {
        let attacker = buyer(seed, &list);
        until(10, || {
            attacker.handle.is_connected(&boot.handle.local_peer())
        })
        .await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        for set in part.chunks(60) {
            let set = encode_set(SetHeader::default(), set, 48 * 1024);
            within(
                20,
                attacker
                    .handle
                    .put_offers(model_key(NET, &model, 0), set.clone()),
            )
            .await;
            within(
                20,
                attacker.handle.put_offers(catalogue_key(NET, &model), set),
            )
            .await;
        }
    }
    let mut hits = 0;
    for seed in 210..214 {
        let node = buyer(seed, &list);
        let book = buy(&node);
        book.want(&model);
        let me = honest.node.handle.local_peer();
        let search = async {
            while !book.offers(&model).iter().any(|o| o.offer.seller == me) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        hits += usize::from(tokio::time::timeout(PATIENCE, search).await.is_ok());
        let signatures = book.offers(&model);
        assert!(
            signatures.iter().all(|o| SignedOffer::decode_and_verify(
                &o.bytes,
                NET,
                SystemClock.now_ms()
            )
            .is_ok())
        );
    }
    assert_eq!(hits, 4);
}
