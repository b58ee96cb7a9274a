//! The buyer's bookkeeper and the opening of sessions: what becomes durable before it is said.

use souk::ledger::{ChannelRow, Role, Row, VoucherRow};
use souk::protocol::SessionMessage;
use souk::types::{AttemptId, ChannelId, MicroUsd, PeerId};

use super::Plant;
use super::buyer::{CHANNEL, Phase, Then};
use super::check::Breach;
use super::wire::{Conn, Msg, Side, signature};
use super::world::{Event, World};

/// The longest linger of the bookkeeper, ms.
const LINGER: u64 = 16;

impl World {
    pub fn wake_if_due(&mut self) {
        if self.buyer.state.due_voucher().is_some() {
            self.wake();
        }
    }

    /// Wakes the bookkeeper; it lingers a moment.
    pub fn wake(&mut self) {
        self.buyer.due = true;
        if !self.buyer.in_turn {
            let life = self.buyer.life;
            let after = self.rng.between(0, LINGER);
            self.at(self.now + after, Event::BuyerTurn { life });
        }
    }

    /// One turn of the bookkeeper: finals and at most one voucher, durable before anything is said.
    pub fn buyer_turn(&mut self) -> Result<(), Breach> {
        if self.buyer.in_turn || !self.buyer.due {
            return Ok(());
        }
        self.buyer.due = false;
        self.buyer.in_turn = true;
        let finals = self.buyer.state.take_finals();
        let mut last = 0;
        let mut accepts = Vec::new();
        for (row, accept) in finals {
            if accept {
                accepts.push((row.attempt_id, row.billed));
            }
            last = self.buyer.disk.submit(Row::Final(row));
        }
        let due = self.due_voucher();
        let voucher = due.map(|(_, cumulative, _)| cumulative);
        if let Some((channel, cumulative, attempt)) = due {
            self.check_signed(cumulative)?;
            let signature = signature(cumulative).0;
            last = self.buyer.disk.submit(Row::Voucher(VoucherRow {
                at_ms: self.now,
                role: Role::Buy,
                channel,
                cumulative,
                signature,
                attempt,
            }));
            if self.plant == Some(Plant::SentBeforePersist) {
                self.say_voucher(cumulative)?;
            }
        }
        if last == 0 {
            return self.turn_done(Vec::new(), None);
        }
        self.buyer
            .then
            .push((last, Then::Turn { accepts, voucher }));
        self.schedule_write(Side::Buyer);
        Ok(())
    }

    fn due_voucher(&self) -> Option<(ChannelId, MicroUsd, Option<AttemptId>)> {
        let state = &self.buyer.state;
        if self.plant != Some(Plant::NoDepositCap) {
            return state.due_voucher();
        }
        let book = state.machine().book();
        let wanted = book
            .total()
            .saturating_add(book.window().max(book.pending()));
        (wanted > state.machine().signed()).then_some((CHANNEL, wanted, None))
    }

    fn say_voucher(&mut self, cumulative: MicroUsd) -> Result<(), Breach> {
        if let Phase::Up(conn) = self.buyer.phase {
            self.check_sent(cumulative)?;
            self.figures.vouchers += 1;
            self.send(Side::Buyer, conn, Msg::Voucher(cumulative));
        }
        Ok(())
    }

    fn turn_done(
        &mut self,
        accepts: Vec<(AttemptId, MicroUsd)>,
        voucher: Option<MicroUsd>,
    ) -> Result<(), Breach> {
        self.buyer.in_turn = false;
        if let Some(cumulative) = voucher {
            let signature = signature(cumulative);
            self.buyer.state.voucher_durable(cumulative, signature);
        }
        self.buyer.state.booked(accepts);
        let (mut accepts, voucher) = self.buyer.state.take_unsaid();
        accepts.sort_unstable();
        if let (Phase::Up(conn), false) = (self.buyer.phase, accepts.is_empty()) {
            self.send(Side::Buyer, conn, Msg::Accept(accepts));
        }
        if let Some(SessionMessage::Voucher { cumulative, .. }) = voucher {
            self.say_voucher(cumulative)?;
        }
        if self.buyer.due {
            self.wake();
        }
        Ok(())
    }

    /// Rows became durable: what waited for them happens.
    pub fn buyer_durable(&mut self) -> Result<(), Breach> {
        let written = self.buyer.disk.written();
        let (ready, later) = std::mem::take(&mut self.buyer.then)
            .into_iter()
            .partition(|(number, _)| *number <= written);
        self.buyer.then = later;
        for (_, then) in ready {
            match then {
                Then::Open(conn, row) => {
                    self.buyer.state.pay_by(*row, None);
                    if self.buyer.phase == Phase::Booking(conn) {
                        self.buyer.phase = Phase::AwaitsAck(conn);
                        self.send(Side::Buyer, conn, Msg::Open);
                    }
                }
                Then::Turn { accepts, voucher } => self.turn_done(accepts, voucher)?,
            }
        }
        Ok(())
    }

    /// Opens a session, its channel durable first.
    pub fn connect(&mut self) {
        if self.buyer.phase != Phase::Down || self.life(Side::Seller).is_none() {
            return;
        }
        self.buyer.conns += 1;
        let conn = Conn::Session(self.buyer.conns);
        self.wires.stand(conn);
        let life = self.buyer.life;
        self.at(self.now + 10_000, Event::HandshakeTimer { life, conn });
        if self.buyer.disk.load().is_some() {
            self.buyer.phase = Phase::AwaitsAck(conn);
            return self.send(Side::Buyer, conn, Msg::Open);
        }
        self.buyer.phase = Phase::Booking(conn);
        let row = ChannelRow {
            at_ms: self.now,
            role: Role::Buy,
            channel: CHANNEL,
            peer: PeerId::from_bytes(&[0, 1, 1]).expect("an identity multihash"),
            mode: "credit".to_owned(),
            descriptor: Vec::new(),
            epoch: 0,
            deposit: self.seller.credit,
            open_signature: [0; 64],
        };
        let number = self.buyer.disk.submit(Row::Channel(row.clone()));
        self.buyer
            .then
            .push((number, Then::Open(conn, Box::new(row))));
        self.schedule_write(Side::Buyer);
    }
}
