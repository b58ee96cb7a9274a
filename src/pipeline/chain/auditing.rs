//! When a session has a stage's work done again, how its rows are gathered, and what follows.
//!
//! A stage is drawn, and a row among all that the session has; the rows around it are looked at
//! ([`odds`]), and what went in from the first row on, because every row depends on those before it.
//! The stage shows what came out and the stage before it what went in, piece by piece as they were
//! computed, and each piece must have the digest that its DONE had: who shows other rows than it sent
//! is found by that alone.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use tokio::time::Instant;

use super::Order;
use super::audit::{self, Evidence, Verdict};
use super::run::Actor;
use crate::pipeline::session::{ChainEffect, Hop, HopId, Loss, Piece, Rows, index};
use crate::pipeline::trust::odds::{self, AUDIT_ROWS};
use crate::protocol::stage::{Out, StageMessage};
use crate::types::PeerId;

/// Rows that are asked to be shown before the first of them come: little beside the session's own.
const SHOWN_AHEAD: u32 = 64;
/// A judgement takes so long at most: others compute a prefix of the session, perhaps a long one.
const JUDGING_TIMEOUT: std::time::Duration = std::time::Duration::from_mins(5);

/// An audit whose rows are being shown.
pub(super) struct Gathering {
    evidence: Evidence,
    /// The route it began in: what is shown in another may be other rows.
    epoch: u32,
    queue: VecDeque<(HopId, Piece)>,
    /// Asked for, by number.
    awaited: BTreeMap<u32, (HopId, Piece)>,
    heard_at: Instant,
}

impl Actor {
    /// Once in a while: has some stage's work shown, to be done again by another.
    pub(super) fn audit_some(&mut self) {
        let asked = self.chain.asked();
        // An audit costs as the session is long, so they are as much rarer.
        let one_in = self.finder.settings.audit_one_in;
        let one_in = one_in.saturating_mul(asked.div_ceil(AUDIT_ROWS).max(1));
        let is_due = one_in > 0 && rand::random_range(0..one_in) == 0;
        if !is_due || self.gathering.is_some() || self.judging.is_some() {
            return;
        }
        let hops: Vec<Hop> = self.chain.hops().copied().collect();
        let at = rand::random_range(0..hops.len().max(1));
        let Some(hop) = hops.get(at).copied() else {
            return;
        };
        let before = at.checked_sub(1).and_then(|at| hops.get(at)).copied();
        let drawn = rand::random_range(0..asked.max(1));
        if let Some(gathering) = self.gather(hop, before, odds::span(drawn, asked)) {
            self.gathering = Some(gathering);
            self.ask_to_show();
        }
    }

    /// What is to be shown of these rows, as far as both stages said that they computed them: word of
    /// one may come after the answer that was made of it.
    fn gather(&self, hop: Hop, before: Option<Hop>, (from, end): (u32, u32)) -> Option<Gathering> {
        let said = self.chain.promises(hop.id)?;
        let sent = before.map(|before| self.chain.promises(before.id));
        let end = match sent {
            Some(sent) => end.min(sent?.length()),
            None => end,
        };
        let is_known = |piece: &&Piece| sent.flatten().is_none_or(|s| piece.end() <= s.length());
        let shown = said.over(from, end).take_while(is_known);
        let shown: Vec<Piece> = shown.copied().collect();
        let (from, end) = (shown.first()?.pos, shown.last()?.end());
        let settings = &self.finder.settings;
        let mut evidence = Evidence {
            hop: hop.id,
            peer: hop.peer,
            first: hop.first,
            end_layer: hop.end,
            before: before.map(|hop| (hop.id, hop.peer)),
            from,
            end,
            wire: settings.wire,
            pieces: said.over(0, end).copied().collect(),
            input: BTreeMap::new(),
            output: BTreeMap::new(),
        };
        let mut queue: VecDeque<_> = shown.into_iter().map(|piece| (hop.id, piece)).collect();
        if let Some(before) = before {
            let sent = sent.flatten()?;
            queue.extend(sent.over(0, end).map(|piece| (before.id, *piece)));
        } else {
            evidence.input.insert(0, self.chain.asked_rows(end));
        }
        Some(Gathering {
            evidence,
            epoch: self.chain.epoch(),
            queue,
            awaited: BTreeMap::new(),
            heard_at: Instant::now(),
        })
    }

    /// Asks for more rows while few are on their way.
    fn ask_to_show(&mut self) {
        let Some(mut gathering) = self.gathering.take() else {
            return;
        };
        let on_their_way = |awaited: &BTreeMap<u32, (HopId, Piece)>| {
            let rows = awaited.values().map(|(_, piece)| piece.n);
            rows.fold(0, u32::saturating_add)
        };
        while on_their_way(&gathering.awaited) < SHOWN_AHEAD
            && let Some((id, piece)) = gathering.queue.pop_front()
        {
            let seq = self.next_show;
            self.next_show = self.next_show.wrapping_add(1);
            let (pos, n) = (piece.pos, piece.n);
            let show = StageMessage::Show { seq, pos, n };
            self.tell(id, Order::Say(show, Bytes::new()));
            gathering.awaited.insert(seq, (id, piece));
        }
        self.gathering = Some(gathering);
    }

    /// Positions from `pos` on are written anew, or everything takes another way: rows of an audit
    /// that are still to be shown may be others by then.
    pub(super) fn void_audit(&mut self, pos: u32) {
        let epoch = self.chain.epoch();
        let is_void = |g: &Gathering| g.epoch != epoch || pos < g.evidence.end;
        if self.gathering.as_ref().is_some_and(is_void) {
            self.gathering = None;
        }
    }

    /// A stage shows rows for an audit.
    pub(super) fn shown(&mut self, id: HopId, out: &Out, rows: Bytes) {
        self.void_audit(u32::MAX);
        let Some(gathering) = &mut self.gathering else {
            return;
        };
        let Some((of, piece)) = gathering.awaited.remove(&out.seq) else {
            // Of an audit that was given up.
            return;
        };
        gathering.heard_at = Instant::now();
        let settings = &self.finder.settings;
        let row_bytes = settings.wire.row_bytes(settings.hidden);
        let is_it = of == id && (out.pos, out.n, out.rows) == (piece.pos, piece.n, piece.n);
        let is_whole = index(piece.n).checked_mul(row_bytes) == Some(rows.len());
        if !is_it || !is_whole || !piece.has_results(&rows) {
            self.gathering = None;
            return self.convict(id, "shows other rows than it sent");
        }
        let evidence = &mut gathering.evidence;
        let shown = if id == evidence.hop {
            &mut evidence.output
        } else {
            &mut evidence.input
        };
        shown.insert(piece.pos, rows);
        if !gathering.awaited.is_empty() || !gathering.queue.is_empty() {
            return self.ask_to_show();
        }
        let Some(Gathering { evidence, .. }) = self.gathering.take() else {
            return;
        };
        let (id, peer) = (evidence.hop, evidence.peer);
        let (finder, not) = (self.finder.clone(), self.not_now());
        self.judging = Some(Box::pin(async move {
            let judging = audit::judge(finder, evidence, not.into_iter().collect());
            let verdict = tokio::time::timeout(JUDGING_TIMEOUT, judging).await;
            (id, peer, verdict.unwrap_or(Verdict::Unknown))
        }));
    }

    /// Who shows nothing for so long does not keep to the rules.
    pub(super) fn look_at_audit(&mut self, now: Instant) {
        let stall = self.finder.settings.stall;
        let is_late = |g: &mut Gathering| now.saturating_duration_since(g.heard_at) >= stall;
        if let Some(gathering) = self.gathering.take_if(is_late)
            && let Some((id, _)) = gathering.awaited.values().next()
        {
            let mut effects = Vec::new();
            let why = Loss::Faulty("it shows no rows to an audit");
            self.chain.lose(*id, why, &mut effects);
            self.act(effects);
        }
    }

    pub(super) fn judged(&mut self, id: HopId, peer: PeerId, verdict: Verdict) {
        self.judging = None;
        remember(&self.finder.trust, peer, verdict);
        let mut effects = Vec::new();
        match verdict {
            Verdict::Honest | Verdict::Slandered(_) | Verdict::Unknown => return,
            Verdict::Guilty => return self.convict(id, "computes something else than its layers"),
            Verdict::Doubtful => self
                .chain
                .condemn(id, "another computes otherwise", &mut effects),
            Verdict::Quarrel(_) => {
                self.chain
                    .condemn(id, "says to have taken what was not sent", &mut effects);
            }
        }
        self.act(effects);
    }

    /// It lied: it goes, unpaid, and does not come back.
    fn convict(&mut self, id: HopId, why: &'static str) {
        let Some(peer) = self.peer_of(id) else {
            return;
        };
        tracing::warn!(%peer, why, "a stage is not trusted any more");
        self.finder.trust.distrust(peer);
        let mut effects = Vec::new();
        self.chain.condemn(id, why, &mut effects);
        // Before the order that the dismissal makes of it.
        for effect in &mut effects {
            if let ChainEffect::Dismiss(gone, rows, _) = effect
                && *gone == id
            {
                *rows = Rows::default();
            }
        }
        self.tell(id, Order::Forfeit);
        self.act(effects);
    }

    /// The session is over and an audit is not: what it finds is remembered all the same.
    pub(super) fn leave_audit(&mut self) {
        if let Some(judging) = self.judging.take() {
            let trust = self.finder.trust.clone();
            self.finder.tasks.spawn("audit", async move {
                let (_, peer, verdict) = judging.await;
                remember(&trust, peer, verdict);
            });
        }
    }
}

/// What other sessions are to know of it.
fn remember(trust: &crate::pipeline::trust::Trust, peer: PeerId, verdict: Verdict) {
    tracing::debug!(%peer, ?verdict, "a stage was audited");
    match verdict {
        Verdict::Unknown => return,
        Verdict::Honest | Verdict::Doubtful => {}
        Verdict::Slandered(liar) => trust.distrust(liar),
        Verdict::Quarrel(with) => trust.quarrel(peer, with),
        Verdict::Guilty => trust.distrust(peer),
    }
    trust.audited();
}
