//! Carrying out what was decided, and what becomes of it.

use serde::{Deserialize, Serialize};

use super::order::{Act, Order, Signing, Step};
use super::relay::ask::Talk;
use super::way::{Decided, OwnCall, Plan, Ready};
use super::{Wallet, WalletError};
use crate::chain::hub::calls;
use crate::chain::outbox::Request;
use crate::chain::{At, ChainError};
use crate::types::{ChannelId, IntentId, MicroUsd, Step as ChainStep};

/// Names something that is on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ticket {
    /// An own transaction.
    Intent(IntentText),
    /// Signed calls at a relayer: done when the hub has used this nonce in a final block.
    Nonce(u64),
    /// A channel that ends with the other side: done when the hub has closed it in a final block.
    Channel(ChannelId),
}

/// 32 hex digits in JSON.
pub type IntentText = String;

/// What was sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sent {
    /// What was decided.
    pub plan: Plan,
    /// One per transaction.
    pub tickets: Vec<Ticket>,
}

/// How far a ticket is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// `waiting`, `mined`, `confirmed` or `failed`.
    pub state: &'static str,
    /// The transaction, once it is known here.
    pub tx: Option<String>,
    /// Its block.
    pub block: Option<u64>,
    /// Wei paid for gas.
    pub fee_wei: Option<u64>,
}

impl Progress {
    const WAITING: Self = Self {
        state: "waiting",
        tx: None,
        block: None,
        fee_wei: None,
    };
}

/// What somebody else sends, as the hub shows it.
#[derive(Clone, Copy)]
enum Deed {
    /// A channel is closed.
    Closed(ChannelId),
    /// A withdrawal's nonce is used.
    Paid(u64),
}

impl Wallet {
    /// Carries an order out; returns when everything is durable and handed over.
    ///
    /// # Errors
    /// When money or gas is missing, nobody relays, or chain or ledger cannot be asked. What was
    /// sent before stays sent: the error of a later step comes alone, `balance` shows the rest.
    pub async fn send(&self, order: &Order) -> Result<Sent, WalletError> {
        let Decided {
            plan,
            ready,
            agreed,
        } = self.decide(order).await?;
        let mut tickets = vec![];
        for one in agreed {
            // It was there a moment ago; if the role lost it meanwhile, the hub says so.
            if self
                .0
                .agreement
                .as_ref()
                .is_some_and(|role| role.end(&one.channel))
            {
                tickets.push(Ticket::Channel(one.channel));
            }
        }
        match ready {
            Ready::Own(own) => {
                for call in own {
                    tickets.push(self.submit(call).await?);
                }
            }
            Ready::Relay(talks) => {
                for (talk, steps) in talks {
                    tickets.push(self.relay(talk, &steps).await?);
                }
            }
        }
        Ok(Sent { plan, tickets })
    }

    async fn submit(&self, call: OwnCall) -> Result<Ticket, WalletError> {
        let link = &self.0.link;
        let request = Request {
            to: Some(link.domain().hub),
            data: call.data,
            purpose: call.step.purpose(),
            channel: call.step.channel,
            // The owner wants it now, whatever it gains.
            gain: MicroUsd::ZERO,
            deadline_ms: Some(self.0.clock.now_ms()),
        };
        let id = link.sender().submit(request).await?;
        Ok(Ticket::Intent(id.to_string()))
    }

    async fn relay(&self, talk: Talk, steps: &[Step]) -> Result<Ticket, WalletError> {
        let signing = Signing {
            wallet: self,
            now_s: self.chain_now_s().await?,
        };
        let mut bundle = vec![];
        let (mut to, mut amount) = (self.address(), MicroUsd::ZERO);
        for step in steps {
            if let Some(call) = signing.signed(step)? {
                bundle.push(call);
            }
            if let Act::Withdraw(sum, receiver) = &step.act {
                (to, amount) = (*receiver, *sum);
            }
        }
        let (pay, nonce) = signing.pay(to, amount, talk.quote.relayer, talk.quote.fee);
        bundle.push(pay);
        self.rehearse(&bundle).await?;
        let relayer = talk.peer;
        let intent = talk.send(bundle).await.map_err(WalletError::Bad)?;
        tracing::info!(%relayer, %intent, "a relayer sends a transaction for this node");
        Ok(Ticket::Nonce(nonce))
    }

    /// Calls the bundle as the relayer would, so that what the hub refuses is said here and costs
    /// nobody gas.
    async fn rehearse(&self, bundle: &[Vec<u8>]) -> Result<(), WalletError> {
        let link = &self.0.link;
        let call = crate::chain::Call {
            from: self.address(),
            to: Some(link.domain().hub),
            data: calls::multicall(bundle.to_vec()),
            value: 0,
        };
        link.chain().call(call).await?;
        Ok(())
    }

    /// How far a ticket is, as the ledger or the hub knows it.
    ///
    /// # Errors
    /// When they cannot be asked.
    pub async fn progress(&self, ticket: &Ticket) -> Result<Progress, WalletError> {
        match ticket {
            Ticket::Intent(text) => {
                let id: IntentId = text
                    .parse()
                    .map_err(|_| WalletError::Bad(format!("`{text}` names no transaction")))?;
                let outcomes = self.0.reader.outcomes(&id).await?;
                let Some(last) = outcomes.last() else {
                    return Ok(Progress::WAITING);
                };
                let state = match (last.step, last.succeeded) {
                    (ChainStep::Mined, _) => "mined",
                    (ChainStep::Confirmed, true) => "confirmed",
                    (ChainStep::Reorged, _) => return Ok(Progress::WAITING),
                    (ChainStep::Confirmed | ChainStep::Displaced | ChainStep::Reverted, _) => {
                        "failed"
                    }
                };
                Ok(Progress {
                    state,
                    tx: last.tx.map(|tx| format!("0x{tx}")),
                    block: last.block.map(|(number, _)| number),
                    fee_wei: Some(last.fee),
                })
            }
            Ticket::Channel(id) => self.progress_of(Deed::Closed(*id)).await,
            Ticket::Nonce(nonce) => self.progress_of(Deed::Paid(*nonce)).await,
        }
    }

    /// How far something is that somebody else sends: in a block when the hub shows it, confirmed when
    /// it showed it in the final block already.
    async fn progress_of(&self, deed: Deed) -> Result<Progress, WalletError> {
        let state = if !self.is_done(deed, At::Latest).await? {
            "waiting"
        } else if self.was_done(deed).await? {
            "confirmed"
        } else {
            "mined"
        };
        Ok(Progress {
            state,
            ..Progress::WAITING
        })
    }

    async fn was_done(&self, deed: Deed) -> Result<bool, WalletError> {
        let link = &self.0.link;
        let newest = link.chain().block(At::Latest).await?;
        let head = newest.map_or(0, |block| block.at.number);
        let last = match link.watch_settings().confirmations {
            Some(depth) => At::Number(head.saturating_sub(depth)),
            None => At::Safe,
        };
        match self.is_done(deed, last).await {
            // The hub itself may be younger than the final block.
            Err(WalletError::Chain(ChainError::Malformed(_))) => Ok(false),
            other => other,
        }
    }

    async fn is_done(&self, deed: Deed, at: At) -> Result<bool, WalletError> {
        let hub = self.hub()?.at(at);
        Ok(match deed {
            Deed::Closed(id) => hub.channel(&id).await?.is_closed,
            Deed::Paid(nonce) => hub.nonce_used(self.address(), nonce).await?,
        })
    }
}
