//! The asker's side: finds a seller that quotes a fee within the limit, then has the bundle sent.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{ReadHalf, WriteHalf};

use crate::chain::link::Link;
use crate::network::framed::{FrameReader, FrameWriter};
use crate::network::{Handle, Protocol, Stream};
use crate::protocol::FrameKind;
use crate::protocol::relay::{Ask, CallKind, Quote, RelayMessage};
use crate::types::{IntentId, MicroUsd, PeerId};

/// Sellers asked before giving up.
const PEERS_ASKED_MAX: usize = 8;
/// A seller asks its chain twice before it answers.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Whom to ask, likeliest first.
pub type Sellers = Arc<dyn Fn() -> Vec<PeerId> + Send + Sync>;

/// Finds relayers. Cheap to clone.
#[derive(Clone)]
pub struct Asker {
    network: Handle,
    sellers: Sellers,
}

/// A relayer that quoted a fee and waits for the calls.
pub struct Talk {
    /// Who.
    pub peer: PeerId,
    /// How much, made out to whom.
    pub quote: Quote,
    reader: FrameReader<ReadHalf<Stream>>,
    writer: FrameWriter<WriteHalf<Stream>>,
}

impl Asker {
    /// Asks those whom `sellers` names when it is called.
    #[must_use]
    pub fn new(network: Handle, sellers: Sellers) -> Self {
        Self { network, sellers }
    }

    /// The question for these calls on this chain.
    #[must_use]
    pub fn ask_for(&self, link: &Link, kinds: Vec<CallKind>) -> Ask {
        let domain = link.domain();
        Ask {
            chain_id: domain.chain_id,
            hub: domain.hub,
            token: link.token(),
            kinds,
        }
    }

    /// The first seller whose fee is at most `fee_max`.
    ///
    /// # Errors
    /// What each of them said.
    pub async fn talk(&self, ask: Ask, fee_max: MicroUsd) -> Result<Talk, String> {
        let mut reasons = vec![];
        for peer in (self.sellers)().into_iter().take(PEERS_ASKED_MAX) {
            match tokio::time::timeout(ANSWER_TIMEOUT, self.quote(peer, ask.clone())).await {
                Ok(Ok(talk)) if talk.quote.fee <= fee_max => return Ok(talk),
                Ok(Ok(talk)) => {
                    let fee = talk.quote.fee;
                    reasons.push(format!(
                        "{fee} USD is asked, above relay_fee_max {fee_max} ({peer})"
                    ));
                }
                Ok(Err(why)) => reasons.push(format!("{peer}: {why}")),
                Err(_) => reasons.push(format!("{peer} does not answer")),
            }
        }
        if reasons.is_empty() {
            return Err("no seller is known that could send it".to_owned());
        }
        Err(format!("no seller sends it: {}", reasons.join("; ")))
    }

    async fn quote(&self, peer: PeerId, ask: Ask) -> Result<Talk, String> {
        let stream = self.network.open(&peer, Protocol::Relay).await;
        let stream = stream.map_err(|error| error.to_string())?;
        let (read, write) = tokio::io::split(stream);
        let (mut reader, mut writer) = (FrameReader::new(read), FrameWriter::new(write));
        let question = RelayMessage::Ask(ask).to_bytes();
        let sent = writer.send(FrameKind::Relay, &question).await;
        sent.map_err(|error| error.to_string())?;
        match next(&mut reader).await? {
            RelayMessage::Quote(quote) => Ok(Talk {
                peer,
                quote,
                reader,
                writer,
            }),
            RelayMessage::Refused { reason } => Err(reason),
            _ => Err("it answers out of order".to_owned()),
        }
    }
}

impl Talk {
    /// Hands the calls over.
    ///
    /// # Errors
    /// Why the relayer does not send them, or that it did not answer: then they may be sent or not,
    /// and the hub knows.
    pub async fn send(mut self, calls: Vec<Vec<u8>>) -> Result<IntentId, String> {
        let message = RelayMessage::Send(calls).to_bytes();
        let talk = async {
            let sent = self.writer.send(FrameKind::Relay, &message).await;
            sent.map_err(|error| error.to_string())?;
            match next(&mut self.reader).await? {
                RelayMessage::Sent { intent } => Ok(intent),
                RelayMessage::Refused { reason } => Err(format!("the relayer refuses: {reason}")),
                _ => Err("the relayer answers out of order".to_owned()),
            }
        };
        let late = || Err("the relayer took the calls and does not answer".to_owned());
        tokio::time::timeout(ANSWER_TIMEOUT, talk)
            .await
            .unwrap_or_else(|_| late())
    }
}

/// The next message of a relay stream.
pub(super) async fn next(
    reader: &mut FrameReader<ReadHalf<Stream>>,
) -> Result<RelayMessage, String> {
    let frame = reader.read().await.map_err(|error| error.to_string())?;
    match frame {
        Some(frame) if frame.kind == FrameKind::Relay => {
            RelayMessage::from_bytes(&frame.payload).map_err(|error| error.to_string())
        }
        Some(_) => Err("another kind of frame on a relay stream".to_owned()),
        None => Err("the stream ended".to_owned()),
    }
}
