//! The small commands: configuration and its origins, completions, the manual page, a chat, and a
//! configuration that is read again while the node runs.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::harness::http;
use crate::harness::market::{
    Dialect, Hold, MODEL, Market, Seller, start_buyer, until, wait_for_sellers,
};
use crate::harness::node::{Home, Node};
use crate::harness::upstream::{Script, Upstream};

#[test]
fn every_value_says_where_it_comes_from() {
    let home = Home::new();
    let file = home.path().join("config.toml");
    std::fs::write(&file, "[buy]\nport = 7000\nprefer = \"fast\"\n").unwrap();
    let args = [
        "config",
        "show",
        "--origin",
        "--json",
        "--config",
        file.to_str().unwrap(),
    ];
    let env = [("SOUK_BUY_PORT", "7001")];
    let output = home.run_with(&args, &env);
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    let of = |key: &str| (shown[key]["value"].clone(), shown[key]["origin"].clone());
    assert_eq!(of("buy.port"), (7001.into(), "$SOUK_BUY_PORT".into()));
    assert_eq!(
        of("buy.prefer"),
        ("fast".into(), file.to_str().unwrap().into())
    );
    assert_eq!(of("buy.host"), ("127.0.0.1".into(), "default".into()));
    assert_eq!(of("node.data_dir").1, "$SOUK_DATA_DIR");

    std::fs::write(&file, "[buy]\nprot = 1\nport = \"x\"\n").unwrap();
    let output = home.run(&["config", "check", "--config", file.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(64), "{text}");
    assert!(
        text.contains("buy.prot") && text.contains("buy.port"),
        "{text}"
    );
}

#[test]
fn completions_and_the_manual_know_every_command() {
    let home = Home::new();
    let help = String::from_utf8(home.run(&["--help"]).stdout).unwrap();
    let commands: Vec<&str> = help
        .lines()
        .skip_while(|line| !line.starts_with("Commands:"))
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|name| !name.is_empty())
        .collect();
    assert!(commands.len() >= 15, "{help}");
    let text = |args: &[&str]| String::from_utf8(home.run(args).stdout).unwrap();
    let (bash, man) = (text(&["completions", "bash"]), text(&["man"]));
    for command in &commands {
        assert!(bash.contains(command), "bash does not complete {command}");
        if *command != "help" {
            let title = format!(".SH COMMAND {}", command.to_uppercase());
            let shown = title.replace('-', "\\-");
            assert!(
                man.contains(&title) || man.contains(&shown),
                "{command} is not in the manual"
            );
        }
    }
    for shell in ["zsh", "fish"] {
        assert!(
            text(&["completions", shell]).contains("openclaw"),
            "{shell}"
        );
    }
    // Where bash is installed it reads the script.
    let script = home.path().join("souk.bash");
    std::fs::write(&script, &bash).unwrap();
    if let Ok(read) = Command::new("bash").arg("-n").arg(&script).output() {
        assert!(
            read.status.success(),
            "{}",
            String::from_utf8_lossy(&read.stderr)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_from_the_terminal_streams_and_says_what_it_cost() {
    let market = Market::start(Dialect::Chat, vec![Script::saying("It is noon.")]).await;
    let home = market.buyer.home().clone();
    let answer = tokio::task::block_in_place(|| home.run(&["chat", "--model", MODEL, "Time?"]));
    let (out, err) = (
        String::from_utf8_lossy(&answer.stdout).into_owned(),
        String::from_utf8_lossy(&answer.stderr).into_owned(),
    );
    assert!(answer.status.success(), "{err}");
    assert_eq!(out, "It is noon.\n");
    assert!(err.contains("[$0.0000"), "{err}");
    let id = err
        .split("ledger show ")
        .nth(1)
        .unwrap()
        .split(']')
        .next()
        .unwrap();
    let shown = tokio::task::block_in_place(|| home.run(&["ledger", "show", id]));
    assert!(
        shown.status.success(),
        "{}",
        String::from_utf8_lossy(&shown.stderr)
    );

    let json =
        tokio::task::block_in_place(|| home.json(&["chat", "--json", "--model", MODEL, "Again?"]));
    assert_eq!(json["content"], "It is noon.");
    assert!(json["usage"]["cost"].as_f64().unwrap() > 0.0, "{json}");
    let none = tokio::task::block_in_place(|| home.run(&["chat", "--model", "nobody/has", "?"]));
    let err = String::from_utf8_lossy(&none.stderr).into_owned();
    assert!(
        !none.status.success() && err.contains("nobody/has"),
        "{err}"
    );
}

fn hang_up(node: &Node) {
    let pid = node.pid().to_string();
    let sent = Command::new("kill").args(["-HUP", &pid]).status().unwrap();
    assert!(sent.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buyer_takes_new_price_caps_names_and_budget_without_a_restart() {
    let _hold = Hold::shared().await;
    let bootstrap = Node::start(&["bootstrap"]);
    let prices = ("0.10", "0.40");
    let _seller = Seller::start(bootstrap.listen(), Dialect::Chat, prices, Script::default()).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    let buyer = start_buyer(bootstrap.listen(), &["--config", &path]);
    wait_for_sellers(&buyer, 1).await;
    let ask = || ask_of(&buyer);
    assert_eq!(ask().await.status, 200);

    std::fs::write(&path, "[buy]\nmax_price_out = 0.1\nhost = \"127.0.0.2\"\n").unwrap();
    hang_up(&buyer);
    // The log names a new setting when it holds.
    let words = ["buy.max_price_out", "buy.host", "need a restart"];
    until("the log of the change", async || buyer.has_logged(&words)).await;
    let capped = ask().await;
    assert_eq!(capped.status, 503, "{}", capped.text());
    assert!(
        capped.text().contains("above the price cap"),
        "{}",
        capped.text()
    );

    std::fs::write(&path, "[buy]\nmax_price_out = \"nonsense\"\n").unwrap();
    hang_up(&buyer);
    let words = ["the old one stays"];
    until("the complaint", async || buyer.has_logged(&words)).await;
    assert_eq!(
        ask().await.status,
        503,
        "a wrong configuration changes nothing"
    );

    std::fs::write(&path, "[buy.budget]\ndaily = 0\n").unwrap();
    hang_up(&buyer);
    until("the new budget", async || ask().await.status == 429).await;
    std::fs::write(&path, "").unwrap();
    hang_up(&buyer);
    until("the old settings", async || ask().await.status == 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seller_offers_new_prices_without_a_restart() {
    let _hold = Hold::shared().await;
    let bootstrap = Node::start(&["bootstrap"]);
    let upstream = Upstream::start(Script::default()).await;
    let home = Home::new();
    let path = home.path().join("config.toml");
    let config = |price: &str| {
        let text = format!(
            "[sell]\nupstream = \"{}\"\napi = \"openai-chat\"\nhttp_port = 0\n\
             [[sell.models]]\nid = \"{MODEL}\"\nprice_in = {price}\nprice_out = {price}\n",
            upstream.openai_url()
        );
        std::fs::write(&path, text).unwrap();
    };
    config("0.5");
    let flags = [
        "sell",
        "--bootstrap",
        bootstrap.listen(),
        "--config",
        path.to_str().unwrap(),
    ];
    let seller = Node::start_at(home.clone(), &flags);
    let buyer = start_buyer(bootstrap.listen(), &[]);
    wait_for_sellers(&buyer, 1).await;
    let price = async |buyer: &Node| {
        let list = http::send(buyer.http(), &http::Request::get("/api/sellers"))
            .await
            .json();
        list["sellers"][0]["price_in_micro_usd"].as_u64()
    };
    assert_eq!(price(&buyer).await, Some(500_000));
    config("0.25");
    hang_up(&seller);
    until("the log of the change", async || {
        seller.has_logged(&["sell.models"])
    })
    .await;
    // Buyers that know an offer keep to it while it binds; those that come later hear of the new
    // price, once the offer has spread. Who heard the old one stays: the dead would be in its way.
    let mut early = vec![];
    let end = tokio::time::Instant::now() + Duration::from_secs(240);
    loop {
        let later = start_buyer(bootstrap.listen(), &[]);
        wait_for_sellers(&later, 1).await;
        if price(&later).await == Some(250_000) {
            break;
        }
        assert!(tokio::time::Instant::now() < end, "the price never spread");
        early.push(later);
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
}

async fn ask_of(buyer: &Node) -> http::Response {
    http::send(buyer.http(), &Dialect::Chat.request("Hello.", false)).await
}
