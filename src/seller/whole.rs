//! Relays a whole answer: collected and priced first, then released as the vouchers reach.
//!
//! The head names length and cost before the first byte, so the buyer can refuse what is above
//! its bound. Called by [`super::reply`].

use bytes::{Bytes, BytesMut};

use super::account::Delivered;
use super::reply::{response_head, stopped_finish, upstream_cut, watch};
use super::stream::await_voucher;
use super::wire::InferWire;
use super::{Finish, Job, Shared};
use crate::llm_api::{self, Endpoint, RequestView, usage};
use crate::network::framed::FLUSH_BYTES;
use crate::payment::running::slice_worth;
use crate::protocol::infer::WholeAnswer;
use crate::protocol::limits::BODY_BYTES_MAX;
use crate::protocol::{Ending, FrameKind};
use crate::types::{MicroUsd, Usage};

/// Slice in which an expensive whole answer is released at least.
const SLICE_BYTES_MIN: usize = 1;

/// Collects the body, prices it, sends the head, then the body.
pub(super) async fn relay(
    shared: &Shared,
    wire: &mut InferWire,
    (job, endpoint): (&Job, Endpoint),
    mut response: reqwest::Response,
    delivered: &mut Delivered,
) -> Finish {
    let body = tokio::select! {
        biased;
        body = collect(shared, &mut response) => body,
        stopped = watch(wire, delivered) => return stopped_finish(shared, stopped),
    };
    let Some(body) = body else {
        delivered.status = 502;
        return upstream_cut("upstream_cut");
    };
    let ok = response.status().is_success();
    if ok && !llm_api::is_json_object(&body) {
        delivered.status = 502;
        return upstream_cut("upstream_malformed");
    }
    delivered
        .model_served
        .clone_from(&job.order.sold.upstream_id);
    delivered.ttft_ms = Some(job.elapsed_ms());
    let body = if ok && job.order.sold.upstream_id != job.order.signed.head.model {
        llm_api::rewrite_answer_model(&body, &job.order.signed.head.model)
    } else {
        body
    };
    let cost = if ok {
        price(shared, (job, endpoint), &body, delivered)
    } else {
        MicroUsd::ZERO
    };
    if cost > job.order.signed.head.max_cost {
        delivered.status = 502;
        return upstream_cut("above_max_cost");
    }
    let length = u64::try_from(body.len()).unwrap_or(u64::MAX);
    let head = response_head(job, &response, Some(WholeAnswer { length, cost }));
    wire.writer.put(FrameKind::RespHead, &head.encode());
    delivered.committed = true;
    delivered.head_sent = true;
    job.pair.start(&job.attempt, MicroUsd::ZERO);
    crate::failpoint::hit("seller_resp_head");
    let finish = release(shared, wire, job, &body, cost, delivered).await;
    if finish.ending != Ending::Complete
        && let Some(output) = &mut delivered.output
    {
        // Cut in the middle: only the delivered share of the output is owed.
        let share = u128::from(output.tokens) * u128::from(delivered.sent);
        output.tokens = u64::try_from(share.div_ceil(u128::from(length.max(1)))).unwrap_or(0);
    }
    finish
}

/// The complete body, or `None` when it broke or grew beyond the limit.
async fn collect(shared: &Shared, response: &mut reqwest::Response) -> Option<Bytes> {
    let mut body = BytesMut::new();
    loop {
        match tokio::time::timeout(shared.settings.idle_timeout, response.chunk()).await {
            Ok(Ok(Some(chunk))) if body.len() + chunk.len() <= BODY_BYTES_MAX => {
                body.extend_from_slice(&chunk);
            }
            Ok(Ok(None)) => return Some(body.freeze()),
            _ => return None,
        }
    }
}

/// Usage of a complete body; the cost that RESP_HEAD names.
fn price(
    shared: &Shared,
    (job, endpoint): (&Job, Endpoint),
    body: &Bytes,
    delivered: &mut Delivered,
) -> MicroUsd {
    let model = job.order.sold.offer.model.as_str();
    let output = shared.counter.count_whole_answer(model, body);
    delivered.output = Some(output);
    let used = usage::extract(endpoint.dialect(), body).unwrap_or_else(|| {
        let input = RequestView::parse(&job.body, endpoint.dialect()).map_or(0, |view| {
            shared.counter.count_request(model, &job.body, &view).tokens
        });
        Usage {
            input,
            output: output.tokens,
            ..Usage::default()
        }
    });
    delivered.reported = Some(used);
    if used.output == 0 && !endpoint.owes_without_output() {
        MicroUsd::ZERO
    } else {
        job.order.sold.offer.price.cost(&used)
    }
}

/// Releases slices as the window allows; a slice is worth cost × bytes ÷ length.
async fn release(
    shared: &Shared,
    wire: &mut InferWire,
    job: &Job,
    body: &Bytes,
    cost: MicroUsd,
    delivered: &mut Delivered,
) -> Finish {
    let length = u64::try_from(body.len()).unwrap_or(u64::MAX);
    let mut rest: &[u8] = body;
    while !rest.is_empty() {
        let mut len = rest.len();
        let held = loop {
            let after = delivered
                .sent
                .saturating_add(u64::try_from(len).unwrap_or(0));
            match job
                .pair
                .deliver(&job.attempt, slice_worth(cost, after, length))
            {
                Ok(()) => break Ok(len),
                Err(hold) if len <= SLICE_BYTES_MIN => break Err(hold),
                Err(_) => len /= 2,
            }
        };
        match held {
            Ok(len) => {
                let (piece, tail) = rest.split_at(len.min(rest.len()));
                wire.writer.put(FrameKind::Body, piece);
                delivered.record(piece);
                rest = tail;
                if wire.writer.pending() >= FLUSH_BYTES
                    && let Err(stopped) = wire.flush().await
                {
                    return stopped_finish(shared, stopped);
                }
                crate::failpoint::hit("seller_half_body");
            }
            Err(hold) => {
                if let Err(finish) = await_voucher(shared, wire, job, hold).await {
                    return finish;
                }
            }
        }
    }
    Finish {
        ending: Ending::Complete,
        error: None,
    }
}
