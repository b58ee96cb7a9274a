//! The buyer's account of one attempt: its own counts, the bound they give, and the final row.
//!
//! What the client is shown (`usage.cost`) and what is accepted are the same number: the least of
//! usage × price, the bound by our own count, and the receipt.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::allowance::Allowance;
use super::asked::Asked;
use super::route::Candidate;
use super::trial::Trial;
use super::wire::OrderWire;
use super::{Shared, check, measures};
use crate::ledger::{DeliveredRow, FinalRow, OpenRow, Outcome, Row};
use crate::llm_api::bounds::{OwnCount, bounded_cost};
use crate::llm_api::{AnswerMeter, Margin, TokenCount};
use crate::payment::payer::Pair;
use crate::protocol::{CancelReason, SignedReceipt};
use crate::router::Answered;
use crate::tasks::off_thread_if;
use crate::types::{AttemptId, MicroUsd, PeerId, PriceTable, Usage};
use check::{Finding, Said};

/// Bodies up to this are counted in place; larger ones on the blocking pool.
const INLINE_BODY_BYTES: usize = 4 * 1024;

/// Why an answer ended when a spending limit ended it, as the ledger says it.
pub(super) const BUDGET: &str = "budget";

/// One attempt's account.
pub(super) struct Books {
    shared: Arc<Shared>,
    asked: Arc<Asked>,
    pair: Arc<Pair>,
    trial: Trial,
    pub attempt: AttemptId,
    pub price: PriceTable,
    pub prefill: MicroUsd,
    allowance: Allowance,
    seller: PeerId,
    model: String,
    image_tokens: u32,
    reasoning_cap: u64,
    started: Instant,
    pub ttft_ms: Option<u64>,
    own_input: OnceCell<Option<TokenCount>>,
}

/// What was delivered, when the answer is over.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub status: u16,
    pub model_served: String,
    /// The usage the cost is computed from.
    pub usage: Option<Usage>,
    pub own_output: Option<u64>,
    /// What the client was shown, or the bound of what was delivered.
    pub cost: MicroUsd,
    pub disputed: bool,
    pub error: Option<String>,
    /// What the answer said, where it came to its end.
    pub said: Said,
}

/// A cost by our own count.
#[derive(Clone, Copy, Debug)]
pub(super) struct Priced {
    pub cost: MicroUsd,
    pub disputed: bool,
    pub own_output: u64,
}

impl Books {
    pub fn begin(
        shared: &Arc<Shared>,
        asked: &Arc<Asked>,
        candidate: &Candidate,
        pair: &Arc<Pair>,
        allowance: Allowance,
        open: &OpenRow,
        trial: &Trial,
    ) -> Self {
        let offer = &candidate.offer.offer;
        Self {
            shared: Arc::clone(shared),
            asked: Arc::clone(asked),
            pair: Arc::clone(pair),
            trial: trial.clone(),
            attempt: open.attempt_id,
            price: offer.price,
            prefill: candidate.prefill,
            allowance,
            seller: offer.seller,
            model: offer.model.to_string(),
            image_tokens: offer.image_tokens,
            reasoning_cap: u64::from(offer.reasoning_cap),
            started: Instant::now(),
            ttft_ms: None,
            own_input: OnceCell::new(),
        }
    }

    /// RESP_HEAD: the running meter stands at `running`.
    pub fn start(&self, running: MicroUsd) {
        self.pair.start(&self.attempt, running);
    }
    /// Received up to `running`; false when a spending limit does not allow that, and then nothing is
    /// promised for it.
    #[must_use]
    pub fn receive(&self, running: MicroUsd) -> bool {
        let allowed = self.allowance.step(running);
        if let Some(running) = allowed {
            self.pair.receive(&self.attempt, running);
        }
        allowed.is_some()
    }
    /// Holds what a whole answer costs, before any of it is paid; false when a limit does not allow it.
    pub fn hold(&self, cost: MicroUsd) -> bool {
        self.allowance.cover(cost) == cost
    }
    /// The most that the answer may cost.
    pub const fn max_cost(&self) -> MicroUsd {
        self.allowance.max_cost
    }
    /// True when the user's wish, and not the request, bounds the cost.
    pub const fn is_capped(&self) -> bool {
        self.allowance.is_capped()
    }
    /// The seller asks for a voucher.
    pub fn urge(&self) {
        self.pair.urge();
    }
    /// The first event is here.
    pub fn first_event(&mut self) {
        self.ttft_ms.get_or_insert(elapsed_ms(self.started));
    }

    /// Our own count of the input; counted once, when it is first needed.
    pub async fn own_input(&self) -> TokenCount {
        let count = || async {
            let (asked, model) = (Arc::clone(&self.asked), self.model.clone());
            let counter = self.shared.counter.clone();
            let large = asked.body.len() > INLINE_BODY_BYTES;
            let work = move || Some(counter.count_request(&model, &asked.body, &asked.view));
            off_thread_if(large, work).await
        };
        let counted = *self.own_input.get_or_init(count).await;
        // A lost worker thread counts nothing; the estimate stands in.
        counted.unwrap_or_else(|| self.shared.counter.count_text(&self.model, ""))
    }
    /// Our own count of a streamed answer so far.
    pub fn count_stream(&self, text: &AnswerMeter) -> TokenCount {
        self.shared.counter.count_answer(&self.model, text)
    }
    /// Our own count of a whole answer.
    pub fn count_whole(&self, body: &[u8]) -> TokenCount {
        self.shared.counter.count_whole_answer(&self.model, body)
    }
    /// Usage by our own count, for an upstream that reports none.
    pub async fn own_usage(&self, output: TokenCount) -> Usage {
        let input = self.own_input().await.tokens;
        Usage {
            input,
            output: output.tokens,
            ..Usage::default()
        }
    }

    /// What `claimed` usage costs, bounded by our own counts.
    pub async fn price(&self, claimed: &Usage, output: TokenCount) -> Priced {
        let input = self.own_input().await;
        let own = OwnCount {
            input: input.tokens,
            output: output.tokens,
            input_margin: input.margin,
            output_margin: output.margin,
            message_count: self.asked.view.message_count,
            has_tools: self.asked.view.has_tools,
            images: self.asked.view.image_count,
            image_tokens: u64::from(self.image_tokens),
            reasoning_cap: self.reasoning_cap,
        };
        let (cost, disputed) = bounded_cost(&self.price, claimed, &own);
        Priced {
            cost: self.allowance.cover(cost),
            disputed,
            own_output: output.tokens,
        }
    }

    /// Nothing was owed: the attempt is booked as failed, without a word to the seller.
    pub fn void(&self, error: &str, status: u16) {
        let tally = Tally {
            status,
            error: Some(tame(error)),
            ..Tally::default()
        };
        self.finish(tally, None);
    }

    /// The client hung up before RESP_HEAD: cancel, and pay the input if the upstream was called.
    pub async fn client_gone(self, mut wire: OrderWire, called: bool, delivered: TokenCount) {
        let receipt = wire.cancel(CancelReason::ClientGone, |_| {}).await;
        let receipt = receipt.and_then(|bytes| self.verify(&bytes));
        let gone = Tally {
            status: 499,
            error: Some("client_gone".into()),
            ..Tally::default()
        };
        match receipt {
            Some(signed) => {
                let priced = self.price(&signed.receipt.usage, delivered).await;
                let tally = Tally {
                    cost: priced.cost,
                    usage: Some(signed.receipt.usage),
                    ..gone
                };
                self.settle(tally, Some(signed)).await;
            }
            None if called => {
                let usage = self.own_usage(delivered).await;
                let cost = self.allowance.cover(self.price.cost(&usage));
                self.settle(Tally { cost, ..gone }, None).await;
            }
            None => self.finish(gone, None),
        }
    }

    /// Keeps the stream of a request that is over for the next one.
    pub fn keep(&self, wire: OrderWire) {
        self.shared.streams.put(self.seller, wire);
    }

    /// Checks that a receipt is this attempt's and the seller's.
    pub fn verify(&self, bytes: &Bytes) -> Option<SignedReceipt> {
        let signed = SignedReceipt::decode_and_verify(bytes, &self.seller).ok()?;
        (signed.receipt.attempt_id == self.attempt).then_some(signed)
    }

    /// Books the end: with a receipt the least of both is accepted; without one, if anything is
    /// owed, the attempt stays in doubt until the seller shows it.
    pub async fn settle(&self, tally: Tally, receipt: Option<SignedReceipt>) {
        self.teach(&tally, receipt.as_ref());
        match receipt {
            Some(signed) => self.finish(tally, Some(signed)),
            None if tally.cost == MicroUsd::ZERO => self.finish(tally, None),
            None => self.park(tally).await,
        }
    }

    /// Tells the router how it went.
    fn teach(&self, tally: &Tally, receipt: Option<&SignedReceipt>) {
        let usage = tally.usage.unwrap_or_default();
        let is_empty = usage.output == 0 && !self.asked.endpoint.owes_without_output();
        match tally.error.as_deref() {
            // The client left, or may spend no more: nothing is learned.
            Some(_) if tally.status == 499 => return,
            Some(BUDGET) => return,
            None if !is_empty => {}
            _ => return self.trial.failed(MicroUsd::ZERO),
        }
        let billed = receipt.map_or(tally.cost, |signed| signed.receipt.cost);
        let total_s = self.started.elapsed().as_secs_f64();
        let first = self.ttft_ms.filter(|_| self.asked.stream);
        let ttft_s = first.map(|ms| Duration::from_millis(ms).as_secs_f64());
        let own = tally.own_output.unwrap_or(0);
        let answered = Answered {
            ttft_s,
            writing_s: total_s - ttft_s.unwrap_or(0.0),
            input_tokens: usage.input_total(),
            cached_tokens: usage.cache_read,
            output_tokens: usage.output.min(own.saturating_add(usage.reasoning)),
            cost: tally.cost,
            billed,
            // Above the bound the accepted cost is the bound.
            own: if tally.disputed { tally.cost } else { billed },
            exact: self.counts_exactly(),
        };
        let finding = self.finding(&usage, own, &tally.said);
        self.trial.answered(answered, finding, &self.attempt);
    }

    /// What is wrong with an answer, if anything is.
    fn finding(&self, usage: &Usage, own_output: u64, said: &Said) -> Option<Finding> {
        // Vectors have no words to look at.
        if self.asked.endpoint.owes_without_output() {
            return None;
        }
        let view = &self.asked.view;
        let asked = view.messages_span.clone().or(view.prompt_span.clone());
        let asked = asked.and_then(|span| self.asked.body.get(span));
        check::answer(&check::Answer {
            dialect: self.asked.dialect,
            said,
            usage,
            own_output,
            max_tokens: view.max_tokens,
            model: &self.model,
            asked: asked.unwrap_or_default(),
        })
    }

    /// Refuses an answer that the client has not seen and that contradicts itself: nothing is paid for
    /// it. Gives what is wrong with it.
    pub fn refuse(&self, usage: &Usage, own_output: u64, said: &Said) -> Option<&'static str> {
        let finding = self.finding(usage, own_output, said);
        let finding = finding.filter(|finding| finding.is_grave)?;
        let unpaid = Answered {
            writing_s: self.started.elapsed().as_secs_f64(),
            input_tokens: usage.input_total(),
            output_tokens: own_output,
            ..Answered::default()
        };
        self.trial.answered(unpaid, Some(finding), &self.attempt);
        self.void(finding.what, 502);
        Some(finding.what)
    }

    fn counts_exactly(&self) -> bool {
        self.shared.counter.count_text(&self.model, "").margin == Margin::Exact
    }

    async fn park(&self, tally: Tally) {
        let row = DeliveredRow {
            at_ms: self.shared.clock.now_ms(),
            attempt_id: self.attempt,
            status: tally.status,
            usage: tally.usage,
            own_input: self
                .own_input
                .get()
                .and_then(|count| count.map(|c| c.tokens)),
            own_output: tally.own_output,
            cost: tally.cost,
            receipt: None,
        };
        self.pair.park(&row, &self.model);
        if let Err(error) = self.shared.ledger.submit(vec![Row::Delivered(row)]).await {
            tracing::error!(%error, "ledger write failed");
        }
        self.log(&tally, None);
    }

    fn finish(&self, tally: Tally, receipt: Option<SignedReceipt>) {
        let claim = receipt.as_ref().map(|signed| signed.receipt.cost);
        let billed = claim.map_or(MicroUsd::ZERO, |claim| claim.min(tally.cost));
        let outcome = if billed == MicroUsd::ZERO {
            Outcome::Failed
        } else {
            Outcome::Accepted
        };
        let usage = tally
            .usage
            .or(receipt.as_ref().map(|signed| signed.receipt.usage));
        self.log(&tally, Some(billed));
        let row = FinalRow {
            at_ms: self.shared.clock.now_ms(),
            attempt_id: self.attempt,
            outcome,
            status: tally.status,
            billed,
            model_served: if tally.model_served.is_empty() {
                self.model.clone()
            } else {
                tally.model_served
            },
            usage,
            own_input: self
                .own_input
                .get()
                .and_then(|count| count.map(|c| c.tokens)),
            own_output: tally.own_output,
            ttft_ms: self.ttft_ms,
            total_ms: elapsed_ms(self.started),
            disputed: tally.disputed || claim.is_some_and(|claim| claim > billed),
            receipt: receipt.map(|signed| signed.bytes.to_vec()),
            error: tally.error,
        };
        self.pair
            .finish(row, claim.is_some_and(|claim| claim > MicroUsd::ZERO));
    }

    /// Counts and logs an end; `billed` is none while it is in doubt.
    fn log(&self, tally: &Tally, billed: Option<MicroUsd>) {
        measures::attempt_ended(tally, billed, self.ttft_ms, elapsed_ms(self.started));
        tracing::info!(
            request = %self.asked.id,
            seller = %self.seller,
            model = %self.model,
            status = tally.status,
            cost_usd = billed.map_or_else(|| "in doubt".to_owned(), |cost| cost.to_string()),
            ttft_ms = self.ttft_ms.unwrap_or(0),
            ms = elapsed_ms(self.started),
            error = tally.error.as_deref().unwrap_or(""),
            "bought"
        );
    }
}

fn elapsed_ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// An error's text as it may stand in the ledger.
fn tame(text: &str) -> String {
    crate::protocol::limits::tame_text(text)
}
