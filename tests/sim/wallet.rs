//! The buyer's money on the chain: openings and higher deposits by its signature, idle channels given
//! back, expired ones reclaimed. What a node's tasks do around [`PayerState`] and [`Purse`].
//!
//! [`PayerState`]: souk::payment::PayerState

use souk::ledger::{ChannelRow, ChannelState, Role, Row};
use souk::payment::onchain::{Level, OnChannel, Split};
use souk::payment::payer::state::{TopUpPlan, is_recent};
use souk::protocol::ChannelDescriptor;
use souk::protocol::EvmSignature;
use souk::protocol::voucher::{HubChannel, HubTerms, Opening, TokenAuthorization, TopUp};
use souk::types::{ChannelId, EvmAddress, Hash32, MicroUsd, PeerId};

use super::Plant;
use super::buyer::{Buyer, Phase, Then};
use super::chain::HUB;
use super::contract::Call;
use super::wire::{ChainOpen, Conn, Msg, Side};
use super::world::World;

/// Numbers of openings that are tried; after a lost ledger the first ones may be closed already.
const COUNTERS_MAX: u64 = 64;
/// Vault and wallet are read this often when nothing is known to have changed, ms.
const READ_EVERY: u64 = 30_000;
/// What a usual request costs: deposits are the least or a few of these.
const USUAL: MicroUsd = MicroUsd(1_000);
/// What a deposit must be worth beyond the fee.
const WORTH_OPENING: MicroUsd = MicroUsd(10_000);
/// Signatures on the chain are left out, as those of vouchers are.
const UNSIGNED: EvmSignature = EvmSignature([0; 65]);

fn descriptor(challenge_period_s: u32, counter: u64) -> ChannelDescriptor {
    let address = |n| EvmAddress([n; 20]);
    let terms = HubTerms {
        buyer: address(1),
        seller: address(2),
        operator: address(2),
        token: address(3),
        voucher_signer: address(4),
        challenge_period_s,
    };
    ChannelDescriptor::on_hub(&terms, &peer(0), &peer(1), 0, counter)
}

fn peer(n: u8) -> PeerId {
    PeerId::from_bytes(&[0, 1, n]).expect("an identity multihash")
}

impl Buyer {
    /// A channel of an earlier life, as a restarted node takes it up.
    pub fn adopt_on_chain(&mut self, channel: ChannelState, now: u64) {
        let named = HubChannel::from_bytes(&channel.row.descriptor).expect("a row");
        let mut on = OnChannel::new(named);
        on.standing = self.disk.standing(&channel.row.channel);
        on.view = on.standing.view();
        let is_over = on.is_over(now);
        let is_needed = !is_over || !channel.unfinished.is_empty() || is_recent(&channel, now);
        let has_another = !self.state.is_spent(now);
        if !is_needed || (is_over && has_another) {
            return self.state.adopt_rest(channel, true);
        }
        if on.view.opened == Level::No && !is_over {
            let opening = &on.channel.opening;
            let given = opening.authorization.as_ref();
            let wallet = given.map_or(MicroUsd::ZERO, |a| a.amount);
            let split = Split {
                vault: opening.deposit.saturating_sub(wallet),
                wallet,
            };
            let (id, void_s) = (channel.row.channel, opening.valid_before_s);
            self.purse.remember(id, opening.deposit, split, void_s);
        }
        self.told = channel.limit;
        self.state.adopt(channel, Some(on), now);
    }
}

impl World {
    /// OPEN over the channel that stands, or over a new one, its row durable first.
    pub fn connect_on_chain(&mut self, conn: Conn) {
        let wants_orders = self.buyer.wants_orders;
        let state = &self.buyer.state;
        let standing = if wants_orders {
            state.standing(self.now)
        } else {
            // Over or not: to settle what is in doubt on it costs nothing.
            state.named()
        };
        if let Some((row, channel)) = standing {
            let open = ChainOpen {
                channel,
                epoch: row.epoch,
            };
            self.buyer.phase = Phase::AwaitsAck(conn);
            return self.send(Side::Buyer, conn, Msg::Open(Some(Box::new(open))));
        }
        let new = if wants_orders {
            self.new_channel()
        } else {
            None
        };
        let Some((row, on)) = new else {
            return self.hang_up(conn);
        };
        self.say(|| {
            format!(
                "Buyer signs the opening of {} for {}",
                row.channel, row.deposit
            )
        });
        self.buyer.told = row.deposit;
        self.buyer.phase = Phase::Booking(conn);
        let number = self.buyer.disk.submit(Row::Channel(row.clone()));
        let then = Then::Open(conn, Box::new(row), Some(Box::new(on)));
        self.buyer.then.push((number, then));
        self.schedule_write(Side::Buyer);
    }

    fn new_channel(&mut self) -> Option<(ChannelRow, OnChannel)> {
        let rules = self.plan.chain.as_ref()?.rules;
        let first = self.buyer.state.next_counter();
        for counter in first..first + COUNTERS_MAX {
            let descriptor = descriptor(rules.challenge_period_s, counter);
            let id = HUB.channel_id(&descriptor);
            let standing = self.buyer.disk.standing(&id);
            let view = standing.view();
            if view.closed > Level::No {
                continue;
            }
            let opening = if view.opened > Level::No {
                Opening {
                    device: 0,
                    deposit: view.deposit_seen,
                    open_fee: view.open_fee,
                    expiry_s: view.expiry_s,
                    valid_before_s: self.now / 1_000,
                    signature: UNSIGNED,
                    authorization: None,
                }
            } else {
                self.fresh(id)?
            };
            let channel = HubChannel {
                domain: HUB,
                descriptor,
                consumed: self.consumed(&opening),
                opening,
            };
            let row = ChannelRow {
                at_ms: self.now,
                role: Role::Buy,
                channel: id,
                peer: peer(1),
                mode: "channel".to_owned(),
                descriptor: channel.to_bytes(),
                epoch: counter,
                deposit: channel.opening.deposit,
                open_signature: [0; 64],
            };
            let mut on = OnChannel::new(channel);
            on.standing = standing;
            on.view = view;
            return Some((row, on));
        }
        None
    }

    /// What counts as consumed at first: the fee.
    fn consumed(&self, opening: &Opening) -> MicroUsd {
        if self.plant == Some(Plant::ForgetsOpenFee) {
            return MicroUsd::ZERO;
        }
        opening.open_fee
    }

    /// A new opening, its deposit set aside.
    fn fresh(&mut self, id: ChannelId) -> Option<Opening> {
        let (rules, valid_s) = {
            let plan = self.plan.chain.as_ref()?;
            (plan.rules, plan.valid_s)
        };
        let now_s = self.now / 1_000;
        let deposit = self.affordable()?;
        let valid_before_s = now_s + valid_s;
        let authorization = self.set_aside(id, deposit, deposit, valid_before_s)?;
        Some(Opening {
            device: 0,
            deposit,
            open_fee: rules.open_fee,
            expiry_s: now_s + rules.lifetime_s,
            valid_before_s,
            signature: UNSIGNED,
            authorization,
        })
    }

    /// A deposit that vault and wallet can pay and a seller takes.
    pub fn affordable(&self) -> Option<MicroUsd> {
        let rules = self.plan.chain.as_ref()?.rules;
        let free = self.buyer.purse.free()?;
        let deposit = rules.deposit(USUAL, rules.open_fee, free)?;
        let least = rules.open_fee.saturating_add(WORTH_OPENING);
        (deposit >= least).then_some(deposit)
    }

    #[allow(
        clippy::option_option,
        reason = "no money, or no need for the wallet's"
    )]
    fn set_aside(
        &mut self,
        id: ChannelId,
        deposit: MicroUsd,
        amount: MicroUsd,
        void_s: u64,
    ) -> Option<Option<TokenAuthorization>> {
        let split = self.buyer.purse.promise(id, deposit, amount, void_s)?;
        if split.wallet == MicroUsd::ZERO {
            return Some(None);
        }
        let mut nonce = [0; 32];
        nonce[..8].copy_from_slice(&self.rng.next().to_be_bytes());
        Some(Some(TokenAuthorization {
            amount: split.wallet,
            valid_after_s: 0,
            valid_before_s: void_s,
            nonce: Hash32(nonce),
            signature: UNSIGNED,
        }))
    }

    /// The seller says that the channel is over: the next one.
    pub fn channel_is_over(&mut self, conn: Conn) {
        self.hang_up(conn);
        let Some(id) = self.buyer.state.channel() else {
            return;
        };
        let is_live = self.buyer.state.view().is_some_and(|view| view.is_live());
        let stored = self
            .chain
            .as_ref()
            .and_then(|chain| chain.state.channels.get(&id));
        let is_closed = stored.is_some_and(|stored| stored.closed);
        if is_live && (!self.rpc_answers() || !is_closed) {
            // The chain does not say so: it is not left on the seller's word.
            return;
        }
        self.buyer.purse.forget(&id);
        self.read_purse();
        self.buyer.state.leave_channel();
        self.connect(true);
    }

    /// Leaves a session over a channel that is over; nobody waits for the next one.
    fn part(&mut self, conn: Conn) {
        self.cut(conn);
        self.buyer.phase = Phase::Down;
        self.buyer.state.part();
    }

    /// Leaves a session.
    pub fn hang_up(&mut self, conn: Conn) {
        self.cut(conn);
        self.buyer.phase = Phase::Down;
        self.buyer.state.stand_down();
    }

    fn read_purse(&mut self) {
        if !self.rpc_answers() {
            return;
        }
        let Some(chain) = &self.chain else {
            return;
        };
        let (vault, wallet) = (chain.state.buyer_vault, chain.state.buyer_wallet);
        self.buyer.read_ms = Some(self.now);
        self.buyer.purse.learn(vault, wallet);
        let state = &self.buyer.state;
        if let (Some(id), Some(view)) = (state.channel(), state.view()) {
            self.buyer.purse.shown(&id, view.deposit_seen);
        }
    }

    /// One look at the channel, as every two seconds.
    pub fn buyer_tends(&mut self) {
        let Some(rules) = self.plan.chain.as_ref().map(|plan| plan.rules) else {
            return;
        };
        let read = self.buyer.read_ms;
        if read.is_none_or(|at| self.now.saturating_sub(at) >= READ_EVERY) {
            self.read_purse();
        }
        self.buyer.purse.expire(self.now / 1_000);
        let due = self.buyer.state.tend(&rules, self.now);
        if let Phase::Up(conn) = self.buyer.phase {
            if due.is_over {
                self.part(conn);
            } else if due.asks_close
                && let Some(channel) = self.buyer.state.channel()
            {
                let last = self.buyer.state.last_word();
                self.say(|| format!("Buyer asks for the end, last word {last:?}"));
                self.send(Side::Buyer, conn, Msg::Close(channel, last));
            }
        }
        self.buyer_tops_up();
        self.reclaim();
    }

    /// Signs a higher deposit when the channel runs low.
    pub fn buyer_tops_up(&mut self) {
        if self.plan.chain.is_none() {
            return;
        }
        let Some(plan) = self.buyer.state.plan_top_up(self.now) else {
            return;
        };
        self.raise(plan);
    }

    fn raise(&mut self, plan: TopUpPlan) -> Option<()> {
        let chain = self.plan.chain.as_ref()?;
        let (rules, valid_s, now_s) = (chain.rules, chain.valid_s, self.now / 1_000);
        let deposit = if plan.again {
            plan.row.deposit
        } else {
            let free = self.buyer.purse.free()?;
            let more = rules.deposit(USUAL, MicroUsd::ZERO, free)?;
            plan.row.deposit.saturating_add(more)
        };
        let (id, more) = (plan.row.channel, deposit.saturating_sub(plan.shown));
        let authorization = self.set_aside(id, deposit, more, now_s + valid_s)?;
        let top_up = TopUp {
            channel: id,
            deposit,
            expiry_s: plan.expiry_s.max(now_s + rules.lifetime_s),
            valid_before_s: now_s + valid_s,
            signature: UNSIGNED,
            authorization,
        };
        self.say(|| format!("Buyer signs a deposit of {deposit} for {id}"));
        if plan.again {
            self.say_top_up(top_up);
            return Some(());
        }
        let row = ChannelRow {
            at_ms: self.now,
            deposit,
            ..plan.row
        };
        let number = self.buyer.disk.submit(Row::Channel(row.clone()));
        let then = Then::Raise(Box::new(row), Box::new(top_up));
        self.buyer.then.push((number, then));
        self.schedule_write(Side::Buyer);
        Some(())
    }

    /// The higher deposit is durable: vouchers may make use of it.
    pub fn raised(&mut self, row: ChannelRow, top_up: TopUp) {
        if self.buyer.state.channel() == Some(row.channel) {
            self.buyer.told = row.deposit;
        }
        self.buyer.state.raise(row);
        self.say_top_up(top_up);
    }

    fn say_top_up(&mut self, top_up: TopUp) {
        if let Phase::Up(conn) = self.buyer.phase {
            self.send(Side::Buyer, conn, Msg::TopUp(Box::new(top_up)));
        }
    }

    /// What the chain says moves money, or ends the channel.
    pub fn buyer_sees(&mut self, events: &[souk::chain::watcher::ChainEvent]) {
        self.buyer.watch_busy = false;
        for event in events {
            self.buyer.read_ms = None;
            if super::watch::channel_of(event) != self.buyer.state.channel() {
                continue;
            }
            let now = self.now;
            if self.buyer.state.chain_event(event)
                && self.buyer.state.leaves(now)
                && let Phase::Up(conn) = self.buyer.phase
            {
                self.part(conn);
            }
        }
    }

    /// What expired channels still hold comes back; whoever brings it needs no leave.
    fn reclaim(&mut self) {
        let now_s = self.now / 1_000;
        let disk = &self.buyer.disk;
        let expired = |id: &ChannelId| {
            let view = disk.standing(id).view();
            view.is_live() && view.expiry_s <= now_s
        };
        let ids: Vec<_> = disk.opened().into_iter().filter(expired).collect();
        if let Some(chain) = &mut self.chain
            && chain.pool_len() == 0
        {
            ids.into_iter()
                .for_each(|id| chain.relay(Call::Reclaim(id)));
        }
    }
}
