//! What one side counts: settled cost, the running meters of live attempts, and the windows that they
//! open. Both sides keep one; `channel` decides by it.

use std::collections::HashMap;

use crate::payment::window::WindowSettings;
use crate::types::{AttemptId, MicroUsd};

/// Where a live attempt stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Admitted, RESP_HEAD not seen: its prefill is pending.
    Pending,
    /// The meter runs (or has stopped, and the ACCEPT is missing).
    Metered,
}

#[derive(Clone, Copy, Debug)]
struct Live {
    phase: Phase,
    prefill: MicroUsd,
    running: MicroUsd,
    window: MicroUsd,
}

/// Settled cost plus the running meters of live attempts.
#[derive(Clone, Debug, Default)]
pub struct Book {
    pub(super) settings: WindowSettings,
    /// Counts as consumed before the first attempt: the fee for opening a channel on a chain.
    pub(super) base: MicroUsd,
    pub(super) settled: MicroUsd,
    live: HashMap<AttemptId, Live>,
    pub(super) running: MicroUsd,
    pending: MicroUsd,
    pub(super) windows: MicroUsd,
}

impl Book {
    pub(super) fn new(settings: WindowSettings, settled: MicroUsd) -> Self {
        Self {
            settings,
            settled,
            ..Self::default()
        }
    }
    /// D or R: what the opening cost, settled cost, and running meters.
    #[must_use]
    pub const fn total(&self) -> MicroUsd {
        self.base
            .saturating_add(self.settled)
            .saturating_add(self.running)
    }
    /// What counts as consumed before the first attempt.
    #[must_use]
    pub const fn base(&self) -> MicroUsd {
        self.base
    }
    /// Cost of all settled attempts.
    #[must_use]
    pub const fn settled(&self) -> MicroUsd {
        self.settled
    }
    /// Σ prefill of attempts before RESP_HEAD.
    #[must_use]
    pub const fn pending(&self) -> MicroUsd {
        self.pending
    }
    /// C or P: the windows of the attempts in flight, at most the pair's cap.
    #[must_use]
    pub fn window(&self) -> MicroUsd {
        self.windows.min(self.settings.pair_cap(self.settled))
    }
    /// Attempts not settled yet.
    #[must_use]
    pub fn live_count(&self) -> usize {
        self.live.len()
    }
    /// True while `attempt` is not settled.
    #[must_use]
    pub fn is_live(&self, attempt: &AttemptId) -> bool {
        self.live.contains_key(attempt)
    }
    /// The running meter of `attempt`.
    #[must_use]
    pub fn running_of(&self, attempt: &AttemptId) -> MicroUsd {
        self.live
            .get(attempt)
            .map_or(MicroUsd::ZERO, |live| live.running)
    }

    pub(super) fn begin(&mut self, attempt: AttemptId, prefill: MicroUsd, window: MicroUsd) {
        let live = Live {
            phase: Phase::Pending,
            prefill,
            running: MicroUsd::ZERO,
            window,
        };
        if self.live.insert(attempt, live).is_none() {
            self.pending = self.pending.saturating_add(prefill);
            self.windows = self.windows.saturating_add(window);
        }
    }
    /// RESP_HEAD: the prefill is no longer pending; the meter stands at `running`.
    pub(super) fn start(&mut self, attempt: &AttemptId, running: MicroUsd) {
        if let Some(live) = self.live.get_mut(attempt)
            && live.phase == Phase::Pending
        {
            live.phase = Phase::Metered;
            self.pending = self.pending.saturating_sub(live.prefill);
        }
        self.meter(attempt, running);
    }
    /// The meter reached `running`; it never goes back.
    pub(super) fn meter(&mut self, attempt: &AttemptId, running: MicroUsd) {
        if let Some(live) = self.live.get_mut(attempt)
            && running > live.running
        {
            self.running = self
                .running
                .saturating_sub(live.running)
                .saturating_add(running);
            live.running = running;
        }
    }
    /// The attempt is over and costs `cost`; unknown attempts change nothing.
    pub(super) fn settle(&mut self, attempt: &AttemptId, cost: MicroUsd) -> bool {
        let Some(live) = self.live.remove(attempt) else {
            return false;
        };
        if live.phase == Phase::Pending {
            self.pending = self.pending.saturating_sub(live.prefill);
        }
        self.running = self.running.saturating_sub(live.running);
        self.windows = self.windows.saturating_sub(live.window);
        self.settled = self.settled.saturating_add(cost);
        true
    }
}
