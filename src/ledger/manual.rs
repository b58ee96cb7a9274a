//! Rows the user writes by hand: settlements and budgets. The running node's `/api` and the command
//! line (with no node running) both call [`apply`].

use serde::{Deserialize, Serialize};

use super::error::LedgerError;
use super::handle::Ledger;
use super::rows::{BudgetRow, Role, Row, SettlementRow};
use crate::types::{MicroUsd, ModelId, PeerId, UnixMs};

/// What a user books by hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum LedgerWrite {
    /// A buyer paid outside; run at the seller.
    Settle {
        /// The buyer.
        #[serde(with = "peer_text")]
        peer: PeerId,
        /// How much.
        amount_micro_usd: MicroUsd,
        /// The user's own words.
        note: String,
    },
    /// Spending limits; `None` removes one.
    BudgetSet {
        /// One client; `None` is all together.
        client: Option<String>,
        /// One model; `None` is all together.
        model: Option<String>,
        /// Most a local day may cost.
        daily_micro_usd: Option<MicroUsd>,
        /// Most a local month may cost.
        monthly_micro_usd: Option<MicroUsd>,
    },
}

/// Books `write` durably and returns its row.
///
/// # Errors
/// When there is no credit channel to settle, or the ledger cannot be read or written.
pub async fn apply(ledger: &Ledger, write: LedgerWrite, now: UnixMs) -> Result<Row, LedgerError> {
    let row = match write {
        LedgerWrite::Settle {
            peer,
            amount_micro_usd,
            note,
        } => settlement(ledger, peer, amount_micro_usd, note, now).await?,
        LedgerWrite::BudgetSet {
            client,
            model,
            daily_micro_usd,
            monthly_micro_usd,
        } => Row::BudgetSet(BudgetRow {
            at_ms: now,
            client,
            model: model.as_deref().map(ModelId::new),
            daily: daily_micro_usd,
            monthly: monthly_micro_usd,
        }),
    };
    ledger.commit(vec![row.clone()]).await?;
    Ok(row)
}

async fn settlement(
    ledger: &Ledger,
    peer: PeerId,
    amount: MicroUsd,
    note: String,
    now: UnixMs,
) -> Result<Row, LedgerError> {
    if amount == MicroUsd::ZERO {
        let why = "a settlement of 0 USD settles nothing".to_owned();
        return Err(LedgerError::Invalid(why));
    }
    let channels = ledger.channels(Role::Sell).await?;
    let channel = channels
        .iter()
        .rev()
        .find(|row| row.peer == peer && row.mode == "credit")
        .ok_or_else(|| {
            LedgerError::Invalid(format!(
                "there is no credit channel with buyer {peer}; `node ledger --by buyer` lists them"
            ))
        })?;
    Ok(Row::Settlement(SettlementRow {
        at_ms: now,
        role: Role::Sell,
        channel: channel.channel,
        peer,
        amount,
        note,
    }))
}

/// Peer ids as text in JSON.
mod peer_text {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use crate::types::PeerId;

    pub(super) fn serialize<S: Serializer>(peer: &PeerId, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(peer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PeerId, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(D::Error::custom)
    }
}
