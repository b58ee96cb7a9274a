//! The hub contract and the test token: calldata, queries, events, and the check that the code at
//! an address is the code this program was built with.
//!
//! The bindings come from the committed artifacts, so a build needs neither a compiler nor a
//! network. `payment` builds calls here and hands them to the outbox; the watcher decodes logs.

mod abi;
mod auth;
pub mod calls;
pub(super) mod convert;
mod events;
mod read;
pub mod topics;

use alloy::primitives::{Address, B256, U256};
use alloy::sol_types::SolCall;

pub(super) use self::abi::signed;
use self::abi::{ChannelHub, TestUSD};
use self::convert::{address, b256, money};
pub use auth::{Authorization, Claim, OpenAuth, WithdrawAuth};
pub use events::{HubEvent, HubLog};
pub use read::HubCall;

use super::digest::HubDomain;
use super::transaction::keccak;
use super::{At, Call, Chain, ChainError};
use crate::types::{ChannelId, EvmAddress, Hash32, MicroUsd};

/// A contract that this program can deploy and recognise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contract {
    /// The hub.
    Hub,
    /// A token for test chains.
    TestToken,
}

impl Contract {
    /// What a deploying transaction carries.
    #[must_use]
    pub fn creation_code(self) -> Vec<u8> {
        match self {
            Self::Hub => ChannelHub::BYTECODE.to_vec(),
            Self::TestToken => TestUSD::BYTECODE.to_vec(),
        }
    }
    /// keccak-256 of the code at its address, the same on every chain.
    #[must_use]
    pub fn code_hash(self) -> Hash32 {
        match self {
            Self::Hub => keccak(&ChannelHub::DEPLOYED_BYTECODE),
            Self::TestToken => keccak(&TestUSD::DEPLOYED_BYTECODE),
        }
    }
}

/// A channel as the contract keeps it; all zero when it never opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OnChain {
    /// Most that vouchers are worth.
    pub deposit: MicroUsd,
    /// All that was paid.
    pub settled: MicroUsd,
    /// When the rest may go back, in seconds; 0 when it never opened.
    pub expiry_s: u64,
    /// The buyer asked for a close.
    pub is_closing: bool,
    /// It is closed for good.
    pub is_closed: bool,
}

/// A hub at an address of a chain.
#[derive(Clone, Copy)]
pub struct Hub<'a> {
    chain: &'a dyn Chain,
    domain: HubDomain,
    at: At,
}

impl<'a> Hub<'a> {
    /// Trusts the address after its code and its domain were compared with what is built in.
    ///
    /// # Errors
    /// [`ChainError::OtherContract`] when something else lies there; or the chain cannot be asked.
    pub async fn check(chain: &'a dyn Chain, domain: HubDomain) -> Result<Self, ChainError> {
        let code = chain.code(domain.hub).await?;
        let other = |found: String| ChainError::OtherContract {
            address: domain.hub,
            found,
        };
        if code.is_empty() {
            return Err(other("no code".to_owned()));
        }
        let hash = keccak(&code);
        if hash != Contract::Hub.code_hash() {
            return Err(other(format!("code hash 0x{hash}")));
        }
        let hub = Self::checked(chain, domain);
        // Same code on another chain: the domain says so.
        let separator = hub.ask(ChannelHub::domainSeparatorCall {}).await?;
        if Hash32(separator.0) != domain.separator() {
            return Err(other(format!("domain 0x{}", Hash32(separator.0))));
        }
        Ok(hub)
    }

    /// The same, where the address was checked before by this process.
    #[must_use]
    pub const fn checked(chain: &'a dyn Chain, domain: HubDomain) -> Self {
        Self {
            chain,
            domain,
            at: At::Latest,
        }
    }

    /// The same as it was in another block; not further back than RPC nodes keep states, which is
    /// about a hundred blocks.
    #[must_use]
    pub const fn at(self, at: At) -> Self {
        Self { at, ..self }
    }

    /// The address and chain.
    #[must_use]
    pub const fn domain(&self) -> HubDomain {
        self.domain
    }

    /// A channel's state.
    ///
    /// # Errors
    /// When the chain cannot be asked.
    pub async fn channel(&self, id: &ChannelId) -> Result<OnChain, ChainError> {
        let state = self
            .ask(ChannelHub::stateOfCall {
                id: B256::from(id.0),
            })
            .await?;
        Ok(OnChain {
            deposit: money(state.deposit),
            settled: money(state.settled),
            expiry_s: state.expiry.saturating_to(),
            is_closing: state.closing,
            is_closed: state.closed,
        })
    }

    /// What an account's vault holds.
    ///
    /// # Errors
    /// When the chain cannot be asked.
    pub async fn vault(
        &self,
        token: EvmAddress,
        account: EvmAddress,
    ) -> Result<MicroUsd, ChainError> {
        let call = ChannelHub::balanceOfCall {
            token: address(token),
            account: address(account),
        };
        self.ask(call).await.map(money)
    }

    /// True when a nonce of `withdrawBySig` was used.
    ///
    /// # Errors
    /// When the chain cannot be asked.
    pub async fn nonce_used(&self, account: EvmAddress, nonce: u64) -> Result<bool, ChainError> {
        let call = ChannelHub::usedNoncesCall {
            account: address(account),
            word: U256::from(nonce / 256),
        };
        let bit = usize::try_from(nonce % 256).unwrap_or_default();
        Ok(self.ask(call).await?.bit(bit))
    }

    async fn ask<C: SolCall>(&self, call: C) -> Result<C::Return, ChainError> {
        ask(self.chain, self.domain.hub, call, self.at).await
    }
}

/// What an account holds of a token outside of any vault.
///
/// # Errors
/// When the chain cannot be asked.
pub async fn token_balance(
    chain: &dyn Chain,
    token: EvmAddress,
    account: EvmAddress,
) -> Result<MicroUsd, ChainError> {
    let call = TestUSD::balanceOfCall {
        account: address(account),
    };
    ask(chain, token, call, At::Latest).await.map(money)
}

/// A token's name and version, which its EIP-712 domain is made of, and its decimals.
///
/// # Errors
/// When the chain cannot be asked or the token has no ERC-3009.
pub async fn token_domain(
    chain: &dyn Chain,
    token: EvmAddress,
) -> Result<(String, String, u8), ChainError> {
    Ok((
        ask(chain, token, TestUSD::nameCall {}, At::Latest).await?,
        ask(chain, token, TestUSD::versionCall {}, At::Latest).await?,
        ask(chain, token, TestUSD::decimalsCall {}, At::Latest).await?,
    ))
}

/// True when an ERC-3009 authorisation was used.
///
/// # Errors
/// When the chain cannot be asked.
pub async fn authorization_used(
    chain: &dyn Chain,
    token: EvmAddress,
    owner: EvmAddress,
    nonce: Hash32,
) -> Result<bool, ChainError> {
    let call = TestUSD::authorizationStateCall {
        authorizer: address(owner),
        nonce: b256(nonce),
    };
    ask(chain, token, call, At::Latest).await
}

async fn ask<C: SolCall>(
    chain: &dyn Chain,
    to: EvmAddress,
    call: C,
    at: At,
) -> Result<C::Return, ChainError> {
    let call = Call {
        from: EvmAddress(Address::ZERO.into_array()),
        to: Some(to),
        data: call.abi_encode(),
        value: 0,
    };
    let answer = chain.call_at(call, at).await?;
    C::abi_decode_returns(&answer).map_err(|error| ChainError::Malformed(error.to_string()))
}

/// The contract's own word for a refusal, e.g. `NotExpired`; none when it is no error of ours.
#[must_use]
pub fn refusal_reason(data: &[u8]) -> Option<String> {
    let selector = *data.first_chunk::<4>()?;
    let known = ChannelHub::ChannelHubErrors::name_by_selector(selector)
        .or_else(|| TestUSD::TestUSDErrors::name_by_selector(selector));
    if let Some(name) = known {
        return Some(name.to_owned());
    }
    let reason = alloy::sol_types::decode_revert_reason(data)?;
    Some(reason.chars().take(REASON_CHARS_MAX).collect())
}

/// Longest reason of a revert that is shown: contracts choose it.
const REASON_CHARS_MAX: usize = 200;
