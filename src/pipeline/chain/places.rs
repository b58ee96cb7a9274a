//! Has the places of a session taken: those that were never taken, those that were lost, and keeps
//! who is asked, who is not, and who is made ready.
//!
//! A search is over when for [`Settings::search`](super::Settings::search) no place more was taken
//! and no row went further: stages that are found again and again and compute nothing end a session
//! as none at all do.

use std::collections::BTreeSet;

use tokio::time::Instant;

use super::run::{Actor, LOOKS, Open};
use super::{Opened, Want};
use crate::pipeline::error::PipelineError;
use crate::pipeline::session::{Hop, HopId};
use crate::protocol::stage::StageSession;
use crate::types::PeerId;

/// Routes of one session: a stage that is lost again and again ends it.
const EPOCHS_MAX: u32 = 1_000;

impl Actor {
    /// Has every place without a stage looked for.
    ///
    /// # Errors
    /// When none was found for too long, or those that were found brought no row further.
    pub(super) fn seek(&mut self) -> Result<(), PipelineError> {
        let missing = self.chain.missing();
        if missing.is_empty() {
            return Ok(());
        }
        let now = Instant::now();
        let since = *self.struggling_since.get_or_insert(now);
        let is_over = now.saturating_duration_since(since) >= self.finder.settings.search;
        // Time does not raise a limit.
        let is_over = is_over || matches!(self.why, PipelineError::Budget(_));
        if is_over || self.chain.epoch() > EPOCHS_MAX {
            return Err(self.why.clone());
        }
        for (first, end) in missing {
            if !self.sought.insert(first) {
                continue;
            }
            let id = HopId(self.next_id);
            self.next_id = self.next_id.saturating_add(1);
            let want = Want {
                id,
                session: StageSession(rand::random()),
                first,
                end,
                positions_max: self.positions_max,
                wire: self.finder.settings.wire,
                not: self.not_now(),
                patron: self.patron.clone(),
            };
            let (finder, never) = (self.finder.clone(), self.never());
            let heard = self.heard.clone();
            let pause = self.finder.settings.patience / LOOKS;
            self.opening.push(Box::pin(async move {
                let opened = finder.find(want.clone(), never, heard).await;
                if opened.is_err() {
                    // Not at once again: who is busy now may be free soon.
                    tokio::time::sleep(pause).await;
                }
                (want, opened)
            }));
        }
        Ok(())
    }

    /// Somebody was found for a place, or nobody.
    pub(super) fn opened(&mut self, want: &Want, opened: Result<Opened, PipelineError>) {
        self.sought.remove(&want.first);
        let is_stillborn = self.stillborn.remove(&want.id);
        let opened = match opened {
            Ok(_) if is_stillborn => return,
            Ok(opened) => opened,
            Err(error) => {
                tracing::debug!(%error, first = want.first, end = want.end, "no stage yet");
                self.why = error;
                return;
            }
        };
        let hop = Hop {
            id: want.id,
            first: want.first,
            end: opened.end,
            peer: opened.peer,
            session: want.session,
        };
        let open = Open {
            peer: opened.peer,
            addresses: opened.addresses,
            orders: opened.orders,
            last_heard: Instant::now(),
            pinged: None,
        };
        self.hops.insert(want.id, open);
        let mut effects = Vec::new();
        if !self.chain.join(hop, &mut effects) {
            // Somebody else has the place: it is closed again, unused.
            self.hops.remove(&want.id);
        }
        // One place after the other is taken at first; each has the whole time.
        if opened.end > self.reached.0 {
            self.reached.0 = opened.end;
            self.struggling_since = None;
        }
        self.act(effects);
    }

    /// A stage computed rows up to there: what a whole way did is not struggling in vain.
    pub(super) fn progress(&mut self, id: HopId, end: u32) {
        let last = self.chain.hops().last();
        let is_last =
            last.is_some_and(|hop| hop.id == id && hop.end == self.finder.settings.layers);
        if is_last && end > self.reached.1 {
            self.reached.1 = end;
            self.struggling_since = None;
        }
    }

    /// Who was dismissed in this session, or is not trusted.
    pub(super) fn not_now(&self) -> BTreeSet<PeerId> {
        let mut not = self.finder.trust.distrusted();
        not.extend(self.dismissed.keys());
        not
    }

    /// Of these, the ones that are not asked even if nobody else is there.
    fn never(&self) -> BTreeSet<PeerId> {
        let now = Instant::now();
        let is_out = |until: &Option<Instant>| until.is_none_or(|until| until > now);
        let out = self.dismissed.iter().filter(|(_, until)| is_out(until));
        let mut never = self.finder.trust.distrusted();
        never.extend(out.map(|(peer, _)| *peer));
        never
    }

    /// Every place is taken, for the first time on this way: makes the next best ready.
    pub(super) fn spare(&mut self) {
        let epoch = self.chain.epoch();
        let is_new = self.finder.settings.spares && self.spared_epoch != epoch;
        if is_new && self.chain.missing().is_empty() && self.sparing.is_none() {
            self.spared_epoch = epoch;
            let hops = self.chain.hops().copied().collect();
            let finder = self.finder.clone();
            let readying = finder.ready_spares(hops, self.not_now(), self.positions_max);
            self.sparing = Some(Box::pin(readying));
        }
    }
}
