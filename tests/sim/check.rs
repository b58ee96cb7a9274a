//! The invariants of the ledger, checked against what the simulator itself knows, never against
//! what the machine under test says of itself where the two can differ.

use std::collections::BTreeMap;
use std::fmt;

use souk::payment::WindowSettings;
use souk::types::{AttemptId, MicroUsd, RequestId};

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
        let durable = self.seller.disk.highest();
        if let Some(state) = &self.seller.state {
            let held = state.machine().promised();
            if self.seller.up && held > durable {
                return Err(Breach::new(
                    "I3",
                    format!("A is {held}, durable is {durable}"),
                ));
            }
        }
        let (signed, promised) = (
            self.buyer.state.machine().signed(),
            self.buyer.disk.highest(),
        );
        if self.buyer.up && signed > promised {
            return Err(Breach::new(
                "I2",
                format!("V is {signed}, durable is {promised}"),
            ));
        }
        self.check_charges(Side::Buyer)?;
        self.check_charges(Side::Seller)
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
    pub fn check_signed(&self, cumulative: MicroUsd) -> Result<(), Breach> {
        let (told, before) = (self.buyer.told, self.buyer.disk.highest());
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
    pub fn check_sent(&self, cumulative: MicroUsd) -> Result<(), Breach> {
        let durable = self.buyer.disk.highest();
        if cumulative > durable {
            let text = format!("a voucher of {cumulative} leaves, durable is {durable}");
            return Err(Breach::new("I2", text));
        }
        Ok(())
    }

    /// A seller never holds more than the buyer knows to have signed.
    pub fn check_shown(&self, cumulative: MicroUsd) -> Result<(), Breach> {
        let durable = self.buyer.disk.highest();
        if cumulative > durable {
            let text = format!("the seller holds {cumulative}, the buyer knows of {durable}");
            return Err(Breach::new("I2", text));
        }
        Ok(())
    }

    /// C of the attempts of this life, by the scripts' windows.
    fn credit_now(&self, settled: MicroUsd) -> MicroUsd {
        let windows: MicroUsd = self.seller.sent.values().map(|(_, window)| *window).sum();
        windows.min(WindowSettings::default().pair_cap(settled))
    }

    /// A: the durable voucher as far as credit and payments cover it.
    fn held(&self) -> MicroUsd {
        let paid = self.seller.disk.settlements();
        let deposit = self.seller.credit.saturating_add(paid);
        self.seller.disk.highest().min(deposit)
    }

    fn settled_by_seller(&self) -> MicroUsd {
        let state = self.seller.state.as_ref();
        state.map_or(MicroUsd::ZERO, |state| state.machine().book().settled())
    }

    /// The value on the wire, as this life of the seller knows it. Says whether it rose.
    pub fn note_sent(&mut self, attempt: AttemptId, running: MicroUsd) -> bool {
        let Some((sent, _)) = self.seller.sent.get_mut(&attempt) else {
            return false;
        };
        let rose = running > *sent;
        *sent = running.max(*sent);
        rose
    }

    /// I1 when bytes of value leave: D ≤ A + C, with A as it is durable.
    pub fn note_delivery(&mut self, attempt: AttemptId, running: MicroUsd) {
        if !self.note_sent(attempt, running) {
            return;
        }
        let settled = self.settled_by_seller();
        let running: MicroUsd = self.seller.sent.values().map(|(sent, _)| *sent).sum();
        let delivered = settled.saturating_add(running);
        let (held, credit) = (self.held(), self.credit_now(settled));
        if delivered > held.saturating_add(credit) {
            let text = format!("delivered {delivered}, vouchers {held}, window {credit}");
            self.seller.breach = Some(Breach::new("I1", text));
        }
    }

    /// I1 when a request is admitted: A ≥ D + Σ prefill − C.
    pub fn note_admission(&mut self, attempt: AttemptId) {
        let settled = self.settled_by_seller();
        let running: MicroUsd = self.seller.sent.values().map(|(sent, _)| *sent).sum();
        let prefill = self.scripts[&attempt].prefill;
        let owed = settled.saturating_add(running).saturating_add(prefill);
        let (held, credit) = (self.held(), self.credit_now(settled));
        if owed > held.saturating_add(credit) {
            let text = format!("admits up to {owed}, vouchers {held}, window {credit}");
            self.seller.breach = Some(Breach::new("I1", text));
        }
    }

    /// When nothing fails any more: nothing waits, and both sides have booked the same (I5).
    pub fn check_rest(&self) -> Result<(), Breach> {
        let buyer = &self.buyer.state;
        let waiting = [
            ("orders", self.orders_running()),
            ("live attempts", buyer.live_count()),
            ("attempts in doubt", buyer.doubtful_count()),
            ("unsaid rows or ACCEPTs", usize::from(buyer.has_unsaid())),
            ("jobs", self.seller.jobs_running()),
            (
                "attempts without ACCEPT",
                self.seller.state.as_ref().map_or(0, |s| s.ended_count()),
            ),
        ];
        if let Some((what, count)) = waiting.iter().find(|(_, count)| *count > 0) {
            return Err(Breach::new("no rest", format!("{count} {what} are left")));
        }
        self.check_agreement()
    }

    fn check_agreement(&self) -> Result<(), Breach> {
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
        let sum = |billed: &BTreeMap<AttemptId, Option<MicroUsd>>| -> MicroUsd {
            billed.values().flatten().copied().sum()
        };
        let total = self.buyer.state.machine().book().total();
        if total != sum(&bought) || self.settled_by_seller() != sum(&sold) {
            let text = format!(
                "rows {}, buyer's book {total}, seller's {}",
                sum(&bought),
                self.settled_by_seller()
            );
            return Err(Breach::new("I5", text));
        }
        let (held, signed) = (self.seller.disk.highest(), self.buyer.disk.highest());
        if held > signed {
            return Err(Breach::new("I5", format!("{held} held of {signed} signed")));
        }
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
