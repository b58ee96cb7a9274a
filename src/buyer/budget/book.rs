//! The spending limits as a pure state: no lock, no clock.
//!
//! Money is *held* from the moment an attempt may cost it until its cost is booked, and *spent* from
//! then on. A limit's room is what its day or month allows, less what it has spent and holds.
//!
//! Invariants: over any sequence of calls, spent + held of a scope grows only while it is within its
//! limit (what an earlier life owes is held whatever the limit says); a hold is settled for at most
//! what it holds, so what is spent never passes a limit; every hold ends once. Costs are counted by
//! purpose, whether a limit stands or not, so that a limit set later knows what its day has cost.

use std::collections::HashMap;

use crate::types::{AttemptId, MicroUsd, ModelId, UnixMs};

/// Pairs of model and client whose costs are counted apart; later ones are counted together, as
/// nobody's, so that a client that changes its name for ever takes no memory.
const PURPOSES_MAX: usize = 10_000;

/// What a request is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Purpose {
    /// The model that is bought.
    pub model: ModelId,
    /// The local client, as the ledger names it.
    pub client: String,
}

impl Default for Purpose {
    /// Nobody's.
    fn default() -> Self {
        Self {
            model: ModelId::new(""),
            client: String::new(),
        }
    }
}

/// What a limit is about: everything, one model, one client, or one client's use of one model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Scope {
    /// Only this model.
    pub model: Option<ModelId>,
    /// Only this client.
    pub client: Option<String>,
}

/// The most that may be spent; `None`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// In a local day.
    pub daily: Option<MicroUsd>,
    /// In a local month.
    pub monthly: Option<MicroUsd>,
}

/// How long a limit lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Period {
    /// A local day.
    Day,
    /// A local month.
    Month,
}

/// The limit that leaves least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tight {
    /// What it is about.
    pub scope: Scope,
    /// How long it lasts.
    pub period: Period,
    /// When it is reset.
    pub ends_ms: UnixMs,
    /// What it still allows.
    pub left: MicroUsd,
}

/// Names a hold.
pub type HoldId = u64;

/// A cost in the current day and month.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    day: MicroUsd,
    month: MicroUsd,
}

#[derive(Clone, Debug)]
struct Account {
    scope: Scope,
    limits: Limits,
    spent: Sums,
    held: MicroUsd,
}

#[derive(Clone, Debug)]
struct Hold {
    purpose: Purpose,
    amount: MicroUsd,
    attempt: Option<AttemptId>,
    /// Its attempt ended and its cost is in doubt: only [`Book::settle`] ends it.
    is_parked: bool,
}

/// All limits, and what counts towards them.
#[derive(Clone, Debug)]
pub struct Book {
    /// The first is about everything.
    accounts: Vec<Account>,
    purposes: HashMap<Purpose, Sums>,
    holds: HashMap<HoldId, Hold>,
    attempts: HashMap<AttemptId, HoldId>,
    next: HoldId,
    day_ends_ms: UnixMs,
    month_ends_ms: UnixMs,
}

impl Scope {
    /// Everything.
    pub const ALL: Self = Self {
        model: None,
        client: None,
    };

    /// Whether what is bought for `purpose` counts.
    #[must_use]
    pub fn covers(&self, purpose: &Purpose) -> bool {
        let model = self.model.as_ref();
        let client = self.client.as_ref();
        model.is_none_or(|model| *model == purpose.model)
            && client.is_none_or(|client| *client == purpose.client)
    }
}

impl Limits {
    /// True when nothing is limited.
    #[must_use]
    pub const fn is_none(&self) -> bool {
        self.daily.is_none() && self.monthly.is_none()
    }
}

impl Account {
    fn tightest(&self, day_ends_ms: UnixMs, month_ends_ms: UnixMs) -> Option<Tight> {
        let of = |limit: Option<MicroUsd>, spent: MicroUsd, period, ends_ms| {
            limit.map(|limit| Tight {
                scope: self.scope.clone(),
                period,
                ends_ms,
                left: limit.saturating_sub(spent.saturating_add(self.held)),
            })
        };
        let (limits, spent) = (&self.limits, &self.spent);
        let day = of(limits.daily, spent.day, Period::Day, day_ends_ms);
        let month = of(limits.monthly, spent.month, Period::Month, month_ends_ms);
        day.into_iter().chain(month).min_by(Tight::order)
    }
}

impl Tight {
    /// Least left first. Of two that are used up the later end counts: only then may be spent again.
    fn order(&self, other: &Self) -> std::cmp::Ordering {
        let ends = other.ends_ms.cmp(&self.ends_ms);
        self.left.cmp(&other.left).then(ends)
    }
}

impl Book {
    /// A book without limits whose current day and month end at these times.
    #[must_use]
    pub fn new(day_ends_ms: UnixMs, month_ends_ms: UnixMs) -> Self {
        let all = Account {
            scope: Scope::ALL,
            limits: Limits::default(),
            spent: Sums::default(),
            held: MicroUsd::ZERO,
        };
        Self {
            accounts: vec![all],
            purposes: HashMap::new(),
            holds: HashMap::new(),
            attempts: HashMap::new(),
            next: 1,
            day_ends_ms,
            month_ends_ms,
        }
    }

    /// When the current day and month end.
    #[must_use]
    pub const fn ends(&self) -> (UnixMs, UnixMs) {
        (self.day_ends_ms, self.month_ends_ms)
    }

    /// A day began; it ends at `ends_ms`.
    pub fn new_day(&mut self, ends_ms: UnixMs) {
        self.day_ends_ms = ends_ms;
        for spent in self.all_sums() {
            spent.day = MicroUsd::ZERO;
        }
    }

    /// A month began; it ends at `ends_ms`.
    pub fn new_month(&mut self, ends_ms: UnixMs) {
        self.month_ends_ms = ends_ms;
        for spent in self.all_sums() {
            spent.month = MicroUsd::ZERO;
        }
        self.purposes.retain(|_, spent| spent.day > MicroUsd::ZERO);
    }

    fn all_sums(&mut self) -> impl Iterator<Item = &mut Sums> {
        let accounts = self.accounts.iter_mut().map(|account| &mut account.spent);
        accounts.chain(self.purposes.values_mut())
    }

    /// Limits `scope` from now on; without limits a narrower scope than all is forgotten.
    pub fn limit(&mut self, scope: &Scope, limits: Limits) {
        let known = self.accounts.iter_mut().find(|one| one.scope == *scope);
        if let Some(account) = known {
            account.limits = limits;
        } else {
            let mut spent = Sums::default();
            for (purpose, sums) in &self.purposes {
                if scope.covers(purpose) {
                    spent.add(*sums);
                }
            }
            let holds = self.holds.values();
            let held = holds.filter(|hold| scope.covers(&hold.purpose));
            self.accounts.push(Account {
                scope: scope.clone(),
                limits,
                spent,
                held: held.map(|hold| hold.amount).sum(),
            });
        }
        let stays = |one: &Account| one.scope == Scope::ALL || !one.limits.is_none();
        self.accounts.retain(stays);
    }

    /// The limits in force; everything's come first.
    #[must_use]
    pub fn limits(&self) -> Vec<(Scope, Limits)> {
        let accounts = self.accounts.iter();
        accounts
            .map(|one| (one.scope.clone(), one.limits))
            .collect()
    }

    /// Of a scope that has limits: spent in its day, in its month, and held.
    #[must_use]
    pub fn totals(&self, scope: &Scope) -> Option<[MicroUsd; 3]> {
        let account = self.accounts.iter().find(|one| one.scope == *scope)?;
        Some([account.spent.day, account.spent.month, account.held])
    }

    /// The limit that leaves least for `purpose`; none when nothing limits it.
    #[must_use]
    pub fn tightest(&self, purpose: &Purpose) -> Option<Tight> {
        let fit = self.accounts.iter().filter(|one| one.scope.covers(purpose));
        fit.filter_map(|one| one.tightest(self.day_ends_ms, self.month_ends_ms))
            .min_by(Tight::order)
    }

    /// The limit that leaves least for what a hold is for; none when nothing limits it.
    #[must_use]
    pub fn tightest_for(&self, id: HoldId) -> Option<Tight> {
        self.tightest(&self.holds.get(&id)?.purpose)
    }

    /// Holds as much of `most` as is left.
    ///
    /// # Errors
    /// When that is less than `least`: nothing is held, and this is the limit.
    pub fn hold(
        &mut self,
        purpose: Purpose,
        least: MicroUsd,
        most: MicroUsd,
    ) -> Result<(HoldId, MicroUsd), Tight> {
        let tight = self.tightest(&purpose);
        let amount = tight.as_ref().map_or(most, |tight| tight.left.min(most));
        match tight {
            Some(tight) if amount < least => Err(tight),
            _ => Ok((self.insert(purpose, amount, None), amount)),
        }
    }

    /// An earlier life's attempt may still cost `amount`: held whatever the limits say.
    pub fn inherit(&mut self, attempt: AttemptId, purpose: Purpose, amount: MicroUsd) {
        let id = self.insert(purpose, amount, Some(attempt));
        if let Some(hold) = self.holds.get_mut(&id) {
            hold.is_parked = true;
        }
    }

    fn insert(&mut self, purpose: Purpose, amount: MicroUsd, attempt: Option<AttemptId>) -> HoldId {
        let id = self.next;
        self.next += 1;
        self.change(&purpose, |account| {
            account.held = account.held.saturating_add(amount);
        });
        if let Some(attempt) = attempt {
            self.attempts.insert(attempt, id);
        }
        let hold = Hold {
            purpose,
            amount,
            attempt,
            is_parked: false,
        };
        self.holds.insert(id, hold);
        id
    }

    fn change(&mut self, purpose: &Purpose, change: impl Fn(&mut Account)) {
        let fit = self.accounts.iter_mut();
        fit.filter(|one| one.scope.covers(purpose)).for_each(change);
    }

    /// The attempt that a hold is for.
    pub fn name(&mut self, id: HoldId, attempt: AttemptId) {
        if let Some(hold) = self.holds.get_mut(&id) {
            if let Some(before) = hold.attempt.replace(attempt) {
                self.attempts.remove(&before);
            }
            self.attempts.insert(attempt, id);
        }
    }

    /// Holds `amount` in all from now on, if that is more than before.
    ///
    /// # Errors
    /// When a limit does not allow it: nothing has changed, and this is the limit. For a hold that
    /// has ended nothing is left: its cost is booked, and no more may be promised for it.
    pub fn raise(&mut self, id: HoldId, amount: MicroUsd) -> Result<(), Tight> {
        let Some(hold) = self.holds.get(&id) else {
            return Err(Tight {
                scope: Scope::ALL,
                period: Period::Day,
                ends_ms: self.day_ends_ms,
                left: MicroUsd::ZERO,
            });
        };
        let more = amount.saturating_sub(hold.amount);
        let purpose = hold.purpose.clone();
        let amount = hold.amount.saturating_add(more);
        let tight = self.tightest(&purpose);
        if let Some(tight) = tight.filter(|tight| tight.left < more) {
            return Err(tight);
        }
        self.reset(id, &purpose, amount);
        Ok(())
    }

    /// What of `cost` may be paid: what is held, and what is left beside it. Nothing for a hold
    /// that has ended.
    #[must_use]
    pub fn could_be(&self, id: HoldId, cost: MicroUsd) -> MicroUsd {
        let Some(hold) = self.holds.get(&id) else {
            return MicroUsd::ZERO;
        };
        let left = self.tightest(&hold.purpose).map(|tight| tight.left);
        left.map_or(cost, |left| cost.min(hold.amount.saturating_add(left)))
    }

    /// As [`Self::could_be`]; that is held now.
    pub fn cover(&mut self, id: HoldId, cost: MicroUsd) -> MicroUsd {
        let most = self.could_be(id, cost);
        let hold = self.holds.get(&id);
        if let Some(hold) = hold.filter(|hold| hold.amount < most) {
            let purpose = hold.purpose.clone();
            self.reset(id, &purpose, most);
        }
        most
    }

    fn reset(&mut self, id: HoldId, purpose: &Purpose, amount: MicroUsd) {
        let Some(hold) = self.holds.get_mut(&id) else {
            return;
        };
        let before = std::mem::replace(&mut hold.amount, amount);
        self.change(purpose, |account| {
            account.held = account.held.saturating_sub(before).saturating_add(amount);
        });
    }

    /// The attempt ended and is to cost `amount`, at most what is held, when its seller asks for it.
    pub fn park(&mut self, attempt: &AttemptId, amount: MicroUsd) {
        let Some(id) = self.attempts.get(attempt).copied() else {
            return;
        };
        let Some(hold) = self.holds.get_mut(&id) else {
            return;
        };
        hold.is_parked = true;
        let (purpose, amount) = (hold.purpose.clone(), amount.min(hold.amount));
        self.reset(id, &purpose, amount);
    }

    /// The attempt cost `amount`: what was held for it is free, what it cost is spent.
    pub fn settle(&mut self, attempt: &AttemptId, amount: MicroUsd) {
        let id = self.attempts.get(attempt).copied();
        let hold = id.and_then(|id| self.end(id));
        let purpose = hold.map(|hold| hold.purpose).unwrap_or_default();
        self.spend(&purpose, amount, amount);
    }

    /// Nothing came of a hold; one whose attempt is in doubt stays.
    pub fn release(&mut self, id: HoldId) {
        if self.holds.get(&id).is_some_and(|hold| !hold.is_parked) {
            self.end(id);
        }
    }

    fn end(&mut self, id: HoldId) -> Option<Hold> {
        let hold = self.holds.remove(&id)?;
        if let Some(attempt) = &hold.attempt {
            self.attempts.remove(attempt);
        }
        self.change(&hold.purpose, |account| {
            account.held = account.held.saturating_sub(hold.amount);
        });
        Some(hold)
    }

    /// Counts a cost: that much of the current day, and of the current month.
    pub fn spend(&mut self, purpose: &Purpose, day: MicroUsd, month: MicroUsd) {
        if month == MicroUsd::ZERO {
            return;
        }
        let more = Sums { day, month };
        let is_known = self.purposes.contains_key(purpose);
        let counted = if is_known || self.purposes.len() < PURPOSES_MAX {
            purpose.clone()
        } else {
            Purpose::default()
        };
        self.purposes.entry(counted).or_default().add(more);
        self.change(purpose, |account| account.spent.add(more));
    }
}

impl Sums {
    fn add(&mut self, more: Self) {
        self.day = self.day.saturating_add(more.day);
        self.month = self.month.saturating_add(more.month);
    }
}

#[cfg(test)]
#[path = "book_tests.rs"]
mod tests;
