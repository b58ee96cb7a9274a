//! The runner: owns the swarm, takes commands, dials what must stay connected. It never awaits anyone's work.
//!
//! Invariants: bootstrap and warm peers are dialled again with a growing pause for as long as the node runs; a peer
//! whose dial failed leaves the DHT's routing table; waiters of a dial are answered when it ends.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use libp2p::core::transport::ListenerId;
use libp2p::identity::Keypair;
use libp2p::kad;
use libp2p::multiaddr::Protocol as Segment;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError, Swarm};
use libp2p::{Multiaddr, PeerId};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::address::{Policy, ip_of, is_loopback, is_private, split_peer};
use super::behaviour::{Behaviour, CatalogueRequest};
use super::dht::Questions;
use super::handle::{Command, Handle, NetworkEvent, OpenError, Reply, Shared};
use super::rate::Buckets;
use super::{Incoming, NetworkError, Settings, limits, parse_all, request_stream, transport};
use crate::types::Clock;

/// How often the runner looks at what should be connected.
const TICK: Duration = Duration::from_millis(250);
/// How often expired offers are forgotten, in ticks.
const SWEEP_TICKS: u64 = 240;
/// First and last pause between dials of a bootstrap or warm peer.
const REDIAL_MIN: Duration = Duration::from_millis(500);
const REDIAL_MAX: Duration = Duration::from_secs(30);
/// Known peers dialled at once at the start.
const KNOWN_PEERS_DIALLED: usize = 16;
/// Warm peers at most.
const WARM_PEERS_MAX: usize = 256;
/// Time for connections to say goodbye at the end.
const GOODBYE: Duration = Duration::from_millis(300);
/// Offers a peer may publish at once and per second: a seller's 128 models under two keys each.
const PUT_BURST: u64 = 512;
const PUT_PER_SECOND: u64 = 32;
/// Catalogue pulls a peer gets at once and per second.
const PULL_BURST: u64 = 16;
const PULL_PER_SECOND: u64 = 1;

/// An address that must stay connected.
pub(super) struct Anchor {
    address: Option<Multiaddr>,
    pub(super) peer: Option<PeerId>,
    dialling: Option<ConnectionId>,
    next: Instant,
    pause: Duration,
}

impl Anchor {
    fn new(address: Option<Multiaddr>, peer: Option<PeerId>) -> Self {
        Self {
            address,
            peer,
            dialling: None,
            next: Instant::now(),
            pause: REDIAL_MIN,
        }
    }
}

/// Callers waiting for one dial.
pub(super) struct Dialling {
    connection: Option<ConnectionId>,
    pub(super) waiters: Vec<Reply<Result<(), OpenError>>>,
}

/// Drives the swarm until cancelled.
pub struct Runner {
    pub(super) swarm: Swarm<Behaviour>,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) shared: Arc<Shared>,
    pub(super) policy: Policy,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) questions: Questions,
    pub(super) anchors: Vec<Anchor>,
    pub(super) dialling: HashMap<PeerId, Dialling>,
    pub(super) listeners: HashMap<ListenerId, Vec<Multiaddr>>,
    pub(super) listener_waiters: Vec<Reply<Vec<Multiaddr>>>,
    pub(super) remotes: HashMap<ConnectionId, Multiaddr>,
    pub(super) put_rate: Buckets,
    pub(super) pull_rate: Buckets,
    pub(super) catalogue: super::events::CatalogueCache,
    known: Vec<PeerId>,
    ticks: u64,
}

/// Builds everything and binds the listeners.
pub(super) fn start(
    settings: &Settings,
    clock: Arc<dyn Clock>,
) -> Result<(Handle, Incoming, Runner), NetworkError> {
    let mut seed = *settings.seed.expose();
    let keypair = Keypair::ed25519_from_bytes(&mut seed)
        .map_err(|e| NetworkError::Identity(e.to_string()))?;
    let local = keypair.public().to_peer_id();
    let listen = parse_all(&settings.listen)?;
    let bootstrap = parse_all(&settings.bootstrap)?;
    let external = parse_all(&settings.external)?;
    let policy = Policy::new(&listen, &external, &bootstrap);
    let (streams, control, incoming) = request_stream::Behaviour::new();
    let use_mdns = settings.mdns && bootstrap.is_empty() && listen.iter().any(|a| !is_loopback(a));
    let behaviour = Behaviour::new(&keypair, settings, streams, clock.clone(), use_mdns)?;
    let transport = transport::build(&keypair, &policy, settings.dial_timeout)?;
    let config = libp2p::swarm::Config::with_tokio_executor()
        .with_idle_connection_timeout(limits::CONNECTION_IDLE)
        .with_max_negotiating_inbound_streams(limits::NEGOTIATING_STREAMS_MAX)
        .with_substream_upgrade_protocol_override(libp2p::core::upgrade::Version::V1Lazy)
        .with_smart_dial();
    let mut swarm = Swarm::new(transport, behaviour, local, config);
    let listeners = listen_on(&mut swarm, &listen)?;
    for address in &external {
        swarm.add_external_address(address.clone());
    }
    let is_public = !external.is_empty() || listen.iter().any(|a| !is_private(a));
    let is_near = policy.private_allowed() && !listen.is_empty();
    let mode = if settings.server.unwrap_or(is_public || is_near) {
        kad::Mode::Server
    } else {
        kad::Mode::Client
    };
    swarm.behaviour_mut().kad.set_mode(Some(mode));
    let shared = Arc::new(Shared::new(
        local,
        control,
        settings.dial_timeout,
        settings.open_timeout,
        external,
    ));
    let known = remember(&shared, &policy, settings);
    let anchors = bootstrap
        .into_iter()
        .map(split_peer)
        .filter(|(_, peer)| *peer != Some(local))
        .map(|(address, peer)| Anchor::new(Some(address), peer))
        .collect();
    let (sender, commands) = mpsc::channel(limits::COMMANDS_MAX);
    let handle = Handle {
        shared: shared.clone(),
        commands: sender,
    };
    let runner = Runner {
        swarm,
        commands,
        shared,
        policy,
        clock,
        questions: Questions::default(),
        anchors,
        dialling: HashMap::new(),
        listeners,
        listener_waiters: Vec::new(),
        remotes: HashMap::new(),
        put_rate: Buckets::new(PUT_BURST, PUT_PER_SECOND),
        pull_rate: Buckets::new(PULL_BURST, PULL_PER_SECOND),
        catalogue: super::events::CatalogueCache::default(),
        known,
        ticks: 0,
    };
    Ok((handle, incoming, runner))
}

fn listen_on(
    swarm: &mut Swarm<Behaviour>,
    listen: &[Multiaddr],
) -> Result<HashMap<ListenerId, Vec<Multiaddr>>, NetworkError> {
    let mut listeners = HashMap::new();
    for address in listen {
        let refused = |why: String| NetworkError::Listen(address.to_string(), why);
        check_port(address).map_err(|e| refused(e.to_string()))?;
        let id = swarm
            .listen_on(address.clone())
            .map_err(|e| refused(describe(&e)))?;
        listeners.insert(id, Vec::new());
    }
    Ok(listeners)
}

/// libp2p listens with SO_REUSEPORT, so a second node on a TCP port would silently get half of its connections; a plain
/// bind finds out. Unresolvable and non-TCP addresses are left to the transport.
fn check_port(address: &Multiaddr) -> std::io::Result<()> {
    let mut parts = address.iter();
    let (Some(ip), Some(Segment::Tcp(port))) = (ip_of(address), parts.nth(1)) else {
        return Ok(());
    };
    if port == 0 {
        return Ok(());
    }
    std::net::TcpListener::bind((ip, port)).map(drop)
}

/// libp2p wraps its errors in ones that print nothing.
fn describe(error: &dyn std::error::Error) -> String {
    let mut next = Some(error);
    let mut parts: Vec<String> = Vec::new();
    while let Some(error) = next {
        let text = error.to_string();
        if !text.is_empty() && !parts.contains(&text) {
            parts.push(text);
        }
        next = error.source();
    }
    if parts.is_empty() {
        format!("{error:?}")
    } else {
        parts.join(": ")
    }
}

/// Puts the persisted peers into the address book; they worked once, so private addresses of theirs count.
fn remember(shared: &Shared, policy: &Policy, settings: &Settings) -> Vec<PeerId> {
    let mut known = Vec::new();
    for (peer, addresses) in &settings.known_peers {
        let list: Vec<Multiaddr> = addresses.iter().filter_map(|a| a.parse().ok()).collect();
        if *peer == shared.local || list.is_empty() {
            continue;
        }
        for address in &list {
            policy.trust(address);
        }
        shared.book.learn(peer, list);
        if known.len() < KNOWN_PEERS_DIALLED {
            known.push(*peer);
        }
    }
    known
}

impl Runner {
    /// Runs until cancelled.
    ///
    /// # Errors
    /// None at present; the signature leaves room for a transport that dies.
    pub async fn run(mut self, cancel: CancellationToken) -> Result<(), NetworkError> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // All at once: whoever answers first is used first, dead ones delay nobody.
        for peer in std::mem::take(&mut self.known) {
            self.dial_peer(peer, None);
        }
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                command = self.commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => break,
                },
                event = self.swarm.select_next_some() => self.event(event),
                _ = tick.tick() => self.tick(),
            }
        }
        self.goodbye().await;
        Ok(())
    }
    async fn goodbye(&mut self) {
        let peers: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        for peer in peers {
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let closing = async {
            while self.swarm.network_info().num_peers() > 0 {
                self.swarm.select_next_some().await;
            }
        };
        let _ = tokio::time::timeout(GOODBYE, closing).await;
    }
    fn command(&mut self, command: Command) {
        let kad = &mut self.swarm.behaviour_mut().kad;
        match command {
            Command::Dial(peer, reply) => self.dial_peer(peer, Some(reply)),
            Command::Put(key, set, reply) => self.questions.put(kad, key, set, reply),
            Command::PutTo(peer, key, set, reply) => {
                self.questions.put_to(kad, peer, key, set, reply);
            }
            Command::Get(key, sink) => self.questions.walk(kad, key, sink),
            Command::Catalogue(peer, reply) => {
                let bytes_max = u32::try_from(limits::CATALOGUE_BYTES_MAX).unwrap_or(u32::MAX);
                let request = CatalogueRequest { bytes_max };
                let catalogue = &mut self.swarm.behaviour_mut().catalogue;
                let id = catalogue.send_request(&peer, request);
                self.questions.pulls.insert(id, reply);
            }
            Command::Listeners(reply) => {
                self.listener_waiters.push(reply);
                self.answer_listener_waiters();
            }
            Command::Disconnect(peer) => {
                let _ = self.swarm.disconnect_peer_id(peer);
            }
            Command::Warm(peer, warm) => self.keep_warm(peer, warm),
        }
    }
    fn keep_warm(&mut self, peer: PeerId, warm: bool) {
        self.shared.control.keep_warm(&peer, warm);
        let is_anchor = self.anchors.iter().any(|a| a.peer == Some(peer));
        let warm_count = self.anchors.iter().filter(|a| a.address.is_none()).count();
        if warm && !is_anchor && warm_count < WARM_PEERS_MAX {
            self.anchors.push(Anchor::new(None, Some(peer)));
        } else if !warm {
            self.anchors
                .retain(|a| a.address.is_some() || a.peer != Some(peer));
        }
    }
    /// True when a peer's connections stay open although nothing uses them.
    pub(super) fn is_anchor(&self, peer: &PeerId) -> bool {
        self.anchors.iter().any(|a| a.peer.as_ref() == Some(peer))
    }
    pub(super) fn answer_listener_waiters(&mut self) {
        if self.listeners.values().any(Vec::is_empty) {
            return;
        }
        let all: Vec<Multiaddr> = self.listeners.values().flatten().cloned().collect();
        for waiter in self.listener_waiters.drain(..) {
            let _ = waiter.send(all.clone());
        }
    }
    fn tick(&mut self) {
        self.ticks = self.ticks.wrapping_add(1);
        if self.ticks.is_multiple_of(SWEEP_TICKS) {
            self.swarm.behaviour_mut().kad.store_mut().sweep();
        }
        let now = Instant::now();
        for index in 0..self.anchors.len() {
            self.dial_anchor(index, now);
        }
    }
    fn dial_anchor(&mut self, index: usize, now: Instant) {
        let Some(anchor) = self.anchors.get_mut(index) else {
            return;
        };
        let connected = anchor.peer.is_some_and(|p| self.swarm.is_connected(&p));
        if connected {
            anchor.pause = REDIAL_MIN;
            return;
        }
        if anchor.dialling.is_some() || anchor.next > now {
            return;
        }
        anchor.pause = (anchor.pause * 2).min(REDIAL_MAX);
        let spread = rand::random_range(0.8..1.2);
        anchor.next = now + anchor.pause.mul_f64(spread);
        let options = match (&anchor.address, anchor.peer) {
            (Some(address), None) => DialOpts::unknown_peer_id().address(address.clone()).build(),
            (address, Some(peer)) => {
                let mut addresses = self.shared.book.addresses(&peer);
                addresses.extend(address.clone());
                DialOpts::peer_id(peer)
                    .condition(PeerCondition::DisconnectedAndNotDialing)
                    .addresses(addresses)
                    .extend_addresses_through_behaviour()
                    .build()
            }
            (None, None) => return,
        };
        let id = options.connection_id();
        if self.swarm.dial(options).is_ok() {
            anchor.dialling = Some(id);
        }
    }
    /// A dial of an anchor ended, well or not.
    pub(super) fn anchor_ended(&mut self, id: ConnectionId, peer: Option<PeerId>) {
        for anchor in &mut self.anchors {
            if anchor.dialling == Some(id) {
                anchor.dialling = None;
                if anchor.peer.is_none() {
                    anchor.peer = peer;
                }
            }
        }
        if peer == Some(self.shared.local) {
            self.anchors.retain(|a| a.peer != peer);
        }
    }
    pub(super) fn dial_peer(&mut self, peer: PeerId, reply: Option<Reply<Result<(), OpenError>>>) {
        if self.swarm.is_connected(&peer) {
            if let Some(reply) = reply {
                let _ = reply.send(Ok(()));
            }
            return;
        }
        let waiting: usize = self.dialling.values().map(|d| d.waiters.len()).sum();
        if waiting >= limits::DIAL_WAITERS_MAX {
            // Dropping the reply tells the caller at once.
            return;
        }
        if let Some(dialling) = self.dialling.get_mut(&peer) {
            dialling.waiters.extend(reply);
            return;
        }
        let mut dialling = Dialling {
            connection: None,
            waiters: Vec::new(),
        };
        dialling.waiters.extend(reply);
        self.dialling.insert(peer, dialling);
        self.dial_now(peer, true);
    }
    /// Dials a peer somebody waits for; without any address the DHT is asked once.
    pub(super) fn dial_now(&mut self, peer: PeerId, may_resolve: bool) {
        let options = DialOpts::peer_id(peer)
            .condition(PeerCondition::Disconnected)
            .addresses(self.shared.book.addresses(&peer))
            .extend_addresses_through_behaviour()
            .build();
        let id = options.connection_id();
        if let Some(dialling) = self.dialling.get_mut(&peer) {
            dialling.connection = Some(id);
        }
        match self.swarm.dial(options) {
            Ok(()) => {}
            Err(DialError::DialPeerConditionFalse(_)) => self.dial_done(&peer, &Ok(())),
            Err(DialError::NoAddresses)
                if may_resolve
                    && self
                        .questions
                        .resolve(&mut self.swarm.behaviour_mut().kad, peer) => {}
            Err(error) => {
                tracing::debug!(%peer, %error, "dial refused");
                self.dial_failed(&peer);
            }
        }
    }
    pub(super) fn dial_ended(&mut self, id: ConnectionId, peer: &PeerId) {
        let ours = self
            .dialling
            .get(peer)
            .is_some_and(|d| d.connection == Some(id));
        if ours {
            self.dial_failed(peer);
        }
    }
    pub(super) fn dial_failed(&mut self, peer: &PeerId) {
        self.shared.failed.lock().put(*peer, Instant::now());
        self.shared.publish(NetworkEvent::DialFailed(*peer));
        self.dial_done(peer, &Err(OpenError::Unreachable(*peer)));
    }
    pub(super) fn dial_done(&mut self, peer: &PeerId, result: &Result<(), OpenError>) {
        if let Some(dialling) = self.dialling.remove(peer) {
            for waiter in dialling.waiters {
                let _ = waiter.send(result.clone());
            }
        }
    }
}
