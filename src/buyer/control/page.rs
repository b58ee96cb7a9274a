//! `GET /`: gathers what `/api` answers and has the dashboard draw it.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response as RouterResponse;
use serde_json::json;

use super::{ControlError, Parts, bought, channels, ledger_failed, list_sellers, status};
use crate::dashboard::{self, BuyerView, REQUESTS_SHOWN, RoleView, Sums, buyer_page};
use crate::http::control::wallet::Look;
use crate::ledger::report::GroupBy;

/// The page.
pub(super) async fn index(
    State(parts): Parts,
    look: Arc<Look>,
) -> Result<RouterResponse, ControlError> {
    let now_ms = parts.clock.now_ms();
    let sums = Sums::new(parts.ledger.reader(), bought(), now_ms);
    let of = async |by| sums.by(by).await.map_err(ledger_failed);
    let recent = parts.recent(REQUESTS_SHOWN).await?;
    let role = RoleView {
        wallet: look.balance(parts.wallet.as_ref(), now_ms).await,
        status: status(State(parts.clone())).await?.0,
        channels: channels(State(parts.clone())).await?.0,
        requests: json!({ "requests": recent }),
        over_time: sums.over_time().await.map_err(ledger_failed)?,
    };
    let view = BuyerView {
        role,
        sellers: list_sellers(State(parts.clone())).await?.0,
        by_model: of(GroupBy::Model).await?,
        by_seller: of(GroupBy::Seller).await?,
        by_client: of(GroupBy::Client).await?,
    };
    Ok(dashboard::page(buyer_page(&view)))
}
