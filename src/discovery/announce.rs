//! The seller's side: publishes its offers, refreshes them, and checks that holders really keep them.
//!
//! Published under each model's shard 0 and, grouped, under the catalogue keys; when shard 0 says it is full also
//! under the seller's further shard. An acknowledged PUT means nothing, so each shard is read back. Everything is
//! repeated every 20 min ± 20 %, on change, soon when nobody took or showed it, and at once towards a holder that has
//! just (re)connected, because a restarted bootstrap is empty. Signing (and re-signing before `not_after`) is the
//! seller's work: it calls [`Announcer::set_offers`] again. Called by seller and node (runner).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::FuturesUnordered;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::network::{Handle, NetworkEvent};
use crate::protocol::offer::{
    OfferKey, SET_BYTES_MAX, SetHeader, SignedOffer, catalogue_key, encode_set, extra_shard,
    model_key,
};
use crate::types::{Clock, PeerId, UnixMs};

/// Models in the DHT; the rest is only in catalogue pulls.
pub const MODELS_MAX: usize = 128;
/// Refresh interval, ± 20 %.
const REFRESH: Duration = Duration::from_secs(20 * 60);
/// First and last pause after a round nobody took or showed.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// A round starts so long after its cause, so that causes collect.
const SETTLE: Duration = Duration::from_millis(200);
/// Offers in one PUT (holders look at no more).
const OFFERS_PER_PUT: usize = 64;
/// PUTs and read-backs at a time.
const AT_A_TIME: usize = 8;
/// Rounds towards single holders at a time.
const HOLDERS_AT_A_TIME: usize = 16;

/// How publishing stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// When the last round ended, 0: never.
    pub at_ms: UnixMs,
    /// Models put into the DHT.
    pub advertised: usize,
    /// Models that at least one holder took.
    pub taken: usize,
    /// Models that were read back from a holder.
    pub confirmed: usize,
    /// Models beyond the limit, which only catalogue pulls show.
    pub left_out: usize,
}

type Offers = Arc<Vec<SignedOffer>>;

/// Says what to publish. Cheap to clone.
#[derive(Clone)]
pub struct Announcer {
    handle: Handle,
    offers: Arc<watch::Sender<Offers>>,
    status: watch::Receiver<Published>,
}

impl Announcer {
    /// An announcer and the runner that does its work.
    #[must_use]
    pub fn new(handle: Handle, network: &str, clock: Arc<dyn Clock>) -> (Self, AnnouncerRunner) {
        let (offers, changes) = watch::channel(Offers::default());
        let (status, seen) = watch::channel(Published::default());
        let runner = AnnouncerRunner {
            work: Arc::new(Work {
                handle: handle.clone(),
                network: network.to_owned(),
                clock,
            }),
            events: handle.subscribe(),
            changes,
            status,
        };
        let announcer = Self {
            handle,
            offers: Arc::new(offers),
            status: seen,
        };
        (announcer, runner)
    }
    /// Replaces all offers, those that matter most first; tombstones withdraw. The first 128 go into the DHT, all
    /// into catalogue answers.
    pub fn set_offers(&self, offers: Vec<SignedOffer>) {
        self.handle
            .set_local_offers(offers.iter().map(|o| o.bytes.clone()).collect());
        self.offers.send_replace(Arc::new(offers));
    }
    /// How publishing stands.
    #[must_use]
    pub fn published(&self) -> Published {
        *self.status.borrow()
    }
    /// Changes of [`Self::published`].
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Published> {
        self.status.clone()
    }
}

/// Publishes until cancelled.
pub struct AnnouncerRunner {
    work: Arc<Work>,
    events: broadcast::Receiver<NetworkEvent>,
    changes: watch::Receiver<Offers>,
    status: watch::Sender<Published>,
}

impl AnnouncerRunner {
    /// Runs until cancelled.
    pub async fn run(mut self, cancel: CancellationToken) {
        let work = self.work.clone();
        let mut round: FuturesUnordered<BoxFuture<'_, Published>> = FuturesUnordered::new();
        let mut single: FuturesUnordered<BoxFuture<'_, ()>> = FuturesUnordered::new();
        let mut next = Instant::now() + SETTLE;
        let mut pause = RETRY_MIN;
        let mut again = false;
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                changed = self.changes.changed() => match changed {
                    Ok(()) => {
                        again = true;
                        next = next.min(Instant::now() + SETTLE);
                    }
                    Err(_) => return,
                },
                event = self.events.recv() => {
                    if let Ok(NetworkEvent::Server(peer)) = event {
                        if single.len() < HOLDERS_AT_A_TIME {
                            let offers = self.changes.borrow().clone();
                            single.push(work.publish_to(peer, offers).boxed());
                        }
                        let status = *self.status.borrow();
                        if status.confirmed < status.advertised || status.at_ms == 0 {
                            next = next.min(Instant::now() + SETTLE);
                        }
                    }
                }
                Some(()) = single.next() => {}
                Some(published) = round.next() => {
                    self.status.send_replace(published);
                    let missing = published.confirmed < published.advertised;
                    let wait = if again { SETTLE } else if missing { pause } else { REFRESH };
                    pause = if missing { (pause * 2).min(RETRY_MAX) } else { RETRY_MIN };
                    next = Instant::now() + wait.mul_f64(rand::random_range(0.8..1.2));
                }
                () = tokio::time::sleep_until(next), if round.is_empty() => {
                    again = false;
                    let offers = self.changes.borrow_and_update().clone();
                    round.push(work.publish(offers).boxed());
                }
            }
        }
    }
}

struct Work {
    handle: Handle,
    network: String,
    clock: Arc<dyn Clock>,
}

type Puts = Vec<(OfferKey, Vec<u8>)>;

impl Work {
    /// What is still worth publishing, within the limit.
    fn select<'a>(&self, offers: &'a Offers) -> Vec<&'a SignedOffer> {
        let now = self.clock.now_ms();
        offers
            .iter()
            .filter(|s| s.offer.is_kept(now))
            .take(MODELS_MAX)
            .collect()
    }
    /// The values to put: one per model under its shard 0, grouped under the catalogue keys.
    fn puts(&self, offers: &[&SignedOffer]) -> (Puts, Puts) {
        let mut groups: BTreeMap<OfferKey, Vec<&Bytes>> = BTreeMap::new();
        let mut models = Puts::new();
        for signed in offers {
            let model = &signed.offer.model;
            models.push((model_key(&self.network, model, 0), set_of([&signed.bytes])));
            let group = catalogue_key(&self.network, model);
            groups.entry(group).or_default().push(&signed.bytes);
        }
        let groups = groups.into_iter().flat_map(|(key, list)| {
            list.chunks(OFFERS_PER_PUT)
                .map(|part| (key, set_of(part.iter().copied())))
                .collect::<Puts>()
        });
        (models, groups.collect())
    }
    async fn publish(&self, offers: Offers) -> Published {
        let chosen = self.select(&offers);
        let (models, groups) = self.puts(&chosen);
        let taken = self.put_all(models).await;
        self.put_all(groups).await;
        let live: Vec<SignedOffer> = chosen.iter().copied().cloned().collect();
        let confirmed = futures::stream::iter(live)
            .map(|signed| self.confirm(signed))
            .buffer_unordered(AT_A_TIME)
            .filter(|confirmed| std::future::ready(*confirmed))
            .count()
            .await;
        let published = Published {
            at_ms: self.clock.now_ms(),
            advertised: chosen.len(),
            taken,
            confirmed,
            left_out: offers.len().saturating_sub(MODELS_MAX),
        };
        tracing::debug!(?published, "offers published");
        published
    }
    async fn put_all(&self, puts: Puts) -> usize {
        futures::stream::iter(puts)
            .map(|(key, set)| self.handle.put_offers(key, set))
            .buffer_unordered(AT_A_TIME)
            .filter(|taken| std::future::ready(*taken))
            .count()
            .await
    }
    /// Reads shard 0 back; when it is full the offer goes into the further shard as well. Our own copy proves nothing.
    async fn confirm(&self, signed: SignedOffer) -> bool {
        let key = model_key(&self.network, &signed.offer.model, 0);
        let mut replies = self.handle.walk_offers(key).await;
        let (mut shown, mut full) = (false, false);
        while let Some(reply) = replies.recv().await {
            full |= reply.set.header.is_full();
            shown |= reply.holder.is_some() && reply.set.offers.contains(&signed.bytes);
        }
        if full {
            let shard = extra_shard(&signed.offer.seller);
            let key = model_key(&self.network, &signed.offer.model, shard);
            return self.handle.put_offers(key, set_of([&signed.bytes])).await;
        }
        shown
    }
    /// Publishes to one holder what belongs to it.
    async fn publish_to(&self, peer: PeerId, offers: Offers) {
        let chosen = self.select(&offers);
        let (models, groups) = self.puts(&chosen);
        futures::stream::iter(models.into_iter().chain(groups))
            .map(|(key, set)| self.handle.put_offers_to(&peer, key, set))
            .buffer_unordered(AT_A_TIME)
            .count()
            .await;
    }
}

fn set_of<'a>(offers: impl IntoIterator<Item = &'a Bytes>) -> Vec<u8> {
    encode_set(SetHeader::default(), offers, SET_BYTES_MAX)
}
