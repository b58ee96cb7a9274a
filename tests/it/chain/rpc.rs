//! RPC nodes that are down, slow, behind, or on another chain.

use std::sync::Arc;
use std::time::{Duration, Instant};

use souk::chain::{At, Chain, ChainError};
use souk::types::ManualClock;

use super::rpc_of;
use crate::harness::anvil::Anvil;
use crate::harness::chain::rpc_within;
use crate::harness::proxy::{Mode, Proxy};

/// What the silent node may take: longer than a stalled machine takes for a call that is answered.
const SILENCE: Duration = Duration::from_secs(10);

async fn head(chain: &dyn Chain) -> Result<u64, ChainError> {
    Ok(chain.block(At::Latest).await?.unwrap().at.number)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_down_or_silent_is_replaced_by_the_next() {
    let anvil = Anvil::start();
    let first = Proxy::start(anvil.port).await;
    let second = Proxy::start(anvil.port).await;
    let urls = vec![first.url(), second.url()];
    // Time stands for the pool: no node is compared in between, nor is a failed one back from its rest.
    let clock = Arc::new(ManualClock::new(1_700_000_000_000));
    let chain = rpc_within(urls, anvil.chain_id, SILENCE, clock);
    assert_eq!(head(chain.as_ref()).await.unwrap(), 0);
    first.set(Mode::Down);
    assert_eq!(head(chain.as_ref()).await.unwrap(), 0);
    first.set(Mode::Pass);
    second.set(Mode::Stall);
    let before = Instant::now();
    assert_eq!(head(chain.as_ref()).await.unwrap(), 0);
    let took = before.elapsed();
    assert!(took < SILENCE * 2, "one time-out, not more: {took:?}");
    first.set(Mode::Down);
    second.set(Mode::Down);
    match head(chain.as_ref()).await {
        Err(ChainError::Unreachable(why)) => {
            assert!(
                why.contains(&first.url()) && why.contains(&second.url()),
                "{why}"
            );
        }
        other => panic!("{other:?}"),
    }
    second.set(Mode::Pass);
    assert_eq!(
        head(chain.as_ref()).await.unwrap(),
        0,
        "it comes back by itself"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_another_chain_is_refused_and_named() {
    let (ours, other) = (Anvil::start(), Anvil::start());
    let alone = rpc_of(vec![other.url()], ours.chain_id);
    match head(alone.as_ref()).await {
        Err(ChainError::WrongChain {
            expected, found, ..
        }) => {
            assert_eq!((expected, found), (ours.chain_id, other.chain_id));
        }
        wrong => panic!("{wrong:?}"),
    }
    ours.mine(3);
    let both = rpc_of(vec![other.url(), ours.url()], ours.chain_id);
    assert_eq!(head(both.as_ref()).await.unwrap(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_far_behind_the_others_is_not_believed() {
    let best = Anvil::start();
    let late = Anvil::start_as(best.chain_id);
    best.mine(50);
    let chain = rpc_of(vec![late.url(), best.url()], best.chain_id);
    assert_eq!(head(chain.as_ref()).await.unwrap(), 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_an_end_is_not_read_into_memory() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut asked = [0; 4_096];
        let _ = client.read(&mut asked).await;
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{\"a\":\"";
        client.write_all(head.as_bytes()).await.unwrap();
        let mut sent = 0_u64;
        // Until the client has had enough.
        while client.write_all(&[b'x'; 65_536]).await.is_ok() {
            sent += 65_536;
        }
        sent
    });
    let chain = rpc_of(vec![url], 1);
    match head(chain.as_ref()).await {
        Err(ChainError::Unreachable(why)) => assert!(why.contains("longer than"), "{why}"),
        other => panic!("{other:?}"),
    }
    let sent = server.await.unwrap();
    assert!(sent < 80 * 1024 * 1024, "{sent} bytes were taken");
}
