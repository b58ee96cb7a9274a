//! One buyer as the payee sees it: the channel machine, running attempts, and receipts that wait
//! for their ACCEPT.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{CreditPool, Settings};
use crate::ledger::{ChannelRow, ChannelState, FinalRow, Ledger, LedgerError, Outcome, Row};
use crate::network::Stream;
use crate::network::framed::FrameWriter;
use crate::payment::channel::{Hold, Payee, VoucherError};
use crate::protocol::{ChannelDescriptor, DecodeError, EvmSignature};
use crate::types::{AttemptId, ChannelId, EvmAddress, MicroUsd, PeerId, UnixMs, Usage};

/// One buyer and the money between us.
pub struct PayeePair {
    buyer: PeerId,
    channel: ChannelId,
    voucher_signer: EvmAddress,
    pool: Arc<CreditPool>,
    /// The channel's row until the first order or voucher makes it worth keeping.
    unbooked: tokio::sync::Mutex<Option<ChannelRow>>,
    is_booked: AtomicBool,
    pub(super) state: Mutex<State>,
    voucher_arrived: Notify,
    pub(super) session: tokio::sync::Mutex<Option<FrameWriter<tokio::io::WriteHalf<Stream>>>>,
    /// Rises with every new session, so that an old one knows it was replaced.
    pub(super) generation: tokio::sync::watch::Sender<u64>,
}

pub(super) struct State {
    pub machine: Payee,
    pub settlements: MicroUsd,
    pub last_voucher: Option<(MicroUsd, EvmSignature)>,
    pub running: HashSet<AttemptId>,
    pub ended: HashMap<AttemptId, Ended>,
    /// Claimed by receipts and not accepted.
    pub written_off: MicroUsd,
}

/// An attempt that ended here and whose cost the buyer has not accepted yet.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The signed head (`SignedHead::bytes`).
    pub signed_head: Vec<u8>,
    /// The receipt (`SignedReceipt::bytes`); `None` after a crash before there was one.
    pub receipt: Option<Vec<u8>>,
    /// The receipt's cost, or what is known to be delivered.
    pub cost: MicroUsd,
    /// The upstream's HTTP status.
    pub status: u16,
    /// Token parts of the receipt.
    pub usage: Option<Usage>,
    /// Own count of the input.
    pub own_input: Option<u64>,
    /// Own count of the output.
    pub own_output: Option<u64>,
    /// The model as the upstream named it.
    pub model_served: String,
    /// Upstream's time to first token, ms.
    pub ttft_ms: Option<u64>,
    /// From admission to the end, ms.
    pub total_ms: u64,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

impl Ended {
    /// The most that an ACCEPT can book: the receipt's cost, or after a crash without one what the
    /// buyer's order allowed.
    #[must_use]
    pub fn most(&self) -> MicroUsd {
        if self.receipt.is_some() {
            return self.cost;
        }
        let head = crate::protocol::SignedHead::decode(&self.signed_head.clone().into());
        head.map_or(self.cost, |signed| signed.head.max_cost)
    }

    /// The final row once `billed` is agreed.
    #[must_use]
    pub fn into_final(self, attempt: AttemptId, billed: MicroUsd, at_ms: UnixMs) -> FinalRow {
        FinalRow {
            at_ms,
            attempt_id: attempt,
            outcome: if billed == MicroUsd::ZERO {
                Outcome::Failed
            } else {
                Outcome::Accepted
            },
            status: self.status,
            billed,
            model_served: self.model_served,
            usage: self.usage,
            own_input: self.own_input,
            own_output: self.own_output,
            ttft_ms: self.ttft_ms,
            total_ms: self.total_ms,
            disputed: billed < self.cost,
            receipt: self.receipt,
            error: self.error,
        }
    }
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

/// Receipts that may wait for one buyer's ACCEPT: a buyer that never accepts costs us this much
/// memory (about 1 KiB each) and no more.
const UNACCEPTED_MAX: usize = 4_096;

impl PayeePair {
    pub(super) fn new(
        row: ChannelRow,
        descriptor: &ChannelDescriptor,
        settings: &Settings,
        pool: Arc<CreditPool>,
    ) -> Self {
        let zero = MicroUsd::ZERO;
        let machine = Payee::new(settings.windows, settings.credit_limit, zero, zero);
        let (buyer, channel) = (row.peer, row.channel);
        let signer = descriptor.voucher_signer;
        Self::with(buyer, channel, signer, pool, machine, Some(row))
    }

    fn with(
        buyer: PeerId,
        channel: ChannelId,
        voucher_signer: EvmAddress,
        pool: Arc<CreditPool>,
        machine: Payee,
        unbooked: Option<ChannelRow>,
    ) -> Self {
        Self {
            buyer,
            channel,
            voucher_signer,
            pool,
            is_booked: AtomicBool::new(unbooked.is_none()),
            unbooked: tokio::sync::Mutex::new(unbooked),
            state: Mutex::new(State {
                machine,
                settlements: MicroUsd::ZERO,
                last_voucher: None,
                running: HashSet::new(),
                ended: HashMap::new(),
                written_off: MicroUsd::ZERO,
            }),
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
        let held = channel
            .voucher
            .as_ref()
            .map_or(MicroUsd::ZERO, |v| v.cumulative);
        let machine = Payee::new(settings.windows, deposit, held, channel.accepted_sum);
        let (peer, id) = (channel.row.peer, channel.row.channel);
        let pair = Self::with(peer, id, descriptor.voucher_signer, pool, machine, None);
        {
            let state = &mut *pair.state.lock();
            state.settlements = channel.settlements_sum;
            state.last_voucher = channel
                .voucher
                .as_ref()
                .map(|v| (v.cumulative, EvmSignature(v.signature)));
            for attempt in channel.unfinished {
                let delivered = attempt.delivered;
                let cost = delivered.as_ref().map_or(MicroUsd::ZERO, |d| d.cost);
                state.machine.restore_attempt(attempt.open.attempt_id, cost);
                let ended = Ended {
                    signed_head: attempt.open.signed_head,
                    cost,
                    status: delivered.as_ref().map_or(0, |d| d.status),
                    usage: delivered.as_ref().and_then(|d| d.usage),
                    own_input: delivered.as_ref().and_then(|d| d.own_input),
                    own_output: delivered.as_ref().and_then(|d| d.own_output),
                    receipt: delivered.and_then(|d| d.receipt),
                    model_served: attempt.open.model.to_string(),
                    ttft_ms: None,
                    total_ms: 0,
                    error: Some("settled_after_interruption".to_owned()),
                };
                pair.pool.add(ended.cost);
                state.ended.insert(attempt.open.attempt_id, ended);
            }
        }
        Ok(pair)
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
            u64::try_from(state.ended.len()).unwrap_or(u64::MAX),
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
                if state.ended.len() >= UNACCEPTED_MAX {
                    return Err(AdmitError::Unaccepted);
                }
                if state.written_off > state.machine.write_off_limit() {
                    return Err(AdmitError::WrittenOff);
                }
                match state.machine.admit(attempt, prefill, window) {
                    Ok(()) => {
                        state.running.insert(attempt);
                        return Ok(());
                    }
                    Err(Hold::CreditExhausted) => return Err(AdmitError::CreditExhausted),
                    Err(Hold::NeedVoucher(_)) => {}
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
        self.state.lock().machine.start(attempt, running);
    }
    /// Delivers up to meter `running` if the window allows.
    ///
    /// # Errors
    /// The voucher it takes, or that none would do.
    pub fn deliver(&self, attempt: &AttemptId, running: MicroUsd) -> Result<(), Hold> {
        self.state.lock().machine.deliver(attempt, running)
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
    pub(super) fn credit(
        &self,
        cumulative: MicroUsd,
        signature: EvmSignature,
    ) -> Result<(), VoucherError> {
        {
            let mut state = self.state.lock();
            if !state.machine.credit(cumulative)? {
                return Ok(());
            }
            state.last_voucher = Some((cumulative, signature));
        }
        self.voucher_arrived.notify_waiters();
        Ok(())
    }
    /// The attempt failed and costs nothing.
    pub fn drop_attempt(&self, attempt: &AttemptId) {
        let mut state = self.state.lock();
        state.running.remove(attempt);
        state.machine.settle(attempt, MicroUsd::ZERO);
        drop(state);
        self.voucher_arrived.notify_waiters();
    }
    /// The attempt ended with a receipt; it is repeated until it is accepted.
    pub fn end(&self, attempt: AttemptId, ended: Ended) {
        let mut state = self.state.lock();
        state.running.remove(&attempt);
        self.pool.add(ended.cost);
        state.ended.insert(attempt, ended);
    }
    /// True while the buyer's ACCEPT for an ended attempt is missing.
    #[must_use]
    pub fn awaits(&self, attempt: &AttemptId) -> bool {
        self.state.lock().ended.contains_key(attempt)
    }
    /// The buyer's ACCEPT is durable.
    pub(super) fn accepted(&self, attempt: &AttemptId, billed: MicroUsd) {
        let mut state = self.state.lock();
        if let Some(ended) = state.ended.remove(attempt) {
            self.pool.pay(ended.cost);
            let refused = ended.cost.saturating_sub(billed);
            state.written_off = state.written_off.saturating_add(refused);
        }
        if state.machine.settle(attempt, billed) {
            self.pool.add(billed);
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
        let mut state = self.state.lock();
        state.settlements = state.settlements.saturating_add(amount);
        let deposit = state.machine.deposit().saturating_add(amount);
        state.machine.set_deposit(deposit);
        deposit
    }
}
