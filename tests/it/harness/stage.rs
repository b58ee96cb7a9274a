//! A seller of a pipeline's layers inside the test's process: the product's own seller, ledger and
//! payee around whatever [`StageService`] the test brings.

use std::sync::{Arc, OnceLock};

use futures::future::BoxFuture;

use souk::keys::{NodeKeys, Seed, WordCount};
use souk::ledger::{self, Ledger};
use souk::llm_api::{Dialect, TokenCounter};
use souk::network::{self, Handle};
use souk::payment::WindowSettings;
use souk::payment::payee::{self, PayeeHub};
use souk::pipeline::service::{Duplex, Peers, Stages};
use souk::pipeline::worker::Worker;
use souk::protocol::offer::{SignedOffer, StageTerms};
use souk::protocol::{SignedTerms, Terms};
use souk::seller::admission::{BuyerPolicy, Gate, Lives, Policies};
use souk::seller::catalogue::{Catalogue, ModelForSale, OfferFrame};
use souk::seller::limits::{LimitSettings, Limits};
use souk::seller::stage::StageService;
use souk::seller::{Parts, Seller, Settings};
use souk::tasks::Tasks;
use souk::types::{Clock, MicroUsd, PeerId, PriceTable, SystemClock};
use tokio_util::sync::CancellationToken;

use super::peer::{NETWORK, now_ms};

/// Credit of every payer.
const CREDIT: MicroUsd = MicroUsd::from_usd(1);

/// A seller's network, known only when it runs.
struct Later(Arc<OnceLock<Handle>>);

impl Peers for Later {
    fn open<'a>(&'a self, peer: &'a PeerId) -> BoxFuture<'a, Result<Box<dyn Duplex>, String>> {
        Peers::open(self.0.get().expect("it runs"), peer)
    }
    fn meet(&self, peer: &PeerId, addresses: &[Vec<u8>]) {
        Peers::meet(self.0.get().expect("it runs"), peer, addresses);
    }
}

/// A running one; it ends with the test.
pub struct StageSeller {
    pub handle: Handle,
    pub ledger: Ledger,
    pub payee: PayeeHub,
    pub offer: SignedOffer,
    tasks: Tasks,
    cancel: CancellationToken,
    _folder: tempfile::TempDir,
}

impl Drop for StageSeller {
    fn drop(&mut self) {
        self.tasks.cancel();
        self.cancel.cancel();
    }
}

impl StageSeller {
    /// Starts one whose layers a worker computes, for everybody.
    pub async fn layers(worker: Worker, terms: StageTerms, price: PriceTable) -> Self {
        let handle = Arc::new(OnceLock::new());
        let peers = Arc::new(Later(Arc::clone(&handle)));
        let stages = Arc::new(Stages::new(terms.manifest, worker, peers, Tasks::new()));
        let seller = Self::start(stages, terms, price, BuyerPolicy::default()).await;
        assert!(handle.set(seller.handle.clone()).is_ok());
        seller
    }

    /// Starts one on loopback that offers `terms` at `price`.
    pub async fn start(
        service: Arc<dyn StageService>,
        terms: StageTerms,
        price: PriceTable,
        policy: BuyerPolicy,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let seed = Seed::generate(WordCount::Twelve).unwrap();
        let keys = NodeKeys::from_seed(&seed, 0).unwrap();
        let (tasks, cancel) = (Tasks::new(), CancellationToken::new());
        let settings = ledger::Settings::default();
        let path = folder.path().join("ledger.db");
        let (ledger, writer) = Ledger::open(&path, Arc::clone(&clock), settings)
            .await
            .unwrap();
        tokio::spawn(writer.run(cancel.clone()));
        let settings = network::Settings {
            listen: vec!["/ip4/127.0.0.1/udp/0/quic-v1".to_owned()],
            mdns: false,
            ..network::Settings::new(keys.identity.secret_bytes())
        };
        let (handle, mut incoming, runner) = network::start(settings, Arc::clone(&clock)).unwrap();
        tokio::spawn(runner.run(cancel.clone()));

        let signed = terms_of(&keys);
        let frame = frame(signed.hash);
        let catalogue = Arc::new(Catalogue::new(keys.identity.clone()));
        let sale = [ModelForSale::stage(terms, price)];
        let offers = catalogue.publish(&sale, &frame, now_ms());
        let offer = offers.first().unwrap().clone();
        handle.set_local_offers(vec![offer.bytes.clone()]);
        let settings = payee::Settings {
            network: NETWORK.to_owned(),
            windows: WindowSettings::default(),
            credit_limit: CREDIT,
            credit_total: CREDIT,
            buyers_max: 100,
            onchain: None,
        };
        let payee = PayeeHub::restore(
            ledger.clone(),
            keys.clone(),
            Arc::clone(&clock),
            tasks.clone(),
            settings,
            signed,
        );
        let payee = payee.await.unwrap();
        let lives = Lives {
            started_ms: now_ms(),
            last_admission_ms: None,
        };
        let me = keys.identity.peer_id();
        let policies = Policies {
            answers: BuyerPolicy::default(),
            layers: policy,
        };
        let parts = Parts {
            gate: Gate::new(me, NETWORK.to_owned(), lives, policies, catalogue),
            payee: payee.clone(),
            upstream: None,
            stages: Some(Arc::clone(&service)),
            ledger: ledger.clone(),
            keys,
            clock: Arc::clone(&clock),
            tasks: tasks.clone(),
            counter: TokenCounter::new(),
            limits: Limits::new(LimitSettings::default(), now_ms()),
        };
        let settings = Settings {
            max_concurrent: 16,
            windows: WindowSettings::default(),
            idle_timeout: std::time::Duration::from_secs(60),
        };
        tokio::spawn(Seller::new(parts, settings).accept(incoming.infer, tasks.clone()));
        let hub = payee.clone();
        tokio::spawn(async move {
            while let Some((buyer, stream)) = incoming.session.recv().await {
                let hub = hub.clone();
                tokio::spawn(async move { hub.serve_session(buyer, stream).await });
            }
        });
        tokio::spawn(async move {
            while let Some((from, stream)) = incoming.rows.recv().await {
                tokio::spawn(service.rows(from, stream));
            }
        });
        Self {
            handle,
            ledger,
            payee,
            offer,
            tasks,
            cancel,
            _folder: folder,
        }
    }

    /// Where it listens, with its id.
    pub async fn listen(&self) -> String {
        self.handle.listeners().await.pop().expect("a listener")
    }
}

fn terms_of(keys: &NodeKeys) -> SignedTerms {
    let terms = Terms {
        seller: keys.identity.peer_id(),
        payment_address: keys.payment.address(),
        credit_limit: CREDIT,
        open_fee: MicroUsd::ZERO,
        reasoning_cap: 0,
        data_policy: String::new(),
        supported_parameters: Vec::new(),
        chain: None,
    };
    SignedTerms::sign(terms, &keys.identity)
}

fn frame(terms_hash: souk::types::Hash32) -> OfferFrame {
    OfferFrame {
        network: NETWORK.to_owned(),
        dialect: Dialect::Chat,
        completions: false,
        reasoning_cap: 0,
        terms_hash,
        free: false,
        addrs: Vec::new(),
    }
}
