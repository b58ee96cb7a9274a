//! What a contribution does while it runs: looks whether its room or its place should change, moves,
//! and steps back while other programs need the machine.

use std::ops::Range;
use std::sync::Arc;

use rand::seq::SliceRandom as _;

use super::desk::Desk;
use super::load::{self, Gauge};
use super::{Base, Contribution, LISTEN, Loader, offered};
use crate::network::Handle;
use crate::pipeline::market::{Mover, Pace, Seen, Step};
use crate::types::{Clock, PeerId};

/// Other stages that are dialled in one look.
const REACHED_MAX: usize = 16;

/// What tending needs of the node.
pub(in crate::node) struct Tending {
    me: PeerId,
    clock: Arc<dyn Clock>,
    loader: Loader,
    network: Handle,
    pace: Pace,
    /// The layers were named: they stay.
    is_fixed: bool,
    stop: tokio_util::sync::CancellationToken,
}

impl Tending {
    pub fn of(base: &Base) -> Self {
        let section = &base.config.contribute;
        Self {
            me: base.keys.identity.peer_id(),
            clock: Arc::clone(&base.clock),
            loader: Loader::of(base),
            network: base.network.clone(),
            pace: Pace {
                pause: section.move_pause,
                drain_max: section.drain_max,
                look_every: section.look_every,
            },
            is_fixed: matches!(section.range(), Ok(Some(_)) | Err(_)),
            stop: base.front.cancelled(),
        }
    }
}

impl Contribution {
    /// Looks again and again whether room or place should change, until the node stops.
    pub async fn tend(mut self, parts: Tending) {
        let mut mover = Mover::new(parts.clock.now_ms(), parts.pace);
        loop {
            tokio::select! {
                () = tokio::time::sleep(parts.pace.look_every) => {}
                () = parts.stop.cancelled() => return,
            }
            let step = if parts.is_fixed {
                Step::Stay
            } else {
                self.look(&parts).await;
                let offered = offered(&self.book, &self.model.manifest);
                let seen = Seen {
                    joiner: &self.model.joiner(&parts.me),
                    mine: &self.range,
                    layers: self.model.layers,
                    offered: &offered,
                    sessions: self.desk.sessions(),
                };
                mover.step(parts.clock.now_ms(), &seen)
            };
            match step {
                Step::Stay => {
                    self.desk.drain(false);
                    self.offer(false);
                }
                Step::Drain(to) => {
                    if self.desk.drain(true) {
                        tracing::info!(?to, "another place is worth more; draining");
                    }
                    self.offer(true);
                }
                Step::Move(to) => self.move_to(&parts, to).await,
            }
        }
    }

    /// Hears what is on offer now, and who of those is gone: a stage that died says nothing, and its
    /// offer would stand for its place until it expires.
    async fn look(&self, parts: &Tending) {
        let heard = self.book.refresh_stages(&self.model.manifest);
        let _ = tokio::time::timeout(LISTEN, heard).await;
        let mut absent: Vec<PeerId> = offered(&self.book, &self.model.manifest)
            .iter()
            .map(|one| one.peer)
            .filter(|peer| *peer != parts.me && !parts.network.is_connected(peer))
            .collect();
        absent.shuffle(&mut rand::rng());
        let reach = absent.iter().take(REACHED_MAX).map(|peer| async {
            let reached = tokio::time::timeout(LISTEN, parts.network.connect(peer)).await;
            if matches!(reached, Ok(Err(_))) {
                self.book.mark_dead(peer);
            }
        });
        futures::future::join_all(reach).await;
    }

    async fn move_to(&mut self, parts: &Tending, to: Range<u16>) {
        // No new session between here and the new layers, also when nobody had to be waited for.
        self.desk.drain(true);
        // The old layers first: both together may not fit. Sessions that outlasted the drain keep
        // them for as long as they run.
        self.desk.close();
        for range in [to, self.range.clone()] {
            match parts.loader.load(&self.model, range.clone()).await {
                Ok(loaded) => {
                    tracing::info!(?range, rows_per_s = loaded.rows_per_s, "layers loaded");
                    self.range = range;
                    self.desk.open(loaded);
                    self.desk.drain(false);
                    return self.offer(false);
                }
                Err(error) => tracing::error!(%error, ?range, "layers cannot be loaded"),
            }
        }
    }
}

/// Pauses the desk while others need the machine, if the config says from when on.
pub(in crate::node) fn watch_load(base: &Base, desk: &Arc<Desk>) {
    let Some(max_bp) = base.config.contribute.load_max else {
        return;
    };
    let (desk, stop) = (Arc::clone(desk), base.front.cancelled());
    base.front.spawn("load", async move {
        let mut gauge = Gauge::new(max_bp);
        loop {
            let Some(ticks) = load::now() else {
                return tracing::warn!("[contribute] load_max: this system does not say its load");
            };
            let reading = gauge.see(ticks);
            if desk.pause(reading) {
                let load = reading.others_bp / 100;
                let is_paused = reading.is_paused;
                tracing::info!(
                    load,
                    is_paused,
                    "other programs' share of the machine, per cent"
                );
            }
            tokio::select! {
                () = tokio::time::sleep(load::LOOK_EVERY) => {}
                () = stop.cancelled() => return,
            }
        }
    });
}
