//! A pipeline's head inside the test's process, which orders layers at the market and pays them: the
//! product's own payer, ledger and session around whatever sellers the test names.

use std::sync::Arc;
use std::time::Duration;

use souk::keys::{NodeKeys, Seed, WordCount};
use souk::ledger::{self, Ledger, OpenRow, Role};
use souk::network::{self, Handle};
use souk::payment::WindowSettings;
use souk::payment::payer::{self, PayerHub, Spending};
use souk::pipeline::chain::order::{Listed, Market, Parts, Places};
use souk::pipeline::chain::{Remote, Settings};
use souk::pipeline::patron::Unlimited;
use souk::protocol::offer::SignedOffer;
use souk::tasks::Tasks;
use souk::types::{AttemptId, ChannelId, Clock, MicroUsd, PeerId, SystemClock};
use tokio_util::sync::CancellationToken;

use super::peer::{NETWORK, PATIENCE, now_ms};
use super::stage::StageSeller;

/// Where a payer listens by itself.
pub const LOOPBACK: &str = "/ip4/127.0.0.1/udp/0/quic-v1";

/// Spending without limits.
struct Freely;

impl Spending for Freely {
    fn inherited(&self, _: &OpenRow, _: MicroUsd) {}
    fn parked(&self, _: &AttemptId, _: MicroUsd) {}
    fn spent(&self, _: &AttemptId, _: MicroUsd) {}
}

/// Who runs the head and pays.
pub struct Payer {
    pub ledger: Ledger,
    pub remote: Remote,
    market: Arc<Market>,
    tasks: Tasks,
    cancel: CancellationToken,
    _folder: tempfile::TempDir,
}

impl Drop for Payer {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl Payer {
    /// Pays these sellers, which know how to reach each other.
    pub async fn start(sellers: &[&StageSeller], settings: Settings) -> Self {
        Self::of(LOOPBACK, introduced(sellers).await, settings).await
    }

    /// Listens there and pays whoever listens at these addresses; an offer that is not known is asked
    /// for.
    pub async fn of(
        listen: &str,
        listed: Vec<(String, Option<SignedOffer>)>,
        session: Settings,
    ) -> Self {
        Self::choosing(listen, listed, session, |offers| Arc::new(Listed(offers))).await
    }

    /// The same, with other places than a list.
    pub async fn choosing(
        listen: &str,
        listed: Vec<(String, Option<SignedOffer>)>,
        session: Settings,
        places: impl FnOnce(Vec<Arc<SignedOffer>>) -> Arc<dyn Places>,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let seed = Seed::generate(WordCount::Twelve).unwrap();
        let keys = NodeKeys::from_seed(&seed, 0).unwrap();
        let (tasks, cancel) = (Tasks::new(), CancellationToken::new());
        let path = folder.path().join("ledger.db");
        let opened = Ledger::open(&path, Arc::clone(&clock), ledger::Settings::default()).await;
        let (ledger, writer) = opened.unwrap();
        tokio::spawn(writer.run(cancel.clone()));
        let settings = network::Settings {
            listen: vec![listen.to_owned()],
            mdns: false,
            ..network::Settings::new(keys.identity.secret_bytes())
        };
        let (handle, _, runner) = network::start(settings, Arc::clone(&clock)).unwrap();
        tokio::spawn(runner.run(cancel.clone()));
        let mut offers = vec![];
        for (listen, offer) in listed {
            let (address, peer) = listen.rsplit_once("/p2p/").unwrap();
            let peer = peer.parse().unwrap();
            let offer = match offer {
                // Reached when it is needed.
                Some(offer) => {
                    handle.add_addresses(&peer, &[address.to_owned()]);
                    offer
                }
                None => {
                    handle.dial(&peer, vec![address.to_owned()]).await.unwrap();
                    stage_offer_of(&handle, &peer).await
                }
            };
            offers.push(Arc::new(offer));
        }
        let settings = payer::Settings {
            network: NETWORK.to_owned(),
            windows: WindowSettings::default(),
            handshake_timeout: PATIENCE,
            device: 0,
            onchain: None,
        };
        let payer = PayerHub::restore(
            ledger.clone(),
            handle.clone(),
            keys.clone(),
            Arc::clone(&clock),
            tasks.clone(),
            Arc::new(Freely),
            settings,
        );
        let market = Arc::new(Market::new(Parts {
            places: places(offers),
            payer: payer.await.unwrap(),
            purse: Arc::new(Unlimited),
            ledger: ledger.clone(),
            network: handle,
            keys,
            clock,
            tasks: tasks.clone(),
            network_name: NETWORK.to_owned(),
            windows: WindowSettings::default(),
        }));
        let source = Arc::<Market>::clone(&market);
        let remote = Remote::new(session, source, tasks.clone());
        Self {
            ledger,
            remote,
            market,
            tasks,
            cancel,
            _folder: folder,
        }
    }

    /// The same layers for sessions that are kept alive in another way.
    pub fn remote_with(&self, session: Settings) -> Remote {
        let source = Arc::<Market>::clone(&self.market);
        Remote::new(session, source, self.tasks.clone())
    }

    /// What each channel's attempts cost here, once none is open.
    pub async fn booked(ledger: &Ledger, role: Role) -> Option<Vec<(ChannelId, MicroUsd)>> {
        let channels = ledger.load(role).await.unwrap();
        let all_booked = channels.iter().all(|channel| channel.unfinished.is_empty());
        let mut sums: Vec<_> = channels
            .iter()
            .map(|channel| (channel.row.channel, channel.accepted_sum))
            .collect();
        sums.sort();
        all_booked.then_some(sums)
    }
}

/// The stage's offer that a peer makes.
async fn stage_offer_of(handle: &Handle, peer: &PeerId) -> SignedOffer {
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        for bytes in handle.pull_catalogue(peer).await.unwrap_or_default() {
            if let Ok(signed) = SignedOffer::decode_and_verify(&bytes, NETWORK, now_ms())
                && signed.offer.seller == *peer
                && signed.offer.stage.is_some()
            {
                return signed;
            }
        }
        assert!(tokio::time::Instant::now() < end, "{peer} offers no layers");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Where these are and what they offer; each is told where the others are, because these offers carry
/// no addresses.
pub async fn introduced(sellers: &[&StageSeller]) -> Vec<(String, Option<SignedOffer>)> {
    let mut listed = vec![];
    for seller in sellers {
        listed.push((seller.listen().await, Some(seller.offer.clone())));
    }
    for (one, (listen, _)) in sellers
        .iter()
        .flat_map(|s| listed.iter().map(move |l| (s, l)))
    {
        let (address, peer) = listen.rsplit_once("/p2p/").unwrap();
        let peer = peer.parse().unwrap();
        one.handle.add_addresses(&peer, &[address.to_owned()]);
    }
    listed
}
