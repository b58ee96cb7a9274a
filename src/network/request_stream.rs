//! Our own stream behaviour: one libp2p stream for each request under way, opened without passing the runner.
//!
//! An index shared with every [`Control`] names the connections of each peer; `open` picks the best one (QUIC, else
//! the newest), takes a permit of that connection and hands its waiting opener to the connection's task, which
//! negotiates any number in parallel. Accepted streams go into one bounded queue per protocol; what does not fit is
//! reset at once. Invariants: at most [`STREAMS_OPENED_MAX`] streams of ours are open per connection and
//! [`STREAMS_ACCEPTED_MAX`] of the peer's (yamux closes the whole connection on one too many), a permit lives as
//! long as its [`Stream`].
//! Called by `network::behaviour` (swarm side) and `network::handle` (opener side).

mod stream;

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::core::upgrade::{ReadyUpgrade, UpgradeInfo};
use libp2p::multiaddr::Protocol as Segment;
use libp2p::swarm::handler::{
    ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
};
use libp2p::swarm::{
    ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm,
    NetworkBehaviour, StreamUpgradeError, SubstreamProtocol, THandler, THandlerInEvent,
    THandlerOutEvent, ToSwarm,
};
use libp2p::{InboundUpgrade, Multiaddr, PeerId, StreamProtocol};
use parking_lot::RwLock;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::compat::FuturesAsyncReadCompatExt;

pub use stream::{Carrier, Stream};

use stream::Permits;

use super::limits::{
    ACCEPT_QUEUE_MAX, OPEN_TIMEOUT, STREAMS_ACCEPTED_MAX, STREAMS_MAX, STREAMS_OPENED_MAX,
};

/// Streams that ask for a transaction and wait to be taken; each costs a look at the chain.
const RELAY_QUEUE_MAX: usize = 16;
/// Openers on their way to a connection's task.
const OPENERS_QUEUED_MAX: usize = 256;

/// Which of the stream protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// One request.
    Infer,
    /// The ordered money and terms stream of a pair.
    Session,
    /// One signed bundle of calls that the other side is asked to send to the chain.
    Relay,
}

impl Protocol {
    const ALL: [Self; 3] = [Self::Infer, Self::Session, Self::Relay];

    const fn name(self) -> StreamProtocol {
        match self {
            Self::Infer => StreamProtocol::new("/souk/infer/1"),
            Self::Session => StreamProtocol::new("/souk/session/1"),
            Self::Relay => StreamProtocol::new("/souk/relay-tx/1"),
        }
    }
}

/// Why a stream could not be opened on a connection.
#[derive(Debug)]
pub(super) enum StreamError {
    /// No connection to the peer.
    NotConnected,
    /// The connection went away meanwhile.
    Closed,
    /// Every stream of the connection is in use, for longer than the timeout.
    Full,
    /// No answer in time.
    Timeout,
    /// The peer does not speak the protocol.
    Unsupported,
    /// The connection failed.
    Io(io::Error),
}

/// Someone who waits for a stream.
pub(super) struct Opener {
    protocol: Protocol,
    permit: OwnedSemaphorePermit,
    reply: oneshot::Sender<Result<Stream, StreamError>>,
}

#[derive(Clone)]
struct Connection {
    id: ConnectionId,
    quic: bool,
    openers: mpsc::Sender<Opener>,
    permits: Arc<Semaphore>,
}

impl Connection {
    /// False as soon as its task has ended, which is before the swarm reports it.
    fn is_open(&self) -> bool {
        !self.openers.is_closed()
    }
}

#[derive(Default)]
struct Peer {
    connections: Vec<Connection>,
    warm: Arc<AtomicBool>,
}

impl Peer {
    /// Where a stream is opened: QUIC before TCP, and of those the newest, for an older one may be of
    /// a process that was killed since.
    fn best(&self) -> Option<&Connection> {
        let open = self.connections.iter().filter(|c| c.is_open());
        open.max_by_key(|c| (c.quic, c.id))
    }
}

#[derive(Default)]
struct Index {
    peers: RwLock<HashMap<PeerId, Peer>>,
    dropped: AtomicU64,
}

/// Opens streams on existing connections. Cheap to clone.
#[derive(Clone)]
pub(super) struct Control {
    index: Arc<Index>,
}

impl Control {
    /// True when a connection to the peer exists.
    pub(super) fn is_connected(&self, peer: &PeerId) -> bool {
        let peers = self.index.peers.read();
        peers
            .get(peer)
            .is_some_and(|p| p.connections.iter().any(Connection::is_open))
    }
    /// Peers with a connection.
    pub(super) fn connected_peers(&self) -> Vec<PeerId> {
        self.index.peers.read().keys().copied().collect()
    }
    /// Incoming streams that found the accept queue full.
    pub(super) fn dropped(&self) -> u64 {
        self.index.dropped.load(Ordering::Relaxed)
    }
    /// Keeps the connections of a peer open although nothing uses them; false when there is none.
    pub(super) fn keep_warm(&self, peer: &PeerId, warm: bool) -> bool {
        let peers = self.index.peers.read();
        let Some(entry) = peers.get(peer) else {
            return false;
        };
        entry.warm.store(warm, Ordering::Relaxed);
        true
    }
    fn best(&self, peer: &PeerId) -> Option<Connection> {
        let peers = self.index.peers.read();
        peers.get(peer)?.best().cloned()
    }
    /// True while the next stream to `peer` goes over this connection.
    pub(super) fn is_best(&self, peer: &PeerId, carrier: Carrier) -> bool {
        let peers = self.index.peers.read();
        let best = peers.get(peer).and_then(Peer::best);
        best.is_some_and(|connection| connection.id == carrier.0)
    }
    /// The connection of `peer` that was made first.
    pub(super) fn oldest(&self, peer: &PeerId) -> Option<ConnectionId> {
        let peers = self.index.peers.read();
        peers.get(peer)?.connections.iter().map(|c| c.id).min()
    }
    /// Opens a stream on the best connection of `peer`, within `timeout`.
    pub(super) async fn open(
        &self,
        peer: &PeerId,
        protocol: Protocol,
        timeout: Duration,
    ) -> Result<Stream, StreamError> {
        let connection = self.best(peer).ok_or(StreamError::NotConnected)?;
        let permits = connection.permits.clone();
        let work = async {
            let permit = match permits.clone().try_acquire_owned() {
                Ok(permit) => permit,
                Err(_) => permits
                    .acquire_owned()
                    .await
                    .map_err(|_| StreamError::Closed)?,
            };
            let (reply, answer) = oneshot::channel();
            connection
                .openers
                .send(Opener {
                    protocol,
                    permit,
                    reply,
                })
                .await
                .map_err(|_| StreamError::Closed)?;
            answer.await.map_err(|_| StreamError::Closed)?
        };
        match tokio::time::timeout(timeout, work).await {
            Ok(result) => result,
            Err(_) if connection.permits.available_permits() == 0 => Err(StreamError::Full),
            Err(_) => Err(StreamError::Timeout),
        }
    }
}

/// The accepted streams of all protocols.
pub(super) struct Accepted {
    pub(super) infer: mpsc::Receiver<(PeerId, Stream)>,
    pub(super) session: mpsc::Receiver<(PeerId, Stream)>,
    pub(super) relay: mpsc::Receiver<(PeerId, Stream)>,
}

#[derive(Clone)]
struct Acceptors {
    infer: mpsc::Sender<(PeerId, Stream)>,
    session: mpsc::Sender<(PeerId, Stream)>,
    relay: mpsc::Sender<(PeerId, Stream)>,
    node: Arc<Semaphore>,
}

/// The swarm's side.
pub(super) struct Behaviour {
    index: Arc<Index>,
    peer_of: HashMap<ConnectionId, PeerId>,
    acceptors: Acceptors,
}

impl Behaviour {
    /// The behaviour, its opener and its queues of accepted streams.
    pub(super) fn new() -> (Self, Control, Accepted) {
        let (infer, infer_rx) = mpsc::channel(ACCEPT_QUEUE_MAX);
        let (session, session_rx) = mpsc::channel(ACCEPT_QUEUE_MAX);
        let (relay, relay_rx) = mpsc::channel(RELAY_QUEUE_MAX);
        let index = Arc::new(Index::default());
        let behaviour = Self {
            index: index.clone(),
            peer_of: HashMap::new(),
            acceptors: Acceptors {
                infer,
                session,
                relay,
                node: Arc::new(Semaphore::new(STREAMS_MAX)),
            },
        };
        let accepted = Accepted {
            infer: infer_rx,
            session: session_rx,
            relay: relay_rx,
        };
        (behaviour, Control { index }, accepted)
    }
    /// The connection counts as usable only once the swarm has reported it (another behaviour may still refuse it),
    /// but its handler must exist before; so the index entry is made here and removed on failure.
    fn handler(&mut self, id: ConnectionId, peer: PeerId, remote: &Multiaddr) -> Handler {
        self.peer_of.insert(id, peer);
        let (openers, queue) = mpsc::channel(OPENERS_QUEUED_MAX);
        let mut peers = self.index.peers.write();
        let entry = peers.entry(peer).or_default();
        entry.connections.push(Connection {
            id,
            quic: remote
                .iter()
                .any(|s| matches!(s, Segment::QuicV1 | Segment::Quic)),
            openers,
            permits: Arc::new(Semaphore::new(STREAMS_OPENED_MAX)),
        });
        Handler {
            peer,
            carrier: Carrier(id),
            queue,
            warm: entry.warm.clone(),
            index: self.index.clone(),
            acceptors: self.acceptors.clone(),
            inbound: Arc::new(Semaphore::new(STREAMS_ACCEPTED_MAX)),
        }
    }
    fn forget(&mut self, id: ConnectionId) {
        let Some(peer) = self.peer_of.remove(&id) else {
            return;
        };
        let mut peers = self.index.peers.write();
        if let Some(entry) = peers.get_mut(&peer) {
            entry.connections.retain(|c| c.id != id);
            if entry.connections.is_empty() {
                peers.remove(&peer);
            }
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(id, peer, remote))
    }
    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        remote: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(id, peer, remote))
    }
    fn on_swarm_event(&mut self, event: FromSwarm) {
        match event {
            FromSwarm::ConnectionClosed(e) => self.forget(e.connection_id),
            FromSwarm::DialFailure(e) => self.forget(e.connection_id),
            FromSwarm::ListenFailure(e) => self.forget(e.connection_id),
            _ => {}
        }
    }
    fn on_connection_handler_event(
        &mut self,
        _: PeerId,
        _: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {}
    }
    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

/// Accepts any of the protocols and says which.
#[derive(Clone, Copy, Debug)]
pub(super) struct AnyOfThem;

impl UpgradeInfo for AnyOfThem {
    type Info = StreamProtocol;
    type InfoIter = std::array::IntoIter<StreamProtocol, 3>;
    fn protocol_info(&self) -> Self::InfoIter {
        Protocol::ALL.map(Protocol::name).into_iter()
    }
}

impl InboundUpgrade<libp2p::Stream> for AnyOfThem {
    type Output = (Protocol, libp2p::Stream);
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Output, Infallible>>;
    fn upgrade_inbound(self, stream: libp2p::Stream, name: StreamProtocol) -> Self::Future {
        // Only a name that was offered is negotiated.
        let known = Protocol::ALL.into_iter().find(|one| one.name() == name);
        let protocol = known.unwrap_or(Protocol::Infer);
        std::future::ready(Ok((protocol, stream)))
    }
}

/// One connection's side, run by the connection's task.
pub(super) struct Handler {
    peer: PeerId,
    carrier: Carrier,
    queue: mpsc::Receiver<Opener>,
    warm: Arc<AtomicBool>,
    index: Arc<Index>,
    acceptors: Acceptors,
    inbound: Arc<Semaphore>,
}

impl Handler {
    fn accept(&self, protocol: Protocol, io: libp2p::Stream) {
        let permits = self
            .inbound
            .clone()
            .try_acquire_owned()
            .and_then(|c| Ok((c, self.acceptors.node.clone().try_acquire_owned()?)));
        let queue = match protocol {
            Protocol::Infer => &self.acceptors.infer,
            Protocol::Session => &self.acceptors.session,
            Protocol::Relay => &self.acceptors.relay,
        };
        let taken = permits.is_ok_and(|(connection, node)| {
            let stream = Stream {
                io: io.compat(),
                carrier: self.carrier,
                _permits: Permits {
                    _connection: connection,
                    _node: Some(node),
                },
            };
            queue.try_send((self.peer, stream)).is_ok()
        });
        if !taken {
            self.index.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Infallible;
    type ToBehaviour = Infallible;
    type InboundProtocol = AnyOfThem;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Opener;

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(AnyOfThem, ())
    }
    fn connection_keep_alive(&self) -> bool {
        self.warm.load(Ordering::Relaxed)
    }
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, Opener, Self::ToBehaviour>> {
        while let Poll::Ready(Some(opener)) = self.queue.poll_recv(cx) {
            if opener.reply.is_closed() {
                continue;
            }
            let upgrade = ReadyUpgrade::new(opener.protocol.name());
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                protocol: SubstreamProtocol::new(upgrade, opener).with_timeout(OPEN_TIMEOUT),
            });
        }
        Poll::Pending
    }
    fn on_behaviour_event(&mut self, event: Infallible) {
        match event {}
    }
    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<Self::InboundProtocol, Self::OutboundProtocol, (), Opener>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (protocol, io),
                ..
            }) => self.accept(protocol, io),
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: io,
                info: opener,
            }) => {
                let stream = Stream {
                    io: io.compat(),
                    carrier: self.carrier,
                    _permits: Permits {
                        _connection: opener.permit,
                        _node: None,
                    },
                };
                let _ = opener.reply.send(Ok(stream));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError {
                info: opener,
                error,
            }) => {
                let _ = opener.reply.send(Err(match error {
                    StreamUpgradeError::Timeout => StreamError::Timeout,
                    StreamUpgradeError::Io(e) => StreamError::Io(e),
                    _ => StreamError::Unsupported,
                }));
            }
            _ => {}
        }
    }
}
