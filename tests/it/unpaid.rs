//! Buyers that do not pay, before a real seller over libp2p: the most that each way of not paying
//! takes, in micro-USD, against the bound (the window of the channel, and once the part of one
//! request that is known before the work).

use souk::protocol::offer::SignedOffer;
use souk::protocol::{CancelReason, FrameKind, Need, SessionMessage, SignedHead};
use souk::types::{MicroUsd, PeerId};

use crate::harness::market::{Dialect, Hold, Seller};
use crate::harness::peer::{Answer, Peer, Standing, chat_body};
use crate::harness::upstream::{Fault, Script};

/// Dear enough that a window is a few words: USD per million tokens.
const PRICES: (&str, &str) = ("20.00", "800.00");

/// The window of one stream at these prices, micro-USD: the greatest there is.
const STREAM_WINDOW: u64 = 10_000;
/// The windows of all streams of a pair that has accepted little.
const PAIR_WINDOW: u64 = 50_000;
/// A meter counts bytes and a receipt tokens; one piece of text is this much at most.
const PIECE: u64 = 1_600;
/// Requests that a buyer tries without paying.
const TRIES: usize = 12;

struct Stage {
    seller: Seller,
    to: PeerId,
    offer: SignedOffer,
    buyer: Peer,
    standing: Standing,
    _hold: Hold,
}

/// What a buyer does when the seller asks for a voucher.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AtNeed {
    /// It leaves.
    Cancel,
    /// It signs what is asked, not a micro-USD more.
    Pay,
    /// It signs so often, then leaves.
    PayThenCancel(usize),
}

impl Stage {
    async fn start(script: Script) -> Self {
        let hold = Hold::shared().await;
        let buyer = Peer::start();
        let bootstrap = buyer.listen().await;
        let seller = Seller::start(&bootstrap, Dialect::Chat, PRICES, script).await;
        let to = buyer.dial(seller.node.listen()).await;
        let offer = buyer.offer_of(&to).await;
        let standing = buyer.session(&to, None).await;
        Self {
            seller,
            to,
            offer,
            buyer,
            standing,
            _hold: hold,
        }
    }

    /// Restarts the seller; the buyer comes back to it.
    async fn restart_seller(&mut self) {
        self.seller.node.keep_ports();
        self.seller.node.restart();
        self.to = self.buyer.dial(self.seller.node.listen()).await;
        self.standing = self.buyer.session(&self.to, None).await;
    }

    fn head(&self, body: &[u8]) -> SignedHead {
        let mut head = self.buyer.head(&self.offer, self.standing.channel, body);
        head.max_cost = MicroUsd(900_000);
        self.buyer.sign(head)
    }

    /// One request; gives its end and the highest voucher signed for it.
    async fn take(&mut self, prompt: &str, at_need: AtNeed) -> (Answer, u64) {
        let body = chat_body(prompt);
        let mut stream = self
            .buyer
            .order(&self.to, &self.head(&body).bytes, &body)
            .await;
        let (mut answer, mut signed) = (Answer::default(), 0);
        let mut left = match at_need {
            AtNeed::Cancel => 0,
            AtNeed::Pay => usize::MAX,
            AtNeed::PayThenCancel(count) => count,
        };
        while let Some(frame) = stream.frame_of(&mut answer).await {
            if frame.kind != FrameKind::Need {
                continue;
            }
            if left == 0 {
                let reason = CancelReason::ClientGone.encode();
                let _ = stream.writer.send(FrameKind::Cancel, &reason).await;
                continue;
            }
            left -= 1;
            let cumulative = Need::decode(&frame.payload).unwrap().cumulative;
            let channel = self.standing.channel;
            let signature = self.buyer.voucher(channel, cumulative);
            let voucher = SessionMessage::Voucher {
                channel,
                cumulative,
                signature,
            };
            self.standing.session.say(&voucher).await;
            signed = cumulative.0;
        }
        (answer, signed)
    }

    /// ACCEPTs the answer with another cost than its receipt's, and waits until that is booked.
    async fn accept(&mut self, answer: &Answer, cost: MicroUsd) {
        let Some(signed) = &answer.receipt else {
            return;
        };
        let items = vec![(signed.receipt.attempt_id, cost)];
        self.standing.session.say(&self.buyer.accept(items)).await;
        while !matches!(
            self.standing.session.hear().await,
            Ok(SessionMessage::AcceptAck(_))
        ) {}
    }

    /// What the input of this prompt costs: the part that is known before the work.
    fn known_before(&self, prompt: &str) -> u64 {
        let tokens = chat_body(prompt).len() as u64 * u64::from(self.offer.offer.tokens_per_kib);
        self.offer
            .offer
            .price
            .cost_in_out(tokens.div_ceil(1_024), 0)
            .0
    }
}

/// Says what a case took, and fails when it is above the bound. A case that took nothing shows
/// nothing, so that fails as well.
fn report(case: &str, taken: u64, bound: u64) {
    println!("unpaid: case={case:?} micro_usd={taken} bound={bound}");
    assert!(taken > 0, "{case}: nothing was delivered");
    assert!(
        taken <= bound,
        "{case}: {taken} unpaid, the bound is {bound}"
    );
}

fn long_answer() -> Script {
    Script::saying(&"word ".repeat(400))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buyer_that_never_pays_gets_one_window_and_then_nothing() {
    let mut stage = Stage::start(long_answer()).await;
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..TRIES {
        let (answer, _) = stage.take("Say something.", AtNeed::Cancel).await;
        taken += answer.claim();
        refused += usize::from(answer.error == Some("voucher_late"));
    }
    assert!(refused > 0, "in the end it is refused");
    let known = stage.known_before("Say something.");
    report("never sends a voucher", taken, PAIR_WINDOW + known + PIECE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buyer_that_withholds_its_last_voucher_keeps_at_most_one_window() {
    let mut stage = Stage::start(long_answer()).await;
    let leaves = AtNeed::PayThenCancel(4);
    let (answer, signed) = stage.take("Say something.", leaves).await;
    assert!(answer.receipt.is_some() && signed > 0, "{:?}", answer.error);
    let taken = answer.claim().saturating_sub(signed);
    report("withholds the last voucher", taken, STREAM_WINDOW + PIECE);

    let mut script = Script::saying("It is so.");
    script.reasoning_tokens = 300;
    let mut stage = Stage::start(script).await;
    let (mut taken, mut paid, mut refused) = (0, 0, 0);
    for _ in 0..TRIES {
        let (answer, signed) = stage.take("Think.", AtNeed::Pay).await;
        taken += answer.claim();
        paid = signed.max(paid);
        refused += usize::from(answer.error == Some("voucher_late"));
    }
    assert!(refused > 0, "in the end it is refused");
    // The hidden reasoning of one request is what the seller declares that it may bill unseen.
    let hidden = 300 * 800;
    let bound = PAIR_WINDOW + hidden + PIECE;
    report("withholds what hidden reasoning costs", taken - paid, bound);
}

#[tokio::test(flavor = "multi_thread")]
async fn long_prompts_cancelled_before_the_first_token_cost_one_window() {
    // However late a CANCEL comes, it comes before the first token.
    let silent = Script::failing(Fault::StallBeforeFirstByte);
    let mut stage = Stage::start(silent).await;
    let prompt = "Read all of this. ".repeat(85);
    let known = stage.known_before(&prompt);
    assert!(known < STREAM_WINDOW, "{known} would have to be prepaid");
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..TRIES {
        let body = chat_body(&prompt);
        let mut stream = stage
            .buyer
            .order(&stage.to, &stage.head(&body).bytes, &body)
            .await;
        let mut answer = Answer::default();
        while let Some(frame) = stream.frame_of(&mut answer).await {
            if frame.kind == FrameKind::Nop {
                let reason = CancelReason::ClientGone.encode();
                let _ = stream.writer.send(FrameKind::Cancel, &reason).await;
            }
        }
        taken += answer.claim();
        refused += usize::from(answer.error == Some("voucher_late"));
    }
    assert!(refused > 0, "in the end it is refused");
    report(
        "cancels long prompts before the first token",
        taken,
        PAIR_WINDOW + known,
    );
    // What is above the window is not even begun without its voucher.
    let (answer, _) = stage
        .take(&"Read all of this. ".repeat(2_000), AtNeed::Cancel)
        .await;
    assert_eq!(answer.error, Some("voucher_late"));
    stage
        .standing
        .session
        .say(&SessionMessage::AcceptAck(vec![]))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buyer_that_never_accepts_keeps_at_most_one_window() {
    let mut stage = Stage::start(Script::saying(&"word ".repeat(40))).await;
    let (mut claimed, mut signed) = (0, 0);
    for _ in 0..TRIES {
        let (answer, voucher) = stage.take("Say something.", AtNeed::Pay).await;
        claimed += answer.claim();
        signed = voucher.max(signed);
    }
    let taken = claimed - signed;
    let known = stage.known_before("Say something.");
    report("never accepts", taken, PAIR_WINDOW + known + PIECE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buyer_that_accepts_nothing_of_every_answer_is_turned_away() {
    let mut stage = Stage::start(long_answer()).await;
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..TRIES {
        let (answer, _) = stage.take("Say something.", AtNeed::Cancel).await;
        taken += answer.claim();
        stage.accept(&answer, MicroUsd::ZERO).await;
        refused += usize::from(answer.error == Some("credit_exhausted"));
    }
    assert!(refused > 0, "in the end it is refused");
    let known = stage.known_before("Say something.");
    // The seller remembers over a restart: a second start must not give another window.
    stage.restart_seller().await;
    let (answer, _) = stage.take("Say something.", AtNeed::Cancel).await;
    assert_eq!(answer.error, Some("credit_exhausted"), "still turned away");
    // Write-offs of one window are forgiven; the request that passes them is one more.
    let bound = PAIR_WINDOW + STREAM_WINDOW + known + PIECE;
    report("accepts every answer with 0", taken, bound);
}
