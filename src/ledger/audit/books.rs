//! The books as the audit keeps them: every row is entered in order, rules are checked as it goes,
//! and sums are compared where the writer wrote sums. No SQL: the second opinion on the writer's.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::super::batch::ChainEnd;
use super::super::decode::{
    BadColumn, Fields, open_seq, to_budget, to_channel, to_delivered, to_final, to_offer, to_open,
    to_settlement, to_voucher,
};
use super::super::rows::{ChannelRow, DeliveredRow, FinalRow, OpenRow, Outcome, Role, VoucherRow};
use super::super::sums::{
    self, Balance, Balances, COUNTS, Counts, RollupKey, Rollups, bucket_of, encode_balance,
    encode_rollup,
};
use super::super::table::{ChainHash, Stored, Table, Value, genesis};
use super::super::writer::checkpoint_message;
use super::onchain::Onchain;
use super::rules::{final_counts, judge, limit_of};
use super::{AuditOptions, AuditReport, SignatureCheck};
use crate::types::{AttemptId, ChannelId, MicroUsd, RequestId, UnixMs};

/// Who and what an attempt was, for sums; shared by the attempts of one client, model and peer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Party {
    role: Role,
    model: String,
    peer: Vec<u8>,
    client: String,
}

enum Attempt {
    Open {
        row: Box<OpenRow>,
        delivered: Option<Box<DeliveredRow>>,
        party: Arc<Party>,
    },
    Booked(Arc<Party>),
}

#[derive(Default)]
struct Channel {
    row: Option<ChannelRow>,
    first_peer: Vec<u8>,
    has_voucher: bool,
    settled_since_row: i64,
    balance: Balance,
}

/// The books.
pub(super) struct Books<'a> {
    signatures: &'a dyn SignatureCheck,
    exposure_max: MicroUsd,
    attempts: HashMap<i64, Attempt>,
    opened: HashMap<AttemptId, i64>,
    parties: BTreeSet<Arc<Party>>,
    charged: HashMap<RequestId, u32>,
    channels: BTreeMap<(Role, ChannelId), Channel>,
    unfinished: BTreeSet<i64>,
    /// What the rows since the last checkpoint add up to.
    rollups: Rollups,
    touched: BTreeSet<(Role, ChannelId)>,
    /// Sums the writer wrote since the last checkpoint.
    claimed: Vec<Vec<Value>>,
    last_data: (i64, ChainHash),
    /// Attempts that vouchers name and that are not open yet, with the voucher's row.
    awaited: HashMap<AttemptId, i64>,
    onchain: Onchain,
}

pub(super) type Check = Result<(), String>;

impl From<BadColumn> for String {
    fn from(bad: BadColumn) -> Self {
        bad.to_string()
    }
}

impl<'a> Books<'a> {
    /// Empty books.
    pub(super) fn new(options: &'a AuditOptions) -> Self {
        Self {
            signatures: options.signatures.as_ref(),
            exposure_max: options.exposure_max,
            attempts: HashMap::new(),
            opened: HashMap::new(),
            parties: BTreeSet::new(),
            charged: HashMap::new(),
            channels: BTreeMap::new(),
            unfinished: BTreeSet::new(),
            rollups: Rollups::new(),
            touched: BTreeSet::new(),
            claimed: Vec::new(),
            last_data: (0, genesis()),
            awaited: HashMap::new(),
            onchain: Onchain::default(),
        }
    }

    /// Enters the next row; `end` is the chain's end with this row.
    pub(super) fn enter(&mut self, row: &Stored, end: &ChainEnd, report: &mut AuditReport) {
        let checked = match row.table {
            Table::Channel => self.channel(row, report),
            Table::Offer => self.offer(row, report),
            Table::Open => self.open(row, report),
            Table::Delivered => self.delivered(row),
            Table::Final => self.finished(row, report),
            Table::Voucher => self.voucher(row, report),
            Table::Settlement => self.settlement(row),
            Table::Budget | Table::ClientBudget => {
                let read = to_budget(row.table, &row.values);
                read.map(|_| ()).map_err(String::from)
            }
            Table::TxIntent => self.onchain.intent(row, self.signatures, report),
            Table::TxSent => self.onchain.sent(row, self.signatures, report),
            Table::TxOutcome => self.onchain.outcome(row),
            Table::ChainEvent => self.onchain.event(row, report),
            Table::ChainCursor => self.onchain.cursor(row),
            Table::Rollup | Table::Balance => {
                self.claimed.push(row.values.clone());
                Ok(())
            }
            Table::Checkpoint => self.checkpoint(row, report),
        };
        if let Err(what) = checked {
            let name = row.table.name();
            report.differ(Some(row.seq), format!("row {} ({name}): {what}", row.seq));
        }
        if !row.table.is_derived() {
            if !self.claimed.is_empty() {
                self.claimed.clear();
                let what = format!("sums before row {} have no checkpoint", row.seq);
                report.differ(Some(row.seq), what);
            }
            self.last_data = (row.seq, end.hash);
        }
    }

    /// Ends the audit with what can only be judged at the end.
    pub(super) fn close(self, report: &mut AuditReport) {
        report.channels = u64::try_from(self.channels.len()).unwrap_or(u64::MAX);
        report.unfinished = u64::try_from(self.unfinished.len()).unwrap_or(u64::MAX);
        let twice = self.charged.values().filter(|count| **count > 1).count();
        report.requests_charged_twice = u64::try_from(twice).unwrap_or(u64::MAX);
        if !self.claimed.is_empty() {
            report.differ(None, "the last sums have no checkpoint".to_owned());
        }
        for (id, seq) in &self.awaited {
            let what = format!("row {seq} is a voucher for attempt {id}, which never opened");
            report.differ(Some(*seq), what);
        }
        for ((role, id), channel) in &self.channels {
            let Some(row) = &channel.row else { continue };
            if row.mode == "free" {
                continue;
            }
            let who = format!("channel {id} ({})", role.as_str());
            let accepted = MicroUsd::from_i64(channel.balance.accepted);
            let voucher = MicroUsd::from_i64(channel.balance.voucher);
            let limit = limit_of(row, channel.settled_since_row);
            if accepted > voucher.saturating_add(self.exposure_max) {
                report.differ(
                    None,
                    format!(
                        "{who}: accepted {accepted} USD, but vouchers only reach {voucher} USD"
                    ),
                );
            }
            if accepted > limit.saturating_add(self.exposure_max) {
                report.differ(
                    None,
                    format!("{who}: accepted {accepted} USD, above its deposit of {limit} USD"),
                );
            }
        }
    }

    fn channel(&mut self, row: &Stored, report: &mut AuditReport) -> Check {
        let row = to_channel(&row.values)?;
        report.signatures += 1;
        let signed = self.signatures.channel(&row);
        let entry = self.channels.entry((row.role, row.channel)).or_default();
        if entry.first_peer.is_empty() {
            entry.first_peer = row.peer.to_bytes();
        }
        let moved = entry
            .row
            .as_ref()
            .is_some_and(|old| old.mode != row.mode || old.peer != row.peer);
        entry.settled_since_row = 0;
        entry.row = Some(row);
        if moved {
            return Err("a channel never changes its mode or its peer".to_owned());
        }
        signed
    }

    fn offer(&self, row: &Stored, report: &mut AuditReport) -> Check {
        report.signatures += 1;
        self.signatures.offer(&to_offer(&row.values)?)
    }

    fn open(&mut self, row: &Stored, report: &mut AuditReport) -> Check {
        report.attempts += 1;
        let seq = row.seq;
        let open = to_open(&row.values)?;
        let party = self.party(&open);
        let known = self.knows(open.role, &open.channel);
        report.signatures += 1;
        let signed = self.signatures.head(&open);
        self.unfinished.insert(seq);
        self.awaited.remove(&open.attempt_id);
        let id = open.attempt_id;
        let attempt = Attempt::Open {
            row: Box::new(open),
            delivered: None,
            party,
        };
        self.attempts.insert(seq, attempt);
        if self.opened.insert(id, seq).is_some() {
            return Err(format!("attempt {id} opened twice (I4)"));
        }
        if !known {
            return Err(format!("attempt {id} names a channel that has no row"));
        }
        signed
    }

    fn delivered(&mut self, row: &Stored) -> Check {
        let open = open_seq(row.table, &row.values)?;
        match self.attempts.get_mut(&open) {
            Some(Attempt::Open {
                row: of, delivered, ..
            }) => {
                let id = of.attempt_id;
                let new = to_delivered(id, &row.values)?;
                if delivered.replace(Box::new(new)).is_some() {
                    return Err(format!("attempt {id} was delivered twice"));
                }
                Ok(())
            }
            // A receipt may come after the booking: kept, worth nothing more.
            Some(Attempt::Booked(_)) => Ok(()),
            None => Err(format!("it belongs to row {open}, which opens no attempt")),
        }
    }

    fn finished(&mut self, row: &Stored, report: &mut AuditReport) -> Check {
        let seq = open_seq(row.table, &row.values)?;
        let (open, delivered, party) = match self.attempts.remove(&seq) {
            Some(Attempt::Open {
                row,
                delivered,
                party,
            }) => (row, delivered, party),
            Some(Attempt::Booked(party)) => {
                self.attempts.insert(seq, Attempt::Booked(party));
                return Err(format!("the attempt of row {seq} is booked twice (I4)"));
            }
            None => return Err(format!("it belongs to row {seq}, which opens no attempt")),
        };
        self.unfinished.remove(&seq);
        let booked = to_final(open.attempt_id, &row.values)?;
        self.attempts.insert(seq, Attempt::Booked(party.clone()));
        sums::add(self.rollup(booked.at_ms, &party), &final_counts(&booked));
        self.book(&open, &booked);
        let delivered = delivered.and_then(|d| d.receipt);
        let receipt = booked.receipt.as_ref().or(delivered.as_ref());
        let receipt_good = match receipt {
            Some(receipt) => {
                report.signatures += 1;
                self.signatures.receipt(&open, &booked, receipt)
            }
            None => Ok(()),
        };
        judge(&open, &booked, receipt.is_some())?;
        receipt_good
    }

    fn book(&mut self, open: &OpenRow, booked: &FinalRow) {
        let key = (open.role, open.channel);
        self.touched.insert(key);
        let billed = booked.billed.to_i64();
        let balance = &mut self.channels.entry(key).or_default().balance;
        match booked.outcome {
            Outcome::Accepted => balance.accepted = balance.accepted.saturating_add(billed),
            Outcome::WrittenOff => balance.lost = balance.lost.saturating_add(billed),
            Outcome::Failed => {}
        }
        if booked.outcome == Outcome::Accepted && billed > 0 && open.role == Role::Buy {
            *self.charged.entry(open.request_id).or_default() += 1;
        }
    }

    fn voucher(&mut self, row: &Stored, report: &mut AuditReport) -> Check {
        report.vouchers += 1;
        let (voucher, step) = to_voucher(&row.values)?;
        let key = (voucher.role, voucher.channel);
        self.touched.insert(key);
        let channel = self.channels.entry(key).or_default();
        let before = channel.balance.voucher;
        let first = !channel.has_voucher;
        channel.has_voucher = true;
        let cumulative = voucher.cumulative.to_i64();
        channel.balance.voucher = before.max(cumulative);
        let limit = channel
            .row
            .as_ref()
            .map(|row| limit_of(row, channel.settled_since_row));
        let peer = channel.first_peer.clone();
        let signed = channel.row.as_ref().map_or(Ok(()), |row| {
            report.signatures += 1;
            self.signatures.voucher(row, &voucher)
        });
        if let Some(id) = voucher.attempt
            && !self.opened.contains_key(&id)
        {
            self.awaited.insert(id, row.seq);
        }
        let party = self.voucher_party(&voucher, peer);
        let mut counts: Counts = [0; COUNTS];
        counts[sums::AUTHORISED] = step.to_i64();
        sums::add(self.rollup(voucher.at_ms, &party), &counts);
        if cumulative < before || (cumulative == before && !first) {
            return Err(format!(
                "voucher {cumulative} does not exceed {before} (I2)"
            ));
        }
        if step.to_i64() != cumulative - before {
            return Err(format!("its step is {}, not {step}", cumulative - before));
        }
        match limit {
            None => return Err("its channel has no row".to_owned()),
            Some(limit) if voucher.cumulative > limit => {
                let sum = voucher.cumulative;
                return Err(format!(
                    "{sum} USD is above the deposit of {limit} USD (I2)"
                ));
            }
            Some(_) => {}
        }
        signed
    }

    fn settlement(&mut self, row: &Stored) -> Check {
        let settlement = to_settlement(&row.values)?;
        let key = (settlement.role, settlement.channel);
        self.touched.insert(key);
        let known = self.knows(settlement.role, &settlement.channel);
        let channel = self.channels.entry(key).or_default();
        let amount = settlement.amount.to_i64();
        channel.settled_since_row = channel.settled_since_row.saturating_add(amount);
        channel.balance.settled = channel.balance.settled.saturating_add(amount);
        if known {
            Ok(())
        } else {
            Err("its channel has no row".to_owned())
        }
    }

    fn checkpoint(&mut self, row: &Stored, report: &mut AuditReport) -> Check {
        let mut fields = Fields::new(Table::Checkpoint, &row.values);
        let (_at_ms, covers) = (fields.int()?, fields.int()?);
        let unfinished = fields.blob()?;
        let signature = fields.maybe_blob()?;
        let expected = self.expected_sums();
        let claimed = std::mem::take(&mut self.claimed);
        let seqs: Vec<i64> = self.unfinished.iter().copied().collect();
        let (last, hash) = self.last_data;
        if i64::try_from(covers) != Ok(last) {
            return Err(format!(
                "it covers row {covers}, but the last one is {last}"
            ));
        }
        if claimed != expected {
            return Err("the balances or sums before it are not what the rows add up to".into());
        }
        if unfinished != sums::seqs_to_bytes(&seqs) {
            return Err("it lists other unfinished attempts than there are".to_owned());
        }
        let Some(signature) = signature else {
            return Ok(());
        };
        let signature = <&[u8; 64]>::try_from(signature)
            .map_err(|_| "its signature is misshapen".to_owned())?;
        report.signatures += 1;
        self.signatures
            .checkpoint(&checkpoint_message(last, &hash), signature)
    }

    fn expected_sums(&mut self) -> Vec<Vec<Value>> {
        let rollups = std::mem::take(&mut self.rollups);
        let touched = std::mem::take(&mut self.touched);
        let balances: Balances = touched
            .into_iter()
            .filter_map(|key| Some((key, self.channels.get(&key)?.balance)))
            .collect();
        let rollups = rollups
            .into_iter()
            .map(|(key, counts)| encode_rollup(key, &counts).values);
        let balances = balances
            .into_iter()
            .map(|((role, id), balance)| encode_balance(role, &id, balance).values);
        rollups.chain(balances).collect()
    }

    fn knows(&self, role: Role, channel: &ChannelId) -> bool {
        *channel == ChannelId::default()
            || self
                .channels
                .get(&(role, *channel))
                .is_some_and(|channel| channel.row.is_some())
    }

    fn party(&mut self, open: &OpenRow) -> Arc<Party> {
        let party = Party {
            role: open.role,
            model: open.model.as_str().to_owned(),
            peer: open.peer.to_bytes(),
            client: open.client.clone(),
        };
        if let Some(known) = self.parties.get(&party) {
            return known.clone();
        }
        let party = Arc::new(party);
        self.parties.insert(party.clone());
        party
    }

    fn voucher_party(&self, voucher: &VoucherRow, channel_peer: Vec<u8>) -> Arc<Party> {
        let open = voucher.attempt.and_then(|id| self.opened.get(&id));
        let attempt = open.and_then(|seq| self.attempts.get(seq));
        let (model, peer, client) = match attempt {
            Some(Attempt::Open { party, .. } | Attempt::Booked(party)) => (
                party.model.clone(),
                party.peer.clone(),
                party.client.clone(),
            ),
            None => (String::new(), channel_peer, String::new()),
        };
        Arc::new(Party {
            role: voucher.role,
            model,
            peer,
            client,
        })
    }

    fn rollup(&mut self, at_ms: UnixMs, party: &Party) -> &mut Counts {
        let key = RollupKey {
            bucket_ms: i64::try_from(bucket_of(at_ms)).unwrap_or(i64::MAX),
            role: party.role,
            model: party.model.clone(),
            peer: party.peer.clone(),
            client: party.client.clone(),
        };
        self.rollups.entry(key).or_insert([0; COUNTS])
    }
}
