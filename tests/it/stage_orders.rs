//! Orders of layers before a real seller over libp2p: opening, frames both ways, vouchers before
//! results, receipts, refusals. What is computed is an echo: a frame is ten decode block-tokens.

use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use souk::network::framed::FrameReader;
use souk::network::{Protocol, Stream};
use souk::protocol::offer::{STAGE_PATH, StageTerms, Wires};
use souk::protocol::receipt::Ending;
use souk::protocol::{CancelReason, FrameKind, Need, PeerErrorCode, SessionMessage};
use souk::seller::admission::BuyerPolicy;
use souk::seller::stage::{
    StageEnd, StageInput, StageOrder, StageOutput, StageRefused, StageService, StageSession,
};
use souk::types::{Hash32, MicroUsd, PeerId, PriceTable, Usage};
use tokio::sync::{Semaphore, mpsc};

use crate::harness::peer::{Answer, Infer, PATIENCE, Peer, Standing};
use crate::harness::stage::StageSeller;

/// Block-tokens of one frame.
const PER_FRAME: u64 = 10;
/// Micro-USD per million decode block-tokens: a frame is worth 3 000, and the window of one layer at
/// that price 64 rows: 19 200.
const PRICE: PriceTable = PriceTable {
    input: 1_000_000,
    cache_read: 0,
    cache_write: 0,
    output: 300_000_000,
};
const FRAME_COST: u64 = 3_000;

/// Gives back what it is sent; one session at a time.
struct Echo {
    room: Arc<Semaphore>,
    pushed: mpsc::UnboundedSender<(PeerId, Bytes)>,
}

struct Session {
    _room: tokio::sync::OwnedSemaphorePermit,
}

impl StageService for Echo {
    fn open(
        &self,
        order: StageOrder,
    ) -> BoxFuture<'_, Result<Box<dyn StageSession>, StageRefused>> {
        async move {
            let refused = |code, retry_after_ms| StageRefused {
                code,
                retry_after_ms,
            };
            if order.body.as_ref() != b"open" {
                return Err(refused(PeerErrorCode::Malformed, 0));
            }
            let room = Arc::clone(&self.room).try_acquire_owned();
            let room = room.map_err(|_| refused(PeerErrorCode::Overloaded, 250))?;
            let session: Box<dyn StageSession> = Box::new(Session { _room: room });
            Ok(session)
        }
        .boxed()
    }
    fn rows(&self, from: PeerId, stream: Stream) -> BoxFuture<'static, ()> {
        let pushed = self.pushed.clone();
        async move {
            let mut reader = FrameReader::new(stream);
            while let Ok(Some(frame)) = reader.read().await {
                let _ = pushed.send((from, frame.payload));
            }
        }
        .boxed()
    }
}

impl StageSession for Session {
    fn run<'a>(
        self: Box<Self>,
        mut input: StageInput<'a>,
        mut output: StageOutput<'a>,
    ) -> BoxFuture<'a, StageEnd> {
        async move {
            let _room = self;
            let (frames, mut queue) = mpsc::channel(64);
            // Read on while results wait for their voucher, so that a payer that leaves is seen.
            let read = async move {
                loop {
                    match input.read().await {
                        Ok(frame) => drop(frames.send(frame).await),
                        Err(StageEnd::Closed) => break,
                        Err(end) => return end,
                    }
                }
                drop(frames);
                std::future::pending().await
            };
            let work = async move {
                let mut usage = Usage::default();
                while let Some(frame) = queue.recv().await {
                    if frame.as_ref() == b"fail" {
                        return StageEnd::Failed("out_of_memory");
                    }
                    usage.output += PER_FRAME;
                    if let Err(end) = output.deliver(usage).await {
                        return end;
                    }
                    output.put(&frame);
                    if let Err(end) = output.flush().await {
                        return end;
                    }
                }
                StageEnd::Closed
            };
            tokio::select! { end = read => end, end = work => end }
        }
        .boxed()
    }
}

/// A payer in front of an echoing stage.
struct Scene {
    seller: StageSeller,
    payer: Peer,
    to: PeerId,
    standing: Standing,
    pushed: mpsc::UnboundedReceiver<(PeerId, Bytes)>,
}

fn terms() -> StageTerms {
    StageTerms {
        manifest: Hash32([9; 32]),
        first: 4,
        end: 5,
        layers: 40,
        free_positions: 1_024,
        rows_per_s: 10,
        wires: Wires::F16,
    }
}

impl Scene {
    async fn start() -> Self {
        let (pushed, heard) = mpsc::unbounded_channel();
        let echo = Arc::new(Echo {
            room: Arc::new(Semaphore::new(1)),
            pushed,
        });
        let seller = StageSeller::start(echo, terms(), PRICE, BuyerPolicy::default()).await;
        let payer = Peer::start();
        let to = payer.dial(&seller.listen().await).await;
        let standing = payer.session(&to, None).await;
        Self {
            seller,
            payer,
            to,
            standing,
            pushed: heard,
        }
    }

    /// Orders a session by `path` and `body`.
    async fn order(&self, path: &str, body: &[u8]) -> Infer {
        let offer = &self.seller.offer;
        let mut head = self.payer.head(offer, self.standing.channel, body);
        path.clone_into(&mut head.path);
        let head = self.payer.sign(head);
        self.payer.order(&self.to, &head.bytes, body).await
    }

    async fn open(&self) -> Infer {
        let mut stream = self.order(STAGE_PATH, b"open").await;
        let first = stream.frame().await.expect("an answer");
        assert_eq!(first.kind, FrameKind::RespHead);
        stream
    }

    async fn pay(&mut self, cumulative: MicroUsd) {
        let channel = self.standing.channel;
        let signature = self.payer.voucher(channel, cumulative);
        let voucher = SessionMessage::Voucher {
            channel,
            cumulative,
            signature,
        };
        self.standing.session.say(&voucher).await;
    }

    async fn accept(&mut self, answer: &Answer) {
        let receipt = &answer.receipt.as_ref().unwrap().receipt;
        let items = vec![(receipt.attempt_id, receipt.cost)];
        self.standing.session.say(&self.payer.accept(items)).await;
        while !matches!(
            self.standing.session.hear().await,
            Ok(SessionMessage::AcceptAck(_))
        ) {}
    }
}

async fn say(stream: &mut Infer, text: &[u8]) {
    stream.writer.send(FrameKind::Body, text).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_metered_by_what_it_computed_and_paid_by_vouchers() {
    let mut scene = Scene::start().await;
    let mut stream = scene.open().await;
    let (mut echoed, mut needs) = (Vec::new(), 0);
    for round in 0..8u8 {
        say(&mut stream, &[round; 100]).await;
        loop {
            let frame = stream.frame().await.expect("the session goes on");
            match frame.kind {
                FrameKind::Body => {
                    assert_eq!(frame.payload.as_ref(), [round; 100]);
                    echoed.extend_from_slice(&frame.payload);
                    break;
                }
                FrameKind::Need => {
                    needs += 1;
                    let need = Need::decode(&frame.payload).unwrap();
                    scene.pay(need.cumulative).await;
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(needs > 0, "eight frames are worth more than the window");
    stream.writer.send(FrameKind::End, &[]).await.unwrap();
    let answer = stream.finish().await;
    assert_eq!(answer.error, None);
    let receipt = answer.receipt.clone().unwrap().receipt;
    assert_eq!(receipt.ending, Ending::Complete);
    let (input, output) = (receipt.usage.input, receipt.usage.output);
    assert_eq!((input, output), (0, 8 * PER_FRAME));
    assert_eq!(receipt.cost, MicroUsd(8 * FRAME_COST));
    assert_eq!(receipt.response_len, 800);
    assert_eq!(receipt.response_hash, sha256(&echoed));

    scene.accept(&answer).await;
    let booked = scene.seller.ledger.attempt(&receipt.attempt_id).await;
    let booked = booked.unwrap().expect("a row");
    let billed = booked.final_row.expect("an ACCEPT books it").billed;
    assert_eq!(billed, MicroUsd(8 * FRAME_COST));
}

fn sha256(bytes: &[u8]) -> Hash32 {
    use sha2::{Digest, Sha256};
    Hash32(Sha256::digest(bytes).into())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payer_that_leaves_at_the_window_owes_what_it_was_given() {
    let scene = Scene::start().await;
    let mut stream = scene.open().await;
    let (mut answer, mut given) = (Answer::default(), 0);
    for _ in 0..8 {
        say(&mut stream, b"rows").await;
    }
    while let Some(frame) = stream.frame_of(&mut answer).await {
        match frame.kind {
            FrameKind::Body => given += 1,
            FrameKind::Need => {
                let reason = CancelReason::Budget.encode();
                stream
                    .writer
                    .send(FrameKind::Cancel, &reason)
                    .await
                    .unwrap();
            }
            _ => {}
        }
    }
    let receipt = answer.receipt.unwrap().receipt;
    assert!(given > 0, "the window allows something");
    assert_eq!(receipt.cost, MicroUsd(given * FRAME_COST));
    assert_eq!(receipt.ending, Ending::BuyerStopped);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_that_fails_says_so_and_bills_what_it_delivered() {
    let scene = Scene::start().await;
    let mut stream = scene.open().await;
    say(&mut stream, b"rows").await;
    assert_eq!(stream.frame().await.unwrap().kind, FrameKind::Body);
    say(&mut stream, b"fail").await;
    let answer = stream.finish().await;
    assert_eq!(answer.error, Some("upstream_failed"));
    let receipt = answer.receipt.unwrap().receipt;
    assert_eq!(receipt.ending, Ending::SellerFailed);
    assert_eq!(receipt.cost, MicroUsd(FRAME_COST));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_order_of_a_session_is_refused_and_reserves_nothing() {
    let scene = Scene::start().await;
    let refusal = async |path: &str, body: &[u8]| {
        let answer = scene.order(path, body).await.finish().await;
        assert!(answer.receipt.is_none());
        answer.error
    };
    assert_eq!(
        refusal("/v1/chat/completions", b"{}").await,
        Some("malformed")
    );
    assert_eq!(refusal(STAGE_PATH, b"nonsense").await, Some("malformed"));
    assert_eq!(refusal(STAGE_PATH, &[0; 5_000]).await, Some("malformed"));
    let first = scene.open().await;
    assert_eq!(refusal(STAGE_PATH, b"open").await, Some("overloaded"));
    drop(first);
    let open = async {
        loop {
            let mut stream = scene.order(STAGE_PATH, b"open").await;
            match stream.frame().await.map(|frame| frame.kind) {
                Some(FrameKind::RespHead) => return,
                _ => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            }
        }
    };
    let freed = tokio::time::timeout(PATIENCE, open).await;
    assert!(freed.is_ok(), "a payer that hung up gave its room back");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_come_on_a_stream_of_their_own_from_a_named_peer() {
    let mut scene = Scene::start().await;
    let stream = scene.payer.handle.open(&scene.to, Protocol::Rows).await;
    let mut pushed = Infer::new(stream.unwrap());
    for text in [b"first", b"later"] {
        pushed.writer.send(FrameKind::Body, text).await.unwrap();
        let heard = tokio::time::timeout(PATIENCE, scene.pushed.recv()).await;
        let (from, payload) = heard.unwrap().unwrap();
        assert_eq!(from, scene.payer.id());
        assert_eq!(payload.as_ref(), text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_those_on_the_list_of_a_private_pipeline_are_served() {
    let (pushed, _heard) = mpsc::unbounded_channel();
    let echo = Arc::new(Echo {
        room: Arc::new(Semaphore::new(1)),
        pushed,
    });
    let (friend, stranger) = (Peer::start(), Peer::start());
    let policy = BuyerPolicy {
        allow: vec![friend.id()],
        deny: Vec::new(),
    };
    let free = PriceTable::default();
    let seller = StageSeller::start(echo, terms(), free, policy).await;
    let mut answers = Vec::new();
    for peer in [&stranger, &friend] {
        let to = peer.dial(&seller.listen().await).await;
        let standing = peer.session(&to, None).await;
        let mut head = peer.head(&seller.offer, standing.channel, b"open");
        STAGE_PATH.clone_into(&mut head.path);
        let mut stream = peer.order(&to, &peer.sign(head).bytes, b"open").await;
        answers.push(stream.frame().await.unwrap().kind);
    }
    assert_eq!(answers, [FrameKind::Error, FrameKind::RespHead]);
}
