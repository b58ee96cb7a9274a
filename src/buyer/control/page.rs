//! `GET /`: gathers what `/api` answers and has the dashboard draw it.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response as RouterResponse;
use serde_json::{Value, json};

use super::{ControlError, Parts, bought, channels, ledger_failed, list_sellers, status};
use crate::dashboard::{self, BuyerView, buyer_page};
use crate::http::control::wallet::Look;
use crate::ledger::report::{self, Filter, GroupBy};

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
            ..bought()
        };
        let summary = report::summary(parts.ledger.reader(), by, &filter, &zone).await;
        Ok(json!(summary.map_err(ledger_failed)?))
    };
    let recent = parts.recent(REQUESTS).await?;
    let view = BuyerView {
        wallet: look.balance(parts.wallet.as_ref(), now_ms).await,
        status: status(State(parts.clone())).await?.0,
        sellers: list_sellers(State(parts.clone())).await?.0,
        channels: channels(State(parts.clone())).await?.0,
        requests: json!({ "requests": recent }),
        by_hour: sum(GroupBy::Hour, hours_since).await?,
        by_day: sum(GroupBy::Day, days_since).await?,
        by_model: sum(GroupBy::Model, days_since).await?,
        by_seller: sum(GroupBy::Seller, days_since).await?,
        by_client: sum(GroupBy::Client, days_since).await?,
        hours,
        days,
    };
    Ok(dashboard::page(buyer_page(&view)))
}
