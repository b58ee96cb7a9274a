//! The seller's outbox at work: the production machine, its intents durable before anything leaves.

use std::collections::BTreeMap;

use souk::chain::Fees;
use souk::chain::journal::{Intent, Record};
use souk::chain::outbox::{Action, Outbox, Rules as OutboxRules, View};
use souk::chain::transaction::Signed;
use souk::types::EvmAddress;

use super::chain::HUB;
use super::seller::Then;
use super::wire::Side;
use super::world::World;

/// The seller's account.
const SENDER: EvmAddress = EvmAddress([2; 20]);
/// Fees never change here: the pool takes what comes.
const FEES: Fees = Fees {
    base: 10,
    priority: 1,
};

fn outbox_rules() -> OutboxRules {
    OutboxRules {
        chain_id: HUB.chain_id,
        sender: SENDER,
        fee_cap: 1_000_000,
        bump_after_ms: 4_000,
        gap_patience_ms: 8_000,
        pending_max: 8,
    }
}

impl World {
    /// The intent is durable: the outbox has it.
    pub fn intent_durable(&mut self, intent: Intent) {
        self.seller.outbox_waits -= 1;
        if let Some(outbox) = &mut self.seller.outbox {
            outbox.admit(intent);
        }
        self.outbox_polls();
    }

    /// A poll of the outbox.
    pub fn outbox_polls(&mut self) {
        if self.seller.outbox_waits > 0 || !self.rpc_answers() {
            return;
        }
        let Some(chain) = &self.chain else {
            return;
        };
        let open = self.seller.disk.open_intents();
        let outbox = &mut self.seller.outbox;
        let outbox = outbox.get_or_insert_with(|| Outbox::restore(outbox_rules(), open));
        let receipts: BTreeMap<_, _> = outbox
            .wanted_receipts()
            .into_iter()
            .map(|tx| (tx, chain.receipt(&tx)))
            .collect();
        let view = View {
            mined_nonce: chain.nonce_at(chain.head()),
            final_nonce: chain.nonce_at(chain.final_block()),
            pending_nonce: chain.pending_nonce(),
            final_block: chain.final_block(),
            fees: FEES,
            receipts,
        };
        let actions = outbox.step(&view, self.now);
        for action in actions {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Store(outcome) => {
                self.seller.disk.record(Record::Outcome(outcome));
                self.schedule_write(Side::Seller);
            }
            Action::Fill(intent) => {
                let number = self.seller.disk.record(Record::Intent(intent.clone()));
                self.seller.outbox_waits += 1;
                let then = Then::Sent(Box::new(intent));
                self.seller.then.push((number, None, then));
                self.schedule_write(Side::Seller);
            }
            Action::Sign { nonce, offer } => {
                let (Some(chain), Some(outbox)) = (&mut self.chain, &mut self.seller.outbox) else {
                    return;
                };
                let Some(unsigned) = outbox.unsigned(nonce, offer) else {
                    return;
                };
                let (hash, raw) = chain.sign(nonce, &unsigned.data);
                let signed = Signed {
                    hash,
                    raw: raw.clone(),
                };
                let Some(sent) = outbox.signed(nonce, offer, signed, self.now) else {
                    return;
                };
                let number = self.seller.disk.record(Record::Sent(sent));
                self.seller.outbox_waits += 1;
                self.seller
                    .then
                    .push((number, None, Then::Signed(nonce, raw)));
                self.schedule_write(Side::Seller);
            }
            Action::Broadcast { nonce, raw } => self.broadcast(nonce, &raw),
        }
    }

    /// The signed form is durable: it may leave.
    pub fn signed_durable(&mut self, nonce: u64, raw: &[u8]) {
        self.seller.outbox_waits -= 1;
        self.broadcast(nonce, raw);
    }

    pub fn broadcast(&mut self, nonce: u64, raw: &[u8]) {
        if !self.rpc_answers() {
            return;
        }
        self.check_broadcast(nonce);
        let (Some(chain), Some(outbox)) = (&mut self.chain, &mut self.seller.outbox) else {
            return;
        };
        let taken = chain.send(raw);
        outbox.broadcast(nonce, taken, self.now);
    }
}
