//! A hostile buyer before a real seller: what it replays, forges or moves elsewhere is refused with
//! a code of its own, reaches no upstream and changes no book.

use std::time::Duration;

use souk::protocol::delegation::{DelegatedRole, Delegation, Draft, Namespace};
use souk::protocol::head::DelegationProof;
use souk::protocol::offer::SignedOffer;
use souk::protocol::session::{Accept, Hello, MODE_CREDIT, Open, SyncBuyer};
use souk::protocol::{IdentitySignature, RequestHead, SessionMessage, SignedHead, WIRE_VERSION};
use souk::types::{AttemptId, ChannelId, EvmAddress, Hash32, MicroUsd, PeerId};

use crate::harness::market::{Dialect, Hold, Seller, UPSTREAM_KEY};
use crate::harness::peer::{Answer, Peer, Standing, chat_body, now_ms};
use crate::harness::upstream::Script;

/// USD per million tokens.
const PRICES: (&str, &str) = ("2.00", "8.00");

/// The longest life of a head, ms.
const HEAD_LIFE_MS: u64 = 60_000;

/// One head again and again.
const REPLAYS: usize = 200;

/// An ACCEPT is answered within this.
const ACK_DEADLINE: Duration = Duration::from_secs(60);

/// A seller and two hostile buyers; they are also what it joins the network by.
struct Stage {
    seller: Seller,
    to: PeerId,
    offer: SignedOffer,
    /// A moment before the seller began.
    before_ms: u64,
    one: Peer,
    two: Peer,
    _hold: Hold,
}

impl Stage {
    async fn start() -> Self {
        let hold = Hold::shared().await;
        let (one, two) = (Peer::start(), Peer::start());
        let bootstrap = one.listen().await;
        let before_ms = now_ms();
        let seller = Seller::start(&bootstrap, Dialect::Chat, PRICES, Script::default()).await;
        let to = one.dial(seller.node.listen()).await;
        two.dial(seller.node.listen()).await;
        let offer = one.offer_of(&to).await;
        Self {
            seller,
            to,
            offer,
            before_ms,
            one,
            two,
            _hold: hold,
        }
    }

    async fn ask(&self, head: &SignedHead, body: &[u8]) -> Answer {
        self.one.ask(&self.to, &head.bytes, body).await
    }

    /// Attempts that the seller charged.
    fn charged(&self) -> usize {
        let rows = self
            .seller
            .node
            .home()
            .ledger(&["requests", "--json", "--limit", "1000"]);
        let rows = rows.as_array().expect("an array of rows").clone();
        rows.iter()
            .filter(|row| row["billed_micro_usd"].as_u64() > Some(0))
            .count()
    }

    /// Accepts what was answered, so that it is booked.
    async fn accept(&self, session: &mut Standing, answers: &[&Answer]) {
        let receipts = answers
            .iter()
            .map(|answer| &answer.receipt.as_ref().unwrap().receipt);
        let items: Vec<_> = receipts.map(|r| (r.attempt_id, r.cost)).collect();
        session.session.say(&self.one.accept(items)).await;
        loop {
            match session.session.hear().await {
                Ok(SessionMessage::AcceptAck(_)) => return,
                Ok(_) => {}
                Err(error) => panic!("the session ended: {error}"),
            }
        }
    }
}

/// What is wrong with a head, and the code that says so.
type WrongHead = (&'static str, &'static str, fn(&mut RequestHead));

const WRONG_HEADS: [WrongHead; 12] = [
    ("another version", "wrong_network", |head| head.version += 1),
    ("another network", "wrong_network", |head| {
        head.network = "elsewhere".to_owned()
    }),
    ("for another seller", "wrong_seller", |head| {
        head.seller = PeerId::random()
    }),
    ("of another buyer", "wrong_buyer", |head| {
        head.buyer = PeerId::random()
    }),
    ("of the future", "clock_skew", |head| {
        head.iat_ms += 120_000;
        head.exp_ms += 120_000;
    }),
    ("of the past", "clock_skew", |head| {
        head.iat_ms -= 120_000;
        head.exp_ms -= 120_000;
    }),
    ("for longer than a minute", "clock_skew", |head| {
        head.exp_ms += 60_000
    }),
    ("on an offer that nobody made", "unknown_offer", |head| {
        head.offer_hash = Hash32([1; 32])
    }),
    (
        "for a model that the offer does not name",
        "unknown_offer",
        |head| {
            head.model = "gpt-5".to_owned();
        },
    ),
    ("on another channel", "unknown_channel", |head| {
        head.channel = ChannelId([2; 32])
    }),
    ("for another body", "body_mismatch", |head| {
        head.body_sha256 = Hash32([3; 32])
    }),
    ("for less than the input costs", "above_max_cost", |head| {
        head.max_cost = MicroUsd(1)
    }),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_head_is_refused_with_its_own_code_and_costs_nothing() {
    let stage = Stage::start().await;
    let mut session = stage.one.session(&stage.to, None).await;
    let other = stage.two.session(&stage.to, None).await;
    let body = chat_body(&"Say something. ".repeat(20));
    let honest = || stage.one.head(&stage.offer, session.channel, &body);
    // First of all, for it holds a minute like any other.
    let mut early = honest();
    (early.iat_ms, early.exp_ms) = (stage.before_ms - 1, stage.before_ms - 1 + HEAD_LIFE_MS);
    let answer = stage.ask(&stage.one.sign(early), &body).await;
    assert_eq!(answer.error, Some("stale"), "from before the start");
    let good = stage.one.sign(honest());
    let served = stage.ask(&good, &body).await;
    assert!(
        served.ended && served.error.is_none() && served.claim() > 0,
        "{served:?}"
    );

    for (what, code, change) in WRONG_HEADS {
        let mut head = honest();
        change(&mut head);
        let answer = stage.ask(&stage.one.sign(head), &body).await;
        assert_eq!(answer.error, Some(code), "{what}");
        assert!(answer.body.is_empty() && answer.receipt.is_none(), "{what}");
        println!("head {what}: {code}");
    }
    let mut flipped = stage.one.sign(honest()).bytes.to_vec();
    flipped[10] ^= 1;
    let cut = &good.bytes[..good.bytes.len() - 1];
    let mut elsewhere = honest();
    elsewhere.channel = other.channel;
    let mut permitted = honest();
    permitted.delegation = Some(delegation_of(&stage.two));
    let by_two = stage.two.keys.identity.clone();
    let forged = SignedHead::sign(honest(), &by_two).bytes;
    let cases = [
        ("with a flipped bit", "bad_signature", flipped),
        ("signed by somebody else", "bad_signature", forged.to_vec()),
        ("cut short", "malformed", cut.to_vec()),
        (
            "on another buyer's channel",
            "unknown_channel",
            stage.one.sign(elsewhere).bytes.to_vec(),
        ),
        (
            "with another node's delegation",
            "bad_delegation",
            stage.one.sign(permitted).bytes.to_vec(),
        ),
    ];
    for (what, code, bytes) in cases {
        let answer = stage.one.ask(&stage.to, &bytes, &body).await;
        assert_eq!(answer.error, Some(code), "{what}");
        println!("head {what}: {code}");
    }
    let stolen = stage
        .two
        .ask(&stage.to, &stage.one.sign(honest()).bytes, &body)
        .await;
    assert_eq!(
        stolen.error,
        Some("wrong_buyer"),
        "another peer sends a good head"
    );

    stage.accept(&mut session, &[&served]).await;
    assert_eq!(stage.charged(), 1, "only the good head is charged");
    assert_eq!(
        stage.seller.upstream.exchanges().len(),
        1,
        "only it reached the upstream"
    );
}

/// A wallet's permission for another node than the one that shows it.
fn delegation_of(peer: &Peer) -> DelegationProof {
    let wallet = &peer.keys.payment;
    let address = souk::keys::to_checksum(&wallet.address());
    let (_, text) = Delegation::draft(&Draft {
        namespace: Namespace::Eip155,
        address: &address,
        chain_id: "8453",
        domain: "127.0.0.1:5005",
        uri: "http://127.0.0.1:5005/",
        nonce: "0123456789abcdef",
        node: peer.id(),
        role: DelegatedRole::Buy,
        daily_cap: MicroUsd(5_000_000),
        issued_ms: now_ms(),
        expires_ms: now_ms() + 86_400_000,
    })
    .unwrap();
    let signature = wallet.sign_hash(&souk::keys::personal_hash(text.as_bytes()));
    DelegationProof {
        text,
        signature: signature.to_vec(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_is_served_once_however_often_it_comes_and_never_after_a_restart() {
    let mut stage = Stage::start().await;
    let mut session = stage.one.session(&stage.to, None).await;
    let body = chat_body("Say something.");
    let head = stage
        .one
        .sign(stage.one.head(&stage.offer, session.channel, &body));
    // Dated a little ahead, as a skewed clock may: it outlives the seller's restart.
    let mut ahead = stage.one.head(&stage.offer, session.channel, &body);
    ahead.iat_ms += 55_000;
    ahead.exp_ms += 55_000;
    let ahead = stage.one.sign(ahead);
    let (first, second) = (
        stage.ask(&head, &body).await,
        stage.ask(&ahead, &body).await,
    );
    assert!(first.ended && second.ended, "{first:?} {second:?}");
    for _ in 0..REPLAYS {
        assert_eq!(stage.ask(&head, &body).await.error, Some("replayed"));
    }
    stage.accept(&mut session, &[&first, &second]).await;
    assert_eq!(stage.charged(), 2);
    // A fresh one, so that it is not over when the seller is back; a word, so that no window is full.
    let brief = Script::saying("Yes.").key(UPSTREAM_KEY);
    stage.seller.upstream.set(brief);
    let last = stage.one.head(&stage.offer, session.channel, &body);
    let last = stage.one.sign(last);
    let third = stage.ask(&last, &body).await;
    assert!(third.ended, "{:?}", third.error);
    stage.accept(&mut session, &[&third]).await;
    assert_eq!(stage.charged(), 3);

    stage.seller.node.restart();
    stage.one.dial(stage.seller.node.listen()).await;
    let again = stage.one.session(&stage.to, None).await;
    assert_eq!(again.channel, session.channel);
    assert_eq!(stage.ask(&last, &body).await.error, Some("stale"));
    let code = stage.ask(&ahead, &body).await.error;
    assert_eq!(code, Some("replayed"), "the ledger knows it");
    let offer = stage.one.offer_of(&stage.to).await;
    assert_ne!(offer.hash, stage.offer.hash);
    let fresh = stage.one.sign(stage.one.head(&offer, again.channel, &body));
    let served = stage.ask(&fresh, &body).await;
    assert!(served.ended && served.error.is_none(), "{served:?}");
    assert_eq!(stage.charged(), 3, "the last one is not accepted yet");
    assert_eq!(stage.seller.upstream.exchanges().len(), 4);
}

/// A handshake that says `open` and then, if that is taken, `sync`; gives the refusal.
async fn refused_handshake(
    peer: &Peer,
    to: &PeerId,
    open: SessionMessage,
    sync: Option<SessionMessage>,
) -> String {
    let (mut session, _) = peer.greet(to).await;
    session.say(&open).await;
    if let Some(sync) = sync {
        let ack = session.hear().await;
        assert!(matches!(ack, Ok(SessionMessage::OpenAck { .. })), "{ack:?}");
        session.say(&sync).await;
    }
    session.refusal().await
}

fn assert_says(refusal: &str, reason: &str) {
    assert!(
        refusal.contains(reason),
        "{refusal:?} does not say {reason:?}"
    );
    println!("session: {refusal}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_or_moved_open_is_refused() {
    let stage = Stage::start().await;
    let (one, two, to) = (&stage.one, &stage.two, &stage.to);
    let (_session, terms) = one.greet(to).await;
    let descriptor = one.descriptor(to, &terms);
    let id = descriptor.credit_id();
    let good = Open::sign(descriptor.to_bytes(), 0, id, &one.keys.identity);
    let sent = |open: &Open| SessionMessage::Open(open.clone());

    let mut flipped = good.clone();
    flipped.signature.0[5] ^= 1;
    let refusal = refused_handshake(one, to, sent(&flipped), None).await;
    assert_says(&refusal, "bad signature on open");
    let refusal = refused_handshake(two, to, sent(&good), None).await;
    assert_says(&refusal, "bad signature on open");

    let mut elsewhere = descriptor.clone();
    elsewhere.seller = EvmAddress([9; 20]);
    let open = Open::sign(
        elsewhere.to_bytes(),
        0,
        elsewhere.credit_id(),
        &one.keys.identity,
    );
    let refusal = refused_handshake(one, to, sent(&open), None).await;
    assert_says(&refusal, "pays another address");
    // For another node that earns to the same address, and for an epoch that it does not say.
    for (peer, epoch) in [(two.id(), 0), (*to, 7)] {
        let moved = one.descriptor(&peer, &terms);
        let open = Open::sign(
            moved.to_bytes(),
            epoch,
            moved.credit_id(),
            &one.keys.identity,
        );
        let refusal = refused_handshake(one, to, sent(&open), None).await;
        assert_says(&refusal, "not the one between these two nodes");
    }
    let standing = one.session(to, None).await;
    assert_eq!(standing.channel, id, "the good one is taken");
    let mut another = descriptor.clone();
    another.voucher_signer = two.keys.voucher.address();
    let open = Open::sign(
        another.to_bytes(),
        0,
        another.credit_id(),
        &one.keys.identity,
    );
    let refusal = refused_handshake(one, to, sent(&open), None).await;
    assert_says(&refusal, "another channel of this buyer is open");
    let hello = SessionMessage::Hello(Hello {
        version: WIRE_VERSION,
        network: "elsewhere".to_owned(),
        modes: MODE_CREDIT,
        terms_hash: Hash32::default(),
        clock_ms: now_ms(),
    });
    let refusal = refused_handshake(one, to, hello, None).await;
    assert_says(&refusal, "message out of order");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_moved_or_excessive_voucher_is_never_credited() {
    let stage = Stage::start().await;
    let (one, to) = (&stage.one, &stage.to);
    let standing = one.session(to, None).await;
    let (channel, deposit) = (standing.channel, standing.deposit);
    let voucher = |named: ChannelId, of: ChannelId, cumulative: u64, by: &Peer| {
        let cumulative = MicroUsd(cumulative);
        let signature = by.voucher(of, cumulative);
        SessionMessage::Voucher {
            channel: named,
            cumulative,
            signature,
        }
    };
    let elsewhere = ChannelId([4; 32]);
    let bad = "bad signature on voucher";
    let wrong = [
        (voucher(channel, channel, 900, &stage.two), bad),
        (voucher(channel, elsewhere, 900, one), bad),
        (
            voucher(elsewhere, elsewhere, 900, one),
            "a voucher for another channel",
        ),
        (
            voucher(channel, channel, deposit.0 + 1, one),
            "is above the deposit",
        ),
    ];
    for (message, reason) in wrong {
        let mut standing = one.session(to, None).await;
        standing.session.say(&message).await;
        assert_says(&standing.session.refusal().await, reason);
        let again = one.session(to, None).await;
        assert_eq!(again.sync.voucher, None, "{reason}");
    }
    let mut standing = one.session(to, None).await;
    for (cumulative, credited) in [(900, 900), (900, 900), (400, 900), (1_200, 1_200)] {
        let message = voucher(channel, channel, cumulative, one);
        standing.session.say(&message).await;
        match standing.session.hear().await {
            Ok(SessionMessage::VoucherAck { cumulative, .. }) => {
                assert_eq!(cumulative, MicroUsd(credited), "the highest counts");
            }
            other => panic!("{other:?} instead of VOUCHER_ACK"),
        }
    }
    // In SYNC it is checked as well, and another channel's SYNC is no SYNC of this one.
    let (_greeted, terms) = one.greet(to).await;
    let descriptor = one.descriptor(to, &terms);
    let open = Open::sign(descriptor.to_bytes(), 0, channel, &one.keys.identity);
    for (named, by, reason) in [
        (channel, &stage.two, "bad signature on voucher"),
        (elsewhere, one, "SYNC names another channel"),
    ] {
        let shown = MicroUsd(5_000);
        let sync = SessionMessage::SyncBuyer(SyncBuyer {
            channel: named,
            voucher: Some((shown, by.voucher(channel, shown))),
            open: Vec::new(),
        });
        let open = SessionMessage::Open(open.clone());
        assert_says(&refused_handshake(one, to, open, Some(sync)).await, reason);
    }
    let last = one.session(to, None).await;
    assert_eq!(last.sync.voucher.map(|(v, _)| v), Some(MicroUsd(1_200)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_accept_books_nothing_and_a_repeated_one_books_once() {
    let stage = Stage::start().await;
    let mut standing = stage.one.session(&stage.to, None).await;
    let body = chat_body("Say something.");
    let head = stage
        .one
        .sign(stage.one.head(&stage.offer, standing.channel, &body));
    let served = stage.ask(&head, &body).await;
    let receipt = served.receipt.clone().expect("a receipt").receipt;
    let zero = vec![(receipt.attempt_id, MicroUsd::ZERO)];

    let mut flipped = Accept::sign(zero.clone(), &stage.one.keys.identity);
    flipped.signature = IdentitySignature([7; 64]);
    let by_two = Accept::sign(zero, &stage.two.keys.identity);
    for accept in [flipped, by_two] {
        let mut session = stage.one.session(&stage.to, None).await.session;
        session.say(&SessionMessage::Accept(accept)).await;
        assert_says(&session.refusal().await, "bad signature on accept");
    }
    assert_eq!(stage.charged(), 0);
    standing = stage.one.session(&stage.to, None).await;
    for _ in 0..3 {
        stage.accept(&mut standing, &[&served]).await;
    }
    // A later ACCEPT over another sum, or of an attempt that never was, is too late or nothing.
    let items = vec![
        (receipt.attempt_id, MicroUsd::ZERO),
        (AttemptId([5; 16]), MicroUsd(9)),
    ];
    standing.session.say(&stage.one.accept(items)).await;
    tokio::time::timeout(ACK_DEADLINE, async {
        while !matches!(
            standing.session.hear().await,
            Ok(SessionMessage::AcceptAck(_))
        ) {}
    })
    .await
    .expect("an ACK");
    let rows = stage
        .seller
        .node
        .home()
        .ledger(&["requests", "--json", "--limit", "10"]);
    let billed: Vec<_> = rows
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["billed_micro_usd"].as_u64())
        .collect();
    assert_eq!(billed, [Some(receipt.cost.0)]);
    let verified = stage.seller.node.home().run(&["ledger", "verify"]);
    assert!(verified.status.success(), "{verified:?}");
}
