//! What a buyer says of its channel on a chain: a higher deposit, and the wish for the end.

use super::{check_voucher, out_of_order};
use crate::ledger::{ChannelRow, Role, Row};
use crate::payment::PaymentError;
use crate::payment::onchain::{MODE_ON_CHAIN, paper};
use crate::payment::payee::Shared;
use crate::payment::payee::pair::PayeePair;
use crate::protocol::EvmSignature;
use crate::protocol::voucher::TopUp;
use crate::types::MicroUsd;

/// The buyer wants the channel's end; its last voucher says what it owes by its own count.
pub(super) fn take_close(
    shared: &Shared,
    pair: &PayeePair,
    last: Option<(MicroUsd, EvmSignature)>,
) -> Result<(), PaymentError> {
    if let Some((cumulative, signature)) = &last {
        check_voucher(pair, *cumulative, signature)?;
    }
    if !pair.state.lock().take_close(last) {
        return Err(PaymentError::Refused(
            "closing is for channels on a chain".into(),
        ));
    }
    shared.due.notify_one();
    Ok(())
}

/// A higher deposit: its row is durable before a voucher may make use of it.
pub(super) async fn take_top_up(
    shared: &Shared,
    pair: &PayeePair,
    top_up: TopUp,
) -> Result<(), PaymentError> {
    let deposit = top_up.deposit;
    let (mut row, before) = {
        let state = pair.state.lock();
        let one = state.on_chain.as_ref().ok_or_else(out_of_order)?;
        let channel = &one.on.channel;
        paper::check_top_up(channel, &top_up).map_err(PaymentError::Refused)?;
        if !state.wants_top_up(deposit) {
            return Ok(());
        }
        let row = ChannelRow {
            at_ms: shared.clock.now_ms(),
            role: Role::Sell,
            channel: pair.channel(),
            peer: *pair.buyer(),
            mode: MODE_ON_CHAIN.to_owned(),
            descriptor: channel.to_bytes(),
            epoch: 0,
            deposit,
            open_signature: [0; 64],
        };
        (row, state.machine().deposit())
    };
    if deposit > before {
        pair.book_channel(&shared.ledger).await?;
        (row.epoch, row.open_signature) = pair.opened_by();
        shared.ledger.commit(vec![Row::Channel(row)]).await?;
    }
    pair.state.lock().top_up(top_up);
    shared.due.notify_one();
    Ok(())
}
