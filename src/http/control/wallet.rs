//! The wallet's routes, the same at a buyer's and a seller's port: `/api/wallet` and what is below.
//!
//! Reading asks the chain, never a peer; everything that moves or plans to move money needs the
//! control token.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use http::HeaderMap;
use serde_json::Value;

use super::{ControlError, ControlResult, method_not_allowed, require_control};
use crate::http::guard::Guard;
use crate::types::UnixMs;
use crate::wallet::{Wallet, WalletError};

/// A page that refreshes itself asks the chain no more often than this.
const LOOK_EVERY_MS: UnixMs = 30_000;
/// A page does not wait longer for the chain; it shows the last balance then.
const LOOK_PATIENCE: Duration = Duration::from_secs(1);

/// The balance as a page shows it: asked rarely, remembered meanwhile.
#[derive(Default)]
pub struct Look(tokio::sync::Mutex<(UnixMs, Value)>);

impl Look {
    /// The balance, as `/api/wallet` answers it; null without a chain or before it answered.
    pub async fn balance(&self, wallet: Option<&Wallet>, now_ms: UnixMs) -> Value {
        let Some(wallet) = wallet else {
            return Value::Null;
        };
        let mut known = self.0.lock().await;
        if now_ms.saturating_sub(known.0) >= LOOK_EVERY_MS {
            known.0 = now_ms;
            let asked = tokio::time::timeout(LOOK_PATIENCE, wallet.balance_json()).await;
            if let Ok(Ok(balance)) = asked {
                known.1 = balance;
            }
        }
        known.1.clone()
    }
}

struct Door {
    wallet: Option<Wallet>,
    guard: Guard,
}

type Held = State<Arc<Door>>;

/// The routes.
pub fn routes(wallet: Option<Wallet>, guard: Guard) -> Router {
    Router::new()
        .route("/api/wallet", get(balance))
        .route("/api/wallet/channels", get(channels))
        .route("/api/wallet/plan", post(plan))
        .route("/api/wallet/send", post(send))
        .route("/api/wallet/progress", post(progress))
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(Arc::new(Door { wallet, guard }))
}

async fn balance(State(door): Held) -> ControlResult {
    answer(door.wallet()?.balance_json().await)
}

async fn channels(State(door): Held) -> ControlResult {
    answer(door.wallet()?.channels_json().await)
}

async fn plan(State(door): Held, headers: HeaderMap, body: Bytes) -> ControlResult {
    require_control(&door.guard, &headers)?;
    answer(door.wallet()?.plan_json(&body).await)
}

async fn send(State(door): Held, headers: HeaderMap, body: Bytes) -> ControlResult {
    require_control(&door.guard, &headers)?;
    answer(door.wallet()?.send_json(&body).await)
}

async fn progress(State(door): Held, headers: HeaderMap, body: Bytes) -> ControlResult {
    require_control(&door.guard, &headers)?;
    answer(door.wallet()?.progress_json(&body).await)
}

impl Door {
    fn wallet(&self) -> Result<&Wallet, ControlError> {
        let none = || {
            let message = "no chain is configured, so there is no wallet; see [chain]";
            ControlError::NotFound(message.to_owned())
        };
        self.wallet.as_ref().ok_or_else(none)
    }
}

fn answer(result: Result<Value, WalletError>) -> ControlResult {
    result.map(Json).map_err(|error| {
        let text = error.to_string();
        match error {
            error if error.is_about_money() => ControlError::Payment(text),
            error if error.is_passing() => ControlError::Unavailable(text),
            WalletError::Bad(_) => ControlError::BadRequest(text),
            _ => ControlError::Internal(text),
        }
    })
}
