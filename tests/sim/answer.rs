//! The seller's answer, piece by piece as its vouchers reach, and its receipt.

use std::collections::BTreeMap;

use souk::ledger::{DeliveredRow, Row};
use souk::payment::channel::Hold;
use souk::payment::payee::Ended;
use souk::protocol::PeerErrorCode;
use souk::types::{AttemptId, MicroUsd};

use super::Plant;
use super::seller::{Job, JobPhase, Then, failed_row};
use super::wire::{Conn, Msg, Side, receipt};
use super::world::{Event, World};

/// A stream without a voucher for this long ends, ms.
const VOUCHER_PATIENCE: u64 = 10_000;

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Complete,
    BuyerStopped,
    SellerFailed,
}

impl World {
    pub fn next_piece(&mut self, attempt: AttemptId) {
        let life = self.seller.life;
        let after = self.rng.between(1, 400);
        self.at(self.now + after, Event::Piece { life, attempt });
    }

    /// The upstream's next piece: head first, then the answer, then its end.
    pub fn seller_piece(&mut self, attempt: AttemptId) {
        let script = self.scripts[&attempt].clone();
        let Some(job) = self.seller.jobs.get(&attempt) else {
            return;
        };
        if job.phase != JobPhase::Works {
            return;
        }
        let (pieces, head_sent) = (job.pieces, job.head_sent);
        if pieces >= script.breaks_at {
            return self.close(attempt, End::SellerFailed, true);
        }
        if !head_sent {
            return self.send_head(attempt);
        }
        match script.pieces.get(pieces) {
            Some(running) => self.deliver(attempt, *running),
            None => self.close(attempt, End::Complete, false),
        }
    }

    fn send_head(&mut self, attempt: AttemptId) {
        let script = &self.scripts[&attempt];
        let (stream, prefill, claim) = (script.stream, script.prefill, script.claim);
        if !stream && claim > script.max_cost {
            return self.close(attempt, End::SellerFailed, true);
        }
        let start = if stream { prefill } else { MicroUsd::ZERO };
        if let Some(state) = self.seller.paid_by(&attempt) {
            state.start(&attempt, start);
        }
        if let Some(job) = self.seller.jobs.get_mut(&attempt) {
            job.head_sent = true;
            job.committed = true;
            job.running = start;
        }
        self.note_sent(attempt, start);
        let whole = (!stream).then_some(claim);
        self.send(Side::Seller, Conn::Infer(attempt), Msg::RespHead { whole });
        self.next_piece(attempt);
    }

    /// Sends as far as the vouchers reach, or asks for one.
    fn deliver(&mut self, attempt: AttemptId, running: MicroUsd) {
        let script = &self.scripts[&attempt];
        if script.stream && running > script.max_cost.mul_div_ceil(2, 1) {
            return self.close(attempt, End::BuyerStopped, true);
        }
        let Some(state) = self.seller.paid_by(&attempt) else {
            return;
        };
        let held = state.deliver(&attempt, running);
        match held {
            Err(Hold::NeedVoucher(_) | Hold::Unconfirmed(_))
                if self.plant != Some(Plant::NoWindow) =>
            {
                self.deliver_a_part(attempt);
                self.job_phase(attempt, JobPhase::Held);
                self.send(Side::Seller, Conn::Infer(attempt), Msg::Need);
                self.seller_timer(attempt, VOUCHER_PATIENCE);
            }
            Err(Hold::CreditExhausted) if self.plant != Some(Plant::NoWindow) => {
                self.close(attempt, End::BuyerStopped, true);
            }
            _ => {
                if let Some(job) = self.seller.jobs.get_mut(&attempt) {
                    job.pieces += 1;
                }
                self.body_leaves(attempt, running);
                self.next_piece(attempt);
            }
        }
    }

    /// A piece is cut at any byte: what the window allows goes out, the rest waits.
    fn deliver_a_part(&mut self, attempt: AttemptId) {
        let Some(state) = self.seller.paid_by(&attempt) else {
            return;
        };
        let before = state.machine().book().running_of(&attempt);
        let part = before.saturating_add(state.machine().room());
        if part > before && state.deliver(&attempt, part).is_ok() {
            self.body_leaves(attempt, part);
        }
    }

    fn body_leaves(&mut self, attempt: AttemptId, running: MicroUsd) {
        let Some(job) = self.seller.jobs.get_mut(&attempt) else {
            return;
        };
        job.running = running;
        let pieces = job.pieces;
        self.note_delivery(attempt, running);
        let body = Msg::Body { running, pieces };
        self.send(Side::Seller, Conn::Infer(attempt), body);
    }

    /// What waited for a voucher is looked at again.
    pub fn retry_held(&mut self) {
        let of = |jobs: &BTreeMap<AttemptId, Job>, phase| -> Vec<AttemptId> {
            let found = jobs.iter().filter(|(_, job)| job.phase == phase);
            found.map(|(attempt, _)| *attempt).collect()
        };
        for attempt in of(&self.seller.jobs, JobPhase::Waits) {
            self.try_admit(attempt);
        }
        for attempt in of(&self.seller.jobs, JobPhase::Held) {
            self.job_phase(attempt, JobPhase::Works);
            self.seller_piece(attempt);
        }
    }

    /// The buyer cancelled, or its stream broke.
    pub fn seller_stops(&mut self, attempt: AttemptId, owes_input: bool) {
        let Some(job) = self.seller.jobs.get_mut(&attempt) else {
            return;
        };
        match job.phase {
            JobPhase::Waits => job.stopped = Some(owes_input),
            JobPhase::Works | JobPhase::Held => {
                let end = if owes_input {
                    End::BuyerStopped
                } else {
                    End::SellerFailed
                };
                self.close(attempt, end, false);
            }
            JobPhase::Closing => {}
        }
    }

    pub fn seller_broken(&mut self, conn: Conn) {
        match conn {
            Conn::Session(_) if self.seller.session == Some(conn) => self.seller.session = None,
            Conn::Session(_) => {}
            Conn::Infer(attempt) => self.seller_stops(attempt, true),
        }
    }

    /// The end of an attempt: cost, row, receipt.
    pub fn close(&mut self, attempt: AttemptId, end: End, error: bool) {
        let script = self.scripts[&attempt].clone();
        self.job_phase(attempt, JobPhase::Closing);
        let Some(job) = self.seller.jobs.get(&attempt) else {
            return;
        };
        let text = if script.stream {
            job.running.saturating_sub(script.prefill)
        } else {
            job.running
        };
        let cost = match end {
            _ if !job.committed => MicroUsd::ZERO,
            End::Complete => script.claim,
            End::BuyerStopped => script.prefill.saturating_add(text),
            End::SellerFailed => text,
        };
        let cost = cost.min(script.max_cost);
        let last = if error {
            Msg::Error(PeerErrorCode::UpstreamFailed)
        } else {
            Msg::End
        };
        if job.head_sent || error {
            self.send(Side::Seller, Conn::Infer(attempt), last);
        }
        let bytes = receipt(attempt, cost);
        if cost == MicroUsd::ZERO {
            if let Some(state) = self.seller.paid_by(&attempt) {
                state.drop_attempt(&attempt);
            }
            self.seller.sent.remove(&attempt);
            self.seller.disk.submit(Row::Final(failed_row(attempt)));
            self.schedule_write(Side::Seller);
            self.seller.jobs.remove(&attempt);
            self.send(Side::Seller, Conn::Infer(attempt), Msg::Usage(bytes));
            return self.retry_held();
        }
        let number = self.seller.disk.submit(Row::Delivered(DeliveredRow {
            at_ms: self.now,
            attempt_id: attempt,
            status: 200,
            usage: None,
            own_input: None,
            own_output: None,
            cost,
            receipt: Some(bytes.clone()),
        }));
        let ended = Ended {
            signed_head: self.seller.head(script.max_cost),
            receipt: Some(bytes),
            cost,
            status: 200,
            usage: None,
            own_input: None,
            own_output: None,
            model_served: String::new(),
            ttft_ms: None,
            total_ms: 0,
            error: None,
        };
        let then = Then::Receipt(attempt, Box::new(ended));
        self.seller.then.push((number, None, then));
        self.schedule_write(Side::Seller);
    }
}
