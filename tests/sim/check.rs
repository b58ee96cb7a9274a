//! The invariants of the ledger, checked against what the simulator itself knows, never against
//! what the machine under test says of itself where the two can differ.

use std::fmt;

use souk::payment::WindowSettings;
use souk::payment::channel::Book;
use souk::types::{AttemptId, ChannelId, MicroUsd, RequestId};

use super::buyer::Phase;
use super::wire::Side;
use super::world::World;

/// A rule that was broken, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breach {
    rule: &'static str,
    what: String,
}

impl Breach {
    pub fn new(rule: &'static str, what: String) -> Self {
        Self { rule, what }
    }
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.what)
    }
}

impl World {
    /// Rules that hold after every event.
    pub fn check_step(&mut self) -> Result<(), Breach> {
        if let Some(breach) = self.seller.breach.take() {
            return Err(breach);
        }
        self.check_held()?;
        self.check_promised()?;
        self.check_charges(Side::Buyer)?;
        self.check_charges(Side::Seller)
    }

    /// I3: what a seller holds is durable; the fee of an opening counts as held.
    fn check_held(&self) -> Result<(), Breach> {
        for pair in self.seller.pairs.iter().filter(|_| self.seller.up) {
            let base = pair.state.machine().book().base();
            let durable = self.seller.disk.highest(&pair.id).max(base);
            let held = pair.state.machine().promised();
            if held > durable {
                let text = format!("A is {held}, durable is {durable}");
                return Err(Breach::new("I3", text));
            }
        }
        Ok(())
    }

    /// I2: what a buyer counts as signed is durable, or was shown to it after a lost ledger.
    fn check_promised(&mut self) -> Result<(), Breach> {
        let Some(id) = self.buyer.state.channel().filter(|_| self.buyer.up) else {
            return Ok(());
        };
        let machine = self.buyer.state.machine();
        let (signed, base) = (machine.signed(), machine.book().base());
        let durable = self.buyer.disk.highest(&id);
        if signed > durable.max(base).max(self.buyer.learned) {
            let text = format!("V is {signed}, durable is {durable}");
            return Err(Breach::new("I2", text));
        }
        let agreed = machine
            .book()
            .base()
            .saturating_add(machine.book().settled());
        let ahead = signed.saturating_sub(agreed);
        let most = self.exposed.entry(id).or_default();
        *most = ahead.max(*most);
        Ok(())
    }

    fn check_charges(&self, side: Side) -> Result<(), Breach> {
        let charges = match side {
            Side::Buyer => &self.buyer.disk.charges,
            Side::Seller => &self.seller.disk.charges,
        };
        let Some((request, attempt, cost)) = charges.last() else {
            return Ok(());
        };
        let same = charges.iter().filter(|(r, _, _)| r == request).count();
        if same > 1 {
            let text = format!("{side:?} books {request} {same} times");
            return Err(Breach::new("I4", text));
        }
        let script = &self.scripts[attempt];
        if *cost > script.max_cost {
            let text = format!("{attempt} costs {cost}, its bound is {}", script.max_cost);
            return Err(Breach::new("I8", text));
        }
        Ok(())
    }

    /// I2 when a voucher is signed: within the deposit that was told, and never less than before.
    pub fn check_signed(&mut self, id: &ChannelId, cumulative: MicroUsd) -> Result<(), Breach> {
        let most = self.signed.entry(*id).or_default();
        *most = cumulative.max(*most);
        let (told, before) = (self.buyer.told, self.buyer.disk.highest(id));
        if cumulative > told {
            return Err(Breach::new(
                "I2",
                format!("{cumulative} is signed of {told}"),
            ));
        }
        if cumulative < before {
            return Err(Breach::new(
                "I2",
                format!("{cumulative} is signed after {before}"),
            ));
        }
        Ok(())
    }

    /// I2 when a voucher leaves: its row is durable.
    pub fn check_sent(&self, id: &ChannelId, cumulative: MicroUsd) -> Result<(), Breach> {
        let durable = self.buyer.disk.highest(id);
        if cumulative > durable.max(self.buyer.learned) {
            let text = format!("a voucher of {cumulative} leaves, durable is {durable}");
            return Err(Breach::new("I2", text));
        }
        Ok(())
    }

    /// A seller never holds more than the buyer made durable; after a lost ledger, than it ever
    /// signed.
    pub fn check_shown(&self, id: &ChannelId, cumulative: MicroUsd) -> Result<(), Breach> {
        let durable = if self.lost {
            self.signed.get(id).copied().unwrap_or_default()
        } else {
            self.buyer.disk.highest(id)
        };
        if cumulative > durable {
            let text = format!("the seller holds {cumulative}, the buyer knows of {durable}");
            return Err(Breach::new("I2", text));
        }
        Ok(())
    }

    /// C of a channel's attempts of this life, by the scripts' windows.
    fn credit_now(&self, id: &ChannelId, settled: MicroUsd) -> MicroUsd {
        let here = self.seller.sent.values().filter(|one| one.channel == *id);
        let windows: MicroUsd = here.map(|one| one.window).sum();
        windows.min(WindowSettings::default().pair_cap(settled))
    }

    /// A: the durable voucher as far as the deposit covers it.
    fn held(&self, id: &ChannelId) -> MicroUsd {
        let highest = self.seller.disk.highest(id);
        if let Some(pair) = self.seller.pair(id).filter(|_| self.chain.is_some()) {
            let base = pair.state.machine().book().base();
            return highest.max(base).min(pair.state.machine().deposit());
        }
        let paid = self.seller.disk.settlements();
        highest.min(self.seller.credit.saturating_add(paid))
    }

    /// What counts as delivered on a channel: what it cost to open, what is settled, and the value of
    /// this life's attempts on the wire.
    fn delivered(&self, id: &ChannelId) -> (MicroUsd, MicroUsd) {
        let book = self.seller.pair(id).map(|pair| pair.state.machine().book());
        let settled = book.map_or(MicroUsd::ZERO, |book| book.settled());
        let base = book.map_or(MicroUsd::ZERO, |book| book.base());
        let here = self.seller.sent.values().filter(|one| one.channel == *id);
        let running: MicroUsd = here.map(|one| one.value).sum();
        (
            base.saturating_add(settled).saturating_add(running),
            settled,
        )
    }

    /// The value on the wire, as this life of the seller knows it. Says whether it rose.
    pub fn note_sent(&mut self, attempt: AttemptId, running: MicroUsd) -> bool {
        let Some(sent) = self.seller.sent.get_mut(&attempt) else {
            return false;
        };
        let rose = running > sent.value;
        sent.value = running.max(sent.value);
        rose
    }

    /// I1 when bytes of value leave: D ≤ A + C, with A as it is durable.
    pub fn note_delivery(&mut self, attempt: AttemptId, running: MicroUsd) {
        let Some(id) = self.seller.sent.get(&attempt).map(|one| one.channel) else {
            return;
        };
        if !self.note_sent(attempt, running) {
            return;
        }
        let (delivered, settled) = self.delivered(&id);
        let (held, credit) = (self.held(&id), self.credit_now(&id, settled));
        if delivered > held.saturating_add(credit) {
            let text = format!("delivered {delivered}, vouchers {held}, window {credit}");
            self.seller.breach = Some(Breach::new("I1", text));
        }
        self.check_confirmed(&id, delivered);
    }

    /// I1 when a request is admitted: A ≥ D + Σ prefill − C.
    pub fn note_admission(&mut self, attempt: AttemptId) {
        let Some(id) = self.seller.sent.get(&attempt).map(|one| one.channel) else {
            return;
        };
        let (delivered, settled) = self.delivered(&id);
        let owed = delivered.saturating_add(self.scripts[&attempt].prefill);
        let (held, credit) = (self.held(&id), self.credit_now(&id, settled));
        if owed > held.saturating_add(credit) {
            let text = format!("admits up to {owed}, vouchers {held}, window {credit}");
            self.seller.breach = Some(Breach::new("I1", text));
        }
    }

    /// When nothing fails any more: nothing waits, and both sides have booked the same (I5).
    pub fn check_rest(&self) -> Result<(), Breach> {
        let buyer = &self.buyer.state;
        let mut waiting = vec![
            ("orders", self.orders_running()),
            ("live attempts", buyer.live_count()),
            ("jobs", self.seller.jobs_running()),
        ];
        // Who lost its ledger may have nothing to come back for, and nothing to answer with, until the
        // next order; and a buyer whose opening came too late waits until it is void for good.
        if !self.lost && !self.waits_for_void() {
            waiting.extend([
                ("attempts in doubt", buyer.doubtful_count()),
                ("unsaid rows or ACCEPTs", usize::from(buyer.has_unsaid())),
                ("attempts without ACCEPT", self.seller.ended_count()),
            ]);
        }
        if let Some((what, count)) = waiting.iter().find(|(_, count)| *count > 0) {
            return Err(Breach::new("no rest", format!("{count} {what} are left")));
        }
        self.check_agreement()
    }

    fn check_agreement(&self) -> Result<(), Breach> {
        if self.lost || self.waits_for_void() {
            // Rows of before are on one side only, or an ACCEPT still waits for a session; what may be
            // paid, `close` checks.
            return Ok(());
        }
        let (bought, sold) = (self.buyer.disk.billed(), self.seller.disk.billed());
        let none = Some(MicroUsd::ZERO);
        for attempt in bought.keys().chain(sold.keys()) {
            let here = bought.get(attempt).copied().unwrap_or(none);
            let there = sold.get(attempt).copied().unwrap_or(none);
            if here != there || here.is_none() {
                let text = format!("{attempt}: {here:?} bought, {there:?} sold");
                return Err(Breach::new("I5", text));
            }
        }
        self.check_books()?;
        let (paid, booked) = (
            self.seller.disk.settlements(),
            self.buyer.disk.settlements(),
        );
        if paid != booked && matches!(self.buyer.phase, Phase::Up(_)) {
            let text = format!("settled {paid} at the seller, {booked} at the buyer");
            return Err(Breach::new("I5", text));
        }
        Ok(())
    }

    /// What both machines count is what the rows add up to, channel by channel (I5).
    fn check_books(&self) -> Result<(), Breach> {
        if let Some(id) = self.buyer.state.channel() {
            let book = self.buyer.state.machine().book();
            let (total, rows) = (book.total(), self.buyer.disk.billed_on(&id));
            if total != book.base().saturating_add(rows) {
                let text = format!("rows of {rows}, the buyer's book says {total}");
                return Err(Breach::new("I5", text));
            }
            // One that is over and forgotten is taken up again only for its last ACCEPTs.
            let theirs = self.seller.pair(&id);
            let theirs = theirs.filter(|pair| !pair.state.is_over(self.now));
            let theirs = theirs.map(|pair| pair.state.machine().book());
            // A seller that knew nothing of the channel any more counts as delivered what it is shown.
            let differs = |theirs: &&Book| {
                let from = |book: &Book| book.total().saturating_sub(book.base());
                let is_known = !self.adopted.contains(&id);
                from(theirs) != from(book) || (is_known && theirs.base() != book.base())
            };
            if let Some(theirs) = theirs.filter(differs) {
                let text = format!("R is {total}, D is {}", theirs.total());
                return Err(Breach::new("I5", text));
            }
        }
        let pairs = self.seller.pairs.iter();
        for pair in pairs.filter(|pair| !pair.state.is_over(self.now)) {
            let settled = pair.state.machine().book().settled();
            let rows = self.seller.disk.billed_on(&pair.id);
            if settled != rows {
                let text = format!("rows of {rows}, the seller's book says {settled}");
                return Err(Breach::new("I5", text));
            }
        }
        for id in self.seller.disk.channels() {
            let held = self.seller.disk.highest(&id);
            let signed = self.buyer.disk.highest(&id);
            if held > signed {
                return Err(Breach::new("I5", format!("{held} held of {signed} signed")));
            }
        }
        Ok(())
    }

    /// The request after the last fault was served.
    pub fn check_probe(&self, request: Option<RequestId>) -> Result<(), Breach> {
        let Some(request) = request else {
            return Ok(());
        };
        let of = |(attempt, _): &(&AttemptId, &super::plan::Script)| **attempt;
        let tried: Vec<AttemptId> = self
            .scripts
            .iter()
            .filter(|(_, script)| script.request == request)
            .map(|entry| of(&entry))
            .collect();
        let billed = self.seller.disk.billed();
        let served = |attempt: &AttemptId| {
            let free = self.scripts[attempt].claim == MicroUsd::ZERO;
            match billed.get(attempt).copied().flatten() {
                Some(cost) => free || cost > MicroUsd::ZERO,
                None => false,
            }
        };
        if tried.iter().any(served) {
            Ok(())
        } else {
            let text = format!(
                "the last request was not served in {} attempts",
                tried.len()
            );
            Err(Breach::new("deadlock", text))
        }
    }
}
