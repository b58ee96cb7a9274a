//! What an earlier life left in the ledger: the channel that pays, attempts that are in doubt.

use super::PayerState;
use crate::ledger::{AttemptState, ChannelState};
use crate::payment::channel::Payer;
use crate::payment::onchain::OnChannel;
use crate::payment::payer::doubt::{Doubtful, Live};
use crate::protocol::EvmSignature;
use crate::types::{ChannelId, MicroUsd, UnixMs};

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
            self.adopt_attempt(attempt, signed);
        }
    }

    /// The seller showed a voucher with our own good signature; a higher one is taken up. One of an
    /// earlier channel was paid there: counted here, it would be paid again.
    pub fn learn_voucher(
        &mut self,
        channel: &ChannelId,
        cumulative: MicroUsd,
        signature: EvmSignature,
        accepted: MicroUsd,
    ) {
        let is_ours = self.channel().as_ref() == Some(channel);
        if is_ours && cumulative > self.machine.signed() {
            self.machine.adopt(cumulative, accepted);
            self.last_voucher = Some((cumulative, signature));
        }
    }
    /// Of a channel that pays no more: its attempts are still to be settled, its number is taken.
    pub fn adopt_rest(&mut self, channel: ChannelState, is_on_chain: bool) {
        if is_on_chain {
            let next = channel.row.epoch.saturating_add(1);
            self.next_counter = self.next_counter.max(next);
        }
        let voucher = channel.voucher.as_ref();
        let signed = voucher.map_or(MicroUsd::ZERO, |v| v.cumulative);
        for attempt in channel.unfinished {
            self.adopt_attempt(attempt, signed);
        }
    }

    /// `signed`: the highest voucher of its channel.
    fn adopt_attempt(&mut self, attempt: AttemptState, signed: MicroUsd) {
        let counted = attempt
            .delivered
            .as_ref()
            .map_or(MicroUsd::ZERO, |d| d.cost);
        let id = attempt.open.attempt_id;
        let open = &attempt.open;
        let window = self.windows.most(&open.model, &open.price);
        let promised = signed.saturating_sub(open.voucher_before);
        let began = Live {
            prefill: open.prefill,
            // Vouchers of this life are for others, so it is fixed now.
            max_cost: promised
                .max(open.prefill)
                .saturating_add(window)
                .min(open.max_cost),
            voucher_before: open.voucher_before,
            window,
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
        };
        self.doubtful.insert(id, doubtful);
    }
}
