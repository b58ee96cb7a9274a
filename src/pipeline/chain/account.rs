//! Our own account of one stage session: what it is owed by our count, and its rows in the ledger.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use crate::ledger::{DeliveredRow, FinalRow, Ledger, OpenRow, Outcome, Row};
use crate::payment::payer::Pair;
use crate::pipeline::patron::Meter;
use crate::pipeline::session::Rows;
use crate::protocol::SignedReceipt;
use crate::types::{AttemptId, Clock, MicroUsd, ModelId, PeerId, Usage};

/// One attempt's account. Dropped without [`Account::settle`] it is booked as failed, owing nothing:
/// nothing was computed for it.
pub(super) struct Account {
    pair: Arc<Pair>,
    ledger: Ledger,
    clock: Arc<dyn Clock>,
    attempt: AttemptId,
    seller: PeerId,
    model: ModelId,
    meter: Arc<Meter>,
    started: Instant,
    is_settled: bool,
}

impl Drop for Account {
    fn drop(&mut self) {
        if !self.is_settled {
            self.finish(None, Some("not_opened".to_owned()), 502);
        }
    }
}

impl Account {
    pub fn new(
        pair: Arc<Pair>,
        ledger: Ledger,
        clock: Arc<dyn Clock>,
        open: &OpenRow,
        meter: Arc<Meter>,
    ) -> Self {
        Self {
            pair,
            ledger,
            clock,
            attempt: open.attempt_id,
            seller: open.peer,
            model: open.model.clone(),
            meter,
            started: Instant::now(),
            is_settled: false,
        }
    }

    pub const fn attempt(&self) -> AttemptId {
        self.attempt
    }
    /// RESP_HEAD: nothing is owed yet.
    pub fn start(&self) {
        self.pair.start(&self.attempt, MicroUsd::ZERO);
    }
    /// The stage asks for a voucher.
    pub fn urge(&self) {
        self.pair.urge();
    }
    /// By our count so much is computed; vouchers follow.
    pub fn owe(&self, rows: Rows) {
        self.meter.owe(rows);
        self.pair.receive(&self.attempt, self.cost());
    }
    /// It computed something else: nothing more is promised, and its receipt is not believed.
    pub fn forfeit(&self) {
        self.meter.owe(Rows::default());
    }
    /// The seller says its clock shows `seller_ms`.
    pub fn learn_clock(&self, seller_ms: u64) {
        self.pair.learn_clock(seller_ms, self.clock.now_ms());
    }

    fn usage(&self) -> Usage {
        self.meter.usage()
    }
    fn cost(&self) -> MicroUsd {
        self.meter.cost()
    }

    /// The session is over. With a receipt the least of both counts is booked; without one, if
    /// anything is owed, it stays in doubt until the seller shows it.
    pub async fn settle(mut self, receipt: Option<Bytes>, error: Option<String>) {
        let is_ours = |signed: &SignedReceipt| signed.receipt.attempt_id == self.attempt;
        let receipt = receipt
            .and_then(|bytes| SignedReceipt::decode_and_verify(&bytes, &self.seller).ok())
            .filter(is_ours);
        let status = if error.is_some() { 502 } else { 200 };
        self.is_settled = true;
        if receipt.is_some() || self.cost() == MicroUsd::ZERO {
            return self.finish(receipt, error, status);
        }
        let usage = self.usage();
        let row = DeliveredRow {
            at_ms: self.clock.now_ms(),
            attempt_id: self.attempt,
            status,
            usage: Some(usage),
            own_input: Some(usage.input),
            own_output: Some(usage.output),
            cost: self.cost(),
            receipt: None,
        };
        self.pair.park(&row, self.model.as_str());
        self.meter.end(row.cost);
        if let Err(error) = self.ledger.submit(vec![Row::Delivered(row)]).await {
            tracing::error!(%error, "ledger write failed");
        }
    }

    fn finish(&self, receipt: Option<SignedReceipt>, error: Option<String>, status: u16) {
        let claim = receipt.as_ref().map(|signed| signed.receipt.cost);
        let billed = claim.map_or(MicroUsd::ZERO, |claim| claim.min(self.cost()));
        let outcome = if billed == MicroUsd::ZERO {
            Outcome::Failed
        } else {
            Outcome::Accepted
        };
        let usage = self.usage();
        tracing::info!(
            seller = %self.seller,
            model = %self.model,
            prefill = usage.input,
            decode = usage.output,
            cost_usd = %billed,
            error = error.as_deref().unwrap_or(""),
            "bought layers"
        );
        let row = FinalRow {
            at_ms: self.clock.now_ms(),
            attempt_id: self.attempt,
            outcome,
            status,
            billed,
            model_served: self.model.to_string(),
            usage: Some(usage),
            own_input: Some(usage.input),
            own_output: Some(usage.output),
            ttft_ms: None,
            total_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            disputed: claim.is_some_and(|claim| claim > billed),
            receipt: receipt.map(|signed| signed.bytes.to_vec()),
            error: error.map(|text| crate::protocol::limits::tame_text(&text)),
        };
        // Booked first: until then it is held.
        self.pair
            .finish(row, claim.is_some_and(|claim| claim > MicroUsd::ZERO));
        self.meter.end(billed);
    }
}
