//! Real engines behind real sessions in one process: pipes instead of a network, and stages that are
//! killed while they compute.

#![allow(
    clippy::disallowed_methods,
    clippy::as_conversions,
    reason = "a test's tasks and queues end with it, and its numbers are small"
)]

mod engines;
mod fire;
mod trusted;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Candidate, Checks, Heard, Opened, Order, Remote, Settings, Source, Want};
use crate::pipeline::ends::Ends;
use crate::pipeline::engine::tests::models::{Files, case, directory};
use crate::pipeline::engine::{
    Engine, EngineError, Head, Load, ModelConfig, Precision, Slot, Span, Stage,
};
use crate::pipeline::error::PipelineError;
use crate::pipeline::layers::{Layers, Local};
use crate::pipeline::processor::Processor;
use crate::pipeline::service::{Cover, Duplex, End, HeadSide, Peers, Stages};
use crate::pipeline::session::{Rows, Shape};
use crate::pipeline::trust::{FromFile, Reference, Trust, Vectors};
use crate::pipeline::worker::Worker;
use crate::protocol::stage::{
    StageDecoder, StageMessage, StageOpen, StageSession, StepKind, WireFormat,
};
use crate::tasks::Tasks;
use crate::types::{Hash32, PeerId, Usage};

const MANIFEST: Hash32 = Hash32([3; 32]);
const LAYERS: u16 = 6;
/// Positions of every engine: enough for sessions that end later than their successors begin.
const POSITIONS: usize = 4_000;
/// Bytes on their way between two stages.
const PIPE_BYTES: usize = 1 << 20;
/// Longer than any of these tests stalls on a loaded machine; deaths are seen by the stream's end.
const PATIENCE: Duration = Duration::from_secs(30);

/// A stage that can die.
struct Node {
    peer: PeerId,
    first: u16,
    end: u16,
    stages: Stages,
    life: CancellationToken,
    /// Its death is not seen at its streams' ends: they stay open.
    is_silent: bool,
}

/// What one session was said to cost, by both sides.
#[derive(Clone, Copy, Debug, Default)]
struct Bill {
    layers: u64,
    stated: Usage,
    owed: Rows,
    is_forfeit: bool,
}

/// Everyone who serves layers, and the links between them.
struct Town {
    nodes: Mutex<Vec<Arc<Node>>>,
    bills: Mutex<BTreeMap<StageSession, Bill>>,
    warmed: Mutex<Vec<PeerId>>,
    /// Who shows audits other rows than it sent.
    two_faced: Mutex<BTreeSet<PeerId>>,
    tasks: Tasks,
    workers: BTreeMap<(u16, u16), Worker>,
    silent: bool,
}

impl Town {
    async fn new(path: &std::path::Path, ranges: &[(u16, u16)]) -> Arc<Self> {
        let mut workers = BTreeMap::new();
        for (first, end) in ranges {
            let worker = worker(path, usize::from(*first)..usize::from(*end)).await;
            workers.insert((*first, *end), worker);
        }
        Arc::new(Self {
            nodes: Mutex::new(vec![]),
            bills: Mutex::new(BTreeMap::new()),
            warmed: Mutex::default(),
            two_faced: Mutex::default(),
            tasks: Tasks::new(),
            workers,
            silent: false,
        })
    }

    /// One more stage for these layers.
    fn settle(self: &Arc<Self>, first: u16, end: u16) -> PeerId {
        let worker = self.workers[&(first, end)].clone();
        self.settle_with(first, end, worker)
    }

    fn settle_with(self: &Arc<Self>, first: u16, end: u16, worker: Worker) -> PeerId {
        self.settle_as(PeerId::random(), first, end, worker)
    }

    fn settle_as(self: &Arc<Self>, peer: PeerId, first: u16, end: u16, worker: Worker) -> PeerId {
        let peers: Arc<dyn Peers> = Arc::new(Streets(Arc::clone(self)));
        let node = Node {
            peer,
            first,
            end,
            stages: Stages::new(MANIFEST, worker, peers, self.tasks.clone()),
            life: CancellationToken::new(),
            is_silent: self.silent,
        };
        self.nodes.lock().push(Arc::new(node));
        peer
    }

    /// Kills one that serves a session now.
    fn kill(&self, at: usize) -> Option<(u16, u16)> {
        let mut nodes = self.nodes.lock();
        let busy: Vec<usize> = (0..nodes.len())
            .filter(|i| nodes[*i].stages.sessions() > 0)
            .collect();
        let index = *busy.get(at % busy.len().max(1))?;
        let node = nodes.remove(index);
        node.life.cancel();
        Some((node.first, node.end))
    }

    fn remote(self: &Arc<Self>, settings: Settings) -> Remote {
        let source = Arc::new(Streets(Arc::clone(self)));
        Remote::new(settings, source, self.tasks.clone())
    }

    /// As [`Self::remote`], by a head that checks stages by the model's file.
    fn checking(self: &Arc<Self>, settings: Settings, checks: Checks) -> Remote {
        self.remote(settings).checked(checks, Trust::default())
    }

    /// Waits until every session is over and gives what each was said to cost.
    async fn bills(&self) -> Vec<Bill> {
        while self.nodes.lock().iter().any(|n| n.stages.sessions() > 0) {
            tokio::task::yield_now().await;
        }
        self.bills.lock().values().copied().collect()
    }
}

/// The town as its people see it.
struct Streets(Arc<Town>);

impl Peers for Streets {
    fn open<'a>(&'a self, peer: &'a PeerId) -> BoxFuture<'a, Result<Box<dyn Duplex>, String>> {
        Box::pin(async move {
            let nodes = self.0.nodes.lock();
            let node = nodes.iter().find(|node| node.peer == *peer).cloned();
            drop(nodes);
            let node = node.ok_or("no such peer")?;
            let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
            tokio::spawn(async move {
                let mut theirs = theirs;
                tokio::select! {
                    () = node.stages.take_rows(&mut theirs) => {}
                    () = node.life.cancelled() => if node.is_silent {
                        std::future::pending::<()>().await;
                    },
                }
            });
            let stream: Box<dyn Duplex> = Box::new(ours);
            Ok(stream)
        })
    }
    fn meet(&self, _: &PeerId, _: &[Vec<u8>]) {}
}

impl Source for Streets {
    fn candidates(&self, want: &Want) -> Vec<Candidate> {
        let nodes = self.0.nodes.lock();
        let fits = |node: &&Arc<Node>| {
            node.first == want.first && node.end <= want.end && !want.not.contains(&node.peer)
        };
        let candidate = |node: &Arc<Node>| Candidate {
            peer: node.peer,
            end: node.end,
            offer: None,
        };
        nodes.iter().filter(fits).map(candidate).collect()
    }

    fn warm(&self, at: Candidate) -> BoxFuture<'static, Result<(), PipelineError>> {
        self.0.warmed.lock().push(at.peer);
        Box::pin(async { Ok(()) })
    }

    fn open(
        &self,
        want: Want,
        at: Candidate,
        heard: mpsc::Sender<Heard>,
    ) -> BoxFuture<'static, Result<Opened, PipelineError>> {
        let town = Arc::clone(&self.0);
        Box::pin(async move {
            let is_it = |node: &&Arc<Node>| node.peer == at.peer;
            let node = town.nodes.lock().iter().find(is_it).cloned();
            let node = node.ok_or_else(|| PipelineError::Lost("nobody".to_owned()))?;
            let open = StageOpen {
                session: want.session,
                manifest: MANIFEST,
                first: node.first,
                end: node.end,
                positions_max: want.positions_max,
                wire: want.wire,
            };
            let reserved = node.stages.reserve(&open.to_bytes()).await?;
            let bill = Bill {
                layers: u64::from(node.end - node.first),
                ..Bill::default()
            };
            town.bills.lock().insert(want.session, bill);
            let (orders, mut told) = mpsc::channel(super::orders_max(want.positions_max));
            let (to_stage, from_head) = mpsc::unbounded_channel();
            let (to_head, mut from_stage) = mpsc::unbounded_channel();
            let (id, session) = (want.id, want.session);
            let keeper = Arc::clone(&town);
            tokio::spawn(async move {
                while let Some(order) = told.recv().await {
                    match order {
                        Order::Say(message, rows) => {
                            let mut bytes = BytesMut::new();
                            message.encode_into(&rows, &mut bytes);
                            let _ = to_stage.send(bytes.freeze());
                        }
                        Order::Owe(rows) => {
                            keeper.bills.lock().get_mut(&session).unwrap().owed = rows;
                        }
                        Order::Forfeit => {
                            let mut bills = keeper.bills.lock();
                            bills.get_mut(&session).unwrap().is_forfeit = true;
                        }
                    }
                }
            });
            tokio::spawn(async move {
                while let Some(what) = from_stage.recv().await {
                    let _ = heard.send((id, what)).await;
                }
            });
            let head = PipeHead {
                from_head,
                to_head: to_head.clone(),
                gathered: StageDecoder::default(),
                town: Arc::clone(&town),
                session,
                is_two_faced: town.two_faced.lock().contains(&node.peer),
            };
            let (peer, end) = (node.peer, node.end);
            tokio::spawn(async move {
                tokio::select! {
                    _ = reserved.run(head) => {}
                    () = node.life.cancelled() => {
                        if !node.is_silent {
                            let _ = to_head.send(Err("killed".to_owned()));
                        } else {
                            std::future::pending::<()>().await;
                        }
                    }
                }
            });
            Ok(Opened {
                peer,
                addresses: vec![],
                end,
                orders,
            })
        })
    }
}

/// A session's head over channels.
struct PipeHead {
    from_head: mpsc::UnboundedReceiver<Bytes>,
    to_head: mpsc::UnboundedSender<Result<(StageMessage, Bytes), String>>,
    gathered: StageDecoder,
    town: Arc<Town>,
    session: StageSession,
    is_two_faced: bool,
}

impl HeadSide for PipeHead {
    async fn read(&mut self) -> Result<Bytes, End> {
        self.from_head.recv().await.ok_or(End::Closed)
    }
    fn put(&mut self, bytes: &[u8]) {
        self.gathered.push(bytes);
    }
    async fn flush(&mut self) -> Result<(), End> {
        while let Some(mut message) = self.gathered.next_message().unwrap() {
            if let (StageMessage::Out(out), true) = (&message.0, self.is_two_faced)
                && out.epoch == 0
            {
                message.1 = message.1.iter().map(|byte| !byte).collect();
            }
            let _ = self.to_head.send(Ok(message));
        }
        Ok(())
    }
    fn state(&mut self, usage: Usage) -> Result<Cover, End> {
        let mut bills = self.town.bills.lock();
        bills.get_mut(&self.session).unwrap().stated = usage;
        Ok(Cover::Paid)
    }
}

async fn worker(path: &std::path::Path, layers: std::ops::Range<usize>) -> Worker {
    let load = Load {
        path: path.to_owned(),
        layers,
        precision: Precision::Q8,
        positions_max: POSITIONS,
    };
    let processor = Processor::start(Some(1)).unwrap();
    let stage = move || Ok(Stage::load(&load, &mut |_| {})?);
    Worker::start(processor, stage).await.unwrap()
}

/// A model, its ends, and what a session needs to know of it.
struct Model {
    files: Files,
    ends: Ends,
    hidden: usize,
}

impl Model {
    async fn new(name: &str) -> Self {
        let files = directory(&case(name));
        let path = files.path().to_owned();
        let processor = Processor::start(Some(1)).unwrap();
        let head = move || Ok(Head::load(&path, Precision::Q8)?);
        let ends = Ends::start(processor, head).await.unwrap();
        let hidden = ends.embed(vec![1]).await.unwrap().len();
        Self {
            files,
            ends,
            hidden,
        }
    }

    /// What a head that has the model's file checks stages by.
    async fn checks(&self) -> Checks {
        let processor = Processor::start(Some(1)).unwrap();
        let path = self.files.path().to_owned();
        let reference: Arc<dyn Reference> = Arc::new(FromFile::new(path, Precision::Q8, processor));
        let rows = self.ends.embed((40..48).collect()).await.unwrap();
        let vectors = Vectors::make(&*reference, rows, self.hidden, LAYERS, &|_| {});
        let vectors = Some(Arc::new(vectors.await.unwrap()));
        // The sender may go: what was sent stays.
        let vectors = tokio::sync::watch::channel(vectors).1;
        Checks { vectors, reference }
    }

    fn settings(&self, wire: WireFormat, shape: Shape) -> Settings {
        Settings {
            shape,
            patience: PATIENCE,
            audit_one_in: 0,
            ..Settings::new(LAYERS, self.hidden, wire)
        }
    }

    /// A greedy answer of `count` tokens with all its logits; `each` is called before each step.
    async fn answer(
        &self,
        layers: &dyn Layers,
        prompt: usize,
        count: usize,
        mut each: impl FnMut(usize),
    ) -> Vec<Vec<f32>> {
        let prompt: Vec<u32> = (0u32..).map(|t| (t * 7 + 3) % 256).take(prompt).collect();
        let mut pos = prompt.len();
        let mut run = layers.open(pos + count).await.unwrap();
        let rows = self.ends.embed(prompt).await.unwrap();
        each(0);
        let mut last = run.step(0, rows, StepKind::Prefill).await.unwrap();
        let mut all: Vec<Vec<f32>> = vec![];
        loop {
            let logits = self.ends.logits(last).await.unwrap();
            let best = (0u32..).zip(&logits).max_by(|a, b| a.1.total_cmp(b.1));
            let rows = self.ends.embed(vec![best.unwrap().0]).await.unwrap();
            all.push(logits);
            if all.len() == count {
                return all;
            }
            each(all.len());
            last = run.step(pos, rows, StepKind::Decode).await.unwrap();
            pos += 1;
        }
    }
}

const THIRDS: [(u16, u16); 3] = [(0, 2), (2, 4), (4, 6)];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_stages_give_the_bits_of_one_machine_and_agree_on_every_bill() {
    let model = Model::new("llama").await;
    let whole = Local::new(worker(model.files.path(), 0..6).await).unwrap();
    let alone = model.answer(&whole, 70, 8, |_| {}).await;
    for shape in [Shape::Push, Shape::Star] {
        let town = Town::new(model.files.path(), &THIRDS).await;
        for (first, end) in THIRDS {
            town.settle(first, end);
        }
        let remote = town.remote(model.settings(WireFormat::F32, shape));
        let split = model.answer(&remote, 70, 8, |_| {}).await;
        assert!(split == alone, "{shape:?}");
        let bills = town.bills().await;
        assert_eq!(bills.len(), 3);
        for bill in bills {
            // 70 rows of the prompt and 7 more through two layers each.
            assert_eq!((bill.stated.input, bill.stated.output), (140, 14));
            assert_eq!((bill.owed.prefill, bill.owed.decode), (70, 7));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_whose_layers_are_not_all_offered_does_not_open() {
    let model = Model::new("llama").await;
    let town = Town::new(model.files.path(), &THIRDS).await;
    town.settle(0, 2);
    let mut settings = model.settings(WireFormat::F16, Shape::Push);
    // The stage that there is must not be taken for dead meanwhile: nobody would have its layers.
    settings.search = Duration::from_secs(3);
    settings.patience = Duration::from_secs(6);
    let refused = town.remote(settings).open(10).await.err();
    assert_eq!(
        refused,
        Some(PipelineError::Lost(
            "nobody offers layers from 2 on".to_owned()
        ))
    );
}
