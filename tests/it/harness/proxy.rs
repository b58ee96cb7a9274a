//! A TCP proxy in the test: passes bytes, refuses connections, or swallows what it is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What the proxy does with bytes and connections.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    /// Hands everything on.
    Pass = 0,
    /// Drops every connection, old ones too.
    Down = 1,
    /// Takes everything and answers nothing.
    Stall = 2,
    /// Hands everything on, each answer late.
    Slow = 3,
}

/// How late a slow answer is.
const SLOW: std::time::Duration = std::time::Duration::from_secs(2);

/// A proxy in front of one port.
pub struct Proxy {
    /// Where it listens.
    pub port: u16,
    mode: Arc<AtomicU8>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Starts one that passes.
    pub async fn start(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mode = Arc::new(AtomicU8::new(Mode::Pass as u8));
        let shared = mode.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, target, shared.clone()));
            }
        });
        Self { port, mode, task }
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Changes what it does, also to connections that are open.
    pub fn set(&self, mode: Mode) {
        self.mode.store(mode as u8, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(mut client: TcpStream, target: u16, mode: Arc<AtomicU8>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", target)).await else {
        return;
    };
    let (mut there, mut back) = (vec![0u8; 65_536], vec![0u8; 65_536]);
    loop {
        let (from_client, len) = tokio::select! {
            read = client.read(&mut there) => (true, read.unwrap_or(0)),
            read = server.read(&mut back) => (false, read.unwrap_or(0)),
        };
        let mode = mode.load(Ordering::SeqCst);
        if len == 0 || mode == Mode::Down as u8 {
            return;
        }
        if mode == Mode::Stall as u8 {
            continue;
        }
        if mode == Mode::Slow as u8 && !from_client {
            tokio::time::sleep(SLOW).await;
        }
        let sent = if from_client {
            server.write_all(&there[..len]).await
        } else {
            client.write_all(&back[..len]).await
        };
        if sent.is_err() {
            return;
        }
    }
}
