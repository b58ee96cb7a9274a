//! The seller around its [`PayeeState`]: admission, the answer piece by piece, the receipt, and
//! what becomes durable before it counts.

use std::collections::{BTreeMap, BTreeSet};

use souk::chain::journal::Intent;
use souk::chain::outbox::Outbox;
use souk::chain::watcher::{ChainEvent, Tracker};
use souk::keys::Identity;
use souk::ledger::{ChannelRow, ChannelState, FinalRow, OpenRow, Outcome, Role, Row};
use souk::payment::WindowSettings;
use souk::payment::channel::Hold;
use souk::payment::onchain::{Level, OnChannel, Rules};
use souk::payment::payee::on_chain::{Hubbed, VOUCHERS_KEPT};
use souk::payment::payee::state::NotAdmitted;
use souk::payment::payee::tried::Tried;
use souk::payment::payee::{Ended, PayeeState, raised_row};
use souk::protocol::session::SyncBuyer;
use souk::protocol::voucher::{HubChannel, TopUp};
use souk::protocol::{EvmSignature, PeerErrorCode, RequestHead, SignedHead, WIRE_VERSION};
use souk::types::{AttemptId, ChannelId, Hash32, MicroUsd, ModelId, PeerId, PriceTable, RequestId};

use super::answer::End;
use super::buyer::CHANNEL;
use super::check::Breach;
use super::disk::Disk;
use super::wire::{Conn, Msg, Side};
use super::world::{Event, World};

/// A voucher that pays the prefill is awaited this long, ms.
const VOUCHER_WAIT: u64 = 2_000;
/// A request here.
pub struct Job {
    pub channel: ChannelId,
    pub phase: JobPhase,
    stamp: u64,
    pub running: MicroUsd,
    pub pieces: usize,
    pub head_sent: bool,
    pub committed: bool,
    pub stopped: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobPhase {
    /// Waits for the voucher of its prefill.
    Waits,
    Works,
    /// Waits for a voucher in the middle.
    Held,
    Closing,
}

/// What a durable row lets happen.
pub enum Then {
    VoucherAck(Conn),
    Sync(Conn, SyncBuyer),
    Accepted(Conn, Vec<(AttemptId, MicroUsd)>, Vec<AttemptId>),
    Receipt(AttemptId, Box<Ended>),
    Paid(MicroUsd),
    TopUp(ChannelId, Box<TopUp>),
    Sent(Box<Intent>),
    Signed(u64, Vec<u8>),
    Seen(Vec<ChainEvent>),
}

/// A voucher that counts once its row is durable.
pub type Credit = (ChannelId, MicroUsd);

/// One channel of the buyer's here.
pub struct Pair {
    pub id: ChannelId,
    pub state: PayeeState,
    /// Its row, until something makes it worth keeping.
    pub unbooked: Option<ChannelRow>,
    /// Its handshake is over: it may be brought to the chain.
    pub is_agreed: bool,
    pub tried: Tried,
}

/// What was sent and not settled yet, for I1.
#[derive(Clone, Copy, Debug)]
pub struct SentValue {
    pub channel: ChannelId,
    pub value: MicroUsd,
    pub window: MicroUsd,
}

pub struct Seller {
    pub life: u64,
    pub up: bool,
    pub disk: Disk,
    /// The buyer's channels; the last one is what new requests pay by.
    pub pairs: Vec<Pair>,
    pub credit: MicroUsd,
    pub session: Option<Conn>,
    /// What each session is about.
    pub about: BTreeMap<Conn, ChannelId>,
    /// Sessions whose channel was not known here when they began.
    pub is_new: BTreeSet<Conn>,
    /// Value sent and window per unsettled attempt of this life: what I1 is checked against.
    pub sent: BTreeMap<AttemptId, SentValue>,
    pub tracker: Option<Tracker>,
    pub outbox: Option<Outbox>,
    /// Rows of the watcher, or of the outbox, are on their way: neither is asked meanwhile.
    pub watch_busy: bool,
    pub outbox_waits: u32,
    /// A rule that was broken in the event that is being handled.
    pub breach: Option<Breach>,
    pub jobs: BTreeMap<AttemptId, Job>,
    started: u64,
    pub then: Vec<(u64, Option<Credit>, Then)>,
    heads: BTreeMap<u64, Vec<u8>>,
}

impl Seller {
    pub fn new(credit: MicroUsd) -> Self {
        Self {
            life: 0,
            up: false,
            disk: Disk::new(Role::Sell),
            pairs: Vec::new(),
            credit,
            session: None,
            about: BTreeMap::new(),
            is_new: BTreeSet::new(),
            sent: BTreeMap::new(),
            tracker: None,
            outbox: None,
            watch_busy: false,
            outbox_waits: 0,
            breach: None,
            started: 0,
            jobs: BTreeMap::new(),
            then: Vec::new(),
            heads: BTreeMap::new(),
        }
    }

    /// A new process on the same ledger.
    pub fn start(&mut self, now: u64, rules: Option<Rules>) {
        self.life += 1;
        self.up = true;
        self.started = now;
        self.session = None;
        self.about.clear();
        self.is_new.clear();
        self.jobs.clear();
        self.then.clear();
        self.sent.clear();
        self.watch_busy = false;
        self.outbox_waits = 0;
        self.tracker = None;
        self.outbox = None;
        self.pairs = Vec::new();
        for channel in self.disk.load() {
            if let Some(pair) = self.restore(channel, now, rules) {
                self.pairs.push(pair);
            }
        }
    }

    /// A channel of an earlier life; none when nothing is left of it.
    fn restore(&mut self, channel: ChannelState, now: u64, rules: Option<Rules>) -> Option<Pair> {
        let id = channel.row.channel;
        let on_chain = rules.map(|rules| {
            let mut on =
                OnChannel::new(HubChannel::from_bytes(&channel.row.descriptor).expect("a row"));
            on.standing = self.disk.standing(&id);
            on.view = on.standing.view();
            (on, rules)
        });
        if let Some((on, _)) = &on_chain
            && on.view.closed == Level::Final
            && channel.unfinished.is_empty()
        {
            return None;
        }
        for attempt in &channel.unfinished {
            let delivered = attempt.delivered.as_ref();
            let sent = SentValue {
                channel: id,
                value: delivered.map_or(MicroUsd::ZERO, |d| d.cost),
                window: MicroUsd::ZERO,
            };
            self.sent.insert(attempt.open.attempt_id, sent);
        }
        let windows = WindowSettings::default();
        let state = match on_chain {
            Some((on, rules)) => {
                let used_ms = channel
                    .voucher
                    .as_ref()
                    .map_or(channel.row.at_ms, |v| v.at_ms);
                let mut hubbed = Hubbed::new(on, rules, used_ms);
                let vouchers = self.disk.vouchers(&id);
                for voucher in vouchers.iter().rev().take(VOUCHERS_KEPT) {
                    hubbed.keep(voucher.cumulative, EvmSignature(voucher.signature));
                }
                let deposit = channel.row.deposit;
                PayeeState::restore(windows, deposit, channel).with_chain(hubbed)
            }
            None => {
                let deposit = self.credit.saturating_add(channel.settlements_sum);
                if let Some(row) = raised_row(&channel, deposit, now) {
                    self.disk.submit(row);
                }
                PayeeState::restore(windows, deposit, channel)
            }
        };
        Some(Pair {
            id,
            state,
            unbooked: None,
            is_agreed: true,
            tried: Tried::default(),
        })
    }

    /// The channel that new requests pay by.
    pub fn current(&self) -> Option<&Pair> {
        self.pairs.last()
    }
    pub fn pair(&self, id: &ChannelId) -> Option<&Pair> {
        self.pairs.iter().find(|pair| pair.id == *id)
    }
    pub fn pair_mut(&mut self, id: &ChannelId) -> Option<&mut Pair> {
        self.pairs.iter_mut().find(|pair| pair.id == *id)
    }
    /// The state of the channel that a request pays by.
    pub fn paid_by(&mut self, attempt: &AttemptId) -> Option<&mut PayeeState> {
        let id = self.jobs.get(attempt)?.channel;
        self.pair_mut(&id).map(|pair| &mut pair.state)
    }
    /// Receipts that wait for their ACCEPT, on all channels.
    pub fn ended_count(&self) -> usize {
        self.pairs.iter().map(|pair| pair.state.ended_count()).sum()
    }

    pub fn jobs_running(&self) -> usize {
        self.jobs.len()
    }

    /// True once this buyer left more unaccepted than honest counting explains.
    pub fn refuses_for_write_offs(&self, now: u64) -> bool {
        self.current().is_some_and(|pair| pair.state.refuses(now))
    }

    /// A head with this bound. Only the bound matters here, so one signature serves many attempts.
    pub fn head(&mut self, max_cost: MicroUsd) -> Vec<u8> {
        let make = || {
            let identity = Identity::from_seed(&[1; 32]);
            let peer = identity.peer_id();
            let head = RequestHead {
                version: WIRE_VERSION,
                network: "sim".to_owned(),
                request_id: RequestId::default(),
                attempt: 1,
                seller: peer,
                buyer: peer,
                path: String::new(),
                model: String::new(),
                stream: true,
                headers: Vec::new(),
                body_sha256: Hash32::default(),
                body_len: 0,
                offer_hash: Hash32::default(),
                max_cost,
                channel: CHANNEL,
                cumulative_required: MicroUsd::ZERO,
                nonce: [0; 16],
                iat_ms: 0,
                exp_ms: 0,
                delegation: None,
            };
            SignedHead::sign(head, &identity).bytes.to_vec()
        };
        self.heads.entry(max_cost.0).or_insert_with(make).clone()
    }
}

pub fn failed_row(attempt: AttemptId) -> FinalRow {
    FinalRow {
        at_ms: 0,
        attempt_id: attempt,
        outcome: Outcome::Failed,
        status: 0,
        billed: MicroUsd::ZERO,
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
    /// A frame of the buyer's on an infer stream.
    pub fn seller_order(&mut self, attempt: AttemptId, msg: Msg) {
        match msg {
            Msg::Head { iat_ms, channel } => self.take_head(attempt, iat_ms, channel),
            Msg::Cancel { owes_input } => self.seller_stops(attempt, owes_input),
            _ => {}
        }
    }

    fn take_head(&mut self, attempt: AttemptId, iat_ms: u64, channel: ChannelId) {
        let refusal = if iat_ms < self.seller.started {
            Some(PeerErrorCode::Stale)
        } else if self.seller.current().is_none_or(|pair| pair.id != channel) {
            Some(PeerErrorCode::UnknownChannel)
        } else {
            None
        };
        if let Some(code) = refusal {
            return self.send(Side::Seller, Conn::Infer(attempt), Msg::Error(code));
        }
        let job = Job {
            channel,
            phase: JobPhase::Waits,
            stamp: 0,
            running: MicroUsd::ZERO,
            pieces: 0,
            head_sent: false,
            committed: false,
            stopped: None,
        };
        self.seller.jobs.insert(attempt, job);
        self.seller_timer(attempt, VOUCHER_WAIT);
        self.try_admit(attempt);
    }

    pub fn try_admit(&mut self, attempt: AttemptId) {
        let waits = |job: &Job| job.phase == JobPhase::Waits;
        if !self.seller.jobs.get(&attempt).is_some_and(waits) {
            return;
        }
        let script = &self.scripts[&attempt];
        let (prefill, window) = (script.prefill, script.window);
        let now = self.now;
        let Some(state) = self.seller.paid_by(&attempt) else {
            return;
        };
        match state.admit(attempt, prefill, window, now) {
            Ok(()) => {}
            Err(NotAdmitted::Held(Hold::NeedVoucher(_) | Hold::Unconfirmed(_))) => return,
            Err(_) => return self.refuse(attempt, PeerErrorCode::CreditExhausted),
        }
        self.say(|| format!("Seller admits {attempt}"));
        let channel = self.seller.jobs[&attempt].channel;
        let sent = SentValue {
            channel,
            value: MicroUsd::ZERO,
            window,
        };
        self.seller.sent.insert(attempt, sent);
        self.note_admission(attempt);
        let row = self.open_row(attempt, channel);
        self.book_channel(&channel);
        self.seller.disk.submit(Row::Open(row));
        self.schedule_write(Side::Seller);
        self.job_phase(attempt, JobPhase::Works);
        let stopped = self.seller.jobs.get(&attempt).and_then(|job| job.stopped);
        if let Some(owes_input) = stopped {
            return self.seller_stops(attempt, owes_input);
        }
        if self.rng.chance(300) {
            // The upstream thinks long enough for a first NOP.
            if let Some(job) = self.seller.jobs.get_mut(&attempt) {
                job.committed = true;
            }
            self.send(Side::Seller, Conn::Infer(attempt), Msg::Nop);
        }
        self.next_piece(attempt);
    }

    fn refuse(&mut self, attempt: AttemptId, code: PeerErrorCode) {
        self.seller.jobs.remove(&attempt);
        self.send(Side::Seller, Conn::Infer(attempt), Msg::Error(code));
    }

    fn open_row(&mut self, attempt: AttemptId, channel: ChannelId) -> OpenRow {
        let script = self.scripts[&attempt].clone();
        let held = self.seller.disk.highest(&channel);
        OpenRow {
            at_ms: self.now,
            attempt_id: attempt,
            request_id: script.request,
            attempt: script.number,
            role: Role::Sell,
            peer: PeerId::from_bytes(&[0, 1, 0]).expect("an identity multihash"),
            client: String::new(),
            model_asked: String::new(),
            model: ModelId::new("m"),
            offer_hash: Hash32::default(),
            price: PriceTable::default(),
            channel,
            max_cost: script.max_cost,
            prefill: script.prefill,
            voucher_before: held,
            signed_head: self.seller.head(script.max_cost),
        }
    }

    /// The channel's row goes ahead of the first row that needs it.
    pub fn book_channel(&mut self, id: &ChannelId) {
        let row = self
            .seller
            .pair_mut(id)
            .and_then(|pair| pair.unbooked.take());
        if let Some(row) = row {
            self.seller.disk.submit(Row::Channel(row));
        }
    }

    pub fn job_phase(&mut self, attempt: AttemptId, phase: JobPhase) {
        if let Some(job) = self.seller.jobs.get_mut(&attempt) {
            job.phase = phase;
            job.stamp += 1;
        }
    }

    pub fn seller_timer(&mut self, attempt: AttemptId, after: u64) {
        let life = self.seller.life;
        if let Some(job) = self.seller.jobs.get(&attempt) {
            let stamp = job.stamp;
            self.at(
                self.now + after,
                Event::SellerTimer {
                    life,
                    attempt,
                    stamp,
                },
            );
        }
    }

    pub fn seller_late(&mut self, attempt: AttemptId, stamp: u64) {
        match self.seller.jobs.get(&attempt) {
            Some(job) if job.stamp == stamp && job.phase == JobPhase::Waits => {
                self.refuse(attempt, PeerErrorCode::VoucherLate);
            }
            Some(job) if job.stamp == stamp && job.phase == JobPhase::Held => {
                self.close(attempt, End::BuyerStopped, true);
            }
            _ => {}
        }
    }
}
