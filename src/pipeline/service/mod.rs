//! A stage that others pay: sessions over one engine, each with the head that ordered it and the
//! stages before and after it.
//!
//! A session has three ends. Its head orders, asks and pays over the order's own stream
//! ([`HeadSide`]); rows come from the stage before on a stream that shows the session's key, and go
//! to the stage after on one that this stage opens (`push`, [`Peers`]). What happens to them is
//! decided by [`super::session::StageMachine`]; `run` asks it and does what it says.
//!
//! # Invariants
//! - Results leave after the head has covered them, never before.
//! - A ping is answered while rows are computed and while a voucher is awaited: silence means that
//!   this process is gone.
//! - Rows are taken from whoever shows the key that the head gave for this epoch, and from no one
//!   else; a session holds a few messages that it has not looked at, and leaves the rest on the
//!   wire.
//!
//! Called by the seller (an order becomes a session) and by the network (streams of rows).

mod push;
mod run;
pub mod seller;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};

use super::error::PipelineError;
use super::worker::{Lease, Worker};
use crate::network::framed::FrameReader;
use crate::network::{Handle, Protocol};
use crate::protocol::FrameKind;
use crate::protocol::stage::{
    Push, PushKey, StageDecoder, StageMessage, StageOpen, StageSession, Step,
};
pub use crate::seller::stage::Cover;
use crate::tasks::Tasks;
use crate::types::{Hash32, PeerId, Usage};

/// Pushed messages that wait for a session's attention; the rest stays on the wire.
const PUSHED_MAX: usize = 4;
/// Rows may come before their session heard of their epoch from its head: they wait this long.
const EPOCH_PATIENCE: Duration = Duration::from_secs(10);

/// A stream in both directions.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Opens streams of rows to other stages.
pub trait Peers: Send + Sync {
    /// A fresh stream; the reason when there is none.
    fn open<'a>(&'a self, peer: &'a PeerId) -> BoxFuture<'a, Result<Box<dyn Duplex>, String>>;
    /// The head says where one is to be found.
    fn meet(&self, peer: &PeerId, addresses: &[Vec<u8>]);
}

impl Peers for Handle {
    fn open<'a>(&'a self, peer: &'a PeerId) -> BoxFuture<'a, Result<Box<dyn Duplex>, String>> {
        Box::pin(async move {
            let stream = Handle::open(self, peer, Protocol::Rows).await;
            let stream: Box<dyn Duplex> = Box::new(stream.map_err(|error| error.to_string())?);
            Ok(stream)
        })
    }
    fn meet(&self, peer: &PeerId, addresses: &[Vec<u8>]) {
        self.add_raw_addresses(peer, addresses);
    }
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The head needs it no more.
    Closed,
    /// The head is gone.
    Left,
    /// The head's money does not reach.
    Unpaid(&'static str),
    /// This side failed.
    Failed(&'static str),
}

/// The head's end of a session.
pub trait HeadSide: Send {
    /// The next piece of what the head says. Cancel safe.
    fn read(&mut self) -> impl Future<Output = Result<Bytes, End>> + Send;
    /// Gathers bytes for the head.
    fn put(&mut self, bytes: &[u8]);
    /// Sends what is gathered.
    fn flush(&mut self) -> impl Future<Output = Result<(), End>> + Send;
    /// States all that was computed, and says whether it is covered.
    ///
    /// # Errors
    /// [`End::Unpaid`] when it never will be.
    fn state(&mut self, usage: Usage) -> Result<Cover, End>;
}

/// Serves the layers of one engine. Cheap to clone.
#[derive(Clone)]
pub struct Stages {
    shared: Arc<Shared>,
}

struct Shared {
    manifest: Hash32,
    worker: Worker,
    peers: Arc<dyn Peers>,
    tasks: Tasks,
    open: Mutex<HashMap<StageSession, Entry>>,
}

/// What a stream of rows must know of its session.
#[derive(Clone)]
struct Entry {
    pushed: mpsc::Sender<(Step, Bytes)>,
    /// The epoch and its key.
    key: watch::Receiver<Option<(u32, PushKey)>>,
}

/// A session with its room reserved. Dropping it frees the room.
pub struct Reserved {
    shared: Arc<Shared>,
    open: StageOpen,
    lease: Lease,
    pushed: mpsc::Receiver<(Step, Bytes)>,
    key: watch::Sender<Option<(u32, PushKey)>>,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.shared.open.lock().remove(&self.open.session);
    }
}

impl Stages {
    /// Serves what `worker` computes of the model `manifest`.
    #[must_use]
    pub fn new(manifest: Hash32, worker: Worker, peers: Arc<dyn Peers>, tasks: Tasks) -> Self {
        let shared = Shared {
            manifest,
            worker,
            peers,
            tasks,
            open: Mutex::new(HashMap::new()),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Sessions that are open.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.shared.open.lock().len()
    }

    /// Reserves what an order asks for.
    ///
    /// # Errors
    /// [`PipelineError::Invalid`] for what is not served here or never, [`PipelineError::Full`] for
    /// now.
    pub async fn reserve(&self, body: &[u8]) -> Result<Reserved, PipelineError> {
        let invalid = |why: &str| PipelineError::Invalid(why.to_owned());
        let open = StageOpen::decode(body).map_err(|error| invalid(&error.to_string()))?;
        let here = self.shared.worker.layers();
        let asked = usize::from(open.first)..usize::from(open.end);
        if open.manifest != self.shared.manifest || asked != here {
            return Err(invalid("these layers are not served here"));
        }
        let positions = super::session::index(open.positions_max);
        let lease = self.shared.worker.open(positions).await?;
        let (pushed, from_pushed) = mpsc::channel(PUSHED_MAX);
        let (key, keys) = watch::channel(None);
        let entry = Entry { pushed, key: keys };
        let mut sessions = self.shared.open.lock();
        if sessions.contains_key(&open.session) {
            return Err(invalid("this session is open already"));
        }
        sessions.insert(open.session, entry);
        Ok(Reserved {
            shared: Arc::clone(&self.shared),
            open,
            lease,
            pushed: from_pushed,
            key,
        })
    }

    /// Takes rows from a stream that another stage opened, until it or the epoch is over.
    pub async fn take_rows(&self, stream: impl Duplex) {
        if let Err(why) = self.rows_of(stream).await {
            tracing::debug!(why, "a stream of rows ended");
        }
    }

    async fn rows_of(&self, stream: impl Duplex) -> Result<(), &'static str> {
        let mut rows = RowReader {
            reader: FrameReader::new(stream),
            decoder: StageDecoder::default(),
        };
        let first = tokio::time::timeout(EPOCH_PATIENCE, rows.next()).await;
        let Ok(Ok(Some((StageMessage::Push(push), _)))) = first else {
            return Err("it did not say what it is");
        };
        let entry = self.shared.open.lock().get(&push.session).cloned();
        let mut entry = entry.ok_or("no such session")?;
        let is_known = |key: &Option<(u32, PushKey)>| key.is_some_and(|(e, _)| e >= push.epoch);
        let known = tokio::time::timeout(EPOCH_PATIENCE, entry.key.wait_for(is_known)).await;
        let known = known.map_err(|_| "the epoch did not begin")?;
        let is_shown = known.map_err(|_| "the session is over")?.as_ref() == Some(&shown(&push));
        if !is_shown {
            return Err("another epoch or another key");
        }
        loop {
            tokio::select! {
                message = rows.next() => match message? {
                    Some((StageMessage::Step(step), bytes)) if step.epoch == push.epoch => {
                        let taken = entry.pushed.send((step, bytes)).await;
                        taken.map_err(|_| "the session is over")?;
                    }
                    None => return Ok(()),
                    Some(_) => return Err("something other than rows"),
                },
                changed = entry.key.changed() => {
                    changed.map_err(|_| "the session is over")?;
                    return Err("the epoch is over");
                }
            }
        }
    }
}

/// What a session's key must be for `push` to be admitted.
const fn shown(push: &Push) -> (u32, PushKey) {
    (push.epoch, push.key)
}

/// Messages from a stream of frames.
struct RowReader<S> {
    reader: FrameReader<S>,
    decoder: StageDecoder,
}

impl<S: Duplex> RowReader<S> {
    /// The next message, or none at the end. Cancel safe.
    async fn next(&mut self) -> Result<Option<(StageMessage, Bytes)>, &'static str> {
        loop {
            let message = self.decoder.next_message();
            if let Some(message) = message.map_err(|_| "malformed rows")? {
                return Ok(Some(message));
            }
            match self.reader.read().await {
                Ok(Some(frame)) if frame.kind == FrameKind::Body => {
                    self.decoder.push(&frame.payload);
                }
                Ok(Some(_)) => return Err("a frame that is no rows"),
                Ok(None) => return Ok(None),
                Err(_) => return Err("it broke"),
            }
        }
    }
}
