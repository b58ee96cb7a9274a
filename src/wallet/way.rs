//! How an order's steps reach the chain, and what that costs.
//!
//! The account's own transactions, when it can pay for their gas; else signed calls through a
//! relayer, whose fee the vault pays; else the error says how much gas money is missing.

use serde::Serialize;

use super::order::{Agreed, Order, Signing, Step, Work};
use super::relay::ask::Talk;
use super::{Wallet, WalletError};
use crate::chain::Call;
use crate::chain::hub::token_balance;
use crate::chain::outbox::{SubmitError, first_offer, gas_cost};
use crate::protocol::limits::RELAY_CALLS_MAX;
use crate::protocol::relay::CallKind;
use crate::types::{MicroUsd, Purpose};

/// Gas beyond the estimate that must be affordable, in percent, as the outbox asks for.
const GAS_HEADROOM_PERCENT: u64 = 20;

/// Who sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// This account, with its own gas.
    Own,
    /// A relayer, for a fee.
    Relay,
    /// The other side of the channels, at its own cost.
    Agreed,
}

/// What an order would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The account.
    pub address: String,
    /// Who sends it.
    pub way: Way,
    /// What is sent, in order.
    pub steps: Vec<PlannedStep>,
    /// Gas of all of it, where this account pays.
    pub gas: Option<u64>,
    /// What that costs now, in wei.
    pub gas_wei: Option<String>,
    /// The same in micro-USD, at the configured price of a coin.
    pub gas_micro_usd: Option<MicroUsd>,
    /// What the relayer takes out of the vault.
    pub fee_micro_usd: Option<MicroUsd>,
    /// Its account.
    pub relayer: Option<String>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlannedStep {
    /// For people.
    pub what: String,
    /// What for.
    pub purpose: &'static str,
    /// The channel it changes.
    pub channel: Option<String>,
    /// The contract that changes.
    pub to: String,
}

/// A step ready for the outbox.
pub(super) struct OwnCall {
    pub step: Step,
    pub data: Vec<u8>,
}

/// Decided and ready.
pub(super) enum Ready {
    Own(Vec<OwnCall>),
    /// One talk per transaction, each with its steps.
    Relay(Vec<(Talk, Vec<Step>)>),
}

/// What is sent, and what the running role ends by itself.
pub(super) struct Decided {
    pub plan: Plan,
    pub ready: Ready,
    pub agreed: Vec<Agreed>,
}

impl Wallet {
    /// Shows what an order would send and what it would cost; sends nothing.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn plan(&self, order: &Order) -> Result<Plan, WalletError> {
        Ok(self.decide(order).await?.plan)
    }

    pub(super) async fn decide(&self, order: &Order) -> Result<Decided, WalletError> {
        let Work { steps, agreed } = self.work(order).await?;
        if steps.is_empty() {
            return Ok(Decided {
                plan: self.planned(Way::Agreed, &agreed, &[], None, None),
                ready: Ready::Own(vec![]),
                agreed,
            });
        }
        let signing = Signing {
            wallet: self,
            now_s: self.chain_now_s().await?,
        };
        let own: Result<Vec<OwnCall>, WalletError> = steps
            .iter()
            .map(|step| {
                let data = signing.own(step)?;
                let step = step.clone();
                Ok(OwnCall { step, data })
            })
            .collect();
        let own = own?;
        let cost = self.cost(&own).await?;
        if cost.has_wei >= cost.needed_wei {
            let steps: Vec<Step> = own.iter().map(|one| one.step.clone()).collect();
            return Ok(Decided {
                plan: self.planned(Way::Own, &agreed, &steps, Some(&cost), None),
                ready: Ready::Own(own),
                agreed,
            });
        }
        let free = self
            .hub()?
            .vault(self.0.link.token(), self.address())
            .await?;
        let steps = self.with_advance(steps, free).await?;
        let (fee, relayer, mut talks) = self.relayed(steps, &cost).await?;
        let is_all = matches!(
            order,
            Order::Withdraw {
                amount_micro_usd: None,
                ..
            }
        );
        if is_all {
            // The fee comes out of the same vault: the rest is what can be paid out.
            for step in talks.iter_mut().flat_map(|(_, steps)| steps) {
                step.keep_back(fee);
            }
        }
        let all = talks.iter().flat_map(|(_, steps)| steps).map(Step::moves);
        let (brought, taken) = all.fold((free, fee), |(has, wanted), (brings, takes)| {
            (has.saturating_add(brings), wanted.saturating_add(takes))
        });
        // Everything to the relayer and nothing to the owner is no withdrawal.
        if brought < taken || (is_all && free <= fee) {
            return Err(WalletError::Funds {
                place: "the vault, which also pays the relayer,",
                has: brought,
                wanted: taken,
            });
        }
        let relayed: Vec<Step> = talks.iter().flat_map(|(_, steps)| steps).cloned().collect();
        Ok(Decided {
            plan: self.planned(Way::Relay, &agreed, &relayed, None, Some((fee, relayer))),
            ready: Ready::Relay(talks),
            agreed,
        })
    }

    /// What the steps cost this account itself.
    async fn cost(&self, own: &[OwnCall]) -> Result<Cost, WalletError> {
        let link = &self.0.link;
        let (chain, settings) = (link.chain(), link.send_settings());
        let mut gas = 0u64;
        for one in own {
            let call = Call {
                from: self.address(),
                to: Some(link.domain().hub),
                data: one.data.clone(),
                value: 0,
            };
            gas = gas.saturating_add(chain.estimate_gas(call).await?);
        }
        let fees = chain.fees().await?;
        let offer = first_offer(fees, settings.fee_cap).ok_or(SubmitError::AboveCap)?;
        let likely = fees.base.saturating_add(fees.priority);
        let limit = gas.saturating_add(gas / 100 * GAS_HEADROOM_PERCENT);
        Ok(Cost {
            gas,
            wei: u128::from(gas).saturating_mul(likely),
            usd: gas_cost(gas, likely, settings.coin_price),
            needed_wei: u128::from(limit).saturating_mul(offer.max_fee),
            has_wei: chain.balance(self.address()).await?,
        })
    }

    /// Where nothing else brings money into a vault that cannot pay relayers, a first step does, from
    /// the wallet.
    async fn with_advance(
        &self,
        mut steps: Vec<Step>,
        free: MicroUsd,
    ) -> Result<Vec<Step>, WalletError> {
        let bundles = u64::try_from(steps.len().div_ceil(RELAY_CALLS_MAX - 1)).unwrap_or(u64::MAX);
        let least = self.0.settings.relay_fee_max.mul_div_ceil(bundles, 1);
        let is_moved = |step: &Step| step.moves() != (MicroUsd::ZERO, MicroUsd::ZERO);
        if free >= least || steps.iter().any(is_moved) {
            return Ok(steps);
        }
        let link = &self.0.link;
        let tokens = token_balance(&**link.chain(), link.token(), self.address()).await?;
        let advance = least.saturating_sub(free).min(tokens);
        if advance > MicroUsd::ZERO {
            steps.insert(0, Step::advance(advance));
        }
        Ok(steps)
    }

    /// Finds relayers for all steps, as few transactions as they fit in.
    async fn relayed(
        &self,
        steps: Vec<Step>,
        cost: &Cost,
    ) -> Result<(MicroUsd, String, Vec<(Talk, Vec<Step>)>), WalletError> {
        let no = |why: &str| WalletError::Gas {
            address: self.address(),
            has_wei: cost.has_wei,
            needed_wei: cost.needed_wei,
            why: why.to_owned(),
        };
        let Some(relayers) = &self.0.relayers else {
            return Err(no(
                "send it some, or start the node: sellers send it then, for a small fee",
            ));
        };
        let mut talks = vec![];
        let (mut fee, mut relayer) = (MicroUsd::ZERO, String::new());
        // One call of each transaction pays.
        for chunk in steps.chunks(RELAY_CALLS_MAX - 1) {
            // The withdrawal itself pays the fee; all else needs a call that does.
            let is_call = |kind: &CallKind| *kind != CallKind::Withdraw;
            let kinds = chunk.iter().map(Step::kind).filter(is_call).collect();
            let ask = relayers.ask_for(&self.0.link, kinds);
            let talk = relayers
                .talk(ask, self.0.settings.relay_fee_max)
                .await
                .map_err(|why| no(&why))?;
            fee = fee.saturating_add(talk.quote.fee);
            relayer = crate::keys::to_checksum(&talk.quote.relayer);
            talks.push((talk, chunk.to_vec()));
        }
        Ok((fee, relayer, talks))
    }

    fn planned(
        &self,
        way: Way,
        agreed: &[Agreed],
        steps: &[Step],
        cost: Option<&Cost>,
        relay: Option<(MicroUsd, String)>,
    ) -> Plan {
        let hub = crate::keys::to_checksum(&self.0.link.domain().hub);
        let ended = agreed.iter().map(|one| PlannedStep {
            what: one.text.clone(),
            purpose: Purpose::Close.as_str(),
            channel: Some(format!("0x{}", one.channel)),
            to: hub.clone(),
        });
        let steps = steps.iter().map(|step| PlannedStep {
            what: step.text.clone(),
            purpose: step.purpose().as_str(),
            channel: step.channel.map(|id| format!("0x{id}")),
            to: hub.clone(),
        });
        let (fee, relayer) = relay.unzip();
        Plan {
            address: crate::keys::to_checksum(&self.address()),
            way,
            steps: ended.chain(steps).collect(),
            gas: cost.map(|cost| cost.gas),
            gas_wei: cost.map(|cost| cost.wei.to_string()),
            gas_micro_usd: cost.map(|cost| cost.usd),
            fee_micro_usd: fee,
            relayer,
        }
    }
}

struct Cost {
    gas: u64,
    wei: u128,
    usd: MicroUsd,
    /// At the highest fee that would be offered.
    needed_wei: u128,
    has_wei: u128,
}
