//! The event loop: what happens when, which faults strike, and the end in which all must agree.

use std::collections::{BTreeMap, BTreeSet};

use souk::types::{AttemptId, ChannelId, MicroUsd, RequestId};

use super::buyer::Buyer;
use super::chain::ModelChain;
use super::check::Breach;
use super::contract::Call;
use super::plan::{Figures, Plan, Script};
use super::rng::Rng;
use super::seller::Seller;
use super::wire::{Conn, Msg, Side, Wires};
use super::{Mode, Plant};

/// Faults strike until here, ms of simulated time.
const FAULTS_UNTIL: u64 = 40_000;
/// By then everything has come to rest: receipts repeat every 5 s, a lost peer is noticed in 12 s.
const REST_AT: u64 = 160_000;
/// The last request has its answer by then.
const END_AT: u64 = 200_000;
/// Both nodes look for what is left over this often.
const TICK: u64 = 5_000;
/// On a chain all channels are closed by then: idle ones at once, those of a node that is gone when
/// they expire.
const CLOSED_AT: u64 = 520_000;
/// Time between blocks, ms.
const BLOCK_EVERY: u64 = 1_000;
/// Nodes look at the chain this often, ms.
const LOOK_EVERY: u64 = 1_000;
/// A history that takes more events than this does not come to rest.
const EVENTS_MAX: u64 = 60_000;

pub enum Event {
    Ask {
        request: RequestId,
        number: u32,
        tries: u32,
    },
    Arrive {
        to: Side,
        life: u64,
        conn: Conn,
        msg: Msg,
    },
    /// This side notices that a stream is gone.
    Broken {
        side: Side,
        life: u64,
        conn: Conn,
    },
    Write {
        side: Side,
        life: u64,
    },
    BuyerTurn {
        life: u64,
    },
    BuyerTimer {
        life: u64,
        attempt: AttemptId,
        stamp: u64,
    },
    HandshakeTimer {
        life: u64,
        conn: Conn,
    },
    Piece {
        life: u64,
        attempt: AttemptId,
    },
    SellerTimer {
        life: u64,
        attempt: AttemptId,
        stamp: u64,
    },
    Tick {
        side: Side,
        life: u64,
    },
    Start {
        side: Side,
    },
    /// The buyer pays outside, and the seller books it.
    PaidOutside,
    /// The chain's next block.
    Block,
    /// A node looks at the chain, and at its channels there.
    Look {
        side: Side,
        life: u64,
    },
    /// Something that somebody else brings to the chain.
    Relay(Box<Call>),
    /// A node dies for ever.
    Goes(Side),
    FaultsEnd,
}

pub struct World {
    pub now: u64,
    pub rng: Rng,
    pub plan: Plan,
    pub plant: Option<Plant>,
    pub buyer: Buyer,
    pub seller: Seller,
    /// Where deposits lie; none in credit mode.
    pub chain: Option<ModelChain>,
    /// The most that was ever signed for a channel, durable or not, whoever lost what.
    pub signed: BTreeMap<ChannelId, MicroUsd>,
    /// The most that a buyer had signed for a channel beyond what was agreed: prepayment, and answers
    /// in flight.
    pub exposed: BTreeMap<ChannelId, MicroUsd>,
    /// Channels of which a seller had no row any more when their buyer showed a voucher.
    pub adopted: BTreeSet<ChannelId>,
    /// A ledger was lost: rows of before are on one side only.
    pub lost: bool,
    /// A node that is gone for ever.
    pub gone: Option<Side>,
    pub wires: Wires,
    pub scripts: BTreeMap<AttemptId, Script>,
    pub figures: Figures,
    pub faults: bool,
    queue: BTreeMap<(u64, u64), Event>,
    sequence: u64,
    pub next_attempt: u64,
    trace: Option<Vec<String>>,
}

impl World {
    pub fn new(mode: Mode, seed: u64, plant: Option<Plant>, traced: bool) -> Self {
        let mut rng = Rng::new(seed);
        let plan = Plan::draw(&mut rng, mode);
        let chain = plan.chain.as_ref();
        let mut world = Self {
            now: 0,
            buyer: Buyer::new(),
            seller: Seller::new(plan.credit),
            chain: chain.map(|plan| ModelChain::new(plan.buyer_vault, plan.buyer_wallet)),
            signed: BTreeMap::new(),
            exposed: BTreeMap::new(),
            adopted: BTreeSet::new(),
            lost: false,
            gone: None,
            rng,
            plan,
            plant,
            wires: Wires::default(),
            scripts: BTreeMap::new(),
            figures: Figures::default(),
            faults: true,
            queue: BTreeMap::new(),
            sequence: 0,
            next_attempt: 0,
            trace: traced.then(Vec::new),
        };
        world.buyer.disk.books_once = plant != Some(Plant::DoubleChargeAfterRestart);
        world
    }

    /// Lives through the whole history.
    pub fn run(&mut self) -> Result<Figures, Breach> {
        self.at(0, Event::Start { side: Side::Seller });
        self.at(0, Event::Start { side: Side::Buyer });
        for n in 0..self.plan.requests {
            let at = self.rng.between(10, FAULTS_UNTIL - 5_000);
            self.at(at, ask(n, 0));
        }
        if self.rng.chance(400) {
            let at = self.rng.between(5_000, FAULTS_UNTIL);
            self.at(at, Event::PaidOutside);
        }
        self.chain_events();
        self.at(FAULTS_UNTIL, Event::FaultsEnd);
        self.until(REST_AT)?;
        if self.gone.is_none() {
            self.check_rest()?;
            let wanted = self.probe();
            self.until(END_AT)?;
            self.check_rest()?;
            self.check_probe(wanted)?;
        }
        if self.chain.is_some() {
            self.until(CLOSED_AT)?;
            self.check_closed()?;
        }
        self.figures.seeds = 1;
        self.figures.attempts = self.scripts.len() as u64;
        let charges = &self.buyer.disk.charges;
        self.figures.charged = charges.len() as u64;
        self.figures.micro_usd = charges.iter().map(|(_, _, cost)| cost.0).sum();
        Ok(self.figures.clone())
    }

    /// What the plan has for the chain.
    fn chain_events(&mut self) {
        let Some(plan) = self.plan.chain.clone() else {
            return;
        };
        self.at(BLOCK_EVERY, Event::Block);
        if let Some(at) = plan.withdraws_at {
            let some = self.rng.between(1, 3_000_000);
            self.at(at, Event::Relay(Box::new(Call::Withdraw(MicroUsd(some)))));
        }
        if let Some(at) = plan.closes_alone_at {
            let none = ChannelId([0; 32]);
            self.at(at, Event::Relay(Box::new(Call::RequestClose(none))));
        }
        if let Some((side, at)) = plan.gone {
            self.at(at, Event::Goes(side));
        }
    }

    /// One more request, now that nothing fails; `None` when the money left does not allow it.
    fn probe(&mut self) -> Option<RequestId> {
        let left = self.money_left();
        let refuses = self.seller.refuses_for_write_offs(self.now);
        let request = request_id(self.plan.requests);
        self.plan.leaves = 0;
        self.plan.breaks = 0;
        self.plan.greed = 0;
        self.at(self.now, ask(self.plan.requests, 0));
        (left > MicroUsd(60_000) && !refuses).then_some(request)
    }

    fn until(&mut self, end: u64) -> Result<(), Breach> {
        while let Some((&(at, _), _)) = self.queue.first_key_value() {
            if at > end {
                break;
            }
            let Some(((at, _), event)) = self.queue.pop_first() else {
                break;
            };
            self.now = at;
            self.figures.events += 1;
            if self.figures.events > EVENTS_MAX {
                return Err(Breach::new(
                    "no rest",
                    format!("{EVENTS_MAX} events and no end"),
                ));
            }
            self.handle(event)?;
            self.check_step()?;
            self.maybe_fail();
        }
        self.now = end;
        Ok(())
    }

    /// False for what belongs to a process that has died since.
    fn is_current(&self, event: &Event) -> bool {
        let (side, life) = match event {
            Event::Arrive { to, life, conn, .. } => {
                return self.life(*to) == Some(*life) && self.wires.stands(*conn);
            }
            Event::Broken { side, life, .. }
            | Event::Write { side, life }
            | Event::Tick { side, life } => (*side, *life),
            Event::BuyerTurn { life }
            | Event::BuyerTimer { life, .. }
            | Event::HandshakeTimer { life, .. } => (Side::Buyer, *life),
            Event::Piece { life, .. } | Event::SellerTimer { life, .. } => (Side::Seller, *life),
            Event::Look { side, life } => (*side, *life),
            Event::Ask { .. }
            | Event::Start { .. }
            | Event::PaidOutside
            | Event::Block
            | Event::Relay(_)
            | Event::Goes(_)
            | Event::FaultsEnd => return true,
        };
        self.life(side) == Some(life)
    }

    fn handle(&mut self, event: Event) -> Result<(), Breach> {
        if !self.is_current(&event) {
            return Ok(());
        }
        match event {
            Event::Ask {
                request,
                number,
                tries,
            } => self.ask(request, number, tries),
            Event::Arrive { to, conn, msg, .. } => self.arrive(to, conn, msg)?,
            Event::Broken { side, conn, .. } => {
                self.say(|| format!("{side:?} notices the end of {conn:?}"));
                match side {
                    Side::Buyer => self.buyer_broken(conn),
                    Side::Seller => self.seller_broken(conn),
                }
            }
            Event::Write { side, .. } => self.write(side)?,
            Event::BuyerTurn { .. } => self.buyer_turn()?,
            Event::BuyerTimer { attempt, stamp, .. } => self.buyer_late(attempt, stamp),
            Event::HandshakeTimer { conn, .. } => self.handshake_late(conn),
            Event::Piece { attempt, .. } => self.seller_piece(attempt),
            Event::SellerTimer { attempt, stamp, .. } => self.seller_late(attempt, stamp),
            Event::Tick { side, life } => {
                self.at(self.now + TICK, Event::Tick { side, life });
                match side {
                    Side::Buyer => self.buyer_tick(),
                    Side::Seller => self.seller_tick(),
                }
            }
            Event::Start { side } => self.start(side),
            Event::PaidOutside => self.seller_settles(),
            Event::Block => self.next_block()?,
            Event::Look { side, life } => {
                self.at(self.now + LOOK_EVERY, Event::Look { side, life });
                self.look(side);
            }
            Event::Relay(call) => self.relay(*call),
            Event::Goes(side) => {
                if self.life(side).is_some() {
                    self.crash(side);
                }
                self.say(|| format!("{side:?} is gone for ever"));
                self.gone = Some(side);
            }
            Event::FaultsEnd => self.end_faults(),
        }
        Ok(())
    }

    fn arrive(&mut self, to: Side, conn: Conn, msg: Msg) -> Result<(), Breach> {
        self.say(|| format!("{to:?} gets {msg:?} on {conn:?}"));
        match (to, conn) {
            (Side::Buyer, Conn::Infer(attempt)) => self.buyer_answer(attempt, msg),
            (Side::Buyer, Conn::Session(_)) => return self.buyer_session(conn, msg),
            (Side::Seller, Conn::Infer(attempt)) => self.seller_order(attempt, msg),
            (Side::Seller, Conn::Session(_)) => return self.seller_session(conn, msg),
        }
        Ok(())
    }

    fn start(&mut self, side: Side) {
        if self.life(side).is_some() || self.gone == Some(side) {
            return;
        }
        self.say(|| format!("{side:?} starts"));
        let rules = self.plan.chain.as_ref().map(|plan| plan.rules);
        match side {
            Side::Buyer => self.buyer.start(self.now, rules.is_some()),
            Side::Seller => {
                if self.faults && self.plan.credit_changes && self.seller.life > 0 {
                    let credit = self.plan.credit.0;
                    self.seller.credit = MicroUsd(self.rng.between(credit / 2, credit * 2));
                }
                self.seller.start(self.now, rules);
                self.schedule_write(Side::Seller);
            }
        }
        let life = self.life(side).unwrap_or(0);
        let first = self.now + self.rng.between(1, TICK);
        self.at(first, Event::Tick { side, life });
        if rules.is_some() {
            let first = self.now + self.rng.between(1, LOOK_EVERY);
            self.at(first, Event::Look { side, life });
        }
    }

    /// The life of a node, if it runs.
    pub fn life(&self, side: Side) -> Option<u64> {
        match side {
            Side::Buyer => self.buyer.up.then_some(self.buyer.life),
            Side::Seller => self.seller.up.then_some(self.seller.life),
        }
    }

    pub fn at(&mut self, at: u64, event: Event) {
        self.sequence += 1;
        self.queue.insert((at, self.sequence), event);
    }

    /// Sends to the other side; what becomes of it is the wire's matter.
    pub fn send(&mut self, from: Side, conn: Conn, msg: Msg) {
        if !self.wires.stands(conn) {
            return;
        }
        let to = from.other();
        let Some(life) = self.life(to) else {
            return;
        };
        let wild = self.faults && self.plan.wild && matches!(conn, Conn::Session(_));
        let copies = if wild && self.rng.chance(self.plan.drop) {
            self.figures.lost += 1;
            0
        } else if wild && self.rng.chance(self.plan.double) {
            2
        } else {
            1
        };
        for _ in 0..copies {
            let slow = self.faults && self.rng.chance(30);
            let alone = self.now + self.rng.between(1, if slow { 3_000 } else { 40 });
            let at = if wild {
                alone
            } else {
                self.wires.in_order(conn, to, alone)
            };
            let msg = msg.clone();
            self.at(
                at,
                Event::Arrive {
                    to,
                    life,
                    conn,
                    msg,
                },
            );
        }
    }

    /// The next block, and what may become of it.
    fn next_block(&mut self) -> Result<(), Breach> {
        let Some((plan, chain)) = self.plan.chain.as_ref().zip(self.chain.as_mut()) else {
            return Ok(());
        };
        let (now_s, rng, faults) = (self.now / 1_000, &mut self.rng, self.faults);
        let late = faults && rng.chance(plan.late_blocks);
        let reorg = faults && rng.chance(plan.reorgs);
        let forgets = faults && rng.chance(plan.forgets);
        if forgets {
            chain.drop_pool();
        }
        if reorg {
            chain.reorg(rng, now_s);
        } else {
            chain.mine(now_s);
        }
        let after = if late { 5 * BLOCK_EVERY } else { BLOCK_EVERY };
        if reorg {
            self.say(|| "the newest blocks are taken back".to_owned());
        }
        self.at(self.now + after, Event::Block);
        self.check_chain()
    }

    /// A node looks at the chain, then at its channels.
    fn look(&mut self, side: Side) {
        if self.chain.is_none() {
            return;
        }
        self.watch(side);
        match side {
            Side::Buyer => self.buyer_tends(),
            Side::Seller => {
                self.outbox_polls();
                self.treasurer();
            }
        }
    }

    fn relay(&mut self, call: Call) {
        let call = match call {
            Call::RequestClose(_) => match self.buyer.state.channel() {
                Some(id) => Call::RequestClose(id),
                None => return,
            },
            call => call,
        };
        self.say(|| format!("somebody brings {call:?} to the chain"));
        if let Some(chain) = &mut self.chain {
            chain.relay(call);
        }
    }

    pub fn say(&mut self, what: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>7} ms  {}", self.now, what()));
        }
    }

    pub fn trace(self) -> Vec<String> {
        self.trace.unwrap_or_default()
    }
}

pub fn request_id(n: u64) -> RequestId {
    let mut id = [0; 16];
    id[8..].copy_from_slice(&n.to_be_bytes());
    RequestId(id)
}

fn ask(n: u64, tries: u32) -> Event {
    Event::Ask {
        request: request_id(n),
        number: 1,
        tries,
    }
}
