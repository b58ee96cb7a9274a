//! A model on several sellers: real engines, real orders, money and rows over libp2p.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use souk::ledger::Role;
use souk::pipeline::chain::Settings;
use souk::pipeline::ends::Ends;
use souk::pipeline::engine::{Head, Load, Precision, Stage};
use souk::pipeline::layers::{Layers, Local, StepKind};
use souk::pipeline::processor::Processor;
use souk::pipeline::worker::Worker;
use souk::protocol::offer::{StageTerms, Wires};
use souk::protocol::stage::WireFormat;
use souk::types::{Hash32, MicroUsd, PeerId, PriceTable};

use crate::harness::books;
use crate::harness::node::Node;
use crate::harness::payer::{LOOPBACK, Payer};
use crate::harness::stage::StageSeller;
use crate::tiny_model::TinyModel;

pub const MANIFEST: Hash32 = Hash32([5; 32]);
pub const LAYERS: u16 = 6;
/// Micro-USD per million block-tokens: one for each of prefill, three for each of decode, so that a
/// chunk of 64 rows through two layers lies within the window.
pub const PRICE: PriceTable = PriceTable {
    input: 1_000_000,
    cache_read: 0,
    cache_write: 0,
    output: 3_000_000,
};
/// The books of both sides agree within this on a loaded machine.
pub const BOOKED_DEADLINE: Duration = Duration::from_secs(60);
pub const PROMPT: u32 = 40;
pub const TOKENS: usize = 16;

pub async fn worker(path: &Path, layers: Range<usize>) -> Worker {
    let load = Load {
        path: path.to_owned(),
        layers,
        precision: Precision::Q8,
        positions_max: 2_048,
    };
    let stage = move || Ok(Stage::load(&load, &mut |_| {})?);
    let processor = Processor::start(Some(1)).unwrap();
    Worker::start(processor, stage).await.unwrap()
}

/// One seller of the layers `first..end`.
pub async fn seller(path: &Path, first: u16, end: u16) -> StageSeller {
    let worker = worker(path, usize::from(first)..usize::from(end)).await;
    seller_of(worker, first, end, PRICE, 100).await
}

/// One seller of what `worker` computes, that claims to compute so many rows per second.
pub async fn seller_of(
    worker: Worker,
    first: u16,
    end: u16,
    price: PriceTable,
    rows_per_s: u32,
) -> StageSeller {
    let terms = StageTerms {
        manifest: MANIFEST,
        first,
        end,
        layers: LAYERS,
        free_positions: 2_048,
        rows_per_s,
        wires: Wires(Wires::F16.0 | Wires::F32.0),
    };
    StageSeller::layers(worker, terms, price).await
}

/// How a session of this test is kept alive.
pub fn settings(hidden: usize) -> Settings {
    Settings {
        // Longer than a loaded machine keeps a living stage from answering a ping.
        patience: Duration::from_secs(12),
        ..Settings::new(LAYERS, hidden, WireFormat::F32)
    }
}

/// All logits of a greedy answer; `each` is called before each of its steps.
pub async fn answer(
    layers: &dyn Layers,
    ends: &Ends,
    mut each: impl AsyncFnMut(usize),
) -> Vec<Vec<f32>> {
    let prompt: Vec<u32> = (0..PROMPT).map(|t| (t * 7 + 3) % 256).collect();
    let mut pos = prompt.len();
    let mut run = layers.open(pos + TOKENS).await.unwrap();
    let rows = ends.embed(prompt).await.unwrap();
    let mut last = run.step(0, rows, StepKind::Prefill).await.unwrap();
    let mut all: Vec<Vec<f32>> = vec![];
    loop {
        let logits = ends.logits(last).await.unwrap();
        let best = (0u32..).zip(&logits).max_by(|a, b| a.1.total_cmp(b.1));
        let rows = ends.embed(vec![best.unwrap().0]).await.unwrap();
        all.push(logits);
        if all.len() == TOKENS {
            return all;
        }
        each(all.len()).await;
        last = run.step(pos, rows, StepKind::Decode).await.unwrap();
        pos += 1;
    }
}

pub struct Scene {
    _files: tempfile::TempDir,
    pub ends: Ends,
    pub alone: Vec<Vec<f32>>,
    pub hidden: usize,
    pub files: std::path::PathBuf,
}

pub async fn scene() -> Scene {
    let folder = tempfile::tempdir().unwrap();
    let model = TinyModel::default();
    model.write(folder.path());
    let files = folder.path().to_owned();
    let path = files.clone();
    let head = move || Ok(Head::load(&path, Precision::Q8)?);
    let ends = Ends::start(Processor::start(Some(1)).unwrap(), head).await;
    let ends = ends.unwrap();
    let whole = Local::new(worker(&files, 0..usize::from(LAYERS)).await).unwrap();
    let alone = answer(&whole, &ends, async |_| {}).await;
    Scene {
        _files: folder,
        ends,
        alone,
        hidden: model.hidden,
        files,
    }
}

/// Waits until the buyer's and these sellers' books agree on every channel they share.
pub async fn agreed(payer: &Payer, sellers: &[&StageSeller]) -> Vec<MicroUsd> {
    let end = tokio::time::Instant::now() + BOOKED_DEADLINE;
    loop {
        let bought = Payer::booked(&payer.ledger, Role::Buy).await;
        let mut sold = vec![];
        for seller in sellers {
            sold.push(Payer::booked(&seller.ledger, Role::Sell).await);
        }
        if let Some(bought) = &bought
            && let Some(sold) = sold.iter().cloned().collect::<Option<Vec<_>>>()
        {
            let mut sold: Vec<_> = sold.into_iter().flatten().collect();
            sold.sort();
            if *bought == sold && bought.len() == sellers.len() {
                return bought.iter().map(|(_, sum)| *sum).collect();
            }
        }
        let now = tokio::time::Instant::now();
        assert!(now < end, "the books differ: {bought:?} {sold:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_sellers_compute_what_one_machine_does_and_all_books_agree() {
    let scene = scene().await;
    let a = seller(&scene.files, 0, 2).await;
    let b = seller(&scene.files, 2, 4).await;
    let c = seller(&scene.files, 4, LAYERS).await;
    let payer = Payer::start(&[&a, &b, &c], settings(scene.hidden)).await;
    let split = answer(&payer.remote, &scene.ends, async |_| {}).await;
    assert!(split == scene.alone, "the split answer differs");
    // 40 rows of prompt at 1 and 15 of answer at 3, through two layers each.
    let each = MicroUsd(u64::from(PROMPT) * 2 + 15 * 2 * 3);
    assert_eq!(agreed(&payer, &[&a, &b, &c]).await, [each; 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seller_that_dies_mid_answer_is_replaced_and_the_answer_is_the_same() {
    let scene = scene().await;
    let a = seller(&scene.files, 0, 2).await;
    let mut b = Some(seller(&scene.files, 2, 4).await);
    let spare = seller(&scene.files, 2, 4).await;
    let c = seller(&scene.files, 4, LAYERS).await;
    let middle = b.as_ref().unwrap();
    let payer = Payer::start(&[&a, middle, &spare, &c], settings(scene.hidden)).await;
    let split = answer(&payer.remote, &scene.ends, async |step| {
        if step == 7 {
            b = None;
        }
    })
    .await;
    assert!(split == scene.alone, "the answer changed by a loss");
    for survivor in [&a, &c] {
        let ledger = &survivor.ledger;
        let sold = async || Payer::booked(ledger, Role::Sell).await.unwrap_or_default();
        paid_once(&payer, survivor.handle.local_peer(), 1, async || {
            sold().await.into_iter().map(|(_, sum)| sum).collect()
        })
        .await;
    }
}

/// Waits until a stage that lived from the start to the end was paid for every row once, by both
/// books. The row that was on its way when another died may have come again as a part of a replay, at
/// the price of prefill: one for each loss.
pub async fn paid_once(
    payer: &Payer,
    peer: PeerId,
    losses: u64,
    sold: impl AsyncFn() -> Vec<MicroUsd>,
) {
    let whole = u64::from(PROMPT) * 2 + 15 * 2 * 3;
    let costs: Vec<u64> = (0..=losses)
        .map(|rows| whole - rows * (2 * 3 - 2))
        .collect();
    let end = tokio::time::Instant::now() + BOOKED_DEADLINE;
    loop {
        let channels = payer.ledger.load(Role::Buy).await.unwrap();
        let channel = channels.iter().find(|channel| channel.row.peer == peer);
        let bought = channel.map_or(MicroUsd::ZERO, |channel| channel.accepted_sum);
        let sold = sold().await;
        if sold == [bought] && costs.contains(&bought.0) {
            return;
        }
        let now = tokio::time::Instant::now();
        assert!(
            now < end,
            "bought {bought:?}, sold {sold:?}, not one of {costs:?}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A process that contributes these layers at the prices of [`PRICE`].
fn contribute(path: &Path, layers: &str) -> Node {
    let path = path.to_str().unwrap();
    let mut args = vec!["contribute", "--model", path, "--layers", layers];
    args.extend(["--price-in", "1", "--price-out", "3", "--positions", "512"]);
    args.extend(["--http-port", "0", "--credit-limit", "1"]);
    Node::start(&args)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_killed_mid_answer_is_replaced_and_the_answer_is_the_same() {
    let scene = scene().await;
    let ranges = ["0..2", "2..4", "2..4", "4..6"];
    let mut nodes = ranges.map(|layers| contribute(&scene.files, layers));
    let listed = nodes.iter().map(|node| (node.listen().to_owned(), None));
    let payer = Payer::of(LOOPBACK, listed.collect(), settings(scene.hidden)).await;
    let split = answer(&payer.remote, &scene.ends, async |step| {
        if step == 7 {
            nodes[1].kill();
        }
    })
    .await;
    assert!(split == scene.alone, "the answer changed by a kill");
    for survivor in [&nodes[0], &nodes[3]] {
        let peer = survivor.peer_id().parse().unwrap();
        paid_once(&payer, peer, 1, async || {
            let rows = books::rows(survivor.home());
            let billed = rows.values().filter_map(|row| row.billed);
            billed.map(MicroUsd).collect()
        })
        .await;
    }
}
