//! The buyer's end of the session stream: handshake, SYNC, and what the seller says afterwards.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{ReadHalf, WriteHalf};

use super::Shared;
use super::doubt::{Shown, repeated_cost};
use super::funding::{self, COUNTERS_MAX};
use super::pair::Pair;
use super::state::{PayerState, Verdict};
use crate::ledger::{ChannelRow, Role, Row};
use crate::network::framed::{FrameReader, FrameWriter};
use crate::network::{Carrier, Protocol, Stream};
use crate::payment::PaymentError;
use crate::payment::onchain::MODE_ON_CREDIT;
use crate::protocol::session::{Hello, MODE_CHANNEL, MODE_CREDIT, Open, SyncSeller};
use crate::protocol::voucher::CreditParty;
use crate::protocol::{
    ChannelDescriptor, FrameKind, SessionMessage, SignedReceipt, SignedTerms, Terms, WIRE_VERSION,
};
use crate::types::{AttemptId, ChannelId, Hash32, MicroUsd};

/// A seller that takes nothing for this long has no session any more; books go on without it.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) type SessionWriter = FrameWriter<WriteHalf<Stream>>;
type SessionReader = FrameReader<ReadHalf<Stream>>;

/// A session stream that is being agreed on. The pair gets its writer when that is done, so that nothing
/// of an earlier session is said in between.
struct Ends {
    reader: SessionReader,
    writer: SessionWriter,
    carrier: Carrier,
}

impl Ends {
    fn new(stream: Stream) -> Self {
        let carrier = stream.carrier();
        let (read, write) = tokio::io::split(stream);
        Self {
            reader: FrameReader::new(read),
            writer: FrameWriter::new(write),
            carrier,
        }
    }

    async fn say(&mut self, message: SessionMessage) -> Result<(), PaymentError> {
        let bytes = message.encode();
        let said = self.writer.send(FrameKind::Session, &bytes).await;
        said.map_err(|error| PaymentError::Session(error.to_string()))
    }
}

/// What a session is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// Orders: where no channel stands, one is opened.
    Order,
    /// What is in doubt: over the channel that there is, over or not. It costs nothing.
    Settle,
}

/// True when the session stands on another connection than the one that orders take now: the seller may
/// have been killed and restarted since it began. Vouchers sent over it would be heard by nobody, while the
/// new process waits for them.
pub(super) fn is_stranded(shared: &Shared, pair: &Pair) -> bool {
    let carrier = *pair.carrier.lock();
    let is_up = pair.is_up();
    is_up && carrier.is_none_or(|carrier| !shared.network.goes_by(pair.seller(), carrier))
}

/// Opens the session with this pair's seller unless somebody just did.
///
/// # Errors
/// When the seller cannot be reached, breaks a rule or refuses, or nothing is left for a channel.
pub(super) async fn connect(
    shared: &Arc<Shared>,
    pair: &Arc<Pair>,
    wish: Wish,
) -> Result<(), PaymentError> {
    let _one_at_a_time = pair.connecting.lock().await;
    if is_stranded(shared, pair) {
        // No farewell: its other end may be gone, and where it is not, the next session replaces it.
        leave(pair).await;
    }
    if pair.takes_orders() || (wish == Wish::Settle && pair.is_up()) {
        return Ok(());
    }
    if pair.is_up() {
        // It settles an earlier channel, and goes on with that when there is no money for another.
        funding::check_money(shared, pair)?;
        hang_up(pair, PayerState::stand_down).await;
    }
    retire_earlier(pair);
    let deadline = shared.settings.handshake_timeout;
    let agreed = tokio::time::timeout(deadline, find_channel(shared, pair, wish)).await;
    let (ends, sync) =
        agreed.map_err(|_| PaymentError::Session("the handshake took too long".into()))??;
    let Ends {
        reader,
        writer,
        carrier,
    } = ends;
    *pair.carrier.lock() = Some(carrier);
    *pair.session.lock().await = Some(writer);
    on_sync(shared, pair, sync).await?;
    // No await from here on: whoever waits may stop waiting, a session without a reader must not be.
    let generation = stand_up(pair);
    let (shared, pair) = (Arc::clone(shared), Arc::clone(pair));
    let tasks = shared.tasks.clone();
    tasks.spawn("payer-session", async move {
        let ended = listen(&shared, &pair, reader).await;
        tracing::debug!(seller = %pair.seller(), ?ended, "session ended");
        close(&pair, generation).await;
    });
    Ok(())
}

/// The handshake, over the next channel while the seller says that this one is over: after a lost
/// ledger the first numbers may be taken.
async fn find_channel(
    shared: &Arc<Shared>,
    pair: &Arc<Pair>,
    wish: Wish,
) -> Result<(Ends, SyncSeller), PaymentError> {
    let mut tries = 0;
    loop {
        match handshake(shared, pair, wish).await {
            Err(PaymentError::ChannelOver) if tries < COUNTERS_MAX && wish == Wish::Order => {
                tries += 1;
                if let (Some(funds), Some(channel)) = (&shared.funds, pair.channel()) {
                    funding::check_over(funds, pair, &channel).await?;
                    // It may be over because vault and wallet hold less than was counted, so the next
                    // one is signed only by what they hold now.
                    if !super::tend::read_purse(shared, funds).await {
                        return Err(PaymentError::ChainUnknown);
                    }
                    funds.purse.lock().forget(&channel);
                }
                pair.state.lock().leave_channel();
            }
            done => return done,
        }
    }
}

async fn handshake(
    shared: &Arc<Shared>,
    pair: &Arc<Pair>,
    wish: Wish,
) -> Result<(Ends, SyncSeller), PaymentError> {
    let stream = shared
        .network
        .open(pair.seller(), Protocol::Session)
        .await
        .map_err(|e| PaymentError::Unreachable(e.to_string()))?;
    let mut ends = Ends::new(stream);
    let hello = Hello {
        version: WIRE_VERSION,
        network: shared.settings.network.clone(),
        modes: if shared.funds.is_some() {
            MODE_CREDIT | MODE_CHANNEL
        } else {
            MODE_CREDIT
        },
        terms_hash: Hash32::default(),
        clock_ms: shared.clock.now_ms(),
    };
    ends.say(SessionMessage::Hello(hello)).await?;
    let SessionMessage::Hello(theirs) = next(&mut ends.reader).await? else {
        return Err(out_of_order("HELLO"));
    };
    if theirs.version != WIRE_VERSION || theirs.network != shared.settings.network {
        return Err(PaymentError::Refused(format!(
            "the seller speaks version {} of network `{}`",
            theirs.version, theirs.network
        )));
    }
    pair.learn_clock(theirs.clock_ms, shared.clock.now_ms());
    let SessionMessage::Terms(bytes) = next(&mut ends.reader).await? else {
        return Err(out_of_order("TERMS"));
    };
    let terms = SignedTerms::decode_and_verify(&Bytes::from(bytes), pair.seller())
        .map_err(|e| PaymentError::Refused(e.to_string()))?;
    let (channel, open) = open_channel(shared, pair, &terms.terms, wish).await?;
    ends.say(SessionMessage::Open(open)).await?;
    let (acked, deposit) = match next(&mut ends.reader).await? {
        SessionMessage::OpenAck { channel, deposit } => (channel, deposit),
        SessionMessage::Error { code, message } => {
            return Err(PaymentError::Refused(format!("{code}: {message}")));
        }
        _ => return Err(out_of_order("OPEN_ACK")),
    };
    if acked != channel {
        return Err(PaymentError::Refused(
            "the seller acknowledged another channel".into(),
        ));
    }
    {
        // Together: who sees terms may trust the deposit.
        let mut state = pair.state.lock();
        let now_ms = shared.clock.now_ms();
        if !state.opened_session(deposit, wish == Wish::Order, now_ms) {
            return Err(PaymentError::ChannelOver);
        }
        state.terms = Some(terms.terms);
    }
    let ours = pair.state.lock().sync(channel);
    ends.say(SessionMessage::SyncBuyer(ours)).await?;
    match next(&mut ends.reader).await? {
        SessionMessage::SyncSeller(sync) if sync.channel == channel => Ok((ends, sync)),
        _ => Err(out_of_order("SYNC")),
    }
}

/// The channel to name to the seller; its row is durable before the first OPEN leaves.
async fn open_channel(
    shared: &Shared,
    pair: &Pair,
    terms: &Terms,
    wish: Wish,
) -> Result<(ChannelId, Open), PaymentError> {
    let chain = shared.funds.as_ref().and_then(|funds| {
        let chain = funds.shared_with(terms)?;
        Some((funds, chain))
    });
    match chain {
        Some((funds, chain)) if wish == Wish::Order => {
            funding::open(shared, funds, pair, terms, &chain).await
        }
        Some(_) => funding::reopen(shared, pair),
        None => open_credit(shared, pair, terms).await,
    }
}

/// A book of IOUs; in a node that pays on a chain one over nothing, for offers that are free.
async fn open_credit(
    shared: &Shared,
    pair: &Pair,
    terms: &Terms,
) -> Result<(ChannelId, Open), PaymentError> {
    let us = CreditParty {
        peer: shared.keys.identity.peer_id(),
        payment: shared.keys.payment.address(),
        voucher_signer: shared.keys.voucher.address(),
    };
    let them = CreditParty {
        peer: *pair.seller(),
        payment: terms.payment_address,
        voucher_signer: terms.payment_address,
    };
    let (known, epoch) = {
        let state = pair.state.lock();
        let on_credit = state.row().filter(|row| row.mode == MODE_ON_CREDIT);
        (
            on_credit.map(|row| row.channel),
            on_credit.map_or(0, |row| row.epoch),
        )
    };
    let descriptor = ChannelDescriptor::credit(&us, &them, epoch);
    let channel = descriptor.credit_id();
    let open = Open::sign(descriptor.to_bytes(), epoch, channel, &shared.keys.identity);
    if known.is_some_and(|known| known != channel) {
        return Err(PaymentError::Refused(
            "the seller's payment address changed; close the old channel with it first".into(),
        ));
    }
    if known.is_none() {
        let row = ChannelRow {
            at_ms: shared.clock.now_ms(),
            role: Role::Buy,
            channel,
            peer: *pair.seller(),
            mode: MODE_ON_CREDIT.to_owned(),
            descriptor: descriptor.to_bytes(),
            epoch,
            deposit: if shared.funds.is_some() {
                MicroUsd::ZERO
            } else {
                terms.credit_limit
            },
            open_signature: open.signature.0,
        };
        shared
            .ledger
            .commit(vec![Row::Channel(row.clone())])
            .await?;
        pair.state.lock().pay_by(row, None);
    }
    Ok((channel, open))
}

/// Reads what the seller says until the stream ends.
async fn listen(
    shared: &Arc<Shared>,
    pair: &Pair,
    mut reader: SessionReader,
) -> Result<(), PaymentError> {
    loop {
        match next(&mut reader).await? {
            SessionMessage::VoucherAck { .. } | SessionMessage::Terms(_) => {}
            SessionMessage::Close { channel, .. } => pair.state.lock().end(&channel),
            SessionMessage::AcceptAck(attempts) => pair.state.lock().acknowledged(&attempts),
            SessionMessage::Receipt(bytes) => on_receipt(shared, pair, bytes.into()).await?,
            SessionMessage::SyncSeller(sync) => on_sync(shared, pair, sync).await?,
            SessionMessage::Error { code, message } => {
                return Err(PaymentError::Refused(format!("{code}: {message}")));
            }
            _ => return Err(out_of_order("a message of the seller's")),
        }
    }
}

/// SYNC: take the seller's deposit, its highest voucher and its attempts in doubt.
async fn on_sync(shared: &Shared, pair: &Pair, sync: SyncSeller) -> Result<(), PaymentError> {
    if pair.channel() != Some(sync.channel) {
        return Err(PaymentError::Refused("SYNC names another channel".into()));
    }
    book_deposit(shared, pair, &sync).await?;
    if let Some((cumulative, signature)) = sync.voucher {
        let voucher = crate::protocol::Voucher {
            channel: sync.channel,
            cumulative,
        };
        let domain = pair.state.lock().domain();
        if voucher
            .verify(domain, &signature, &shared.keys.voucher.address())
            .is_ok()
        {
            let accepted = sync.accepted;
            pair.state
                .lock()
                .learn_voucher(&sync.channel, cumulative, signature, accepted);
        }
    }
    for attempt in sync.unknown {
        settle_doubt(shared, pair, attempt, Shown::Unknown, None).await?;
    }
    for attempt in sync.open {
        match attempt.receipt {
            Some(bytes) => on_receipt(shared, pair, bytes.into()).await?,
            None => settle_doubt(shared, pair, attempt.attempt, Shown::Lost, None).await?,
        }
    }
    Ok(())
}

/// What SYNC says of the deposit is durable before it counts.
async fn book_deposit(shared: &Shared, pair: &Pair, sync: &SyncSeller) -> Result<(), PaymentError> {
    let rows = pair.state.lock().deposit_rows(sync, shared.clock.now_ms());
    if !rows.is_empty() {
        shared.ledger.commit(rows).await?;
    }
    pair.state.lock().learn_deposit(sync.deposit);
    Ok(())
}

/// A receipt whose ACCEPT the seller misses: settle it, or say again what was booked.
async fn on_receipt(shared: &Shared, pair: &Pair, bytes: Bytes) -> Result<(), PaymentError> {
    let receipt = SignedReceipt::decode_and_verify(&bytes, pair.seller())
        .map_err(|e| PaymentError::Refused(e.to_string()))?;
    let attempt = receipt.receipt.attempt_id;
    let shown = Shown::Receipt(receipt.receipt.cost);
    settle_doubt(shared, pair, attempt, shown, Some(receipt)).await
}

async fn settle_doubt(
    shared: &Shared,
    pair: &Pair,
    attempt: AttemptId,
    shown: Shown,
    receipt: Option<SignedReceipt>,
) -> Result<(), PaymentError> {
    let accept = shown != Shown::Unknown;
    match pair.judge(&attempt, shown, receipt, shared.clock.now_ms()) {
        Verdict::Settled(row) => pair.book(*row, accept),
        Verdict::UnderWay => {}
        Verdict::AskLedger => {
            let known = shared.ledger.attempt(&attempt).await?;
            if let Some(cost) = repeated_cost(known.as_ref()) {
                pair.queue_accept(attempt, cost);
            }
        }
    }
    Ok(())
}

/// The session stands: what waited is said.
fn stand_up(pair: &Pair) -> u64 {
    let generation = pair.state.lock().stand_up();
    pair.changed.notify_one();
    generation
}

/// Asks for attempts that fell into doubt while the session stood.
pub(super) async fn sync_again(pair: &Pair) {
    let due = pair.state.lock().sync_again();
    if let Some(sync) = due {
        send(pair, &[SessionMessage::SyncBuyer(sync)]).await;
    }
}

/// Sends on the session if it stands; a broken one is noticed by its reader.
pub(super) async fn send(pair: &Pair, messages: &[SessionMessage]) {
    send_from(pair, || messages.to_vec()).await;
}

/// The same for what waits to be said: it is taken when the session is held, so that it goes over the
/// session that it was taken for.
pub(super) async fn send_from(pair: &Pair, take: impl FnOnce() -> Vec<SessionMessage>) {
    let mut session = pair.session.lock().await;
    if let Some(writer) = session.as_mut() {
        let messages = take();
        if messages.is_empty() {
            return;
        }
        for message in &messages {
            writer.put(FrameKind::Session, &message.encode());
        }
        let sent = tokio::time::timeout(SEND_TIMEOUT, writer.flush()).await;
        if !matches!(sent, Ok(Ok(()))) {
            tracing::debug!(seller = %pair.seller(), "session write failed");
            *session = None;
            pair.state.lock().stand_down();
        }
    }
}

/// From here on the end of an earlier session ends nothing: its reader may notice late, when the next
/// one is being agreed on.
fn retire_earlier(pair: &Pair) {
    pair.state.lock().generation += 1;
}

/// Leaves the session: the channel it is about is over. The seller hears of it, or its end would
/// wait for ever. `then` says what this node waits for afterwards.
pub(super) async fn hang_up(pair: &Pair, then: impl FnOnce(&mut PayerState)) {
    let mut session = pair.session.lock().await;
    if let Some(mut writer) = session.take() {
        let _ = tokio::time::timeout(SEND_TIMEOUT, writer.close()).await;
    }
    then(&mut pair.state.lock());
}

/// Leaves a session that may not reach the seller any more.
async fn leave(pair: &Pair) {
    let mut session = pair.session.lock().await;
    *session = None;
    pair.state.lock().stand_down();
}

/// The session ended; the seller may have restarted and lost what it was told last.
async fn close(pair: &Pair, generation: u64) {
    let mut session = pair.session.lock().await;
    let mut state = pair.state.lock();
    if state.generation == generation {
        state.stand_down();
        *session = None;
    }
}

async fn next(reader: &mut SessionReader) -> Result<SessionMessage, PaymentError> {
    let frame = reader
        .read()
        .await
        .map_err(|e| PaymentError::Session(e.to_string()))?
        .ok_or_else(|| PaymentError::Session("the seller closed it".into()))?;
    if frame.kind != FrameKind::Session {
        return Err(out_of_order("another frame"));
    }
    SessionMessage::decode(&frame.payload).map_err(|e| PaymentError::Refused(e.to_string()))
}

fn out_of_order(what: &str) -> PaymentError {
    PaymentError::Refused(format!("{what} out of order"))
}
