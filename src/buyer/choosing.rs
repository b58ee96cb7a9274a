//! The next seller for a request: the router's choice among the candidates, attempt by attempt.
//!
//! What was tried is left out; when all were tried, those that may do better a second time are asked
//! once more. Called by the buyer's flow.

use std::sync::Arc;

use super::asked::Asked;
use super::refusal::{AttemptFailure, FailureKind, Refusal};
use super::route::{Candidate, Route};
use super::trial::conversation;
use super::{ATTEMPTS_MAX, Shared};
use crate::llm_api::Margin;
use crate::router::{Ask, Entry, Skip};
use crate::types::PeerId;

/// The choices made for one request.
pub(super) struct Choosing<'a> {
    shared: &'a Shared,
    ask: Ask<'a>,
    candidates: &'a [Candidate],
    entries: Vec<Entry>,
    /// Not to be chosen now.
    tried: Vec<PeerId>,
    failures: Vec<AttemptFailure>,
    is_second_round: bool,
}

impl<'a> Choosing<'a> {
    pub fn new(shared: &'a Shared, asked: &'a Asked, route: &'a Route) -> Self {
        Self {
            shared,
            ask: ask(shared, asked, &route.candidates),
            candidates: &route.candidates,
            entries: route.candidates.iter().map(Candidate::entry).collect(),
            tried: Vec::new(),
            failures: Vec::new(),
            is_second_round: false,
        }
    }

    /// Whom to ask now; nobody when all that may be asked were.
    pub fn next(&mut self) -> Option<&'a Candidate> {
        let router = &self.shared.router;
        let choice = match router.choose(&self.ask, &self.entries, &self.tried) {
            Some(choice) => choice,
            None if self.begin_second_round() => {
                router.choose(&self.ask, &self.entries, &self.tried)?
            }
            None => return None,
        };
        let candidate = self.candidates.get(choice.index)?;
        tracing::debug!(
            seller = %choice.score.seller,
            micro_usd = choice.score.total,
            success = choice.score.success,
            seconds = choice.score.latency_s,
            "chosen"
        );
        self.tried.push(candidate.offer.offer.seller);
        Some(candidate)
    }

    /// True when another attempt may follow attempt `number`.
    pub fn has_more(&self, number: u32) -> bool {
        number < ATTEMPTS_MAX && self.tried.len() < self.entries.len()
    }

    /// After an answer: channels with those who may be asked next.
    pub fn open_ahead(&self, shared: &Arc<Shared>) {
        super::ahead::open(shared, &self.ask, &self.entries);
    }

    pub fn failed(&mut self, failure: AttemptFailure) {
        self.failures.push(failure);
    }

    /// With everybody tried, those whose failure may have been a moment's are left once more; a lone
    /// seller only when it was silent, because a restarted one is found again on a fresh connection.
    fn begin_second_round(&mut self) -> bool {
        if std::mem::replace(&mut self.is_second_round, true) {
            return false;
        }
        let is_lone = self.entries.len() == 1;
        let again = self.failures.iter().filter(|failure| match failure.kind {
            FailureKind::Timeout => true,
            FailureKind::Broken => !is_lone,
            FailureKind::RateLimited
            | FailureKind::Busy
            | FailureKind::Credit
            | FailureKind::Funds
            | FailureKind::Declined => false,
        });
        let again: Vec<PeerId> = again.map(|failure| failure.seller).collect();
        self.tried.retain(|seller| !again.contains(seller));
        !again.is_empty()
    }

    /// What the client is told when nobody could answer.
    pub fn refusal(&self) -> Refusal {
        if !self.failures.is_empty() {
            return Refusal::exhausted(&self.failures);
        }
        let explained = self.shared.router.explain(&self.ask, &self.entries);
        let count = |is: &dyn Fn(&Skip) -> bool| {
            let skips = explained.iter().filter_map(|score| score.as_ref().err());
            skips.filter(|skip| is(skip)).count()
        };
        let reasons = [
            (
                count(&|skip| matches!(skip, Skip::Breaker(_))),
                "kept failing",
            ),
            (count(&|skip| matches!(skip, Skip::Full)), "full"),
            (
                count(&|skip| matches!(skip, Skip::Quarantined(..))),
                "in quarantine",
            ),
            (
                count(&|skip| matches!(skip, Skip::Exposure | Skip::Exploration)),
                "too new for more at once",
            ),
        ];
        let reasons = reasons.iter().filter(|(count, _)| *count > 0);
        let reasons: Vec<String> = reasons
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        Refusal::no_seller(format!(
            "no seller of `{}` may be asked now: {}; GET /api/sellers says why",
            self.ask.model,
            reasons.join(", ")
        ))
    }
}

/// The request as the router needs it.
pub(super) fn ask<'a>(shared: &Shared, asked: &'a Asked, candidates: &[Candidate]) -> Ask<'a> {
    let wishes = shared.wishes.get();
    let policy = &wishes.policy;
    let most = |value: &dyn Fn(&Candidate) -> u64| candidates.iter().map(value).max();
    let margin = shared.counter.count_text(asked.model.as_str(), "").margin;
    Ask {
        model: &asked.model,
        client: &asked.client,
        input_tokens: most(&|c| c.input_tokens).unwrap_or(0),
        output_max: most(&|c| c.output_max).unwrap_or(0),
        exact: margin == Margin::Exact,
        prefer: asked.prefer.unwrap_or(policy.prefer),
        deadline_s: shared.settings.timeouts.all_attempts.as_secs_f64(),
        conversation: Some(conversation(asked)),
        pinned: asked.seller.or(policy.seller),
    }
}
