//! The buyer's control API over a real socket, with a real ledger and a network of one.

use std::time::Duration;

use super::*;
use crate::discovery::NoCache;
use crate::http::guard;
use crate::http::server::Server;
use crate::keys::{Identity, NodeKeys, PaymentKey};
use crate::payment::WindowSettings;
use crate::payment::payer;
use crate::protocol::offer::{Offer, SignedOffer};
use crate::tasks::Tasks;
use crate::types::{ModelId, Secret, SystemClock};

const NET: &str = "souk-test";
const TOKEN: &str = "control-token";

struct Node {
    url: String,
    tasks: Tasks,
    budget: Budget,
    ledger: Ledger,
    book: OfferBook,
    client: reqwest::Client,
    _dir: tempfile::TempDir,
}

async fn start() -> Node {
    drop(rustls::crypto::ring::default_provider().install_default());
    let (tasks, dir) = (Tasks::new(), tempfile::tempdir().unwrap());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let path = dir.path().join("ledger.db");
    let opened = Ledger::open(&path, clock.clone(), crate::ledger::Settings::default()).await;
    let (ledger, writer) = opened.unwrap();
    let stop = tasks.cancelled();
    tasks.spawn("writer", async move { writer.run(stop).await.unwrap() });
    let payment = PaymentKey::generate();
    let keys = NodeKeys {
        identity: Identity::from_seed(&[7; 32]),
        voucher: payment.clone(),
        payment,
    };
    let settings = crate::network::Settings::new(Secret::new([7; 32]));
    let (network, _incoming, _runner) = crate::network::start(settings, clock.clone()).unwrap();
    let (book, _runner) = OfferBook::new(network.clone(), NET, clock.clone(), Arc::new(NoCache));
    let settings = payer::Settings {
        network: NET.to_owned(),
        windows: WindowSettings::default(),
        handshake_timeout: Duration::from_secs(1),
        device: 0,
        onchain: None,
    };
    let budget = Budget::new(clock.clone());
    let payer = PayerHub::restore(
        ledger.clone(),
        network.clone(),
        keys.clone(),
        clock.clone(),
        tasks.clone(),
        Arc::new(budget.clone()),
        settings,
    );
    let server = Server::bind(server::Settings {
        port: 0,
        ..server::Settings::default()
    });
    let server = server.await.unwrap();
    let guard = Guard::new(&guard::Settings {
        port: server.local_addr().port(),
        control: Some(Secret::new(TOKEN.to_owned())),
        ..guard::Settings::default()
    });
    let control = Control::new(ControlParts {
        peer: keys.identity.peer_id(),
        evm_address: "0xabc".to_owned(),
        network,
        book: book.clone(),
        pipelines: Arc::new(|| serde_json::json!({ "pipelines": [], "privacy": "" })),
        router: crate::router::Router::new(
            crate::router::Settings::default(),
            Arc::new(crate::types::SystemClock),
            1,
        ),
        payer: payer.await.unwrap(),
        wallet: None,
        ledger: ledger.clone(),
        budget: budget.clone(),
        started_ms: clock.now_ms(),
        clock,
        guard: guard.clone(),
        metrics: None,
    });
    let url = format!("http://{}", server.local_addr());
    let (own, stop) = (tasks.clone(), tasks.cancelled());
    let serving = async move { server.run(guard, Arc::new(control), &own, stop).await };
    tasks.spawn("server", serving);
    Node {
        url,
        tasks,
        budget,
        ledger,
        book,
        client: reqwest::Client::builder().no_proxy().build().unwrap(),
        _dir: dir,
    }
}

impl Node {
    async fn get(&self, path: &str) -> (u16, Value) {
        let answer = self.client.get(format!("{}{path}", self.url)).send().await;
        read(answer.unwrap()).await
    }
    async fn post(&self, path: &str, token: &str, body: &str) -> (u16, Value) {
        let request = self.client.post(format!("{}{path}", self.url));
        let request = request.bearer_auth(token).body(body.to_owned());
        read(request.send().await.unwrap()).await
    }
}

async fn read(answer: reqwest::Response) -> (u16, Value) {
    let status = answer.status().as_u16();
    let bytes = answer.bytes().await.unwrap();
    (status, serde_json::from_slice(&bytes).unwrap_or_default())
}

#[tokio::test]
async fn the_port_tells_what_the_command_line_reads() {
    let node = start().await;
    let (status, body) = node.get("/api/status").await;
    assert_eq!((status, body["role"].as_str()), (200, Some("buy")));
    assert_eq!(body["money"]["spent_today_micro_usd"], 0);
    assert_eq!(body["money"]["wallet_micro_usd"], Value::Null);
    assert_eq!(body["requests"], json!([]));
    assert_eq!(node.get("/healthz").await.0, 200);
    assert_eq!(node.get("/readyz").await.0, 503);
    assert_eq!(node.get("/metrics").await.0, 503);
    assert_eq!(node.get("/api/ledger?by=model").await.1["rows"], json!([]));
    assert_eq!(node.get("/api/ledger?by=moon").await.0, 400);
    assert_eq!(node.get("/api/channels").await.1["channels"], json!([]));
    let (status, body) = node.get("/api/requests?limit=x").await;
    let code = body["error"]["code"].as_str();
    assert_eq!((status, code), (400, Some("invalid_request")));
    assert_eq!(node.get("/api/nothing").await.0, 404);
    assert_eq!(node.post("/api/status", TOKEN, "{}").await.0, 405);

    let seller = Identity::from_seed(&[9; 32]);
    let now_ms = SystemClock.now_ms();
    let mut offer = Offer::new(NET, seller.peer_id(), ModelId::new("m"), now_ms);
    offer.price.output = 1_000_000;
    let signed = SignedOffer::sign(offer, |message| seller.sign(message)).unwrap();
    assert!(node.book.add(&signed.bytes));
    node.book.mark_dead(&seller.peer_id());
    let (_, body) = node.get("/api/sellers").await;
    let row = &body["sellers"][0];
    assert_eq!(row["peer"], seller.peer_id().to_base58());
    assert_eq!(row["models"], json!(["m"]));
    assert_eq!(row["price_out_micro_usd"], 1_000_000);
    assert_eq!(row["state"], "set_aside");
    assert_eq!(row["quality"], Value::Null);
    node.tasks.shutdown(Duration::from_secs(60)).await.unwrap();
}

#[tokio::test]
async fn a_budget_is_set_with_the_control_token_only_and_is_durable() {
    let node = start().await;
    let body = r#"{"daily_usd":"5"}"#;
    let (status, error) = node.post("/api/budget", "guess", body).await;
    let code = error["error"]["code"].as_str();
    assert_eq!((status, code), (401, Some("control_token_required")));
    assert_eq!(node.budget.limits(&Scope::ALL), Limits::default());
    let (status, answer) = node.post("/api/budget", TOKEN, body).await;
    assert_eq!(
        (status, answer["daily_micro_usd"].as_u64()),
        (200, Some(5_000_000))
    );
    assert_eq!(
        node.budget.limits(&Scope::ALL).daily,
        Some(MicroUsd(5_000_000))
    );
    let kept = node.ledger.budgets().await.unwrap();
    assert_eq!(kept[0].daily, Some(MicroUsd(5_000_000)));
    let (_, shown) = node.get("/api/budget").await;
    assert_eq!(shown["monthly_micro_usd"], Value::Null);
    assert_eq!(node.post("/api/budget", TOKEN, "[]").await.0, 400);
    node.tasks.shutdown(Duration::from_secs(60)).await.unwrap();
}
