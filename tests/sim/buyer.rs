//! The buyer around its [`PayerState`]: the order of an attempt, its answer, and the bookkeeper's
//! turns. What is decided about money is decided by the state; this is only what a node's tasks do.

use std::collections::BTreeMap;

use souk::chain::watcher::{ChainEvent, Tracker};
use souk::ledger::{ChannelRow, DeliveredRow, FinalRow, OpenRow, Outcome, Role, Row};
use souk::payment::WindowSettings;
use souk::payment::onchain::{OnChannel, Purse};
use souk::payment::payer::PayerState;
use souk::protocol::PeerErrorCode;
use souk::protocol::voucher::TopUp;
use souk::types::{AttemptId, ChannelId, Hash32, MicroUsd, ModelId, PeerId, PriceTable, RequestId};

use super::disk::Disk;
use super::wire::{Conn, Msg, Side, read_receipt};
use super::world::{Event, World};

/// The only channel of a simulation.
pub const CHANNEL: ChannelId = ChannelId([7; 32]);
/// A first frame must come within this, ms.
const OPEN_PATIENCE: u64 = 5_000;
/// Silence that is a dead peer, ms.
const DEAD_AFTER: u64 = 12_000;
/// The receipt is awaited this long, ms.
const RECEIPT_PATIENCE: u64 = 2_000;
/// A request tries this often to find its seller, ms apart.
const ASK_TRIES: u32 = 20;
const ASK_PAUSE: u64 = 500;

/// Where the session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Down,
    Booking(Conn),
    AwaitsAck(Conn),
    AwaitsSync(Conn),
    Up(Conn),
}

/// An attempt that runs here.
struct Order {
    phase: OrderPhase,
    /// Rises with every frame; an old timer knows by it that it is old.
    stamp: u64,
    called: bool,
    running: MicroUsd,
    pieces: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OrderPhase {
    AwaitsHead,
    Receives,
    /// All that is missing is the receipt; this is owed without it.
    AwaitsReceipt {
        cost: MicroUsd,
        status: u16,
    },
}

/// What a durable row lets happen.
pub enum Then {
    Open(Conn, Box<ChannelRow>, Option<Box<OnChannel>>),
    Turn {
        accepts: Vec<(AttemptId, MicroUsd)>,
        voucher: Option<(ChannelId, MicroUsd)>,
    },
    Raise(Box<ChannelRow>, Box<TopUp>),
    Seen(Vec<ChainEvent>),
}

pub struct Buyer {
    pub life: u64,
    pub up: bool,
    pub disk: Disk,
    pub state: PayerState,
    pub phase: Phase,
    /// The deposit that this life was told or signed last: what I2 is checked against.
    pub told: MicroUsd,
    /// The highest voucher that a seller showed in this life, after a lost ledger.
    pub learned: MicroUsd,
    pub purse: Purse,
    /// The session that is being made is for orders, else only for what is in doubt.
    pub wants_orders: bool,
    pub read_ms: Option<u64>,
    pub tracker: Option<Tracker>,
    /// Rows of the watcher are on their way: it is not asked meanwhile.
    pub watch_busy: bool,
    orders: BTreeMap<AttemptId, Order>,
    pub then: Vec<(u64, Then)>,
    pub in_turn: bool,
    pub due: bool,
    pub conns: u64,
}

impl Buyer {
    pub fn new() -> Self {
        Self {
            life: 0,
            up: false,
            disk: Disk::new(Role::Buy),
            state: PayerState::new(WindowSettings::default()),
            phase: Phase::Down,
            told: MicroUsd::ZERO,
            learned: MicroUsd::ZERO,
            purse: Purse::default(),
            wants_orders: false,
            read_ms: None,
            tracker: None,
            watch_busy: false,
            orders: BTreeMap::new(),
            then: Vec::new(),
            in_turn: false,
            due: false,
            conns: 0,
        }
    }

    /// A new process on the same ledger.
    pub fn start(&mut self, now: u64, on_chain: bool) {
        self.life += 1;
        self.up = true;
        self.state = PayerState::new(WindowSettings::default());
        self.learned = MicroUsd::ZERO;
        self.purse = Purse::default();
        self.read_ms = None;
        self.watch_busy = false;
        self.tracker = None;
        for channel in self.disk.load() {
            if on_chain {
                self.adopt_on_chain(channel, now);
            } else {
                self.told = channel.limit;
                self.state.adopt(channel, None, now);
            }
        }
        self.phase = Phase::Down;
        self.orders.clear();
        self.then.clear();
        self.in_turn = false;
        self.due = false;
    }
}

fn row(attempt: AttemptId, billed: MicroUsd, status: u16) -> FinalRow {
    FinalRow {
        at_ms: 0,
        attempt_id: attempt,
        outcome: if billed == MicroUsd::ZERO {
            Outcome::Failed
        } else {
            Outcome::Accepted
        },
        status,
        billed,
        model_served: String::new(),
        usage: None,
        own_input: None,
        own_output: None,
        ttft_ms: None,
        total_ms: 0,
        disputed: false,
        receipt: None,
        error: None,
    }
}

impl World {
    /// A client asks; without a session it waits for one a while.
    pub fn ask(&mut self, request: RequestId, number: u32, tries: u32) {
        let takes_orders = self.buyer.state.takes_orders();
        if self.life(Side::Buyer).is_none() || !takes_orders {
            if self.life(Side::Buyer).is_some() {
                self.connect(true);
            }
            return self.ask_later(request, number, tries);
        }
        let attempt = self.new_attempt(request, number);
        let script = &self.scripts[&attempt];
        let open = OpenRow {
            at_ms: self.now,
            attempt_id: attempt,
            request_id: request,
            attempt: number,
            role: Role::Buy,
            peer: PeerId::from_bytes(&[0, 1, 0]).expect("an identity multihash"),
            client: String::new(),
            model_asked: String::new(),
            model: ModelId::new("m"),
            offer_hash: Hash32::default(),
            price: PriceTable::default(),
            channel: self.buyer.state.channel().unwrap_or(CHANNEL),
            max_cost: script.max_cost,
            prefill: script.prefill,
            voucher_before: self.buyer.state.quote(script.prefill, script.window).0,
            signed_head: Vec::new(),
        };
        let window = script.window;
        if self.buyer.state.begin(&open, window).is_err() {
            self.scripts.remove(&attempt);
            if self.plan.chain.is_some() {
                // The channel ends, or waits for a higher deposit.
                self.ask_later(request, number, tries);
            }
            return;
        }
        let channel = open.channel;
        self.say(|| format!("Buyer orders {attempt} of {request}"));
        self.buyer.disk.submit(Row::Open(open));
        self.schedule_write(Side::Buyer);
        self.buyer.state.opened(&attempt);
        self.wake_if_due();
        let order = Order {
            phase: OrderPhase::AwaitsHead,
            stamp: 0,
            called: false,
            running: MicroUsd::ZERO,
            pieces: 0,
        };
        self.buyer.orders.insert(attempt, order);
        let conn = Conn::Infer(attempt);
        self.wires.stand(conn);
        let iat_ms = self.now;
        self.send(Side::Buyer, conn, Msg::Head { iat_ms, channel });
        self.buyer_timer(attempt, OPEN_PATIENCE);
    }

    fn ask_later(&mut self, request: RequestId, number: u32, tries: u32) {
        if tries < ASK_TRIES {
            let tries = tries + 1;
            let event = Event::Ask {
                request,
                number,
                tries,
            };
            self.at(self.now + ASK_PAUSE, event);
        }
    }

    fn buyer_timer(&mut self, attempt: AttemptId, after: u64) {
        let life = self.buyer.life;
        if let Some(order) = self.buyer.orders.get_mut(&attempt) {
            order.stamp += 1;
            let stamp = order.stamp;
            self.at(
                self.now + after,
                Event::BuyerTimer {
                    life,
                    attempt,
                    stamp,
                },
            );
        }
    }

    /// One frame of an answer.
    pub fn buyer_answer(&mut self, attempt: AttemptId, msg: Msg) {
        let Some(phase) = self.buyer.orders.get(&attempt).map(|order| order.phase) else {
            return;
        };
        match (phase, msg) {
            (OrderPhase::AwaitsReceipt { cost, status }, Msg::Usage(bytes)) => {
                let claim = read_receipt(&bytes).1;
                self.finish(attempt, claim.min(cost), claim > MicroUsd::ZERO, status);
            }
            (OrderPhase::AwaitsReceipt { .. }, _) => {}
            (_, Msg::Nop) => {
                if let Some(order) = self.buyer.orders.get_mut(&attempt) {
                    order.called = true;
                }
                self.buyer_timer(attempt, DEAD_AFTER);
                self.maybe_leave(attempt);
            }
            (_, Msg::Need) => {
                self.wake();
                self.buyer_timer(attempt, DEAD_AFTER);
            }
            (OrderPhase::AwaitsHead, Msg::RespHead { whole }) => self.answer_begins(attempt, whole),
            (OrderPhase::AwaitsHead, Msg::Error(code)) => self.refused(attempt, code),
            (OrderPhase::Receives, Msg::Body { running, pieces }) => {
                self.body(attempt, running, pieces);
            }
            (OrderPhase::Receives, Msg::End) => {
                let cost = self.scripts[&attempt].own;
                self.await_receipt(attempt, cost, 200);
            }
            (OrderPhase::Receives, Msg::Error(_)) => self.answer_fails(attempt),
            _ => self.finish(attempt, MicroUsd::ZERO, false, 502),
        }
    }

    fn answer_begins(&mut self, attempt: AttemptId, whole: Option<MicroUsd>) {
        let script = &self.scripts[&attempt];
        if whole.is_some_and(|cost| cost > script.max_cost) {
            self.send(
                Side::Buyer,
                Conn::Infer(attempt),
                Msg::Cancel { owes_input: false },
            );
            return self.finish(attempt, MicroUsd::ZERO, false, 502);
        }
        let start = if whole.is_some() {
            MicroUsd::ZERO
        } else {
            script.prefill
        };
        self.buyer.state.start(&attempt, start);
        self.wake_if_due();
        if let Some(order) = self.buyer.orders.get_mut(&attempt) {
            order.phase = OrderPhase::Receives;
            order.running = start;
        }
        self.buyer_timer(attempt, DEAD_AFTER);
        self.maybe_leave(attempt);
    }

    fn body(&mut self, attempt: AttemptId, running: MicroUsd, pieces: usize) {
        let script = &self.scripts[&attempt];
        let bound = if script.stream {
            script.max_cost.mul_div_ceil(2, 1)
        } else {
            // The bytes so far bound the text; honest bytes are worth less than that.
            let text = script.own.mul_div_ceil(2 * running.0, script.claim.0);
            script.prefill.saturating_add(text)
        };
        let running = running.min(bound);
        self.buyer.state.receive(&attempt, running);
        if let Some(order) = self.buyer.orders.get_mut(&attempt) {
            order.running = running;
            order.pieces = pieces;
        }
        self.wake_if_due();
        self.buyer_timer(attempt, DEAD_AFTER);
        self.maybe_leave(attempt);
    }

    /// The client hangs up where the script says so: CANCEL, then wait for the receipt.
    fn maybe_leave(&mut self, attempt: AttemptId) {
        let script = &self.scripts[&attempt];
        let Some(order) = self.buyer.orders.get(&attempt) else {
            return;
        };
        if order.pieces < script.leaves_at || script.leaves_at > script.pieces.len() {
            return;
        }
        let input = if order.called {
            script.prefill
        } else {
            MicroUsd::ZERO
        };
        let cost = order.running.max(input).min(script.max_cost);
        self.send(
            Side::Buyer,
            Conn::Infer(attempt),
            Msg::Cancel { owes_input: true },
        );
        self.await_receipt(attempt, cost, 499);
    }

    /// The answer broke off: of a stream what was delivered is owed, of a whole answer nothing.
    fn answer_fails(&mut self, attempt: AttemptId) {
        let script = &self.scripts[&attempt];
        let Some(order) = self.buyer.orders.get(&attempt) else {
            return;
        };
        if !script.stream {
            return self.finish(attempt, MicroUsd::ZERO, false, 502);
        }
        let begun = order.pieces > 0;
        let delivered = order
            .running
            .saturating_sub(script.prefill)
            .min(script.max_cost);
        let cost = if begun { delivered } else { MicroUsd::ZERO };
        self.await_receipt(attempt, cost, 502);
    }

    fn await_receipt(&mut self, attempt: AttemptId, cost: MicroUsd, status: u16) {
        if let Some(order) = self.buyer.orders.get_mut(&attempt) {
            order.phase = OrderPhase::AwaitsReceipt { cost, status };
        }
        self.buyer_timer(attempt, RECEIPT_PATIENCE);
    }

    fn refused(&mut self, attempt: AttemptId, code: PeerErrorCode) {
        let (request, number) = {
            let script = &self.scripts[&attempt];
            (script.request, script.number)
        };
        self.finish(attempt, MicroUsd::ZERO, false, 0);
        let again = matches!(code, PeerErrorCode::Stale | PeerErrorCode::VoucherLate);
        if again && number == 1 {
            self.at(
                self.now,
                Event::Ask {
                    request,
                    number: 2,
                    tries: 0,
                },
            );
        }
    }

    /// No frame in time.
    pub fn buyer_late(&mut self, attempt: AttemptId, stamp: u64) {
        let phase = match self.buyer.orders.get(&attempt) {
            Some(order) if order.stamp == stamp => order.phase,
            _ => return,
        };
        self.say(|| format!("Buyer waits no longer for {attempt}"));
        match phase {
            OrderPhase::AwaitsHead => {
                self.send(
                    Side::Buyer,
                    Conn::Infer(attempt),
                    Msg::Cancel { owes_input: false },
                );
                self.finish(attempt, MicroUsd::ZERO, false, 502);
                self.cut(Conn::Infer(attempt));
            }
            OrderPhase::Receives => {
                self.send(
                    Side::Buyer,
                    Conn::Infer(attempt),
                    Msg::Cancel { owes_input: false },
                );
                self.answer_fails(attempt);
            }
            OrderPhase::AwaitsReceipt { cost, status } => self.no_receipt(attempt, cost, status),
        }
    }

    /// The answer is over and no receipt came: in doubt, unless nothing is owed.
    fn no_receipt(&mut self, attempt: AttemptId, cost: MicroUsd, status: u16) {
        if cost == MicroUsd::ZERO {
            return self.finish(attempt, cost, false, status);
        }
        let row = DeliveredRow {
            at_ms: self.now,
            attempt_id: attempt,
            status,
            usage: None,
            own_input: None,
            own_output: None,
            cost,
            receipt: None,
        };
        self.buyer.orders.remove(&attempt);
        self.buyer.state.park(&row, "m");
        self.buyer.disk.submit(Row::Delivered(row));
        self.schedule_write(Side::Buyer);
        self.cut(Conn::Infer(attempt));
    }

    fn finish(&mut self, attempt: AttemptId, billed: MicroUsd, accept: bool, status: u16) {
        self.buyer.orders.remove(&attempt);
        self.buyer.state.book(row(attempt, billed, status), accept);
        self.wake();
        if accept {
            self.cut(Conn::Infer(attempt));
        }
    }

    pub fn buyer_broken(&mut self, conn: Conn) {
        match conn {
            Conn::Session(_) => {
                let stood = [
                    Phase::Booking(conn),
                    Phase::AwaitsAck(conn),
                    Phase::AwaitsSync(conn),
                    Phase::Up(conn),
                ];
                if stood.contains(&self.buyer.phase) {
                    self.buyer.phase = Phase::Down;
                    self.buyer.state.stand_down();
                }
            }
            Conn::Infer(attempt) => match self.buyer.orders.get(&attempt).map(|o| o.phase) {
                Some(OrderPhase::AwaitsHead) => {
                    self.finish(attempt, MicroUsd::ZERO, false, 502);
                }
                Some(OrderPhase::Receives) => self.answer_fails(attempt),
                Some(OrderPhase::AwaitsReceipt { cost, status }) => {
                    self.no_receipt(attempt, cost, status);
                }
                None => {}
            },
        }
    }

    /// Attempts that run here.
    pub fn orders_running(&self) -> usize {
        self.buyer.orders.len()
    }
}
