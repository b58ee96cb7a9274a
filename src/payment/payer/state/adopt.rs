//! What an earlier life left in the ledger: the channel that pays, attempts that are in doubt.

use super::PayerState;
use crate::ledger::{AttemptState, ChannelState};
use crate::payment::channel::Payer;
use crate::payment::onchain::OnChannel;
use crate::payment::payer::doubt::{Doubtful, Live};
use crate::protocol::EvmSignature;
use crate::types::{MicroUsd, UnixMs};

/// After a restart the sellers paid within this time are told what was booked.
const RECENT_MS: u64 = 7 * 24 * 60 * 60 * 1_000;

/// True when the channel was opened or paid lately, so that its seller may wait for an ACCEPT of an
/// earlier life: also for an order whose row a crash took before there was a voucher.
#[must_use]
pub fn is_recent(channel: &ChannelState, now_ms: UnixMs) -> bool {
    let voucher = channel.voucher.as_ref();
    let last_ms = voucher.map_or(channel.row.at_ms, |v| v.at_ms);
    now_ms.saturating_sub(last_ms) < RECENT_MS
}

impl PayerState {
    /// Takes up what an earlier life left in the ledger. A seller that was paid lately may still
    /// wait for an ACCEPT of that life, so it gets a SYNC unasked.
    pub fn adopt(&mut self, channel: ChannelState, on_chain: Option<OnChannel>, now_ms: UnixMs) {
        let voucher = channel.voucher.as_ref();
        self.used_ms = voucher.map_or(channel.row.at_ms, |v| v.at_ms);
        self.unsynced = is_recent(&channel, now_ms);
        let signed = voucher.map_or(MicroUsd::ZERO, |v| v.cumulative);
        let accepted = channel.accepted_sum;
        self.machine = Payer::new(self.windows, channel.limit, signed, accepted);
        if let Some(on_chain) = &on_chain {
            self.machine = self.machine.clone().on_chain(on_chain.channel.consumed);
        }
        if on_chain.is_some() {
            let next = channel.row.epoch.saturating_add(1);
            self.next_counter = self.next_counter.max(next);
        }
        self.on_chain = on_chain;
        self.left = false;
        self.ending = false;
        self.last_voucher = voucher.map(|v| (v.cumulative, EvmSignature(v.signature)));
        self.booked_limit = channel.limit;
        self.row = Some(channel.row);
        self.settlements = channel.settlements_sum;
        for attempt in channel.unfinished {
            self.adopt_attempt(attempt);
        }
    }

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
    fn adopt_attempt(&mut self, attempt: AttemptState) {
        let counted = attempt
            .delivered
            .as_ref()
            .map_or(MicroUsd::ZERO, |d| d.cost);
        let id = attempt.open.attempt_id;
        let began = Live {
            prefill: attempt.open.prefill,
            max_cost: attempt.open.max_cost,
            voucher_before: attempt.open.voucher_before,
            window: self.windows.stream(&attempt.open.price),
        };
        if self
            .machine
            .begin(id, MicroUsd::ZERO, MicroUsd::ZERO)
            .is_ok()
        {
            self.machine.start(&id, counted);
        }
        let doubtful = Doubtful {
            began,
            model: attempt.open.model.to_string(),
            status: attempt.delivered.as_ref().map_or(0, |d| d.status),
            counted: attempt.delivered,
            charged: MicroUsd::ZERO,
        };
        self.doubtful.insert(id, doubtful);
    }
}
