//! The relayer's side: quotes, judges, estimates, sends through its own outbox.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use lru::LruCache;
use parking_lot::Mutex;
use tokio::io::WriteHalf;
use tokio::sync::Semaphore;

use super::ask::next;
use super::check::{Desk, GAS_MAX, check, gas_of_ask};
use crate::chain::hub::calls;
use crate::chain::link::Link;
use crate::chain::outbox::{Request, gas_cost};
use crate::chain::{At, Call, ChainError};
use crate::network::Stream;
use crate::network::framed::{FrameReader, FrameWriter};
use crate::protocol::FrameKind;
use crate::protocol::relay::{Ask, Quote, RelayMessage};
use crate::types::{Clock, IntentId, MicroUsd, PeerId, Purpose, UnixMs};

/// Bundles judged at once: each asks the chain a few questions.
const AT_ONCE_MAX: usize = 4;
/// A stream that takes longer is ended.
const STREAM_TIMEOUT: Duration = Duration::from_secs(40);
/// Streams of one peer in an hour; a buyer needs a handful a day.
const PER_PEER_HOUR: u32 = 20;
/// Streams of all peers in an hour: new keys are free, questions to the chain are not.
const PER_HOUR: u32 = 600;
/// Peers whose count is remembered.
const PEERS_REMEMBERED: usize = 4_096;
/// An hour.
const HOUR_MS: u64 = 3_600_000;
/// Least fee, whatever the gas costs.
const FEE_MIN: MicroUsd = MicroUsd(500);
/// What is asked above the likely cost of the gas, in percent: prices move before the block.
const MARGIN_PERCENT: u64 = 150;

/// Sends what buyers sign. Cheap to clone.
#[derive(Clone)]
pub struct Relayer {
    link: Link,
    clock: Arc<dyn Clock>,
    seats: Arc<Semaphore>,
    counts: Arc<Mutex<Counts>>,
}

impl Relayer {
    /// Sends through the link's own outbox.
    #[must_use]
    pub fn new(link: Link, clock: Arc<dyn Clock>) -> Self {
        Self {
            link,
            clock,
            seats: Arc::new(Semaphore::new(AT_ONCE_MAX)),
            counts: Arc::new(Mutex::new(Counts::new())),
        }
    }

    /// Serves one stream to its end.
    pub async fn serve(&self, peer: PeerId, stream: Stream) {
        let (read, write) = tokio::io::split(stream);
        let (mut reader, mut writer) = (FrameReader::new(read), FrameWriter::new(write));
        let talk = async {
            let answer = match self.admit(&peer) {
                Ok(()) => self.talk(&mut reader, &mut writer).await,
                Err(reason) => Err(reason),
            };
            let last = match answer {
                Ok(intent) => {
                    tracing::info!(%peer, %intent, "a bundle is relayed");
                    RelayMessage::Sent { intent }
                }
                Err(reason) => {
                    tracing::debug!(%peer, reason, "a bundle is not relayed");
                    RelayMessage::Refused { reason }
                }
            };
            drop(writer.send(FrameKind::Relay, &last.to_bytes()).await);
            drop(writer.close().await);
        };
        if tokio::time::timeout(STREAM_TIMEOUT, talk).await.is_err() {
            tracing::debug!(%peer, "a relay stream took too long");
        }
    }

    fn admit(&self, peer: &PeerId) -> Result<(), String> {
        if self.counts.lock().take(*peer, self.clock.now_ms()) {
            Ok(())
        } else {
            Err("too many requests; in an hour again".to_owned())
        }
    }

    async fn talk(
        &self,
        reader: &mut FrameReader<tokio::io::ReadHalf<Stream>>,
        writer: &mut FrameWriter<WriteHalf<Stream>>,
    ) -> Result<IntentId, String> {
        let RelayMessage::Ask(ask) = next(reader).await? else {
            return Err("a relay stream begins with ASK".to_owned());
        };
        let quote = self.quote(&ask).await?;
        let message = RelayMessage::Quote(quote).to_bytes();
        let sent = writer.send(FrameKind::Relay, &message).await;
        sent.map_err(|error| error.to_string())?;
        let RelayMessage::Send(bundle) = next(reader).await? else {
            return Err("ASK is followed by SEND".to_owned());
        };
        self.take(bundle, quote.fee).await
    }

    fn desk(&self) -> Desk {
        Desk {
            domain: self.link.domain(),
            token: self.link.token(),
            relayer: self.link.sender().address(),
        }
    }

    async fn quote(&self, ask: &Ask) -> Result<Quote, String> {
        let desk = self.desk();
        let gas = gas_of_ask(&desk, ask).map_err(|error| error.to_string())?;
        let _seat = self.seat()?;
        let cost = self.cost(gas).await.map_err(|error| error.to_string())?;
        let fee = cost.mul_div_ceil(MARGIN_PERCENT, 100).max(FEE_MIN);
        Ok(Quote {
            relayer: desk.relayer,
            fee,
        })
    }

    async fn take(&self, bundle: Vec<Vec<u8>>, quoted: MicroUsd) -> Result<IntentId, String> {
        let _seat = self.seat()?;
        let say = |error: ChainError| error.to_string();
        let chain = self.link.chain();
        let newest = chain.block(At::Latest).await.map_err(say)?;
        let now_s = newest.map_or(self.clock.now_ms() / 1_000, |block| block.timestamp_s);
        let desk = self.desk();
        let fee = check(&desk, &bundle, quoted, now_s).map_err(|error| error.to_string())?;
        let data = calls::multicall(bundle);
        let call = Call {
            from: desk.relayer,
            to: Some(desk.domain.hub),
            data: data.clone(),
            value: 0,
        };
        // Reverts, and so forged signatures and empty vaults, end here.
        let gas = chain.estimate_gas(call).await.map_err(say)?;
        if gas > GAS_MAX {
            return Err(format!("the bundle takes {gas} gas, above {GAS_MAX}"));
        }
        let cost = self.cost(gas).await.map_err(say)?;
        if cost > fee {
            return Err(format!(
                "the gas costs {cost} USD now, above the fee of {fee} USD"
            ));
        }
        let request = Request {
            to: Some(desk.domain.hub),
            data,
            purpose: Purpose::Relay,
            channel: None,
            gain: fee,
            // It was promised; the fee covers it.
            deadline_ms: Some(self.clock.now_ms()),
        };
        let sender = self.link.sender();
        sender.submit(request).await.map_err(|error| match error {
            // How much this node has is nobody's business.
            crate::chain::outbox::SubmitError::NoGas { .. } => {
                "this relayer has no gas now".to_owned()
            }
            other => other.to_string(),
        })
    }

    async fn cost(&self, gas: u64) -> Result<MicroUsd, ChainError> {
        let fees = self.link.chain().fees().await?;
        let likely = fees.base.saturating_add(fees.priority);
        Ok(gas_cost(gas, likely, self.link.send_settings().coin_price))
    }

    fn seat(&self) -> Result<tokio::sync::SemaphorePermit<'_>, String> {
        let busy = |_| "busy; try another seller".to_owned();
        self.seats.try_acquire().map_err(busy)
    }
}

/// Streams in the current hour.
struct Counts {
    since_ms: UnixMs,
    all: u32,
    peers: LruCache<PeerId, u32>,
}

impl Counts {
    fn new() -> Self {
        let size = NonZeroUsize::new(PEERS_REMEMBERED).unwrap_or(NonZeroUsize::MIN);
        Self {
            since_ms: 0,
            all: 0,
            peers: LruCache::new(size),
        }
    }

    /// Counts one stream, or says no.
    fn take(&mut self, peer: PeerId, now_ms: UnixMs) -> bool {
        if now_ms.saturating_sub(self.since_ms) >= HOUR_MS || now_ms < self.since_ms {
            self.since_ms = now_ms;
            self.all = 0;
            self.peers.clear();
        }
        let of_peer = self.peers.get_or_insert_mut(peer, || 0);
        if *of_peer >= PER_PEER_HOUR || self.all >= PER_HOUR {
            return false;
        }
        *of_peer += 1;
        self.all += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_its_share_of_an_hour_and_all_together_theirs() {
        let mut counts = Counts::new();
        let peer = PeerId::random();
        for _ in 0..PER_PEER_HOUR {
            assert!(counts.take(peer, HOUR_MS));
        }
        assert!(!counts.take(peer, HOUR_MS + 1));
        for _ in PER_PEER_HOUR..PER_HOUR {
            assert!(counts.take(PeerId::random(), HOUR_MS + 2));
        }
        assert!(!counts.take(PeerId::random(), HOUR_MS + 3));
        assert!(counts.take(peer, 2 * HOUR_MS), "the next hour");
    }
}
