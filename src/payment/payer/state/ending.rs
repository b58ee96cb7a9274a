//! How a channel ends here: no new orders, then what is in doubt is settled, then nobody waits for
//! it. A channel that is over is still named in OPEN until its last attempt is settled: another one
//! would cost a fee.

use super::PayerState;
use crate::payment::onchain::OnChannel;
use crate::types::{ChannelId, MicroUsd, UnixMs};

impl PayerState {
    /// The seller ends this channel.
    pub fn end(&mut self, channel: &ChannelId) {
        self.ending |= self.channel().as_ref() == Some(channel);
    }
    /// The seller says that the channel is over, and the chain does not contradict: the next order
    /// opens another.
    pub fn leave_channel(&mut self) {
        self.left = true;
    }
    /// True when nothing more can be ordered on the channel: it is over, or there is none.
    #[must_use]
    pub fn is_spent(&self, now_ms: UnixMs) -> bool {
        let is_over = |on: &OnChannel| on.is_over(now_ms);
        self.left || self.row.is_none() || self.on_chain.as_ref().is_some_and(is_over)
    }
    /// True when the session that stands has no more to say: the channel is over, and nothing is in
    /// doubt on it. From the end of the channel on it carries no orders.
    pub fn leaves(&mut self, now_ms: UnixMs) -> bool {
        let is_over = self.up && self.is_spent(now_ms);
        self.settles |= is_over;
        is_over && self.is_at_rest()
    }
    /// OPEN_ACK names `deposit`; 0 says of a channel on a chain that it is over. False when the session
    /// is no use then, because orders were wanted.
    pub fn opened_session(
        &mut self,
        deposit: MicroUsd,
        wants_orders: bool,
        now_ms: UnixMs,
    ) -> bool {
        let is_over = self.on_chain.is_some() && deposit == MicroUsd::ZERO;
        if is_over && wants_orders {
            return false;
        }
        self.settles = is_over || self.is_spent(now_ms);
        self.hear_deposit(deposit);
        true
    }
    /// True while orders may go over the session that stands.
    #[must_use]
    pub const fn takes_orders(&self) -> bool {
        self.up && !self.settles
    }
    /// True when the channel carries nothing, owes nothing and waits for nothing.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        self.live.is_empty() && self.doubtful.is_empty() && !self.has_unsaid()
    }
    /// The session over a channel that is over has no more to say. Nobody waits for the next one,
    /// unless an attempt ended on it of which the seller may not have heard: it may have died since.
    pub const fn part(&mut self) {
        self.up = false;
        self.unsynced = self.unheard;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::hub::{HubEvent, HubLog};
    use crate::chain::watcher::ChainEvent;
    use crate::chain::{BlockRef, RawLog};
    use crate::ledger::{ChannelRow, FinalRow, Outcome, Role};
    use crate::payment::WindowSettings;
    use crate::payment::onchain::MODE_ON_CHAIN;
    use crate::protocol::EvmSignature;
    use crate::protocol::voucher::HubChannel;
    use crate::types::{AttemptId, Hash32, PeerId};

    const NOW: UnixMs = 1_000_000;

    fn channel(valid_before_s: u64) -> HubChannel {
        let mut channel = HubChannel::example(MicroUsd(500_000), MicroUsd(10_000));
        channel.opening.valid_before_s = valid_before_s;
        channel
    }

    fn paying() -> PayerState {
        let on = OnChannel::new(channel(u64::MAX / 2_000));
        let row = ChannelRow {
            at_ms: NOW,
            role: Role::Buy,
            channel: on.channel.id(),
            peer: PeerId::random(),
            mode: MODE_ON_CHAIN.to_owned(),
            descriptor: on.channel.to_bytes(),
            epoch: 0,
            deposit: MicroUsd(500_000),
            open_signature: [0; 64],
        };
        let mut state = PayerState::new(WindowSettings::default());
        assert!(state.is_spent(NOW), "there is no channel yet");
        state.pay_by(row, Some(on));
        state
    }

    fn closed(state: &mut PayerState) {
        let id = state.channel().unwrap();
        let event = HubEvent::Closed {
            channel: id,
            settled: MicroUsd(10_000),
            refund: MicroUsd(490_000),
        };
        let raw = RawLog {
            block: BlockRef {
                number: 5,
                hash: Hash32([5; 32]),
            },
            tx: Hash32([6; 32]),
            index: 0,
            topics: vec![],
            data: vec![],
        };
        let log = HubLog { raw, event };
        state
            .on_chain
            .as_mut()
            .unwrap()
            .apply(&ChainEvent::Seen(log));
    }

    #[test]
    fn a_channel_that_is_over_stays_known_and_takes_no_orders() {
        let mut state = paying();
        let id = state.channel();
        assert!(!state.is_spent(NOW));
        closed(&mut state);
        assert!(state.is_spent(NOW));
        assert_eq!(state.channel(), id, "it is named until all is settled");

        let mut state = paying();
        state.leave_channel();
        assert!(state.is_spent(NOW));
        assert_eq!(state.channel(), id);
    }

    #[test]
    fn a_seller_that_asks_is_shown_the_highest_voucher_again() {
        let mut state = paying();
        state.stand_up();
        let id = state.channel().unwrap();
        state.voucher_durable(&id, MicroUsd(20_000), EvmSignature([1; 65]));
        assert!(state.take_unsaid().1.is_some());
        assert!(state.take_unsaid().1.is_none(), "it was sent");
        state.show_again();
        assert!(state.take_unsaid().1.is_some(), "it may have been lost");
    }

    #[test]
    fn regression_a_seller_that_died_with_an_attempt_is_told_of_it_after_the_close() {
        let mut state = paying();
        state.stand_up();
        state.book(failed(), false);
        closed(&mut state);
        state.part();
        assert!(state.in_doubt(), "it may still wait for that attempt");
        state.stand_up();
        state.part();
        assert!(!state.in_doubt(), "SYNC told it");
    }

    #[test]
    fn regression_a_voucher_of_an_earlier_channel_does_not_count_on_the_next_one() {
        let mut state = paying();
        let first = state.channel().unwrap();
        closed(&mut state);
        let mut next = channel(u64::MAX / 2_000);
        next.descriptor.salt = Hash32([6; 32]);
        let row = ChannelRow {
            channel: next.id(),
            descriptor: next.to_bytes(),
            ..state.row().unwrap().clone()
        };
        state.pay_by(row, Some(OnChannel::new(next)));
        let (paid, signature) = (MicroUsd(400_000), EvmSignature([0; 65]));
        let before = state.machine().signed();
        // Durable late, or shown again by a seller that would be paid twice.
        state.voucher_durable(&first, paid, signature);
        state.learn_voucher(&first, paid, signature, paid);
        assert_eq!(state.machine().signed(), before);
        assert_eq!(state.machine().book().settled(), MicroUsd::ZERO);
        assert_eq!(state.due_voucher(), None, "nothing is owed here");
    }

    fn failed() -> FinalRow {
        FinalRow {
            at_ms: NOW,
            attempt_id: AttemptId([1; 16]),
            outcome: Outcome::Failed,
            status: 502,
            billed: MicroUsd::ZERO,
            model_served: String::new(),
            usage: None,
            own_input: None,
            own_output: None,
            ttft_ms: None,
            total_ms: 0,
            disputed: false,
            receipt: None,
            error: None,
        }
    }

    #[test]
    fn after_the_last_word_on_a_channel_that_is_over_nothing_waits() {
        let mut state = paying();
        state.stand_up();
        closed(&mut state);
        state.stand_down();
        assert!(state.in_doubt(), "the seller may wait for an ACCEPT");
        state.part();
        assert!(
            !state.in_doubt(),
            "or a session would be opened again and again"
        );
    }
}
