//! The head's end of one ordered session: what it is told goes out, what comes is heard, and the
//! money of both is kept.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::account::Account;
use super::{Heard, Order};
use crate::network::Stream;
use crate::network::framed::{FLUSH_BYTES, FrameReader, FrameWriter};
use crate::pipeline::session::HopId;
use crate::protocol::stage::StageDecoder;
use crate::protocol::{FrameKind, PeerError, ResponseHead, SignedHead};

/// After END the receipt is awaited this long.
const RECEIPT_PATIENCE: Duration = Duration::from_secs(3);

/// One ordered session.
pub(super) struct Wire {
    reader: FrameReader<ReadHalf<Stream>>,
    writer: FrameWriter<WriteHalf<Stream>>,
    decoder: StageDecoder,
    account: Account,
}

/// Why a session is over.
enum Over {
    /// Nobody here needs it any more.
    Closed,
    /// The stage ended it.
    Lost(String),
}

impl Wire {
    pub fn new(stream: Stream, account: Account) -> Self {
        let (read, write) = tokio::io::split(stream);
        Self {
            reader: FrameReader::new(read),
            writer: FrameWriter::new(write),
            decoder: StageDecoder::default(),
            account,
        }
    }

    /// Sends the order and waits until it is taken. The caller sets the deadline.
    ///
    /// # Errors
    /// Why it was not taken.
    pub async fn order(&mut self, head: &SignedHead, body: &Bytes) -> Result<(), String> {
        self.writer.put(FrameKind::ReqHead, &head.bytes);
        self.writer.put(FrameKind::Body, body);
        let sent = self.writer.send(FrameKind::End, &[]).await;
        sent.map_err(|error| error.to_string())?;
        loop {
            let frame = self
                .reader
                .read()
                .await
                .map_err(|error| error.to_string())?;
            let frame = frame.ok_or("it closed the stream")?;
            match frame.kind {
                FrameKind::Nop => {}
                FrameKind::Need => self.account.urge(),
                FrameKind::RespHead => {
                    ResponseHead::decode(&frame.payload).map_err(|error| error.to_string())?;
                    self.account.start();
                    return Ok(());
                }
                FrameKind::Error => {
                    let error = PeerError::decode(&frame.payload);
                    let error = error.map_err(|error| error.to_string())?;
                    // A later order is signed by its clock.
                    self.account.learn_clock(error.now_ms);
                    return Err(error.code.as_str().to_owned());
                }
                _ => return Err("it answered out of order".to_owned()),
            }
        }
    }

    /// Serves the session until either side ends it, and books it. Both directions go on at once: a
    /// stage that reads nothing because it waits for money is heard asking for it.
    pub async fn serve(
        mut self,
        id: HopId,
        mut told: mpsc::Receiver<Order>,
        heard: mpsc::Sender<Heard>,
    ) {
        let over = tokio::select! {
            over = write(&mut self.writer, &self.account, &mut told) => over,
            over = read(&mut self.reader, &mut self.decoder, &self.account, id, &heard) => over,
        };
        let why = match over {
            Over::Closed => {
                let _ = self.writer.send(FrameKind::End, &[]).await;
                None
            }
            Over::Lost(why) => {
                // The session says what it counted before; or it is gone itself.
                let _ = heard.send((id, Err(why.clone()))).await;
                drop(heard);
                while let Some(order) = told.recv().await {
                    match order {
                        Order::Owe(rows) => self.account.owe(rows),
                        Order::Forfeit => self.account.forfeit(),
                        Order::Say(..) => {}
                    }
                }
                Some(why)
            }
        };
        let receipt = self.receipt().await;
        self.account.settle(receipt, why).await;
    }

    /// The receipt, if it comes soon.
    async fn receipt(&mut self) -> Option<Bytes> {
        let until = Instant::now() + RECEIPT_PATIENCE;
        loop {
            let frame = tokio::time::timeout_at(until, self.reader.read()).await;
            let frame = frame.ok()?.ok()??;
            if frame.kind == FrameKind::Usage {
                return Some(frame.payload);
            }
        }
    }
}

/// Sends what the session is told, until it is told nothing more.
async fn write(
    writer: &mut FrameWriter<WriteHalf<Stream>>,
    account: &Account,
    told: &mut mpsc::Receiver<Order>,
) -> Over {
    let mut bytes = BytesMut::new();
    while let Some(first) = told.recv().await {
        let mut next = Some(first);
        while let Some(order) = next {
            match order {
                Order::Owe(rows) => account.owe(rows),
                Order::Forfeit => account.forfeit(),
                Order::Say(message, rows) => {
                    bytes.clear();
                    message.encode_into(&rows, &mut bytes);
                    writer.put(FrameKind::Body, &bytes);
                }
            }
            if writer.pending() >= FLUSH_BYTES {
                break;
            }
            next = told.try_recv().ok();
        }
        if let Err(error) = writer.flush().await {
            return Over::Lost(error.to_string());
        }
    }
    Over::Closed
}

/// Hears what the stage says, until it says nothing more.
async fn read(
    reader: &mut FrameReader<ReadHalf<Stream>>,
    decoder: &mut StageDecoder,
    account: &Account,
    id: HopId,
    heard: &mpsc::Sender<Heard>,
) -> Over {
    loop {
        let frame = match reader.read().await {
            Ok(Some(frame)) => frame,
            Ok(None) => return Over::Lost("it closed the stream".to_owned()),
            Err(error) => return Over::Lost(error.to_string()),
        };
        match frame.kind {
            FrameKind::Body => decoder.push(&frame.payload),
            FrameKind::Need => account.urge(),
            FrameKind::Nop => {}
            FrameKind::Error => {
                let error = PeerError::decode(&frame.payload);
                return Over::Lost(error.map_or_else(|e| e.to_string(), |e| e.message));
            }
            _ => return Over::Lost("it ended the session".to_owned()),
        }
        loop {
            match decoder.next_message() {
                // A session that is gone closes this one.
                Ok(Some(message)) => drop(heard.send((id, Ok(message))).await),
                Ok(None) => break,
                Err(error) => return Over::Lost(error.to_string()),
            }
        }
    }
}
