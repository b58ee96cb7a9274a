//! The head's own count of what one stage was asked to compute and did.

use std::collections::VecDeque;

use crate::protocol::stage::StepKind;

/// Rows computed, by price.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    /// At the price of prefill.
    pub prefill: u64,
    /// At the price of decode: decoded and verified rows.
    pub decode: u64,
}

impl Rows {
    /// Counts `n` more.
    pub fn add(&mut self, n: u32, kind: StepKind) {
        let count = match kind {
            StepKind::Prefill => &mut self.prefill,
            StepKind::Decode | StepKind::Verify => &mut self.decode,
        };
        *count = count.saturating_add(u64::from(n));
    }

    /// All of them.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.prefill.saturating_add(self.decode)
    }
}

/// Positions that are to be computed one after the other.
#[derive(Clone, Copy, Debug)]
struct Segment {
    from: u32,
    to: u32,
    kind: StepKind,
}

/// One stage's account: what it must compute next, and what it has.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    cursor: u32,
    ahead: VecDeque<Segment>,
    rows: Rows,
}

impl Tally {
    /// `n` rows from `pos` on will be asked of it.
    pub fn expect(&mut self, pos: u32, n: u32, kind: StepKind) {
        let to = pos.saturating_add(n);
        match self.ahead.back_mut() {
            Some(last) if last.to == pos && last.kind == kind => last.to = to,
            _ => self.ahead.push_back(Segment {
                from: pos,
                to,
                kind,
            }),
        }
    }

    /// It says that it computed `n` rows from `pos` on. False when that is not what comes next: it
    /// is not counted.
    #[must_use]
    pub fn done(&mut self, pos: u32, n: u32) -> bool {
        let Some(next) = self.ahead.front_mut() else {
            return false;
        };
        let end = pos.saturating_add(n);
        if next.from != pos || end > next.to {
            return false;
        }
        next.from = end;
        self.rows.add(n, next.kind);
        self.cursor = end;
        if next.from == next.to {
            self.ahead.pop_front();
        }
        true
    }

    /// Positions that it remembers, by its own word so far.
    #[must_use]
    pub const fn cursor(&self) -> u32 {
        self.cursor
    }

    /// Of these, the ones that no row on its way takes back.
    #[must_use]
    pub fn held(&self) -> u32 {
        let ahead = self.ahead.iter().map(|segment| segment.from);
        ahead.fold(self.cursor, u32::min)
    }

    /// What it remembers was made of wrong rows: from the next route on all of it counts as missing.
    pub fn forget(&mut self) {
        self.ahead.push_back(Segment {
            from: 0,
            to: 0,
            kind: StepKind::Prefill,
        });
    }

    /// A new route: what it lacks up to `to` is on its way again, as prefill.
    pub fn restart(&mut self, to: u32) {
        let held = self.held();
        self.ahead.clear();
        self.cursor = held;
        if held < to {
            self.expect(held, to - held, StepKind::Prefill);
        }
    }

    /// True when everything asked for is computed.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.ahead.is_empty()
    }

    /// What it computed and is owed for.
    #[must_use]
    pub const fn rows(&self) -> Rows {
        self.rows
    }
}
