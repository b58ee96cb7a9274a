//! The wallet over the control APIs of buyer and seller: JSON in, JSON out. No HTTP here; the two
//! have a route for each of these.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Order, Ticket, Wallet, WalletError};

/// Tickets asked about at once.
const TICKETS_MAX: usize = 64;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tickets {
    tickets: Vec<Ticket>,
}

impl Wallet {
    /// `GET /api/wallet`.
    ///
    /// # Errors
    /// As [`Wallet::balance`].
    pub async fn balance_json(&self) -> Result<Value, WalletError> {
        Ok(json!(self.balance().await?))
    }
    /// `GET /api/wallet/channels`.
    ///
    /// # Errors
    /// As [`Wallet::channels`].
    pub async fn channels_json(&self) -> Result<Value, WalletError> {
        Ok(json!({ "channels": self.channels().await? }))
    }
    /// `POST /api/wallet/plan`.
    ///
    /// # Errors
    /// As [`Wallet::plan`], or the body is no order.
    pub async fn plan_json(&self, body: &[u8]) -> Result<Value, WalletError> {
        Ok(json!(self.plan(&order(body)?).await?))
    }
    /// `POST /api/wallet/send`.
    ///
    /// # Errors
    /// As [`Wallet::send`], or the body is no order.
    pub async fn send_json(&self, body: &[u8]) -> Result<Value, WalletError> {
        Ok(json!(self.send(&order(body)?).await?))
    }
    /// `POST /api/wallet/progress` with `{"tickets": […]}`.
    ///
    /// # Errors
    /// As [`Wallet::progress`], or the body is something else.
    pub async fn progress_json(&self, body: &[u8]) -> Result<Value, WalletError> {
        let Tickets { tickets } = read(body)?;
        let mut list = vec![];
        for ticket in tickets.iter().take(TICKETS_MAX) {
            list.push(self.progress(ticket).await?);
        }
        Ok(json!({ "progress": list }))
    }
}

fn order(body: &[u8]) -> Result<Order, WalletError> {
    read(body)
}

fn read<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Result<T, WalletError> {
    serde_json::from_slice(body).map_err(|error| WalletError::Bad(format!("the body: {error}")))
}
