//! The seller's hand on the chain: openings, higher deposits and vouchers brought there through the
//! production outbox. What a node's tasks do around [`PayeeState`] and [`Outbox`].

use souk::chain::journal::{Intent, Record};
use souk::chain::outbox::Wanted;
use souk::chain::watcher::ChainEvent;
use souk::ledger::{ChannelRow, Role, Row};
use souk::payment::WindowSettings;
use souk::payment::onchain::{Due, Level, OnChannel};
use souk::payment::payee::PayeeState;
use souk::payment::payee::on_chain::{Hubbed, LastWord};
use souk::payment::payee::tried::Tried;
use souk::protocol::voucher::TopUp;
use souk::types::{ChannelId, IntentId, MicroUsd, PeerId, Purpose};

use super::Plant;
use super::chain::HUB;
use super::contract::Call;
use super::seller::{Pair, Then};
use super::watch::channel_of;
use super::wire::{ChainOpen, Conn, Msg, Side, signature};
use super::world::World;

/// What an opening must still have of its life, seconds.
const VALID_LEAST_S: u64 = 5;
impl World {
    /// OPEN on a chain: the channel that is known, or a new one beside those that end.
    pub fn open_on_chain(&mut self, conn: Conn, open: ChainOpen) {
        let id = open.channel.id();
        if self.seller.pair(&id).is_some() {
            // Also one that is over: its last ACCEPTs may be missing.
            return self.ack_open(conn, id);
        }
        if let Some(other) = self.seller.current()
            && !other.state.is_over(self.now)
            && !other.state.has_ended()
        {
            self.say(|| "Seller refuses a second channel".to_owned());
            return self.send(Side::Seller, conn, Msg::Refused);
        }
        let mut channel = open.channel;
        channel.consumed = channel.opening.open_fee;
        let mut on = OnChannel::new(channel.clone());
        on.standing = self.seller.disk.standing(&id);
        on.view = on.standing.view();
        let opening = &channel.opening;
        let Some(plan) = self.plan.chain.as_ref() else {
            return;
        };
        let is_late = opening.valid_before_s < self.now / 1_000 + VALID_LEAST_S;
        let is_cheap = opening.open_fee < plan.rules.open_fee;
        if on.view.opened == Level::No && (is_late || is_cheap) {
            return self.send(Side::Seller, conn, Msg::Refused);
        }
        let row = ChannelRow {
            at_ms: self.now,
            role: Role::Sell,
            channel: id,
            peer: PeerId::from_bytes(&[0, 1, 0]).expect("an identity multihash"),
            mode: "channel".to_owned(),
            descriptor: channel.to_bytes(),
            epoch: open.epoch,
            deposit: opening.deposit,
            open_signature: [0; 64],
        };
        let is_closed = on.view.closed > Level::No;
        let deposit = row.deposit;
        let hubbed = Hubbed::new(on, plan.rules, self.now);
        let state = PayeeState::new(WindowSettings::default(), deposit).with_chain(hubbed);
        let pair = Pair {
            id,
            state,
            unbooked: Some(row),
            is_agreed: false,
            tried: Tried::default(),
        };
        // One that is closed and forgotten here is only for what the buyer has in doubt on it.
        let place = if is_closed {
            0
        } else {
            self.seller.pairs.len()
        };
        self.seller.pairs.insert(place, pair);
        self.seller.is_new.insert(conn);
        self.ack_open(conn, id);
    }

    /// A deposit of 0 says that the channel is over.
    fn ack_open(&mut self, conn: Conn, id: ChannelId) {
        let Some(pair) = self.seller.pair(&id) else {
            return;
        };
        let deposit = if pair.state.is_over(self.now) {
            MicroUsd::ZERO
        } else {
            pair.state.machine().deposit()
        };
        self.seller.about.insert(conn, id);
        self.send(Side::Seller, conn, Msg::OpenAck { deposit });
    }

    /// A channel that this ledger lost: what the buyer signed counts as delivered.
    pub fn lost_and_shown(&mut self, conn: Conn, shown: MicroUsd) {
        let Some(id) = self.seller.about.get(&conn).copied() else {
            return;
        };
        if !self.seller.is_new.remove(&conn) || shown == MicroUsd::ZERO {
            return;
        }
        self.adopted.insert(id);
        if let Some(pair) = self.seller.pair_mut(&id) {
            let channel = pair.state.adopt_lost(shown);
            if let (Some(row), Some(channel)) = (pair.unbooked.as_mut(), channel) {
                row.descriptor = channel.to_bytes();
            }
        }
    }

    /// The handshake is over: the channel may be brought to the chain.
    pub fn agree(&mut self, id: &ChannelId) {
        if let Some(pair) = self.seller.pair_mut(id) {
            pair.is_agreed = true;
        }
        self.treasurer();
    }

    /// A higher deposit: its row is durable before a voucher may make use of it.
    pub fn take_top_up(&mut self, top_up: TopUp) {
        let id = top_up.channel;
        let Some(pair) = self.seller.pair(&id) else {
            return;
        };
        if !pair.state.wants_top_up(top_up.deposit) {
            return;
        }
        if top_up.deposit <= pair.state.machine().deposit() {
            return self.top_up_durable(&id, top_up);
        }
        self.book_channel(&id);
        let Some(row) = self.row_of(&id) else {
            return;
        };
        let row = ChannelRow {
            at_ms: self.now,
            deposit: top_up.deposit,
            ..row
        };
        let number = self.seller.disk.submit(Row::Channel(row));
        let then = Then::TopUp(id, Box::new(top_up));
        self.seller.then.push((number, None, then));
        self.schedule_write(Side::Seller);
    }

    /// The channel's row as it is or will be on the disk.
    fn row_of(&self, id: &ChannelId) -> Option<ChannelRow> {
        let pair = self.seller.pair(id)?;
        let channel = pair.state.channel()?;
        Some(ChannelRow {
            at_ms: self.now,
            role: Role::Sell,
            channel: *id,
            peer: PeerId::from_bytes(&[0, 1, 0]).expect("an identity multihash"),
            mode: "channel".to_owned(),
            descriptor: channel.to_bytes(),
            epoch: 0,
            deposit: pair.state.machine().deposit(),
            open_signature: [0; 64],
        })
    }

    pub fn top_up_durable(&mut self, id: &ChannelId, top_up: TopUp) {
        if let Some(pair) = self.seller.pair_mut(id) {
            pair.state.top_up(top_up);
        }
        self.treasurer();
    }

    /// The buyer wants the end.
    pub fn take_close(&mut self, id: &ChannelId, last: Option<MicroUsd>) {
        let last = last.map(|sum| (sum, signature(sum)));
        if let Some(pair) = self.seller.pair_mut(id) {
            pair.state.take_close(last);
        }
        self.treasurer();
    }

    pub fn seller_sees(&mut self, events: &[ChainEvent]) {
        self.seller.watch_busy = false;
        for event in events {
            let Some(id) = channel_of(event) else {
                continue;
            };
            if let Some(pair) = self.seller.pair_mut(&id) {
                pair.state.chain_event(event);
            }
        }
        self.retry_held();
        self.treasurer();
    }

    /// What is due on the chain, channel by channel.
    pub fn treasurer(&mut self) {
        let Some(rules) = self.plan.chain.as_ref().map(|plan| plan.rules) else {
            return;
        };
        let ids: Vec<_> = self.seller.pairs.iter().map(|pair| pair.id).collect();
        for id in ids {
            if self.seller.pair(&id).is_none_or(|pair| !pair.is_agreed) {
                continue;
            }
            self.bring_opening(&id);
            self.bring_top_up(&id);
            let facts = pair_facts(&self.seller, &id);
            match facts.map_or(Due::Nothing, |facts| rules.due(&facts, self.now)) {
                Due::Nothing => {}
                Due::Settle { .. } => self.bring_claim(&id, false),
                Due::Close => self.close_channel(&id),
            }
        }
        let last = self.seller.pairs.last().map(|pair| pair.id);
        let pairs = &mut self.seller.pairs;
        pairs.retain(|pair| Some(pair.id) == last || pair.state.is_needed());
    }

    fn bring_opening(&mut self, id: &ChannelId) {
        let state = self.seller.pair(id).map(|pair| &pair.state);
        let Some(channel) = state.and_then(PayeeState::to_open).cloned() else {
            return;
        };
        self.book_channel(id);
        self.schedule_write(Side::Seller);
        let call = Call::Open(Box::new(channel));
        match self.submit(id, Purpose::Open, MicroUsd::ZERO, call) {
            Err("ChannelExists") => self.note(id, Purpose::Open, MicroUsd::ZERO),
            Err(why) => {
                self.say(|| format!("the opening of {id} is refused: {why}"));
                let pair = self.seller.pair_mut(id);
                if pair.is_some_and(|pair| pair.tried.refused()) {
                    self.give_up(id);
                }
            }
            Ok(()) => {}
        }
    }

    /// The chain will not have it: what was served on trust is lost.
    fn give_up(&mut self, id: &ChannelId) {
        if let Some(pair) = self.seller.pair_mut(id) {
            pair.state.give_up();
        }
        if let Some(conn) = self.seller.session {
            self.send(Side::Seller, conn, Msg::Refused);
        }
        self.retry_held();
    }

    fn bring_top_up(&mut self, id: &ChannelId) {
        let state = self.seller.pair(id).map(|pair| &pair.state);
        let due = state.and_then(PayeeState::to_top_up);
        let Some((channel, top_up)) = due.map(|(c, t)| (c.clone(), t.clone())) else {
            return;
        };
        let deposit = top_up.deposit;
        let call = Call::TopUp(Box::new(channel), top_up);
        if let Err(why) = self.submit(id, Purpose::TopUp, deposit, call) {
            self.say(|| format!("the top-up of {id} is refused: {why}"));
            if let Some(pair) = self.seller.pair_mut(id) {
                pair.state.drop_top_up();
            }
        }
    }

    fn bring_claim(&mut self, id: &ChannelId, at_the_end: bool) {
        let Some(pair) = self.seller.pair(id) else {
            return;
        };
        let claimed = if self.plant == Some(Plant::ClaimsPrepayment) {
            let highest = pair.state.machine().promised();
            Some((highest, signature(highest)))
        } else {
            pair.state.claimed(at_the_end)
        };
        let (sum, by) = claimed.unwrap_or((MicroUsd::ZERO, signature(MicroUsd::ZERO)));
        if at_the_end {
            let _ = self.submit(id, Purpose::Close, sum, Call::Close(*id, sum, by));
        } else if claimed.is_some() {
            self.check_claim(id, sum);
            let _ = self.submit(id, Purpose::Settle, sum, Call::Settle(*id, sum, by));
        }
    }

    fn close_channel(&mut self, id: &ChannelId) {
        let conn = self.seller.session;
        let is_connected = conn.is_some_and(|conn| self.seller.about.get(&conn) == Some(id));
        let now = self.now;
        let Some(pair) = self.seller.pair_mut(id) else {
            return;
        };
        match pair.state.last_word(is_connected, now) {
            LastWord::Enough => self.bring_claim(id, true),
            LastWord::Awaited => {}
            LastWord::Ask => {
                if let Some(conn) = conn {
                    self.send(Side::Seller, conn, Msg::Close(*id, None));
                }
            }
        }
    }

    fn note(&mut self, id: &ChannelId, purpose: Purpose, sum: MicroUsd) {
        let now = self.now;
        if let Some(pair) = self.seller.pair_mut(id) {
            pair.tried.note(purpose, sum, now);
        }
    }

    /// Hands a call to the outbox; an error is what the contract would say to it.
    fn submit(
        &mut self,
        id: &ChannelId,
        purpose: Purpose,
        sum: MicroUsd,
        call: Call,
    ) -> Result<(), &'static str> {
        let pair = self.seller.pair(id);
        let lately = pair.is_none_or(|pair| pair.tried.lately(purpose, sum, self.now));
        if lately || self.seller.outbox_waits > 0 || !self.rpc_answers() {
            return Ok(());
        }
        let (Some(chain), Some(outbox)) = (&mut self.chain, &self.seller.outbox) else {
            return Ok(());
        };
        if outbox.may_begin(Some(*id)).is_err() {
            return Ok(());
        }
        let data = chain.encode(call);
        chain.simulate(&data, self.now / 1_000)?;
        let mut name = [0; 16];
        name[..8].copy_from_slice(&self.rng.next().to_be_bytes());
        let wanted = Wanted {
            id: IntentId(name),
            to: Some(HUB.hub),
            data,
            value: 0,
            gas_limit: 1,
            purpose,
            channel: Some(*id),
            gain: MicroUsd::ZERO,
        };
        let Ok(intent) = outbox.begin(wanted, chain.pending_nonce(), self.now) else {
            return Ok(());
        };
        self.say(|| {
            format!(
                "Seller intends to {purpose:?} {sum} of {id}, nonce {}",
                intent.nonce
            )
        });
        let number = self.seller.disk.record(Record::Intent(intent.clone()));
        self.seller.outbox_waits += 1;
        if self.plant == Some(Plant::SentBeforeIntent) {
            self.hand_over_unstored(&intent);
        }
        let then = Then::Sent(Box::new(intent));
        self.seller.then.push((number, None, then));
        self.schedule_write(Side::Seller);
        self.note(id, purpose, sum);
        Ok(())
    }

    fn hand_over_unstored(&mut self, intent: &Intent) {
        let Some(chain) = &mut self.chain else {
            return;
        };
        let (_, raw) = chain.sign(intent.nonce, &intent.data);
        self.broadcast(intent.nonce, &raw);
    }
}

fn pair_facts(
    seller: &super::seller::Seller,
    id: &ChannelId,
) -> Option<souk::payment::onchain::SellFacts> {
    seller.pair(id)?.state.sell_facts()
}
