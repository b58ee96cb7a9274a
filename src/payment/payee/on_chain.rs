//! What [`PayeeState`] knows of a channel on a chain, and what follows from it: how much may be
//! delivered, when the channel is to be settled or closed, with which voucher. Pure.

use super::state::PayeeState;
use crate::chain::watcher::ChainEvent;
use crate::payment::onchain::{Level, OnChannel, Rules, SellFacts};
use crate::protocol::EvmSignature;
use crate::protocol::voucher::TopUp;
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
    /// The buyer's voucher over exactly what it consumed, for the close.
    pub last: Option<(MicroUsd, EvmSignature)>,
    /// Since when vouchers wait to be settled.
    pub dirty_since_ms: Option<UnixMs>,
    /// When the channel was last used.
    pub used_ms: UnixMs,
    /// A top-up that the chain does not show yet.
    pub top_up: Option<TopUp>,
}

impl Hubbed {
    /// A channel that was used last at `used_ms`.
    #[must_use]
    pub const fn new(on: OnChannel, rules: Rules, used_ms: UnixMs) -> Self {
        Self {
            on,
            rules,
            ending: false,
            is_void: false,
            last: None,
            dirty_since_ms: None,
            used_ms,
            top_up: None,
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
        on_chain.ending |= on_chain.on.view.closing > Level::No;
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
    /// What [`Rules::due`] decides by.
    #[must_use]
    pub fn sell_facts(&self) -> Option<SellFacts> {
        let on_chain = self.on_chain.as_ref()?;
        let view = on_chain.on.view;
        Some(SellFacts {
            view,
            challenge_period_s: on_chain.on.channel.descriptor.challenge_period_s,
            claim: self.machine.held().min(view.deposit_seen),
            dirty_since_ms: on_chain.dirty_since_ms,
            close_wanted: on_chain.ending,
            is_busy: !self.running.is_empty() || !self.ended.is_empty(),
            used_ms: on_chain.used_ms,
        })
    }
    /// The voucher to bring to the chain: at the end the buyer's last one, if it pays all that was
    /// delivered, else the highest.
    #[must_use]
    pub fn claimed(&self, at_the_end: bool) -> Option<(MicroUsd, EvmSignature)> {
        let last = self.on_chain.as_ref().and_then(|one| one.last);
        let owed = self.machine.book().total();
        last.filter(|(sum, _)| at_the_end && *sum >= owed)
            .or(self.last_voucher)
    }
}
