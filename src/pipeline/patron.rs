//! For whom a session's layers are paid, and what they cost.
//!
//! A session is opened for a [`Patron`]. Each stage that is ordered for it has a meter there, which
//! holds money of a [`Purse`] before it may cost it. No I/O, no clock.
//!
//! # Invariants
//! - Before rows are asked for, what they will cost is held: a limit ends a session before its rows
//!   are computed, not after.
//! - A meter's cost is never above what is held for it.

use std::sync::Arc;

use parking_lot::Mutex;

use super::error::PipelineError;
use super::session::Rows;
use crate::protocol::stage::StepKind;
use crate::types::{AttemptId, MicroUsd, ModelId, PeerId, PriceTable, RequestId, Usage};

/// Money that may be spent on layers.
pub trait Purse: Send + Sync {
    /// Holds `amount` for an attempt that `client` has at the stages `model`.
    ///
    /// # Errors
    /// The limit that does not allow it, for people.
    fn hold(
        &self,
        client: &str,
        model: &ModelId,
        amount: MicroUsd,
    ) -> Result<Box<dyn Held>, String>;
}

/// Money held for one attempt. What its cost leaves is free when this is dropped.
pub trait Held: Send + Sync {
    /// The attempt that it is for: its booked cost ends the hold.
    fn name(&self, attempt: AttemptId);
    /// Holds `amount` in all from now on, if that is more than before.
    ///
    /// # Errors
    /// The limit that does not allow it, for people; nothing has changed.
    fn raise(&self, amount: MicroUsd) -> Result<(), String>;
}

/// A purse without a bottom.
#[derive(Clone, Copy, Debug)]
pub struct Unlimited;

impl Purse for Unlimited {
    fn hold(&self, _: &str, _: &ModelId, _: MicroUsd) -> Result<Box<dyn Held>, String> {
        Ok(Box::new(Self))
    }
}

impl Held for Unlimited {
    fn name(&self, _: AttemptId) {}
    fn raise(&self, _: MicroUsd) -> Result<(), String> {
        Ok(())
    }
}

/// Whoever a session runs for. Cheap to clone; the default is this node itself, for its checks, of
/// which no account is kept.
#[derive(Clone, Default)]
pub struct Patron {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    named: Option<Named>,
    /// Its stages are remembered.
    is_kept: bool,
    spend_max: Option<MicroUsd>,
    meters: Mutex<Vec<Arc<Meter>>>,
}

/// Whose request it is.
#[derive(Clone, Debug)]
pub struct Named {
    /// The request.
    pub request: RequestId,
    /// The local client, as the ledger names it.
    pub client: String,
    /// The model that the client asked for.
    pub model: String,
}

impl std::fmt::Debug for Patron {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let named = &self.inner.named;
        f.debug_struct("Patron").field("named", named).finish()
    }
}

impl Patron {
    /// A client of this node, whose request may cost at most `spend_max`.
    #[must_use]
    pub fn new(named: Named, spend_max: Option<MicroUsd>) -> Self {
        let inner = Inner {
            named: Some(named),
            is_kept: true,
            spend_max,
            meters: Mutex::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// This node, for something that it sells.
    #[must_use]
    pub fn house() -> Self {
        let inner = Inner {
            is_kept: true,
            ..Inner::default()
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Whose request it is; none: nobody's.
    #[must_use]
    pub fn named(&self) -> Option<&Named> {
        self.inner.named.as_ref()
    }

    /// What all stages have cost, those that were left included; while a session runs, with the
    /// rows that are asked for.
    #[must_use]
    pub fn cost(&self) -> MicroUsd {
        let meters = self.inner.meters.lock();
        meters.iter().map(|meter| meter.shown()).sum()
    }

    /// What a million rows through the stages that serve now cost: prefill, decode; micro-USD.
    #[must_use]
    pub fn prices(&self) -> (u64, u64) {
        let meters = self.inner.meters.lock();
        let serving = meters.iter().filter(|meter| meter.is_serving());
        serving.fold((0, 0), |(prefill, decode), meter| {
            let of = |price: u64| price.saturating_mul(meter.layers);
            (
                prefill.saturating_add(of(meter.price.input)),
                decode.saturating_add(of(meter.price.output)),
            )
        })
    }

    /// This peer's stage is out: what is asked for from now on is not asked of it, and its place is
    /// to be paid to somebody else.
    pub(super) fn leave(&self, peer: &PeerId) {
        let meters = self.inner.meters.lock();
        for meter in meters.iter().filter(|meter| meter.peer == *peer) {
            meter.count.lock().is_left = true;
        }
    }

    /// A stage was ordered.
    pub(super) fn join(&self, meter: Arc<Meter>) {
        if self.inner.is_kept {
            self.inner.meters.lock().push(meter);
        }
    }

    /// Holds what `rows` more through every stage will cost.
    ///
    /// # Errors
    /// [`PipelineError::Budget`]: they must not be asked for.
    pub(super) fn foresee(&self, rows: u32, kind: StepKind) -> Result<(), PipelineError> {
        let meters = self.inner.meters.lock();
        let mut next = Vec::new();
        let mut all = MicroUsd::ZERO;
        for meter in meters.iter() {
            if !meter.is_serving() {
                all = all.saturating_add(meter.shown());
                continue;
            }
            let (rows, cost) = meter.foresee(rows, kind).map_err(PipelineError::Budget)?;
            all = all.saturating_add(cost);
            next.push((meter, rows));
        }
        if let Some(most) = self.inner.spend_max.filter(|most| all > *most) {
            return Err(PipelineError::Budget(format!(
                "the answer costs more than the ${most} that this request may; raise \
                 x-souk-max-cost-usd or [buy.budget] request, or lower max_tokens"
            )));
        }
        for (meter, rows) in next {
            meter.count.lock().asked = rows;
        }
        Ok(())
    }
}

/// What one stage's session costs.
pub(super) struct Meter {
    peer: PeerId,
    price: PriceTable,
    layers: u64,
    /// How far its payment may run ahead of it.
    window: MicroUsd,
    /// The most that the stage was told.
    max_cost: MicroUsd,
    count: Mutex<Count>,
}

struct Count {
    /// Rows asked for.
    asked: Rows,
    /// Rows that it has computed, by our count.
    owed: Rows,
    held: MicroUsd,
    /// None once it is booked.
    hold: Option<Box<dyn Held>>,
    /// It serves no more, and is not booked yet.
    is_left: bool,
    booked: MicroUsd,
}

impl Meter {
    /// Holds the beginning of a session.
    ///
    /// # Errors
    /// The limit that does not allow it.
    pub fn open(
        purse: &dyn Purse,
        client: &str,
        (peer, model): (PeerId, &ModelId),
        (price, layers): (PriceTable, u64),
        (window, max_cost): (MicroUsd, MicroUsd),
    ) -> Result<Self, PipelineError> {
        let held = window.min(max_cost);
        let hold = purse.hold(client, model, held);
        let count = Count {
            asked: Rows::default(),
            owed: Rows::default(),
            held,
            hold: Some(hold.map_err(PipelineError::Budget)?),
            is_left: false,
            booked: MicroUsd::ZERO,
        };
        Ok(Self {
            peer,
            price,
            layers,
            window,
            max_cost,
            count: Mutex::new(count),
        })
    }

    /// The attempt that it is about.
    pub fn name(&self, attempt: AttemptId) {
        if let Some(hold) = &self.count.lock().hold {
            hold.name(attempt);
        }
    }
    /// The most that the stage was told.
    pub const fn max_cost(&self) -> MicroUsd {
        self.max_cost
    }
    /// By our count it has computed so much in all.
    pub fn owe(&self, rows: Rows) {
        let mut count = self.count.lock();
        count.owed = rows;
        // A replay for a lost stage is not foreseen. What a limit does not allow is not promised.
        let _ = self.hold(&mut count, rows);
    }
    /// Block-tokens owed.
    pub fn usage(&self) -> Usage {
        self.usage_of(self.count.lock().owed)
    }
    /// What is owed.
    pub fn cost(&self) -> MicroUsd {
        let count = self.count.lock();
        self.cost_of(count.owed).min(count.held)
    }
    /// Its cost is booked, or in doubt.
    pub fn end(&self, booked: MicroUsd) {
        let mut count = self.count.lock();
        count.booked = booked;
        count.hold = None;
    }

    fn is_serving(&self) -> bool {
        let count = self.count.lock();
        count.hold.is_some() && !count.is_left
    }
    fn shown(&self) -> MicroUsd {
        let count = self.count.lock();
        if count.hold.is_none() {
            return count.booked;
        }
        let owed = self.cost_of(count.owed);
        let seen = if count.is_left {
            owed
        } else {
            owed.max(self.cost_of(count.asked))
        };
        seen.min(count.held)
    }
    /// Holds what `rows` more will cost; all rows then, and their cost.
    fn foresee(&self, rows: u32, kind: StepKind) -> Result<(Rows, MicroUsd), String> {
        let mut count = self.count.lock();
        let mut next = Rows {
            prefill: count.asked.prefill.max(count.owed.prefill),
            decode: count.asked.decode.max(count.owed.decode),
        };
        next.add(rows, kind);
        self.hold(&mut count, next)?;
        Ok((next, self.cost_of(next)))
    }
    /// Holds the cost of `rows` and a window beyond it.
    fn hold(&self, count: &mut Count, rows: Rows) -> Result<(), String> {
        let cost = self.cost_of(rows).saturating_add(self.window);
        let amount = cost.min(self.max_cost);
        if amount > count.held
            && let Some(hold) = &count.hold
        {
            hold.raise(amount)?;
            count.held = amount;
        }
        Ok(())
    }
    fn usage_of(&self, rows: Rows) -> Usage {
        Usage {
            input: rows.prefill.saturating_mul(self.layers),
            output: rows.decode.saturating_mul(self.layers),
            ..Usage::default()
        }
    }
    fn cost_of(&self, rows: Rows) -> MicroUsd {
        self.price.cost(&self.usage_of(rows)).min(self.max_cost)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pipeline::market::tests::peer;

    /// A purse of so much.
    struct Small(Arc<Mutex<(u64, u64)>>);
    struct Part(Arc<Mutex<(u64, u64)>>, Mutex<u64>);

    impl Purse for Small {
        fn hold(&self, _: &str, _: &ModelId, amount: MicroUsd) -> Result<Box<dyn Held>, String> {
            let part = Part(Arc::clone(&self.0), Mutex::new(0));
            part.raise(amount)?;
            Ok(Box::new(part))
        }
    }
    impl Held for Part {
        fn name(&self, _: AttemptId) {}
        fn raise(&self, amount: MicroUsd) -> Result<(), String> {
            let (mut all, mut own) = (self.0.lock(), self.1.lock());
            let more = amount.0.saturating_sub(*own);
            if all.0 + more > all.1 {
                return Err("used up".to_owned());
            }
            all.0 += more;
            *own += more;
            Ok(())
        }
    }

    fn patron(spend_max: Option<u64>) -> Patron {
        let named = Named {
            request: RequestId::generate(1),
            client: "me".to_owned(),
            model: "m".to_owned(),
        };
        Patron::new(named, spend_max.map(MicroUsd))
    }

    fn meter(purse: &dyn Purse, layers: u64, window: u64) -> Result<Arc<Meter>, PipelineError> {
        let peer = peer(u16::try_from(layers).unwrap());
        let price = PriceTable {
            input: 1_000_000,
            output: 2_000_000,
            ..PriceTable::default()
        };
        let money = (MicroUsd(window), MicroUsd(1_000_000));
        let model = ModelId::new("stage/0");
        Meter::open(purse, "me", (peer, &model), (price, layers), money).map(Arc::new)
    }

    #[test]
    fn rows_that_a_limit_does_not_allow_are_not_asked_for() {
        let all = Arc::new(Mutex::new((0, 100)));
        let purse = Small(Arc::clone(&all));
        let patron = patron(None);
        for layers in [2, 3] {
            patron.join(meter(&purse, layers, 10).unwrap());
        }
        assert_eq!(patron.prices(), (5_000_000, 10_000_000));
        // 10 rows through five layers at 1 each, and two windows of 10.
        patron.foresee(10, StepKind::Prefill).unwrap();
        assert_eq!((patron.cost(), all.lock().0), (MicroUsd(50), 70));
        patron.foresee(3, StepKind::Decode).unwrap();
        assert_eq!((patron.cost(), all.lock().0), (MicroUsd(80), 100));
        let over = patron.foresee(1, StepKind::Decode);
        assert_eq!(over, Err(PipelineError::Budget("used up".to_owned())));
        assert_eq!(patron.cost(), MicroUsd(80));
        assert!(matches!(
            meter(&purse, 1, 10).err(),
            Some(PipelineError::Budget(_))
        ));
    }

    #[test]
    fn a_request_has_a_most_of_its_own_and_remembers_stages_that_were_left() {
        let patron = patron(Some(30));
        let (first, second) = (meter(&Unlimited, 1, 10), meter(&Unlimited, 1, 10));
        let (first, second) = (first.unwrap(), second.unwrap());
        patron.join(Arc::clone(&first));
        patron.foresee(20, StepKind::Prefill).unwrap();
        first.end(MicroUsd(15));
        patron.join(Arc::clone(&second));
        assert_eq!(patron.cost(), MicroUsd(15));
        // The one that came in its place computes again what it lost.
        let rows = Rows {
            prefill: 10,
            decode: 0,
        };
        second.owe(rows);
        assert_eq!(patron.cost(), MicroUsd(25));
        patron.foresee(2, StepKind::Decode).unwrap();
        let over = patron.foresee(1, StepKind::Decode);
        assert!(matches!(over, Err(PipelineError::Budget(why)) if why.contains("0.00003")));
    }

    #[test]
    fn the_place_of_a_stage_that_left_is_paid_to_another_before_it_is_booked() {
        let patron = patron(None);
        let (first, second) = (meter(&Unlimited, 1, 10), meter(&Unlimited, 2, 10));
        let (first, second) = (first.unwrap(), second.unwrap());
        for one in [&first, &second] {
            patron.join(Arc::clone(one));
        }
        patron.foresee(10, StepKind::Prefill).unwrap();
        let owed = Rows {
            prefill: 4,
            decode: 0,
        };
        second.owe(owed);
        assert_eq!(patron.prices(), (3_000_000, 6_000_000));
        patron.leave(&peer(2));
        assert_eq!(patron.prices(), (1_000_000, 2_000_000));
        // It is owed what it computed, and is asked for no more.
        assert_eq!(patron.cost(), MicroUsd(10 + 8));
        patron.foresee(5, StepKind::Prefill).unwrap();
        assert_eq!(patron.cost(), MicroUsd(15 + 8));
        second.end(MicroUsd(6));
        assert_eq!(patron.cost(), MicroUsd(15 + 6));
    }

    proptest! {
        #[test]
        fn no_cost_is_above_what_is_held(
            limit in 0u64..3_000,
            steps in proptest::collection::vec((0usize..3, 1u32..40, any::<bool>(), any::<bool>()), 1..40),
        ) {
            let all = Arc::new(Mutex::new((0, limit)));
            let purse = Small(Arc::clone(&all));
            let patron = patron(None);
            let meters: Vec<_> = (1..4u64).filter_map(|n| meter(&purse, n, 7).ok()).collect();
            meters.iter().for_each(|one| patron.join(Arc::clone(one)));
            let mut counts = vec![Rows::default(); meters.len()];
            for (at, n, is_decode, is_asked) in steps {
                let kind = if is_decode { StepKind::Decode } else { StepKind::Prefill };
                if is_asked {
                    let _ = patron.foresee(n, kind);
                } else if let (Some(count), Some(meter)) = (counts.get_mut(at), meters.get(at)) {
                    count.add(n, kind);
                    meter.owe(*count);
                }
                let owed: u64 = meters.iter().map(|meter| meter.cost().0).sum();
                prop_assert!(owed <= all.lock().0);
                prop_assert!(patron.cost().0 <= all.lock().0);
                prop_assert!(all.lock().0 <= limit);
            }
        }
    }
}
