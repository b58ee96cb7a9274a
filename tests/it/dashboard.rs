//! The page in the browser: complete without a script or a network, and deaf to what sellers write.

use crate::harness::books;
use crate::harness::clock;
use crate::harness::http::{self, Request, Response};
use crate::harness::market::{
    Dialect, Hold, MODEL, Market, PATIENCE, Seller, start_buyer, until, wait_for_model,
};
use crate::harness::node::Node;
use crate::harness::upstream::{Fault, Script, Upstream};

async fn page(node: &Node) -> Response {
    let answer = http::send(node.http(), &Request::get("/")).await;
    assert_eq!(answer.status, 200);
    answer
}

/// Addresses that the page makes a browser fetch.
fn fetched(html: &str) -> Vec<String> {
    let after = |mark: &'static str| {
        html.split(mark)
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
            .map(str::to_owned)
    };
    after(" src=\"").chain(after(" href=\"")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn both_roles_show_money_requests_sellers_and_channels() {
    clock::day_lasts().await;
    let broken = Script::default().fault(Fault::Status(500));
    let market = Market::start(Dialect::Chat, vec![broken, Script::default()]).await;
    for _ in 0..3 {
        assert_eq!(market.ask("Say something.", true).await.status, 200);
    }
    let rows = books::paid(market.buyer.home(), 3).await;
    // The seller books what it earned a moment after the buyer.
    let sellers: Vec<_> = market.sellers.iter().map(|s| s.node.home()).collect();
    let buyer = [market.buyer.home()];
    books::agreed(&buyer, &sellers, PATIENCE).await.unwrap();
    let billed = |row: &serde_json::Value| row["billed_micro_usd"].as_u64().unwrap_or(0);
    let total: u64 = rows.iter().map(billed).sum();
    let spent = format!("$0.{total:06}");
    let spent = spent.trim_end_matches('0');

    let answer = page(&market.buyer).await;
    let html = answer.text();
    for part in [
        "Spent today",
        "Running now",
        "Sellers",
        "Channels",
        "Last requests",
        MODEL,
    ] {
        assert!(html.contains(part), "{part} is not on the page:\n{html}");
    }
    assert!(html.contains(spent), "{spent} is not on the page:\n{html}");
    assert!(html.matches("<svg class=\"plot\"").count() >= 3, "{html}");
    let tail = &market.sellers[1].node.peer_id()[44..];
    assert!(html.contains(tail), "the seller {tail} is not on the page");
    let policy = answer.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'"), "{policy}");
    assert!(
        !policy.contains("unsafe") && !policy.contains("http"),
        "{policy}"
    );

    let seller = page(&market.sellers[1].node).await.text();
    for part in [
        "Earned today",
        "Margins",
        "Load and refusals",
        "of 256",
        spent,
    ] {
        assert!(
            seller.contains(part),
            "{part} is not on the page:\n{seller}"
        );
    }

    for node in [&market.buyer, &market.sellers[1].node] {
        let html = page(node).await.text();
        assert!(!html.contains(" style=") && !html.contains(" onclick"));
        for address in fetched(&html) {
            let local = address.starts_with('/') || address.starts_with('#');
            assert!(local, "the page fetches {address}");
            if address.starts_with('/') {
                let asset = http::send(node.http(), &Request::get(&address)).await;
                assert_eq!(asset.status, 200, "{address}");
            }
        }
    }
    let none = http::send(market.buyer.http(), &Request::get("/assets/../key.json")).await;
    assert_eq!(none.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_seller_names_never_becomes_markup() {
    let _hold = Hold::shared().await;
    let nasty = "<img/src/onerror>\"'--><script>alert(1)</script>";
    let bootstrap = Node::start(&["bootstrap"]);
    let upstream =
        Upstream::start(Script::default().key(crate::harness::market::UPSTREAM_KEY)).await;
    let prices = ("0.10", "0.40");
    let flags = ["--model", &format!("{nasty}=upstream/model")];
    let seller = Seller::node(bootstrap.listen(), Dialect::Chat, prices, &upstream, &flags);
    let buyer = start_buyer(bootstrap.listen(), &[]);
    wait_for_model(&buyer, MODEL).await;
    until("the offer with the name", async || {
        let sellers = http::send(buyer.http(), &Request::get("/api/sellers")).await;
        sellers.text().contains("alert(1)")
    })
    .await;
    // The client's own text, too: a name of a model that nobody sells, and a client's label.
    let body = serde_json::json!({"model": MODEL, "messages": [{"role": "user", "content": "x"}]});
    let request = Request::post("/v1/chat/completions", &body).header("user-agent", nasty);
    assert_eq!(http::send(buyer.http(), &request).await.status, 200);
    for node in [&buyer, &seller] {
        let html = page(node).await.text().to_lowercase();
        assert!(!html.contains("<img"), "{html}");
        assert_eq!(html.matches("<script").count(), 1, "only our own: {html}");
        assert!(!html.contains("alert(1)</script>"), "{html}");
    }
    let html = page(&buyer).await.text();
    assert!(html.contains("&lt;"), "the name is shown, escaped: {html}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_site_cannot_frame_or_read_the_page() {
    let market = Market::start(Dialect::Chat, vec![Script::default()]).await;
    let framed = Request::get("/")
        .header("sec-fetch-site", "cross-site")
        .header("sec-fetch-mode", "navigate")
        .header("sec-fetch-dest", "iframe");
    assert_eq!(market.send(&framed).await.status, 403);
    let policy = page(&market.buyer).await;
    let policy = policy.header("content-security-policy").unwrap().to_owned();
    assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
}
