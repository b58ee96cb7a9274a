//! The buyer's bookkeeper and the opening of sessions: what becomes durable before it is said.

use souk::ledger::{ChannelRow, Role, Row, VoucherRow};
use souk::protocol::SessionMessage;
use souk::types::{AttemptId, ChannelId, MicroUsd, PeerId};

use super::Plant;
use super::buyer::{CHANNEL, Phase, Then};
use super::check::Breach;
use super::wire::{ChainOpen, Conn, Msg, Side, signature};
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
        let voucher = due.map(|(channel, cumulative, _)| (channel, cumulative));
        if let Some((channel, cumulative, attempt)) = due {
            self.check_signed(&channel, cumulative)?;
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
                self.say_voucher(&channel, cumulative)?;
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
        let channel = state.channel()?;
        (wanted > state.machine().signed()).then_some((channel, wanted, None))
    }

    fn say_voucher(&mut self, channel: &ChannelId, cumulative: MicroUsd) -> Result<(), Breach> {
        if let Phase::Up(conn) = self.buyer.phase {
            self.check_sent(channel, cumulative)?;
            self.figures.vouchers += 1;
            self.send(Side::Buyer, conn, Msg::Voucher(*channel, cumulative));
        }
        Ok(())
    }

    fn turn_done(
        &mut self,
        accepts: Vec<(AttemptId, MicroUsd)>,
        voucher: Option<(ChannelId, MicroUsd)>,
    ) -> Result<(), Breach> {
        self.buyer.in_turn = false;
        if let Some((channel, cumulative)) = voucher {
            let signature = signature(cumulative);
            let state = &mut self.buyer.state;
            state.voucher_durable(&channel, cumulative, signature);
        }
        self.buyer.state.booked(accepts);
        let (mut accepts, voucher) = self.buyer.state.take_unsaid();
        accepts.sort_unstable();
        if let (Phase::Up(conn), false) = (self.buyer.phase, accepts.is_empty()) {
            self.send(Side::Buyer, conn, Msg::Accept(accepts));
        }
        if let Some(SessionMessage::Voucher {
            channel,
            cumulative,
            ..
        }) = voucher
        {
            self.say_voucher(&channel, cumulative)?;
        }
        self.buyer_tops_up();
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
                Then::Open(conn, row, on_chain) => {
                    let open = on_chain.as_ref().map(|on| {
                        Box::new(ChainOpen {
                            channel: on.channel.clone(),
                            epoch: row.epoch,
                        })
                    });
                    self.buyer.learned = MicroUsd::ZERO;
                    self.buyer.state.pay_by(*row, on_chain.map(|on| *on));
                    if self.buyer.phase == Phase::Booking(conn) {
                        self.buyer.phase = Phase::AwaitsAck(conn);
                        self.send(Side::Buyer, conn, Msg::Open(open));
                    }
                }
                Then::Raise(row, top_up) => self.raised(*row, *top_up),
                Then::Seen(events) => self.buyer_sees(&events),
                Then::Turn { accepts, voucher } => self.turn_done(accepts, voucher)?,
            }
        }
        Ok(())
    }

    /// Opens a session, its channel durable first.
    pub fn connect(&mut self, wants_orders: bool) {
        if let Phase::Up(conn) = self.buyer.phase {
            // It settles an earlier channel, and goes on with that when there is no money for another.
            if !wants_orders || self.affordable().is_none() {
                return;
            }
            self.hang_up(conn);
        }
        if self.buyer.phase != Phase::Down || self.life(Side::Seller).is_none() {
            return;
        }
        self.buyer.wants_orders = wants_orders;
        self.buyer.conns += 1;
        let conn = Conn::Session(self.buyer.conns);
        self.wires.stand(conn);
        let life = self.buyer.life;
        self.at(self.now + 10_000, Event::HandshakeTimer { life, conn });
        if self.plan.chain.is_some() {
            return self.connect_on_chain(conn);
        }
        if self.buyer.disk.channel(&CHANNEL).is_some() {
            self.buyer.phase = Phase::AwaitsAck(conn);
            return self.send(Side::Buyer, conn, Msg::Open(None));
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
            .push((number, Then::Open(conn, Box::new(row), None)));
        self.schedule_write(Side::Buyer);
    }
}
