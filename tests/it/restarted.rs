//! A seller that was killed and is back over a new connection, while the old one still looks alive: a
//! process that dies of kill -9 sends no farewell. Orders take the new connection, so the money must too.

use std::sync::{Arc, Mutex, mpsc};

use souk::keys::NodeKeys;
use tokio::sync::oneshot;

use crate::harness::cheat::{Cheat, Loot};
use crate::harness::http;
use crate::harness::market::{Dialect, Hold, start_buyer, wait_for_sellers};
use crate::harness::node::Node;
use crate::harness::peer::fresh_keys;

const TEXT: &str = "An answer that is worth something. ";

/// A seller in a runtime of its own. Once that is stopped, its sockets are open and nobody reads them.
struct Mortal {
    listen: String,
    loot: Arc<Mutex<Loot>>,
    dies: Option<oneshot::Sender<()>>,
    buried: Option<mpsc::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Mortal {
    fn start(keys: NodeKeys) -> Self {
        let (dies, death) = oneshot::channel();
        let (buried, burial) = mpsc::channel::<()>();
        let (born, birth) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().unwrap();
            let _seller = runtime.block_on(async {
                let cheat = Cheat::start_as(keys, &TEXT.repeat(40), false, None);
                let listen = cheat.peer.listen().await;
                born.send((listen, Arc::clone(&cheat.loot))).unwrap();
                let _ = death.await;
                cheat
            });
            // Nothing of it runs from here on, and nothing of it is closed.
            let _ = burial.recv();
        });
        let (listen, loot) = birth.recv().unwrap();
        Self {
            listen,
            loot,
            dies: Some(dies),
            buried: Some(buried),
            thread: Some(thread),
        }
    }

    fn die(&mut self) {
        drop(self.dies.take());
    }
}

impl Drop for Mortal {
    fn drop(&mut self) {
        self.die();
        drop(self.buried.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Where a buyer listens: its ready line does not name it, its log does.
fn listen(buyer: &Node) -> String {
    let log = buyer.home().path().join("stderr-1.txt");
    let log = std::fs::read_to_string(log).unwrap();
    let mut named = log
        .lines()
        .filter_map(|line| line.split_once("listening address="));
    let (_, address) = named.next().expect("it listens");
    format!("{}/p2p/{}", address.trim(), buyer.peer_id())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_session_follows_a_seller_that_came_back_over_a_new_connection() {
    let _hold = Hold::shared().await;
    let keys = fresh_keys();
    let mut first = Mortal::start(keys.clone());
    let buyer = start_buyer(&first.listen, &[]);
    wait_for_sellers(&buyer, 1).await;
    let ask = async |prompt: &str| {
        let request = Dialect::Chat.request(prompt, true);
        http::send(buyer.http(), &request).await
    };
    let answer = ask("Who are you?").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(first.loot.lock().unwrap().sessions, 1);
    first.die();

    let second = Cheat::start_as(keys, &TEXT.repeat(40), false, None);
    let peer = second.peer.dial(&listen(&buyer)).await;
    // Its answer says that the buyer knows of the new connection.
    let _ = second.peer.handle.pull_catalogue(&peer).await;
    let answer = ask("Are you back?").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let loot = second.loot();
    assert_eq!(loot.fair.len(), 1, "it served the order");
    assert_eq!(
        loot.unpaid_orders, 0,
        "the session came over the new connection before the order"
    );
    assert_eq!(loot.sessions, 1);
}
