//! What [`PayerState`] decides about a channel on a chain: whether it still pays, when it is raised,
//! when its end is asked for. Pure.

use super::PayerState;
use crate::chain::watcher::ChainEvent;
use crate::ledger::ChannelRow;
use crate::payment::onchain::{ChannelView, Level, Rules};
use crate::protocol::voucher::HubChannel;
use crate::types::{MicroUsd, UnixMs};

/// A top-up that the chain does not show is signed anew after this long, ms.
const TOP_UP_AGAIN_MS: u64 = 120_000;
/// A seller that was asked for the end is asked again after this long, ms.
const CLOSE_AGAIN_MS: u64 = 60_000;

/// A higher deposit that is to be signed.
#[derive(Clone, Debug)]
pub struct TopUpPlan {
    /// The channel's newest row.
    pub row: ChannelRow,
    /// The channel.
    pub channel: HubChannel,
    /// The deposit that the chain does not show yet is signed again; none is a new one.
    pub again: bool,
    /// The deposit that the chain shows.
    pub shown: MicroUsd,
    /// When it may go back now, in seconds.
    pub expiry_s: u64,
}

/// What a look at a channel found due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tended {
    /// It is over and nothing is in doubt on it: its session ends.
    pub is_over: bool,
    /// The seller is to be asked for the end, with the last word.
    pub asks_close: bool,
}

impl PayerState {
    /// What the chain shows of the channel that pays; none in credit mode.
    #[must_use]
    pub fn view(&self) -> Option<ChannelView> {
        self.on_chain.as_ref().map(|on| on.view)
    }
    /// The number of the next opening on a chain.
    #[must_use]
    pub const fn next_counter(&self) -> u64 {
        self.next_counter
    }
    /// The channel that an OPEN names again, unless it is over.
    #[must_use]
    pub fn standing(&self, now_ms: UnixMs) -> Option<(ChannelRow, HubChannel)> {
        let on = self.on_chain.as_ref().filter(|_| !self.is_spent(now_ms))?;
        Some((self.row.clone()?, on.channel.clone()))
    }
    /// The channel that there is, over or not: to settle what is in doubt on it costs nothing.
    #[must_use]
    pub fn named(&self) -> Option<(ChannelRow, HubChannel)> {
        let on = self.on_chain.as_ref()?;
        Some((self.row.clone()?, on.channel.clone()))
    }
    /// An event of the chain about this channel. Says whether the picture changed.
    pub fn chain_event(&mut self, event: &ChainEvent) -> bool {
        self.on_chain.as_mut().is_some_and(|on| on.apply(event))
    }
    /// True once the chain shows the end of the channel.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        let view = self.on_chain.as_ref().map(|on| on.view);
        view.is_some_and(|view| view.closed > Level::No)
    }
    /// Looks after the channel: an idle one is to end, one whose end is wanted is asked for when
    /// nothing runs on it.
    pub fn tend(&mut self, rules: &Rules, now_ms: UnixMs) -> Tended {
        let Some(on) = &self.on_chain else {
            return Tended::default();
        };
        let is_live = on.view.is_live();
        let is_idle = now_ms.saturating_sub(self.used_ms) > rules.idle_close_ms;
        if is_live && is_idle && self.is_at_rest() {
            self.ending = true;
        }
        if self.ending && self.ending_ms == 0 {
            self.ending_ms = now_ms;
        }
        let asked_lately = now_ms.saturating_sub(self.asked_close_ms) < CLOSE_AGAIN_MS;
        let asks_close = is_live && self.ending && self.is_at_rest() && self.up && !asked_lately;
        if asks_close {
            self.asked_close_ms = now_ms;
        }
        Tended {
            is_over: self.leaves(now_ms),
            asks_close,
        }
    }
    /// The sum of the last voucher, over exactly what was consumed, where that is less than what was
    /// signed. It is not above what was signed and durable before, so it gives nothing away.
    #[must_use]
    pub fn last_word(&self) -> Option<MicroUsd> {
        let consumed = self.machine.book().total();
        let is_less = consumed < self.machine.signed() && consumed > MicroUsd::ZERO;
        is_less.then_some(consumed)
    }
    /// Whether a higher deposit is to be signed now; counts as signed from then on.
    pub fn plan_top_up(&mut self, now_ms: UnixMs) -> Option<TopUpPlan> {
        let on = self.on_chain.as_ref()?;
        if self.ending || !self.up || !on.view.is_live() || on.view.closing > Level::No {
            return None;
        }
        let shown = on.view.deposit_seen;
        let again = self.machine.deposit() > shown;
        if !again && !self.machine.runs_low() {
            return None;
        }
        if now_ms.saturating_sub(self.topped_up_ms) < TOP_UP_AGAIN_MS {
            return None;
        }
        let plan = TopUpPlan {
            row: self.row.clone()?,
            channel: on.channel.clone(),
            again,
            shown,
            expiry_s: on.view.expiry_s,
        };
        self.topped_up_ms = now_ms;
        Some(plan)
    }
}
