//! The seller's hand on the chain: brings openings, top-ups and vouchers there when they are due, and
//! takes in what the chain says. One task per node; it holds up no request.
//!
//! Invariants: what is sent is durable first (the outbox); a channel's row is durable before its
//! opening is sent; nothing is sent for a channel before its handshake is over.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::Shared;
use super::on_chain::LastWord;
use super::pair::PayeePair;
use super::tried::Tried;
use super::waits::CLOSE;
use crate::chain::hub::{Claim, calls};
use crate::chain::outbox::{Request, SubmitError};
use crate::chain::watcher::ChainEvent;
use crate::chain::{At, ChainError};
use crate::payment::PaymentError;
use crate::payment::onchain::{Due, Onchain, paper};
use crate::protocol::SessionMessage;
use crate::types::{ChannelId, MicroUsd, Purpose, UnixMs};

/// Channels are looked at this often when nothing happens.
const TICK: Duration = Duration::from_secs(2);
/// Vouchers brought to the chain in one transaction; 20 cost 392k gas.
const BATCH_MAX: usize = 20;
/// The chain's clock is looked at this often, ms.
const LOOK_MS: u64 = 10_000;
/// And waited for this long.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);
/// Earlier channels kept in memory for their ends and their ACCEPTs; the oldest go first.
const LEAVING_MAX: usize = 4_096;

struct Treasurer {
    shared: Arc<Shared>,
    onchain: Onchain,
    tried: HashMap<ChannelId, Tried>,
    /// How far the chain's clock is ahead of ours, ms, and when that was last looked at.
    ahead: (u64, UnixMs),
}

/// Runs until shutdown.
pub(super) async fn run(
    shared: Arc<Shared>,
    onchain: Onchain,
    mut events: mpsc::Receiver<ChainEvent>,
) -> Result<(), PaymentError> {
    let cancelled = shared.tasks.cancelled();
    let mut treasurer = Treasurer {
        shared: Arc::clone(&shared),
        onchain,
        tried: HashMap::new(),
        ahead: (0, 0),
    };
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => treasurer.take_in(&event),
                None => return Ok(()),
            },
            _ = tick.tick() => treasurer.tend_all().await?,
            () = shared.due.notified() => treasurer.tend_all().await?,
            () = cancelled.cancelled() => return Ok(()),
        }
    }
}

impl Treasurer {
    fn take_in(&self, event: &ChainEvent) {
        let (ChainEvent::Seen(log) | ChainEvent::Confirmed(log) | ChainEvent::Removed { log, .. }) =
            event;
        let Some(id) = log.event.channel() else {
            return;
        };
        let pairs = self.shared.all_pairs();
        if let Some(pair) = pairs.iter().find(|pair| pair.channel() == id)
            && pair.chain_event(event)
        {
            let event = log.event.as_str();
            tracing::info!(buyer = %pair.buyer(), channel = %id, event, "on the chain");
            self.shared.due.notify_one();
        }
    }

    /// The time by which a channel ends: the chain's, where that is ahead of ours. It is the chain
    /// that decides, and to settle too early costs nothing.
    async fn now_ms(&mut self) -> UnixMs {
        let own_ms = self.shared.clock.now_ms();
        let (ahead_ms, looked_ms) = self.ahead;
        if own_ms.saturating_sub(looked_ms) < LOOK_MS {
            return own_ms.saturating_add(ahead_ms);
        }
        let block = self.onchain.link.chain().block(At::Latest);
        let ahead_ms = match tokio::time::timeout(LOOK_TIMEOUT, block).await {
            Ok(Ok(Some(block))) => {
                let chain_ms = block.timestamp_s.saturating_mul(1_000);
                chain_ms.saturating_sub(own_ms)
            }
            // It cannot be asked now: what it said last holds.
            _ => ahead_ms,
        };
        self.ahead = (ahead_ms, own_ms);
        own_ms.saturating_add(ahead_ms)
    }

    async fn tend_all(&mut self) -> Result<(), PaymentError> {
        if self
            .shared
            .all_pairs()
            .iter()
            .all(|pair| pair.view().is_none())
        {
            return Ok(());
        }
        let now_ms = self.now_ms().await;
        let mut batch: Vec<(Arc<PayeePair>, Claim, MicroUsd, bool)> = Vec::new();
        for pair in self.shared.all_pairs() {
            if !pair.is_agreed() || pair.view().is_none() {
                continue;
            }
            self.open(&pair, now_ms).await?;
            self.top_up(&pair, now_ms).await?;
            let due = {
                let state = pair.state.lock();
                let facts = state.sell_facts();
                facts.map_or(Due::Nothing, |facts| self.onchain.rules.due(&facts, now_ms))
            };
            match due {
                Due::Nothing => {}
                Due::Close => self.close(&pair, now_ms).await?,
                Due::Settle { is_forced } => {
                    if let Some((claim, gain)) = self.claim(&pair, false)
                        && !self.sent_lately(&pair, Purpose::Settle, claim.cumulative, now_ms)
                    {
                        batch.push((pair, claim, gain, is_forced));
                    }
                }
            }
        }
        for part in batch.chunks(BATCH_MAX) {
            self.settle(part, now_ms).await?;
        }
        self.shared.forget_waits();
        let mut leaving = self.shared.leaving.lock();
        leaving.retain(|pair| pair.state.lock().is_needed());
        // Who never accepts is forgotten at last; the ledger keeps what it owed.
        let surplus = leaving.len().saturating_sub(LEAVING_MAX);
        leaving.drain(..surplus);
        drop(leaving);
        Ok(())
    }

    /// Opens a channel that the chain does not show.
    async fn open(&mut self, pair: &PayeePair, now_ms: UnixMs) -> Result<(), PaymentError> {
        let id = pair.channel();
        let call = {
            let state = pair.state.lock();
            let Some(channel) = state.to_open() else {
                return Ok(());
            };
            paper::open_call(channel)
        };
        if self.sent_lately(pair, Purpose::Open, MicroUsd::ZERO, now_ms) {
            return Ok(());
        }
        pair.book_channel(&self.shared.ledger).await?;
        let request = self.request(call, Purpose::Open, Some(id), MicroUsd::ZERO, true);
        match self.onchain.link.sender().submit(request).await {
            Ok(_) => {
                self.note(id, Purpose::Open, MicroUsd::ZERO, now_ms);
                tracing::info!(buyer = %pair.buyer(), channel = %id, "opening on the chain");
            }
            Err(SubmitError::Chain(ChainError::Reverted(why))) if why.contains("ChannelExists") => {
                // The watcher is late; the event says the rest.
                self.note(id, Purpose::Open, MicroUsd::ZERO, now_ms);
            }
            Err(SubmitError::Chain(ChainError::Reverted(why))) => {
                tracing::warn!(buyer = %pair.buyer(), channel = %id, why, "the opening is refused");
                if self.tried.entry(id).or_default().refused() {
                    self.give_up(pair, now_ms).await;
                }
            }
            Err(error) => self.later(pair, "open", error)?,
        }
        Ok(())
    }

    /// The chain will not have it: what was served on trust is lost.
    async fn give_up(&self, pair: &PayeePair, now_ms: UnixMs) {
        let lost = {
            let state = pair.state.lock();
            let book = state.machine().book();
            book.total().saturating_sub(book.base())
        };
        self.shared.lost_on_trust.lock().add(lost, now_ms);
        pair.give_up();
        let why = PaymentError::Refused("the chain refuses the channel's opening".into());
        super::session::end(pair, &why).await;
    }

    async fn top_up(&mut self, pair: &PayeePair, now_ms: UnixMs) -> Result<(), PaymentError> {
        let id = pair.channel();
        let (call, deposit) = {
            let state = pair.state.lock();
            let Some((channel, top_up)) = state.to_top_up() else {
                return Ok(());
            };
            let call = paper::top_up_call(&channel.descriptor, top_up);
            (call, top_up.deposit)
        };
        if self.sent_lately(pair, Purpose::TopUp, deposit, now_ms) {
            return Ok(());
        }
        let request = self.request(call, Purpose::TopUp, Some(id), MicroUsd::ZERO, true);
        match self.onchain.link.sender().submit(request).await {
            Ok(_) => {
                self.note(id, Purpose::TopUp, deposit, now_ms);
                tracing::info!(buyer = %pair.buyer(), channel = %id, deposit_usd = %deposit, "topping up");
            }
            Err(SubmitError::Chain(ChainError::Reverted(why))) => {
                tracing::warn!(buyer = %pair.buyer(), channel = %id, why, "the top-up is refused");
                pair.state.lock().drop_top_up();
            }
            Err(error) => self.later(pair, "top up", error)?,
        }
        Ok(())
    }

    /// The voucher to bring, and what it adds.
    fn claim(&self, pair: &PayeePair, at_the_end: bool) -> Option<(Claim, MicroUsd)> {
        let state = pair.state.lock();
        let one = state.on_chain.as_ref()?;
        let voucher = state.claimed(at_the_end);
        let claim = paper::claim(&one.on.channel.descriptor, voucher);
        let worth = claim.cumulative.min(one.on.view.deposit_seen);
        Some((claim, worth.saturating_sub(one.on.view.settled)))
    }

    async fn close(&mut self, pair: &PayeePair, now_ms: UnixMs) -> Result<(), PaymentError> {
        let id = pair.channel();
        if self.waits_for_last_word(pair, now_ms).await {
            return Ok(());
        }
        // Not weighed against what it gains: the fee of the opening was paid for this too.
        let Some((claim, _)) = self.claim(pair, true) else {
            return Ok(());
        };
        if self.sent_lately(pair, Purpose::Close, claim.cumulative, now_ms) {
            return Ok(());
        }
        let call = calls::close(&claim);
        let request = self.request(call, Purpose::Close, Some(id), MicroUsd::ZERO, true);
        match self.onchain.link.sender().submit(request).await {
            Ok(_) => {
                self.note(id, Purpose::Close, claim.cumulative, now_ms);
                tracing::info!(buyer = %pair.buyer(), channel = %id, sum_usd = %claim.cumulative, "closing");
                Ok(())
            }
            Err(error) => self.later(pair, CLOSE, error),
        }
    }

    /// Ends the channel for new requests, and asks a connected buyer for a voucher over exactly what
    /// it consumed: any other voucher pays a little more or a little less. True while it is awaited.
    async fn waits_for_last_word(&self, pair: &PayeePair, now_ms: UnixMs) -> bool {
        let is_connected = pair.is_connected().await;
        let word = pair.state.lock().last_word(is_connected, now_ms);
        if word == LastWord::Ask {
            super::session::tell_close(pair).await;
        }
        word != LastWord::Enough
    }

    /// One transaction for all that is due now.
    async fn settle(
        &mut self,
        part: &[(Arc<PayeePair>, Claim, MicroUsd, bool)],
        now_ms: UnixMs,
    ) -> Result<(), PaymentError> {
        let Some((first, claim, ..)) = part.first() else {
            return Ok(());
        };
        let gain: MicroUsd = part.iter().map(|(_, _, gain, _)| *gain).sum();
        let is_forced = part.iter().any(|(.., is_forced)| *is_forced);
        let (call, channel) = if part.len() == 1 {
            (calls::settle(claim), Some(first.channel()))
        } else {
            let claims: Vec<Claim> = part.iter().map(|(_, claim, ..)| claim.clone()).collect();
            (calls::settle_batch(&claims), None)
        };
        let request = self.request(call, Purpose::Settle, channel, gain, is_forced);
        match self.onchain.link.sender().submit(request).await {
            Ok(_) => {
                for (pair, claim, ..) in part {
                    self.note(pair.channel(), Purpose::Settle, claim.cumulative, now_ms);
                }
                tracing::info!(channels = part.len(), sum_usd = %gain, "settling");
                Ok(())
            }
            Err(error) => self.later(first, "settle", error),
        }
    }

    fn request(
        &self,
        data: Vec<u8>,
        purpose: Purpose,
        channel: Option<ChannelId>,
        gain: MicroUsd,
        is_forced: bool,
    ) -> Request {
        Request {
            to: Some(self.onchain.link.domain().hub),
            data,
            purpose,
            channel,
            gain,
            deadline_ms: is_forced.then(|| self.shared.clock.now_ms()),
        }
    }

    fn sent_lately(
        &self,
        pair: &PayeePair,
        purpose: Purpose,
        sum: MicroUsd,
        now_ms: UnixMs,
    ) -> bool {
        let tried = self.tried.get(&pair.channel());
        tried.is_some_and(|tried| tried.lately(purpose, sum, now_ms))
    }

    fn note(&mut self, id: ChannelId, purpose: Purpose, sum: MicroUsd, now_ms: UnixMs) {
        let tried = self.tried.entry(id).or_default();
        tried.note(purpose, sum, now_ms);
        self.shared.waits.lock().sent(&id);
    }

    /// It can wait; a journal that fails cannot.
    fn later(
        &mut self,
        pair: &PayeePair,
        what: &'static str,
        error: SubmitError,
    ) -> Result<(), PaymentError> {
        match error {
            SubmitError::Chain(ChainError::Journal(why)) => Err(PaymentError::Session(why)),
            // What is under way, or cheap gas, is waited for without a word.
            SubmitError::Busy(_) | SubmitError::TooDear { .. } => Ok(()),
            error => {
                let is_news = self.shared.waits.lock().later(pair.channel(), what, &error);
                if is_news {
                    tracing::warn!(buyer = %pair.buyer(), channel = %pair.channel(), what, %error,
                        "it is brought to the chain later");
                }
                Ok(())
            }
        }
    }
}

/// Tells the buyer of an end that this side wants.
pub(super) fn close_message(channel: ChannelId) -> SessionMessage {
    SessionMessage::Close {
        channel,
        last: None,
    }
}
