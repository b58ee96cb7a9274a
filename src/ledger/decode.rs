//! Columns to typed rows. Every value is checked: a file may have been changed by anybody.

use super::onchain::{CursorRow, EventRow, IntentRow, OutcomeRow, SentRow};
use super::rows::{
    BudgetRow, ChannelRow, DeliveredRow, FinalRow, OfferRow, OpenRow, Outcome, Role, SettlementRow,
    VoucherRow,
};
use super::table::{Table, Value};
use crate::types::{
    AttemptId, ChannelId, EvmAddress, Hash32, IntentId, MicroUsd, ModelId, PeerId, PriceTable,
    Purpose, RequestId, Stage, Step, Usage,
};

/// A column does not hold what its table promises: the file was changed or is damaged.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {column} of {table} holds something else than it should")]
pub(super) struct BadColumn {
    table: &'static str,
    column: &'static str,
}

/// Takes columns in declared order.
pub(super) struct Fields<'a> {
    table: Table,
    values: &'a [Value],
    next: usize,
}

impl<'a> Fields<'a> {
    /// Starts at the first column.
    pub(super) const fn new(table: Table, values: &'a [Value]) -> Self {
        Self {
            table,
            values,
            next: 0,
        }
    }
    fn take(&mut self) -> Result<&'a Value, BadColumn> {
        let value = self.values.get(self.next).ok_or_else(|| self.bad())?;
        self.next += 1;
        Ok(value)
    }
    /// The error for the column taken last.
    pub(super) fn bad(&self) -> BadColumn {
        let columns = self.table.columns();
        BadColumn {
            table: self.table.name(),
            column: columns
                .get(self.next.saturating_sub(1))
                .copied()
                .unwrap_or("?"),
        }
    }
    /// An integer, 0 or more.
    pub(super) fn int(&mut self) -> Result<u64, BadColumn> {
        self.maybe_int()?.ok_or_else(|| self.bad())
    }
    /// An integer or null.
    pub(super) fn maybe_int(&mut self) -> Result<Option<u64>, BadColumn> {
        match self.take()? {
            Value::Null => Ok(None),
            Value::Int(number) => u64::try_from(*number).map(Some).map_err(|_| self.bad()),
            Value::Text(_) | Value::Blob(_) => Err(self.bad()),
        }
    }
    /// Money.
    pub(super) fn money(&mut self) -> Result<MicroUsd, BadColumn> {
        self.int().map(MicroUsd)
    }
    /// Bytes.
    pub(super) fn blob(&mut self) -> Result<&'a [u8], BadColumn> {
        self.maybe_blob()?.ok_or_else(|| self.bad())
    }
    /// Bytes or null.
    pub(super) fn maybe_blob(&mut self) -> Result<Option<&'a [u8]>, BadColumn> {
        match self.take()? {
            Value::Null => Ok(None),
            Value::Blob(bytes) => Ok(Some(bytes)),
            Value::Int(_) | Value::Text(_) => Err(self.bad()),
        }
    }
    /// Text.
    pub(super) fn text(&mut self) -> Result<&'a str, BadColumn> {
        self.maybe_text()?.ok_or_else(|| self.bad())
    }
    /// Text or null.
    pub(super) fn maybe_text(&mut self) -> Result<Option<&'a str>, BadColumn> {
        match self.take()? {
            Value::Null => Ok(None),
            Value::Text(text) => Ok(Some(text)),
            Value::Int(_) | Value::Blob(_) => Err(self.bad()),
        }
    }
    /// Exactly `N` bytes.
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], BadColumn> {
        let bytes = self.blob()?;
        <[u8; N]>::try_from(bytes).map_err(|_| self.bad())
    }
    /// Exactly `N` bytes or null.
    fn maybe_array<const N: usize>(&mut self) -> Result<Option<[u8; N]>, BadColumn> {
        match self.maybe_blob()? {
            Some(bytes) => <[u8; N]>::try_from(bytes).map(Some).map_err(|_| self.bad()),
            None => Ok(None),
        }
    }
    /// A side.
    pub(super) fn role(&mut self) -> Result<Role, BadColumn> {
        let word = self.text()?;
        Role::from_word(word).ok_or_else(|| self.bad())
    }
    /// A peer.
    pub(super) fn peer(&mut self) -> Result<PeerId, BadColumn> {
        let bytes = self.blob()?;
        PeerId::from_bytes(bytes).map_err(|_| self.bad())
    }
    fn usage(&mut self) -> Result<Option<Usage>, BadColumn> {
        let parts = [
            self.maybe_int()?,
            self.maybe_int()?,
            self.maybe_int()?,
            self.maybe_int()?,
            self.maybe_int()?,
        ];
        match parts {
            [None, None, None, None, None] => Ok(None),
            [
                Some(input),
                Some(cache_read),
                Some(cache_write),
                Some(output),
                Some(reasoning),
            ] => Ok(Some(Usage {
                input,
                cache_read,
                cache_write,
                output,
                reasoning,
            })),
            _ => Err(self.bad()),
        }
    }
    /// An integer that fits `T`.
    fn small<T: TryFrom<u64>>(&mut self) -> Result<T, BadColumn> {
        let number = self.int()?;
        T::try_from(number).map_err(|_| self.bad())
    }
}

/// Reads an `attempt_open` row.
pub(super) fn to_open(values: &[Value]) -> Result<OpenRow, BadColumn> {
    let mut f = Fields::new(Table::Open, values);
    Ok(OpenRow {
        at_ms: f.int()?,
        attempt_id: AttemptId(f.array()?),
        request_id: RequestId(f.array()?),
        attempt: f.small()?,
        role: f.role()?,
        peer: f.peer()?,
        client: f.text()?.to_owned(),
        model_asked: f.text()?.to_owned(),
        model: ModelId::new(f.text()?),
        offer_hash: Hash32(f.array()?),
        price: PriceTable {
            input: f.int()?,
            cache_read: f.int()?,
            cache_write: f.int()?,
            output: f.int()?,
        },
        channel: ChannelId(f.array()?),
        max_cost: f.money()?,
        prefill: f.money()?,
        voucher_before: f.money()?,
        signed_head: f.blob()?.to_vec(),
    })
}

/// Reads an `attempt_delivered` row of the attempt `attempt_id`.
pub(super) fn to_delivered(
    attempt_id: AttemptId,
    values: &[Value],
) -> Result<DeliveredRow, BadColumn> {
    let mut f = Fields::new(Table::Delivered, values);
    Ok(DeliveredRow {
        at_ms: f.int()?,
        attempt_id: {
            f.int()?; // open_seq
            attempt_id
        },
        status: f.small()?,
        usage: f.usage()?,
        own_input: f.maybe_int()?,
        own_output: f.maybe_int()?,
        cost: f.money()?,
        receipt: f.maybe_blob()?.map(<[u8]>::to_vec),
    })
}

/// Reads an `attempt_final` row of the attempt `attempt_id`.
pub(super) fn to_final(attempt_id: AttemptId, values: &[Value]) -> Result<FinalRow, BadColumn> {
    let mut f = Fields::new(Table::Final, values);
    Ok(FinalRow {
        at_ms: f.int()?,
        attempt_id: {
            f.int()?; // open_seq
            attempt_id
        },
        outcome: {
            let word = f.text()?;
            Outcome::from_word(word).ok_or_else(|| f.bad())?
        },
        status: f.small()?,
        billed: f.money()?,
        model_served: f.text()?.to_owned(),
        usage: f.usage()?,
        own_input: f.maybe_int()?,
        own_output: f.maybe_int()?,
        ttft_ms: f.maybe_int()?,
        total_ms: f.int()?,
        disputed: f.int()? != 0,
        receipt: f.maybe_blob()?.map(<[u8]>::to_vec),
        error: f.maybe_text()?.map(str::to_owned),
    })
}

/// The open row that a delivered or final row belongs to.
pub(super) fn open_seq(table: Table, values: &[Value]) -> Result<i64, BadColumn> {
    let mut f = Fields::new(table, values);
    f.int()?;
    f.small()
}

/// Reads a `voucher` row and its step.
pub(super) fn to_voucher(values: &[Value]) -> Result<(VoucherRow, MicroUsd), BadColumn> {
    let mut f = Fields::new(Table::Voucher, values);
    let at_ms = f.int()?;
    let role = f.role()?;
    let channel = ChannelId(f.array()?);
    let cumulative = f.money()?;
    let step = f.money()?;
    let signature = f.array()?;
    let attempt = match f.maybe_blob()? {
        Some(bytes) => Some(AttemptId::from_slice(bytes).ok_or_else(|| f.bad())?),
        None => None,
    };
    let row = VoucherRow {
        at_ms,
        role,
        channel,
        cumulative,
        signature,
        attempt,
    };
    Ok((row, step))
}

/// Reads a `channel` row.
pub(super) fn to_channel(values: &[Value]) -> Result<ChannelRow, BadColumn> {
    let mut f = Fields::new(Table::Channel, values);
    Ok(ChannelRow {
        at_ms: f.int()?,
        role: f.role()?,
        channel: ChannelId(f.array()?),
        peer: f.peer()?,
        mode: f.text()?.to_owned(),
        descriptor: f.blob()?.to_vec(),
        epoch: f.int()?,
        deposit: f.money()?,
        open_signature: f.array()?,
    })
}

/// Reads a `settlement` row.
pub(super) fn to_settlement(values: &[Value]) -> Result<SettlementRow, BadColumn> {
    let mut f = Fields::new(Table::Settlement, values);
    Ok(SettlementRow {
        at_ms: f.int()?,
        role: f.role()?,
        channel: ChannelId(f.array()?),
        peer: f.peer()?,
        amount: f.money()?,
        note: f.text()?.to_owned(),
    })
}

/// Reads an `offer` row.
pub(super) fn to_offer(values: &[Value]) -> Result<OfferRow, BadColumn> {
    let mut f = Fields::new(Table::Offer, values);
    Ok(OfferRow {
        at_ms: f.int()?,
        hash: Hash32(f.array()?),
        model: ModelId::new(f.text()?),
        not_after: f.int()?,
        bytes: f.blob()?.to_vec(),
    })
}

/// Reads a row of `budget` or `client_budget`.
pub(super) fn to_budget(table: Table, values: &[Value]) -> Result<BudgetRow, BadColumn> {
    let mut f = Fields::new(table, values);
    Ok(BudgetRow {
        at_ms: f.int()?,
        client: match table {
            Table::ClientBudget => Some(f.text()?.to_owned()),
            _ => None,
        },
        model: f.maybe_text()?.map(ModelId::new),
        daily: f.maybe_int()?.map(MicroUsd),
        monthly: f.maybe_int()?.map(MicroUsd),
    })
}

/// Reads a `tx_intent` row.
pub(super) fn to_intent(values: &[Value]) -> Result<IntentRow, BadColumn> {
    let mut f = Fields::new(Table::TxIntent, values);
    Ok(IntentRow {
        at_ms: f.int()?,
        intent: IntentId(f.array()?),
        chain_id: f.int()?,
        sender: EvmAddress(f.array()?),
        nonce: f.int()?,
        target: f.maybe_array()?.map(EvmAddress),
        value: f.int()?,
        calldata: f.blob()?.to_vec(),
        calldata_hash: Hash32(f.array()?),
        gas_limit: f.int()?,
        purpose: Purpose::from_word(f.text()?),
        channel: f.maybe_array()?.map(ChannelId),
        gain: f.money()?,
    })
}

/// Reads a `tx_sent` row.
pub(super) fn to_sent(values: &[Value]) -> Result<SentRow, BadColumn> {
    let mut f = Fields::new(Table::TxSent, values);
    Ok(SentRow {
        at_ms: f.int()?,
        intent: IntentId(f.array()?),
        tx: Hash32(f.array()?),
        max_fee: f.int()?,
        max_priority_fee: f.int()?,
        raw: f.blob()?.to_vec(),
    })
}

/// Reads a `tx_outcome` row.
pub(super) fn to_outcome(values: &[Value]) -> Result<OutcomeRow, BadColumn> {
    let mut f = Fields::new(Table::TxOutcome, values);
    Ok(OutcomeRow {
        at_ms: f.int()?,
        intent: IntentId(f.array()?),
        step: {
            let word = f.text()?;
            Step::from_word(word).ok_or_else(|| f.bad())?
        },
        tx: f.maybe_array()?.map(Hash32),
        block: match (f.maybe_int()?, f.maybe_array()?) {
            (Some(number), Some(hash)) => Some((number, Hash32(hash))),
            (None, None) => None,
            _ => return Err(f.bad()),
        },
        succeeded: f.int()? != 0,
        fee: f.int()?,
    })
}

/// Reads a `chain_event` row.
pub(super) fn to_event(values: &[Value]) -> Result<EventRow, BadColumn> {
    let mut f = Fields::new(Table::ChainEvent, values);
    Ok(EventRow {
        at_ms: f.int()?,
        chain_id: f.int()?,
        hub: EvmAddress(f.array()?),
        stage: {
            let word = f.text()?;
            Stage::from_word(word).ok_or_else(|| f.bad())?
        },
        kind: f.text()?.to_owned(),
        channel: f.maybe_array()?.map(ChannelId),
        amount: f.money()?,
        block: (f.int()?, Hash32(f.array()?)),
        tx: Hash32(f.array()?),
        log_index: f.int()?,
        topics: {
            let (topics, rest) = f.blob()?.as_chunks::<32>();
            if !rest.is_empty() {
                return Err(f.bad());
            }
            topics.iter().copied().map(Hash32).collect()
        },
        data: f.blob()?.to_vec(),
    })
}

/// Reads a `chain_cursor` row.
pub(super) fn to_cursor(values: &[Value]) -> Result<CursorRow, BadColumn> {
    let mut f = Fields::new(Table::ChainCursor, values);
    Ok(CursorRow {
        at_ms: f.int()?,
        chain_id: f.int()?,
        hub: EvmAddress(f.array()?),
        block: (f.int()?, Hash32(f.array()?)),
    })
}
