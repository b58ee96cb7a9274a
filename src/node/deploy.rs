//! `node chain deploy`: puts the hub, and a test token where asked, on a chain of one's own.
//!
//! It needs neither a data directory nor a ledger: what is lost when it breaks off is gas, and the
//! next try makes another hub. So the outbox's memory here is the process.

use std::sync::Arc;
use std::time::Duration;

use super::chain;
use crate::chain::hub::{Contract, calls};
use crate::chain::memory::MemoryJournal;
use crate::chain::outbox::{Request, Sender, SubmitError};
use crate::chain::rpc;
use crate::chain::transaction::keccak;
use crate::chain::{At, Call, Chain, ChainError, Receipt};
use crate::config::{ChainSection, Config};
use crate::failure::{Failure, FailureKind};
use crate::keys::PaymentKey;
use crate::types::{Clock, EvmAddress, MicroUsd, Purpose, Step, SystemClock};

/// Blocks above a deployment before it is called done, where the config does not say.
const CONFIRMATIONS: u64 = 2;
/// A chain that makes no block for this long makes them only when it is asked: nothing to wait for.
const STILL_AFTER: Duration = Duration::from_secs(8);
/// A transaction in no block after this long is given up.
const MINED_AFTER: Duration = Duration::from_secs(300);
/// Between looks at the chain.
const POLL: Duration = Duration::from_millis(250);

/// What is to be deployed.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// A token for tests as well.
    pub test_token: bool,
    /// Test tokens for these accounts.
    pub mint: Vec<(EvmAddress, MicroUsd)>,
}

/// What was deployed.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Deployed {
    /// The chain.
    pub chain_id: u64,
    /// The hub.
    pub hub: String,
    /// keccak-256 of its code, as compared.
    pub code_hash: String,
    /// The token; null without `--test-token`.
    pub token: Option<String>,
    /// The block of the hub.
    pub start_block: u64,
    /// Who paid.
    pub deployer: String,
    /// Gas of everything.
    pub gas: u64,
    /// Wei of everything.
    pub gas_wei: String,
    /// Blocks above it when this was said.
    pub confirmations: u64,
}

/// What a deployment would take. Mints are not in it: a token must be there before its gas is known.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Estimate {
    /// The chain.
    pub chain_id: u64,
    /// Who would pay.
    pub deployer: String,
    /// Gas of the hub, and of the token where one is asked for.
    pub gas: u64,
    /// Wei for that at the present price.
    pub gas_wei: String,
    /// Wei that the deployer has.
    pub balance_wei: String,
    /// Whether that is enough.
    pub is_enough: bool,
}

/// Tells how far it is.
pub type Tell<'a> = &'a (dyn Fn(&str) + Send + Sync);

/// Deploys, waits until it is settled, compares the code.
///
/// # Errors
/// When the chain does not answer, the account has no gas, or something else lies at the address.
pub async fn deploy(
    config: &Config,
    key: PaymentKey,
    wanted: &Wanted,
    tell: Tell<'_>,
) -> anyhow::Result<Deployed> {
    let (chain, section) = connect(config).await?;
    let sender = Sender::new(
        Arc::clone(&chain),
        Arc::new(MemoryJournal::default()),
        Arc::new(SystemClock),
        key,
        chain::send_settings(&section),
    );
    let chain_id = section.chain_id;
    let mut work = Work {
        chain: &*chain,
        sender: &sender,
        tell,
        gas: 0,
        wei: 0,
    };
    let hub = work.contract("the hub", Contract::Hub).await?;
    let token = if wanted.test_token {
        let token = work.contract("a test token", Contract::TestToken).await?;
        for (account, amount) in &wanted.mint {
            let what = format!(
                "{amount} test USD for {}",
                crate::keys::to_checksum(account)
            );
            let data = calls::mint(*account, *amount);
            work.mined(&what, Some(token.0), data).await?;
        }
        Some(token.0)
    } else {
        None
    };
    let depth = section.confirmations.unwrap_or(CONFIRMATIONS);
    let confirmations = work.settle(hub.1, depth).await?;
    let code_hash = work.compare(hub.0, Contract::Hub).await?;
    if let Some(token) = token {
        work.compare(token, Contract::TestToken).await?;
    }
    Ok(Deployed {
        chain_id,
        hub: crate::keys::to_checksum(&hub.0),
        code_hash,
        token: token.as_ref().map(crate::keys::to_checksum),
        start_block: hub.1,
        deployer: crate::keys::to_checksum(&sender.address()),
        gas: work.gas,
        gas_wei: work.wei.to_string(),
        confirmations,
    })
}

/// The chain of the first RPC node, if it is the one that the config says.
async fn connect(config: &Config) -> anyhow::Result<(Arc<dyn Chain>, ChainSection)> {
    let Some(url) = config.chain.rpc.first() else {
        return Err(Failure::new(FailureKind::Usage, "no RPC node")
            .hint("--rpc URL")
            .into());
    };
    let chain_id = rpc::chain_id_of(url, config.chain.call_timeout).await;
    let chain_id = chain_id.map_err(|error| chain::failure(&error))?;
    let configured = config.chain.chain_id;
    if configured != 0 && configured != chain_id {
        let message = format!("{url} serves chain {chain_id}, [chain] says {configured}");
        return Err(Failure::new(FailureKind::BadConfig, message).into());
    }
    let section = ChainSection {
        chain_id,
        ..config.chain.clone()
    };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let chain = Arc::new(chain::client(&section, &clock)?);
    Ok((chain, section))
}

/// What [`deploy`] would take; nothing is sent.
///
/// # Errors
/// When the chain does not answer.
pub async fn estimate(
    config: &Config,
    key: &PaymentKey,
    wanted: &Wanted,
) -> anyhow::Result<Estimate> {
    let (chain, section) = connect(config).await?;
    let failed = |error: ChainError| chain::failure(&error);
    let token = wanted.test_token.then_some(Contract::TestToken);
    let mut gas = 0u64;
    for contract in [Contract::Hub].into_iter().chain(token) {
        let call = Call {
            from: key.address(),
            to: None,
            data: contract.creation_code(),
            value: 0,
        };
        let one = chain.estimate_gas(call).await.map_err(failed)?;
        gas = gas.saturating_add(one);
    }
    let fees = chain.fees().await.map_err(failed)?;
    let price = fees.base.saturating_add(fees.priority);
    let wei = u128::from(gas).saturating_mul(price);
    let balance = chain.balance(key.address()).await.map_err(failed)?;
    Ok(Estimate {
        chain_id: section.chain_id,
        deployer: crate::keys::to_checksum(&key.address()),
        gas,
        gas_wei: wei.to_string(),
        balance_wei: balance.to_string(),
        is_enough: balance >= wei,
    })
}

struct Work<'a> {
    chain: &'a dyn Chain,
    sender: &'a Sender,
    tell: Tell<'a>,
    gas: u64,
    wei: u128,
}

impl Work<'_> {
    /// Deploys one contract; its address and block.
    async fn contract(
        &mut self,
        what: &str,
        contract: Contract,
    ) -> anyhow::Result<(EvmAddress, u64)> {
        let receipt = self.mined(what, None, contract.creation_code()).await?;
        let nowhere = || Failure::new(FailureKind::Failure, "the chain deployed nothing");
        Ok((receipt.created.ok_or_else(nowhere)?, receipt.block.number))
    }

    /// Sends one transaction and waits for its block.
    async fn mined(
        &mut self,
        what: &str,
        to: Option<EvmAddress>,
        data: Vec<u8>,
    ) -> anyhow::Result<Receipt> {
        (self.tell)(&format!("sending {what}"));
        let request = Request {
            to,
            data,
            purpose: Purpose::Deploy,
            channel: None,
            gain: MicroUsd::ZERO,
            deadline_ms: Some(0),
        };
        let id = self.sender.submit(request).await;
        let id = id.map_err(|error| self.refused(&error))?;
        let deadline = tokio::time::Instant::now() + MINED_AFTER;
        loop {
            let outcomes = self.sender.poll().await.map_err(|e| chain::failure(&e))?;
            for outcome in outcomes.into_iter().filter(|outcome| outcome.intent == id) {
                if outcome.step == Step::Reverted || outcome.step == Step::Displaced {
                    let message = format!("the chain refused {what}");
                    return Err(Failure::new(FailureKind::Failure, message).into());
                }
                let Some(tx) = outcome.tx else { continue };
                let found = self
                    .chain
                    .receipt(tx)
                    .await
                    .map_err(|e| chain::failure(&e))?;
                if let Some(receipt) = found {
                    self.gas = self.gas.saturating_add(receipt.gas_used);
                    self.wei = self.wei.saturating_add(outcome.fee);
                    return Ok(receipt);
                }
            }
            if tokio::time::Instant::now() >= deadline {
                let message = format!("{what} is in no block after 5 minutes; the gas price rose?");
                return Err(Failure::new(FailureKind::Network, message)
                    .retryable()
                    .into());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn refused(&self, error: &SubmitError) -> Failure {
        let account = crate::keys::to_checksum(&self.sender.address());
        match error {
            SubmitError::NoGas { .. } => {
                let hint = format!("send some of the chain's coin to {account}");
                Failure::new(FailureKind::Payment, error.to_string()).hint(hint)
            }
            SubmitError::Chain(error) => chain::failure(error),
            other => Failure::new(FailureKind::Failure, other.to_string()),
        }
    }

    /// Waits until `depth` blocks are above `block`, or no more come.
    async fn settle(&self, block: u64, depth: u64) -> anyhow::Result<u64> {
        let mut last = (0, tokio::time::Instant::now());
        loop {
            let newest = self.chain.block(At::Latest).await;
            let head = match newest {
                Ok(newest) => newest.map_or(0, |newest| newest.at.number),
                Err(ChainError::Unreachable(_)) => last.0,
                Err(error) => return Err(chain::failure(&error).into()),
            };
            let above = head.saturating_sub(block);
            if above >= depth {
                return Ok(above);
            }
            if head != last.0 {
                last = (head, tokio::time::Instant::now());
                (self.tell)(&format!("confirmed by {above} of {depth} blocks"));
            } else if last.1.elapsed() >= STILL_AFTER {
                (self.tell)("this chain makes blocks only for transactions; not waiting for more");
                return Ok(above);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Compares what lies there with what is compiled in.
    async fn compare(&self, at: EvmAddress, contract: Contract) -> anyhow::Result<String> {
        let code = self.chain.code(at).await.map_err(|e| chain::failure(&e))?;
        let hash = keccak(&code);
        if hash != contract.code_hash() {
            let shown = crate::keys::to_checksum(&at);
            let message = format!("at {shown} lies other code than was sent (0x{hash})");
            return Err(Failure::new(FailureKind::Failure, message).into());
        }
        Ok(format!("0x{hash}"))
    }
}
