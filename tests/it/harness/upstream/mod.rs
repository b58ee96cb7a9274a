//! A scripted LLM provider on loopback: what a seller forwards to in tests.
//!
//! One [`Upstream`] is one HTTP/1.1 listener on a free port that speaks OpenAI Chat Completions,
//! Anthropic Messages, OpenAI Responses and `/v1/models`. What it does wrong is chosen per instance by a [`Script`],
//! never by the text of a prompt, so a test reads as a sentence. It records every request, every
//! body byte that it sent, and when each client's socket closed.
//!
//! The integration tests, the stand-alone `upstream` example and the SDK drivers share this
//! module, so it depends on nothing of the product's own code.

mod ask;
mod chat;
mod messages;
mod models;
mod plain;
mod record;
mod responses;
pub mod script;
mod serve;
mod shape;
mod socket;

pub use models::{ListShape, ModelEntry};
pub use record::{ConnectionRecord, Exchange, Log};
pub use script::{Fault, Script, UsageReport};

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A running scripted provider; dropping it closes its listener and every connection.
pub struct Upstream {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

/// What the listener, its connections and the test look at together.
pub struct Shared {
    script: Mutex<Script>,
    log: Mutex<Log>,
}

impl Shared {
    fn script(&self) -> Script {
        self.script.lock().unwrap().clone()
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap()
    }
}

impl Upstream {
    /// Starts on a free loopback port.
    pub async fn start(script: Script) -> Self {
        Self::start_on(0, script).await
    }

    /// Starts on a given loopback port (0 = any free one).
    pub async fn start_on(port: u16, script: Script) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .await
            .unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            script: Mutex::new(script),
            log: Mutex::new(Log::default()),
        });
        let task = tokio::spawn(serve::accept_loop(listener, Arc::clone(&shared)));
        Self {
            address,
            shared,
            task,
        }
    }

    /// Returns the address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the base URL an OpenAI client is given (ends in `/v1`).
    pub fn openai_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Returns the base URL an Anthropic client is given (no `/v1`).
    pub fn anthropic_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Replaces the script; requests that have begun keep the old one.
    pub fn set(&self, script: Script) {
        *self.shared.script.lock().unwrap() = script;
    }

    /// Returns every inference request so far (model lists are not counted).
    pub fn exchanges(&self) -> Vec<Exchange> {
        self.shared
            .log()
            .exchanges
            .iter()
            .filter(|e| e.is_inference())
            .cloned()
            .collect()
    }

    /// Returns every request so far, model lists included.
    pub fn all_exchanges(&self) -> Vec<Exchange> {
        self.shared.log().exchanges.clone()
    }

    /// Returns the number of sockets that are open now.
    pub fn open_connections(&self) -> usize {
        self.shared
            .log()
            .connections
            .iter()
            .filter(|c| c.closed.is_none())
            .count()
    }

    /// Returns every connection so far.
    pub fn connections(&self) -> Vec<ConnectionRecord> {
        self.shared.log().connections.clone()
    }

    /// Forgets what was recorded, except the open connections.
    pub fn forget(&self) {
        self.shared.log().forget();
    }

    /// Waits until `test` holds for the inference requests; panics with `what` at the deadline.
    pub async fn wait_for(
        &self,
        what: &str,
        deadline: Duration,
        test: impl Fn(&[Exchange]) -> bool,
    ) -> Vec<Exchange> {
        let end = tokio::time::Instant::now() + deadline;
        loop {
            let seen = self.exchanges();
            if test(&seen) {
                return seen;
            }
            assert!(
                tokio::time::Instant::now() < end,
                "upstream never saw: {what}"
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}
