//! A head that sells a model and buys its layers, both over channels on the chain: at the end the
//! chain and every ledger name the same sums.

use std::path::Path;

use serde_json::json;
use souk::types::{ChannelId, MicroUsd};
use tokio::time::Instant;

use super::{
    BOOKED_DEADLINE, CHAIN_DEADLINE, CONFIRMATIONS, Chain, PATIENT, PAUSE, channels, config,
};
use crate::harness::books;
use crate::harness::http::{self, Request};
use crate::harness::market::{Hold, wait_for_model};
use crate::harness::node::{Home, Node};
use crate::pipeline_upstream::{direct_by, split_head};
use crate::tiny_model::TinyModel;
use souk::protocol::stage::WireFormat;

const NAME: &str = "tiny/chained";
const CONTENT: &str = "Why is the sky blue?";
/// What opening a channel costs by default.
const FEE: MicroUsd = MicroUsd(10_000);
/// What each payer begins with.
const PURSE: MicroUsd = MicroUsd::from_usd(20);

/// A node's keys with coins for gas, and its config.
fn home(chain: &Chain, more: &str) -> (Home, String) {
    let home = Home::new();
    chain.world.anvil.fund(&home.evm_address);
    let file = config(chain, &home, more);
    (home, file)
}

fn stage(chain: &Chain, path: &Path, layers: &str, bootstrap: &str) -> Node {
    let (home, file) = home(chain, PATIENT);
    let path = path.to_str().unwrap();
    let mut args = vec!["contribute", "--model", path, "--layers", layers];
    args.extend(["--price-in", "10", "--price-out", "20", "--http-port", "0"]);
    args.extend(["--bootstrap", bootstrap, "--config", &file]);
    Node::start_at(home, &args)
}

/// The one channel in which a seller is paid.
async fn paid_in(seller: &Node) -> ChannelId {
    let all = channels(seller).await;
    let [one] = all.as_slice() else {
        panic!("{all:#?}")
    };
    one["channel"].as_str().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_and_its_stages_are_paid_to_the_micro_usd_on_the_chain() {
    let _hold = Hold::shared().await;
    let files = tempfile::tempdir().unwrap();
    TinyModel::default().write(files.path());
    let chain = Chain::start().await;
    let (payer, payer_file) = home(&chain, PATIENT);
    let exact = format!("{PATIENT}[head]\nwire = \"f32\"\n");
    let (head_home, head_file) = home(&chain, &exact);
    for home in [&payer, &head_home] {
        chain.mint(home, PURSE).await;
    }
    chain.world.anvil.mine(CONFIRMATIONS);
    chain.let_blocks_come();
    let bootstrap = Node::start(&["bootstrap"]);
    let stages =
        ["0..3", "3..6"].map(|layers| stage(&chain, files.path(), layers, bootstrap.listen()));
    let more = ["--bootstrap", bootstrap.listen(), "--config", &head_file];
    let model = (NAME, files.path());
    let head = split_head(head_home, model, ("100", "200"), &more, &[]);
    let mut args = vec!["buy", "--port", "0", "--bootstrap", bootstrap.listen()];
    args.extend(["--config", &payer_file]);
    let buyer = Node::start_at(payer, &args);
    wait_for_model(&buyer, NAME).await;

    let body = json!({
        "model": NAME, "messages": [{"role": "user", "content": CONTENT}], "max_tokens": 24,
        "temperature": 0, "stream": true,
    });
    // The tiny model has a token for each byte: a longer body lets its price be estimated high enough.
    let body = format!("{body:#}{}", " ".repeat(200)).into_bytes();
    let request = Request::post_bytes("/v1/chat/completions", body);
    let (expected, _) = direct_by(WireFormat::F32, files.path(), &[0..3, 3..6], CONTENT, 24);
    for _ in 0..3 {
        let answer = http::send(buyer.http(), &request).await;
        assert_eq!(
            answer.status,
            200,
            "{}\n{}",
            answer.text(),
            head.stderr_tail()
        );
        assert!(answer.complete, "{}", answer.text());
        assert_eq!(crate::pipeline_upstream::streamed(&answer.data()), expected);
    }
    let sellers = [&stages[0], &stages[1], &head];
    let homes = sellers.map(Node::home);
    let agreed = books::agreed(&[buyer.home(), head.home()], &homes, BOOKED_DEADLINE).await;
    let (bought, _) = agreed.unwrap();
    let mut earned = Vec::new();
    for seller in sellers {
        let channel = paid_in(seller).await;
        super::wait_confirmed(seller).await;
        let id = channel.to_string();
        let args = ["channel", "close", &id, "--no-wait", "--json"];
        let done = seller.home().json(&args);
        assert_eq!(done["plan"]["way"], "agreed", "{done}");
        let end = Instant::now() + CHAIN_DEADLINE;
        let state = loop {
            let state = chain.on_chain(&channel).await;
            if state.is_closed {
                break state;
            }
            let said = seller.stderr_tail();
            assert!(Instant::now() < end, "not closed: {state:?}\n{said}");
            tokio::time::sleep(PAUSE).await;
        };
        let rows = bought.values();
        let rows = rows.filter(|row| row.seller == seller.home().peer_id);
        let billed = MicroUsd(rows.filter_map(|row| row.billed).sum());
        assert!(billed > MicroUsd::ZERO);
        assert_eq!(state.settled, billed.saturating_add(FEE));
        earned.push(state.settled);
    }
    // Whatever was not earned is its owner's again.
    let mut kept = Vec::new();
    for home in [buyer.home(), head.home()] {
        let (vault, wallet) = (chain.vault(home).await, chain.wallet(home).await);
        kept.push(vault.saturating_add(wallet));
    }
    let (stage_0, stage_1, sold) = (earned[0], earned[1], earned[2]);
    assert_eq!(kept[0].saturating_add(sold), PURSE);
    let paid = stage_0.saturating_add(stage_1);
    assert_eq!(kept[1].saturating_add(paid), PURSE.saturating_add(sold));
    for node in [&buyer, &head, &stages[0], &stages[1]] {
        books::verify(node.home()).unwrap_or_else(|differences| panic!("{differences}"));
    }
    println!("sold for {sold}, paid {stage_0} and {stage_1} for layers, with a fee of {FEE} each");
}
