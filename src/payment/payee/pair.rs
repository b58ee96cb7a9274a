//! One buyer and the money between us: [`PayeeState`] behind a lock, with what waits for vouchers
//! and the credit that all buyers share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::on_chain::Hubbed;
use super::state::{Ended, NotAdmitted, PayeeState};
use super::{CreditPool, Settings};
use crate::chain::watcher::ChainEvent;
use crate::ledger::{ChannelRow, ChannelState, Ledger, LedgerError, Row, VoucherRow};
use crate::network::Stream;
use crate::network::framed::FrameWriter;
use crate::payment::channel::Hold;
use crate::payment::onchain::{ChannelView, OnChannel, Rules};
use crate::protocol::voucher::VoucherDomain;
use crate::protocol::{ChannelDescriptor, DecodeError, EvmSignature};
use crate::types::{AttemptId, ChannelId, EvmAddress, MicroUsd, PeerId, UnixMs};

/// One buyer and the money between us.
pub struct PayeePair {
    buyer: PeerId,
    channel: ChannelId,
    domain: VoucherDomain,
    voucher_signer: EvmAddress,
    /// The credit that all buyers share; a channel on a chain has no part in it.
    pool: Option<Arc<CreditPool>>,
    /// Number and signature of the opening, as the channel's rows name them.
    opened_by: (u64, [u8; 64]),
    /// The handshake of its session is over: what it is about is known to both.
    is_agreed: AtomicBool,
    /// The channel's row until the first order or voucher makes it worth keeping.
    unbooked: tokio::sync::Mutex<Option<ChannelRow>>,
    is_booked: AtomicBool,
    pub(super) state: Mutex<PayeeState>,
    voucher_arrived: Arc<Notify>,
    pub(super) session: tokio::sync::Mutex<Option<FrameWriter<tokio::io::WriteHalf<Stream>>>>,
    /// Rises with every new session, so that an old one knows it was replaced.
    pub(super) generation: tokio::sync::watch::Sender<u64>,
}

/// Why a request is not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdmitError {
    /// The head names another channel than this buyer's.
    UnknownChannel,
    /// The buyer's credit, or the credit for all buyers, is used up.
    CreditExhausted,
    /// The voucher that pays the prefill did not come in time.
    VoucherLate,
    /// Too many receipts wait for this buyer's ACCEPT.
    Unaccepted,
    /// This buyer refuses to accept more than honest counting differs.
    WrittenOff,
    /// The chain has not confirmed enough of the deposit yet.
    Unconfirmed,
    /// The channel ends; the buyer may open another.
    Ending,
}

impl PayeePair {
    pub(super) fn on_credit(
        row: ChannelRow,
        descriptor: &ChannelDescriptor,
        settings: &Settings,
        pool: Arc<CreditPool>,
    ) -> Self {
        let state = PayeeState::new(settings.windows, settings.credit_limit);
        let signer = descriptor.voucher_signer;
        let id = (row.peer, row.channel, VoucherDomain::Credit);
        let by = (row.epoch, row.open_signature);
        Self::with(id, by, signer, Some(pool), state, Some(row))
    }

    pub(super) fn on_chain(row: ChannelRow, on_chain: Hubbed, settings: &Settings) -> Self {
        let channel = &on_chain.on.channel;
        let signer = channel.descriptor.voucher_signer;
        let id = (row.peer, row.channel, VoucherDomain::Hub(channel.domain));
        let state = PayeeState::new(settings.windows, row.deposit).with_chain(on_chain);
        let by = (row.epoch, row.open_signature);
        Self::with(id, by, signer, None, state, Some(row))
    }

    fn with(
        (buyer, channel, domain): (PeerId, ChannelId, VoucherDomain),
        opened_by: (u64, [u8; 64]),
        voucher_signer: EvmAddress,
        pool: Option<Arc<CreditPool>>,
        state: PayeeState,
        unbooked: Option<ChannelRow>,
    ) -> Self {
        Self {
            buyer,
            channel,
            domain,
            voucher_signer,
            pool,
            opened_by,
            is_agreed: AtomicBool::new(false),
            is_booked: AtomicBool::new(unbooked.is_none()),
            unbooked: tokio::sync::Mutex::new(unbooked),
            state: Mutex::new(state),
            voucher_arrived: Arc::default(),
            session: tokio::sync::Mutex::new(None),
            generation: tokio::sync::watch::Sender::new(0),
        }
    }

    pub(super) fn restore(
        channel: ChannelState,
        deposit: MicroUsd,
        settings: &Settings,
        pool: Arc<CreditPool>,
    ) -> Result<Self, DecodeError> {
        let descriptor = ChannelDescriptor::from_bytes(&channel.row.descriptor)?;
        let id = (channel.row.peer, channel.row.channel, VoucherDomain::Credit);
        let by = (channel.row.epoch, channel.row.open_signature);
        let state = PayeeState::restore(settings.windows, deposit, channel);
        pool.add(state.claims());
        let signer = descriptor.voucher_signer;
        Ok(Self::with(id, by, signer, Some(pool), state, None))
    }

    pub(super) fn restore_on_chain(
        channel: ChannelState,
        on: OnChannel,
        rules: Rules,
        vouchers: Vec<VoucherRow>,
        settings: &Settings,
    ) -> Self {
        let named = &on.channel;
        let signer = named.descriptor.voucher_signer;
        let domain = VoucherDomain::Hub(named.domain);
        let id = (channel.row.peer, channel.row.channel, domain);
        let used_ms = channel
            .voucher
            .as_ref()
            .map_or(channel.row.at_ms, |v| v.at_ms);
        let deposit = channel.row.deposit;
        let by = (channel.row.epoch, channel.row.open_signature);
        let mut on_chain = Hubbed::new(on, rules, used_ms);
        for voucher in vouchers {
            on_chain.keep(voucher.cumulative, EvmSignature(voucher.signature));
        }
        let state = PayeeState::restore(settings.windows, deposit, channel).with_chain(on_chain);
        let pair = Self::with(id, by, signer, None, state, None);
        pair.agree();
        pair
    }

    /// Both sides know what this channel is about: it may be brought to the chain.
    pub(super) fn agree(&self) {
        self.is_agreed.store(true, Ordering::Release);
    }
    pub(super) fn is_agreed(&self) -> bool {
        self.is_agreed.load(Ordering::Acquire)
    }
    pub(super) const fn opened_by(&self) -> (u64, [u8; 64]) {
        self.opened_by
    }
    /// Where vouchers of this channel are worth something.
    #[must_use]
    pub const fn domain(&self) -> VoucherDomain {
        self.domain
    }
    /// A channel that this ledger lost: what the buyer signed counts as delivered.
    pub(super) async fn adopt_lost(&self, cumulative: MicroUsd) {
        let mut unbooked = self.unbooked.lock().await;
        let mut state = self.state.lock();
        let channel = state.adopt_lost(cumulative);
        if let (Some(row), Some(channel)) = (unbooked.as_mut(), channel) {
            row.descriptor = channel.to_bytes();
        }
    }
    /// An event of the chain; wakes what waits for a confirmation.
    pub(super) fn chain_event(&self, event: &ChainEvent) -> bool {
        let changed = self.state.lock().chain_event(event);
        if changed {
            self.voucher_arrived.notify_waiters();
        }
        changed
    }
    /// The chain will never open this channel.
    pub(super) fn give_up(&self) {
        self.state.lock().give_up();
        self.voucher_arrived.notify_waiters();
    }
    /// What the chain shows; none in credit mode.
    #[must_use]
    pub fn view(&self) -> Option<ChannelView> {
        self.state.lock().on_chain.as_ref().map(|one| one.on.view)
    }
    /// True when the channel can pay no more.
    pub(super) fn is_over(&self, now_ms: UnixMs) -> bool {
        self.state.lock().is_over(now_ms)
    }
    /// True while the buyer's session stands.
    pub(super) async fn is_connected(&self) -> bool {
        self.session.lock().await.is_some()
    }
    /// True when nothing new is admitted and nothing runs.
    pub(super) fn has_ended(&self) -> bool {
        self.state.lock().has_ended()
    }

    /// The buyer.
    #[must_use]
    pub const fn buyer(&self) -> &PeerId {
        &self.buyer
    }
    /// The channel that pays.
    #[must_use]
    pub const fn channel(&self) -> ChannelId {
        self.channel
    }
    /// Hands the channel's row to the ledger once, ahead of any row that names the channel.
    ///
    /// # Errors
    /// When the ledger has stopped.
    pub async fn book_channel(&self, ledger: &Ledger) -> Result<(), LedgerError> {
        if self.is_booked() {
            return Ok(());
        }
        let mut unbooked = self.unbooked.lock().await;
        if let Some(row) = unbooked.take() {
            ledger.submit(vec![Row::Channel(row)]).await?;
            self.is_booked.store(true, Ordering::Release);
        }
        Ok(())
    }
    pub(super) fn is_booked(&self) -> bool {
        self.is_booked.load(Ordering::Acquire)
    }
    pub(super) const fn voucher_signer(&self) -> &EvmAddress {
        &self.voucher_signer
    }
    /// A: the highest durable voucher.
    #[must_use]
    pub fn held(&self) -> MicroUsd {
        self.state.lock().machine.held()
    }
    /// Deposit, voucher, delivered, settled, settlements, attempts without ACCEPT.
    #[must_use]
    pub fn snapshot(&self) -> [u64; 6] {
        let state = self.state.lock();
        let machine = &state.machine;
        [
            machine.deposit().0,
            machine.held().0,
            machine.book().total().0,
            machine.book().settled().0,
            state.settlements.0,
            u64::try_from(state.ended_count()).unwrap_or(u64::MAX),
        ]
    }

    /// Admits an attempt, waiting up to `wait` for the voucher its prefill needs.
    ///
    /// # Errors
    /// When the credit is used up or the voucher is late; nothing is kept then.
    pub async fn admit(
        &self,
        attempt: AttemptId,
        prefill: MicroUsd,
        window: MicroUsd,
        now_ms: UnixMs,
        wait: Duration,
    ) -> Result<(), AdmitError> {
        let pool = self.pool.as_ref();
        if window > MicroUsd::ZERO && pool.is_some_and(|pool| pool.exhausted()) {
            return Err(AdmitError::CreditExhausted);
        }
        let deadline = tokio::time::Instant::now() + wait;
        let mut late;
        loop {
            let arrived = self.voucher_arrived.notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            {
                let mut state = self.state.lock();
                match state.admit(attempt, prefill, window, now_ms) {
                    Ok(()) => return Ok(()),
                    Err(NotAdmitted::Unaccepted) => return Err(AdmitError::Unaccepted),
                    Err(NotAdmitted::WrittenOff) => return Err(AdmitError::WrittenOff),
                    Err(NotAdmitted::Held(Hold::CreditExhausted)) => {
                        return Err(AdmitError::CreditExhausted);
                    }
                    Err(NotAdmitted::Ending) => return Err(AdmitError::Ending),
                    Err(NotAdmitted::Held(Hold::NeedVoucher(_))) => late = AdmitError::VoucherLate,
                    Err(NotAdmitted::Held(Hold::Unconfirmed(_))) => late = AdmitError::Unconfirmed,
                }
            }
            tokio::select! {
                () = arrived => {}
                () = tokio::time::sleep_until(deadline) => return Err(late),
            }
        }
    }
    /// RESP_HEAD goes out with the meter at `running`.
    pub fn start(&self, attempt: &AttemptId, running: MicroUsd) {
        self.state.lock().start(attempt, running);
    }
    /// Delivers up to meter `running` if the window allows.
    ///
    /// # Errors
    /// The voucher it takes, or that none would do.
    pub fn deliver(&self, attempt: &AttemptId, running: MicroUsd) -> Result<(), Hold> {
        self.state.lock().deliver(attempt, running)
    }
    /// What may still be delivered on this channel before the next voucher.
    #[must_use]
    pub fn room(&self) -> MicroUsd {
        self.state.lock().machine.room()
    }
    /// Most that is delivered in all for what the chain has confirmed.
    #[must_use]
    pub fn ceiling(&self) -> MicroUsd {
        self.state.lock().machine.ceiling()
    }
    /// Resolves at the next credited voucher or confirmation; make it before checking, so that none is missed.
    pub fn next_voucher(&self) -> tokio::sync::futures::Notified<'_> {
        self.voucher_arrived.notified()
    }
    /// The same, for whoever does other things meanwhile.
    pub fn next_voucher_owned(&self) -> tokio::sync::futures::OwnedNotified {
        Arc::clone(&self.voucher_arrived).notified_owned()
    }
    /// A durable voucher raises A and wakes what waits for it.
    pub(super) fn credit(&self, cumulative: MicroUsd, signature: EvmSignature) {
        if self.state.lock().credit(cumulative, signature) {
            self.voucher_arrived.notify_waiters();
        }
    }
    /// The attempt failed and costs nothing.
    pub fn drop_attempt(&self, attempt: &AttemptId) {
        self.state.lock().drop_attempt(attempt);
        self.voucher_arrived.notify_waiters();
    }
    /// The attempt ended with a receipt; it is repeated until it is accepted.
    pub fn end(&self, attempt: AttemptId, ended: Ended) {
        let mut state = self.state.lock();
        if let Some(pool) = &self.pool {
            pool.add(ended.cost);
        }
        state.end(attempt, ended);
    }
    /// True while the buyer's ACCEPT for an ended attempt is missing.
    #[must_use]
    pub fn awaits(&self, attempt: &AttemptId) -> bool {
        self.state.lock().awaits(attempt)
    }
    /// The buyer's ACCEPT is durable.
    pub(super) fn accepted(&self, attempt: &AttemptId, billed: MicroUsd, now_ms: UnixMs) {
        let mut state = self.state.lock();
        let accepted = state.accepted(attempt, billed, now_ms);
        if let Some(pool) = &self.pool {
            pool.pay(accepted.claim);
            pool.add(accepted.owed);
        }
        drop(state);
        self.voucher_arrived.notify_waiters();
    }
    /// Accepted cost that no settlement covers yet.
    pub(super) fn owed(&self) -> MicroUsd {
        let state = self.state.lock();
        state
            .machine
            .book()
            .settled()
            .saturating_sub(state.settlements)
    }
    pub(super) fn add_settlement(&self, amount: MicroUsd) -> MicroUsd {
        self.state.lock().add_settlement(amount)
    }
}
