//! The threads that compute: all cores but one, and behind everything else on the machine.
//!
//! One core stays for the network: with a computing thread on every core both suffer. The threads
//! are *nice*, because serving strangers must not slow down the machine's owner.
//!
//! Products and attention are shared out on candle's threads besides (`engine::parallel`), one per core;
//! candle learns from the environment alone how many there may be ([`THREADS`]; `cli` sees to it). They
//! are as nice as the thread that multiplied first, which is one of ours.

use std::num::NonZero;
use std::sync::Arc;

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::error::PipelineError;

/// How far computing steps back, as `nice` has it.
const NICE: i32 = 10;
/// Where candle reads, once, how many threads multiply.
pub const THREADS: &str = "CANDLE_NUM_THREADS";

/// How many threads compute: all cores but one.
#[must_use]
pub fn threads() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    cores.saturating_sub(1).max(1)
}

/// Computes on threads of its own. Cheap to clone.
#[derive(Clone)]
pub struct Processor(Arc<ThreadPool>);

impl Processor {
    /// Starts the threads: so many, or all cores but one.
    ///
    /// # Errors
    /// [`PipelineError::Failed`] when the system gives no threads.
    pub fn start(threads: Option<usize>) -> Result<Self, PipelineError> {
        ThreadPoolBuilder::new()
            .num_threads(threads.unwrap_or_else(self::threads).max(1))
            .thread_name(|index| format!("compute-{index}"))
            .start_handler(|_| step_back())
            .build()
            .map(|pool| Self(Arc::new(pool)))
            .map_err(|error| PipelineError::Failed(format!("no threads to compute on: {error}")))
    }

    /// Computes, and blocks the calling thread until it is done.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.0.install(work)
    }
}

/// Lets everything else go first. On Linux a thread has its own niceness, and its children have it too.
#[cfg(target_os = "linux")]
fn step_back() {
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::warn!(%error, "computing cannot step back behind other programs");
    }
}

/// Elsewhere niceness is the whole process's, whose network must not wait.
#[cfg(not(target_os = "linux"))]
fn step_back() {
    let _ = NICE;
}
