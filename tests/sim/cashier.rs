//! What the seller makes durable before it counts: vouchers, ACCEPTs, payments.

use souk::ledger::{Role, Row, SettlementRow, VoucherRow};
use souk::types::{AttemptId, ChannelId, MicroUsd, PeerId};

use super::Plant;
use super::buyer::CHANNEL;
use super::check::Breach;
use super::seller::Then;
use super::wire::{Conn, Msg, Side, signature};
use super::world::World;

impl World {
    /// Makes a voucher durable, then raises A by it; stale ones change nothing.
    pub fn store_voucher(
        &mut self,
        conn: Conn,
        cumulative: MicroUsd,
        then: Then,
    ) -> Result<(), Breach> {
        let Some(id) = self.seller.about.get(&conn).copied() else {
            return Ok(());
        };
        let Some(pair) = self.seller.pair(&id) else {
            return Ok(());
        };
        let shown_by_sync = matches!(then, Then::Sync(..));
        match pair.state.wants(cumulative, shown_by_sync) {
            Ok(true) => {}
            Ok(false) => return self.seller_then(None, then),
            Err(error) => {
                self.say(|| format!("Seller refuses: {error}"));
                self.send(Side::Seller, conn, Msg::Refused);
                return Ok(());
            }
        }
        self.book_channel(&id);
        let number = self.seller.disk.submit(Row::Voucher(VoucherRow {
            at_ms: self.now,
            role: Role::Sell,
            channel: id,
            cumulative,
            signature: signature(cumulative).0,
            attempt: None,
        }));
        self.schedule_write(Side::Seller);
        if self.plant == Some(Plant::CreditedBeforePersist) {
            self.credit_voucher(&id, cumulative);
        }
        self.seller
            .then
            .push((number, Some((id, cumulative)), then));
        Ok(())
    }

    /// Books accepted costs; what does not wait for an ACCEPT is only acknowledged.
    pub fn seller_accepts(&mut self, conn: Conn, items: &[(AttemptId, MicroUsd)]) {
        let pairs = self.seller.pairs.iter();
        let rows: Vec<_> = pairs
            .flat_map(|pair| pair.state.finals_of(items, self.now))
            .collect();
        let costs = rows
            .iter()
            .map(|row| (row.attempt_id, row.billed))
            .collect();
        let all: Vec<AttemptId> = items.iter().map(|(attempt, _)| *attempt).collect();
        let mut last = 0;
        for row in rows {
            last = self.seller.disk.submit(Row::Final(row));
        }
        if last == 0 {
            return self.send(Side::Seller, conn, Msg::AcceptAck(all));
        }
        self.seller
            .then
            .push((last, None, Then::Accepted(conn, costs, all)));
        self.schedule_write(Side::Seller);
    }

    /// The buyer paid outside: the payment is durable before the deposit rises.
    pub fn seller_settles(&mut self) {
        if self.life(Side::Seller).is_none() || self.seller.pair(&CHANNEL).is_none() {
            return;
        }
        let amount = MicroUsd(self.rng.between(1, 50_000));
        self.book_channel(&CHANNEL);
        let number = self.seller.disk.submit(Row::Settlement(SettlementRow {
            at_ms: self.now,
            role: Role::Sell,
            channel: CHANNEL,
            peer: PeerId::from_bytes(&[0, 1, 0]).expect("an identity multihash"),
            amount,
            note: String::new(),
        }));
        self.seller.then.push((number, None, Then::Paid(amount)));
        self.schedule_write(Side::Seller);
    }

    /// Rows became durable: what waited for them happens.
    pub fn seller_durable(&mut self) -> Result<(), Breach> {
        let written = self.seller.disk.written();
        let (ready, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.seller.then)
            .into_iter()
            .partition(|(number, _, _)| *number <= written);
        self.seller.then = later;
        for (_, voucher, then) in ready {
            self.seller_then(voucher, then)?;
        }
        Ok(())
    }

    fn seller_then(
        &mut self,
        voucher: Option<(ChannelId, MicroUsd)>,
        then: Then,
    ) -> Result<(), Breach> {
        if let Some((id, cumulative)) = voucher {
            // The deposit may have fallen meanwhile only by a restart, which ends this.
            self.credit_voucher(&id, cumulative);
        }
        match then {
            Then::VoucherAck(conn) => self.send(Side::Seller, conn, Msg::VoucherAck),
            Then::Sync(conn, theirs) => self.answer_sync(conn, &theirs),
            Then::Accepted(conn, costs, all) => {
                for (attempt, cost) in costs {
                    let now = self.now;
                    let mut pairs = self.seller.pairs.iter_mut();
                    if let Some(pair) = pairs.find(|pair| pair.state.awaits(&attempt)) {
                        pair.state.accepted(&attempt, cost, now);
                    }
                    self.seller.sent.remove(&attempt);
                }
                self.send(Side::Seller, conn, Msg::AcceptAck(all));
                self.retry_held();
            }
            Then::Receipt(attempt, ended) => {
                let bytes = ended.receipt.clone().unwrap_or_default();
                if let Some(state) = self.seller.paid_by(&attempt) {
                    state.end(attempt, *ended);
                }
                self.seller.jobs.remove(&attempt);
                self.send(Side::Seller, Conn::Infer(attempt), Msg::Usage(bytes));
            }
            Then::Paid(amount) => {
                if let Some(pair) = self.seller.pair_mut(&CHANNEL) {
                    pair.state.add_settlement(amount);
                }
                self.tell_deposit();
            }
            Then::TopUp(id, top_up) => self.top_up_durable(&id, *top_up),
            Then::Sent(intent) => self.intent_durable(*intent),
            Then::Signed(nonce, raw) => self.signed_durable(nonce, &raw),
            Then::Seen(events) => self.seller_sees(&events),
        }
        Ok(())
    }
}
