//! Takes orders of layers for whatever layers are loaded now.
//!
//! The seller holds one desk for as long as it runs; the stages behind it come and go. While it
//! drains, while others are loaded, or while other programs need the machine, new sessions are
//! refused and those that run go on.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use parking_lot::RwLock;
use serde_json::{Value, json};

use super::load::Reading;
use crate::network::Stream;
use crate::pipeline::service::Stages;
use crate::pipeline::worker::Worker;
use crate::protocol::PeerErrorCode;
use crate::seller::stage::{StageOrder, StageRefused, StageService, StageSession};
use crate::types::PeerId;

/// A head that finds a draining stage looks elsewhere, and comes back no sooner, ms.
const DRAINING_RETRY_MS: u64 = 60_000;
/// A head that finds the machine busy with other things asks again after this, ms.
const PAUSED_RETRY_MS: u64 = 5_000;
/// A head that finds all places taken asks again after this, ms.
const FULL_RETRY_MS: u64 = 1_000;

/// Layers in memory, and what serves them.
#[derive(Clone)]
pub(super) struct Loaded {
    pub stages: Stages,
    pub worker: Worker,
    /// Decode rows per second of one session.
    pub rows_per_s: u32,
}

/// See the module.
pub(in crate::node) struct Desk {
    loaded: RwLock<Option<Loaded>>,
    is_draining: AtomicBool,
    is_paused: AtomicBool,
    /// What other programs use of the machine, hundredths of a per cent.
    load_bp: AtomicU32,
    sessions_max: usize,
}

impl Desk {
    pub(super) fn new(sessions_max: u32) -> Self {
        Self {
            loaded: RwLock::new(None),
            is_draining: AtomicBool::new(false),
            is_paused: AtomicBool::new(false),
            load_bp: AtomicU32::new(0),
            sessions_max: usize::try_from(sessions_max).unwrap_or(usize::MAX),
        }
    }
    /// Serves these from now on.
    pub(super) fn open(&self, loaded: Loaded) {
        *self.loaded.write() = Some(loaded);
    }
    /// Lets the layers go as soon as their sessions have.
    pub(super) fn close(&self) {
        *self.loaded.write() = None;
    }
    /// Takes new sessions or not; true when that is a change.
    pub(super) fn drain(&self, is_draining: bool) -> bool {
        self.is_draining.swap(is_draining, Ordering::Relaxed) != is_draining
    }
    /// Takes new sessions or not, as the machine's load says; true when that is a change.
    pub(super) fn pause(&self, reading: Reading) -> bool {
        self.load_bp.store(reading.others_bp, Ordering::Relaxed);
        self.is_paused.swap(reading.is_paused, Ordering::Relaxed) != reading.is_paused
    }
    /// What the status says beside the offer.
    pub(in crate::node) fn status(&self) -> Value {
        json!({
            "sessions": self.sessions(),
            "sessions_max": self.sessions_max,
            "draining": self.is_draining.load(Ordering::Relaxed),
            "paused": self.is_paused.load(Ordering::Relaxed),
            "load_bp": self.load_bp.load(Ordering::Relaxed),
        })
    }
    /// Sessions that run.
    pub(super) fn sessions(&self) -> usize {
        let loaded = self.loaded.read();
        loaded.as_ref().map_or(0, |one| one.stages.sessions())
    }
    /// Positions that may still be reserved.
    pub(super) fn positions_free(&self) -> usize {
        let loaded = self.loaded.read();
        loaded.as_ref().map_or(0, |one| one.worker.positions_free())
    }
    /// Decode rows per second of one session, as measured when they were loaded.
    pub(super) fn rows_per_s(&self) -> u32 {
        self.loaded.read().as_ref().map_or(0, |one| one.rows_per_s)
    }
    fn stages(&self) -> Option<Stages> {
        self.loaded.read().as_ref().map(|one| one.stages.clone())
    }
    fn now(&self) -> Result<Stages, StageRefused> {
        let refused = |code, retry_after_ms| StageRefused {
            code,
            retry_after_ms,
        };
        let stages = self
            .stages()
            .filter(|_| !self.is_draining.load(Ordering::Relaxed));
        let stages = stages.ok_or(refused(PeerErrorCode::Draining, DRAINING_RETRY_MS))?;
        if self.is_paused.load(Ordering::Relaxed) {
            return Err(refused(PeerErrorCode::Overloaded, PAUSED_RETRY_MS));
        }
        if stages.sessions() >= self.sessions_max {
            return Err(refused(PeerErrorCode::Overloaded, FULL_RETRY_MS));
        }
        Ok(stages)
    }
}

impl StageService for Desk {
    fn open(
        &self,
        order: StageOrder,
    ) -> BoxFuture<'_, Result<Box<dyn StageSession>, StageRefused>> {
        async move {
            let stages = self.now()?;
            StageService::open(&stages, order).await
        }
        .boxed()
    }
    fn rows(&self, from: PeerId, stream: Stream) -> BoxFuture<'static, ()> {
        // Sessions that run are still pushed to while no new ones are taken.
        let stages = self.stages();
        async move {
            if let Some(stages) = stages {
                stages.rows(from, stream).await;
            }
        }
        .boxed()
    }
}
