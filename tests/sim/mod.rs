//! A seeded simulator of one buyer, one seller and the money between them, in simulated time.
//!
//! It runs in two modes ([`Mode`]): by credit, and through channels on a chain. In the second a model
//! of the chain ([`chain`]) judges by the hub's rules what a transaction does; the nodes see it through
//! the production watcher and outbox, and decide with the production rules. Blocks are late or taken
//! back, the pool forgets, the RPC node is down, openings become void, the buyer empties its vault or
//! asks the chain for the end, a ledger is lost, a node dies for ever. At the end all channels must be
//! closed, and the chain must name what both ledgers name.
//!
//! The two states are the production types ([`souk::payment::PayerState`] and
//! [`souk::payment::PayeeState`], with their channel machines and doubt rules). What surrounds them
//! in a node (a bookkeeper, a session, a relay, a ledger) is rebuilt here as events: rows become
//! durable late, a crash loses what was not durable, a failed write stops the node, messages are
//! delayed, dropped, doubled and reordered, streams are cut, clients leave, credit rises and falls.
//!
//! After every event the invariants of the ledger are checked against what the simulator itself
//! knows ([`check`]). When the faults stop, everything must come to rest, both sides must have
//! booked the same, and one more request must be served. A seed is a history: the same seed gives
//! the same events, so a breach is reported with its seed and its last steps.
//!
//! Shared by the behaviour tests (a few hundred seeds) and the soak (100 000 and more).

mod answer;
mod bookkeeper;
mod buyer;
mod cashier;
mod chain;
mod check;
mod close;
mod contract;
mod disk;
mod faults;
mod outbox;
mod plan;
pub mod rng;
mod seller;
mod session;
mod treasurer;
mod wallet;
mod watch;
mod wire;
mod world;

pub use plan::Figures;

/// How the simulated buyer pays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// IOUs, paid off outside.
    Credit,
    /// Vouchers of channels on a chain.
    Channel,
}

/// A fault planted in the simulator's own wrapping, to show that a breach would be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// The buyer signs what the window asks for, whatever the deposit is.
    NoDepositCap,
    /// The buyer sends a voucher before its row is durable.
    SentBeforePersist,
    /// After a restart the buyer charges a repeated receipt again, and its ledger lets it.
    DoubleChargeAfterRestart,
    /// The seller credits a voucher before its row is durable.
    CreditedBeforePersist,
    /// The seller sends on although the window is used up.
    NoWindow,
    /// A node counts a block as final as soon as it sees it.
    TrustsFreshBlocks,
    /// The buyer does not count the fee of the opening as consumed.
    ForgetsOpenFee,
    /// The seller brings its highest voucher to the chain, prepayment and all.
    ClaimsPrepayment,
    /// The seller broadcasts a transaction before its intent is durable.
    SentBeforeIntent,
}

/// Steps shown with a breach.
const STEPS_SHOWN: usize = 40;

/// Runs one seed; with a breach come the seed and its last steps.
pub fn run(mode: Mode, seed: u64, plant: Option<Plant>) -> Result<Figures, String> {
    let breach = match world::World::new(mode, seed, plant, false).run() {
        Ok(figures) => return Ok(figures),
        Err(breach) => breach,
    };
    let mut again = world::World::new(mode, seed, plant, true);
    let same = again.run().err();
    let steps = again.trace();
    let shown = &steps[steps.len().saturating_sub(STEPS_SHOWN)..];
    let note = if same.as_ref() == Some(&breach) {
        ""
    } else {
        " (not found again with the same seed)"
    };
    Err(format!(
        "{mode:?} seed {seed}: {breach}{note}\nlast steps:\n{}",
        shown.join("\n")
    ))
}

/// Runs `seeds` on all cores; the figures of all, or the first breach that was found.
pub fn run_many(
    mode: Mode,
    seeds: std::ops::Range<u64>,
    plant: Option<Plant>,
) -> Result<Figures, String> {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    let next = AtomicU64::new(seeds.start);
    let stop = AtomicBool::new(false);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let one = || {
        let mut sum = Figures::default();
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                break;
            }
            match run(mode, seed, plant) {
                Ok(figures) => sum.add(&figures),
                Err(breach) => {
                    stop.store(true, Ordering::Relaxed);
                    return Err(breach);
                }
            }
        }
        Ok(sum)
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
        let mut sum = Figures::default();
        for worker in workers {
            sum.add(&worker.join().expect("a worker of the simulator")?);
        }
        Ok(sum)
    })
}
