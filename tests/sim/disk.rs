//! One node's ledger: rows wait in a queue until a write makes them durable; a crash loses the rest.
//!
//! It keeps the rules of the real one (an attempt opens once and is booked once, a stale voucher is
//! covered) and reports any other refusal as a breach: no history may lead to one.

use std::collections::{BTreeMap, VecDeque};

use souk::ledger::{
    AttemptState, ChannelRow, ChannelState, FinalRow, Outcome, Role, Row, VoucherRow,
};
use souk::types::{AttemptId, MicroUsd, RequestId};

use super::check::Breach;

/// What is durable, and what is on its way.
pub struct Disk {
    role: Role,
    channel: Option<ChannelRow>,
    voucher: Option<VoucherRow>,
    attempts: BTreeMap<AttemptId, AttemptState>,
    settlements: MicroUsd,
    /// What vouchers may add up to by the rows so far, as `ledger verify` reckons it.
    limit: MicroUsd,
    queue: VecDeque<Row>,
    queued: u64,
    written: u64,
    /// Every booking above 0, in order.
    pub charges: Vec<(RequestId, AttemptId, MicroUsd)>,
    /// False: an attempt can be booked again (a planted fault).
    pub books_once: bool,
}

impl Disk {
    pub fn new(role: Role) -> Self {
        Self {
            role,
            channel: None,
            voucher: None,
            attempts: BTreeMap::new(),
            settlements: MicroUsd::ZERO,
            limit: MicroUsd::ZERO,
            queue: VecDeque::new(),
            queued: 0,
            written: 0,
            charges: Vec::new(),
            books_once: true,
        }
    }

    /// Queues a row; it is durable once [`Self::written`] reaches the number given back.
    pub fn submit(&mut self, row: Row) -> u64 {
        self.queue.push_back(row);
        self.queued += 1;
        self.queued
    }

    /// Rows durable so far.
    pub const fn written(&self) -> u64 {
        self.written
    }

    /// Makes the first `count` queued rows durable.
    pub fn write(&mut self, count: usize) -> Result<(), Breach> {
        for _ in 0..count {
            let Some(row) = self.queue.pop_front() else {
                break;
            };
            self.written += 1;
            self.put(row)?;
        }
        Ok(())
    }

    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// A crash: what was not durable is gone.
    pub fn lose_queue(&mut self) {
        self.queue.clear();
        self.written = self.queued;
    }

    fn put(&mut self, row: Row) -> Result<(), Breach> {
        match row {
            Row::Open(open) => {
                let id = open.attempt_id;
                let state = AttemptState {
                    open,
                    delivered: None,
                    final_row: None,
                };
                if self.attempts.insert(id, state).is_some() {
                    return Err(self.refused(&format!("{id} opened twice")));
                }
            }
            Row::Delivered(row) => {
                let id = row.attempt_id;
                match self.attempts.get_mut(&id) {
                    Some(state) if state.delivered.is_none() => state.delivered = Some(row),
                    _ => return Err(self.refused(&format!("{id} delivered twice or unopened"))),
                }
            }
            Row::Final(row) => self.book(row)?,
            Row::Voucher(row) => self.put_voucher(row)?,
            Row::Channel(row) => {
                self.limit = row.deposit;
                self.channel = Some(row);
            }
            Row::Settlement(row) => {
                self.limit = self.limit.saturating_add(row.amount);
                self.settlements = self.settlements.saturating_add(row.amount);
            }
            // The simulated pair pays by credit: no chain.
            Row::Offer(_)
            | Row::BudgetSet(_)
            | Row::Intent(_)
            | Row::Sent(_)
            | Row::Outcome(_)
            | Row::Event(_)
            | Row::Cursor(_) => {}
        }
        Ok(())
    }

    fn book(&mut self, row: FinalRow) -> Result<(), Breach> {
        let id = row.attempt_id;
        let Some(state) = self.attempts.get_mut(&id) else {
            return Err(self.refused(&format!("{id} booked and never opened")));
        };
        let is_new = state.final_row.is_none() || !self.books_once;
        if let Some(there) = state.final_row.as_ref().filter(|_| self.books_once)
            && (there.outcome, there.billed) != (row.outcome, row.billed)
        {
            let text = format!(
                "{id} booked with {} and again with {}",
                there.billed, row.billed
            );
            return Err(self.refused(&text));
        }
        if is_new && row.billed > MicroUsd::ZERO {
            self.charges.push((state.open.request_id, id, row.billed));
        }
        state.final_row = Some(row);
        Ok(())
    }

    fn put_voucher(&mut self, row: VoucherRow) -> Result<(), Breach> {
        if let Some(attempt) = row.attempt.filter(|a| !self.attempts.contains_key(a)) {
            return Err(self.refused(&format!("a voucher names {attempt}, which is not durable")));
        }
        if self.channel.is_none() {
            return Err(self.refused("a voucher before its channel"));
        }
        if row.cumulative > self.limit {
            let text = format!("a voucher of {}, rows allow {}", row.cumulative, self.limit);
            return Err(self.refused(&text));
        }
        if row.cumulative > self.highest() || self.voucher.is_none() {
            self.voucher = Some(row);
        }
        Ok(())
    }

    fn refused(&self, what: &str) -> Breach {
        Breach::new("row refused", format!("{:?}'s ledger: {what}", self.role))
    }

    /// The highest durable voucher.
    pub fn highest(&self) -> MicroUsd {
        self.voucher
            .as_ref()
            .map_or(MicroUsd::ZERO, |v| v.cumulative)
    }

    pub const fn settlements(&self) -> MicroUsd {
        self.settlements
    }

    pub fn attempt(&self, id: &AttemptId) -> Option<&AttemptState> {
        self.attempts.get(id)
    }

    /// Billed cost per attempt; those without a final row are named too.
    pub fn billed(&self) -> BTreeMap<AttemptId, Option<MicroUsd>> {
        let billed = |state: &AttemptState| state.final_row.as_ref().map(|row| row.billed);
        self.attempts
            .iter()
            .map(|(id, s)| (*id, billed(s)))
            .collect()
    }

    /// What a restarted node finds.
    pub fn load(&self) -> Option<ChannelState> {
        let accepted = |state: &AttemptState| {
            let row = state.final_row.as_ref()?;
            (row.outcome == Outcome::Accepted).then_some(row.billed)
        };
        let open = |state: &&AttemptState| state.final_row.is_none();
        Some(ChannelState {
            row: self.channel.clone()?,
            voucher: self.voucher.clone(),
            accepted_sum: self.attempts.values().filter_map(accepted).sum(),
            written_off_sum: MicroUsd::ZERO,
            settlements_sum: self.settlements,
            limit: self.limit,
            unfinished: self.attempts.values().filter(open).cloned().collect(),
        })
    }
}
