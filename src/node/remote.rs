//! The layers of a model that is sold from here and computed by others: finds their stages, orders
//! them, checks and pays them. What this machine keeps of the model is its two ends.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::base::Base;
use super::paying::{LayersPurse, Paying};
use super::pipeline::WantEnds;
use super::{contribute, pipeline};
use crate::config::{Config, Wire};
use crate::pipeline::PipelineError;
use crate::pipeline::chain::order::{Market, Parts, Places};
use crate::pipeline::chain::{Checks, Remote, Settings};
use crate::pipeline::ends::Ends;
use crate::pipeline::engine::{Precision, known};
use crate::pipeline::layers::Layers;
use crate::pipeline::market::Coverage;
use crate::pipeline::processor::Processor;
use crate::pipeline::routed::{Routed, Rules};
use crate::pipeline::trust::vectors::CHECK_ROWS;
use crate::pipeline::trust::{FromFile, Reference, Trust, Vectors};
use crate::protocol::stage::WireFormat;

/// What a second is worth where stages are chosen, micro-USD: as buyers weigh by default.
const SECOND_WORTH: u64 = 500;
/// The start waits this long for stages that make a way; without one it warns and goes on.
const WAY_WAIT: Duration = Duration::from_secs(10);
/// How often it looks meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A model's layers on other peers.
pub(super) struct Elsewhere {
    pub layers: Arc<dyn Layers>,
    pub view: View,
}

/// What of them is on offer.
pub(super) struct View {
    places: Arc<Routed>,
    layers: u16,
}

/// How far rows get now.
pub(super) struct Way {
    /// Stages that may be taken.
    pub stages: usize,
    /// What a million tokens cost on the best way: in, out, micro-USD; none without a way.
    pub prices: Option<(u64, u64)>,
}

impl View {
    /// The best way now, by the book; nothing here waits.
    pub fn way(&self) -> Way {
        Way {
            stages: self.places.offered().len(),
            prices: self.places.best_prices(self.layers),
        }
    }
}

/// Which stages this node takes wherever it is a head.
///
/// # Errors
/// When a peer id is none.
pub(super) fn rules(config: &Config) -> anyhow::Result<Rules> {
    Ok(Rules {
        second_worth: SECOND_WORTH,
        only: super::buy::peers("head.stages", &config.head.stages)?,
        ..Rules::default()
    })
}

fn wire(config: &Config) -> WireFormat {
    match config.head.wire {
        Wire::F16 => WireFormat::F16,
        Wire::F32 => WireFormat::F32,
        Wire::Int8 => WireFormat::Int8,
    }
}

/// All layers of the model at `path`, on other peers. What these are checked by is made in the
/// background; until then sessions wait.
///
/// # Errors
/// When the model or the ledger cannot be read.
pub(super) async fn layers(
    base: &Base,
    path: &Path,
    here: &WantEnds,
    rules: Rules,
) -> Result<Elsewhere, PipelineError> {
    let failed = |error: &dyn std::fmt::Display| PipelineError::Failed(error.to_string());
    let file = path.to_owned();
    let memory = base.lock.dir().models_json();
    let read = tokio::task::spawn_blocking(move || known::root(&file, &memory, &mut |_, _| {}));
    let (config, manifest) = read.await.map_err(|_| PipelineError::Stopped)??;
    let count = u16::try_from(config.layers).map_err(|error| failed(&error))?;
    let checks = checks(base, path, &here.ends, here.processor.clone());
    let book = contribute::watch_market(base);
    let trust = Trust::default();
    let Paying { payer, budget } = base.paying().await.map_err(|error| failed(&error))?;
    let places = Routed::new(book.clone(), manifest, rules, trust.clone());
    let places = Arc::new(places);
    let asked: Arc<dyn Places> = places.clone();
    let market = Market::new(Parts {
        places: asked,
        payer,
        purse: Arc::new(LayersPurse(budget)),
        ledger: base.ledger.clone(),
        network: base.network.clone(),
        keys: base.keys.clone(),
        clock: Arc::clone(&base.clock),
        tasks: base.front.clone(),
        network_name: base.config.node.network.clone(),
        windows: base.windows(),
    });
    let deadline = tokio::time::Instant::now() + WAY_WAIT;
    loop {
        book.want_stages(&manifest);
        let coverage = Coverage::of(count, &places.offered());
        if coverage.is_whole() {
            tracing::info!(%manifest, stages = coverage.stages(), "stages make a way");
            break;
        }
        if tokio::time::Instant::now() >= deadline {
            let (covered, of) = (coverage.covered(), count);
            tracing::warn!(%manifest, covered, of, "no way through the layers yet; requests wait");
            break;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let settings = Settings::new(count, config.hidden, wire(&base.config));
    let tasks = base.front.clone();
    let remote = Remote::new(settings, Arc::new(market), tasks).checked(checks, trust);
    Ok(Elsewhere {
        layers: Arc::new(remote),
        view: View {
            places,
            layers: count,
        },
    })
}

/// Takes a few rows that nobody else knows through the model's file, layer by layer.
fn checks(base: &Base, path: &Path, ends: &Ends, processor: Processor) -> Checks {
    let reference = FromFile::new(path.to_owned(), Precision::default(), processor);
    let reference: Arc<dyn Reference> = Arc::new(reference);
    let (made, vectors) = watch::channel(None);
    let (judge, ends) = (Arc::clone(&reference), ends.clone());
    base.front.spawn("check-rows", async move {
        match make(&*judge, &ends).await {
            Ok(vectors) => drop(made.send(Some(Arc::new(vectors)))),
            Err(error) => {
                tracing::error!(%error, "the rows that stages are checked by cannot be made");
            }
        }
    });
    Checks { vectors, reference }
}

async fn make(reference: &dyn Reference, ends: &Ends) -> Result<Vectors, PipelineError> {
    let config = ends.config();
    let (hidden, all) = (config.hidden, config.layers);
    let words = u32::try_from(config.vocabulary).unwrap_or(u32::MAX).max(1);
    let tokens = (0..CHECK_ROWS).map(|_| rand::random_range(0..words));
    let rows = ends.embed(tokens.collect()).await?;
    let layers = u16::try_from(all).map_err(|e| PipelineError::Invalid(e.to_string()))?;
    let progress = |layer: u16| {
        let what = "making the rows that stages are checked by";
        pipeline::show_progress(what, layer.into(), all);
    };
    Vectors::make(reference, rows, hidden, layers, &progress).await
}
