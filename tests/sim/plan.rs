//! What a seed draws: which faults and how often, and how each attempt would go without them.

use std::fmt;

use souk::payment::onchain::Rules;
use souk::types::{AttemptId, MicroUsd, RequestId};

use super::Mode;
use super::rng::Rng;
use super::wire::Side;
use super::world::World;

/// What one seed draws once.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Session messages are dropped, doubled and overtaken one by one.
    pub wild: bool,
    pub drop: u64,
    pub double: u64,
    /// A node dies right after an event, per thousand events.
    pub crash: u64,
    /// A stream is cut, per thousand events.
    pub cut: u64,
    /// A write fails and stops the node, per thousand writes.
    pub write_fails: u64,
    /// The client leaves, per thousand attempts.
    pub leaves: u64,
    /// The upstream breaks off, per thousand attempts.
    pub breaks: u64,
    /// Credit at first.
    pub credit: MicroUsd,
    /// Restarted sellers may give another credit.
    pub credit_changes: bool,
    /// What a seller claims beyond what is due, percent.
    pub greed: u64,
    pub requests: u64,
    /// Pay on a chain, else by credit.
    pub chain: Option<ChainPlan>,
}

/// What a seed draws for a chain.
#[derive(Clone, Debug)]
pub struct ChainPlan {
    pub rules: Rules,
    pub buyer_vault: MicroUsd,
    pub buyer_wallet: MicroUsd,
    /// The newest blocks are taken back, per thousand blocks.
    pub reorgs: u64,
    /// A block comes late, per thousand blocks.
    pub late_blocks: u64,
    /// The pool forgets what waits, per thousand blocks.
    pub forgets: u64,
    /// The RPC node answers nobody from and up to, ms.
    pub down: Option<(u64, u64)>,
    /// The buyer takes money out of its vault behind its node's back, ms.
    pub withdraws_at: Option<u64>,
    /// The buyer asks the chain for the channel's end, ms.
    pub closes_alone_at: Option<u64>,
    /// A node that loses its ledger with its next death.
    pub loses: Option<Side>,
    /// A node that dies for ever, and when, ms.
    pub gone: Option<(Side, u64)>,
    /// How long a signed opening or top-up holds, seconds.
    pub valid_s: u64,
}

impl ChainPlan {
    fn draw(rng: &mut Rng) -> Self {
        let some = |rng: &mut Rng, permille, low, high| {
            let at = rng.between(low, high);
            rng.chance(permille).then_some(at)
        };
        let (vault, wallet) = [
            (3_000_000, 0),
            (0, 3_000_000),
            (400_000, 2_000_000),
            (150_000, 0),
        ][rng.between(0, 3) as usize];
        let side = |rng: &mut Rng| {
            if rng.chance(500) {
                Side::Buyer
            } else {
                Side::Seller
            }
        };
        let harsh = rng.between(0, 2);
        let down =
            some(rng, 200, 1_000, FAULTS_END).map(|from| (from, from + rng.between(1_000, 30_000)));
        Self {
            rules: Rules {
                unconfirmed_max: MicroUsd(20_000),
                unsafe_max: MicroUsd(40_000),
                open_fee: MicroUsd(3_000),
                open_fee_max: MicroUsd(50_000),
                deposit_min: MicroUsd([20_000, 60_000, 600_000][rng.between(0, 2) as usize]),
                deposit_max: MicroUsd(2_000_000),
                deposit_share_bp: 10_000,
                challenge_period_s: 30,
                lifetime_s: rng.between(90, 200),
                idle_close_ms: rng.between(15_000, 40_000),
                settle_min: MicroUsd(rng.between(5_000, 80_000)),
                ..Rules::default()
            },
            buyer_vault: MicroUsd(vault),
            buyer_wallet: MicroUsd(wallet),
            reorgs: harsh * rng.between(0, 60),
            late_blocks: rng.between(0, 300),
            forgets: harsh * rng.between(0, 60),
            down,
            withdraws_at: some(rng, 100, 0, FAULTS_END),
            closes_alone_at: some(rng, 100, 5_000, FAULTS_END),
            loses: rng.chance(120).then(|| side(rng)),
            gone: some(rng, 120, 8_000, FAULTS_END).map(|at| (side(rng), at)),
            valid_s: rng.between(10, 120),
        }
    }
}

/// No fault begins after this, ms.
const FAULTS_END: u64 = 40_000;

impl Plan {
    pub fn draw(rng: &mut Rng, mode: Mode) -> Self {
        let harsh = rng.between(0, 3);
        let credit = [20_000, 100_000, 1_000_000, 5_000_000];
        Self {
            wild: rng.chance(300),
            drop: rng.between(0, 150),
            double: rng.between(0, 150),
            crash: harsh * rng.between(0, 6),
            cut: harsh * rng.between(0, 8),
            write_fails: harsh * rng.between(0, 5),
            leaves: rng.between(0, 300),
            breaks: rng.between(0, 200),
            credit: MicroUsd(credit[rng.between(0, 3) as usize]),
            credit_changes: rng.chance(250),
            greed: [0, 0, 10, 900][rng.between(0, 3) as usize],
            requests: rng.between(3, 14),
            chain: (mode == Mode::Channel).then(|| ChainPlan::draw(rng)),
        }
    }
}

/// One attempt as it would go without faults: what only the simulator knows.
#[derive(Clone, Debug)]
pub struct Script {
    pub request: RequestId,
    pub number: u32,
    pub stream: bool,
    pub prefill: MicroUsd,
    pub window: MicroUsd,
    pub max_cost: MicroUsd,
    /// The running meter after each piece.
    pub pieces: Vec<MicroUsd>,
    /// What the seller claims for the whole answer.
    pub claim: MicroUsd,
    /// What the buyer counts for it.
    pub own: MicroUsd,
    /// The upstream breaks before this piece.
    pub breaks_at: usize,
    /// The client leaves at this piece.
    pub leaves_at: usize,
}

/// What happened in one history, or in many.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    pub seeds: u64,
    pub events: u64,
    pub attempts: u64,
    pub charged: u64,
    pub crashes: u64,
    pub cuts: u64,
    pub lost: u64,
    pub micro_usd: u64,
    pub vouchers: u64,
    /// Channels that opened on the chain.
    pub channels: u64,
    pub reorgs: u64,
    /// Paid out on the chain, fees included.
    pub settled: u64,
    /// Paid for vouchers that were not used up.
    pub over: u64,
    /// Delivered and not paid: on trust, or with nobody there to sign.
    pub short: u64,
}

impl Figures {
    pub fn add(&mut self, other: &Self) {
        self.seeds += other.seeds;
        self.events += other.events;
        self.attempts += other.attempts;
        self.charged += other.charged;
        self.crashes += other.crashes;
        self.cuts += other.cuts;
        self.lost += other.lost;
        self.micro_usd += other.micro_usd;
        self.vouchers += other.vouchers;
        self.channels += other.channels;
        self.reorgs += other.reorgs;
        self.settled += other.settled;
        self.over += other.over;
        self.short += other.short;
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "sim: seeds={} events={} attempts={} charged={} vouchers={} crashes={} cuts={} \
             messages_lost={} micro_usd_agreed={} channels={} reorgs={} settled={} over={} short={} \
             breaches=0",
            self.seeds,
            self.events,
            self.attempts,
            self.charged,
            self.vouchers,
            self.crashes,
            self.cuts,
            self.lost,
            self.micro_usd,
            self.channels,
            self.reorgs,
            self.settled,
            self.over,
            self.short
        )
    }
}

impl World {
    /// Makes the script of a new attempt.
    pub fn new_attempt(&mut self, request: RequestId, number: u32) -> AttemptId {
        self.next_attempt += 1;
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.next_attempt.to_be_bytes());
        let rng = &mut self.rng;
        let free = rng.chance(50);
        let stream = rng.chance(600);
        let large = rng.chance(150);
        let prefill = if free {
            0
        } else {
            rng.between(0, if large { 30_000 } else { 600 })
        };
        let window = if free {
            0
        } else {
            [500, 500, 2_000, 10_000][rng.between(0, 3) as usize]
        };
        let count = rng.between(1, 7);
        let mut running = if stream { prefill } else { 0 };
        let pieces: Vec<_> = (0..count)
            .map(|_| {
                running += if free { 0 } else { rng.between(1, 900) };
                MicroUsd(running)
            })
            .collect();
        let total = running.max(prefill);
        // Cached input makes the cost less than the meter, counting exactly makes it a little more.
        let due = total * rng.between(50, 108) / 100;
        let own = due * rng.between(97, 106) / 100;
        let claim = due + due * self.plan.greed / 100;
        // A slice of a whole answer is worth its share of the claim.
        let pieces = if stream {
            pieces
        } else {
            (1..=count).map(|n| MicroUsd(claim * n / count)).collect()
        };
        let breaks = rng.chance(self.plan.breaks);
        let leaves = rng.chance(self.plan.leaves);
        let breaks_at = if breaks {
            rng.between(0, count)
        } else {
            u64::MAX
        };
        let leaves_at = if leaves {
            rng.between(0, count)
        } else {
            u64::MAX
        };
        let max_cost = (total * 3 / 2).max(1);
        let script = Script {
            request,
            number,
            stream,
            prefill: MicroUsd(prefill),
            window: MicroUsd(window),
            max_cost: MicroUsd(max_cost),
            pieces,
            claim: MicroUsd(claim.min(if stream { max_cost } else { u64::MAX })),
            own: MicroUsd(own.min(max_cost)),
            breaks_at: usize::try_from(breaks_at).unwrap_or(usize::MAX),
            leaves_at: usize::try_from(leaves_at).unwrap_or(usize::MAX),
        };
        self.scripts.insert(AttemptId(id), script);
        AttemptId(id)
    }
}
