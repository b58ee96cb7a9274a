//! A node begins and ends well: keys first, one process a directory, drained on SIGTERM.

use crate::harness::http;
use crate::harness::market::{Dialect, Market, PATIENCE};
use crate::harness::node::Home;
use crate::harness::upstream::Script;

#[test]
fn keygen_refuses_to_overwrite_and_prints_no_key() {
    let home = Home::new();
    let again = home.run(&["keygen"]);
    assert!(!again.status.success());
    assert!(
        String::from_utf8_lossy(&again.stderr).contains("--force"),
        "it says what to do"
    );
    let key = std::fs::read_to_string(home.path().join("key.json")).unwrap();
    assert!(!key.is_empty());
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(home.path().join("key.json"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process_per_data_directory_and_the_second_names_the_first() {
    let market = Market::start(Dialect::Chat, vec![Script::default()]).await;
    let second = market.buyer.home().run(&["buy", "--port", "0"]);
    assert!(!second.status.success());
    let text = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(text.contains(&market.buyer.pid().to_string()), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_lets_a_running_stream_finish_and_exits_with_0() {
    let mut market = Market::start(Dialect::Chat, vec![Script::default().paced(30.0)]).await;
    let request = Dialect::Chat.request("Say something.", true);
    let mut answer = http::open(market.buyer.http(), &request).await.unwrap();
    answer.until("größerer").await;
    let reading = tokio::spawn(answer.finish());
    let status = tokio::task::block_in_place(|| market.buyer.terminate());
    assert_eq!(status.code(), Some(0), "{}", market.buyer.stderr_tail());
    let response = tokio::time::timeout(PATIENCE, reading)
        .await
        .unwrap()
        .unwrap();
    let text = response.text();
    let ended = text.contains("data: [DONE]") || Dialect::Chat.has_error_event(&text);
    assert!(
        ended && response.complete,
        "the stream ends with its end or with an error: {text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seller_that_ends_in_order_finishes_its_streams() {
    let mut market = Market::start(Dialect::Chat, vec![Script::default().paced(30.0)]).await;
    let request = Dialect::Chat.request("Say something.", true);
    let mut answer = http::open(market.buyer.http(), &request).await.unwrap();
    answer.until("größerer").await;
    let reading = tokio::spawn(answer.finish());
    let status = tokio::task::block_in_place(|| market.sellers[0].node.terminate());
    assert_eq!(
        status.code(),
        Some(0),
        "{}",
        market.sellers[0].node.stderr_tail()
    );
    let text = reading.await.unwrap().text();
    assert!(
        text.contains("data: [DONE]") || Dialect::Chat.has_error_event(&text),
        "{text}"
    );
}
