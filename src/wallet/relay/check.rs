//! What a relayer sends and what it does not: pure rules over calldata.

use crate::chain::digest::HubDomain;
use crate::chain::hub::HubCall;
use crate::protocol::limits::RELAY_CALLS_MAX;
use crate::protocol::relay::{Ask, CallKind};
use crate::types::{EvmAddress, MicroUsd};

/// A transaction's base and the multicall around the calls.
const GAS_BASE: u64 = 40_000;
/// Most gas of one bundle; eight calls of the dearest kind stay below.
pub(super) const GAS_MAX: u64 = 1_200_000;
/// A payment that becomes void sooner than this may be so before its block comes, in seconds.
const VALID_LEAST_S: u64 = 300;

/// Who relays, where, and for which token.
#[derive(Clone, Copy, Debug)]
pub struct Desk {
    /// The hub.
    pub domain: HubDomain,
    /// The token that fees are taken in.
    pub token: EvmAddress,
    /// The relayer's own account.
    pub relayer: EvmAddress,
}

/// Why a bundle is not sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another chain, hub or token.
    #[error("this relayer serves another {0}")]
    Elsewhere(&'static str),
    /// No call, or too many.
    #[error("a bundle has 1 to {RELAY_CALLS_MAX} calls")]
    Count,
    /// Not one of the functions that anyone may call.
    #[error("call {0} is none of those that are relayed")]
    Call(usize),
    /// A payment to somebody else could be taken by somebody else.
    #[error("call {0} pays another relayer")]
    OtherRelayer(usize),
    /// More than one call pays, or none.
    #[error("exactly one call pays the relayer, not {0}")]
    Payments(usize),
    /// Below what was quoted.
    #[error("the fee is {offered} USD and {wanted} USD was asked")]
    Fee {
        /// What the bundle pays.
        offered: MicroUsd,
        /// What was quoted.
        wanted: MicroUsd,
    },
    /// It may be void before it is mined.
    #[error("the payment is void too soon; it must hold for 5 minutes")]
    Validity,
}

/// Gas of one call, above what was measured (`contracts/gas.json`).
const fn gas_of(kind: CallKind) -> u64 {
    match kind {
        CallKind::Deposit => 95_000,
        CallKind::Open => 80_000,
        CallKind::TopUp => 50_000,
        CallKind::RequestClose => 55_000,
        CallKind::Close => 65_000,
        CallKind::Reclaim => 50_000,
        CallKind::Withdraw => 85_000,
    }
}

/// Gas of a bundle of these calls and the payment.
///
/// # Errors
/// When it is not to be relayed here.
pub fn gas_of_ask(desk: &Desk, ask: &Ask) -> Result<u64, Refusal> {
    if ask.chain_id != desk.domain.chain_id {
        return Err(Refusal::Elsewhere("chain"));
    }
    if ask.hub != desk.domain.hub {
        return Err(Refusal::Elsewhere("hub"));
    }
    if ask.token != desk.token {
        return Err(Refusal::Elsewhere("token"));
    }
    if ask.kinds.len() >= RELAY_CALLS_MAX {
        return Err(Refusal::Count);
    }
    let payment = gas_of(CallKind::Withdraw).saturating_add(GAS_BASE);
    let sum = |gas: u64, kind: &CallKind| gas.saturating_add(gas_of(*kind));
    Ok(ask.kinds.iter().fold(payment, sum))
}

/// Reads a bundle and finds what it pays; `now_s` is the chain's time.
///
/// # Errors
/// When anything in it is not as it must be.
pub fn check(
    desk: &Desk,
    calls: &[Vec<u8>],
    quoted: MicroUsd,
    now_s: u64,
) -> Result<MicroUsd, Refusal> {
    if calls.is_empty() || calls.len() > RELAY_CALLS_MAX {
        return Err(Refusal::Count);
    }
    let mut fees = vec![];
    for (index, data) in calls.iter().enumerate() {
        let call = HubCall::read(data).ok_or(Refusal::Call(index))?;
        if call.token() != desk.token {
            return Err(Refusal::Elsewhere("token"));
        }
        if let HubCall::Withdraw(auth) = call {
            if auth.relayer != desk.relayer {
                return Err(Refusal::OtherRelayer(index));
            }
            if auth.valid_before_s < now_s.saturating_add(VALID_LEAST_S) {
                return Err(Refusal::Validity);
            }
            fees.push(auth.fee);
        }
    }
    let [offered] = fees.as_slice() else {
        return Err(Refusal::Payments(fees.len()));
    };
    if *offered < quoted || quoted == MicroUsd::ZERO {
        return Err(Refusal::Fee {
            offered: *offered,
            wanted: quoted,
        });
    }
    Ok(*offered)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::hub::{Authorization, WithdrawAuth, calls};
    use crate::protocol::voucher::ChannelDescriptor;
    use crate::types::Hash32;
    use proptest::prelude::*;

    const ME: EvmAddress = EvmAddress([7; 20]);
    const TOKEN: EvmAddress = EvmAddress([8; 20]);
    const NOW_S: u64 = 1_000_000;
    const QUOTED: MicroUsd = MicroUsd(2_000);

    fn desk() -> Desk {
        Desk {
            domain: HubDomain {
                chain_id: 31_337,
                hub: EvmAddress([9; 20]),
            },
            token: TOKEN,
            relayer: ME,
        }
    }

    fn pay(relayer: EvmAddress, token: EvmAddress, fee: MicroUsd, valid_s: u64) -> Vec<u8> {
        let auth = WithdrawAuth {
            account: EvmAddress([1; 20]),
            token,
            to: EvmAddress([1; 20]),
            amount: MicroUsd::ZERO,
            relayer,
            fee,
            nonce: 5,
            valid_before_s: NOW_S + valid_s,
        };
        calls::withdraw_by_sig(&auth, &[3; 65])
    }

    fn deposit(token: EvmAddress) -> Vec<u8> {
        let auth = Authorization {
            from: EvmAddress([1; 20]),
            amount: MicroUsd(5),
            valid_after_s: 0,
            valid_before_s: NOW_S + 900,
            nonce: Hash32([2; 32]),
        };
        calls::deposit_with_authorization(token, &auth, &[3; 65])
    }

    fn judge(calls: &[Vec<u8>]) -> Result<MicroUsd, Refusal> {
        check(&desk(), calls, QUOTED, NOW_S)
    }

    #[test]
    fn a_bundle_that_pays_is_sent_and_every_trick_is_refused() {
        let good = pay(ME, TOKEN, MicroUsd(2_500), 900);
        assert_eq!(judge(&[deposit(TOKEN), good.clone()]), Ok(MicroUsd(2_500)));
        let other = EvmAddress([6; 20]);
        for (calls, refusal) in [
            (vec![], Refusal::Count),
            (vec![good.clone(); RELAY_CALLS_MAX + 1], Refusal::Count),
            (vec![deposit(TOKEN)], Refusal::Payments(0)),
            (vec![good.clone(), good.clone()], Refusal::Payments(2)),
            (
                vec![pay(other, TOKEN, MicroUsd(2_500), 900)],
                Refusal::OtherRelayer(0),
            ),
            // Whoever sees it first could take this one.
            (
                vec![pay(EvmAddress::default(), TOKEN, MicroUsd(2_500), 900)],
                Refusal::OtherRelayer(0),
            ),
            (
                vec![pay(ME, other, MicroUsd(2_500), 900)],
                Refusal::Elsewhere("token"),
            ),
            (
                vec![deposit(other), good.clone()],
                Refusal::Elsewhere("token"),
            ),
            (
                vec![pay(ME, TOKEN, MicroUsd(1_999), 900)],
                Refusal::Fee {
                    offered: MicroUsd(1_999),
                    wanted: QUOTED,
                },
            ),
            (vec![pay(ME, TOKEN, MicroUsd(2_500), 10)], Refusal::Validity),
            // With our own vault as sender these would move our own money.
            (
                vec![calls::withdraw(TOKEN, other, MicroUsd(1)), good.clone()],
                Refusal::Call(0),
            ),
            (
                vec![calls::deposit(TOKEN, other, MicroUsd(1)), good.clone()],
                Refusal::Call(0),
            ),
            (vec![calls::multicall(vec![good.clone()])], Refusal::Call(0)),
            (
                vec![calls::approve(other, MicroUsd::MAX), good.clone()],
                Refusal::Call(0),
            ),
        ] {
            assert_eq!(judge(&calls), Err(refusal));
        }
    }

    #[test]
    fn only_our_hub_chain_and_token_are_quoted_and_gas_covers_what_was_measured() {
        let ask = Ask {
            chain_id: 31_337,
            hub: EvmAddress([9; 20]),
            token: TOKEN,
            kinds: vec![CallKind::Deposit],
        };
        let gas = gas_of_ask(&desk(), &ask).unwrap();
        assert!(gas <= GAS_MAX, "{gas}");
        let wrong = Ask {
            chain_id: 1,
            ..ask.clone()
        };
        assert!(gas_of_ask(&desk(), &wrong).is_err());
        let wrong = Ask {
            token: ME,
            ..ask.clone()
        };
        assert!(gas_of_ask(&desk(), &wrong).is_err());
        let most = Ask {
            kinds: vec![CallKind::Deposit; RELAY_CALLS_MAX - 1],
            ..ask
        };
        assert!(gas_of_ask(&desk(), &most).unwrap() <= GAS_MAX);
    }

    #[test]
    fn reclaims_are_relayed_for_channels_of_our_token() {
        let channel = ChannelDescriptor {
            buyer: EvmAddress([1; 20]),
            seller: EvmAddress([2; 20]),
            operator: EvmAddress::default(),
            token: TOKEN,
            voucher_signer: EvmAddress([3; 20]),
            challenge_period_s: 3_600,
            salt: Hash32([4; 32]),
        };
        let good = pay(ME, TOKEN, QUOTED, 900);
        assert_eq!(judge(&[calls::reclaim(&channel), good.clone()]), Ok(QUOTED));
        let ask = calls::request_close_by_sig(&channel, NOW_S + 900, &[3; 65]);
        assert_eq!(judge(&[ask, good.clone()]), Ok(QUOTED));
        // The same without a signature works for its buyer only.
        let own = calls::request_close(&channel);
        assert_eq!(judge(&[own, good]), Err(Refusal::Call(0)));
    }

    proptest! {
        #[test]
        fn noise_is_refused(
            calls in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..10),
        ) {
            prop_assert!(judge(&calls).is_err());
        }
    }
}
