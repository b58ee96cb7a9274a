//! What a seed draws: which faults and how often, and how each attempt would go without them.

use std::fmt;

use souk::types::{AttemptId, MicroUsd, RequestId};

use super::rng::Rng;
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
}

impl Plan {
    pub fn draw(rng: &mut Rng) -> Self {
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
    /// The most a payee had delivered beyond vouchers and window: must stay 0.
    pub vouchers: u64,
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
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "sim: seeds={} events={} attempts={} charged={} vouchers={} crashes={} cuts={} \
             messages_lost={} micro_usd_agreed={} breaches=0",
            self.seeds,
            self.events,
            self.attempts,
            self.charged,
            self.vouchers,
            self.crashes,
            self.cuts,
            self.lost,
            self.micro_usd
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
