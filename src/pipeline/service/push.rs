//! Rows on their way to the next stage: one stream per session and epoch.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

use super::Peers;
use crate::network::framed::{FLUSH_BYTES, FrameReader, FrameWriter};
use crate::protocol::FrameKind;
use crate::protocol::stage::{Push, StageMessage, Step};
use crate::tasks::Tasks;
use crate::types::PeerId;

/// Messages that may wait beside a whole catch-up.
const WAITING_MAX: usize = 256;

/// Where rows are left for the next stage: room for a catch-up of the whole session and some more.
/// Dropping it ends the stream.
pub(super) struct Pusher {
    rows: mpsc::Sender<(Step, Bytes)>,
}

impl Pusher {
    /// Opens a stream to `peer` in the background, for a session that is sent again in `chunks`
    /// messages; `failed` hears the epoch if that or sending does not work.
    pub fn start(
        tasks: &Tasks,
        peers: Arc<dyn Peers>,
        peer: PeerId,
        push: Push,
        chunks: usize,
        failed: mpsc::Sender<u32>,
    ) -> Self {
        let (rows, queue) = mpsc::channel(chunks.saturating_add(WAITING_MAX));
        tasks.spawn("push", async move {
            if let Err(why) = run(&*peers, &peer, push, queue).await {
                tracing::debug!(%peer, why, "rows do not reach the next stage");
                // A session that is over needs no telling.
                let _ = failed.send(push.epoch).await;
            }
        });
        Self { rows }
    }

    /// Sends a step after all before it. One for which there is no room is lost, as on a bad wire: the
    /// next stage finds the gap. A failure is told through the channel given at the start.
    pub fn send(&self, step: Step, rows: Bytes) {
        let _ = self.rows.try_send((step, rows));
    }

    /// True when results may be sent again although they were sent before.
    pub fn has_room(&self) -> bool {
        self.rows.capacity() >= WAITING_MAX / 2
    }
}

async fn run(
    peers: &dyn Peers,
    peer: &PeerId,
    push: Push,
    mut queue: mpsc::Receiver<(Step, Bytes)>,
) -> Result<(), String> {
    let stream = peers.open(peer).await?;
    let (read, write) = tokio::io::split(stream);
    let mut reader = FrameReader::new(read);
    let mut writer = FrameWriter::new(write);
    let mut bytes = BytesMut::new();
    StageMessage::Push(push).encode_into(&[], &mut bytes);
    writer.put(FrameKind::Body, &bytes);
    loop {
        writer.flush().await.map_err(|error| error.to_string())?;
        let next = tokio::select! {
            next = queue.recv() => next,
            // Nothing ever comes the other way but the end.
            _ = reader.read() => return Err("the next stage closed the stream".to_owned()),
        };
        let Some(mut next) = next else {
            let _ = writer.close().await;
            return Ok(());
        };
        loop {
            let (step, rows) = next;
            bytes.clear();
            StageMessage::Step(step).encode_into(&rows, &mut bytes);
            writer.put(FrameKind::Body, &bytes);
            if writer.pending() >= FLUSH_BYTES {
                break;
            }
            match queue.try_recv() {
                Ok(more) => next = more,
                Err(_) => break,
            }
        }
    }
}
