//! One buyer and the money between us: [`PayeeState`] behind a lock, with what waits for vouchers
//! and the credit that all buyers share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::state::{Ended, NotAdmitted, PayeeState};
use super::{CreditPool, Settings};
use crate::ledger::{ChannelRow, ChannelState, Ledger, LedgerError, Row};
use crate::network::Stream;
use crate::network::framed::FrameWriter;
use crate::payment::channel::Hold;
use crate::protocol::{ChannelDescriptor, DecodeError, EvmSignature};
use crate::types::{AttemptId, ChannelId, EvmAddress, MicroUsd, PeerId, UnixMs};

/// One buyer and the money between us.
pub struct PayeePair {
    buyer: PeerId,
    channel: ChannelId,
    voucher_signer: EvmAddress,
    pool: Arc<CreditPool>,
    /// The channel's row until the first order or voucher makes it worth keeping.
    unbooked: tokio::sync::Mutex<Option<ChannelRow>>,
    is_booked: AtomicBool,
    pub(super) state: Mutex<PayeeState>,
    voucher_arrived: Notify,
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
}

impl PayeePair {
    pub(super) fn new(
        row: ChannelRow,
        descriptor: &ChannelDescriptor,
        settings: &Settings,
        pool: Arc<CreditPool>,
    ) -> Self {
        let state = PayeeState::new(settings.windows, settings.credit_limit);
        let (buyer, channel) = (row.peer, row.channel);
        let signer = descriptor.voucher_signer;
        Self::with(buyer, channel, signer, pool, state, Some(row))
    }

    fn with(
        buyer: PeerId,
        channel: ChannelId,
        voucher_signer: EvmAddress,
        pool: Arc<CreditPool>,
        state: PayeeState,
        unbooked: Option<ChannelRow>,
    ) -> Self {
        Self {
            buyer,
            channel,
            voucher_signer,
            pool,
            is_booked: AtomicBool::new(unbooked.is_none()),
            unbooked: tokio::sync::Mutex::new(unbooked),
            state: Mutex::new(state),
            voucher_arrived: Notify::new(),
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
        let (peer, id) = (channel.row.peer, channel.row.channel);
        let state = PayeeState::restore(settings.windows, deposit, channel);
        pool.add(state.claims());
        let signer = descriptor.voucher_signer;
        Ok(Self::with(peer, id, signer, pool, state, None))
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
        if window > MicroUsd::ZERO && self.pool.exhausted() {
            return Err(AdmitError::CreditExhausted);
        }
        let deadline = tokio::time::Instant::now() + wait;
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
                    Err(NotAdmitted::Held(Hold::NeedVoucher(_))) => {}
                }
            }
            tokio::select! {
                () = arrived => {}
                () = tokio::time::sleep_until(deadline) => return Err(AdmitError::VoucherLate),
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
    /// Resolves at the next credited voucher; make it before checking, so that none is missed.
    pub fn next_voucher(&self) -> tokio::sync::futures::Notified<'_> {
        self.voucher_arrived.notified()
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
        self.pool.add(ended.cost);
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
        self.pool.pay(accepted.claim);
        self.pool.add(accepted.owed);
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
