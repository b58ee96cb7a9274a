//! A scripted peer: keys and a libp2p node of its own, and none of the product's rules. It speaks
//! the wire format frame by frame, so a test can say what no honest node would.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use souk::keys::{NodeKeys, Seed, WordCount};
use souk::network::framed::{FrameReader, FrameWriter};
use souk::network::{self, Handle, Incoming, Protocol, Settings, Stream};
use souk::protocol::frame::Frame;
use souk::protocol::offer::SignedOffer;
use souk::protocol::session::{Accept, Hello, MODE_CREDIT, Open, SyncBuyer, SyncSeller};
use souk::protocol::voucher::{CreditParty, VoucherDomain};
use souk::protocol::{
    ChannelDescriptor, EvmSignature, FrameKind, PeerError, RequestHead, SessionMessage, SignedHead,
    SignedReceipt, SignedTerms, Terms, Voucher, WIRE_VERSION,
};
use souk::types::{AttemptId, ChannelId, Clock, Hash32, MicroUsd, PeerId, RequestId, SystemClock};
use tokio::io::{ReadHalf, WriteHalf};
use tokio_util::sync::CancellationToken;

/// Whatever a peer waits for comes within this, on a busy machine too.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The network that nodes are in by default.
pub const NETWORK: &str = "souk-1";

pub type Reader = FrameReader<ReadHalf<Stream>>;
pub type Writer = FrameWriter<WriteHalf<Stream>>;

/// A peer that does what a test tells it.
pub struct Peer {
    pub keys: NodeKeys,
    pub handle: Handle,
    pub incoming: Option<Incoming>,
    cancel: CancellationToken,
    nonces: AtomicU64,
    process: [u8; 8],
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// Keys that nobody has.
pub fn fresh_keys() -> NodeKeys {
    let seed = Seed::generate(WordCount::Twelve).unwrap();
    NodeKeys::from_seed(&seed, 0).unwrap()
}

pub fn now_ms() -> u64 {
    SystemClock.now_ms()
}

/// Tries until it is done: the network gives a busy machine a few seconds for each try.
async fn patiently<T, E: Display>(mut one: impl AsyncFnMut() -> Result<T, E>) -> T {
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        match one().await {
            Ok(done) => return done,
            Err(error) => assert!(tokio::time::Instant::now() < end, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

impl Peer {
    /// Starts one with fresh keys on loopback.
    pub fn start() -> Self {
        Self::start_as(fresh_keys())
    }

    /// Starts one that is somebody.
    pub fn start_as(keys: NodeKeys) -> Self {
        let settings = Settings {
            listen: vec!["/ip4/127.0.0.1/udp/0/quic-v1".to_owned()],
            mdns: false,
            ..Settings::new(keys.identity.secret_bytes())
        };
        let (handle, incoming, runner) = network::start(settings, Arc::new(SystemClock)).unwrap();
        let cancel = CancellationToken::new();
        tokio::spawn(runner.run(cancel.clone()));
        let mut process = [0; 8];
        process.copy_from_slice(&keys.identity.public_key()[..8]);
        Self {
            keys,
            handle,
            incoming: Some(incoming),
            cancel,
            nonces: AtomicU64::new(1),
            process,
        }
    }

    pub fn id(&self) -> PeerId {
        self.keys.identity.peer_id()
    }

    /// Where it listens, with its id: other nodes can join by it.
    pub async fn listen(&self) -> String {
        let mut all = self.handle.listeners().await;
        all.pop().expect("a listener")
    }

    /// Connects to a node by its `listen` address and gives its peer id.
    pub async fn dial(&self, listen: &str) -> PeerId {
        let (address, peer) = listen.rsplit_once("/p2p/").unwrap();
        let peer: PeerId = peer.parse().unwrap();
        patiently(async || self.handle.dial(&peer, vec![address.to_owned()]).await).await;
        peer
    }

    async fn open(&self, seller: &PeerId, protocol: Protocol) -> Stream {
        patiently(async || self.handle.open(seller, protocol).await).await
    }

    /// The first offer that a seller makes.
    pub async fn offer_of(&self, seller: &PeerId) -> SignedOffer {
        let end = tokio::time::Instant::now() + PATIENCE;
        loop {
            for bytes in self.handle.pull_catalogue(seller).await.unwrap_or_default() {
                if let Ok(signed) = SignedOffer::decode_and_verify(&bytes, NETWORK, now_ms())
                    && signed.offer.seller == *seller
                {
                    return signed;
                }
            }
            assert!(tokio::time::Instant::now() < end, "{seller} makes no offer");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// A nonce that this peer has not used.
    pub fn nonce(&self) -> [u8; 16] {
        let count = self.nonces.fetch_add(1, Ordering::Relaxed);
        let mut nonce = [0; 16];
        nonce[..8].copy_from_slice(&self.process);
        nonce[8..].copy_from_slice(&count.to_be_bytes());
        nonce
    }

    /// An honest head for `body`.
    pub fn head(&self, offer: &SignedOffer, channel: ChannelId, body: &[u8]) -> RequestHead {
        let iat_ms = now_ms();
        RequestHead {
            version: WIRE_VERSION,
            network: NETWORK.to_owned(),
            request_id: RequestId::generate(iat_ms),
            attempt: 1,
            seller: offer.offer.seller,
            buyer: self.id(),
            path: "/v1/chat/completions".to_owned(),
            model: offer.offer.model.to_string(),
            stream: true,
            headers: Vec::new(),
            body_sha256: Hash32(Sha256::digest(body).into()),
            body_len: body.len() as u64,
            offer_hash: offer.hash,
            max_cost: MicroUsd(100_000),
            channel,
            cumulative_required: MicroUsd::ZERO,
            nonce: self.nonce(),
            iat_ms,
            exp_ms: iat_ms + 55_000,
            delegation: None,
        }
    }

    pub fn sign(&self, head: RequestHead) -> SignedHead {
        SignedHead::sign(head, &self.keys.identity)
    }

    /// The channel that an honest buyer with these keys opens with `seller`.
    pub fn descriptor(&self, seller: &PeerId, terms: &Terms) -> ChannelDescriptor {
        let us = CreditParty {
            peer: self.id(),
            payment: self.keys.payment.address(),
            voucher_signer: self.keys.voucher.address(),
        };
        let them = CreditParty {
            peer: *seller,
            payment: terms.payment_address,
            voucher_signer: terms.payment_address,
        };
        ChannelDescriptor::credit(&us, &them, 0)
    }

    pub fn hello(&self) -> SessionMessage {
        SessionMessage::Hello(Hello {
            version: WIRE_VERSION,
            network: NETWORK.to_owned(),
            modes: MODE_CREDIT,
            terms_hash: Hash32::default(),
            clock_ms: now_ms(),
        })
    }

    /// Opens a session stream and says HELLO; gives what the seller's TERMS say.
    pub async fn greet(&self, seller: &PeerId) -> (Session, Terms) {
        let stream = self.open(seller, Protocol::Session).await;
        let mut session = Session::new(stream);
        session.say(&self.hello()).await;
        let hello = session.hear().await;
        assert!(matches!(hello, Ok(SessionMessage::Hello(_))), "{hello:?}");
        let terms = match session.hear().await {
            Ok(SessionMessage::Terms(bytes)) => {
                SignedTerms::decode_and_verify(&bytes.into(), seller)
                    .unwrap()
                    .terms
            }
            other => panic!("{other:?} instead of TERMS"),
        };
        (session, terms)
    }

    /// The whole handshake of an honest buyer that shows `voucher` and has nothing in doubt.
    pub async fn session(&self, seller: &PeerId, voucher: Option<MicroUsd>) -> Standing {
        let (mut session, terms) = self.greet(seller).await;
        let descriptor = self.descriptor(seller, &terms);
        let channel = descriptor.credit_id();
        let open = Open::sign(descriptor.to_bytes(), 0, channel, &self.keys.identity);
        session.say(&SessionMessage::Open(open)).await;
        let deposit = match session.hear().await {
            Ok(SessionMessage::OpenAck { deposit, .. }) => deposit,
            other => panic!("{other:?} instead of OPEN_ACK"),
        };
        let voucher = voucher.map(|v| (v, self.voucher(channel, v)));
        let sync = SyncBuyer {
            channel,
            voucher,
            open: Vec::new(),
        };
        session.say(&SessionMessage::SyncBuyer(sync)).await;
        let sync = match session.hear().await {
            Ok(SessionMessage::SyncSeller(sync)) => sync,
            other => panic!("{other:?} instead of SYNC"),
        };
        Standing {
            session,
            channel,
            deposit,
            sync,
        }
    }

    pub fn voucher(&self, channel: ChannelId, cumulative: MicroUsd) -> EvmSignature {
        Voucher {
            channel,
            cumulative,
        }
        .sign(VoucherDomain::Credit, &self.keys.voucher)
    }

    pub fn accept(&self, items: Vec<(AttemptId, MicroUsd)>) -> SessionMessage {
        SessionMessage::Accept(Accept::sign(items, &self.keys.identity))
    }

    /// Sends an order and gives the stream it went out on.
    pub async fn order(&self, seller: &PeerId, head: &[u8], body: &[u8]) -> Infer {
        let stream = self.open(seller, Protocol::Infer).await;
        let mut infer = Infer::new(stream);
        infer.writer.put(FrameKind::ReqHead, head);
        infer.writer.put(FrameKind::Body, body);
        // A seller that refuses the head may have closed before the body is out.
        let _ = infer.writer.send(FrameKind::End, &[]).await;
        infer
    }

    /// Sends an order and reads its end.
    pub async fn ask(&self, seller: &PeerId, head: &[u8], body: &[u8]) -> Answer {
        self.order(seller, head, body).await.finish().await
    }
}

/// A session after its handshake.
pub struct Standing {
    pub session: Session,
    pub channel: ChannelId,
    pub deposit: MicroUsd,
    pub sync: SyncSeller,
}

/// A session stream.
pub struct Session {
    reader: Reader,
    writer: Writer,
}

impl Session {
    pub fn new(stream: Stream) -> Self {
        let (read, write) = tokio::io::split(stream);
        Self {
            reader: FrameReader::new(read),
            writer: FrameWriter::new(write),
        }
    }

    /// Says something; the other side may already have hung up.
    pub async fn say(&mut self, message: &SessionMessage) {
        let _ = self
            .writer
            .send(FrameKind::Session, &message.encode())
            .await;
    }

    pub async fn say_raw(&mut self, bytes: &[u8]) {
        let _ = self.writer.send(FrameKind::Session, bytes).await;
    }

    /// The next message, or why there is none.
    pub async fn hear(&mut self) -> Result<SessionMessage, String> {
        match tokio::time::timeout(PATIENCE, self.reader.read()).await {
            Ok(Ok(Some(frame))) => {
                SessionMessage::decode(&frame.payload).map_err(|error| error.to_string())
            }
            Ok(Ok(None)) => Err("closed".to_owned()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => panic!("nothing on the session for {PATIENCE:?}"),
        }
    }

    /// As [`Self::hear`], for one that waits for the other side's next thought.
    pub async fn hear_for_long(&mut self) -> Result<SessionMessage, String> {
        match self.reader.read().await {
            Ok(Some(frame)) => SessionMessage::decode(&frame.payload).map_err(|e| e.to_string()),
            Ok(None) => Err("closed".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// What refuses this session: an ERROR's text, or `closed`.
    pub async fn refusal(&mut self) -> String {
        loop {
            match self.hear().await {
                Ok(SessionMessage::Error { code, message }) => return format!("{code}: {message}"),
                Ok(SessionMessage::Receipt(_) | SessionMessage::SyncSeller(_)) => {}
                Ok(other) => return format!("went on with {other:?}"),
                Err(_) => return "closed".to_owned(),
            }
        }
    }
}

/// An infer stream from the buyer's side.
pub struct Infer {
    pub reader: Reader,
    pub writer: Writer,
}

/// How an order was answered.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// The code of ERROR, if one came.
    pub error: Option<&'static str>,
    pub body: Vec<u8>,
    pub receipt: Option<SignedReceipt>,
    pub ended: bool,
}

impl Infer {
    pub fn new(stream: Stream) -> Self {
        let (read, write) = tokio::io::split(stream);
        Self {
            reader: FrameReader::new(read),
            writer: FrameWriter::new(write),
        }
    }

    /// The next frame; none at the end, good or bad.
    pub async fn frame(&mut self) -> Option<Frame> {
        let frame = tokio::time::timeout(PATIENCE, self.reader.read()).await;
        frame.expect("a frame in time").ok().flatten()
    }

    /// The next frame of one answer: none after its receipt, with which the stream is free for the
    /// next order.
    pub async fn frame_of(&mut self, answer: &mut Answer) -> Option<Frame> {
        if answer.receipt.is_some() {
            return None;
        }
        let frame = self.frame().await?;
        answer.take(&frame);
        Some(frame)
    }

    /// Reads to the end of one answer.
    pub async fn finish(&mut self) -> Answer {
        let mut answer = Answer::default();
        while self.frame_of(&mut answer).await.is_some() {}
        answer
    }
}

impl Answer {
    pub fn take(&mut self, frame: &Frame) {
        match frame.kind {
            FrameKind::Error => {
                let error = PeerError::decode(&frame.payload).unwrap();
                self.error = Some(error.code.as_str());
            }
            FrameKind::Body => self.body.extend_from_slice(&frame.payload),
            FrameKind::End => self.ended = true,
            FrameKind::Usage => self.receipt = read_receipt(&frame.payload),
            _ => {}
        }
    }

    /// What the receipt claims.
    pub fn claim(&self) -> u64 {
        self.receipt
            .as_ref()
            .map_or(0, |signed| signed.receipt.cost.0)
    }
}

/// A receipt, checked against the seller that it names itself.
pub fn read_receipt(bytes: &Bytes) -> Option<SignedReceipt> {
    let peek: souk::protocol::Receipt = postcard::from_bytes(bytes.get(64..)?).ok()?;
    SignedReceipt::decode_and_verify(bytes, &peek.seller).ok()
}

/// A chat request of [`super::market::MODEL`] with this prompt.
pub fn chat_body(prompt: &str) -> Vec<u8> {
    super::market::Dialect::Chat
        .body(prompt, true)
        .to_string()
        .into_bytes()
}
