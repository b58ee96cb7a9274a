//! This account's channels, from the hub's events as the ledger has them.
//!
//! Pure: events in, channels out. The hub's state is the truth; [`super::verify`] compares.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Wallet, WalletError};
use crate::chain::hub::{HubEvent, HubLog, OnChain};
use crate::chain::{BlockRef, RawLog};
use crate::ledger::{EventRow, LedgerError, Reader, Role, SettlementRow};
use crate::protocol::voucher::ChannelDescriptor;
use crate::types::{ChannelId, EvmAddress, MicroUsd, Stage};

/// A channel of this account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Held {
    /// Its id.
    pub channel: String,
    /// `buy` or `sell`.
    pub role: &'static str,
    /// The other side's account.
    pub other: String,
    /// `open`, `closing`, `expired` or `closed`.
    pub state: &'static str,
    /// Most that vouchers are worth.
    pub deposit_micro_usd: MicroUsd,
    /// All that was paid out on the chain.
    pub settled_micro_usd: MicroUsd,
    /// The highest voucher signed or held; null when the ledger knows none.
    pub signed_micro_usd: Option<MicroUsd>,
    /// Signed and not paid out: the seller may bring it to the chain.
    pub pending_micro_usd: MicroUsd,
    /// Neither paid nor signed: it is the buyer's, and goes back with the end. So
    /// deposit = settled + pending + rest.
    pub rest_micro_usd: MicroUsd,
    /// When the rest may go back, in seconds since 1970.
    pub expiry_s: u64,
    /// False while the opening is in no final block.
    pub confirmed: bool,
    /// What the id is the digest of.
    #[serde(skip)]
    pub descriptor: ChannelDescriptor,
    /// The id.
    #[serde(skip)]
    pub id: ChannelId,
    /// This account's side.
    #[serde(skip)]
    pub side: Role,
}

/// A channel as events tell it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// What the id is the digest of.
    pub descriptor: ChannelDescriptor,
    /// Most that vouchers are worth.
    pub deposit: MicroUsd,
    /// All that was paid.
    pub settled: MicroUsd,
    /// When the rest may go back, in seconds.
    pub expiry_s: u64,
    /// The buyer asked for a close.
    pub is_closing: bool,
    /// It is closed for good.
    pub is_closed: bool,
    /// Its opening is in a final block.
    pub is_confirmed: bool,
}

/// Channels of `account` in `token`, oldest first within a block's order.
pub(super) fn told(
    events: &[(HubEvent, bool)],
    account: EvmAddress,
    token: EvmAddress,
) -> BTreeMap<ChannelId, Told> {
    let mut all: BTreeMap<ChannelId, Told> = BTreeMap::new();
    for (event, is_confirmed) in events {
        if let HubEvent::Opened {
            channel,
            descriptor,
            deposit,
            open_fee,
            expiry_s,
        } = event
        {
            let is_ours = descriptor.buyer == account || descriptor.seller == account;
            if is_ours && descriptor.token == token {
                let told = Told {
                    descriptor: descriptor.clone(),
                    deposit: *deposit,
                    // The fee is paid with the opening, without an event of its own.
                    settled: *open_fee,
                    expiry_s: *expiry_s,
                    is_closing: false,
                    is_closed: false,
                    is_confirmed: *is_confirmed,
                };
                all.insert(*channel, told);
            }
            continue;
        }
        let Some(told) = event.channel().and_then(|id| all.get_mut(&id)) else {
            continue;
        };
        match event {
            HubEvent::ToppedUp {
                deposit, expiry_s, ..
            } => {
                told.deposit = *deposit;
                told.expiry_s = *expiry_s;
            }
            HubEvent::Settled { settled, .. } => told.settled = *settled,
            HubEvent::CloseRequested { expiry_s, .. } => {
                told.expiry_s = *expiry_s;
                told.is_closing = true;
            }
            HubEvent::Closed { settled, .. } => {
                told.settled = *settled;
                told.is_closed = true;
            }
            _ => {}
        }
    }
    all
}

impl Told {
    /// Takes over what the hub says now; a channel it does not know (its opening was reorganised
    /// away) stays as it was told.
    fn take_over(&mut self, now: OnChain) {
        if now.expiry_s == 0 {
            return;
        }
        self.is_closed = now.is_closed;
        self.is_closing = now.is_closing;
        self.expiry_s = now.expiry_s;
        // A tombstone keeps no sums.
        if !now.is_closed {
            self.deposit = now.deposit;
            self.settled = now.settled;
        }
    }

    /// What still lies in it for either side.
    #[must_use]
    pub const fn locked(&self) -> MicroUsd {
        if self.is_closed {
            MicroUsd::ZERO
        } else {
            self.deposit.saturating_sub(self.settled)
        }
    }

    /// Signed up to `signed` and not paid out; nothing of it is paid any more after the end.
    #[must_use]
    pub fn pending(&self, signed: Option<MicroUsd>) -> MicroUsd {
        let covered = signed.unwrap_or_default().min(self.deposit);
        let open = covered.saturating_sub(self.settled);
        if self.is_closed { MicroUsd::ZERO } else { open }
    }

    /// What is neither paid nor signed.
    #[must_use]
    pub fn rest(&self, signed: Option<MicroUsd>) -> MicroUsd {
        let gone = self.settled.saturating_add(self.pending(signed));
        self.deposit.saturating_sub(gone)
    }

    /// One word at `now_s`.
    #[must_use]
    pub const fn state(&self, now_s: u64) -> &'static str {
        if self.is_closed {
            "closed"
        } else if self.expiry_s <= now_s {
            "expired"
        } else if self.is_closing {
            "closing"
        } else {
            "open"
        }
    }
}

/// An event of the ledger, decoded.
///
/// # Errors
/// When the row is no event of the hub.
pub(super) fn decode(row: EventRow) -> Result<(HubEvent, bool), LedgerError> {
    let (number, hash) = row.block;
    let raw = RawLog {
        block: BlockRef { number, hash },
        tx: row.tx,
        index: row.log_index,
        topics: row.topics,
        data: row.data,
    };
    let log = HubLog::decode(raw).ok_or_else(|| {
        LedgerError::Invalid("a stored event is no event of the hub; `node ledger verify`".into())
    })?;
    Ok((log.event, row.stage == Stage::Confirmed))
}

/// What was settled on chains, as rows of a report: the fee of each opening and each voucher paid,
/// once it is final, on the channels that the ledger knows. Needs no chain and no configuration.
///
/// # Errors
/// When the ledger cannot be read.
pub async fn settlements(reader: &Reader) -> Result<Vec<SettlementRow>, LedgerError> {
    let mut known = BTreeMap::new();
    for role in [Role::Buy, Role::Sell] {
        for row in reader.channels(role).await? {
            // A node that buys from itself has both sides of a channel.
            known.insert((row.channel, role), row.peer);
        }
    }
    let mut events = vec![];
    for (chain_id, hub) in reader.hubs().await? {
        events.extend(reader.hub_events(chain_id, &hub).await?);
    }
    let mut rows = vec![];
    for event in events {
        if event.stage != Stage::Confirmed {
            continue;
        }
        let (at_ms, channel) = (event.at_ms, event.channel);
        let amount = match decode(event)?.0 {
            HubEvent::Opened { open_fee, .. } => open_fee,
            HubEvent::Settled { paid, .. } => paid,
            _ => continue,
        };
        let Some(channel) = channel else { continue };
        for role in [Role::Buy, Role::Sell] {
            if let Some(peer) = known.get(&(channel, role)) {
                rows.push(SettlementRow {
                    at_ms,
                    role,
                    channel,
                    peer: *peer,
                    amount,
                    note: String::new(),
                });
            }
        }
    }
    Ok(rows)
}

impl Wallet {
    /// The hub's events as the ledger has them, oldest first, each with whether it is confirmed.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub(super) async fn events(&self) -> Result<Vec<(HubEvent, bool)>, WalletError> {
        let domain = self.0.link.domain();
        let rows = self
            .0
            .reader
            .hub_events(domain.chain_id, &domain.hub)
            .await?;
        let events: Result<Vec<_>, LedgerError> = rows.into_iter().map(decode).collect();
        Ok(events?)
    }

    pub(super) async fn told(&self) -> Result<BTreeMap<ChannelId, Told>, WalletError> {
        Ok(told(
            &self.events().await?,
            self.address(),
            self.0.link.token(),
        ))
    }

    /// This account's channels, those that still hold money first.
    ///
    /// # Errors
    /// When the ledger cannot be read or the chain cannot be asked for its time.
    pub async fn channels(&self) -> Result<Vec<Held>, WalletError> {
        let told = self.told().await?;
        let signed = signed(&self.0.reader).await?;
        let (me, now_s, hub) = (self.address(), self.chain_now_s().await?, self.hub()?);
        let mut list = vec![];
        for (id, mut one) in told {
            if !one.is_closed {
                // The ledger hears of a block a moment later than others see it.
                one.take_over(hub.channel(&id).await?);
            }
            let is_buyer = one.descriptor.buyer == me;
            let (side, other) = if is_buyer {
                (Role::Buy, one.descriptor.seller)
            } else {
                (Role::Sell, one.descriptor.buyer)
            };
            list.push(Held {
                channel: format!("0x{id}"),
                role: side.as_str(),
                other: crate::keys::to_checksum(&other),
                state: one.state(now_s),
                deposit_micro_usd: one.deposit,
                settled_micro_usd: one.settled,
                signed_micro_usd: signed.get(&id).map(|(sum, _)| *sum),
                pending_micro_usd: one.pending(signed.get(&id).map(|(sum, _)| *sum)),
                rest_micro_usd: one.rest(signed.get(&id).map(|(sum, _)| *sum)),
                expiry_s: one.expiry_s,
                confirmed: one.is_confirmed,
                descriptor: one.descriptor,
                id,
                side,
            });
        }
        list.sort_by_key(|held| (held.state == "closed", std::cmp::Reverse(held.expiry_s)));
        Ok(list)
    }

    /// The time of the newest block, which decides what has expired; never before this clock less
    /// than the chain's own.
    pub(super) async fn chain_now_s(&self) -> Result<u64, WalletError> {
        let newest = self.0.link.chain().block(crate::chain::At::Latest).await?;
        Ok(newest.map_or(self.0.clock.now_ms() / 1_000, |block| block.timestamp_s))
    }
}

/// The highest voucher per channel, of both sides.
pub(super) async fn signed(
    reader: &Reader,
) -> Result<BTreeMap<ChannelId, (MicroUsd, [u8; 65])>, LedgerError> {
    let mut signed = BTreeMap::new();
    for role in [Role::Buy, Role::Sell] {
        for state in reader.load(role).await? {
            if let Some(voucher) = state.voucher {
                signed.insert(voucher.channel, (voucher.cumulative, voucher.signature));
            }
        }
    }
    Ok(signed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Hash32;

    const ME: EvmAddress = EvmAddress([1; 20]);
    const TOKEN: EvmAddress = EvmAddress([9; 20]);

    fn opened(id: u8, buyer: EvmAddress, token: EvmAddress) -> HubEvent {
        HubEvent::Opened {
            channel: ChannelId([id; 32]),
            descriptor: ChannelDescriptor {
                buyer,
                seller: EvmAddress([2; 20]),
                operator: EvmAddress::default(),
                token,
                voucher_signer: EvmAddress([3; 20]),
                challenge_period_s: 3_600,
                salt: Hash32([id; 32]),
            },
            deposit: MicroUsd(1_000),
            open_fee: MicroUsd(10),
            expiry_s: 500,
        }
    }

    #[test]
    fn a_channel_is_followed_from_its_opening_to_its_end() {
        let channel = ChannelId([1; 32]);
        let mut events = vec![
            (opened(1, ME, TOKEN), true),
            (opened(2, EvmAddress([7; 20]), TOKEN), true),
            (opened(3, ME, EvmAddress([8; 20])), true),
        ];
        let first = told(&events, ME, TOKEN);
        assert_eq!(
            first.len(),
            1,
            "others' channels and other tokens are not ours"
        );
        assert_eq!(
            first[&channel].locked(),
            MicroUsd(990),
            "the fee is consumed"
        );
        assert_eq!(first[&channel].state(499), "open");
        assert_eq!(first[&channel].state(500), "expired");

        events.extend([
            (
                HubEvent::ToppedUp {
                    channel,
                    deposit: MicroUsd(2_000),
                    expiry_s: 900,
                },
                true,
            ),
            (
                HubEvent::Settled {
                    channel,
                    settled: MicroUsd(300),
                    paid: MicroUsd(290),
                },
                true,
            ),
            (
                HubEvent::CloseRequested {
                    channel,
                    expiry_s: 700,
                },
                false,
            ),
        ]);
        let then = told(&events, ME, TOKEN);
        assert_eq!(then[&channel].locked(), MicroUsd(1_700));
        assert_eq!(then[&channel].state(600), "closing");
        events.push((
            HubEvent::Closed {
                channel,
                settled: MicroUsd(400),
                refund: MicroUsd(1_600),
            },
            false,
        ));
        let last = told(&events, ME, TOKEN);
        assert_eq!(last[&channel].locked(), MicroUsd::ZERO);
        assert_eq!(last[&channel].state(9_999), "closed");
    }
}
