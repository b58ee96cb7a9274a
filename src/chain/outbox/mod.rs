//! Sends transactions: decides whether one is worth its gas, makes it durable, signs, broadcasts,
//! raises its fees, and follows it through reorgs and restarts until it is final.
//!
//! # Layout
//! `fees` are pure decisions about money, `machine` the rules, this file the driver that asks the
//! chain and the journal. Callers: `payment` submits, `node` runs it.
//!
//! # Invariants
//! The machine's, and: records are stored before what they announce happens. When storing fails
//! the machine is thrown away; the next call takes up what is durable.

mod fees;
mod machine;
#[cfg(test)]
mod machine_tests;
mod pending;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;

pub use fees::{Offer, Worth, first_offer, gas_cost, next_offer, worth};
pub use machine::{Action, Busy, Outbox, Rules, View, Wanted};

use super::journal::{Intent, Journal, Outcome, Purpose, Record};
use super::transaction::sign;
use super::{At, Call, Chain, ChainError, NonceAt};
use crate::keys::PaymentKey;
use crate::types::{ChannelId, Clock, EvmAddress, IntentId, MicroUsd, UnixMs};

/// Outcomes that may wait for their reader.
pub const OUTCOMES_QUEUED_MAX: usize = 256;
/// Gas beyond the estimate, in percent: the state may change before the transaction is mined.
const GAS_HEADROOM_PERCENT: u64 = 20;

/// How a sender works.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The chain.
    pub chain_id: u64,
    /// Most wei per gas ever offered.
    pub fee_cap: u128,
    /// What one whole coin of the chain costs (10^18 wei), for comparing gas with gain.
    pub coin_price: MicroUsd,
    /// How long before its deadline a transaction is forced.
    pub lead_ms: u64,
    /// How long the first in line waits before its fees are raised.
    pub bump_after_ms: u64,
    /// How long a missing nonce may come from somebody else before it is filled.
    pub gap_patience_ms: u64,
    /// Pending intents at most.
    pub pending_max: usize,
    /// Blocks below the head that count as final; none believes the node's `safe` tag.
    pub confirmations: Option<u64>,
    /// Time between looks at the chain.
    pub poll_every: Duration,
}

impl Settings {
    /// Usual settings for a rollup.
    #[must_use]
    pub const fn new(chain_id: u64, coin_price: MicroUsd) -> Self {
        Self {
            chain_id,
            // 50 gwei: a thousand times what a rollup asks on a usual day.
            fee_cap: 50_000_000_000,
            coin_price,
            lead_ms: 3_600_000,
            bump_after_ms: 60_000,
            gap_patience_ms: 120_000,
            pending_max: 64,
            confirmations: None,
            poll_every: Duration::from_secs(4),
        }
    }
}

/// What is asked to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The contract; none makes one.
    pub to: Option<EvmAddress>,
    /// Function and arguments.
    pub data: Vec<u8>,
    /// What for.
    pub purpose: Purpose,
    /// The channel it changes, if it is one.
    pub channel: Option<ChannelId>,
    /// What it gains.
    pub gain: MicroUsd,
    /// Until when it must be mined; with no gain and no deadline of its own, the time of asking.
    pub deadline_ms: Option<UnixMs>,
}

/// Why nothing was sent.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SubmitError {
    /// The channel or the outbox has enough under way: after an outcome again.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// Gas is too dear for what it gains: later again.
    #[error("gas would cost {cost} USD for a gain of {gain} USD; it can wait")]
    TooDear {
        /// What the gas costs now.
        cost: MicroUsd,
        /// What is gained.
        gain: MicroUsd,
    },
    /// Fees are above the cap: later again.
    #[error("the chain asks more for gas than the cap allows; it can wait")]
    AboveCap,
    /// The account cannot pay the gas: send it some.
    #[error("the account needs {needed_wei} wei for gas and has {has_wei}")]
    NoGas {
        /// At the highest fee that would be offered.
        needed_wei: u128,
        /// What it has.
        has_wei: u128,
    },
    /// The chain refused it or could not be asked.
    #[error(transparent)]
    Chain(#[from] ChainError),
}

/// Sends the transactions of one key on one chain.
pub struct Sender {
    chain: Arc<dyn Chain>,
    journal: Arc<dyn Journal>,
    clock: Arc<dyn Clock>,
    key: PaymentKey,
    settings: Settings,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// None before the first call and after a failed store.
    machine: Option<Outbox>,
    /// Outcomes that a submission came across, for the next poll.
    unread: Vec<Outcome>,
}

impl Sender {
    /// Sends nothing yet; what a process before left is taken up with the first call.
    #[must_use]
    pub fn new(
        chain: Arc<dyn Chain>,
        journal: Arc<dyn Journal>,
        clock: Arc<dyn Clock>,
        key: PaymentKey,
        settings: Settings,
    ) -> Self {
        Self {
            chain,
            journal,
            clock,
            key,
            settings,
            state: Mutex::default(),
        }
    }

    /// The chain they go to.
    #[must_use]
    pub fn chain(&self) -> &Arc<dyn Chain> {
        &self.chain
    }
    /// What remembers them.
    #[must_use]
    pub fn journal(&self) -> &Arc<dyn Journal> {
        &self.journal
    }
    /// What tells their time.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }
    /// How they are sent.
    #[must_use]
    pub const fn settings(&self) -> Settings {
        self.settings
    }
    /// Whose transactions.
    #[must_use]
    pub const fn address(&self) -> EvmAddress {
        self.key.address()
    }

    /// Makes a transaction durable and begins to send it; returns when the intent is durable and a
    /// first broadcast was tried.
    ///
    /// # Errors
    /// [`SubmitError`]; nothing was stored then, unless the journal itself failed.
    pub async fn submit(&self, request: Request) -> Result<IntentId, SubmitError> {
        let mut state = self.state.lock().await;
        let mut machine = self.take_up(state.machine.take()).await?;
        let intent = match self.begin(&machine, request).await {
            Ok(intent) => intent,
            Err(error) => {
                state.machine = Some(machine);
                return Err(error);
            }
        };
        let id = intent.id;
        self.keep(Record::Intent(intent.clone())).await?;
        machine.admit(intent);
        match self.advance(&mut machine).await {
            Ok(outcomes) => state.unread.extend(outcomes),
            Err(error @ ChainError::Journal(_)) => return Err(error.into()),
            Err(error) => {
                tracing::warn!(%error, "a transaction is durable and will be sent later");
            }
        }
        state.machine = Some(machine);
        Ok(id)
    }

    async fn begin(&self, machine: &Outbox, request: Request) -> Result<Intent, SubmitError> {
        machine.may_begin(request.channel)?;
        let call = Call {
            from: self.address(),
            to: request.to,
            data: request.data.clone(),
            value: 0,
        };
        let estimate = self.chain.estimate_gas(call).await?;
        let gas_limit = estimate.saturating_add(estimate / 100 * GAS_HEADROOM_PERCENT);
        let fees = self.chain.fees().await?;
        let offer = first_offer(fees, self.settings.fee_cap).ok_or(SubmitError::AboveCap)?;
        let likely = fees.base.saturating_add(fees.priority);
        let cost = gas_cost(estimate, likely, self.settings.coin_price);
        let now_ms = self.clock.now_ms();
        let (gain, deadline) = (request.gain, request.deadline_ms);
        if worth(gain, cost, deadline, self.settings.lead_ms, now_ms) == Worth::Wait {
            return Err(SubmitError::TooDear { cost, gain });
        }
        let needed_wei = u128::from(gas_limit).saturating_mul(offer.max_fee);
        let has_wei = self.chain.balance(self.address()).await?;
        if has_wei < needed_wei {
            return Err(SubmitError::NoGas {
                needed_wei,
                has_wei,
            });
        }
        let pending_nonce = self.chain.nonce(self.address(), NonceAt::Pending).await?;
        let wanted = Wanted {
            id: IntentId(rand::random()),
            to: request.to,
            data: request.data,
            value: 0,
            gas_limit,
            purpose: request.purpose,
            channel: request.channel,
            gain,
        };
        Ok(machine.begin(wanted, pending_nonce, now_ms)?)
    }

    /// Looks at the chain once and does what follows; returns what became of intents.
    ///
    /// # Errors
    /// When the chain or the journal cannot be asked.
    pub async fn poll(&self) -> Result<Vec<Outcome>, ChainError> {
        let mut state = self.state.lock().await;
        let mut machine = self.take_up(state.machine.take()).await?;
        let result = self.advance(&mut machine).await;
        if !matches!(result, Err(ChainError::Journal(_))) {
            state.machine = Some(machine);
        }
        let news = result?;
        let mut outcomes = std::mem::take(&mut state.unread);
        outcomes.extend(news);
        Ok(outcomes)
    }

    /// Polls until `cancel`; hands outcomes to `outcomes`.
    ///
    /// # Errors
    /// When the journal fails.
    pub async fn run(
        &self,
        outcomes: mpsc::Sender<Outcome>,
        cancel: CancellationToken,
    ) -> Result<(), ChainError> {
        loop {
            match self.poll().await {
                Ok(news) => {
                    for outcome in news {
                        if outcomes.send(outcome).await.is_err() {
                            return Ok(());
                        }
                    }
                }
                Err(error @ ChainError::Journal(_)) => return Err(error),
                Err(error) => tracing::warn!(%error, "transactions cannot be followed now"),
            }
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                () = tokio::time::sleep(self.settings.poll_every) => {}
            }
        }
    }

    async fn take_up(&self, machine: Option<Outbox>) -> Result<Outbox, ChainError> {
        if let Some(machine) = machine {
            return Ok(machine);
        }
        let open = self
            .journal
            .open_intents(self.settings.chain_id, self.address())
            .await?;
        let rules = Rules {
            chain_id: self.settings.chain_id,
            sender: self.address(),
            fee_cap: self.settings.fee_cap,
            bump_after_ms: self.settings.bump_after_ms,
            gap_patience_ms: self.settings.gap_patience_ms,
            pending_max: self.settings.pending_max,
        };
        Ok(Outbox::restore(rules, open))
    }

    async fn advance(&self, machine: &mut Outbox) -> Result<Vec<Outcome>, ChainError> {
        if machine.is_empty() {
            return Ok(vec![]);
        }
        let view = self.view(machine).await?;
        let now_ms = self.clock.now_ms();
        let mut outcomes = vec![];
        // What the machine decided is stored first, so that an unreachable chain loses none of it.
        let (stores, others): (Vec<_>, Vec<_>) = machine
            .step(&view, now_ms)
            .into_iter()
            .partition(|action| matches!(action, Action::Store(_)));
        for action in stores {
            if let Action::Store(outcome) = action {
                self.keep(Record::Outcome(outcome.clone())).await?;
                tracing::info!(intent = %outcome.intent, step = outcome.step.as_str(), "transaction");
                outcomes.push(outcome);
            }
        }
        for action in others {
            match action {
                Action::Store(_) => {}
                Action::Fill(intent) => {
                    self.keep(Record::Intent(intent.clone())).await?;
                    machine.admit(intent);
                }
                Action::Sign { nonce, offer } => {
                    let Some(unsigned) = machine.unsigned(nonce, offer) else {
                        continue;
                    };
                    let signed = sign(&unsigned, &self.key);
                    let raw = signed.raw.clone();
                    let Some(sent) = machine.signed(nonce, offer, signed, now_ms) else {
                        continue;
                    };
                    self.keep(Record::Sent(sent)).await?;
                    crate::failpoint::hit("chain-signed");
                    self.broadcast(machine, nonce, raw).await;
                }
                Action::Broadcast { nonce, raw } => self.broadcast(machine, nonce, raw).await,
            }
        }
        Ok(outcomes)
    }

    async fn broadcast(&self, machine: &mut Outbox, nonce: u64, raw: Vec<u8>) {
        let taken = match self.chain.send(raw).await {
            Ok(()) => Ok(()),
            Err(ChainError::NotTaken { why, message }) => {
                tracing::debug!(nonce, message, "a transaction was not taken");
                Err(why)
            }
            Err(error) => {
                tracing::warn!(nonce, %error, "a transaction could not be handed over");
                return;
            }
        };
        machine.broadcast(nonce, taken, self.clock.now_ms());
    }

    async fn view(&self, machine: &Outbox) -> Result<View, ChainError> {
        let account = self.address();
        let missing = || ChainError::Malformed("no newest block".to_owned());
        let head = self
            .chain
            .block(At::Latest)
            .await?
            .ok_or_else(missing)?
            .at
            .number;
        let final_block = match self.settings.confirmations {
            Some(depth) => head.saturating_sub(depth),
            None => self
                .chain
                .block(At::Safe)
                .await?
                .map_or(0, |safe| safe.at.number),
        };
        let mut receipts = BTreeMap::new();
        for tx in machine.wanted_receipts() {
            receipts.insert(tx, self.chain.receipt(tx).await?);
        }
        let mined_nonce = self.chain.nonce(account, NonceAt::Latest).await?;
        // Full nodes forget old states soon, so an old count is asked for only where it decides.
        let final_nonce = if machine.has_doubts(mined_nonce, &receipts) {
            let then = NonceAt::Number(final_block);
            self.chain.nonce(account, then).await?
        } else {
            0
        };
        Ok(View {
            mined_nonce,
            final_nonce,
            pending_nonce: self.chain.nonce(account, NonceAt::Pending).await?,
            final_block,
            fees: self.chain.fees().await?,
            receipts,
        })
    }

    async fn keep(&self, record: Record) -> Result<(), ChainError> {
        Ok(self.journal.store(vec![record]).await?)
    }
}
