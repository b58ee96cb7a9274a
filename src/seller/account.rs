//! From what was delivered to a receipt: usage, cost, rows, USAGE frame.
//!
//! The upstream's usage counts when its answer is complete. What was cut short is counted here:
//! input only when the buyer stopped by its own wish, output as far as it was delivered. Errors
//! and empty answers cost 0 and are booked at once; anything else waits for the buyer's ACCEPT.

use sha2::{Digest, Sha256};

use super::wire::InferWire;
use super::{Finish, Job, Shared};
use crate::ledger::{DeliveredRow, Row};
use crate::llm_api::{RequestView, TokenCount};
use crate::payment::payee::Ended;
use crate::protocol::receipt::Receipt;
use crate::protocol::{Ending, FrameKind, PeerError, PeerErrorCode, SignedReceipt};
use crate::tasks::off_thread_if;
use crate::types::{Hash32, MicroUsd, Usage};

/// What left this seller for one attempt.
pub(super) struct Delivered {
    pub status: u16,
    pub model_served: String,
    /// The upstream's own report, as far as it came.
    pub reported: Option<Usage>,
    /// Our own count of the answer.
    pub output: Option<TokenCount>,
    /// Hash and length of the body bytes sent.
    pub hash: Sha256,
    pub sent: u64,
    pub ttft_ms: Option<u64>,
    /// RESP_HEAD was sent, or a NOP that said the upstream was called.
    pub committed: bool,
    /// RESP_HEAD was sent.
    pub head_sent: bool,
}

impl Delivered {
    pub fn new() -> Self {
        Self {
            status: 0,
            model_served: String::new(),
            reported: None,
            output: None,
            hash: Sha256::new(),
            sent: 0,
            ttft_ms: None,
            committed: false,
            head_sent: false,
        }
    }
    pub fn record(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.sent = self
            .sent
            .saturating_add(u64::try_from(bytes.len()).unwrap_or(0));
    }
}

/// Own counts of one attempt.
#[derive(Clone, Copy, Debug, Default)]
struct OwnCount {
    input: Option<u64>,
    output: u64,
}

/// Books the end of an attempt and sends its last frames. True when all of it went well, so that
/// the stream may carry another request; it is closed otherwise.
pub(super) async fn close(
    shared: &Shared,
    wire: &mut InferWire,
    mut job: Job,
    delivered: Delivered,
    finish: Finish,
) -> bool {
    let own = count(shared, &job, &delivered, finish).await;
    let (usage, from_upstream) = match job.endpoint {
        Some(_) => usage_of(&delivered, finish, own),
        None => (delivered.reported.unwrap_or_default(), false),
    };
    let cost = cost_of(&job, &delivered, &usage, finish);
    let receipt = sign(
        shared,
        &job,
        &delivered,
        (usage, from_upstream),
        cost,
        finish,
        own,
    );
    crate::failpoint::hit("seller_before_usage");
    if let Some(code) = finish.error {
        let error = PeerError {
            code: match code {
                "credit_exhausted" => PeerErrorCode::CreditExhausted,
                "voucher_missing" | "deposit_unconfirmed" => PeerErrorCode::VoucherLate,
                "draining" => PeerErrorCode::Draining,
                "above_max_cost" => PeerErrorCode::AboveMaxCost,
                _ => PeerErrorCode::UpstreamFailed,
            },
            message: code.to_owned(),
            retry_after_ms: 0,
            now_ms: shared.clock.now_ms(),
        };
        wire.writer.put(FrameKind::Error, &error.encode());
    } else if delivered.head_sent {
        wire.writer.put(FrameKind::End, &[]);
    }
    // The buyer has its whole answer; the receipt follows when this node cannot forget it any more.
    let _ = wire.writer.flush().await;
    job.room = None;
    let buyer = job.order.signed.head.buyer;
    let tokens = usage.input_total().saturating_add(usage.output);
    shared.count_served(buyer, job.counted, tokens, cost);
    book(shared, &job, &delivered, &receipt, finish, own).await;
    if delivered.committed {
        wire.writer.put(FrameKind::Usage, &receipt.bytes);
    }
    let is_well = finish.ending == Ending::Complete && finish.error.is_none();
    let stays_open = is_well && delivered.committed && wire.rest().await;
    if !stays_open {
        wire.close().await;
    }
    super::measures::answered(&receipt.receipt, delivered.ttft_ms, job.elapsed_ms());
    tracing::info!(
        request = %receipt.receipt.request_id,
        buyer = %receipt.receipt.buyer,
        model = %job.order.sold.offer.model,
        status = delivered.status,
        input = usage.input_total(),
        output = usage.output,
        cost_usd = %cost,
        ms = job.elapsed_ms(),
        error = finish.error.unwrap_or(""),
        "served"
    );
    crate::failpoint::hit("seller_after_usage");
    stays_open
}

/// Counts the input where the upstream did not, off the hot thread.
async fn count(shared: &Shared, job: &Job, delivered: &Delivered, finish: Finish) -> OwnCount {
    let output = delivered.output.map_or(0, |count| count.tokens);
    let reported = delivered
        .reported
        .is_some_and(|usage| usage.input_total() > 0);
    let owes_input = finish.ending != Ending::SellerFailed;
    let Some(endpoint) = job.endpoint else {
        // Block-tokens were counted where they were computed.
        let (input, output) = delivered.reported.map_or((0, 0), |u| (u.input, u.output));
        return OwnCount {
            input: Some(input),
            output,
        };
    };
    if reported || !owes_input || delivered.status >= 400 {
        return OwnCount {
            input: None,
            output,
        };
    }
    let (counter, model) = (shared.counter.clone(), job.order.sold.offer.model.clone());
    let (body, dialect) = (job.body.clone(), endpoint.dialect());
    let work = move || {
        RequestView::parse(&body, dialect).map_or(0, |view| {
            counter.count_request(model.as_str(), &body, &view).tokens
        })
    };
    OwnCount {
        input: Some(off_thread_if(true, work).await),
        output,
    }
}

fn usage_of(delivered: &Delivered, finish: Finish, own: OwnCount) -> (Usage, bool) {
    let reported = delivered.reported;
    match (finish.ending, reported) {
        (Ending::Complete, Some(usage)) => (usage, true),
        (Ending::Complete | Ending::BuyerStopped, _) => {
            let input = reported.filter(|u| u.input_total() > 0).unwrap_or(Usage {
                input: own.input.unwrap_or(0),
                ..Usage::default()
            });
            (
                Usage {
                    output: own.output,
                    reasoning: 0,
                    ..input
                },
                false,
            )
        }
        (Ending::SellerFailed, _) => (
            Usage {
                output: own.output,
                ..Usage::default()
            },
            false,
        ),
    }
}

fn cost_of(job: &Job, delivered: &Delivered, usage: &Usage, finish: Finish) -> MicroUsd {
    let is_text = job.endpoint.is_some_and(|e| !e.owes_without_output());
    let owes_nothing = usage.output == 0 && is_text;
    let empty = owes_nothing && finish.ending != Ending::BuyerStopped;
    if !delivered.committed || delivered.status >= 400 || empty {
        return MicroUsd::ZERO;
    }
    job.order
        .sold
        .offer
        .price
        .cost(usage)
        .min(job.order.signed.head.max_cost)
}

fn sign(
    shared: &Shared,
    job: &Job,
    delivered: &Delivered,
    (usage, usage_from_upstream): (Usage, bool),
    cost: MicroUsd,
    finish: Finish,
    own: OwnCount,
) -> SignedReceipt {
    let head = &job.order.signed.head;
    let receipt = Receipt {
        request_id: head.request_id,
        attempt_id: job.attempt,
        order_hash: job.order.signed.hash,
        seller: head.seller,
        buyer: head.buyer,
        status: delivered.status,
        ending: finish.ending,
        usage,
        usage_from_upstream,
        own_output: own.output,
        cost,
        response_hash: Hash32(delivered.hash.clone().finalize().into()),
        response_len: delivered.sent,
        at_ms: shared.clock.now_ms(),
    };
    SignedReceipt::sign(receipt, &shared.keys.identity)
}

/// The status as the ledger shows it: 499 for a client that left, 502 for a cut.
const fn row_status(delivered: &Delivered, finish: Finish) -> u16 {
    match finish.ending {
        Ending::BuyerStopped => 499,
        Ending::SellerFailed if delivered.status < 400 => 502,
        Ending::SellerFailed | Ending::Complete => delivered.status,
    }
}

/// The attempt's row: final at once when nothing is owed, else delivered until the ACCEPT, and then
/// durable on return: an ACCEPT for an attempt that a crash forgot could not be booked here.
async fn book(
    shared: &Shared,
    job: &Job,
    delivered: &Delivered,
    receipt: &SignedReceipt,
    finish: Finish,
    own: OwnCount,
) {
    let now_ms = shared.clock.now_ms();
    let cost = receipt.receipt.cost;
    let ended = Ended {
        signed_head: job.order.signed.bytes.to_vec(),
        receipt: Some(receipt.bytes.to_vec()),
        cost,
        status: row_status(delivered, finish),
        usage: Some(receipt.receipt.usage),
        own_input: own.input,
        own_output: Some(own.output),
        model_served: delivered.model_served.clone(),
        ttft_ms: delivered.ttft_ms,
        total_ms: job.elapsed_ms(),
        error: finish.error.map(str::to_owned),
    };
    let written = if cost == MicroUsd::ZERO {
        job.pair.drop_attempt(&job.attempt);
        let row = ended.into_final(job.attempt, MicroUsd::ZERO, now_ms);
        shared.ledger.submit(vec![Row::Final(row)]).await
    } else {
        let row = DeliveredRow {
            at_ms: now_ms,
            attempt_id: job.attempt,
            status: row_status(delivered, finish),
            usage: Some(receipt.receipt.usage),
            own_input: own.input,
            own_output: Some(own.output),
            cost,
            receipt: Some(receipt.bytes.to_vec()),
        };
        let written = shared.ledger.commit_soon(vec![Row::Delivered(row)]).await;
        job.pair.end(job.attempt, ended);
        written
    };
    if let Err(error) = written {
        tracing::error!(%error, "ledger write failed");
    }
}
