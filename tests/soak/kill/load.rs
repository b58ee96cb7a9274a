//! Clients that ask one request after another, whatever becomes of the nodes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::harness::http;
use crate::harness::market::Dialect;

/// Clients at once.
const CLIENTS: usize = 4;
/// After a failure, so that a dead node is not asked a thousand times.
const PAUSE: Duration = Duration::from_millis(20);
/// While the load rests.
const REST: Duration = Duration::from_millis(50);

/// What all clients share.
pub struct Load {
    buyer: SocketAddr,
    rests: AtomicBool,
    ends: AtomicBool,
    asked: AtomicU64,
    answered: AtomicU64,
}

/// The clients at work.
pub struct Running {
    load: Arc<Load>,
    clients: Vec<JoinHandle<()>>,
}

impl Running {
    /// Starts the clients of a buyer whose address stays the same over its restarts.
    pub fn start(buyer: SocketAddr) -> Self {
        let load = Arc::new(Load {
            buyer,
            rests: AtomicBool::new(false),
            ends: AtomicBool::new(false),
            asked: AtomicU64::new(0),
            answered: AtomicU64::new(0),
        });
        let clients = (0..CLIENTS)
            .map(|number| tokio::spawn(client(Arc::clone(&load), number)))
            .collect();
        Self { load, clients }
    }
    /// No new request from now on, or again.
    pub fn rest(&self, rests: bool) {
        self.load.rests.store(rests, Ordering::Relaxed);
    }
    /// Ends; gives what was asked and answered.
    pub async fn end(self) -> (u64, u64) {
        self.load.ends.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.unwrap();
        }
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (of(&self.load.asked), of(&self.load.answered))
    }
}

/// Asks again and again; failures are what the experiment is about.
async fn client(load: Arc<Load>, number: usize) {
    let mut count = number;
    while !load.ends.load(Ordering::Relaxed) {
        if load.rests.load(Ordering::Relaxed) {
            tokio::time::sleep(REST).await;
            continue;
        }
        count += 1;
        load.asked.fetch_add(1, Ordering::Relaxed);
        let request = Dialect::Chat.request("Say something.", count.is_multiple_of(2));
        let Ok(answer) = http::open(load.buyer, &request).await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let answer = answer.finish().await;
        if answer.status == 200 && answer.complete {
            load.answered.fetch_add(1, Ordering::Relaxed);
        } else {
            tokio::time::sleep(PAUSE).await;
        }
    }
}
