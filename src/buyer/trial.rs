//! One attempt, as the router sees it: begun once, ended once.
//!
//! Whoever knows how the attempt ended says so; one that is dropped without a word taught nothing
//! (the client left, the request was at fault, our own books failed). Called by the buyer's flow,
//! `books` and `ending`.

use std::sync::Arc;

use parking_lot::Mutex;

use super::asked::Asked;
use super::check::Finding;
use super::refusal::FailureKind;
use super::route::Candidate;
use crate::llm_api;
use crate::router::{Answered, ConversationKey, Observation, Outcome, Router};
use crate::types::{AttemptId, MicroUsd, ModelId, PeerId};

/// Output that a failed attempt is weighed by, tokens.
const OUTPUT_EXPECTED: u64 = 512;

/// An attempt under way. Clones are the same attempt.
#[derive(Clone)]
pub(super) struct Trial {
    inner: Arc<Inner>,
}

struct Inner {
    router: Router,
    seller: PeerId,
    model: ModelId,
    client: String,
    conversation: ConversationKey,
    exposure: MicroUsd,
    expected: MicroUsd,
    over: Mutex<bool>,
}

/// The conversation that a request belongs to.
pub(super) fn conversation(asked: &Asked) -> ConversationKey {
    ConversationKey(llm_api::conversation_key(&asked.body, &asked.view))
}

impl Trial {
    /// An attempt of `asked` (as the client wrote it) at `candidate` goes out.
    pub fn begin(router: &Router, asked: &Asked, candidate: &Candidate) -> Self {
        let offer = &candidate.offer.offer;
        let output = candidate.output_max.min(OUTPUT_EXPECTED);
        let expected = offer.price.cost_in_out(candidate.input_tokens, output);
        router.begin(&offer.seller, candidate.prefill);
        Self {
            inner: Arc::new(Inner {
                router: router.clone(),
                seller: offer.seller,
                model: offer.model.clone(),
                client: asked.client.clone(),
                conversation: conversation(asked),
                exposure: candidate.prefill,
                expected,
                over: Mutex::new(false),
            }),
        }
    }

    /// It ended with an answer; `finding` is the check that it failed, `attempt` names what the
    /// ledger keeps of it.
    pub fn answered(&self, answered: Answered, finding: Option<Finding>, attempt: &AttemptId) {
        self.inner.end(match finding {
            None => Outcome::Good(answered),
            Some(Finding { what, is_grave }) => Outcome::Doubtful {
                answered,
                reason: format!("{what} (attempt {attempt})"),
                is_grave,
            },
        });
    }

    /// It ended without a whole answer, and the seller is to blame. `lost`: prepaid for nothing.
    pub fn failed(&self, lost: MicroUsd) {
        let expected = self.inner.expected;
        self.inner.end(Outcome::Failed { expected, lost });
    }

    /// The attempt failed before the first event; what that says depends on why.
    pub fn failed_as(&self, kind: FailureKind) {
        match kind {
            FailureKind::RateLimited | FailureKind::Busy => self.inner.end(Outcome::Full),
            FailureKind::Credit | FailureKind::Funds | FailureKind::Declined => {
                self.inner.end(Outcome::Excused);
            }
            // Who says nothing may have taken what was paid ahead.
            FailureKind::Timeout => self.failed(self.inner.exposure),
            FailureKind::Broken => self.failed(MicroUsd::ZERO),
        }
    }
}

impl Inner {
    fn end(&self, outcome: Outcome) {
        if std::mem::replace(&mut *self.over.lock(), true) {
            return;
        }
        self.router.observe(&Observation {
            seller: self.seller,
            model: &self.model,
            client: &self.client,
            conversation: Some(self.conversation),
            exposure: self.exposure,
            outcome,
        });
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.end(Outcome::Excused);
    }
}
