//! Which channel pays: taken up, changed for the next, raised, ended. The part of [`PayerState`] that is
//! about channels as wholes; the attempts on them are in `state`. Pure.

use super::state::PayerState;
use crate::ledger::{ChannelRow, ChannelState};
use crate::payment::channel::Payer;
use crate::payment::onchain::OnChannel;
use crate::protocol::voucher::VoucherDomain;
use crate::types::{ChannelId, MicroUsd};

impl PayerState {
    /// Of a channel that pays no more: its attempts are still to be settled, its number is taken.
    pub fn adopt_rest(&mut self, channel: ChannelState, is_on_chain: bool) {
        if is_on_chain {
            let next = channel.row.epoch.saturating_add(1);
            self.next_counter = self.next_counter.max(next);
        }
        for attempt in channel.unfinished {
            self.adopt_attempt(attempt);
        }
    }
    /// The seller says that the channel is over, and the chain does not contradict: the next one.
    pub fn leave_channel(&mut self) {
        self.row = None;
        self.on_chain = None;
        self.last_voucher = None;
        self.shown = MicroUsd::ZERO;
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
    /// The seller ends this channel.
    pub fn end(&mut self, channel: &ChannelId) {
        self.ending |= self.channel().as_ref() == Some(channel);
    }
    /// True when the channel carries nothing, owes nothing and waits for nothing.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        self.live.is_empty() && self.doubtful.is_empty() && !self.has_unsaid()
    }
}
