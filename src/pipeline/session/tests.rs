//! A market in one thread: stages die, links repeat, swap and lose messages, in an order that a seed
//! decides; what the head gets must be what one machine alone computes, and every bill exact.

mod storms;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::{
    Chain, ChainEffect, Hop, HopId, Loss, Rows, Shape, StageEffect, StageMachine, StageRefusal,
    StageVerdict,
};
use crate::protocol::stage::{Next, StageError, StageMessage, StageSession, Step, StepKind};
use crate::types::PeerId;

const LAYERS: u16 = 12;
/// After so many turns without an answer nothing more goes wrong until there is one.
const STORM_TURNS: usize = 2_000;
/// Bytes of a row: one number.
const ROW: usize = 8;

/// Numbers from a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0, 0)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.roll() % n.max(1)
    }
    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

fn mix(a: u64, b: u64) -> u64 {
    let mut z = a ^ b.rotate_left(31).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A model in which every row depends on all rows before it, in every layer.
#[derive(Default)]
struct Engine {
    layers: BTreeMap<u16, Vec<u64>>,
    computed: u64,
    never_forgets: bool,
}

impl Engine {
    fn new(first: u16, end: u16) -> Self {
        Self {
            layers: (first..end).map(|layer| (layer, vec![])).collect(),
            ..Self::default()
        }
    }
    fn forward(&mut self, pos: u32, rows: &[u8]) -> Bytes {
        let mut out = vec![];
        for (i, row) in rows.chunks(ROW).enumerate() {
            let mut x = u64::from_be_bytes(row.try_into().unwrap());
            for (layer, memory) in &mut self.layers {
                if !self.never_forgets {
                    let at = usize::try_from(pos).unwrap() + i;
                    assert!(at <= memory.len(), "the engine was given a gap");
                    memory.truncate(at);
                }
                let before = memory.last().copied().unwrap_or(1);
                memory.push(mix(before, x));
                x = mix(u64::from(*layer), mix(before, x));
            }
            self.computed += 1;
            out.extend_from_slice(&x.to_be_bytes());
        }
        out.into()
    }
}

/// Defects that the tests must find.
#[derive(Clone, Copy, PartialEq)]
enum Flaw {
    None,
    NoEpochCheck,
    BillsAgain,
    ForgetsNothing,
}

/// What goes wrong on the way.
#[derive(Clone, Copy)]
struct Faults {
    /// One in so many deliveries; 0 is never.
    kill: u64,
    repeat: u64,
    swap: u64,
    lose: u64,
}

const CALM: Faults = Faults {
    kill: 0,
    repeat: 0,
    swap: 0,
    lose: 0,
};

struct Node {
    machine: StageMachine,
    engine: Engine,
    overbilled: u64,
}

/// A directed link: the head is `None`; rows of each epoch have a stream of their own.
type Link = (Option<HopId>, Option<HopId>, u32);

struct Market {
    dice: Dice,
    faults: Faults,
    flaw: Flaw,
    chain: Chain,
    nodes: BTreeMap<HopId, Node>,
    links: BTreeMap<Link, VecDeque<(StageMessage, Bytes)>>,
    /// Dead, and the head does not know yet.
    unnoticed: BTreeSet<HopId>,
    paid: Vec<(Rows, Rows)>,
    answer: Option<Bytes>,
    next_id: u64,
    kills: u64,
    resent: u64,
}

impl Market {
    fn new(seed: u64, shape: Shape, faults: Faults, flaw: Flaw) -> Self {
        let mut market = Self {
            dice: Dice(seed),
            faults,
            flaw,
            chain: Chain::new(LAYERS, ROW, shape, [7; 32]),
            nodes: BTreeMap::new(),
            links: BTreeMap::new(),
            unnoticed: BTreeSet::new(),
            paid: vec![],
            answer: None,
            next_id: 0,
            kills: 0,
            resent: 0,
        };
        for (first, end) in [(0, 4), (4, 8), (8, LAYERS)] {
            market.join(first, end);
        }
        market
    }

    fn join(&mut self, first: u16, end: u16) {
        let id = HopId(self.next_id);
        self.next_id += 1;
        let mut engine = Engine::new(first, end);
        engine.never_forgets = self.flaw == Flaw::ForgetsNothing;
        let node = Node {
            machine: StageMachine::new(4096, ROW),
            engine,
            overbilled: 0,
        };
        self.nodes.insert(id, node);
        let mut session = [0; 16];
        session[..8].copy_from_slice(&id.0.to_be_bytes());
        let hop = Hop {
            id,
            first,
            end,
            peer: PeerId::random(),
            session: StageSession(session),
        };
        let mut effects = vec![];
        assert!(self.chain.join(hop, &mut effects));
        self.act(effects);
    }

    /// One or two stages for each range that nobody serves.
    fn replace(&mut self) {
        for (first, end) in self.chain.missing() {
            if end - first > 1 && self.dice.one_in(3) {
                let width = u64::from(end - first - 1);
                let cut = first + 1 + u16::try_from(self.dice.below(width)).unwrap();
                self.join(cut, end);
                self.join(first, cut);
            } else {
                self.join(first, end);
            }
        }
    }

    fn act(&mut self, effects: Vec<ChainEffect>) {
        for effect in effects {
            match effect {
                ChainEffect::Send(to, message, rows) => {
                    let link = (None, Some(to), 0);
                    self.links
                        .entry(link)
                        .or_default()
                        .push_back((message, rows));
                }
                ChainEffect::Dismiss(id, rows, _) => {
                    let node = self.nodes.remove(&id).unwrap();
                    self.links
                        .retain(|(from, to, _), _| *from != Some(id) && *to != Some(id));
                    self.unnoticed.remove(&id);
                    let billed = billed(&node);
                    assert!(rows.prefill <= billed.prefill && rows.decode <= billed.decode);
                    assert_eq!(billed.total(), node.engine.computed);
                    self.paid.push((rows, billed));
                }
                ChainEffect::Answer(row) => assert!(self.answer.replace(row).is_none()),
            }
        }
    }

    fn ask(&mut self, pos: u32, rows: Bytes, kind: StepKind) -> Bytes {
        let mut effects = vec![];
        assert!(self.chain.ask(pos, &rows, kind, &mut effects));
        self.act(effects);
        let mut turns = 0;
        while self.answer.is_none() {
            turns += 1;
            assert!(turns < 20_000, "no answer");
            // A storm in which no long prompt ever gets through would show nothing.
            self.turn(turns < STORM_TURNS);
        }
        self.answer.take().unwrap()
    }

    /// One thing happens.
    fn turn(&mut self, is_stormy: bool) {
        if is_stormy {
            self.misfortune();
        }
        if !self.chain.missing().is_empty() && self.dice.one_in(4) {
            self.replace();
        }
        let busy: Vec<Link> = self
            .links
            .iter()
            .filter(|((_, to, _), queue)| {
                !queue.is_empty() && to.is_none_or(|to| !self.unnoticed.contains(&to))
            })
            .map(|(link, _)| *link)
            .collect();
        if busy.is_empty() || (self.dice.one_in(20) && !self.unnoticed.is_empty()) {
            return self.notice();
        }
        let at = self.dice.below(u64::try_from(busy.len()).unwrap());
        let link = busy[usize::try_from(at).unwrap()];
        if !self.deliver(link) && busy.len() == 1 {
            // It waits for a ROUTE that only a new epoch brings.
            self.notice();
        }
    }

    /// The head sees a dead stage, or that nothing comes.
    fn notice(&mut self) {
        let dead = self.unnoticed.first().copied();
        let mut effects = vec![];
        if let Some(id) = dead {
            self.chain.lose(id, Loss::Away("dead"), &mut effects);
        } else if let Some(id) = self.chain.suspect() {
            assert!(
                self.faults.lose > 0 || self.faults.swap > 0,
                "silence without a loss"
            );
            self.chain.lose(id, Loss::Away("silent"), &mut effects);
        } else {
            self.replace();
        }
        self.act(effects);
    }

    fn happens(&mut self, one_in: u64) -> bool {
        one_in > 0 && self.dice.one_in(one_in)
    }

    fn misfortune(&mut self) {
        if self.happens(self.faults.kill) {
            let living: Vec<HopId> = self.nodes.keys().copied().collect();
            if !living.is_empty() {
                let at = self.dice.below(u64::try_from(living.len()).unwrap());
                let id = living[usize::try_from(at).unwrap()];
                if self.unnoticed.insert(id) {
                    self.kills += 1;
                }
            }
        }
        let (repeat, swap, lose) = (
            self.happens(self.faults.repeat),
            self.happens(self.faults.swap),
            self.happens(self.faults.lose),
        );
        let is_step = |m: &(StageMessage, Bytes)| matches!(m.0, StageMessage::Step(_));
        let links = self.links.values_mut();
        let rows: Vec<_> = links
            .filter(|queue| queue.front().is_some_and(is_step))
            .collect();
        if rows.is_empty() {
            return;
        }
        let at = self.dice.below(u64::try_from(rows.len()).unwrap());
        let queue = rows.into_iter().nth(usize::try_from(at).unwrap()).unwrap();
        if repeat {
            let again = queue.front().cloned().unwrap();
            let at = queue.len().min(2);
            queue.insert(at, again);
            self.resent += 1;
        }
        if swap && queue.len() > 1 && is_step(&queue[1]) {
            queue.swap(0, 1);
        }
        if lose {
            queue.pop_front();
        }
    }

    /// False when the message must wait.
    fn deliver(&mut self, link: Link) -> bool {
        let queue = self.links.get_mut(&link).unwrap();
        let (message, rows) = queue.pop_front().unwrap();
        let (from, to, _) = link;
        let Some(to) = to else {
            let mut effects = vec![];
            self.chain.heard(from.unwrap(), message, rows, &mut effects);
            self.act(effects);
            return true;
        };
        let node = self.nodes.get_mut(&to).unwrap();
        let effects = match message.clone() {
            StageMessage::Halt(halt) => node.machine.halt(halt).into_iter().collect(),
            StageMessage::Route(route) => node.machine.route_to(route),
            StageMessage::Step(step) => match take(node, step, &rows, self.flaw) {
                Ok(effects) => effects,
                Err(StageRefusal::Early) => {
                    let queue = self.links.entry(link).or_default();
                    queue.push_front((message, rows));
                    return false;
                }
                Err(StageRefusal::Stale) => vec![],
                Err(StageRefusal::Gap) => {
                    let (epoch, error) = (node.machine.epoch(), StageError::Gap);
                    let error = StageMessage::Error { epoch, error };
                    vec![StageEffect::Head(error, Bytes::new())]
                }
                Err(StageRefusal::Malformed) => panic!("malformed"),
            },
            other => panic!("{other:?} to a stage"),
        };
        for effect in effects {
            self.sent(to, effect);
        }
        true
    }

    fn sent(&mut self, from: HopId, effect: StageEffect) {
        let (link, message, rows) = match effect {
            StageEffect::Head(message, rows) => ((Some(from), None, 0), message, rows),
            StageEffect::Next(step, rows) => {
                let route = *self.nodes[&from].machine.route().unwrap();
                let Next::Stage { session, .. } = route.next else {
                    panic!("pushed without a next");
                };
                let to = HopId(u64::from_be_bytes(session.0[..8].try_into().unwrap()));
                if !self.nodes.contains_key(&to) {
                    let (epoch, error) = (route.epoch, StageError::NextLost);
                    let error = StageMessage::Error { epoch, error };
                    ((Some(from), None, 0), error, Bytes::new())
                } else {
                    let link = (Some(from), Some(to), step.epoch);
                    (link, StageMessage::Step(step), rows)
                }
            }
        };
        self.links
            .entry(link)
            .or_default()
            .push_back((message, rows));
    }

    /// Everything on its way arrives, the dead are noticed, and the bills are compared. Nothing goes
    /// wrong from here on.
    fn settle(&mut self) {
        self.faults = CALM;
        loop {
            while !self.unnoticed.is_empty() {
                self.notice();
            }
            self.replace();
            let Some(link) = self
                .links
                .iter()
                .find(|(_, q)| !q.is_empty())
                .map(|(l, _)| *l)
            else {
                break;
            };
            if !self.deliver(link) {
                // Early: another link has the ROUTE.
                let other = self
                    .links
                    .iter()
                    .find(|(l, q)| **l != link && !q.is_empty());
                let other = *other.expect("an early step whose route never comes").0;
                self.deliver(other);
            }
        }
        for hop in self.chain.hops() {
            let node = &self.nodes[&hop.id];
            assert_eq!(self.chain.rows(hop.id), Some(billed(node)), "bills differ");
            assert_eq!(billed(node).total(), node.engine.computed);
        }
    }
}

/// What a stage bills; more than its machine says, if that is its flaw.
fn billed(node: &Node) -> Rows {
    let mut rows = node.machine.rows();
    rows.prefill += node.overbilled;
    rows
}

/// A stage's driver, in five lines, with the flaws that the tests must find.
fn take(
    node: &mut Node,
    mut step: Step,
    rows: &Bytes,
    flaw: Flaw,
) -> Result<Vec<StageEffect>, StageRefusal> {
    if flaw == Flaw::NoEpochCheck {
        step.epoch = node.machine.epoch();
    }
    match node.machine.step(step, rows)? {
        StageVerdict::Compute(work) => {
            let result = node.engine.forward(work.pos(), rows);
            Ok(node.machine.computed(work, &result).unwrap())
        }
        StageVerdict::Again(effects) => {
            if flaw == Flaw::BillsAgain {
                node.overbilled += u64::from(step.n);
            }
            Ok(effects)
        }
    }
}

/// What a client wants: a prompt, then rows made of results, some of them taken back.
fn generate(seed: u64, mut run: impl FnMut(u32, Bytes, StepKind) -> Bytes) -> (Vec<Bytes>, u64) {
    let mut dice = Dice(seed ^ 0x5EED);
    let long = if dice.one_in(8) { 700 } else { 30 };
    let prompt: Vec<u8> = (0..=dice.below(long))
        .flat_map(|_| dice.roll().to_be_bytes())
        .collect();
    let mut pos = u32::try_from(prompt.len() / ROW).unwrap();
    let mut asked = u64::from(pos);
    let mut results = vec![run(0, prompt.into(), StepKind::Prefill)];
    for _ in 0..24 {
        if dice.one_in(6) {
            pos -= u32::try_from(dice.below(3)).unwrap().min(pos);
        }
        let n = if dice.one_in(5) { 3 } else { 1 };
        let last = u64::from_be_bytes(results.last().unwrap()[..].try_into().unwrap());
        let rows: Vec<u8> = (0..n).flat_map(|i| mix(last, i).to_be_bytes()).collect();
        results.push(run(pos, rows.into(), StepKind::Decode));
        pos += u32::try_from(n).unwrap();
        asked += n;
    }
    (results, asked)
}

fn alone(seed: u64) -> (Vec<Bytes>, u64) {
    let mut engine = Engine::new(0, LAYERS);
    generate(seed, |pos, rows, _| {
        let out = engine.forward(pos, &rows);
        out.slice(out.len() - ROW..)
    })
}

/// Runs one seed; kills and repeats that happened.
fn live(seed: u64, shape: Shape, faults: Faults, flaw: Flaw) -> (u64, u64) {
    let mut market = Market::new(seed, shape, faults, flaw);
    let (results, _) = generate(seed, |pos, rows, kind| market.ask(pos, rows, kind));
    assert_eq!(results, alone(seed).0, "seed {seed}");
    market.settle();
    (market.kills, market.resent)
}

const STORM: Faults = Faults {
    kill: 40,
    repeat: 15,
    swap: 60,
    lose: 90,
};
