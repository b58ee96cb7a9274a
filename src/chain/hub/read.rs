//! Calldata of the hub, read back: what a call would do, for whoever is asked to send it.
//!
//! Only calls that need no particular sender are known here; everything else is none.

use alloy::sol_types::SolInterface;

use super::WithdrawAuth;
use super::abi::ChannelHub::{self as hub, ChannelHubCalls as abi};
use super::convert::{descriptor, money, ours};
use crate::protocol::relay::CallKind;
use crate::protocol::voucher::ChannelDescriptor;
use crate::types::{EvmAddress, MicroUsd};

/// A call that anyone may send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HubCall {
    /// Tokens of a wallet go into its vault.
    Deposit {
        /// The token.
        token: EvmAddress,
        /// Whose.
        from: EvmAddress,
        /// How much.
        amount: MicroUsd,
    },
    /// A channel opens from a vault.
    Open(ChannelDescriptor),
    /// A channel's deposit rises.
    TopUp(ChannelDescriptor),
    /// A channel's buyer asks for its end.
    RequestClose(ChannelDescriptor),
    /// A channel ends as its seller signed.
    Close(ChannelDescriptor),
    /// An expired channel's rest goes back.
    Reclaim(ChannelDescriptor),
    /// A vault pays out, as its owner signed.
    Withdraw(WithdrawAuth),
}

impl HubCall {
    /// Reads one call's calldata; none when it is no such call or has bytes left over.
    #[must_use]
    pub fn read(data: &[u8]) -> Option<Self> {
        let call = abi::abi_decode_validate(data).ok()?;
        // Decoding ignores what follows; what is sent is exactly what was read.
        if call.abi_encode() != data {
            return None;
        }
        Some(match call {
            abi::depositWithAuthorization(call) => Self::Deposit {
                token: ours(call.token),
                from: ours(call.auth.from),
                amount: money(call.auth.value),
            },
            abi::open(call) => Self::Open(descriptor(&call.auth.channel)),
            abi::topUp(call) => Self::TopUp(descriptor(&call.channel)),
            abi::requestCloseBySig(call) => Self::RequestClose(descriptor(&call.channel)),
            abi::closeBySig(call) => Self::Close(descriptor(&call.claim.channel)),
            abi::reclaim(call) => Self::Reclaim(descriptor(&call.channel)),
            abi::withdrawBySig(call) => Self::Withdraw(withdraw(&call.auth)),
            _ => return None,
        })
    }

    /// What it does, in one word.
    #[must_use]
    pub const fn kind(&self) -> CallKind {
        match self {
            Self::Deposit { .. } => CallKind::Deposit,
            Self::Open(_) => CallKind::Open,
            Self::TopUp(_) => CallKind::TopUp,
            Self::RequestClose(_) => CallKind::RequestClose,
            Self::Close(_) => CallKind::Close,
            Self::Reclaim(_) => CallKind::Reclaim,
            Self::Withdraw(_) => CallKind::Withdraw,
        }
    }

    /// The token it moves.
    #[must_use]
    pub const fn token(&self) -> EvmAddress {
        match self {
            Self::Deposit { token, .. } => *token,
            Self::Withdraw(auth) => auth.token,
            Self::Open(channel)
            | Self::TopUp(channel)
            | Self::RequestClose(channel)
            | Self::Close(channel)
            | Self::Reclaim(channel) => channel.token,
        }
    }
}

fn withdraw(auth: &hub::Withdraw) -> WithdrawAuth {
    WithdrawAuth {
        account: ours(auth.account),
        token: ours(auth.token),
        to: ours(auth.to),
        amount: money(auth.amount),
        relayer: ours(auth.relayer),
        fee: money(auth.fee),
        nonce: auth.nonce.saturating_to(),
        valid_before_s: auth.validBefore.saturating_to(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::hub::calls;
    use proptest::prelude::*;

    fn auth() -> WithdrawAuth {
        WithdrawAuth {
            account: EvmAddress([1; 20]),
            token: EvmAddress([2; 20]),
            to: EvmAddress([3; 20]),
            amount: MicroUsd(4),
            relayer: EvmAddress([5; 20]),
            fee: MicroUsd(6),
            nonce: 7,
            valid_before_s: 8,
        }
    }

    #[test]
    fn what_was_built_reads_back_and_what_needs_its_sender_does_not() {
        let data = calls::withdraw_by_sig(&auth(), &[9; 65]);
        let call = HubCall::read(&data).unwrap();
        assert_eq!(call, HubCall::Withdraw(auth()));
        assert_eq!(
            (call.kind(), call.token()),
            (CallKind::Withdraw, auth().token)
        );
        let own = calls::withdraw(auth().token, auth().to, MicroUsd(1));
        assert_eq!(HubCall::read(&own), None);
        assert_eq!(HubCall::read(&calls::multicall(vec![data.clone()])), None);
        let mut longer = data;
        longer.push(0);
        assert_eq!(HubCall::read(&longer), None);
        assert_eq!(HubCall::read(&[]), None);
    }

    proptest! {
        #[test]
        fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..400)) {
            drop(HubCall::read(&noise));
        }
    }
}
