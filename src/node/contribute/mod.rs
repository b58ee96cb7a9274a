//! Computes layers of a model for pipelines of others: which ones, at what price, for how long.
//!
//! `read the model → look at what the network lacks → load those layers → measure → offer`, and then
//! ([`tend`]) every minute: is another place worth more? (`crate::pipeline::market::moves`), and every
//! second: do others need the machine ([`load`])? The offer, its
//! orders and its money are the seller's (`super::sell`); sessions are served by
//! [`crate::pipeline::service::Stages`] behind a [`desk::Desk`], which outlives a change of layers.

mod desk;
mod load;
mod size;
mod tend;

use std::io::{IsTerminal as _, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::sync::watch;

use super::base::Base;
use crate::discovery::{NoCache, OfferBook};
use crate::failure::{Failure, FailureKind};
use crate::network::Handle;
use crate::pipeline::engine::{Load, ModelConfig, Precision, Stage, known};
use crate::pipeline::market::{Coverage, Joiner, Offered, place};
use crate::pipeline::processor::Processor;
use crate::pipeline::service::Stages;
use crate::pipeline::worker::Worker;
use crate::pipeline::{PipelineError, StepKind};
use crate::protocol::offer::{StageTerms, Wires};
use crate::seller::catalogue::ModelForSale;
use crate::types::{Hash32, PeerId, PriceTable};

pub(super) use desk::Desk;
use desk::Loaded;
pub(super) use tend::{Tending, watch_load};

/// A joiner waits this long to hear what others offer.
const LISTEN: Duration = Duration::from_secs(5);
/// After the first answer the rest of the offers get this long.
const SETTLE: Duration = Duration::from_secs(1);
/// Rows by which speed is measured, after one that warms up.
const MEASURED_ROWS: usize = 8;
/// The offer is renewed when room has changed by this share, per cent.
const ROOM_CHANGE_PERCENT: u32 = 25;

/// A loaded stage, and everything that says how it goes on.
pub(super) struct Contribution {
    /// Serves its sessions.
    pub desk: Arc<Desk>,
    model: Model,
    range: Range<u16>,
    price: PriceTable,
    book: OfferBook,
    sale: watch::Sender<Option<ModelForSale>>,
}

/// The model as this machine has it.
#[derive(Clone)]
struct Model {
    path: PathBuf,
    config: ModelConfig,
    manifest: Hash32,
    layers: u16,
    /// Most layers that fit into memory.
    layers_max: u16,
}

impl Contribution {
    /// Loads the layers that the config names, or that the network lacks most.
    ///
    /// # Errors
    /// When the model cannot be read, or nothing of it fits.
    pub async fn start(base: &Base) -> anyhow::Result<Self> {
        let section = &base.config.contribute;
        let path = section.model.clone().ok_or_else(|| {
            let hint = "souk contribute --model DIRECTORY-OR-GGUF (or [contribute] model)";
            Failure::new(FailureKind::BadConfig, "no model to compute layers of").hint(hint)
        })?;
        let book = watch_market(base);
        let model = Model::read(path, base).await?;
        let range = match section.range().map_err(bad_config)? {
            Some(range) => model.check(range)?,
            None => choose(base, &book, &model).await?,
        };
        let price = if section.free {
            PriceTable::default()
        } else {
            let usual = size::price(&model.config);
            let micro = |price: Option<crate::types::MicroUsd>, usual| price.map_or(usual, |p| p.0);
            let input = micro(section.price_in, usual.0);
            let output = micro(section.price_out, usual.1);
            PriceTable {
                input,
                cache_read: input,
                cache_write: input,
                output,
            }
        };
        let desk = Arc::new(Desk::new(section.sessions));
        let loaded = Loader::of(base).load(&model, range.clone()).await;
        desk.open(loaded.context("the layers cannot be loaded")?);
        let this = Self {
            desk,
            model,
            range,
            price,
            book,
            sale: watch::Sender::new(None),
        };
        this.offer(false);
        Ok(this)
    }

    /// What is for sale, as it changes.
    pub fn on_sale(&self) -> watch::Receiver<Option<ModelForSale>> {
        self.sale.subscribe()
    }

    /// What the ready line says.
    pub fn summary(&self) -> String {
        let Range { start, end } = self.range;
        let (of, rows) = (self.model.layers, self.desk.rows_per_s());
        format!("layers={start}..{end}/{of} rows_per_s={rows}")
    }

    /// Offers what is here now; while it drains, without room.
    fn offer(&self, is_draining: bool) {
        let free = self.desk.positions_free();
        let free = u32::try_from(free).unwrap_or(u32::MAX);
        let terms = StageTerms {
            manifest: self.model.manifest,
            first: self.range.start,
            end: self.range.end,
            layers: self.model.layers,
            free_positions: if is_draining { 0 } else { free },
            rows_per_s: self.desk.rows_per_s(),
            wires: Wires::F16.union(Wires::F32).union(Wires::INT8),
        };
        let sale = ModelForSale::stage(terms, self.price);
        self.sale.send_if_modified(|now| {
            let is_new = now.as_ref().is_none_or(|now| differs(now, &sale));
            if is_new {
                *now = Some(sale);
            }
            is_new
        });
    }
}

/// True when buyers should hear of it: other layers, or clearly more or less room.
fn differs(old: &ModelForSale, new: &ModelForSale) -> bool {
    let (Some(a), Some(b)) = (old.stage, new.stage) else {
        return true;
    };
    let alike = StageTerms {
        free_positions: a.free_positions,
        ..b
    };
    let change = a.free_positions.abs_diff(b.free_positions);
    let much = a.free_positions.max(b.free_positions) / 100 * ROOM_CHANGE_PERCENT;
    alike != a || change > much
}

impl Model {
    /// Reads the shape and hashes the weights, off the runtime's workers.
    async fn read(path: PathBuf, base: &Base) -> anyhow::Result<Self> {
        let section = &base.config.contribute;
        let (file, memory) = (path.clone(), base.lock.dir().models_json());
        let read = tokio::task::spawn_blocking(move || {
            let mut line = Line::new("reading the model");
            known::root(&file, &memory, &mut |done, all| line.say(done, all))
        });
        let (config, manifest) = read.await?.map_err(|error| bad_config(error.to_string()))?;
        let layers = u16::try_from(config.layers)
            .map_err(|_| bad_config(format!("{} layers are too many", config.layers)))?;
        let memory = section
            .memory_bytes()
            .unwrap_or_else(size::memory_free_half);
        let each = size::layer_bytes(&config, section.positions);
        let fitting = memory.checked_div(each).unwrap_or(u64::MAX);
        let fitting = u16::try_from(fitting).unwrap_or(u16::MAX).min(layers);
        let allowed = Some(section.layers_max).filter(|most| *most > 0);
        let layers_max = allowed.map_or(fitting, |most| most.min(fitting));
        tracing::info!(%manifest, layers, layers_max, mib_per_layer = each >> 20, "model read");
        Ok(Self {
            path,
            config,
            manifest,
            layers,
            layers_max,
        })
    }
    /// Named layers, if the model has them.
    fn check(&self, range: Range<u16>) -> anyhow::Result<Range<u16>> {
        if range.end > self.layers {
            let (end, has) = (range.end, self.layers);
            let message = format!("layers up to {end} are wanted and the model has {has}");
            return Err(bad_config(message).into());
        }
        if range.len() > usize::from(self.layers_max) {
            tracing::warn!(
                fitting = self.layers_max,
                "more layers than fit into the memory allowed"
            );
        }
        Ok(range)
    }
    fn joiner<'a>(&self, me: &'a PeerId) -> Joiner<'a> {
        Joiner {
            peer: me,
            layers_max: self.layers_max,
            // Whoever could read the model has all of it.
            on_disk: &[],
        }
    }
}

fn bad_config(message: String) -> Failure {
    Failure::new(FailureKind::BadConfig, message)
}

/// Hears what others offer.
pub(super) fn watch_market(base: &Base) -> OfferBook {
    let (book, runner) = OfferBook::new(
        base.network.clone(),
        &base.config.node.network,
        Arc::clone(&base.clock),
        Arc::new(NoCache),
    );
    let stop = base.base.cancelled();
    base.base
        .spawn("stage-book", async move { runner.run(stop).await });
    book
}

pub(super) fn offered(book: &OfferBook, manifest: &Hash32) -> Vec<Offered> {
    let live = book.stages(manifest);
    let heard = live.iter().filter(|o| !book.is_dead(&o.offer.seller));
    heard
        .filter_map(|signed| Offered::claimed(signed))
        .collect()
}

/// The layers that the network lacks most, as far as it is heard.
async fn choose(base: &Base, book: &OfferBook, model: &Model) -> anyhow::Result<Range<u16>> {
    book.want_stages(&model.manifest);
    if !base.config.node.bootstrap.is_empty() && book.wait_ready(LISTEN).await {
        book.want_stages(&model.manifest);
        tokio::time::sleep(SETTLE).await;
    }
    let me = base.keys.identity.peer_id();
    let heard = offered(book, &model.manifest);
    let others = Coverage::of(model.layers, heard.iter().filter(|o| o.peer != me));
    let (stages, covered) = (others.stages(), others.covered());
    let range = place(&others, &model.joiner(&me)).ok_or_else(|| {
        let hint = "--memory GIB allows more; --layers A..B ignores the limit";
        bad_config("not one layer fits into the memory allowed".to_owned()).hint(hint)
    })?;
    tracing::info!(
        ?range,
        others = stages,
        covered,
        of = model.layers,
        "place chosen"
    );
    Ok(range)
}

/// Loads layers and starts what serves them.
#[derive(Clone)]
struct Loader {
    positions: usize,
    network: Handle,
    tasks: crate::tasks::Tasks,
}

impl Loader {
    fn of(base: &Base) -> Self {
        Self {
            positions: usize::try_from(base.config.contribute.positions).unwrap_or(usize::MAX),
            network: base.network.clone(),
            tasks: base.front.clone(),
        }
    }
    async fn load(&self, model: &Model, range: Range<u16>) -> Result<Loaded, PipelineError> {
        let load = Load {
            path: model.path.clone(),
            layers: usize::from(range.start)..usize::from(range.end),
            precision: Precision::Q8,
            positions_max: self.positions,
        };
        let all = u64::try_from(load.layers.len()).unwrap_or(u64::MAX);
        let worker = Worker::start(Processor::start(None)?, move || {
            let mut line = Line::new("loading layers");
            let mut said = |done: usize| line.say(u64::try_from(done).unwrap_or(all), all);
            Ok(Stage::load(&load, &mut said)?)
        });
        let worker = worker.await?;
        let rows_per_s = measure(&worker).await?;
        let peers = Arc::new(self.network.clone());
        let tasks = self.tasks.clone();
        Ok(Loaded {
            stages: Stages::new(model.manifest, worker.clone(), peers, tasks),
            worker,
            rows_per_s,
        })
    }
}

/// Decode rows per second of one session through all layers here.
async fn measure(worker: &Worker) -> Result<u32, PipelineError> {
    let hidden = worker.config().hidden;
    let mut lease = worker.open(MEASURED_ROWS + 1).await?;
    let mut row = vec![0.01; hidden];
    row = lease.forward(0, row, StepKind::Decode).await?;
    let started = Instant::now();
    for pos in 1..=MEASURED_ROWS {
        row = lease.forward(pos, row, StepKind::Decode).await?;
    }
    let us = started.elapsed().as_micros().max(1);
    let rows = u128::try_from(MEASURED_ROWS).unwrap_or(1) * 1_000_000 / us;
    Ok(u32::try_from(rows).unwrap_or(u32::MAX).max(1))
}

/// One line of progress on a terminal; nothing elsewhere.
struct Line {
    what: &'static str,
    said: u64,
}

impl Line {
    const fn new(what: &'static str) -> Self {
        Self { what, said: 0 }
    }
    fn say(&mut self, done: u64, all: u64) {
        let percent = done.saturating_mul(100).checked_div(all).unwrap_or(100);
        let mut stderr = std::io::stderr();
        if percent == self.said || !stderr.is_terminal() {
            return;
        }
        self.said = percent;
        let end = if done >= all { "\n" } else { "" };
        // A terminal that is gone needs no progress.
        let _ = write!(stderr, "\r{} {percent:>3} %{end}", self.what);
    }
}

/// True when the path can be read as a model; for `node doctor`.
///
/// # Errors
/// Why it cannot, for people.
pub fn check_model(path: &Path) -> Result<String, String> {
    let config = crate::pipeline::engine::shape(path).map_err(|error| error.to_string())?;
    let (layers, hidden) = (config.layers, config.hidden);
    let mib = size::layer_bytes(&config, 0) >> 20;
    Ok(format!(
        "{layers} layers of {hidden}, {mib} MiB each once loaded"
    ))
}
