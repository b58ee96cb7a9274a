//! Finds somebody for a place: asks the best first, and lets nobody serve who was not checked.
//!
//! A check is a session of [`vectors::CHECK_ROWS`](super::super::trust::vectors::CHECK_ROWS) rows whose
//! results the head knows. It is paid, at its price of prefill. Who comes out elsewhere is distrusted,
//! and its check is not paid. Who does not answer is left for the next best: that is no lie.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::again::{Computed, again};
use super::{Candidate, Heard, Opened, Order, Settings, Source, Want};
use crate::pipeline::error::PipelineError;
use crate::pipeline::patron::Patron;
use crate::pipeline::session::HopId;
use crate::pipeline::trust::vectors::{CHECK_ROWS, Check};
use crate::pipeline::trust::{Part, Reference, Trust, Vectors};
use crate::protocol::stage::StageSession;
use crate::tasks::Tasks;
use crate::types::PeerId;

/// A check takes so long at most: few rows, but perhaps behind others' and over a slow link.
const CHECK_TIMEOUT: Duration = Duration::from_secs(20);
/// Sessions of checks and of second opinions are nobody's hop.
pub(super) const NO_HOP: HopId = HopId(u64::MAX);

/// What a session knows of those it may ask. Cheap to clone.
#[derive(Clone)]
pub(super) struct Finder {
    pub settings: Settings,
    pub source: Arc<dyn Source>,
    pub tasks: Tasks,
    pub trust: Trust,
    pub vectors: Option<Arc<Vectors>>,
    pub reference: Option<Arc<dyn Reference>>,
}

impl Finder {
    /// Opens a session at the best of those who would take the place. When none of them does, those
    /// of `want.not` are asked too, except `never`.
    pub async fn find(
        &self,
        want: Want,
        never: BTreeSet<PeerId>,
        heard: mpsc::Sender<Heard>,
    ) -> Result<Opened, PipelineError> {
        let mut why = self.source.nobody(&want);
        let mut tried = BTreeSet::new();
        for not in [want.not.clone(), never] {
            let asked = Want {
                not,
                ..want.clone()
            };
            for at in self.source.candidates(&asked) {
                if !tried.insert(at.peer) || self.trust.is_distrusted(&at.peer) {
                    continue;
                }
                match self.check(&want, &at).await {
                    Ok(()) => {}
                    Err(error @ PipelineError::Budget(_)) => return Err(error),
                    Err(error) => {
                        why = error;
                        continue;
                    }
                }
                match self.source.open(want.clone(), at, heard.clone()).await {
                    Ok(opened) => return Ok(opened),
                    // Nor does it allow anybody else.
                    Err(error @ PipelineError::Budget(_)) => return Err(error),
                    Err(error) => why = error,
                }
            }
        }
        Err(why)
    }

    /// Has it computed what the head knows, unless it did so lately.
    ///
    /// # Errors
    /// Why it may not serve now.
    pub async fn check(&self, want: &Want, at: &Candidate) -> Result<(), PipelineError> {
        let part = Part {
            peer: at.peer,
            first: want.first,
            end: at.end,
        };
        let Some((vectors, reference)) = self.vectors.as_ref().zip(self.reference.as_ref()) else {
            return Ok(());
        };
        if self.trust.is_checked(&part, Instant::now()) {
            return Ok(());
        }
        let lock = self.trust.check_lock(part);
        let _one = lock.lock().await;
        if self.trust.is_checked(&part, Instant::now()) {
            return Ok(());
        }
        let lost = |why: &str| PipelineError::Lost(format!("{}: {why}", at.peer));
        if self.trust.is_distrusted(&at.peer) {
            return Err(lost("it computes something else than its layers"));
        }
        let wire = self.settings.wire;
        let range = (part.first, part.end);
        let check = vectors.check(reference, &self.tasks, range, wire).await?;
        let computing = self.compute_known(&check, want, at);
        let checked = tokio::time::timeout(CHECK_TIMEOUT, computing).await;
        if checked.map_err(|_| lost("its check took too long"))?? {
            tracing::debug!(peer = %at.peer, first = part.first, end = part.end, "a stage passed its check");
            self.trust.passed(part, Instant::now());
            Ok(())
        } else {
            tracing::warn!(peer = %at.peer, first = part.first, end = part.end, "a stage failed its check");
            self.trust.distrust(at.peer);
            Err(lost("it computes something else than its layers"))
        }
    }

    /// True when it comes out where the head did; what it is owed otherwise is not paid.
    async fn compute_known(
        &self,
        check: &Check,
        want: &Want,
        at: &Candidate,
    ) -> Result<bool, PipelineError> {
        let want = Want {
            id: NO_HOP,
            session: StageSession(rand::random()),
            first: want.first,
            end: at.end,
            positions_max: CHECK_ROWS.into(),
            wire: check.wire,
            not: BTreeSet::new(),
            patron: Patron::default(),
        };
        let row_bytes = check.wire.row_bytes(self.settings.hidden);
        let Computed { rows, orders } =
            again(&*self.source, &check.input, row_bytes, 0, want, at.clone()).await?;
        let is_right = check.confirm(&rows);
        if !is_right {
            // There is room: it was told a few messages.
            let _ = orders.try_send(Order::Forfeit);
        }
        Ok(is_right)
    }
}
