//! One node's ledger: rows wait in a queue until a write makes them durable; a crash loses the rest.
//!
//! It keeps the rules of the real one (an attempt opens once and is booked once, a stale voucher is
//! covered) and reports any other refusal as a breach: no history may lead to one. It is the chain's
//! journal too: intents before they are sent, events before they count.

use std::collections::{BTreeMap, VecDeque};

use souk::chain::BlockRef;
use souk::chain::hub::HubEvent;
use souk::chain::journal::{OpenIntent, Record, Stage, Step};
use souk::chain::watcher::{ChainEvent, Kept};
use souk::ledger::{
    AttemptState, ChannelRow, ChannelState, FinalRow, Outcome, Role, Row, VoucherRow,
};
use souk::payment::onchain::Standing;
use souk::types::{AttemptId, ChannelId, MicroUsd, RequestId};

use super::check::Breach;

/// A channel's rows.
struct Book {
    row: ChannelRow,
    /// Durable vouchers, lowest first.
    vouchers: Vec<VoucherRow>,
    settlements: MicroUsd,
    /// What vouchers may add up to by the rows so far, as `ledger verify` reckons it.
    limit: MicroUsd,
}

enum Entry {
    Row(Row),
    Record(Record),
}

/// What is durable, and what is on its way.
pub struct Disk {
    role: Role,
    /// Channels in the order of their opening.
    channels: Vec<(ChannelId, Book)>,
    attempts: BTreeMap<AttemptId, AttemptState>,
    intents: BTreeMap<u64, OpenIntent>,
    /// The hub's events that stand, in the order in which they were told.
    seen: Vec<Kept>,
    queue: VecDeque<Entry>,
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
            channels: Vec::new(),
            attempts: BTreeMap::new(),
            intents: BTreeMap::new(),
            seen: Vec::new(),
            queue: VecDeque::new(),
            queued: 0,
            written: 0,
            charges: Vec::new(),
            books_once: true,
        }
    }

    /// Queues a row; it is durable once [`Self::written`] reaches the number given back.
    pub fn submit(&mut self, row: Row) -> u64 {
        self.put_in_queue(Entry::Row(row))
    }
    /// Queues what the chain's journal keeps.
    pub fn record(&mut self, record: Record) -> u64 {
        self.put_in_queue(Entry::Record(record))
    }
    fn put_in_queue(&mut self, entry: Entry) -> u64 {
        self.queue.push_back(entry);
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
            let Some(entry) = self.queue.pop_front() else {
                break;
            };
            self.written += 1;
            match entry {
                Entry::Row(row) => self.put(row)?,
                Entry::Record(record) => self.keep(record),
            }
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
    /// The disk itself is gone.
    pub fn lose_all(&mut self) {
        let queued = self.queued;
        *self = Self {
            queued,
            written: queued,
            books_once: self.books_once,
            ..Self::new(self.role)
        };
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
            Row::Channel(row) => match self.book_mut(&row.channel) {
                Some(book) => {
                    book.limit = row.deposit;
                    book.row = row;
                }
                None => {
                    let book = Book {
                        vouchers: Vec::new(),
                        settlements: MicroUsd::ZERO,
                        limit: row.deposit,
                        row,
                    };
                    self.channels.push((book.row.channel, book));
                }
            },
            Row::Settlement(row) => {
                let Some(book) = self.book_mut(&row.channel) else {
                    return Err(self.refused("a settlement before its channel"));
                };
                book.limit = book.limit.saturating_add(row.amount);
                book.settlements = book.settlements.saturating_add(row.amount);
            }
            // What a chain needs comes as records.
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

    fn keep(&mut self, record: Record) {
        match record {
            Record::Intent(intent) => {
                let open = OpenIntent {
                    sent: Vec::new(),
                    last: None,
                    intent,
                };
                self.intents.insert(open.intent.nonce, open);
            }
            Record::Sent(sent) => {
                let of = |one: &&mut OpenIntent| one.intent.id == sent.intent;
                if let Some(one) = self.intents.values_mut().find(of) {
                    one.sent.push(sent);
                }
            }
            Record::Outcome(outcome) => {
                let ends = matches!(outcome.step, Step::Confirmed | Step::Displaced);
                let id = outcome.intent;
                if ends {
                    self.intents.retain(|_, one| one.intent.id != id);
                } else if let Some(one) = self.intents.values_mut().find(|o| o.intent.id == id) {
                    one.last = Some(outcome);
                }
            }
            Record::Event(event) => match event.stage {
                Stage::Seen => self.seen.push(Kept {
                    log: event.log,
                    is_confirmed: false,
                }),
                Stage::Confirmed => {
                    for kept in self.seen.iter_mut().filter(|kept| kept.log == event.log) {
                        kept.is_confirmed = true;
                    }
                }
                Stage::Removed => self.seen.retain(|kept| kept.log != event.log),
            },
            Record::Cursor(_) => {}
        }
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
        let Some(book) = self.book_mut(&row.channel) else {
            return Err(self.refused("a voucher before its channel"));
        };
        if row.cumulative > book.limit {
            let text = format!("a voucher of {}, rows allow {}", row.cumulative, book.limit);
            return Err(self.refused(&text));
        }
        let at = book
            .vouchers
            .partition_point(|one| one.cumulative < row.cumulative);
        book.vouchers.insert(at, row);
        Ok(())
    }

    fn refused(&self, what: &str) -> Breach {
        Breach::new("row refused", format!("{:?}'s ledger: {what}", self.role))
    }

    fn book_mut(&mut self, id: &ChannelId) -> Option<&mut Book> {
        let found = self.channels.iter_mut().find(|(one, _)| one == id);
        found.map(|(_, book)| book)
    }
    fn book_of(&self, id: &ChannelId) -> Option<&Book> {
        let found = self.channels.iter().find(|(one, _)| one == id);
        found.map(|(_, book)| book)
    }

    /// The highest durable voucher of a channel.
    pub fn highest(&self, id: &ChannelId) -> MicroUsd {
        let best = self.book_of(id).and_then(|book| book.vouchers.last());
        best.map_or(MicroUsd::ZERO, |v| v.cumulative)
    }
    /// All durable vouchers of a channel.
    pub fn vouchers(&self, id: &ChannelId) -> Vec<VoucherRow> {
        let book = self.book_of(id);
        book.map_or_else(Vec::new, |book| book.vouchers.clone())
    }
    /// A channel's newest row.
    pub fn channel(&self, id: &ChannelId) -> Option<&ChannelRow> {
        self.book_of(id).map(|book| &book.row)
    }
    /// Channels in the order of their opening.
    pub fn channels(&self) -> Vec<ChannelId> {
        self.channels.iter().map(|(id, _)| *id).collect()
    }

    /// Booked payments outside of the chain.
    pub fn settlements(&self) -> MicroUsd {
        self.channels.iter().map(|(_, book)| book.settlements).sum()
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
    /// Σ billed on one channel.
    pub fn billed_on(&self, id: &ChannelId) -> MicroUsd {
        let here = self.attempts.values().filter(|s| s.open.channel == *id);
        let rows = here.filter_map(|state| state.final_row.as_ref());
        rows.map(|row| row.billed).sum()
    }

    /// Σ counted on one channel and not booked, because the other side is gone.
    pub fn counted_on(&self, id: &ChannelId) -> MicroUsd {
        let here = self.attempts.values().filter(|s| s.open.channel == *id);
        let open = here.filter(|state| state.final_row.is_none());
        let rows = open.filter_map(|state| state.delivered.as_ref());
        rows.map(|row| row.cost).sum()
    }

    /// The hub's events that stand, as a restarted watcher finds them.
    pub fn seen(&self) -> Vec<Kept> {
        let mut seen = self.seen.clone();
        seen.sort_by_key(|kept| place(&kept.log.raw.block, kept.log.raw.index));
        seen
    }
    /// Channels that they open: also those of which a lost ledger had the rows.
    pub fn opened(&self) -> Vec<ChannelId> {
        let opened = |kept: &Kept| match kept.log.event {
            HubEvent::Opened { channel, .. } => Some(channel),
            _ => None,
        };
        self.seen.iter().filter_map(opened).collect()
    }
    /// What they say of one channel.
    pub fn standing(&self, id: &ChannelId) -> Standing {
        let mut standing = Standing::default();
        for kept in self
            .seen
            .iter()
            .filter(|k| k.log.event.channel() == Some(*id))
        {
            standing.apply(&if kept.is_confirmed {
                ChainEvent::Confirmed(kept.log.clone())
            } else {
                ChainEvent::Seen(kept.log.clone())
            });
        }
        standing
    }
    /// Intents that are not over.
    pub fn open_intents(&self) -> Vec<OpenIntent> {
        self.intents.values().cloned().collect()
    }
    /// True when this nonce's intent is durable, or was and is over.
    pub fn knows_intent(&self, nonce: u64) -> bool {
        self.intents.contains_key(&nonce)
    }

    /// What a restarted node finds.
    pub fn load(&self) -> Vec<ChannelState> {
        self.channels
            .iter()
            .map(|(id, book)| self.load_one(id, book))
            .collect()
    }

    fn load_one(&self, id: &ChannelId, book: &Book) -> ChannelState {
        let here = || self.attempts.values().filter(|s| s.open.channel == *id);
        let accepted = |state: &AttemptState| {
            let row = state.final_row.as_ref()?;
            (row.outcome == Outcome::Accepted).then_some(row.billed)
        };
        let open = |state: &&AttemptState| state.final_row.is_none();
        ChannelState {
            row: book.row.clone(),
            voucher: book.vouchers.last().cloned(),
            accepted_sum: here().filter_map(accepted).sum(),
            written_off_sum: MicroUsd::ZERO,
            settlements_sum: book.settlements,
            limit: book.limit,
            unfinished: here().filter(open).cloned().collect(),
        }
    }
}

fn place(block: &BlockRef, index: u64) -> (u64, u64) {
    (block.number, index)
}
