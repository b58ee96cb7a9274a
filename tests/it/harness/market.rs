//! A whole market on loopback: a bootstrap node, sellers before scripted upstreams, a buyer.
//!
//! Each part is its own process and speaks only to the next, as in the wild: the buyer knows the
//! bootstrap node's address and nothing of the sellers.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::http::{self, Request, Response};
use super::node::{Home, Node};
use super::upstream::{Script, Upstream};

/// What a test waits for comes within this, on a machine that stalls for seconds too.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A market's buyer does not take a seller on a busy machine for a dead one: it has as long for its
/// first frame as for the next.
const PATIENT: [(&str, &str); 1] = [("SOUK_BUY_TIMEOUTS_OPEN", "12s")];

/// The model that every market sells, as buyers know it.
pub const MODEL: &str = "market/gpt-4o-mini";

/// The same model as the upstreams know it: shorter and longer ids must both splice.
pub const UPSTREAM_MODEL: &str = "gpt-4o-mini-2024-07-18";

/// The key that a seller presents to its upstream, and that must go nowhere else.
pub const UPSTREAM_KEY: &str = "sk-upstream-only-the-seller-knows";

/// A dialect of the buyer's HTTP side, with upstreams that speak it natively.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// OpenAI Chat Completions.
    Chat,
    /// Anthropic Messages.
    Messages,
}

impl Dialect {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Chat, Self::Messages];

    /// Returns the path of its endpoint.
    pub fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Messages => "/v1/messages",
        }
    }

    /// Returns a request for `MODEL` in this dialect; a chat stream asks for its usage.
    pub fn request(self, prompt: &str, stream: bool) -> Request {
        Request::post(self.path(), &self.body(prompt, stream))
    }

    /// Returns the JSON of [`Dialect::request`].
    pub fn body(self, prompt: &str, stream: bool) -> Value {
        let messages = json!([{"role": "user", "content": prompt}]);
        match (self, stream) {
            (Self::Chat, false) => json!({"model": MODEL, "messages": messages}),
            (Self::Chat, true) => json!({"model": MODEL, "messages": messages, "stream": true,
                "stream_options": {"include_usage": true}}),
            (Self::Messages, stream) => {
                json!({"model": MODEL, "max_tokens": 512, "messages": messages, "stream": stream})
            }
        }
    }

    /// Returns the line with which a stream of this dialect ends when all went well.
    pub fn terminator(self) -> &'static str {
        match self {
            Self::Chat => "data: [DONE]",
            Self::Messages => "event: message_stop",
        }
    }

    /// Returns whether a stream carries this dialect's error event.
    pub fn has_error_event(self, text: &str) -> bool {
        match self {
            Self::Chat => text.contains("data: {\"error\""),
            Self::Messages => text.contains("event: error"),
        }
    }
}

/// One seller and its upstream.
pub struct Seller {
    /// The node.
    pub node: Node,
    /// What it forwards to.
    pub upstream: Upstream,
}

impl Seller {
    /// Starts a seller of [`MODEL`] at USD prices per million tokens.
    pub async fn start(
        bootstrap: &str,
        dialect: Dialect,
        prices: (&str, &str),
        script: Script,
    ) -> Self {
        let upstream = Upstream::start(script.key(UPSTREAM_KEY)).await;
        let node = Self::node(bootstrap, dialect, prices, &upstream, &[]);
        Self { node, upstream }
    }

    /// Starts only the node, before an upstream that the test owns, with more flags.
    pub fn node(
        bootstrap: &str,
        dialect: Dialect,
        prices: (&str, &str),
        upstream: &Upstream,
        more: &[&str],
    ) -> Node {
        let (url, api) = match dialect {
            Dialect::Chat => (upstream.openai_url(), "openai-chat"),
            Dialect::Messages => (upstream.anthropic_url(), "anthropic"),
        };
        Self::node_of(bootstrap, (&url, api), prices, more)
    }

    /// Starts a seller before an upstream that speaks OpenAI Responses.
    pub async fn start_responses(bootstrap: &str, prices: (&str, &str), script: Script) -> Self {
        let upstream = Upstream::start(script.key(UPSTREAM_KEY)).await;
        let api = (upstream.openai_url(), "openai-responses");
        let node = Self::node_of(bootstrap, (&api.0, api.1), prices, &[]);
        Self { node, upstream }
    }

    fn node_of(
        bootstrap: &str,
        (url, api): (&str, &str),
        prices: (&str, &str),
        more: &[&str],
    ) -> Node {
        let home = Home::new();
        Self::node_in(home, bootstrap, (url, api), prices, more)
    }

    /// Starts only the node, on keys that the test knows already.
    pub fn node_at(
        home: Home,
        bootstrap: &str,
        upstream: &Upstream,
        prices: (&str, &str),
        more: &[&str],
    ) -> Node {
        let url = upstream.openai_url();
        Self::node_in(home, bootstrap, (&url, "openai-chat"), prices, more)
    }

    fn node_in(
        home: Home,
        bootstrap: &str,
        (url, api): (&str, &str),
        prices: (&str, &str),
        more: &[&str],
    ) -> Node {
        let key = home.path().join("upstream-key");
        std::fs::write(&key, UPSTREAM_KEY).unwrap();
        let model = format!("{MODEL}={UPSTREAM_MODEL}");
        let key = key.to_str().unwrap().to_owned();
        let mut args = vec![
            "sell",
            "--upstream",
            url,
            "--api",
            api,
            "--api-key-file",
            &key,
        ];
        args.extend([
            "--model",
            &model,
            "--price-in",
            prices.0,
            "--price-out",
            prices.1,
        ]);
        args.extend(["--http-port", "0", "--bootstrap", bootstrap]);
        args.extend(more);
        Node::start_at(home, &args)
    }
}

/// Tests run in parallel, and one that measures time must not see the others' start-up as delay:
/// it takes the machine for itself, all others share it.
static MACHINE: RwLock<()> = RwLock::const_new(());

/// A test's hold on the machine.
pub enum Hold {
    /// With others.
    Shared(RwLockReadGuard<'static, ()>),
    /// Alone.
    Alone(RwLockWriteGuard<'static, ()>),
}

impl Hold {
    /// Waits until no test has the machine for itself. Never taken twice by one test.
    pub async fn shared() -> Self {
        Self::Shared(MACHINE.read().await)
    }

    /// Waits until no other test runs nodes.
    pub async fn alone() -> Self {
        Self::Alone(MACHINE.write().await)
    }
}

/// A bootstrap node, sellers and one buyer.
pub struct Market {
    /// The dialect that all sellers speak.
    pub dialect: Dialect,
    /// The node that all others know.
    pub bootstrap: Node,
    /// Cheapest first.
    pub sellers: Vec<Seller>,
    /// The node under test.
    pub buyer: Node,
    /// Dropped after the nodes.
    _hold: Hold,
}

/// What a market's cheaper and dearer sellers ask: USD per million tokens, in and out.
pub const PRICES: [(&str, &str); 3] = [("0.10", "0.40"), ("0.20", "0.80"), ("0.30", "1.20")];

impl Market {
    /// Starts one seller per script, at rising prices, and a buyer that prefers cheap ones.
    pub async fn start(dialect: Dialect, scripts: Vec<Script>) -> Self {
        Self::start_with(
            Hold::shared().await,
            dialect,
            scripts,
            &["--prefer", "cheap"],
        )
        .await
    }

    /// Like [`Market::start`], with the machine for itself: for tests that measure time.
    pub async fn start_alone(dialect: Dialect, scripts: Vec<Script>) -> Self {
        Self::start_with(
            Hold::alone().await,
            dialect,
            scripts,
            &["--prefer", "cheap"],
        )
        .await
    }

    /// Like [`Market::start`], with other flags for the buyer.
    pub async fn start_with(
        hold: Hold,
        dialect: Dialect,
        scripts: Vec<Script>,
        flags: &[&str],
    ) -> Self {
        let bootstrap = Node::start(&["bootstrap"]);
        let mut sellers = vec![];
        for (script, prices) in scripts.into_iter().zip(PRICES) {
            sellers.push(Seller::start(bootstrap.listen(), dialect, prices, script).await);
        }
        let listen = bootstrap.listen();
        let args = ["buy", "--port", "0", "--bootstrap", listen];
        let buyer = start_patient(Home::new(), &[&args, flags].concat());
        let market = Self {
            dialect,
            bootstrap,
            sellers,
            buyer,
            _hold: hold,
        };
        market.wait_for_sellers(market.sellers.len()).await;
        market
    }

    /// Sends a request to the buyer and reads the whole answer.
    pub async fn send(&self, request: &Request) -> Response {
        http::send(self.buyer.http(), request).await
    }

    /// Asks in the market's dialect and reads the whole answer.
    pub async fn ask(&self, prompt: &str, stream: bool) -> Response {
        self.send(&self.dialect.request(prompt, stream)).await
    }

    /// Waits until the buyer's model list counts this many sellers.
    pub async fn wait_for_sellers(&self, count: usize) {
        wait_for_sellers(&self.buyer, count).await;
    }

    /// Returns the seller that an answer came from, by its `x-souk-seller` header.
    pub fn seller_of(&self, response: &Response) -> usize {
        let peer = response
            .header("x-souk-seller")
            .expect("answers name their seller");
        let found = self.sellers.iter().position(|s| s.node.peer_id() == peer);
        found.unwrap_or_else(|| panic!("no seller of this market is {peer}"))
    }

    /// Returns the total number of inference requests that reached upstreams.
    pub fn upstream_requests(&self) -> usize {
        self.sellers
            .iter()
            .map(|s| s.upstream.exchanges().len())
            .sum()
    }
}

/// Starts a buyer on a free port.
pub fn start_buyer(bootstrap: &str, flags: &[&str]) -> Node {
    let mut args = vec!["buy", "--port", "0", "--bootstrap", bootstrap];
    args.extend(flags);
    Node::start(&args)
}

/// Starts a node that takes no busy seller for a dead one.
pub fn start_patient(home: Home, args: &[&str]) -> Node {
    Node::start_with(home, args, &PATIENT)
}

/// Waits until something is so, which the node under test comes to by itself; `what` says it when it
/// never is.
pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let end = tokio::time::Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(tokio::time::Instant::now() < end, "{what} never came");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until a buyer lists a model.
pub async fn wait_for_model(buyer: &Node, id: &str) {
    let end = tokio::time::Instant::now() + PATIENCE;
    let path = format!("/v1/models/{id}");
    while http::send(buyer.http(), &Request::get(&path)).await.status != 200 {
        let waiting = tokio::time::Instant::now() < end;
        assert!(waiting, "the buyer never listed {id}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Returns how many sellers of [`MODEL`] a buyer's model list shows.
pub async fn seller_count(buyer: &Node) -> u64 {
    let list = http::send(buyer.http(), &Request::get("/v1/models"))
        .await
        .json();
    let models = list["data"].as_array().cloned().unwrap_or_default();
    models
        .iter()
        .find(|m| m["id"] == MODEL)
        .and_then(|m| m["sellers"].as_u64())
        .unwrap_or(0)
}

/// Waits until a buyer sees `count` sellers of [`MODEL`].
pub async fn wait_for_sellers(buyer: &Node, count: usize) {
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        let seen = seller_count(buyer).await;
        if seen >= u64::try_from(count).unwrap() {
            return;
        }
        assert!(
            tokio::time::Instant::now() < end,
            "the buyer sees {seen} of {count} sellers"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
