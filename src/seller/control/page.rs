//! `GET /`: gathers what `/api` answers and has the dashboard draw it. Also what was earned over the
//! upstream's own prices.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response as RouterResponse;
use serde_json::{Value, json};

use super::{ControlError, ControlParts, Parts, channels, ledger_failed, sold, status};
use crate::dashboard::{self, SellerView, seller_page};
use crate::http::control::wallet::Look;
use crate::ledger::report::{self, Filter, GroupBy, SummaryRow};
use crate::types::Usage;

/// Requests on the page; those that run are among the newest.
const REQUESTS: u32 = 60;
/// Hours and days that the plots show.
const HOURS: u32 = 24;
const DAYS: u32 = 30;

/// The page.
pub(super) async fn index(
    State(parts): Parts,
    look: Arc<Look>,
) -> Result<RouterResponse, ControlError> {
    let zone = jiff::tz::TimeZone::system();
    let now_ms = parts.clock.now_ms();
    let (hours_since, hours) = report::last(GroupBy::Hour, HOURS, now_ms, &zone);
    let (days_since, days) = report::last(GroupBy::Day, DAYS, now_ms, &zone);
    let sum = async |by, since_ms| -> Result<Value, ControlError> {
        let filter = Filter {
            since_ms: Some(since_ms),
            ..sold()
        };
        let summary = report::summary(parts.ledger.reader(), by, &filter, &zone).await;
        Ok(json!(summary.map_err(ledger_failed)?))
    };
    let recent = parts.recent(REQUESTS).await?;
    let view = SellerView {
        wallet: look.balance(parts.wallet.as_ref(), now_ms).await,
        status: status(State(parts.clone())).await?.0,
        channels: channels(State(parts.clone())).await?.0,
        requests: json!({ "requests": recent }),
        by_hour: sum(GroupBy::Hour, hours_since).await?,
        by_day: sum(GroupBy::Day, days_since).await?,
        by_model: sum(GroupBy::Model, days_since).await?,
        by_buyer: sum(GroupBy::Buyer, days_since).await?,
        hours,
        days,
    };
    Ok(dashboard::page(seller_page(&view)))
}

impl ControlParts {
    /// For each model what was earned, and what the same tokens cost by the upstream's list; null
    /// where it has none.
    pub(super) fn margins(&self, by_model: &[SummaryRow]) -> Vec<Value> {
        let margin = |row: &SummaryRow| {
            let list = self.catalogue.list_price(&row.key);
            let upstream = list.map(|list| list.cost(&usage_of(row)));
            json!({
                "model": row.key,
                "earned_micro_usd": row.billed_micro_usd,
                "upstream_micro_usd": upstream.map(|cost| cost.0),
            })
        };
        by_model.iter().map(margin).collect()
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
