//! `GET /`: gathers what `/api` answers and has the dashboard draw it. Also what was earned over the
//! upstream's own prices.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response as RouterResponse;
use serde_json::{Value, json};

use super::{ControlError, ControlParts, Parts, channels, ledger_failed, sold, status};
use crate::dashboard::{self, REQUESTS_SHOWN, RoleView, SellerView, Sums, seller_page};
use crate::http::control::wallet::Look;
use crate::ledger::report::{GroupBy, SummaryRow};
use crate::types::Usage;

/// The page.
pub(super) async fn index(
    State(parts): Parts,
    look: Arc<Look>,
) -> Result<RouterResponse, ControlError> {
    let now_ms = parts.clock.now_ms();
    let sums = Sums::new(parts.ledger.reader(), sold(), now_ms);
    let of = async |by| sums.by(by).await.map_err(ledger_failed);
    let recent = parts.recent(REQUESTS_SHOWN).await?;
    let role = RoleView {
        wallet: look.balance(parts.wallet.as_ref(), now_ms).await,
        status: status(State(parts.clone())).await?.0,
        channels: channels(State(parts.clone())).await?.0,
        requests: json!({ "requests": recent }),
        over_time: sums.over_time().await.map_err(ledger_failed)?,
    };
    let view = SellerView {
        role,
        by_model: of(GroupBy::Model).await?,
        by_buyer: of(GroupBy::Buyer).await?,
    };
    Ok(dashboard::page(seller_page(&view)))
}

impl ControlParts {
    /// For each model what was earned, and what the same tokens cost by the upstream's list; null
    /// where it has none.
    pub(super) fn margins(&self, by_model: &[SummaryRow]) -> Vec<Value> {
        // Vouchers belong to no model: their line has no request.
        let sold = by_model.iter().filter(|row| row.requests > 0);
        let margin = |row: &SummaryRow| {
            let list = self.catalogue.list_price(&row.key);
            let upstream = list.map(|list| list.cost(&usage_of(row)));
            json!({
                "model": row.key,
                "earned_micro_usd": row.billed_micro_usd,
                "upstream_micro_usd": upstream.map(|cost| cost.0),
            })
        };
        sold.map(margin).collect()
    }
}

/// The tokens of a summary's line.
fn usage_of(row: &SummaryRow) -> Usage {
    Usage {
        input: row.input_tokens.unwrap_or(0),
        cache_read: row.cached_tokens.unwrap_or(0),
        cache_write: row.cache_write_tokens.unwrap_or(0),
        output: row.output_tokens.unwrap_or(0),
        reasoning: row.reasoning_tokens.unwrap_or(0),
    }
}
