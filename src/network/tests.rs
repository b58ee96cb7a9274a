//! Swarms in one process, on loopback.
#![allow(
    clippy::disallowed_methods,
    reason = "tests spawn what the composition root would"
)]
use super::*;
use crate::types::SystemClock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

pub(crate) const NET: &str = crate::protocol::offer::tests::NET;

/// A running node; stops when dropped.
pub(crate) struct Node {
    pub(crate) handle: Handle,
    pub(crate) incoming: Option<Incoming>,
    pub(crate) cancel: CancellationToken,
    pub(crate) task: Option<tokio::task::JoinHandle<Result<(), NetworkError>>>,
    pub(crate) key: ed25519_dalek::SigningKey,
    apart: Option<tokio::runtime::Runtime>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.cancel.cancel();
        if let Some(runtime) = self.apart.take() {
            runtime.shutdown_background();
        }
    }
}

impl Node {
    /// Ends at once, like a killed process: no goodbye, the sockets gone.
    pub(crate) fn kill(mut self) {
        let runtime = self
            .apart
            .take()
            .expect("only nodes of `run_apart` can be killed");
        runtime.shutdown_background();
    }
    pub(crate) async fn stop(mut self) {
        self.cancel.cancel();
        if let Some(task) = self.task.take() {
            task.await.unwrap().unwrap();
        }
    }
}

pub(crate) const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";
pub(crate) const TCP: &str = "/ip4/127.0.0.1/tcp/0";

pub(crate) fn settings(seed: u64, listen: &[&str], bootstrap: &[String]) -> Settings {
    let key = crate::protocol::offer::tests::seller(seed).0;
    Settings {
        network: NET.to_owned(),
        listen: listen.iter().map(ToString::to_string).collect(),
        bootstrap: bootstrap.to_vec(),
        // However loaded the machine: it is no test's subject how soon a stream opens.
        open_timeout: limits::OPEN_TIMEOUT * SLOWNESS,
        ..Settings::new(Secret::new(key.to_bytes()))
    }
}

/// A node in a runtime of its own, so that it can be killed.
pub(crate) fn run_apart(settings: Settings) -> Node {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let mut node = {
        let _guard = runtime.enter();
        run(settings)
    };
    node.apart = Some(runtime);
    node
}

pub(crate) fn run(settings: Settings) -> Node {
    let key = ed25519_dalek::SigningKey::from_bytes(settings.seed.expose());
    let (handle, incoming, runner) = start(settings, Arc::new(SystemClock)).unwrap();
    let cancel = CancellationToken::new();
    let task = tokio::spawn(runner.run(cancel.clone()));
    Node {
        handle,
        incoming: Some(incoming),
        cancel,
        task: Some(task),
        key,
        apart: None,
    }
}

/// Times as slow as an idle one may a loaded machine be.
const SLOWNESS: u32 = 10;

/// The first port of [`own`] and how many follow: port 0 hands out 32768 to 60999.
const PORTS: (u16, u16) = (10_000, 22_000);

/// The address with a port of its own instead of 0: the system gives it to nobody else while the node
/// that listens there is dead.
pub(crate) fn own(listen: &str) -> String {
    static NEXT: std::sync::LazyLock<std::sync::atomic::AtomicU16> =
        std::sync::LazyLock::new(|| std::sync::atomic::AtomicU16::new(rand::random()));
    loop {
        let next = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let port = PORTS.0 + next % PORTS.1;
        let at = (std::net::Ipv4Addr::LOCALHOST, port);
        if std::net::UdpSocket::bind(at).is_ok() && std::net::TcpListener::bind(at).is_ok() {
            return listen
                .replace("/udp/0", &format!("/udp/{port}"))
                .replace("/tcp/0", &format!("/tcp/{port}"));
        }
    }
}

/// What takes so many seconds at most on an idle machine.
pub(crate) async fn within<T>(seconds: u64, what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(seconds) * SLOWNESS, what)
        .await
        .expect("took too long")
}

pub(crate) async fn until(seconds: u64, mut what: impl FnMut() -> bool) {
    within(seconds, async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// Echoes everything on every stream.
pub(crate) fn echo(node: &mut Node) {
    let mut incoming = node.incoming.take().unwrap();
    tokio::spawn(async move {
        loop {
            let (_, stream) = tokio::select! {
                Some(s) = incoming.infer.recv() => s,
                Some(s) = incoming.session.recv() => s,
                else => return,
            };
            tokio::spawn(async move {
                let (mut read, mut write) = tokio::io::split(stream);
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
}

pub(crate) async fn round_trip(stream: &mut Stream, text: &[u8]) -> std::io::Result<Vec<u8>> {
    stream.write_all(text).await?;
    stream.flush().await?;
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).await?;
    Ok(back)
}

async fn many_streams(listen: &'static str) {
    let mut seller = run(settings(1, &[listen], &[]));
    echo(&mut seller);
    let buyer = run(settings(2, &[listen], &[]));
    let peer = seller.handle.local_peer();
    let addresses = within(5, seller.handle.listeners()).await;
    assert!(addresses[0].ends_with(&format!("/p2p/{peer}")));
    within(5, buyer.handle.dial(&peer, addresses))
        .await
        .unwrap();
    assert!(buyer.handle.is_connected(&peer));
    let jobs = (0..256u32).map(|i| {
        let handle = buyer.handle.clone();
        tokio::spawn(async move {
            let kind = if i % 8 == 0 {
                Protocol::Session
            } else {
                Protocol::Infer
            };
            let mut stream = handle.open(&peer, kind).await.unwrap();
            let text = vec![u8::try_from(i % 251).unwrap(); 3_000];
            assert_eq!(round_trip(&mut stream, &text).await.unwrap(), text);
            stream.shutdown().await.unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.unwrap();
            assert!(rest.is_empty());
        })
    });
    for job in jobs.collect::<Vec<_>>() {
        within(20, job).await.unwrap();
    }
    assert_eq!(seller.handle.streams_dropped(), 0);
    buyer.stop().await;
    until(5, || seller.handle.connected_peers().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_256_in_parallel_echo_over_quic() {
    many_streams(QUIC).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_256_in_parallel_echo_over_tcp() {
    many_streams(TCP).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_streams_than_a_connection_carries_wait_for_their_turn() {
    let mut seller = run(settings(3, &[TCP], &[]));
    echo(&mut seller);
    let buyer = run(settings(4, &[TCP], &[]));
    let peer = seller.handle.local_peer();
    within(5, buyer.handle.dial(&peer, seller.handle.listeners().await))
        .await
        .unwrap();
    let jobs: Vec<_> = (0..1_500u32)
        .map(|_| {
            let handle = buyer.handle.clone();
            tokio::spawn(async move {
                let mut stream = handle.open(&peer, Protocol::Infer).await.unwrap();
                assert_eq!(round_trip(&mut stream, b"x").await.unwrap(), b"x");
                tokio::time::sleep(Duration::from_millis(50)).await;
                stream.shutdown().await.unwrap();
            })
        })
        .collect();
    for job in jobs {
        within(30, job).await.unwrap();
    }
    assert!(buyer.handle.is_connected(&peer));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_without_connection_is_dialled_by_its_known_address() {
    let mut seller = run(settings(5, &[QUIC, TCP], &[]));
    echo(&mut seller);
    let buyer = run(settings(6, &[QUIC], &[]));
    let peer = seller.handle.local_peer();
    buyer
        .handle
        .add_raw_addresses(&peer, &seller.handle.raw_listeners().await);
    let opens = (0..20).map(|_| buyer.handle.open(&peer, Protocol::Infer));
    for stream in within(5, futures::future::join_all(opens)).await {
        assert_eq!(
            round_trip(&mut stream.unwrap(), b"hi").await.unwrap(),
            b"hi"
        );
    }
    until(5, || !buyer.handle.known_peers().is_empty()).await;
    assert_eq!(buyer.handle.known_peers()[0].0, peer);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreachable_peer_fails_and_then_fails_fast() {
    let buyer = run(settings(7, &[QUIC], &[]));
    let gone = crate::protocol::offer::tests::seller(8).1;
    buyer
        .handle
        .add_addresses(&gone, &["/ip4/127.0.0.1/tcp/1".to_owned()]);
    let error = within(8, buyer.handle.open(&gone, Protocol::Infer))
        .await
        .unwrap_err();
    assert_eq!(error, OpenError::Unreachable(gone));
    // Remembered, or not even tried: before a dial's time is over.
    let unknown = crate::protocol::offer::tests::seller(9).1;
    for peer in [gone, unknown] {
        let open = buyer.handle.open(&peer, Protocol::Infer);
        let error = tokio::time::timeout(limits::DIAL_TIMEOUT, open).await;
        assert_eq!(error.unwrap().unwrap_err(), OpenError::Unreachable(peer));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_peer_is_noticed_and_a_restarted_one_is_found_again() {
    let boot = run_apart(settings(10, &[&own(QUIC)], &[]));
    let addresses = boot.handle.listeners().await;
    let bare = addresses[0].split("/p2p/").next().unwrap().to_owned();
    // Without /p2p: the identity comes from the handshake.
    let node = run(settings(11, &[QUIC], std::slice::from_ref(&bare)));
    let peer = boot.handle.local_peer();
    until(10, || node.handle.is_connected(&peer)).await;
    boot.kill();
    until(30, || !node.handle.is_connected(&peer)).await;
    let again = run(settings(10, &[&bare], &[]));
    until(30, || node.handle.is_connected(&peer)).await;
    drop(again);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_a_peer_killed_again_and_again_is_let_in() {
    let mut seller = run(settings(22, &[QUIC], &[]));
    echo(&mut seller);
    let (peer, list) = (seller.handle.local_peer(), seller.handle.listeners().await);
    // Each life leaves a connection that the seller holds alive for some seconds more.
    for _ in 0..limits::CONNECTIONS_PER_PEER_MAX + 2 {
        let buyer = run_apart(settings(23, &[QUIC], &[]));
        within(10, buyer.handle.dial(&peer, list.clone()))
            .await
            .unwrap();
        let opened = within(10, buyer.handle.open(&peer, Protocol::Infer)).await;
        let back = within(10, round_trip(&mut opened.unwrap(), b"hi")).await;
        assert_eq!(back.unwrap(), b"hi");
        buyer.kill();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_can_be_found_by_its_id_alone() {
    let boot = run(settings(12, &[QUIC], &[]));
    let list = boot.handle.listeners().await;
    let mut seller = run(settings(13, &[QUIC], &list));
    echo(&mut seller);
    let buyer = run(settings(14, &[QUIC], &list));
    let (b, s) = (boot.handle.local_peer(), seller.handle.local_peer());
    until(10, || {
        buyer.handle.is_connected(&b) && seller.handle.is_connected(&b)
    })
    .await;
    let mut stream = within(15, async {
        loop {
            if let Ok(stream) = buyer.handle.open(&s, Protocol::Infer).await {
                return stream;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })
    .await;
    assert_eq!(round_trip(&mut stream, b"found").await.unwrap(), b"found");
    buyer.handle.disconnect(&s).await;
    until(5, || !buyer.handle.is_connected(&s)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taken_port_is_refused_with_its_address() {
    let first = run(settings(15, &[TCP], &[]));
    let bare = first.handle.listeners().await[0]
        .split("/p2p/")
        .next()
        .unwrap()
        .to_owned();
    let second = start(settings(16, &[&bare], &[]), Arc::new(SystemClock));
    assert!(matches!(second, Err(NetworkError::Listen(a, _)) if a == bare));
    let wrong = start(settings(16, &["nonsense"], &[]), Arc::new(SystemClock));
    assert!(matches!(wrong, Err(NetworkError::Address(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_warm_peer_is_dialled_again_when_its_connection_breaks() {
    let seller = run(settings(19, &[QUIC], &[]));
    let buyer = run(settings(20, &[QUIC], &[]));
    let peer = seller.handle.local_peer();
    within(5, buyer.handle.dial(&peer, seller.handle.listeners().await))
        .await
        .unwrap();
    buyer.handle.keep_warm(&peer, true).await;
    let mut events = buyer.handle.subscribe();
    // The dialler knows of a connection first; one that the seller does not know cannot be closed.
    until(10, || {
        seller.handle.is_connected(&buyer.handle.local_peer())
    })
    .await;
    seller.handle.disconnect(&buyer.handle.local_peer()).await;
    let mut seen = Vec::new();
    within(30, async {
        while seen.len() < 2 {
            match events.recv().await.unwrap() {
                NetworkEvent::Server(_) => {}
                event => seen.push(event),
            }
        }
    })
    .await;
    assert_eq!(
        seen,
        [
            NetworkEvent::Disconnected(peer),
            NetworkEvent::Connected(peer)
        ]
    );
    buyer.handle.keep_warm(&peer, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offer_carries_outside_addresses_first_and_quic_before_tcp() {
    let node = run(Settings {
        external: vec!["/dns4/node.example.org/udp/4001/quic-v1".to_owned()],
        ..settings(21, &[TCP, QUIC], &[])
    });
    let list: Vec<String> = node
        .handle
        .offer_addresses()
        .await
        .into_iter()
        .map(|raw| Multiaddr::try_from(raw).unwrap().to_string())
        .collect();
    assert_eq!(list[0], "/dns4/node.example.org/udp/4001/quic-v1");
    assert!(
        list[1].contains("quic-v1") && list[2].contains("/tcp/"),
        "{list:?}"
    );
}
