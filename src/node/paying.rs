//! What this node pays others with: one set of channels and one budget, whoever in it spends, a
//! buyer's requests, the layers of models whose ends are here, or of one that is sold.
//!
//! `[buy.budget]` limits all of it together; `[head] daily` and `monthly` limit what no client of
//! this node asked for, the layers of what is sold and the checks of stages.

use std::sync::Arc;

use super::base::Base;
use crate::buyer::budget::{self, Budget, Limits, Purpose, Reservation, Scope};
use crate::config::Config;
use crate::ledger::{Ledger, PROBE_CLIENT, Role};
use crate::payment::payer::{self, PayerHub};
use crate::pipeline::chain::order::CLIENT;
use crate::pipeline::patron::{Held, Purse};
use crate::types::{AttemptId, MicroUsd, ModelId};

/// See the module. Cheap to clone.
#[derive(Clone)]
pub(super) struct Paying {
    pub payer: PayerHub,
    pub budget: Budget,
}

impl Base {
    /// What this node pays with, opened when it is asked for first.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn paying(&self) -> anyhow::Result<Paying> {
        let paying = self.paying.get_or_try_init(|| open(self)).await?;
        Ok(paying.clone())
    }
}

async fn open(base: &Base) -> anyhow::Result<Paying> {
    let settings = payer::Settings {
        network: base.config.node.network.clone(),
        windows: base.windows(),
        handshake_timeout: base.config.buy.timeouts.head,
        device: base.config.payment.device,
        onchain: base.onchain(),
    };
    let budget = open_budget(base).await?;
    let payer = PayerHub::restore(
        base.ledger.clone(),
        base.network.clone(),
        base.keys.clone(),
        Arc::clone(&base.clock),
        base.base.clone(),
        Arc::new(budget.clone()),
        settings,
    );
    let payer = payer.await?;
    Ok(Paying { payer, budget })
}

/// The budget with what the ledger has booked in this day and month. Limits set with
/// `node ledger budget set` hold until they are set again; those of the config (or a flag) win.
async fn open_budget(base: &Base) -> anyhow::Result<Budget> {
    let budget = Budget::new(Arc::clone(&base.clock));
    let now_ms = base.clock.now_ms();
    let (day, month) = (
        budget::midnight_before(now_ms),
        budget::month_before(now_ms),
    );
    let today = base.ledger.spent_by_purpose(day, Role::Buy).await?;
    for (model, client, billed) in base.ledger.spent_by_purpose(month, Role::Buy).await? {
        let same = |one: &&(ModelId, String, MicroUsd)| one.0 == model && one.1 == client;
        let of_today = today.iter().find(same);
        let of_today = of_today.map_or(MicroUsd::ZERO, |(_, _, billed)| *billed);
        budget.remember(&Purpose { model, client }, of_today, billed);
    }
    let mut general = Limits::default();
    for row in base.ledger.budgets().await? {
        let scope = Scope {
            model: row.model,
            client: row.client,
        };
        let limits = Limits {
            daily: row.daily,
            monthly: row.monthly,
        };
        if scope == Scope::ALL {
            general = limits;
        } else {
            budget.limit(&scope, limits);
        }
    }
    budget.limit(&Scope::ALL, over(&base.config, general));
    let probes = Limits {
        daily: base.config.buy.routing.canaries,
        monthly: None,
    };
    budget.limit(&of_client(PROBE_CLIENT), probes);
    let head = &base.config.head;
    let layers = Limits {
        daily: head.daily,
        monthly: head.monthly,
    };
    if !layers.is_none() {
        budget.limit(&of_client(CLIENT), layers);
    }
    Ok(budget)
}

fn of_client(client: &str) -> Scope {
    Scope {
        model: None,
        client: Some(client.to_owned()),
    }
}

/// The limits of everything together: the config's, where it has some, over those set by command.
fn over(config: &Config, set: Limits) -> Limits {
    let budget = &config.buy.budget;
    Limits {
        daily: budget.daily.or(set.daily),
        monthly: budget.monthly.or(set.monthly),
    }
}

/// The limits of everything together, as a changed config makes them.
pub(super) async fn limits(ledger: &Ledger, config: &Config) -> anyhow::Result<Limits> {
    let rows = ledger.budgets().await?;
    let all = |row: &&crate::ledger::BudgetRow| row.model.is_none() && row.client.is_none();
    // Rows come in the order they were set; the last one holds.
    let set = rows.iter().rfind(all).map(|row| Limits {
        daily: row.daily,
        monthly: row.monthly,
    });
    Ok(over(config, set.unwrap_or_default()))
}

/// The budget as layers are paid from it.
pub(super) struct LayersPurse(pub Budget);

struct Share(Reservation);

impl Purse for LayersPurse {
    fn hold(
        &self,
        client: &str,
        model: &ModelId,
        amount: MicroUsd,
    ) -> Result<Box<dyn Held>, String> {
        let purpose = Purpose {
            model: model.clone(),
            client: client.to_owned(),
        };
        let held = self.0.reserve(&purpose, amount, amount);
        let held = held.map_err(|exceeded| exceeded.to_string())?;
        Ok(Box::new(Share(held)))
    }
}

impl Held for Share {
    fn name(&self, attempt: AttemptId) {
        self.0.name(attempt);
    }
    fn raise(&self, amount: MicroUsd) -> Result<(), String> {
        let raised = self.0.raise(amount);
        raised.map_err(|exceeded| exceeded.to_string())
    }
}
