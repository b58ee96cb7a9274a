//! When a session has a stage's work done again, and what follows from what is found.

use std::sync::Arc;

use bytes::Bytes;

use super::audit::{self, AUDIT_ROWS_MAX, CHUNK_ROWS, Evidence, Verdict};
use super::run::Actor;
use super::{Order, Want};
use crate::pipeline::session::{ChainEffect, Hop, HopId, Log, Rows};
use crate::protocol::stage::{StageMessage, StageSession};
use crate::types::PeerId;

impl Actor {
    /// Once in a while: has some stage's work shown, to be done again by another.
    pub(super) fn audit_some(&mut self) {
        let one_in = self.settings.audit_one_in;
        let is_due = one_in > 0 && rand::random_range(0..one_in) == 0;
        if !is_due || self.evidence.is_some() || self.judging.is_some() {
            return;
        }
        let hops: Vec<Hop> = self.chain.hops().copied().collect();
        let at = rand::random_range(0..hops.len().max(1));
        let (Some(hop), end) = (hops.get(at), self.chain.asked().min(AUDIT_ROWS_MAX)) else {
            return;
        };
        let end = rand::random_range(0..end.max(1)).saturating_add(1);
        let before = at
            .checked_sub(1)
            .and_then(|at| hops.get(at))
            .map(|hop| hop.id);
        let row_bytes = self.settings.wire.row_bytes(self.settings.hidden);
        let mut input = Log::new(row_bytes);
        if before.is_none() {
            input.put(0, &self.chain.asked_rows(end));
        }
        let mut pos = 0;
        while pos < end {
            let n = CHUNK_ROWS.min(end - pos);
            for id in before.into_iter().chain([hop.id]) {
                self.tell(id, Order::Say(StageMessage::Show { pos, n }, Bytes::new()));
            }
            pos += n;
        }
        self.evidence = Some(Evidence {
            hop: hop.id,
            peer: hop.peer,
            before,
            end,
            input,
            output: Log::new(row_bytes),
        });
    }

    /// A stage shows rows for an audit.
    pub(super) fn shown(&mut self, id: HopId, pos: u32, rows: &Bytes) {
        let Some(mut evidence) = self.evidence.take() else {
            return;
        };
        if !evidence.take(id, pos, rows) {
            // Of an audit that was given up.
            return;
        }
        if !evidence.is_complete() {
            self.evidence = Some(evidence);
            return;
        }
        let hop = self.chain.hops().find(|hop| hop.id == evidence.hop);
        let Some(hop) = hop.copied() else {
            return;
        };
        let want = Want {
            id: hop.id,
            session: StageSession(rand::random()),
            first: hop.first,
            end: hop.end,
            positions_max: evidence.end,
            wire: self.settings.wire,
            not: self.dismissed.clone(),
        };
        let (source, hidden) = (Arc::clone(&self.source), self.settings.hidden);
        let limit = self.settings.search;
        self.judging = Some(Box::pin(async move {
            let judging = audit::judge(source, hidden, evidence, want);
            let verdict = tokio::time::timeout(limit, judging).await;
            (hop.id, hop.peer, verdict.unwrap_or(Verdict::Unknown))
        }));
    }

    pub(super) fn judged(&mut self, id: HopId, peer: PeerId, verdict: Verdict) {
        self.judging = None;
        tracing::debug!(%peer, ?verdict, "a stage was audited");
        let mut effects = Vec::new();
        match verdict {
            Verdict::Honest | Verdict::Unknown => return,
            Verdict::Doubtful => self
                .chain
                .condemn(id, "another computes otherwise", &mut effects),
            Verdict::Guilty => {
                tracing::warn!(%peer, "a stage computes something else than its layers");
                self.distrusted.lock().insert(peer);
                self.chain
                    .condemn(id, "two others compute otherwise", &mut effects);
                // Before the order that the dismissal makes of it.
                for effect in &mut effects {
                    if let ChainEffect::Dismiss(gone, rows, _) = effect
                        && *gone == id
                    {
                        *rows = Rows::default();
                    }
                }
                self.tell(id, Order::Forfeit);
            }
        }
        self.act(effects);
    }
}
