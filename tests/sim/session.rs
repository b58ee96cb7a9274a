//! Both ends of the session: OPEN, SYNC, then vouchers, receipts and ACCEPTs as they arise.

use souk::payment::WindowSettings;
use souk::payment::payee::PayeeState;
use souk::payment::payee::state::is_unknown;
use souk::payment::payer::doubt::{Shown, repeated_cost};
use souk::payment::payer::state::Verdict;
use souk::protocol::session::{SyncBuyer, SyncSeller};
use souk::types::{AttemptId, MicroUsd};

use super::Plant;
use super::buyer::{CHANNEL, Phase};
use super::check::Breach;
use super::seller::Then;
use super::wire::{Conn, Msg, Side, read_receipt, signature, sorted};
use super::world::World;

impl World {
    /// A message of the seller's.
    pub fn buyer_session(&mut self, conn: Conn, msg: Msg) -> Result<(), Breach> {
        match msg {
            Msg::OpenAck { deposit } if self.buyer.phase == Phase::AwaitsAck(conn) => {
                self.buyer.state.hear_deposit(deposit);
                self.buyer.told = deposit;
                self.buyer.phase = Phase::AwaitsSync(conn);
                let mut sync = self.buyer.state.sync(CHANNEL);
                sync.open.sort_unstable();
                if let Some((cumulative, _)) = sync.voucher {
                    self.check_sent(cumulative)?;
                }
                self.send(Side::Buyer, conn, Msg::SyncBuyer(sync));
            }
            Msg::SyncSeller(sync) if self.buyer.phase == Phase::AwaitsSync(conn) => {
                self.buyer_syncs(*sync)?;
                self.buyer.phase = Phase::Up(conn);
                self.buyer.state.stand_up();
                self.wake();
            }
            Msg::SyncSeller(sync) => self.buyer_syncs(*sync)?,
            Msg::Refused => {
                self.cut(conn);
            }
            Msg::Receipt(bytes) => {
                let (attempt, claim) = read_receipt(&bytes);
                self.buyer_judges(attempt, Shown::Receipt(claim));
            }
            Msg::AcceptAck(attempts) => self.buyer.state.acknowledged(&attempts),
            _ => {}
        }
        Ok(())
    }

    fn buyer_syncs(&mut self, sync: SyncSeller) -> Result<(), Breach> {
        self.buyer.told = sync.deposit;
        for row in self.buyer.state.deposit_rows(&sync, self.now) {
            self.buyer.disk.submit(row);
            self.schedule_write(Side::Buyer);
        }
        self.buyer.state.learn_deposit(sync.deposit);
        if let Some((cumulative, signature)) = sync.voucher {
            self.check_shown(cumulative)?;
            self.buyer
                .state
                .learn_voucher(cumulative, signature, sync.accepted);
        }
        for attempt in sync.unknown {
            self.buyer_judges(attempt, Shown::Unknown);
        }
        for item in sync.open {
            let shown = match item.receipt {
                Some(bytes) => Shown::Receipt(read_receipt(&bytes).1),
                None => Shown::Lost,
            };
            self.buyer_judges(item.attempt, shown);
        }
        Ok(())
    }

    fn buyer_judges(&mut self, attempt: AttemptId, shown: Shown) {
        let accept = shown != Shown::Unknown;
        match self.buyer.state.judge(&attempt, shown, None, self.now) {
            Verdict::Settled(row) => {
                self.say(|| format!("Buyer settles {attempt} with {}", row.billed));
                self.buyer.state.book(*row, accept);
                self.wake();
            }
            Verdict::UnderWay => {}
            Verdict::AskLedger => {
                let known = self.buyer.disk.attempt(&attempt);
                let Some(cost) = repeated_cost(known) else {
                    return;
                };
                if self.plant == Some(Plant::DoubleChargeAfterRestart)
                    && self.buyer.life > 1
                    && let (Shown::Receipt(claim), Some(known)) = (shown, known)
                {
                    let mut row = known.final_row.clone().expect("a booked attempt");
                    row.billed = claim;
                    self.buyer.state.book(row, true);
                    return self.wake();
                }
                self.buyer.state.accept(attempt, cost);
                self.wake();
            }
        }
    }

    pub fn handshake_late(&mut self, conn: Conn) {
        let waits = [
            Phase::Booking(conn),
            Phase::AwaitsAck(conn),
            Phase::AwaitsSync(conn),
        ];
        if waits.contains(&self.buyer.phase) {
            self.cut(conn);
            self.buyer.phase = Phase::Down;
        }
    }

    /// What is in doubt is looked after.
    pub fn buyer_tick(&mut self) {
        if !self.buyer.state.in_doubt() {
            return;
        }
        let Phase::Up(conn) = self.buyer.phase else {
            return self.connect();
        };
        if let Some(mut sync) = self.buyer.state.sync_again() {
            sync.open.sort_unstable();
            self.send(Side::Buyer, conn, Msg::SyncBuyer(sync));
        }
    }

    /// A message of the buyer's.
    pub fn seller_session(&mut self, conn: Conn, msg: Msg) -> Result<(), Breach> {
        match msg {
            Msg::Open => {
                let credit = self.seller.credit;
                let fresh = || PayeeState::new(WindowSettings::default(), credit);
                let state = self.seller.state.get_or_insert_with(fresh);
                let deposit = state.machine().deposit();
                self.send(Side::Seller, conn, Msg::OpenAck { deposit });
            }
            Msg::SyncBuyer(theirs) => {
                let voucher = theirs.voucher.map(|(cumulative, _)| cumulative);
                let shown = voucher.unwrap_or(MicroUsd::ZERO);
                self.store_voucher(conn, shown, Then::Sync(conn, theirs))?;
            }
            Msg::Voucher(cumulative) => {
                self.store_voucher(conn, cumulative, Then::VoucherAck(conn))?;
            }
            Msg::Accept(items) => self.seller_accepts(conn, &items),
            _ => {}
        }
        Ok(())
    }

    /// SYNC as the seller sees it.
    pub fn answer_sync(&mut self, conn: Conn, theirs: &SyncBuyer) {
        let Some(state) = &self.seller.state else {
            return;
        };
        let disk = &self.seller.disk;
        let unknown = theirs
            .open
            .iter()
            .filter(|attempt| !state.knows(attempt) && is_unknown(disk.attempt(attempt)))
            .copied()
            .collect();
        let sync = state.sync(CHANNEL, sorted(state.waiting()), unknown);
        self.seller.session = Some(conn);
        self.send(Side::Seller, conn, Msg::SyncSeller(Box::new(sync)));
    }

    /// Receipts without ACCEPT are shown again.
    pub fn seller_tick(&mut self) {
        let (Some(state), Some(conn)) = (&self.seller.state, self.seller.session) else {
            return;
        };
        let (mut receipts, lost) = state.repeats();
        let lost = (!lost.is_empty()).then(|| state.sync(CHANNEL, sorted(lost), Vec::new()));
        receipts.sort_unstable();
        for bytes in receipts {
            self.send(Side::Seller, conn, Msg::Receipt(bytes));
        }
        if let Some(sync) = lost {
            self.send(Side::Seller, conn, Msg::SyncSeller(Box::new(sync)));
        }
    }

    /// Tells a connected buyer what its deposit is now.
    pub fn tell_deposit(&mut self) {
        if let (Some(state), Some(conn)) = (&self.seller.state, self.seller.session) {
            let sync = state.sync(CHANNEL, Vec::new(), Vec::new());
            self.send(Side::Seller, conn, Msg::SyncSeller(Box::new(sync)));
        }
    }

    /// A durable voucher counts, and wakes what waits for it.
    pub fn credit_voucher(&mut self, cumulative: MicroUsd) {
        if let Some(state) = &mut self.seller.state
            && state.credit(cumulative, signature(cumulative))
        {
            self.retry_held();
        }
    }
}
