//! Both ends of the session: OPEN, SYNC, then vouchers, receipts and ACCEPTs as they arise.

use souk::ledger::{ChannelRow, Role};
use souk::payment::WindowSettings;
use souk::payment::payee::PayeeState;
use souk::payment::payee::state::is_unknown;
use souk::payment::payee::tried::Tried;
use souk::payment::payer::doubt::{Shown, repeated_cost};
use souk::payment::payer::state::Verdict;
use souk::protocol::session::{SyncBuyer, SyncSeller};
use souk::types::{AttemptId, ChannelId, MicroUsd, PeerId};

use super::Plant;
use super::buyer::{CHANNEL, Phase};
use super::check::Breach;
use super::seller::{Pair, Then};
use super::wire::{Conn, Msg, Side, read_receipt, signature, sorted};
use super::world::World;

impl World {
    /// A message of the seller's.
    pub fn buyer_session(&mut self, conn: Conn, msg: Msg) -> Result<(), Breach> {
        match msg {
            Msg::OpenAck { deposit } if self.buyer.phase == Phase::AwaitsAck(conn) => {
                let (now, wish) = (self.now, self.buyer.wants_orders);
                if !self.buyer.state.opened_session(deposit, wish, now) {
                    self.channel_is_over(conn);
                    return Ok(());
                }
                if self.plan.chain.is_none() {
                    self.buyer.told = deposit;
                }
                self.buyer.phase = Phase::AwaitsSync(conn);
                let channel = self.buyer.state.channel().unwrap_or(CHANNEL);
                let mut sync = self.buyer.state.sync(channel);
                sync.open.sort_unstable();
                if let Some((cumulative, _)) = sync.voucher {
                    self.check_sent(&channel, cumulative)?;
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
            Msg::Refused => self.hang_up(conn),
            Msg::Close(channel, _) => self.buyer.state.end(&channel),
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
        if self.buyer.state.channel() != Some(sync.channel) {
            if let Phase::Up(conn) = self.buyer.phase {
                self.hang_up(conn);
            }
            return Ok(());
        }
        if self.plan.chain.is_none() {
            self.buyer.told = sync.deposit;
        }
        for row in self.buyer.state.deposit_rows(&sync, self.now) {
            self.buyer.disk.submit(row);
            self.schedule_write(Side::Buyer);
        }
        self.buyer.state.learn_deposit(sync.deposit);
        if let Some((cumulative, signature)) = sync.voucher {
            self.check_shown(&sync.channel, cumulative)?;
            self.buyer.learned = self.buyer.learned.max(cumulative);
            let (channel, accepted) = (sync.channel, sync.accepted);
            let state = &mut self.buyer.state;
            state.learn_voucher(&channel, cumulative, signature, accepted);
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
            return self.connect(false);
        };
        if let Some(mut sync) = self.buyer.state.sync_again() {
            sync.open.sort_unstable();
            self.send(Side::Buyer, conn, Msg::SyncBuyer(sync));
        }
    }

    /// A message of the buyer's.
    pub fn seller_session(&mut self, conn: Conn, msg: Msg) -> Result<(), Breach> {
        match msg {
            Msg::Open(Some(open)) => self.open_on_chain(conn, *open),
            Msg::Open(None) => self.open_credit(conn),
            Msg::SyncBuyer(theirs) => {
                // A voucher of a channel that is over is worth nothing more.
                let voucher = theirs.voucher.filter(|_| !self.is_over(conn));
                let shown = voucher.map_or(MicroUsd::ZERO, |(cumulative, _)| cumulative);
                self.lost_and_shown(conn, shown);
                self.store_voucher(conn, shown, Then::Sync(conn, theirs))?;
            }
            Msg::Voucher(channel, cumulative) if self.is_about(conn, &channel) => {
                self.store_voucher(conn, cumulative, Then::VoucherAck(conn))?;
            }
            Msg::TopUp(top_up) if self.is_about(conn, &top_up.channel) => {
                self.take_top_up(*top_up);
            }
            Msg::Close(channel, last) if self.is_about(conn, &channel) => {
                self.take_close(&channel, last);
            }
            Msg::Accept(items) => self.seller_accepts(conn, &items),
            _ => {}
        }
        Ok(())
    }

    /// A book of IOUs; its row waits for the first order.
    fn open_credit(&mut self, conn: Conn) {
        let credit = self.seller.credit;
        if self.seller.pairs.is_empty() {
            let row = ChannelRow {
                at_ms: self.now,
                role: Role::Sell,
                channel: CHANNEL,
                peer: PeerId::from_bytes(&[0, 1, 0]).expect("an identity multihash"),
                mode: "credit".to_owned(),
                descriptor: Vec::new(),
                epoch: 0,
                deposit: credit,
                open_signature: [0; 64],
            };
            self.seller.pairs.push(Pair {
                id: CHANNEL,
                state: PayeeState::new(WindowSettings::default(), credit),
                unbooked: Some(row),
                is_agreed: true,
                tried: Tried::default(),
            });
        }
        self.seller.about.insert(conn, CHANNEL);
        let deposit = self.seller.pairs[0].state.machine().deposit();
        self.send(Side::Seller, conn, Msg::OpenAck { deposit });
    }

    fn is_about(&self, conn: Conn, channel: &ChannelId) -> bool {
        self.seller.about.get(&conn) == Some(channel)
    }

    /// SYNC as the seller sees it, with what waits on the buyer's earlier channels.
    pub fn answer_sync(&mut self, conn: Conn, theirs: &SyncBuyer) {
        let Some(id) = self.seller.about.get(&conn).copied() else {
            return;
        };
        let (pairs, disk) = (&self.seller.pairs, &self.seller.disk);
        let Some(pair) = self.seller.pair(&id) else {
            return;
        };
        let knows = |attempt: &AttemptId| pairs.iter().any(|pair| pair.state.knows(attempt));
        let unknown = theirs
            .open
            .iter()
            .filter(|attempt| !knows(attempt) && is_unknown(disk.attempt(attempt)))
            .copied()
            .collect();
        let waiting = pairs.iter().flat_map(|pair| pair.state.waiting()).collect();
        let sync = pair.state.sync(id, sorted(waiting), unknown);
        self.seller.session = Some(conn);
        self.send(Side::Seller, conn, Msg::SyncSeller(Box::new(sync)));
        if !self.is_over(conn) {
            self.agree(&id);
        }
    }

    /// True when the channel of a session is over.
    fn is_over(&self, conn: Conn) -> bool {
        let id = self.seller.about.get(&conn);
        let pair = id.and_then(|id| self.seller.pair(id));
        pair.is_some_and(|pair| pair.state.is_over(self.now))
    }

    /// Receipts without ACCEPT are shown again.
    pub fn seller_tick(&mut self) {
        let Some(conn) = self.seller.session else {
            return;
        };
        let Some(id) = self.seller.about.get(&conn).copied() else {
            return;
        };
        let (mut receipts, mut lost) = (Vec::new(), Vec::new());
        for pair in &self.seller.pairs {
            let (more, more_lost) = pair.state.repeats();
            receipts.extend(more);
            lost.extend(more_lost);
        }
        let pair = self.seller.pair(&id).filter(|_| !lost.is_empty());
        let lost = pair.map(|pair| pair.state.sync(id, sorted(lost), Vec::new()));
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
        if let (Some(pair), Some(conn)) = (self.seller.pair(&CHANNEL), self.seller.session) {
            let sync = pair.state.sync(CHANNEL, Vec::new(), Vec::new());
            self.send(Side::Seller, conn, Msg::SyncSeller(Box::new(sync)));
        }
    }

    /// A durable voucher counts, and wakes what waits for it.
    pub fn credit_voucher(&mut self, id: &ChannelId, cumulative: MicroUsd) {
        if let Some(pair) = self.seller.pair_mut(id)
            && pair.state.credit(cumulative, signature(cumulative))
        {
            self.retry_held();
        }
    }
}
