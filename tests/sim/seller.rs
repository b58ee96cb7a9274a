//! The seller around its [`PayeeState`]: admission, the answer piece by piece, the receipt, and
//! what becomes durable before it counts.

use std::collections::BTreeMap;

use souk::keys::Identity;
use souk::ledger::{ChannelRow, FinalRow, OpenRow, Outcome, Role, Row};
use souk::payment::WindowSettings;
use souk::payment::channel::Hold;
use souk::payment::payee::state::NotAdmitted;
use souk::payment::payee::{Ended, PayeeState, raised_row};
use souk::protocol::session::SyncBuyer;
use souk::protocol::{PeerErrorCode, RequestHead, SignedHead, WIRE_VERSION};
use souk::types::{AttemptId, Hash32, MicroUsd, ModelId, PeerId, PriceTable, RequestId};

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
}

pub struct Seller {
    pub life: u64,
    pub up: bool,
    pub disk: Disk,
    pub state: Option<PayeeState>,
    pub credit: MicroUsd,
    pub session: Option<Conn>,
    /// The channel's row is durable or queued.
    is_booked: bool,
    /// Value sent and window per unsettled attempt of this life: what I1 is checked against.
    pub sent: BTreeMap<AttemptId, (MicroUsd, MicroUsd)>,
    /// A rule that was broken in the event that is being handled.
    pub breach: Option<Breach>,
    pub jobs: BTreeMap<AttemptId, Job>,
    started: u64,
    pub then: Vec<(u64, Option<MicroUsd>, Then)>,
    heads: BTreeMap<u64, Vec<u8>>,
}

impl Seller {
    pub fn new(credit: MicroUsd) -> Self {
        Self {
            life: 0,
            up: false,
            disk: Disk::new(Role::Sell),
            state: None,
            credit,
            session: None,
            is_booked: false,
            sent: BTreeMap::new(),
            breach: None,
            started: 0,
            jobs: BTreeMap::new(),
            then: Vec::new(),
            heads: BTreeMap::new(),
        }
    }

    /// A new process on the same ledger.
    pub fn start(&mut self, now: u64) {
        self.life += 1;
        self.up = true;
        self.started = now;
        self.session = None;
        self.is_booked = self.disk.load().is_some();
        self.jobs.clear();
        self.then.clear();
        self.sent.clear();
        self.state = self.disk.load().map(|channel| {
            for attempt in &channel.unfinished {
                let cost = attempt
                    .delivered
                    .as_ref()
                    .map_or(MicroUsd::ZERO, |d| d.cost);
                self.sent
                    .insert(attempt.open.attempt_id, (cost, MicroUsd::ZERO));
            }
            let deposit = self.credit.saturating_add(channel.settlements_sum);
            if let Some(row) = raised_row(&channel, deposit, now) {
                self.disk.submit(row);
            }
            PayeeState::restore(WindowSettings::default(), deposit, channel)
        });
    }

    pub fn jobs_running(&self) -> usize {
        self.jobs.len()
    }

    /// True once this buyer left more unaccepted than honest counting explains.
    pub fn refuses_for_write_offs(&self, now: u64) -> bool {
        let state = self.state.as_ref();
        state.is_some_and(|state| state.refuses(now))
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
            Msg::Head { iat_ms } => self.take_head(attempt, iat_ms),
            Msg::Cancel { owes_input } => self.seller_stops(attempt, owes_input),
            _ => {}
        }
    }

    fn take_head(&mut self, attempt: AttemptId, iat_ms: u64) {
        let refusal = if iat_ms < self.seller.started {
            Some(PeerErrorCode::Stale)
        } else if self.seller.state.is_none() {
            Some(PeerErrorCode::UnknownChannel)
        } else {
            None
        };
        if let Some(code) = refusal {
            return self.send(Side::Seller, Conn::Infer(attempt), Msg::Error(code));
        }
        let job = Job {
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
        let Some(state) = &mut self.seller.state else {
            return;
        };
        match state.admit(attempt, prefill, window, self.now) {
            Ok(()) => {}
            Err(NotAdmitted::Held(Hold::NeedVoucher(_))) => return,
            Err(_) => return self.refuse(attempt, PeerErrorCode::CreditExhausted),
        }
        self.say(|| format!("Seller admits {attempt}"));
        self.seller.sent.insert(attempt, (MicroUsd::ZERO, window));
        self.note_admission(attempt);
        let row = self.open_row(attempt);
        self.book_channel();
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

    fn open_row(&mut self, attempt: AttemptId) -> OpenRow {
        let script = self.scripts[&attempt].clone();
        let held = self.seller.disk.highest();
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
            channel: CHANNEL,
            max_cost: script.max_cost,
            prefill: script.prefill,
            voucher_before: held,
            signed_head: self.seller.head(script.max_cost),
        }
    }

    /// The channel's row goes ahead of the first row that needs it.
    pub fn book_channel(&mut self) {
        if self.seller.is_booked {
            return;
        }
        self.seller.is_booked = true;
        self.seller.disk.submit(Row::Channel(ChannelRow {
            at_ms: self.now,
            role: Role::Sell,
            channel: CHANNEL,
            peer: PeerId::from_bytes(&[0, 1, 0]).expect("an identity multihash"),
            mode: "credit".to_owned(),
            descriptor: Vec::new(),
            epoch: 0,
            deposit: self.seller.credit,
            open_signature: [0; 64],
        }));
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
