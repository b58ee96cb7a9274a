//! The layers of a model that is sold from here and computed by others: finds their stages, orders
//! them, checks and pays them. What this machine keeps of the model is its two ends.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::base::Base;
use super::{contribute, pipeline};
use crate::ledger::OpenRow;
use crate::payment::payer::{self, PayerHub, Spending};
use crate::pipeline::PipelineError;
use crate::pipeline::chain::order::{Market, Parts};
use crate::pipeline::chain::{Checks, Remote, Settings};
use crate::pipeline::ends::Ends;
use crate::pipeline::engine::{Precision, known};
use crate::pipeline::layers::Layers;
use crate::pipeline::market::Coverage;
use crate::pipeline::processor::Processor;
use crate::pipeline::routed::Routed;
use crate::pipeline::trust::vectors::CHECK_ROWS;
use crate::pipeline::trust::{FromFile, Reference, Trust, Vectors};
use crate::protocol::stage::WireFormat;
use crate::types::{AttemptId, MicroUsd};

/// What a second is worth where stages are chosen, micro-USD: as buyers weigh by default.
const SECOND_WORTH: u64 = 500;
/// The start waits this long for stages that make a way; without one it warns and goes on.
const WAY_WAIT: Duration = Duration::from_secs(10);
/// How often it looks meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Each order of layers has a most of its own, and what is sold pays for it: no budget beside that.
struct Unlimited;

impl Spending for Unlimited {
    fn inherited(&self, _: &OpenRow, _: MicroUsd) {}
    fn parked(&self, _: &AttemptId, _: MicroUsd) {}
    fn spent(&self, _: &AttemptId, _: MicroUsd) {}
}

/// All layers of the model at `path`, on other peers. What these are checked by is made in the
/// background; until then sessions wait.
///
/// # Errors
/// When the model or the ledger cannot be read.
pub(super) async fn layers(
    base: &Base,
    path: &Path,
    ends: &Ends,
    processor: Processor,
) -> Result<Arc<dyn Layers>, PipelineError> {
    let failed = |error: &dyn std::fmt::Display| PipelineError::Failed(error.to_string());
    let file = path.to_owned();
    let memory = base.lock.dir().models_json();
    let read = tokio::task::spawn_blocking(move || known::root(&file, &memory, &mut |_, _| {}));
    let (config, manifest) = read.await.map_err(|_| PipelineError::Stopped)??;
    let count = u16::try_from(config.layers).map_err(|error| failed(&error))?;
    let checks = checks(base, path, ends, processor);
    let book = contribute::watch_market(base);
    let trust = Trust::default();
    let settings = payer::Settings {
        network: base.config.node.network.clone(),
        windows: base.windows(),
        handshake_timeout: base.config.buy.timeouts.head,
        device: base.config.payment.device,
        onchain: base.onchain(),
    };
    let payer = PayerHub::restore(
        base.ledger.clone(),
        base.network.clone(),
        base.keys.clone(),
        Arc::clone(&base.clock),
        base.base.clone(),
        Arc::new(Unlimited),
        settings,
    );
    let payer = payer.await.map_err(|error| failed(&error))?;
    let market = Market::new(Parts {
        places: Arc::new(Routed::new(
            book.clone(),
            manifest,
            SECOND_WORTH,
            trust.clone(),
        )),
        payer,
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
        let coverage = Coverage::of(count, &contribute::offered(&book, &manifest));
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
    let settings = Settings::new(count, config.hidden, WireFormat::F16);
    let tasks = base.front.clone();
    let remote = Remote::new(settings, Arc::new(market), tasks).checked(checks, trust);
    Ok(Arc::new(remote))
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
