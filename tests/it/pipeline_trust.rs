//! What a head makes sure of about sellers of layers, over libp2p and with vouchers: who fails its
//! check, who alters rows later, who is not as fast as its offer says.

use std::sync::Arc;
use std::time::{Duration, Instant};

use souk::ledger::Role;
use souk::pipeline::chain::order::Places;
use souk::pipeline::chain::{Checks, Settings, Want};
use souk::pipeline::engine::{Precision, Span};
use souk::pipeline::layers::{Layers, Local, StepKind};
use souk::pipeline::processor::Processor;
use souk::pipeline::routed;
use souk::pipeline::trust::odds::{Pattern, audits_needed, per_audit};
use souk::pipeline::trust::{FromFile, Part, Reference, Trust, Vectors};
use souk::protocol::offer::SignedOffer;
use souk::types::{MicroUsd, PriceTable};

use crate::harness::layers::bent;
use crate::harness::payer::{LOOPBACK, Payer, introduced};
use crate::harness::stage::StageSeller;
use crate::pipeline::{
    BOOKED_DEADLINE, LAYERS, PRICE, PROMPT, Scene, TOKENS, agreed, answer, scene, seller,
    seller_of, settings, worker,
};

/// What a head that has the model's file checks stages by.
async fn checks(scene: &Scene) -> Checks {
    let processor = Processor::start(Some(1)).unwrap();
    let reference = FromFile::new(scene.files.clone(), Precision::Q8, processor);
    let reference: Arc<dyn Reference> = Arc::new(reference);
    let rows = scene.ends.embed((40..48).collect()).await.unwrap();
    let made = Vectors::make(&*reference, rows, scene.hidden, LAYERS, &|_| {});
    let vectors = tokio::sync::watch::channel(Some(Arc::new(made.await.unwrap()))).1;
    Checks { vectors, reference }
}

/// A head that checks these, and audits after one step in so many.
async fn head(scene: &Scene, sellers: &[&StageSeller], audit_one_in: u32) -> Payer {
    let settings = Settings {
        audit_one_in,
        ..settings(scene.hidden)
    };
    let mut payer = Payer::start(sellers, settings).await;
    let checked = payer.remote.clone();
    payer.remote = checked.checked(checks(scene).await, Trust::default());
    payer
}

/// What this head paid to one seller, and what that one says.
async fn books_with(payer: &Payer, seller: &StageSeller) -> (MicroUsd, MicroUsd) {
    let peer = seller.handle.local_peer();
    let end = Instant::now() + BOOKED_DEADLINE;
    loop {
        let bought = payer.ledger.load(Role::Buy).await.unwrap();
        let bought = bought.iter().find(|channel| channel.row.peer == peer);
        let sold = seller.ledger.load(Role::Sell).await.unwrap();
        let is_over = |channel: &souk::ledger::ChannelState| channel.unfinished.is_empty();
        if let (Some(bought), [sold]) = (bought, &sold[..])
            && is_over(bought)
            && is_over(sold)
        {
            return (bought.accepted_sum, sold.accepted_sum);
        }
        assert!(Instant::now() < end, "books stay open");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// 8 rows of prefill through two layers.
const CHECK: u64 = 8 * 2;
/// The prompt and all tokens but the last, through two layers.
const WHOLE: u64 = PROMPT as u64 * 2 + (TOKENS as u64 - 1) * 2 * 3;

#[tokio::test(flavor = "multi_thread")]
async fn a_seller_that_fails_its_check_serves_nobody_and_is_not_paid() {
    let scene = scene().await;
    let liar = bent(&scene.files, 2..4, |_| true, Duration::ZERO).await;
    let liar = seller_of(liar, 2, 4, PRICE, 100).await;
    let a = seller(&scene.files, 0, 2).await;
    let b = seller(&scene.files, 2, 4).await;
    let c = seller(&scene.files, 4, LAYERS).await;
    let payer = head(&scene, &[&a, &liar, &b, &c], 0).await;
    let split = answer(&payer.remote, &scene.ends, async |_| {}).await;
    assert!(split == scene.alone, "the split answer differs");
    let distrusted = payer.remote.trust().distrusted();
    assert_eq!(Vec::from_iter(distrusted), [liar.handle.local_peer()]);
    let zero = MicroUsd::ZERO;
    assert_eq!(books_with(&payer, &liar).await, (zero, zero));
    let paid = MicroUsd(CHECK + WHOLE);
    for honest in [&a, &b, &c] {
        assert_eq!(books_with(&payer, honest).await, (paid, paid));
    }
}

/// A step goes on without a verdict after this: there is none when no stage had said that it was done
/// before the answer came.
const AUDIT_WAIT: Duration = Duration::from_secs(2);

/// One of four decode rows is altered, no row of any check: pos 41, 45, 49, 53.
fn lies(span: &Span) -> bool {
    span.rows == 1 && span.pos % 4 == 1
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seller_that_alters_rows_is_found_by_audits_and_replaced_and_loses_what_is_owed() {
    let scene = scene().await;
    let liar = bent(&scene.files, 2..4, lies, Duration::ZERO).await;
    let liar = seller_of(liar, 2, 4, PRICE, 100).await;
    let a = seller(&scene.files, 0, 2).await;
    let b = seller(&scene.files, 2, 4).await;
    let c = seller(&scene.files, 4, LAYERS).await;
    let payer = head(&scene, &[&a, &liar, &b, &c], 1).await;
    let trust = payer.remote.trust().clone();
    // 4 of 55 rows, of one stage of three.
    let rows = PROMPT + u32::try_from(TOKENS).unwrap() - 1;
    let each = per_audit(4.0 / f64::from(rows), rows, Pattern::Scattered) / 3.0;
    let most = u64::from(audits_needed(each, 1.0 - 1e-9));
    let (mut sessions, mut found_at) = (0, 0);
    let (mut emitted, mut logits) = (vec![], vec![]);
    while trust.distrusted().is_empty() {
        assert!(trust.audits() <= most, "not found by {most} audits");
        sessions += 1;
        (emitted, logits) = (vec![], vec![]);
        let prompt: Vec<u32> = (0..PROMPT).map(|t| (t * 7 + 3) % 256).collect();
        let mut pos = prompt.len();
        let mut run = payer.remote.open(pos + TOKENS).await.unwrap();
        let mut next = (prompt, StepKind::Prefill);
        while logits.len() < TOKENS {
            let was_found = !trust.distrusted().is_empty();
            let audits = trust.audits();
            let rows = scene.ends.embed(next.0.clone()).await.unwrap();
            let at = pos * usize::from(!emitted.is_empty());
            let last = run.step(at, rows, next.1).await.unwrap();
            pos += usize::from(!emitted.is_empty());
            let scores = scene.ends.logits(last).await.unwrap();
            let best = (0u32..).zip(&scores).max_by(|a, b| a.1.total_cmp(b.1));
            let token = best.unwrap().0;
            if !was_found {
                found_at = logits.len() + 1;
            }
            emitted.push(next.0);
            logits.push(scores);
            next = (vec![token], StepKind::Decode);
            // Nearly every step is followed by an audit; the next waits for its verdict, so that it
            // comes while the session is open.
            let end = Instant::now() + AUDIT_WAIT;
            while trust.audits() == audits && trust.distrusted().is_empty() && Instant::now() < end
            {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        assert!(sessions < 100, "hardly an audit: {}", trust.audits());
    }
    assert_eq!(
        Vec::from_iter(trust.distrusted()),
        [liar.handle.local_peer()]
    );
    println!("found by {} audits of at most {most}", trust.audits());
    // From the finding on the answer is what one machine computes after the same tokens; before it,
    // there was a difference to find.
    let whole = Local::new(worker(&scene.files, 0..usize::from(LAYERS)).await).unwrap();
    let mut run = whole
        .open(usize::try_from(PROMPT).unwrap() + TOKENS)
        .await
        .unwrap();
    let (mut pos, mut same) = (0, vec![]);
    for (tokens, scores) in emitted.into_iter().zip(&logits) {
        let kind = if pos == 0 {
            StepKind::Prefill
        } else {
            StepKind::Decode
        };
        let count = tokens.len();
        let rows = scene.ends.embed(tokens).await.unwrap();
        let last = run.step(pos, rows, kind).await.unwrap();
        pos += count;
        same.push(scene.ends.logits(last).await.unwrap() == *scores);
    }
    assert!(
        same[found_at..].iter().all(|same| *same),
        "{found_at}: {same:?}"
    );
    assert!(!same.iter().all(|same| *same), "nothing was altered");
    // Its check and earlier sessions were paid, the session in which it was found was not.
    let paid = MicroUsd(CHECK + (sessions - 1) * WHOLE);
    assert!(sessions > 1 || found_at > 1, "something was owed");
    // One audit of a whole session of its own may have been under way with the honest ones.
    assert_eq!(books_with(&payer, &liar).await, (paid, paid));
    for honest in [&a, &b, &c] {
        let (bought, sold) = books_with(&payer, honest).await;
        assert_eq!(bought, sold);
        assert!(bought > MicroUsd::ZERO);
    }
}

/// What a row takes beside computing where it is claimed to take a thousandth of a second. Word of
/// the stage before comes late at times, so a little less is seen.
const SLOWNESS: Duration = Duration::from_millis(150);

/// The product's own choice among a list.
struct Chosen(Vec<Arc<SignedOffer>>, Trust);

impl Places for Chosen {
    fn offers(&self, want: &Want) -> Vec<Arc<SignedOffer>> {
        routed::chosen(&self.0, want, 500, &self.1)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_claims_to_be_ten_times_as_fast_is_chosen_once() {
    let scene = scene().await;
    let slow = bent(&scene.files, 2..4, |_| false, SLOWNESS).await;
    let slow = seller_of(slow, 2, 4, PRICE, 1_000).await;
    let a = seller(&scene.files, 0, 2).await;
    let b = seller(&scene.files, 2, 4).await;
    let c = seller(&scene.files, 4, LAYERS).await;
    let listed = introduced(&[&a, &slow, &b, &c]).await;
    let trust = Trust::default();
    let session = Settings {
        audit_one_in: 0,
        ..settings(scene.hidden)
    };
    let places = |offers| -> Arc<dyn Places> { Arc::new(Chosen(offers, trust.clone())) };
    let mut payer = Payer::choosing(LOOPBACK, listed, session, places).await;
    let checked = payer.remote.clone();
    payer.remote = checked.checked(checks(&scene).await, trust.clone());
    let part = |of: &StageSeller| Part {
        peer: of.handle.local_peer(),
        first: 2,
        end: 4,
    };
    // Both are checked: the one to serve, the other to be ready, while the first answers.
    let sold = async |one: &StageSeller| books_with(&payer, one).await.1;
    let first = answer(&payer.remote, &scene.ends, async |_| {
        let end = Instant::now() + BOOKED_DEADLINE;
        while !trust.is_checked(&part(&b), Instant::now()) {
            assert!(Instant::now() < end, "nobody is made ready");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(first.await == scene.alone);
    assert_eq!(
        sold(&slow).await,
        MicroUsd(CHECK + WHOLE),
        "its claim is believed"
    );
    assert_eq!(sold(&b).await, MicroUsd(CHECK));
    let row_us = trust.row_us(&part(&slow), Instant::now());
    assert!(row_us.is_some_and(|us| us >= 100_000), "{row_us:?}");
    assert!(answer(&payer.remote, &scene.ends, async |_| {}).await == scene.alone);
    assert_eq!(
        sold(&b).await,
        MicroUsd(CHECK + WHOLE),
        "and then what was measured"
    );
    assert_eq!(sold(&slow).await, MicroUsd(CHECK + WHOLE));
}

/// A chunk of the prompt costs more than twice what a stream may run ahead: 80 rows, two layers, at
/// 200 USD per million.
#[tokio::test(flavor = "multi_thread")]
async fn layers_that_are_dear_are_paid_chunk_by_chunk() {
    const DEAR: PriceTable = PriceTable {
        input: 200_000_000,
        cache_read: 0,
        cache_write: 0,
        output: 300_000_000,
    };
    let scene = scene().await;
    let mut sellers = vec![];
    for (first, end) in [(0, 2), (2, 4), (4, LAYERS)] {
        let worker = worker(&scene.files, first.into()..end.into()).await;
        sellers.push(seller_of(worker, first, end, DEAR, 100).await);
    }
    let all: Vec<&StageSeller> = sellers.iter().collect();
    let payer = Payer::start(&all, settings(scene.hidden)).await;
    let mut run = payer.remote.open(96).await.unwrap();
    let rows = scene.ends.embed((0..64).collect()).await.unwrap();
    run.step(0, rows, StepKind::Prefill).await.unwrap();
    drop(run);
    let each = MicroUsd(64 * 2 * 200);
    assert_eq!(agreed(&payer, &all).await, [each; 3]);
}
