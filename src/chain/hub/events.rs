//! The hub's events: raw logs in, typed events out.

use alloy::primitives::{B256, Log, LogData};
use alloy::sol_types::SolEventInterface;

use super::abi::ChannelHub::ChannelHubEvents as abi;
use super::convert::{descriptor, money, ours};
use crate::chain::RawLog;
use crate::protocol::voucher::ChannelDescriptor;
use crate::types::{ChannelId, EvmAddress, MicroUsd};

/// Something that happened in the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HubEvent {
    /// A channel opened.
    Opened {
        /// The channel.
        channel: ChannelId,
        /// What its id is the digest of.
        descriptor: ChannelDescriptor,
        /// Most that vouchers are worth.
        deposit: MicroUsd,
        /// What the seller got for opening.
        open_fee: MicroUsd,
        /// When the deposit may go back, in seconds.
        expiry_s: u64,
    },
    /// Its deposit or its expiry rose.
    ToppedUp {
        /// The channel.
        channel: ChannelId,
        /// The deposit now.
        deposit: MicroUsd,
        /// The expiry now.
        expiry_s: u64,
    },
    /// A voucher was paid.
    Settled {
        /// The channel.
        channel: ChannelId,
        /// All that was paid so far.
        settled: MicroUsd,
        /// What was paid now.
        paid: MicroUsd,
    },
    /// The buyer wants its rest back.
    CloseRequested {
        /// The channel.
        channel: ChannelId,
        /// When it may take it.
        expiry_s: u64,
    },
    /// The channel is closed for good.
    Closed {
        /// The channel.
        channel: ChannelId,
        /// All that was paid.
        settled: MicroUsd,
        /// What went back to the buyer's vault.
        refund: MicroUsd,
    },
    /// A vault grew from outside.
    Deposited {
        /// The token.
        token: EvmAddress,
        /// Whose vault.
        account: EvmAddress,
        /// By how much.
        amount: MicroUsd,
    },
    /// A vault paid out.
    Withdrawn {
        /// The token.
        token: EvmAddress,
        /// Whose vault.
        account: EvmAddress,
        /// To whom.
        to: EvmAddress,
        /// How much.
        amount: MicroUsd,
        /// Who sent it, if it was paid for that.
        relayer: EvmAddress,
        /// What a relayer got on top.
        fee: MicroUsd,
    },
}

impl HubEvent {
    /// The channel it is about.
    #[must_use]
    pub const fn channel(&self) -> Option<ChannelId> {
        match self {
            Self::Opened { channel, .. }
            | Self::ToppedUp { channel, .. }
            | Self::Settled { channel, .. }
            | Self::CloseRequested { channel, .. }
            | Self::Closed { channel, .. } => Some(*channel),
            Self::Deposited { .. } | Self::Withdrawn { .. } => None,
        }
    }
    /// The word in the database and in logs.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Opened { .. } => "opened",
            Self::ToppedUp { .. } => "topped_up",
            Self::Settled { .. } => "settled",
            Self::CloseRequested { .. } => "close_requested",
            Self::Closed { .. } => "closed",
            Self::Deposited { .. } => "deposited",
            Self::Withdrawn { .. } => "withdrawn",
        }
    }
    /// The sum it is about: the deposit, what was paid now, what moved.
    #[must_use]
    pub const fn amount(&self) -> MicroUsd {
        match self {
            Self::Opened { deposit, .. } | Self::ToppedUp { deposit, .. } => *deposit,
            Self::Settled { paid, .. } => *paid,
            Self::CloseRequested { .. } => MicroUsd::ZERO,
            Self::Closed { refund, .. } => *refund,
            Self::Deposited { amount, .. } | Self::Withdrawn { amount, .. } => *amount,
        }
    }
}

/// An event and where it stands in the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubLog {
    /// The log as the contract wrote it.
    pub raw: RawLog,
    /// What it says.
    pub event: HubEvent,
}

impl HubLog {
    /// Reads a log; none when it is no event of the hub.
    #[must_use]
    pub fn decode(raw: RawLog) -> Option<Self> {
        let topics = raw.topics.iter().map(|topic| B256::from(topic.0)).collect();
        let data = LogData::new(topics, raw.data.clone().into())?;
        let log = Log {
            address: alloy::primitives::Address::ZERO,
            data,
        };
        let event = typed(abi::decode_log(&log).ok()?.data);
        Some(Self { raw, event })
    }
}

fn typed(event: abi) -> HubEvent {
    let id = |id: B256| ChannelId(id.0);
    match event {
        abi::ChannelOpened(e) => HubEvent::Opened {
            channel: id(e.id),
            descriptor: descriptor(&e.channel),
            deposit: money(e.deposit),
            open_fee: money(e.openFee),
            expiry_s: e.expiry.saturating_to(),
        },
        abi::ChannelToppedUp(e) => HubEvent::ToppedUp {
            channel: id(e.id),
            deposit: money(e.deposit),
            expiry_s: e.expiry.saturating_to(),
        },
        abi::ChannelSettled(e) => HubEvent::Settled {
            channel: id(e.id),
            settled: money(e.settled),
            paid: money(e.paid),
        },
        abi::CloseRequested(e) => HubEvent::CloseRequested {
            channel: id(e.id),
            expiry_s: e.expiry.saturating_to(),
        },
        abi::ChannelClosed(e) => HubEvent::Closed {
            channel: id(e.id),
            settled: money(e.settled),
            refund: money(e.refund),
        },
        abi::Deposited(e) => HubEvent::Deposited {
            token: ours(e.token),
            account: ours(e.account),
            amount: money(e.amount),
        },
        abi::Withdrawn(e) => HubEvent::Withdrawn {
            token: ours(e.token),
            account: ours(e.account),
            to: ours(e.to),
            amount: money(e.amount),
            relayer: ours(e.relayer),
            fee: money(e.fee),
        },
    }
}
