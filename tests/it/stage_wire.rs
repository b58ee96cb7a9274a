//! A stage behind a real seller hears a head's messages out of order, twice, and with pings between:
//! nothing is computed or billed twice, and silence means that it is gone.

use bytes::{Bytes, BytesMut};
use souk::pipeline::rows;
use souk::pipeline::session::digest_of;
use souk::protocol::offer::STAGE_PATH;
use souk::protocol::stage::{
    Done, Halt, Next, PushKey, Route, StageDecoder, StageError, StageMessage, StageOpen,
    StageSession, Step, StepKind, WireFormat,
};
use souk::protocol::{FrameKind, Need, SessionMessage};
use souk::types::{MicroUsd, PeerId, PriceTable};

use crate::harness::peer::{Infer, Peer, Standing};
use crate::harness::stage::StageSeller;
use crate::pipeline::{MANIFEST, PRICE, Scene, scene, seller_of, worker};

/// A head that speaks for itself.
struct Head {
    scene: Scene,
    seller: StageSeller,
    payer: Peer,
    to: PeerId,
    standing: Standing,
    infer: Infer,
    decoder: StageDecoder,
}

/// What comes.
#[derive(Debug)]
enum Said {
    Message(StageMessage, Bytes),
    Need(MicroUsd),
}

impl Head {
    /// Opens a session of 128 positions of layers 0..2 and routes it to itself.
    async fn start(price: PriceTable) -> Self {
        let scene = scene().await;
        let worker = worker(&scene.files, 0..2).await;
        let seller = seller_of(worker, 0, 2, price, 100).await;
        let payer = Peer::start();
        let to = payer.dial(&seller.listen().await).await;
        let standing = payer.session(&to, None).await;
        let open = StageOpen {
            session: StageSession([1; 16]),
            manifest: MANIFEST,
            first: 0,
            end: 2,
            positions_max: 128,
            wire: WireFormat::F32,
        };
        let body = open.to_bytes();
        let mut head = payer.head(&seller.offer, standing.channel, &body);
        STAGE_PATH.clone_into(&mut head.path);
        let signed = payer.sign(head);
        let mut infer = payer.order(&to, &signed.bytes, &body).await;
        let first = infer.frame().await.expect("an answer");
        assert_eq!(first.kind, FrameKind::RespHead);
        let mut this = Self {
            scene,
            seller,
            payer,
            to,
            standing,
            infer,
            decoder: StageDecoder::default(),
        };
        this.route(1, 0).await;
        this
    }

    async fn say(&mut self, message: StageMessage, rows: &[u8]) {
        let mut bytes = BytesMut::new();
        message.encode_into(rows, &mut bytes);
        // Rows of a chunk are more than a frame holds.
        for piece in bytes.chunks(60_000) {
            self.infer.writer.put(FrameKind::Body, piece);
        }
        self.infer.writer.flush().await.unwrap();
    }

    async fn route(&mut self, epoch: u32, keep: u32) {
        let key = PushKey([7; 16]);
        self.say(StageMessage::Halt(Halt { epoch, key }), &[]).await;
        let state = self.next().await;
        assert!(
            matches!(state, Said::Message(StageMessage::State(_), _)),
            "{state:?}"
        );
        let next = Next::HeadAll;
        let route = Route {
            epoch,
            next,
            held: keep,
            keep,
        };
        self.say(StageMessage::Route(route), &[]).await;
    }

    /// `n` rows from `pos` on, in the wire's form.
    async fn rows(&self, pos: u32, n: u32) -> Bytes {
        let rows = self
            .scene
            .ends
            .embed((pos..pos + n).collect())
            .await
            .unwrap();
        rows::to_bytes(&rows, self.scene.hidden, WireFormat::F32)
    }

    async fn step(&mut self, epoch: u32, seq: u32, pos: u32, n: u32) {
        let rows = self.rows(pos, n).await;
        let kind = StepKind::Prefill;
        let step = Step {
            epoch,
            seq,
            pos,
            n,
            kind,
        };
        self.say(StageMessage::Step(step), &rows).await;
    }

    async fn next(&mut self) -> Said {
        loop {
            if let Some((message, rows)) = self.decoder.next_message().unwrap() {
                return Said::Message(message, rows);
            }
            let frame = self.infer.frame().await.expect("the session goes on");
            match frame.kind {
                FrameKind::Body => self.decoder.push(&frame.payload),
                FrameKind::Need => {
                    return Said::Need(Need::decode(&frame.payload).unwrap().cumulative);
                }
                FrameKind::Nop => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// The next DONE and the results behind it.
    async fn computed(&mut self) -> (Done, Bytes) {
        let Said::Message(StageMessage::Done(done), _) = self.next().await else {
            panic!("no DONE");
        };
        (done, self.results().await.1)
    }

    async fn results(&mut self) -> (u32, Bytes) {
        match self.next().await {
            Said::Message(StageMessage::Out(out), rows) => (out.seq, rows),
            other => panic!("{other:?}"),
        }
    }

    /// Ends the session; the prefill block-tokens on its receipt.
    async fn billed(mut self) -> u64 {
        self.infer.writer.send(FrameKind::End, &[]).await.unwrap();
        let answer = self.infer.finish().await;
        let receipt = answer.receipt.expect("a receipt").receipt;
        assert_eq!(receipt.seller, self.to);
        assert_eq!(receipt.seller, self.seller.handle.local_peer());
        receipt.usage.input
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_that_come_twice_or_out_of_order_are_billed_once() {
    let mut head = Head::start(PRICE).await;
    head.step(1, 0, 0, 8).await;
    let (done, first) = head.computed().await;
    assert_eq!((done.pos, done.n), (0, 8));
    assert_eq!(done.taken, digest_of(&head.rows(0, 8).await));
    assert_eq!(done.digest, digest_of(&first));
    // Twice again: the results come again, without a DONE.
    for _ in 0..2 {
        head.step(1, 0, 0, 8).await;
        assert_eq!(head.results().await, (0, first.clone()));
    }
    // The one after the next: a gap. The next is still the next.
    head.step(1, 2, 12, 4).await;
    let gap = head.next().await;
    let is_gap = |said: &Said| {
        let error = StageError::Gap;
        matches!(said, Said::Message(StageMessage::Error { epoch: 1, error: e }, _) if *e == error)
    };
    assert!(is_gap(&gap), "{gap:?}");
    head.step(1, 1, 8, 4).await;
    assert_eq!(head.computed().await.0.pos, 8);
    // What it holds is shown again as it was sent, for nothing.
    let (seq, pos, n) = (77, 0, 8);
    head.say(StageMessage::Show { seq, pos, n }, &[]).await;
    assert_eq!(head.results().await, (77, first));
    // On another way steps of the old one are dropped, and all that it holds still counts.
    head.route(2, 12).await;
    head.step(1, 2, 12, 4).await;
    head.step(2, 0, 12, 4).await;
    assert_eq!(head.computed().await.0.pos, 12);
    // 16 rows through two layers.
    assert_eq!(head.billed().await, 16 * 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_that_waits_for_its_voucher_answers_pings() {
    // 64 rows through two layers cost 25 600 and its window is as much; the next must be paid.
    let price = PriceTable {
        input: 200_000_000,
        ..PRICE
    };
    let mut head = Head::start(price).await;
    head.step(1, 0, 0, 64).await;
    assert_eq!(head.computed().await.0.n, 64);
    head.step(1, 1, 64, 32).await;
    let Said::Need(cumulative) = head.next().await else {
        panic!("it asks for money");
    };
    assert_eq!(cumulative, MicroUsd(32 * 2 * 200));
    for n in 0..3 {
        head.say(StageMessage::Ping(n), &[]).await;
        let pong = head.next().await;
        let is_it =
            |said: &Said| matches!(said, Said::Message(StageMessage::Pong(m), _) if *m == n);
        assert!(is_it(&pong), "{pong:?}");
    }
    let channel = head.standing.channel;
    let signature = head.payer.voucher(channel, cumulative);
    let voucher = SessionMessage::Voucher {
        channel,
        cumulative,
        signature,
    };
    head.standing.session.say(&voucher).await;
    assert_eq!(head.computed().await.0.n, 32);
    assert_eq!(head.billed().await, 96 * 2);
}
