//! What the owner wants, as steps that a chain understands.
//!
//! Each step has the call that this account sends itself and, where the hub has one, the form that
//! it signs and anyone may send. Signing is done late, by [`Step::signed`], so that a plan that is
//! only shown leaves no signature behind.

use serde::{Deserialize, Serialize};

use super::channels::{Held, signed};
use super::{Wallet, WalletError};
use crate::chain::digest::HubDomain;
use crate::chain::hub::{Authorization, Claim, WithdrawAuth, calls, token_balance};
use crate::ledger::Role;
use crate::protocol::Voucher;
use crate::protocol::relay::CallKind;
use crate::protocol::voucher::ChannelDescriptor;
use crate::types::{ChannelId, EvmAddress, Hash32, MicroUsd, Purpose};

/// How long a signed call may be carried around before it is void, seconds of the chain.
const VALID_S: u64 = 1_800;

/// One wish.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Order {
    /// From the wallet into the vault.
    Deposit {
        /// How much.
        amount_micro_usd: MicroUsd,
    },
    /// From the vault to an account.
    Withdraw {
        /// How much; null is all that is free.
        amount_micro_usd: Option<MicroUsd>,
        /// To whom; null is the own wallet.
        to: Option<EvmAddress>,
    },
    /// Ends channels: at once where the other side takes part or this side sells, else after the
    /// challenge period.
    Close {
        /// Which; null is all that are open.
        channels: Option<Vec<ChannelId>>,
        /// Without asking the other side.
        #[serde(default)]
        alone: bool,
    },
    /// Brings back what expired channels still hold.
    Reclaim {
        /// Which; null is all that have expired.
        channels: Option<Vec<ChannelId>>,
    },
}

/// What one step does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// Into the vault.
    Deposit(MicroUsd),
    /// Out of the vault.
    Withdraw(MicroUsd, EvmAddress),
    /// A buyer asks for the end.
    RequestClose(ChannelDescriptor),
    /// A seller ends it with the last voucher, which pays so much more.
    Close(Claim, MicroUsd),
    /// An expired channel's rest, as far as is known.
    Reclaim(ChannelDescriptor, MicroUsd),
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub act: Act,
    pub channel: Option<ChannelId>,
    /// For people.
    pub text: String,
}

impl Step {
    /// Pays out less, so that a fee is left in the vault.
    pub(super) fn keep_back(&mut self, fee: MicroUsd) {
        if let Act::Withdraw(amount, to) = self.act {
            *self = withdrawal(amount.saturating_sub(fee), to);
        }
    }
    /// Puts what relayers are to be paid from into a vault that is empty.
    pub(super) fn advance(amount: MicroUsd) -> Self {
        let text = format!("take {amount} USD from the wallet into the vault, for the relayer");
        step(Act::Deposit(amount), None, text)
    }
    /// What it brings into the own vault, and what it takes out of it.
    pub(super) const fn moves(&self) -> (MicroUsd, MicroUsd) {
        match self.act {
            Act::Deposit(amount) | Act::Reclaim(_, amount) | Act::Close(_, amount) => {
                (amount, MicroUsd::ZERO)
            }
            Act::Withdraw(amount, _) => (MicroUsd::ZERO, amount),
            Act::RequestClose(_) => (MicroUsd::ZERO, MicroUsd::ZERO),
        }
    }
    pub(super) const fn purpose(&self) -> Purpose {
        match self.act {
            Act::Deposit(_) => Purpose::Deposit,
            Act::Withdraw(..) => Purpose::Withdraw,
            Act::RequestClose(_) => Purpose::RequestClose,
            Act::Close(..) => Purpose::Close,
            Act::Reclaim(..) => Purpose::Reclaim,
        }
    }
    /// The kind of its signed form.
    pub(super) const fn kind(&self) -> CallKind {
        match self.act {
            Act::Deposit(_) => CallKind::Deposit,
            Act::Withdraw(..) => CallKind::Withdraw,
            Act::RequestClose(_) => CallKind::RequestClose,
            Act::Reclaim(..) => CallKind::Reclaim,
            Act::Close(..) => CallKind::Close,
        }
    }
}

/// A channel that the running role ends together with the other side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Agreed {
    pub channel: ChannelId,
    /// For people.
    pub text: String,
}

/// What an order comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Work {
    pub steps: Vec<Step>,
    pub agreed: Vec<Agreed>,
}

impl From<Vec<Step>> for Work {
    fn from(steps: Vec<Step>) -> Self {
        Self {
            steps,
            agreed: vec![],
        }
    }
}

/// What signatures are made with.
pub(super) struct Signing<'a> {
    pub wallet: &'a Wallet,
    /// The chain's time.
    pub now_s: u64,
}

impl Signing<'_> {
    fn domain(&self) -> HubDomain {
        self.wallet.0.link.domain()
    }
    fn until_s(&self) -> u64 {
        self.now_s.saturating_add(VALID_S)
    }

    /// The call that this account sends itself.
    pub(super) fn own(&self, step: &Step) -> Result<Vec<u8>, WalletError> {
        let token = self.wallet.0.link.token();
        Ok(match &step.act {
            // One transaction instead of an approval and a deposit.
            Act::Deposit(amount) => self.deposit(*amount)?,
            Act::Withdraw(amount, to) => calls::withdraw(token, *to, *amount),
            Act::RequestClose(descriptor) => calls::request_close(descriptor),
            Act::Close(claim, _) => calls::close(claim),
            Act::Reclaim(descriptor, _) => calls::reclaim(descriptor),
        })
    }

    /// The call that anyone may send; none for a withdrawal, which [`Self::pay`] makes together
    /// with the fee.
    pub(super) fn signed(&self, step: &Step) -> Result<Option<Vec<u8>>, WalletError> {
        Ok(match &step.act {
            Act::Deposit(amount) => Some(self.deposit(*amount)?),
            Act::RequestClose(descriptor) => {
                let id = self.domain().channel_id(descriptor);
                let digest = self.domain().request_close(&id, self.until_s());
                let signature = self.wallet.0.key.sign_hash(&digest);
                Some(calls::request_close_by_sig(
                    descriptor,
                    self.until_s(),
                    &signature,
                ))
            }
            Act::Reclaim(descriptor, _) => Some(calls::reclaim(descriptor)),
            Act::Close(claim, _) => {
                let voucher = Voucher {
                    channel: self.domain().channel_id(&claim.descriptor),
                    cumulative: claim.cumulative,
                };
                let digest = self.domain().close(&voucher, self.until_s());
                let signature = self.wallet.0.key.sign_hash(&digest);
                Some(calls::close_by_sig(claim, self.until_s(), &signature))
            }
            Act::Withdraw(..) => None,
        })
    }

    /// Pays out of the vault to `to` and the fee to the relayer; the nonce tells when it is done.
    pub(super) fn pay(
        &self,
        to: EvmAddress,
        amount: MicroUsd,
        relayer: EvmAddress,
        fee: MicroUsd,
    ) -> (Vec<u8>, u64) {
        let nonce = rand::random::<u64>();
        let auth = WithdrawAuth {
            account: self.wallet.address(),
            token: self.wallet.0.link.token(),
            to,
            amount,
            relayer,
            fee,
            nonce,
            valid_before_s: self.until_s(),
        };
        let signature = self.wallet.0.key.sign_hash(&self.domain().withdraw(&auth));
        (calls::withdraw_by_sig(&auth, &signature), nonce)
    }

    fn deposit(&self, amount: MicroUsd) -> Result<Vec<u8>, WalletError> {
        let link = &self.wallet.0.link;
        let domain = link.token_domain().ok_or_else(|| {
            WalletError::Bad("the token was not checked yet; try again in a moment".to_owned())
        })?;
        let auth = Authorization {
            from: self.wallet.address(),
            amount,
            valid_after_s: 0,
            valid_before_s: self.until_s(),
            nonce: Hash32(rand::random()),
        };
        let digest = domain.receive(&auth, self.domain().hub);
        let signature = self.wallet.0.key.sign_hash(&digest);
        Ok(calls::deposit_with_authorization(
            link.token(),
            &auth,
            &signature,
        ))
    }
}

impl Wallet {
    /// What an order comes to, with what can be checked beforehand checked.
    pub(super) async fn work(&self, order: &Order) -> Result<Work, WalletError> {
        match order {
            Order::Deposit { amount_micro_usd } => {
                Ok(self.deposit_steps(*amount_micro_usd).await?.into())
            }
            Order::Withdraw {
                amount_micro_usd,
                to,
            } => Ok(self.withdraw_steps(*amount_micro_usd, *to).await?.into()),
            Order::Close { channels, alone } => self.close_work(channels.as_deref(), *alone).await,
            Order::Reclaim { channels } => {
                Ok(self.reclaim_steps(channels.as_deref()).await?.into())
            }
        }
    }

    async fn deposit_steps(&self, amount: MicroUsd) -> Result<Vec<Step>, WalletError> {
        let link = &self.0.link;
        let has = token_balance(&**link.chain(), link.token(), self.address()).await?;
        let place = "the wallet";
        check_amount(place, amount, has)?;
        let text = format!("take {amount} USD from the wallet into the vault");
        Ok(vec![step(Act::Deposit(amount), None, text)])
    }

    async fn withdraw_steps(
        &self,
        amount: Option<MicroUsd>,
        to: Option<EvmAddress>,
    ) -> Result<Vec<Step>, WalletError> {
        let has = self
            .hub()?
            .vault(self.0.link.token(), self.address())
            .await?;
        let amount = amount.unwrap_or(has);
        check_amount("the vault", amount, has)?;
        let to = to.unwrap_or_else(|| self.address());
        if to == EvmAddress::default() || to == self.0.link.domain().hub {
            let message = "money sent to the zero address or to the hub would be lost".to_owned();
            return Err(WalletError::Bad(message));
        }
        Ok(vec![withdrawal(amount, to)])
    }

    async fn close_work(
        &self,
        ids: Option<&[ChannelId]>,
        is_alone: bool,
    ) -> Result<Work, WalletError> {
        let vouchers = signed(&self.0.reader).await?;
        let mut work = Work::default();
        for held in self.chosen(ids, &["open", "closing"]).await? {
            let name = short(&held);
            // A seller ends it also while its buyer's request runs.
            if held.state == "closing" && held.side == Role::Buy {
                if ids.is_some() {
                    let why = format!("channel {name} is closing already");
                    return Err(WalletError::Bad(why));
                }
                continue;
            }
            let partner = self.0.agreement.as_ref().filter(|_| !is_alone);
            if partner.is_some_and(|role| role.can_end(&held.id)) {
                work.agreed.push(Agreed {
                    channel: held.id,
                    text: format!("end channel {name} with the other side; its rest is free then"),
                });
                continue;
            }
            if held.side == Role::Buy {
                let hours = held.descriptor.challenge_period_s / 3_600;
                let text =
                    format!("ask for the end of channel {name}; its rest is free in {hours} h");
                let act = Act::RequestClose(held.descriptor);
                work.steps.push(step(act, Some(held.id), text));
                continue;
            }
            // The running role knows what was used of what was prepaid.
            let role = self.0.agreement.as_ref();
            let fair = role.and_then(|role| role.last_claim(&held.id));
            let highest = vouchers.get(&held.id).map(|(cumulative, signature)| Claim {
                descriptor: held.descriptor.clone(),
                cumulative: *cumulative,
                signature: *signature,
            });
            let Some(claim) = fair.or(highest) else {
                if ids.is_some() {
                    let why = format!("channel {name} has no voucher here; its buyer can end it");
                    return Err(WalletError::Bad(why));
                }
                continue;
            };
            let cumulative = claim.cumulative;
            let worth = cumulative.min(held.deposit_micro_usd);
            let gain = worth.saturating_sub(held.settled_micro_usd);
            let text = format!("settle {cumulative} USD of channel {name} and end it");
            work.steps
                .push(step(Act::Close(claim, gain), Some(held.id), text));
        }
        if work.agreed.is_empty() {
            work.steps = some(work.steps, "no channel is open")?;
        }
        Ok(work)
    }

    async fn reclaim_steps(&self, ids: Option<&[ChannelId]>) -> Result<Vec<Step>, WalletError> {
        let mut steps = vec![];
        for held in self.chosen(ids, &["expired"]).await? {
            if held.side != Role::Buy && ids.is_none() {
                continue;
            }
            let rest = held
                .deposit_micro_usd
                .saturating_sub(held.settled_micro_usd);
            let text = format!("bring {rest} USD of channel {} back", short(&held));
            let act = Act::Reclaim(held.descriptor, rest);
            steps.push(step(act, Some(held.id), text));
        }
        some(
            steps,
            "no channel has expired; `node channel close --all` asks for the end",
        )
    }

    /// The named channels, which must be in one of these states; or all that are.
    async fn chosen(
        &self,
        ids: Option<&[ChannelId]>,
        states: &[&str],
    ) -> Result<Vec<Held>, WalletError> {
        let all = self.channels().await?;
        let Some(ids) = ids else {
            let fits = |held: &Held| states.contains(&held.state);
            return Ok(all.into_iter().filter(fits).collect());
        };
        let mut chosen = vec![];
        for id in ids {
            let Some(held) = all.iter().find(|held| held.id == *id) else {
                let message = format!("there is no channel 0x{id}; `node channel list` shows all");
                return Err(WalletError::Bad(message));
            };
            if !states.contains(&held.state) {
                let (wanted, state) = (states.join(" or "), held.state);
                let message = format!("channel {} is {state}, not {wanted}", short(held));
                return Err(WalletError::Bad(message));
            }
            chosen.push(held.clone());
        }
        Ok(chosen)
    }
}

const fn step(act: Act, channel: Option<ChannelId>, text: String) -> Step {
    Step { act, channel, text }
}

fn withdrawal(amount: MicroUsd, to: EvmAddress) -> Step {
    let shown = crate::keys::to_checksum(&to);
    let text = format!("pay {amount} USD out of the vault to {shown}");
    step(Act::Withdraw(amount, to), None, text)
}

fn some(steps: Vec<Step>, none: &str) -> Result<Vec<Step>, WalletError> {
    if steps.is_empty() {
        return Err(WalletError::Bad(none.to_owned()));
    }
    Ok(steps)
}

fn check_amount(place: &'static str, wanted: MicroUsd, has: MicroUsd) -> Result<(), WalletError> {
    if wanted == MicroUsd::ZERO && has > MicroUsd::ZERO {
        return Err(WalletError::Bad("0 USD is nothing to move".to_owned()));
    }
    if wanted > has || has == MicroUsd::ZERO {
        return Err(WalletError::Funds { place, has, wanted });
    }
    Ok(())
}

/// Ten hex digits tell channels apart.
fn short(held: &Held) -> String {
    held.channel.chars().take(12).collect()
}
