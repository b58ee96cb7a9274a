//! What the payer knows of one seller, as a pure state: no lock, no socket, no clock.
//! The channel machine, the attempts that run or are in doubt, and what waits to be booked or sent.
//! [`super::Pair`] puts it behind a lock, `book` makes its rows durable, `session` carries its
//! messages; the seeded simulator drives it over a lossy wire with crashes.

mod adopt;
mod ending;
mod on_chain;

pub use adopt::is_recent;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

pub use on_chain::{Tended, TopUpPlan};

use super::doubt::{Doubtful, Live, Shown, accepted_cost};
use crate::ledger::{ChannelRow, DeliveredRow, FinalRow, OpenRow, Role, Row, SettlementRow};
use crate::payment::channel::{Hold, Payer};
use crate::payment::onchain::OnChannel;
use crate::payment::window::WindowSettings;
use crate::protocol::limits::ATTEMPTS_PER_MESSAGE_MAX;
use crate::protocol::session::{SyncBuyer, SyncSeller};
use crate::protocol::voucher::VoucherDomain;
use crate::protocol::{EvmSignature, SessionMessage, SignedReceipt, Terms};
use crate::types::{AttemptId, ChannelId, MicroUsd, UnixMs};

/// Accepts remembered until the seller acknowledges them; older ones come back by SYNC.
const UNACKED_MAX: usize = 4_096;

/// One seller as the payer sees it.
pub struct PayerState {
    windows: WindowSettings,
    pub(super) machine: Payer,
    /// The channel's newest row.
    row: Option<ChannelRow>,
    /// The channel as it is on a chain; none in credit mode.
    pub(super) on_chain: Option<OnChannel>,
    /// The channel is over by the seller's word, and the chain does not contradict: the next order
    /// takes another one; this one is still named to settle what is in doubt.
    left: bool,
    /// This session is over a channel that is over: it carries ACCEPTs and no orders.
    pub(super) settles: bool,
    /// This side asked for the channel's end: nothing new is ordered on it.
    pub(super) ending: bool,
    /// Since when; 0 before it was noticed.
    pub(super) ending_ms: UnixMs,
    /// When the channel last carried something.
    pub(super) used_ms: UnixMs,
    /// When a higher deposit was last signed.
    pub(super) topped_up_ms: UnixMs,
    /// When the seller was last asked for the end.
    pub(super) asked_close_ms: UnixMs,
    /// The number of the next opening on a chain.
    pub(super) next_counter: u64,
    /// This node pays on a chain and gives no IOUs to sellers that take no channels.
    pub(super) gives_no_credit: bool,
    /// What vouchers may add up to by the rows of this ledger.
    booked_limit: MicroUsd,
    pub(super) terms: Option<Terms>,
    pub(super) settlements: MicroUsd,
    pub(super) up: bool,
    /// Rises with every session, so that an old one's end does not end the next.
    pub(super) generation: u64,
    /// The seller may wait for something since the last session: a SYNC is due.
    pub(super) unsynced: bool,
    /// An attempt ended since the last SYNC without an ACCEPT: the seller may not have heard of it.
    pub(super) unheard: bool,
    /// Seller's clock minus ours, ms.
    pub(super) clock_offset_ms: i64,
    last_voucher: Option<(MicroUsd, EvmSignature)>,
    /// The highest voucher that this session has shown.
    shown: MicroUsd,
    /// Attempts that run in this process.
    live: HashMap<AttemptId, Live>,
    /// Attempts without a final row that no longer run.
    doubtful: HashMap<AttemptId, Doubtful>,
    /// Finals to make durable, with whether an ACCEPT follows.
    finals: Vec<(FinalRow, bool)>,
    /// Attempts whose finals are on their way to the disk.
    booking: HashSet<AttemptId>,
    /// Accepts sent or to be sent again, until acknowledged.
    unacked: HashMap<AttemptId, MicroUsd>,
    /// Accepts to send in the next flush.
    to_accept: Vec<(AttemptId, MicroUsd)>,
    /// The newest attempt whose open row is queued: the one a voucher is signed for.
    newest: Option<AttemptId>,
    /// The seller asked, or a stream started: do not linger.
    pub(super) urgent: bool,
}

/// What follows from an attempt that the seller showed.
#[derive(Debug)]
pub enum Verdict {
    /// It was in doubt and is settled: [`PayerState::book`] this final row.
    Settled(Box<FinalRow>),
    /// Not in doubt and not under way: the ledger knows what was booked ([`super::doubt::repeated_cost`]).
    AskLedger,
    /// It runs, or is being booked: its ACCEPT comes by itself.
    UnderWay,
}

impl PayerState {
    /// A seller of which nothing is known yet.
    #[must_use]
    pub fn new(windows: WindowSettings) -> Self {
        let zero = MicroUsd::ZERO;
        Self {
            windows,
            machine: Payer::new(windows, zero, zero, zero),
            row: None,
            on_chain: None,
            left: false,
            settles: false,
            ending: false,
            ending_ms: 0,
            used_ms: 0,
            topped_up_ms: 0,
            asked_close_ms: 0,
            next_counter: 0,
            gives_no_credit: false,
            booked_limit: zero,
            terms: None,
            settlements: zero,
            up: false,
            generation: 0,
            unsynced: false,
            unheard: false,
            clock_offset_ms: 0,
            last_voucher: None,
            shown: zero,
            live: HashMap::new(),
            doubtful: HashMap::new(),
            finals: Vec::new(),
            booking: HashSet::new(),
            unacked: HashMap::new(),
            to_accept: Vec::new(),
            newest: None,
            urgent: false,
        }
    }

    /// This channel pays from now on; its row is durable. One that paid before is over.
    pub fn pay_by(&mut self, row: ChannelRow, on_chain: Option<OnChannel>) {
        let zero = MicroUsd::ZERO;
        if self.row.is_some() {
            self.last_voucher = None;
            self.shown = zero;
            self.settlements = zero;
            self.newest = None;
        }
        self.machine = Payer::new(self.windows, zero, zero, zero);
        if let Some(on_chain) = &on_chain {
            self.machine = Payer::new(self.windows, row.deposit, zero, zero)
                .on_chain(on_chain.channel.consumed);
        }
        if on_chain.is_some() {
            self.next_counter = row.epoch.saturating_add(1);
        }
        self.on_chain = on_chain;
        self.left = false;
        self.settles = false;
        self.ending = false;
        self.used_ms = row.at_ms;
        self.topped_up_ms = 0;
        self.ending_ms = 0;
        self.asked_close_ms = 0;
        self.booked_limit = row.deposit;
        self.row = Some(row);
    }
    /// Where vouchers of this channel are worth something.
    #[must_use]
    pub fn domain(&self) -> VoucherDomain {
        let hub = self.on_chain.as_ref().map(|one| one.channel.domain);
        hub.map_or(VoucherDomain::Credit, VoucherDomain::Hub)
    }
    /// The channel's newest row.
    #[must_use]
    pub const fn row(&self) -> Option<&ChannelRow> {
        self.row.as_ref()
    }
    /// The deposit was raised by this buyer's signature; `row` is durable.
    pub fn raise(&mut self, row: ChannelRow) {
        self.booked_limit = row.deposit;
        self.machine.set_deposit(row.deposit);
        self.row = Some(row);
    }
    /// The channel that pays, once it is known.
    #[must_use]
    pub fn channel(&self) -> Option<ChannelId> {
        self.row.as_ref().map(|row| row.channel)
    }
    /// The channel's epoch.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.row.as_ref().map_or(0, |row| row.epoch)
    }
    /// The channel machine.
    #[must_use]
    pub const fn machine(&self) -> &Payer {
        &self.machine
    }
    /// Attempts running now.
    #[must_use]
    pub fn live_count(&self) -> usize {
        self.live.len()
    }
    /// Attempts that the next SYNC settles.
    #[must_use]
    pub fn doubtful_count(&self) -> usize {
        self.doubtful.len()
    }
    /// True while rows wait for the disk or an ACCEPT for its acknowledgement.
    #[must_use]
    pub fn has_unsaid(&self) -> bool {
        let rows = !self.finals.is_empty() || !self.booking.is_empty();
        rows || !self.unacked.is_empty() || !self.to_accept.is_empty()
    }
    /// True when something waits for a session: attempts in doubt, unacknowledged accepts, a SYNC.
    #[must_use]
    pub fn in_doubt(&self) -> bool {
        let waits = !self.doubtful.is_empty() || !self.unacked.is_empty();
        // A running stream needs vouchers, so it needs a session too.
        self.unsynced || waits || (!self.up && !self.live.is_empty())
    }
    /// The cumulative voucher signed so far, and what a request with this prefill would need.
    #[must_use]
    pub fn quote(&self, prefill: MicroUsd, window: MicroUsd) -> (MicroUsd, MicroUsd) {
        let book = self.machine.book();
        let owed = book
            .total()
            .saturating_add(book.pending())
            .saturating_add(prefill);
        (
            self.machine.signed(),
            owed.saturating_sub(book.window().saturating_add(window)),
        )
    }

    /// Begins an attempt: its prefill counts as pending. [`Self::opened`] must follow.
    ///
    /// # Errors
    /// When the credit with this seller does not cover it.
    pub fn begin(&mut self, open: &OpenRow, window: MicroUsd) -> Result<(), Hold> {
        if self.ending || self.settles {
            return Err(Hold::CreditExhausted);
        }
        self.used_ms = open.at_ms;
        self.machine.begin(open.attempt_id, open.prefill, window)?;
        let live = Live {
            prefill: open.prefill,
            max_cost: open.max_cost,
            voucher_before: open.voucher_before,
            window,
        };
        self.live.insert(open.attempt_id, live);
        Ok(())
    }
    /// The attempt's open row is with the ledger: from now on a voucher may name it. A voucher's
    /// row must never be durable before the row it names.
    pub fn opened(&mut self, attempt: &AttemptId) {
        self.newest = Some(*attempt);
    }
    /// RESP_HEAD: the meter stands at `running`.
    pub fn start(&mut self, attempt: &AttemptId, running: MicroUsd) {
        self.machine.start(attempt, running);
    }
    /// Received and metered up to `running`.
    pub fn receive(&mut self, attempt: &AttemptId, running: MicroUsd) {
        self.machine.receive(attempt, running);
    }
    /// Queues the final row of an attempt; it costs `row.billed` from now on.
    pub fn book(&mut self, row: FinalRow, accept: bool) {
        self.live.remove(&row.attempt_id);
        self.doubtful.remove(&row.attempt_id);
        self.machine.settle(&row.attempt_id, row.billed);
        self.unheard |= !accept;
        self.finals.push((row, accept));
    }
    /// The attempt ended without a receipt. Says whether it ran here.
    pub fn park(&mut self, row: &DeliveredRow, model: &str) -> bool {
        self.machine.receive(&row.attempt_id, row.cost);
        let Some(began) = self.live.remove(&row.attempt_id) else {
            return false;
        };
        let doubtful = Doubtful {
            began,
            counted: Some(row.clone()),
            model: model.to_owned(),
            status: row.status,
        };
        self.doubtful.insert(row.attempt_id, doubtful);
        true
    }

    /// Judges an attempt that the seller shows: in SYNC, or by a repeated RECEIPT.
    pub fn judge(
        &mut self,
        attempt: &AttemptId,
        shown: Shown,
        receipt: Option<SignedReceipt>,
        now_ms: UnixMs,
    ) -> Verdict {
        let signed = self.machine.signed();
        let Entry::Occupied(entry) = self.doubtful.entry(*attempt) else {
            let nothing_waits = shown == Shown::Unknown;
            return if nothing_waits || self.is_under_way(attempt) {
                Verdict::UnderWay
            } else {
                Verdict::AskLedger
            };
        };
        let doubt = entry.remove();
        let billed = accepted_cost(doubt.known(signed), shown);
        let row = doubt.into_final(*attempt, billed, shown, receipt, now_ms);
        Verdict::Settled(Box::new(row))
    }

    /// The most that an attempt in doubt can still cost.
    #[must_use]
    pub fn may_cost(&self, attempt: &AttemptId) -> MicroUsd {
        let doubt = self.doubtful.get(attempt);
        let counted = doubt.and_then(|doubt| doubt.counted.as_ref());
        let begun = doubt.map_or(MicroUsd::ZERO, |doubt| doubt.began.max_cost);
        counted.map_or(begun, |row| row.cost)
    }

    /// Queues an ACCEPT whose final row is durable.
    pub fn accept(&mut self, attempt: AttemptId, cost: MicroUsd) {
        if self.unacked.len() < UNACKED_MAX {
            self.unacked.insert(attempt, cost);
        }
        self.to_accept.push((attempt, cost));
    }
    /// Takes the queued finals; they stay known until [`Self::booked`].
    pub fn take_finals(&mut self) -> Vec<(FinalRow, bool)> {
        let finals = std::mem::take(&mut self.finals);
        self.booking
            .extend(finals.iter().map(|(row, _)| row.attempt_id));
        finals
    }
    /// What was taken is durable: queues its ACCEPTs.
    pub fn booked(&mut self, accepts: Vec<(AttemptId, MicroUsd)>) {
        self.booking.clear();
        for (attempt, cost) in accepts {
            self.accept(attempt, cost);
        }
    }
    /// What may be said now: ACCEPTs and the highest voucher. Before SYNC nothing may be; what
    /// waits is said right after it.
    pub fn take_unsaid(&mut self) -> (Vec<(AttemptId, MicroUsd)>, Option<SessionMessage>) {
        if self.up {
            (std::mem::take(&mut self.to_accept), self.unshown_voucher())
        } else {
            (Vec::new(), None)
        }
    }
    /// The seller has booked these.
    pub fn acknowledged(&mut self, attempts: &[AttemptId]) {
        for attempt in attempts {
            self.unacked.remove(attempt);
        }
    }
    /// The voucher to make durable now, and the attempt it is signed for.
    #[must_use]
    pub fn due_voucher(&self) -> Option<(ChannelId, MicroUsd, Option<AttemptId>)> {
        // What is signed on a channel that is over is worth nothing to anybody.
        let channel = self.channel().filter(|_| !self.settles)?;
        Some((channel, self.machine.wanted()?, self.newest))
    }
    /// A voucher is durable: from now on it may be shown. One of an earlier channel changes nothing.
    pub fn voucher_durable(
        &mut self,
        channel: &ChannelId,
        cumulative: MicroUsd,
        signature: EvmSignature,
    ) {
        if self.channel().as_ref() == Some(channel) {
            self.machine.signed_up_to(cumulative);
            self.last_voucher = Some((cumulative, signature));
        }
    }
    /// The highest voucher is sent once more; it changes nothing where it is known.
    pub const fn show_again(&mut self) {
        self.shown = MicroUsd::ZERO;
    }
    /// The deposit that OPEN_ACK names, as far as this ledger has booked it; SYNC brings the rest.
    pub fn hear_deposit(&mut self, deposit: MicroUsd) {
        if self.on_chain.is_some() {
            // What this buyer signed counts, not what the seller says of it.
            return;
        }
        self.machine.set_deposit(deposit.min(self.booked_limit));
    }
    /// Rows for what SYNC says of the deposit: payments booked at the seller are booked here once,
    /// by the difference of the sums, and credit beyond that is a new row of the channel. They must
    /// be durable before [`Self::learn_deposit`], for a voucher needs the row that allows it.
    pub fn deposit_rows(&mut self, sync: &SyncSeller, at_ms: UnixMs) -> Vec<Row> {
        let Some(channel) = self.row.as_ref().filter(|_| self.takes_credit()) else {
            return Vec::new();
        };
        let mut rows = Vec::new();
        let missing = sync.settled.saturating_sub(self.settlements);
        if missing > MicroUsd::ZERO {
            self.settlements = sync.settled;
            self.booked_limit = self.booked_limit.saturating_add(missing);
            rows.push(Row::Settlement(SettlementRow {
                at_ms,
                role: Role::Buy,
                channel: channel.channel,
                peer: channel.peer,
                amount: missing,
                note: "booked by the seller".to_owned(),
            }));
        }
        if sync.deposit > self.booked_limit {
            self.booked_limit = sync.deposit;
            rows.push(Row::Channel(ChannelRow {
                at_ms,
                deposit: sync.deposit,
                ..channel.clone()
            }));
        }
        rows
    }
    /// The deposit that SYNC names counts from now on.
    pub fn learn_deposit(&mut self, deposit: MicroUsd) {
        if self.takes_credit() {
            self.machine.set_deposit(deposit);
        }
    }
    /// False where the seller's word does not raise what may be owed: on a chain, and in a node
    /// that pays on a chain and gives no IOUs.
    const fn takes_credit(&self) -> bool {
        self.on_chain.is_none() && !self.gives_no_credit
    }

    /// What the buyer tells in SYNC: its highest voucher, and the attempts it asks for.
    pub fn sync(&mut self, channel: ChannelId) -> SyncBuyer {
        self.shown = self.last_voucher.map_or(MicroUsd::ZERO, |(v, _)| v);
        let doubtful = self.doubtful.keys();
        SyncBuyer {
            channel,
            voucher: self.last_voucher,
            open: doubtful.take(ATTEMPTS_PER_MESSAGE_MAX).copied().collect(),
        }
    }
    /// A SYNC for attempts that fell into doubt while the session stood.
    pub fn sync_again(&mut self) -> Option<SyncBuyer> {
        let due = self.up && !self.doubtful.is_empty();
        let channel = self.channel().filter(|_| due)?;
        Some(self.sync(channel))
    }
    /// SYNC is over: what waited is said, again where no answer came. Gives the generation.
    pub fn stand_up(&mut self) -> u64 {
        self.up = true;
        self.unsynced = false;
        self.unheard = false;
        self.generation += 1;
        self.to_accept = self.unacked.iter().map(|(a, cost)| (*a, *cost)).collect();
        self.generation
    }
    /// The session ended; the seller may have restarted and lost what it was told last.
    pub fn stand_down(&mut self) {
        self.up = false;
        self.unsynced = true;
    }

    /// True while the attempt runs or its final row is not durable yet.
    fn is_under_way(&self, attempt: &AttemptId) -> bool {
        let queued = |(row, _): &(FinalRow, bool)| row.attempt_id == *attempt;
        self.live.contains_key(attempt)
            || self.booking.contains(attempt)
            || self.finals.iter().any(queued)
    }

    /// The highest voucher, unless this session has shown it; it counts as shown then.
    fn unshown_voucher(&mut self) -> Option<SessionMessage> {
        let channel = self.channel()?;
        let (cumulative, signature) = self.last_voucher.filter(|(v, _)| *v > self.shown)?;
        self.shown = cumulative;
        Some(SessionMessage::Voucher {
            channel,
            cumulative,
            signature,
        })
    }
}
