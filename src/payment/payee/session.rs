//! The seller's end of the session stream: answers the handshake, credits vouchers, books ACCEPTs,
//! repeats receipts.
//!
//! Whatever is ready on the stream is taken in one turn: only the highest voucher is stored, and
//! all ACCEPTs of the turn share its commit.

mod chain_words;
mod others;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::ReadHalf;

use chain_words::{take_close, take_top_up};
use others::{book_left_behind, repeat_ended};

use super::Shared;
use super::open::open_pair;
use super::pair::PayeePair;
use super::state::is_unknown;
use super::treasurer::close_message;
use crate::ledger::{Role, Row, VoucherRow};
use crate::network::Stream;
use crate::network::framed::{FrameReader, FrameWriter};
use crate::payment::PaymentError;
use crate::protocol::frame::Frame;
use crate::protocol::limits::ATTEMPTS_PER_MESSAGE_MAX;
use crate::protocol::session::{
    Accept, Hello, MODE_CHANNEL, MODE_CREDIT, SyncAttempt, SyncBuyer, SyncSeller,
};
use crate::protocol::{EvmSignature, FrameKind, SessionMessage, Voucher, WIRE_VERSION};
use crate::types::{AttemptId, ChannelId, MicroUsd, PeerId};

/// Receipts without ACCEPT are shown again this often.
const RECEIPT_INTERVAL: Duration = Duration::from_secs(5);
/// The buyer's part of the handshake must come within this.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of attempts listed in one SYNC, well under a frame.
const SYNC_BYTES_MAX: usize = 48 * 1024;
/// Messages taken in one turn; bounds how long an ACK waits.
const TURN_MESSAGES_MAX: usize = 256;
/// A buyer that takes nothing for this long has no session any more.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

type Reader = FrameReader<ReadHalf<Stream>>;

pub(super) async fn serve(
    shared: &Arc<Shared>,
    buyer: PeerId,
    stream: Stream,
) -> Result<(), PaymentError> {
    let (read, write) = tokio::io::split(stream);
    let mut reader = FrameReader::new(read);
    let mut writer = FrameWriter::new(write);
    let pair = match tokio::time::timeout(
        HANDSHAKE_TIMEOUT,
        handshake(shared, buyer, &mut reader, &mut writer),
    )
    .await
    {
        Ok(Ok(pair)) => pair,
        Ok(Err(error)) => {
            let refusal = SessionMessage::Error {
                code: "refused".into(),
                message: error.to_string(),
            };
            let _ = writer.send(FrameKind::Session, &refusal.encode()).await;
            return Err(error);
        }
        Err(_) => {
            return Err(PaymentError::Session(
                "the buyer's handshake took too long".into(),
            ));
        }
    };
    let mut replaced = pair.generation.subscribe();
    pair.generation.send_modify(|generation| *generation += 1);
    let generation = *replaced.borrow_and_update();
    *pair.session.lock().await = Some(writer);
    let ended = listen(shared, &pair, &mut reader, &mut replaced).await;
    hang_up(&pair, generation, ended.as_ref().err()).await;
    ended
}

/// Reads what the buyer says until the stream ends or a newer one replaces it.
async fn listen(
    shared: &Arc<Shared>,
    pair: &PayeePair,
    reader: &mut Reader,
    replaced: &mut tokio::sync::watch::Receiver<u64>,
) -> Result<(), PaymentError> {
    let cancelled = shared.tasks.cancelled();
    let mut repeat = tokio::time::interval(RECEIPT_INTERVAL);
    repeat.tick().await;
    loop {
        tokio::select! {
            frame = reader.read() => {
                let frame = frame.map_err(broken)?.ok_or_else(closed)?;
                turn(shared, pair, frame, reader).await?;
            }
            _ = repeat.tick() => repeat_ended(shared, pair).await,
            _ = replaced.changed() => return Ok(()),
            () = cancelled.cancelled() => return Ok(()),
        }
    }
}

/// Says why the session ends and closes it, unless a newer one has taken its place: a buyer that
/// does not hear of the end would send its vouchers to nobody.
async fn hang_up(pair: &PayeePair, generation: u64, why: Option<&PaymentError>) {
    let mut session = pair.session.lock().await;
    if *pair.generation.borrow() != generation {
        return;
    }
    if let (Some(mut writer), Some(error)) = (session.take(), why) {
        let refusal = SessionMessage::Error {
            code: "refused".into(),
            message: error.to_string(),
        };
        let bytes = refusal.encode();
        let last = writer.send(FrameKind::Session, &bytes);
        let _ = tokio::time::timeout(SEND_TIMEOUT, last).await;
    }
}

async fn handshake(
    shared: &Arc<Shared>,
    buyer: PeerId,
    reader: &mut Reader,
    writer: &mut FrameWriter<tokio::io::WriteHalf<Stream>>,
) -> Result<Arc<PayeePair>, PaymentError> {
    let SessionMessage::Hello(hello) = next(reader).await? else {
        return Err(out_of_order());
    };
    if hello.version != WIRE_VERSION || hello.network != shared.settings.network {
        return Err(PaymentError::Refused(
            "another wire version or network".into(),
        ));
    }
    let ours = Hello {
        version: WIRE_VERSION,
        network: shared.settings.network.clone(),
        modes: if shared.settings.onchain.is_some() {
            MODE_CREDIT | MODE_CHANNEL
        } else {
            MODE_CREDIT
        },
        terms_hash: shared.terms.hash,
        clock_ms: shared.clock.now_ms(),
    };
    writer.put(FrameKind::Session, &SessionMessage::Hello(ours).encode());
    let terms = SessionMessage::Terms(shared.terms.bytes.to_vec());
    writer.put(FrameKind::Session, &terms.encode());
    writer.flush().await.map_err(broken)?;

    let SessionMessage::Open(open) = next(reader).await? else {
        return Err(out_of_order());
    };
    let (pair, is_new) = open_pair(shared, buyer, &open).await?;
    let is_over = pair.is_over(shared.clock.now_ms());
    let deposit = if is_over {
        MicroUsd::ZERO
    } else {
        pair.state.lock().machine.deposit()
    };
    let ack = SessionMessage::OpenAck {
        channel: pair.channel(),
        deposit,
    };
    writer
        .send(FrameKind::Session, &ack.encode())
        .await
        .map_err(broken)?;

    let SessionMessage::SyncBuyer(theirs) = next(reader).await? else {
        return Err(out_of_order());
    };
    if theirs.channel != pair.channel() {
        return Err(PaymentError::Refused("SYNC names another channel".into()));
    }
    // A voucher of a channel that is over is worth nothing more.
    if let Some((cumulative, signature)) = theirs.voucher.filter(|_| !is_over) {
        check_voucher(&pair, cumulative, &signature)?;
        if is_new && pair.view().is_some() {
            // The buyer knows more of this channel than we do: our ledger was lost.
            pair.adopt_lost(cumulative).await;
        }
        store_voucher(shared, &pair, cumulative, signature, true).await?;
    }
    if !is_over {
        pair.agree();
        shared.due.notify_one();
    }
    for message in sync_messages(shared, &pair, &theirs).await? {
        writer.put(FrameKind::Session, &message.encode());
    }
    writer.flush().await.map_err(broken)?;
    Ok(pair)
}

/// SYNC as one or more messages: attempts in doubt with their receipts, split by size.
async fn sync_messages(
    shared: &Shared,
    pair: &PayeePair,
    theirs: &SyncBuyer,
) -> Result<Vec<SessionMessage>, PaymentError> {
    let mut unknown = Vec::new();
    let earlier = shared.others_of(pair);
    for attempt in &theirs.open {
        let known = pair.state.lock().knows(attempt)
            || earlier.iter().any(|one| one.state.lock().knows(attempt));
        if !known && is_unknown(shared.ledger.attempt(attempt).await?.as_ref()) {
            unknown.push(*attempt);
        }
    }
    let mut batches = vec![Vec::new()];
    let mut bytes = 0;
    let mut waiting = pair.state.lock().waiting();
    for one in &earlier {
        waiting.extend(one.state.lock().waiting());
    }
    for item in waiting {
        let size = 64 + item.receipt.as_ref().map_or(0, Vec::len);
        let full = batches
            .last()
            .is_some_and(|b| b.len() >= ATTEMPTS_PER_MESSAGE_MAX);
        if bytes + size > SYNC_BYTES_MAX || full {
            batches.push(Vec::new());
            bytes = 0;
        }
        bytes += size;
        if let Some(batch) = batches.last_mut() {
            batch.push(item);
        }
    }
    let mut messages = Vec::new();
    for open in batches {
        let unknown = std::mem::take(&mut unknown);
        messages.push(SessionMessage::SyncSeller(sync(pair, open, unknown)));
    }
    Ok(messages)
}

fn sync(pair: &PayeePair, open: Vec<SyncAttempt>, unknown: Vec<AttemptId>) -> SyncSeller {
    pair.state.lock().sync(pair.channel(), open, unknown)
}

/// One turn: the frame that came and everything behind it, one commit, one flush.
async fn turn(
    shared: &Shared,
    pair: &PayeePair,
    first: Frame,
    reader: &mut Reader,
) -> Result<(), PaymentError> {
    let mut best: Option<(MicroUsd, EvmSignature)> = None;
    let mut accepted: Vec<(AttemptId, MicroUsd)> = Vec::new();
    let mut asked: Option<SyncBuyer> = None;
    let mut next_frame = Some(first);
    let mut taken = 0;
    while let Some(frame) = next_frame {
        match decode(&frame)? {
            SessionMessage::Voucher {
                channel,
                cumulative,
                signature,
            } => {
                check_channel(pair, channel)?;
                if best.is_none_or(|(highest, _)| cumulative > highest) {
                    best = Some((cumulative, signature));
                }
            }
            SessionMessage::Accept(accept) => accepted.extend(check_accept(pair, accept)?),
            SessionMessage::SyncBuyer(theirs) => {
                check_channel(pair, theirs.channel)?;
                asked = Some(theirs);
            }
            SessionMessage::Close { channel, last } => {
                check_channel(pair, channel)?;
                take_close(shared, pair, last)?;
            }
            SessionMessage::TopUp(top_up) => {
                check_channel(pair, top_up.channel)?;
                take_top_up(shared, pair, top_up).await?;
            }
            SessionMessage::Error { code, message } => {
                return Err(PaymentError::Session(format!("{code}: {message}")));
            }
            _ => return Err(out_of_order()),
        }
        taken += 1;
        next_frame = if taken < TURN_MESSAGES_MAX {
            reader.buffered().map_err(broken)?
        } else {
            None
        };
    }
    let mut answers = Vec::new();
    if !accepted.is_empty() {
        let commit_follows = best.is_some_and(|(voucher, _)| {
            let wanted = pair.state.lock().wants(voucher, false);
            wanted.unwrap_or(false)
        });
        book_left_behind(shared, pair, &accepted).await?;
        answers.extend(book_accepts(shared, pair, accepted, commit_follows).await?);
    }
    if let Some((cumulative, signature)) = best {
        store_voucher(shared, pair, cumulative, signature, false).await?;
        let channel = pair.channel();
        answers.push(SessionMessage::VoucherAck {
            channel,
            cumulative: pair.held(),
        });
    }
    if let Some(theirs) = asked {
        answers.extend(sync_messages(shared, pair, &theirs).await?);
    }
    send(pair, &answers).await;
    Ok(())
}

fn check_accept(
    pair: &PayeePair,
    accept: Accept,
) -> Result<Vec<(AttemptId, MicroUsd)>, PaymentError> {
    accept.verify(pair.buyer()).map_err(refused)?;
    Ok(accept.items)
}

fn check_voucher(
    pair: &PayeePair,
    cumulative: MicroUsd,
    signature: &EvmSignature,
) -> Result<(), PaymentError> {
    let voucher = Voucher {
        channel: pair.channel(),
        cumulative,
    };
    let signer = pair.voucher_signer();
    voucher
        .verify(pair.domain(), signature, signer)
        .map_err(refused)
}

/// Makes a voucher durable, then raises A by it. Stale ones change nothing.
async fn store_voucher(
    shared: &Shared,
    pair: &PayeePair,
    cumulative: MicroUsd,
    signature: EvmSignature,
    shown_by_sync: bool,
) -> Result<(), PaymentError> {
    let wanted = pair.state.lock().wants(cumulative, shown_by_sync);
    if !wanted.map_err(|e| PaymentError::Refused(e.to_string()))? {
        return Ok(());
    }
    check_voucher(pair, cumulative, &signature)?;
    let row = VoucherRow {
        at_ms: shared.clock.now_ms(),
        role: Role::Sell,
        channel: pair.channel(),
        cumulative,
        signature: signature.0,
        attempt: None,
    };
    pair.book_channel(&shared.ledger).await?;
    let durable = shared.ledger.persist_voucher(row).await?;
    crate::failpoint::hit("seller_voucher_durable");
    pair.credit(durable.cumulative, signature);
    Ok(())
}

/// Books accepted costs; what is not waiting for one is only acknowledged.
async fn book_accepts(
    shared: &Shared,
    pair: &PayeePair,
    items: Vec<(AttemptId, MicroUsd)>,
    commit_follows: bool,
) -> Result<Vec<SessionMessage>, PaymentError> {
    let now_ms = shared.clock.now_ms();
    let rows = pair.state.lock().finals_of(&items, now_ms);
    let costs: Vec<(AttemptId, MicroUsd)> = rows
        .iter()
        .map(|row| (row.attempt_id, row.billed))
        .collect();
    if !rows.is_empty() {
        // The voucher of this turn commits right behind; one fsync serves both.
        let rows = rows.into_iter().map(Row::Final).collect();
        if commit_follows {
            shared.ledger.submit(rows).await?;
        } else {
            shared.ledger.commit_soon(rows).await?;
            crate::failpoint::hit("seller_accept_durable");
        }
    }
    for (attempt, cost) in costs {
        pair.accepted(&attempt, cost, now_ms);
    }
    Ok(items
        .chunks(ATTEMPTS_PER_MESSAGE_MAX)
        .map(|chunk| SessionMessage::AcceptAck(chunk.iter().map(|(a, _)| *a).collect()))
        .collect())
}

/// Tells a connected buyer that its deposit changed.
pub(super) async fn tell_deposit(pair: &PayeePair) {
    let message = SessionMessage::SyncSeller(sync(pair, Vec::new(), Vec::new()));
    send(pair, &[message]).await;
}

/// Tells a connected buyer that this channel ends.
pub(super) async fn tell_close(pair: &PayeePair) {
    send(pair, &[close_message(pair.channel())]).await;
}

/// Ends the session of a pair, and says why.
pub(super) async fn end(pair: &PayeePair, why: &PaymentError) {
    let generation = *pair.generation.borrow();
    hang_up(pair, generation, Some(why)).await;
    pair.generation.send_modify(|generation| *generation += 1);
}

async fn send(pair: &PayeePair, messages: &[SessionMessage]) {
    if messages.is_empty() {
        return;
    }
    let mut session = pair.session.lock().await;
    if let Some(writer) = session.as_mut() {
        for message in messages {
            writer.put(FrameKind::Session, &message.encode());
        }
        let sent = tokio::time::timeout(SEND_TIMEOUT, writer.flush()).await;
        if !matches!(sent, Ok(Ok(()))) {
            *session = None;
        }
    }
}

fn check_channel(pair: &PayeePair, channel: ChannelId) -> Result<(), PaymentError> {
    if channel == pair.channel() {
        Ok(())
    } else {
        Err(PaymentError::Refused(
            "a voucher for another channel".into(),
        ))
    }
}

async fn next(reader: &mut Reader) -> Result<SessionMessage, PaymentError> {
    decode(&reader.read().await.map_err(broken)?.ok_or_else(closed)?)
}

fn decode(frame: &Frame) -> Result<SessionMessage, PaymentError> {
    if frame.kind != FrameKind::Session {
        return Err(out_of_order());
    }
    SessionMessage::decode(&Bytes::clone(&frame.payload)).map_err(refused)
}

fn refused(error: crate::protocol::DecodeError) -> PaymentError {
    PaymentError::Refused(error.to_string())
}
fn broken(error: crate::network::framed::WireError) -> PaymentError {
    PaymentError::Session(error.to_string())
}
fn closed() -> PaymentError {
    PaymentError::Session("the buyer closed it".into())
}
fn out_of_order() -> PaymentError {
    PaymentError::Refused("message out of order".into())
}
