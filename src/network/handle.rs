//! The cheap clone everyone else holds: opens streams, dials, publishes and finds offers.
//!
//! Opening a stream to a connected peer goes straight to the connection's task; only dials and DHT work are commands
//! to the runner (bounded queue, a oneshot each). A peer whose dial has just failed is refused at once for
//! [`DIAL_FAILED_MEMORY`]; the longer memory of dead sellers is `discovery`'s.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use libp2p::multiaddr::Protocol as Segment;
use libp2p::{Multiaddr, PeerId};
use lru::LruCache;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{broadcast, mpsc, oneshot};

use super::address::{is_loopback, is_private, split_peer};
use super::address_book::AddressBook;
use super::limits::PEERS_REMEMBERED_MAX;
use super::measures;
use super::request_stream::{Carrier, Control, Protocol, Stream, StreamError};
use crate::protocol::offer::{ADDRESSES_MAX, OfferKey, OfferSet};

/// How long a failed dial is remembered: longer than a burst of requests, shorter than a restart.
pub const DIAL_FAILED_MEMORY: Duration = Duration::from_secs(2);
/// Events a slow subscriber may lag behind.
pub(super) const EVENTS_MAX: usize = 1_024;
/// DHT replies waiting for their reader.
const REPLIES_MAX: usize = 64;
/// A connection that died while a stream was asked for is tried again this often.
const OPEN_ATTEMPTS_MAX: usize = 5;
/// Pause after which the runner has heard of the end of a connection.
const OPEN_PAUSE: Duration = Duration::from_millis(10);

/// Why a stream could not be opened.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum OpenError {
    /// No address of the peer answered (or it failed a moment ago).
    #[error("peer {0} cannot be reached; another seller may serve")]
    Unreachable(PeerId),
    /// It took too long.
    #[error("peer {0} did not answer in time")]
    Timeout(PeerId),
    /// Too many streams to this peer are open.
    #[error("too many requests to peer {0} are in flight")]
    Busy(PeerId),
    /// It does not speak the protocol.
    #[error("peer {0} does not speak this protocol")]
    Unsupported(PeerId),
    /// The connection broke.
    #[error("the connection to peer {0} broke")]
    Broken(PeerId),
    /// The network is stopping, or too busy to take a command.
    #[error("the node's network is stopping")]
    Stopped,
}

/// What happens on the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkEvent {
    /// The first connection to a peer exists.
    Connected(PeerId),
    /// The last connection to a peer is gone.
    Disconnected(PeerId),
    /// A peer said that it holds records of the DHT (after each new connection).
    Server(PeerId),
    /// A dial failed on all addresses.
    DialFailed(PeerId),
    /// We listen on this address.
    Listening(String),
}

/// One holder's answer in a walk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalkReply {
    /// Who answered; `None`: our own store.
    pub holder: Option<PeerId>,
    /// What it said, unchecked.
    pub set: OfferSet,
}

pub(super) type Reply<T> = oneshot::Sender<T>;

pub(super) enum Command {
    Dial(PeerId, Reply<Result<(), OpenError>>),
    Put(OfferKey, Vec<u8>, Reply<bool>),
    PutTo(PeerId, OfferKey, Vec<u8>, Reply<bool>),
    Get(OfferKey, mpsc::Sender<WalkReply>),
    Catalogue(PeerId, Reply<Option<OfferSet>>),
    Listeners(Reply<Vec<Multiaddr>>),
    Disconnect(PeerId),
    Warm(PeerId, bool),
}

/// What the handle and the runner share.
pub(super) struct Shared {
    pub(super) local: PeerId,
    pub(super) control: Control,
    pub(super) book: AddressBook,
    pub(super) events: broadcast::Sender<NetworkEvent>,
    pub(super) failed: Mutex<LruCache<PeerId, Instant>>,
    pub(super) offers: RwLock<Vec<Bytes>>,
    pub(super) dial_timeout: Duration,
    pub(super) open_timeout: Duration,
    pub(super) external: Vec<Multiaddr>,
}

impl Shared {
    pub(super) fn new(
        local: PeerId,
        control: Control,
        dial_timeout: Duration,
        open_timeout: Duration,
        external: Vec<Multiaddr>,
    ) -> Self {
        let size = NonZeroUsize::new(PEERS_REMEMBERED_MAX).unwrap_or(NonZeroUsize::MIN);
        Self {
            local,
            control,
            book: AddressBook::default(),
            events: broadcast::channel(EVENTS_MAX).0,
            failed: Mutex::new(LruCache::new(size)),
            offers: RwLock::default(),
            dial_timeout,
            open_timeout,
            external,
        }
    }
    pub(super) fn publish(&self, event: NetworkEvent) {
        let _ = self.events.send(event);
    }
}

/// The network, for everyone but the composition root.
#[derive(Clone)]
pub struct Handle {
    pub(super) shared: Arc<Shared>,
    pub(super) commands: mpsc::Sender<Command>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Handle({})", self.shared.local)
    }
}

impl Handle {
    /// Opens a stream; dials first when there is no connection.
    ///
    /// # Errors
    /// Says whether the peer is unreachable, busy or broken; nothing has been sent in any of these cases.
    pub async fn open(&self, peer: &PeerId, protocol: Protocol) -> Result<Stream, OpenError> {
        let control = &self.shared.control;
        for attempt in 0..OPEN_ATTEMPTS_MAX {
            if attempt > 1 {
                tokio::time::sleep(OPEN_PAUSE).await;
            }
            let error = match control.open(peer, protocol, self.shared.open_timeout).await {
                Ok(stream) => return Ok(stream),
                Err(error) => error,
            };
            match error {
                StreamError::NotConnected => self.connect(peer).await?,
                // Nothing was handed out, so asking again cannot double anything.
                StreamError::Closed => {}
                StreamError::Full => return Err(OpenError::Busy(*peer)),
                StreamError::Timeout => return Err(OpenError::Timeout(*peer)),
                StreamError::Unsupported => return Err(OpenError::Unsupported(*peer)),
                StreamError::Io(error) => {
                    tracing::debug!(%peer, %error, "stream not opened");
                    return Err(OpenError::Broken(*peer));
                }
            }
        }
        Err(OpenError::Broken(*peer))
    }
    /// Makes sure there is a connection; refuses at once when a dial failed a moment ago.
    ///
    /// # Errors
    /// When no address answers in time.
    pub async fn connect(&self, peer: &PeerId) -> Result<(), OpenError> {
        if self.is_connected(peer) {
            return Ok(());
        }
        let failed = self.shared.failed.lock().get(peer).copied();
        if failed.is_some_and(|at| at.elapsed() < DIAL_FAILED_MEMORY) {
            return Err(OpenError::Unreachable(*peer));
        }
        let (reply, answer) = oneshot::channel();
        self.send(Command::Dial(*peer, reply)).await?;
        match tokio::time::timeout(self.shared.dial_timeout, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(OpenError::Stopped),
            Err(_) => Err(OpenError::Timeout(*peer)),
        }
    }
    /// Learns addresses and connects, although a dial may just have failed.
    ///
    /// # Errors
    /// When no address answers in time.
    pub async fn dial(&self, peer: &PeerId, addresses: Vec<String>) -> Result<(), OpenError> {
        self.learn(peer, addresses.iter().filter_map(|a| a.parse().ok()));
        self.shared.failed.lock().pop(peer);
        self.connect(peer).await
    }
    /// Remembers addresses of a peer in text form.
    pub fn add_addresses(&self, peer: &PeerId, addresses: &[String]) {
        self.learn(peer, addresses.iter().filter_map(|a| a.parse().ok()));
    }
    /// Remembers addresses of a peer in binary form, as offers carry them.
    pub fn add_raw_addresses(&self, peer: &PeerId, addresses: &[Vec<u8>]) {
        self.learn(
            peer,
            addresses
                .iter()
                .filter_map(|a| Multiaddr::try_from(a.clone()).ok()),
        );
    }
    fn learn(&self, peer: &PeerId, addresses: impl Iterator<Item = Multiaddr>) {
        let list: Vec<_> = addresses.collect();
        if !list.is_empty() {
            self.shared.book.learn(peer, list);
        }
    }
    /// True while the next stream to `peer` goes over the same connection. False for one that ended, and
    /// once there is a newer one: the peer may have been killed and restarted since, and what is said
    /// over the older one is heard by nobody, although it looks alive for [`super::limits::QUIC_IDLE`].
    #[must_use]
    pub fn goes_by(&self, peer: &PeerId, carrier: Carrier) -> bool {
        self.shared.control.is_best(peer, carrier)
    }
    /// True when a connection to the peer exists.
    #[must_use]
    pub fn is_connected(&self, peer: &PeerId) -> bool {
        self.shared.control.is_connected(peer)
    }
    /// All peers with a connection.
    #[must_use]
    pub fn connected_peers(&self) -> Vec<PeerId> {
        self.shared.control.connected_peers()
    }
    /// This node's peer id.
    #[must_use]
    pub fn local_peer(&self) -> PeerId {
        self.shared.local
    }
    /// Peers that worked, latest first, to be given back as `Settings::known_peers` after a restart.
    #[must_use]
    pub fn known_peers(&self) -> Vec<(PeerId, Vec<String>)> {
        self.shared.book.export()
    }
    /// The addresses known of a peer.
    #[must_use]
    pub fn addresses(&self, peer: &PeerId) -> Vec<String> {
        let list = self.shared.book.addresses(peer);
        list.iter().map(ToString::to_string).collect()
    }
    /// Incoming streams that were reset because the accept queue was full.
    #[must_use]
    pub fn streams_dropped(&self) -> u64 {
        self.shared.control.dropped()
    }
    /// Where others reach this node, with `/p2p/…`: external addresses, then those it listens on; waits until every
    /// listener has one.
    pub async fn listeners(&self) -> Vec<String> {
        let local = self.shared.local;
        let external = self.shared.external.iter().cloned();
        external
            .chain(self.listen_addresses().await)
            .filter_map(|a| a.with_p2p(local).ok())
            .map(|a| a.to_string())
            .collect()
    }
    /// The listen addresses in binary form without `/p2p`, as offers carry them.
    pub async fn raw_listeners(&self) -> Vec<Vec<u8>> {
        let list = self.listen_addresses().await;
        list.iter().map(Multiaddr::to_vec).collect()
    }
    /// The at most four addresses an offer should carry: external ones, then what we listen on, public before
    /// private, QUIC before TCP, loopback only when there is nothing else.
    pub async fn offer_addresses(&self) -> Vec<Vec<u8>> {
        let mut list = self.listen_addresses().await;
        if list.iter().any(|a| !is_loopback(a)) {
            list.retain(|a| !is_loopback(a));
        }
        list.sort_by_key(|a| {
            (
                is_private(a),
                a.iter().any(|s| matches!(s, Segment::Tcp(_))),
            )
        });
        let all = self.shared.external.iter().cloned().chain(list);
        let bare = all.map(|a| split_peer(a).0.to_vec());
        bare.take(ADDRESSES_MAX).collect()
    }
    async fn listen_addresses(&self) -> Vec<Multiaddr> {
        let (reply, answer) = oneshot::channel();
        if self.send(Command::Listeners(reply)).await.is_err() {
            return Vec::new();
        }
        answer.await.unwrap_or_default()
    }
    /// Closes all connections to a peer.
    pub async fn disconnect(&self, peer: &PeerId) {
        let _ = self.send(Command::Disconnect(*peer)).await;
    }
    /// Keeps a connection to a peer open, and dials again when it breaks, until switched off.
    pub async fn keep_warm(&self, peer: &PeerId, warm: bool) {
        let _ = self.send(Command::Warm(*peer, warm)).await;
    }
    /// Puts a set of offers under a key of the DHT; true when at least one holder took the message (which does not
    /// mean that it kept them: read them back).
    pub async fn put_offers(&self, key: OfferKey, set: Vec<u8>) -> bool {
        let (reply, answer) = oneshot::channel();
        let sent = self.send(Command::Put(key, set, reply)).await;
        measures::put(sent.is_ok() && answer.await.unwrap_or(false))
    }
    /// Puts a set of offers at one holder, if it is among those closest to the key.
    pub async fn put_offers_to(&self, peer: &PeerId, key: OfferKey, set: Vec<u8>) -> bool {
        let (reply, answer) = oneshot::channel();
        let sent = self.send(Command::PutTo(*peer, key, set, reply)).await;
        measures::put(sent.is_ok() && answer.await.unwrap_or(false))
    }
    /// Starts a walk for the offers under a key; replies come as holders answer, until the walk is over (the channel
    /// closes) or the receiver is dropped. Offers are raw and unchecked, so only the reader knows when it has enough.
    pub async fn walk_offers(&self, key: OfferKey) -> mpsc::Receiver<WalkReply> {
        let (sink, replies) = mpsc::channel(REPLIES_MAX);
        measures::walked();
        let _ = self.send(Command::Get(key, sink)).await;
        replies
    }
    /// Walks until `want` distinct raw offers are seen or the walk is over.
    pub async fn get_offers(&self, key: OfferKey, want: usize) -> Vec<Bytes> {
        let mut replies = self.walk_offers(key).await;
        let mut all = std::collections::HashSet::new();
        while let Some(reply) = replies.recv().await {
            all.extend(reply.set.offers);
            if all.len() >= want {
                break;
            }
        }
        all.into_iter().collect()
    }
    /// Asks a peer for the offers it makes and holds; `None` when it does not answer. Raw and unchecked.
    pub async fn pull_catalogue(&self, peer: &PeerId) -> Option<Vec<Bytes>> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Catalogue(*peer, reply)).await.ok()?;
        let set = answer.await.ok().flatten();
        measures::pulled(set.is_some());
        set.map(|set| set.offers)
    }
    /// What this node answers to catalogue pulls about itself.
    pub fn set_local_offers(&self, offers: Vec<Bytes>) {
        *self.shared.offers.write() = offers;
    }
    /// Events from now on; a slow reader loses the oldest.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<NetworkEvent> {
        self.shared.events.subscribe()
    }
    async fn send(&self, command: Command) -> Result<(), OpenError> {
        self.commands
            .send(command)
            .await
            .map_err(|_| OpenError::Stopped)
    }
}
