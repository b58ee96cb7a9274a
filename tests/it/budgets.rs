//! What a buyer lets itself spend: by request, day, model and client; never a micro-USD more.

use std::time::Duration;

use futures::StreamExt;
use serde_json::{Value, json};

use crate::harness::books;
use crate::harness::clock;
use crate::harness::http::{self, Request, Response};
use crate::harness::market::{self, Dialect, Hold, MODEL, PATIENCE, Seller};
use crate::harness::node::{Home, Node};
use crate::harness::upstream::Script;

/// USD per million tokens, in and out: dear, so that a few answers use a budget up.
const DEAR: (&str, &str) = ("10.00", "400.00");

/// Some forty tokens: 16 000 micro-USD.
const TEXT: &str = "One two three four five six seven eight nine ten eleven twelve thirteen fourteen \
    fifteen sixteen seventeen eighteen nineteen twenty, and so on until there is nothing left.";

/// A bootstrap node, dear sellers, a buyer with a config of its own.
struct Market {
    _bootstrap: Node,
    sellers: Vec<Seller>,
    buyer: Node,
    _hold: Hold,
}

impl Market {
    async fn start(dialect: Dialect, scripts: Vec<Script>, config: &str) -> Self {
        clock::day_lasts().await;
        let hold = Hold::shared().await;
        let bootstrap = Node::start(&["bootstrap"]);
        let mut sellers = vec![];
        for script in scripts {
            let seller = Seller::start(bootstrap.listen(), dialect, DEAR, script);
            sellers.push(seller.await);
        }
        let home = Home::new();
        let file = home.path().join("config.toml");
        std::fs::write(&file, config).unwrap();
        let file = file.to_str().unwrap().to_owned();
        let mut args = vec!["buy", "--port", "0", "--bootstrap", bootstrap.listen()];
        args.extend(["--config", file.as_str()]);
        let buyer = market::start_patient(home, &args);
        Self {
            _bootstrap: bootstrap,
            sellers,
            buyer,
            _hold: hold,
        }
    }

    async fn met(self) -> Self {
        market::wait_for_sellers(&self.buyer, self.sellers.len()).await;
        self
    }

    async fn send(&self, request: &Request) -> Response {
        http::send(self.buyer.http(), request).await
    }

    async fn get(&self, path: &str) -> Value {
        self.send(&Request::get(path)).await.json()
    }

    /// What both ledgers say was paid.
    async fn paid(&self) -> u64 {
        let sellers: Vec<&Home> = self.sellers.iter().map(|s| s.node.home()).collect();
        let buyers = [self.buyer.home()];
        let agreed = books::agreed(&buyers, &sellers, PATIENCE);
        let (bought, _) = agreed.await.unwrap();
        assert!(books::charged_twice(&bought).is_empty());
        books::billed(&bought)
    }
}

fn text(script: Script) -> Script {
    Script {
        text: TEXT.to_owned(),
        ..script
    }
}

fn assert_exceeded(answer: &Response, limit: &str) {
    assert_eq!(answer.status, 429, "{}", answer.text());
    let error = &answer.json()["error"];
    assert_eq!(error["code"], "budget_exceeded", "{error}");
    let message = error["message"].as_str().unwrap();
    assert!(
        message.starts_with(&format!("{limit} reached, resets ")),
        "{message}"
    );
    let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!(wait > 60 && wait <= 31 * 86_400, "{wait}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_requests_at_once_never_pass_the_daily_limit() {
    const LIMIT: u64 = 500_000;
    let scripts = vec![text(Script::default()), text(Script::default())];
    let market = Market::start(Dialect::Chat, scripts, "[buy.budget]\ndaily = \"0.5\"\n")
        .await
        .met()
        .await;
    let address = market.buyer.http();
    let ask = |n: usize| async move {
        let mut body = Dialect::Chat.body(&format!("Count {n}."), n.is_multiple_of(2));
        body["max_tokens"] = json!(64);
        let request = Request::post(Dialect::Chat.path(), &body);
        (n, http::send(address, &request).await)
    };
    let over = std::sync::atomic::AtomicBool::new(false);
    let watch = async {
        let mut most = 0;
        while !over.load(std::sync::atomic::Ordering::Relaxed) {
            let money = market.get("/api/budget").await;
            let of = |name: &str| money[name].as_u64().unwrap();
            let counted = of("spent_today_micro_usd") + of("reserved_micro_usd");
            most = most.max(counted);
            assert!(counted <= LIMIT, "{money}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        most
    };
    let all = async {
        let all = futures::stream::iter(0..200).map(ask).buffer_unordered(200);
        let answers: Vec<(usize, Response)> = all.collect().await;
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        answers
    };
    let (answers, most) = tokio::join!(all, watch);
    println!("at most {most} micro-USD spent and held");
    let (mut good, mut refused, mut cut) = (0, 0, 0);
    for (n, answer) in &answers {
        if answer.status != 200 {
            assert_exceeded(answer, "daily spending limit");
            refused += 1;
            continue;
        }
        good += 1;
        if n.is_multiple_of(2) {
            let text = answer.text();
            assert!(text.contains("data: [DONE]"), "{text}");
            cut += usize::from(text.contains("\"finish_reason\":\"length\""));
        }
    }
    let paid = market.paid().await;
    println!(
        "{good} answered ({cut} cut short), {refused} refused; paid {paid} of {LIMIT} micro-USD"
    );
    assert!(good >= 10 && refused >= 10, "{good} and {refused}");
    assert!(paid <= LIMIT, "{paid}");
    // What is left is worth less than an answer of the largest size.
    let mut more = vec![];
    for n in 0..60 {
        let request = Dialect::Chat.request(&format!("More {n}."), true);
        more.push(market.send(&request).await.status);
    }
    let paid = market.paid().await;
    println!("then {more:?}; paid {paid}");
    assert_eq!(more.last(), Some(&429));
    assert!(paid <= LIMIT && paid > LIMIT * 9 / 10, "{paid}");
    books::verify(market.buyer.home()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_reaches_the_limit_ends_as_one_that_ran_into_its_length() {
    for dialect in Dialect::ALL {
        let script = Script {
            text: TEXT.repeat(20),
            tokens_per_second: Some(300.0),
            ..Script::default()
        };
        let config = "[buy.budget]\ndaily = \"0.06\"\n";
        let market = Market::start(dialect, vec![script], config)
            .await
            .met()
            .await;
        let answer = market.send(&dialect.request("Go on.", true)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let text = answer.text();
        let reason = match dialect {
            Dialect::Chat => "\"finish_reason\":\"length\"",
            Dialect::Messages => "\"stop_reason\":\"max_tokens\"",
        };
        assert!(text.contains(reason), "{text}");
        assert!(text.contains(dialect.terminator()), "{text}");
        assert!(!dialect.has_error_event(&text), "{text}");
        let paid = market.paid().await;
        println!("{dialect:?}: paid {paid} of 60000 micro-USD");
        assert!((30_000..=60_000).contains(&paid), "{paid}");
        let sellers = market.get("/api/sellers").await;
        assert_eq!(sellers["sellers"].as_array().unwrap().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_pays_no_more_than_its_own_limit() {
    let long = Script {
        text: TEXT.repeat(5),
        ..Script::default()
    };
    let config = "[buy.budget]\nrequest = \"0.04\"\n";
    let market = Market::start(Dialect::Chat, vec![long], config)
        .await
        .met()
        .await;
    // A whole answer above it is not bought at all; a stream is cut where it reaches it.
    let whole = market.send(&Dialect::Chat.request("All.", false)).await;
    assert_eq!(whole.status, 503, "{}", whole.text());
    let stream = market.send(&Dialect::Chat.request("All.", true)).await;
    assert_eq!(stream.status, 200);
    assert!(stream.text().contains("\"finish_reason\":\"length\""));
    let header = Dialect::Chat.request("All.", true);
    let header = header.header("x-souk-max-cost-usd", "0.02");
    assert_eq!(market.send(&header).await.status, 200);
    let paid = market.paid().await;
    assert!(paid <= 60_000 && paid > 30_000, "{paid}");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_and_models_have_limits_of_their_own_that_outlive_a_restart() {
    let secrets = tempfile::tempdir().unwrap();
    let file = |name: &str| {
        let path = secrets.path().join(name);
        std::fs::write(&path, format!("token-of-{name}")).unwrap();
        format!("\"{name}=file:{}\"", path.display())
    };
    let config = format!("[buy]\nclients = [{}, {}]\n", file("alice"), file("bob"));
    let scripts = vec![text(Script::default())];
    let mut market = Market::start(Dialect::Chat, scripts, &config).await;
    let as_client = |name: &str| {
        let token = format!("Bearer token-of-{name}");
        Dialect::Chat
            .request("Hi.", false)
            .header("authorization", &token)
    };
    let is_served = async |market: &Market| market.send(&as_client("bob")).await.status == 200;
    market::until("bob's answer", async || is_served(&market).await).await;
    assert_eq!(market.send(&as_client("mallory")).await.status, 401);
    let bare = Dialect::Chat.request("Hi.", false);
    assert_eq!(market.send(&bare).await.status, 401);

    let set = |home: &Home, args: &[&str]| {
        let all = [&["ledger", "budget", "set"], args].concat();
        let output = home.run(&all);
        assert!(output.status.success(), "{output:?}");
    };
    set(
        market.buyer.home(),
        &["--daily", "0.03", "--client", "alice"],
    );
    // An answer costs 0.01206: two fit, and while one is not booked what it may cost at most is held.
    let (mut served, end) = (0, tokio::time::Instant::now() + PATIENCE);
    while served < 2 {
        let answer = market.send(&as_client("alice")).await;
        served += u64::from(answer.status == 200);
        assert!(tokio::time::Instant::now() < end, "{}", answer.text());
        assert!([200, 429].contains(&answer.status), "{}", answer.text());
    }
    let alice = async |market: &Market| market.send(&as_client("alice")).await;
    assert_exceeded(
        &alice(&market).await,
        "daily spending limit of client `alice`",
    );
    assert_eq!(market.send(&as_client("bob")).await.status, 200);

    // Rows that nobody waits for are written a moment after their answers; a restart is a kill.
    books::paid(market.buyer.home(), 4).await;
    market.buyer.restart();
    let again = "bob's answer after the restart";
    market::until(again, async || is_served(&market).await).await;
    assert_exceeded(
        &alice(&market).await,
        "daily spending limit of client `alice`",
    );

    let rows = market.buyer.home().ledger(&["requests", "--json"]);
    let clients: Vec<&str> = rows
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|r| r["client"].as_str())
        .collect();
    assert!(
        clients.contains(&"alice") && clients.contains(&"bob"),
        "{clients:?}"
    );
    let shown = market.buyer.home().ledger(&["budget", "show", "--json"]);
    assert_eq!(shown[0]["client"], "alice", "{shown}");

    set(market.buyer.home(), &["--monthly", "0", "--model", MODEL]);
    let bob = market.send(&as_client("bob")).await;
    assert_exceeded(&bob, &format!("monthly spending limit of `{MODEL}`"));
    // Secrets stay where they are.
    let logs = market.buyer.stderr_tail();
    assert!(!logs.contains("token-of-"), "{logs}");
    assert!(!json!(shown).to_string().contains("token-of-"));
}
