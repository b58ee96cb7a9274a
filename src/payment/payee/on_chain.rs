//! What [`PayeeState`] knows of a channel on a chain, and what follows from it: how much may be
//! delivered, when the channel is to be settled or closed, with which voucher. Pure.

use std::collections::VecDeque;

use super::state::PayeeState;
use crate::chain::watcher::ChainEvent;
use crate::payment::onchain::{ChannelView, Level, OnChannel, Rules, SellFacts};
use crate::protocol::EvmSignature;
use crate::protocol::voucher::{HubChannel, TopUp};
use crate::types::{MicroUsd, UnixMs};

/// What the seller knows of a channel on a chain besides the vouchers.
#[derive(Clone, Debug)]
pub struct Hubbed {
    /// The channel and what the chain shows of it.
    pub on: OnChannel,
    /// Limits and times.
    pub rules: Rules,
    /// Both sides want the end, or the chain says that the buyer does: nothing new is admitted.
    pub ending: bool,
    /// The chain will never open it.
    pub is_void: bool,
    /// When the buyer was asked for its last voucher.
    pub asked_ms: Option<UnixMs>,
    /// The buyer's voucher over exactly what it consumed, for the close.
    pub last: Option<(MicroUsd, EvmSignature)>,
    /// Since when vouchers wait to be settled.
    pub dirty_since_ms: Option<UnixMs>,
    /// When the channel was last used.
    pub used_ms: UnixMs,
    /// A top-up that the chain does not show yet.
    pub top_up: Option<TopUp>,
    /// The newest vouchers, lowest first. A claim can only be for a sum that was signed, and the
    /// highest one holds prepayment, which is the buyer's until it is used.
    pub vouchers: VecDeque<(MicroUsd, EvmSignature)>,
}

/// A connected buyer's last voucher is awaited this long, ms: it looks at its channels every 2 s.
const LAST_WORD_MS: u64 = 10_000;

/// What to do about the buyer's last voucher before a channel is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastWord {
    /// It is there, or nobody is there to give it.
    Enough,
    /// Ask for it.
    Ask,
    /// It was asked for and may still come.
    Awaited,
}

/// Vouchers kept per channel: a window takes four, a prefill one.
pub const VOUCHERS_KEPT: usize = 64;

impl Hubbed {
    /// A channel that was used last at `used_ms`.
    #[must_use]
    pub fn new(on: OnChannel, rules: Rules, used_ms: UnixMs) -> Self {
        Self {
            on,
            rules,
            ending: false,
            is_void: false,
            asked_ms: None,
            last: None,
            dirty_since_ms: None,
            used_ms,
            top_up: None,
            vouchers: VecDeque::new(),
        }
    }
    /// Keeps a durable voucher for claims.
    pub fn keep(&mut self, cumulative: MicroUsd, signature: EvmSignature) {
        let at = self.vouchers.partition_point(|(sum, _)| *sum < cumulative);
        if self
            .vouchers
            .get(at)
            .is_none_or(|(sum, _)| *sum != cumulative)
        {
            self.vouchers.insert(at, (cumulative, signature));
        }
        if self.vouchers.len() > VOUCHERS_KEPT {
            self.vouchers.pop_front();
        }
    }
    /// Most that is delivered in all for what the chain shows.
    #[must_use]
    pub fn ceiling(&self) -> MicroUsd {
        if self.is_void {
            return MicroUsd::ZERO;
        }
        self.rules.ceiling(&self.on.view, self.on.channel.consumed)
    }
}

impl PayeeState {
    /// The same on a chain.
    #[must_use]
    pub fn with_chain(mut self, mut on_chain: Hubbed) -> Self {
        let base = on_chain.on.channel.consumed;
        self.machine = self.machine.on_chain(base, on_chain.ceiling());
        let view = &on_chain.on.view;
        on_chain.ending |= view.closing > Level::No || view.closed > Level::No;
        if self.machine.held() > on_chain.on.view.settled {
            on_chain.dirty_since_ms = Some(on_chain.used_ms);
        }
        self.on_chain = Some(on_chain);
        self
    }
    /// An event of the chain: the ceiling follows it. True when the picture changed.
    pub fn chain_event(&mut self, event: &ChainEvent) -> bool {
        let Some(on_chain) = &mut self.on_chain else {
            return false;
        };
        if !on_chain.on.apply(event) {
            return false;
        }
        let view = &on_chain.on.view;
        on_chain.ending |= view.closing > Level::No || view.closed > Level::No;
        on_chain.is_void &= view.opened == Level::No;
        if view.settled >= self.machine.held() {
            on_chain.dirty_since_ms = None;
        }
        let shown = view.deposit_seen;
        on_chain.top_up = on_chain.top_up.take().filter(|one| one.deposit > shown);
        self.machine.set_ceiling(on_chain.ceiling());
        true
    }
    /// The chain will never open this channel.
    pub fn give_up(&mut self) {
        if let Some(on_chain) = &mut self.on_chain {
            on_chain.is_void = true;
            on_chain.ending = true;
            self.machine.set_ceiling(MicroUsd::ZERO);
        }
    }
    /// The channel; none in credit mode.
    #[must_use]
    pub fn channel(&self) -> Option<&HubChannel> {
        self.on_chain.as_ref().map(|one| &one.on.channel)
    }
    /// What the chain shows of it.
    #[must_use]
    pub fn view(&self) -> Option<ChannelView> {
        self.on_chain.as_ref().map(|one| one.on.view)
    }
    /// True when the channel can pay no more.
    #[must_use]
    pub fn is_over(&self, now_ms: UnixMs) -> bool {
        let on_chain = self.on_chain.as_ref();
        on_chain.is_some_and(|one| one.is_void || one.on.is_over(now_ms))
    }
    /// True when the chain refused to open it.
    #[must_use]
    pub fn is_void(&self) -> bool {
        self.on_chain.as_ref().is_some_and(|one| one.is_void)
    }
    /// True when nothing new is admitted and nothing runs.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        let on_chain = self.on_chain.as_ref();
        on_chain.is_some_and(|one| one.ending) && self.running.is_empty()
    }
    /// True while an earlier channel is to be remembered: the chain has not ended it for good, or
    /// something runs on it or waits for its ACCEPT.
    #[must_use]
    pub fn is_needed(&self) -> bool {
        let view = self.on_chain.as_ref().map(|one| one.on.view);
        let stands = view.is_some_and(|view| view.closed < Level::Final) && !self.is_void();
        stands || !self.running.is_empty() || !self.ended.is_empty()
    }
    /// The channel, while its opening is still to be brought to the chain.
    #[must_use]
    pub fn to_open(&self) -> Option<&HubChannel> {
        let one = self.on_chain.as_ref()?;
        let waits = !one.is_void && one.on.view.opened == Level::No;
        waits.then_some(&one.on.channel)
    }
    /// The channel and a higher deposit that is to be brought to the chain.
    #[must_use]
    pub fn to_top_up(&self) -> Option<(&HubChannel, &TopUp)> {
        let one = self.on_chain.as_ref().filter(|one| one.on.view.is_live())?;
        Some((&one.on.channel, one.top_up.as_ref()?))
    }
    /// Whether a higher deposit changes anything.
    #[must_use]
    pub fn wants_top_up(&self, deposit: MicroUsd) -> bool {
        let one = self.on_chain.as_ref();
        one.is_some_and(|one| !one.ending && deposit > one.on.view.deposit_seen)
    }
    /// The buyer signed a higher deposit; its row is durable.
    pub fn top_up(&mut self, top_up: TopUp) {
        let raised = self.machine.deposit().max(top_up.deposit);
        self.machine.set_deposit(raised);
        if let Some(one) = &mut self.on_chain {
            one.top_up = Some(top_up);
        }
    }
    /// The chain refuses the higher deposit.
    pub fn drop_top_up(&mut self) {
        if let Some(one) = &mut self.on_chain {
            one.top_up = None;
        }
    }
    /// The buyer wants the end, and says by `last` what it owes. False in credit mode.
    pub fn take_close(&mut self, last: Option<(MicroUsd, EvmSignature)>) -> bool {
        let Some(one) = &mut self.on_chain else {
            return false;
        };
        one.ending = true;
        one.last = last.or(one.last);
        true
    }
    /// A channel that this ledger lost: what the buyer signed counts as delivered. Gives the channel
    /// as its row must name it.
    pub fn adopt_lost(&mut self, cumulative: MicroUsd) -> Option<&HubChannel> {
        self.machine.adopt_lost(cumulative);
        let channel = &mut self.on_chain.as_mut()?.on.channel;
        channel.consumed = channel.consumed.max(cumulative);
        Some(channel)
    }
    /// Ends the channel for new requests, and says whether a connected buyer is to be asked for a
    /// voucher over exactly what it consumed: any other pays a little more or a little less.
    pub fn last_word(&mut self, is_connected: bool, now_ms: UnixMs) -> LastWord {
        let owed = self.machine.book().total();
        let is_exact = self.claimed(true).is_some_and(|(sum, _)| sum == owed)
            || owed == self.machine.book().base();
        let Some(one) = &mut self.on_chain else {
            return LastWord::Enough;
        };
        one.ending = true;
        let asked_ms = one.asked_ms;
        one.asked_ms.get_or_insert(now_ms);
        match asked_ms {
            _ if is_exact || !is_connected => LastWord::Enough,
            None => LastWord::Ask,
            Some(asked_ms) if now_ms.saturating_sub(asked_ms) < LAST_WORD_MS => LastWord::Awaited,
            Some(_) => LastWord::Enough,
        }
    }
    /// What [`Rules::due`] decides by.
    #[must_use]
    pub fn sell_facts(&self) -> Option<SellFacts> {
        let on_chain = self.on_chain.as_ref()?;
        let view = on_chain.on.view;
        Some(SellFacts {
            view,
            challenge_period_s: on_chain.on.channel.descriptor.challenge_period_s,
            claim: self
                .claimed(false)
                .map_or(MicroUsd::ZERO, |(sum, _)| sum)
                .min(view.deposit_seen),
            dirty_since_ms: on_chain.dirty_since_ms,
            close_wanted: on_chain.ending,
            is_busy: !self.running.is_empty(),
            awaits_accepts: !self.ended.is_empty(),
            used_ms: on_chain.used_ms,
        })
    }
    /// The voucher to bring to the chain. On the way the highest one that accepted costs have earned:
    /// prepayment stays the buyer's until it is used, and a meter that runs, or a receipt that is not
    /// accepted yet, may stand above what the answer costs in the end. At the end the buyer's last one, if it pays all that was
    /// delivered, else the lowest that does; if none does, the highest.
    #[must_use]
    pub fn claimed(&self, at_the_end: bool) -> Option<(MicroUsd, EvmSignature)> {
        let one = self.on_chain.as_ref()?;
        let owed = self.machine.book().total();
        if at_the_end && owed <= one.on.channel.opening.open_fee {
            // The fee of the opening is paid already.
            return None;
        }
        if !at_the_end {
            let book = self.machine.book();
            let accepted = book.base().saturating_add(book.settled());
            let earned = one.vouchers.iter().rev().find(|(sum, _)| *sum <= accepted);
            return earned.copied();
        }
        let last = one.last.filter(|(sum, _)| *sum >= owed);
        let enough = one.vouchers.iter().find(|(sum, _)| *sum >= owed);
        last.or(enough.copied()).or(self.last_voucher)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payment::WindowSettings;
    use crate::types::AttemptId;
    use proptest::prelude::*;

    const SIGNATURE: EvmSignature = EvmSignature([0; 65]);

    fn state(deposit: u64) -> PayeeState {
        let channel = HubChannel::example(MicroUsd(deposit), MicroUsd(10));
        let on = OnChannel::new(channel);
        let rules = Rules {
            unconfirmed_max: MicroUsd(deposit),
            ..Rules::default()
        };
        PayeeState::new(WindowSettings::default(), MicroUsd(deposit))
            .with_chain(Hubbed::new(on, rules, 0))
    }

    fn serve(state: &mut PayeeState, n: u8, cost: u64) {
        let attempt = AttemptId([n; 16]);
        let admitted = state.admit(attempt, MicroUsd::ZERO, MicroUsd(5_000), 1);
        if admitted.is_err() {
            // Too much is delivered and not signed for: nothing more is served.
            return;
        }
        state.start(&attempt, MicroUsd(cost));
        state.drop_attempt(&attempt);
        state.machine.settle(&attempt, MicroUsd::ZERO);
        state.machine.restore_attempt(attempt, MicroUsd(cost));
        state.machine.settle(&attempt, MicroUsd(cost));
    }

    #[test]
    fn prepayment_is_not_brought_to_the_chain() {
        let mut state = state(100_000);
        for sum in [110, 500, 2_000] {
            state.credit(MicroUsd(sum), SIGNATURE);
        }
        serve(&mut state, 1, 600);
        let sum = |claim: Option<(MicroUsd, EvmSignature)>| claim.map(|(sum, _)| sum.0);
        assert_eq!(sum(state.claimed(false)), Some(500), "610 are earned");
        assert_eq!(
            sum(state.claimed(true)),
            Some(2_000),
            "the lowest that pays 610"
        );
        state.on_chain.as_mut().unwrap().last = Some((MicroUsd(610), SIGNATURE));
        assert_eq!(sum(state.claimed(true)), Some(610));
        state.on_chain.as_mut().unwrap().last = Some((MicroUsd(609), SIGNATURE));
        assert_eq!(
            sum(state.claimed(true)),
            Some(2_000),
            "a last word that pays too little"
        );
    }

    #[test]
    fn regression_what_the_meter_shows_above_the_cost_is_not_brought_to_the_chain() {
        let mut state = state(100_000);
        serve(&mut state, 1, 600);
        let attempt = AttemptId([2; 16]);
        state
            .admit(attempt, MicroUsd::ZERO, MicroUsd(5_000), 1)
            .unwrap();
        state.start(&attempt, MicroUsd(900));
        for sum in [600, 1_400] {
            state.credit(MicroUsd(sum), SIGNATURE);
        }
        let sum = |state: &PayeeState| state.claimed(false).map(|(sum, _)| sum.0);
        // The meter counts bytes and stands at 1 510; the answer costs less by its tokens.
        assert_eq!(sum(&state), Some(600), "610 are accepted");
        state.machine.settle(&attempt, MicroUsd(700));
        assert_eq!(sum(&state), Some(600), "1 310 are accepted");
        state.credit(MicroUsd(1_310), SIGNATURE);
        assert_eq!(sum(&state), Some(1_310));
    }

    #[test]
    fn nothing_new_is_admitted_on_a_channel_that_ends() {
        let mut state = state(100_000);
        state.on_chain.as_mut().unwrap().ending = true;
        let admitted = state.admit(AttemptId([1; 16]), MicroUsd::ZERO, MicroUsd(500), 1);
        assert_eq!(admitted, Err(super::super::state::NotAdmitted::Ending));
    }

    #[test]
    fn regression_a_void_channel_is_remembered_while_something_runs_on_it() {
        let mut state = state(100_000);
        let attempt = AttemptId([1; 16]);
        state
            .admit(attempt, MicroUsd::ZERO, MicroUsd(500), 1)
            .unwrap();
        state.give_up();
        assert!(state.is_needed(), "its receipt needs an ACCEPT");
        state.drop_attempt(&attempt);
        assert!(!state.is_needed());
    }

    proptest! {
        /// Whatever was signed and delivered: on the way not more than earned, at the end enough if
        /// anything is enough, and never a sum that nobody signed.
        #[test]
        fn claims_are_signed_sums_and_fair(
            sums in proptest::collection::btree_set(11u64..50_000, 0..100),
            costs in proptest::collection::vec(0u64..800, 0..20),
        ) {
            let mut state = state(1_000_000);
            for sum in &sums {
                state.credit(MicroUsd(*sum), SIGNATURE);
            }
            for (n, cost) in (0u8..).zip(&costs) {
                serve(&mut state, n, *cost);
            }
            let owed = state.machine.book().total();
            if let Some((sum, _)) = state.claimed(false) {
                prop_assert!(sum <= owed && sums.contains(&sum.0));
            }
            match state.claimed(true) {
                _ if owed == MicroUsd(10) => {}
                Some((sum, _)) => {
                    prop_assert!(sums.contains(&sum.0));
                    let is_enough = sums.iter().any(|one| *one >= owed.0);
                    prop_assert_eq!(sum >= owed, is_enough);
                }
                None => prop_assert!(sums.is_empty()),
            }
        }
    }
}
